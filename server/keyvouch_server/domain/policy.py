"""A tenant's rules and the decisions they make over verified facts.

Each `decide_*` returns nothing when the policy allows and raises a `RefusedError` with a stable reason when it
does not. Nothing here verifies evidence or looks anything up; what must be known is an argument.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from keyvouch.assurance import Assurance, AssuranceRequirement, Verification
from keyvouch.errors import MalformedError, Reason, RefusedError
from keyvouch.ids import TenantId, UserId
from keyvouch.statement import MAX_TEXT
from keyvouch_server.domain.authenticators import AuthenticatorRules, check_rules
from keyvouch_server.domain.model import AccessPass, ProviderKind, SignInWay

_GATED = AssuranceRequirement(verification=Verification.SOFTWARE_GATED).text()


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """Number-matching approval. `lifetime_seconds` of a request; `number_misses` in a row before the method
    rests for `REST_SECONDS`; `begins_per_minute` per user.
    """

    enabled: bool = True
    number_digits: int = 2
    lifetime_seconds: int = 120
    required_assurance: str = _GATED
    number_misses: int = 10
    begins_per_minute: int = 10


@dataclass(frozen=True, slots=True)
class AccessPassPolicy:
    """Temporary Access Pass. Lifetimes in minutes, `length` in characters."""

    enabled: bool = True
    minimum_lifetime_minutes: int = 60
    maximum_lifetime_minutes: int = 1440
    default_lifetime_minutes: int = 60
    one_time_required: bool = False
    length: int = 8


@dataclass(frozen=True, slots=True)
class RegistrationPolicy:
    """Registration of devices. `accounts_per_device` counts the users of one TPM, `pin_tries` the wrong PINs in a row
    that block the key of an account in a TPM. The other two also judge keys that are registered already:
    `authenticators`, and `card_pin_always`, that a smartcard is attested to ask for the PIN before each signature.
    """

    required_assurance: str = _GATED
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
    required_assurance: str = _GATED


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """Life of tokens and sessions, in seconds."""

    access_token_seconds: int = 600
    session_seconds: int = 12 * 3600


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """What devices with a TPM report. `required`: without a report that stands, not older than `max_age_minutes`, such
    a device approves nothing. `pcrs` are the registers of the SHA-256 bank that are asked for, in ascending order.
    """

    required: bool = False
    max_age_minutes: int = 1440
    pcrs: tuple[int, ...] = (0, 2, 4, 7)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one tenant at one version."""

    version: int = 1
    approval: ApprovalPolicy = field(default_factory=ApprovalPolicy)
    access_pass: AccessPassPolicy = field(default_factory=AccessPassPolicy)
    registration: RegistrationPolicy = field(default_factory=RegistrationPolicy)
    session: SessionPolicy = field(default_factory=SessionPolicy)
    health: HealthPolicy = field(default_factory=HealthPolicy)
    security_key: SecurityKeyPolicy = field(default_factory=SecurityKeyPolicy)

    def document(self) -> str:
        """JSON text for the store."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def load(cls, document: str) -> Policy:
        """Read back what `document` wrote; fields that a newer release added get their defaults."""
        d: dict[str, Any] = json.loads(document)
        return cls(
            version=d["version"],
            approval=ApprovalPolicy(**d["approval"]),
            access_pass=AccessPassPolicy(**d["access_pass"]),
            registration=_registration(d["registration"]),
            session=SessionPolicy(**d["session"]),
            health=_health(d.get("health", {})),
            security_key=SecurityKeyPolicy(**d.get("security_key", {})),
        )


def _health(d: dict[str, Any]) -> HealthPolicy:
    return HealthPolicy(**{**d, "pcrs": tuple(d["pcrs"])}) if d else HealthPolicy()


def _registration(d: dict[str, Any]) -> RegistrationPolicy:
    rules = d.get("authenticators", {})
    lists = {name: tuple(rules.get(name, ())) for name in ("allowed", "blocked")}
    return RegistrationPolicy(**{**d, "authenticators": AuthenticatorRules(**lists)})


REST_SECONDS = 900
"""How long the approval method rests after too many wrong numbers."""

ACCESS_PASS_ATTEMPTS = 5
"""Comparisons a pass survives: counted before comparing, then it is dead."""

NAMED_DEVICES = 10
"""Devices that a refusal names."""

_RANGES: tuple[tuple[str, str, int, int], ...] = (
    ("approval", "number_digits", 2, 8),
    ("approval", "lifetime_seconds", 30, 600),
    ("approval", "number_misses", 1, 100),
    ("approval", "begins_per_minute", 1, 6000),
    ("access_pass", "minimum_lifetime_minutes", 10, 43200),
    ("access_pass", "maximum_lifetime_minutes", 10, 43200),
    ("access_pass", "default_lifetime_minutes", 10, 43200),
    ("access_pass", "length", 8, 48),
    ("registration", "devices_per_user", 1, 100),
    ("registration", "accounts_per_device", 1, 20),
    ("registration", "pin_tries", 2, 10),
    ("session", "access_token_seconds", 60, 3600),
    ("session", "session_seconds", 300, 90 * 86400),
    ("health", "max_age_minutes", 5, 43200),
)

_QUOTABLE = frozenset(range(23)) - {16}
"""PCRs that mean something: any program can reset 16 and 23."""


def check_policy(policy: Policy) -> Policy:
    """Return the policy if it is consistent, else raise `MalformedError(POLICY_INVALID)` naming the field."""
    for part, name, least, most in _RANGES:
        value = getattr(getattr(policy, part), name)
        if not least <= value <= most:
            raise _invalid(f"{part}.{name}", f"{least} to {most}")
    p = policy.access_pass
    if not p.minimum_lifetime_minutes <= p.default_lifetime_minutes <= p.maximum_lifetime_minutes:
        raise _invalid("access_pass.default_lifetime_minutes", "a value between the minimum and the maximum lifetime")
    for part, text in (
        ("approval", policy.approval.required_assurance),
        ("registration", policy.registration.required_assurance),
        ("security_key", policy.security_key.required_assurance),
    ):
        if len(text) > MAX_TEXT:
            raise _invalid(f"{part}.required_assurance", f"names of anchors that fit in {MAX_TEXT} characters together")
        if AssuranceRequirement.parse(text).verification is Verification.NONE:
            raise _invalid(f"{part}.required_assurance", "a gated key: software_gated or hardware_gated")
    pcrs = policy.health.pcrs
    if not pcrs or not _QUOTABLE.issuperset(pcrs) or list(pcrs) != sorted(set(pcrs)):
        raise _invalid("health.pcrs", "one or several of 0 to 15 and 17 to 22, each once, in ascending order")
    check_rules(policy.registration.authenticators, _invalid)
    return policy


def _invalid(field_name: str, expected: str) -> MalformedError:
    return MalformedError(
        Reason.POLICY_INVALID,
        f"The policy was not saved: {field_name} takes {expected}.",
        fix="Correct the value and save again.",
        metadata={"field": field_name, "expected": expected},
    )


def decide_security_key_enabled(policy: Policy) -> None:
    """Sign-in with a security key must be allowed. Raises METHOD_DISABLED."""
    if not policy.security_key.enabled:
        raise RefusedError(
            Reason.METHOD_DISABLED,
            "Sign-in with a security key is switched off by policy.",
            fix="Use another method, or ask an administrator to enable it.",
            metadata={"method": "security_key"},
        )


def decide_approval_enabled(policy: Policy) -> None:
    """PS15: the approval method must be allowed. Raises METHOD_DISABLED."""
    if not policy.approval.enabled:
        raise RefusedError(
            Reason.METHOD_DISABLED,
            "Approval with a registered device is switched off by policy, so no device was asked.",
            fix="Use another method, or ask an administrator to enable approval.",
            metadata={"method": "approval"},
        )


def decide_registration_enabled(policy: Policy, provider: ProviderKind) -> None:
    """PS15: a key is registered only for a method that is allowed. Raises METHOD_DISABLED."""
    if provider is ProviderKind.FIDO2 and policy.security_key.enabled:
        return
    decide_approval_enabled(policy)


def decide_way(policy: Policy, way: SignInWay) -> None:
    """A sign-in must come by a way that policy allows. Raises METHOD_DISABLED."""
    if way is SignInWay.SECURITY_KEY:
        decide_security_key_enabled(policy)
    else:
        decide_approval_enabled(policy)


def required_by(policy: Policy, way: SignInWay) -> str:
    """The least assurance of a key that decides a sign-in of this way."""
    part = policy.security_key if way is SignInWay.SECURITY_KEY else policy.approval
    return part.required_assurance


@lru_cache(maxsize=4096)
def reaches(found: str, required: str) -> bool:
    """Whether one assurance satisfies a requirement, both in text form. Few pairs ever occur, so they are kept."""
    return Assurance.parse(found).satisfies(AssuranceRequirement.parse(required))


def decide_assurance(found: str, required: str) -> None:
    """H8: what was proved must reach what is required. Raises ASSURANCE_TOO_LOW."""
    if reaches(found, required):
        return
    raise RefusedError(
        Reason.ASSURANCE_TOO_LOW,
        f"Policy requires a key of assurance {required}; this one proves {found}.",
        fix="Register a device whose key provider proves more, or ask an administrator.",
        metadata={"required": required, "found": found},
    )


def decide_card_pin(policy: Policy, pin_policy: str) -> None:
    """A7: where policy says so, a smartcard asks for the PIN before each signature. Raises ASSURANCE_TOO_LOW.

    `pin_policy` is what the key's attestation says, something else where it says nothing of a key that is said to be on
    a smartcard, and empty for every other key.
    """
    if not policy.registration.card_pin_always or pin_policy in ("", "always"):
        return
    raise RefusedError(
        Reason.ASSURANCE_TOO_LOW,
        "Policy requires a smartcard that is attested to ask for the PIN before each signature, and this key's is not.",
        fix="Use a key in a slot with the PIN policy `always`, or ask an administrator.",
        metadata={"required": "pin_policy=always", "found": f"pin_policy={pin_policy}"},
    )


def decide_some_key(found: Iterable[str], required: str) -> None:
    """KI1: of the keys a user has, one must reach what is required, else no device is asked. None at all is no
    refusal: nobody learns from it who has a device. What the keys prove is not told to a caller without a session.
    """
    assurances = tuple(found)
    if not assurances or any(reaches(one, required) for one in assurances):
        return
    raise RefusedError(
        Reason.ASSURANCE_TOO_LOW,
        f"Policy requires a key of assurance {required}, and no device of this user proves it, so none was asked.",
        fix="Register a device whose key provider proves more, or ask an administrator.",
        metadata={"required": required},
    )


def decide_device_limit(policy: Policy, devices: list[str]) -> None:
    """KI5: many devices per user, with a clear limit. Raises DEVICE_LIMIT naming the removable ones.

    It names the first `NAMED_DEVICES` of them: a status with more would not fit into a client's metadata.
    """
    limit = policy.registration.devices_per_user
    if len(devices) >= limit:
        raise RefusedError(
            Reason.DEVICE_LIMIT,
            f"The user has {len(devices)} devices and policy allows {limit}.",
            fix="Remove a device that is no longer used, then register again.",
            metadata={"limit": str(limit), "devices": ", ".join(devices[:NAMED_DEVICES])},
        )


def access_pass_refusal(policy: Policy, found: AccessPass, *, now: int) -> Reason | None:
    """T7, T11, T17: why a pass cannot be used now, or None. The order is the order of the audit's precision."""
    if not policy.access_pass.enabled:
        return Reason.ACCESS_PASS_NOT_IN_POLICY
    if found.attempts >= ACCESS_PASS_ATTEMPTS:
        return Reason.ACCESS_PASS_ATTEMPTS
    if found.one_time and found.used_at:
        return Reason.ACCESS_PASS_USED
    if now < found.start_at:
        return Reason.ACCESS_PASS_NOT_YET_VALID
    if now >= access_pass_end(found):
        return Reason.ACCESS_PASS_EXPIRED
    if policy.access_pass.one_time_required and not found.one_time:
        return Reason.ACCESS_PASS_ONE_TIME_REQUIRED
    return None


