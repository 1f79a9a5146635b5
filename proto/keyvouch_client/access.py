"""Who may call a resource server: the pure part of the interceptors.

A call is judged in four steps: the token is read from the metadata, verified (`keyvouch.tokens`), held against the
requirement of the method and, where it is bound to a certificate, against the connection it came over. Every method
needs a session unless it is named in `open_methods`.

Refusals of authentication look alike to the caller, apart from eight reasons it can act upon: credentials_missing,
token_expired, certificate_required, session_revoked, session_expired, proof_required, proof_invalid, proof_replayed.
The precise reason is for the log.

Not here: fetching keys (`jwks`), asking the server (`interceptor`), gRPC. The instant is an argument.
"""

from __future__ import annotations

import hmac
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.assurance import Assurance, AssuranceRequirement
from keyvouch.errors import (
    KeyvouchError,
    PermissionDeniedError,
    Reason,
    UnauthenticatedError,
    UnavailableError,
    UsageError,
)
from keyvouch.ids import ServerId
from keyvouch.tokens import AccessTokenClaims, certificate_thumbprint, verify_access_token
from keyvouch.v1 import common_pb2

__all__ = ["AccessRules", "Requirement", "bearer_token", "check_certificate", "check_live", "refusal_for"]

NUMBER_MATCHED, PHISHING_RESISTANT, ACCESS_PASS = "number-matched", "phishing-resistant", "access-pass"
"""Values of `acr`. They are labels without an order: a requirement names the ones it accepts. `number-chosen`, of a
tenant with the legacy choice of three numbers, is the weakest, and accepted only where it is named.
"""

