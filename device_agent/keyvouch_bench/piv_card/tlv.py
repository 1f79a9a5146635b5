"""BER-TLV as PIV uses it: lengths of up to two bytes, tags of up to three (SP 800-73-4 part 2, section 2.1)."""

from __future__ import annotations

from typing import Final

from keyvouch_bench.piv_card.identifiers import RefusedError, Status

__all__ = ["build", "parse", "single"]

_MORE_TAG_BYTES: Final = 0x1F
_LONGEST_TAG: Final = 3


def build(tag: int, value: bytes = b"") -> bytes:
    """One element. Tags are written as they read in the specification: 0x5C, 0x7F49, 0x5FC105."""
    size = len(value)
    if size < 0x80:
        length = bytes([size])
    elif size < 0x100:
        length = bytes([0x81, size])
    else:
        length = b"\x82" + size.to_bytes(2, "big")
    return tag.to_bytes((tag.bit_length() + 7) // 8 or 1, "big") + length + value


def parse(data: bytes) -> dict[int, bytes]:
    """The elements of `data`. Raises `RefusedError(INCORRECT_DATA)` when it is cut short or has a tag twice."""
    found: dict[int, bytes] = {}
    place = 0
    while place < len(data):
        tag, place = _tag(data, place)
        length, place = _length(data, place)
        value = data[place : place + length]
        if len(value) != length or tag in found:
            raise _incorrect()
        found[tag] = value
        place += length
    return found


def single(data: bytes, tag: int) -> bytes:
    """The value of the one element that `data` is. Raises `RefusedError(INCORRECT_DATA)` when it is anything else."""
    found = parse(data)
    if list(found) != [tag]:
        raise _incorrect()
    return found[tag]


def _tag(data: bytes, place: int) -> tuple[int, int]:
    end = place + 1
    if data[place] & _MORE_TAG_BYTES == _MORE_TAG_BYTES:
        while end < len(data) and data[end] & 0x80:
            end += 1
        end += 1
    if end > len(data) or end - place > _LONGEST_TAG:
        raise _incorrect()
    return int.from_bytes(data[place:end], "big"), end


def _length(data: bytes, place: int) -> tuple[int, int]:
    if place >= len(data):
        raise _incorrect()
    first = data[place]
    if first < 0x80:
        return first, place + 1
    end = place + 1 + (first & 0x7F)
    if first not in (0x81, 0x82) or end > len(data):
        raise _incorrect()
    return int.from_bytes(data[place + 1 : end], "big"), end


def _incorrect() -> RefusedError:
    return RefusedError(Status.INCORRECT_DATA)