def access_pass_end(found: AccessPass) -> int:
    """The instant a pass ends."""
    return found.start_at + 60 * found.lifetime_minutes


def decide_tenant(tenant: TenantId, registered: Iterable[TenantId]) -> None:
    """PS17: one TPM is registered in one tenant. Raises DEVICE_REGISTERED_ELSEWHERE, which names no other tenant."""
    if any(other != tenant for other in registered):
        raise RefusedError(
            Reason.DEVICE_REGISTERED_ELSEWHERE,
            "The TPM of this device is registered in another tenant.",
            fix="Remove it there first: `keyvouch-agent unregister` for each account on this device, or the security "
            "info of its users, or an administrator of that tenant; then register it here.",
        )


def decide_accounts(policy: Policy, others: Collection[UserId]) -> None:
    """PS17: as many accounts in one TPM as policy permits; `others` have theirs. Raises DEVICE_ACCOUNTS."""
    limit = policy.registration.accounts_per_device
    if len(others) >= limit:
        raise RefusedError(
            Reason.DEVICE_ACCOUNTS,
            f"The TPM of this device holds keys of {len(others)} other accounts, and policy allows {limit} in all.",
            fix="Unregister an account that is no longer used on this device, or ask an administrator.",
            metadata={"limit": str(limit)},
        )


def decide_pin_limit(policy: Policy, limit: int) -> None:
    """P19: a PIN gate allows no more tries than policy does when it is built. Raises POLICY_CHANGED.

    The limit is fixed when a registration begins; policy may have become stricter since.
    """
    most = policy.registration.pin_tries
    if limit > most:
        raise RefusedError(
            Reason.POLICY_CHANGED,
            f"The registration was begun for a PIN of {limit} tries, and policy allows {most} by now.",
            fix="Begin the registration again.",
            metadata={"limit": str(most)},
        )
