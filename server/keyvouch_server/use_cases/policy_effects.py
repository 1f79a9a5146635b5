"""Whom a change of policy concerns: the users whose methods, keys or campaigns are others by it (PS13, KI2).

Everybody is looked at, also guests, people who have never signed in, and keys that nobody has used for long. Methods
and keys are judged as sign-ins judge them (`domain.evaluation`, `key_standing`), once by either policy. Work is bounded
by the page: some users are looked at, and fewer where they have many keys, or there is much to tell of them.

Not here: what else is different (`domain.policy_differences`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from keyvouch.errors import KeyvouchError, Reason, RefusedError
from keyvouch.ids import CredentialId, DeviceId, TenantId
from keyvouch_server.domain.access_pass import access_pass_refusal
from keyvouch_server.domain.evaluation import (
    Subject,
    Wanted,
    decide_method,
    demand_of,
    due_campaigns,
    method_of,
)
from keyvouch_server.domain.model import AccessPass, Credential, Device, ProviderKind, SignInMethod, SignInWay, User
from keyvouch_server.domain.policy import Policy, reaches, required_by
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Above, Snapshot
from keyvouch_server.use_cases.key_standing import standing
from keyvouch_server.use_cases.world import World

MOST_TOLD: Final = 1000
"""Changes in a page, or a few more: the users after them are for the next page."""

MOST_KEYS: Final = 1000
"""Keys that are judged for a page, or a few more: nobody else is served meanwhile."""

_WAYS: Final = (SignInWay.PROMPT, SignInWay.SECURITY_KEY)


@dataclass(frozen=True, slots=True)
class AffectedMethod:
    """A method that is usable by one of two policies; for one app, or for all that have no rule of their own."""

    method: SignInMethod
    usable_before: bool
    usable_after: bool
    reason: str
    app_id: str = ""


@dataclass(frozen=True, slots=True)
class AffectedCredential:
    """A key that counts by one of two policies."""

    device: Device
    credential_id: CredentialId
    accepted_before: bool
    accepted_after: bool
    reason: str


@dataclass(frozen=True, slots=True)
class AffectedCampaign:
    """A campaign that asks something of a user by one of two policies, or by another day. 0: asks nothing of them."""

    name: str
    required_by_before: int
    required_by_after: int


@dataclass(frozen=True, slots=True)
class AffectedUser:
    """A user for whom two policies are not the same."""

    user: User
    methods: tuple[AffectedMethod, ...]
    credentials: tuple[AffectedCredential, ...]
    campaigns: tuple[AffectedCampaign, ...]

    @property
    def size(self) -> int:
        """How much there is to tell. Long names of apps count more: clients take messages of 1 MiB."""
        long = sum(len(method.app_id.encode()) // 64 for method in self.methods)
        return len(self.methods) + len(self.credentials) + len(self.campaigns) + long


@dataclass(frozen=True, slots=True)
class Effects:
    """A page of them. `last` is the id of the last user who was looked at, empty where nobody is left."""

    users: tuple[AffectedUser, ...]
    examined: int
    last: str


_Use = tuple[SignInMethod, str]
"""A method, and the app that it is for."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """One policy, and what it demands for each app by each way, which is the same for everybody; or why none will do.

    The app without a name is any that has no rule.
    """

    policy: Policy
    demands: Mapping[tuple[SignInWay, str], str | Reason]


@dataclass(frozen=True, slots=True)
class _Prospect:
    """What one policy means for one user: why not, or None, for each use of a method and each key."""

    methods: Mapping[_Use, Reason | None]
    credentials: Mapping[CredentialId, Reason | None]
    campaigns: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Key:
    """A key with its device, the assurance it has now, and why it may not be used, or None."""

    credential: Credential
    provider: ProviderKind
    refusal: Reason | None


@dataclass(frozen=True, slots=True)
class _Person:
    """A user with everything that policies look at."""

    user: User
    subject: Subject
    credentials: tuple[Credential, ...]
    devices: Mapping[DeviceId, Device]
    access_pass: AccessPass | None


async def effects_of(
    tx: Snapshot, world: World, tenant: TenantId, before: Policy, after: Policy, *, last: str, limit: int
) -> Effects:
    """The affected among the next `limit` users of the tenant, those whose id is above `last`."""
    apps = ["", *sorted({app.app_id for policy in (before, after) for app in policy.apps})]
    old_rules, new_rules = _rules(before, apps), _rules(after, apps)
    users = await tx.find(User, {"tenant_id": tenant, "id": Above(last)}, order="id", limit=limit + 1)
    affected: list[AffectedUser] = []
    examined, told, keys = 0, 0, 0
    for user in users[:limit]:
        person = await _person(tx, world, user)
        old = await _prospect(tx, world, person, old_rules)
        one = _compare(person, old, await _prospect(tx, world, person, new_rules))
        affected += [one] if one.size else []
        examined, told, keys = examined + 1, told + one.size, keys + len(person.credentials)
        if told >= MOST_TOLD or keys >= MOST_KEYS:
            break
    return Effects(tuple(affected), examined, users[examined - 1].id if examined < len(users) else "")


def _rules(policy: Policy, apps: Iterable[str]) -> _Rules:
    demands: dict[tuple[SignInWay, str], str | Reason] = {}
    for app_id in apps:
        for way in _WAYS:
            try:
                demand = demand_of(policy, way, Wanted(app_id, app_id), Verdicts())
                demands[way, app_id] = demand.required_assurance
            except RefusedError as refusal:
                demands[way, app_id] = refusal.reason
    return _Rules(policy, demands)


async def _person(tx: Snapshot, world: World, user: User) -> _Person:
    devices = {one.id: one for one in await tx.find(Device, {"user_id": user.id})}
    credentials = await tx.find(Credential, {"user_id": user.id}, order="created_at")
    subject, access_pass = await world.subject_of(tx, user), await tx.get(AccessPass, user_id=user.id)
    return _Person(user, subject, tuple(credentials), devices, access_pass)


async def _prospect(tx: Snapshot, world: World, person: _Person, rules: _Rules) -> _Prospect:
    policy = rules.policy
    keys = [await _key(tx, world, person, credential, policy) for credential in person.credentials]
    methods: dict[_Use, Reason | None] = {}
    off = {way: _off(policy, way, person.subject) for way in _WAYS}
    reached: dict[tuple[SignInWay, str], Reason | None] = {}
    for (way, app_id), demanded in rules.demands.items():
        refusal = off[way] or (demanded if isinstance(demanded, Reason) else None)
        if refusal is None and (way, demanded) not in reached:
            reached[way, demanded] = _best(_short(key, demanded) for key in keys if _serves(key, way))
        methods[method_of(way), app_id] = refusal or reached[way, demanded]
    methods[SignInMethod.ACCESS_PASS, ""] = _pass_refusal(policy, person, world.clock.now())
    has = [world.vouched(credential.assurance) for credential in person.credentials]
    due = due_campaigns(policy, person.subject, has, now=world.clock.now())
    return _Prospect(
        methods,
        {key.credential.id: _key_refusal(policy, off, key) for key in keys},
        {one.campaign.name: one.campaign.required_by for one in due},
    )


async def _key(tx: Snapshot, world: World, person: _Person, credential: Credential, policy: Policy) -> _Key:
    fit, refusal = await standing(tx, world, [credential], policy)
    return _Key(
        fit[0] if fit else credential,
        person.devices[credential.device_id].provider,
        refusal.reason if refusal else None,
    )


def _serves(key: _Key, way: SignInWay) -> bool:
    return way is SignInWay.PROMPT or key.provider is ProviderKind.FIDO2


def _key_refusal(policy: Policy, off: Mapping[SignInWay, Reason | None], key: _Key) -> Reason | None:
    """Why a key counts for no method, or None."""
    refusals: list[Reason | None] = []
    for way in _WAYS:
        if _serves(key, way):
            refusals.append(off[way] or _short(key, required_by(policy, way)))
    return _best(refusals)


def _off(policy: Policy, way: SignInWay, subject: Subject) -> Reason | None:
    try:
        decide_method(policy, method_of(way), subject, Verdicts())
    except RefusedError as refusal:
        return refusal.reason
    return None


def _short(key: _Key, required: str) -> Reason | None:
    if key.refusal is None and not reaches(key.credential.assurance, required):
        return Reason.ASSURANCE_TOO_LOW
    return key.refusal


def _best(refusals: Iterable[Reason | None]) -> Reason | None:
    """None where one is none; else the first; NO_METHOD where there are none at all."""
    found = tuple(refusals)
    return None if None in found else next(iter(found), Reason.NO_METHOD)


def _pass_refusal(policy: Policy, person: _Person, now: int) -> Reason | None:
    """Why the user's pass does not open a session, or None. One for later is judged as it will be by then."""
    found = person.access_pass
    if found is None:
        return Reason.ACCESS_PASS_NONE
    try:
        decide_method(policy, SignInMethod.ACCESS_PASS, person.subject, Verdicts())
    except KeyvouchError as refusal:
        return refusal.reason
    return access_pass_refusal(policy, found, person.subject, now=max(now, found.start_at))


