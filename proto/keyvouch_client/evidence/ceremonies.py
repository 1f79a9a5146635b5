"""A recorded WebAuthn ceremony as a call of `keyvouch.attestation`: what is in the vector, and nothing besides.

Reading a vector raises `UsageError` for what its writer left out or wrote wrongly. What the response holds is judged
by the verifier alone. Not here: vectors of TPM evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from keyvouch import base64url
from keyvouch.assurance import Assurance
from keyvouch.attestation import (
    AttestationRequirement,
    CredentialRecord,
    TrustAnchor,
    TrustStore,
    VerifiedRegistration,
    assurance_of,
    verify_assertion,
    verify_registration,
)
from keyvouch.attestation.certificate_profile import UNREADABLE
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import KeyvouchError
from keyvouch.ids import CredentialId, ServerId
from keyvouch.webauthn import AttestationObject
from keyvouch.webauthn_json import AuthenticationResponse, RegistrationResponse
from keyvouch_client.evidence.members import Members

__all__ = [
    "Check",
    "Circumstances",
    "Proof",
    "anchors_in",
    "claims_in",
    "read_authentication",
    "read_registration",
    "subject_of",
]


@dataclass(frozen=True, slots=True)
class Proof:
    """What accepted evidence proves: an assurance, where it proves one by itself, and facts fit for JSON."""

    facts: dict[str, object]
    assurance: Assurance | None = None


Check = Callable[[], Proof]
"""Verify one vector: its proof, or the error of the verifier."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known beside the vector: anchors for every vector, an instant that goes before theirs, the present, and
    the server whose receipts are expected.
    """

    anchors: Sequence[TrustAnchor]
    now: datetime | None
    present: datetime
    server_id: ServerId | None = None


def anchors_in(pem: bytes) -> list[TrustAnchor]:
    """The certificates of a PEM file as anchors for every format. Raises `ValueError` if there is none.

    A certificate says nothing of the hardware behind it, so neither does its anchor. It is called by the common name
    of its subject, or else by its fingerprint.
    """
    return [TrustAnchor(_name_of(certificate), certificate) for certificate in x509.load_pem_x509_certificates(pem)]


def claims_in(vector: object) -> dict[str, object]:
    """What a recorded registration says of itself, as far as it can be read: none of it is proved.

    It helps whoever looks for the cause of a refusal: which format and model, and whose root is missing.
    """
    try:
        parsed = RegistrationResponse.from_json(vector.get("response") if isinstance(vector, Mapping) else None)
        attested = AttestationObject(parsed.attestation_object)
    except KeyvouchError:
        return {}
    issuer = _issuer_in(attested.statement.get("x5c"))
    claims: dict[str, object] = {
        "format": attested.format,
        "aaguid": str(UUID(bytes=attested.attested.aaguid)),
        "algorithm": attested.attested.public_key.algorithm.name,
    }
    return claims | ({"issuer": issuer} if issuer else {})


def _issuer_in(x5c: object) -> str:
    """The name above the last certificate."""
    if not isinstance(x5c, list) or not x5c or not isinstance(x5c[-1], bytes):
        return ""
    try:
        return x509.load_der_x509_certificate(x5c[-1]).issuer.rfc4514_string()
    except UNREADABLE:
        return ""


def read_registration(vector: Members, circumstances: Circumstances) -> Check:
    """Read a vector of the ceremony `registration`."""
    policy = vector.within("policy")
    expected = _expected(vector, policy)
    algorithms = [Algorithm(number) for number in policy.numbers("allowedAlgs") if number in _KNOWN]
    required = _REQUIREMENTS.get(policy.text("attestation"))
    if required is None:
        raise policy.wrong("attestation", " or ".join(_REQUIREMENTS))
    anchors = TrustStore([*_anchors(policy), *circumstances.anchors])
    instant = _instant(policy, circumstances)
    response = vector.anything("response")

    def check() -> Proof:
        parsed = RegistrationResponse.from_json(response)
        verified = verify_registration(
            client_data=parsed.client_data,
            attestation_object=parsed.attestation_object,
            challenge=expected.challenge,
            rp_id=expected.rp_id,
            origins=expected.origins,
            require_user_verification=expected.require_user_verification,
            algorithms=algorithms,
            attestation=required,
            anchors=anchors,
            instant=instant,
            allow_cross_origin=expected.allow_cross_origin,
            top_origins=expected.top_origins,
        )
        return Proof(_registered(verified), assurance_of(verified))

    return check


def read_authentication(vector: Members, _circumstances: Circumstances) -> Check:
    """Read a vector of the ceremony `authentication`."""
    expected = _expected(vector, vector.within("policy"))
    credential = _record(vector.within("stored"))
    response = vector.anything("response")

    def check() -> Proof:
        parsed = AuthenticationResponse.from_json(response)
        verified = verify_assertion(
            credential=credential,
            credential_id=parsed.credential_id,
            client_data=parsed.client_data,
            authenticator_data=parsed.authenticator_data,
            signature=parsed.signature,
            user_handle=parsed.user_handle,
            challenge=expected.challenge,
            rp_id=expected.rp_id,
            origins=expected.origins,
            require_user_verification=expected.require_user_verification,
            allow_cross_origin=expected.allow_cross_origin,
            top_origins=expected.top_origins,
        )
        flags = {"userVerified": verified.user_verified, "backupState": verified.backup_state}
        algorithm = credential.public_key.algorithm.name
        return Proof({"algorithm": algorithm, "signCount": verified.sign_count, **flags})

    return check


@dataclass(frozen=True, slots=True)
class _Expected:
    challenge: bytes
    rp_id: str
    origins: frozenset[str]
    require_user_verification: bool
    allow_cross_origin: bool
    top_origins: frozenset[str]


def _expected(vector: Members, policy: Members) -> _Expected:
    return _Expected(
        challenge=vector.base64url("expectedChallenge"),
        rp_id=policy.text("rpId"),
        origins=frozenset(policy.texts("origins")),
        require_user_verification=policy.flag("requireUserVerification"),
        allow_cross_origin=policy.flag("allowCrossOrigin", absent=False),
        top_origins=frozenset(policy.texts("topOrigins", optional=True)),
    )


_KNOWN = frozenset(int(algorithm) for algorithm in Algorithm)  # what nobody here can verify allows nothing more
_REQUIREMENTS = {"verify": AttestationRequirement.OPTIONAL, "required": AttestationRequirement.TRUSTED}


def _anchors(policy: Members) -> Iterable[TrustAnchor]:
    for pem in policy.texts("trustAnchorsPem", optional=True):
        try:
            yield from anchors_in(pem.encode())
        except ValueError:
            raise policy.wrong("trustAnchorsPem", "a list of certificates in PEM") from None


def _name_of(certificate: x509.Certificate) -> str:
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except UNREADABLE:
        names = []
    return str(names[0].value) if names and names[0].value else _print_of(certificate)


def subject_of(certificate: x509.Certificate) -> str:
    """Its subject, or else its fingerprint. A name above the leaf need not be readable for a path to be valid."""
    try:
        return certificate.subject.rfc4514_string() or _print_of(certificate)
    except UNREADABLE:
        return _print_of(certificate)


def _print_of(certificate: x509.Certificate) -> str:
    return f"sha256:{certificate.fingerprint(SHA256()).hex()}"


def _instant(policy: Members, circumstances: Circumstances) -> datetime:
    if circumstances.now is not None or "now" not in policy:
        return circumstances.now or circumstances.present
    try:
        instant = datetime.fromisoformat(policy.text("now"))
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise policy.wrong("now", "an instant of ISO 8601 with its zone, such as 2026-08-01T00:00:00Z")
    return instant


def _record(stored: Members) -> CredentialRecord:
    credential_id, encoded = stored.base64url("credentialId"), stored.base64url("publicKey")
    try:
        public_key = CoseKey(encoded)
    except KeyvouchError as error:
        raise stored.wrong("publicKey", f"a COSE key. {error.message}") from None
    return CredentialRecord(
        CredentialId(credential_id),
        public_key,
        stored.number("signCount"),
        stored.base64url("userHandle"),
        stored.flag("backupEligible"),
    )


def _registered(verified: VerifiedRegistration) -> dict[str, object]:
    attestation = verified.attestation
    facts: dict[str, object] = {
        "format": attestation.format,
        "aaguid": str(UUID(bytes=verified.aaguid)),
        "algorithm": verified.algorithm.name,
        "credentialId": base64url.encode(verified.credential_id),
        "publicKey": base64url.encode(verified.public_key),
        "signCount": verified.sign_count,
        "userVerified": verified.user_verified,
        "backupEligible": verified.backup_eligible,
        "certificates": [subject_of(certificate) for certificate in attestation.path],
    }
    if attestation.facts is not None:
        facts["authenticator"] = asdict(attestation.facts)
    return facts
