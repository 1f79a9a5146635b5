"""Strict JSON for what the agent keeps on disk and hears on its socket.

One object, UTF-8, no repeated names, no NaN, bounded length; then exactly the fields of a declared shape.
Octets travel as standard base64. Not here: files, sockets, and what any field means.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from keyvouch.errors import MalformedError, Reason

__all__ = ["COUNT", "FLAG", "LONGEST_TEXT", "Field", "dump_object", "octets", "octets_list", "parse_object", "text"]

LONGEST_TEXT = 1024
"""Longest text field where a shape says nothing else, in characters."""


class _Kind(Enum):
    TEXT = auto()
    OCTETS = auto()
    OCTETS_LIST = auto()
    COUNT = auto()
    FLAG = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """What one field may hold: its kind, and the longest text, octets or list."""

    kind: _Kind
    longest: int = LONGEST_TEXT


def text(longest: int = LONGEST_TEXT) -> Field:
    """A text of at most `longest` characters; it may be empty."""
    return Field(_Kind.TEXT, longest)


def octets(longest: int = LONGEST_TEXT) -> Field:
    """Octets, at most `longest` of them."""
    return Field(_Kind.OCTETS, longest)


def octets_list(longest: int) -> Field:
    """A list of at most `longest` octet strings."""
    return Field(_Kind.OCTETS_LIST, longest)


COUNT = Field(_Kind.COUNT)
"""A whole number from zero up."""

FLAG = Field(_Kind.FLAG)
"""True or false."""

Shape = Mapping[str, Field]


def dump_object(values: Mapping[str, object], *, indent: int | None = None) -> bytes:
    """Write an object in the order of its fields, as UTF-8 with a final newline."""
    document = {name: _plain(value) for name, value in values.items()}
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8") + b"\n"


def parse_object(data: bytes, shape: Shape, *, longest: int, optional: Shape | None = None) -> dict[str, object]:
    """Parse one object with the fields of `shape`, and any of `optional`, of at most `longest` bytes.

    Raises `MalformedError(ENCODING)` for anything that is not such an object; octets come back as `bytes`.
    """
    document = _document(data, longest)
    shapes = {**shape, **(optional or {})}
    for name in shape:
        if name not in document:
            raise _refuse(f"the field {name!r} is missing")
    if unknown := document.keys() - shapes.keys():
        raise _refuse(f"the field {min(unknown)[:40]!r} is unknown")
    return {name: _value(name, value, shapes[name]) for name, value in document.items()}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _refuse(why: str) -> MalformedError:
    return MalformedError(
        Reason.ENCODING, f"This is not the JSON that is expected here: {why}.", fix="Write it again as documented."
    )


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _refuse("a name occurs twice")
    return document


def _no_constant(name: str) -> object:
    raise _refuse(f"{name} is not JSON")


def _document(data: bytes, longest: int) -> dict[str, object]:
    if len(data) > longest:
        raise _refuse(f"it is longer than {longest} bytes")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _refuse("it cannot be parsed") from None
    if not isinstance(value, dict):
        raise _refuse("it is not an object")
    return value


def _value(name: str, value: object, field: Field) -> object:
    if field.kind is _Kind.FLAG and isinstance(value, bool):
        return value
    if field.kind is _Kind.COUNT and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    if field.kind is _Kind.TEXT and isinstance(value, str) and len(value) <= field.longest and _encodable(value):
        return value
    if field.kind is _Kind.OCTETS:
        return _octets(name, value, field.longest)
    if field.kind is _Kind.OCTETS_LIST and isinstance(value, list) and len(value) <= field.longest:
        return tuple(_octets(name, item, 1 << 16) for item in value)
    raise _refuse(f"the field {name!r} has the wrong type or length")


def _encodable(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _octets(name: str, value: object, longest: int) -> bytes:
    try:
        data = base64.b64decode(value.encode("ascii"), validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        data = None
    if data is None or len(data) > longest or base64.b64encode(data).decode("ascii") != value:
        raise _refuse(f"the field {name!r} does not hold octets in base64")
    return data
