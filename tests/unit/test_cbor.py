"""Strict canonical CBOR against RFC 8949 appendices A and F, the CTAP2 rules, and resource attacks."""

from __future__ import annotations

import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from enum import IntEnum, StrEnum
from typing import Any

import pytest

from keyvouch import cbor
from keyvouch.errors import MalformedError, Reason, UsageError
from support.vectors import load

APPENDIX_A = load("cbor/appendix_a.json")
BAD = load("cbor/not_well_formed_and_noncanonical.json")["vectors"]
NOT_IN_PROFILE = {6, 7}  # major types: tags; simple values and floating point


def refusal(data: bytes, **options: Any) -> Reason:
    with pytest.raises(MalformedError) as caught:
        cbor.decode(data, **options)
    assert caught.value.fix
    return caught.value.reason


def test_there_are_as_many_vectors_as_expected() -> None:
    assert (len(APPENDIX_A), len(BAD)) == (82, 123)


def test_appendix_a_is_decoded_and_encoded_back_or_refused() -> None:
    accepted = 0
    for vector in APPENDIX_A:
        data = bytes.fromhex(vector["hex"])
        streamed = any(byte in data for byte in b"\x5f\x7f\x9f\xbf") and not vector["roundtrip"]
        if (data[0] >> 5 in NOT_IN_PROFILE and data not in (b"\xf4", b"\xf5", b"\xf6")) or streamed:
            assert refusal(data) in (Reason.CBOR_NONCANONICAL, Reason.CBOR_MALFORMED)
            continue
        value = cbor.decode(data)
        assert cbor.encode(value) == data
        assert "decoded" not in vector or value == vector["decoded"]
        accepted += 1
    assert accepted == 37


@pytest.mark.parametrize("vector", BAD, ids=lambda vector: vector["id"])
def test_bad_items_are_refused(vector: dict[str, str]) -> None:
    reason = refusal(bytes.fromhex(vector["hex"]))
    assert reason in (
        Reason.CBOR_MALFORMED,
        Reason.CBOR_NONCANONICAL,
        Reason.CBOR_DUPLICATE_KEY,
        Reason.CBOR_LIMIT,
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", Reason.CBOR_MALFORMED),
        ("1c", Reason.CBOR_MALFORMED),
        ("61ff", Reason.CBOR_MALFORMED),
        ("63eda080", Reason.CBOR_MALFORMED),  # a surrogate
        ("62c080", Reason.CBOR_MALFORMED),  # an overlong NUL
        ("4201", Reason.CBOR_MALFORMED),
        ("fa0000", Reason.CBOR_MALFORMED),
        ("1800", Reason.CBOR_NONCANONICAL),
        ("a1f500", Reason.CBOR_NONCANONICAL),
        ("a18000", Reason.CBOR_NONCANONICAL),
        ("a1a000", Reason.CBOR_NONCANONICAL),
        ("a220000000", Reason.CBOR_NONCANONICAL),  # -1 before 0
        ("a2616100010000", Reason.CBOR_NONCANONICAL),  # text before a number
        ("a2616100190100" + "00", Reason.CBOR_NONCANONICAL),  # text before a longer number
        ("f97e00", Reason.CBOR_NONCANONICAL),
        ("f7", Reason.CBOR_NONCANONICAL),
        ("c100", Reason.CBOR_NONCANONICAL),
        ("5f4100ff", Reason.CBOR_NONCANONICAL),
        ("a201000100", Reason.CBOR_DUPLICATE_KEY),
        ("a3010002000100", Reason.CBOR_DUPLICATE_KEY),
        ("0000", Reason.CBOR_TRAILING),
        ("8181818180", Reason.CBOR_LIMIT),
        ("a100a100a100a100a0", Reason.CBOR_LIMIT),
    ],
)
def test_reasons(data: str, reason: Reason) -> None:
    assert refusal(bytes.fromhex(data)) is reason


def test_depth_is_counted_in_containers() -> None:
    assert cbor.decode(bytes.fromhex("81818180")) == [[[[]]]]
    assert cbor.decode(b"\x00", max_depth=0) == 0
    assert refusal(b"\x80", max_depth=0) is Reason.CBOR_LIMIT
    assert refusal(b"\xa0", max_depth=0) is Reason.CBOR_LIMIT
    assert cbor.decode(b"\x81" * 63 + b"\x80", max_depth=64)
    for depth in (-1, 65):
        with pytest.raises(UsageError):
            cbor.decode(b"\x00", max_depth=depth)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x81" * 10_000, Reason.CBOR_LIMIT),
        (b"\xa1\x00" * 10_000, Reason.CBOR_LIMIT),
        (b"\xa1" * 10_000, Reason.CBOR_NONCANONICAL),
        (b"\xd8\x18" * 10_000, Reason.CBOR_NONCANONICAL),
        *[(bytes([head]) + b"\x7f" + b"\xff" * 7, Reason.CBOR_MALFORMED) for head in (0x5B, 0x7B, 0x9B, 0xBB)],
        *[(bytes([head]) + b"\xff" * 8, Reason.CBOR_MALFORMED) for head in (0x5B, 0x7B, 0x9B, 0xBB)],
    ],
)
def test_resource_attacks_cost_nothing_w11(data: bytes, reason: Reason) -> None:
    tracemalloc.start()
    started = time.thread_time()
    try:
        assert refusal(data) is reason
        assert time.thread_time() - started < 0.05
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_embedded_item_says_where_it_ends() -> None:
    assert cbor.decode_prefix(b"\xff\x82\x01\x02\x00", 1) == ([1, 2], 4)
    assert cbor.decode_prefix(b"\x40\x40", 1) == (b"", 2)
    with pytest.raises(MalformedError):
        cbor.decode_prefix(b"\x00", 1)
    with pytest.raises(UsageError):
        cbor.decode_prefix(b"\x00\x00", -1)


