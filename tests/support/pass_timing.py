"""How long a refusal takes, by what is wrong: timings of each kind in random order, and Welch's t between them (P11).

Each name is tried four times, so that no try kills a pass, from an address of its own, so that no budget is used up.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from keyvouch.errors import UnauthenticatedError
from keyvouch.ids import TenantId
from keyvouch_server.domain.model import PolicyVersion, UserKind
from keyvouch_server.ports import Transaction
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.use_cases.access_pass_sign_in import AccessPassSignIns
from keyvouch_server.use_cases.access_passes import PassWish
from support.live_server import TENANT
from support.pass_desk import PassDesk

KINDS = ("wrong", "prefix right", "unknown", "without a pass", "guest, right code")
TRIES = 4


@dataclass(slots=True)
class Timings:
    """Seconds of each try, by kind."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def welch(self, kind: str, other: str = "wrong") -> float:
        """Welch's t between two kinds."""
        one, two = self.seconds[kind], self.seconds[other]
        spread = statistics.variance(one) / len(one) + statistics.variance(two) / len(two)
        return (statistics.fmean(one) - statistics.fmean(two)) / math.sqrt(spread)

    def medians(self, kind: str, other: str = "wrong") -> float:
        """By how much two medians differ, as a share."""
        one, two = statistics.median(self.seconds[kind]), statistics.median(self.seconds[other])
        return abs(one - two) / two


async def time_refusals(
    template: Path,
    folder: Path,
    *,
    timings: int,
    lanes: int,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    seed: int = 1,
) -> Timings:
    """At least `timings` tries of each kind, `lanes` at a time. `pause` is that before a refusal."""
    store = SqliteStore.open(folder / "keyvouch.db")
    desk = await PassDesk.open(template, store)
    await _allow_long_lives(desk)
    tries = await _people(desk, -(-timings // TRIES)) * TRIES
    random.Random(seed).shuffle(tries)
    sign_ins, told = AccessPassSignIns(desk.app.world, desk.app.sessions, pause=pause), Timings()
    left = iter(enumerate(tries))

    async def lane() -> None:
        for number, (kind, name, code) in left:
            if number % 8 == 0:
                desk.clock.advance(1)
                await desk.app.budgets.forget_passed()
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            began = time.perf_counter()
            try:
                await sign_ins.sign_in(TENANT, name, code, address=address)
            except UnauthenticatedError:  # and nothing else: a throttled one would say nothing
                told.seconds[kind].append(time.perf_counter() - began)

    await asyncio.gather(*(lane() for _ in range(lanes)))
    await store.close()
    return told


async def _allow_long_lives(desk: PassDesk) -> None:
    tenant: TenantId = desk.tenant_id

    async def work(tx: Transaction) -> None:
        old = await desk.app.world.policy_of(tx, tenant)
        text = old.document().replace('"maximum_lifetime_minutes": 1440', '"maximum_lifetime_minutes": 43200')
        await tx.insert(PolicyVersion(tenant, 2, text.replace('"version": 1', '"version": 2'), 0, "server"))

    await desk.store.write(work)


async def _people(desk: PassDesk, count: int) -> list[tuple[str, str, str]]:
    """Kind, name and code of `count` names of each kind, all of one length."""
    made: list[tuple[str, str, str]] = []
    wish = PassWish(lifetime_minutes=43200)
    for number in range(count):
        for letter, kind in zip("abcde", KINDS, strict=True):
            name, code = f"{letter}{number:07}", "AAAA2222"
            if kind != "unknown":
                await desk.add(name, kind=UserKind.GUEST if kind.startswith("guest") else UserKind.MEMBER)
            if kind not in ("unknown", "without a pass"):
                right = await desk.issue(name, wish)
                code = right if kind.startswith("guest") else code
                code = right[:7] + ("A" if right[7] != "A" else "B") if kind == "prefix right" else code
            made.append((kind, name, code))
    return made
