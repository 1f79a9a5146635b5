"""Users and groups in policies: policies have ids, people say names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace

from keyvouch.errors import KeyvouchError, Reason, UsageError
from keyvouch.v1 import administration_pb2, common_pb2, directory_pb2
from keyvouch_client.commands.invocation import pages
from keyvouch_client.commands.policy_settings import Assignment
from keyvouch_client.session import Session

__all__ = ["LISTS", "Names"]

LISTS = ("include_users", "include_groups", "exclude_users", "exclude_groups")

_ID = re.compile(r"(usr|grp)_[a-z2-7]{26}")
_MOST_LOOKED_UP = 50
"""Users whose names are looked up to be shown: each is a call."""


class Names:
    """Looks up names and ids in the directory of the session's tenant. What was found is kept."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._groups: list[directory_pb2.Group] | None = None
        self._users: dict[str, str] = {}

    async def user_id(self, name: str) -> str:
        """The id of a user who is named by id, login name or alias. Raises what the server says of an unknown one."""
        if _ID.fullmatch(name):
            return name
        return (await self._user(name)).user_id

    async def group_id(self, name: str) -> str:
        """The id of a group that is named by id or name. Raises `UsageError` for an unknown name."""
        if _ID.fullmatch(name):
            return name
        for group in await self._all_groups():
            if _folded(group.name) == _folded(name):
                return group.group_id
        raise UsageError(f"There is no group {name!r}.", fix="`keyvouch admin group list` lists them.")

    async def with_ids(self, change: Assignment) -> Assignment:
        """The same change with ids, if it is one of a list of users or groups."""
        *_, part, leaf = ["", *change.name.split(".")]
        if part != "targets" or leaf not in LISTS:
            return change
        look_up = self.user_id if leaf.endswith("users") else self.group_id
        return replace(change, text=",".join([await look_up(item) for item in change.items]))

    async def told(self, ids: Iterable[str]) -> Mapping[str, str]:
        """The names of those who have these ids, as far as there are such and it is not too much to ask."""
        wanted = sorted(set(ids))
        known = {group.group_id: group.name for group in await self._all_groups()} if _any_group(wanted) else {}
        for one in [one for one in wanted if one.startswith("usr_")][:_MOST_LOOKED_UP]:
            known[one] = self._users.get(one) or await self._name_of(one)
        return {one: known[one] for one in wanted if known.get(one)}

    async def _name_of(self, user_id: str) -> str:
        try:
            return (await self._user(user_id)).username
        except KeyvouchError as error:
            if error.reason is not Reason.USER_UNKNOWN:  # deleted since
                raise
            return ""

    async def _user(self, who: str) -> administration_pb2.User:
        request = directory_pb2.GetUserRequest(user=who)
        user = (await self._session.call(self._session.connection.directory.GetUser, request)).user
        self._users[user.user_id] = user.username
        return user

    async def _all_groups(self) -> list[directory_pb2.Group]:
        if self._groups is None:

            async def fetch(page: common_pb2.PageRequest) -> directory_pb2.ListGroupsResponse:
                request = directory_pb2.ListGroupsRequest(page=page)
                return await self._session.call(self._session.connection.directory.ListGroups, request)

            self._groups = [group async for page in pages(fetch) for group in page.groups]
        return self._groups


def _any_group(ids: Iterable[str]) -> bool:
    return any(one.startswith("grp_") for one in ids)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()
