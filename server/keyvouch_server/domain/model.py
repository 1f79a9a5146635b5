"""The records the server keeps. One frozen dataclass per table; field names are column names.

Instants are whole seconds since the epoch on the server's clock, and 0 where they have not come to pass.
Secrets are never here in clear: tokens as SHA-256, access passes as a keyed hash. Not here: what the records
may do (the sibling modules) and how they are stored (`stores`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from keyvouch.ids import (
    AccessPassId,
    CredentialId,
    DeviceId,
    GroupId,
    PromptId,
    RegistrationId,
    SessionId,
    SignInId,
    TenantId,
    UserId,
)

NO_DEVICE = DeviceId("")
NO_SESSION = SessionId("")
"""Fillers for columns whose value is not known yet."""


class Role(StrEnum):
    """A user's role in its tenant. Names follow the model product's."""

    USER = "user"
    GLOBAL_READER = "global_reader"
    AUTHENTICATION_ADMINISTRATOR = "authentication_administrator"
    AUTHENTICATION_POLICY_ADMINISTRATOR = "authentication_policy_administrator"
    PRIVILEGED_AUTHENTICATION_ADMINISTRATOR = "privileged_authentication_administrator"
    GLOBAL_ADMINISTRATOR = "global_administrator"


class UserKind(StrEnum):
    """Whether a user belongs to the tenant. Guests never sign in with an access pass (T14)."""

    MEMBER = "member"
    GUEST = "guest"


class ProviderKind(StrEnum):
    """What a device says holds its keys. For people to read; never the ground on which a key is accepted."""

    SOFTWARE = "software"
    TPM = "tpm"
    FIDO2 = "fido2"
    SMARTCARD = "smartcard"


class SignInState(StrEnum):
    """States of a sign-in; `domain.sign_in` has the table of what leads where."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    REPORTED = "reported"
    FAILED = "failed"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    CONSUMED = "consumed"


class SignInWay(StrEnum):
    """By which way a sign-in can be decided. A decision that comes by another way is not looked at."""

    PROMPT = "prompt"
    """A prompt on the stream of a device."""
    SAME_DEVICE = "same_device"
    """The device that began it, over its own channel."""
    SECURITY_KEY = "security_key"
    """The client that began it, with a security key at hand."""


class SignInMethod(StrEnum):
    """What a person signs in with. `SignInWay` says by which way an approval came; two of them are one method."""

    APPROVAL = "approval"
    SECURITY_KEY = "security_key"
    ACCESS_PASS = "access_pass"


class DeviceFate(StrEnum):
    """What became of a device that its owner removes (PS19)."""

    UNUSED = "unused"
    REPLACED = "replaced"
    LOST = "lost"


class RegistrationState(StrEnum):
    """States of a registration: a device is absent until its registration is complete."""

    PENDING = "pending"
    COMPLETE = "complete"


class Health(StrEnum):
    """How a device's TPM fares, by its last report; `domain.health` judges."""

    UNKNOWN = "unknown"
    GOOD = "good"
    DRIFTED = "drifted"
    FAILED = "failed"


class SessionKind(StrEnum):
    """What opened a session, and so what it may be used for."""

    APPROVAL = "approval"
    ACCESS_PASS = "access_pass"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant. `name_key` is the canonical name; `home` marks the tenant made at installation. `key_lengths`: how many
    security keys were registered with ids of how many bytes, like `32:10 64:3`, for offers that are none (P12).
    """

    id: TenantId
    name: str
    name_key: str
    home: bool
    created_at: int
    key_lengths: str = ""


@dataclass(frozen=True, slots=True)
class User:
    """A user. `user_handle` is the WebAuthn user id (32 random bytes); `number_misses` counts wrong numbers in a row,
    `locked_until` rests the approval method after too many. `default_method` is what the user set, `last_method` what
    the user used last, both a `SignInMethod` or empty (PS6). `flagged_at`: the user said "this was not me", and no
    administrator has looked at it since.
    """

    id: UserId
    tenant_id: TenantId
    username: str
    username_key: str
    display_name: str
    role: Role
    user_handle: bytes
    created_at: int
    number_misses: int = 0
    locked_until: int = 0
    kind: UserKind = UserKind.MEMBER
    default_method: str = ""
    last_method: str = ""
    flagged_at: int = 0


@dataclass(frozen=True, slots=True)
class LoginName:
    """One name of a user to sign in with: the login name, or an alias. All of a tenant's are different, and all of a
    user's lead to one identity (P10).
    """

    tenant_id: TenantId
    name_key: str
    name: str
    user_id: UserId
    alias: bool


@dataclass(frozen=True, slots=True)
class UserGroup:
    """A group of users, for policies to name. `name_key` is the canonical name."""

    id: GroupId
    tenant_id: TenantId
    name: str
    name_key: str
    description: str
    created_at: int


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A user's membership of a group."""

    group_id: GroupId
    user_id: UserId
    tenant_id: TenantId


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """One saved version of a tenant's policy, as JSON text. Versions are never changed or deleted."""

    tenant_id: TenantId
    version: int
    document: str
    created_at: int
    created_by: str


