"""Endorsement key certificates as chips hold them: reading, generous about encoding, silent about worth.

Makers ship certificates with padding behind them, in wrappings of TPM 1.2 and of newer profiles, with names that are
not sorted (Nuvoton), with defaults written out (AMD, Intel), with key identifiers no library takes. So this module
reads the fields itself, from what `keyvouch.attestation.ber` makes of the bytes, and keeps the signed bytes as they
came. What a certificate does not say is None here.

    TCG EK Credential Profile for TPM Family 2.0, version 2.5, section 3.2    the fields
    TCG PC Client Specific Implementation Specification for TPM 1.2, 7.3      the wrapping 0x1001

What is not here: whether the certificate is a good one (`keyvouch.attestation.endorsement`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from keyvouch.attestation.ber import split_element, to_der
from keyvouch.attestation.der import SEQUENCE, DerError, DerReader, Tag
from keyvouch.attestation.endorsement_fields import (
    BASIC_CONSTRAINTS,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    SUBJECT_ALTERNATIVE_NAME,
    DistinguishedName,
    KeyNumbers,
    read_algorithm,
    read_alternative_names,
    read_basic_constraints,
    read_bits,
    read_extended_key_usage,
    read_key_usage,
    read_signed,
)
from keyvouch.errors import MalformedError, Reason

__all__ = ["EndorsementCertificate", "split_certificates"]

MAX_SIZE: Final = 16 * 1024
"""Most bytes that one certificate may have, with its padding; an NV index holds 2 KiB."""
MAX_CHAIN: Final = 16
"""Most certificates a chain may have."""
MAX_CHAIN_SIZE: Final = 16 * 1024
"""Most bytes that the certificates of a chain may have together, without padding, for a path to be looked for."""


@dataclass(frozen=True, slots=True)
class EndorsementCertificate:
    """One certificate, read and not yet judged.

    `encoding` is the certificate without wrapping and padding, `signed` the part of it that the signature covers,
    both as received. Object identifiers are the contents of their DER. `key_usage` is the first byte of the bit
    string, so digitalSignature is 0x80. `critical` are the extensions marked critical. The three texts are from the
    subject alternative name, as they stand there.
    """

    encoding: bytes
    signed: bytes
    signature_algorithm: bytes
    signature: bytes
    serial: int
    issuer: DistinguishedName
    subject: DistinguishedName
    not_before: datetime
    not_after: datetime
    key: KeyNumbers
    critical: frozenset[bytes]
    is_ca: bool | None
    key_usage: int | None
    extended_key_usage: tuple[bytes, ...] | None
    manufacturer: str | None
    model: str | None
    version: str | None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a certificate as an NV index or a file holds it. Raises `MalformedError`, `TPM_EK_CERTIFICATE`."""
        if len(data) > MAX_SIZE:
            raise _malformed("It is too long.")
        try:
            return cls._read(_unwrap(data))
        except ValueError as error:  # DerError, and what texts and dates raise
            raise _malformed(str(error)) from None

    @classmethod
    def _read(cls, encoding: bytes) -> Self:
        _, start, _ = split_element(encoding)
        _, _, end = split_element(encoding, start)
        signed = encoding[start:end]
        outer = DerReader(to_der(encoding[end:]))
        algorithm, signature = outer.read(SEQUENCE), read_bits(outer.read(_BIT_STRING))
        outer.end()
        body = read_signed(to_der(signed))
        if body.signature_algorithm != algorithm:
            raise DerError("It names two signature algorithms.")
        extensions = body.extensions
        names = read_alternative_names(extensions.get(SUBJECT_ALTERNATIVE_NAME))
        return cls(
            encoding=encoding,
            signed=signed,
            signature_algorithm=read_algorithm(algorithm),
            signature=signature,
            serial=body.serial,
            issuer=body.issuer,
            subject=body.subject,
            not_before=body.not_before,
            not_after=body.not_after,
            key=body.key,
            critical=frozenset(oid for oid, extension in extensions.items() if extension.critical),
            is_ca=read_basic_constraints(extensions.get(BASIC_CONSTRAINTS)),
            key_usage=read_key_usage(extensions.get(KEY_USAGE)),
            extended_key_usage=read_extended_key_usage(extensions.get(EXTENDED_KEY_USAGE)),
            manufacturer=names.get(_MANUFACTURER),
            model=names.get(_MODEL),
            version=names.get(_VERSION),
        )


def split_certificates(data: bytes) -> tuple[bytes, ...]:
    """Take apart certificates that follow each other, as NV indices from 0x01C00100 on hold a chain.

    Padding of zeros or ones may stand between and behind them. Raises `MalformedError` with `TPM_EK_CERTIFICATE`.
    """
    if len(data) > MAX_CHAIN * MAX_SIZE:
        raise _malformed("The chain is too long.")
    certificates: list[bytes] = []
    at = 0
    while rest := data[at:].lstrip(_PADDING):
        at = len(data) - len(rest)
        try:
            identifier, _, end = split_element(data, at)
        except DerError as error:
            raise _malformed(str(error)) from None
        if identifier != _SEQUENCE or len(certificates) == MAX_CHAIN:
            raise _malformed("The chain is not one of certificates, or has too many.")
        certificates.append(data[at:end])
        at = end
    return tuple(certificates)


def _malformed(why: str) -> MalformedError:
    return MalformedError(
        Reason.TPM_EK_CERTIFICATE,
        f"The endorsement key certificate cannot be read. {why}",
        fix="Send the certificate as the TPM or its maker gives it out.",
    )


# Wrapping

_BIT_STRING = Tag(3)
_MANUFACTURER, _MODEL, _VERSION = (bytes.fromhex(oid) for oid in ("6781050201", "6781050202", "6781050203"))
_SEQUENCE, _OCTETS = 0x30, 0x04
_PADDING = b"\x00\xff"
_STORED_CERTIFICATE = bytes.fromhex("100100")  # TCG_TAG_PCCLIENT_STORED_CERT, type "full"; then a length of 2 bytes
_FULL_CERTIFICATE = bytes.fromhex("1002")  # TCG_TAG_PCCLIENT_FULL_CERT


def _unwrap(data: bytes) -> bytes:
    """The certificate alone. Only padding may stand behind it and behind each wrapping."""
    if data.startswith(_STORED_CERTIFICATE):
        end = 5 + int.from_bytes(data[3:5], "big")
        data = _cut(data, 5, end).removeprefix(_FULL_CERTIFICATE)
    identifier, start, end = split_element(data)
    if identifier == _OCTETS:
        data = _cut(data, start, end)
        identifier, start, end = split_element(data)
    if identifier != _SEQUENCE:
        raise DerError("It does not begin like a certificate.")
    return _cut(data, 0, end)


def _cut(data: bytes, start: int, end: int) -> bytes:
    if end > len(data) or data[end:].strip(_PADDING):
        raise DerError("Something other than padding follows it, or it ends early.")
    return data[start:end]
