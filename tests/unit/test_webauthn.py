"""Client data, authenticator data and attestation objects: strict parsing, and building them again."""

from __future__ import annotations

import hashlib
import json
import struct
import time
import tracemalloc

import pytest

from keyvouch import base64url, cbor
from keyvouch.client_data import MAX_CLIENT_DATA, MAX_JSON_DEPTH
from keyvouch.errors import MalformedError, Reason, UsageError
from keyvouch.webauthn import (
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorData,
    CollectedClientData,
    Flags,
)
from support.forge import AAGUID, CHALLENGE, CREDENTIAL_ID, ORIGIN, RP_ID_HASH, UP_UV, Forge

FORGE = Forge()
ATTESTED = FORGE.attested()
GOOD = {"type": "webauthn.get", "challenge": base64url.encode(CHALLENGE), "origin": ORIGIN, "crossOrigin": False}


def client_data(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


def refusal(kind: type[bytes], data: bytes) -> Reason:
    with pytest.raises(MalformedError) as caught:
        kind(data)
    assert caught.value.fix
    return caught.value.reason


# base64url


@pytest.mark.parametrize("size", range(7))
def test_base64url_there_and_back(size: int) -> None:
    data = bytes(range(250, 250 + min(size, 6))) if size else b""
    text = base64url.encode(data)
    assert "=" not in text
    assert base64url.decode(text) == data


@pytest.mark.parametrize("text", ["A", "AA==", "AB", "A+", "A/", "AA\n", " AA", "AA.", "\xe4A", "AAAA=", "AA\x00", "="])
def test_base64url_has_one_spelling_w12(text: str) -> None:
    with pytest.raises(ValueError, match="not canonical"):
        base64url.decode(text)


# Client data


def test_client_data_is_its_bytes() -> None:
    data = CollectedClientData(client_data(extra={"a": [1.5, None]}))
    assert (data.type, data.challenge, data.origin) == ("webauthn.get", CHALLENGE, ORIGIN)
    assert (data.cross_origin, data.top_origin) == (False, None)
    assert data.sha256 == hashlib.sha256(data).digest()
    assert CollectedClientData(data) is data
    assert "webauthn.get" in repr(data)


def test_client_data_is_built_as_browsers_do() -> None:
    assert CollectedClientData.build("webauthn.get", b"\xff\xfe", "https://a.example") == (
        b'{"type":"webauthn.get","challenge":"__4","origin":"https://a.example","crossOrigin":false}'
    )
    framed = CollectedClientData.build("t", b"", "o", cross_origin=True, top_origin="https://\u00fc.example")
    assert (framed.cross_origin, framed.top_origin) == (True, "https://\u00fc.example")


def test_a_byte_order_mark_is_dropped() -> None:
    assert CollectedClientData(b"\xef\xbb\xbf" + client_data()).origin == ORIGIN


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": None}, Reason.CLIENT_DATA_TYPE),
        ({"type": ["webauthn.get"]}, Reason.CLIENT_DATA_TYPE),
        ({"challenge": 1}, Reason.CHALLENGE),
        ({"challenge": GOOD["challenge"] + "="}, Reason.CHALLENGE_ENCODING),  # type: ignore[operator]
        ({"challenge": "++//"}, Reason.CHALLENGE_ENCODING),
        ({"challenge": "AA\u0000"}, Reason.CHALLENGE),
        ({"challenge": "AB"}, Reason.CHALLENGE),
        ({"challenge": "\u00e4"}, Reason.CHALLENGE),
        ({"origin": None}, Reason.ORIGIN),
        ({"crossOrigin": None}, Reason.CROSS_ORIGIN),
        ({"crossOrigin": 0}, Reason.CROSS_ORIGIN),
        ({"topOrigin": None}, Reason.TOP_ORIGIN),
        ({"topOrigin": [ORIGIN]}, Reason.TOP_ORIGIN),
        ({"tokenBinding": None}, Reason.TOKEN_BINDING),
        ({"tokenBinding": {}}, Reason.TOKEN_BINDING),
        ({"tokenBinding": {"status": "present"}}, Reason.TOKEN_BINDING),
        ({"tokenBinding": {"status": "present", "id": 1}}, Reason.TOKEN_BINDING),
        ({"tokenBinding": {"status": ["present"]}}, Reason.TOKEN_BINDING),
    ],
    ids=repr,
)
def test_members_of_the_wrong_kind_w12(changes: dict[str, object], reason: Reason) -> None:
    assert refusal(CollectedClientData, client_data(**changes)) is reason


