"""The `packed` attestation statement format (WebAuthn Level 3 section 8.2).

Self attestation is verified here: the new key signs for itself, which proves that its holder can use it and
nothing about where it lives. A statement with certificates is checked for its shape and refused until there
are anchors to build a chain to; ECDAA, which Level 2 dropped, is refused for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from keyvouch.assurance import Provenance
from keyvouch.attestation.evidence import AttestationEvidence, TrustAnchor
from keyvouch.cbor import CborMap
from keyvouch.cose import Algorithm
from keyvouch.errors import EvidenceError, MalformedError, Reason
from keyvouch.webauthn import AttestationObject

__all__ = ["verify"]


def verify(
    attested: AttestationObject,
    *,
    client_data_hash: bytes,
    anchors: Sequence[TrustAnchor],  # noqa: ARG001  # for statements with certificates
    instant: datetime,  # noqa: ARG001
) -> AttestationEvidence:
    """Verify a packed statement.

    Checks, in this order (section 8.2, verification procedure):

     1. the statement has exactly alg, sig and, with certificates, x5c, of the right types
     2. with x5c: refused, `TRUST_CHAIN`
     3. alg is the algorithm of the credential public key
     4. sig verifies with that key over authenticator data and client data hash

    Raises `MalformedError` or `EvidenceError` with `ATTESTATION_STATEMENT` or `TRUST_CHAIN`.
    """
    algorithm, signature, chain = _parse(attested.statement)
    if chain is not None:
        raise EvidenceError(
            Reason.TRUST_CHAIN,
            "The attestation chain ends in no anchor that is configured for this format.",
            fix="Configure the authenticator's root certificate, or register without attestation.",
        )
    key = attested.attested.public_key
    if algorithm != key.algorithm:
        raise _wrong("The algorithm of the self attestation is not that of the credential.")
    try:
        key.verify_signature(signature=signature, message=attested.authenticator_data + client_data_hash)
    except EvidenceError as error:
        raise _wrong(f"The self attestation does not verify. {error.message}") from None
    return AttestationEvidence("packed", Provenance.SELF)


def _parse(statement: CborMap) -> tuple[int, bytes, list[bytes] | None]:
    algorithm, signature = statement.get("alg"), statement.get("sig")
    if not statement.keys() <= {"alg", "sig", "x5c"}:
        raise _malformed("It has members that the format does not know.")
    if not isinstance(algorithm, int) or algorithm not in _ALGORITHMS:
        raise _malformed("Its alg is missing or not supported.")
    if not isinstance(signature, bytes) or not signature:
        raise _malformed("Its sig is missing or not a byte string.")
    if "x5c" not in statement:
        return algorithm, signature, None
    return algorithm, signature, _chain(statement["x5c"])


def _chain(value: object) -> list[bytes]:
    if not isinstance(value, list) or not value:
        raise _malformed("Its x5c is not a list of certificates.")
    certificates = [item for item in value if isinstance(item, bytes) and item]
    if len(certificates) != len(value):
        raise _malformed("Its x5c holds something that is no certificate.")
    return certificates


_ALGORITHMS = frozenset(int(algorithm) for algorithm in Algorithm)
_FIX = "Send the attestation statement as the authenticator made it."


def _malformed(why: str) -> MalformedError:
    return MalformedError(Reason.ATTESTATION_STATEMENT, f"The packed attestation statement is wrong. {why}", fix=_FIX)


def _wrong(message: str) -> EvidenceError:
    return EvidenceError(Reason.ATTESTATION_STATEMENT, message, fix=_FIX)
