"""Android key descriptions made to measure, in DER."""

from __future__ import annotations

from support.attestation_forge import tlv

NULL = b"\x05\x00"


def integer(number: int) -> bytes:
    """DER of a number in its shortest form."""
    size = (number if number >= 0 else ~number).bit_length() // 8 + 1
    return tlv(2, number.to_bytes(size, "big", signed=True))


def integers(*numbers: int) -> bytes:
    """DER of a set of numbers."""
    return tlv(0x31, b"".join(map(integer, numbers)))


def entry(number: int, content: bytes) -> bytes:
    """One explicitly tagged entry of an authorization list."""
    if number < 31:
        return tlv(0xA0 | number, content)
    digits = [number >> shift & 0x7F for shift in (21, 14, 7, 0)]
    while not digits[0]:
        digits.pop(0)
    tag = bytes([0xBF, *(digit | 0x80 for digit in digits[:-1]), digits[-1]])
    return tag + tlv(0, content)[1:]


HARDWARE = entry(1, integers(2)) + entry(504, integer(2)) + entry(702, integer(0))
"""A key for signing, generated in hardware that asks for a biometric."""


def description(**parts: bytes) -> bytes:
    """A key description of a key in a StrongBox, attested by a TEE; `parts` replace the DER of fields."""
    fields = {
        "version": integer(300),
        "attestation_level": tlv(10, b"\x01"),
        "key_version": integer(300),
        "key_level": tlv(10, b"\x02"),
        "challenge": tlv(4, b"challenge"),
        "unique_id": tlv(4, b""),
        "software": tlv(0x30, b""),
        "tee": tlv(0x30, HARDWARE),
    }
    return tlv(0x30, b"".join((fields | parts).values()))
