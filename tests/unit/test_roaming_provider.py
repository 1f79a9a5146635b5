"""The provider over security keys: which key it is, waiting for it, and what is made on it."""

from __future__ import annotations

from dataclasses import replace
from threading import Event
from typing import Any

import pytest
from fido2.ctap import CtapError

from keyvouch.errors import DeviceError, Reason, RefusedError, UsageError
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AttestationObject, AuthenticatorData, CollectedClientData, Flags
from keyvouch_agent.authenticator.vault import SOFTWARE_AAGUID
from keyvouch_agent.pin_standing import check_pin_usable, describe_pin
from keyvouch_agent.ports import Gate, GateOffer, KeyCreation, KeyProtection, KeyUse, Pin, ProviderKind
from keyvouch_agent.providers.ctap_requests import CredentialWish
from keyvouch_agent.roaming.provider import EnrolledKey, RoamingProvider
from keyvouch_client.security_keys.discovery import ConnectedKey, Transport
from support.roaming import CREATION, PIN, RP_ID, Person, enrolled_on, failure, make_key, provider_over, sign
from support.security_keys import (
    ASSERT,
    CLIENT_PIN,
    EXTENSIONS,
    MAKE,
    Bench,
    Finger,
    KeyOnBench,
)

ERR = CtapError.ERR


@pytest.fixture
def key() -> KeyOnBench:
    key = KeyOnBench("Maker Key")
    key.set_pin(PIN)
    return key


@pytest.fixture
def bench(key: KeyOnBench) -> Bench:
    return Bench().put_in(key)


@pytest.fixture
def ui() -> Person:
    return Person()


@pytest.fixture
def provider(bench: Bench) -> RoamingProvider:
    return provider_over(bench)


# a ceremony


def test_registration_and_signature_are_the_keys_own_H4(provider: RoamingProvider, ui: Person, key: KeyOnBench) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        assert session.prepare(GateOffer("dev_x", b"", 3)) is None
        made = session.create_key(CREATION)
        assert session.evidence(b"statement", b"channel key") is None
        with pytest.raises(UsageError):
            session.accept(None)  # type: ignore[arg-type]
    assert CollectedClientData(made.client_data).origin == f"keyvouch-agent://{RP_ID}"
    attested = AttestationObject(made.attestation_object).attested
    signed = sign(provider, ui, made.credential_id)
    data = AuthenticatorData(signed.authenticator_data)
    assert data.flags == Flags.UP | Flags.UV
    message = data + CollectedClientData(signed.client_data).sha256
    attested.public_key.verify_signature(signature=signed.signature, message=message)
    assert ui.asked == [("pin", 8, 6), "touch", ("pin", 8, 6), "touch"]
    assert key.open == 0


def test_capabilities_are_told_without_a_touch_H4(provider: RoamingProvider, key: KeyOnBench) -> None:
    found = provider.capabilities()
    assert (found.kind, found.name, found.key_protection) == (ProviderKind.FIDO2, "Maker Key", KeyProtection.HARDWARE)
    assert (found.uv_by, found.up_by) == (Gate.AUTHENTICATOR, Gate.AUTHENTICATOR)
    assert (found.pin_is_set, found.pin_retries_left, found.connected) == (True, 8, True)
    assert found.aaguid == key.vault.properties.aaguid
    assert not key.finger.asked


def test_our_own_authenticator_in_software_is_called_that_H9(provider: RoamingProvider, key: KeyOnBench) -> None:
    key.vault.properties = replace(key.vault.properties, aaguid=SOFTWARE_AAGUID)
    assert provider.capabilities().key_protection is KeyProtection.SOFTWARE


def test_another_servers_request_is_refused(provider: RoamingProvider, ui: Person, key: KeyOnBench) -> None:
    with provider.open(ui, rp_id=RP_ID) as session, pytest.raises(RefusedError) as caught:
        session.sign(KeyUse(bytes(32), "evil.example", CredentialId(b"c")))
    assert caught.value.reason is Reason.WRONG_SERVER
    assert ASSERT not in key.commands


# no key, several keys, another key


