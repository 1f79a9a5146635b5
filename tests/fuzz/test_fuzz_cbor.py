"""Whatever bytes come, the decoder refuses them with a reason or they are the one encoding of their value."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvouch import cbor
from keyvouch.cose import CoseKey
from keyvouch.errors import KeyvouchError, MalformedError
from support.mutations import damaged

INTEGERS = st.integers(-(1 << 64), (1 << 64) - 1)
KEYS = INTEGERS | st.binary(max_size=30) | st.text(max_size=30)
VALUES = st.recursive(
    KEYS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
STATEMENT = cbor.encode({1: b"\x01" * 32, 2: "a name", 3: [1, -2, True, None], 24: {"x": b"", "yy": 1 << 40}})


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((depth(item) for item in value.values()), default=0)
    return 1 + max((depth(item) for item in value), default=0) if isinstance(value, list) else 0


def check(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except MalformedError:
        return
    assert cbor.encode(value) == data
    assert depth(value) <= cbor.DEFAULT_DEPTH


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=64))
@example(b"\xa2\x00\x00\x00\x00")
def test_any_bytes(data: bytes) -> None:
    check(data)


@settings(max_examples=300, deadline=None)
@given(damaged(STATEMENT))
def test_damaged_items(data: bytes) -> None:
    check(data)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_values_there_and_back(value: cbor.CborValue) -> None:
    data = cbor.encode(value)
    if depth(value) > cbor.DEFAULT_DEPTH:
        with pytest.raises(MalformedError):
            cbor.decode(data)
    assert cbor.decode(data, max_depth=64) == value
    assert cbor.decode_prefix(b"\x00" + data + b"\xff", 1, max_depth=64) == (value, len(data) + 1)
    for cut in {0, len(data) // 2, len(data) - 1}:
        with pytest.raises(MalformedError):
            cbor.decode(data[:cut], max_depth=64)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_no_value_breaks_the_key_parser(value: cbor.CborValue) -> None:
    with pytest.raises(KeyvouchError):
        CoseKey.from_map(value)
