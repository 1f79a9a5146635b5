"""The `Provider` port: everything that holds a key, alike for the ceremonies above it, and the `Pin` type.

    provider.capabilities()                 no prompt, no touch
    provider.ready(ui, cancelled)           before a registration: is it there, and which one is it?
    session = provider.open(ui, rp_id=...)  one session for one ceremony with one relying party
      session.prepare(offer)                what the server must see before the key is made, where there is anything
      session.accept(grant)                 what the server allows upon it
      session.create_key(creation)          -> Registration
      session.evidence(statement, channel)  what proves more of the key than its attestation statement
      session.sign(use)                     -> Assertion
      session.pin()                         -> PinControl, or None where there is no PIN to manage
      session.cancel()                      from any thread: withdraw what the user is being asked
      session.close()

All failures are `DeviceError`: `PIN_NOT_SET`, `PIN_WRONG` and `PIN_BLOCKED` (with `retries_left`),
`PIN_POWER_CYCLE`, `PIN_POLICY`, `PIN_CHANGE_REQUIRED`, `BUILT_IN_UV_BLOCKED`, `USER_CANCELLED`, `USER_TIMEOUT`,
`KEY_NOT_FOUND`, `CREDENTIAL_EXISTS`, `KEY_STORE_FULL`, `UNSUPPORTED`, `VAULT_*`, `TPM_*`, `AUTHENTICATOR_*`,
`DEVICE_KEY_LOST`, `DEVICE_FAILED`. A request for another relying party than the session's is a `RefusedError` with
`WRONG_SERVER`. Methods block; a caller with an event loop uses a thread.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, unique
from threading import Event
from types import TracebackType
from typing import Protocol, Self

from keyvouch.ids import CredentialId

__all__ = [
    "Assertion",
    "Gate",
    "GateOffer",
    "HealthReport",
    "KeyCreation",
    "KeyProtection",
    "KeyUse",
    "NativeSteps",
    "Pin",
    "PinControl",
    "PresenceContext",
    "Provider",
    "ProviderCapabilities",
    "ProviderInteraction",
    "ProviderKind",
    "ProviderSession",
    "Registration",
    "ReplacementSteps",
    "TpmCertification",
    "TpmEvidence",
    "TpmGrant",
    "TpmPreparation",
]


class Pin:
    """A PIN somebody typed. Prints nothing, compares by identity, and is dropped as early as possible.

    It is kept in Unicode normalization form C, as CTAP wants it (section 6.5.1).
    Python cannot overwrite a string; `close` gives up the only reference the agent keeps.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text: str | None = unicodedata.normalize("NFC", text)

    def reveal(self) -> str:
        """Return the PIN, for the one place that hands it to the key's holder. Raises `ValueError` once closed."""
        if self._text is None:
            raise ValueError("this PIN was dropped already")
        return self._text

    def close(self) -> None:
        """Drop the PIN. Does nothing the second time."""
        self._text = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "Pin(***)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a Pin does not travel")


@unique
class ProviderKind(StrEnum):
    """What holds the keys."""

    TPM = "tpm"
    FIDO2 = "fido2"
    SMARTCARD = "smartcard"
    SOFTWARE = "software"


@unique
class KeyProtection(StrEnum):
    """How well. What a server believes it derives from evidence; this is for people on this side."""

    HARDWARE = "hardware"
    EMULATED_HARDWARE = "emulated-hardware"
    SOFTWARE = "software"


@unique
class Gate(StrEnum):
    """Who enforces user verification or user presence."""

    AUTHENTICATOR = "authenticator"
    TPM_POLICY = "tpm-policy"
    CARD_POLICY = "card-policy"
    HOST = "host"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ProviderCapabilities:
    """What a provider is and can do, found out without a prompt."""

    kind: ProviderKind
    name: str
    """For people: `Software key vault`, `YubiKey 5`."""
    algorithms: tuple[int, ...]
    """COSE identifiers, the preferred one first."""
    key_protection: KeyProtection
    uv_by: Gate
    up_by: Gate
    pin_is_set: bool
    pin_retries_left: int | None
    """None where the provider cannot tell without a prompt."""
    min_pin_length: int
    attestation_formats: tuple[str, ...]
    aaguid: bytes = bytes(16)
    verifies: tuple[int, ...] = ()
    """COSE algorithms a TPM can verify a ceremony key by, best first; empty for what is no TPM."""
    connected: bool = True
    """False for a holder that is not there now; the PIN's standing is unknown then."""
    asks_pin: bool = True
    """False for an authenticator that verifies its user itself, by a finger for example, and still does so now."""


