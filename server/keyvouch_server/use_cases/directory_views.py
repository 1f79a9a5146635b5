"""Users and groups as administrators see them, and how many there may be of what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keyvouch_server.domain.model import Device, GroupMember, LoginName, User, UserGroup
from keyvouch_server.ports import OneOf, Snapshot

MOST_ALIASES: Final = 16
"""Other names of one user."""


@dataclass(frozen=True, slots=True)
class UserView:
    """A user with the number of their devices and their other names."""

    user: User
    devices: int = 0
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group and how many members it has."""

    group: UserGroup
    members: int = 0


async def views_of(tx: Snapshot, users: Sequence[User]) -> list[UserView]:
    """Users with what belongs to them, in the same order. At most a page of them."""
    if not users:
        return []
    aliases: dict[str, list[str]] = {user.id: [] for user in users}
    where = {"user_id": OneOf(tuple(aliases)), "alias": True}
    for row in await tx.find(LoginName, where, order="name_key", limit=len(users) * MOST_ALIASES):
        aliases[row.user_id].append(row.name)
    return [UserView(u, await tx.count(Device, {"user_id": u.id}), tuple(aliases[u.id])) for u in users]


async def group_views(tx: Snapshot, groups: Sequence[UserGroup]) -> list[GroupView]:
    """Groups with the number of their members, in the same order."""
    return [GroupView(g, await tx.count(GroupMember, {"group_id": g.id})) for g in groups]
