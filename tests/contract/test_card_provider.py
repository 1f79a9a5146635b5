"""The contract of `Provider` over a vault that verifies its user itself: a card, and the PIN that is its own.

What it has in common with every other provider is in `test_provider`. Here is what the PIN makes different: it is
there before, it is asked for by the vault, and what is said of it is what the vault says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from threading import Event

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AttestationObject, AuthenticatorData, CollectedClientData, Flags
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.pin_standing import check_pin_usable
from keyvouch_agent.ports import (
    Gate,
    KeyCreation,
    KeyProtection,
    KeyUse,
    Pin,
    PresenceContext,
    Provider,
    ProviderKind,
    ProviderSession,
    Registration,
)
from keyvouch_agent.providers.built_in import BuiltInProvider, NativeHolder
from keyvouch_agent.system import SystemEntropy
from support.authenticators import BenchClock
from support.memory_vault import MemoryCard
from support.provider_ui import ScriptedInteraction

RP_ID = "login.example.org"
CREATION = KeyCreation(bytes(range(32)), RP_ID, b"user handle", "alice", (-7, -35))
PIN, WRONG = "123456", "000000"


@pytest.fixture
def card() -> MemoryCard:
    return MemoryCard(PIN)


@pytest.fixture
def provider(card: MemoryCard) -> Provider:
    return provider_of(card)


@pytest.fixture
def ui() -> ScriptedInteraction:
    return ScriptedInteraction(pin=PIN)


@pytest.fixture
def registered(provider: Provider, ui: ScriptedInteraction) -> Registration:
    with provider.open(ui, rp_id=RP_ID) as session:
        registration = session.create_key(CREATION)
    ui.asked.clear()
    return registration


def provider_of(card: MemoryCard, native: NativeHolder | None = None) -> BuiltInProvider:
    return BuiltInProvider(Authenticator(card, BenchClock(), SystemEntropy()), native=native)


def use_of(registration: Registration) -> KeyUse:
    return KeyUse(b"c" * 32, RP_ID, registration.credential_id)


def failure_of(provider: Provider, ui: ScriptedInteraction, action: Callable[[ProviderSession], object]) -> DeviceError:
    with provider.open(ui, rp_id=RP_ID) as session, pytest.raises(DeviceError) as caught:
        action(session)
    assert caught.value.message
    assert caught.value.fix
    return caught.value


def pins_asked(ui: ScriptedInteraction) -> list[object]:
    return [asked for asked in ui.asked if isinstance(asked, tuple)]


def test_capabilities_without_prompt(provider: Provider, ui: ScriptedInteraction, card: MemoryCard) -> None:
    found = provider.capabilities()
    assert (found.kind, found.name) == (ProviderKind.SMARTCARD, "Smartcard")
    assert (found.key_protection, found.uv_by, found.up_by) == (KeyProtection.HARDWARE, Gate.CARD_POLICY, Gate.HOST)
    assert (found.pin_is_set, found.pin_retries_left, found.connected, found.asks_pin) == (True, 3, True, True)
    assert found.min_pin_length == card.properties.min_pin_length  # the card's, not what the agent wants of new PINs
    card.retries = 1
    assert provider.capabilities().pin_retries_left == 1
    assert not ui.asked


@pytest.mark.parametrize(
    ("card", "pin_is_set", "left", "asks_pin"),
    [
        (MemoryCard(None), False, 3, True),
        (MemoryCard(tells=False), True, None, True),
        (MemoryCard(on_pad=True), True, 3, False),
    ],
    ids=["no PIN", "tries not told", "pad"],
)
def test_other_cards(card: MemoryCard, pin_is_set: bool, left: int | None, asks_pin: bool) -> None:
    found = provider_of(card).capabilities()
    assert (found.pin_is_set, found.pin_retries_left, found.asks_pin) == (pin_is_set, left, asks_pin)


@pytest.mark.parametrize(
    "reason",
    [
        Reason.AUTHENTICATOR_NOT_CONNECTED,
        Reason.AUTHENTICATOR_REMOVED,
        Reason.AUTHENTICATOR_OTHER,
        Reason.READER_UNAVAILABLE,
    ],
)
def test_card_that_is_not_there(provider: Provider, card: MemoryCard, reason: Reason) -> None:
    card.fail_next["uv_state"] = DeviceError(reason, "Gone.")
    found = provider.capabilities()
    assert (found.connected, found.pin_is_set, found.pin_retries_left) == (False, False, None)
    assert provider.capabilities().connected  # control


def test_card_that_fails_otherwise_is_not_taken_for_absent(provider: Provider, card: MemoryCard) -> None:
    card.fail_next["uv_state"] = DeviceError(Reason.DEVICE_FAILED, "Broken.")
    with pytest.raises(DeviceError) as caught:
        provider.capabilities()
    assert caught.value.reason is Reason.DEVICE_FAILED


def test_one_pin_and_one_confirmation_for_each_ceremony(
    provider: Provider, ui: ScriptedInteraction, card: MemoryCard
) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        made = session.create_key(CREATION)
        assert ui.asked == [("pin", 3, 4), PresenceContext("make_credential", RP_ID, "alice")]
        assert not card.is_unlocked
        ui.asked.clear()
        signed = session.sign(use_of(made))
        assert ui.asked == [("pin", 3, 4), PresenceContext("get_assertion", RP_ID, "alice")]
        assert not card.is_unlocked
    attested = AttestationObject(made.attestation_object)
    assert attested.authenticator_data.flags == Flags.UP | Flags.UV | Flags.AT
    data = AuthenticatorData(signed.authenticator_data)
    assert data.flags == Flags.UP | Flags.UV
    message = data + CollectedClientData(signed.client_data).sha256
    attested.attested.public_key.verify_signature(signature=signed.signature, message=message)
    assert not ui.told


def test_pins_are_dropped(provider: Provider, ui: ScriptedInteraction, registered: Registration) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        session.sign(use_of(registered))
    assert len(ui.pins) == 2
    for pin in ui.pins:
        with pytest.raises(ValueError, match="dropped"):
            pin.reveal()


def test_wrong_pins_are_counted_and_told_in_the_card_s_words_H3(
    provider: Provider, ui: ScriptedInteraction, registered: Registration
) -> None:
    ui.pin = WRONG
    seen = []
    for _ in range(4):
        error = failure_of(provider, ui, lambda s: s.sign(use_of(registered)))
        seen.append((error.reason, error.retries_left, error.message))
    assert seen[:2] == [(Reason.PIN_WRONG, 2, "The card says no."), (Reason.PIN_WRONG, 1, "The card says no.")]
    assert seen[2] == (Reason.PIN_BLOCKED, 0, "The card says no.")
    assert seen[3][:2] == (Reason.PIN_BLOCKED, 0)
    assert pins_asked(ui) == [("pin", 3, 4), ("pin", 2, 4), ("pin", 1, 4)]  # and not for one that cannot succeed


@pytest.mark.parametrize("on_pad", [False, True], ids=["typed here", "pad"])
@pytest.mark.parametrize("tells", [True, False], ids=["tries told", "tries not told"])
def test_blocked_card_is_explained_with_the_way_out(ui: ScriptedInteraction, on_pad: bool, tells: bool) -> None:
    card = MemoryCard(on_pad=on_pad, tells=tells)
    card.retries = 0
    error = failure_of(provider_of(card), ui, lambda s: s.create_key(CREATION))
    assert error.reason is Reason.PIN_BLOCKED
    assert "PUK" in str(error.fix)
    assert not ui.asked
    assert not ui.told


def test_blocked_card_is_told_before_anybody_is_asked(provider: Provider, card: MemoryCard) -> None:
    check_pin_usable(provider.capabilities())  # control
    card.retries = 0
    with pytest.raises(DeviceError) as caught:
        check_pin_usable(provider.capabilities())
    assert caught.value.reason is Reason.PIN_BLOCKED
    assert "PUK" in str(caught.value.fix)


def test_card_without_a_pin_makes_no_key_PS8(ui: ScriptedInteraction) -> None:
    card = MemoryCard(None)
    error = failure_of(provider_of(card), ui, lambda s: s.create_key(CREATION))
    assert error.reason is Reason.PIN_NOT_SET
    assert not ui.asked
    assert card.room() == 16


def test_unblocked_meanwhile(provider: Provider, ui: ScriptedInteraction, card: MemoryCard) -> None:
    card.retries = 1
    with provider.open(ui, rp_id=RP_ID) as session:
        ui.pin = WRONG
        with pytest.raises(DeviceError):
            session.create_key(CREATION)
        card.retries, ui.pin = 3, PIN
        assert session.create_key(CREATION)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pin": None}, Reason.USER_CANCELLED),
        ({"pin": ""}, Reason.USER_CANCELLED),
        ({"confirms": False}, Reason.USER_CANCELLED),
        ({"confirms": TimeoutError}, Reason.USER_TIMEOUT),
    ],
)
def test_user_says_no_H4(
    provider: Provider, ui: ScriptedInteraction, registered: Registration, change: dict[str, object], reason: Reason
) -> None:
    no = replace(ui, **change)
    assert failure_of(provider, no, lambda s: s.sign(use_of(registered))).reason is reason
    assert failure_of(provider, no, lambda s: s.create_key(CREATION)).reason is reason
    with provider.open(ui, rp_id=RP_ID) as session:  # control
        assert session.sign(use_of(registered))


def test_a_pin_that_is_declined_is_not_taken_for_the_timeout_before_it(
    provider: Provider, ui: ScriptedInteraction
) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        ui.confirms = TimeoutError
        with pytest.raises(DeviceError) as caught:
            session.create_key(CREATION)
        assert caught.value.reason is Reason.USER_TIMEOUT
        ui.pin = None
        with pytest.raises(DeviceError) as caught:
            session.create_key(CREATION)
        assert caught.value.reason is Reason.USER_CANCELLED


@pytest.mark.parametrize("step", ["while typing", "while confirming"])
def test_cancelled_from_elsewhere(
    provider: Provider, ui: ScriptedInteraction, card: MemoryCard, registered: Registration, step: str
) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        if step == "while typing":
            card.while_typing = session.cancel
        else:
            ui.on_confirm = session.cancel
        with pytest.raises(DeviceError) as caught:
            session.sign(use_of(registered))
    assert caught.value.reason is Reason.USER_CANCELLED
    assert not card.is_unlocked


@pytest.mark.parametrize(
    ("tells", "text"),
    [
        (True, "Type the PIN on the pad of the reader (3 tries left)."),
        (False, "Type the PIN on the pad of the reader."),
    ],
)
def test_pad(ui: ScriptedInteraction, tells: bool, text: str) -> None:
    provider = provider_of(MemoryCard(on_pad=True, tells=tells))
    with provider.open(ui, rp_id=RP_ID) as session:
        assert session.create_key(CREATION)
    assert ui.told == [text]
    assert not pins_asked(ui)


def test_nobody_types_on_the_pad(ui: ScriptedInteraction) -> None:
    card = MemoryCard(on_pad=True)
    card.typed = None
    error = failure_of(provider_of(card), ui, lambda s: s.create_key(CREATION))
    assert (error.reason, error.message) == (Reason.USER_TIMEOUT, "Nobody typed on the pad.")


@pytest.mark.parametrize("step", ["uv_state", "verify_user", "create_key", "attest", "keep"])
def test_card_pulled_out_while_a_key_is_made(
    provider: Provider, ui: ScriptedInteraction, card: MemoryCard, step: str
) -> None:
    gone = DeviceError(Reason.AUTHENTICATOR_REMOVED, "Pulled out.", fix="Put it back.")
    with provider.open(ui, rp_id=RP_ID) as session:
        card.fail_next[step] = gone
        with pytest.raises(DeviceError) as caught:
            session.create_key(CREATION)
        assert caught.value is gone
        assert (card.room(), card.is_unlocked) == (16, False)
        assert session.create_key(CREATION)  # put back


@pytest.mark.parametrize("step", ["uv_state", "verify_user", "advance_sign_count", "sign"])
def test_card_pulled_out_while_it_signs(
    provider: Provider, ui: ScriptedInteraction, card: MemoryCard, registered: Registration, step: str
) -> None:
    gone = DeviceError(Reason.AUTHENTICATOR_REMOVED, "Pulled out.", fix="Put it back.")
    with provider.open(ui, rp_id=RP_ID) as session:
        card.fail_next[step] = gone
        with pytest.raises(DeviceError) as caught:
            session.sign(use_of(registered))
        assert caught.value is gone
        assert not card.is_unlocked
        assert session.sign(use_of(registered))  # put back


def test_no_card_to_begin_with(provider: Provider, ui: ScriptedInteraction, card: MemoryCard) -> None:
    gone = DeviceError(Reason.AUTHENTICATOR_NOT_CONNECTED, "No card.", fix="Put it in.")
    card.fail_next["uv_state"] = gone
    with pytest.raises(DeviceError) as caught:
        provider.open(ui, rp_id=RP_ID)
    assert caught.value is gone


def test_last_try_that_the_card_keeps_is_told_in_its_words(
    provider: Provider, ui: ScriptedInteraction, card: MemoryCard
) -> None:
    last = DeviceError(Reason.PIN_LAST_TRY, "One try left.", retries_left=1, fix="Say that you are sure.")
    card.fail_next["verify_user"] = last
    assert failure_of(provider, ui, lambda s: s.create_key(CREATION)) is last


def test_key_that_is_gone_H10(provider: Provider, ui: ScriptedInteraction) -> None:
    unknown = KeyUse(bytes(32), RP_ID, CredentialId(b"unknown"))
    assert failure_of(provider, ui, lambda s: s.sign(unknown)).reason is Reason.KEY_NOT_FOUND


class OwnPin:
    """The PIN's ceremonies of a card."""

    is_set, retries_left, min_length = True, 3, 6

    def set(self, new: Pin) -> None:
        raise NotImplementedError

    def change(self, old: Pin, new: Pin) -> None:
        raise NotImplementedError


