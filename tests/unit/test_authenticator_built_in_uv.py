"""Built-in user verification: a vault that wants the PIN itself (CTAP 2.1 sections 6.5.5.3 and 6.5.5.7.3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.authenticator.engine import Command
from keyvouch_agent.authenticator.ports import PinEntry
from keyvouch_agent.authenticator.status import Status
from support.authenticators import (
    ACFG,
    BE,
    CM,
    GA,
    LBW,
    MC,
    Bench,
    ScriptedEntry,
    credential_id,
    descriptor,
)
from support.card_bench import card_bench, flags_of, made
from support.memory_vault import MemoryCard, MemoryVault


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return card_bench(protocol=request.param)


def options_of(bench: Bench) -> dict[str, bool]:
    return dict(bench.expect(Command.GET_INFO)[4])


# what it says of itself


def test_get_info_of_a_card() -> None:
    info = card_bench().expect(Command.GET_INFO)
    options = info[4]
    assert (options["uv"], options["uvAcfg"], options["pinUvAuthToken"], options["alwaysUv"]) == (True,) * 4
    assert not options.keys() & {"clientPin", "setMinPINLength", "bioEnroll"}
    assert (info[0x11], info[0x12]) == (1, 0x0004)
    assert not info.keys() & {0x0C, 0x0D, 0x10}
    assert "minPinLength" not in info[2]


def test_control_get_info_of_a_vault_that_takes_ctap_s_pin() -> None:
    info = Bench(MemoryVault()).expect(Command.GET_INFO)
    assert not info[4].keys() & {"uv", "uvAcfg"}
    assert info[4]["clientPin"] is False
    assert not info.keys() & {0x11, 0x12}
    assert "minPinLength" in info[2]


@pytest.mark.parametrize(
    ("card", "has_entry", "uv"),
    [
        (MemoryCard(), True, True),
        (MemoryCard(), False, False),
        (MemoryCard(pin=None), True, False),
        (MemoryCard(on_pad=True), True, True),
    ],
    ids=["set up", "nobody to ask", "no PIN", "pad"],
)
def test_uv_is_true_where_a_user_can_be_verified_now(card: MemoryCard, has_entry: bool, uv: bool) -> None:
    bench = card_bench(card)
    if not has_entry:
        bench.entry = None
    assert options_of(bench)["uv"] is uv


def test_a_vault_that_keeps_no_secrets_knows_no_extensions_that_need_them() -> None:
    bench = card_bench(MemoryCard(keeps_secrets=False))
    info = bench.expect(Command.GET_INFO)
    assert info[2] == ["credProtect"]
    assert "largeBlobs" not in info[4]
    assert 0x0F not in info
    extensions = {"credBlob": b"b", "hmac-secret": True, "largeBlobKey": True, "minPinLength": True, "credProtect": 2}
    status, response = bench.make(bench.uv_token(), k6=extensions, k7={"rk": True})
    assert status is Status.SUCCESS
    assert AuthenticatorData(response[2]).extensions == {"credProtect": 2}
    stored = bench.stored(credential_id(response))
    assert (stored.has_cred_blob, stored.has_hmac_secret, stored.has_large_blob_key) == (False, False, False)
    salts, _ = bench.hmac_input(bytes(32))
    asked = {"credBlob": True, "hmac-secret": salts, "largeBlobKey": True}
    status, response = bench.get(bench.uv_token(), k4=asked)
    assert status is Status.SUCCESS
    assert AuthenticatorData(response[2]).extensions is None


def test_control_a_card_that_keeps_secrets() -> None:
    bench = card_bench()
    status, response = bench.make(bench.uv_token(), k6={"credBlob": b"b", "hmac-secret": True})
    assert status is Status.SUCCESS
    assert AuthenticatorData(response[2]).extensions == {"credBlob": True, "hmac-secret": True}


# clientPIN without clientPin


@pytest.mark.parametrize("subcommand", [0x01, 0x08, 0x0A], ids=lambda number: f"0x{number:02x}")
def test_subcommands_that_are_not_there(bench: Bench, subcommand: int) -> None:
    assert bench.pin(subcommand)[0] is Status.INVALID_SUBCOMMAND


def test_ctap_s_pin_can_be_neither_set_nor_changed_nor_traded_for_a_token(bench: Bench) -> None:
    before = bench.vault.snapshot
    assert bench.set_pin() is Status.INVALID_SUBCOMMAND
    assert bench.change_pin("123456", "654321") is Status.INVALID_SUBCOMMAND
    assert bench.ask_token(permissions=None)[0] is Status.INVALID_SUBCOMMAND
    assert bench.ask_token()[0] is Status.INVALID_SUBCOMMAND
    assert (bench.vault.snapshot, bench.vault.retries) == (before, 3)
    assert bench.uv_token()  # control


def test_control_built_in_uv_is_not_there_for_a_vault_that_takes_ctap_s_pin() -> None:
    bench = Bench(MemoryVault())
    bench.entry = ScriptedEntry()
    assert bench.set_pin() is Status.SUCCESS
    assert bench.pin(0x07)[0] is Status.INVALID_SUBCOMMAND
    assert bench.ask_uv_token()[0] is Status.INVALID_SUBCOMMAND
    assert bench.make(k7={"uv": True})[0] is Status.INVALID_OPTION
    assert bench.get(k5={"uv": True})[0] is Status.INVALID_OPTION
    assert not bench.entry.asked


@pytest.mark.parametrize(
    ("card", "left"),
    [(MemoryCard(), 3), (MemoryCard(tells=False), 1), (MemoryCard(pin=None), 3)],
    ids=["told", "not told", "no PIN"],
)
def test_uv_retries(card: MemoryCard, left: int) -> None:
    assert card_bench(card).expect(Command.CLIENT_PIN, {2: 0x07}) == {5: left}


# getPinUvAuthTokenUsingUvWithPermissions


def test_token_makes_and_uses_a_credential(bench: Bench) -> None:
    credential = made(bench)
    status, response = bench.get(bench.uv_token(), k3=[descriptor(credential)])
    assert status is Status.SUCCESS
    assert flags_of(response) == Flags.UP | Flags.UV
    assert bench.entry is not None
    assert bench.entry.asked == [3, 3]
    assert len(bench.user.asked) == 2  # a typed PIN is no presence
    assert not bench.vault.is_unlocked


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"k3": None}, Status.MISSING_PARAMETER),
        ({"k9": None}, Status.MISSING_PARAMETER),
        ({"k10": None}, Status.MISSING_PARAMETER),
        ({"k1": 3}, Status.INVALID_PARAMETER),
        ({"k1": None}, Status.MISSING_PARAMETER),
        ({"k9": 0}, Status.INVALID_PARAMETER),
        ({"k9": -1}, Status.INVALID_PARAMETER),
        ({"k9": 0x40}, Status.INVALID_PARAMETER),
        ({"k9": BE}, Status.UNAUTHORIZED_PERMISSION),
        ({"k9": MC | BE}, Status.UNAUTHORIZED_PERMISSION),
        ({"k9": "mc"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k10": 1}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": {1: 2}}, Status.INVALID_PARAMETER),
    ],
    ids=str,
)
def test_a_malformed_request_asks_nobody(bench: Bench, change: dict[str, object], status: Status) -> None:
    assert bench.entry is not None
    assert bench.ask_uv_token(**change)[0] is status
    assert not bench.entry.asked
    assert bench.vault.retries == 3
    assert bench.uv_token()  # control


@pytest.mark.parametrize("permission", [MC, GA, CM, LBW, ACFG])
def test_each_permission_is_given(bench: Bench, permission: int) -> None:
    assert bench.uv_token(permission)


def test_large_blobs_need_room_for_them() -> None:
    bench = card_bench(MemoryCard(keeps_secrets=False))
    assert bench.ask_uv_token(LBW)[0] is Status.UNAUTHORIZED_PERMISSION


Change = Callable[[Bench], object]


def _change(**attributes: object) -> Change:
    def apply(bench: Bench) -> None:
        for name, value in attributes.items():
            setattr(bench.vault, name, value)

    return apply


def _types(pin: object) -> Change:
    return lambda bench: setattr(bench.entry, "pin", pin)


def _failing(reason: Reason, **more: object) -> Change:
    return lambda bench: bench.vault.fail_next.update(verify_user=DeviceError(reason, "No.", **more))


FAILURES = {
    "nobody to ask": (lambda b: setattr(b, "entry", None), Status.NOT_ALLOWED, Status.OPERATION_DENIED),
    "no PIN set": (_change(pin=None), Status.NOT_ALLOWED, Status.OPERATION_DENIED),
    "PIN lost meanwhile": (_failing(Reason.PIN_NOT_SET), Status.NOT_ALLOWED, Status.NOT_ALLOWED),
    "wrong": (_types("000000"), Status.UV_INVALID, Status.OPERATION_DENIED),
    "wrong, tries not told": (
        lambda b: (_change(tells=False)(b), _types("000000")(b)),
        Status.UV_INVALID,
        Status.OPERATION_DENIED,
    ),
    "wrong for the last time": (
        lambda b: (_change(retries=1)(b), _types("000000")(b)),
        Status.UV_BLOCKED,
        Status.PIN_BLOCKED,
    ),
    "wrong with none left": (
        _failing(Reason.PIN_WRONG, retries_left=0),
        Status.UV_BLOCKED,
        Status.PIN_BLOCKED,
    ),
    "blocked before": (_change(retries=0), Status.UV_BLOCKED, Status.PIN_BLOCKED),
    "blocked, tries not told": (_change(retries=0, tells=False), Status.UV_BLOCKED, Status.PIN_BLOCKED),
    "declined": (_types(None), Status.OPERATION_DENIED, Status.OPERATION_DENIED),
    "nobody answers": (_types(TimeoutError), Status.USER_ACTION_TIMEOUT, Status.USER_ACTION_TIMEOUT),
    "nobody types on the pad": (
        _change(on_pad=True, typed=None),
        Status.USER_ACTION_TIMEOUT,
        Status.USER_ACTION_TIMEOUT,
    ),
    "card fails": (_failing(Reason.AUTHENTICATOR_REMOVED), Status.OTHER, Status.OTHER),
    "card keeps its last try": (_failing(Reason.PIN_LAST_TRY, retries_left=1), Status.OTHER, Status.OTHER),
}


@pytest.mark.parametrize(("change", "status", "_other"), FAILURES.values(), ids=FAILURES)
def test_no_token_for_who_is_not_verified(bench: Bench, change: Change, status: Status, _other: Status) -> None:
    change(bench)
    before = bench.vault.snapshot
    assert bench.ask_uv_token()[0] is status
    assert bench.vault.snapshot == before
    assert not bench.vault.is_unlocked


@pytest.mark.parametrize(("change", "_other", "status"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("pin_gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("command", ["make", "get"])
def test_no_credential_and_no_assertion_either(
    command: str, pin_gated: bool, change: Change, _other: Status, status: Status
) -> None:
    bench = card_bench(MemoryCard(pin_gated=pin_gated))
    credential = made(bench)
    change(bench)
    before, asked = bench.vault.snapshot, len(bench.user.asked)
    if command == "make":
        answer, _ = bench.make(k7={"uv": True})
    else:
        answer, _ = bench.get(k3=[descriptor(credential)], k5={"uv": True})
    not_set_up = bench.entry is None or bench.vault.pin is None
    assert answer is (Status.INVALID_OPTION if not_set_up else status)
    assert (bench.vault.snapshot, len(bench.user.asked)) == (before, asked)
    assert not bench.vault.is_unlocked


@pytest.mark.parametrize("asks_all_the_same", [False, True])
def test_nobody_is_asked_for_the_pin_of_a_blocked_card(bench: Bench, asks_all_the_same: bool) -> None:
    class Careless(MemoryCard):
        def verify_user(self, entry: PinEntry) -> None:
            self._typed(entry)

    bench = card_bench(Careless() if asks_all_the_same else MemoryCard(), protocol=bench.protocol.VERSION)
    bench.vault.retries = 0
    assert bench.entry is not None
    assert bench.ask_uv_token()[0] is Status.UV_BLOCKED
    assert bench.make(k7={"uv": True})[0] is Status.PIN_BLOCKED
    assert not bench.entry.asked


@pytest.mark.parametrize("way", ["before", "while asked", "after"])
def test_cancelled(bench: Bench, way: str) -> None:
    """Whatever was typed: no token, no key, locked."""
    made(bench)
    state = {"cancelled": way == "before"}

    class Hasty(ScriptedEntry):
        def ask(self, retries_left: int | None) -> str | None:
            state["cancelled"] = way == "while asked"
            return super().ask(retries_left)

    def after() -> None:
        state["cancelled"] = True

    bench.entry = Hasty()
    bench.vault.while_typing = after if way == "after" else lambda: None
    before = bench.vault.snapshot
    parameters = bench.make_parameters(k7={"uv": True})
    status, _ = bench.send(b"\x01" + cbor.encode(parameters), lambda: state["cancelled"])
    assert status is Status.KEEPALIVE_CANCEL
    assert bench.vault.snapshot == before
    assert not bench.vault.is_unlocked
    assert bench.vault.retries == 3
    assert bool(bench.entry.asked) is (way != "before")


def test_pad_is_told_of_and_nobody_is_asked() -> None:
    bench = card_bench(MemoryCard(on_pad=True))
    assert bench.uv_token()
    assert bench.entry is not None
    assert (bench.entry.asked, bench.entry.on_pad_told) == ([], [3])


# the words behind a status


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong", Reason.PIN_WRONG),
        ("wrong for the last time", Reason.PIN_BLOCKED),
        ("blocked, tries not told", Reason.PIN_BLOCKED),
        ("declined", Reason.USER_CANCELLED),
        ("nobody types on the pad", Reason.USER_TIMEOUT),
        ("card fails", Reason.AUTHENTICATOR_REMOVED),
        ("card keeps its last try", Reason.PIN_LAST_TRY),
        ("nobody answers", None),
        ("blocked before", Reason.PIN_BLOCKED),
    ],
)
def test_what_the_vault_said_is_kept(bench: Bench, name: str, reason: Reason | None) -> None:
    FAILURES[name][0](bench)
    bench.ask_uv_token()
    failure = bench.authenticator.failure
    assert (failure.reason if failure else None) is reason


@pytest.mark.parametrize("command", [b"\x04", b"\x01", b"\x06"])
def test_card_that_does_not_even_say_how_it_stands(bench: Bench, command: bytes) -> None:
    gone = DeviceError(Reason.AUTHENTICATOR_REMOVED, "Gone.", fix="Put it back.")
    bench.agree()
    bench.vault.fail_next["uv_state"] = gone
    given = {b"\x04": lambda: bench.command(Command.GET_INFO), b"\x01": bench.make, b"\x06": lambda: bench.pin(0x07)}
    assert given[command]()[0] is Status.OTHER
    assert bench.authenticator.failure is gone


def test_state_is_told_without_a_prompt() -> None:
    card = MemoryCard(on_pad=True)
    bench = card_bench(card)
    assert bench.authenticator.uv_state() == card.uv_state()
    assert bench.authenticator.pin_state().is_set is False
    assert Bench(MemoryVault()).authenticator.uv_state() is None
