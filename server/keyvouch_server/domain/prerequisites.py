"""What has to be so before a device may be registered, each by its name (PS11).

A refusal names all of them with their state, so that whoever is refused sees at once how far it is to a registration.
Not here: what the new key has to prove (`domain.policy`), and the two that only the device can see, whether it reaches
the device listener and whether its provider reaches the required assurance.
"""

from __future__ import annotations

from dataclasses import dataclass

from keyvouch.errors import Reason, RefusedError
from keyvouch_server.domain.evaluation import Subject, is_target
from keyvouch_server.domain.model import ProviderKind, SignInMethod
from keyvouch_server.domain.policy import Policy


@dataclass(frozen=True, slots=True)
class Prerequisite:
    """One of them. `state` is `ok`, the reason why it is not met, or what the device has to look at itself."""

    name: str
    state: str = "ok"


@dataclass(frozen=True, slots=True)
class Wish:
    """A registration that somebody asks for: with what, and how many devices the user has besides."""

    provider: ProviderKind
    devices: int
    device_endpoint: str


def methods_for(provider: ProviderKind) -> tuple[SignInMethod, ...]:
    """What a key of this kind is registered for: a security key can also be used at a client."""
    if provider is ProviderKind.FIDO2:
        return SignInMethod.APPROVAL, SignInMethod.SECURITY_KEY
    return (SignInMethod.APPROVAL,)


def prerequisites(policy: Policy, subject: Subject, wish: Wish) -> tuple[Prerequisite, ...]:
    """All of them, in the order in which they are asked. One method for which all is well is enough."""
    found: list[Prerequisite] = []
    for method in methods_for(wish.provider):
        part = policy.approval if method is SignInMethod.APPROVAL else policy.security_key
        named = is_target(part.targets, subject)
        enabled, targeted = f"{method.value}.enabled", f"{method.value}.targets"
        found.append(Prerequisite(enabled) if part.enabled else Prerequisite(enabled, Reason.METHOD_DISABLED.value))
        found.append(Prerequisite(targeted) if named else Prerequisite(targeted, Reason.METHOD_NOT_TARGETED.value))
    room = wish.devices < policy.registration.devices_per_user
    found.append(Prerequisite("device_room") if room else Prerequisite("device_room", Reason.DEVICE_LIMIT.value))
    found.append(Prerequisite("device_endpoint", wish.device_endpoint))
    return tuple(found)


def named(found: tuple[Prerequisite, ...]) -> str:
    """As they stand in the metadata of a refusal: `name=state`, with commas between them."""
    return ",".join(f"{one.name}={one.state}" for one in found)


def decide_registration(policy: Policy, subject: Subject, wish: Wish) -> None:
    """PS11, PS12, PS15: a key is registered only for a method that is on and for this person.

    Raises METHOD_DISABLED or METHOD_NOT_TARGETED.
    """
    found = prerequisites(policy, subject, wish)
    states = {one.name: one.state for one in found}
    refusals: list[str] = []
    for method in methods_for(wish.provider):
        broken = [s for s in (states[f"{method.value}.enabled"], states[f"{method.value}.targets"]) if s != "ok"]
        if not broken:
            return
        refusals.append(broken[0])
    metadata = {"method": SignInMethod.APPROVAL.value, "prerequisites": named(found)}
    if refusals[0] == Reason.METHOD_DISABLED.value:
        raise RefusedError(
            Reason.METHOD_DISABLED,
            "Approval with a registered device is switched off by policy, so no device is registered for it.",
            fix="Use another method, or ask an administrator to enable approval.",
            metadata=metadata,
        )
    raise RefusedError(
        Reason.METHOD_NOT_TARGETED,
        "Policy does not name you for approval with a registered device, so none is registered for it.",
        fix="Ask an administrator to add you, or a group of yours, to the targets of the method.",
        metadata=metadata,
    )
