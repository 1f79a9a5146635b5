"""Judging an answer: what a signed decision proves about the request it answers.

Nothing is read or written here, and nobody is told anything. What becomes of a verdict is `decisions`.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from keyvouch.attestation import CredentialRecord, VerifiedAssertion, verify_assertion
from keyvouch.cose import CoseKey
from keyvouch.errors import EvidenceError, Reason
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Decision, DecisionStatement, Purpose, challenge
from keyvouch_server.domain.model import Credential, Device, Prompt, SignIn, SignInWay
from keyvouch_server.domain.sign_in import Event
from keyvouch_server.use_cases.world import ServerFacts


@dataclass(frozen=True, slots=True)
class Assertion:
    """The parts of a WebAuthn assertion as received."""

    credential_id: bytes
    client_data: bytes
    authenticator_data: bytes
    signature: bytes
    user_handle: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision as received: the signed statement, and an assertion or a signature of the device's channel key."""

    prompt_id: str
    statement: bytes
    evidence: Assertion | bytes


@dataclass(frozen=True, slots=True)
class Offered:
    """A prompt with everything an answer to it is judged by."""

    device: Device
    prompt: Prompt
    sign_in: SignIn
    credential: Credential


class Judge:
    """Verifies answers for one server. Keys are parsed once and kept."""

    def __init__(self, facts: ServerFacts) -> None:
        self._facts = facts
        self._keys: dict[bytes, CoseKey] = {}

    def judge(self, offered: Offered, answer: Answer) -> tuple[Event, VerifiedAssertion | None]:
        """What an answer proves: the event it stands for, and the assertion of an approval.

        1. the statement carries the very offer that was sent; 2. an approval is an assertion of the offer's credential,
        made where the sign-in is decided; a denial or a report is signed by the channel key, which a client with a
        security key has not got; 3. the number. Raises `MalformedError` or `EvidenceError` with the first check that
        fails.
        """
        statement = DecisionStatement.parse(answer.statement)
        if statement.offer != offered.prompt.offer:
            raise EvidenceError(
                Reason.STATEMENT_MISMATCH,
                "The signed statement is not about the request that was sent.",
                fix="Nothing was decided. Answer the request that is shown now.",
            )
        if statement.decision is Decision.APPROVE:
            verified = self._verify_assertion(offered.credential, answer, offered.sign_in.way)
            matched = hmac.compare_digest(statement.number.encode(), offered.sign_in.number.encode())
            return (Event.APPROVE if matched else Event.MISMATCH), verified
        if not isinstance(answer.evidence, bytes):
            raise _wrong_evidence()
        key = load_proof_key(offered.device.channel_key)
        verify_proof(key, Purpose.SIGN_IN, answer.statement, signature=answer.evidence)
        return (Event.DENY if statement.decision is Decision.DENY else Event.REPORT), None

    def _verify_assertion(self, credential: Credential, answer: Answer, way: SignInWay) -> VerifiedAssertion:
        evidence, facts = answer.evidence, self._facts
        if isinstance(evidence, bytes):
            raise _wrong_evidence()
        origin = facts.client_origin if way is SignInWay.SECURITY_KEY else facts.agent_origin
        return verify_assertion(
            credential=self._record(credential),
            credential_id=evidence.credential_id,
            client_data=evidence.client_data,
            authenticator_data=evidence.authenticator_data,
            signature=evidence.signature,
            user_handle=evidence.user_handle or None,
            challenge=challenge(Purpose.SIGN_IN, answer.statement),
            rp_id=facts.rp_id,
            origins=(origin,),
            require_user_verification=True,
        )

    def _record(self, credential: Credential) -> CredentialRecord:
        return CredentialRecord(
            credential_id=credential.id,
            public_key=self._key(credential.public_key),
            sign_count=credential.sign_count,
            user_handle=credential.user_handle,
            backup_eligible=credential.backup_eligible,
        )

    def _key(self, public_key: bytes) -> CoseKey:
        key = self._keys.get(public_key)
        if key is None:
            if len(self._keys) >= 10_000:
                self._keys.clear()
            key = self._keys[public_key] = CoseKey(public_key)
        return key


def _wrong_evidence() -> EvidenceError:
    return EvidenceError(
        Reason.MISSING_FIELD,
        "An approval needs an assertion, a denial or a report a signature of the channel key.",
        fix="Update the agent.",
    )
