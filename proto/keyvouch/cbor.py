"""Strict canonical CBOR: one value, one encoding (CTAP 2.1 section 8, RFC 8949 section 4.2).

The profile is what CTAP2 speaks: 64-bit integers, byte and text strings, arrays, maps with integer or string
keys, booleans and null. Whatever has a second spelling, or no place in signed bytes, is refused in both
directions: floating point, undefined and other simple values, tags, indefinite lengths, longer heads than
needed, unsorted or repeated keys.

Map keys are ordered by major type, then by length, then bytewise (CTAP 2.1 section 8). For the keys allowed
here that is the plain bytewise order of their encodings.

What is not here: any meaning of the values, and streaming; an item is decoded from bytes that are all there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TypeAlias

from keyvouch.errors import MalformedError, Reason, UsageError

__all__ = ["DEFAULT_DEPTH", "CborKey", "CborMap", "CborValue", "decode", "decode_prefix", "encode"]

CborKey: TypeAlias = int | bytes | str
CborValue: TypeAlias = "int | bytes | str | bool | list[CborValue] | dict[CborKey, CborValue] | None"
CborMap: TypeAlias = dict[CborKey, CborValue]

DEFAULT_DEPTH = 4
"""Arrays and maps that may enclose one another, the outermost included (CTAP 2.1 section 8)."""

_MAX_DEPTH = 64
_MAX_ARGUMENT = (1 << 64) - 1
_FIX = "Send the item again in the CTAP2 canonical CBOR encoding form."
_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)


def encode(value: object) -> bytes:
    """Encode `value` canonically. Mappings are sorted; subclasses of the supported types count as those.

    Raises `UsageError` for a type, an integer or a map key outside the profile.
    """
    out = bytearray()
    _write(value, out)
    return bytes(out)


def decode(data: bytes, *, max_depth: int = DEFAULT_DEPTH) -> CborValue:
    """Decode exactly one item that fills `data`.

    Raises `MalformedError` with `CBOR_MALFORMED`, `CBOR_NONCANONICAL`, `CBOR_DUPLICATE_KEY`, `CBOR_LIMIT` or, for
    bytes left over, `CBOR_TRAILING`. Nothing is allocated for a length that the input cannot hold.
    """
    value, end = decode_prefix(data, max_depth=max_depth)
    if end != len(data):
        raise MalformedError(Reason.CBOR_TRAILING, f"{len(data) - end} bytes follow the CBOR item.", fix=_FIX)
    return value


def decode_prefix(data: bytes, offset: int = 0, *, max_depth: int = DEFAULT_DEPTH) -> tuple[CborValue, int]:
    """Decode the item that starts at `offset`; return it with the offset of the first byte after it.

    For items embedded in other structures, such as authenticator data. Raises as `decode` does, except for
    `CBOR_TRAILING`: judging what follows is the caller's part.
    """
    if offset < 0 or not 0 <= max_depth <= _MAX_DEPTH:
        raise UsageError(f"The offset must not be negative and the depth must be 0 to {_MAX_DEPTH}.")
    try:
        return _item(data, offset, max_depth)
    except IndexError:
        raise _malformed("The CBOR item ends before it is complete.") from None


# Reading


def _item(data: bytes, pos: int, depth: int) -> tuple[CborValue, int]:
    """Read one item at `pos`. An `IndexError` means that the input ended; `decode_prefix` turns it around."""
    head = data[pos]
    argument = head & 0x1F
    pos += 1
    if argument > 23 and head < 0xE0:
        argument, pos = _long_argument(data, pos, head)
    return _READERS[head >> 5](data, pos, argument, depth)


def _long_argument(data: bytes, pos: int, head: int) -> tuple[int, int]:
    """Read the 1, 2, 4 or 8 bytes that follow a head of 24 to 27 (RFC 8949 section 3)."""
    short = head & 0x1F
    if short == 24:  # by far the most frequent
        if data[pos] < 24:
            raise _long_for_short()
        return data[pos], pos + 1
    if short > 27:
        raise _bad_head(head)
    size = 1 << (short - 24)
    end = pos + size
    if end > len(data):
        raise _malformed("The CBOR item ends inside the length or the number at its start.")
    argument = int.from_bytes(data[pos:end], "big")
    if argument < _SMALLEST[short - 25]:
        raise _long_for_short()
    return argument, end


def _unsigned(_data: bytes, pos: int, argument: int, _depth: int) -> tuple[int, int]:
    return argument, pos


def _negative(_data: bytes, pos: int, argument: int, _depth: int) -> tuple[int, int]:
    return -1 - argument, pos


def _byte_string(data: bytes, pos: int, length: int, _depth: int) -> tuple[bytes, int]:
    end = pos + length
    if end > len(data):
        raise _too_long(length, len(data) - pos)
    return data[pos:end], end


def _text_string(data: bytes, pos: int, length: int, _depth: int) -> tuple[str, int]:
    end = pos + length
    if end > len(data):
        raise _too_long(length, len(data) - pos)
    try:
        return str(data[pos:end], "utf-8"), end
    except UnicodeDecodeError:
        raise _malformed("A text string is not valid UTF-8.") from None


def _array(data: bytes, pos: int, length: int, depth: int) -> tuple[list[CborValue], int]:
    if depth == 0:
        raise _too_deep()
    if length > len(data) - pos:
        raise _too_long(length, len(data) - pos)
    items: list[CborValue] = []
    for _ in range(length):
        item, pos = _item(data, pos, depth - 1)
        items.append(item)
    return items, pos


def _map(data: bytes, pos: int, length: int, depth: int) -> tuple[CborMap, int]:
    if depth == 0:
        raise _too_deep()
    if 2 * length > len(data) - pos:
        raise _too_long(2 * length, len(data) - pos)
    result: CborMap = {}
    previous = b""
    for _ in range(length):
        start = pos
        if data[start] >= _FIRST_NOT_A_KEY:
            raise _noncanonical("A map key must be an integer, a byte string or a text string.")
        key, pos = _item(data, start, 0)
        encoded = data[start:pos]
        if encoded <= previous:
            raise _bad_order(key in result)
        result[key], pos = _item(data, pos, depth - 1)  # type: ignore[index]  # the head says that it can be a key
        previous = encoded
    return result, pos


def _tagged(_data: bytes, _pos: int, _argument: int, _depth: int) -> tuple[None, int]:
    raise _noncanonical("A CBOR tag is not allowed here.")


def _simple(data: bytes, pos: int, argument: int, _depth: int) -> tuple[bool | None, int]:
    try:
        return _CONSTANTS[argument], pos
    except KeyError:
        pass
    if argument > 27 or (argument == 24 and data[pos] < 32):
        raise _malformed("A simple value is not well-formed.")
    if argument > 24 and pos + (1 << (argument - 24)) > len(data):
        raise _malformed("The CBOR item ends inside a floating-point number.")
    raise _noncanonical("Only true, false and null are allowed as simple values; floating point is not.")


_Reader: TypeAlias = Callable[[bytes, int, int, int], tuple[CborValue, int]]
_READERS: tuple[_Reader, ...] = (
    _unsigned,
    _negative,
    _byte_string,
    _text_string,
    _array,
    _map,
    _tagged,
    _simple,
)
_SMALLEST = (1 << 8, 1 << 16, 1 << 32)
_FIRST_NOT_A_KEY = _ARRAY << 5
_CONSTANTS: Mapping[int, bool | None] = {20: False, 21: True, 22: None}


def _bad_head(head: int) -> MalformedError:
    if head & 0x1F == 0x1F and _BYTES <= head >> 5 <= _MAP:
        return _noncanonical("An indefinite length is not allowed.")
    return _malformed("A CBOR head uses a reserved value.")


def _bad_order(repeated: bool) -> MalformedError:
    if repeated:
        return MalformedError(Reason.CBOR_DUPLICATE_KEY, "A map key occurs twice.", fix=_FIX)
    return _noncanonical("Map keys are not in canonical order.")


def _long_for_short() -> MalformedError:
    return _noncanonical("A number or length is encoded longer than it needs to be.")


def _too_long(claimed: int, left: int) -> MalformedError:
    return _malformed(f"A length of {claimed} is claimed where {left} bytes are left.")


def _too_deep() -> MalformedError:
    return MalformedError(Reason.CBOR_LIMIT, "Arrays and maps are nested too deeply.", fix=_FIX)


def _malformed(message: str) -> MalformedError:
    return MalformedError(Reason.CBOR_MALFORMED, message, fix=_FIX)


def _noncanonical(message: str) -> MalformedError:
    return MalformedError(Reason.CBOR_NONCANONICAL, message, fix=_FIX)


# Writing


def _write(value: object, out: bytearray) -> None:
    writer = _WRITERS.get(type(value))
    if writer is None:
        writer = _writer_of_subclass(value)
    writer(value, out)


def _writer_of_subclass(value: object) -> Callable[..., None]:
    for kind, writer in _KINDS:
        if isinstance(value, kind):
            return writer
    raise UsageError(f"A {type(value).__name__} cannot be encoded as canonical CBOR.")


def _head(major: int, argument: int, out: bytearray) -> None:
    if argument < 24:
        out.append(major << 5 | argument)
    elif argument < 1 << 8:
        out.append(major << 5 | 24)
        out.append(argument)
    elif argument < 1 << 16:
        out += struct.pack(">BH", major << 5 | 25, argument)
    elif argument < 1 << 32:
        out += struct.pack(">BI", major << 5 | 26, argument)
    elif argument <= _MAX_ARGUMENT:
        out += struct.pack(">BQ", major << 5 | 27, argument)
    else:
        raise UsageError("Integers of more than 64 bits cannot be encoded as canonical CBOR.")


def _write_int(value: int, out: bytearray) -> None:
    if value < 0:
        _head(_NINT, -1 - value, out)
    else:
        _head(_UINT, value, out)


def _write_bytes(value: bytes, out: bytearray) -> None:
    length = len(value)
    if length < 24:  # as most are: without a further call
        out.append(_BYTES << 5 | length)
    else:
        _head(_BYTES, length, out)
    out += value


def _write_text(value: str, out: bytearray) -> None:
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise UsageError("Text with lone surrogates cannot be encoded as canonical CBOR.") from None
    length = len(encoded)
    if length < 24:
        out.append(_TEXT << 5 | length)
    else:
        _head(_TEXT, length, out)
    out += encoded


def _write_sequence(value: Sequence[object], out: bytearray) -> None:
    _head(_ARRAY, len(value), out)
    for item in value:
        _write(item, out)


def _write_mapping(value: Mapping[object, object], out: bytearray) -> None:
    _head(_MAP, len(value), out)
    entries = [(_key(key), item) for key, item in value.items()]
    entries.sort(key=_first)
    for key, item in entries:
        out += key
        _write(item, out)


def _key(key: object) -> bytes:
    if type(key) is int and 0 <= key < 24:  # the keys of all our own structures
        return _SMALL_KEYS[key]
    encoded = encode(key)
    if encoded[0] >= _FIRST_NOT_A_KEY:
        raise UsageError("Map keys must be integers, byte strings or text strings.")
    return encoded


_SMALL_KEYS = tuple(bytes([key]) for key in range(24))
_first = itemgetter(0)


def _write_bool(value: bool, out: bytearray) -> None:
    out.append(0xF5 if value else 0xF4)


def _write_none(_value: None, out: bytearray) -> None:
    out.append(0xF6)


# `bool` comes before `int`, whose subclass it is.
_KINDS: tuple[tuple[type, Callable[..., None]], ...] = (
    (bool, _write_bool),
    (int, _write_int),
    (bytes, _write_bytes),
    (str, _write_text),
    (list, _write_sequence),
    (tuple, _write_sequence),
    (Mapping, _write_mapping),
    (type(None), _write_none),
)
_WRITERS: Mapping[type, Callable[..., None]] = {**dict(_KINDS), dict: _write_mapping}