_METHOD = re.compile(r"/[A-Za-z_][\w.]*/[A-Za-z_]\w*")
_TOLD_TO_CALLER = (
    Reason.CREDENTIALS_MISSING,
    Reason.TOKEN_EXPIRED,
    Reason.CERTIFICATE_REQUIRED,
    Reason.SESSION_REVOKED,
    Reason.SESSION_EXPIRED,
    Reason.PROOF_REQUIRED,
    Reason.PROOF_INVALID,
    Reason.PROOF_REPLAYED,
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """How strong a session has to be: one of the labels `acr`, at least `assurance`, at most `max_age` seconds old.

    The age counts from the moment the person approved. None asks for nothing. A session opened by a Temporary Access
    Pass has the label `access-pass`, which is not accepted unless named.
    """

    acr: frozenset[str] = frozenset({NUMBER_MATCHED, PHISHING_RESISTANT})
    assurance: AssuranceRequirement | None = None
    max_age: int | None = None

    def __post_init__(self) -> None:
        if not self.acr:
            raise UsageError("A requirement without labels would refuse everybody.", fix="Name what `acr` is accepted.")

    def check(self, claims: AccessTokenClaims, *, now: int) -> None:
        """Hold verified claims against this. Raises `PermissionDeniedError`.

        Checks, in this order: label, age (both STRENGTH_REQUIRED), assurance (ASSURANCE_TOO_LOW).
        """
        if claims.acr not in self.acr:
            raise _too_weak("another way of signing in", {"accepted": " ".join(sorted(self.acr)), "found": claims.acr})
        if self.max_age is not None and now - claims.auth_time > self.max_age:
            raise _too_weak("a more recent approval", {"max_age": str(self.max_age)})
        if self.assurance is None:
            return
        proved = Assurance.parse(claims.assurance) if claims.assurance else None
        below = proved.shortfalls(self.assurance) if proved else ("assurance",)
        if below:
            raise PermissionDeniedError(
                Reason.ASSURANCE_TOO_LOW,
                "The key that approved this session is not strong enough for this call.",
                fix="Sign in with a device whose key has a stronger proof, for example a TPM or a security key.",
                metadata={"below": " ".join(below)},
            )


def _too_weak(what: str, metadata: Mapping[str, str]) -> PermissionDeniedError:
    return PermissionDeniedError(
        Reason.STRENGTH_REQUIRED,
        f"This call needs {what} than the session shows.",
        fix="Sign in again in the way that is asked for.",
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What a resource server demands of its callers.

    `issuer` and `audience` have to equal `iss` and `aud`. `requirement` is for every method without an entry in
    `methods` (full gRPC names, `/package.Service/Method`). `open_methods` need no session at all. `leeway` is the
    difference of clocks, in seconds, that is forgiven. With `server_id` (of the Keyvouch server, 32 bytes, see
    `Connection.identity`) a token that is bound to a key counts with the proof of the call alone. Raises `UsageError`
    for names that cannot be methods, for a method that is both open and guarded, and for an id that is none.
    """

    issuer: str
    audience: str
    requirement: Requirement = Requirement()
    methods: Mapping[str, Requirement] = field(default_factory=lambda: MappingProxyType({}))
    open_methods: frozenset[str] = frozenset()
    leeway: int = 5
    server_id: ServerId | None = None

    def __post_init__(self) -> None:
        if not self.issuer or not self.audience:
            raise UsageError("Access rules need an issuer and an audience.", fix="`keyvouch jwks` shows the issuer.")
        if self.server_id is not None and len(self.server_id) != 32:
            raise UsageError("The id of a server has 32 bytes.", fix="Take it from `Connection.identity`.")
        for method in (*self.methods, *self.open_methods):
            if _METHOD.fullmatch(method) is None:
                raise UsageError(f"{method!r} is not the name of a method.", fix="Write /package.Service/Method.")
        if self.open_methods & self.methods.keys():
            raise UsageError("A method is both open and guarded.", fix="Name it in one of the two places.")

    def is_open(self, method: str) -> bool:
        """Whether the method needs no session."""
        return method in self.open_methods

    def judge(
        self, token: str, *, method: str, keys: Mapping[str, ec.EllipticCurvePublicKey], now: int
    ) -> AccessTokenClaims:
        """Verify a token and hold it against the requirement of `method`; returns the claims.

        Raises as `verify_access_token` and `Requirement.check`.
        """
        claims = verify_access_token(
            token, keys=keys, issuer=self.issuer, audience=self.audience, now=now, leeway=self.leeway
        )
        self.methods.get(method, self.requirement).check(claims, now=now)
        return claims


def bearer_token(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The token in `authorization: Bearer`. Raises `UnauthenticatedError` where there is none, or more than one."""
    values = [value for key, value in metadata or () if key == "authorization"]
    if len(values) > 1:
        raise UnauthenticatedError(Reason.CREDENTIALS_INVALID, "There are several credentials.", fix="Send one.")
    value = values[0] if values else ""
    scheme, _, token = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if scheme.lower() != "bearer" or not token:
        raise UnauthenticatedError(
            Reason.CREDENTIALS_MISSING,
            "This call needs a session.",
            fix="Sign in, and send the access token as `authorization: Bearer <token>`.",
        )
    return token


def check_certificate(claims: AccessTokenClaims, auth_context: Mapping[str, Any]) -> None:
    """Hold a token that is bound to a certificate against the connection it came over (RFC 8705 section 3).

    `auth_context` is what gRPC knows of the caller: lists of octets by name; the certificate is the one of
    `x509_pem_cert`. A token that is bound to a key or to nothing passes.

    Raises `UnauthenticatedError(CERTIFICATE_REQUIRED)`.
    """
    if not claims.certificate_thumbprint:
        return
    shown = [_thumbprint(pem) for pem in auth_context.get("x509_pem_cert", ())]
    if len(shown) != 1 or not hmac.compare_digest(shown[0], claims.certificate_thumbprint):
        raise UnauthenticatedError(
            Reason.CERTIFICATE_REQUIRED,
            "This access token is worth something only over a connection with the certificate it was issued for.",
            fix="Connect with the certificate of the device that signed in.",
        )


def _thumbprint(pem: bytes) -> str:
    try:
        return certificate_thumbprint(ssl.PEM_cert_to_DER_cert(pem.decode("ascii")))
    except ValueError:
        return ""


def check_live(claims: AccessTokenClaims, session: common_pb2.Session) -> None:
    """Hold verified claims against the session as the server knows it now.

    Raises `UnauthenticatedError` with CREDENTIALS_INVALID (the answer is about another session) or SESSION_REVOKED.
    """
    if session.session_id != claims.session_id:
        raise UnauthenticatedError(Reason.CREDENTIALS_INVALID, "The answer is about another session.")
    if session.revoked:
        raise UnauthenticatedError(Reason.SESSION_REVOKED, "The session has been ended.", fix="Sign in again.")


def refusal_for(error: KeyvouchError) -> KeyvouchError:
    """What the caller is told of `error`."""
    if isinstance(error, (PermissionDeniedError, UnavailableError)):
        return error
    if error.reason in _TOLD_TO_CALLER:
        told = {name: value for name, value in error.metadata.items() if name == "server_time"}
        return UnauthenticatedError(error.reason, error.message, fix=error.fix, metadata=told)
    return UnauthenticatedError(
        Reason.CREDENTIALS_INVALID,
        "The credential of this call is not accepted.",
        fix="Sign in again for this service.",
    )