@dataclass(frozen=True, slots=True)
class AccessPass:
    """A Temporary Access Pass; one per user. `code_hash` is HMAC-SHA-256 under the server's pepper. `attempts` counts
    wrong codes and never goes back. `binding` names the one device it may register: empty, `ek:` and the endorsement
    key hash in hexadecimal digits, or `aaguid:` and a UUID.
    """

    id: AccessPassId
    tenant_id: TenantId
    user_id: UserId
    code_hash: bytes
    created_at: int
    start_at: int
    lifetime_minutes: int
    one_time: bool
    used_at: int = 0
    attempts: int = 0
    binding: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """A registration ceremony. `answer_hash` is the SHA-256 of the answer that completed it; `tpm` the transcript of
    what was agreed with the device's TPM (CBOR), empty where there is none; `replaced_device_id` the device that went
    when this one came, empty where none did.
    """

    id: RegistrationId
    tenant_id: TenantId
    user_id: UserId
    session_id: SessionId
    device_id: DeviceId
    token_hash: bytes
    statement: bytes
    channel_key: bytes
    display_name: str
    provider: ProviderKind
    state: RegistrationState
    created_at: int
    expires_at: int
    answer_hash: bytes = b""
    tpm: bytes = b""
    replaced_device_id: DeviceId = NO_DEVICE


@dataclass(frozen=True, slots=True)
class KeyReplacement:
    """A new key in the place of a registered device's. `certificate` is the one issued for its attestation key."""

    id: RegistrationId
    tenant_id: TenantId
    device_id: DeviceId
    statement: bytes
    certificate: bytes
    state: RegistrationState
    created_at: int
    expires_at: int
    answer_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class Device:
    """A registered device: one user, one tenant. `channel_key` is DER SubjectPublicKeyInfo, `certificate`
    the DER certificate issued last for it.
    """

    id: DeviceId
    tenant_id: TenantId
    user_id: UserId
    display_name: str
    provider: ProviderKind
    channel_key: bytes
    certificate: bytes
    registered_at: int


@dataclass(frozen=True, slots=True)
class DeviceTpm:
    """The TPM of a device: what registration proved, and what the device reported last.

    `endorsement_key_hash` is the TPM's identity: SHA-256 of the endorsement key as SubjectPublicKeyInfo. `transcript`
    is what was verified, byte for byte. `proved_assurance` is what registration proved; the credential's may be lower
    after a report. `anchor`, `manufacturer` and `model` are of the endorsement key certificate, empty without one, and
    `pin_limit` is what the TPM certified, 0 without one.
    `firmware_version` is 16 hexadecimal digits, `clock` (milliseconds) decimal digits, both empty where nobody vouches
    for the TPM; `findings` is a JSON list of sentences, `pcr_values` a JSON object of hexadecimal digests by PCR.
    `baseline` is what reports are held against, a JSON object (`domain.health`).
    """

    device_id: DeviceId
    tenant_id: TenantId
    user_id: UserId
    endorsement_key_hash: bytes
    transcript: bytes
    proved_assurance: str
    anchor: str
    manufacturer: str
    model: str
    pin_limit: int
    channel_key_in_tpm: bool
    health: Health = Health.UNKNOWN
    reported_at: int = 0
    findings: str = "[]"
    firmware_version: str = ""
    clock: str = ""
    reset_count: int = 0
    restart_count: int = 0
    pcr_values: str = "{}"
    baseline: str = "{}"


