"""Smartcards: what an organisation's certificate proves at a registration and at each use, and what is shown of a card.

A certificate is judged again whenever its key is about to be used, by the authorities and the revocation lists of
that moment: an expired or revoked one, one whose authority is gone, and one by which another user is meant by now are
refused. So nobody has to go through the keys when something changes.

What is not here: the rules for certificates (`keyvouch.attestation.card_certificate`), and PIV attestation, which is
verified with every other attestation; here it is only read again, to be shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch import cbor
from keyvouch.assurance import Assurance, Protection, Provenance
from keyvouch.attestation import VerifiedRegistration, assurance_of
from keyvouch.attestation.card_certificate import VerifiedCardCertificate, verify_card_certificate
from keyvouch.attestation.certificates import parse_certificate
from keyvouch.attestation.evidence import PivFacts
from keyvouch.attestation.formats.certified import read_certificates
from keyvouch.attestation.formats.piv import read_facts
from keyvouch.cose import CoseKey
from keyvouch.errors import EvidenceError, Reason, RefusedError
from keyvouch.webauthn import AttestationObject
from keyvouch_server.domain.model import Credential, Tenant, User
from keyvouch_server.ports import Snapshot
from keyvouch_server.use_cases.world import World, unknown_user

__all__ = ["CardView", "ProvedCard", "card_of", "check_card", "pin_policy_of", "verify_card"]

_UNPROVED: Final = "unproved"
"""In place of a PIN policy: the key is said to be on a smartcard, and nothing attests when that asks for the PIN."""


@dataclass(frozen=True, slots=True)
class ProvedCard:
    """An organisation's certificates for a new key, and what they prove; `assurance` is in its text form."""

    certificates: tuple[bytes, ...]
    verified: VerifiedCardCertificate
    assurance: str

    @property
    def stored(self) -> bytes:
        """The certificates as a record holds them."""
        return cbor.encode(list(self.certificates))


@dataclass(frozen=True, slots=True)
class CardView:
    """What is shown of a card. `facts` are those of a PIV attestation. Without a certificate, authority and hash are
    empty and `expires_at` is 0; the hash is SHA-256.
    """

    facts: PivFacts | None
    authority: str
    certificate_hash: bytes
    expires_at: int


def verify_card(
    world: World, registration: VerifiedRegistration, certificates: Sequence[bytes], *, user: User, tenant: Tenant
) -> ProvedCard:
    """Verify the certificates that came with a new key.

    1. The attestation statement shows possession of the key: a certificate is public. 2. The certificates are `user`'s.
    What an attestation proves is never less by it. Raises `MalformedError` or `EvidenceError`.
    """
    if registration.attestation.provenance is Provenance.UNATTESTED:
        raise EvidenceError(
            Reason.CARD_CERTIFICATE,
            "A certificate came with this key, and nothing shows that the key itself is there.",
            fix="Let the key sign its attestation statement: use the format packed or piv, not none.",
            metadata={"detail": "possession"},
        )
    verified = _verify(world, certificates, registration.public_key, user, tenant)
    proved = assurance_of(registration)
    if proved.provenance is not Provenance.ATTESTED:
        proved = verified.authority.assurance.in_ceremony(user_verified=registration.user_verified)
    return ProvedCard(tuple(certificates), verified, proved.text())


async def check_card(tx: Snapshot, world: World, credential: Credential) -> None:
    """Judge the certificate of a registered key again; nothing is asked of a key without one.

    Raises `RefusedError` with CARD_CERTIFICATE, CARD_USER or WEAK_KEY_ROCA.
    """
    if not credential.card_certificates:
        return
    user, tenant = await tx.get(User, id=credential.user_id), await tx.get(Tenant, id=credential.tenant_id)
    if user is None or tenant is None:
        raise unknown_user()
    try:
        key = CoseKey(credential.public_key)
        _verify(world, _stored(credential), key, user, tenant, only=credential.card_authority)
    except EvidenceError as unfit:
        raise RefusedError(unfit.reason, unfit.message, fix=unfit.fix, metadata=unfit.metadata) from None


def _verify(
    world: World, certificates: Sequence[bytes], key: CoseKey, user: User, tenant: Tenant, *, only: str = ""
) -> VerifiedCardCertificate:
    """`only` is the authority that certified a registered key; another one's word is another promise."""
    authorities = world.cards.of_tenant(tenant.name_key)
    return verify_card_certificate(
        certificates,
        public_key=key,
        username=user.username,
        authorities=[authority for authority in authorities if only in ("", authority.name)],
        instant=datetime.fromtimestamp(world.clock.now(), UTC),
    )


def _stored(credential: Credential) -> list[bytes]:
    found = cbor.decode(credential.card_certificates)
    assert isinstance(found, list)
    return [one for one in found if isinstance(one, bytes)]


# What is known of a card


@lru_cache(maxsize=4096)
def _piv_facts(attestation_object: bytes) -> PivFacts | None:
    """What a PIV attestation said at registration, where it was verified; None for other formats."""
    found = AttestationObject(attestation_object)
    return read_facts(read_certificates(found.statement)[0]) if found.format == "piv" else None


def card_of(credential: Credential) -> CardView | None:
    """What is shown of the card that holds a registered key; None for a key that no card attested and that came without
    a certificate. What an anchor said that this server does not know any more is not shown.
    """
    said = Assurance.parse(credential.assurance)
    attested = said.provenance is Provenance.ATTESTED and said.protection is Protection.SMARTCARD
    facts = _piv_facts(credential.attestation_object) if attested else None
    if not credential.card_certificates:
        return CardView(facts, "", b"", 0) if facts else None
    leaf = parse_certificate(_stored(credential)[0])
    return CardView(facts, credential.card_authority, certificate_hash(leaf), _end_of(leaf))


def certificate_hash(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate in DER."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def _end_of(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_after_utc.timestamp())


def pin_policy_of(attestation_object: bytes, *, is_card: bool) -> str:
    """When the card asks for the PIN of a key: `always`, `once` or `never` by its attestation, else `unproved`; empty
    for a key that is on no card.

    `is_card`: the device says so, or certificates for a card came with it. That is a claim, and can only hurt whoever
    makes it.
    """
    facts = _piv_facts(attestation_object)
    if facts is not None:
        return facts.pin_policy
    return _UNPROVED if is_card else ""