@pytest.mark.parametrize("name", ["type", "challenge", "origin", "crossOrigin", "topOrigin", "tokenBinding", "other"])
def test_a_member_occurs_once_w12(name: str) -> None:
    reasons = {
        "type": Reason.CLIENT_DATA_TYPE,
        "challenge": Reason.CHALLENGE,
        "origin": Reason.ORIGIN,
        "crossOrigin": Reason.CROSS_ORIGIN,
        "topOrigin": Reason.TOP_ORIGIN,
        "tokenBinding": Reason.TOKEN_BINDING,
    }
    members = [json.dumps(member) + ":" + json.dumps(GOOD.get(member, 1)) for member in [*GOOD, name, name]]
    twice = ("{" + ",".join(members) + "}").encode()
    assert refusal(CollectedClientData, twice) is reasons.get(name, Reason.CLIENT_DATA_JSON)


@pytest.mark.parametrize("status", [{"status": "supported"}, {"status": "present", "id": "AAAA"}])
def test_well_formed_token_binding_is_let_through(status: dict[str, str]) -> None:
    assert CollectedClientData(client_data(tokenBinding=status))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}x",
        b"{} {}",
        b'{"type":NaN}',
        b'{"type":-Infinity}',
        b"{'type':1}",
        b'{"a":1,}',
        b'{"a":"\n"}',
        b"\xff\xfe{\x00}\x00",
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xc0\x80"}',
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        client_data().decode().encode("utf-16"),
        client_data(a=1).replace(b"1}", b"9" * 5000 + b"}"),
    ],
    ids=lambda data: repr(data[:16]),
)
def test_what_is_not_one_json_object_in_utf8_w12(data: bytes) -> None:
    assert refusal(CollectedClientData, data) is Reason.CLIENT_DATA_JSON


def nested(depth: int) -> bytes:
    return client_data(x=0).replace(b"0}", b"[" * depth + b"]" * depth + b"}")


def test_json_depth_is_bounded_and_brackets_in_strings_do_not_count_w11() -> None:
    assert CollectedClientData(nested(MAX_JSON_DEPTH - 1))
    assert refusal(CollectedClientData, nested(MAX_JSON_DEPTH)) is Reason.CLIENT_DATA_JSON
    assert CollectedClientData(client_data(x="[" * 100 + '\\"{'))
    assert CollectedClientData(client_data(x=[[]] * 100))


@pytest.mark.parametrize(
    "data",
    [
        nested(10_000),
        b"[" * MAX_CLIENT_DATA,
        b'{"a":' * 10_000,
        b"[" * 9 + b'\\"' * 30_000,
        b"[" * 9 + b'"\\' * 30_000,
        client_data(x="y" * MAX_CLIENT_DATA),
        b"{" + b",".join(b'"%x":0' % number for number in [*range(7_000), 1]) + b"}",
    ],
    ids=lambda data: repr(data[:16]),
)
def test_json_resource_attacks_cost_nothing_w11(data: bytes) -> None:
    tracemalloc.start()
    started = time.thread_time()  # of this thread alone, however busy the machine is
    try:
        assert refusal(CollectedClientData, data) is Reason.CLIENT_DATA_JSON
        assert time.thread_time() - started < 0.5  # tracing makes it several times slower
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


