"""What is durable is told to the streams that wait for it, also where whoever did it does not wait for the reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import Reason
from keyvouch.ids import SignInId
from keyvouch.proofs import spki_of
from keyvouch.statement import Decision
from keyvouch.v1 import sign_in_pb2
from keyvouch_server.domain.model import Device, DeviceFate, Role, SignIn, SignInState
from keyvouch_server.rpc.prompts import answer_of
from keyvouch_server.rpc.sign_in_stream import request_of
from keyvouch_server.use_cases.access_passes import OldSessions, PassWish
from keyvouch_server.use_cases.directory import UserWish
from keyvouch_server.use_cases.registration_completion import Departing, RegistrationAnswer
from support.live_server import TENANT, LiveServer, OpenSignIn, Person, refused
from support.registering import begin
from support.strangers import CAFE, OFFICE, Caller


async def left_alone(act: Coroutine[Any, Any, object], is_durable: Callable[[], Awaitable[bool]]) -> None:
    """Do it, and go away in the moment in which it is durable, before the reply."""
    doing = asyncio.create_task(act)
    async with asyncio.timeout(20):
        while not await is_durable():  # noqa: ASYNC110 - nothing tells of a row before its writer is told
            await asyncio.sleep(0)
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing


def watching(live: LiveServer, opened: OpenSignIn) -> Callable[[], Awaitable[SignInState]]:
    """Waits for the next state in which somebody who watches the sign-in is told that it is."""
    told: asyncio.Queue[SignIn | None] = asyncio.Queue()
    live.app.relay.watch(SignInId(opened.begun.sign_in_id), told.put_nowait)

    async def heard() -> SignInState:
        async with asyncio.timeout(5):
            row = await told.get()
        assert row is not None
        return row.state

    return heard


def has_left(live: LiveServer, opened: OpenSignIn, state: SignInState) -> Callable[[], Awaitable[bool]]:
    """Whether the row of the sign-in is in another state by now."""

    async def look() -> bool:
        row = await live.app.store.read(lambda tx: tx.get(SignIn, id=opened.begun.sign_in_id))
        return row is not None and row.state is not state

    return look


async def cut(person: Person) -> None:
    """Its stream ends, and with the reason."""
    with refused(Reason.DEVICE_REMOVED):
        async with asyncio.timeout(5):
            while True:
                await person.stream.read()


def is_gone(live: LiveServer, person: Person) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return not await live.app.store.read(lambda tx: tx.count(Device, {"id": person.device.device_id}))

    return look


@pytest.mark.parametrize("by", ["its owner", "an administrator", "itself"])
async def test_ps18_a_removal_cuts_the_stream_although_nobody_waits_for_the_reply(live: LiveServer, by: str):
    ada = await live.person("ada")
    token = (await live.signed_in(ada)).tokens.access_token
    if by == "an administrator":
        token = (await live.admin())[0][1].partition(" ")[2]
    caller = await live.app.authenticate(token)
    device = await live.app.store.read(lambda tx: tx.get(Device, id=ada.device.device_id))
    assert device is not None
    devices = live.app.devices
    act = {
        "its owner": lambda: devices.remove_own(caller, device.id),
        "an administrator": lambda: devices.remove_as_administrator(caller, device.id),
        "itself": lambda: devices.unregister(device),
    }[by]
    await left_alone(act(), is_gone(live, ada))
    await cut(ada)


async def test_ps19_a_lost_device_is_cut_although_the_new_one_does_not_wait_for_the_reply(live: LiveServer):
    ada = await live.person("ada")
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    sent, departing = begun.answer, (Departing(ada.device.device_id, DeviceFate.LOST),)
    given = RegistrationAnswer(sent.client_data_json, sent.attestation_object, sent.channel_proof, departing=departing)
    token = begun.begun.registration_token
    await left_alone(live.app.registrations.complete(token, given), is_gone(live, ada))
    await cut(ada)
    assert (await live.app.registrations.complete(token, given)).departed == (ada.device.device_id,)  # control


async def test_ps18_a_user_who_is_deleted_is_cut_although_nobody_waits_for_the_reply(live: LiveServer):
    ada = await live.person("ada")
    caller = await live.app.authenticate((await live.admin())[0][1].partition(" ")[2])
    await left_alone(live.app.directory.delete(caller, "ada"), is_gone(live, ada))
    await cut(ada)


@pytest.mark.parametrize("decision", [Decision.APPROVE, Decision.DENY])
async def test_ps21_a_decision_is_told_to_the_client_although_the_device_is_gone(live: LiveServer, decision: Decision):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    approve = decision is Decision.APPROVE
    answer = ada.device.approve(prompt, opened.number) if approve else ada.device.refuse(prompt, decision)
    device = await live.app.store.read(lambda tx: tx.get(Device, id=ada.device.device_id))
    assert device is not None
    heard = watching(live, opened)
    is_decided = has_left(live, opened, SignInState.PENDING)
    await left_alone(live.app.decisions.answer(device, answer_of(answer)), is_decided)
    assert await heard() is (SignInState.APPROVED if approve else SignInState.DENIED)


async def test_ki4_a_superseded_request_hears_of_it_and_a_device_of_the_new_one_although_nobody_waits(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    first = await ada.stream.prompt()
    heard = watching(live, opened)
    is_superseded = has_left(live, opened, SignInState.PENDING)
    context = sign_in_pb2.SignInContext(
        tenant=TENANT, username="ada", app_id="shop", app_name="Shop", audience="keyvouch"
    )
    key = spki_of(ec.generate_private_key(ec.SECP256R1()).public_key())
    await left_alone(live.app.sign_ins.begin(request_of(context, key, "ipv4:127.0.0.1:1")), is_superseded)
    assert await heard() is SignInState.SUPERSEDED
    async with asyncio.timeout(5):
        assert (await ada.stream.read()).withdrawn.prompt_id == first.prompt_id
        assert (await ada.stream.read()).prompt.prompt_id not in ("", first.prompt_id)


async def test_ki4_who_begins_first_hears_of_the_next_request_although_its_client_has_gone_already(live: LiveServer):
    """Both are durable in one moment. The second is not to be told before the first one's caller has subscribed."""
    await live.person("ada")
    told: asyncio.Queue[SignIn | None] = asyncio.Queue()

    async def begin_and_follow() -> None:
        begun = await Caller.at(live, OFFICE).begins("ada")
        live.app.relay.watch(begun.sign_in.id, told.put_nowait)

    first = asyncio.create_task(begin_and_follow())
    second = asyncio.create_task(Caller.at(live, CAFE).begins("ada"))
    await asyncio.sleep(0)
    second.cancel()
    await first
    async with asyncio.timeout(5):
        heard = await told.get()
    assert heard is not None
    assert heard.state is SignInState.SUPERSEDED


