"""Users, their names, roles and groups: what the directory lets administrators make of them, over the wire."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from keyvouch.errors import ConflictError, Reason, RefusedError
from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import common_pb2 as common
from keyvouch.v1 import directory_pb2 as pb
from keyvouch_server.bootstrap import DATABASE
from keyvouch_server.domain.model import GroupMember, LoginName, Role, Session, User
from keyvouch_server.domain.oversight_model import Block, RiskEvent
from keyvouch_server.stores.sqlite_upkeep import check
from keyvouch_server.use_cases.directory import UserWish
from keyvouch_server.use_cases.directory_views import MOST_ALIASES
from support.directory_desk import caller, directory, get, rows, update
from support.live_server import LiveServer, refused
from support.sample_records import RISK_EVENT, variant

# Users


async def test_a_user_is_made_with_all_that_is_said(live: LiveServer):
    request = admin.CreateUserRequest(
        username="Ada",
        display_name="Ada L.",
        role=admin.ROLE_GLOBAL_READER,
        kind=common.USER_KIND_GUEST,
        aliases=["ada@example.org", "countess"],
    )
    made = (await live.administer("CreateUser", request)).user
    for who in ("ada", made.user_id, "ADA@example.org", " Countess"):
        assert await get(live, who) == made
    assert (made.username, made.display_name, list(made.aliases)) == ("Ada", "Ada L.", ["ada@example.org", "countess"])
    assert (made.role, made.kind, made.flagged) == (admin.ROLE_GLOBAL_READER, common.USER_KIND_GUEST, False)
    plain = (await live.administer("CreateUser", admin.CreateUserRequest(username="bob"))).user
    assert (plain.display_name, plain.role, plain.kind) == ("bob", admin.ROLE_USER, common.USER_KIND_MEMBER)
    listed = (await live.administer("ListUsers", admin.ListUsersRequest())).users
    assert {u.user_id: u for u in listed}[made.user_id] == made


async def test_a_user_whose_alias_is_taken_is_not_made_at_all(live: LiveServer):
    await live.create_user("ada")
    for aliases in (["new", "ADA"], ["new", "New"], ["bob"], ["new", "a\x00b"], [f"a{n}" for n in range(17)]):
        with refused(Reason.FIELD_INVALID if len(aliases) > 2 or "a\x00b" in aliases else Reason.USER_EXISTS):
            await live.administer("CreateUser", admin.CreateUserRequest(username="bob", aliases=aliases))
    assert await rows(live, User, {"username_key": "bob"}) == []
    assert await rows(live, LoginName, {"name_key": "new"}) == []


async def test_an_unknown_user_is_not_found(live: LiveServer):
    for method, request in (
        ("GetUser", pb.GetUserRequest(user="nobody")),
        ("GetUser", pb.GetUserRequest()),
        ("UpdateUser", pb.UpdateUserRequest(user="usr_" + "a" * 26)),
        ("AddAlias", pb.AddAliasRequest(user="nobody", alias="x")),
        ("RemoveAlias", pb.RemoveAliasRequest(user="nobody", alias="x")),
    ):
        with refused(Reason.USER_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
            await directory(live, method, request)


async def test_a_name_changes_and_the_id_does_not(live: LiveServer):
    ada = await live.person("ada")
    before = await get(live, "ada")
    done = await update(live, "ada", username="Countess")
    assert done.revoked_sessions == 0
    assert (done.user.user_id, done.user.username) == (before.user_id, "Countess")
    with refused(Reason.USER_UNKNOWN):
        await get(live, "ada")
    ada.username = "countess"
    assert (await live.signed_in(ada)).session.username == "Countess"
    await live.create_user("ada")  # the old name is free
    assert (await get(live, "ada")).user_id != before.user_id
    with refused(Reason.USER_EXISTS, status=grpc.StatusCode.ALREADY_EXISTS):
        await update(live, "countess", username="ADA")
    assert (await get(live, "countess")).user_id == before.user_id
    await update(live, "countess", username="COUNTESS")  # another spelling of the own name
    assert (await get(live, "countess")).username == "COUNTESS"


async def test_an_alias_may_become_the_login_name(live: LiveServer):
    await live.administer("CreateUser", admin.CreateUserRequest(username="ada", aliases=["countess"]))
    done = await update(live, "ada", username="Countess")
    assert (done.user.username, list(done.user.aliases)) == ("Countess", [])
    assert [n.alias for n in await rows(live, LoginName, {"user_id": done.user.user_id})] == [False]
    with refused(Reason.USER_UNKNOWN):
        await get(live, "ada")


async def test_what_is_not_said_stays(live: LiveServer):
    await live.administer("CreateUser", admin.CreateUserRequest(username="ada", display_name="Ada L."))
    before, records = await get(live, "ada"), len(await live.audit())
    assert (await update(live, "ada")).user == before
    assert len(await live.audit()) == records
    assert (await update(live, "ada", kind=common.USER_KIND_GUEST)).user.kind == common.USER_KIND_GUEST
    assert (await update(live, "ada", display_name="")).user.display_name == "ada"
    after = await get(live, "ada")
    assert (after.username, after.role, after.user_id) == (before.username, before.role, before.user_id)
    for changes in ({"role": 0}, {"role": 99}, {"kind": 0}, {"username": ""}, {"display_name": "x" * 65}):
        with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
            await update(live, "ada", **changes)
    assert await get(live, "ada") == after


# Roles


@pytest.mark.parametrize(
    ("before", "after"),
    [(Role.USER, Role.GLOBAL_ADMINISTRATOR), (Role.GLOBAL_ADMINISTRATOR, Role.USER), (Role.GLOBAL_READER, Role.USER)],
)
async def test_another_role_comes_with_a_new_session_only_P13(live: LiveServer, before: Role, after: Role):
    ada = await live.person("ada", before)
    sessions = [await live.signed_in(ada) for _ in range(2)]
    done = await update(live, "ada", role=admin.Role.Value(f"ROLE_{after.name}"))
    assert done.revoked_sessions == 2 + 1  # and the one of the pass that enrolled the device
    for session in sessions:
        with refused(Reason.SESSION_REVOKED):
            await session.introspect()
        with refused(Reason.SESSION_REVOKED):
            await session.refresh()
    assert {s.revoke_reason for s in await rows(live, Session, {"user_id": done.user.user_id})} == {"role_changed"}
    assert (await (await live.signed_in(ada)).introspect()).role == after.value
    (record,) = await live.audit("user.update")
    assert (record.subject, f'"role": "{after.value}"' in record.details) == (done.user.user_id, True)


async def test_a_pass_of_before_opens_no_session_of_the_new_role_P16(live: LiveServer):
    """An Authentication Administrator makes passes for users without a role, and knows their codes."""
    helper = (await live.signed_in(await live.person("helper", Role.AUTHENTICATION_ADMINISTRATOR))).metadata
    for name in ("ada", "bob"):
        await live.create_user(name)
    code, control = [await live.issue_pass(name, helper) for name in ("ada", "bob")]
    await update(live, "ada", role=admin.ROLE_GLOBAL_ADMINISTRATOR)
    await update(live, "bob", display_name="Bob")
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", code)
    await live.access_pass_sign_in("bob", control)
    (record,) = await live.audit("access_pass.delete")
    assert '"reason": "role_changed"' in record.details
    with refused(Reason.ROLE_REQUIRED):  # nor can they make another one
        await live.issue_pass("ada", helper)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Role.GLOBAL_READER, Role.USER),
        (Role.GLOBAL_READER, Role.GLOBAL_ADMINISTRATOR),
    ],
)
async def test_a_pass_stays_where_the_same_may_make_it_for_the_new_role(live: LiveServer, before: Role, after: Role):
    await live.create_user("ada", before)
    code = await live.issue_pass("ada")
    await update(live, "ada", role=admin.Role.Value(f"ROLE_{after.name}"))
    await live.access_pass_sign_in("ada", code)


async def test_an_approval_of_before_gives_no_session_of_the_new_role_P13(live: LiveServer):
    opened = await live.approved(await live.person("ada"))
    await update(live, "ada", role=admin.ROLE_GLOBAL_ADMINISTRATOR)
    with refused(Reason.SIGN_IN_CANCELLED):
        await opened.redeem()
    (record,) = await live.audit("sign_in.cancel")
    assert record.subject == opened.begun.sign_in_id


async def test_the_same_role_again_ends_no_session(live: LiveServer):
    session = await live.signed_in(await live.person("ada", Role.GLOBAL_READER))
    assert (await update(live, "ada", role=admin.ROLE_GLOBAL_READER)).revoked_sessions == 0
    await session.introspect()


async def test_nobody_changes_their_own_role(live: LiveServer):
    with refused(Reason.SELF_FORBIDDEN, status=grpc.StatusCode.PERMISSION_DENIED):
        await update(live, "admin", role=admin.ROLE_USER)
    assert (await update(live, "admin", display_name="The Boss")).user.role == admin.ROLE_GLOBAL_ADMINISTRATOR


async def test_the_last_global_administrator_stays_one(live: LiveServer):
    """Who acts is an administrator too, so only somebody whose role has just gone could come to this."""
    await live.person("ada", Role.GLOBAL_ADMINISTRATOR)
    session = await live.signed_in(live.people["ada"])
    ada = await caller(live, session.metadata)
    await live.app.store.write(lambda tx: tx.update(User, {"id": ada.user.id}, {"role": Role.USER}))
    stale = replace(ada, user=replace(ada.user, role=Role.GLOBAL_ADMINISTRATOR))
    acts = live.app.directory
    for act in (acts.update(stale, "admin", UserWish(role=Role.USER)), acts.delete(stale, "admin")):
        with pytest.raises(RefusedError) as caught:
            await act
        assert caught.value.reason is Reason.LAST_ADMINISTRATOR
    await live.app.store.write(lambda tx: tx.update(User, {"id": ada.user.id}, {"role": Role.GLOBAL_ADMINISTRATOR}))
    assert (await acts.update(stale, "admin", UserWish(role=Role.USER)))[0].user.role is Role.USER


# Names


async def test_all_names_of_a_user_are_one_identity_with_one_limit_P10(live: LiveServer):
    """Aliases, case, blanks and forms of the same letters count for the same user."""
    request = admin.CreateUserRequest(username="caf\u00e9", aliases=["ada@example.org"])
    await live.administer("CreateUser", request)
    await live.change_policy(approval={"begins_per_minute": 4})
    for name in ("caf\u00e9", "CAFE\u0301 ", "ADA@example.org", "\uff41da@example.org"):
        await live.begin(name)
    for name in ("caf\u00e9", "ada@example.org", "Ada@Example.ORG", " cafe\u0301"):
        with refused(Reason.THROTTLED):
            await live.begin(name)
    await live.begin("cafe")  # without the accent it is another name


async def test_a_pass_is_the_users_under_every_name_P10(live: LiveServer):
    await live.administer("CreateUser", admin.CreateUserRequest(username="ada", aliases=["countess"]))
    code = await live.issue_pass("countess")
    for name in ("ada", "COUNTESS ", "Ada"):
        assert (await live.access_pass_sign_in(name, code)).session.username == "ada"
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("\u0430d\u0430", code)  # Cyrillic letters that look the same


async def test_names_that_only_look_alike_are_two_users_P10(live: LiveServer):
    first = await live.create_user("paypal")
    second = await live.create_user("p\u0430ypal")
    assert first != second
    with refused(Reason.USER_EXISTS):
        await live.create_user("PAYPAL ")


async def test_a_name_and_an_alias_are_of_one_user_at_a_time(live: LiveServer):
    await live.create_user("ada")
    await live.create_user("bob")
    added = await directory(live, "AddAlias", pb.AddAliasRequest(user="ada", alias="Shared"))
    assert list(added.user.aliases) == ["Shared"]
    for request in (
        pb.AddAliasRequest(user="bob", alias="SHARED"),
        pb.AddAliasRequest(user="bob", alias="ada"),
        pb.AddAliasRequest(user="ada", alias="shared"),
        pb.AddAliasRequest(user="ada", alias="Ada"),
    ):
        with refused(Reason.USER_EXISTS, status=grpc.StatusCode.ALREADY_EXISTS):
            await directory(live, "AddAlias", request)
    with refused(Reason.USER_EXISTS):
        await live.create_user("shared")
    for alias in ("ada", "nothing", "", "usr_" + "a" * 26):
        with refused(Reason.ALIAS_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
            await directory(live, "RemoveAlias", pb.RemoveAliasRequest(user="ada", alias=alias))
    with refused(Reason.ALIAS_UNKNOWN):
        await directory(live, "RemoveAlias", pb.RemoveAliasRequest(user="bob", alias="shared"))
    gone = await directory(live, "RemoveAlias", pb.RemoveAliasRequest(user="ada", alias=" SHARED"))
    assert list(gone.user.aliases) == []
    await directory(live, "AddAlias", pb.AddAliasRequest(user="bob", alias="shared"))


async def test_there_are_so_many_aliases_and_no_more(live: LiveServer):
    await live.create_user("ada")
    for number in range(MOST_ALIASES):
        await directory(live, "AddAlias", pb.AddAliasRequest(user="ada", alias=f"alias{number}"))
    with refused(Reason.LIMIT_REACHED, status=grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        await directory(live, "AddAlias", pb.AddAliasRequest(user="ada", alias="one more"))
    assert refusal.error.metadata["limit"] == str(MOST_ALIASES)
    assert len((await get(live, "ada")).aliases) == MOST_ALIASES
    await directory(live, "RemoveAlias", pb.RemoveAliasRequest(user="ada", alias="alias0"))
    await directory(live, "AddAlias", pb.AddAliasRequest(user="ada", alias="one more"))


# Deleting


async def test_a_deleted_user_leaves_nothing_but_what_was_written_of_them(live: LiveServer):
    ada = await live.person("ada")
    await live.signed_in(ada)
    await directory(live, "AddAlias", pb.AddAliasRequest(user="ada", alias="countess"))
    await directory(live, "CreateGroup", pb.CreateGroupRequest(name="staff"))
    await directory(live, "AddGroupMember", pb.AddGroupMemberRequest(group="staff", user="countess"))
    (user,) = await rows(live, User, {"username_key": "ada"})
    whose = {"tenant_id": user.tenant_id, "user_id": user.id}

    async def note(tx: Any) -> None:
        await tx.insert(variant(RISK_EVENT, **whose))
        await tx.insert(Block("key", until=9, **whose))

    await live.app.store.write(note)
    await live.administer("DeleteUser", admin.DeleteUserRequest(username="countess"))
    for table in (LoginName, GroupMember, Block, Session):
        assert await rows(live, table, {"user_id": user.id}) == []
    assert len(await rows(live, RiskEvent, {"user_id": user.id})) == 1
    assert [r.user_id for r in await live.audit("user.delete")] == [user.id]
    again = await live.create_user("countess")  # the name is free, the id is never used again
    assert again != user.id


# The whole


async def test_after_all_this_the_store_holds_together(live: LiveServer):
    """Names, renames, aliases that become names, groups, roles and deletions, then the check of `keyvouch-server`."""
    for name in ("ada", "bob", "cyd"):
        await live.administer("CreateUser", admin.CreateUserRequest(username=name, aliases=[f"{name}@example.org"]))
        await directory(live, "CreateGroup", pb.CreateGroupRequest(name=f"{name} and friends"))
    for group, user in (("ada and friends", "bob"), ("ada and friends", "cyd"), ("bob and friends", "cyd")):
        await directory(live, "AddGroupMember", pb.AddGroupMemberRequest(group=group, user=user))
    await update(live, "ada", username="Ada@Example.org", role=admin.ROLE_GLOBAL_READER)
    await update(live, "bob", username="ada", kind=common.USER_KIND_GUEST)
    await live.administer("DeleteUser", admin.DeleteUserRequest(username="cyd@example.org"))
    await directory(live, "DeleteGroup", pb.DeleteGroupRequest(group="ada and friends"))
    await live.tenant("other")
    assert check(live.data / DATABASE).problems == ()


# At once


async def test_of_many_who_want_one_name_one_gets_it(live: LiveServer):
    admin_caller = await caller(live, await live.admin())
    acts = live.app.directory
    done = await asyncio.gather(
        *(acts.create(admin_caller, f"user{n}", "", Role.USER, aliases=("shared",)) for n in range(8)),
        *(acts.create(admin_caller, "Shared", "", Role.USER) for _ in range(8)),
        return_exceptions=True,
    )
    refusals = [d for d in done if isinstance(d, BaseException)]
    assert {type(r) for r in refusals} == {ConflictError}
    assert len(done) - len(refusals) == 1
    assert len(await rows(live, LoginName, {"name_key": "shared"})) == 1