# Authenticator data


def test_authenticator_data_has_an_end() -> None:
    def of(size: int) -> bytes:
        head = bytes(32) + bytes([Flags.UP | Flags.ED]) + bytes(4)
        return head + cbor.encode({"x": bytes(size - len(head) - 6)})

    assert len(of(64 * 1024)) == len(AuthenticatorData(of(64 * 1024))) == 64 * 1024
    assert refusal(AuthenticatorData, of(64 * 1024 + 1)) is Reason.AUTHDATA_LENGTH


def test_authenticator_data_is_its_bytes() -> None:
    data = AuthenticatorData.build(
        RP_ID_HASH, UP_UV | Flags.BE | Flags.BS, 7, attested=ATTESTED, extensions={"a": True}
    )
    assert (data.rp_id_hash, data.sign_count) == (RP_ID_HASH, 7)
    assert data.flags == Flags.UP | Flags.UV | Flags.BE | Flags.BS | Flags.AT | Flags.ED
    assert (data.user_present, data.user_verified, data.backup_eligible, data.backup_state) == (True,) * 4
    assert data.attested == ATTESTED
    assert data.extensions == {"a": True}
    assert AuthenticatorData(data) is data
    assert AuthenticatorData(bytes(data)) == data
    assert data.hex() in repr(data)


def test_bare_authenticator_data_and_reserved_flags() -> None:
    data = AuthenticatorData.build(RP_ID_HASH, 0x22, 0xFFFFFFFF)
    assert (len(data), data.attested, data.extensions, data.sign_count) == (37, None, None, 0xFFFFFFFF)
    assert (data.user_present, data.user_verified, data.backup_eligible, data.backup_state) == (False,) * 4
    assert AuthenticatorData.build(RP_ID_HASH, Flags.AT | Flags.ED, 0).flags == 0


def test_attested_credential_data_is_its_bytes() -> None:
    again = AttestedCredentialData(bytes(ATTESTED))
    assert (again.aaguid, again.credential_id, again.public_key) == (AAGUID, CREDENTIAL_ID, FORGE.public_key)
    assert type(again.aaguid) is type(again.credential_id) is bytes
    assert again.hex() in repr(again)
    assert refusal(AttestedCredentialData, ATTESTED + b"\x00") is Reason.AUTHDATA_TRAILING
    longest = AttestedCredentialData.build(AAGUID, bytes(1023), FORGE.public_key)
    assert len(longest.credential_id) == 1023


def raw(flags: int, tail: bytes = b"") -> bytes:
    return RP_ID_HASH + struct.pack(">BI", flags, 1) + tail


def with_id(length: int, present: int) -> bytes:
    return AAGUID + struct.pack(">H", length) + bytes(present)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(1)[:36], Reason.AUTHDATA_LENGTH),
        (b"", Reason.AUTHDATA_LENGTH),
        (raw(0x10), Reason.BACKUP_FLAGS),
        (raw(0x40), Reason.AUTHDATA_LENGTH),
        (raw(0x40, AAGUID + b"\x00"), Reason.AUTHDATA_LENGTH),
        (raw(0x40, with_id(16, 15)), Reason.AUTHDATA_LENGTH),
        (raw(0x40, with_id(16, 16)), Reason.AUTHDATA_LENGTH),
        (raw(0x40, with_id(0xFFFF, 100)), Reason.AUTHDATA_LENGTH),
        (raw(0x40, with_id(0, 0) + FORGE.public_key), Reason.CREDENTIAL_ID_LENGTH),
        (raw(0x40, with_id(1024, 1024) + FORGE.public_key), Reason.CREDENTIAL_ID_LENGTH),
        (raw(0x40, with_id(16, 16) + FORGE.public_key[:-1]), Reason.CREDENTIAL_PUBLIC_KEY),
        (raw(0x40, with_id(16, 16) + b"\x81" * 5000), Reason.CREDENTIAL_PUBLIC_KEY),
        (raw(0x40, with_id(16, 16) + b"\xa0"), Reason.CREDENTIAL_PUBLIC_KEY),
        (raw(0x40, ATTESTED + b"\x00"), Reason.AUTHDATA_TRAILING),
        (raw(0x00, b"\xa0"), Reason.AUTHDATA_TRAILING),
        (raw(0x80), Reason.AUTHDATA_EXTENSIONS),
        (raw(0x80, b"\x80"), Reason.AUTHDATA_EXTENSIONS),
        (raw(0x80, b"\xa1\x01\x02"), Reason.AUTHDATA_EXTENSIONS),
        (raw(0x80, b"\xa1\x61"), Reason.AUTHDATA_EXTENSIONS),
        (raw(0x80, b"\xbf\xff"), Reason.AUTHDATA_EXTENSIONS),
        (raw(0x80, b"\xa0\x00"), Reason.AUTHDATA_TRAILING),
        (raw(0xC0, ATTESTED), Reason.AUTHDATA_EXTENSIONS),
    ],
)
def test_authenticator_data_of_any_other_length_or_shape(data: bytes, reason: Reason) -> None:
    assert refusal(AuthenticatorData, data) is reason


