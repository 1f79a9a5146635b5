"""authenticatorCredentialManagement: list, delete and rename (CTAP 2.1 section 6.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.engine import Command
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.vault import hash_of
from support.authenticators import CM, GA, MC, PIN, RP_ID, USER, Bench, descriptor
from support.memory_vault import MemoryVault

OTHER = "other.example"
BOB = {"id": b"user 2", "name": "bob", "displayName": "Bob B."}
METADATA, RPS, NEXT_RP, CREDENTIALS, NEXT_CREDENTIAL, DELETE, UPDATE = range(1, 8)


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    bench = Bench(MemoryVault(), protocol=request.param)
    assert bench.set_pin() is Status.SUCCESS
    return bench


def manager(bench: Bench, rp_id: str | None = None) -> bytes:
    return bench.token(PIN, CM, rp_id)


def done(bench: Bench, subcommand: int, params: dict[int, object] | None = None, token: bytes | None = None) -> Any:
    status, response = bench.manage(subcommand, params, token)
    assert status is Status.SUCCESS, status.name
    return response


def test_metadata_counts_what_is_discoverable(bench: Bench) -> None:
    assert done(bench, METADATA, None, manager(bench)) == {1: 0, 2: 16}
    bench.new_credential(rk=True)
    bench.new_credential(rk=False)
    assert done(bench, METADATA, None, manager(bench)) == {1: 1, 2: 14}


def test_relying_parties_one_after_the_other(bench: Bench) -> None:
    for rp_id, user in ((RP_ID, USER), (OTHER, USER), (RP_ID, BOB)):
        bench.new_credential(rk=True, rp_id=rp_id, user=user)
    first = done(bench, RPS, None, manager(bench))
    assert first.pop(5) == 2
    rest = done(bench, NEXT_RP)
    assert {answer[3]["id"]: answer[4] for answer in (first, rest)} == {
        RP_ID: hash_of(RP_ID),
        OTHER: hash_of(OTHER),
    }
    assert set(rest) == {3, 4}
    assert bench.manage(NEXT_RP)[0] is Status.NOT_ALLOWED


def test_credentials_of_a_relying_party(bench: Bench) -> None:
    extensions = {"credProtect": 2, "largeBlobKey": True}
    alice = bench.new_credential(rk=True, extensions=extensions)
    bob = bench.new_credential(rk=True, user=BOB)
    bench.new_credential(rk=True, rp_id=OTHER)
    first = done(bench, CREDENTIALS, {1: hash_of(RP_ID)}, manager(bench))
    assert first.pop(9) == 2
    assert first == {6: BOB, 7: descriptor(bob), 8: cbor.decode(bench.stored(bob).public_key), 10: 1}
    second = done(bench, NEXT_CREDENTIAL)
    assert len(second.pop(11)) == 32
    assert second == {6: USER, 7: descriptor(alice), 8: cbor.decode(bench.stored(alice).public_key), 10: 2}
    assert bench.manage(NEXT_CREDENTIAL)[0] is Status.NOT_ALLOWED


def test_nothing_to_list(bench: Bench) -> None:
    bench.new_credential(rk=False)
    token = manager(bench)
    assert bench.manage(RPS, None, token)[0] is Status.NO_CREDENTIALS
    assert bench.manage(CREDENTIALS, {1: hash_of(RP_ID)}, token)[0] is Status.NO_CREDENTIALS
    for continued in (NEXT_RP, NEXT_CREDENTIAL):
        assert bench.manage(continued)[0] is Status.NOT_ALLOWED


def test_delete(bench: Bench) -> None:
    credential = bench.new_credential(rk=True)
    kept = bench.new_credential(rk=True, user=BOB)
    plain = bench.new_credential(rk=False)
    token = manager(bench)
    assert done(bench, DELETE, {2: descriptor(credential)}, token) is None
    assert bench.vault.find(hash_of(RP_ID), credential) is None
    assert bench.stored(kept)
    for unknown in (credential, plain, b"", b"unknown"):
        assert bench.manage(DELETE, {2: descriptor(unknown)}, token)[0] is Status.NO_CREDENTIALS
    assert bench.manage(DELETE, {2: {"type": "other", "id": kept}}, token)[0] is Status.NO_CREDENTIALS
    assert bench.stored(plain)


def test_rename(bench: Bench) -> None:
    credential = bench.new_credential(rk=True)
    token = manager(bench)
    new = {"id": USER["id"], "name": "alice 2"}
    assert done(bench, UPDATE, {2: descriptor(credential), 3: new}, token) is None
    assert done(bench, CREDENTIALS, {1: hash_of(RP_ID)}, token)[6] == new
    assert done(bench, UPDATE, {2: descriptor(credential), 3: {"id": USER["id"]}}, token) is None
    assert done(bench, CREDENTIALS, {1: hash_of(RP_ID)}, token)[6] == {"id": USER["id"]}
    before = bench.vault.snapshot
    assert bench.manage(UPDATE, {2: descriptor(credential), 3: BOB}, token)[0] is Status.INVALID_PARAMETER
    assert bench.manage(UPDATE, {2: descriptor(b"?"), 3: new}, token)[0] is Status.NO_CREDENTIALS
    assert bench.vault.snapshot == before


def test_token_of_one_relying_party_reaches_no_other(bench: Bench) -> None:
    mine = bench.new_credential(rk=True)
    other = bench.new_credential(rk=True, rp_id=OTHER)
    token, before = manager(bench, RP_ID), bench.vault.snapshot
    refused = [
        bench.manage(METADATA, None, token),
        bench.manage(RPS, None, token),
        bench.manage(CREDENTIALS, {1: hash_of(OTHER)}, token),
        bench.manage(DELETE, {2: descriptor(other)}, token),
        bench.manage(UPDATE, {2: descriptor(other), 3: USER}, token),
    ]
    assert {status for status, _ in refused} == {Status.PIN_AUTH_INVALID}
    assert bench.vault.snapshot == before
    assert done(bench, CREDENTIALS, {1: hash_of(RP_ID)}, token)[9] == 1
    assert done(bench, UPDATE, {2: descriptor(mine), 3: USER}, token) is None
    assert done(bench, DELETE, {2: descriptor(mine)}, token) is None


PARAMS: list[tuple[int, Callable[[bytes], dict[int, object] | None]]] = [
    (METADATA, lambda _: None),
    (RPS, lambda _: None),
    (CREDENTIALS, lambda _: {1: hash_of(RP_ID)}),
    (DELETE, lambda credential: {2: descriptor(credential)}),
    (UPDATE, lambda credential: {2: descriptor(credential), 3: USER}),
]


@pytest.mark.parametrize(("subcommand", "params"), PARAMS)
@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"k1": None}, Status.MISSING_PARAMETER),
        ({"k1": "1"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k2": []}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k3": None}, Status.MISSING_PARAMETER),
        ({"k3": 3}, Status.INVALID_PARAMETER),
        ({"k3": "2"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k4": None}, Status.PUAT_REQUIRED),
        ({"k4": bytes(32)}, Status.PIN_AUTH_INVALID),
        ({"k4": b""}, Status.PIN_AUTH_INVALID),
        ({"k4": 1}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k99": 1}, Status.SUCCESS),
    ],
)
def test_parameters_of_each_subcommand(
    bench: Bench,
    subcommand: int,
    params: Callable[[bytes], dict[int, object] | None],
    change: dict[str, object],
    status: Status,
) -> None:
    credential = bench.new_credential(rk=True)
    before = bench.vault.snapshot
    assert bench.manage(subcommand, params(credential), manager(bench), **change)[0] is status
    if status is not Status.SUCCESS:
        assert bench.vault.snapshot == before


@pytest.mark.parametrize(
    ("subcommand", "params", "status"),
    [
        (CREDENTIALS, None, Status.MISSING_PARAMETER),
        (CREDENTIALS, {}, Status.MISSING_PARAMETER),
        (CREDENTIALS, {1: bytes(31)}, Status.INVALID_LENGTH),
        (CREDENTIALS, {1: "x" * 32}, Status.CBOR_UNEXPECTED_TYPE),
        (DELETE, None, Status.MISSING_PARAMETER),
        (DELETE, {2: b"id"}, Status.CBOR_UNEXPECTED_TYPE),
        (DELETE, {2: {"id": b"1"}}, Status.MISSING_PARAMETER),
        (DELETE, {2: {"type": "public-key"}}, Status.MISSING_PARAMETER),
        (DELETE, {2: {"type": "public-key", "id": "1"}}, Status.CBOR_UNEXPECTED_TYPE),
        (UPDATE, {3: USER}, Status.MISSING_PARAMETER),
        (UPDATE, {2: descriptor(b"1")}, Status.MISSING_PARAMETER),
        (UPDATE, {2: descriptor(b"1"), 3: {"name": "alice"}}, Status.MISSING_PARAMETER),
        (UPDATE, {2: descriptor(b"1"), 3: {"id": bytes(65)}}, Status.INVALID_LENGTH),
        (UPDATE, {2: descriptor(b"1"), 3: {"id": b"1", "name": 1}}, Status.CBOR_UNEXPECTED_TYPE),
        (0x00, None, Status.INVALID_SUBCOMMAND),
        (0x08, None, Status.INVALID_SUBCOMMAND),
    ],
)
def test_parameters_wrong(bench: Bench, subcommand: int, params: dict[int, object] | None, status: Status) -> None:
    bench.new_credential(rk=True)
    assert bench.manage(subcommand, params, manager(bench))[0] is status


@pytest.mark.parametrize("subcommand", [-1, 256, 2**64 - 1])
def test_subcommands_that_are_no_byte(bench: Bench, subcommand: int) -> None:
    assert bench.command(Command.CREDENTIAL_MANAGEMENT, {1: subcommand})[0] is Status.INVALID_SUBCOMMAND


def test_permission_is_needed(bench: Bench) -> None:
    bench.new_credential(rk=True)
    assert bench.manage(METADATA, None, bench.token(permissions=MC | GA))[0] is Status.PIN_AUTH_INVALID
    assert bench.manage(METADATA, None, bench.token(permissions=None))[0] is Status.PIN_AUTH_INVALID
    assert bench.manage(METADATA, None, manager(bench))[0] is Status.SUCCESS


def test_param_covers_the_subcommand_and_its_parameters(bench: Bench) -> None:
    credential = bench.new_credential(rk=True)
    token = manager(bench)
    param, version = bench.auth(token, bytes([METADATA]))
    replayed = {1: DELETE, 2: {2: descriptor(credential)}, 3: version, 4: param}
    assert bench.command(Command.CREDENTIAL_MANAGEMENT, replayed)[0] is Status.PIN_AUTH_INVALID
    assert bench.stored(credential)


def test_the_first_number_of_the_command_still_works(bench: Bench) -> None:
    param, version = bench.auth(manager(bench), bytes([METADATA]))
    status, response = bench.command(Command.CREDENTIAL_MANAGEMENT_PREVIEW, {1: METADATA, 3: version, 4: param})
    assert (status, response) == (Status.SUCCESS, {1: 0, 2: 16})


@pytest.mark.parametrize(
    "between",
    [bytes([Command.GET_INFO]), b"\xff", b"\x06\xa1\x02\x01", b"\x0a\xa1\x01\x18\x63", b"\x0a\xa1\x01\x03"],
    ids=["getInfo", "unknown", "clientPin", "unknown subcommand", "the other enumeration"],
)
def test_another_command_ends_an_enumeration(bench: Bench, between: bytes) -> None:
    for user in (USER, BOB):
        bench.new_credential(rk=True, user=user)
    done(bench, CREDENTIALS, {1: hash_of(RP_ID)}, manager(bench))
    bench.send(between)
    assert bench.manage(NEXT_CREDENTIAL)[0] is Status.NOT_ALLOWED


def test_enumeration_runs_out(bench: Bench) -> None:
    for number in range(4):
        bench.new_credential(rk=True, user={"id": bytes([number])})
    token = manager(bench)
    done(bench, CREDENTIALS, {1: hash_of(RP_ID)}, token)
    bench.clock.now += 29
    done(bench, NEXT_CREDENTIAL)
    bench.clock.now += 29
    done(bench, NEXT_CREDENTIAL)
    bench.clock.now += 30.5
    assert bench.manage(NEXT_CREDENTIAL)[0] is Status.NOT_ALLOWED


def test_enumeration_ends_with_its_token(bench: Bench) -> None:
    for user in (USER, BOB):
        bench.new_credential(rk=True, user=user)
    token = manager(bench)
    done(bench, METADATA, None, token)
    bench.clock.now += 590
    done(bench, CREDENTIALS, {1: hash_of(RP_ID)}, token)
    bench.clock.now += 11
    assert bench.manage(NEXT_CREDENTIAL)[0] is Status.NOT_ALLOWED


@pytest.mark.parametrize(
    ("subcommand", "method", "params"), [(DELETE, "delete", {}), (UPDATE, "update_user", {3: USER})]
)
def test_vault_failure_changes_nothing(bench: Bench, subcommand: int, method: str, params: dict[int, object]) -> None:
    credential = bench.new_credential(rk=True)
    token, before = manager(bench), bench.vault.snapshot
    bench.vault.fail_next[method] = DeviceError(Reason.KEY_STORE_FULL, "No.")
    given = {2: descriptor(credential), **params}
    assert bench.manage(subcommand, given, token)[0] is Status.KEY_STORE_FULL
    assert bench.vault.snapshot == before
    assert bench.manage(subcommand, given, token)[0] is Status.SUCCESS
