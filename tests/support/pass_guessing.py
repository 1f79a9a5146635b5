"""Strangers who guess access passes: many names however spelt, many addresses, several nodes, all at once (P9).

Everything is the real thing: the ceremony over a durable store that all nodes share, with one clock. What is left out
is the listener and the pause before a refusal, which would only slow the strangers down.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_server import bootstrap
from keyvouch_server.domain.access_pass import ALPHABET
from keyvouch_server.domain.model import AccessPass
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.ports import Below, Snapshot, Store, Transaction
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.use_cases.access_pass_sign_in import AccessPassSignIns
from keyvouch_server.use_cases.access_passes import PassWish
from support.live_server import TENANT, configuration
from support.pass_desk import PassDesk, at_once

T = TypeVar("T")
NODES = 3
A_DAY = 1440


@dataclass(slots=True)
class Siege:
    """What became of it all."""

    guesses: int
    passes: int
    answers: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    """Comparisons by pass, in the nodes that strangers talk to: tries that were counted in its row."""
    wrong: int = 0
    """Comparisons by the audit log."""
    events: Counter[str] = field(default_factory=Counter)
    owner_tries: list[int] = field(default_factory=list)
    """How often the owner of another pass had to try, once a second, until they were in."""

    @property
    def most_compared(self) -> int:
        """Of any one pass."""
        return max(self.compared.values(), default=0)


@dataclass(slots=True)
class _Counting:
    """A store that notes which tries are counted, and so compared."""

    store: Store
    compared: Counter[str]

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        return await self.store.read(work)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self.store.write(lambda tx: work(_CountingTransaction(tx, self.compared)))

    async def close(self) -> None:
        await self.store.close()


class _CountingTransaction:
    def __init__(self, tx: Transaction, compared: Counter[str]) -> None:
        self._tx = tx
        self._compared = compared

    async def update(self, table: type[Any], where: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
        rows = await self._tx.update(table, where, changes)
        if table is AccessPass and isinstance(where.get("attempts"), Below):
            self._compared.update(row.id for row in rows)
        return rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)


async def besiege(
    template: Path,
    folder: Path,
    *,
    guesses: int,
    passes: int = 20,
    addresses: int = 5_000,
    parallel: int = 256,
    a_second: int = 100,
    seed: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Siege:
    """Guess `guesses` times, `parallel` at a time; the clock goes on by one second every `a_second` guesses."""
    store = SqliteStore.open(folder / "keyvouch.db")
    desk = await PassDesk.open(template, store)
    for number in range(passes):
        await desk.add(f"user{number}", aliases=(f"{number}@example.org",))
        await desk.issue(f"user{number}", PassWish(lifetime_minutes=A_DAY, one_time=number % 2 == 1))
    await desk.add("olga")
    owners_code = await desk.issue("olga", PassWish(lifetime_minutes=A_DAY))
    siege = Siege(guesses, passes)
    nodes = [_node(template, store, desk, siege.compared) for _ in range(NODES)]
    chance = random.Random(seed)
    left, second = iter(range(guesses)), asyncio.Event()

    async def stranger() -> None:
        for number in left:
            if number % a_second == 0:
                desk.clock.advance(1)
                second.set()
                second.clear()
                await desk.app.budgets.forget_passed()
            if number % 100_000 == 0:
                say(f"{number:,} guesses: {dict(siege.answers)}")
            try:
                name, address = _name(chance, passes), _address(chance, addresses)
                await chance.choice(nodes).sign_in(TENANT, name, _code(chance), address=address)
                siege.answers["opened"] += 1
            except KeyvouchError as refusal:
                siege.answers[refusal.reason.value] += 1

    async def owner() -> None:
        while True:
            tries, entered = 0, False
            while not entered:
                await second.wait()
                tries += 1
                outcome = await desk.try_pass("olga", owners_code, "198.51.100.77")
                entered = not isinstance(outcome, KeyvouchError)
            siege.owner_tries.append(tries)

    owned = asyncio.create_task(owner())
    await asyncio.gather(*(stranger() for _ in range(parallel)))
    owned.cancel()
    await asyncio.gather(owned, return_exceptions=True)
    siege.wrong = await store.read(lambda tx: tx.count(AuditRecord, {"outcome": Reason.ACCESS_PASS_WRONG.value}))
    siege.events = Counter(f"{event.kind} {event.subject[:4]}" for event in await desk.events())
    await store.close()
    return siege


def _node(template: Path, store: Store, desk: PassDesk, compared: Counter[str]) -> AccessPassSignIns:
    app = bootstrap.assemble(template, configuration(1), _Counting(store, compared), clock=desk.clock)
    return AccessPassSignIns(app.world, app.sessions, pause=at_once)


def _name(chance: random.Random, passes: int) -> str:
    """One of the users in some spelling; one in ten is of nobody."""
    number = chance.randrange(passes)
    names = [f"user{number}", f"USER{number}", f" User{number} ", f"{number}@Example.ORG", f"\uff55ser{number}"]
    return f"nobody{number}" if chance.random() < 0.1 else chance.choice(names)


def _address(chance: random.Random, addresses: int) -> str:
    number = chance.randrange(addresses)
    if number % 4 == 0:
        return f"2001:db8:{number >> 8:x}:{number & 255:x}::{chance.randrange(1, 65536):x}"
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _code(chance: random.Random) -> str:
    return "".join(chance.choices(ALPHABET, k=8))
