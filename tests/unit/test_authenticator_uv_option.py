"""The option "uv" and the lock: for how long a card is open that has verified its user itself."""

from __future__ import annotations

import pytest

from keyvouch.webauthn import Flags
from keyvouch_agent.authenticator.engine import AuthenticatorOptions, Command
from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.authenticator.status import Status
from support.authenticators import ACFG, CM, LBW, Bench, ScriptedEntry, blob_array, descriptor
from support.card_bench import card_bench, flags_of, made
from support.memory_vault import MemoryCard

BOB = {"id": b"user 2", "name": "bob"}


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return card_bench(protocol=request.param)


def options_of(bench: Bench) -> dict[str, bool]:
    return dict(bench.expect(Command.GET_INFO)[4])


# tokens and the lock


def test_another_verification_gives_up_the_token_before_it(bench: Bench) -> None:
    first = bench.uv_token()
    second = bench.uv_token()
    assert bench.make(first)[0] is Status.PIN_AUTH_INVALID
    assert bench.make(second)[0] is Status.SUCCESS
    third = bench.uv_token()
    assert bench.entry is not None
    bench.entry.pin = "000000"
    assert bench.ask_uv_token()[0] is Status.UV_INVALID
    assert bench.make(third)[0] is Status.PIN_AUTH_INVALID
    assert not bench.vault.is_unlocked


@pytest.mark.parametrize(
    ("seconds", "use", "is_open"),
    [(30, False, True), (31, False, False), (600, True, True), (601, True, False)],
)
def test_token_ends_in_time_and_locks(bench: Bench, seconds: int, use: bool, is_open: bool) -> None:
    token = bench.uv_token(CM, None)
    if use:
        assert bench.manage(0x01, None, token)[0] is Status.SUCCESS
    bench.clock.now += seconds
    bench.authenticator.tick()
    assert bench.vault.is_unlocked is is_open
    assert (bench.manage(0x01, None, token)[0] is Status.SUCCESS) is is_open


@pytest.mark.parametrize("end", ["power_cycle", "close_session"])
def test_end_of_the_session_locks(bench: Bench, end: str) -> None:
    token = bench.uv_token()
    assert bench.vault.is_unlocked
    getattr(bench.authenticator, end)()
    assert not bench.vault.is_unlocked
    assert bench.make(token)[0] is Status.PIN_AUTH_INVALID


def test_nothing_is_locked_that_was_not_open(bench: Bench) -> None:
    made(bench)
    locks = bench.vault.locks
    for _ in range(3):
        bench.authenticator.tick()
        bench.expect(Command.GET_INFO)
    assert bench.vault.locks <= locks + 1


def test_token_manages_credentials_large_blobs_and_settings() -> None:
    bench = card_bench(MemoryCard(pin_gated=False))
    made(bench, rk=True)
    assert bench.manage(0x01, None, bench.uv_token(CM, None))[1][1] == 1
    assert bench.write_blobs(blob_array(), 0, 17, bench.uv_token(LBW, None))[0] is Status.SUCCESS
    assert bench.configure(0x02, None, bench.uv_token(ACFG, None))[0] is Status.SUCCESS
    assert options_of(bench)["alwaysUv"] is True
    assert bench.configure(0x02)[0] is Status.PUAT_REQUIRED
    assert bench.write_blobs(blob_array(), 0, 17)[0] is Status.PUAT_REQUIRED


def test_pin_length_is_the_card_s_own_business(bench: Bench) -> None:
    token = bench.uv_token(ACFG, None)
    before = bench.vault.snapshot
    assert bench.configure(0x03, {1: 8}, token)[0] is Status.INVALID_PARAMETER
    assert bench.vault.snapshot == before
    assert bench.configure(0x02, None, token)[0] is Status.OPERATION_DENIED  # control: it is known, and gated


# the "uv" option, and what stands in for it


def test_uv_option_verifies_for_one_command(bench: Bench) -> None:
    status, response = bench.make(k7={"uv": True, "rk": True})
    assert (status, flags_of(response)) == (Status.SUCCESS, Flags.UP | Flags.UV | Flags.AT)
    assert not bench.vault.is_unlocked
    status, response = bench.get(k5={"uv": True})
    assert (status, flags_of(response)) == (Status.SUCCESS, Flags.UP | Flags.UV)
    assert not bench.vault.is_unlocked
    assert bench.entry is not None
    assert len(bench.entry.asked) == 2


def test_keys_behind_the_pin_verify_without_being_told(bench: Bench) -> None:
    """Section 6.1.2 step 6 and section 6.2.2 step 5: "uv" counts as true where it is always required."""
    status, response = bench.make(k7={"rk": True})
    assert (status, flags_of(response)) == (Status.SUCCESS, Flags.UP | Flags.UV | Flags.AT)
    status, response = bench.get()
    assert (status, flags_of(response)) == (Status.SUCCESS, Flags.UP | Flags.UV)
    bench.entry = None
    assert bench.make()[0] is Status.OPERATION_DENIED
    assert bench.get()[0] is Status.OPERATION_DENIED


