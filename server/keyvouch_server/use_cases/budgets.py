"""Budgets: how often something may be done, counted in the transaction of what is done (P1, P9).

The generic cell rate algorithm (ITU-T I.371 section 5.4.4): one row holds the theoretical arrival time. A budget of
`burst` and `per_minute` lets `burst` acts through at once and one more each 60 / `per_minute` seconds. Rows survive
restarts and are shared by nodes; one whose time has passed is as good as none, and the sweep takes it away.

Keys are made of canonical names and ids only, so that no spelling has a budget of its own (P10). Not here: how large
the budgets are, which is for the ceremonies to say.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from keyvouch.errors import Reason, ThrottledError
from keyvouch.ids import TenantId
from keyvouch_server.domain.oversight_model import Throttle
from keyvouch_server.ports import AtMost, OneOf, Plus, Snapshot, Transaction
from keyvouch_server.use_cases.world import World

CORRECTION: Final = 60_000
"""Milliseconds by which a clock is corrected, now and then, without meaning anything."""
FORGET_EVERY_SECONDS: Final = 60
"""How often the sweep takes away rows that say nothing any more."""
FORGET_AT_ONCE: Final = 500
"""Rows in one transaction of the sweep, so that others need not wait for it after a flood."""


@dataclass(frozen=True, slots=True)
class Budget:
    """`name` tells what is counted; at most `burst` at once, and `per_minute` in the long run."""

    name: str
    burst: int
    per_minute: float

    @property
    def interval(self) -> int:
        """Milliseconds that one act costs."""
        return round(60_000 / self.per_minute)

    def key(self, of: str) -> str:
        """The row of whoever, or whatever, `of` is."""
        return f"{self.name}/{of}"


@dataclass(frozen=True, slots=True)
class Charge:
    """One act, to be counted in the budget of whoever, or whatever, `of` is."""

    budget: Budget
    of: str

    @property
    def key(self) -> str:
        """The row that counts it."""
        return self.budget.key(self.of)


@dataclass(frozen=True, slots=True)
class UsedUp:
    """A budget that has nothing left, and the seconds until it has."""

    charge: Charge
    seconds: int


Counted: TypeAlias = Mapping[str, Throttle]
"""Rows of budgets by their keys, as one transaction has read them; nothing is counted yet where there is none."""


class Budgets:
    """Taking from budgets and giving back."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._forget_at = 0

    async def read(self, tx: Snapshot, charges: Sequence[Charge]) -> Counted:
        """What is counted in all these budgets, in one statement. For `take` in the same transaction."""
        found = await tx.find(Throttle, {"key": OneOf(tuple(one.key for one in charges))})
        return {row.key: row for row in found}

    async def take(self, tx: Transaction, charge: Charge, counted: Counted, tenant: TenantId) -> int:
        """Count one act. Returns 0 if it may be done, else the seconds until it may; then nothing was counted."""
        now, key = self._world.clock.now() * 1000, charge.key
        row = counted.get(key)
        arrival = _next(row, charge.budget, now)
        wait = _wait(arrival, charge.budget, now)
        if wait:
            return wait
        if row is None:
            await tx.insert(Throttle(key, tenant, arrival))
        else:
            await tx.update(Throttle, {"key": key}, {"arrival": arrival})
        return 0

    async def take_all(self, tx: Transaction, charges: Sequence[Charge], tenant: TenantId) -> UsedUp | None:
        """Count one act in several budgets. Returns the one that keeps it longest, if any; then nothing was counted.

        What is asked of the store is the same whoever is charged, also where nothing was counted for them before.
        """
        now = self._world.clock.now() * 1000
        counted = await self.read(tx, charges)
        arrivals = [_next(counted.get(one.key), one.budget, now) for one in charges]
        waits = [_wait(arrival, one.budget, now) for arrival, one in zip(arrivals, charges, strict=True)]
        longest = max(waits)
        if longest:
            return UsedUp(charges[waits.index(longest)], longest)
        await tx.delete(Throttle, {"key": OneOf(tuple(one.key for one in charges))})
        for arrival, charge in zip(arrivals, charges, strict=True):
            await tx.insert(Throttle(charge.key, tenant, arrival))
        return None

    async def look(self, tx: Snapshot, budget: Budget, of: str) -> int:
        """The seconds until one act may be done, 0 if that is now. Nothing is counted."""
        now = self._world.clock.now() * 1000
        return _wait(_next(await tx.get(Throttle, key=budget.key(of)), budget, now), budget, now)

    async def give_back(self, tx: Transaction, budget: Budget, of: str) -> None:
        """All that was taken: what was feared has not come to pass."""
        await tx.delete(Throttle, {"key": budget.key(of)})

    async def give_back_one(self, tx: Transaction, charges: Sequence[Charge], *, due: bool) -> None:
        """What one act has taken, and nothing of what others have. Where it is not due, as much is asked of the store
        and nothing changes, so that the time it takes tells nobody.
        """
        for charge in charges:
            key = charge.key if due else ""
            await tx.update(Throttle, {"key": key}, {"arrival": Plus(-charge.budget.interval)})

    async def forget_passed(self) -> None:
        """Drop the rows that say nothing any more, once a minute however often this is called."""
        now = self._world.clock.now()
        if self._forget_at - FORGET_EVERY_SECONDS <= now < self._forget_at:
            return
        self._forget_at = now + FORGET_EVERY_SECONDS
        while await self._world.store.write(lambda tx: self._forget_some(tx, now * 1000)) == FORGET_AT_ONCE:
            pass

    async def _forget_some(self, tx: Transaction, now: int) -> int:
        passed = await tx.find(Throttle, {"arrival": AtMost(now)}, order="arrival", limit=FORGET_AT_ONCE)
        if passed:
            await tx.delete(Throttle, {"key": OneOf(tuple(row.key for row in passed))})
        return len(passed)


def _next(row: Throttle | None, budget: Budget, now: int) -> int:
    """The arrival time after one more act. A row much further ahead than the budget reaches was written before the
    clock was set back, and says nothing: nobody is to wait until the clock is there again (P20).
    """
    believed = row is not None and now < row.arrival <= now + budget.burst * budget.interval + CORRECTION
    return (row.arrival if row is not None and believed else now) + budget.interval


def _wait(arrival: int, budget: Budget, now: int) -> int:
    """Seconds until an act with this arrival time may be done, 0 for now."""
    return max(0, -(-(arrival - now - budget.burst * budget.interval) // 1000))


@lru_cache(maxsize=4096)
def source_of(address: str) -> str:
    """Whose budget an address draws from: itself, or the /64 it is in for IPv6, of which one host has all.

    Empty for addresses that are nobody's: those of this machine, behind which a proxy may hide everybody, and what is
    no address. Every sign-in asks several times, so answers are kept.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    parsed = mapped or parsed
    if parsed.is_loopback:
        return ""
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))


def throttled(why: str, seconds: int) -> ThrottledError:
    """The refusal that says when to come again."""
    return ThrottledError(
        Reason.THROTTLED,
        f"Not now: {why}.",
        retry_after=float(max(1, seconds)),
        fix=f"Try again in {max(1, seconds)} seconds, or use another method.",
    )