def test_bad_parts_are_a_mistake_of_the_caller() -> None:
    for rp_id_hash, flags, count in ((b"", 1, 1), (RP_ID_HASH, 256, 1), (RP_ID_HASH, 1, 1 << 32), (RP_ID_HASH, 1, -1)):
        with pytest.raises(UsageError):
            AuthenticatorData.build(rp_id_hash, flags, count)
    for aaguid, credential_id in ((b"", b"x"), (AAGUID, b""), (AAGUID, bytes(1024))):
        with pytest.raises(UsageError):
            AttestedCredentialData.build(aaguid, credential_id, FORGE.public_key)


# Attestation objects

DATA = AuthenticatorData.build(RP_ID_HASH, UP_UV, 0, attested=ATTESTED)
OBJECT = {"fmt": "none", "attStmt": {}, "authData": DATA}


def test_an_attestation_object_is_its_bytes() -> None:
    parsed = AttestationObject.build("none", DATA, {})
    assert (parsed.format, parsed.statement, parsed.authenticator_data) == ("none", {}, DATA)
    assert parsed.attested == ATTESTED
    assert AttestationObject(parsed) is parsed
    assert parsed == cbor.encode(OBJECT)
    assert parsed.hex() in repr(parsed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.ATTESTATION_OBJECT),
        (b"\x81" * 10_000, Reason.ATTESTATION_OBJECT),
        (b"\xa1\x68authData\x5b" + b"\x7f" * 8, Reason.ATTESTATION_OBJECT),
        (bytes(64 * 1024 + 1), Reason.ATTESTATION_OBJECT),
        (cbor.encode(["none"]), Reason.ATTESTATION_OBJECT),
        (cbor.encode(OBJECT | {"fmt": None}), Reason.ATTESTATION_OBJECT),
        (cbor.encode(OBJECT | {"attStmt": []}), Reason.ATTESTATION_OBJECT),
        (cbor.encode(OBJECT | {"authData": "x"}), Reason.ATTESTATION_OBJECT),
        (cbor.encode(OBJECT | {"epAtt": True}), Reason.ATTESTATION_OBJECT),
        (cbor.encode({"fmt": "none", "authData": DATA}), Reason.ATTESTATION_OBJECT),
        (cbor.encode(OBJECT) + b"\x00", Reason.CBOR_TRAILING),
        (b"\xd9\xd9\xf7" + cbor.encode(OBJECT), Reason.CBOR_NONCANONICAL),
        (b"\xa2\x63fmt\x60\x63fmt\x60", Reason.CBOR_DUPLICATE_KEY),
        (cbor.encode(OBJECT | {"authData": raw(1)}), Reason.ATTESTED_DATA),
        (cbor.encode(OBJECT | {"authData": raw(1, ATTESTED)}), Reason.ATTESTED_DATA),
        (cbor.encode(OBJECT | {"authData": b""}), Reason.AUTHDATA_LENGTH),
        (cbor.encode(OBJECT | {"authData": DATA + b"\x00"}), Reason.AUTHDATA_TRAILING),
    ],
)
def test_attestation_objects_of_any_other_shape(data: bytes, reason: Reason) -> None:
    assert refusal(AttestationObject, data) is reason


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1])
def test_the_longest_client_data(size: int) -> None:
    data = client_data(padding="")
    data = client_data(padding="x" * (size - len(data)))
    assert len(data) == size
    if size == 64 * 1024:
        assert CollectedClientData(data) == data
    else:
        assert refusal(CollectedClientData, data) is Reason.CLIENT_DATA_JSON


