"""DirectoryService, over `use_cases.directory` and `use_cases.groups`."""

from __future__ import annotations

from typing import Any

from keyvouch.v1 import directory_pb2 as pb
from keyvouch.v1 import directory_pb2_grpc as rpc
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.cursors import Cursors
from keyvouch_server.rpc.interceptors import caller_of
from keyvouch_server.use_cases.directory import Directory, UserWish
from keyvouch_server.use_cases.groups import Groups


class DirectoryServicer(rpc.DirectoryServiceServicer):
    """Serves keyvouch.v1.DirectoryService."""

    def __init__(self, directory: Directory, groups: Groups, cursors: Cursors) -> None:
        self._directory = directory
        self._groups = groups
        self._cursors = cursors

    async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:
        """See directory.proto."""
        view, groups = await self._directory.user(caller_of(), request.user)
        return pb.GetUserResponse(user=convert.user(view), groups=[convert.group(g) for g in groups])

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: Any) -> pb.UpdateUserResponse:
        """See directory.proto."""
        wish = UserWish(
            username=request.username if request.HasField("username") else None,
            display_name=request.display_name if request.HasField("display_name") else None,
            role=convert.named_role(request.role) if request.HasField("role") else None,
            kind=convert.named_user_kind(request.kind) if request.HasField("kind") else None,
        )
        view, ended = await self._directory.update(caller_of(), request.user, wish)
        return pb.UpdateUserResponse(user=convert.user(view), revoked_sessions=ended)

    async def AddAlias(self, request: pb.AddAliasRequest, context: Any) -> pb.AddAliasResponse:
        """See directory.proto."""
        view = await self._directory.add_alias(caller_of(), request.user, request.alias)
        return pb.AddAliasResponse(user=convert.user(view))

    async def RemoveAlias(self, request: pb.RemoveAliasRequest, context: Any) -> pb.RemoveAliasResponse:
        """See directory.proto."""
        view = await self._directory.remove_alias(caller_of(), request.user, request.alias)
        return pb.RemoveAliasResponse(user=convert.user(view))

    async def CreateGroup(self, request: pb.CreateGroupRequest, context: Any) -> pb.CreateGroupResponse:
        """See directory.proto."""
        made = await self._groups.create(caller_of(), request.name, request.description)
        return pb.CreateGroupResponse(group=convert.group(made))

    async def ListGroups(self, request: pb.ListGroupsRequest, context: Any) -> pb.ListGroupsResponse:
        """See directory.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._groups.groups(caller_of(), after=page.after, limit=page.size)
        return pb.ListGroupsResponse(
            groups=[convert.group(g) for g in rows], next_token=page.next_token(rows, lambda g: g.group.id)
        )

    async def DeleteGroup(self, request: pb.DeleteGroupRequest, context: Any) -> pb.DeleteGroupResponse:
        """See directory.proto."""
        await self._groups.delete(caller_of(), request.group)
        return pb.DeleteGroupResponse()

    async def AddGroupMember(self, request: pb.AddGroupMemberRequest, context: Any) -> pb.AddGroupMemberResponse:
        """See directory.proto."""
        await self._groups.add(caller_of(), request.group, request.user)
        return pb.AddGroupMemberResponse()

    async def RemoveGroupMember(
        self, request: pb.RemoveGroupMemberRequest, context: Any
    ) -> pb.RemoveGroupMemberResponse:
        """See directory.proto."""
        await self._groups.remove(caller_of(), request.group, request.user)
        return pb.RemoveGroupMemberResponse()

    async def ListGroupMembers(self, request: pb.ListGroupMembersRequest, context: Any) -> pb.ListGroupMembersResponse:
        """See directory.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._groups.members(caller_of(), request.group, after=page.after, limit=page.size)
        return pb.ListGroupMembersResponse(
            users=[convert.user(v) for v in rows], next_token=page.next_token(rows, lambda v: v.user.id)
        )