def _compare(person: _Person, before: _Prospect, after: _Prospect) -> AffectedUser:
    return AffectedUser(
        person.user,
        tuple(_methods(before, after)),
        tuple(_credentials(person, before, after)),
        tuple(_campaigns(before, after)),
    )


def _methods(before: _Prospect, after: _Prospect) -> Iterable[AffectedMethod]:
    """An app is named where it fares otherwise than the method as such."""
    for (method, app_id), old in before.methods.items():
        new = after.methods[method, app_id]
        pair = (old is None, new is None)
        as_such = (before.methods[method, ""] is None, after.methods[method, ""] is None)
        if pair[0] != pair[1] and (not app_id or pair != as_such):
            yield AffectedMethod(method, *pair, _told(old, new), app_id)


def _credentials(person: _Person, before: _Prospect, after: _Prospect) -> Iterable[AffectedCredential]:
    for credential in person.credentials:
        old, new = before.credentials[credential.id], after.credentials[credential.id]
        if (old is None) != (new is None):
            device = person.devices[credential.device_id]
            yield AffectedCredential(device, credential.id, old is None, new is None, _told(old, new))


def _campaigns(before: _Prospect, after: _Prospect) -> Iterable[AffectedCampaign]:
    for name in sorted({*before.campaigns, *after.campaigns}):
        days = before.campaigns.get(name, 0), after.campaigns.get(name, 0)
        if days[0] != days[1]:
            yield AffectedCampaign(name, *days)


def _told(old: Reason | None, new: Reason | None) -> str:
    reason = old or new
    return reason.value if reason else ""
