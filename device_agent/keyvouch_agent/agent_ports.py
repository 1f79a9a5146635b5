"""What the agent wants of the world beside its key providers: time, the server, and a person.

Values that cross these ports mirror the messages of `keyvouch.v1`, without its library: only `rpc` knows that.
Key providers have their own page, `ports`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import Protocol, TypeAlias

from keyvouch.ids import CredentialId, DeviceId
from keyvouch_agent.ports import (
    Assertion,
    HealthReport,
    Provider,
    TpmCertification,
    TpmEvidence,
    TpmGrant,
    TpmPreparation,
)

__all__ = [
    "Answer",
    "AttestationEvidence",
    "Clock",
    "Departing",
    "DeviceFate",
    "DeviceServer",
    "EnrolmentServer",
    "EventHandler",
    "HealthVerdict",
    "KeyHolders",
    "LinkState",
    "Outcome",
    "PresentDevice",
    "Prompt",
    "PromptLink",
    "Registered",
    "RegistrationOffer",
    "ReplacementEvidence",
    "ReplacementOffer",
    "ReplacementServer",
    "RequiredAssurance",
    "Secret",
    "ServerEvent",
    "SignInState",
    "StateHandler",
    "TpmOffer",
    "Welcome",
    "Withdrawn",
]


class Clock(Protocol):
    """Two clocks of the device. Neither is believed about the server's time; see `server_time`."""

    def now(self) -> float:
        """Seconds since the epoch, as this device has it."""

    def monotonic(self) -> float:
        """Seconds that only go forward, also while the device sleeps."""


@dataclass(frozen=True, slots=True)
class Secret:
    """An access pass or a token: printed, logged or shown, it is three asterisks."""

    _value: str = field(repr=False)

    def reveal(self) -> str:
        """The value, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__


@unique
class SignInState(StrEnum):
    """The states of a sign-in, as in `keyvouch.v1.SignInState`."""

    UNSPECIFIED = "unspecified"
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    REPORTED = "reported"
    FAILED = "failed"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    CONSUMED = "consumed"


@unique
class LinkState(StrEnum):
    """How the prompt stream of one enrolment fares. The last two are final."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    """Not connected; the next try comes by itself."""
    REMOVED = "removed"
    """The server has removed this device."""
    CERTIFICATE_REFUSED = "certificate_refused"
    """The server does not accept this device's certificate, or it has ended."""


@dataclass(frozen=True, slots=True)
class RequiredAssurance:
    """What a registration needs at least, in the words of `keyvouch.assurance`; empty where anything will do.

    `protection` is `any` or `hardware`.
    """

    protection: str = ""
    verification: str = ""
    provenance: str = ""


@dataclass(frozen=True, slots=True)
class TpmOffer:
    """TpmOffer: the ceremony key as a TPMT_PUBLIC, and how many wrong PINs block the key."""

    ceremony_key: bytes
    pin_limit: int


@unique
class DeviceFate(StrEnum):
    """What became of a device whose place another one takes, as in `keyvouch.v1.DeviceFate`."""

    UNUSED = "unused"
    REPLACED = "replaced"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class PresentDevice:
    """A device that the same user has registered already. Its name and kind are the server's words."""

    device_id: str
    display_name: str
    provider: str
    last_used_at: int = 0


@dataclass(frozen=True, slots=True)
class Departing:
    """A device that goes when the new one comes."""

    device_id: str
    fate: DeviceFate


@dataclass(frozen=True, slots=True)
class RegistrationOffer:
    """BeginRegistrationResponse. Of `present` only so many may stay that there is room for one more among those that
    are allowed; 0 where the server says nothing of it.
    """

    registration_id: str
    registration_token: Secret
    statement: bytes
    rp_id: str
    user_handle: bytes
    username: str
    algorithms: tuple[int, ...]
    expires_at: int
    required: RequiredAssurance
    tpm: TpmOffer | None = None
    present: tuple[PresentDevice, ...] = ()
    device_endpoint: str = ""
    devices_allowed: int = 0


@dataclass(frozen=True, slots=True)
class AttestationEvidence:
    """CompleteRegistrationRequest: the bytes that are repeated as they are after a crash."""

    client_data_json: bytes
    attestation_object: bytes
    channel_proof: bytes
    tpm: TpmEvidence | None = None
    certificates: tuple[bytes, ...] = ()
    """CardEvidence."""
    departing: tuple[Departing, ...] = ()


@dataclass(frozen=True, slots=True)
class Registered:
    """CompleteRegistrationResponse, as far as the agent keeps it."""

    device_id: DeviceId
    tenant_id: str
    user_id: str
    display_name: str
    credential_id: CredentialId
    certificate_chain: tuple[bytes, ...]
    device_endpoint: str
    tenant_name: str
    replaced_device_id: str = ""
    removed_device_ids: tuple[str, ...] = ()
    revoked_sessions: int = 0


