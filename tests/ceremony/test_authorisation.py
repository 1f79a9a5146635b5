"""Who may do what, by ceremonies: oneself, lists, tenants. The matrix of roles is `test_authorisation_matrix`."""

from __future__ import annotations

import grpc

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2
from keyvouch_server.domain.model import Device, Role
from support.live_server import TENANT, LiveServer, refused


async def test_nobody_acts_on_themselves_over_the_wire(live: LiveServer):
    admin = await live.admin()
    for method, request in (
        ("CreateAccessPass", pb.CreateAccessPassRequest(username=" Admin")),
        ("DeleteAccessPass", pb.DeleteAccessPassRequest(username="ADMIN")),
        ("DeleteUser", pb.DeleteUserRequest(username="admin")),
    ):
        with refused(Reason.SELF_FORBIDDEN, status=grpc.StatusCode.PERMISSION_DENIED):
            await live.administer(method, request, admin)


async def test_t5_the_list_of_passes_shows_only_what_the_role_may_see(live: LiveServer):
    """Nor does an administrator see the own pass, which is there."""
    names = ("member", "boss")
    for number in range(3):
        await live.create_user(f"member{number}")
        await live.create_user(f"boss{number}", Role.GLOBAL_READER)
        for name in names:
            await live.issue_pass(f"{name}{number}")
    helpdesk = (await live.signed_in(await live.person("helpdesk", Role.AUTHENTICATION_ADMINISTRATOR))).metadata
    seen, token = [], ""
    while True:
        page = common_pb2.PageRequest(size=2, token=token)
        told = await live.administer("ListAccessPasses", pb.ListAccessPassesRequest(page=page), helpdesk)
        seen += [p.username for p in told.access_passes]
        token = told.next_token
        if not token:
            break
    assert sorted(seen) == ["member0", "member1", "member2"]
    with refused(Reason.ROLE_REQUIRED):
        await live.administer("ListAccessPasses", pb.ListAccessPassesRequest(username="boss1"), helpdesk)
    everything = await live.administer("ListAccessPasses", pb.ListAccessPassesRequest())
    assert {p.username for p in everything.access_passes} == {"helpdesk"} | {f"{n}{i}" for n in names for i in range(3)}
    with refused(Reason.SELF_FORBIDDEN):
        await live.administer("ListAccessPasses", pb.ListAccessPassesRequest(username="admin"))


# tenants


async def test_lists_of_another_tenant_show_its_own_things_only(live: LiveServer):
    await live.person("ada")
    _, other = await live.tenant("other")
    users = (await live.administer("ListUsers", pb.ListUsersRequest(), other.metadata)).users
    assert [u.username for u in users] == ["admin"]
    devices = (await live.administer("ListDevices", pb.ListDevicesRequest(), other.metadata)).devices
    assert {d.user_id for d in devices} == {users[0].user_id}
    records = (await live.administer("ListAuditRecords", pb.ListAuditRecordsRequest(), other.metadata)).records
    assert {r.user_id for r in records} <= {users[0].user_id, ""}
    tenants = (await live.administer("ListTenants", pb.ListTenantsRequest(), other.metadata)).tenants
    assert [t.name for t in tenants] == ["other"]
    everything = (await live.administer("ListTenants", pb.ListTenantsRequest())).tenants
    assert {t.name for t in everything} == {TENANT, "other"}


async def test_one_tenants_policy_is_not_anothers(live: LiveServer):
    ada = await live.person("ada")
    person, other = await live.tenant("other")
    await live.change_policy(other.metadata, approval={"enabled": False})
    with refused(Reason.METHOD_DISABLED):
        await live.begin("admin", "other")
    assert (await live.signed_in(ada)).session.username == "ada"
    assert person.tenant == "other"


async def test_only_the_first_tenant_makes_tenants(live: LiveServer):
    _, other = await live.tenant("other")
    with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
        request = pb.CreateTenantRequest(name="third", administrator="admin")
        await live.administer("CreateTenant", request, other.metadata)
    with refused(Reason.TENANT_EXISTS, status=grpc.StatusCode.ALREADY_EXISTS):
        await live.administer("CreateTenant", pb.CreateTenantRequest(name=" OTHER ", administrator="admin"))


async def test_the_same_login_name_in_two_tenants_is_two_people(live: LiveServer):
    _, other = await live.tenant("other")
    here = await live.introspect(await live.admin())
    there = await other.introspect()
    assert here.session.username == there.session.username == "admin"
    assert here.session.user_id != there.session.user_id
    device = await live.app.store.read(lambda tx: tx.get(Device, id=there.session.device_id))
    assert device is not None
    assert device.tenant_id == there.session.tenant_id != here.session.tenant_id


async def test_names_that_are_one_name_make_one_user(live: LiveServer):
    await live.create_user("Ada")
    for spelling in ("ada", "ADA", " ada ", "\uff21\uff24\uff21"):
        with refused(Reason.USER_EXISTS, status=grpc.StatusCode.ALREADY_EXISTS):
            await live.create_user(spelling)
    await live.create_user("adam")


async def test_a_policy_is_saved_over_the_version_that_was_seen(live: LiveServer):
    policy = (await live.administer("GetPolicy", pb.GetPolicyRequest())).policy
    saved = (await live.administer("UpdatePolicy", pb.UpdatePolicyRequest(policy=policy))).policy
    assert saved.version == policy.version + 1
    with refused(Reason.POLICY_CHANGED, status=grpc.StatusCode.ABORTED) as refusal:
        await live.administer("UpdatePolicy", pb.UpdatePolicyRequest(policy=policy))
    assert refusal.error.metadata["version"] == str(saved.version)
    partial = pb.Policy(version=saved.version, approval=saved.approval)
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
        await live.administer("UpdatePolicy", pb.UpdatePolicyRequest(policy=partial))