async def test_ps21_a_consumption_is_told_although_nobody_waits_for_the_reply(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.approved(ada)
    heard = watching(live, opened)
    is_consumed = has_left(live, opened, SignInState.APPROVED)
    await left_alone(live.app.redemptions.consume(SignInId(opened.begun.sign_in_id)), is_consumed)
    assert await heard() is SignInState.CONSUMED


@pytest.mark.parametrize("by", ["its owner", "a deleted pass", "a replaced pass", "another role"])
async def test_ps18_who_waits_with_an_approval_hears_that_it_counts_no_more(live: LiveServer, by: str):
    ada = await live.person("ada")
    if by.endswith("pass"):
        await live.issue_pass_again("ada")
    session = await live.signed_in(ada)
    opened = await live.approved(ada)
    heard = watching(live, opened)
    owner = await live.app.authenticate(session.tokens.access_token)
    administrator = await live.app.authenticate((await live.admin())[0][1].partition(" ")[2])
    app = live.app
    await {
        "its owner": lambda: app.sessions.revoke_others(owner),
        "a deleted pass": lambda: app.passes.delete(administrator, "ada"),
        "a replaced pass": lambda: app.passes.replace(administrator, "ada", PassWish(), OldSessions.REVOKE),
        "another role": lambda: app.directory.update(administrator, "ada", UserWish(role=Role.GLOBAL_READER)),
    }[by]()
    assert await heard() is SignInState.CANCELLED
    with refused(Reason.SIGN_IN_CANCELLED):
        await opened.redeem()
