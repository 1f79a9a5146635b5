"""Whom passes are for, and where they can be used: T2, T9, T11, T13 to T18, KI9, KI10."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, directory_pb2, enrolment_pb2, sign_in_pb2
from keyvouch_bench.device import BenchDevice
from keyvouch_client.errors import answer
from keyvouch_server import bootstrap
from keyvouch_server.domain.model import User
from keyvouch_server.use_cases.access_passes import usable_pass
from support.live_server import LIMIT, TENANT, LiveServer, bearer, configuration, refused
from support.registering import begin, complete

Targets = admin_pb.Targets


async def outcome(live: LiveServer) -> str:
    return (await live.audit("access_pass.sign_in"))[-1].outcome


async def group_of(live: LiveServer, *members: str) -> str:
    """A group with members; returns its id."""
    directory = live.connection.directory
    admin = await live.admin()
    made = await answer(
        directory.CreateGroup(directory_pb2.CreateGroupRequest(name="staff"), metadata=admin, timeout=LIMIT)
    )
    for username in members:
        request = directory_pb2.AddGroupMemberRequest(group=made.group.group_id, user=username)
        await answer(directory.AddGroupMember(request, metadata=admin, timeout=LIMIT))
    return made.group.group_id


async def test_t2_a_pass_is_made_for_anybody_and_used_by_those_in_the_policy(live: LiveServer):
    ids = {name: await live.create_user(name) for name in ("ada", "bob", "eve")}
    staff = await group_of(live, "ada", "bob")
    targets = Targets(everybody=False, include_groups=[staff], exclude_users=[ids["bob"]])
    await live.change_policy(access_pass={"targets": targets})
    codes = {name: await live.issue_pass(name) for name in ids}
    await live.access_pass_sign_in("ada", codes["ada"])
    for name in ("bob", "eve"):  # excludes win over includes; and who is not named is not meant
        shown = await live.listed_pass(name)
        assert (shown.usable, shown.usability) == (False, admin_pb.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY)
        with refused(Reason.ACCESS_PASS_REFUSED, status=grpc.StatusCode.UNAUTHENTICATED):
            await live.access_pass_sign_in(name, codes[name])
        assert await outcome(live) == Reason.ACCESS_PASS_NOT_IN_POLICY.value
    await live.change_policy(access_pass={"targets": Targets(everybody=True)})
    await live.access_pass_sign_in("eve", codes["eve"])


async def test_t2_the_policy_of_the_moment_counts(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    for enabled, reason in ((False, Reason.ACCESS_PASS_NOT_IN_POLICY.value), (True, "ok")):
        await live.change_policy(access_pass={"enabled": enabled})
        if enabled:
            await live.access_pass_sign_in("ada", code)
        else:
            with refused(Reason.ACCESS_PASS_REFUSED):
                await live.access_pass_sign_in("ada", code)
        assert await outcome(live) == reason


async def test_t14_guests_have_passes_and_never_sign_in_with_one(live: LiveServer):
    request = admin_pb.CreateUserRequest(username="ivy", kind=common_pb2.USER_KIND_GUEST)
    await live.administer("CreateUser", request)
    code = await live.issue_pass("ivy")
    assert (await live.listed_pass("ivy")).usability == admin_pb.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY
    with refused(Reason.ACCESS_PASS_REFUSED, status=grpc.StatusCode.UNAUTHENTICATED):
        await live.access_pass_sign_in("ivy", code)
    assert await outcome(live) == Reason.ACCESS_PASS_GUEST.value
    await live.create_user("ada")
    await live.access_pass_sign_in("ada", await live.issue_pass("ada"))


async def test_t9_a_usable_pass_is_known_to_who_orders_the_methods(live: LiveServer):
    user_id = await live.create_user("ada")

    async def usable() -> bool:
        user = await live.app.store.read(lambda tx: tx.get(User, id=user_id))
        assert user is not None
        policy = await live.app.store.read(lambda tx: live.app.world.policy_of(tx, user.tenant_id))
        found = await live.app.store.read(lambda tx: usable_pass(tx, live.app.world, user, policy))
        return found is not None

    assert not await usable()
    code = await live.issue_pass("ada", one_time=True)
    assert await usable()
    await live.change_policy(access_pass={"enabled": False})
    assert not await usable()
    await live.change_policy(access_pass={"enabled": True})
    await live.access_pass_sign_in("ada", code)
    assert not await usable()


async def test_t11_what_cannot_be_used_is_listed_with_its_reason_and_can_be_deleted(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada", one_time=True)
    await live.access_pass_sign_in("ada", code)
    for reason in (admin_pb.ACCESS_PASS_USABILITY_ONE_TIME_USED, admin_pb.ACCESS_PASS_USABILITY_EXPIRED):
        shown = await live.listed_pass("ada")
        assert (shown.usable, shown.usability) == (False, reason)
        with refused(Reason.ACCESS_PASS_REFUSED):
            await live.access_pass_sign_in("ada", code)
        await live.administer("DeleteAccessPass", admin_pb.DeleteAccessPassRequest(username="ada"))
        listed = await live.administer("ListAccessPasses", admin_pb.ListAccessPassesRequest(username="ada"))
        assert list(listed.access_passes) == []
        code = await live.issue_pass("ada")
        live.clock.advance(3600)


async def test_t13_a_registration_begun_in_time_is_not_completed_late(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada", one_time=True))
    live.clock.advance(599)
    late, in_time = await begin(live, session), await begin(live, session)
    live.clock.advance(1)
    with refused(Reason.REGISTRATION_EXPIRED, Reason.SESSION_EXPIRED):
        await complete(live, late)
    live.clock.advance(-1)
    await complete(live, in_time)


async def test_t13_ten_minutes_are_those_of_the_sign_in_not_of_the_pass(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada", one_time=True, lifetime_minutes=60)
    live.clock.advance(3000)
    opened = await live.access_pass_sign_in("ada", code)
    assert opened.tokens.session_expires_at == live.clock.now() + 600


@pytest.mark.parametrize(
    "provider",
    [
        common_pb2.PROVIDER_KIND_SOFTWARE,
        common_pb2.PROVIDER_KIND_TPM,
        common_pb2.PROVIDER_KIND_FIDO2,
        common_pb2.PROVIDER_KIND_SMARTCARD,
    ],
)
async def test_t15_ki9_a_pass_registers_every_kind_of_key_that_policy_allows(live: LiveServer, provider: int):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    begun = await begin(live, session, provider=provider)
    done = await complete(live, begun)
    assert done.device.provider == provider


async def test_t16_ki10_a_pass_needs_nothing_but_grpc(live: LiveServer):
    """No client of ours: a channel, two calls by their names, and bytes."""
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    credentials = grpc.ssl_channel_credentials((live.data / "ca.pem").read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{live.public_port}", credentials) as channel:
        sign_in = channel.unary_unary("/keyvouch.v1.SignInService/SignInWithAccessPass")
        request = sign_in_pb2.SignInWithAccessPassRequest(tenant=TENANT, username="ada", access_pass=code)
        opened = sign_in_pb2.SignInWithAccessPassResponse.FromString(
            await sign_in(request.SerializeToString(), timeout=LIMIT)
        )
        assert opened.session.username == "ada"
        register = channel.unary_unary("/keyvouch.v1.EnrolmentService/BeginRegistration")
        device = await BenchDevice.enrol(live.connection, metadata=bearer(opened.tokens.access_token))
        wanted = enrolment_pb2.BeginRegistrationRequest(channel_public_key=b"no key", display_name="laptop")
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # the session is admitted, and then the key looked at
            await register(wanted.SerializeToString(), metadata=bearer(opened.tokens.access_token), timeout=LIMIT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert device.device_id


async def test_t18_a_pass_is_valid_the_instant_it_is_created_on_every_node(live: LiveServer, server_template: Path):
    await live.create_user("ada")
    behind = type(live.clock)()
    behind.instant = live.clock.now() - 5
    node = bootstrap.assemble(server_template, configuration(1), live.app.store, clock=behind)
    code = await live.issue_pass("ada")
    for app in (live.app, node):
        opened = await app.pass_sign_ins.sign_in(TENANT, "ada", code, address="127.0.0.1")
        assert opened.issued.session.user_id == (await live.listed_pass("ada")).user_id
    later = await live.issue_pass_again("ada", start_at=live.clock.now() + 60)
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", later)


async def test_t18_what_one_node_did_to_a_pass_counts_on_every_node(live: LiveServer, server_template: Path):
    await live.create_user("ada")
    node = bootstrap.assemble(server_template, configuration(1), live.app.store, clock=live.clock)
    code = await live.issue_pass("ada", one_time=True)
    await node.pass_sign_ins.sign_in(TENANT, "ada", code, address="127.0.0.1")
    with refused(Reason.ACCESS_PASS_REFUSED):
        await live.access_pass_sign_in("ada", code)
    assert await outcome(live) == Reason.ACCESS_PASS_USED.value


async def test_whoever_comes_with_a_pass_is_told_what_to_register_KI8(live: LiveServer):
    await live.create_user("ada")
    policy = (await live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy
    wanted = admin_pb.Campaign(name="Keys for all", required_by=live.clock.now() + 86400)
    wanted.required_assurance.CopyFrom(policy.approval.required_assurance)
    wanted.targets.everybody = True
    policy.campaigns.append(wanted)
    await live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy))
    code = await live.issue_pass("ada")
    opened = await live.access_pass_sign_in("ada", code)
    assert [notice.name for notice in opened.campaigns] == ["Keys for all"]
    await BenchDevice.enrol(live.connection, metadata=bearer(opened.tokens.access_token))
    assert list((await live.access_pass_sign_in("ada", code)).campaigns) == []


async def test_the_way_in_is_remembered_PS6(live: LiveServer):
    user_id = await live.create_user("ada")
    await live.access_pass_sign_in("ada", await live.issue_pass("ada"))
    user = await live.app.store.read(lambda tx: tx.get(User, id=user_id))
    assert user is not None
    assert user.last_method == "access_pass"
