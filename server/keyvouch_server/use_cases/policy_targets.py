"""The users and groups that a policy names: do they exist, and what becomes of those that do not any more.

Ids are never used again, so a policy may go on naming somebody who was deleted; it means nobody. What is refused is a
new name that means nobody, which is a mistake of whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from keyvouch.errors import MalformedError
from keyvouch.ids import TenantId
from keyvouch_server.domain.model import User, UserGroup
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.policy_check import TARGET_LISTS, invalid, targets_of
from keyvouch_server.domain.policy_parts import Targets
from keyvouch_server.ports import OneOf, Snapshot

_AT_ONCE = 500


async def unknown_target(tx: Snapshot, tenant: TenantId, present: Policy, wanted: Policy) -> MalformedError | None:
    """Why a policy cannot be saved over `present` for whom it names: the first new id that nobody has."""
    old = _named(present)
    known = old | await _existing(tx, tenant, _named(wanted) - old)
    for field, targets in targets_of(wanted):
        for name in TARGET_LISTS:
            unknown = [one for one in getattr(targets, name) if one not in known or not _fits(name, one)]
            if unknown:
                kind = "users" if name.endswith("users") else "groups"
                which = unknown[0][:64] if unknown[0].isascii() and unknown[0].isprintable() else "one of them"
                return invalid(
                    f"{field}.{name}", f"ids of {kind} of this tenant, and {which or 'an empty one'} is none"
                )
    return None


async def without_strangers(tx: Snapshot, tenant: TenantId, policy: Policy) -> Policy:
    """An old policy without the ids of those who were deleted since: the same rules for everybody who is there."""
    known = await _existing(tx, tenant, _named(policy))

    def kept(targets: Targets) -> Targets:
        lists = {name: tuple(one for one in getattr(targets, name) if one in known) for name in TARGET_LISTS}
        return Targets(targets.everybody, **lists)

    return replace(
        policy,
        approval=replace(policy.approval, targets=kept(policy.approval.targets)),
        access_pass=replace(policy.access_pass, targets=kept(policy.access_pass.targets)),
        security_key=replace(policy.security_key, targets=kept(policy.security_key.targets)),
        campaigns=tuple(replace(one, targets=kept(one.targets)) for one in policy.campaigns),
    )


def _named(policy: Policy) -> set[str]:
    return {one for _, targets in targets_of(policy) for name in TARGET_LISTS for one in getattr(targets, name)}


def _fits(name: str, one: str) -> bool:
    return one.startswith("usr_" if name.endswith("users") else "grp_")


async def _existing(tx: Snapshot, tenant: TenantId, ids: Collection[str]) -> set[str]:
    """Those that a user or a group of the tenant has."""
    wanted, found = sorted(ids), set[str]()
    for start in range(0, len(wanted), _AT_ONCE):
        where = {"tenant_id": tenant, "id": OneOf(tuple(wanted[start : start + _AT_ONCE]))}
        found.update(user.id for user in await tx.find(User, where, limit=_AT_ONCE))
        found.update(group.id for group in await tx.find(UserGroup, where, limit=_AT_ONCE))
    return found