@dataclass(frozen=True, slots=True)
class Credential:
    """A WebAuthn credential of a device. `public_key` is the COSE key as received; `assurance` the text form
    of what its registration proved; the attestation object and client data are kept so that it can be judged again.
    `card_certificates` are the certificates of an organisation for this key, as they came (a CBOR array of DER), empty
    without any, and `card_authority` is the one that they led to. `last_used_at` is when its device decided something.
    """

    id: CredentialId
    tenant_id: TenantId
    user_id: UserId
    device_id: DeviceId
    user_handle: bytes
    public_key: bytes
    sign_count: int
    backup_eligible: bool
    aaguid: bytes
    attestation_object: bytes
    client_data: bytes
    assurance: str
    created_at: int
    card_authority: str = ""
    card_certificates: bytes = b""
    last_used_at: int = 0


@dataclass(frozen=True, slots=True)
class SignIn:
    """A sign-in request. One that names nobody has the `user_id` of no user; it waits and expires like any other.
    `number` is what the client shows; `proof_key` the client's DER key and `proof_thumbprint` its `jkt`;
    `decision_hash` the SHA-256 of the statement that decided it. `same_device`: begun by the device that approves it,
    over its own channel, with the channel key as proof key and `x5t#S256` of its certificate as thumbprint.
    `security_key`: approved at the client, with a security key; `refused_answers` counts the assertions for it that
    proved nothing. `phishing_resistant`: matching a number is not enough. `known_client`: begun by a client at which
    the user has signed in before. `choices` are the three numbers of the legacy choice, with spaces between them.
    `rules` is what each rule said when it was begun, and what refused it later (JSON, `domain.verdicts`). `evidence` is
    what approved it: `domain.receipts` reads it. `offers` is to how many keys it was offered, 0 where that was not
    counted. `after_misses`: wrong numbers may have stood on the account when it was begun.
    """

    id: SignInId
    tenant_id: TenantId
    user_id: UserId
    token_hash: bytes
    state: SignInState
    number: str
    proof_key: bytes
    proof_thumbprint: bytes
    app_id: str
    app_name: str
    audience: str
    address: str
    binding_message: str
    policy_version: int
    required_assurance: str
    created_at: int
    expires_at: int
    device_id: DeviceId = NO_DEVICE
    assurance: str = ""
    decided_at: int = 0
    decision_hash: bytes = b""
    session_id: SessionId = NO_SESSION
    same_device: bool = False
    security_key: bool = False
    refused_answers: int = 0
    phishing_resistant: bool = False
    known_client: bool = False
    choices: str = ""
    rules: str = ""
    evidence: bytes = b""
    offers: int = 0
    after_misses: bool = True

    @property
    def way(self) -> SignInWay:
        """The one way by which it can be decided."""
        if self.same_device:
            return SignInWay.SAME_DEVICE
        return SignInWay.SECURITY_KEY if self.security_key else SignInWay.PROMPT


@dataclass(frozen=True, slots=True)
class Prompt:
    """A sign-in as offered to one credential of a device; `offer` is what was sent, byte for byte."""

    id: PromptId
    sign_in_id: SignInId
    device_id: DeviceId
    credential_id: CredentialId
    offer: bytes
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Session:
    """A session. `refresh_hash` is the SHA-256 of the refresh token of `generation`; `previous_hash` that of
    the one before. Both are empty for a session that cannot be refreshed. `certificate_bound`: its proof key is the
    channel key of its device, its thumbprint that of the device's certificate (RFC 8705, `x5t#S256`).
    """

    id: SessionId
    tenant_id: TenantId
    user_id: UserId
    device_id: DeviceId
    kind: SessionKind
    access_pass_id: AccessPassId
    app_id: str
    app_name: str
    audience: str
    amr: str
    acr: str
    assurance: str
    proof_key: bytes
    proof_thumbprint: bytes
    auth_time: int
    created_at: int
    expires_at: int
    generation: int
    refresh_hash: bytes
    previous_hash: bytes = b""
    revoked_at: int = 0
    revoke_reason: str = ""
    certificate_bound: bool = False
    sign_in_id: str = ""
    """Of the sign-in it came from; empty for one opened with an access pass."""
    address: str = ""
