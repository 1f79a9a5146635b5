"""Proofs of possession of calls: who makes this call has the session's key, not only its access token (P15).

The model is RFC 9449 (DPoP), in the form that all signatures here have: a statement, signed for one purpose.

    statement = {1: server id, 2: method path, 3: SHA-256 of the access token, 4: issued at, 5: 16 random bytes}
    proof     = [statement, DER signature of the proof key for the purpose `call`, the key as DER SubjectPublicKeyInfo]

Both are canonical CBOR. Whoever verifies knows the thumbprint of the key, by the session or by the token's `cnf`. The
proof goes with the call as the metadata `keyvouch-proof-bin`. It is good for one call of
one method, with one token, at one server, for a minute. Not here: which proofs were used before, and who must send one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import cbor
from keyvouch.errors import EvidenceError, MalformedError, Reason
from keyvouch.ids import ServerId
from keyvouch.proofs import load_proof_key, sign_proof, spki_of, thumbprint, verify_proof
from keyvouch.statement import Purpose

__all__ = ["METADATA_KEY", "NONCE_BYTES", "WINDOW_SECONDS", "VerifiedCall", "make_call_proof", "verify_call_proof"]

METADATA_KEY: Final = "keyvouch-proof-bin"

WINDOW_SECONDS: Final = 60
"""How far the clocks of both sides may be apart, and how long a proof may be under way."""

NONCE_BYTES: Final = 16

MAX_PROOF: Final = 1024
"""Longest proof anyone here parses, in bytes."""


@dataclass(frozen=True, slots=True)
class VerifiedCall:
    """A proof that fits. `id` is the SHA-256 of its statement: no other spelling of the signature makes it another."""

    id: bytes
    issued_at: int


@dataclass(frozen=True, slots=True)
class _Call:
    """The fields of a statement as they came."""

    server_id: object
    method: object
    token_hash: object
    issued_at: int


def make_call_proof(
    key: ec.EllipticCurvePrivateKey, *, server_id: ServerId, method: str, access_token: str, now: int, nonce: bytes
) -> bytes:
    """The proof for one call of `method` (`/package.Service/Name`). `nonce` has `NONCE_BYTES` fresh random bytes."""
    statement = cbor.encode({1: server_id, 2: method, 3: _hash_of(access_token), 4: now, 5: nonce})
    return cbor.encode([statement, sign_proof(key, Purpose.CALL, statement), spki_of(key.public_key())])


def verify_call_proof(
    proof: bytes, *, key_thumbprint: bytes, server_id: ServerId, method: str, access_token: str, now: int
) -> VerifiedCall:
    """Verify the proof of a call by the key with this RFC 7638 thumbprint (32 bytes).

    Checks, in this order: shape and canonical CBOR; key; signature; server, method and token; the instant, within
    `WINDOW_SECONDS`. That it was not used before is for whoever keeps the ids.

    Raises `MalformedError(PROOF_INVALID)` or `EvidenceError(PROOF_INVALID)`; where only the instant is wrong, with
    `server_time` in its metadata, so that the caller can make another one for it.
    """
    statement, signature, spki = _parts(proof)
    call, key = _parse(statement), load_proof_key(spki)
    if thumbprint(key) != key_thumbprint:
        raise _invalid("it was made with another key", "Use the key with which the session was begun.")
    verify_proof(key, Purpose.CALL, statement, signature=signature)
    for found, expected, what in (
        (call.server_id, server_id, "server"),
        (call.method, method, "method"),
        (call.token_hash, _hash_of(access_token), "access token"),
    ):
        if found != expected:
            raise _invalid(f"it was made for another {what}", "Make a proof for each call.")
    if abs(now - call.issued_at) > WINDOW_SECONDS:
        raise _invalid("it is not of now", "Set the clock, or take the time from `server_time`.", server_time=str(now))
    return VerifiedCall(hashlib.sha256(statement).digest(), call.issued_at)


def _hash_of(access_token: str) -> bytes:
    return hashlib.sha256(access_token.encode()).digest()


def _parts(proof: bytes) -> tuple[bytes, bytes, bytes]:
    if len(proof) > MAX_PROOF:
        raise _malformed()
    match _decode(proof):
        case [bytes() as statement, bytes() as signature, bytes() as spki]:
            return statement, signature, spki
    raise _malformed()


def _parse(statement: bytes) -> _Call:
    fields = _decode(statement)
    if not isinstance(fields, dict) or fields.keys() != {1, 2, 3, 4, 5}:
        raise _malformed()
    issued_at, nonce = fields[4], fields[5]
    if not isinstance(issued_at, int) or isinstance(issued_at, bool):
        raise _malformed()
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise _malformed()
    return _Call(fields[1], fields[2], fields[3], issued_at)


def _decode(encoded: bytes) -> object:
    try:
        return cbor.decode(encoded, max_depth=1)
    except MalformedError:
        raise _malformed() from None


def _malformed() -> MalformedError:
    return MalformedError(
        Reason.PROOF_INVALID,
        "This is not the proof of a call.",
        fix="Send [statement, signature, key] in canonical CBOR, as the protocol names them.",
    )


def _invalid(why: str, fix: str, **metadata: str) -> EvidenceError:
    return EvidenceError(
        Reason.PROOF_INVALID, f"The proof of this call does not count: {why}.", fix=fix, metadata=metadata
    )
