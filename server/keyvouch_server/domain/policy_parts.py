"""The parts of a tenant's policy: settings with their defaults, and nothing that decides (`domain.policy`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from keyvouch.assurance import AssuranceRequirement, Verification
from keyvouch_server.domain.authenticators import AuthenticatorRules

GATED: Final = AssuranceRequirement(verification=Verification.SOFTWARE_GATED).text()

NIST_800_63B_4: Final = "nist-800-63b-4"
"""The profile of NIST SP 800-63B-4 section 3.1.3 for out-of-band authenticators: at least six digits."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Whom something is for (PS12): ids of users and of groups. Excludes win over includes."""

    everybody: bool = True
    include_users: tuple[str, ...] = ()
    include_groups: tuple[str, ...] = ()
    exclude_users: tuple[str, ...] = ()
    exclude_groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """Number-matching approval. `lifetime_seconds` of a request; `number_misses` in a row before the method rests for
    `REST_SECONDS`; `begins_per_minute` that nobody approves, per user (P1). `legacy_choice_of_three`: the device shows
    three numbers to choose from; never for administrators.
    """

    enabled: bool = True
    number_digits: int = 2
    lifetime_seconds: int = 120
    required_assurance: str = GATED
    number_misses: int = 10
    begins_per_minute: int = 3
    targets: Targets = field(default_factory=Targets)
    legacy_choice_of_three: bool = False


@dataclass(frozen=True, slots=True)
class AccessPassPolicy:
    """Temporary Access Pass. Lifetimes in minutes, `length` in characters."""

    enabled: bool = True
    minimum_lifetime_minutes: int = 60
    maximum_lifetime_minutes: int = 1440
    default_lifetime_minutes: int = 60
    one_time_required: bool = False
    length: int = 8
    targets: Targets = field(default_factory=Targets)


@dataclass(frozen=True, slots=True)
class RegistrationPolicy:
    """Registration of devices. `accounts_per_device` counts the users of one TPM, `pin_tries` the wrong PINs in a row
    that block the key of an account in a TPM. The other two also judge keys that are registered already:
    `authenticators`, and `card_pin_always`, that a smartcard is attested to ask for the PIN before each signature.
    """

    required_assurance: str = GATED
    devices_per_user: int = 10
    accounts_per_device: int = 1
    pin_tries: int = 3
    authenticators: AuthenticatorRules = field(default_factory=AuthenticatorRules)
    card_pin_always: bool = False


@dataclass(frozen=True, slots=True)
class SecurityKeyPolicy:
    """Sign-in with a security key at the client. How long a request lasts, and how many may be begun, is as for
    approvals; each is counted by itself.
    """

    enabled: bool = True
    required_assurance: str = GATED
    targets: Targets = field(default_factory=Targets)


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """Life of tokens and sessions, in seconds. `proof_required`: calls of this server's services are proved with the
    session's proof key (P15).
    """

    access_token_seconds: int = 600
    session_seconds: int = 12 * 3600
    proof_required: bool = True


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """What devices with a TPM report. `required`: without a report that stands, not older than `max_age_minutes`, such
    a device approves nothing. `pcrs` are the registers of the SHA-256 bank that are asked for, in ascending order.
    """

    required: bool = False
    max_age_minutes: int = 1440
    pcrs: tuple[int, ...] = (0, 2, 4, 7)


@dataclass(frozen=True, slots=True)
class SignInPolicy:
    """What all methods have in common. `disclose_methods` tells strangers what a user prefers; `profile` is empty or
    `NIST_800_63B_4`.
    """

    disclose_methods: bool = False
    profile: str = ""


@dataclass(frozen=True, slots=True)
class AppPolicy:
    """What one app asks for beyond everything else; the stricter counts. `app_id` is the id that its clients say of
    themselves, or the audience of its tokens.
    """

    app_id: str
    required_assurance: str = GATED
    phishing_resistant: bool = False


@dataclass(frozen=True, slots=True)
class Campaign:
    """KI8: what users have to have registered, and until when (seconds since the epoch). Afterwards whoever has no such
    key signs in to this server only, to register one.
    """

    name: str
    required_by: int
    targets: Targets = field(default_factory=Targets)
    required_assurance: str = GATED
