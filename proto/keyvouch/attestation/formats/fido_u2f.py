"""The `fido-u2f` attestation statement format (WebAuthn Level 3 section 8.6): tokens of the time before CTAP2.

Such a token knows no AAGUID, and what it signs at registration holds neither the flags nor the counter. So the model
is only what the attestation certificate's key identifies, and user verification counts for nothing.
"""

from __future__ import annotations

from datetime import datetime

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.assurance import Provenance, Verification
from keyvouch.attestation.evidence import AttestationEvidence
from keyvouch.attestation.formats.certified import (
    bad_certificate,
    bad_statement,
    check_attests,
    check_members,
    check_not_authority,
    malformed_statement,
    read_bytes,
    read_certificates,
    subject_key,
    trusted_path,
    verify_by_leaf,
)
from keyvouch.attestation.trust import TrustStore
from keyvouch.cose import Algorithm
from keyvouch.webauthn import AttestationObject

__all__ = ["verify"]

_NO_AAGUID = bytes(16)


def verify(
    attested: AttestationObject,
    *,
    client_data_hash: bytes,
    anchors: TrustStore,
    instant: datetime,
) -> AttestationEvidence:
    """Verify a statement of a FIDO U2F token.

    Checks, in this order (section 8.6, verification procedure):

     1. the statement has exactly sig and x5c, of the right types, and x5c is one certificate (1, 2)
     2. the certificate is a valid path to an anchor for this format and for the identifier of its key (7); neither
        its key nor the model it names, if it does, is distrusted
     3. its key lies on P-256 (2) and makes attestations: it is not that of an authority, and not a certified key of
        an application, a user or a TPM
     4. the credential public key is one for ES256 (3, 4)
     5. sig verifies with the key of the certificate over 0, RP ID hash, client data hash, credential id and
        credential public key as an uncompressed point (5, 6)

    The AAGUID is not signed and not looked at. Protection is what the anchor says, verification none. Raises
    `MalformedError` or `EvidenceError` with `ATTESTATION_STATEMENT` (1, 4, 5), `ATTESTATION_CERTIFICATE` (3),
    `TRUST_CHAIN`, `WEAK_KEY_ROCA` or `AUTHENTICATOR_STATUS` (2).
    """
    statement = attested.statement
    check_members(statement, ("sig", "x5c"))
    signature, certificates = read_bytes(statement, "sig"), read_certificates(statement)
    if len(certificates) != 1:
        raise malformed_statement("Its x5c is more than one certificate.")
    path = trusted_path(attested, certificates, anchors=anchors, instant=instant, aaguid=_NO_AAGUID)
    leaf = certificates[0]
    check_not_authority(leaf)
    check_attests(leaf)
    leaf_key = subject_key(leaf)
    if not isinstance(leaf_key, ec.EllipticCurvePublicKey) or not isinstance(leaf_key.curve, ec.SECP256R1):
        raise bad_certificate("Its public key does not lie on P-256.")
    message = _signed(attested, client_data_hash)
    verify_by_leaf(leaf_key, Algorithm.ES256, signature=signature, message=message)
    anchor = path.anchor
    return AttestationEvidence(
        "fido-u2f", Provenance.ATTESTED, anchor.name, anchor.protection, Verification.NONE, path.certificates
    )


def _signed(attested: AttestationObject, client_data_hash: bytes) -> bytes:
    """What a U2F token signs at registration (FIDO U2F Raw Message Formats section 4.3)."""
    credential = attested.attested
    if credential.public_key.algorithm is not Algorithm.ES256:
        raise bad_statement("A U2F token makes keys for ES256 alone.")
    point = credential.public_key.key_object().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    rp_id_hash = attested.authenticator_data.rp_id_hash
    return b"\x00" + rp_id_hash + client_data_hash + credential.credential_id + point