def test_without_a_key_the_lists_go_on(ui: Person) -> None:
    provider = provider_over(Bench(), EnrolledKey(CredentialId(b"c"), RP_ID, "alice", "Maker Key"))
    found = provider.capabilities()
    assert (found.connected, found.name, found.pin_retries_left) == (False, "Maker Key", None)
    assert describe_pin(found) == "not connected"
    check_pin_usable(found)


def test_a_key_that_is_not_there_is_asked_for(key: KeyOnBench, ui: Person) -> None:
    bench = Bench()
    provider = provider_over(bench)
    ui.acts["Connect your security key"] = lambda: bench.put_in(key)
    assert make_key(provider, ui)
    assert len(ui.told) == 1


def test_the_wait_for_a_key_ends(ui: Person) -> None:
    bench = Bench()
    error = failure(lambda: provider_over(bench, seconds=0.05).ready(ui, Event()))
    assert error.reason is Reason.AUTHENTICATOR_NOT_CONNECTED
    wanted = EnrolledKey(CredentialId(b"c"), RP_ID, "alice", "Maker Key")
    error = failure(lambda: sign(provider_over(bench, wanted, seconds=0.05), ui, wanted.credential_id))
    assert error.reason is Reason.AUTHENTICATOR_NOT_CONNECTED
    assert "Maker Key" in ui.told[-1]


def test_the_wait_ends_with_what_keeps_a_key_from_use(ui: Person) -> None:
    trouble = DeviceError(Reason.AUTHENTICATOR_PERMISSION, "This user may not open it.", fix="A rule.")
    shut = ConnectedKey("Shut", Transport.USB, "/dev/hidraw0", "1", lambda: KeyOnBench().device(), trouble)
    provider = provider_over(Bench(trouble=[shut]), seconds=0.05)
    assert failure(lambda: provider.ready(ui, Event())) is trouble
    assert not provider.capabilities().connected


def test_several_keys_are_chosen_from_by_touch(ui: Person) -> None:
    keys = [KeyOnBench(name, finger=Finger(always=False)) for name in ("One", "Two")]
    bench = Bench().put_in(*keys)
    provider = provider_over(bench)
    ui.acts["Touch the one to use"] = keys[1].finger.touches.set
    provider.ready(ui, Event())
    assert provider.capabilities().name == "Two"
    keys[1].set_pin(PIN)
    ui.acts["touch"] = keys[1].finger.touches.set
    assert make_key(provider, ui)
    assert MAKE not in keys[0].commands


def test_before_the_choice_nothing_is_said_of_either(ui: Person) -> None:
    assert not provider_over(Bench().put_in(KeyOnBench("One"), KeyOnBench("Two"))).capabilities().connected


