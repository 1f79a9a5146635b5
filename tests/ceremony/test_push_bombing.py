"""P1, P18 and PS5: whoever begins too many sign-ins, or was reported, reaches nobody, and keeps nobody else out."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import pytest

from keyvouch.errors import KeyvouchError, Reason, ThrottledError
from keyvouch.statement import Decision
from keyvouch.v1 import common_pb2
from keyvouch_bench.device import PromptStream
from keyvouch_server.domain.model import SignInWay
from keyvouch_server.domain.oversight_model import Block, RiskEvent, RiskKind, Throttle
from keyvouch_server.use_cases.initiators import BLOCK_SECONDS, INITIATOR
from support.key_desk import begin_with_key, registered_key
from support.live_server import LiveServer, Person, refused
from support.own_sign_in import DeviceDesk
from support.strangers import CAFE, OFFICE, Answerer, Caller, known_client, row_of, user_of


async def outcome_of(caller: Caller, username: str, **wanted: object) -> str:
    """`ok`, or the reason a request was refused with."""
    try:
        await caller.begins(username, **wanted)  # type: ignore[arg-type]
    except KeyvouchError as error:
        return error.reason.value
    return "ok"


async def prompts_on(stream: PromptStream) -> int:
    """How many prompts reached the device. Ends the stream."""
    count = 0
    try:
        async with asyncio.timeout(0.3):
            while True:
                count += (await stream.read()).WhichOneof("event") == "prompt"
    except TimeoutError:
        return count


async def risks(live: LiveServer, kind: RiskKind) -> list[RiskEvent]:
    return await live.app.store.read(lambda tx: tx.find(RiskEvent, {"kind": kind}))


async def report(live: LiveServer, person: Person, caller: Caller) -> None:
    """A stranger begins a sign-in, and the person says that it was not them."""
    begun = await caller.begins(person.username)
    prompt = await person.stream.prompt()
    assert prompt.prompt_id == begun.prompts[0].id
    outcome = await person.stream.send(person.device.refuse(prompt, Decision.REPORT))
    assert (outcome.accepted, outcome.state) == (True, common_pb2.SIGN_IN_STATE_REPORTED)


# P1


async def test_of_a_thousand_begins_in_a_minute_three_reach_the_device_P1(live: LiveServer) -> None:
    ada, bob = await live.person("ada"), await live.person("bob")
    outcomes: Counter[str] = Counter()
    for number in range(1000):
        if number % 51 == 50:
            live.clock.advance(3)
        outcomes[await outcome_of(Caller.at(live, f"203.0.113.{number % 200}"), "ada")] += 1
        if number == 500:
            assert (await live.signed_in(bob)).session.username == "bob"
    assert outcomes == {"ok": 3, Reason.THROTTLED.value: 997}
    assert await prompts_on(ada.stream) == 3
    assert len(await risks(live, RiskKind.PUSH_BOMBING)) == 1
    told = [r for r in await live.audit("risk.note") if '"push_bombing"' in r.details]
    assert len(told) == 1


async def test_the_refusal_is_a_status_that_says_when_to_come_again_P1(live: LiveServer) -> None:
    await live.person("ada")
    for _ in range(3):
        await live.begin("ada")
    with refused(Reason.THROTTLED, status=grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
        await live.begin("ada")
    assert isinstance(refusal.error, ThrottledError)
    assert refusal.error.retry_after == 60


async def test_one_initiator_begins_so_many_for_all_users_together_P1(live: LiveServer) -> None:
    ada = await live.person("ada")
    office = Caller.at(live, OFFICE)
    outcomes = [await outcome_of(office, f"nobody{number // 3}") for number in range(INITIATOR.burst + 5)]
    assert Counter(outcomes) == {"ok": INITIATOR.burst, Reason.THROTTLED.value: 5}
    assert outcomes[-5:] == [Reason.THROTTLED.value] * 5
    assert await outcome_of(Caller.at(live, OFFICE), "ada") == Reason.THROTTLED.value  # whatever key it shows
    assert await outcome_of(Caller.at(live, CAFE), "ada") == "ok"
    live.clock.advance(1)
    assert [await outcome_of(office, f"other{number}") for number in range(11)] == ["ok"] * 10 + ["throttled"]
    assert ada.username == "ada"


async def test_an_approval_gives_back_the_users_budget_and_one_of_the_initiators_P1(live: LiveServer) -> None:
    ada, office = await live.person("ada"), Caller.at(live, OFFICE)
    device = await Answerer.of(live, ada)

    async def taken() -> int:
        row = await live.app.store.read(lambda tx: tx.get(Throttle, key=INITIATOR.key(OFFICE)))
        assert row is not None
        return (row.arrival - live.clock.now() * 1000) // INITIATOR.interval

    for _ in range(2):
        begun = await office.begins("ada")
    begun = await office.begins("ada")
    assert await taken() == 3
    assert (await device.approves(begun, begun.sign_in.number)).refusal is None
    assert await taken() == 2
    for _ in range(3):
        await office.begins("ada")
    assert await outcome_of(office, "ada") == Reason.THROTTLED.value


async def test_one_network_of_ipv6_is_one_initiator_and_the_loopback_is_none_P1(live: LiveServer) -> None:
    for number in range(INITIATOR.burst):
        await Caller.at(live, f"2001:db8::{number + 1:x}").begins(f"nobody{number}")
    assert await outcome_of(Caller.at(live, "2001:db8::ffff"), "somebody") == Reason.THROTTLED.value
    assert await outcome_of(Caller.at(live, "2001:db8:0:1::1"), "somebody") == "ok"
    for number in range(INITIATOR.burst + 5):
        await Caller.at(live, "::1" if number % 2 else "127.0.0.1").begins(f"other{number}")


# P18


async def test_a_stranger_keeps_strangers_out_and_nobody_who_is_known_P18(live: LiveServer) -> None:
    """Ten thousand requests, of which most are refused: the owner comes in by every way that strangers have not."""
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    opened = await live.approved(person)
    known = await known_client(live, "ada")
    desk = DeviceDesk.open(ada, live.stack)
    attackers = [Caller.at(live, f"198.51.100.{number}") for number in range(100)]
    outcomes: Counter[str] = Counter()
    for burst in range(100):
        ways = [SignInWay.SECURITY_KEY if burst % 5 == 4 else SignInWay.PROMPT] * 100
        tried = [outcome_of(one, "ada", way=way) for one, way in zip(attackers, ways, strict=True)]
        outcomes.update(await asyncio.gather(*tried))
    assert outcomes == {"ok": 6, Reason.THROTTLED.value: 9994}
    begun = await Caller.at(live, OFFICE).begins("ada", known_client=known)
    device = await Answerer.of(live, person)
    assert (await device.approves(begun, begun.sign_in.number)).refusal is None
    assert (await desk.signed_in()).session.acr == "phishing-resistant"
    key = await Caller.at(live, OFFICE).begins("ada", known_client=known, way=SignInWay.SECURITY_KEY)
    assert key.prompts
    assert opened.number


async def test_a_strangers_key_request_ends_no_known_clients_P18(live: LiveServer) -> None:
    await registered_key(live)
    known = await known_client(live, "ada")
    own = await Caller.at(live, OFFICE).begins("ada", known_client=known, way=SignInWay.SECURITY_KEY)
    await begin_with_key(live, "ada")
    assert (await row_of(live, own.sign_in.id)).state.value == "pending"
    newer = await Caller.at(live, OFFICE).begins("ada", known_client=known, way=SignInWay.SECURITY_KEY)
    assert (await row_of(live, own.sign_in.id)).state.value == "superseded"
    assert newer.sign_in.known_client


async def test_wrong_numbers_rest_prompts_and_no_other_way_P18(live: LiveServer) -> None:
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    await live.change_policy(approval={"number_misses": 2})
    known = await known_client(live, "ada")
    device, office = await Answerer.of(live, person), Caller.at(live, OFFICE)
    for number in range(2):
        begun = await office.begins("ada", known_client=known if number else "")
        wrong = office.opened(begun).wrong_number
        refusal = (await device.approves(begun, wrong)).refusal
        assert refusal is not None
        assert refusal.reason is Reason.NUMBER_MISMATCH
    for token in ("", known):
        assert await outcome_of(office, "ada", known_client=token) == Reason.THROTTLED.value
    assert len(await risks(live, RiskKind.NUMBERS_GUESSED)) == 1
    assert (await DeviceDesk.open(ada, live.stack).signed_in()).session.username == "ada"
    assert await outcome_of(office, "ada", way=SignInWay.SECURITY_KEY) == "ok"
    live.clock.advance(900)
    assert await outcome_of(office, "ada") == "ok"


async def test_strangers_at_an_address_keep_no_known_client_there_out_P18(live: LiveServer) -> None:
    """An app has many people behind one address: who uses that up as a stranger does not shut out those it knows."""
    ada = await live.person("ada")
    known, office = await known_client(live, "ada"), Caller.at(live, OFFICE)
    for number in range(INITIATOR.burst):
        await office.begins(f"nobody{number // 3}")
    assert await outcome_of(office, "ada") == Reason.THROTTLED.value
    begun = await Caller.at(live, OFFICE).begins("ada", known_client=known)
    device = await Answerer.of(live, ada)
    assert (await device.approves(begun, begun.sign_in.number)).refusal is None
    assert await outcome_of(office, "ada") == Reason.THROTTLED.value  # nothing was given back that was not taken
    assert await outcome_of(office, "ada", known_client=known + "A") == Reason.THROTTLED.value


async def test_a_report_of_a_stranger_keeps_no_known_client_of_that_address_out_P18(live: LiveServer) -> None:
    ada = await live.person("ada")
    known = await known_client(live, "ada")
    await report(live, ada, attacker := Caller.at(live, OFFICE))
    assert await outcome_of(Caller.at(live, OFFICE), "ada") == Reason.THROTTLED.value
    assert await outcome_of(Caller.at(live, OFFICE), "ada", known_client=known) == "ok"
    assert await outcome_of(attacker, "ada", known_client=known) == Reason.INITIATOR_BLOCKED.value  # the key is shut


async def test_a_report_of_a_known_client_shuts_its_address_to_all_P1(live: LiveServer) -> None:
    """Whoever has stolen what makes a client known is reported like others, and comes with a new key at once."""
    ada = await live.person("ada")
    known = await known_client(live, "ada")
    await Caller.at(live, CAFE).begins("ada", known_client=known)
    prompt = await ada.stream.prompt()
    assert (await ada.stream.send(ada.device.refuse(prompt, Decision.REPORT))).accepted
    assert await outcome_of(Caller.at(live, CAFE), "ada", known_client=known) == Reason.INITIATOR_BLOCKED.value
    assert await outcome_of(Caller.at(live, CAFE), "ada") == Reason.THROTTLED.value
    assert await outcome_of(Caller.at(live, OFFICE), "ada", known_client=known) == "ok"


async def test_a_stranger_is_not_told_that_wrong_numbers_were_typed_P12(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.change_policy(approval={"number_misses": 1})
    device, office, known = await Answerer.of(live, ada), Caller.at(live, OFFICE), await known_client(live, "ada")
    begun = await office.begins("ada")
    assert (await device.approves(begun, office.opened(begun).wrong_number)).refusal is not None
    with pytest.raises(ThrottledError, match="too many sign-ins were begun"):
        await office.begins("ada")
    with pytest.raises(ThrottledError, match="wrong numbers"):
        await office.begins("ada", known_client=known)


# PS5: "this was not me"


async def test_ps5_a_report_flags_the_user_blocks_the_initiator_and_tells_administrators_P1(live: LiveServer) -> None:
    ada, bob = await live.person("ada"), await live.person("bob")
    admin = await live.admin()
    attacker, other = Caller.at(live, CAFE), Caller.at(live, OFFICE)
    await report(live, ada, attacker)
    event = (await risks(live, RiskKind.REPORTED))[0]
    assert (event.address, event.closed_at) == (CAFE, 0)
    assert (await user_of(live, "ada")).flagged_at == live.clock.now()
    before = len(await live.audit("sign_in.begin"))
    for _ in range(5):
        with pytest.raises(ThrottledError) as refusal:
            await attacker.begins("ada")
        assert refusal.value.reason is Reason.THROTTLED  # as everybody is told
    assert [r.outcome for r in (await live.audit("sign_in.begin"))[before:]] == ["initiator_blocked"] * 5
    assert await outcome_of(Caller.at(live, CAFE), "ada") == "throttled"  # with another key
    moved = Caller(live, OFFICE, attacker.key)
    assert await outcome_of(moved, "ada") == "throttled"  # from another address, with that key
    assert await outcome_of(attacker, "bob") == "ok"
    assert await outcome_of(other, "ada") == "ok"
    assert admin
    assert bob.username == "bob"


async def test_ps5_a_block_ends_after_an_hour_and_names_nobody(live: LiveServer) -> None:
    ada, attacker = await live.person("ada"), Caller.at(live, CAFE)
    await report(live, ada, attacker)
    owner = await user_of(live, "ada")
    rows = await live.app.store.read(lambda tx: tx.find(Block, {"user_id": owner.id}))
    assert len(rows) == 2
    assert all(len(row.key) == 64 and CAFE not in row.key for row in rows)
    live.clock.advance(BLOCK_SECONDS - 1)
    assert await outcome_of(attacker, "ada") == "throttled"
    live.clock.advance(1)
    await report(live, ada, attacker)  # again, over the rows there are
    assert await outcome_of(attacker, "ada") == "throttled"
    live.clock.advance(BLOCK_SECONDS)
    await live.app.sign_ins.expire()
    assert await live.app.store.read(lambda tx: tx.count(Block, {})) == 0


async def test_ps5_administrators_are_told_at_their_next_sign_in(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.admin()
    administrator = live.people["admin"]
    for number in range(2):
        await report(live, ada, Caller.at(live, f"192.0.2.{number + 1}"))
    opened = await live.approved(administrator)
    redeemed = await live.app.redemptions.redeem(opened.begun.sign_in_id, opened.begun.sign_in_token, opened.proof())
    assert redeemed.open_risk_events == 2
    own = await live.approved(ada)
    mine = await live.app.redemptions.redeem(own.begun.sign_in_id, own.begun.sign_in_token, own.proof())
    assert mine.open_risk_events == 0


async def test_ps5_from_the_loopback_only_the_key_is_blocked(live: LiveServer) -> None:
    ada = await live.person("ada")
    await report(live, ada, attacker := Caller.at(live, "127.0.0.1"))
    assert await outcome_of(attacker, "ada") == "throttled"
    assert await outcome_of(Caller.at(live, "127.0.0.1"), "ada") == "ok"
