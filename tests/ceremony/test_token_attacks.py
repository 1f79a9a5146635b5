"""Tokens that are not quite right, at a real server: each bit, each end, each trick of JOSE (P14)."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keyvouch import base64url
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.proofs import jwk_of, sign_proof
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch_client.sign_in import new_proof_key
from keyvouch_server.domain.model import Session
from support.live_server import LiveServer, SignedIn, bearer, refused

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
BAD_TOKEN = {Reason.TOKEN_MALFORMED, Reason.TOKEN_INVALID}


def one_bit_changed(text: str) -> list[str]:
    """Every text that differs in one of the six bits of one character."""
    changed = []
    for at, character in enumerate(text):
        if character not in ALPHABET:
            changed.append(text[:at] + "A" + text[at + 1 :])
            continue
        number = ALPHABET.index(character)
        changed += [text[:at] + ALPHABET[number ^ 1 << bit] + text[at + 1 :] for bit in range(6)]
    return changed


def cut(text: str) -> list[str]:
    """Every prefix and every suffix but the whole."""
    return [text[:n] for n in range(len(text))] + [text[n:] for n in range(1, len(text))]


async def refusal_of(live: LiveServer, token: str) -> Reason | None:
    """What the server's own check of an access token says."""
    try:
        await live.app.authenticate(token)
    except KeyvouchError as error:
        return error.reason
    return None


async def test_every_bit_and_every_part_of_an_access_token_counts_P14(live: LiveServer):
    token = (await live.signed_in(await live.person("ada"))).tokens.access_token
    wrong = one_bit_changed(token) + cut(token)
    assert len(wrong) > 5000
    assert {await refusal_of(live, one) for one in wrong} == BAD_TOKEN
    assert await refusal_of(live, token) is None


async def refresh_refusal(live: LiveServer, signed_in: SignedIn, token: str) -> Reason | None:
    digest = hashlib.sha256(token.encode()).digest()
    statement = proof_statement(live.app.world.facts.server_id, digest)
    try:
        await live.app.refreshes.refresh(token, sign_proof(signed_in.proof_key, Purpose.REFRESH, statement))
    except KeyvouchError as error:
        return error.reason
    return None


async def test_every_bit_and_every_part_of_a_refresh_token_counts_and_none_ends_the_session_P14(live: LiveServer):
    signed_in = await live.signed_in(await live.person("ada"))
    older = signed_in.tokens.refresh_token
    newer = (await signed_in.refresh()).refresh_token
    before = await live.app.store.read(lambda tx: tx.get(Session, id=signed_in.session.session_id))
    for token in (older, newer):
        wrong = one_bit_changed(token) + cut(token)
        assert {await refresh_refusal(live, signed_in, one) for one in wrong} == {Reason.CREDENTIALS_INVALID}
    assert await live.app.store.read(lambda tx: tx.get(Session, id=signed_in.session.session_id)) == before
    assert await refresh_refusal(live, signed_in, newer) is None


