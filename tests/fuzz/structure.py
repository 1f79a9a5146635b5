"""Changes of structured bytes that leave the structure whole: CBOR stays canonical, DER lengths stay right.

Bytes that are changed blindly break at the first length; a parser's later checks are reached by changes of what lies
inside. Both kinds are needed, so a change is blind where the bytes have no such structure.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz.targets import Shape
from keyvouch import cbor
from keyvouch.errors import KeyvouchError

__all__ = ["Scramble", "changed", "scramble"]

Scramble = Callable[[bytes], bytes]

_NUMBERS = (0, 1, -1, 23, 24, 255, 256, -7, -8, -257, -65535, 2**31, 2**32, 2**63, 2**64 - 1, -(2**64))
_TEXTS = ("", "fmt", "none", "packed", "tpm", "fido-u2f", "android-key", "apple", "alg", "sig", "x5c", "2.0", "\u0000")


def changed(data: bytes, shape: Shape, chance: Random, change: Scramble) -> bytes:
    """Change `data` in one place; `change` is applied to bytes inside."""
    if shape is Shape.CBOR:
        return _changed_cbor(data, chance, change)
    if shape is Shape.DER:
        return _changed_der(data, chance, change)
    return change(data)


def scramble(data: bytes, chance: Random) -> bytes:
    """Change bytes blindly: a flipped bit, a cut, a repetition, or bytes put in or over."""
    at, size = chance.randrange(len(data) + 1), 1 << chance.randrange(6)
    match chance.randrange(5):
        case 0 if data:
            at %= len(data)
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[at + size :]
        case 2:
            return data[:at] + data[max(0, at - size) : at] + data[at:]
        case 3:
            return data[:at] + chance.randbytes(size) + data[at:]
    return data[:at] + bytes([chance.choice((0x00, 0x7F, 0x80, 0xFF))]) * size + data[at + size :]


# CBOR


def _changed_cbor(data: bytes, chance: Random, change: Scramble) -> bytes:
    try:
        value = cbor.decode(data, max_depth=16)
        return cbor.encode(_changed_value(value, chance, change))
    except KeyvouchError:
        return change(data)


def _changed_value(value: object, chance: Random, change: Scramble) -> object:
    if isinstance(value, dict) and value and chance.randrange(8):
        return _changed_map(value, chance, change)
    if isinstance(value, list) and value and chance.randrange(8):
        return _changed_list(value, chance, change)
    if isinstance(value, bytes) and chance.randrange(16):
        inner = Shape.DER if value[:1] == b"\x30" else Shape.CBOR if chance.randrange(4) == 0 else Shape.BYTES
        return changed(value, inner, chance, change)
    if isinstance(value, str) and chance.randrange(4):
        return change(value.encode()).decode("utf-8", "replace")
    return chance.choice((*_NUMBERS, *_TEXTS, b"", b"\x00" * 32, True, False, None, [], {}))


def _changed_map(value: dict[object, object], chance: Random, change: Scramble) -> dict[object, object]:
    key = chance.choice(list(value))
    match chance.randrange(8):
        case 0:
            return {name: item for name, item in value.items() if name != key}
        case 1:
            return value | {chance.choice((*_NUMBERS, *_TEXTS)): value[key]}
        case 2:
            other = chance.choice(list(value))
            return value | {key: value[other], other: value[key]}
    return value | {key: _changed_value(value[key], chance, change)}


def _changed_list(value: list[object], chance: Random, change: Scramble) -> list[object]:
    at = chance.randrange(len(value))
    match chance.randrange(8):
        case 0:
            return value[:at] + value[at + 1 :]
        case 1:
            return [*value, value[at]]
        case 2:
            return chance.sample(value, len(value))
    return [*value[:at], _changed_value(value[at], chance, change), *value[at + 1 :]]


# DER

_CONSTRUCTED = 0x20


def _changed_der(data: bytes, chance: Random, change: Scramble) -> bytes:
    elements = _elements(data)
    if not elements:
        return change(data)
    at = chance.randrange(len(elements))
    identifier, content = elements[at]
    match chance.randrange(12):
        case 0:
            elements.pop(at)
        case 1:
            elements.insert(at, elements[at])
        case 2:
            elements[at] = (bytes([identifier[0] ^ 1 << chance.randrange(8)]) + identifier[1:], content)
        case _:
            # An octet string or a bit string may hold DER as well.
            nested = identifier[0] & _CONSTRUCTED or chance.randrange(2)
            elements[at] = (identifier, _changed_der(content, chance, change) if nested else change(content))
    return b"".join(name + _length(len(inside)) + inside for name, inside in elements)


def _elements(data: bytes) -> list[tuple[bytes, bytes]]:
    """Identifiers (of one or two bytes) and contents, or nothing if these are not elements one after the other."""
    found, at = [], 0
    while at < len(data):
        size = 2 if data[at] & 0x1F == 0x1F else 1
        identifier, at = data[at : at + size], at + size
        if at >= len(data):
            return []
        first, at = data[at], at + 1
        if first > 0x84 or first == 0x80:
            return []
        if first > 0x80:
            first, at = int.from_bytes(data[at : at + first - 0x80], "big"), at + first - 0x80
        if at + first > len(data):
            return []
        found.append((identifier, data[at : at + first]))
        at += first
    return found


def _length(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
    size = (number.bit_length() + 7) // 8
    return bytes([0x80 | size]) + number.to_bytes(size, "big")
