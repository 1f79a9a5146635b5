"""What the attestation statement formats with certificates have in common (WebAuthn Level 3 sections 6.5.3 and 8).

Reading: the members of a statement, one after the other, each of exactly its type. Trust: from the certificates of
x5c to a validated path. Checking: what a leaf certificate has to be, and what its key has signed.

Three reasons tell apart what is wrong: `ATTESTATION_STATEMENT` the statement itself, `ATTESTATION_CERTIFICATE` a leaf
certificate that breaks the profile of its format, `TRUST_CHAIN` a path that leads to no anchor.

What is not here: parsing of certificates and path validation (`keyvouch.attestation.certificates`), and whatever
only one format asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from keyvouch.attestation.certificate_profile import UNREADABLE
from keyvouch.attestation.certificates import CertificationPath, key_identifier, parse_certificate, validate_path
from keyvouch.attestation.der import OCTET_STRING, DerError, DerReader
from keyvouch.attestation.trust import TrustStore
from keyvouch.cbor import CborMap
from keyvouch.cose import Algorithm, CoseKey, PublicKey, verify_signature_by
from keyvouch.errors import EvidenceError, MalformedError, Reason, UsageError
from keyvouch.webauthn import AttestationObject

__all__ = [
    "AIK_CERTIFICATE",
    "bad_certificate",
    "bad_statement",
    "certified_model",
    "check_aaguid",
    "check_attests",
    "check_end_entity",
    "check_members",
    "check_not_authority",
    "check_same_key",
    "extension_value",
    "malformed_statement",
    "read_algorithm",
    "read_bytes",
    "read_certificates",
    "subject_key",
    "trusted_path",
    "verify_by",
    "verify_by_leaf",
]

MAX_CERTIFICATES = 8
"""Most certificates in one x5c."""

MAX_CERTIFICATE_BYTES = 32 * 1024
"""Most bytes of certificates in one x5c, all together."""

AAGUID = x509.ObjectIdentifier("1.3.6.1.4.1.45724.1.1.4")
"""id-fido-gen-ce-aaguid (section 8.2.1)."""

AIK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.3")
"""tcg-kp-AIKCertificate (section 8.3.1)."""

_CERTIFIED_KEYS = frozenset(
    {
        x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.1.17"),  # key description of Android (section 8.4.1)
        x509.ObjectIdentifier("1.2.840.113635.100.8.2"),  # nonce of Apple (section 8.8)
        x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.8"),  # policy of a PIV slot
    }
)
"""Extensions of certificates for keys of applications and users."""


# Reading. Every function raises `MalformedError` with `ATTESTATION_STATEMENT`.


def check_members(statement: CborMap, *shapes: Collection[str]) -> None:
    """Check that the statement has exactly the members of one of `shapes`."""
    if all(statement.keys() != set(shape) for shape in shapes):
        raise malformed_statement("It does not have exactly the members of its format.")


def read_bytes(statement: CborMap, name: str) -> bytes:
    """Return a member that is a byte string and not empty."""
    value = statement.get(name)
    if not isinstance(value, bytes) or not value:
        raise malformed_statement(f"Its {name} is not a byte string, or empty.")
    return value


def read_algorithm(statement: CborMap) -> Algorithm:
    """Return alg. SHA-1 (RS1) and whatever else `Algorithm` does not list is refused."""
    value = statement.get("alg")
    if type(value) is not int or value not in _ALGORITHMS:
        raise malformed_statement("Its alg is missing or not supported.")
    return Algorithm(value)


def read_certificates(statement: CborMap) -> list[x509.Certificate]:
    """Return the certificates of x5c as listed: 1 to 8 of them, of 32 KiB together."""
    value = statement.get("x5c")
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CERTIFICATES:
        raise malformed_statement(f"Its x5c is not a list of 1 to {MAX_CERTIFICATES} certificates.")
    encoded = [item for item in value if isinstance(item, bytes)]
    if len(encoded) != len(value):
        raise malformed_statement("Its x5c holds something that is no certificate.")
    if sum(map(len, encoded)) > MAX_CERTIFICATE_BYTES:
        raise malformed_statement(f"The certificates of its x5c have more than {MAX_CERTIFICATE_BYTES} bytes.")
    return [parse_certificate(item) for item in encoded]


# Trust


def trusted_path(
    attested: AttestationObject,
    certificates: Sequence[x509.Certificate],
    *,
    anchors: TrustStore,
    instant: datetime,
    aaguid: bytes | None = None,
) -> CertificationPath:
    """Return the valid path of `certificates` to one of the anchors that may vouch for such an authenticator.

    `aaguid` is by default the one in the authenticator data. Raises `EvidenceError` with `AUTHENTICATOR_STATUS` for a
    model or a certificate that is distrusted, with `TRUST_CHAIN`, or with `WEAK_KEY_ROCA` for an RSA key on the way.
    """
    model = attested.attested.aaguid if aaguid is None else aaguid
    key_ids = [key_identifier(certificate) for certificate in certificates] if anchors.knows_keys else ()
    anchors.check_model(aaguid=model, key_ids=key_ids)
    candidates = anchors.anchors_for(attested.format, aaguid=model, key_ids=key_ids)
    path = validate_path(certificates, anchors=candidates, instant=instant)
    if anchors.distrusts_models:  # a token that is asked as a U2F token says no model, but its certificate may
        anchors.check_model(aaguid=certified_model(certificates[0]) or model)
    anchors.check_certificates((*certificates, path.anchor.certificate))
    return path


# Checks of the leaf, once its path is valid. Every function raises `EvidenceError` with `ATTESTATION_CERTIFICATE`,
# unless it says otherwise.


def extension_value(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes | None:
    """Return the DER inside an extension, None without it. It must not be critical."""
    try:
        extensions = certificate.extensions
    except UNREADABLE:
        raise bad_certificate("Its extensions cannot be read.") from None
    for extension in extensions:
        if extension.oid == oid:
            if extension.critical:
                raise bad_certificate(f"Its extension {oid.dotted_string} is critical.")
            content: bytes = extension.value.public_bytes()
            return content
    return None


def certified_model(leaf: x509.Certificate) -> bytes | None:
    """Return the AAGUID in id-fido-gen-ce-aaguid, None without that extension (section 8.2.1)."""
    value = extension_value(leaf, AAGUID)
    if value is None:
        return None
    reader = DerReader(value)
    try:
        named = reader.read(OCTET_STRING)
        reader.end()
    except DerError:
        raise bad_certificate("Its AAGUID extension is not an octet string.") from None
    return named


def check_aaguid(leaf: x509.Certificate, aaguid: bytes) -> None:
    """Check that id-fido-gen-ce-aaguid, if it is there, names this model (section 8.2.1)."""
    if certified_model(leaf) not in (None, aaguid):
        raise bad_certificate("It was issued for another model than the AAGUID of the authenticator names.")


def check_end_entity(leaf: x509.Certificate) -> None:
    """Check version 3 and basic constraints that are there and say CA false (section 8.2.1)."""
    if leaf.version is not x509.Version.v3:
        raise bad_certificate("It is not of version 3.")
    if _is_authority(leaf) is not False:
        raise bad_certificate("Its basic constraints are missing, or it is that of an authority.")


def check_not_authority(leaf: x509.Certificate) -> None:
    """Check that the basic constraints, if they are there, say CA false: an authority is no authenticator."""
    if _is_authority(leaf):
        raise bad_certificate("It is that of an authority.")


def _is_authority(leaf: x509.Certificate) -> bool | None:
    for extension in leaf.extensions:
        if isinstance(extension.value, x509.BasicConstraints):
            return extension.value.ca
    return None


def check_attests(leaf: x509.Certificate) -> None:
    """Check that its key is one that makes attestations: not a user's, an application's or a TPM's.

    Makers certify such keys under the same roots; what they sign is chosen by whoever may use them.
    """
    for extension in leaf.extensions:
        value = extension.value
        is_tpm = isinstance(value, x509.ExtendedKeyUsage) and AIK_CERTIFICATE in value
        if is_tpm or extension.oid in _CERTIFIED_KEYS:
            raise bad_certificate("It certifies a key that is used for something else than attestation.")


def subject_key(leaf: x509.Certificate) -> PublicKey:
    """Return the public key of a leaf whose path is valid, and whose key is so of a type that `Algorithm` knows."""
    key = leaf.public_key()
    assert isinstance(key, _KEY_TYPES)
    return key


def check_same_key(leaf_key: PublicKey, credential: CoseKey) -> None:
    """Check that the certificate is one of the credential public key. Raises with `ATTESTATION_STATEMENT`."""
    if leaf_key != credential.key_object():
        raise bad_statement("The certificate is not one of the new credential.")


def verify_by_leaf(leaf_key: PublicKey, algorithm: Algorithm, *, signature: bytes, message: bytes) -> None:
    """Check a signature of the key in a leaf certificate whose path is valid.

    Key and algorithm must be one line of the table of `keyvouch.cose`, an ECDSA signature strict DER. Raises
    `EvidenceError` with `ATTESTATION_STATEMENT`.
    """
    try:
        verify_signature_by(leaf_key, algorithm, signature=signature, message=message)
    except UsageError:
        raise bad_statement(f"The key of the certificate cannot make signatures of {algorithm.name}.") from None
    except EvidenceError as error:
        raise bad_statement(f"Its signature does not verify. {error.message}") from None


def verify_by(key: CoseKey, *, signature: bytes, message: bytes) -> None:
    """Check the signature of a statement. Raises `EvidenceError` with `ATTESTATION_STATEMENT`."""
    try:
        key.verify_signature(signature=signature, message=message)
    except EvidenceError as error:
        raise bad_statement(f"Its signature does not verify. {error.message}") from None


# Errors

_ALGORITHMS = frozenset(int(algorithm) for algorithm in Algorithm)
_KEY_TYPES = (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, ed448.Ed448PublicKey, rsa.RSAPublicKey)
_FIX = "Send the attestation statement as the authenticator made it."


def malformed_statement(why: str) -> MalformedError:
    """The statement is not of the shape of its format."""
    return MalformedError(Reason.ATTESTATION_STATEMENT, f"The attestation statement is wrong. {why}", fix=_FIX)


def bad_statement(why: str) -> EvidenceError:
    """The statement is well-formed and does not prove what it has to."""
    return EvidenceError(Reason.ATTESTATION_STATEMENT, f"The attestation statement is wrong. {why}", fix=_FIX)


def bad_certificate(why: str) -> EvidenceError:
    """The leaf certificate is not what its format wants."""
    return EvidenceError(
        Reason.ATTESTATION_CERTIFICATE,
        f"The attestation certificate is wrong. {why}",
        fix="Use an authenticator whose attestation certificate follows the specification, or none.",
    )
