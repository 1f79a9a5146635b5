"""authenticatorGetAssertion and GetNextAssertion, step by step (CTAP 2.1 sections 6.2.2 and 6.3)."""

from __future__ import annotations

import hashlib

import pytest

from keyvouch.cose import CoseKey
from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.authenticator.engine import Command
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, Purpose
from keyvouch_agent.authenticator.status import Status
from support.authenticators import CLIENT_DATA_HASH, PIN, RP_ID, USER, Bench, descriptor
from support.memory_vault import MemoryVault

BOB = {"id": b"user 2", "name": "bob", "displayName": "Bob B."}
CAROL = {"id": b"user 3", "name": "carol"}


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    bench = Bench(MemoryVault(), protocol=request.param)
    assert bench.set_pin() is Status.SUCCESS
    return bench


@pytest.fixture
def open_bench() -> Bench:
    return Bench(MemoryVault(pin_gated=False))


def counts(bench: Bench) -> object:
    return bench.vault.snapshot


def verify(bench: Bench, response: dict[int, object]) -> AuthenticatorData:
    data = AuthenticatorData(response[2])
    found = bench.stored(response[1]["id"])
    key = CoseKey(found.public_key)
    key.verify_signature(signature=response[3], message=data + CLIENT_DATA_HASH)
    assert data.rp_id_hash == hashlib.sha256(RP_ID.encode()).digest()
    assert data.sign_count == found.sign_count
    return data


def test_assertion_verifies_and_counts(bench: Bench) -> None:
    credential = bench.new_credential()
    for expected in (1, 2, 3):
        status, response = bench.get(bench.token(), k3=[descriptor(credential)])
        assert status is Status.SUCCESS
        data = verify(bench, response)
        assert (data.sign_count, data.flags) == (expected, Flags.UP | Flags.UV)
        assert set(response) == {1, 2, 3}
    assert bench.user.asked[-1] == PresenceRequest(Purpose.GET_ASSERTION, RP_ID, "alice")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"k1": None}, Status.MISSING_PARAMETER),
        ({"k2": None}, Status.MISSING_PARAMETER),
        ({"k1": b"rp"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": "x"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": bytes(16)}, Status.INVALID_LENGTH),
        ({"k3": {}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": [1]}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": [{"id": b"1"}]}, Status.MISSING_PARAMETER),
        ({"k3": [{"type": "public-key"}]}, Status.MISSING_PARAMETER),
        ({"k3": [descriptor(b"1")] * 17}, Status.LIMIT_EXCEEDED),
        ({"k3": [descriptor(b"1")]}, Status.NO_CREDENTIALS),
        ({"k3": [{"type": "other", "id": b"1"}]}, Status.NO_CREDENTIALS),
        ({"k4": 1}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k5": 1}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k5": {"up": 1}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k5": {"rk": True}}, Status.UNSUPPORTED_OPTION),
        ({"k5": {"rk": False}}, Status.UNSUPPORTED_OPTION),
        ({"k5": {"uv": True}, "k6": None}, Status.INVALID_OPTION),
        ({"k6": 1}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k6": bytes(32)}, Status.PIN_AUTH_INVALID),
        ({"k6": None}, Status.PUAT_REQUIRED),
        ({"k7": None}, Status.MISSING_PARAMETER),
        ({"k7": 0}, Status.INVALID_PARAMETER),
        ({"k7": b"2"}, Status.CBOR_UNEXPECTED_TYPE),
    ],
)
def test_parameters_wrong(bench: Bench, change: dict[str, object], status: Status) -> None:
    credential = bench.new_credential(rk=True)
    bench.user.asked.clear()
    token, before = bench.token(), counts(bench)
    assert bench.get(token, **change)[0] is status
    assert counts(bench) == before
    assert not bench.user.asked
    status, response = bench.get(token, k3=[], k5={"uv": True, "unknown": 5}, k99=1)  # control
    assert (status, response[1]["id"]) == (Status.SUCCESS, credential)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Presence.DENIED, Status.OPERATION_DENIED),
        (Presence.TIMEOUT, Status.OPERATION_DENIED),
        (Presence.CANCELLED, Status.KEEPALIVE_CANCEL),
    ],
)
def test_no_presence_no_signature_H4(bench: Bench, answer: Presence, status: Status) -> None:
    credential = bench.new_credential()
    before = counts(bench)
    bench.user.answer = answer
    assert bench.get(bench.token(), k3=[descriptor(credential)])[0] is status
    assert counts(bench) == before


