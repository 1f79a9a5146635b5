"""ATTEST: the card says with its own key which key it has made, in which slot, under which policies.

Source: Yubico, "PIV attestation". The forms are those that `keyvouch.attestation.formats.piv` reads: the extensions
hold bytes without DER around them, but for the serial number.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch_bench.piv_card.authorities import Authority, authority_extensions, common_name
from keyvouch_bench.piv_card.identifiers import (
    ATTESTATION_SLOT,
    KeyAlgorithm,
    Object,
    Origin,
    PinPolicy,
    RefusedError,
    Status,
    TouchPolicy,
)
from keyvouch_bench.piv_card.keys import CardKey, generate
from keyvouch_bench.piv_card.objects import certificate_in, certificate_object
from keyvouch_bench.piv_card.state import CardState

__all__ = ["BATCH", "attest", "provide"]

BATCH: Final = "Keyvouch Test PIV Root: a virtual batch"

_ARC: Final = "1.3.6.1.4.1.41482.3"


def provide(state: CardState, batch: Authority) -> None:
    """What the maker does with a card: a key in slot F9, and a certificate for it under the root of the batch."""
    key = generate(KeyAlgorithm.P256)
    certificate = batch.issue(
        common_name(f"Yubico PIV Attestation {state.serial}"), key.public_key(), authority_extensions(0)
    )
    state.keys[ATTESTATION_SLOT] = CardKey(key, Origin.GENERATED, PinPolicy.NEVER, TouchPolicy.NEVER)
    state.objects[Object.ATTESTATION_CERTIFICATE] = certificate_object(certificate)


def attest(state: CardState, slot: int, serial: int) -> bytes:
    """The certificate of a slot, in DER. Raises `RefusedError` for a key not made here, or where nothing can sign.

    `serial` is the number of the certificate.
    """
    key, signer = state.keys.get(slot), state.keys.get(ATTESTATION_SLOT)
    own = certificate_in(state.objects.get(Object.ATTESTATION_CERTIFICATE, b""))
    if key is None:
        raise RefusedError(Status.REFERENCE_NOT_FOUND)
    if key.origin is not Origin.GENERATED:
        raise RefusedError(Status.INCORRECT_DATA)
    if signer is None or own is None:
        raise RefusedError(Status.CONDITIONS_NOT_SATISFIED)
    extensions = [
        (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{_ARC}.{number}"), value), False)
        for number, value in _stated(state, key).items()
    ]
    subject = common_name(f"YubiKey PIV Attestation {slot:02x}")
    try:
        certificate = Authority(signer.private, own).issue(
            subject, _public(key), extensions, serial=serial, identified=False
        )
    except (ValueError, TypeError):  # what somebody put in the place of the card's certificate cannot be an issuer
        raise RefusedError(Status.CONDITIONS_NOT_SATISFIED) from None
    return certificate.public_bytes(Encoding.DER)


def _stated(state: CardState, key: CardKey) -> dict[int, bytes]:
    serial = state.serial.to_bytes(state.serial.bit_length() // 8 + 1, "big")
    return {
        3: bytes(state.firmware),
        7: bytes([0x02, len(serial)]) + serial,
        8: bytes([key.pin_policy, key.touch_policy]),
        9: bytes([state.form_factor]),
    }


def _public(key: CardKey) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    return key.private.public_key()
