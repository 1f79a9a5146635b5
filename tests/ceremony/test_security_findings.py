"""What a security review found, each as the attack that worked: it must not work again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import Reason
from keyvouch.ids import SESSION, DeviceId, SessionId, new_id
from keyvouch.proofs import spki_of
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, sign_in_pb2
from keyvouch.v1 import enrolment_pb2 as enrolment
from keyvouch_bench.device import SoftKey, completion
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Device, Registration, Role, Session, User
from keyvouch_server.ports import Transaction
from keyvouch_server.rpc.sign_in_stream import BACKLOG, SignInStream
from keyvouch_server.use_cases.access_passes import PassWish
from keyvouch_server.use_cases.judgement import Answer, Assertion
from keyvouch_server.use_cases.registration import RETENTION_SECONDS
from keyvouch_server.use_cases.world import Caller
from support.live_server import LIMIT, TENANT, LiveServer, Metadata, OpenSignIn, bearer, refused

# P12: who exists


async def ends_of_two(live: LiveServer, first: str, second: str) -> tuple[int, int]:
    """States of an older and a newer request for one name."""
    older, newer = await live.begin(first), await live.begin(second)
    return await older.state(), await newer.state()


async def test_a_newer_request_ends_the_older_one_also_for_unknown_names_P12(live: LiveServer) -> None:
    await live.person("ada")
    await live.create_user("bob")
    known = await ends_of_two(live, "ada", "ada")
    assert known == (common_pb2.SIGN_IN_STATE_SUPERSEDED, common_pb2.SIGN_IN_STATE_PENDING)
    assert await ends_of_two(live, "bob", "BOB ") == known
    assert await ends_of_two(live, "nobody", "NOBODY ") == known
    assert (await ends_of_two(live, "nobody", "somebody"))[0] == common_pb2.SIGN_IN_STATE_PENDING
    elsewhere = await live.begin("nobody", tenant="elsewhere"), await live.begin("nobody", tenant="Elsewhere")
    assert (await elsewhere[0].state(), await elsewhere[1].state()) == known


async def test_a_watcher_of_an_unknown_name_is_told_of_the_newer_request_P12(live: LiveServer) -> None:
    older = await live.begin("nobody")
    call = older.watch()
    assert (await answer(call.read())).state == common_pb2.SIGN_IN_STATE_PENDING
    await live.begin("nobody")
    assert (await answer(call.read())).state == common_pb2.SIGN_IN_STATE_SUPERSEDED


async def until_throttled(live: LiveServer, username: str) -> tuple[int, object]:
    """How many requests were taken, and what the refusal of the next one said."""
    for taken in range(50):
        try:
            await live.begin(username)
        except Exception as error:  # noqa: BLE001 - it is compared as a whole
            details = getattr(error, "reason", None), str(error), getattr(error, "retry_after", None)
            return taken, (details, getattr(error, "metadata", None))
    raise AssertionError("nobody was throttled")


async def test_unknown_names_are_throttled_like_known_ones_P12(live: LiveServer) -> None:
    await live.person("ada")
    await live.change_policy(approval={"begins_per_minute": 4})
    live.clock.advance(-live.clock.now() % 60)
    known, unknown = await until_throttled(live, "ada"), await until_throttled(live, "nobody")
    assert known == unknown
    assert known[0] == 4
    assert (await until_throttled(live, "nobody"))[0] == 0
    assert (await until_throttled(live, "Nobody "))[0] == 0
    assert (await until_throttled(live, "somebody"))[0] == 4
    live.clock.advance(60)
    again = await until_throttled(live, "nobody")
    assert again == await until_throttled(live, "ada") == (1, known[1])


# G3, G4: work and memory of anonymous callers


async def test_long_names_and_codes_are_refused_without_work_G3(live: LiveServer) -> None:
    accents = "a" + "\u0301" * 10_000 + "\u0323" * 10_000
    for tenant, username, code in (
        (TENANT, "admin", accents),
        (TENANT, accents, "ABCDEFGH"),
        (accents, "admin", "ABCDEFGH"),
    ):
        started = time.perf_counter()
        with refused(Reason.ACCESS_PASS_REFUSED, status=grpc.StatusCode.UNAUTHENTICATED):
            await live.access_pass_sign_in(username, code, tenant)
        assert time.perf_counter() - started < 0.3  # half a second and more before
    padded = " - ".join(live.administrator_pass)
    assert (await live.access_pass_sign_in(" ADMIN ", padded)).tokens.access_token


async def test_a_client_that_never_reads_is_not_read_from_either_G4(live: LiveServer) -> None:
    key, sent, wanted = ec.generate_private_key(ec.SECP256R1()).public_key(), 0, 4 * BACKLOG
    context = sign_in_pb2.SignInContext(tenant=TENANT, username="nobody", app_id="")

    async def requests() -> AsyncIterator[sign_in_pb2.SignInSessionRequest]:
        nonlocal sent
        for tag in range(wanted):
            sent += 1
            yield sign_in_pb2.SignInSessionRequest(begin=sign_in_pb2.SignInSessionBegin(tag=tag, context=context))
            await asyncio.sleep(0)

    stream = SignInStream(live.app.sign_ins, live.app.redemptions, live.app.relay, spki_of(key), "ipv4:127.0.0.1:1")
    reader = asyncio.create_task(stream.read(requests()))
    await asyncio.sleep(0.5)
    assert BACKLOG <= sent <= BACKLOG + 1
    answered = 0
    while (response := await asyncio.wait_for(stream.next(), LIMIT)) is not None:
        assert response.refusal.reason == Reason.FIELD_INVALID.value
        answered += 1
    assert answered == sent == wanted
    await reader
    stream.close()


# PS18: nothing survives a removal


async def test_more_sessions_than_a_page_all_end_with_their_device_PS18(live: LiveServer) -> None:
    ada = await live.person("ada")
    signed_in = await live.signed_in(ada)
    row = await live.app.store.read(lambda tx: tx.get(Session, id=signed_in.session.session_id))
    assert row is not None

    async def many(tx: Transaction) -> None:
        for number in range(2100):
            session_id = SessionId(new_id(SESSION, number.to_bytes(16, "big")))
            await tx.insert(replace(row, id=session_id))

    await live.app.store.write(many)
    request = admin_pb.AdminRemoveDeviceRequest(device_id=ada.device.device_id)
    ended = await live.administer("AdminRemoveDevice", request)
    left = await live.app.store.read(lambda tx: tx.count(Session, {"device_id": row.device_id, "revoked_at": 0}))
    assert (ended.revoked_sessions, left) == (2101, 0)
    with refused(Reason.SESSION_REVOKED):
        await signed_in.introspect()


async def prepared_answer(live: LiveServer, username: str) -> tuple[OpenSignIn, Device, Answer]:
    """An approval that is signed and not sent yet."""
    person = await live.person(username)
    opened = await live.begin(username)
    given = person.device.approve(await person.stream.prompt(), opened.number)
    a = given.assertion
    assertion = Assertion(a.credential_id, a.client_data_json, a.authenticator_data, a.signature, a.user_handle)
    device = await live.app.store.read(lambda tx: tx.get(Device, id=person.device.device_id))
    assert device is not None
    return opened, device, Answer(given.prompt_id, given.statement, assertion)


async def test_an_approval_that_races_a_removal_counts_for_nothing_and_is_audited_W5(live: LiveServer) -> None:
    opened, device, approval = await prepared_answer(live, "ada")
    _, answered = await asyncio.gather(live.app.devices.unregister(device), live.app.decisions.answer(device, approval))
    assert answered.refusal is not None
    assert await opened.state() == common_pb2.SIGN_IN_STATE_PENDING
    assert [r.outcome for r in await live.audit("sign_in.answer")] == [answered.refusal.reason.value]
    control, device, approval = await prepared_answer(live, "bob")
    assert (await live.app.decisions.answer(device, approval)).refusal is None
    assert (await control.redeem()).session.username == "bob"


async def test_a_removed_device_gets_no_certificate_however_late_it_was_admitted_PS18(live: LiveServer) -> None:
    _, device, _ = await prepared_answer(live, "ada")
    await live.app.devices.renew(device)
    await live.app.devices.unregister(device)
    with refused(Reason.DEVICE_REMOVED):
        await live.app.devices.renew(device)  # it was admitted before
    assert len(await live.audit("device.renew")) == 1


async def caller(live: LiveServer, username: str) -> Caller:
    """Who calls in the name of this administrator."""
    signed_in = await live.signed_in(live.people[username])
    row = await live.app.store.read(lambda tx: tx.get(Session, id=signed_in.session.session_id))
    user = await live.app.store.read(lambda tx: tx.get(User, id=signed_in.session.user_id))
    assert row is not None
    assert user is not None
    return Caller(row, user)


async def test_administrators_who_delete_each_other_at_once_leave_one_PS18(live: LiveServer) -> None:
    await live.person("ada", Role.GLOBAL_ADMINISTRATOR)
    await live.person("bob", Role.GLOBAL_ADMINISTRATOR)
    ada, bob = await caller(live, "ada"), await caller(live, "bob")
    acts = live.app.directory
    done = await asyncio.gather(acts.delete(ada, "bob"), acts.delete(bob, "ada"), return_exceptions=True)
    assert not isinstance(done[0], BaseException)
    done += await asyncio.gather(
        acts.create(bob, "mallory", "", Role.GLOBAL_ADMINISTRATOR),  # he was admitted before
        live.app.passes.create(bob, "admin", PassWish()),
        return_exceptions=True,
    )
    assert [getattr(d, "reason", d) for d in done[1:]] == [Reason.SESSION_REVOKED] * 3
    await acts.create(ada, "mallory", "", Role.USER)


async def test_who_reaches_for_more_than_their_role_is_audited_P16(live: LiveServer) -> None:
    clerk = await live.signed_in(await live.person("ada", Role.AUTHENTICATION_ADMINISTRATOR))
    request = admin_pb.CreateAccessPassRequest(username="admin")
    with refused(Reason.ROLE_REQUIRED):
        await live.administer("CreateAccessPass", request, clerk.metadata)
    await live.create_user("bob")
    with_pass = await live.pass_session("bob", await live.issue_pass("bob", clerk.metadata))
    with refused(Reason.SESSION_PURPOSE):
        await live.administer("CreateAccessPass", request, with_pass)
    denied = await live.audit("call.denied")
    assert [(r.outcome, r.subject.rpartition("/")[2]) for r in denied] == [
        (Reason.ROLE_REQUIRED.value, "CreateAccessPass"),
        (Reason.SESSION_PURPOSE.value, "CreateAccessPass"),
    ]
    assert denied[0].actor == clerk.session.user_id
    assert {r.tenant_id for r in denied} == {clerk.session.tenant_id}


# registration


async def begun(
    live: LiveServer, session: Metadata, key: ec.EllipticCurvePrivateKey
) -> enrolment.BeginRegistrationResponse:
    """Begin a registration for this channel key."""
    request = enrolment.BeginRegistrationRequest(channel_public_key=spki_of(key.public_key()), display_name="d")
    return await answer(live.enrolment.BeginRegistration(request, metadata=session, timeout=LIMIT))


async def test_a_key_that_is_registered_already_is_refused_and_audited_T7(live: LiveServer) -> None:
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    credential, outcomes = None, []
    for _ in range(2):
        key = ec.generate_private_key(ec.SECP256R1())
        started = await begun(live, session, key)
        credential = credential or SoftKey(started.rp_id, started.user_handle)
        request = completion(started.statement, credential, key)
        token = (("authorization", f"Registration {started.registration_token}"),)
        try:
            await answer(live.enrolment.CompleteRegistration(request, metadata=token, timeout=LIMIT))
        except Exception as error:  # noqa: BLE001 - looked at below
            outcomes.append(getattr(error, "reason", error))
    assert outcomes == [Reason.CREDENTIAL_EXISTS]
    assert [r.outcome for r in await live.audit("registration.complete")][-2:] == ["ok", Reason.CREDENTIAL_EXISTS.value]


async def test_abandoned_registrations_are_forgotten_W1(live: LiveServer) -> None:
    ada = await live.person("ada")
    signed_in = await live.signed_in(ada)
    for _ in range(3):
        await begun(live, signed_in.metadata, ec.generate_private_key(ec.SECP256R1()))
    before = await live.app.store.read(lambda tx: tx.count(Registration, {}))
    await live.app.registrations.forget_abandoned()
    assert await live.app.store.read(lambda tx: tx.count(Registration, {})) == before
    live.clock.advance(RETENTION_SECONDS + 601)
    await live.app.registrations.forget_abandoned()
    assert await live.app.store.read(lambda tx: tx.count(Registration, {})) == before - 3


# refresh


async def test_an_old_refresh_token_costs_one_comparison_however_old_the_session_is_P14(live: LiveServer) -> None:
    signed_in = await live.signed_in(await live.person("ada"))
    first, session_id = signed_in.tokens.refresh_token, signed_in.session.session_id
    signed_in.tokens = await signed_in.refresh()
    ages = {"generation": 5_000_000, "previous_hash": bytes(32)}
    await live.app.store.write(lambda tx: tx.update(Session, {"id": session_id}, ages))
    started = time.perf_counter()
    for made_up in (first + "A", first.replace("_1.", "_4999998."), first.replace("_1.", "_."), f"kvr_{session_id}_x"):
        with refused(Reason.CREDENTIALS_INVALID):
            await signed_in.refresh(made_up)
    assert time.perf_counter() - started < 2.0  # ten seconds and more before
    await live.introspect(bearer(signed_in.tokens.access_token))
    with refused(Reason.SESSION_REVOKED):
        await signed_in.refresh(first)
    with refused(Reason.SESSION_REVOKED):
        await signed_in.introspect()


# streams that are given up


@pytest.mark.parametrize("seconds", [0.0, 0.05])
async def test_streams_that_are_given_up_leave_nothing_behind_G4(live: LiveServer, seconds: float) -> None:
    ada = await live.person("ada")
    opened = await live.begin("ada")
    call = opened.watch()
    await answer(call.read())
    await asyncio.sleep(seconds)
    device_id = DeviceId(ada.device.device_id)
    assert live.app.relay.is_connected(device_id)
    call.cancel()
    await ada.stream.__aexit__()
    for _ in range(100):
        if not live.app.relay.is_connected(device_id) and not live.app.relay._watchers:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a stream that was given up is still subscribed")
