"""Lists, page by page: put together they are the whole list, and a token leads on in its own list alone (G12).

The lists come out of the descriptors: a new method with a `page` has to be given its case here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import common_pb2, directory_pb2, oversight_pb2, policies_pb2, sessions_pb2
from keyvouch_server.domain.model import Device, Role
from support.every_rpc import METHODS, call
from support.live_server import LiveServer, Metadata
from support.sample_records import CHECKPOINT, GROUP_MEMBER, variant
from support.two_tenants import Things, put_user

LISTS = {path for path, method in METHODS.items() if any(f.name == "page" for f in method.input_type.fields)}


@dataclass(frozen=True, slots=True)
class Listing:
    """A list: a request for it in a stage, the field of its rows, and another filter of the same list."""

    request: Callable[[Stage], Any]
    rows: str
    filtered: Callable[[Stage], Any] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """Seven users with everything, and an administrator."""

    live: LiveServer
    people: list[Things]
    admin: Metadata
    policy: admin.Policy


CASES: dict[str, Listing] = {
    "ListTenants": Listing(lambda s: admin.ListTenantsRequest(), "tenants"),
    "ListUsers": Listing(lambda s: admin.ListUsersRequest(), "users"),
    "ListAccessPasses": Listing(
        lambda s: admin.ListAccessPassesRequest(),
        "access_passes",
        lambda s: admin.ListAccessPassesRequest(username=s.people[0].username),
    ),
    "ListDevices": Listing(
        lambda s: admin.ListDevicesRequest(),
        "devices",
        lambda s: admin.ListDevicesRequest(username=s.people[0].username),
    ),
    "ListAuditRecords": Listing(
        lambda s: admin.ListAuditRecordsRequest(),
        "records",
        lambda s: admin.ListAuditRecordsRequest(username=s.people[0].username),
    ),
    "ListGroups": Listing(lambda s: directory_pb2.ListGroupsRequest(), "groups"),
    "ListGroupMembers": Listing(
        lambda s: directory_pb2.ListGroupMembersRequest(group=s.people[0].group),
        "users",
        lambda s: directory_pb2.ListGroupMembersRequest(group=s.people[1].group),
    ),
    "PreviewPolicy": Listing(
        lambda s: policies_pb2.PreviewPolicyRequest(policy=stricter(s.policy)),
        "users",
        lambda s: policies_pb2.PreviewPolicyRequest(policy=s.policy),
    ),
    "ListPolicyVersions": Listing(lambda s: policies_pb2.ListPolicyVersionsRequest(), "versions"),
    "ListUserSessions": Listing(
        lambda s: oversight_pb2.ListUserSessionsRequest(),
        "sessions",
        lambda s: oversight_pb2.ListUserSessionsRequest(user=s.people[0].username),
    ),
    "ListRiskEvents": Listing(
        lambda s: oversight_pb2.ListRiskEventsRequest(open_only=True),
        "events",
        lambda s: oversight_pb2.ListRiskEventsRequest(),
    ),
    "ListAuditCheckpoints": Listing(lambda s: oversight_pb2.ListAuditCheckpointsRequest(), "checkpoints"),
    "ListSessions": Listing(lambda s: sessions_pb2.ListSessionsRequest(), "sessions"),
}


def stricter(policy: admin.Policy) -> admin.Policy:
    wanted = admin.Policy()
    wanted.CopyFrom(policy)
    wanted.approval.enabled = False
    return wanted


def path_of(method: str) -> str:
    (path,) = [path for path in LISTS if path.endswith(f"/{method}")]
    return path


@pytest.fixture
async def stage(live: LiveServer) -> Stage:
    mine = await live.admin()
    tenant = (await live.introspect(mine)).session.tenant_id
    for number in range(4):
        await live.administer("CreateTenant", admin.CreateTenantRequest(name=f"t{number}", administrator="admin"))
        await live.change_policy(approval={"begins_per_minute": 100 + number})
        await live.signed_in(live.people["admin"])
    people = [
        await put_user(live, name, tenant, Role.USER) for name in ("ada", "bob", "cyd", "dan", "eve", "fay", "gus")
    ]

    async def more(tx: Any) -> None:
        for person in people[1:]:
            row = variant(GROUP_MEMBER, tenant_id=tenant, group_id=people[0].group_id, user_id=person.user_id)
            await tx.insert(row)
        for number in range(1, 6):
            await tx.insert(variant(CHECKPOINT, tenant_id=tenant, chain_number=10_000 + number))

    await live.app.store.write(more)
    policy = (await live.administer("GetPolicy", admin.GetPolicyRequest())).policy
    return Stage(live, people, mine, policy)


async def page_of(stage: Stage, method: str, request: Any, token: str = "", size: int = 2, who: Metadata = ()) -> Any:
    request.page.CopyFrom(common_pb2.PageRequest(size=size, token=token))
    told = await call(stage.live.connection.channel, path_of(method), request, who or stage.admin)
    if told.code is not grpc.StatusCode.OK:
        return told
    return METHODS[path_of(method)].output_type._concrete_class.FromString(told.answer)


def test_every_list_has_its_case():
    assert {path_of(method) for method in CASES} == LISTS


@pytest.mark.parametrize("method", CASES)
async def test_pages_put_together_are_the_whole_list(stage: Stage, method: str):
    listing = CASES[method]
    whole = list(getattr(await page_of(stage, method, listing.request(stage), size=200), listing.rows))
    collected: list[Any] = []
    token, pages = "", 0
    while pages == 0 or token:
        page = await page_of(stage, method, listing.request(stage), token)
        collected += getattr(page, listing.rows)
        assert len(getattr(page, listing.rows)) <= 2
        assert page.next_token != token
        token, pages = page.next_token, pages + 1
    assert len(whole) >= 5
    if method == "ListAuditRecords":  # looking does not write, so that nothing has come in between
        assert [r.sequence for r in whole] == sorted((r.sequence for r in whole), reverse=True)
    assert collected == whole


@pytest.mark.parametrize("method", CASES)
async def test_a_token_is_good_for_its_own_list_alone_G12(stage: Stage, method: str):
    token = (await page_of(stage, method, CASES[method].request(stage))).next_token
    assert token
    for other, listing in CASES.items():
        if other != method:
            refused = await page_of(stage, other, listing.request(stage), token)
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, other
    filtered = CASES[method].filtered
    if filtered is not None:
        assert (await page_of(stage, method, filtered(stage), token)).code is grpc.StatusCode.INVALID_ARGUMENT
    for made_up in (token[:-1], token + "A", token.swapcase(), "x", "usr_" + "a" * 26, "7", "' OR 1=1"):
        refused = await page_of(stage, method, CASES[method].request(stage), made_up)
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, made_up
    assert getattr(await page_of(stage, method, CASES[method].request(stage), token), CASES[method].rows)


async def test_a_token_is_good_in_its_own_tenant_alone_P17(stage: Stage):
    _, other = await stage.live.tenant("other")
    for method in ("ListUsers", "ListDevices", "ListAuditRecords", "ListTenants", "ListSessions"):
        request = CASES[method].request(stage)
        token = (await page_of(stage, method, request)).next_token
        refused = await page_of(stage, method, request, token, who=other.metadata)
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, method


async def test_a_token_of_an_own_list_is_good_for_its_owner_alone(stage: Stage):
    helen = await stage.live.signed_in(await stage.live.person("helen", Role.GLOBAL_ADMINISTRATOR))
    token = (await page_of(stage, "ListSessions", sessions_pb2.ListSessionsRequest())).next_token
    refused = await page_of(stage, "ListSessions", sessions_pb2.ListSessionsRequest(), token, who=helen.metadata)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    token = (await page_of(stage, "ListUsers", admin.ListUsersRequest())).next_token
    told = await page_of(stage, "ListUsers", admin.ListUsersRequest(), token, who=helen.metadata)
    assert told.users


async def test_sizes_that_cannot_be_are_refused(stage: Stage):
    for size in (201, -1, 2**31 - 1, -(2**31)):
        for method, listing in CASES.items():
            told = await page_of(stage, method, listing.request(stage), size=size)
            assert told.code is grpc.StatusCode.INVALID_ARGUMENT, method


async def test_a_row_that_comes_or_goes_between_two_pages_moves_no_other(stage: Stage):
    """The token names the last row, not a number of rows."""
    request = admin.ListDevicesRequest()
    first = await page_of(stage, "ListDevices", request)
    whole = (await page_of(stage, "ListDevices", request, size=200)).devices
    gone = first.devices[0].device_id
    await stage.live.app.store.write(lambda tx: tx.delete(Device, {"id": gone}))
    second = await page_of(stage, "ListDevices", request, first.next_token)
    assert list(second.devices) == list(whole[2:4])
