"""Access tokens: the one form that is accepted, and all the forms that are not."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keyvouch.base64url import encode as base64url
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason, UsageError
from keyvouch.proofs import jwk_of
from keyvouch.tokens import (
    MAX_TOKEN,
    AccessTokenClaims,
    certificate_thumbprint,
    sign_access_token,
    token_header,
    verify_access_token,
)

KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = {"key-1": KEY.public_key(), "key-2": ec.generate_private_key(ec.SECP256R1()).public_key()}
ISSUER, AUDIENCE, NOW = "https://keyvouch.test", "https://orders.test", 1_800_000_000
CLAIMS = AccessTokenClaims(
    issuer=ISSUER,
    subject="usr_ada",
    audience=AUDIENCE,
    client_id="shop",
    tenant="ten_example",
    session_id="ses_one",
    token_id="jti-1",
    issued_at=NOW,
    expires_at=NOW + 300,
    auth_time=NOW - 10,
    acr="number-matched",
    amr=("pop", "pin", "mfa"),
    assurance="tpm/hardware_gated/attested/root",
    confirmation="thumb",
    device_id="dev_1",
    username="ada",
)


def sign(message: bytes) -> bytes:
    return KEY.sign(message, ec.ECDSA(hashes.SHA256()))


def token(claims: AccessTokenClaims = CLAIMS) -> str:
    return sign_access_token(claims, header=token_header("key-1"), sign=sign)


def verify(text: str, **changes: Any) -> AccessTokenClaims:
    expected: dict[str, Any] = {"keys": KEYS, "issuer": ISSUER, "audience": AUDIENCE, "now": NOW + 5}
    return verify_access_token(text, **{**expected, **changes})


def crafted(header: str, payload: str, *, signer: Callable[[bytes], bytes] = sign) -> str:
    """A token with a real signature over any text at all."""
    message = f"{base64url(header.encode())}.{base64url(payload.encode())}".encode()
    r, s = decode_dss_signature(signer(message))
    return f"{message.decode()}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


HEADER: dict[str, Any] = {"alg": "ES256", "typ": "at+jwt", "kid": "key-1"}
PAYLOAD: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token().split(".")[1] + "=="))


def with_header(**changes: Any) -> str:
    header = {name: value for name, value in {**HEADER, **changes}.items() if value is not None}
    return crafted(json.dumps(header), json.dumps(PAYLOAD))


def with_payload(**changes: Any) -> str:
    payload = {name: value for name, value in {**PAYLOAD, **changes}.items() if value is not None}
    return crafted(json.dumps(HEADER), json.dumps(payload))


def test_control_claims_come_back_as_they_went() -> None:
    assert verify(token()) == CLAIMS
    assert verify(crafted(json.dumps(HEADER), json.dumps(PAYLOAD))) == CLAIMS


def test_optional_claims_may_be_absent() -> None:
    bare = dataclasses.replace(CLAIMS, confirmation="", device_id="", username="")
    assert verify(token(bare)) == bare


def test_a_token_is_bound_to_a_certificate_as_rfc_8705_says_P15() -> None:
    bound = dataclasses.replace(CLAIMS, confirmation="", certificate_thumbprint=certificate_thumbprint(b"DER"))
    payload = json.loads(base64.urlsafe_b64decode(token(bound).split(".")[1] + "=="))
    assert payload["cnf"] == {"x5t#S256": base64url(hashlib.sha256(b"DER").digest())}
    assert verify(token(bound)) == bound


def test_a_token_is_not_bound_to_a_key_and_a_certificate_P15() -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(CLAIMS, certificate_thumbprint=certificate_thumbprint(b"DER"))


def test_the_payload_has_the_names_of_rfc_9068() -> None:
    assert {"iss", "sub", "aud", "exp", "iat", "jti", "client_id", "auth_time", "acr", "amr"} <= PAYLOAD.keys()
    assert PAYLOAD["cnf"] == {"jkt": "thumb"}


def test_the_issuer_itself_takes_any_audience() -> None:
    assert verify(token(), audience=None) == CLAIMS


def test_every_prefix_of_a_token_is_refused_P14() -> None:
    good = token()
    for end in range(len(good)):
        with pytest.raises(KeyvouchError):
            verify(good[:end])


def test_every_suffix_of_a_token_is_refused_P14() -> None:
    good = token()
    for start in range(1, len(good)):
        with pytest.raises(KeyvouchError):
            verify(good[start:])


def test_every_bit_flip_of_a_token_is_refused_P14() -> None:
    good = token().encode()
    for place in range(len(good)):
        for bit in range(8):
            flipped = bytearray(good)
            flipped[place] ^= 1 << bit
            with pytest.raises(KeyvouchError):
                verify(flipped.decode("latin-1"))


@pytest.mark.parametrize("more", ["", "=", "==", "\n", " ", ".", ".x", "A", "AA", "AAAA"])
def test_nothing_may_stand_before_or_after_a_token(more: str) -> None:
    assert verify(token()) == CLAIMS
    for text in (token() + more, more + token()) if more else ():
        with pytest.raises(KeyvouchError):
            verify(text)


HEADERS: dict[str, dict[str, Any]] = {
    "alg none": {"alg": "none"},
    "alg None": {"alg": "None"},
    "alg empty": {"alg": ""},
    "alg HS256": {"alg": "HS256"},
    "alg RS256": {"alg": "RS256"},
    "alg ES384": {"alg": "ES384"},
    "alg es256": {"alg": "es256"},
    "alg list": {"alg": ["ES256"]},
    "alg absent": {"alg": None},
    "typ JWT": {"typ": "JWT"},
    "typ with prefix": {"typ": "application/at+jwt"},
    "typ upper case": {"typ": "AT+JWT"},
    "typ absent": {"typ": None},
    "kid of another key": {"kid": "key-2"},
    "kid unknown": {"kid": "key-3"},
    "kid empty": {"kid": ""},
    "kid path": {"kid": "../../dev/null"},
    "kid number": {"kid": 1},
    "kid list": {"kid": ["key-1"]},
    "kid absent": {"kid": None},
    "jku": {"jku": "https://evil.test/jwks"},
    "jwk": {"jwk": jwk_of(KEY.public_key())},
    "x5u": {"x5u": "https://evil.test/cert"},
    "x5c": {"x5c": ["MII="]},
    "crit": {"crit": ["exp"]},
    "crit empty": {"crit": []},
    "b64 false": {"b64": False, "crit": ["b64"]},
    "zip": {"zip": "DEF"},
    "unknown member": {"x": 1},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_other_than_the_one_is_refused_P14(name: str) -> None:
    assert verify(with_header()) == CLAIMS
    with pytest.raises(EvidenceError) as caught:
        verify(with_header(**HEADERS[name]))
    assert caught.value.reason is Reason.TOKEN_INVALID


def test_a_mac_made_with_the_public_key_is_refused() -> None:
    public = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    message = f"{base64url(json.dumps({**HEADER, 'alg': 'HS256'}).encode())}.{token().split('.')[1]}"
    mac = hmac.HMAC(public, hashes.SHA256())
    mac.update(message.encode())
    with pytest.raises(KeyvouchError):
        verify(f"{message}.{base64url(mac.finalize())}")


@pytest.mark.parametrize("signature", ["", "AA", base64url(bytes(64)), base64url(bytes(63)), base64url(bytes(65))])
def test_a_signature_that_is_none_is_refused(signature: str) -> None:
    head, body, good = token().split(".")
    assert verify(f"{head}.{body}.{good}") == CLAIMS
    with pytest.raises(KeyvouchError):
        verify(f"{head}.{body}.{signature}")


def test_a_der_signature_is_refused() -> None:
    head, body, _ = token().split(".")
    with pytest.raises(MalformedError):
        verify(f"{head}.{body}.{base64url(sign(f'{head}.{body}'.encode()))}")


def test_a_signature_by_another_key_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    text = crafted(json.dumps(HEADER), json.dumps(PAYLOAD), signer=lambda m: other.sign(m, ec.ECDSA(hashes.SHA256())))
    with pytest.raises(EvidenceError) as caught:
        verify(text)
    assert caught.value.reason is Reason.TOKEN_INVALID


def test_parts_of_two_tokens_do_not_make_one() -> None:
    one, two = token().split("."), token(dataclasses.replace(CLAIMS, subject="usr_eve")).split(".")
    assert verify(".".join(two)).subject == "usr_eve"
    for mixed in ([one[0], two[1], one[2]], [one[0], one[1], two[2]]):
        with pytest.raises(EvidenceError):
            verify(".".join(mixed))


DUPLICATES = {
    "header": (
        '{"alg":"ES256","typ":"at+jwt","kid":"key-1","kid":"key-1"}',
        json.dumps(PAYLOAD),
    ),
    "payload": (json.dumps(HEADER), json.dumps(PAYLOAD)[:-1] + ',"sub":"usr_eve"}'),
    "nested": (json.dumps(HEADER), json.dumps({**PAYLOAD, "cnf": 0})[:-2] + '0,"z":{"jkt":"a","jkt":"b"}}'),
}


@pytest.mark.parametrize("place", DUPLICATES)
def test_duplicate_names_are_refused_W12(place: str) -> None:
    with pytest.raises(MalformedError) as caught:
        verify(crafted(*DUPLICATES[place]))
    assert caught.value.reason is Reason.TOKEN_MALFORMED


REQUIRED = ["iss", "sub", "aud", "client_id", "tenant", "sid", "jti", "iat", "exp", "auth_time", "acr", "amr"]


@pytest.mark.parametrize("name", [*REQUIRED, "assurance"])
def test_a_missing_claim_is_refused(name: str) -> None:
    with pytest.raises(KeyvouchError):
        verify(with_payload(**{name: None}))


WRONG_TYPES: list[tuple[str, Any]] = [
    *((name, wrong) for name in ("iss", "sub", "aud", "sid", "acr", "assurance", "device") for wrong in (1, ["a"], {})),
    *((name, wrong) for name in ("iat", "exp", "auth_time") for wrong in ("1", 1.5, True, [1])),
    ("amr", "pop"),
    ("amr", [1]),
    ("cnf", "thumb"),
    ("cnf", {}),
    ("cnf", [["jkt", "thumb"]]),
    ("cnf", {"jkt": 1}),
    ("cnf", {"jkt": ""}),
    ("cnf", {"jkt": "thumb", "x5t#S256": base64url(bytes(32))}),
    ("cnf", {"jkt": "thumb", "jwk": {}}),
    ("cnf", {"jwk": jwk_of(KEY.public_key())}),
    ("cnf", {"kid": "key-1"}),
    ("cnf", {"x5t": base64url(bytes(20))}),
    ("cnf", {"x5t#s256": base64url(bytes(32))}),
    ("cnf", {"x5t#S256": 1}),
    ("cnf", {"x5t#S256": ""}),
    ("cnf", {"x5t#S256": base64url(bytes(31))}),
    ("cnf", {"x5t#S256": base64url(bytes(33))}),
    ("cnf", {"x5t#S256": base64url(bytes(32)) + "="}),
    ("cnf", {"x5t#S256": base64url(bytes(32))[:-1] + "B"}),  # left-over bits
]


@pytest.mark.parametrize(("name", "wrong"), WRONG_TYPES)
def test_a_claim_of_the_wrong_type_is_refused(name: str, wrong: Any) -> None:
    assert verify(with_payload()) == CLAIMS
    with pytest.raises(KeyvouchError):
        verify(with_payload(**{name: wrong}))


@pytest.mark.parametrize("payload", ["", "[]", "null", '"x"', "{", "\ufeff{}", "[" * 2000, "NaN"])
def test_a_payload_that_is_no_object_is_refused(payload: str) -> None:
    with pytest.raises(MalformedError):
        verify(crafted(json.dumps(HEADER), payload))


def test_a_list_of_audiences_is_refused() -> None:
    with pytest.raises(KeyvouchError):
        verify(with_payload(aud=[AUDIENCE]))


@pytest.mark.parametrize("issuer", ["", "https://evil.test", ISSUER + "/", ISSUER.upper()])
def test_another_issuer_is_refused(issuer: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify(with_payload(iss=issuer))
    assert caught.value.reason is Reason.TOKEN_INVALID


@pytest.mark.parametrize("audience", ["", "https://other.test", AUDIENCE + "/", AUDIENCE[:-1]])
def test_another_audience_is_refused(audience: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify(with_payload(aud=audience))
    assert caught.value.reason is Reason.TOKEN_AUDIENCE


@pytest.mark.parametrize(
    ("now", "leeway", "accepted"),
    [
        (NOW, 0, True),
        (NOW - 1, 0, False),
        (NOW - 1, 1, True),
        (NOW - 2, 1, False),
        (NOW + 299, 0, True),
        (NOW + 300, 0, False),
        (NOW + 300, 1, True),
        (NOW + 301, 1, False),
    ],
)
def test_instants_are_exact(now: int, leeway: int, accepted: bool) -> None:
    if accepted:
        assert verify(token(), now=now, leeway=leeway) == CLAIMS
        return
    with pytest.raises(EvidenceError) as caught:
        verify(token(), now=now, leeway=leeway)
    assert caught.value.reason is (Reason.TOKEN_EXPIRED if now > NOW else Reason.TOKEN_INVALID)


def test_a_token_longer_than_any_is_refused_before_it_is_parsed() -> None:
    text = with_payload(padding="x" * MAX_TOKEN)
    assert len(text) > MAX_TOKEN
    with pytest.raises(MalformedError):
        verify(text)


@pytest.mark.parametrize("text", ["", ".", "..", "...", "a.b", "a.b.c.d", "é.é.é", "a b.c.d", "\x00.\x00.\x00"])
def test_rubbish_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError) as caught:
        verify(text)
    assert caught.value.reason is Reason.TOKEN_MALFORMED


def test_no_error_shows_the_token() -> None:
    good = token()
    with pytest.raises(EvidenceError) as caught:
        verify(good, now=NOW + 900)
    assert good.split(".")[2] not in f"{caught.value!r}{caught.value}{caught.value.metadata}"
