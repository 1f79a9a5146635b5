"""Every status code of CTAP 2.1 section 8.2: a request that is answered with it, or the reason why none is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from fido2.ctap import CtapError

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.engine import Command
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest
from keyvouch_agent.authenticator.status import NEVER_ANSWERED, Status
from support.authenticators import ACFG, BE, CM, LBW, PIN, RP_ID, Bench, ScriptedEntry, blob_array, descriptor
from support.memory_vault import MemoryCard, MemoryVault

ARRAY = blob_array(b"\x81\x00")


def excluded(bench: Bench) -> Status:
    credential = bench.new_credential()
    return bench.make(bench.token(), k5=[descriptor(credential)])[0]


def write(bench: Bench, array: bytes, offset: int = 0, length: int | None = None) -> Status:
    return bench.write_blobs(array, offset, length, bench.token(permissions=LBW, rp_id=None))[0]


def answered_by(bench: Bench, presence: Presence, command: bytes) -> Status:
    bench.user.answer = presence
    return bench.send(command)[0]


def wrong_pins(bench: Bench, count: int) -> Status:
    status = Status.SUCCESS
    for number in range(count):
        if number % 3 == 0:
            bench.authenticator.power_cycle()
        status = bench.ask_token("000000")[0]
    return status


def meanwhile(bench: Bench) -> Status:
    seen: list[Status] = []

    class Meddler:
        def confirm(self, _request: PresenceRequest, _cancelled: Callable[[], bool]) -> Presence:
            seen.append(bench.send(b"\x04")[0])
            return Presence.GRANTED

    bench.authenticator.handle(b"\x0b", Meddler())
    return seen[0]


def failing(bench: Bench, reason: Reason) -> Status:
    bench.vault.fail_next["create_key"] = DeviceError(reason, "No.")
    return bench.make(bench.token())[0]


def silent_hmac_secret(bench: Bench) -> Status:
    bench.new_credential(rk=True, extensions={"hmac-secret": True})
    given, _ = bench.hmac_input(bytes(32))
    return bench.get(bench.token(), k4={"hmac-secret": given}, k5={"up": False})[0]


def on_a_card(typed: str, retries: int) -> Status:
    card = MemoryCard()
    card.retries = retries
    bench = Bench(card)
    bench.entry = ScriptedEntry(typed)
    return bench.ask_uv_token()[0]


SCENES: Mapping[Status, Callable[[Bench], Status]] = {
    Status.SUCCESS: lambda b: b.send(b"\x04")[0],
    Status.INVALID_COMMAND: lambda b: b.send(b"\x09\xa0")[0],
    Status.INVALID_PARAMETER: lambda b: b.pin(2, {1: 3})[0],
    Status.INVALID_LENGTH: lambda b: b.send(b"")[0],
    Status.INVALID_SEQ: lambda b: write(b, ARRAY, 1),
    Status.CHANNEL_BUSY: meanwhile,
    Status.CBOR_UNEXPECTED_TYPE: lambda b: b.make(k1="hash")[0],
    Status.INVALID_CBOR: lambda b: b.send(b"\x01\xbf\xff")[0],
    Status.MISSING_PARAMETER: lambda b: b.make(k1=None)[0],
    Status.LIMIT_EXCEEDED: lambda b: b.make(k5=[descriptor(b"1")] * 17)[0],
    Status.LARGE_BLOB_STORAGE_FULL: lambda b: write(b, ARRAY, 0, 4097),
    Status.CREDENTIAL_EXCLUDED: excluded,
    Status.UNSUPPORTED_ALGORITHM: lambda b: b.make(b.token(), k4=[])[0],
    Status.OPERATION_DENIED: lambda b: answered_by(b, Presence.DENIED, b"\x0b"),
    Status.KEY_STORE_FULL: lambda b: failing(b, Reason.KEY_STORE_FULL),
    Status.UNSUPPORTED_OPTION: silent_hmac_secret,
    Status.INVALID_OPTION: lambda b: b.make(b.token(), k7={"up": False})[0],
    Status.KEEPALIVE_CANCEL: lambda b: answered_by(b, Presence.CANCELLED, b"\x0b"),
    Status.NO_CREDENTIALS: lambda b: b.get(b.token())[0],
    Status.USER_ACTION_TIMEOUT: lambda b: answered_by(b, Presence.TIMEOUT, b"\x07"),
    Status.NOT_ALLOWED: lambda b: b.command(Command.GET_NEXT_ASSERTION)[0],
    Status.PIN_INVALID: lambda b: wrong_pins(b, 1),
    Status.PIN_BLOCKED: lambda b: wrong_pins(b, 8),
    Status.PIN_AUTH_INVALID: lambda b: b.make(b.token(), k8=bytes(32))[0],
    Status.PIN_AUTH_BLOCKED: lambda b: wrong_pins(b, 3),
    Status.PIN_NOT_SET: lambda b: Bench(MemoryVault()).ask_token()[0],
    Status.PUAT_REQUIRED: lambda b: b.make()[0],
    Status.PIN_POLICY_VIOLATION: lambda b: b.change_pin(PIN, "123"),
    Status.REQUEST_TOO_LARGE: lambda b: b.send(b"\x01" + bytes(7609))[0],
    Status.UV_BLOCKED: lambda _: on_a_card("000000", 1),
    Status.INTEGRITY_FAILURE: lambda b: write(b, ARRAY[:-1] + b"?", 0, len(ARRAY)),
    Status.INVALID_SUBCOMMAND: lambda b: b.pin(7)[0],
    Status.UV_INVALID: lambda _: on_a_card("000000", 3),
    Status.UNAUTHORIZED_PERMISSION: lambda b: b.ask_token(permissions=BE)[0],
    Status.OTHER: lambda b: failing(b, Reason.VAULT_CORRUPT),
}


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    bench = Bench(MemoryVault(), protocol=request.param)
    assert bench.set_pin() is Status.SUCCESS
    return bench


@pytest.mark.parametrize("status", SCENES, ids=lambda status: status.name)
def test_status_is_answered(bench: Bench, status: Status) -> None:
    assert SCENES[status](bench) is status


def test_every_code_is_answered_or_has_its_reason() -> None:
    assert set(SCENES) | set(NEVER_ANSWERED) == set(Status)
    assert not set(SCENES) & set(NEVER_ANSWERED)
    assert all(reason.endswith(".") for reason in NEVER_ANSWERED.values())


def test_codes_are_those_of_python_fido2() -> None:
    """An independent copy of the table of section 8.2. 0x38 was of CTAP 2.0; the rest marks ranges and is no code."""
    theirs = {code.name: int(code) for code in CtapError.ERR}
    ours = {code.name: int(code) for code in Status}
    assert ours.items() <= theirs.items()
    beyond = {name for name in theirs if name not in ours}
    assert {name for name in beyond if not name.endswith(("_FIRST", "_LAST"))} == {"PIN_TOKEN_EXPIRED"}


@pytest.mark.parametrize("permission", [CM, LBW, ACFG])
def test_control_each_permission_is_given(bench: Bench, permission: int) -> None:
    assert bench.ask_token(permissions=permission, rp_id=RP_ID)[0] is Status.SUCCESS
