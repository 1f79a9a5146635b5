"""A tenant's rules and the decisions they make over verified facts.

Each `decide_*` returns nothing when the policy allows and raises a `RefusedError` with a stable reason when it
does not. Nothing here verifies evidence or looks anything up; what must be known is an argument. Not here: whether a
policy is consistent (`policy_check`), and what it means for a person and a request (`evaluation`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from keyvouch.assurance import Assurance, AssuranceRequirement
from keyvouch.errors import Reason, RefusedError
from keyvouch.ids import TenantId, UserId
from keyvouch_server.domain.authenticators import AuthenticatorRules
from keyvouch_server.domain.model import SignInWay
from keyvouch_server.domain.policy_parts import (
    AccessPassPolicy,
    AppPolicy,
    ApprovalPolicy,
    Campaign,
    HealthPolicy,
    RegistrationPolicy,
    SecurityKeyPolicy,
    SessionPolicy,
    SignInPolicy,
    Targets,
)


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
    sign_in: SignInPolicy = field(default_factory=SignInPolicy)
    apps: tuple[AppPolicy, ...] = ()
    campaigns: tuple[Campaign, ...] = ()

    def document(self) -> str:
        """JSON text for the store."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def load(cls, document: str) -> Policy:
        """Read back what `document` wrote; fields that a newer release added get their defaults."""
        d: dict[str, Any] = json.loads(document)
        return cls(
            version=d["version"],
            approval=ApprovalPolicy(**_targeted(d["approval"])),
            access_pass=AccessPassPolicy(**_targeted(d["access_pass"])),
            registration=_registration(d["registration"]),
            session=SessionPolicy(**{"proof_required": False, **d["session"]}),
            health=_health(d.get("health", {})),
            security_key=SecurityKeyPolicy(**_targeted(d.get("security_key", {}))),
            sign_in=SignInPolicy(**d.get("sign_in", {})),
            apps=tuple(AppPolicy(**app) for app in d.get("apps", ())),
            campaigns=tuple(Campaign(**_targeted(campaign)) for campaign in d.get("campaigns", ())),
        )


def _targeted(d: dict[str, Any]) -> dict[str, Any]:
    """The settings of a part with its targets as they are in memory: JSON has no tuples."""
    if "targets" not in d:
        return d
    t: dict[str, Any] = d["targets"]
    lists: dict[str, Any] = {name: tuple(value) for name, value in t.items() if name != "everybody"}
    return {**d, "targets": Targets(everybody=t["everybody"], **lists)}


def _health(d: dict[str, Any]) -> HealthPolicy:
    return HealthPolicy(**{**d, "pcrs": tuple(d["pcrs"])}) if d else HealthPolicy()


def _registration(d: dict[str, Any]) -> RegistrationPolicy:
    rules = d.get("authenticators", {})
    lists = {name: tuple(rules.get(name, ())) for name in ("allowed", "blocked")}
    return RegistrationPolicy(**{**d, "authenticators": AuthenticatorRules(**lists)})


REST_SECONDS = 900
"""How long the approval method rests after too many wrong numbers."""

NAMED_DEVICES = 10
"""Devices that a refusal names."""


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
            fix="Say which one the new device replaces, or remove one that is no longer used; then register again.",
            metadata={"limit": str(limit), "devices": ", ".join(devices[:NAMED_DEVICES])},
        )


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