@dataclass(frozen=True, slots=True)
class GateOffer:
    """What a PIN gate in a TPM is made of: the account's device id, the server's ceremony key (TPMT_PUBLIC), the limit
    of wrong PINs. See `keyvouch.attestation.pin_gate`.
    """

    device_id: str
    ceremony_key: bytes
    limit: int


@dataclass(frozen=True, slots=True)
class TpmPreparation:
    """PrepareTpmRequest."""

    endorsement_key: bytes
    endorsement_certificates: tuple[bytes, ...]
    attestation_key: bytes
    pin_index: bytes
    session_nonce: bytes


@dataclass(frozen=True, slots=True)
class TpmGrant:
    """PrepareTpmResponse. `sealed_certificate` is empty where nobody vouches for the endorsement key."""

    credential_blob: bytes
    encrypted_secret: bytes
    sealed_certificate: bytes
    first_write: bytes
    pin_change: bytes
    statement: bytes


@dataclass(frozen=True, slots=True)
class TpmCertification:
    """TPMS_ATTEST and TPMT_SIGNATURE."""

    attest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class TpmEvidence:
    """TpmEvidence. `channel_key` is empty, and its certification None, where that key is not in the TPM."""

    activation: bytes
    pin_index: TpmCertification
    channel_key: bytes = b""
    channel_key_certification: TpmCertification | None = None


@dataclass(frozen=True, slots=True)
class KeyCreation:
    """What to make a key for. `challenge` is what the server will expect in the client data."""

    challenge: bytes
    rp_id: str
    user_id: bytes
    """User handle, 1 to 64 bytes."""
    user_name: str
    algorithms: tuple[int, ...]
    """COSE identifiers the server takes, in its order of preference."""
    rp_name: str = ""
    exclude: tuple[CredentialId, ...] = ()
    """Credentials of this user; a provider that holds one of them refuses with `CREDENTIAL_EXISTS`."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What to sign and with which key."""

    challenge: bytes
    rp_id: str
    credential_id: CredentialId


@dataclass(frozen=True, slots=True)
class Registration:
    """A new credential: clientDataJSON and attestation object as the server shall get them, byte for byte."""

    credential_id: CredentialId
    client_data: bytes
    attestation_object: bytes
    certificates: tuple[bytes, ...] = ()
    """DER: what an organisation issued for a key that existed before, its own first, where the server shall see it."""


@dataclass(frozen=True, slots=True)
class Assertion:
    """A signature over authenticator data and the hash of the client data (WebAuthn section 6.3.3)."""

    credential_id: CredentialId
    client_data: bytes
    authenticator_data: bytes
    signature: bytes
    user_handle: bytes | None = None


@dataclass(frozen=True, slots=True)
class PresenceContext:
    """What the user confirms: `make_credential` or `get_assertion`, for whom, and as whom (may be empty)."""

    purpose: str
    rp_id: str
    user_name: str


@dataclass(frozen=True, slots=True)
class HealthReport:
    """HealthReport: a quote with the PCR values it is over, or the reason why there is none."""

    quote: TpmCertification | None = None
    pcr_values: Mapping[int, bytes] = field(default_factory=dict)
    event_log: bytes = field(default=b"", repr=False)
    trouble: str = ""


class ProviderInteraction(Protocol):
    """The user, as a provider needs her."""

    def request_pin(self, retries_left: int | None, min_length: int) -> Pin | None:
        """Ask for the PIN, showing how many attempts are left. None: the user cancelled."""

    def request_new_pin(self, min_length: int) -> Pin | None:
        """Ask for a first PIN, because none is set and a key needs one. None: the user declined."""

    def confirm_presence(self, context: PresenceContext) -> bool:
        """Ask for an explicit confirmation, where there is no touch. Raise `TimeoutError` when nobody answers."""

    def allows_last_try(self) -> bool:
        """Whether the user has said beforehand that the last try of a PIN may be spent on what she types."""

    def touch_needed(self) -> None:
        """Remind the user to touch the authenticator; comes again while it waits. Does not wait."""

    def tell(self, text: str) -> None:
        """Say what else to do with an authenticator: connect it, put it in again, choose one. Does not wait."""


