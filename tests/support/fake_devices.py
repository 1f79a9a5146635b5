"""What a fake server knows of devices: its identity, registrations, prompts; all of it outlives `FakeDeviceServer`.

Certificates, attestations, assertions and signatures are real and are verified by `keyvouch`. A test plays the
client with `offer` and reads what became of it from the row. Not here: gRPC.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyvouch.attestation import (
    AttestationRequirement,
    CredentialRecord,
    TrustStore,
    verify_assertion,
    verify_registration,
)
from keyvouch.cose import Algorithm
from keyvouch.errors import EvidenceError, KeyvouchError, Reason, RefusedError, UnauthenticatedError
from keyvouch.ids import (
    DEVICE,
    PROMPT,
    REGISTRATION,
    SIGN_IN,
    TENANT,
    USER,
    CredentialId,
    DeviceId,
    RegistrationId,
    ServerId,
    SignInId,
    TenantId,
    UserId,
    new_id,
)
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import (
    Decision,
    DecisionStatement,
    Purpose,
    RegistrationStatement,
    SignInOffer,
    challenge,
)
from keyvouch.v1 import common_pb2, prompts_pb2

RP_ID = "keyvouch.test"
ORIGIN = f"keyvouch-agent://{RP_ID}"
TENANT_NAME, USERNAME, ACCESS_PASS = "example", "ada", "correct-horse-pass"


def fresh(kind: str) -> str:
    """A new id."""
    return new_id(kind, os.urandom(16))


class Authority:
    """A certificate authority whose key is the server's identity key."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Fake device authority")])
        self.certificate = (
            self._builder(name, name, self.key.public_key(), 3600.0)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def server_id(self) -> ServerId:
        return ServerId(hashlib.sha256(_spki(self.key.public_key())).digest())

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def device_chain(self, device_id: str, spki: bytes, seconds: float) -> tuple[bytes, ...]:
        """A client certificate that lives for `seconds`, and the authority's."""
        key = serialization.load_der_public_key(spki)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
        leaf = (
            self._builder(name, self.certificate.subject, key, seconds)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return leaf.public_bytes(serialization.Encoding.DER), self.der

    def listener(self) -> tuple[bytes, bytes]:
        """PEM key and chain for localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
        leaf = (
            self._builder(name, self.certificate.subject, key.public_key(), 3600.0)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private, leaf.public_bytes(serialization.Encoding.PEM) + self.pem

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, seconds: float
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=1))
            .not_valid_after(now + timedelta(seconds=seconds))
        )


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(slots=True)
class RegistrationRow:
    """A registration, and the device it becomes. `evidence` are the bytes that completed it."""

    statement: RegistrationStatement
    token: str
    channel_key: bytes
    display_name: str
    provider: int
    evidence: tuple[bytes, ...] = ()
    record: CredentialRecord | None = None
    removed: bool = False


@dataclass(slots=True)
class PromptRow:
    """A prompt with the number its client shows, its state, and every copy of an answer that arrived. `choices` are
    the three numbers of the legacy choice.
    """

    prompt_id: str
    device_id: str
    offer: bytes
    number: str
    expires_at: int
    state: int = common_pb2.SIGN_IN_STATE_PENDING
    answers: list[bytes] = field(default_factory=list)
    refusals: list[Reason] = field(default_factory=list)
    choices: tuple[str, ...] = ()


class FakeDevices:
    """Rows and rules. `required` is what BeginRegistration says the policy asks for."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.tenant_id, self.user_id = TenantId(fresh(TENANT)), UserId(fresh(USER))
        self.registrations: dict[str, RegistrationRow] = {}
        self.prompts: dict[str, PromptRow] = {}
        self.required = common_pb2.AssuranceRequirement()
        self.certificate_seconds = 3600.0
        self.begun = self.completed = self.renewed = 0
        self.refuse_completion: KeyvouchError | None = None

    # Registration

    def begin(self, channel_key: bytes, display_name: str, provider: int) -> RegistrationRow:
        self.begun += 1
        load_proof_key(channel_key, reason=Reason.CHANNEL_KEY)
        draft = RegistrationStatement(
            server_id=self.authority.server_id,
            tenant_id=self.tenant_id,
            user_id=self.user_id,
            device_id=DeviceId(fresh(DEVICE)),
            registration_id=RegistrationId(fresh(REGISTRATION)),
            nonce=os.urandom(32),
            expires_at=int(time.time()) + 600,
            channel_key=hashlib.sha256(channel_key).digest(),
        )
        statement = RegistrationStatement.parse(draft.encode())
        row = RegistrationRow(statement, os.urandom(16).hex(), channel_key, display_name, provider)
        self.registrations[row.token] = row
        return row

    def complete(self, token: str, evidence: tuple[bytes, ...]) -> RegistrationRow:
        """Verify and register; the same bytes again give the same answer."""
        row = self.registrations.get(token)
        if row is None:
            raise UnauthenticatedError(
                Reason.REGISTRATION_UNKNOWN, "There is no such registration.", fix="Begin again."
            )
        if self.refuse_completion is not None:
            raise self.refuse_completion
        if row.record is not None:
            if evidence != row.evidence:
                raise RefusedError(
                    Reason.REGISTRATION_CONSUMED, "It was completed with other bytes.", fix="Begin again."
                )
            return row
        client_data, attestation_object, proof = evidence
        encoded = row.statement.encoded
        verify_proof(load_proof_key(row.channel_key), Purpose.CHANNEL, encoded, signature=proof)
        verified = verify_registration(
            client_data=client_data,
            attestation_object=attestation_object,
            challenge=challenge(Purpose.REGISTRATION, encoded),
            rp_id=RP_ID,
            origins={ORIGIN},
            require_user_verification=True,
            algorithms=[Algorithm.ES256],
            attestation=AttestationRequirement.OPTIONAL,
            anchors=TrustStore(),
            instant=datetime.now(UTC),
        )
        row.record = CredentialRecord(
            verified.credential_id,
            verified.public_key,
            verified.sign_count,
            self.user_id.encode(),
            verified.backup_eligible,
        )
        row.evidence = evidence
        self.completed += 1
        return row

    def chain(self, row: RegistrationRow) -> tuple[bytes, ...]:
        return self.authority.device_chain(row.statement.device_id, row.channel_key, self.certificate_seconds)

    def device(self, device_id: str) -> RegistrationRow:
        """The registered device. Raises what a device hears that is none (any more)."""
        for row in self.registrations.values():
            if row.statement.device_id == device_id and row.record is not None and not row.removed:
                return row
        raise UnauthenticatedError(Reason.DEVICE_REMOVED, "This device was removed.", fix="Enrol it again.")

    # Prompts

    def offer(self, device_id: str, *, seconds: int = 60, number: str = "07", **changes: object) -> PromptRow:
        """A new pending prompt for a device; `changes` falsify fields of the offer."""
        row = self.device(device_id)
        assert row.record is not None
        now = int(time.time())
        fields: dict[str, object] = {
            "server_id": self.authority.server_id,
            "tenant_id": self.tenant_id,
            "user_id": self.user_id,
            "device_id": DeviceId(device_id),
            "credential_id": CredentialId(row.record.credential_id),
            "sign_in_id": SignInId(fresh(SIGN_IN)),
            "nonce": os.urandom(32),
            "app_id": "payroll",
            "app_name": "Payroll",
            "audience": "https://api.example.org",
            "proof_key": os.urandom(32),
            "place": "Utrecht",
            "address": "192.0.2.7",
            "binding_message": "",
            "issued_at": now,
            "expires_at": now + seconds,
            "policy_version": 1,
            "required_assurance": "any/none/unattested",
        }
        offer = SignInOffer(**{**fields, **changes})  # type: ignore[arg-type]
        prompt = PromptRow(fresh(PROMPT), device_id, offer.encode(), number, now + seconds)
        self.prompts[prompt.prompt_id] = prompt
        return prompt

    def open_prompts(self, device_id: str) -> list[PromptRow]:
        pending = common_pb2.SIGN_IN_STATE_PENDING
        return [p for p in self.prompts.values() if p.device_id == device_id and p.state == pending]

    def answer(self, device_id: str, message: prompts_pb2.Answer) -> prompts_pb2.Outcome:
        """Verify an answer and change the row, once."""
        prompt = self.prompts[message.prompt_id]
        prompt.answers.append(message.SerializeToString())
        try:
            if prompt.state != common_pb2.SIGN_IN_STATE_PENDING:
                raise RefusedError(Reason.CHALLENGE_CONSUMED, "It was decided already.", fix="Nothing.")
            prompt.state = self._verify(self.device(device_id), prompt, message)
        except KeyvouchError as error:
            prompt.refusals.append(error.reason)
            if error.reason is Reason.NUMBER_MISMATCH:
                prompt.state = common_pb2.SIGN_IN_STATE_FAILED
            return prompts_pb2.Outcome(
                prompt_id=prompt.prompt_id,
                accepted=False,
                state=prompt.state,  # type: ignore[arg-type]
                reason=error.reason.value,
                message=error.message,
            )
        return prompts_pb2.Outcome(prompt_id=prompt.prompt_id, accepted=True, state=prompt.state)  # type: ignore[arg-type]

    def _verify(self, row: RegistrationRow, prompt: PromptRow, message: prompts_pb2.Answer) -> int:
        statement = DecisionStatement.parse(message.statement)
        if statement.offer != prompt.offer:
            raise EvidenceError(Reason.STATEMENT_MISMATCH, "Another offer was signed.", fix="Sign this one.")
        if statement.decision is not Decision.APPROVE:
            key = load_proof_key(row.channel_key)
            verify_proof(key, Purpose.SIGN_IN, message.statement, signature=message.channel_signature)
            denied = statement.decision is Decision.DENY
            return common_pb2.SIGN_IN_STATE_DENIED if denied else common_pb2.SIGN_IN_STATE_REPORTED
        self._verify_assertion(row, message)
        if statement.number != prompt.number:
            raise EvidenceError(Reason.NUMBER_MISMATCH, "The number is not the one shown.", fix="Begin again.")
        return common_pb2.SIGN_IN_STATE_APPROVED

    def _verify_assertion(self, row: RegistrationRow, message: prompts_pb2.Answer) -> None:
        assert row.record is not None
        proof = message.assertion
        verified = verify_assertion(
            credential=row.record,
            credential_id=proof.credential_id,
            client_data=proof.client_data_json,
            authenticator_data=proof.authenticator_data,
            signature=proof.signature,
            user_handle=proof.user_handle or None,
            challenge=challenge(Purpose.SIGN_IN, message.statement),
            rp_id=RP_ID,
            origins={ORIGIN},
            require_user_verification=True,
        )
        record = row.record
        row.record = CredentialRecord(
            record.credential_id, record.public_key, verified.sign_count, record.user_handle, record.backup_eligible
        )
