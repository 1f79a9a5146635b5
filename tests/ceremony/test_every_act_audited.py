"""Every transaction that does something tells of it in its audit record, and no record tells a secret (G11).

Acts of every kind are done on a server whose store holds each transaction against its records. What the model's random
acts do is held against them too (`test_model`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from keyvouch.statement import Decision
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import directory_pb2, oversight_pb2, security_info_pb2
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Role
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.ports import Store, Transaction
from support.audited_store import AuditedStore
from support.key_desk import begin_with_key, registered_key
from support.live_server import LIMIT, LiveServer, Metadata, live_server
from support.own_sign_in import desk_of
from support.registering import begin, complete

Watched = tuple[LiveServer, AuditedStore]


@pytest.fixture
async def watched(server_template: Path, tmp_path: Path) -> AsyncIterator[Watched]:
    stores: list[AuditedStore] = []

    def around(store: Store) -> Store:
        stores.append(AuditedStore(store))
        return stores[0]

    async with live_server(server_template, tmp_path, around=around) as live:
        yield live, stores[0]
        assert stores[0].untold == []


async def call(stub: Any, method: str, request: Any, metadata: Metadata) -> Any:
    return await answer(getattr(stub, method)(request, metadata=metadata, timeout=LIMIT))


async def test_a_store_that_is_not_told_is_found_out_G11(watched: Watched) -> None:
    """The control: the watching store sees what it has to see."""
    live, store = watched
    user = await live.create_user("ada")
    tables = live.app.world.store

    async def untold(tx: Transaction) -> None:
        from keyvouch_server.domain.model import User

        await tx.update(User, {"id": user}, {"role": Role.GLOBAL_ADMINISTRATOR})

    assert store.untold == []
    await tables.write(untold)
    assert len(store.untold) == 1
    store.untold.clear()


async def test_people_groups_and_names_G11(watched: Watched) -> None:
    live, store = watched
    directory, admin = live.connection.directory, await live.admin()
    request: Any = admin_pb.CreateUserRequest(username="ada", aliases=["countess", "ada@example.org"])
    await live.administer("CreateUser", request)
    await call(directory, "AddAlias", directory_pb2.AddAliasRequest(user="ada", alias="lovelace"), admin)
    await call(directory, "RemoveAlias", directory_pb2.RemoveAliasRequest(user="ada", alias="lovelace"), admin)
    await call(directory, "UpdateUser", directory_pb2.UpdateUserRequest(user="ada", username="Countess"), admin)
    await call(directory, "CreateGroup", directory_pb2.CreateGroupRequest(name="staff"), admin)
    member = {"group": "staff", "user": "countess"}
    await call(directory, "AddGroupMember", directory_pb2.AddGroupMemberRequest(**member), admin)
    await call(directory, "RemoveGroupMember", directory_pb2.RemoveGroupMemberRequest(**member), admin)
    await call(directory, "AddGroupMember", directory_pb2.AddGroupMemberRequest(**member), admin)
    device = await live.enrol("countess", await live.issue_pass("countess"))
    person = await live.connect("countess", device)
    await live.signed_in(person)
    await live.approved(person)
    await live.begin("countess")
    await live.administer("DeleteUser", admin_pb.DeleteUserRequest(username="countess"))
    await call(directory, "DeleteGroup", directory_pb2.DeleteGroupRequest(group="staff"), admin)
    names = {"user.add_alias", "user.remove_alias", "user.update", "user.delete", "group.delete", "sign_in.cancel"}
    assert names <= store.acts


async def test_passes_sessions_and_devices_G11(watched: Watched) -> None:
    live, store = watched
    admin, info = await live.admin(), live.connection.security_info
    ada = await live.person("ada")
    first = await live.signed_in(ada)
    await first.refresh()
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada", one_time=True)))
    await complete(live, begun)
    await live.change_policy(approval={"begins_per_minute": 9})
    await live.issue_pass("ada")  # over the one that was used
    assert (await live.audit("access_pass.create"))[-1].details.count("replaced") == 1
    await live.administer("DeleteAccessPass", admin_pb.DeleteAccessPassRequest(username="ada"))
    session = await live.signed_in(ada)
    rename = security_info_pb2.RenameDeviceRequest(device_id=begun.device_id, display_name="phone")
    await call(info, "RenameDevice", rename, session.metadata)
    remove = security_info_pb2.RemoveDeviceRequest(device_id=begun.device_id)
    await call(info, "RemoveDevice", remove, session.metadata)
    await live.signed_in(ada)
    await call(info, "RevokeOtherSessions", security_info_pb2.RevokeOtherSessionsRequest(), session.metadata)
    everything = oversight_pb2.RevokeSessionsRequest(user="ada")
    await call(live.connection.oversight, "RevokeSessions", everything, admin)
    assert {"session.revoke", "session.refresh", "device.remove", "device.rename", "policy.update"} <= store.acts


async def test_ways_of_signing_in_and_risks_G11(watched: Watched) -> None:
    live, store = watched
    admin, oversight = await live.admin(), live.connection.oversight
    await (await desk_of(live)).signed_in()
    key = await registered_key(live, "bob")
    opened = await begin_with_key(live, "bob")
    await opened.complete(opened.approval(key.credential))
    await opened.redeem()
    cyd = await live.person("cyd")
    reported = await live.begin("cyd")
    await cyd.stream.send(cyd.device.refuse(await cyd.stream.prompt(), Decision.REPORT))
    await reported.state()
    events = await call(oversight, "ListRiskEvents", oversight_pb2.ListRiskEventsRequest(), admin)
    for event in events.events:
        request = oversight_pb2.CloseRiskEventRequest(risk_event_id=event.risk_event_id)
        await call(oversight, "CloseRiskEvent", request, admin)
    live.clock.advance(3600)
    await live.app.sign_ins.expire()
    assert {"risk.note", "risk.close", "sign_in.report", "sign_in.redeem"} <= store.acts


async def test_no_record_tells_a_secret_G11(watched: Watched) -> None:
    live, _ = watched
    ada = await live.person("ada")
    code = await live.issue_pass_again("ada")
    with_pass = (await live.access_pass_sign_in("ada", code)).tokens
    opened = await live.approved(ada)
    session = await opened.redeem()
    again = await session.refresh()
    secrets = {
        code,
        opened.begun.sign_in_token,
        *(t for tokens in (session.tokens, again, with_pass) for t in (tokens.access_token, tokens.refresh_token) if t),
    }
    assert len(secrets) >= 6
    for record in await live.audit():
        said = _all_of(record)
        assert not [secret for secret in secrets if secret in said], record.action
        assert opened.number not in json.loads(record.details).values(), record.action


def _all_of(record: AuditRecord) -> str:
    return " ".join((record.action, record.actor, record.subject, record.user_id, record.outcome, record.details))