@dataclass(frozen=True, slots=True)
class ReplacementOffer:
    """BeginKeyReplacementResponse. `certificate` is the attestation key's, fresh, in DER."""

    registration_id: str
    statement: bytes
    rp_id: str
    user_handle: bytes
    username: str
    algorithms: tuple[int, ...]
    certificate: bytes


@dataclass(frozen=True, slots=True)
class ReplacementEvidence:
    """CompleteKeyReplacementRequest: the bytes that are repeated as they are after a crash."""

    registration_id: str
    client_data_json: bytes
    attestation_object: bytes
    pin_index: TpmCertification


@dataclass(frozen=True, slots=True)
class Answer:
    """A signed decision: an assertion for an approval, a signature of the channel key for all else."""

    prompt_id: str
    statement: bytes
    assertion: Assertion | None = None
    channel_signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Welcome:
    """First message of the server on a prompt stream."""

    server_version: str
    server_time: int
    health_nonce: bytes = b""
    health_pcrs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A sign-in that waits for this device. `offer` is what is parsed, shown and signed. `number_choices` are empty, or
    the three numbers of the legacy choice, which a tenant's policy may have; then the person picks instead of typing.
    """

    prompt_id: str
    offer: bytes
    expires_at: int
    number_digits: int
    number_choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an answer. `reason` is empty where it was accepted."""

    prompt_id: str
    accepted: bool
    state: SignInState
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The prompt needs no answer any more."""

    prompt_id: str
    state: SignInState


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    """What the server makes of a report: `good`, `drifted` or `failed`, why, and what the key counts for now."""

    state: str
    findings: tuple[str, ...]
    assurance: str


ServerEvent: TypeAlias = Welcome | Prompt | Outcome | Withdrawn | HealthVerdict
EventHandler: TypeAlias = Callable[[ServerEvent], Awaitable[None]]
StateHandler: TypeAlias = Callable[[LinkState, str], None]


class EnrolmentServer(Protocol):
    """The public listener, as far as a device needs it. Every method raises errors of `keyvouch.errors`."""

    async def sign_in_with_access_pass(self, *, tenant: str, username: str, access_pass: Secret) -> Secret:
        """Open a session that may register a method; return its access token."""

    async def begin_registration(
        self,
        access_token: Secret | None,
        *,
        channel_public_key: bytes,
        display_name: str,
        provider: str,
        verifies: tuple[int, ...] = (),
    ) -> RegistrationOffer:
        """Ask for a registration statement; for a key in a TPM, `verifies` are the algorithms it can verify by.

        `access_token` of None is for a server that is spoken to in a session already.
        """

    async def reach_device_listener(self, endpoint: str) -> None:
        """Look whether the way is open by which prompts will come. Raises `UnavailableError(SERVER_UNREACHABLE)`."""

    async def prepare_tpm(self, registration_token: Secret, preparation: TpmPreparation) -> TpmGrant:
        """Show the TPM. The same request gives the same reply."""

    async def complete_registration(self, registration_token: Secret, evidence: AttestationEvidence) -> Registered:
        """Hand in the evidence. The same bytes give the same answer, however often they are sent."""


class KeyHolders(Protocol):
    """Where a registration has its key from, and gives it back to if it comes to nothing. Methods block."""

    def new(self) -> tuple[str, Provider]:
        """The holder for a new account, and the name the account has there, empty where accounts share one holder."""

    def forget(self, provider: str, account: str, credential_id: CredentialId | None) -> None:
        """Destroy a key; `provider` empty for the kind of the registration. Raises `DeviceError` where it cannot."""


class DeviceServer(Protocol):
    """The device listener's unary calls."""

    async def renew_certificate(self) -> tuple[bytes, ...]:
        """A new certificate chain for the channel key in use."""

    async def unregister(self) -> int:
        """Remove this device; return how many sessions ended with it."""

    async def display_name(self) -> str:
        """The device's name as the server knows it: proof that the channel works."""

    async def close(self) -> None:
        """End the channel."""


class ReplacementServer(Protocol):
    """The device listener's calls for a key replacement."""

    async def begin_key_replacement(self) -> ReplacementOffer:
        """Ask for a statement. A replacement that was begun before, and not completed, is forgotten."""

    async def complete_key_replacement(self, evidence: ReplacementEvidence) -> CredentialId:
        """Hand in the evidence; returns the device's key from now on. The same bytes give the same answer."""

    async def registered_key(self) -> CredentialId:
        """The key this device is registered with."""

    async def close(self) -> None:
        """End the channel."""


class PromptLink(Protocol):
    """The prompt stream of one enrolment, kept open across failures."""

    async def run(self) -> LinkState:
        """Keep the stream open until a final state, and return that."""

    def send(self, answer: Answer) -> None:
        """Send now if the stream is open; the caller keeps the answer and sends it again after the next welcome."""

    def report_health(self, report: HealthReport) -> None:
        """Send now if the stream is open; else it is of no use."""
