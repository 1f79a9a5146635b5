"""authenticatorConfig: alwaysUv and the minimum PIN length (CTAP 2.1 section 6.11), and what they change elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.authenticator.engine import AuthenticatorOptions, Command
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.vault import AuthenticatorSettings
from support.authenticators import ACFG, CM, PIN, RP_ID, Bench, descriptor
from support.memory_vault import MemoryVault

ENTERPRISE, TOGGLE, MIN_PIN = 1, 2, 3
OPTIONS = AuthenticatorOptions(make_cred_uv_not_required=True)


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Keys that work without the PIN, which is set."""
    bench = Bench(MemoryVault(pin_gated=False), protocol=request.param, options=OPTIONS)
    assert bench.set_pin() is Status.SUCCESS
    return bench


@pytest.fixture
def bare() -> Bench:
    """Without a PIN."""
    return Bench(MemoryVault(pin_gated=False), options=OPTIONS)


def configurer(bench: Bench) -> bytes:
    return bench.token(PIN, ACFG, None)


def info(bench: Bench) -> Any:
    return bench.expect(Command.GET_INFO)


# alwaysUv


def test_toggle_always_uv(bench: Bench) -> None:
    token = configurer(bench)
    assert bench.configure(TOGGLE, None, token) == (Status.SUCCESS, None)
    assert info(bench)[4]["alwaysUv"] is True
    assert info(bench)[4]["makeCredUvNotRqd"] is False
    assert bench.configure(TOGGLE, None, token) == (Status.SUCCESS, None)
    assert info(bench)[4]["alwaysUv"] is False
    assert info(bench)[4]["makeCredUvNotRqd"] is True


def test_always_uv_demands_a_token_for_everything_with_presence(bench: Bench) -> None:
    credential = bench.new_credential(rk=True)
    assert bench.make()[0] is Status.SUCCESS
    assert bench.get()[0] is Status.SUCCESS
    assert bench.configure(TOGGLE, None, configurer(bench))[0] is Status.SUCCESS
    assert bench.make()[0] is Status.PUAT_REQUIRED
    assert bench.get()[0] is Status.PUAT_REQUIRED
    assert bench.make(k7={"uv": True})[0] is Status.INVALID_OPTION
    status, response = bench.get(k3=[descriptor(credential)], k5={"up": False})  # section 6.2.2 step 5: only with up
    assert (status, AuthenticatorData(response[2]).flags) == (Status.SUCCESS, Flags(0))
    assert bench.make(bench.token())[0] is Status.SUCCESS
    assert bench.get(bench.token())[0] is Status.SUCCESS


def test_always_uv_without_a_pin_allows_nothing_but_to_switch_it_off(bare: Bench) -> None:
    assert bare.configure(TOGGLE)[0] is Status.SUCCESS
    assert bare.make()[0] is Status.PUAT_REQUIRED
    assert bare.make(k8=bytes(32), k9=2)[0] is Status.PUAT_REQUIRED
    assert bare.get()[0] is Status.PUAT_REQUIRED
    assert bare.get(k6=bytes(32), k7=2)[0] is Status.PUAT_REQUIRED
    assert bare.configure(MIN_PIN, {1: 6})[0] is Status.PUAT_REQUIRED
    assert bare.configure(TOGGLE)[0] is Status.SUCCESS
    assert bare.make()[0] is Status.SUCCESS
    assert bare.configure(MIN_PIN, {1: 6})[0] is Status.SUCCESS


def test_always_uv_of_gated_keys_cannot_be_switched_off() -> None:
    bench = Bench(MemoryVault())
    assert bench.configure(TOGGLE)[0] is Status.OPERATION_DENIED
    bench.set_pin()
    assert bench.configure(TOGGLE, None, configurer(bench))[0] is Status.OPERATION_DENIED
    assert info(bench)[4]["alwaysUv"] is True
    assert bench.vault.settings == AuthenticatorSettings()


# The minimum PIN length


def test_minimum_grows_and_never_shrinks(bench: Bench) -> None:
    token = configurer(bench)
    assert bench.configure(MIN_PIN, {1: 6}, token)[0] is Status.SUCCESS
    assert (info(bench)[0x0D], info(bench)[0x0C]) == (6, False)
    assert bench.configure(MIN_PIN, {1: 6}, token)[0] is Status.SUCCESS
    for least in (5, 0, 64, 2**32):
        assert bench.configure(MIN_PIN, {1: least}, token)[0] is Status.PIN_POLICY_VIOLATION
    assert bench.change_pin(PIN, "12345") is Status.PIN_POLICY_VIOLATION
    assert bench.change_pin(PIN, "äöüßéñ") is Status.SUCCESS
    assert info(bench)[0x0D] == 6


def test_pin_that_is_now_too_short_must_be_changed(bench: Bench) -> None:
    token = configurer(bench)
    assert bench.configure(MIN_PIN, {1: 63}, token)[0] is Status.SUCCESS
    assert (info(bench)[0x0D], info(bench)[0x0C]) == (63, True)
    assert bench.configure(MIN_PIN, {1: 63}, token)[0] is Status.PIN_AUTH_INVALID  # the token is no more
    assert bench.ask_token(PIN, None)[0] is Status.PIN_INVALID
    assert bench.change_pin(PIN, "1" * 62) is Status.PIN_POLICY_VIOLATION
    assert bench.change_pin(PIN, "1" * 63) is Status.SUCCESS
    assert info(bench)[0x0C] is False