def signing_key(live: LiveServer) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key((live.data / "token.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def es256(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def forged(live: LiveServer, token: str, header: dict[str, Any], claims: dict[str, Any] | None = None) -> str:
    """The token with members of header and claims changed (None: left out), signed by the server's own key."""
    parts = token.split(".")
    documents = []
    for part, changes in zip(parts[:2], (header, claims or {}), strict=True):
        document = {**json.loads(base64url.decode(part)), **changes}
        documents.append({k: v for k, v in document.items() if v is not None})
    message = ".".join(base64url.encode(json.dumps(d, separators=(",", ":")).encode()) for d in documents)
    return f"{message}.{base64url.encode(es256(signing_key(live), message.encode()))}"


OTHER = new_proof_key()
HEADERS: dict[str, dict[str, Any]] = {
    "no algorithm": {"alg": "none"},
    "no algorithm in capitals": {"alg": "NONE"},
    "a MAC": {"alg": "HS256"},
    "another curve": {"alg": "ES384"},
    "RSA": {"alg": "RS256"},
    "no alg": {"alg": None},
    "another type": {"typ": "JWT"},
    "the type of a proof": {"typ": "dpop+jwt"},
    "the type in capitals": {"typ": "AT+JWT"},
    "no type": {"typ": None},
    "another key id": {"kid": "other"},
    "a key id that is a path": {"kid": "../../token.key"},
    "no key id": {"kid": None},
    "a key of its own": {"jwk": jwk_of(OTHER.public_key())},
    "keys from elsewhere": {"jku": "https://attacker.test/jwks.json"},
    "certificates from elsewhere": {"x5u": "https://attacker.test/chain.pem"},
    "certificates of its own": {"x5c": ["MIIB"]},
    "a thumbprint": {"x5t#S256": "x"},
    "an extension nobody knows": {"crit": ["exp2"], "exp2": 1},
    "an empty list of extensions": {"crit": []},
    "an unencoded payload": {"b64": False, "crit": ["b64"]},
    "compression": {"zip": "DEF"},
    "content type": {"cty": "JWT"},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
async def test_no_trick_of_a_header_is_accepted_even_under_the_right_key_P14(live: LiveServer, header: dict[str, Any]):
    token = (await live.signed_in(await live.person("ada"))).tokens.access_token
    with refused(*BAD_TOKEN, status=grpc.StatusCode.UNAUTHENTICATED):
        await live.introspect(bearer(forged(live, token, header)))
    await live.introspect(bearer(forged(live, token, {})))  # the control: the forge is a good one


async def test_signatures_by_other_means_are_refused_P14(live: LiveServer):
    token = (await live.signed_in(await live.person("ada"))).tokens.access_token
    message = token.rpartition(".")[0].encode()
    public = signing_key(live).public_key()
    encodings = (
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        b"",
    )
    signatures = [hmac.digest(key, message, "sha256") for key in encodings]
    signatures += [es256(OTHER, message), bytes(64), b"", b"\xff" * 64]
    for signature in signatures:
        with refused(*BAD_TOKEN, status=grpc.StatusCode.UNAUTHENTICATED):
            await live.introspect(bearer(f"{message.decode()}.{base64url.encode(signature)}"))
    await live.introspect(bearer(f"{message.decode()}.{base64url.encode(es256(signing_key(live), message))}"))


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://elsewhere.test"}, Reason.TOKEN_INVALID),
        ({"aud": None}, Reason.TOKEN_MALFORMED),
        ({"aud": ["keyvouch", "other"]}, Reason.TOKEN_MALFORMED),
        ({"sid": "ses_unknown"}, Reason.SESSION_REVOKED),
        ({"sid": None}, Reason.TOKEN_MALFORMED),
        ({"exp": 1}, Reason.TOKEN_EXPIRED),
        ({"exp": None}, Reason.TOKEN_MALFORMED),
        ({"exp": "9999999999"}, Reason.TOKEN_MALFORMED),
        ({"iat": 9999999999, "exp": 99999999999}, Reason.TOKEN_INVALID),
        ({"cnf": {"jwk": {}}}, Reason.TOKEN_MALFORMED),
        ({"cnf": {"jkt": "x", "x5t#S256": "y"}}, Reason.TOKEN_MALFORMED),
    ],
)
async def test_claims_that_are_not_right_are_refused_even_under_the_right_key_P14(
    live: LiveServer, claims: dict[str, Any], reason: Reason
):
    token = (await live.signed_in(await live.person("ada"))).tokens.access_token
    with refused(reason, status=grpc.StatusCode.UNAUTHENTICATED):
        await live.introspect(bearer(forged(live, token, {}, claims)))


async def test_what_a_token_says_of_role_and_tenant_is_not_believed_P14(live: LiveServer):
    """The row decides: even the server's own key cannot make another user, tenant or strength of a session."""
    _, theirs = await live.tenant("other")
    signed_in = await live.signed_in(await live.person("ada"))
    token = signed_in.tokens.access_token
    said = {"sub": theirs.session.user_id, "tenant": theirs.session.tenant_id, "acr": "phishing-resistant", "role": "x"}
    told = await live.introspect(bearer(forged(live, token, {}, said)))
    assert told == await signed_in.introspect()


async def test_after_the_user_is_gone_every_token_is_refused_at_once_P14(live: LiveServer):
    ada = await live.person("ada")
    signed_in, foreign = await live.signed_in(ada), await live.signed_in(ada, audience="https://orders.test")
    for one in (signed_in, foreign):
        await one.introspect()
    await live.administer("DeleteUser", admin_pb.DeleteUserRequest(username="ada"))
    for one in (signed_in, foreign):
        with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
            await one.introspect()
        with refused(Reason.CREDENTIALS_INVALID, Reason.SESSION_REVOKED):
            await one.refresh()
