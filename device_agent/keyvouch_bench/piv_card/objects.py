"""Data objects of a PIV card: their contents (SP 800-73-4 part 1, sections 3 and 5, appendix A).

What is *not* here: who may read or write them (`administration`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch_bench.piv_card import tlv
from keyvouch_bench.piv_card.identifiers import AID, KeyAlgorithm, RefusedError

__all__ = [
    "application_template",
    "capability_container",
    "certificate_in",
    "certificate_object",
    "discovery",
    "holder_identifier",
    "key_history",
    "printed_information",
]

_RID_LENGTH: Final = 5
_CERTIFICATE: Final = 0x70
_INFORMATION: Final = 0x71
_CHECK: Final = 0xFE

_ONLY_APPLICATION_PIN: Final = b"\x40\x00"
"""Section 3.3.2: the application PIN, no global one, no fingerprint, no virtual contact interface."""

_NUMBER: Final = (("9999", True), ("9999", True), ("999999", True), ("0", True), ("1", True))
_PERSON: Final = "0000000000" + "3" + "0000" + "1"
"""A FASC-N of no agency: 9999 says that the GUID is what identifies the card (section 3.1.2)."""

_START, _SEPARATOR, _END = 0b1011, 0b1101, 0b1111


def application_template(label: str) -> bytes:
    """The answer to SELECT (part 2, table 3)."""
    algorithms = b"".join(tlv.build(0x80, bytes([algorithm])) for algorithm in KeyAlgorithm)
    return tlv.build(
        0x61,
        tlv.build(0x4F, AID[_RID_LENGTH:])
        + tlv.build(0x79, tlv.build(0x4F, AID[:_RID_LENGTH]))
        + tlv.build(0x50, label.encode())
        + tlv.build(0xAC, algorithms + tlv.build(0x06, b"\x00")),
    )


def discovery() -> bytes:
    """The discovery object, which has its own tag in the place of 53."""
    return tlv.build(0x7E, tlv.build(0x4F, AID) + tlv.build(0x5F2F, _ONLY_APPLICATION_PIN))


def certificate_object(certificate: x509.Certificate) -> bytes:
    """A certificate as it is kept: not compressed."""
    der = certificate.public_bytes(Encoding.DER)
    return tlv.build(_CERTIFICATE, der) + tlv.build(_INFORMATION, b"\x00") + tlv.build(_CHECK)


def certificate_in(value: bytes) -> x509.Certificate | None:
    """The certificate in such an object, or None if there is none that can be read."""
    try:
        elements = tlv.parse(value)
        return x509.load_der_x509_certificate(elements[_CERTIFICATE])
    except (RefusedError, KeyError, ValueError, x509.InvalidVersion):
        return None


def holder_identifier(guid: bytes, expires: date) -> bytes:
    """The CHUID, not signed."""
    return (
        tlv.build(0x30, _fasc_n())
        + tlv.build(0x34, guid)
        + tlv.build(0x35, expires.strftime("%Y%m%d").encode())
        + tlv.build(0x3E)
        + tlv.build(_CHECK)
    )


def capability_container(identifier: bytes) -> bytes:
    """The CCC, which says of itself only that it is one. `identifier` has 14 bytes."""
    own = bytes.fromhex("A000000116FF02") + identifier
    filled = {0xF0: own, 0xF1: b"\x21", 0xF2: b"\x21", 0xF5: b"\x10"}
    order: Sequence[int] = (0xF0, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xFA, 0xFB, 0xFC, 0xFD, _CHECK)
    return b"".join(tlv.build(tag, filled.get(tag, b"")) for tag in order)


def key_history(on_card: int) -> bytes:
    """How many retired keys have their certificates on the card (from the first retired slot on)."""
    return tlv.build(0xC1, bytes([on_card])) + tlv.build(0xC2, b"\x00") + tlv.build(_CHECK)


def printed_information(name: str, serial: int) -> bytes:
    """What would stand on the card. It is read after the PIN only."""
    number = f"{serial:010d}".encode()
    return tlv.build(0x01, name.encode()) + tlv.build(0x05, number) + tlv.build(_CHECK)


def _fasc_n() -> bytes:
    """Forty characters of four bits, lowest first, and odd parity (TIG SCEPACS 2.3, section 2.1)."""
    characters = [_START]
    for digits, separated in _NUMBER:
        characters += [int(digit) for digit in digits] + [_SEPARATOR] * separated
    characters += [*(int(digit) for digit in _PERSON), _END]
    characters.append(_check_character(characters))
    bits = "".join(map(_five_bits, characters))
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _check_character(characters: Iterable[int]) -> int:
    check = 0
    for character in characters:
        check ^= character
    return check


def _five_bits(character: int) -> str:
    bits = f"{character:04b}"[::-1]
    return bits + ("0" if bits.count("1") % 2 else "1")
