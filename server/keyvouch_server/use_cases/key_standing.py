"""Whether a registered key may still be used: the health of its device, what is known of its model by now, and the
certificate that an organisation issued for it.

Policy and metadata change after a key was registered. Both are asked at each use, so that nobody has to go through the
keys when they change: before anybody is asked, and again when the approval is used (H6, H8).

What is not here: the rules themselves (`domain.authenticators`, `keyvouch.attestation.trust`, `domain.health`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from cryptography import x509

from keyvouch.assurance import Assurance
from keyvouch.attestation import TrustStore
from keyvouch.attestation.formats.certified import read_certificates
from keyvouch.attestation.subject_key import key_identifier
from keyvouch.errors import EvidenceError, RefusedError
from keyvouch.webauthn import AttestationObject
from keyvouch_server.domain.authenticators import Model, decide_model
from keyvouch_server.domain.model import Credential, Device, ProviderKind
from keyvouch_server.domain.policy import Policy, decide_card_pin
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Snapshot
from keyvouch_server.use_cases.cards import check_card, pin_policy_of
from keyvouch_server.use_cases.health import check_health
from keyvouch_server.use_cases.world import World


@dataclass(frozen=True, slots=True)
class _Attested:
    """What the attestation object of a registration says. The certificates were verified then, if there were any."""

    format: str
    certificates: tuple[x509.Certificate, ...]
    key_ids: tuple[bytes, ...]


@lru_cache(maxsize=4096)
def _attested(attestation_object: bytes) -> _Attested:
    """Read it once: it never changes, and every use of the key asks."""
    found = AttestationObject(attestation_object)
    certificates = tuple(read_certificates(found.statement)) if "x5c" in found.statement else ()
    return _Attested(found.format, certificates, tuple(map(key_identifier, certificates)))


def check_key(credential: Credential, policy: Policy, anchors: TrustStore) -> None:
    """Judge a registered key by its model, as policy and metadata see it now.

    Raises `RefusedError` with AUTHENTICATOR_MODEL or AUTHENTICATOR_STATUS.
    """
    rules = policy.registration.authenticators
    if not rules.say_nothing:
        said, form = Assurance.parse(credential.assurance), _attested(credential.attestation_object).format
        decide_model(rules, Model(credential.aaguid, form, said.provenance, said.protection))
    try:
        _check_metadata(credential, anchors)
    except EvidenceError as distrusted:
        raise RefusedError(
            distrusted.reason, distrusted.message, fix=distrusted.fix, metadata=distrusted.metadata
        ) from None


async def _check_card_pin(tx: Snapshot, credential: Credential, policy: Policy) -> None:
    """Judge it by when its smartcard asks for the PIN, if it is on one. Raises ASSURANCE_TOO_LOW."""
    if not policy.registration.card_pin_always:
        return
    device = await tx.get(Device, id=credential.device_id)
    is_card = bool(credential.card_certificates) or (device is not None and device.provider is ProviderKind.SMARTCARD)
    decide_card_pin(policy, pin_policy_of(credential.attestation_object, is_card=is_card))


def _check_metadata(credential: Credential, anchors: TrustStore) -> None:
    if anchors.distrusts_models:
        anchors.check_model(aaguid=credential.aaguid, key_ids=_attested(credential.attestation_object).key_ids)
    anchors.check_certificates(one for one in _certificates_of(credential))


def _certificates_of(credential: Credential) -> Sequence[x509.Certificate]:
    return _attested(credential.attestation_object).certificates


async def standing(
    tx: Snapshot, world: World, credentials: list[Credential], policy: Policy, verdicts: Verdicts | None = None
) -> tuple[list[Credential], RefusedError | None]:
    """The credentials that may be used, with the assurance they have now, and why another may not, if there is one.

    `verdicts` gets a line for each.
    """
    said = verdicts or Verdicts()
    fit: list[Credential] = []
    refusal: RefusedError | None = None
    for registered in credentials:
        now = world.vouched(registered.assurance)
        credential = registered if now == registered.assurance else replace(registered, assurance=now)
        try:
            await check_card(tx, world, credential)
            check_key(credential, policy, world.anchors)
            await _check_card_pin(tx, credential, policy)
            await check_health(tx, credential.device_id, policy, now=world.clock.now())
            fit.append(credential)
            said.allow(f"key.{registered.device_id}", now)
        except RefusedError as unfit:
            said.refuse(f"key.{registered.device_id}", unfit)
            refusal = unfit
    return fit, refusal


async def in_standing(
    tx: Snapshot, world: World, credentials: list[Credential], policy: Policy, verdicts: Verdicts | None = None
) -> list[Credential]:
    """KI1: the credentials that may be used, so that no other is asked.

    Raises `RefusedError` with AUTHENTICATOR_MODEL, AUTHENTICATOR_STATUS, CARD_CERTIFICATE, CARD_USER, WEAK_KEY_ROCA,
    ASSURANCE_TOO_LOW or DEVICE_HEALTH where there are some and none is left.
    """
    fit, refusal = await standing(tx, world, credentials, policy, verdicts)
    if refusal is not None and not fit:
        raise refusal
    return fit


async def check_device_key(tx: Snapshot, world: World, keys: list[Credential], policy: Policy) -> None:
    """The same for the key of a device, at the end of a sign-in that it approved: every one of `keys` has to stand."""
    _, refusal = await standing(tx, world, keys, policy)
    if refusal is not None:
        raise refusal
