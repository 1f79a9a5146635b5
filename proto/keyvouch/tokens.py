"""Access tokens: JWTs of type `at+jwt` (RFC 9068), signed with ES256 and nothing else.

The verifier is strict on purpose (RFC 8725): one algorithm, one type, a known key id, no `crit`, no embedded
keys, canonical base64url, the issuer, audience and instants of the caller. Refresh tokens are opaque and live
in the server alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from keyvouch import base64url
from keyvouch.errors import EvidenceError, MalformedError, Reason, UsageError

__all__ = ["AccessTokenClaims", "certificate_thumbprint", "sign_access_token", "token_header", "verify_access_token"]

MAX_TOKEN: Final = 4096
"""Longest access token anyone here parses, in characters."""

_ES256 = ec.ECDSA(hashes.SHA256())
_KEY, _CERTIFICATE = "jkt", "x5t#S256"
"""The two confirmation methods; a token has one of them or none."""


@dataclass(frozen=True, slots=True)
class AccessTokenClaims:
    """Claims of an access token. Instants in seconds since the epoch.

    `assurance` is the text form of the approving credential's assurance; empty strings where a claim is absent. At
    most one of two says who may use the token (`cnf`, RFC 7800), in base64url: `confirmation` the `jkt` thumbprint of
    the client's proof key (RFC 9449 section 6.1), `certificate_thumbprint` the `x5t#S256` of its TLS certificate
    (RFC 8705 section 3.1). Raises `UsageError` for both.
    """

    issuer: str
    subject: str
    audience: str
    client_id: str
    tenant: str
    session_id: str
    token_id: str
    issued_at: int
    expires_at: int
    auth_time: int
    acr: str
    amr: tuple[str, ...]
    assurance: str
    confirmation: str = ""
    device_id: str = ""
    username: str = ""
    certificate_thumbprint: str = ""

    def __post_init__(self) -> None:
        if self.confirmation and self.certificate_thumbprint:
            raise UsageError("A token is bound to a key or to a certificate, not to both.", fix="Give one of them.")


def certificate_thumbprint(der: bytes) -> str:
    """`x5t#S256` of a certificate in DER: its SHA-256 in base64url (RFC 8705 section 3.1)."""
    return base64url.encode(hashlib.sha256(der).digest())


def token_header(key_id: str) -> bytes:
    """The encoded JOSE header for a key: build it once per key, not once per token."""
    header = {"alg": "ES256", "typ": "at+jwt", "kid": key_id}
    return base64url.encode(json.dumps(header, separators=(",", ":")).encode()).encode("ascii")


def sign_access_token(claims: AccessTokenClaims, *, header: bytes, sign: Callable[[bytes], bytes]) -> str:
    """Serialise and sign. `sign` gives a DER ECDSA-SHA256 signature (P-256) over the bytes it is handed."""
    payload: dict[str, object] = {
        "iss": claims.issuer,
        "sub": claims.subject,
        "aud": claims.audience,
        "client_id": claims.client_id,
        "tenant": claims.tenant,
        "sid": claims.session_id,
        "jti": claims.token_id,
        "iat": claims.issued_at,
        "exp": claims.expires_at,
        "auth_time": claims.auth_time,
        "acr": claims.acr,
        "amr": claims.amr,
        "assurance": claims.assurance,
    }
    if claims.confirmation:
        payload["cnf"] = {_KEY: claims.confirmation}
    if claims.certificate_thumbprint:
        payload["cnf"] = {_CERTIFICATE: claims.certificate_thumbprint}
    if claims.device_id:
        payload["device"] = claims.device_id
    if claims.username:
        payload["preferred_username"] = claims.username
    message = header + b"." + base64url.encode(json.dumps(payload, separators=(",", ":")).encode()).encode("ascii")
    r, s = decode_dss_signature(sign(message))
    return f"{message.decode('ascii')}.{base64url.encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def verify_access_token(
    token: str,
    *,
    keys: Mapping[str, ec.EllipticCurvePublicKey],
    issuer: str,
    audience: str | None,
    now: int,
    leeway: int = 0,
) -> AccessTokenClaims:
    """Verify an access token and return its claims.

    Checks, in this order: shape and canonical base64url; header exactly {alg: ES256, typ: at+jwt, kid} with a
    known `kid`; signature; claims present and well typed, `cnf` with one known method; `iss`; `aud` (skipped only
    when `audience` is None, for the issuer itself); `iat` not in the future and `exp` not passed, within `leeway`
    seconds. That the caller is who `cnf` says is for whoever has the connection or the proof.

    Raises `MalformedError(TOKEN_MALFORMED)`, `EvidenceError` with TOKEN_INVALID, TOKEN_AUDIENCE or TOKEN_EXPIRED.
    """
    parts = token.split(".") if len(token) <= MAX_TOKEN and token.isascii() else []
    if len(parts) != 3:
        raise _malformed()
    key = _key_for(_json_object(_decode(parts[0])), keys)
    _verify_signature(key, f"{parts[0]}.{parts[1]}".encode("ascii"), _decode(parts[2]))
    claims = _claims(_json_object(_decode(parts[1])))
    if claims.issuer != issuer:
        raise _invalid("it was issued by somebody else")
    if audience is not None and claims.audience != audience:
        raise EvidenceError(
            Reason.TOKEN_AUDIENCE,
            "The access token is meant for another audience.",
            fix="Sign in again and name this service as the audience.",
            metadata={"expected": audience},
        )
    if claims.issued_at > now + leeway:
        raise _invalid("its time of issue lies in the future")
    if claims.expires_at + leeway <= now:
        raise EvidenceError(
            Reason.TOKEN_EXPIRED, "The access token has expired.", fix="Refresh the session or sign in again."
        )
    return claims


def _malformed() -> MalformedError:
    return MalformedError(
        Reason.TOKEN_MALFORMED, "This is not an access token of Keyvouch.", fix="Send the token as it was issued."
    )


def _invalid(why: str) -> EvidenceError:
    return EvidenceError(Reason.TOKEN_INVALID, f"The access token is not valid: {why}.", fix="Sign in again.")


def _decode(part: str) -> bytes:
    try:
        return base64url.decode(part)
    except ValueError:
        raise _malformed() from None


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _malformed()
    return document


def _json_object(data: bytes) -> dict[str, object]:
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise _malformed() from None
    if not isinstance(value, dict):
        raise _malformed()
    return value


def _key_for(header: Mapping[str, object], keys: Mapping[str, ec.EllipticCurvePublicKey]) -> ec.EllipticCurvePublicKey:
    if header.keys() != {"alg", "typ", "kid"} or header["alg"] != "ES256" or header["typ"] != "at+jwt":
        raise _invalid("its header is not the one header this issuer writes")
    kid = header["kid"]
    if not isinstance(kid, str) or kid not in keys:
        raise _invalid("it is signed with an unknown key")
    return keys[kid]


def _verify_signature(key: ec.EllipticCurvePublicKey, message: bytes, signature: bytes) -> None:
    if len(signature) != 64:
        raise _malformed()
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(der, message, _ES256)
    except InvalidSignature:
        raise _invalid("its signature does not verify") from None


def _claims(p: Mapping[str, object]) -> AccessTokenClaims:
    def text(name: str, default: str | None = None) -> str:
        value = p.get(name, default)
        if not isinstance(value, str):
            raise _malformed()
        return value

    def instant(name: str) -> int:
        value = p.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _malformed()
        return value

    amr = p.get("amr")
    if not isinstance(amr, list) or not all(isinstance(a, str) for a in amr):
        raise _malformed()
    method, value = _confirmation(p["cnf"]) if "cnf" in p else ("", "")
    return AccessTokenClaims(
        issuer=text("iss"),
        subject=text("sub"),
        audience=text("aud"),
        client_id=text("client_id"),
        tenant=text("tenant"),
        session_id=text("sid"),
        token_id=text("jti"),
        issued_at=instant("iat"),
        expires_at=instant("exp"),
        auth_time=instant("auth_time"),
        acr=text("acr"),
        amr=tuple(amr),
        assurance=text("assurance"),
        confirmation=value if method == _KEY else "",
        device_id=text("device", ""),
        username=text("preferred_username", ""),
        certificate_thumbprint=value if method == _CERTIFICATE else "",
    )


def _confirmation(cnf: object) -> tuple[str, str]:
    """The one method of a `cnf` claim and its value. A method nobody here checks must not look like none."""
    if not isinstance(cnf, dict) or len(cnf) != 1:
        raise _malformed()
    [(method, value)] = cnf.items()
    if not isinstance(value, str) or not value or method not in (_KEY, _CERTIFICATE):
        raise _malformed()
    if method == _CERTIFICATE and len(_decode(value)) != hashlib.sha256().digest_size:
        raise _malformed()
    return method, value
