"""The record of a card account: read back as written, refused when damaged, free of secrets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import AuthenticatorSettings, Credential, CredProtect, User
from keyvouch_agent.vaults.pkcs11.profile import ExistingKey, TokenProfile
from keyvouch_agent.vaults.pkcs11.record import CardKey, CardState, decode, encode
from keyvouch_agent.vaults.pkcs11.uri import TokenName

CREDENTIAL = Credential(
    CredentialId(b"c" * 32), "example.org", User(b"u", "alice", "Alice"), -7, True, b"cose", 3, 9,
    protect=CredProtect.UV_REQUIRED,
)  # fmt: skip
NAME = TokenName("label", "serial", "maker", "model")
FULL = CardState(
    TokenProfile(NAME, "/usr/lib/x.so", (-7, -257), ExistingKey(b"\x01", b"certificate", b"cose")),
    (CardKey(CREDENTIAL, b"k" * 16, is_ours=True, pin_always=False),
     CardKey(replace(CREDENTIAL, id=CredentialId(b"d" * 32)), b"\x01", is_ours=False, pin_always=True)),
    (b"s" * 16,),
    3,
    AuthenticatorSettings(8, ("example.org",), True, True),
)  # fmt: skip


@pytest.mark.parametrize("state", [CardState(), FULL, replace(FULL, token=replace(FULL.token, existing=None))])  # type: ignore[type-var]
def test_record_is_read_back(state: CardState) -> None:
    assert decode(encode(state)) == state


def refused(content: bytes) -> Reason:
    with pytest.raises(DeviceError) as caught:
        decode(content)
    return caught.value.reason


def test_every_damaged_byte_is_noticed() -> None:
    content = encode(FULL)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x01
        assert refused(bytes(damaged)) in (Reason.VAULT_CORRUPT, Reason.UNSUPPORTED)
    for length in range(len(content)):
        assert refused(content[:length]) is Reason.VAULT_CORRUPT
    assert refused(content + b"\0") is Reason.VAULT_CORRUPT
    decode(content)


def test_newer_version_is_left_alone() -> None:
    outer = dict(cbor.decode(encode(FULL)))  # type: ignore[call-overload]
    assert refused(cbor.encode({**outer, 2: 2})) is Reason.UNSUPPORTED


@given(st.binary(max_size=80))
def test_any_bytes(content: bytes) -> None:
    assert refused(content) is Reason.VAULT_CORRUPT
