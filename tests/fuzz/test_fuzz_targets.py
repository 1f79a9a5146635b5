"""Every target answers every seed, many changes of it, and input made to exhaust it, in time and without memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from random import Random

import pytest

from fuzz.structure import changed, scramble
from fuzz.targets import SECONDS_PER_INPUT, TARGETS, Shape, Target

CORPUS = Path(__file__).parent / "corpus"
CHANGES = 400
DEEP = 10_000
MEMORY = 1 << 20
"""Most bytes that an input may make a target allocate at a time."""


def seeds(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def try_in_time(target: Target, data: bytes) -> None:
    """The limit is on the machine's work, so another process's turn does not count; three attempts settle it."""
    for _ in range(3):
        start = time.thread_time()
        target.try_on(data)
        if time.thread_time() - start <= SECONDS_PER_INPUT:
            return
    pytest.fail(f"{target.name} is slow for {data.hex()}")


def test_every_target_has_its_seeds_and_every_seed_its_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    assert all(seeds(name) for name in TARGETS)
    assert sum(len(seed) for name in TARGETS for seed in seeds(name)) < 1 << 20


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_answered(name: str) -> None:
    for seed in seeds(name):
        try_in_time(TARGETS[name], seed)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_seeds_are_answered(name: str) -> None:
    """The same changes each time: blind ones, and ones that leave the structure whole, some one upon the other."""
    target, known = TARGETS[name], seeds(name)
    chance = Random(zlib.crc32(name.encode()))
    for _ in range(CHANGES):
        data = chance.choice(known)
        for _ in range(chance.randrange(1, 4)):
            shape = chance.choice((Shape.BYTES, target.shape))
            data = changed(data, shape, chance, lambda part: scramble(part, chance))
        try_in_time(target, data)


@pytest.mark.parametrize("name", TARGETS)
def test_every_beginning_of_a_seed_is_answered(name: str) -> None:
    for seed in seeds(name)[:3]:
        for end in range(0, len(seed), max(1, len(seed) // 200)):
            try_in_time(TARGETS[name], seed[:end])


# Exhaustion


def definite(identifier: bytes, depth: int) -> bytes:
    """DER elements inside one another, from the inside out."""
    data = b""
    for _ in range(depth):
        size = len(data)
        data = identifier + (bytes([size]) if size < 0x80 else b"\x84" + struct.pack(">I", size)) + data
    return data


NESTED = {
    "cbor_arrays": b"\x81" * DEEP,
    "cbor_maps": b"\xa1\x00" * DEEP,
    "cbor_arrays_that_end": b"\x81" * DEEP + b"\x00",
    "cbor_indefinite": b"\x9f" * DEEP,
    "cbor_tags": b"\xc0" * DEEP,
    "json_arrays": b"[" * DEEP,
    "json_objects": b'{"a":' * DEEP,
    "json_arrays_that_end": b"[" * DEEP + b"]" * DEEP,
    "json_member_that_nests": b'{"type":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "der_sequences": definite(b"\x30", DEEP),
    "der_sets": definite(b"\x31", DEEP),
    "der_octet_strings": definite(b"\x04", DEEP),
    "der_explicit": definite(b"\xa0", DEEP),
    "der_indefinite": b"\x30\x80" * DEEP,
}

LONG = {
    "cbor_bytes_2_63": b"\x5b" + struct.pack(">Q", 1 << 63),
    "cbor_bytes_2_64": b"\x5b" + b"\xff" * 8,
    "cbor_text_2_63": b"\x7b" + struct.pack(">Q", 1 << 63),
    "cbor_array_2_63": b"\x9b" + struct.pack(">Q", 1 << 63),
    "cbor_map_2_63": b"\xbb" + struct.pack(">Q", 1 << 63),
    "cbor_array_2_31": b"\x9a" + struct.pack(">I", 1 << 31) + bytes(100),
    "der_2_31": b"\x30\x84" + struct.pack(">I", 1 << 31),
    "der_2_63": b"\x30\x88" + struct.pack(">Q", 1 << 63),
    "der_length_of_126_bytes": b"\x30\xfe" + b"\xff" * 126,
    "der_integer_of_zeros": b"\x02\x84" + struct.pack(">I", 1 << 31) + bytes(1000),
    "tag_number_of_many_bytes": b"\x3f" + b"\xff" * 1000,
    "all_ones": b"\xff" * 1000,
    "zeros": bytes(1000),
    "json_number_of_many_digits": b'{"type":' + b"9" * 5000 + b"}",
    "json_exponent": b'{"type":1e999999999}',
}


def inside(name: str, bad: bytes) -> list[bytes]:
    """The input alone, and in the place where a seed has the part that nests."""
    good = seeds(name)[0]
    return [bad, good + bad, good[: len(good) // 2] + bad, bytes(32) + b"\xc1" + bytes(4) + bad]


def peak_of(target: Target, data: bytes) -> int:
    tracemalloc.start()
    try:
        target.try_on(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_nesting_and_long_lengths_take_neither_memory_nor_time(name: str) -> None:
    target = TARGETS[name]
    for seed in seeds(name)[:2]:
        target.try_on(seed)  # what is made once, such as anchors, is no fault of an input
    for bad in (*NESTED.values(), *LONG.values()):
        for data in inside(name, bad):
            try_in_time(target, data)
            assert peak_of(target, data) < MEMORY