def test_allow_list_takes_the_first_known(bench: Bench) -> None:
    first, second = bench.new_credential(), bench.new_credential()
    allow = [descriptor(b"unknown"), descriptor(second), descriptor(first)]
    status, response = bench.get(bench.token(), k3=allow)
    assert (status, response[1]["id"]) == (Status.SUCCESS, second)
    assert 5 not in response
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.NOT_ALLOWED


def test_credentials_of_another_relying_party_do_not_count(bench: Bench) -> None:
    credential = bench.new_credential(rk=True, rp_id="other.example")
    assert bench.get(bench.token())[0] is Status.NO_CREDENTIALS
    assert bench.get(bench.token(), k3=[descriptor(credential)])[0] is Status.NO_CREDENTIALS
    token = bench.token(rp_id="other.example")
    assert bench.get(token, k1="other.example")[0] is Status.SUCCESS


def test_non_discoverable_needs_the_allow_list(bench: Bench) -> None:
    credential = bench.new_credential(rk=False)
    assert bench.get(bench.token())[0] is Status.NO_CREDENTIALS
    assert bench.get(bench.token(), k3=[descriptor(credential)])[0] is Status.SUCCESS


def test_single_account_shows_only_the_user_id(bench: Bench) -> None:
    bench.new_credential(rk=True)
    status, response = bench.get(bench.token())
    assert status is Status.SUCCESS
    assert response[4] == {"id": USER["id"]}
    assert 5 not in response


def test_several_accounts_newest_first(bench: Bench) -> None:
    made = [bench.new_credential(rk=True, user=user) for user in (USER, BOB, CAROL)]
    status, response = bench.get(bench.token())
    assert (status, response[5]) == (Status.SUCCESS, 3)
    answers = [response, *(bench.expect(Command.GET_NEXT_ASSERTION) for _ in range(2))]
    assert [answer[1]["id"] for answer in answers] == list(reversed(made))
    assert [answer[4] for answer in answers] == [{"id": b"user 3", "name": "carol"}, BOB, USER]
    for answer in answers:
        assert verify(bench, answer).flags == Flags.UP | Flags.UV
    assert 5 not in answers[1]
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.NOT_ALLOWED
    assert not bench.vault.is_unlocked
    assert bench.user.asked[-1] == PresenceRequest(Purpose.GET_ASSERTION, RP_ID, "")


def test_names_are_private_without_user_verification(open_bench: Bench) -> None:
    for user in (USER, BOB):
        assert open_bench.make(k3=user, k7={"rk": True})[0] is Status.SUCCESS
    status, response = open_bench.get()
    assert status is Status.SUCCESS
    assert response[4] == {"id": BOB["id"]}
    assert open_bench.expect(Command.GET_NEXT_ASSERTION)[4] == {"id": USER["id"]}


def test_next_assertion_runs_out_after_30_seconds_each(bench: Bench) -> None:
    for user in (USER, BOB, CAROL):
        bench.new_credential(rk=True, user=user)
    assert bench.get(bench.token())[0] is Status.SUCCESS
    bench.clock.now += 29
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.SUCCESS
    bench.clock.now += 29
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.SUCCESS
    assert bench.get(bench.token())[0] is Status.SUCCESS
    bench.clock.now += 30.5
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.NOT_ALLOWED
    assert not bench.vault.is_unlocked