class PinControl(Protocol):
    """The PIN's own ceremonies."""

    @property
    def is_set(self) -> bool:
        """Whether there is a PIN."""

    @property
    def retries_left(self) -> int | None:
        """Wrong PINs left until it is blocked."""

    @property
    def min_length(self) -> int:
        """In characters."""

    def set(self, new: Pin) -> None:
        """Set the first PIN. Raises `PIN_POLICY`."""

    def change(self, old: Pin, new: Pin) -> None:
        """Put `new` in the place of `old`. Raises `PIN_POLICY`, `PIN_WRONG`, `PIN_BLOCKED`, `PIN_POWER_CYCLE`."""


class NativeSteps(Protocol):
    """What a holder of keys does at registration beside WebAuthn."""

    def prepare(self, offer: GateOffer) -> TpmPreparation:
        """Show the server what it must see before the key is made."""

    def accept(self, grant: TpmGrant) -> None:
        """Take what the server allows. The PIN can be set after this, and not before."""

    def evidence(self, statement: bytes, channel_key: bytes) -> TpmEvidence:
        """Prove what the attestation statement cannot, for this registration statement. `channel_key` as stored."""

    def close(self) -> None:
        """Let go of what the steps held. Does nothing the second time."""


class ReplacementSteps(Protocol):
    """What a holder of keys does when a new key takes the place of a registered one, behind the same PIN."""

    def accept(self, statement: bytes, certificate: bytes) -> None:
        """Take what the server sends: its statement, and a fresh certificate (DER) of the attestation key."""

    def certify_pin(self, statement: bytes) -> TpmCertification:
        """Prove how the PIN stands, for this statement."""

    def forget(self, credential_id: CredentialId) -> None:
        """Destroy a key that came to nothing. Does nothing for one that is not there."""

    def keep_only(self, credential_id: CredentialId) -> None:
        """Destroy every key of the account but this one."""


class ProviderSession(Protocol):
    """One ceremony with one provider."""

    def prepare(self, offer: GateOffer) -> TpmPreparation | None:
        """See `NativeSteps`; None where there is nothing to show."""

    def accept(self, grant: TpmGrant) -> None:
        """See `NativeSteps`. Raises `UsageError` where nothing was shown."""

    def evidence(self, statement: bytes, channel_key: bytes) -> TpmEvidence | None:
        """See `NativeSteps`; None where nothing was shown."""

    def create_key(self, creation: KeyCreation) -> Registration:
        """Make a key inside the provider and have it attested."""

    def sign(self, use: KeyUse) -> Assertion:
        """Sign with user verification and user presence."""

    def pin(self) -> PinControl | None:
        """The PIN's ceremonies, or None where the provider has no PIN to manage."""

    def cancel(self) -> None:
        """Withdraw whatever is under way; it ends with `USER_CANCELLED`. Any thread may call this."""

    def close(self) -> None:
        """Lock the key's holder and let go of it. Does nothing the second time."""

    def __enter__(self) -> Self:
        """The session closes with the `with` block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


class Provider(Protocol):
    """Something that holds keys; of a TPM, the keys of one account."""

    def capabilities(self) -> ProviderCapabilities:
        """What it is and can do. No prompt, no touch."""

    def ready(self, ui: ProviderInteraction, cancelled: Event) -> None:
        """Make sure, before a registration, that the holder is there and which one it is.

        Waits for a security key to be connected, or touched where there are several. Raises `DeviceError`:
        AUTHENTICATOR_NOT_CONNECTED and what keeps a key from use, UNSUPPORTED, USER_CANCELLED once `cancelled` is set.
        """

    def open(self, ui: ProviderInteraction, *, rp_id: str) -> ProviderSession:
        """Start a ceremony. `rp_id` is the one in the enrolment record, or in the registration that makes it."""

    def health(self, qualifying_data: bytes, pcrs: Sequence[int]) -> HealthReport | None:
        """What the holder says of itself, over `qualifying_data`; None where it says nothing. Blocks, never raises."""

    def replacement(self) -> ReplacementSteps | None:
        """Begin to put a new key in the place of a registered one; None where the holder cannot."""

    def forget(self, credential_id: CredentialId | None) -> None:
        """Destroy a key that is not registered any more, and with the account's only one the account (TPM).

        None where no key came to be. Where the holder lets nobody destroy single keys, nothing happens.
        """
