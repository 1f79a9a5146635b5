"""Any bytes get a coded status, and an error changes nothing: random, mutated and published commands."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.authenticator_commands import hammer
from keyvouch import cbor
from keyvouch_agent.authenticator.engine import Command
from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.vault import hash_of
from support.authenticators import (
    CLIENT_DATA_HASH,
    ES256,
    PIN,
    RP_ID,
    USER,
    Bench,
    blob_array,
    descriptor,
    padded,
    pin_hash,
)
from support.memory_vault import MemoryVault
from support.vectors import load

SEEDS = load("opensk/ctap2_commands_parameters_corpus.json")
COMMANDS = st.sampled_from([int(command) for command in Command] + [0x00, 0x03, 0x09, 0x40, 0xFF])
EXAMPLES = settings(max_examples=150, deadline=None)

KEYS = st.one_of(st.integers(-20, 20), st.text(max_size=8), st.binary(max_size=8))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.binary(max_size=80),
    st.text(max_size=40),
    st.sampled_from(["public-key", RP_ID, "id", "type", "alg", CLIENT_DATA_HASH, -7, b""]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


def fresh() -> Bench:
    """With a PIN and a credential, and a user who declines, so that nothing may change."""
    bench = Bench(MemoryVault())
    bench.set_pin()
    bench.new_credential(rk=True)
    bench.user.answer = Presence.DENIED
    return bench


def survive(bench: Bench, request: bytes) -> Status:
    """Send it; the status must be known, and unless it is success, nothing has changed."""
    before = bench.vault.snapshot
    status, _ = bench.send(request)
    if status is not Status.SUCCESS:
        assert bench.vault.snapshot == before
    return status


def templates(bench: Bench) -> list[tuple[int, dict[int, Any]]]:
    """Commands to start from, valid but for some of the parameters that authorize them."""
    array = blob_array()
    token = bench.token()
    peer, secret = bench.agree()
    encrypt = bench.protocol.encrypt
    new_pin = encrypt(secret, padded("new pin"))
    old_pin = encrypt(secret, pin_hash(PIN))
    change = bench.protocol.authenticate(secret, new_pin + old_pin)
    return [
        (Command.MAKE_CREDENTIAL, bench.make_parameters(token, k5=[descriptor(b"x")], k7={"rk": True}, k11=["none"])),
        (Command.GET_ASSERTION, bench.get_parameters(token, k3=[descriptor(b"x")], k5={"up": True})),
        (Command.CLIENT_PIN, {1: 2, 2: 1}),
        (Command.CLIENT_PIN, {1: 2, 2: 2}),
        (Command.CLIENT_PIN, {1: 2, 2: 3, 3: peer, 4: b"x" * 32, 5: new_pin}),
        (Command.CLIENT_PIN, {1: 2, 2: 4, 3: peer, 4: change, 5: new_pin, 6: old_pin}),
        (Command.CLIENT_PIN, {1: 2, 2: 5, 3: peer, 6: old_pin}),
        (Command.CLIENT_PIN, {1: 2, 2: 9, 3: peer, 6: old_pin, 9: 3, 10: RP_ID}),
        (Command.CREDENTIAL_MANAGEMENT, {1: 4, 2: {1: hash_of(RP_ID)}, 3: 2, 4: bytes(32)}),
        (Command.CREDENTIAL_MANAGEMENT, {1: 7, 2: {2: descriptor(b"x"), 3: USER}, 3: 2, 4: bytes(32)}),
        (Command.LARGE_BLOBS, {1: 17, 3: 0}),
        (Command.LARGE_BLOBS, {2: array, 3: 0, 4: len(array), 5: bytes(32), 6: 2}),
        (Command.CONFIG, {1: 3, 2: {1: 8, 2: [RP_ID], 3: True}, 3: 2, 4: bytes(32)}),
    ]


@EXAMPLES
@given(data=st.binary(max_size=200), command=COMMANDS)
def test_random_bytes(data: bytes, command: int) -> None:
    bench = Bench(MemoryVault())
    survive(bench, data)
    survive(bench, bytes([command]) + data)


@EXAMPLES
@given(command=COMMANDS, parameters=st.dictionaries(st.integers(0, 12), VALUES, max_size=8))
def test_well_formed_maps_of_anything(command: int, parameters: dict[int, object]) -> None:
    survive(fresh(), bytes([command]) + cbor.encode(parameters))


@EXAMPLES
@given(which=st.integers(0, 12), key=st.integers(1, 12), value=VALUES)
def test_one_parameter_replaced(which: int, key: int, value: object) -> None:
    bench = fresh()
    command, parameters = templates(bench)[which]
    survive(bench, bytes([command]) + cbor.encode(parameters | {key: value}))


@pytest.mark.parametrize("which", range(13))
def test_flipped_cut_and_repeated_bytes(which: int) -> None:
    chance = random.Random(which)
    for _ in range(60):
        bench = fresh()
        command, parameters = templates(bench)[which]
        raw = bytearray(bytes([command]) + cbor.encode(parameters))
        match chance.randrange(3):
            case 0:
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            case 1:
                del raw[chance.randrange(len(raw)) :]
            case _:
                at = chance.randrange(len(raw))
                raw[at:at] = raw[at : at + chance.randrange(1, 9)]
        survive(bench, bytes(raw))


def test_published_seeds() -> None:
    bench = fresh()
    assert len(SEEDS) == 30
    for seed in SEEDS:
        for command in (0x01, 0x02, 0x06, 0x0A, 0x0C, 0x0D):
            raw = bytes([command]) + bytes.fromhex(seed["hex"])
            survive(bench, raw)
            for index in range(len(raw)):
                survive(bench, raw[:index])


@pytest.mark.parametrize("seed", [1, 2])
def test_changed_commands_under_valid_tokens(seed: int) -> None:
    """`python tests/fuzz/authenticator_commands.py` does the same for as long as one likes."""
    findings = hammer(2_500, seed)
    assert findings.runs == 2_500
    assert findings.statuses["SUCCESS"] > 200
    assert {"CREDENTIAL_MANAGEMENT", "LARGE_BLOBS", "CONFIG", "U2F"} <= findings.commands.keys()


def test_control_still_works_after_all_that() -> None:
    bench = fresh()
    survive(bench, b"\x06" + bytes(100))
    bench.user.answer = Presence.GRANTED
    status, _ = bench.make(bench.token(), k3=USER, k4=[ES256])
    assert status is Status.SUCCESS
