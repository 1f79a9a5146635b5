"""Who may do what: every role, every administrative act, every target role; and nothing across tenants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from keyvouch.errors import KeyvouchError, PermissionDeniedError, Reason, RefusedError
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2, security_info_pb2, sessions_pb2
from keyvouch_client.errors import answer
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import Device, Role
from support.live_server import LIMIT, TENANT, LiveServer, Metadata, refused

# The roles by their initials, in the order of `Role`: user, global reader, authentication administrator,
# authentication policy administrator, privileged authentication administrator, global administrator.
INITIALS = dict(zip(["U", "R", "A", "P", "V", "G"], Role, strict=True))

# What the product rules say, written down once more: for each act, the roles that may do it to each target role.
#            target:          U     R    A    P    V    G
EXPECTED: dict[Action, str] = {
    Action.CREATE_TENANT: "      G     G    G    G    G    G",
    Action.LIST_TENANTS: "       RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.READ_DIRECTORY: "     RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.CREATE_USER: "        G     G    G    G    G    G",
    Action.DELETE_USER: "        G     G    G    G    G    G",
    Action.CREATE_ACCESS_PASS: " AVG   VG   VG   VG   VG   VG",
    Action.DELETE_ACCESS_PASS: " AVG   VG   VG   VG   VG   VG",
    Action.LIST_ACCESS_PASSES: " RAVG  RVG  RVG  RVG  RVG  RVG",
    Action.REMOVE_DEVICE: "      AVG   VG   VG   VG   VG   VG",
    Action.ACCEPT_HEALTH: "      AVG   VG   VG   VG   VG   VG",
    Action.READ_POLICY: "        RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.CHANGE_POLICY: "      PG    PG   PG   PG   PG   PG",
    Action.READ_AUDIT: "         RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
}
NEVER_ON_SELF = {Action.DELETE_USER, Action.CREATE_ACCESS_PASS, Action.DELETE_ACCESS_PASS}


def expected(actor: Role, action: Action, target: Role) -> bool:
    column = EXPECTED[action].split()[list(Role).index(target)]
    return actor in {INITIALS[letter] for letter in column}


def test_the_table_has_every_act():
    assert EXPECTED.keys() == set(Action)
    assert {len(row.split()) for row in EXPECTED.values()} == {len(Role)}


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("actor", Role)
def test_every_cell_of_the_table(actor: Role, action: Action):
    for target in Role:
        refusal = None
        try:
            authorise(actor, action, target=target)
        except PermissionDeniedError as error:
            refusal = error.reason
        wanted = None if expected(actor, action, target) else Reason.ROLE_REQUIRED
        assert refusal is wanted, (actor, action, target)


@pytest.mark.parametrize("actor", Role)
def test_nobody_makes_or_deletes_what_opens_their_own_account(actor: Role):
    for action in Action:
        allowed = expected(actor, action, actor) and action not in NEVER_ON_SELF
        try:
            authorise(actor, action, target=actor, on_self=True)
        except PermissionDeniedError:
            assert not allowed
        else:
            assert allowed


# the same over the wire


def act_on(username: str, device_id: str, version: int) -> dict[Action, tuple[str, Any]]:
    """One call for each act that names a target."""
    return {
        Action.CREATE_ACCESS_PASS: ("CreateAccessPass", pb.CreateAccessPassRequest(username=username)),
        Action.LIST_ACCESS_PASSES: ("ListAccessPasses", pb.ListAccessPassesRequest(username=username)),
        Action.DELETE_ACCESS_PASS: ("DeleteAccessPass", pb.DeleteAccessPassRequest(username=username)),
        Action.ACCEPT_HEALTH: ("AcceptDeviceHealth", pb.AcceptDeviceHealthRequest(device_id=device_id)),
        Action.REMOVE_DEVICE: ("AdminRemoveDevice", pb.AdminRemoveDeviceRequest(device_id=device_id)),
        Action.DELETE_USER: ("DeleteUser", pb.DeleteUserRequest(username=username)),
    }


GENERAL: dict[Action, tuple[str, Callable[[int], Any]]] = {
    Action.LIST_TENANTS: ("ListTenants", lambda n: pb.ListTenantsRequest()),
    Action.READ_DIRECTORY: ("ListUsers", lambda n: pb.ListUsersRequest()),
    Action.READ_POLICY: ("GetPolicy", lambda n: pb.GetPolicyRequest()),
    Action.READ_AUDIT: ("ListAuditRecords", lambda n: pb.ListAuditRecordsRequest()),
    Action.CREATE_USER: ("CreateUser", lambda n: pb.CreateUserRequest(username=f"new{n}")),
    Action.CREATE_TENANT: ("CreateTenant", lambda n: pb.CreateTenantRequest(name=f"new{n}", administrator="admin")),
}


@pytest.mark.parametrize("actor", [r for r in Role if r is not Role.GLOBAL_ADMINISTRATOR])
async def test_every_role_over_the_wire(live: LiveServer, actor: Role):
    session = (await live.signed_in(await live.person("actor", actor))).metadata
    for number, (action, (method, make)) in enumerate(GENERAL.items()):
        await attempt(live, session, method, make(number), allowed=expected(actor, action, Role.USER))
    await attempt(live, session, "ListDevices", pb.ListDevicesRequest(), allowed=actor is not Role.USER)
    policy = (await live.administer("GetPolicy", pb.GetPolicyRequest())).policy
    may_change = expected(actor, Action.CHANGE_POLICY, Role.USER)
    await attempt(live, session, "UpdatePolicy", pb.UpdatePolicyRequest(policy=policy), allowed=may_change)
    for target in Role:
        name = f"target_{target.value}"
        await live.create_user(name, target)
        device = await live.enrol(name, await live.issue_pass(name))
        await live.administer("DeleteAccessPass", pb.DeleteAccessPassRequest(username=name))
        for action, (method, request) in act_on(name, device.device_id, 1).items():
            await attempt(live, session, method, request, allowed=expected(actor, action, target))


async def attempt(live: LiveServer, session: Metadata, method: str, request: Any, *, allowed: bool) -> None:
    refusal = None
    try:
        await live.administer(method, request, session)
    except PermissionDeniedError as error:
        refusal = error
    except RefusedError as error:
        if error.reason is not Reason.DEVICE_HEALTH:  # the device has no TPM; that is looked at after the role
            raise
    assert (refusal is None) is allowed, (method, request)
    if refusal is not None:
        cause: Any = refusal.__cause__
        assert (cause.code(), bool(refusal.fix)) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def test_nobody_acts_on_themselves_over_the_wire(live: LiveServer):
    admin = await live.admin()
    for method, request in (
        ("CreateAccessPass", pb.CreateAccessPassRequest(username=" Admin")),
        ("DeleteAccessPass", pb.DeleteAccessPassRequest(username="ADMIN")),
        ("DeleteUser", pb.DeleteUserRequest(username="admin")),
    ):
        with refused(Reason.SELF_FORBIDDEN, status=grpc.StatusCode.PERMISSION_DENIED):
            await live.administer(method, request, admin)


async def test_the_list_of_passes_shows_only_what_the_role_may_see(live: LiveServer):
    for number in range(3):
        await live.create_user(f"member{number}")
        await live.create_user(f"boss{number}", Role.GLOBAL_READER)
        for name in ("member", "boss"):
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
    assert len(everything.access_passes) == 8


@pytest.mark.parametrize(
    ("method", "request_type", "field"),
    [
        ("ListUsers", pb.ListUsersRequest, "users"),
        ("ListAuditRecords", pb.ListAuditRecordsRequest, "records"),
        ("ListDevices", pb.ListDevicesRequest, "devices"),
        ("ListAccessPasses", pb.ListAccessPassesRequest, "access_passes"),
        ("ListTenants", pb.ListTenantsRequest, "tenants"),
    ],
)
async def test_pages_put_together_are_the_whole_list(live: LiveServer, method: str, request_type: Any, field: str):
    for number in range(4):
        await live.create_user(f"user{number}")
        await live.enrol(f"user{number}", await live.issue_pass(f"user{number}"))
        await live.administer("CreateTenant", pb.CreateTenantRequest(name=f"t{number}", administrator="admin"))
    whole = list(getattr(await live.administer(method, request_type()), field))
    collected, token = [], ""
    while True:
        told = await live.administer(method, request_type(page=common_pb2.PageRequest(size=2, token=token)))
        collected += getattr(told, field)
        token = told.next_token
        if not token:
            break
    assert len(whole) >= 5
    assert collected == whole


async def test_pages_that_cannot_be_are_refused(live: LiveServer):
    for page in (
        common_pb2.PageRequest(size=201),
        common_pb2.PageRequest(size=-1),
        common_pb2.PageRequest(token="x" * 129),
    ):
        with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
            await live.administer("ListUsers", pb.ListUsersRequest(page=page))
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
        await live.administer("ListAuditRecords", pb.ListAuditRecordsRequest(page=common_pb2.PageRequest(token="x")))


# tenants


async def told(live: LiveServer, session: Metadata, stub: Any, method: str, request: Any) -> tuple[Any, ...]:
    """All a caller learns from a call, whether it was refused or not."""
    try:
        done = await answer(getattr(stub, method)(request, metadata=session, timeout=LIMIT))
    except KeyvouchError as error:
        cause: Any = error.__cause__
        return cause.code(), cause.details(), tuple(cause.trailing_metadata() or ())
    return ("ok", done.SerializeToString(deterministic=True))


async def test_another_tenants_ids_and_names_are_as_unknown_as_made_up_ones(live: LiveServer):
    """P17: tenant B's administrator cannot even learn that something of tenant A exists."""
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    await live.issue_pass_again("ada")
    session = await live.signed_in(ada)
    _, other = await live.tenant("other")
    await live.create_user("zed", metadata=other.metadata)
    made_up_device, made_up_session = "dev_" + "a" * 26, "ses_" + "a" * 26
    hers, her_session = ada.device.device_id, session.session.session_id
    administration, c = live.connection.administration, live.connection
    pairs = [
        (administration, "CreateAccessPass", pb.CreateAccessPassRequest, "username", "ada", "nobody"),
        (administration, "ListAccessPasses", pb.ListAccessPassesRequest, "username", "ada", "nobody"),
        (administration, "DeleteAccessPass", pb.DeleteAccessPassRequest, "username", "ada", "nobody"),
        (administration, "DeleteUser", pb.DeleteUserRequest, "username", "ada", "nobody"),
        (administration, "ListDevices", pb.ListDevicesRequest, "username", "ada", "nobody"),
        (administration, "ListAuditRecords", pb.ListAuditRecordsRequest, "username", "ada", "nobody"),
        (administration, "AcceptDeviceHealth", pb.AcceptDeviceHealthRequest, "device_id", hers, made_up_device),
        (administration, "AdminRemoveDevice", pb.AdminRemoveDeviceRequest, "device_id", hers, made_up_device),
        (c.security_info, "RemoveDevice", security_info_pb2.RemoveDeviceRequest, "device_id", hers, made_up_device),
        (c.sessions, "RevokeSession", sessions_pb2.RevokeSessionRequest, "session_id", her_session, made_up_session),
    ]  # fmt: skip
    for stub, method, request_type, field, theirs, made_up in pairs:
        answers = [
            await told(live, other.metadata, stub, method, request_type(**{field: value}))
            for value in (theirs, made_up)
        ]
        assert answers[0] == answers[1], method
        assert answers[0][0] is grpc.StatusCode.NOT_FOUND, method
    await session.introspect()
    assert (await live.signed_in(ada)).session.username == "ada"


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
