"""Signing with a connected security key, on our own engine through python-fido2: who holds it, the PIN, the touch."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import pytest
from fido2.ctap import CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin

from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AuthenticatorData
from keyvouch_client.connected_signer import ConnectedSigner
from keyvouch_client.security_key import KeyAssertion, KeyRequest
from support.security_keys import ASSERT, CLIENT_PIN, FORCE_PIN_CHANGE, OPTIONS, Bench, Finger, KeyOnBench

RP = "keys.example.org"
PIN = "123456"


@dataclass
class Person:
    """Does what it is told to: types these PINs, one after the other, and connects what it is asked to."""

    pins: list[str | None] = field(default_factory=lambda: [PIN])
    connects: Callable[[], None] = lambda: None
    asked: list[tuple[int | None, bool]] = field(default_factory=list)
    touched: list[tuple[str, ...]] = field(default_factory=list)
    told: list[bool] = field(default_factory=list)

    def connect(self, *, another: bool) -> None:
        self.told.append(another)
        self.connects()

    def touch(self, names: Sequence[str]) -> None:
        self.touched.append(tuple(names))

    def pin(self, name: str, tries_left: int | None, *, wrong: bool, cancelled: Event) -> str | None:
        assert name
        assert not cancelled.is_set()
        self.asked.append((tries_left, wrong))
        return self.pins.pop(0) if self.pins else None


def credential_on(key: KeyOnBench, rp_id: str = RP, *, protect: int = 0) -> tuple[CredentialId, CoseKey]:
    """Make a credential on a key, with its PIN."""
    device = key.device()
    try:
        ctap = Ctap2(device)
        pin = ClientPin(ctap)
        token = pin.get_pin_token(PIN, ClientPin.PERMISSION.MAKE_CREDENTIAL, rp_id)
        made = ctap.make_credential(
            bytes(32),
            {"id": rp_id, "name": rp_id},
            {"id": b"user", "name": "ada", "displayName": "Ada"},
            [{"type": "public-key", "alg": -7}],
            extensions={"credProtect": protect} if protect else None,
            pin_uv_param=pin.protocol.authenticate(token, bytes(32)),
            pin_uv_protocol=pin.protocol.VERSION,
        )
    finally:
        device.close()
    attested = AuthenticatorData(bytes(made.auth_data)).attested
    assert attested is not None
    return attested.credential_id, attested.public_key


def key_with_pin(name: str = "Bench Key", **how: Any) -> KeyOnBench:
    key = KeyOnBench(name, **how)
    key.set_pin(PIN)
    return key


def request_for(*credentials: CredentialId) -> KeyRequest:
    """A different text for each credential, and some that nobody holds."""
    unknown = [CredentialId(hashlib.sha512(bytes([n])).digest()) for n in range(3)]
    return KeyRequest(RP, {c: b"client data of " + c for c in sorted([*credentials, *unknown])})


def check(assertion: KeyAssertion, request: KeyRequest, public: CoseKey) -> None:
    """It verifies over the client data of its own credential."""
    digest = hashlib.sha256(request.client_data[assertion.credential_id]).digest()
    public.verify_signature(signature=assertion.signature, message=assertion.authenticator_data + digest)
    data = AuthenticatorData(assertion.authenticator_data)
    assert data.user_verified


def sign(bench: Bench, request: KeyRequest, person: Person | None = None, *, seconds: float = 20.0) -> KeyAssertion:
    return ConnectedSigner(person or Person(), bench.keys, seconds=seconds).sign(request, Event())


def refusal_of(
    bench: Bench, request: KeyRequest, person: Person | None = None, *, seconds: float = 20.0
) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        sign(bench, request, person, seconds=seconds)
    assert caught.value.fix
    return caught.value


def test_the_key_signs_for_the_credential_it_holds() -> None:
    key, person = key_with_pin(), Person()
    credential, public = credential_on(key)
    request = request_for(credential)
    check(sign(Bench().put_in(key), request, person), request, public)
    assert person.asked == [(8, False)]
    assert person.touched[-1] == ("Bench Key",)
    assert key.open == 0


def test_of_several_keys_the_one_that_holds_it_signs_and_no_other_is_asked_for_anything() -> None:
    holder, other = key_with_pin("mine"), key_with_pin("other")
    credential, public = credential_on(holder)
    asked_before = len(other.finger.asked)
    request = request_for(credential)
    check(sign(Bench().put_in(other, holder), request), request, public)
    assert len(other.finger.asked) == asked_before


def test_of_two_keys_that_could_sign_the_touched_one_does() -> None:
    keys = [key_with_pin("one"), key_with_pin("two", finger=Finger(always=False))]
    made: list[tuple[CredentialId, CoseKey]] = []
    for key in keys:
        key.finger.always = True
        made.append(credential_on(key))
    keys[0].finger.always = False
    request, person = request_for(*(credential for credential, _ in made)), Person()
    assertion = sign(Bench().put_in(*keys), request, person)
    check(assertion, request, made[1][1])
    assert assertion.credential_id == made[1][0]
    assert set(person.touched[0]) == {"one", "two"}


def test_a_key_is_waited_for() -> None:
    key, bench = key_with_pin(), Bench()
    credential, public = credential_on(key)
    request, person = request_for(credential), Person(connects=lambda: bench.put_in(key) and None)
    check(sign(bench, request, person), request, public)
    assert person.told == [False]


def test_another_key_is_waited_for() -> None:
    right, wrong, bench = key_with_pin(), key_with_pin("wrong"), Bench()
    wrong.says(0x02, ["hmac-secret"])  # it has no credProtect, so its no is a no
    credential, public = credential_on(right)
    request = request_for(credential)
    person = Person(connects=lambda: bench.put_in(right) and None)
    check(sign(bench.put_in(wrong), request, person), request, public)
    assert person.told == [True]


def test_nothing_comes_in_time() -> None:
    key = key_with_pin()
    credential, _ = credential_on(key)
    assert refusal_of(Bench(), request_for(credential), seconds=0.05).reason is Reason.AUTHENTICATOR_NOT_CONNECTED
    other = key_with_pin("other")
    other.says(0x02, ["hmac-secret"])
    refused = refusal_of(Bench().put_in(other), request_for(credential), seconds=0.05)
    assert refused.reason is Reason.KEY_NOT_FOUND


def test_a_credential_that_is_hidden_until_the_pin_is_found_with_it() -> None:
    key = key_with_pin()
    credential, public = credential_on(key, protect=3)
    request, person = request_for(credential), Person()
    check(sign(Bench().put_in(key), request, person), request, public)
    assert person.asked == [(8, False)]


def test_a_key_that_may_hide_one_and_has_none() -> None:
    assert refusal_of(Bench().put_in(key_with_pin()), request_for()).reason is Reason.KEY_NOT_FOUND


def test_the_tries_left_are_told_before_each_pin_H3() -> None:
    key, person = key_with_pin(), Person(pins=["000000", "111111", PIN])
    credential, public = credential_on(key)
    request = request_for(credential)
    check(sign(Bench().put_in(key), request, person), request, public)
    assert person.asked == [(8, False), (7, True), (6, True)]


def test_three_wrong_pins_need_a_power_cycle_H10() -> None:
    key, person = key_with_pin(), Person(pins=["000000"] * 9)
    credential, _ = credential_on(key)
    bench = Bench().put_in(key)
    refused = refusal_of(bench, request_for(credential), person)
    assert (refused.reason, refused.retries_left) == (Reason.PIN_POWER_CYCLE, 5)
    assert len(person.asked) == 3
    again = Person()
    assert refusal_of(bench, request_for(credential), again).reason is Reason.PIN_POWER_CYCLE
    assert again.asked == []
    bench.take_out(key)
    assert sign(bench.put_in(key), request_for(credential))


def test_a_blocked_pin_is_not_asked_for_H10() -> None:
    key, person = key_with_pin(), Person(pins=["000000"] * 20)
    credential, _ = credential_on(key)
    bench = Bench().put_in(key)
    for _ in range(3):
        refused = refusal_of(bench, request_for(credential), person)
        bench.take_out(key)
        bench.put_in(key)
    assert (refused.reason, refused.retries_left) == (Reason.PIN_BLOCKED, 0)
    again = Person()
    assert refusal_of(bench, request_for(credential), again).reason is Reason.PIN_BLOCKED
    assert again.asked == []


@pytest.mark.parametrize(("pins", "reason"), [([None], Reason.USER_CANCELLED), (["0000", None], Reason.PIN_WRONG)])
def test_a_person_who_gives_up(pins: list[str | None], reason: Reason) -> None:
    key = key_with_pin()
    credential, _ = credential_on(key)
    assert refusal_of(Bench().put_in(key), request_for(credential), Person(pins=pins)).reason is reason


def test_keys_that_cannot_be_used_say_why() -> None:
    key, forced, u2f = key_with_pin(), key_with_pin(), key_with_pin(ctap2=False)
    credential, _ = credential_on(key)
    reset = KeyOnBench(vault=key.vault)
    reset.says(OPTIONS, {"clientPin": False})
    found, _ = credential_on(forced)
    forced.says(FORCE_PIN_CHANGE, True)
    assert refusal_of(Bench().put_in(reset), request_for(credential)).reason is Reason.PIN_NOT_SET
    assert refusal_of(Bench().put_in(forced), request_for(found)).reason is Reason.PIN_CHANGE_REQUIRED
    assert refusal_of(Bench().put_in(u2f), request_for(credential), seconds=0.05).reason is Reason.KEY_NOT_FOUND


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (CtapError.ERR.OPERATION_DENIED, Reason.USER_CANCELLED),
        (CtapError.ERR.USER_ACTION_TIMEOUT, Reason.USER_TIMEOUT),
        (CtapError.ERR.CHANNEL_BUSY, Reason.VAULT_BUSY),
        (CtapError.ERR.OTHER, Reason.DEVICE_FAILED),
    ],
)
def test_what_a_key_fails_with(status: int, reason: Reason) -> None:
    key = key_with_pin()
    credential, _ = credential_on(key)

    class Late(Person):
        def pin(self, name: str, tries_left: int | None, *, wrong: bool, cancelled: Event) -> str | None:
            key.refuses(ASSERT, status)  # from now on: the silent search has gone well
            return super().pin(name, tries_left, wrong=wrong, cancelled=cancelled)

    assert refusal_of(Bench().put_in(key), request_for(credential), Late()).reason is reason


@pytest.mark.parametrize("calls", range(1, 12))
def test_a_key_that_is_pulled_out_at_any_call_H10(calls: int) -> None:
    key = key_with_pin()
    credential, public = credential_on(key)
    request = request_for(credential)
    key.fails = calls
    bench = Bench().put_in(key)
    try:
        check(sign(bench, request, seconds=0.05), request, public)
    except DeviceError as error:
        assert error.reason in (Reason.AUTHENTICATOR_REMOVED, Reason.KEY_NOT_FOUND)  # noqa: PT017 - either may be
    key.fails = None
    check(sign(bench, request), request, public)
    assert key.open == 0


def test_an_answer_of_another_relying_party_or_without_verification_is_none() -> None:
    key = key_with_pin()
    credential, public = credential_on(key)
    request = request_for(credential)

    def other_server(answer: dict[int, Any]) -> None:
        answer[2] = bytes(32) + answer[2][32:]

    def unverified(answer: dict[int, Any]) -> None:
        answer[2] = answer[2][:32] + bytes([answer[2][32] & ~4]) + answer[2][33:]

    for change in (other_server, unverified):
        key.changes[ASSERT] = change
        assert refusal_of(Bench().put_in(key), request).reason is Reason.DEVICE_FAILED
        del key.changes[ASSERT]
    check(sign(Bench().put_in(key), request), request, public)


def test_it_stops_when_it_is_cancelled() -> None:
    key = key_with_pin()
    credential, _ = credential_on(key)
    key.finger.always = False
    cancelled, failures = Event(), []

    def run() -> None:
        try:
            ConnectedSigner(Person(), Bench().put_in(key).keys).sign(request_for(credential), cancelled)
        except DeviceError as error:
            failures.append(error.reason)

    key.finger.is_asked.clear()
    thread = threading.Thread(target=run)
    thread.start()
    assert key.finger.is_asked.wait(20)
    cancelled.set()
    thread.join(20)
    assert failures == [Reason.USER_CANCELLED]
    assert not thread.is_alive()


def test_the_pin_is_asked_for_once_the_key_is_found_and_not_before() -> None:
    key = key_with_pin()
    credential, _ = credential_on(key)
    order: list[int] = []

    class Watching(Person):
        def pin(self, name: str, tries_left: int | None, *, wrong: bool, cancelled: Event) -> str | None:
            order.extend(key.commands)
            return super().pin(name, tries_left, wrong=wrong, cancelled=cancelled)

    key.commands.clear()
    sign(Bench().put_in(key), request_for(credential), Watching())
    assert ASSERT in order
    assert CLIENT_PIN in order
