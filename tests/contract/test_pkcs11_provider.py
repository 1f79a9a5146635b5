"""Registration and signature through all of it: the agent's provider, CTAP, vault, OpenSC, pcscd, and the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation import TrustStore
from keyvouch.attestation.formats import piv as piv_format
from keyvouch.errors import DeviceError, Reason
from keyvouch.webauthn import AttestationObject, CollectedClientData
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.ports import (
    KeyCreation,
    KeyUse,
    ProviderSession,
    Registration,
)
from keyvouch_agent.providers.built_in import BuiltInProvider, NativeHolder
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.pkcs11.pin_control import TokenPin
from keyvouch_agent.vaults.pkcs11.vault import SMARTCARD_AAGUID, Pkcs11Vault
from keyvouch_bench.piv_card import Authority
from keyvouch_bench.piv_card.reader import PivReader
from support.attestation_forge import anchor
from support.authenticators import BenchClock
from support.pkcs11_tokens import card_library, card_vault
from support.provider_ui import ScriptedInteraction

RP_ID = "login.example.org"
CREATION = KeyCreation(bytes(range(32)), RP_ID, b"user handle", "alice", (-7, -257))


@pytest.fixture
def on_piv(issued_piv_card: PivReader, tmp_path: Path) -> Iterator[Pkcs11Vault]:
    with card_library("opensc") as library, card_vault(library, tmp_path / "account") as vault:
        yield vault


def provider_of(vault: Pkcs11Vault) -> BuiltInProvider:
    holder = NativeHolder(pin=TokenPin(vault._account, vault))
    return BuiltInProvider(Authenticator(vault, BenchClock(), SystemEntropy()), native=holder)


def use_of(registration: Registration) -> KeyUse:
    return KeyUse(b"c" * 32, RP_ID, registration.credential_id)


def create(provider: BuiltInProvider, ui: ScriptedInteraction) -> Registration:
    with provider.open(ui, rp_id=RP_ID) as session:
        return session.create_key(CREATION)


def failure_of(
    provider: BuiltInProvider, ui: ScriptedInteraction, action: Callable[[ProviderSession], object]
) -> DeviceError:
    with provider.open(ui, rp_id=RP_ID) as session, pytest.raises(DeviceError) as caught:
        action(session)
    assert caught.value.fix
    return caught.value


def test_attested_card_is_a_smartcard_under_its_root(on_piv: Pkcs11Vault, piv_batch: Authority,
                                                     issued_piv_card: PivReader) -> None:  # fmt: skip
    made = create(provider_of(on_piv), ScriptedInteraction(pin=issued_piv_card.card.pin))
    attested = AttestationObject(made.attestation_object)
    assert (attested.format, attested.attested.aaguid) == ("piv", SMARTCARD_AAGUID)
    anchors = TrustStore([anchor(x509.load_pem_x509_certificate(piv_batch.pem))])
    hashed = CollectedClientData(made.client_data).sha256
    evidence = piv_format.verify(attested, client_data_hash=hashed, anchors=anchors, instant=datetime.now(UTC))
    assert (evidence.protection, evidence.verification, evidence.provenance) == (
        Protection.SMARTCARD, Verification.HARDWARE_GATED, Provenance.ATTESTED,
    )  # fmt: skip


def test_card_pulled_while_the_user_is_asked(on_piv: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    """At each prompt of both ceremonies: an error with a name, nothing half done, and it goes on when it is back."""
    pin = issued_piv_card.card.pin
    provider = provider_of(on_piv)
    away = (Reason.AUTHENTICATOR_REMOVED, Reason.AUTHENTICATOR_NOT_CONNECTED)
    pulling = ScriptedInteraction(pin=pin, on_confirm=issued_piv_card.remove)
    assert failure_of(provider, pulling, lambda session: session.create_key(CREATION)).reason in away
    assert on_piv.discoverable() == []
    assert not provider.capabilities().connected
    issued_piv_card.insert()
    made = create(provider, ScriptedInteraction(pin=pin))
    assert failure_of(provider, pulling, lambda session: session.sign(use_of(made))).reason in away
    issued_piv_card.insert()
    with provider.open(ScriptedInteraction(pin=pin), rp_id=RP_ID) as session:
        assert session.sign(use_of(made))
