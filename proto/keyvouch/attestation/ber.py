"""Certificates that are nearly DER, as the chips of several makers hold them, turned into DER for reading.

Two departures from DER (ITU-T X.690 section 10) are put right, both of which leave what is said unchanged:

    lengths that are longer than needed (10.1)      `30 81 05 ...` instead of `30 05 ...`
    sets whose elements are not sorted (10.3, 11.6) the names of all Nuvoton certificates

Everything else stays as it is and is judged by whoever reads it. Indefinite lengths, tag numbers above 30 and deep
nesting are refused: no maker of TPMs is known to use them.

A signature covers the bytes as received, never what comes out of here.
"""

from __future__ import annotations

from keyvouch.attestation.der import DerError

__all__ = ["split_element", "to_der"]

_CONSTRUCTED = 0x20
_SET = 0x31
_DEEPEST = 16
_LONGEST_LENGTH = 8


def split_element(data: bytes, start: int = 0) -> tuple[int, int, int]:
    """Find the element at `start`: return its identifier byte, where its content begins and where it ends.

    Raises `DerError` if the element has another form than said above, or ends beyond `data`.
    """
    if start + 2 > len(data):
        raise DerError("The data ends inside an element.")
    identifier, length, content = data[start], data[start + 1], start + 2
    if identifier & 0x1F == 0x1F:
        raise DerError("A tag number is above 30.")
    if length >= 0x80:
        size = length & 0x7F
        if not 1 <= size <= _LONGEST_LENGTH:
            raise DerError("A length is indefinite or too long.")
        content += size
        length = int.from_bytes(data[content - size : content], "big")
    if content + length > len(data):
        raise DerError("An element ends beyond its container.")
    return identifier, content, content + length


def to_der(data: bytes) -> bytes:
    """Return the elements that `data` consists of with shortest lengths and sorted sets. Raises `DerError`."""
    return b"".join(_elements(data, _DEEPEST))


def _elements(data: bytes, depth: int) -> list[bytes]:
    if not depth:
        raise DerError("Elements are nested too deeply.")
    elements, at = [], 0
    while at < len(data):
        identifier, start, at = split_element(data, at)
        content = data[start:at]
        if identifier & _CONSTRUCTED:
            inner = _elements(content, depth - 1)
            content = b"".join(sorted(inner) if identifier == _SET else inner)
        elements.append(bytes([identifier]) + _length(len(content)) + content)
    return elements


def _length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    encoded = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(encoded)]) + encoded
