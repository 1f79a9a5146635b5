"""Ids are the base32 of 16 random bytes behind a prefix."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.ids import DEVICE, ID_ENTROPY, new_id


@given(st.binary(min_size=ID_ENTROPY, max_size=ID_ENTROPY))
def test_an_id_is_base32_without_padding(entropy: bytes) -> None:
    assert new_id(DEVICE, entropy) == f"{DEVICE}_{base64.b32encode(entropy).decode().rstrip('=').lower()}"


@pytest.mark.parametrize("size", [0, 15, 17])
def test_less_or_more_than_16_bytes_is_a_mistake(size: int) -> None:
    with pytest.raises(ValueError, match="16 random bytes"):
        new_id(DEVICE, bytes(size))
