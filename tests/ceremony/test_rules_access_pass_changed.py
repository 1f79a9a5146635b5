"""What changes between a pass, its sign-in and the registration: policy, person, pass, clock (T2, T5, T8)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from keyvouch.errors import Reason, ThrottledError
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, security_info_pb2
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Device, Role
from keyvouch_server.use_cases.registration import LIFETIME_SECONDS, OPEN_AT_ONCE
from support.directory_desk import rows, update
from support.key_desk import MODEL_NAME
from support.live_server import LIMIT, LiveServer, Metadata, live_server, refused
from support.registering import begin, complete
from support.tpm_device import Maker
from support.tpm_device import begin as begin_tpm

MAKER = Maker.new()
Change = Callable[[LiveServer], Awaitable[object]]


async def switched_off(live: LiveServer) -> None:
    await live.change_policy(access_pass={"enabled": False})


async def no_target(live: LiveServer) -> None:
    await live.change_policy(access_pass={"targets": admin_pb.Targets()})


async def guest(live: LiveServer) -> None:
    await update(live, "ada", kind=common_pb2.USER_KIND_GUEST)


async def one_time_required(live: LiveServer) -> None:
    await live.change_policy(access_pass={"one_time_required": True})


CHANGES = {
    switched_off: Reason.METHOD_DISABLED,
    no_target: Reason.METHOD_NOT_TARGETED,
    guest: Reason.ACCESS_PASS_GUEST,
    one_time_required: Reason.ACCESS_PASS_ONE_TIME_REQUIRED,
}


async def review(live: LiveServer, session: Metadata) -> security_info_pb2.GetSecurityInfoResponse:
    request = security_info_pb2.GetSecurityInfoRequest()
    told: security_info_pb2.GetSecurityInfoResponse = await answer(
        live.connection.security_info.GetSecurityInfo(request, metadata=session, timeout=LIMIT)
    )
    return told


async def devices_of(live: LiveServer, user_id: str) -> int:
    return len(await rows(live, Device, {"user_id": user_id}))


@pytest.mark.parametrize("change", CHANGES)
async def test_t2_t14_what_policy_takes_away_the_session_of_a_pass_loses_at_once(live: LiveServer, change: Change):
    user_id = await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    begun = await begin(live, session)
    await change(live)
    with refused(CHANGES[change], status=grpc.StatusCode.FAILED_PRECONDITION):
        await begin(live, session)
    assert (await live.audit("registration.begin"))[-1].outcome == CHANGES[change].value
    with refused(CHANGES[change], status=grpc.StatusCode.FAILED_PRECONDITION):
        await complete(live, begun)
    assert (await live.audit("registration.complete"))[-1].outcome == CHANGES[change].value
    assert await devices_of(live, user_id) == 0


async def test_t2_sessions_that_were_approved_do_not_mind_the_policy_of_passes(live: LiveServer):
    approved = await live.signed_in(await live.person("ada"))
    begun = await begin(live, approved.metadata)
    await switched_off(live)
    await complete(live, begun)
    await complete(live, await begin(live, approved.metadata))


async def test_t2_what_is_given_back_in_time_is_registered(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada", one_time=True))
    begun = await begin(live, session)
    await switched_off(live)
    with refused(Reason.METHOD_DISABLED):
        await complete(live, begun)
    await live.change_policy(access_pass={"enabled": True, "one_time_required": True})
    await complete(live, begun)


async def test_strangers_who_kill_a_pass_end_nobodys_registration_P18(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    for _ in range(5):
        with refused(Reason.ACCESS_PASS_REFUSED):
            await live.access_pass_sign_in("ada", "AAAA2222")
    await complete(live, await begin(live, session))


# whose pass it may be


@pytest.mark.parametrize("used", [False, True])
async def test_t5_a_pass_does_not_outlive_the_role_it_was_made_for_P16(live: LiveServer, used: bool):
    """Whoever made it for a member, and knows its code, might not make one for an administrator."""
    await live.create_user("bob")
    clerk = await live.signed_in(await live.person("clerk", Role.AUTHENTICATION_ADMINISTRATOR), app_id="console")
    code = await live.issue_pass("bob", clerk.metadata)
    if used:
        await live.access_pass_sign_in("bob", code)
    made = await live.listed_pass("bob")
    await update(live, "bob", display_name="Bob")
    await live.access_pass_sign_in("bob", code)  # the control: nothing else of a user matters
    await update(live, "bob", role=admin_pb.ROLE_GLOBAL_ADMINISTRATOR)
    with refused(Reason.ACCESS_PASS_REFUSED, status=grpc.StatusCode.UNAUTHENTICATED):
        await live.access_pass_sign_in("bob", code)
    record = (await live.audit("access_pass.delete"))[-1]
    assert (record.subject, record.outcome, json.loads(record.details)["reason"]) == (
        made.access_pass_id,
        "ok",
        "role_changed",
    )
    with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
        await live.issue_pass("bob", clerk.metadata)
    await live.access_pass_sign_in("bob", await live.issue_pass("bob"))


# sessions and their passes


async def test_t8_registrations_that_nobody_finishes_are_bounded(live: LiveServer):
    for name in ("ada", "bob"):
        await live.create_user(name)
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    begun = [await begin(live, session) for _ in range(OPEN_AT_ONCE)]
    live.clock.advance(60)
    with refused(Reason.THROTTLED, status=grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
        await begin(live, session)
    assert isinstance(refusal.error, ThrottledError)
    assert refusal.error.retry_after == LIFETIME_SECONDS - 60
    assert (await live.audit("registration.begin"))[-1].outcome == Reason.THROTTLED.value
    await begin(live, await live.pass_session("bob", await live.issue_pass("bob")))  # nobody else minds
    await complete(live, begun[0])
    await begin(live, session)
    live.clock.advance(LIFETIME_SECONDS - 60)
    await begin(live, session)


async def test_t8_a_session_whose_pass_is_gone_is_over_whatever_the_clock_says_P20(live: LiveServer):
    user_id = await live.create_user("ada")
    binding = admin_pb.DeviceBinding(aaguid=MODEL_NAME)
    session = await live.pass_session("ada", await live.issue_pass("ada", one_time=True, binding=binding))
    begun = await begin(live, session)
    live.clock.advance(3600)
    code = await live.issue_pass("ada")  # the session was over by then, so nothing was there to be ended
    live.clock.advance(-3599)
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await complete(live, begun)
    for act in (begin, review):
        with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
            await act(live, session)
    assert await devices_of(live, user_id) == 0
    await complete(live, await begin(live, await live.pass_session("ada", code)))


async def test_t8_no_tpm_is_prepared_for_a_session_that_has_ended_KI1(server_template: Path, tmp_path: Path):
    """Neither a certificate is made for it, nor is anybody asked to make up a PIN."""
    async with live_server(server_template, tmp_path, tpm=MAKER.settings(tmp_path)) as live:
        await live.create_user("ada")
        for gone, reason in (
            (switched_off, Reason.METHOD_DISABLED),
            (delete_pass, Reason.SESSION_REVOKED),
        ):
            session = await live.pass_session("ada", await live.issue_pass("ada"))
            made, other = await begin_tpm(live, session, MAKER.tpm()), await begin_tpm(live, session, MAKER.tpm())
            await other.prepare()
            await gone(live)
            with refused(reason):
                await made.prepare()
            record = (await live.audit("registration.prepare"))[-1]
            assert (record.subject, record.outcome) == (made.device_id, reason.value)
            with refused(reason):
                await other.complete(other.completion())
            if gone is switched_off:
                await live.change_policy(access_pass={"enabled": True})
                await other.complete(other.completion())
                await delete_pass(live)


async def delete_pass(live: LiveServer) -> None:
    await live.administer("DeleteAccessPass", admin_pb.DeleteAccessPassRequest(username="ada"))
