"""The ledger: what this device is enrolled in, what it has half finished, and what it has answered.

    enrolments/<device id>.json      one per account: server, user, credential, channel key, certificate chain
    staged/<registration id>.json    a registration that is about to be completed, bytes and all
    replacing/<device id>.json       a new key that is about to take the place of a registered one
    outbox/<digest>.json             a signed answer whose outcome has not arrived

Each file is one strict JSON object, written whole or not at all (`home`). A registration is staged before it is
sent and an answer is kept before it is sent, so a crash repeats the same bytes and never a new act. No file holds
a PIN, a Temporary Access Pass or a session token; the enrolment holds the channel key as it is stored, see
`channel_keys`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from keyvouch.errors import DeviceError, MalformedError, NotFoundError, Reason
from keyvouch.ids import CredentialId, DeviceId, ServerId, TenantId, UserId
from keyvouch_agent.agent_ports import Answer, ReplacementEvidence
from keyvouch_agent.home import Home
from keyvouch_agent.ports import Assertion, TpmCertification
from keyvouch_agent.strict_json import COUNT, FLAG, Field, dump_object, octets, octets_list, parse_object, text

__all__ = ["Enrolment", "KeptAnswer", "Ledger", "StagedRegistration", "StagedReplacement", "not_enrolled"]

LONGEST_FILE = 256 * 1024
LONGEST_KEY_NAME = 128
"""Characters of the name that a security key or its reader gives itself; a longer one is cut."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
_DEPARTING = re.compile(rb"(unused|replaced|lost) [A-Za-z0-9_-]{1,80}")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Enrolment:
    """One account on this device.

    `public_ca` is PEM, empty for the system's anchors; `channel_key` as it is stored; `certificate_chain` DER, the
    device's certificate first, the server's identity certificate last; `account` names the folder of the provider that
    keeps each account's keys apart, empty for one that does not. `emulated`: what holds the key says of itself that it
    is a program. `key_name` and `key_model` (an AAGUID as a UUID) are what a security key said of itself, for people;
    a card's name is its label and serial number.
    """

    FORMAT: ClassVar[str] = "keyvouch enrolment"
    FIELDS: ClassVar[Mapping[str, Field]] = {
        "public_endpoint": text(300),
        "public_ca": text(65536),
        "device_endpoint": text(300),
        "server_id": octets(32),
        "tenant_id": text(),
        "tenant_name": text(),
        "user_id": text(),
        "username": text(),
        "device_id": text(),
        "display_name": text(),
        "credential_id": octets(1023),
        "rp_id": text(),
        "provider": text(32),
        "channel_key": octets(),
        "certificate_chain": octets_list(4),
    }
    ADDED: ClassVar[Mapping[str, Field]] = {
        "account": text(32),
        "emulated": FLAG,
        "key_name": text(LONGEST_KEY_NAME),
        "key_model": text(36),
    }

    public_endpoint: str
    public_ca: str
    device_endpoint: str
    server_id: ServerId
    tenant_id: TenantId
    tenant_name: str
    user_id: UserId
    username: str
    device_id: DeviceId
    display_name: str
    credential_id: CredentialId
    rp_id: str
    provider: str
    channel_key: bytes = field(repr=False)
    certificate_chain: tuple[bytes, ...] = field(repr=False)
    account: str = ""
    emulated: bool = False
    key_name: str = ""
    key_model: str = ""


@dataclass(frozen=True, slots=True)
class StagedRegistration:
    """Everything it takes to send CompleteRegistration again with the same bytes."""

    FORMAT: ClassVar[str] = "keyvouch staged registration"
    FIELDS: ClassVar[Mapping[str, Field]] = {
        "public_endpoint": text(300),
        "public_ca": text(65536),
        "tenant_name": text(),
        "username": text(),
        "registration_id": text(),
        "registration_token": text(),
        "statement": octets(4096),
        "rp_id": text(),
        "credential_id": octets(1023),
        "provider": text(32),
        "channel_key": octets(),
        "client_data_json": octets(65536),
        "attestation_object": octets(65536),
        "channel_proof": octets(),
    }
    ADDED: ClassVar[Mapping[str, Field]] = {
        "account": text(32),
        "emulated": FLAG,
        "tpm_evidence": octets_list(6),
        "certificates": octets_list(8),
        "key_name": text(LONGEST_KEY_NAME),
        "key_model": text(36),
        "departing": octets_list(100),
    }

    public_endpoint: str
    public_ca: str
    tenant_name: str
    username: str
    registration_id: str
    registration_token: str = field(repr=False)
    statement: bytes
    rp_id: str
    credential_id: CredentialId
    provider: str
    channel_key: bytes = field(repr=False)
    client_data_json: bytes = field(repr=False)
    attestation_object: bytes = field(repr=False)
    channel_proof: bytes = field(repr=False)
    account: str = ""
    emulated: bool = False
    tpm_evidence: tuple[bytes, ...] = field(default=(), repr=False)
    """The members of `TpmEvidence` in their order, two for each certification; none for a key that is in no TPM."""
    certificates: tuple[bytes, ...] = field(default=(), repr=False)
    """Those of an existing key on a card, DER; none where the server is not to see any."""
    key_name: str = ""
    key_model: str = ""
    departing: tuple[bytes, ...] = ()
    """The devices that go when this one comes, each as its fate, a space and its id."""

    def __post_init__(self) -> None:
        """The peer chose the ids, and a file may have been changed by hand. Raises `MalformedError`."""
        if not all(_DEPARTING.fullmatch(one) for one in self.departing):
            raise MalformedError(
                Reason.FIELD_INVALID,
                "A device that is to go has no id that can be one.",
                fix="Nothing was registered. Check that the agent and the server run the same version.",
            )


