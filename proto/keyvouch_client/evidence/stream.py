"""Reading JSON values from a stream, whatever way they stand there: one document, several, or one on each line.

The first line decides. If it is a value by itself, the stream is JSON Lines and is read line by line, however long
it is. If a value begins on it that goes on below, the stream holds documents one after the other, as `jq` prints
them, and is read to its end. An object with the member `vectors`, and a list, stand for what they hold.

Values are strict JSON (RFC 8259): UTF-8, no name twice in an object, no NaN. Not here: what the values mean.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO, NoReturn

from keyvouch.errors import UsageError

__all__ = ["BYTE_ORDER_MARK", "LIMIT", "Found", "read"]

LIMIT = 32 * 1024 * 1024
"""Longest line, and longest stream that is no JSON Lines, in bytes."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_BLANK = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Found:
    """A value with its place in the stream, or what is wrong at that place."""

    place: str
    value: object = None
    fault: UsageError | None = None


def read(stream: BinaryIO, *, limit: int = LIMIT) -> Iterator[Found]:
    """Read all values of a stream of bytes; what is unusable is found as a fault, and the rest is read on."""
    lines = _lines(stream, limit)
    first = next(((number, line) for number, line in lines if line is None or line.strip()), None)
    if first is None:
        yield _fault("", "It is empty.", "Name a file that holds recorded evidence.")
        return
    number, line = first
    if line is not None and line.startswith(_UTF_16):
        yield _fault(
            "", "It is UTF-16 and not UTF-8.", "Write it in UTF-8; PowerShell needs `Out-File -Encoding utf8`."
        )
    elif line is not None and _goes_on(line):
        yield from _documents(line + stream.read(limit + 1 - len(line)), number, limit)
    else:
        yield from _json_lines(chain([first], lines), limit)


def _lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines with their numbers, None for one that is longer than `limit`."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) <= limit:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(limit)
        yield number, None


def _json_lines(lines: Iterable[tuple[int, bytes | None]], limit: int) -> Iterator[Found]:
    for number, line in lines:
        place = f"line {number}"
        if line is None:
            yield _fault(place, f"It has more than {limit} bytes.", "Write one vector on each line.")
        elif line.strip():
            try:
                for _, value in _values(line):
                    yield from _expanded(place, value)
            except _NotJsonError as error:
                yield error.found(place)


def _documents(data: bytes, first_line: int, limit: int) -> Iterator[Found]:
    """The values that `data` holds one after the other; `first_line` is the number of its first line."""
    if len(data) > limit:
        fix = "Write one vector on each line (JSON Lines), which is read line by line."
        yield _fault("", f"It is one document of more than {limit} bytes.", fix)
        return
    values = _values(data)
    try:
        for line, value in values:
            yield from _expanded(f"line {first_line + line - 1}" if line > 1 else "", value)
    except _NotJsonError as error:
        if _second_line_is_a_value(data):  # JSON Lines whose first line has been cut
            yield from _json_lines(enumerate(io.BytesIO(data), start=first_line), limit)
        else:
            yield error.found(f"line {first_line + error.line - 1}")


def _expanded(place: str, value: object) -> Iterator[Found]:
    """The vectors a value stands for."""
    inside = value.get("vectors", value) if isinstance(value, dict) else value
    if not isinstance(inside, list):
        yield Found(place, value)
        return
    name = "vectors" if inside is not value else ""
    if not inside:
        yield _fault(place, "It holds no vectors.", "Name a file that holds recorded evidence.")
    for number, item in enumerate(inside):
        yield Found(f"{place} {name}[{number}]".lstrip(), item)


# JSON


class _NotJsonError(Exception):
    """Why bytes are not JSON, and where. `cut` if they are the beginning of a value."""

    def __init__(self, why: str, *, line: int = 1, cut: bool = False) -> None:
        super().__init__(why)
        self.line = line
        self.cut = cut

    def found(self, place: str) -> Found:
        return _fault(place, f"It is not JSON: {self}.", "Write strict JSON in UTF-8: a document, or one value a line.")


def _values(data: bytes) -> Iterator[tuple[int, object]]:
    """The values in `data` with the line each begins on. Raises `_NotJsonError` where there is none."""
    text = _decoded(data)
    at, line, counted = 0, 1, 0
    while (at := _skip_blank(text, at)) < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            cut = error.pos >= len(text.rstrip(_BLANK))
            raise _NotJsonError(f"{error.msg}, column {error.colno}", line=error.lineno, cut=cut) from None
        except RecursionError:
            raise _NotJsonError("it is nested too deeply", line=line) from None
        except ValueError as error:
            raise _NotJsonError(str(error), line=line) from None
        yield line, value


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _NotJsonError("it is not UTF-8", line=line) from None


def _skip_blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _goes_on(line: bytes) -> bool:
    """Whether a value begins on this line and does not end there."""
    try:
        for _ in _values(line):
            pass
    except _NotJsonError as error:
        return error.cut
    return False


def _second_line_is_a_value(data: bytes) -> bool:
    lines = [line for line in data.split(b"\n", 8) if line.strip()]
    if len(lines) < 2:
        return False
    try:
        return [type(value) for _, value in _values(lines[1])] == [dict]
    except _NotJsonError:
        return False


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object names a member twice")
    return members


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)


def _fault(place: str, message: str, fix: str) -> Found:
    return Found(place, fault=UsageError(message, fix=fix))
