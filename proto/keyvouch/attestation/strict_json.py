"""JSON as signed documents need it: one meaning for every reader (RFC 8259 section 4, RFC 7493).

Refused: a name that occurs twice in one object, NaN and infinities, integers of more than 18 digits, deep nesting,
bytes that are not UTF-8, and surrogates, which are no characters and have no encoding (RFC 7493 section 2.1). What is
not here: what the members of a document have to be.
"""

from __future__ import annotations

import json
import math
import re
from typing import Final

__all__ = ["MAX_DEPTH", "read_object"]

MAX_DEPTH: Final = 32
"""Deepest nesting of arrays and objects."""

_MAX_DIGITS = 18
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_object(data: bytes) -> dict[str, object]:
    """Parse one JSON object. Raises `ValueError` for everything else."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except RecursionError:
        raise ValueError("It is nested too deep.") from None
    if not isinstance(value, dict):
        raise ValueError("It is not a JSON object.")
    _check_inside(value)
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("A name occurs twice in one object.")
    return document


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_DIGITS:
        raise ValueError("An integer is too long.")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("A number is too large.")
    return number


def _constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON.")


def _check_inside(document: object) -> None:
    """Check texts and depth, level by level: the stack of the interpreter says nothing about the depth."""
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in _inside(value)]
        if not level:
            return
        for text in level:
            _check_text(text)
    if any(isinstance(value, (dict, list)) for value in level):
        raise ValueError("It is nested too deep.")


def _check_text(value: object) -> None:
    """Check that a text holds characters only. An escape can put half of one into it (RFC 8259 section 8.2)."""
    if isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
        raise ValueError("A text holds half of a character.")


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []
