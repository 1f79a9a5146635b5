"""authenticatorLargeBlobs: reading and writing the array piece by piece (CTAP 2.1 section 6.10)."""

from __future__ import annotations

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.engine import Command
from keyvouch_agent.authenticator.standing import MAX_FRAGMENT_LENGTH
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.vault import INITIAL_LARGE_BLOBS
from support.authenticators import CM, GA, LBW, MC, RP_ID, Bench, blob_array
from support.memory_vault import MemoryVault

ARRAY = blob_array(b"\x81\x58\x40" + bytes(range(64)))
LONG = blob_array(b"\x81\x59\x40\x00" + bytes(0x4000))


@pytest.fixture(params=[1, 2], ids=["protocol-1", "protocol-2"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """With a PIN and room for 20,000 bytes."""
    bench = Bench(MemoryVault(max_large_blobs=20_000), protocol=request.param)
    assert bench.set_pin() is Status.SUCCESS
    return bench


@pytest.fixture
def open_bench() -> Bench:
    """Without a PIN, and no need of one."""
    return Bench(MemoryVault(pin_gated=False))


def writer(bench: Bench) -> bytes:
    return bench.token(permissions=LBW, rp_id=None)


def read(bench: Bench) -> bytes:
    found = b""
    while True:
        fragment = bench.expect(Command.LARGE_BLOBS, {1: MAX_FRAGMENT_LENGTH, 3: len(found)})[1]
        found += fragment
        if len(fragment) < MAX_FRAGMENT_LENGTH:
            return found


def test_empty_array_at_first(bench: Bench) -> None:
    assert read(bench) == INITIAL_LARGE_BLOBS == blob_array()


def test_whole_array_in_one_fragment(bench: Bench) -> None:
    assert bench.write_blobs(ARRAY, 0, len(ARRAY), writer(bench)) == (Status.SUCCESS, None)
    assert read(bench) == ARRAY
    assert bench.expect(Command.LARGE_BLOBS, {1: 10, 3: 5}) == {1: ARRAY[5:15]}
    assert bench.expect(Command.LARGE_BLOBS, {1: 10, 3: len(ARRAY) - 3}) == {1: ARRAY[-3:]}
    assert bench.expect(Command.LARGE_BLOBS, {1: 10, 3: len(ARRAY)}) == {1: b""}
    assert bench.expect(Command.LARGE_BLOBS, {1: 0, 3: 0}) == {1: b""}


def test_array_that_is_being_written_goes_with_its_token(bench: Bench) -> None:
    """Section 6, stateful commands."""
    token = writer(bench)
    assert bench.write_blobs(ARRAY[:40], 0, len(ARRAY), token)[0] is Status.SUCCESS
    bench.clock.now += 599
    assert bench.write_blobs(ARRAY[40:50], 40, None, token)[0] is Status.SUCCESS  # control
    bench.clock.now += 2
    assert bench.write_blobs(ARRAY[50:], 50, None, writer(bench))[0] is Status.INVALID_SEQ
    assert read(bench) == INITIAL_LARGE_BLOBS


def test_long_array_in_many_fragments_under_one_token(bench: Bench) -> None:
    token = writer(bench)
    for offset in range(0, len(LONG), MAX_FRAGMENT_LENGTH):
        fragment = LONG[offset : offset + MAX_FRAGMENT_LENGTH]
        assert read(bench) == INITIAL_LARGE_BLOBS
        length = None if offset else len(LONG)
        assert bench.write_blobs(fragment, offset, length, token)[0] is Status.SUCCESS
    assert read(bench) == LONG


def test_without_pin_it_needs_no_token(open_bench: Bench) -> None:
    assert open_bench.write_blobs(ARRAY, 0, len(ARRAY))[0] is Status.SUCCESS
    assert read(open_bench) == ARRAY


def test_gated_without_pin_cannot_be_written() -> None:
    bench = Bench(MemoryVault())
    assert bench.write_blobs(ARRAY, 0, len(ARRAY))[0] is Status.PUAT_REQUIRED
    assert read(bench) == INITIAL_LARGE_BLOBS


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({1: 17}, Status.INVALID_PARAMETER),
        ({3: 0}, Status.INVALID_PARAMETER),
        ({1: 17, 2: b"x", 3: 0, 4: 17}, Status.INVALID_PARAMETER),
        ({1: 17, 3: 0, 4: 17}, Status.INVALID_PARAMETER),
        ({1: 17, 3: 0, 5: bytes(32)}, Status.INVALID_PARAMETER),
        ({1: 17, 3: 0, 6: 2}, Status.INVALID_PARAMETER),
        ({1: 17, 3: 18}, Status.INVALID_PARAMETER),
        ({1: MAX_FRAGMENT_LENGTH + 1, 3: 0}, Status.INVALID_LENGTH),
        ({1: "17", 3: 0}, Status.CBOR_UNEXPECTED_TYPE),
        ({1: -1, 3: 0}, Status.CBOR_UNEXPECTED_TYPE),
        ({1: 17, 3: b""}, Status.CBOR_UNEXPECTED_TYPE),
        ({1: 17, 3: -1}, Status.CBOR_UNEXPECTED_TYPE),
        ({1: 17, 3: 0, 99: []}, Status.SUCCESS),
    ],
)
def test_read_parameters(bench: Bench, given: dict[int, object], status: Status) -> None:
    assert bench.command(Command.LARGE_BLOBS, given)[0] is status


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"k3": None}, Status.INVALID_PARAMETER),
        ({"k4": None}, Status.INVALID_PARAMETER),
        ({"k4": 16}, Status.INVALID_PARAMETER),
        ({"k4": 0}, Status.INVALID_PARAMETER),
        ({"k4": len(ARRAY) - 1}, Status.INVALID_PARAMETER),
        ({"k4": 20_001}, Status.LARGE_BLOB_STORAGE_FULL),
        ({"k4": 2**64 - 1}, Status.LARGE_BLOB_STORAGE_FULL),
        ({"k3": 5}, Status.INVALID_PARAMETER),
        ({"k3": 5, "k4": None}, Status.INVALID_SEQ),
        ({"k3": 2**32, "k4": None}, Status.INVALID_SEQ),
        ({"k2": bytes(MAX_FRAGMENT_LENGTH + 1), "k4": 20_000}, Status.INVALID_LENGTH),
        ({"k5": None}, Status.PUAT_REQUIRED),
        ({"k5": bytes(32)}, Status.PIN_AUTH_INVALID),
        ({"k5": b""}, Status.PIN_AUTH_INVALID),
        ({"k6": None}, Status.MISSING_PARAMETER),
        ({"k6": 3}, Status.INVALID_PARAMETER),
        ({"k2": "x"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k4": "x"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k5": "x"}, Status.CBOR_UNEXPECTED_TYPE),
        ({"k6": "x"}, Status.CBOR_UNEXPECTED_TYPE),
    ],
)
def test_write_parameters(bench: Bench, change: dict[str, object], status: Status) -> None:
    assert bench.write_blobs(ARRAY, 0, len(ARRAY), writer(bench), **change)[0] is status
    assert read(bench) == INITIAL_LARGE_BLOBS
    assert bench.write_blobs(ARRAY, 0, len(ARRAY), writer(bench), k99=1)[0] is Status.SUCCESS  # control
    assert read(bench) == ARRAY


