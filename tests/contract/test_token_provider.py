"""The built-in provider over real PKCS#11: SoftHSM2, and a virtual PIV card behind OpenSC and pcscd.

What a card makes different is told in `test_card_provider`, over a card that can be told how to fail. Here the same
ceremonies run on tokens that check the PIN themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch.webauthn import AttestationObject, AuthenticatorData, CollectedClientData, Flags
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.ports import (
    Gate,
    KeyCreation,
    KeyUse,
    PresenceContext,
    ProviderKind,
    ProviderSession,
    Registration,
)
from keyvouch_agent.providers.built_in import BuiltInProvider
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.pkcs11.uri import TokenUri
from keyvouch_bench.piv_card.reader import PivReader
from support.authenticators import BenchClock
from support.pkcs11_tokens import card_library, card_vault
from support.provider_ui import ScriptedInteraction

RP_ID = "login.example.org"
CREATION = KeyCreation(bytes(range(32)), RP_ID, b"user handle", "alice", (-7,))
KINDS = ("softhsm", "softhsm-always", "piv-9a", "piv-9c")
WRONG = "999999"
AWAY = (Reason.AUTHENTICATOR_NOT_CONNECTED, Reason.AUTHENTICATOR_REMOVED)


@dataclass
class Stage:
    """A provider over a token, somebody who knows its PIN, and for a card the reader it is in."""

    provider: BuiltInProvider
    ui: ScriptedInteraction
    reader: PivReader | None

    def run(self, action: Callable[[ProviderSession], object]) -> object:
        with self.provider.open(self.ui, rp_id=RP_ID) as session:
            return action(session)

    def register(self) -> Registration:
        made = self.run(lambda session: session.create_key(CREATION))
        assert isinstance(made, Registration)
        return made

    def failure_of(self, action: Callable[[ProviderSession], object]) -> DeviceError:
        with pytest.raises(DeviceError) as caught:
            self.run(action)
        assert caught.value.fix
        return caught.value


ON_A_CARD = pytest.mark.parametrize("stage", ["piv-9a", "piv-9c"], indirect=True)
"""SoftHSM2 takes any number of wrong PINs and cannot be pulled out."""


@pytest.fixture(params=KINDS)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    kind: str = request.param
    reader = None
    if kind.startswith("softhsm"):
        token = request.getfixturevalue("softhsm")
        module, pin, wanted = "softhsm2", token.user_pin, TokenUri(serial=token.serial)
    else:
        reader = request.getfixturevalue("issued_piv_card")
        module, pin, wanted = "opensc", reader.card.pin, TokenUri(id=b"\x01" if kind == "piv-9a" else b"\x02")
    always = kind == "softhsm-always"
    with card_library(module) as library, card_vault(library, tmp_path / "account", wanted, pin_always=always) as vault:
        provider = BuiltInProvider(Authenticator(vault, BenchClock(), SystemEntropy()))
        yield Stage(provider, ScriptedInteraction(pin=pin), reader)


def use_of(registration: Registration) -> KeyUse:
    return KeyUse(b"c" * 32, RP_ID, registration.credential_id)


def test_registration_and_signature_with_one_pin_each(stage: Stage) -> None:
    made = stage.register()
    signed = []
    for _ in range(2):
        with stage.provider.open(stage.ui, rp_id=RP_ID) as session:
            signed.append(session.sign(use_of(made)))
    asked = [type(question) for question in stage.ui.asked]
    assert asked == [tuple, PresenceContext] * 3
    attestation = AttestationObject(made.attestation_object)
    assert attestation.format == ("piv" if stage.reader else "none")
    assert attestation.authenticator_data.flags == Flags.UP | Flags.UV | Flags.AT
    counts = []
    for assertion in signed:
        data = AuthenticatorData(assertion.authenticator_data)
        message = data + CollectedClientData(assertion.client_data).sha256
        attestation.attested.public_key.verify_signature(signature=assertion.signature, message=message)
        assert data.flags == Flags.UP | Flags.UV
        counts.append(data.sign_count)
    assert 0 < counts[0] < counts[1]


def test_capabilities(stage: Stage) -> None:
    found = stage.provider.capabilities()
    assert (found.kind, found.uv_by, found.up_by) == (ProviderKind.SMARTCARD, Gate.CARD_POLICY, Gate.HOST)
    assert (found.pin_is_set, found.connected, found.asks_pin) == (True, True, True)
    assert found.pin_retries_left == (3 if stage.reader else None)  # SoftHSM2 counts none
    assert not stage.ui.asked


def test_wrong_pin_in_the_token_s_words_H3(stage: Stage) -> None:
    made, right = stage.register(), stage.ui.pin
    stage.ui.pin = WRONG
    error = stage.failure_of(lambda session: session.sign(use_of(made)))
    assert error.reason is Reason.PIN_WRONG
    stage.ui.pin = right
    assert stage.run(lambda session: session.sign(use_of(made)))  # control


@ON_A_CARD
def test_last_try_is_kept(stage: Stage) -> None:
    made, stage.ui.pin = stage.register(), WRONG
    stage.ui.asked.clear()
    seen = [stage.failure_of(lambda session: session.sign(use_of(made))) for _ in range(4)]
    assert [error.reason for error in seen] == [Reason.PIN_WRONG] * 2 + [Reason.PIN_LAST_TRY] * 2
    assert [error.retries_left for error in seen] == [2, 1, 1, 1]
    assert len([question for question in stage.ui.asked if isinstance(question, tuple)]) == 2


def test_nobody_wants_to_type_H4(stage: Stage) -> None:
    made, right = stage.register(), stage.ui.pin
    stage.ui.pin = None
    assert stage.failure_of(lambda session: session.sign(use_of(made))).reason is Reason.USER_CANCELLED
    stage.ui.pin, stage.ui.confirms = right, False
    assert stage.failure_of(lambda session: session.sign(use_of(made))).reason is Reason.USER_CANCELLED
    stage.ui.confirms = True
    assert stage.run(lambda session: session.sign(use_of(made)))  # control


@ON_A_CARD
def test_card_pulled_out_and_put_back(stage: Stage) -> None:
    reader, made = stage.reader, stage.register()
    assert reader is not None
    stage.ui.on_confirm = reader.remove
    assert stage.failure_of(lambda session: session.sign(use_of(made))).reason in AWAY
    stage.ui.on_confirm = lambda: None
    assert stage.failure_of(lambda session: session.sign(use_of(made))).reason in AWAY
    assert not stage.provider.capabilities().connected
    reader.insert()
    assert stage.provider.capabilities().connected
    assert stage.run(lambda session: session.sign(use_of(made)))


def test_pin_is_in_no_log_A4(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    pin = stage.ui.pin
    assert pin is not None
    with caplog.at_level(1, logger=logging.getLogger().name), caplog.at_level(1, logger="fido2"):
        made = stage.register()
        stage.run(lambda session: session.sign(use_of(made)))
    assert caplog.text  # control: something was logged
    assert f"'{pin}'" not in caplog.text
    assert f" {pin}" not in caplog.text
