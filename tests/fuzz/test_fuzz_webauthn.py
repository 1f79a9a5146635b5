"""Damaged containers are refused with a reason, or parse into parts that rebuild the very same bytes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvouch import base64url
from keyvouch.attestation import verify_assertion, verify_registration
from keyvouch.cose import CoseKey
from keyvouch.errors import KeyvouchError, MalformedError
from keyvouch.webauthn import AttestationObject, AuthenticatorData, CollectedClientData
from support.forge import CHALLENGE, ORIGIN, RP_ID_HASH, UP_UV, Forge
from support.mutations import damaged

FORGE = Forge()
REGISTRATION = FORGE.registration()
ASSERTION = FORGE.assertion()
CLIENT_DATA = bytes(CollectedClientData.build("webauthn.get", CHALLENGE, ORIGIN, cross_origin=True, top_origin="x"))
WITH_ALL = bytes(
    AuthenticatorData.build(RP_ID_HASH, UP_UV, 7, attested=FORGE.attested(), extensions={"credProtect": 2})
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(damaged(CLIENT_DATA) | st.binary(max_size=200))
def test_client_data(data: bytes) -> None:
    try:
        parsed = CollectedClientData(data)
    except MalformedError:
        return
    assert parsed == data
    members = json.loads(data.decode("utf-8-sig"))
    assert base64url.encode(parsed.challenge) == members["challenge"]
    assert (parsed.type, parsed.origin) == (members["type"], members["origin"])
    assert (parsed.cross_origin, parsed.top_origin) == (members.get("crossOrigin", False), members.get("topOrigin"))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(("type", "challenge", "origin", "crossOrigin", "topOrigin", "x")), JSON))
def test_client_data_of_any_members(members: dict[str, object]) -> None:
    good = {"type": "webauthn.get", "challenge": "AAAA", "origin": ORIGIN}
    data = json.dumps(good | members).encode()
    with contextlib.suppress(MalformedError):
        assert CollectedClientData(data) == data


@settings(max_examples=400, deadline=None)
@given(damaged(WITH_ALL) | damaged(WITH_ALL[:37]) | st.binary(max_size=200))
def test_authenticator_data(data: bytes) -> None:
    try:
        parsed = AuthenticatorData(data)
    except MalformedError:
        return
    rebuilt = AuthenticatorData.build(
        parsed.rp_id_hash,
        parsed.flags,
        parsed.sign_count,
        attested=parsed.attested,
        extensions=parsed.extensions,
    )
    assert rebuilt == data


@settings(max_examples=300, deadline=None)
@given(damaged(REGISTRATION["attestation_object"]) | st.binary(max_size=100))
def test_attestation_object(data: bytes) -> None:
    try:
        parsed = AttestationObject(data)
    except MalformedError:
        return
    statement: Any = parsed.statement
    assert AttestationObject.build(parsed.format, parsed.authenticator_data, statement) == data


@settings(max_examples=300, deadline=None)
@given(damaged(FORGE.public_key))
def test_cose_key(data: bytes) -> None:
    try:
        key = CoseKey(data)
    except MalformedError:
        return
    assert CoseKey.from_public_key(key.key_object(), key.algorithm) == data


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damaged_assertion_is_accepted(data: st.DataObject) -> None:
    name = data.draw(
        st.sampled_from(("client_data", "authenticator_data", "signature", "credential_id", "user_handle"))
    )
    verify_assertion(**ASSERTION)
    with pytest.raises(KeyvouchError):
        verify_assertion(**ASSERTION | {name: data.draw(damaged(ASSERTION[name]))})


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damaged_registration_is_accepted(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(("client_data", "attestation_object")))
    verify_registration(**REGISTRATION)
    with pytest.raises(KeyvouchError):
        verify_registration(**REGISTRATION | {name: data.draw(damaged(REGISTRATION[name]))})


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20) | st.text("ABab01-_", max_size=20))
def test_base64url(text: str) -> None:
    try:
        data = base64url.decode(text)
    except ValueError:
        return
    assert base64url.encode(data) == text