def test_the_chosen_key_is_waited_for_when_it_was_taken_out(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    provider = provider_over(bench)
    provider.ready(ui, Event())
    bench.take_out(key)
    bench.put_in(KeyOnBench("Other"))
    ui.acts["Put it in again"] = lambda: bench.put_in(key)
    assert make_key(provider, ui)
    assert MAKE in key.commands


def test_the_key_that_holds_the_credential_signs(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    known = enrolled_on(bench, key, ui)
    others = [KeyOnBench("Other", finger=Finger(always=False)), KeyOnBench("Third", finger=Finger(always=False))]
    for other in others:
        other.set_pin("654321")
    both = Bench().put_in(others[0], key, others[1])
    provider = provider_over(both, known)
    assert provider.capabilities().name == "Maker Key"
    assert sign(provider, ui, known.credential_id)
    assert not any(other.finger.asked or CLIENT_PIN in other.commands for other in others)
    assert not ui.told


def test_another_key_is_told_and_the_right_one_waited_for_H10(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    known = enrolled_on(bench, key, ui)
    other = KeyOnBench("Other")
    other.set_pin()
    wrong = Bench().put_in(other)
    provider = provider_over(wrong, known)
    assert not provider.capabilities().connected
    ui.acts["Connect the right one"] = lambda: wrong.put_in(key)
    assert sign(provider, ui, known.credential_id)
    assert "the security key of alice (Maker Key)" in ui.told[0]
    assert ASSERT in key.commands


def test_another_key_and_no_right_one(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    known = enrolled_on(bench, key, ui)
    provider = provider_over(Bench().put_in(KeyOnBench("Other")), known, seconds=0.05)
    error = failure(lambda: sign(provider, ui, known.credential_id))
    assert error.reason is Reason.AUTHENTICATOR_OTHER
    assert not ui.asked  # no PIN for a key that cannot sign


def test_a_key_that_was_reset_H10(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    known = enrolled_on(bench, key, ui)
    key.reset()
    error = failure(lambda: sign(provider_over(bench, known, seconds=0.05), ui, known.credential_id))
    assert error.reason is Reason.AUTHENTICATOR_OTHER
    assert "reset" in error.message
    assert "enroll --replace" in error.fix


def test_keys_that_do_not_tell_are_chosen_from_by_touch(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    known = enrolled_on(bench, key, ui)
    mute = KeyOnBench("Mute", finger=Finger(always=False))
    mute.refuses(ASSERT, ERR.PUAT_REQUIRED)
    keys = Bench().put_in(mute, key)
    assert sign(provider_over(keys, known), ui, known.credential_id)  # control: one tells
    key.refuses(ASSERT, ERR.PUAT_REQUIRED)
    key.finger.always = False

    def touch() -> None:
        key.finger.always = True
        key.finger.touches.set()

    ui.acts["may be the right one"] = lambda: (touch(), key.statuses.clear())
    assert sign(provider_over(keys, known), ui, known.credential_id)
    assert CLIENT_PIN not in mute.commands


def test_a_key_that_only_says_it_is_the_right_one_gets_no_pin(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    known = enrolled_on(bench, key, ui)
    liar = KeyOnBench("Liar", finger=Finger(always=False))
    liar.set_pin(PIN)
    liar.answers[ASSERT] = {1: {"id": known.credential_id, "type": "public-key"}, 2: bytes(37), 3: b"\x30\x00"}
    both = Bench().put_in(liar, key)
    key.finger.always = False

    def touch() -> None:
        key.finger.always = True
        key.finger.touches.set()

    ui.acts["may be the right one"] = touch
    assert sign(provider_over(both, known), ui, known.credential_id)
    assert CLIENT_PIN not in liar.commands


# what is made


def test_credentials_are_server_side_unless_asked_for(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    asked: list[Any] = []
    key.on_make = asked.append
    make_key(provider_over(bench), ui)
    make_key(provider_over(bench, wish=CredentialWish(resident=True)), ui)
    assert [request.get(7) for request in asked] == [None, {"rk": True}]


def test_cred_protect_is_asked_for_where_the_key_knows_it(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    asked: list[Any] = []
    key.on_make = asked.append
    key.says(EXTENSIONS, [])
    make_key(provider_over(bench), ui)
    key.says(EXTENSIONS, ["credProtect"])
    protect(key, 2)
    assert make_key(provider_over(bench), ui)
    make_key(provider_over(bench, wish=CredentialWish()), ui)
    assert [request.get(6) for request in asked] == [None, {"credProtect": 2}, None]


@pytest.mark.parametrize("level", [None, 1, 3])
def test_another_protection_than_asked_for_is_refused(
    bench: Bench, key: KeyOnBench, ui: Person, level: int | None
) -> None:
    key.says(EXTENSIONS, ["credProtect"])
    protect(key, level)
    assert failure(lambda: make_key(provider_over(bench), ui)).reason is Reason.DEVICE_FAILED


def protect(key: KeyOnBench, level: int | None) -> None:
    """Answer makeCredential with that output of credProtect, which no signature of this bench covers."""

    def change(answer: dict[int, Any]) -> None:
        data = AuthenticatorData(answer[2])
        outputs = None if level is None else {"credProtect": level}
        flags = data.flags & ~Flags.ED
        answer[2] = bytes(
            AuthenticatorData.build(data.rp_id_hash, flags, data.sign_count, attested=data.attested, extensions=outputs)
        )

    key.changes[MAKE] = change


def test_forgetting_says_what_stays_on_the_key(bench: Bench) -> None:
    provider_over(bench).forget(CredentialId(b"c"))
    resident = provider_over(bench, wish=CredentialWish(resident=True))
    resident.forget(None)
    error = failure(lambda: resident.forget(CredentialId(b"\xab\xcd")))
    assert error.reason is Reason.PIN_REQUIRED
    assert "abcd" in error.fix


def test_a_key_holds_no_two_keys_of_an_account(provider: RoamingProvider, ui: Person) -> None:
    made = make_key(provider, ui)
    again = KeyCreation(bytes(32), RP_ID, b"user", "alice", (-7,), exclude=(made.credential_id,))
    assert failure(lambda: make_key(provider, ui, again)).reason is Reason.CREDENTIAL_EXISTS


# the PIN's own ceremonies


def test_the_pin_is_set_and_changed(ui: Person) -> None:
    key = KeyOnBench()
    provider = provider_over(Bench().put_in(key))
    with provider.open(ui, rp_id=RP_ID) as session:
        control = session.pin()
        assert control is not None
        assert not control.is_set
        control.set(Pin(PIN))
        control.change(Pin(PIN), Pin("7654321"))
        assert (control.is_set, control.retries_left) == (True, 8)
        error = failure(lambda: control.change(Pin(PIN), Pin("111111")))
        assert (error.reason, error.retries_left) == (Reason.PIN_WRONG, 7)
        key.fails = 0
        assert failure(lambda: control.set(Pin(PIN))).reason is Reason.AUTHENTICATOR_REMOVED


def test_no_health_and_no_replacement(provider: RoamingProvider) -> None:
    assert provider.health(b"", ()) is None
    assert provider.replacement() is None


def test_which_key_was_touched_is_told_before_it_gets_a_pin(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    idle = KeyOnBench("Other", finger=Finger(always=False))
    bench.put_in(idle)
    provider = provider_over(bench)
    provider.ready(ui, Event())
    assert ui.told == [
        "2 security keys are connected. Touch the one to use, or lay it on its reader anew.",
        "You chose the security key Maker Key.",
    ]
    assert ui.asked == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("Maker Key", "security key Maker Key"),
        ("Security key in Reader 00", "security key in Reader 00"),
        ("Security key 1050:0407", "security key 1050:0407"),
    ],
)
def test_a_key_has_a_name_within_a_sentence(bench: Bench, key: KeyOnBench, name: str, title: str) -> None:
    key.name = name
    assert Bench().put_in(key)[key].title == title


def test_a_wrong_key_that_comes_while_the_right_one_is_waited_for_is_told_and_asked_once(
    bench: Bench, key: KeyOnBench, ui: Person
) -> None:
    known = enrolled_on(bench, key, ui)
    ports, other = Bench(), KeyOnBench("Other")
    other.set_pin()
    provider = provider_over(ports, known)
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 20:
            ports.put_in(key)

    def put_in_other() -> None:
        ports.put_in(other)
        ports.on_look = look

    ui.acts["Connect the security key of alice"] = put_in_other
    assert sign(provider, ui, known.credential_id)
    assert [text for text in ui.told if "No security key that is connected is" in text] == ui.told[1:]
    assert len(ui.told) == 2
    assert other.commands.count(ASSERT) <= 3  # it is not asked at each look


def test_what_keeps_a_key_from_use_is_told_before_one_is_waited_for(ui: Person) -> None:
    ports = Bench()
    permission = DeviceError(Reason.AUTHENTICATOR_PERMISSION, "You may not open the key.", fix="Add the rule.")
    no_readers = DeviceError(Reason.READER_UNAVAILABLE, "pcscd does not run.", fix="Start it.")
    ports.trouble.append(ConnectedKey("Key", Transport.USB, "/dev/hidraw0", "1", KeyOnBench().device, permission))
    ports.found_problems.append(no_readers)
    provider = provider_over(ports, seconds=0.05)
    assert failure(lambda: provider.ready(ui, Event())) == permission
    assert ui.told == [
        "Connect your security key: put it in, or lay it on the reader.",
        "You may not open the key.",
        "Add the rule.",
        "pcscd does not run.",
        "Start it.",
    ]