def test_pin_uv_auth_param_makes_the_option_count_as_false(bench: Bench) -> None:
    assert bench.entry is not None
    token = bench.uv_token()
    assert bench.make(token, k7={"uv": True})[0] is Status.SUCCESS
    assert len(bench.entry.asked) == 1


def test_silent_assertion_of_a_gated_key_asks_nobody(bench: Bench) -> None:
    credential = made(bench)
    assert bench.entry is not None
    bench.entry.asked.clear()
    assert bench.get(k3=[descriptor(credential)], k5={"up": False})[0] is Status.PUAT_REQUIRED
    assert not bench.entry.asked
    status, response = bench.get(bench.uv_token(), k3=[descriptor(credential)], k5={"up": False})  # control
    assert (status, flags_of(response)) == (Status.SUCCESS, Flags.UV)


def test_verified_without_presence(bench: Bench) -> None:
    credential = made(bench)
    bench.user.asked.clear()
    status, response = bench.get(k3=[descriptor(credential)], k5={"up": False, "uv": True})
    assert (status, flags_of(response)) == (Status.SUCCESS, Flags.UV)
    assert not bench.user.asked
    assert not bench.vault.is_unlocked


@pytest.mark.parametrize("answer", [Presence.DENIED, Presence.TIMEOUT, Presence.CANCELLED])
def test_a_right_pin_is_no_presence(bench: Bench, answer: Presence) -> None:
    bench.user.answer = answer
    before = bench.vault.snapshot
    assert bench.make(k7={"uv": True})[0] in (Status.OPERATION_DENIED, Status.KEEPALIVE_CANCEL)
    assert bench.vault.snapshot == before
    assert not bench.vault.is_unlocked


def test_next_assertions_go_on_until_their_time_is_over(bench: Bench) -> None:
    made(bench, rk=True)
    made(bench, rk=True, user=BOB)
    status, response = bench.get(k5={"uv": True})
    assert (status, response[5]) == (Status.SUCCESS, 2)
    assert bench.vault.is_unlocked
    status, response = bench.command(Command.GET_NEXT_ASSERTION)
    assert (status, flags_of(response)) == (Status.SUCCESS, Flags.UP | Flags.UV)
    assert not bench.vault.is_unlocked
    bench.get(k5={"uv": True})
    bench.clock.now += 31
    bench.authenticator.tick()
    assert not bench.vault.is_unlocked
    assert bench.command(Command.GET_NEXT_ASSERTION)[0] is Status.NOT_ALLOWED


@pytest.mark.parametrize("other", [b"\x04", b"\x0b", b"\x01\xa0", b"\x99"])
def test_another_command_locks(bench: Bench, other: bytes) -> None:
    made(bench, rk=True)
    made(bench, rk=True, user=BOB)
    bench.get(k5={"uv": True})
    assert bench.vault.is_unlocked
    bench.send(other)
    assert not bench.vault.is_unlocked


def test_ungated_keys_ask_for_verification_as_others_do() -> None:
    bench = card_bench(MemoryCard(pin_gated=False))
    assert bench.make()[0] is Status.OPERATION_DENIED  # sections 6.1.2 step 8; there is no clientPin
    credential = made(bench)
    status, response = bench.get(k3=[descriptor(credential)])
    assert (status, flags_of(response)) == (Status.SUCCESS, Flags.UP)
    assert bench.entry is not None
    assert len(bench.entry.asked) == 1


@pytest.mark.parametrize(("rk", "status"), [(False, Status.SUCCESS), (True, Status.OPERATION_DENIED)])
def test_make_cred_uv_not_required(rk: bool, status: Status) -> None:
    bench = Bench(MemoryCard(pin_gated=False), options=AuthenticatorOptions(make_cred_uv_not_required=True))
    bench.entry = ScriptedEntry()
    assert bench.make(k7={"rk": rk})[0] is status
    assert not bench.entry.asked


def test_ungated_card_without_a_pin_is_protected_by_nothing() -> None:
    bench = card_bench(MemoryCard(pin=None, pin_gated=False))
    status, response = bench.make()
    assert (status, flags_of(response)) == (Status.SUCCESS, Flags.UP | Flags.AT)
    assert bench.configure(0x02)[0] is Status.SUCCESS
    assert bench.make()[0] is Status.OPERATION_DENIED


def test_selection_probe_says_that_ctap_s_pin_is_not_set(bench: Bench) -> None:
    assert bench.make(k8=b"", k9=bench.protocol.VERSION)[0] is Status.PIN_NOT_SET
    assert bench.get(k6=b"", k7=bench.protocol.VERSION)[0] is Status.PIN_NOT_SET
    assert bench.entry is not None
    assert not bench.entry.asked


def test_reset_leaves_the_card_s_pin_alone(bench: Bench) -> None:
    credential = made(bench)
    assert bench.command(Command.RESET)[0] is Status.SUCCESS
    assert bench.get(bench.uv_token(), k3=[descriptor(credential)])[0] is Status.NO_CREDENTIALS
