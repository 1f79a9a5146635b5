"""authenticatorClientPIN: set, change, verify, tokens and their life time, retries, both protocols."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.engine import AuthenticatorOptions, Command
from keyvouch_agent.authenticator.hmac_secret import Salts
from keyvouch_agent.authenticator.parameters import parse_client_pin
from keyvouch_agent.authenticator.pin_protocol import PinProtocolOne
from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.vault import CredentialSecrets
from keyvouch_agent.system import SystemEntropy
from support.authenticators import (
    ACFG,
    BE,
    CLIENT_DATA_HASH,
    CM,
    GA,
    LBW,
    MC,
    PIN,
    RP_ID,
    Bench,
    blob_array,
    descriptor,
)
from support.memory_vault import MemoryVault

WRONG = "000000"


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(MemoryVault(), protocol=request.param)


@pytest.fixture
def ready(bench: Bench) -> Bench:
    assert bench.set_pin() is Status.SUCCESS
    return bench


def retries(bench: Bench) -> tuple[int, bool]:
    status, response = bench.pin(0x01)
    assert status is Status.SUCCESS
    return response[3], response[4]


def test_set_pin_then_token(bench: Bench) -> None:
    assert bench.expect(Command.GET_INFO)[4]["clientPin"] is False
    assert bench.set_pin() is Status.SUCCESS
    assert bench.expect(Command.GET_INFO)[4]["clientPin"] is True
    assert len(bench.token()) == 32


def test_set_pin_twice_is_refused(ready: Bench) -> None:
    assert ready.set_pin("another") is Status.PIN_AUTH_INVALID
    assert ready.token(PIN)


@pytest.mark.parametrize(
    ("pin", "status"),
    [
        ("123", Status.PIN_POLICY_VIOLATION),
        ("äöü", Status.PIN_POLICY_VIOLATION),
        ("", Status.PIN_POLICY_VIOLATION),
        (b"\xff\xfe\xfd\xfc\xfb", Status.PIN_POLICY_VIOLATION),
        (b"1" * 64, Status.PIN_POLICY_VIOLATION),
        (b"1" * 80, Status.INVALID_PARAMETER),
        ("1234", Status.SUCCESS),
        ("äöüß", Status.SUCCESS),
        (b"1" * 63, Status.SUCCESS),
    ],
)
def test_new_pin_policy(bench: Bench, pin: str | bytes, status: Status) -> None:
    assert bench.set_pin(pin) is status
    assert bench.vault.pin_state().is_set is (status is Status.SUCCESS)


def test_min_pin_length_counts_code_points_and_is_shown() -> None:
    bench = Bench(MemoryVault(), options=AuthenticatorOptions(min_pin_length=6))
    assert bench.expect(Command.GET_INFO)[0x0D] == 6
    assert bench.set_pin("äöüßé") is Status.PIN_POLICY_VIOLATION
    assert bench.set_pin("äöüßéñ") is Status.SUCCESS


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"k1": None}, Status.MISSING_PARAMETER),
        ({"k3": None}, Status.MISSING_PARAMETER),
        ({"k4": None}, Status.MISSING_PARAMETER),
        ({"k5": None}, Status.MISSING_PARAMETER),
        ({"k1": 3}, Status.INVALID_PARAMETER),
        ({"k1": "2"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k1": True}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": []}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": {}}, Status.INVALID_PARAMETER),
        ({"k4": b"\0" * 16}, Status.PIN_AUTH_INVALID),
        ({"k4": b""}, Status.PIN_AUTH_INVALID),
        ({"k5": bytes(80)}, Status.PIN_AUTH_INVALID),
        ({"k5": 5}, Status.CBOR_UNEXPECTED_TYPE),
    ],
)
def test_set_pin_parameters(bench: Bench, change: dict[str, object], status: Status) -> None:
    assert bench.set_pin(**change) is status
    assert not bench.vault.pin_state().is_set
    assert bench.set_pin() is Status.SUCCESS  # control


def test_subcommands(bench: Bench) -> None:
    assert bench.command(Command.CLIENT_PIN, {1: 2})[0] is Status.MISSING_PARAMETER
    assert bench.command(Command.CLIENT_PIN, {2: "1"})[0] is Status.CBOR_UNEXPECTED_TYPE
    for unsupported in (0x00, 0x06, 0x07, 0x08, 0x0A, -1, 2**63):  # 0x06 and 0x07 are for built-in verification
        assert bench.pin(unsupported)[0] is Status.INVALID_SUBCOMMAND
    assert bench.command(Command.CLIENT_PIN, {2: 1})[0] is Status.PIN_NOT_SET
    assert bench.command(Command.CLIENT_PIN, {2: 2})[0] is Status.MISSING_PARAMETER
    assert bench.command(Command.CLIENT_PIN, {1: 3, 2: 2})[0] is Status.INVALID_PARAMETER
    key = bench.pin(0x02)[1][1]
    assert set(key) == {1, 3, -1, -2, -3}
    assert (key[1], key[3], key[-1]) == (2, -25, 1)
    bench.set_pin()
    assert bench.command(Command.CLIENT_PIN, {2: 1}) == (Status.SUCCESS, {3: 8, 4: False})


def test_change_pin(ready: Bench) -> None:
    assert ready.change_pin(PIN, "new pin") is Status.SUCCESS
    assert ready.ask_token(PIN)[0] is Status.PIN_INVALID
    assert ready.token("new pin")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"k1": None}, Status.MISSING_PARAMETER),
        ({"k3": None}, Status.MISSING_PARAMETER),
        ({"k4": None}, Status.MISSING_PARAMETER),
        ({"k5": None}, Status.MISSING_PARAMETER),
        ({"k6": None}, Status.MISSING_PARAMETER),
        ({"k1": 9}, Status.INVALID_PARAMETER),
        ({"k4": b"\1" * 32}, Status.PIN_AUTH_INVALID),
        ({"k6": b"\1" * 16}, Status.PIN_AUTH_INVALID),
    ],
)
def test_change_pin_parameters(ready: Bench, change: dict[str, object], status: Status) -> None:
    assert ready.change_pin(PIN, "new pin", **change) is status
    assert retries(ready) == (8, False)
    assert ready.token(PIN)


def test_change_pin_checks_the_old_pin_before_the_new_one(ready: Bench) -> None:
    assert ready.change_pin(WRONG, "1") is Status.PIN_INVALID
    assert retries(ready) == (7, False)
    assert ready.change_pin(PIN, "1") is Status.PIN_POLICY_VIOLATION
    assert retries(ready) == (8, False)
    assert not ready.vault.is_unlocked
    assert ready.token(PIN)


def test_change_pin_ends_a_token(ready: Bench) -> None:
    token = ready.token()
    assert ready.change_pin(PIN, "new pin") is Status.SUCCESS
    assert ready.make(token)[0] is Status.PIN_AUTH_INVALID
    assert ready.make(ready.token("new pin"))[0] is Status.SUCCESS  # control


def test_pin_wrong_three_times_in_a_power_cycle_H3(ready: Bench) -> None:
    assert ready.ask_token(WRONG)[0] is Status.PIN_INVALID
    assert ready.ask_token(WRONG)[0] is Status.PIN_INVALID
    assert ready.ask_token(WRONG)[0] is Status.PIN_AUTH_BLOCKED
    assert retries(ready) == (5, True)
    assert ready.ask_token(PIN)[0] is Status.PIN_AUTH_BLOCKED
    assert ready.change_pin(PIN, "new pin") is Status.PIN_AUTH_BLOCKED
    assert retries(ready) == (5, True)
    ready.authenticator.power_cycle()
    assert retries(ready) == (5, False)
    assert ready.token(PIN)
    assert retries(ready) == (8, False)


def test_pin_wrong_in_a_row_is_forgotten_after_a_right_one(ready: Bench) -> None:
    for _ in range(4):
        assert ready.ask_token(WRONG)[0] is Status.PIN_INVALID
        assert ready.ask_token(WRONG)[0] is Status.PIN_INVALID
        assert ready.token(PIN)


def test_pin_blocked_for_good_after_eight_H3(ready: Bench) -> None:
    seen = []
    for attempt in range(8):
        if attempt % 3 == 0:
            ready.authenticator.power_cycle()
        seen.append(ready.ask_token(WRONG)[0])
    invalid, cycle = Status.PIN_INVALID, Status.PIN_AUTH_BLOCKED
    assert seen == [invalid, invalid, cycle, invalid, invalid, cycle, invalid, Status.PIN_BLOCKED]
    ready.authenticator.power_cycle()
    assert ready.ask_token(PIN)[0] is Status.PIN_BLOCKED
    assert ready.change_pin(PIN, "new pin") is Status.PIN_BLOCKED
    assert ready.set_pin("new pin") is Status.PIN_AUTH_INVALID
    assert retries(ready) == (0, False)
    assert ready.command(Command.RESET)[0] is Status.SUCCESS
    assert ready.set_pin("new pin") is Status.SUCCESS
    assert ready.token("new pin")


def test_wrong_pin_ends_the_key_agreement(ready: Bench) -> None:
    before = ready.pin(0x02)[1]
    assert ready.pin(0x02)[1] == before
    ready.ask_token(WRONG)
    assert ready.pin(0x02)[1] != before


def test_wrong_pin_leaves_the_token_in_use(ready: Bench) -> None:
    token = ready.token()
    assert ready.ask_token(WRONG)[0] is Status.PIN_INVALID
    assert ready.make(token)[0] is Status.SUCCESS


def test_new_token_ends_the_old_one(ready: Bench) -> None:
    old, new = ready.token(), ready.token()
    assert ready.make(old)[0] is Status.PIN_AUTH_INVALID
    assert ready.make(new)[0] is Status.SUCCESS


def test_token_without_pin(bench: Bench) -> None:
    assert bench.ask_token()[0] is Status.PIN_NOT_SET
    assert bench.change_pin(PIN, "new pin") is Status.PIN_NOT_SET


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"k1": None}, Status.MISSING_PARAMETER),
        ({"k3": None}, Status.MISSING_PARAMETER),
        ({"k6": None}, Status.MISSING_PARAMETER),
        ({"k9": None}, Status.MISSING_PARAMETER),
        ({"k10": None}, Status.MISSING_PARAMETER),
        ({"k1": 0}, Status.INVALID_PARAMETER),
        ({"k3": {1: 2}}, Status.INVALID_PARAMETER),
        ({"k9": 0}, Status.INVALID_PARAMETER),
        ({"k9": 0x40}, Status.INVALID_PARAMETER),
        ({"k9": -1}, Status.INVALID_PARAMETER),
        ({"k9": "1"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k10": b"x"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k9": BE}, Status.UNAUTHORIZED_PERMISSION),
        ({"k9": BE | MC}, Status.UNAUTHORIZED_PERMISSION),
        ({"k9": MC | CM, "k10": None}, Status.MISSING_PARAMETER),
        ({"k9": 0x80 | GA}, Status.SUCCESS),
        ({"k9": CM | LBW | ACFG, "k10": None}, Status.SUCCESS),
        ({"k9": CM}, Status.SUCCESS),
    ],
)
def test_token_with_permissions_parameters(ready: Bench, change: dict[str, object], status: Status) -> None:
    assert ready.ask_token(**change)[0] is status
    assert retries(ready) == (8, False)


@pytest.mark.parametrize("pin_hash_enc", [b"\0" * 64, b"\0" * 15, b""])
def test_what_is_no_encrypted_hash_counts_as_a_wrong_pin(ready: Bench, pin_hash_enc: bytes) -> None:
    before = ready.pin(0x02)[1]
    assert ready.ask_token(k6=pin_hash_enc)[0] is Status.PIN_INVALID
    assert retries(ready) == (7, False)
    assert ready.pin(0x02)[1] != before
    assert ready.token(PIN)


def test_no_permission_for_large_blobs_that_are_not_kept() -> None:
    bench = Bench(MemoryVault(max_large_blobs=0))
    bench.set_pin()
    assert bench.ask_token(permissions=LBW)[0] is Status.UNAUTHORIZED_PERMISSION
    assert bench.ask_token(permissions=CM)[0] is Status.SUCCESS


def test_forced_change_gives_no_token_before_another_pin(ready: Bench) -> None:
    assert ready.configure(3, {3: True}, ready.token(permissions=ACFG, rp_id=None))[0] is Status.SUCCESS
    assert ready.expect(Command.GET_INFO)[0x0C] is True
    assert ready.ask_token(PIN, None)[0] is Status.PIN_INVALID
    assert ready.ask_token(PIN)[0] is Status.PIN_POLICY_VIOLATION
    assert not ready.vault.is_unlocked
    assert retries(ready) == (8, False)
    assert ready.change_pin(PIN, PIN) is Status.PIN_POLICY_VIOLATION
    assert ready.change_pin(PIN, "new pin") is Status.SUCCESS
    assert ready.expect(Command.GET_INFO)[0x0C] is False
    assert ready.token("new pin")
    assert ready.change_pin("new pin", "new pin") is Status.SUCCESS  # not forced: the same one will do


def test_lbw_outlives_user_presence_and_nothing_else_does(ready: Bench) -> None:
    token = ready.token(permissions=MC | GA | LBW | CM)
    assert ready.make(token)[0] is Status.SUCCESS
    assert not ready.vault.is_unlocked
    array = blob_array()
    assert ready.write_blobs(array, 0, len(array), token)[0] is Status.SUCCESS
    assert ready.make(token)[0] is Status.PIN_AUTH_INVALID
    assert ready.manage(1, None, token)[0] is Status.PIN_AUTH_INVALID
    assert ready.write_blobs(array, 0, len(array), token)[0] is Status.SUCCESS


@pytest.mark.parametrize(("permission", "open_after"), [(LBW, False), (ACFG, False), (CM, True)])
def test_vault_is_unlocked_only_for_what_needs_its_keys(ready: Bench, permission: int, open_after: bool) -> None:
    ready.token(permissions=permission, rp_id=None)
    assert ready.vault.is_unlocked is open_after


@pytest.mark.parametrize("change", [{"k9": MC}, {"k10": RP_ID}])
def test_old_token_command_takes_no_permissions(ready: Bench, change: dict[str, object]) -> None:
    assert ready.ask_token(PIN, None, None, **change)[0] is Status.INVALID_PARAMETER
    assert ready.ask_token(PIN, None)[0] is Status.SUCCESS


def test_permission_and_rp_binding(ready: Bench) -> None:
    credential = ready.new_credential()
    allow = [descriptor(credential)]
    assert ready.make(ready.token(permissions=GA))[0] is Status.PIN_AUTH_INVALID
    assert ready.get(ready.token(permissions=MC), k3=allow)[0] is Status.PIN_AUTH_INVALID
    assert ready.make(ready.token(rp_id="other.example"))[0] is Status.PIN_AUTH_INVALID
    assert ready.get(ready.token(rp_id="other.example"), k3=allow)[0] is Status.PIN_AUTH_INVALID
    assert ready.get(ready.token(permissions=GA), k3=allow)[0] is Status.SUCCESS


def test_old_token_is_bound_to_the_first_relying_party(ready: Bench) -> None:
    credential = ready.new_credential()
    token = ready.token(permissions=None)
    silent = {"k3": [descriptor(credential)], "k5": {"up": False}}
    assert ready.get(token, **silent)[0] is Status.SUCCESS
    assert ready.make(token, k2={"id": "other.example"})[0] is Status.PIN_AUTH_INVALID
    assert ready.get(token, **silent)[0] is Status.SUCCESS


def test_token_is_spent_by_user_presence(ready: Bench) -> None:
    token = ready.token()
    assert ready.make(token)[0] is Status.SUCCESS
    assert ready.make(token)[0] is Status.PIN_AUTH_INVALID
    assert not ready.vault.is_unlocked


def test_declined_presence_leaves_the_token(ready: Bench) -> None:
    token = ready.token()
    ready.user.answer = Presence.DENIED
    assert ready.make(token)[0] is Status.OPERATION_DENIED
    ready.user.answer = Presence.GRANTED
    assert ready.make(token)[0] is Status.SUCCESS


@pytest.mark.parametrize("seconds", [30.5, 700])
def test_unused_token_runs_out_after_30_seconds(ready: Bench, seconds: float) -> None:
    token = ready.token()
    ready.clock.now += seconds
    assert ready.make(token)[0] is Status.PIN_AUTH_INVALID
    token = ready.token()
    ready.clock.now += 29
    assert ready.make(token)[0] is Status.SUCCESS


def test_used_token_runs_out_after_ten_minutes(ready: Bench) -> None:
    credential = ready.new_credential()
    silent = {"k3": [descriptor(credential)], "k5": {"up": False}}
    token = ready.token()
    assert ready.get(token, **silent)[0] is Status.SUCCESS
    ready.clock.now += 599
    assert ready.get(token, **silent)[0] is Status.SUCCESS
    ready.clock.now += 2
    assert ready.get(token, **silent)[0] is Status.PIN_AUTH_INVALID


def test_tick_locks_the_vault_when_the_token_runs_out(ready: Bench) -> None:
    ready.token()
    assert ready.vault.is_unlocked
    ready.clock.now += 29
    ready.authenticator.tick()
    assert ready.vault.is_unlocked
    ready.clock.now += 2
    ready.authenticator.tick()
    assert not ready.vault.is_unlocked


@pytest.mark.parametrize("end", [lambda b: b.authenticator.power_cycle(), lambda b: b.authenticator.close_session()])
def test_token_ends_with_power_or_session(ready: Bench, end: Callable[[Bench], None]) -> None:
    token = ready.token()
    end(ready)
    assert not ready.vault.is_unlocked
    assert ready.make(token)[0] is Status.PIN_AUTH_INVALID


def test_token_of_the_other_protocol_is_refused(ready: Bench) -> None:
    token = ready.token()
    _, version = ready.auth(token)
    param, _ = ready.auth(token)
    assert ready.make(k8=param, k9=3 - version)[0] is Status.PIN_AUTH_INVALID
    assert ready.make(token)[0] is Status.SUCCESS


def test_param_over_another_hash_is_refused(ready: Bench) -> None:
    token = ready.token()
    assert ready.make(token, k1=bytes(32))[0] is Status.PIN_AUTH_INVALID
    assert ready.make(token, k1=CLIENT_DATA_HASH)[0] is Status.SUCCESS


class FailingVault(MemoryVault):
    """Its hardware fails when the PIN is to be compared."""

    fails = False

    def verify_pin(self, pin_hash: bytes) -> None:
        if self.fails:
            raise DeviceError(Reason.DEVICE_FAILED, "No.")
        super().verify_pin(pin_hash)


def test_a_vault_that_fails_is_no_wrong_pin() -> None:
    vault = FailingVault()
    bench = Bench(vault)
    bench.set_pin()
    before = bench.pin(0x02)[1]
    vault.fails = True
    for _ in range(4):
        assert bench.ask_token()[0] is Status.OTHER
    assert retries(bench) == (8, False)
    assert bench.pin(0x02)[1] == before
    vault.fails = False
    assert bench.token()


def test_no_secret_in_parameters_shown() -> None:
    given = parse_client_pin(cbor.encode({1: 2, 2: 5, 6: b"secret hash"}))
    assert repr(given) == "ClientPinParameters(subcommand=5)"
    assert "secret" not in repr(CredentialSecrets(with_uv=b"secret"))
    assert "secret" not in repr(Salts(PinProtocolOne(SystemEntropy()), b"secret", (b"secret salt",)))


def test_no_secret_in_repr(ready: Bench) -> None:
    token = ready.token()
    for shown in (repr(ready.authenticator._tokens._token), repr(ready.authenticator)):
        assert token.hex() not in shown
        assert repr(token) not in shown
