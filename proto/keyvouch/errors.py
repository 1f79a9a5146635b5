"""The one error tree of Keyvouch, split by whose fault it is.

    KeyvouchError
    ├── MalformedError         bytes or text from a peer that are not the structure they claim to be
    ├── EvidenceError          a well-formed structure that does not prove what it has to prove
    ├── RefusedError           a rule, a policy or the present state says no
    │   ├── UnauthenticatedError   the caller has not shown who it is
    │   ├── PermissionDeniedError  the caller is known and may not
    │   ├── NotFoundError          there is no such thing, or the caller may not know of it
    │   ├── ConflictError          the thing exists already, or has moved on
    │   └── ThrottledError         not now; `retry_after` says when
    ├── DeviceError            a key provider: PIN wrong or blocked, key lost, device removed
    ├── UnavailableError       the store or the peer cannot be reached, nothing was changed
    └── UsageError             a mistake of the calling program, never of a peer

Every error carries a `Reason`, stable across releases and made for programs, a sentence that says
what happened and why, and a `fix` that says what to do next. What is *not* here: status codes of a
transport. The server maps reasons to them in one table (`keyvouch_server.rpc.status`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, unique

__all__ = [
    "ConflictError",
    "DeviceError",
    "EvidenceError",
    "KeyvouchError",
    "MalformedError",
    "NotFoundError",
    "PermissionDeniedError",
    "Reason",
    "RefusedError",
    "ThrottledError",
    "UnauthenticatedError",
    "UnavailableError",
    "UsageError",
    "error_for",
]


@unique
class Reason(StrEnum):
    """A stable machine-readable reason. Values never change their meaning and are never reused."""

    # CBOR (RFC 8949, CTAP 2.1 section 8)
    CBOR_MALFORMED = "cbor_malformed"
    CBOR_NONCANONICAL = "cbor_noncanonical"
    CBOR_DUPLICATE_KEY = "cbor_duplicate_key"
    CBOR_TRAILING = "cbor_trailing"
    CBOR_LIMIT = "cbor_limit"

    # WebAuthn containers (WebAuthn Level 3)
    MISSING_FIELD = "missing_field"
    ENCODING = "encoding"
    CLIENT_DATA_JSON = "client_data_json"
    CLIENT_DATA_TYPE = "client_data_type"
    CHALLENGE = "challenge"
    CHALLENGE_ENCODING = "challenge_encoding"
    ORIGIN = "origin"
    CROSS_ORIGIN = "cross_origin"
    TOP_ORIGIN = "top_origin"
    TOKEN_BINDING = "token_binding"
    RP_ID_HASH = "rp_id_hash"
    USER_PRESENCE = "user_presence"
    USER_VERIFICATION = "user_verification"
    BACKUP_FLAGS = "backup_flags"
    BACKUP_ELIGIBLE_CHANGED = "backup_eligible_changed"
    ATTESTED_DATA = "attested_data"
    AUTHDATA_LENGTH = "authdata_length"
    AUTHDATA_TRAILING = "authdata_trailing"
    AUTHDATA_EXTENSIONS = "authdata_ext"
    CREDENTIAL_ID = "credential_id"
    CREDENTIAL_ID_LENGTH = "credential_id_length"
    CREDENTIAL_TYPE = "credential_type"
    CREDENTIAL_PUBLIC_KEY = "credential_public_key"
    ALGORITHM_NOT_ALLOWED = "alg_not_allowed"
    USER_HANDLE = "user_handle"
    SIGN_COUNT = "sign_count"
    SIGNATURE = "signature"
    SIGNATURE_ENCODING = "signature_encoding"

    # Attestation
    ATTESTATION_OBJECT = "attestation_object"
    ATTESTATION_FORMAT = "attestation_format"
    ATTESTATION_STATEMENT = "attestation_statement"
    ATTESTATION_REQUIRED = "attestation_required"
    ATTESTATION_CERTIFICATE = "attestation_cert"
    TRUST_CHAIN = "trust_chain"
    WEAK_KEY_ROCA = "weak_key_roca"

    # Certificates of an organisation for keys on smartcards
    CARD_CERTIFICATE = "card_certificate"
    CARD_USER = "card_user"

    # Authenticator metadata (FIDO Metadata Service 3)
    METADATA_MALFORMED = "metadata_malformed"
    METADATA_UNTRUSTED = "metadata_untrusted"
    METADATA_STALE = "metadata_stale"
    AUTHENTICATOR_STATUS = "authenticator_status"
    AUTHENTICATOR_MODEL = "authenticator_model"

    # TPM evidence (TPM 2.0 Library, Part 2). TPM covers them all where WebAuthn's format `tpm` is judged.
    TPM = "tpm"
    TPM_PARSE = "tpm_parse"
    TPM_MAGIC = "tpm_magic"
    TPM_ATTEST_TYPE = "tpm_attest_type"
    TPM_NONCE = "tpm_nonce"
    TPM_NAME = "tpm_name"
    TPM_PUBLIC_KEY = "tpm_public_key"
    TPM_KEY_ATTRIBUTES = "tpm_key_attributes"
    TPM_AK_ATTRIBUTES = "tpm_ak_attributes"
    TPM_EK_ATTRIBUTES = "tpm_ek_attributes"
    TPM_EK_CERTIFICATE = "tpm_ek_certificate"
    TPM_SIGNATURE_ALGORITHM = "tpm_signature_alg"
    TPM_CREATION = "tpm_creation"
    TPM_EK_CERTIFICATE_MISSING = "tpm_ek_certificate_missing"
    TPM_ACTIVATION = "tpm_activation"
    TPM_KEY_POLICY = "tpm_key_policy"
    TPM_NV_INDEX = "tpm_nv_index"
    TPM_PCR_SELECTION = "tpm_pcr_selection"
    TPM_PCR_DIGEST = "tpm_pcr_digest"
    TPM_EVENT_LOG = "tpm_event_log"
    TPM_EVENT_LOG_REPLAY = "tpm_event_log_replay"

    # Statements, tokens and proofs
    STATEMENT_MALFORMED = "statement_malformed"
    STATEMENT_MISMATCH = "statement_mismatch"
    WRONG_SERVER = "wrong_server"
    WRONG_TENANT = "wrong_tenant"
    WRONG_USER = "wrong_user"
    WRONG_DEVICE = "wrong_device"
    NUMBER_MISMATCH = "number_mismatch"
    PROOF_INVALID = "proof_invalid"
    TOKEN_MALFORMED = "token_malformed"
    TOKEN_INVALID = "token_invalid"
    TOKEN_EXPIRED = "token_expired"
    TOKEN_AUDIENCE = "token_audience"

    # Who is calling
    CREDENTIALS_MISSING = "credentials_missing"
    CREDENTIALS_INVALID = "credentials_invalid"
    SESSION_REVOKED = "session_revoked"
    SESSION_EXPIRED = "session_expired"
    SESSION_PURPOSE = "session_purpose"
    ROLE_REQUIRED = "role_required"
    SELF_FORBIDDEN = "self_forbidden"
    STRENGTH_REQUIRED = "strength_required"
    CERTIFICATE_REQUIRED = "certificate_required"
    PROOF_REQUIRED = "proof_required"
    PROOF_REPLAYED = "proof_replayed"
    DEVICE_REMOVED = "device_removed"

    # Sign-in
    SIGN_IN_UNKNOWN = "sign_in_unknown"
    CHALLENGE_CONSUMED = "challenge_consumed"
    SIGN_IN_PENDING = "sign_in_pending"
    SIGN_IN_DENIED = "sign_in_denied"
    SIGN_IN_REPORTED = "sign_in_reported"
    SIGN_IN_EXPIRED = "sign_in_expired"
    SIGN_IN_SUPERSEDED = "sign_in_superseded"
    SIGN_IN_CANCELLED = "sign_in_cancelled"
    METHOD_DISABLED = "method_disabled"
    METHOD_NOT_TARGETED = "method_not_targeted"
    INITIATOR_BLOCKED = "initiator_blocked"
    METHOD_REQUIRED = "method_required"
    NO_METHOD = "no_method"
    ASSURANCE_TOO_LOW = "assurance_too_low"
    SECURITY_KEY_REFUSED = "security_key_refused"
    POLICY_CHANGED = "policy_changed"
    POLICY_LOCKS_OUT = "policy_locks_out"
    POLICY_VERSION_UNKNOWN = "policy_version_unknown"

    # Temporary Access Pass. ACCESS_PASS_REFUSED is all a caller sees; the others are for the audit log.
    ACCESS_PASS_REFUSED = "access_pass_refused"
    ACCESS_PASS_WRONG = "access_pass_wrong"
    ACCESS_PASS_NOT_IN_POLICY = "access_pass_not_in_policy"
    ACCESS_PASS_NOT_YET_VALID = "access_pass_not_yet_valid"
    ACCESS_PASS_EXPIRED = "access_pass_expired"
    ACCESS_PASS_USED = "access_pass_used"
    ACCESS_PASS_ONE_TIME_REQUIRED = "access_pass_one_time_required"
    ACCESS_PASS_ATTEMPTS = "access_pass_attempts"
    ACCESS_PASS_NONE = "access_pass_none"
    ACCESS_PASS_EXISTS = "access_pass_exists"
    ACCESS_PASS_GUEST = "access_pass_guest"
    ACCESS_PASS_DEVICE = "access_pass_device"

    # Registration and devices
    REGISTRATION_UNKNOWN = "registration_unknown"
    REGISTRATION_EXPIRED = "registration_expired"
    REGISTRATION_CONSUMED = "registration_consumed"
    CREDENTIAL_EXISTS = "credential_exists"
    DEVICE_LIMIT = "device_limit"
    DEVICE_REGISTERED_ELSEWHERE = "device_registered_elsewhere"
    DEVICE_ACCOUNTS = "device_accounts"
    DEVICE_UNKNOWN = "device_unknown"
    DEVICE_HEALTH = "device_health"
    TPM_IDENTITY = "tpm_identity"
    TPM_NOT_PREPARED = "tpm_not_prepared"
    CHANNEL_KEY = "channel_key"

    # Directory and requests
    TENANT_EXISTS = "tenant_exists"
    USER_UNKNOWN = "user_unknown"
    USER_EXISTS = "user_exists"
    ALIAS_UNKNOWN = "alias_unknown"
    GROUP_UNKNOWN = "group_unknown"
    GROUP_EXISTS = "group_exists"
    GROUP_IN_USE = "group_in_use"
    LAST_ADMINISTRATOR = "last_administrator"
    LIMIT_REACHED = "limit_reached"
    RISK_EVENT_UNKNOWN = "risk_event_unknown"
    SESSION_UNKNOWN = "session_unknown"
    POLICY_INVALID = "policy_invalid"
    FIELD_INVALID = "field_invalid"
    THROTTLED = "throttled"
    UNKNOWN_METHOD = "unknown_method"
    REQUEST_ID_REUSED = "request_id_reused"
    REQUEST_COMPLETED = "request_completed"

    # Audit log and receipts, judged offline
    AUDIT_CHAIN = "audit_chain"
    AUDIT_CHECKPOINT = "audit_checkpoint"
    RECEIPT = "receipt"

    # Key providers on the device (requirement: every state named, with a way back)
    PIN_NOT_SET = "pin_not_set"
    PIN_REQUIRED = "pin_required"
    PIN_WRONG = "pin_wrong"
    PIN_BLOCKED = "pin_blocked"
    PIN_LAST_TRY = "pin_last_try"
    PIN_POWER_CYCLE = "pin_power_cycle"
    PIN_POLICY = "pin_policy"
    PIN_CHANGE_REQUIRED = "pin_change_required"
    BUILT_IN_UV_BLOCKED = "built_in_uv_blocked"
    KEY_NOT_FOUND = "key_not_found"
    KEY_STORE_FULL = "key_store_full"
    VAULT_CORRUPT = "vault_corrupt"
    VAULT_BUSY = "vault_busy"
    VAULT_PERMISSIONS = "vault_permissions"
    DEVICE_KEY_LOST = "device_key_lost"
    TPM_UNAVAILABLE = "tpm_unavailable"
    TPM_PERMISSION = "tpm_permission"
    TPM_BUSY = "tpm_busy"
    TPM_MEMORY = "tpm_memory"
    TPM_LOCKOUT = "tpm_lockout"
    TPM_OWNER_AUTH = "tpm_owner_auth"
    TPM_CLEARED = "tpm_cleared"
    TPM_FAILED = "tpm_failed"
    AUTHENTICATOR_REMOVED = "authenticator_removed"
    AUTHENTICATOR_OTHER = "authenticator_other"
    AUTHENTICATOR_NOT_CONNECTED = "authenticator_not_connected"
    AUTHENTICATOR_PERMISSION = "authenticator_permission"
    READER_UNAVAILABLE = "reader_unavailable"
    MODULE_REFUSED = "module_refused"
    MODULE_UNAVAILABLE = "module_unavailable"
    USER_CANCELLED = "user_cancelled"
    USER_TIMEOUT = "user_timeout"
    DEVICE_FAILED = "device_failed"
    UNSUPPORTED = "unsupported"

    # The agent itself
    AGENT_NOT_RUNNING = "agent_not_running"
    AGENT_RUNNING = "agent_running"
    NOT_ENROLLED = "not_enrolled"
    ALREADY_ENROLLED = "already_enrolled"
    PROMPT_UNKNOWN = "prompt_unknown"
    LEDGER_CORRUPT = "ledger_corrupt"

    # Everything that failed without a verdict
    SERVER_UNREACHABLE = "server_unreachable"
    STORE_UNAVAILABLE = "store_unavailable"
    STORE_SCHEMA = "store_schema"
    CONFIGURATION = "configuration"
    DEADLINE = "deadline"
    INTERNAL = "internal"
    USAGE = "usage"


class KeyvouchError(Exception):
    """Base of every error Keyvouch raises on purpose.

    `reason` is for programs, `message` and `fix` are for people, `metadata` holds short strings that
    make the message concrete (never a secret). `str(error)` is the message followed by the fix.
    """

    def __init__(
        self, reason: Reason, message: str, *, fix: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.fix = fix
        self.metadata: dict[str, str] = dict(metadata or {})

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class MalformedError(KeyvouchError):
    """Input from a peer is not a well-formed instance of the structure it claims to be."""


class EvidenceError(KeyvouchError):
    """A well-formed structure does not prove what was expected of it."""


class RefusedError(KeyvouchError):
    """A rule, a policy or the present state refuses the request."""


class UnauthenticatedError(RefusedError):
    """The caller has not shown who it is."""


class PermissionDeniedError(RefusedError):
    """The caller is known and may not do this."""


class NotFoundError(RefusedError):
    """There is no such thing in the caller's sight."""


