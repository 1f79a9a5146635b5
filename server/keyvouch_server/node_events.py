"""What other nodes do, for the streams of this one. Several servers on one store are nodes of one server.

    a node's act ──commit──► notification ──► is anybody here waiting for it? ──► row ──► relay ──► stream
                                    └─ no: nothing is read

A notification says where to look, and what is told is what stands in the rows: so one that comes twice, too late or
from a stranger to the database changes nothing. Only withdrawals are passed on as they are.

When notifications were lost, everything that somebody here waits for is looked at, a lot at a time: no stream has to
come again for that. Not here: the notifications themselves (`stores.postgres_watch`), the streams (`relay`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar, assert_never

from keyvouch.errors import KeyvouchError
from keyvouch.ids import DeviceId, SignInId
from keyvouch_server.domain.model import Device, Prompt, SignIn, SignInState
from keyvouch_server.ports import Above, OneOf, Snapshot
from keyvouch_server.relay import Relay
from keyvouch_server.stores.postgres_watch import (
    DeviceGone,
    PostgresWatch,
    PromptEnded,
    PromptMade,
    SignInChanged,
    Told,
)
from keyvouch_server.use_cases.decisions import Decisions
from keyvouch_server.use_cases.world import World

K = TypeVar("K")

AT_ONCE: Final = 250
"""Ids that one read looks up."""
PROMPTED_AT_ONCE: Final = 50
"""Devices of which one read finds the prompts: each has one, seldom more."""
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 2.0
"""Seconds after which what could not be read is tried again; twice as many each time."""
_ALL: Final = 1_000_000

_log = logging.getLogger("keyvouch.server")


class NodeEvents:
    """Tells the streams of this process what other nodes have done.

    `own_writer` is the number of the connection by which this process writes: what that did was announced here already.
    """

    def __init__(self, world: World, decisions: Decisions, relay: Relay, own_writer: Callable[[], int | None]) -> None:
        self._world = world
        self._decisions = decisions
        self._relay = relay
        self._own_writer = own_writer
        self._sign_ins = Lots[SignInId](self._look_at_sign_ins, AT_ONCE)
        self._prompted = Lots[DeviceId](self._offer, PROMPTED_AT_ONCE)
        self._devices = Lots[DeviceId](self._look_at_devices, AT_ONCE)

    def heard(self, told: Told, writer: int) -> None:
        """Another node has done something, or this one, if `writer` is its own."""
        if writer == self._own_writer():
            return
        match told:
            case PromptMade(device, prompt):
                if self._relay.wants(device, prompt):
                    self._prompted.add([device])
            case PromptEnded(device, prompt, state):
                self._relay.withdrawn(device, prompt, state)
            case SignInChanged(sign_in):
                if self._relay.is_watched(sign_in):
                    self._sign_ins.add([sign_in])
                else:
                    self._relay.missed.add(sign_in)
            case DeviceGone(device):
                if self._relay.is_connected(device):
                    self._devices.add([device])
            case _:
                assert_never(told)

    def lost(self) -> None:
        """Anything may have been missed."""
        self._relay.missed.add_any()
        self._sign_ins.add(self._relay.watched())
        self._devices.add(self._relay.connected())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the block lasts, what is to be looked up is looked up."""
        self._relay.look_again = lambda sign_in: self._sign_ins.add([sign_in])
        tasks = [asyncio.create_task(lots.run()) for lots in (self._sign_ins, self._prompted, self._devices)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_at_sign_ins(self, lot: Sequence[SignInId]) -> None:
        """Tell who waits for these sign-ins, if they are pending no more. Lot after lot: no state goes back."""
        where = {"id": OneOf(tuple(lot))}
        rows = await self._world.store.read(lambda tx: tx.find(SignIn, where, limit=len(lot)))
        found = {row.id: row for row in rows}
        for sign_in in lot:
            row = found.get(sign_in)
            if row is None:
                self._relay.gone(sign_in)
            elif row.state is not SignInState.PENDING:
                self._relay.sign_in(row, ())

    async def _offer(self, lot: Sequence[DeviceId]) -> None:
        """Offer these devices what waits for them; what a stream knows already it is not told again."""
        for prompt, asked in await self._decisions.open_prompts(*lot):
            self._relay.prompt(prompt, asked)

    async def _look_at_devices(self, lot: Sequence[DeviceId]) -> None:
        """All that may have happened to devices with a stream here."""
        standing, prompts, sign_ins = await self._world.store.read(lambda tx: self._of_devices(tx, lot))
        for device in lot:
            if device not in standing:
                self._relay.device_removed(device)
        for prompt in prompts:
            row = sign_ins[prompt.sign_in_id]
            if row.state is SignInState.PENDING:
                if self._relay.wants(prompt.device_id, prompt.id):
                    self._prompted.add([prompt.device_id])
            elif self._relay.shows(prompt.device_id, prompt.id) and row.device_id != prompt.device_id:
                # Not from the device that has decided: it gets the outcome of its answer.
                self._relay.withdrawn(prompt.device_id, prompt.id, row.state)

    async def _of_devices(
        self, tx: Snapshot, lot: Sequence[DeviceId]
    ) -> tuple[set[DeviceId], list[Prompt], dict[SignInId, SignIn]]:
        devices = await tx.find(Device, {"id": OneOf(tuple(lot))}, limit=len(lot))
        still_open = {"device_id": OneOf(tuple(lot)), "expires_at": Above(self._world.clock.now())}
        prompts = await tx.find(Prompt, still_open, limit=_ALL)
        ids, sign_ins = iter({prompt.sign_in_id for prompt in prompts}), dict[SignInId, SignIn]()
        while some := tuple(itertools.islice(ids, AT_ONCE)):  # under load there are more than one statement can name
            sign_ins |= {row.id: row for row in await tx.find(SignIn, {"id": OneOf(some)}, limit=len(some))}
        return {device.id for device in devices}, prompts, sign_ins


class Lots(Generic[K]):
    """Ids to look up, lot after lot. What comes while one is looked up is in the next: a burst costs few reads."""

    def __init__(self, look: Callable[[Sequence[K]], Awaitable[None]], most: int) -> None:
        self._look = look
        self._most = most
        self._waiting: dict[K, None] = {}
        self._filled = asyncio.Event()

    def add(self, keys: Iterable[K]) -> None:
        """Have these looked up soon."""
        self._waiting |= dict.fromkeys(keys)
        if self._waiting:
            self._filled.set()

    async def run(self) -> None:
        """Look up what comes, for ever. What cannot be read now is tried again."""
        delay = FIRST_DELAY
        while True:
            await self._filled.wait()
            lot = list(itertools.islice(self._waiting, self._most))
            for key in lot:
                del self._waiting[key]
            if not self._waiting:
                self._filled.clear()
            try:
                await self._look(lot)
                delay = FIRST_DELAY
            except KeyvouchError as error:
                _log.warning("what another node did cannot be read now: %s", error.reason)
                self.add(lot)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LONGEST_DELAY)
            except Exception:  # noqa: BLE001 - those who wait for others must not wait for this
                _log.exception("what another node did cannot be told")


@asynccontextmanager
async def following(url: str, world: World, decisions: Decisions, relay: Relay, store: Any) -> AsyncIterator[None]:
    """While the block lasts, the streams of `relay` hear what other nodes do to the store at `url`.

    `store` is this node's own; it says by which connection it writes (`PostgresStore.writer_pid`).
    """
    events = NodeEvents(world, decisions, relay, lambda: getattr(store, "writer_pid", None))
    async with events.running(), PostgresWatch(url, events.heard, events.lost):
        yield
