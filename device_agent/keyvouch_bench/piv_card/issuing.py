"""How an organisation issues a card: keys made on it, certificates, what the data model wants, secrets of its own.

It works on the card's state and not through commands: a bench wants its card at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from keyvouch_bench.piv_card import objects
from keyvouch_bench.piv_card.authorities import END, Authority, Extensions, common_name, key_usage
from keyvouch_bench.piv_card.identifiers import (
    AUTHENTICATION,
    CARD_AUTHENTICATION,
    CERTIFICATE_OBJECTS,
    KEY_MANAGEMENT,
    RETIRED_SLOTS,
    SIGNATURE,
    KeyAlgorithm,
    Object,
    Origin,
    PinPolicy,
    TouchPolicy,
    default_pin_policy,
)
from keyvouch_bench.piv_card.keys import CardKey, generate
from keyvouch_bench.piv_card.reference_data import padded
from keyvouch_bench.piv_card.state import CardState

__all__ = ["ISSUED_PIN", "ISSUED_PUK", "Holder", "Issue", "issue"]

ISSUED_PIN: Final = "734196"
ISSUED_PUK: Final = "85269473"

_UPN: Final = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
_CARD_AUTHENTICATION_USE: Final = x509.ObjectIdentifier("2.16.840.1.101.3.6.8")
_UTF8_STRING: Final = 0x0C
_CONTAINER_BYTES: Final = 14
_GUID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Holder:
    """The person. `upn` is the user principal name that stands in the certificates."""

    name: str = "Ada Lovelace"
    upn: str = "ada@example.org"


@dataclass(frozen=True, slots=True)
class Issue:
    """What the card is to have: a key in each slot named, under the policy of the slot unless another is given."""

    holder: Holder = Holder()
    keys: Mapping[int, KeyAlgorithm] = field(
        default_factory=lambda: {
            AUTHENTICATION: KeyAlgorithm.P256,
            SIGNATURE: KeyAlgorithm.P256,
            KEY_MANAGEMENT: KeyAlgorithm.P256,
            CARD_AUTHENTICATION: KeyAlgorithm.P256,
        }
    )
    pin_policies: Mapping[int, PinPolicy] = field(default_factory=dict)
    touch_policies: Mapping[int, TouchPolicy] = field(default_factory=dict)
    pin: str = ISSUED_PIN
    puk: str = ISSUED_PUK
    management_key: bytes | None = None
    """Of the card's present algorithm; None leaves the one that everybody knows."""


def issue(state: CardState, authority: Authority, wanted: Issue, *, entropy: Callable[[int], bytes]) -> None:
    """Make the card one of `authority`, for the holder."""
    for slot, algorithm in wanted.keys.items():
        _fill(state, authority, wanted, slot, algorithm)
    state.objects[Object.CHUID] = objects.holder_identifier(entropy(_GUID_BYTES), END.date())
    state.objects[Object.CCC] = objects.capability_container(entropy(_CONTAINER_BYTES))
    state.objects[Object.PRINTED] = objects.printed_information(wanted.holder.name, state.serial)
    if retired := len(set(wanted.keys).intersection(RETIRED_SLOTS)):
        state.objects[Object.KEY_HISTORY] = objects.key_history(retired)
    state.pin.replace(padded(wanted.pin))
    state.puk.replace(padded(wanted.puk))
    if wanted.management_key is not None:
        state.management_key = wanted.management_key


def _fill(state: CardState, authority: Authority, wanted: Issue, slot: int, algorithm: KeyAlgorithm) -> None:
    pin = wanted.pin_policies.get(slot, default_pin_policy(slot))
    touch = wanted.touch_policies.get(slot, TouchPolicy.NEVER)
    key = CardKey(generate(algorithm), Origin.GENERATED, pin, touch)
    subject = common_name(f"{state.serial:010d}" if slot == CARD_AUTHENTICATION else wanted.holder.name)
    certificate = authority.issue(subject, key.private.public_key(), _extensions(slot, algorithm, wanted.holder))
    state.keys[slot] = key
    state.objects[CERTIFICATE_OBJECTS[slot]] = objects.certificate_object(certificate)


def _extensions(slot: int, algorithm: KeyAlgorithm, holder: Holder) -> Extensions:
    """As FPKI's profiles of PIV certificates have them, but for policies and revocation."""
    alternative = x509.SubjectAlternativeName([x509.OtherName(_UPN, _utf8(holder.upn)), x509.RFC822Name(holder.upn)])
    if slot == AUTHENTICATION:
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SMARTCARD_LOGON]
        return [
            (key_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage(purposes), False),
            (alternative, False),
        ]
    if slot == SIGNATURE:
        usage = key_usage(digital_signature=True, content_commitment=True)
        return [(usage, True), (alternative, False)]
    if slot == CARD_AUTHENTICATION:
        purpose = x509.ExtendedKeyUsage([_CARD_AUTHENTICATION_USE])
        return [(key_usage(digital_signature=True), True), (purpose, True)]
    is_rsa = algorithm is KeyAlgorithm.RSA_2048
    return [(key_usage(key_encipherment=is_rsa, key_agreement=not is_rsa), True), (alternative, False)]


def _utf8(text: str) -> bytes:
    """DER of a UTF8String, of less than 128 bytes."""
    written = text.encode()
    return bytes([_UTF8_STRING, len(written)]) + written