def test_a_pin_of_unknown_length_must_be_changed_when_the_minimum_grows() -> None:
    vault = MemoryVault(pin_gated=False)
    bench = Bench(vault)
    bench.set_pin()
    vault._code_points = 0
    assert bench.configure(MIN_PIN, {1: 4}, configurer(bench))[0] is Status.SUCCESS
    assert info(bench)[0x0C] is False
    assert bench.configure(MIN_PIN, {1: 5}, configurer(bench))[0] is Status.SUCCESS
    assert info(bench)[0x0C] is True


def test_before_there_is_a_pin(bare: Bench) -> None:
    assert bare.configure(MIN_PIN, {1: 8})[0] is Status.SUCCESS
    assert (info(bare)[0x0D], info(bare)[0x0C]) == (8, False)
    assert bare.set_pin("1234567") is Status.PIN_POLICY_VIOLATION
    assert bare.configure(MIN_PIN, {3: True})[0] is Status.PIN_NOT_SET
    assert bare.set_pin("12345678") is Status.SUCCESS


def test_relying_parties_are_replaced_as_a_whole(bench: Bench) -> None:
    token = configurer(bench)
    assert bench.configure(MIN_PIN, {2: [RP_ID, "b.example"]}, token)[0] is Status.SUCCESS
    assert bench.configure(MIN_PIN, {1: 5}, token)[0] is Status.SUCCESS
    assert bench.vault.settings.min_pin_length_rp_ids == (RP_ID, "b.example")
    too_many = [f"{number}.example" for number in range(9)]
    assert bench.configure(MIN_PIN, {1: 6, 2: too_many}, token)[0] is Status.KEY_STORE_FULL
    assert bench.vault.settings.min_pin_length == 5
    assert bench.configure(MIN_PIN, {2: too_many[:8]}, token)[0] is Status.SUCCESS
    assert bench.configure(MIN_PIN, {2: []}, token)[0] is Status.SUCCESS  # section 6.11.4: nothing is said with that
    assert bench.vault.settings.min_pin_length_rp_ids == tuple(too_many[:8])
    assert bench.configure(MIN_PIN, {2: [RP_ID]}, token)[0] is Status.SUCCESS
    assert bench.vault.settings.min_pin_length_rp_ids == (RP_ID,)


def test_not_to_force_a_change_does_not_take_one_back(bench: Bench) -> None:
    assert bench.configure(MIN_PIN, {3: False}, configurer(bench))[0] is Status.SUCCESS
    assert info(bench)[0x0C] is False
    assert bench.configure(MIN_PIN, {3: True}, configurer(bench))[0] is Status.SUCCESS
    assert info(bench)[0x0C] is True


# Parameters


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"k1": None}, Status.MISSING_PARAMETER),
        ({"k1": "3"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k1": 0}, Status.INVALID_PARAMETER),
        ({"k1": ENTERPRISE}, Status.INVALID_PARAMETER),
        ({"k1": 4}, Status.INVALID_PARAMETER),
        ({"k1": 0xFF}, Status.INVALID_PARAMETER),
        ({"k1": -1}, Status.INVALID_PARAMETER),
        ({"k1": 2**63}, Status.INVALID_PARAMETER),
        ({"k2": []}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": {1: "6"}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": {1: -6}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": {2: RP_ID}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": {2: [b"rp"]}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": {3: 1}}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": {1: 7}}, Status.PIN_AUTH_INVALID),
        ({"k3": None}, Status.MISSING_PARAMETER),
        ({"k3": 3}, Status.INVALID_PARAMETER),
        ({"k3": "2"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k4": None}, Status.PUAT_REQUIRED),
        ({"k4": bytes(32)}, Status.PIN_AUTH_INVALID),
        ({"k4": "x"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k99": 1}, Status.SUCCESS),
    ],
)
def test_parameters(bench: Bench, change: dict[str, object], status: Status) -> None:
    before = bench.vault.snapshot
    assert bench.configure(MIN_PIN, {1: 6, 4: "unknown"}, configurer(bench), **change)[0] is status
    assert (bench.vault.snapshot == before) is (status is not Status.SUCCESS)


def test_subcommand_parameters_left_out(bench: Bench) -> None:
    assert bench.configure(MIN_PIN, None, configurer(bench))[0] is Status.MISSING_PARAMETER
    assert bench.configure(MIN_PIN, {}, configurer(bench))[0] is Status.SUCCESS


def test_permission_is_needed(bench: Bench) -> None:
    assert bench.configure(TOGGLE, None, bench.token(permissions=CM))[0] is Status.PIN_AUTH_INVALID
    assert bench.configure(TOGGLE, None, bench.token(permissions=None))[0] is Status.PIN_AUTH_INVALID


@pytest.mark.parametrize(("subcommand", "params"), [(TOGGLE, None), (MIN_PIN, {1: 6, 3: True})])
def test_vault_failure_changes_nothing(bench: Bench, subcommand: int, params: dict[int, object] | None) -> None:
    token, before = configurer(bench), bench.vault.snapshot
    bench.vault.fail_next["store_settings"] = DeviceError(Reason.DEVICE_FAILED, "No.")
    assert bench.configure(subcommand, params, token)[0] is Status.OTHER
    assert bench.vault.snapshot == before
    assert bench.configure(subcommand, params, token)[0] is Status.SUCCESS