@pytest.mark.parametrize("gated", [True, False])
def test_next_assertion_ends_with_the_token_that_verified_the_user(gated: bool) -> None:
    """Section 6, stateful commands: the token does so after ten minutes, also where nobody asks for the vault's PIN."""
    bench = Bench(MemoryVault(pin_gated=gated))
    assert bench.set_pin() is Status.SUCCESS
    for user in (USER, BOB, CAROL):
        bench.new_credential(rk=True, user=user)
    token = bench.token()
    assert bench.get(token, k5={"up": False})[0] is Status.SUCCESS
    bench.clock.now += 590
    assert bench.get(token)[0] is Status.SUCCESS
    bench.clock.now += 5
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.SUCCESS  # control: the token is still there
    bench.clock.now += 10
    before = counts(bench)
    assert bench.command(Command.GET_NEXT_ASSERTION) == (Status.NOT_ALLOWED, None)
    assert counts(bench) == before


def test_next_assertion_without_a_token_outlives_that_of_another_command(open_bench: Bench) -> None:
    for user in (USER, BOB):
        assert open_bench.make(k3=user, k7={"rk": True})[0] is Status.SUCCESS
    assert open_bench.set_pin() is Status.SUCCESS
    open_bench.token()
    open_bench.clock.now += 20
    assert open_bench.get(k5={"up": False})[0] is Status.SUCCESS
    open_bench.clock.now += 20
    assert open_bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.SUCCESS


@pytest.mark.parametrize("between", [bytes([Command.GET_INFO]), b"\xff", b"", b"\x02garbage"])
def test_next_assertion_must_follow_directly(bench: Bench, between: bytes) -> None:
    for user in (USER, BOB):
        bench.new_credential(rk=True, user=user)
    assert bench.get(bench.token())[0] is Status.SUCCESS
    bench.send(between)
    expected = Status.SUCCESS if between == b"" else Status.NOT_ALLOWED
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is expected


def test_next_assertion_without_a_first(bench: Bench) -> None:
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.NOT_ALLOWED


def test_silent_assertion(bench: Bench) -> None:
    credential = bench.new_credential()
    bench.user.asked.clear()
    token = bench.token()
    silent = {"k3": [descriptor(credential)], "k5": {"up": False}}
    status, response = bench.get(token, **silent)
    assert status is Status.SUCCESS
    assert verify(bench, response).flags == Flags.UV
    assert not bench.user.asked
    assert bench.get(token, k3=[descriptor(credential)])[0] is Status.SUCCESS  # the token was not spent


def test_silent_probe_without_pin_on_gated_keys(bench: Bench) -> None:
    """Nobody learns of a key by its signature, because there is none; an unknown id is told at once."""
    credential = bench.new_credential()
    before = counts(bench)
    assert bench.get(k3=[descriptor(b"unknown")], k5={"up": False})[0] is Status.NO_CREDENTIALS
    assert bench.get(k3=[descriptor(credential)], k5={"up": False})[0] is Status.PUAT_REQUIRED
    assert counts(bench) == before


def test_ungated_keys_sign_without_user_verification(open_bench: Bench) -> None:
    assert open_bench.make(k7={"rk": True})[0] is Status.SUCCESS
    status, response = open_bench.get()
    assert status is Status.SUCCESS
    assert verify(open_bench, response).flags == Flags.UP
    status, response = open_bench.get(k5={"up": False})
    assert verify(open_bench, response).flags == 0


def test_declined_then_approved_with_one_token(bench: Bench) -> None:
    credential = bench.new_credential()
    token = bench.token(PIN)
    bench.user.answer = Presence.DENIED
    assert bench.get(token, k3=[descriptor(credential)])[0] is Status.OPERATION_DENIED
    bench.user.answer = Presence.GRANTED
    assert bench.get(token, k3=[descriptor(credential)])[0] is Status.SUCCESS
