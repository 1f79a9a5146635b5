"""What a node makes of what it hears of the others, and what it reads for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from keyvouch.errors import Reason, UnavailableError
from keyvouch.ids import DeviceId, PromptId, SignInId
from keyvouch_server import bootstrap
from keyvouch_server.domain.model import Device, Prompt, SignIn, SignInState
from keyvouch_server.domain.policy import Policy
from keyvouch_server.node_events import AT_ONCE, FIRST_DELAY, Lots, NodeEvents
from keyvouch_server.ports import Transaction
from keyvouch_server.relay import MOST_MISSED, DeviceRemoved, MissedSignIns, PromptArrived, PromptWithdrawn, Relay
from keyvouch_server.stores import records
from keyvouch_server.stores.memory import MemoryStore
from keyvouch_server.stores.postgres_watch import DeviceGone, PromptEnded, PromptMade, SignInChanged
from support import sample_records as samples
from support.counted_store import CountedStore
from support.live_server import Clock, configuration, make_template

OWN, FOREIGN = 1, 2
DEVICE, OTHER = DeviceId("dev_one"), DeviceId("dev_two")
SIGN_IN, PROMPT = SignInId("sin_one"), PromptId("prm_one")


@pytest.fixture(scope="session")
def keys(session_directory: Path) -> Path:
    return make_template(session_directory / "node-keys")


@dataclass(slots=True)
class Node:
    """A node whose other nodes are this test."""

    store: CountedStore
    relay: Relay
    events: NodeEvents
    now: int

    async def put(self, *records: object) -> None:
        async def work(tx: Transaction) -> None:
            for record in records:
                await tx.insert(record)

        await self.store.write(work)

    async def prompted(self, device: DeviceId = DEVICE, sign_in: SignInId = SIGN_IN, prompt: PromptId = PROMPT) -> None:
        """A sign-in that waits, with its prompt."""
        await self.put(
            replace(
                samples.SIGN_IN, id=sign_in, state=SignInState.PENDING, expires_at=self.now + 60, policy_version=1,
                same_device=False, security_key=False,
            ),
            replace(samples.PROMPT, id=prompt, sign_in_id=sign_in, device_id=device, expires_at=self.now + 60),
        )  # fmt: skip

    async def move(self, state: SignInState, by: DeviceId = OTHER) -> None:
        changes = {"state": state, "device_id": by}
        await self.store.write(lambda tx: tx.update(SignIn, {"id": SIGN_IN}, changes))

    async def idle(self) -> list[tuple[str, str]]:
        """What was read, once there is nothing left to do."""
        for _ in range(50):
            await asyncio.sleep(0)
        read, self.store.statements[:] = list(self.store.statements), []
        return read


@pytest.fixture
async def node(keys: Path) -> AsyncIterator[Node]:
    clock, store = Clock(), CountedStore(MemoryStore())
    app = bootstrap.assemble(keys, configuration(1), store, clock=clock)
    events = NodeEvents(app.world, app.decisions, app.relay, lambda: OWN)
    made = Node(store, app.relay, events, clock.now())
    devices = [replace(samples.DEVICE, id=id_, channel_key=id_.encode()) for id_ in (DEVICE, OTHER)]
    await made.put(samples.TENANT, samples.USER, replace(samples.POLICY, document=Policy().document()), *devices)
    store.statements.clear()
    async with events.running():
        yield made


async def test_nothing_is_read_for_whom_nobody_here_waits(node: Node):
    await node.prompted()
    await node.idle()
    told = (
        PromptMade(DEVICE, PROMPT), PromptEnded(DEVICE, PROMPT, SignInState.DENIED), SignInChanged(SIGN_IN),
        DeviceGone(DEVICE),
    )  # fmt: skip
    for one in told:
        node.events.heard(one, FOREIGN)
    assert await node.idle() == []
    node.events.lost()
    assert await node.idle() == []


async def test_nothing_is_read_for_what_this_node_did_itself(node: Node):
    await node.prompted()
    await node.move(SignInState.APPROVED)
    await node.idle()
    heard = list[SignIn | None]()
    node.relay.watch(SIGN_IN, heard.append)
    with node.relay.device(DEVICE):
        for told in (PromptMade(DEVICE, PROMPT), SignInChanged(SIGN_IN), DeviceGone(DEVICE)):
            node.events.heard(told, OWN)
        assert await node.idle() == []
    assert heard == []


async def test_a_prompt_is_put_to_its_device_and_once_PS21(node: Node):
    await node.prompted()
    with node.relay.device(DEVICE) as mine, node.relay.device(OTHER) as other:
        for _ in range(3):
            node.events.heard(PromptMade(DEVICE, PROMPT), FOREIGN)
            await node.idle()
        event = await mine.take()
        assert isinstance(event, PromptArrived)
        assert event.prompt.id == PROMPT
        node.events.heard(PromptMade(DEVICE, PROMPT), FOREIGN)
        assert await node.idle() == []
        node.relay.device_removed(DEVICE)
        node.relay.device_removed(OTHER)
        assert await mine.take() == await other.take() == DeviceRemoved()


async def test_a_prompt_that_was_withdrawn_meanwhile_is_not_put_PS21(node: Node):
    await node.prompted()
    with node.relay.device(DEVICE) as mine:
        node.events.heard(PromptMade(DEVICE, PROMPT), FOREIGN)
        node.events.heard(PromptEnded(DEVICE, PROMPT, SignInState.CANCELLED), FOREIGN)
        await node.idle()
        node.relay.device_removed(DEVICE)
        assert await mine.take() == PromptWithdrawn(PROMPT, SignInState.CANCELLED)
        assert await mine.take() == DeviceRemoved()


async def test_a_prompt_is_put_however_many_were_withdrawn_before_it_KI4(node: Node):
    old = replace(samples.SIGN_IN, id=SignInId("sin_old"), state=SignInState.SUPERSEDED, expires_at=node.now + 60)
    withdrawn = replace(samples.PROMPT, sign_in_id=old.id, device_id=DEVICE, created_at=0, expires_at=node.now + 60)
    await node.put(old, *(replace(withdrawn, id=PromptId(f"prm_{number}")) for number in range(1001)))
    await node.prompted()
    with node.relay.device(DEVICE) as mine:
        node.events.heard(PromptMade(DEVICE, PROMPT), FOREIGN)
        await node.idle()
        node.relay.device_removed(DEVICE)
        event = await mine.take()
        assert isinstance(event, PromptArrived)
        assert event.prompt.id == PROMPT


async def test_who_watches_is_told_what_stands_in_the_row(node: Node):
    await node.prompted()
    heard = list[SignIn | None]()
    node.relay.watch(SIGN_IN, heard.append)
    node.events.heard(SignInChanged(SIGN_IN), FOREIGN)
    await node.idle()
    assert heard == []  # nothing has changed, whatever was said
    await node.move(SignInState.APPROVED)
    for _ in range(20):  # a burst is one read
        node.events.heard(SignInChanged(SIGN_IN), FOREIGN)
    assert (await node.idle()).count(("find", "SignIn")) == 1
    assert [row.state for row in heard if row] == [SignInState.APPROVED]
    await node.store.write(lambda tx: tx.delete(Prompt, {"id": PROMPT}))
    await node.store.write(lambda tx: tx.delete(SignIn, {"id": SIGN_IN}))
    node.events.heard(SignInChanged(SIGN_IN), FOREIGN)
    await node.idle()
    assert heard[1:] == [None]


async def test_a_device_is_cut_off_when_it_is_gone_and_not_when_somebody_says_so_PS18(node: Node):
    with node.relay.device(DEVICE) as mine:
        node.events.heard(DeviceGone(DEVICE), FOREIGN)
        await node.idle()
        node.relay.withdrawn(DEVICE, PROMPT, SignInState.DENIED)
        assert await mine.take() == PromptWithdrawn(PROMPT, SignInState.DENIED)
        await node.store.write(lambda tx: tx.delete(Device, {"id": DEVICE}))
        node.events.heard(DeviceGone(DEVICE), FOREIGN)
        await node.idle()
        assert await mine.take() == DeviceRemoved()


async def test_a_change_that_came_before_anybody_watched_is_looked_up(node: Node):
    await node.prompted()
    await node.move(SignInState.DENIED)
    node.events.heard(SignInChanged(SIGN_IN), FOREIGN)
    assert ("find", "SignIn") not in await node.idle()
    heard, other = list[SignIn | None](), list[SignIn | None]()
    node.relay.watch(SignInId("sin_two"), other.append)
    assert await node.idle() == []
    node.relay.watch(SIGN_IN, heard.append)
    await node.idle()
    assert [row.state for row in heard if row] == [SignInState.DENIED]
    assert other == []


async def test_after_a_loss_everything_that_is_waited_for_is_looked_at(node: Node):
    heard = list[SignIn | None]()
    await node.prompted()
    await node.prompted(OTHER, SignInId("sin_new"), PromptId("prm_new"))
    with ExitStack() as stack:
        mine, other = (stack.enter_context(node.relay.device(device)) for device in (DEVICE, OTHER))
        gone = stack.enter_context(node.relay.device(DeviceId("dev_gone")))
        node.relay.watch(SIGN_IN, heard.append)
        node.events.heard(PromptMade(DEVICE, PROMPT), FOREIGN)
        await node.idle()
        await node.move(SignInState.DENIED)
        await node.idle()
        node.events.lost()
        read = await node.idle()
        assert read.count(("find", "Device")) == 2  # once for all devices, once for the one that is prompted
        assert [type(await mine.take()) for _ in range(2)] == [PromptArrived, PromptWithdrawn]
        arrived = await other.take()
        assert isinstance(arrived, PromptArrived)
        assert arrived.prompt.id == "prm_new"
        assert await gone.take() == DeviceRemoved()
    assert [row.state for row in heard if row] == [SignInState.DENIED]


async def test_after_a_loss_devices_are_looked_at_however_many_prompts_they_had(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(records, "_MOST_CHOICES", AT_ONCE)  # so that the test needs few
    ids = [SignInId(f"sin_{number}") for number in range(AT_ONCE + 1)]
    done = replace(samples.SIGN_IN, state=SignInState.CONSUMED, same_device=False, security_key=False)
    ended = replace(samples.PROMPT, device_id=DEVICE, expires_at=node.now + 60)
    await node.put(*(replace(done, id=id_) for id_ in ids))
    await node.put(*(replace(ended, id=PromptId(f"prm_{id_}"), sign_in_id=id_) for id_ in ids))
    gone = DeviceId("dev_gone")
    with node.relay.device(DEVICE), node.relay.device(gone) as cut:
        node.events.lost()
        await node.idle()
        node.relay.device_removed(DEVICE)
        async with asyncio.timeout(5):
            assert await cut.take() == DeviceRemoved()


async def test_after_a_loss_nothing_is_withdrawn_from_the_device_that_has_decided(node: Node):
    await node.prompted()
    with node.relay.device(DEVICE) as mine:
        node.events.heard(PromptMade(DEVICE, PROMPT), FOREIGN)
        await node.idle()
        await node.move(SignInState.APPROVED, by=DEVICE)
        node.events.lost()
        await node.idle()
        node.relay.device_removed(DEVICE)
        assert [type(await mine.take()) for _ in range(2)] == [PromptArrived, DeviceRemoved]


async def test_two_thousand_streams_cost_some_reads_and_not_two_thousand(node: Node):
    ids = [DeviceId(f"dev_{number}") for number in range(2000)]
    await node.put(*(replace(samples.DEVICE, id=id_, channel_key=id_.encode()) for id_ in ids))
    await node.idle()
    with ExitStack() as stack:
        for id_ in ids:
            stack.enter_context(node.relay.device(id_))
        node.events.lost()
        read: list[tuple[str, str]] = []
        async with asyncio.timeout(60):
            while read.count(("find", "Prompt")) < 8:
                await asyncio.sleep(0.01)
                read += await node.idle()
    assert len(read) == 16


# -- lots ---------------------------------------------------------------------------------------------


async def run_for(lots: Lots[int], condition: Callable[[], bool]) -> None:
    task = asyncio.create_task(lots.run())
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.001)
    task.cancel()


async def test_lots_are_as_large_as_is_said_and_nothing_is_looked_up_twice():
    seen: list[list[int]] = []

    async def look(lot: Iterable[int]) -> None:
        seen.append(list(lot))
        if len(seen) == 1:
            lots.add([8, 9, 1])

    lots = Lots[int](look, 3)
    lots.add([1, 2, 3, 4])
    lots.add([4, 5])
    await run_for(lots, lambda: sum(map(len, seen)) == 8)
    assert seen == [[1, 2, 3], [4, 5, 8], [9, 1]]


async def test_what_cannot_be_read_is_read_later_and_a_bug_stops_nothing(caplog: pytest.LogCaptureFixture):
    seen: list[list[int]] = []
    failures: list[Exception] = [
        LookupError("a bug"), UnavailableError(Reason.STORE_UNAVAILABLE, "It is down.", fix="Wait.")
    ]  # fmt: skip
    began = asyncio.get_running_loop().time()

    async def look(lot: Iterable[int]) -> None:
        seen.append(list(lot))
        if failures:
            raise failures.pop()

    lots = Lots[int](look, 3)
    lots.add([1, 2])
    await run_for(lots, lambda: len(seen) == 2)
    lots.add([3])
    await run_for(lots, lambda: len(seen) == 3)
    assert seen == [[1, 2], [1, 2], [3]]
    assert asyncio.get_running_loop().time() - began > FIRST_DELAY
    assert len(caplog.messages) == 2


# -- what was missed ----------------------------------------------------------------------------------


def test_what_was_missed_is_known_for_a_while():
    now = [0.0]
    missed = MissedSignIns(lambda: now[0])
    missed.add(SIGN_IN)
    now[0] = 29.0
    assert SIGN_IN in missed
    assert SignInId("sin_two") not in missed
    missed.add(SIGN_IN)
    now[0] = 31.0
    assert SIGN_IN in missed
    now[0] = 60.0
    assert SIGN_IN not in missed
    missed.add_any()
    assert SIGN_IN in missed
    assert SignInId("sin_two") in missed
    now[0] = 91.0
    assert SIGN_IN not in missed


def test_no_more_is_kept_of_what_was_missed_than_has_room():
    now = [0.0]
    missed = MissedSignIns(lambda: now[0])
    ids = [SignInId(f"sin_{number}") for number in range(MOST_MISSED + 10)]
    for one in ids:
        missed.add(one)
    assert [one in missed for one in (ids[9], ids[10], ids[-1])] == [False, True, True]
    now[0] = 31.0
    missed.add(SIGN_IN)
    assert len(missed._missed) == 1
