"""Many at once: callers that start together, and what a sign-in's records say of who came first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from keyvouch.errors import KeyvouchError
from keyvouch_server.domain.model import SignInState
from keyvouch_server.domain.sign_in import TRANSITIONS, Event

T = TypeVar("T")


async def at_once(attempts: Sequence[Callable[[], Awaitable[T]]]) -> list[T | KeyvouchError]:
    """Let all start at the same moment; returns results and refusals in the order of the attempts.

    Anything that is not a refusal of the product is raised.
    """
    start = asyncio.Event()

    async def one(attempt: Callable[[], Awaitable[T]]) -> T | KeyvouchError:
        await start.wait()
        try:
            return await attempt()
        except KeyvouchError as refusal:
            return refusal

    tasks = [asyncio.create_task(one(attempt)) for attempt in attempts]
    await asyncio.sleep(0)
    start.set()
    return list(await asyncio.gather(*tasks))


async def shuffled(
    attempts: Iterable[Callable[[], Awaitable[T]]], *, longest: float, draw: random.Random
) -> list[T | KeyvouchError]:
    """The same with a delay before each of them, drawn up to `longest` seconds."""

    def delayed(attempt: Callable[[], Awaitable[T]], seconds: float) -> Callable[[], Awaitable[T]]:
        async def later() -> T:
            await asyncio.sleep(seconds)
            return await attempt()

        return later

    return await at_once([delayed(attempt, draw.uniform(0, longest)) for attempt in attempts])


def check_history(actions: Sequence[str], state: str) -> None:
    """The audit records of a sign-in, oldest first, are one way through the state machine, and it ends in `state`."""
    if not actions or actions[0] != "sign_in.begin":
        raise AssertionError(f"it does not begin with a beginning: {actions}")
    present = SignInState.PENDING
    for action in actions[1:]:
        states, target = TRANSITIONS[Event(action.removeprefix("sign_in."))]
        if present not in states:
            raise AssertionError(f"{action} of a sign-in that was {present}: {actions}")
        present = target
    if present != state:
        raise AssertionError(f"the records end in {present}, the row in {state}: {actions}")