def test_pin_is_managed_by_the_card_or_by_nobody(card: MemoryCard, ui: ScriptedInteraction) -> None:
    own = OwnPin()
    with provider_of(card, NativeHolder(pin=own)).open(ui, rp_id=RP_ID) as session:
        assert session.pin() is own
    with provider_of(card).open(ui, rp_id=RP_ID) as session:
        assert session.pin() is None


def test_native_holder_makes_ready(card: MemoryCard, ui: ScriptedInteraction) -> None:
    asked: list[object] = []
    provider = provider_of(card, NativeHolder(ready=lambda *given: asked.append(given)))
    cancelled = Event()
    provider.ready(ui, cancelled)
    assert asked == [(ui, cancelled)]
    provider_of(card).ready(ui, cancelled)


def test_pin_is_in_no_log_and_no_repr_A4(
    provider: Provider, card: MemoryCard, ui: ScriptedInteraction, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-4711-pin"
    ui.pin = card.pin = canary
    with caplog.at_level(1, logger=logging.getLogger().name), caplog.at_level(1, logger="fido2"):
        with provider.open(ui, rp_id=RP_ID) as session:
            registration = session.create_key(CREATION)
            shown = repr(session) + repr(provider)
        ui.pin = canary + "wrong"
        error = failure_of(provider, ui, lambda s: s.sign(use_of(registration)))
    assert caplog.text  # control: something was logged
    for text in (caplog.text, shown, repr(error), str(error), str(error.metadata)):
        assert canary not in text
