"""The relay and its mailboxes; and the conditions of the store that only paging uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from keyvouch.ids import DeviceId, PromptId, SignInId
from keyvouch_server.domain.model import Prompt, SignIn, SignInState
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.ports import Above, AtMost, Below, Store
from keyvouch_server.relay import (
    MAILBOX,
    REMEMBERED,
    DeviceRemoved,
    FellBehind,
    Mailbox,
    OutcomeReady,
    PromptArrived,
    PromptWithdrawn,
    Relay,
)
from keyvouch_server.stores.memory import MemoryStore
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.use_cases.decisions import Answered
from support.sample_records import PROMPT, SIGN_IN

DEVICE, OTHER = DeviceId("dev_one"), DeviceId("dev_two")


def prompt(number: int, device: DeviceId = DEVICE) -> Prompt:
    return replace(PROMPT, id=PromptId(f"prm_{number}"), device_id=device)


def in_state(state: SignInState) -> SignIn:
    return replace(SIGN_IN, id=SignInId("sin_one"), state=state)


async def taken(mailbox: Mailbox) -> object:
    async with asyncio.timeout(1):
        return await mailbox.take()


async def empty(mailbox: Mailbox) -> bool:
    try:
        async with asyncio.timeout(0.02):
            await mailbox.take()
    except TimeoutError:
        return True
    return False


async def test_events_come_in_order_and_waiting_ends_with_the_first():
    mailbox = Mailbox()
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    for number in range(3):
        mailbox.put(PromptArrived(prompt(number), 2))
    assert await waiting == PromptArrived(prompt(0), 2)
    assert [await taken(mailbox) for _ in range(2)] == [PromptArrived(prompt(n), 2) for n in (1, 2)]
    assert await empty(mailbox)


async def test_a_full_mailbox_is_replaced_by_the_notice_that_it_was_full():
    mailbox = Mailbox()
    for number in range(MAILBOX):
        mailbox.put(PromptArrived(prompt(number), 2))
    mailbox.put(PromptArrived(prompt(MAILBOX), 2))
    assert await taken(mailbox) == FellBehind()
    assert await empty(mailbox)


async def test_as_many_events_as_fit_are_all_delivered():
    mailbox = Mailbox()
    for number in range(MAILBOX):
        mailbox.put(PromptArrived(prompt(number), 2))
    assert [await taken(mailbox) for _ in range(MAILBOX)] == [PromptArrived(prompt(n), 2) for n in range(MAILBOX)]


async def test_prompts_and_withdrawals_go_to_the_device_they_are_for():
    relay = Relay()
    with relay.device(DEVICE) as mine, relay.device(DEVICE) as second, relay.device(OTHER) as other:
        relay.prompt(prompt(1), 6)
        for mailbox in (mine, second):
            assert await taken(mailbox) == PromptArrived(prompt(1), 6)
        relay.sign_in(in_state(SignInState.PENDING), [prompt(1)])
        assert await empty(mine)
        relay.sign_in(in_state(SignInState.SUPERSEDED), [prompt(1), prompt(2, OTHER)])
        assert await taken(mine) == PromptWithdrawn(PromptId("prm_1"), SignInState.SUPERSEDED)
        assert await taken(other) == PromptWithdrawn(PromptId("prm_2"), SignInState.SUPERSEDED)
        relay.device_removed(DEVICE)
        await taken(second)
        for mailbox in (mine, second):
            assert await taken(mailbox) == DeviceRemoved()
        assert await empty(other)


async def test_no_prompt_is_told_twice_or_after_its_withdrawal():
    mailbox = Mailbox()
    withdrawn = PromptWithdrawn(PromptId("prm_2"), SignInState.EXPIRED)
    ended = DeviceRemoved()
    for event in (PromptArrived(prompt(1), 2), PromptArrived(prompt(1), 2), withdrawn, withdrawn, ended):
        mailbox.put(event)
    mailbox.put(PromptArrived(prompt(2), 2))
    mailbox.put(replace(withdrawn, state=SignInState.CANCELLED))
    told = [await taken(mailbox) for _ in range(4)]
    assert told == [PromptArrived(prompt(1), 2), withdrawn, ended, replace(withdrawn, state=SignInState.CANCELLED)]
    assert await empty(mailbox)


async def test_a_prompt_that_was_answered_here_is_not_told_again():
    mailbox = Mailbox()
    answered = OutcomeReady("prm_1", Answered(SignInState.APPROVED))
    other = OutcomeReady("x" * 1000, Answered(SignInState.EXPIRED))
    for event in (PromptArrived(prompt(1), 2), answered, PromptArrived(prompt(1), 2), other):
        mailbox.put(event)
    assert [await taken(mailbox) for _ in range(3)] == [PromptArrived(prompt(1), 2), answered, other]
    assert mailbox.told(PromptId("prm_1")) is SignInState.APPROVED
    assert mailbox.told(PromptId("x" * 1000)) is None
    assert await empty(mailbox)


def test_as_much_is_known_of_what_was_told_as_a_device_can_have_open():
    mailbox = Mailbox()
    for number in range(REMEMBERED + 1):
        mailbox.put(PromptArrived(prompt(number), 2))
    known = [mailbox.told(PromptId(f"prm_{number}")) for number in (0, 1, REMEMBERED)]
    assert known == [None, SignInState.PENDING, SignInState.PENDING]


async def test_nothing_is_kept_of_streams_that_have_gone():
    relay = Relay()

    def break_off() -> None:
        with relay.device(DEVICE):
            assert relay.is_connected(DEVICE)
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        break_off()
    assert not relay.is_connected(DEVICE)
    relay.prompt(prompt(1), 2)
    relay.device_removed(DEVICE)
    with relay.device(DEVICE) as later:
        assert await empty(later)


async def test_watchers_hear_every_change_until_they_stop():
    relay, heard = Relay(), list[SignInState]()

    def notify(row: SignIn) -> None:
        heard.append(row.state)

    relay.watch(SignInId("sin_one"), notify)
    relay.watch(SignInId("sin_two"), lambda row: heard.append(SignInState.FAILED))
    relay.sign_in(in_state(SignInState.APPROVED), [])
    relay.sign_in(in_state(SignInState.CONSUMED), [])
    relay.unwatch(SignInId("sin_one"), notify)
    relay.unwatch(SignInId("sin_one"), notify)
    relay.sign_in(in_state(SignInState.EXPIRED), [])
    assert heard == [SignInState.APPROVED, SignInState.CONSUMED]


async def test_a_watcher_may_stop_while_it_is_told():
    relay, heard = Relay(), list[int]()

    def once(row: SignIn) -> None:
        relay.unwatch(row.id, once)
        heard.append(1)

    relay.watch(SignInId("sin_one"), once)
    relay.watch(SignInId("sin_one"), lambda row: heard.append(2))
    for _ in range(2):
        relay.sign_in(in_state(SignInState.APPROVED), [])
    assert heard == [1, 2, 2]


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store = MemoryStore() if request.param == "memory" else SqliteStore.open(tmp_path / "a.db")
    yield opened
    await opened.close()


async def test_comparisons_of_a_page_are_exact_at_their_edges(store: Store):
    for number in range(1, 6):
        record = AuditRecord(0, number, SIGN_IN.tenant_id, "x", "y", "z", SIGN_IN.user_id, "ok", "{}")
        await store.write(lambda tx, record=record: tx.insert(record))

    async def sequences(condition: object) -> list[int]:
        found = await store.read(lambda tx: tx.find(AuditRecord, {"sequence": condition}, order="sequence"))
        return [r.sequence for r in found]

    assert await sequences(Below(3)) == [1, 2]
    assert await sequences(AtMost(3)) == [1, 2, 3]
    assert await sequences(Above(3)) == [4, 5]
    assert await store.read(lambda tx: tx.count(AuditRecord, {"sequence": Below(1)})) == 0