@pytest.mark.parametrize(
    ("inside", "depth"),
    [
        ([[[[[[[1]]]]]]], 8),
        ([[[[[[[[1]]]]]]]], 9),
        ({"b": [1], "c": [[[[[[1]]]]]]}, 8),
        ({"b": [1], "c": [[[[[[[1]]]]]]]}, 9),
        ({"b": {"d": [1]}, "c": [[[[[[[1]]]]]]]}, 9),
    ],
)
def test_brackets_are_counted_up_and_down(inside: object, depth: int) -> None:
    data = client_data(a=[1], x=inside, z=[[[[[[[1]]]]]]])
    if depth <= MAX_JSON_DEPTH == 8:
        assert CollectedClientData(data) == data
    else:
        assert refusal(CollectedClientData, data) is Reason.CLIENT_DATA_JSON


def test_built_client_data_is_utf8() -> None:
    built = CollectedClientData.build("webauthn.get", CHALLENGE, "https://b\u00fccher.example")
    assert "https://b\u00fccher.example".encode() in built


def test_a_client_that_does_not_say_is_in_no_cross_origin_frame() -> None:
    text = json.dumps({"type": "webauthn.get", "challenge": base64url.encode(CHALLENGE), "origin": ORIGIN})
    assert CollectedClientData(text.encode()).cross_origin is False


@pytest.mark.parametrize(
    ("status", "is_good"),
    [
        ({"status": "not-supported"}, True),
        ({"status": "supported"}, True),
        ({"status": "present", "id": "x"}, True),
        ({"status": "other", "id": "x"}, False),
        ({"id": "x"}, False),
    ],
)
def test_token_binding_by_its_status(status: dict[str, str], is_good: bool) -> None:
    data = client_data(tokenBinding=status)
    if is_good:
        assert CollectedClientData(data) == data
    else:
        assert refusal(CollectedClientData, data) is Reason.TOKEN_BINDING


def test_the_shortest_credential_id() -> None:
    attested = AttestedCredentialData.build(AAGUID, b"x", Forge().public_key)
    assert AttestedCredentialData(bytes(attested)).credential_id == b"x"


@pytest.mark.parametrize("flags", [0, 0xFF])
def test_flags_at_both_ends(flags: int) -> None:
    built = AuthenticatorData.build(RP_ID_HASH, flags, 0)
    assert built.flags == flags & ~(Flags.AT | Flags.ED)


def test_the_longest_attestation_object() -> None:
    data = AuthenticatorData.build(RP_ID_HASH, UP_UV, 0, attested=Forge().attested())

    def made(size: int) -> bytes:
        members = {"fmt": "x", "attStmt": {"x": bytes(size)}, "authData": data}
        return cbor.encode(members)

    fits = 64 * 1024 - (len(made(1 << 15)) - (1 << 15))
    assert len(AttestationObject(made(fits))) == 64 * 1024
    assert refusal(AttestationObject, made(fits + 1)) is Reason.ATTESTATION_OBJECT