class ConflictError(RefusedError):
    """The thing exists already, or its state has moved on."""


class ThrottledError(RefusedError):
    """Too many attempts. `retry_after` is in seconds."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after: float,
        fix: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, fix=fix, metadata=metadata)
        self.retry_after = retry_after


class DeviceError(KeyvouchError):
    """A key provider could not do what was asked: PIN, presence, storage, hardware.

    `retries_left` is the number of PIN attempts that remain, where the provider knows it.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retries_left: int | None = None,
        fix: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, fix=fix, metadata=metadata)
        self.retries_left = retries_left


class UnavailableError(KeyvouchError):
    """The store or a peer cannot be reached or has no room; nothing was changed."""


class UsageError(KeyvouchError):
    """The calling program used an interface wrongly. Never caused by a peer's data."""

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(Reason.USAGE, message, fix=fix)


def error_for(
    kind: str,
    reason: str,
    message: str,
    *,
    fix: str = "",
    metadata: Mapping[str, str] | None = None,
    retry_after: float = 0.0,
) -> KeyvouchError:
    """Rebuild an error that travelled over the wire: `kind` is its class name, `reason` its code.

    An unknown kind gives a plain `KeyvouchError`, an unknown reason `Reason.INTERNAL` with the original
    string kept in `metadata["reason"]`, so that an older client survives a newer server.
    """
    data = dict(metadata or {})
    try:
        known = Reason(reason)
    except ValueError:
        known, data["reason"] = Reason.INTERNAL, reason
    if kind == "ThrottledError":
        return ThrottledError(known, message, retry_after=retry_after, fix=fix, metadata=data)
    if kind == "UsageError":
        return UsageError(message, fix=fix)
    return _BY_NAME.get(kind, KeyvouchError)(known, message, fix=fix, metadata=data)


_BY_NAME: Mapping[str, type[KeyvouchError]] = {
    cls.__name__: cls
    for cls in (
        KeyvouchError,
        MalformedError,
        EvidenceError,
        RefusedError,
        UnauthenticatedError,
        PermissionDeniedError,
        NotFoundError,
        ConflictError,
        DeviceError,
        UnavailableError,
    )
}
