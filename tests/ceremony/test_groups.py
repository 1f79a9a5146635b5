"""Groups of users, over the wire: who is in them, how many there may be, and what keeps them."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import directory_pb2 as pb
from keyvouch_server.domain.model import GroupMember, UserGroup
from keyvouch_server.use_cases.groups import MOST_GROUPS, MOST_MEMBERSHIPS
from support.directory_desk import directory, get, rows
from support.live_server import LiveServer, refused
from support.sample_records import GROUP, GROUP_MEMBER, variant


async def test_groups_have_members_and_members_have_groups(live: LiveServer):
    made = (await directory(live, "CreateGroup", pb.CreateGroupRequest(name="Staff", description="All of us"))).group
    assert (made.name, made.description, made.member_count) == ("Staff", "All of us", 0)
    for name in ("ada", "bob"):
        await live.create_user(name)
        for which in ("staff", made.group_id):  # the second time nothing changes
            await directory(live, "AddGroupMember", pb.AddGroupMemberRequest(group=which, user=name))
    told = await directory(live, "GetUser", pb.GetUserRequest(user="ada"))
    assert [(g.group_id, g.member_count) for g in told.groups] == [(made.group_id, 2)]
    members = (await directory(live, "ListGroupMembers", pb.ListGroupMembersRequest(group=" STAFF"))).users
    assert {u.username for u in members} == {"ada", "bob"}
    for _ in range(2):
        await directory(live, "RemoveGroupMember", pb.RemoveGroupMemberRequest(group="staff", user="ada"))
    (left,) = (await directory(live, "ListGroups", pb.ListGroupsRequest())).groups
    assert left.member_count == 1
    actions = [r.action for r in await live.audit() if r.action.startswith("group.")]
    assert actions == ["group.create", "group.add_member", "group.add_member", "group.remove_member"]
    await directory(live, "DeleteGroup", pb.DeleteGroupRequest(group="staff"))
    assert await rows(live, GroupMember, {}) == []
    with refused(Reason.GROUP_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
        await directory(live, "ListGroupMembers", pb.ListGroupMembersRequest(group="staff"))


async def test_a_group_is_made_once_and_named_like_anything_else(live: LiveServer):
    await directory(live, "CreateGroup", pb.CreateGroupRequest(name="Staff"))
    with refused(Reason.GROUP_EXISTS, status=grpc.StatusCode.ALREADY_EXISTS):
        await directory(live, "CreateGroup", pb.CreateGroupRequest(name=" STAFF "))
    for name in ("", "a\x00", "x" * 65, "grp_" + "a" * 26):
        with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
            await directory(live, "CreateGroup", pb.CreateGroupRequest(name=name))
    with refused(Reason.FIELD_INVALID):
        await directory(live, "CreateGroup", pb.CreateGroupRequest(name="ok", description="x" * 257))
    for method, request in (
        ("DeleteGroup", pb.DeleteGroupRequest(group="nothing")),
        ("AddGroupMember", pb.AddGroupMemberRequest(group="grp_" + "a" * 26, user="admin")),
        ("RemoveGroupMember", pb.RemoveGroupMemberRequest(group="", user="admin")),
    ):
        with refused(Reason.GROUP_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
            await directory(live, method, request)
    with refused(Reason.USER_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
        await directory(live, "AddGroupMember", pb.AddGroupMemberRequest(group="staff", user="nobody"))


@pytest.mark.parametrize("part", ["approval", "access_pass", "security_key", "campaign"])
@pytest.mark.parametrize("which", ["include_groups", "exclude_groups"])
async def test_a_group_that_policy_names_is_not_deleted_PS12(live: LiveServer, part: str, which: str):
    group = (await directory(live, "CreateGroup", pb.CreateGroupRequest(name="staff"))).group
    policy = (await live.administer("GetPolicy", admin.GetPolicyRequest())).policy
    before = admin.Policy()
    before.CopyFrom(policy)
    if part == "campaign":
        gated = policy.approval.required_assurance
        policy.campaigns.add(name="keys", required_by=live.clock.now() + 86400, required_assurance=gated)
        targets = policy.campaigns[0].targets
    else:
        targets = getattr(policy, part).targets
    targets.everybody = True
    getattr(targets, which).append(group.group_id)
    saved = await live.administer("UpdatePolicy", admin.UpdatePolicyRequest(policy=policy, accept_lock_out=True))
    with refused(Reason.GROUP_IN_USE, status=grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        await directory(live, "DeleteGroup", pb.DeleteGroupRequest(group="staff"))
    assert part in refusal.error.metadata["settings"]
    before.version = saved.policy.version
    await live.administer("UpdatePolicy", admin.UpdatePolicyRequest(policy=before))
    await directory(live, "DeleteGroup", pb.DeleteGroupRequest(group="staff"))


async def test_there_are_so_many_groups_and_memberships_and_no_more(live: LiveServer):
    user_id = await live.create_user("ada")
    tenant = (await get(live, "ada")).tenant_id

    async def fill(tx: Any) -> None:
        for number in range(MOST_GROUPS - 1):
            group = variant(GROUP, id=f"grp_{number}", tenant_id=tenant, name_key=f"g{number}")
            await tx.insert(group)
            if number < MOST_MEMBERSHIPS - 1:
                await tx.insert(variant(GROUP_MEMBER, tenant_id=tenant, group_id=group.id, user_id=user_id))

    await live.app.store.write(fill)
    await directory(live, "CreateGroup", pb.CreateGroupRequest(name="the last"))
    with refused(Reason.LIMIT_REACHED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await directory(live, "CreateGroup", pb.CreateGroupRequest(name="one more"))
    await directory(live, "AddGroupMember", pb.AddGroupMemberRequest(group="the last", user="ada"))
    with refused(Reason.LIMIT_REACHED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await directory(live, "AddGroupMember", pb.AddGroupMemberRequest(group="g500", user="ada"))
    assert len(await rows(live, GroupMember, {"user_id": user_id})) == MOST_MEMBERSHIPS
    assert len(await live.app.store.read(lambda tx: tx.find(UserGroup, {}, limit=2000))) == MOST_GROUPS