def test_map_keys_are_ordered_by_type_then_length_then_bytes() -> None:
    value: dict[cbor.CborKey, cbor.CborValue] = {
        "b": 0,
        "aa": 0,
        b"b": 0,
        b"aa": 0,
        -1: 0,
        -300: 0,
        1000: 0,
        24: 0,
        3: 0,
    }
    encoded = cbor.encode(value)
    decoded = cbor.decode(encoded)
    assert isinstance(decoded, dict)
    assert list(decoded) == [3, 24, 1000, -1, -300, b"b", b"aa", "b", "aa"]
    assert cbor.encode(decoded) == encoded


@pytest.mark.parametrize("power", [0, 5, 8, 16, 32, 64])
def test_integers_and_lengths_around_each_head_size(power: int) -> None:
    for number in ((1 << power) - 1, (1 << power) - 2 if power else 0, min(1 << power, (1 << 64) - 1)):
        for value in (number, -1 - number):
            assert cbor.decode(cbor.encode(value)) == value
        if number < 1 << 17:
            assert cbor.decode(cbor.encode(bytes(number))) == bytes(number)
            assert cbor.decode(cbor.encode("x" * number)) == "x" * number
            assert cbor.decode(cbor.encode([0] * number)) == [0] * number


def test_subclasses_and_other_mappings_are_encoded_as_what_they_are() -> None:
    class Number(IntEnum):
        ONE = 1

    class Word(StrEnum):
        A = "a"

    class Blob(bytes):
        pass

    class View(Mapping[int, str]):
        def __getitem__(self, key: int) -> str:
            return {1: "x"}[key]

        def __iter__(self) -> Iterator[int]:
            return iter((1,))

        def __len__(self) -> int:
            return 1

    assert cbor.encode([Number.ONE, Word.A, Blob(b"b"), View(), OrderedDict({2: None, 1: True})]) == bytes.fromhex(
        "8501616141 62a1016178a201f502f6".replace(" ", "")
    )
    assert cbor.encode((False, ())) == bytes.fromhex("82f480")


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        {1, 2},
        object(),
        1 << 64,
        -1 - (1 << 64),
        "\ud800",
        {None: 1},
        {True: 1},
        {(): 1},
        {1.0: 1},
        bytearray(b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_outside_the_profile_are_a_mistake_of_the_caller(value: object) -> None:
    with pytest.raises(UsageError):
        cbor.encode(value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        # Heads 28 to 30 are reserved everywhere, 31 has a meaning for strings, arrays and maps alone (RFC 8949 3).
        *[(bytes([major << 5 | short]), Reason.CBOR_MALFORMED) for major in range(7) for short in (28, 29, 30)],
        *[(bytes([major << 5 | 31]), Reason.CBOR_MALFORMED) for major in (0, 1, 6)],
        *[(bytes([major << 5 | 31]), Reason.CBOR_NONCANONICAL) for major in (2, 3, 4, 5)],
        # Simple values: 0 to 19 and 23 in one byte, 32 and more in two, and floating point of 2, 4 and 8 bytes (3.3).
        *[(bytes([0xE0 | value]), Reason.CBOR_NONCANONICAL) for value in (0, 1, 19, 23)],
        *[(bytes([0xE0 | value]) + bytes(16), Reason.CBOR_MALFORMED) for value in (28, 29, 30, 31)],
        *[(bytes([0xF8, value]), Reason.CBOR_MALFORMED) for value in (0, 20, 31)],
        *[(bytes([0xF8, value]), Reason.CBOR_NONCANONICAL) for value in (32, 255)],
        *[(bytes([head]) + bytes(size), Reason.CBOR_NONCANONICAL) for head, size in ((0xF9, 2), (0xFA, 4), (0xFB, 8))],
        *[(bytes([head]) + bytes(size), Reason.CBOR_MALFORMED) for head, size in ((0xF9, 1), (0xFA, 3), (0xFB, 7))],
        (b"\xf8", Reason.CBOR_MALFORMED),
        # A length beyond the input is told before anything that is wrong inside.
        (b"\x82\xc0", Reason.CBOR_MALFORMED),
        (b"\xa1\xc0", Reason.CBOR_MALFORMED),
        (b"\xa2\xc0\x00\x00", Reason.CBOR_MALFORMED),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else value.name,
)
def test_reasons_of_heads_and_lengths(data: bytes, reason: Reason) -> None:
    assert refusal(data) is reason


def test_maps_inside_maps_count_one_each() -> None:
    deepest: cbor.CborValue = {}
    for _ in range(3):
        deepest = {0: deepest}
    assert cbor.decode(cbor.encode(deepest)) == deepest
    assert refusal(cbor.encode({0: deepest})) is Reason.CBOR_LIMIT
    assert cbor.decode(cbor.encode({0: [{0: [0]}]})) == {0: [{0: [0]}]}