@dataclass(frozen=True, slots=True)
class StagedReplacement:
    """Everything it takes to send CompleteKeyReplacement again with the same bytes."""

    FORMAT: ClassVar[str] = "keyvouch staged replacement"
    FIELDS: ClassVar[Mapping[str, Field]] = {
        "device_id": text(),
        "registration_id": text(),
        "credential_id": octets(1023),
        "client_data_json": octets(65536),
        "attestation_object": octets(65536),
        "attest": octets(),
        "signature": octets(),
    }
    ADDED: ClassVar[Mapping[str, Field]] = {}

    device_id: str
    registration_id: str
    credential_id: CredentialId
    client_data_json: bytes = field(repr=False)
    attestation_object: bytes = field(repr=False)
    attest: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def evidence(self) -> ReplacementEvidence:
        """The bytes to send."""
        pin_index = TpmCertification(self.attest, self.signature)
        return ReplacementEvidence(self.registration_id, self.client_data_json, self.attestation_object, pin_index)


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as it was signed. `expires_at` is the offer's, on the server's clock."""

    FORMAT: ClassVar[str] = "keyvouch answer"
    FIELDS: ClassVar[Mapping[str, Field]] = {
        "device_id": text(),
        "expires_at": COUNT,
        "prompt_id": text(),
        "statement": octets(8192),
        "credential_id": octets(1023),
        "client_data_json": octets(65536),
        "authenticator_data": octets(65536),
        "signature": octets(),
        "user_handle": octets(64),
        "channel_signature": octets(),
    }
    ADDED: ClassVar[Mapping[str, Field]] = {}

    device_id: str
    expires_at: int
    prompt_id: str
    statement: bytes
    credential_id: bytes = b""
    client_data_json: bytes = b""
    authenticator_data: bytes = b""
    signature: bytes = b""
    user_handle: bytes = b""
    channel_signature: bytes = b""

    @classmethod
    def of(cls, answer: Answer, *, device_id: str, expires_at: int) -> KeptAnswer:
        """Keep `answer` of this device until `expires_at`."""
        kept = cls(device_id, expires_at, answer.prompt_id, answer.statement)
        proof = answer.assertion
        if proof is None:
            return dataclasses.replace(kept, channel_signature=answer.channel_signature)
        return dataclasses.replace(
            kept,
            credential_id=proof.credential_id,
            client_data_json=proof.client_data,
            authenticator_data=proof.authenticator_data,
            signature=proof.signature,
            user_handle=proof.user_handle or b"",
        )

    @property
    def answer(self) -> Answer:
        """The answer, byte for byte."""
        if self.channel_signature:
            return Answer(self.prompt_id, self.statement, channel_signature=self.channel_signature)
        proof = Assertion(
            CredentialId(self.credential_id),
            self.client_data_json,
            self.authenticator_data,
            self.signature,
            self.user_handle or None,
        )
        return Answer(self.prompt_id, self.statement, assertion=proof)


_Record = TypeVar("_Record", Enrolment, StagedRegistration, StagedReplacement, KeptAnswer)


class Ledger:
    """The records of one home. Every method may raise the errors of `Home`; reading raises LEDGER_CORRUPT."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def enrolments(self) -> tuple[Enrolment, ...]:
        """Every enrolment, ordered by device id."""
        return self._all("enrolments", Enrolment)

    def enrolment(self, device_id: str) -> Enrolment:
        """One enrolment. Raises `NotFoundError(NOT_ENROLLED)`."""
        try:
            return self._load(_file("enrolments", device_id), Enrolment)
        except FileNotFoundError:
            raise not_enrolled() from None

    def record(self, enrolment: Enrolment) -> None:
        """Write an enrolment, over an older one of the same device id."""
        self._store(_file("enrolments", enrolment.device_id), enrolment)

    def remove(self, device_id: str) -> None:
        """Remove an enrolment, the answers it still keeps, and a replacement of its key that was interrupted."""
        for kept in self.outbox(device_id):
            self.drop(kept.prompt_id)
        self.forget_replacement(device_id)
        self.home.delete(_file("enrolments", device_id))

    def staged(self) -> tuple[StagedRegistration, ...]:
        """Registrations that were about to be completed."""
        return self._all("staged", StagedRegistration)

    def stage(self, registration: StagedRegistration) -> None:
        """Keep a registration before it is sent."""
        self._store(_file("staged", registration.registration_id), registration)

    def unstage(self, registration_id: str) -> None:
        """Forget a registration that is complete, or that the server will never complete."""
        self.home.delete(_file("staged", registration_id))

    def replacement(self, device_id: str) -> StagedReplacement | None:
        """A replacement of this device's key that was about to be completed."""
        try:
            return self._load(_file("replacing", device_id), StagedReplacement)
        except FileNotFoundError:
            return None

    def keep_replacement(self, replacement: StagedReplacement) -> None:
        """Keep a replacement before it is sent."""
        self._store(_file("replacing", replacement.device_id), replacement)

    def forget_replacement(self, device_id: str) -> None:
        """Forget a replacement that is complete, or that the server will never complete."""
        self.home.delete(_file("replacing", device_id))

    def outbox(self, device_id: str) -> tuple[KeptAnswer, ...]:
        """Answers of a device whose outcome has not arrived."""
        return tuple(kept for kept in self._all("outbox", KeptAnswer) if kept.device_id == device_id)

    def keep(self, kept: KeptAnswer) -> None:
        """Keep an answer before it is sent."""
        self._store(_outbox_file(kept.prompt_id), kept)

    def drop(self, prompt_id: str) -> None:
        """Forget an answer: its outcome is known or its time is over."""
        self.home.delete(_outbox_file(prompt_id))

    def sweep(self) -> None:
        """Remove what interrupted writes have left behind."""
        for folder in ("enrolments", "staged", "replacing", "outbox"):
            self.home.sweep(folder)

    def _all(self, folder: str, kind: type[_Record]) -> tuple[_Record, ...]:
        records = []
        for name in self.home.names(folder, ".json"):
            try:
                records.append(self._load(name, kind))
            except FileNotFoundError:
                continue  # removed by another command since it was listed
        return tuple(records)

    def _load(self, name: str, kind: type[_Record]) -> _Record:
        data = self.home.read(name, longest=LONGEST_FILE)
        shape = {"format": text(40), "version": COUNT, **kind.FIELDS}
        try:
            values: dict[str, Any] = parse_object(data, shape, longest=LONGEST_FILE, optional=kind.ADDED)
            if (values.pop("format"), values.pop("version")) != (kind.FORMAT, _VERSION):
                raise self._corrupt(name, f"It is not a {kind.FORMAT} of version {_VERSION}.")
            return kind(**values)
        except MalformedError as error:
            raise self._corrupt(name, error.message) from error

    def _store(self, name: str, record: _Record) -> None:
        values = {name: getattr(record, name) for name in (*record.FIELDS, *record.ADDED)}
        self.home.write(name, dump_object({"format": record.FORMAT, "version": _VERSION, **values}, indent=1))

    def _corrupt(self, name: str, why: str) -> DeviceError:
        path = self.home.path / name
        ways = {
            "enrolments": "Restore it from a backup, or move it away and enrol this device again.",
            "staged": "Move it away, then run `keyvouch-agent enroll` again.",
            "replacing": "Move it away, then run `keyvouch-agent rekey` again.",
            "outbox": "Move it away; an unanswered prompt is shown again.",
        }
        return DeviceError(
            Reason.LEDGER_CORRUPT,
            f"The file {path} is damaged. {why}",
            fix=ways[name.partition("/")[0]],
            metadata={"path": str(path)},
        )


def not_enrolled() -> NotFoundError:
    """The error for a device without the enrolment that is needed."""
    return NotFoundError(
        Reason.NOT_ENROLLED,
        "This device is not enrolled.",
        fix="Run `keyvouch-agent enroll --server HOST:PORT --tenant TENANT --user USER` with a Temporary Access Pass.",
    )


def _file(folder: str, identifier: str) -> str:
    """The file of a record. The peer chose the identifier, so its shape is checked before it names a file."""
    if _NAME.fullmatch(identifier) is None:
        raise MalformedError(
            Reason.FIELD_INVALID,
            "The server named an id that cannot be an id.",
            fix="Nothing was kept. Check that the agent and the server run the same version.",
        )
    return f"{folder}/{identifier}.json"


def _outbox_file(prompt_id: str) -> str:
    return f"outbox/{hashlib.sha256(prompt_id.encode()).hexdigest()[:40]}.json"