@pytest.mark.parametrize("permissions", [CM, MC | GA])
def test_permission_is_needed(bench: Bench, permissions: int) -> None:
    token = bench.token(permissions=permissions, rp_id=RP_ID)
    assert bench.write_blobs(ARRAY, 0, len(ARRAY), token)[0] is Status.PIN_AUTH_INVALID


def test_hash_at_the_end_is_checked(bench: Bench) -> None:
    assert bench.write_blobs(ARRAY, 0, len(ARRAY), writer(bench))[0] is Status.SUCCESS
    damaged = ARRAY[:-1] + bytes([ARRAY[-1] ^ 1])
    token = writer(bench)
    assert bench.write_blobs(damaged, 0, len(damaged), token)[0] is Status.INTEGRITY_FAILURE
    assert read(bench) == ARRAY
    assert bench.write_blobs(b"", len(damaged), None, token)[0] is Status.INVALID_SEQ


def test_a_refused_fragment_does_not_disturb_the_ones_before(bench: Bench) -> None:
    token = writer(bench)
    assert bench.write_blobs(ARRAY[:20], 0, len(ARRAY), token)[0] is Status.SUCCESS
    assert bench.write_blobs(ARRAY, 0, len(ARRAY))[0] is Status.PUAT_REQUIRED
    assert bench.write_blobs(ARRAY[20:], 20, None, token, k5=bytes(32))[0] is Status.PIN_AUTH_INVALID
    assert bench.write_blobs(ARRAY[:30], 30, None, token)[0] is Status.INVALID_SEQ
    assert bench.write_blobs(ARRAY[20:] + b"x", 20, None, token)[0] is Status.INVALID_PARAMETER
    assert bench.write_blobs(ARRAY[20:], 20, None, token)[0] is Status.SUCCESS
    assert read(bench) == ARRAY


def test_beginning_anew_drops_what_was_begun(bench: Bench) -> None:
    token = writer(bench)
    assert bench.write_blobs(ARRAY[:20], 0, len(ARRAY), token)[0] is Status.SUCCESS
    other = blob_array(b"\x81\x00")
    assert bench.write_blobs(other, 0, len(other), token)[0] is Status.SUCCESS
    assert bench.write_blobs(ARRAY[20:], 20, None, token)[0] is Status.INVALID_SEQ
    assert read(bench) == other


def test_power_cycle_drops_what_was_begun(bench: Bench) -> None:
    assert bench.write_blobs(ARRAY[:20], 0, len(ARRAY), writer(bench))[0] is Status.SUCCESS
    bench.authenticator.power_cycle()
    assert bench.write_blobs(ARRAY[20:], 20, None, writer(bench))[0] is Status.INVALID_SEQ


@pytest.mark.parametrize(
    ("reason", "status"),
    [(Reason.KEY_STORE_FULL, Status.LARGE_BLOB_STORAGE_FULL), (Reason.DEVICE_FAILED, Status.OTHER)],
)
def test_vault_failure(bench: Bench, reason: Reason, status: Status) -> None:
    failure = DeviceError(reason, "No.")
    bench.vault.fail_next["store_large_blobs"] = failure
    assert bench.write_blobs(ARRAY, 0, len(ARRAY), writer(bench))[0] is status
    assert bench.authenticator.failure is failure
    assert read(bench) == INITIAL_LARGE_BLOBS
