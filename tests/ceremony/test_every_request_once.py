"""Every call with a `request_id`, from the descriptors: sent twice it is one act with one answer."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from keyvouch.statement import Decision
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Role
from keyvouch_server.domain.oversight_model import AuditRecord, DoneRequest
from support.every_rpc import METHODS, call, request_of
from support.live_server import LIMIT, LiveServer, Metadata

Asked = tuple[dict[str, Any], Metadata]
"""Fields of a request that can be granted, and who sends it."""

WITH_ID = sorted(path for path, method in METHODS.items() if "request_id" in method.input_type.fields_by_name)
SECRETS = {"CreateTenant", "CreateAccessPass", "ReplaceAccessPass"}
"""Their answers hold a code, which is given once."""


async def administrator(live: LiveServer, **fields: Any) -> Asked:
    return fields, await live.admin()


async def tenant(live: LiveServer) -> Asked:
    return await administrator(live, name="other", administrator="admin")


async def user(live: LiveServer) -> Asked:
    return await administrator(live, username="ada")


async def of_ada(live: LiveServer, **fields: Any) -> Asked:
    await live.create_user("ada")
    return await administrator(live, **fields)


async def old_pass(live: LiveServer, **fields: Any) -> Asked:
    await live.create_user("ada")
    await live.issue_pass("ada")
    return await administrator(live, username="ada", **fields)


async def replaced(live: LiveServer) -> Asked:
    return await old_pass(live, sessions=pb.SESSIONS_ON_REPLACE_KEEP)


async def her_device(live: LiveServer) -> Asked:
    return await administrator(live, device_id=(await live.person("ada")).device.device_id)


async def policy(live: LiveServer) -> Asked:
    told = await live.administer("GetPolicy", pb.GetPolicyRequest())
    told.policy.approval.number_digits = 4
    return await administrator(live, policy=told.policy, accept_lock_out=True)


async def old_version(live: LiveServer) -> Asked:
    await live.change_policy(approval={"number_digits": 4})
    present = (await live.administer("GetPolicy", pb.GetPolicyRequest())).policy.version
    return await administrator(live, version=present - 1, present_version=present)


async def directory(live: LiveServer, method: str, **fields: Any) -> Any:
    request = request_of(f"/keyvouch.v1.DirectoryService/{method}", **fields)
    stub = live.connection.directory
    return await answer(getattr(stub, method)(request, metadata=await live.admin(), timeout=LIMIT))


async def alias(live: LiveServer) -> Asked:
    fields, metadata = await of_ada(live, user="ada", alias="countess")
    await directory(live, "AddAlias", **fields)
    return fields, metadata


async def group(live: LiveServer, **fields: Any) -> Asked:
    await live.create_user("ada")
    await directory(live, "CreateGroup", name="staff")
    await directory(live, "AddGroupMember", group="staff", user="ada")
    return await administrator(live, group="staff", **fields)


async def joining(live: LiveServer) -> Asked:
    await live.create_user("bob")
    return await group(live, user="bob")


async def leaving(live: LiveServer) -> Asked:
    return await group(live, user="ada")


async def her_sessions(live: LiveServer) -> Asked:
    await live.signed_in(await live.person("ada"))
    return await administrator(live, user="ada")


async def risk(live: LiveServer) -> Asked:
    ada = await live.person("ada")
    await live.begin("ada")
    await ada.stream.send(ada.device.refuse(await ada.stream.prompt(), Decision.REPORT))
    request = request_of("/keyvouch.v1.OversightService/ListRiskEvents")
    told = await answer(live.connection.oversight.ListRiskEvents(request, metadata=await live.admin(), timeout=LIMIT))
    return await administrator(live, risk_event_id=told.events[0].risk_event_id)


async def as_ada(live: LiveServer, **fields: Any) -> Asked:
    return fields, (await live.signed_in(await live.person("ada"))).metadata


async def own_device(live: LiveServer, **fields: Any) -> Asked:
    """A second one: the session is of the first, and does not end with it."""
    person = await live.person("ada")
    session = await live.signed_in(person)
    second = await live.enrol("ada", await live.issue_pass_again("ada"))
    session = await live.signed_in(person)
    return {"device_id": second.device_id, **fields}, session.metadata


async def other_session(live: LiveServer) -> Asked:
    person = await live.person("ada")
    first, second = await live.signed_in(person), await live.signed_in(person)
    return {"session_id": first.session.session_id}, second.metadata


async def drifted(live: LiveServer) -> Asked:
    """A device that has no TPM, or none that drifted: what is refused is no act, and is refused again."""
    return await her_device(live)


CASES: dict[str, Callable[[LiveServer], Awaitable[Asked]]] = {
    "CreateTenant": tenant,
    "CreateUser": user,
    "DeleteUser": lambda live: of_ada(live, username="ada"),
    "CreateAccessPass": lambda live: of_ada(live, username="ada"),
    "ReplaceAccessPass": replaced,
    "DeleteAccessPass": old_pass,
    "AdminRemoveDevice": her_device,
    "AcceptDeviceHealth": drifted,
    "UpdatePolicy": policy,
    "UpdateUser": lambda live: of_ada(live, user="ada", display_name="Ada Lovelace"),
    "AddAlias": lambda live: of_ada(live, user="ada", alias="countess"),
    "RemoveAlias": alias,
    "CreateGroup": lambda live: administrator(live, name="staff"),
    "DeleteGroup": group,
    "AddGroupMember": joining,
    "RemoveGroupMember": leaving,
    "RollBackPolicy": old_version,
    "RevokeSessions": her_sessions,
    "CloseRiskEvent": risk,
    "RemoveDevice": own_device,
    "RenameDevice": lambda live: own_device(live, display_name="new name"),
    "SetDefaultMethod": lambda live: as_ada(live, method=common_pb2.SIGN_IN_METHOD_APPROVAL),
    "RevokeOtherSessions": other_session,
    "RevokeSession": other_session,
}
REFUSED = {"AcceptDeviceHealth"}


def test_every_call_with_an_id_has_a_case():
    assert {path.rpartition("/")[2] for path in WITH_ID} == set(CASES)


@pytest.mark.parametrize("path", WITH_ID)
async def test_sent_twice_it_is_done_once_G11(live: LiveServer, path: str):
    name = path.rpartition("/")[2]
    fields, metadata = await CASES[name](live)
    if "session_id" in fields and name == "RevokeOtherSessions":
        del fields["session_id"]
    request = request_of(path, **fields, request_id=secrets.token_hex(12))
    first = await call(live.connection.channel, path, request, metadata)
    after = await acts(live)
    again = await call(live.connection.channel, path, request, metadata)
    if name in REFUSED:
        assert (first.code, again.code) == (grpc.StatusCode.FAILED_PRECONDITION,) * 2
        return
    assert first.code is grpc.StatusCode.OK, first
    if name in SECRETS:
        assert again.code is grpc.StatusCode.FAILED_PRECONDITION
        assert b"request_completed" in repr(again.trailers).encode()
    else:
        assert (again.code, again.answer) == (grpc.StatusCode.OK, first.answer)
    assert await acts(live) == after
    rows = await live.app.store.read(lambda tx: tx.find(DoneRequest, {"request_id": request.request_id}))
    assert len(rows) == 1


async def acts(live: LiveServer) -> list[tuple[str, str]]:
    """What was done, by the audit log."""
    records = await live.app.store.read(lambda tx: tx.find(AuditRecord, {"outcome": "ok"}, order="sequence"))
    return [(record.action, record.subject) for record in records]


async def test_roles_are_asked_before_anything_is_done(live: LiveServer):
    """The control: whoever may not gets no answer of before, not even under an id that somebody else used."""
    request = pb.CreateUserRequest(username="ada", request_id=secrets.token_hex(12))
    await live.administer("CreateUser", request)
    reader = (await live.signed_in(await live.person("reader", Role.GLOBAL_READER))).metadata
    told = await call(live.connection.channel, "/keyvouch.v1.AdministrationService/CreateUser", request, reader)
    assert told.code is grpc.StatusCode.PERMISSION_DENIED
