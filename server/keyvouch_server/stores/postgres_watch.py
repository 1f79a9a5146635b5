"""What becomes durable through other nodes: the notifications of a PostgreSQL store, on a connection of their own.

    prompt DEVICE PROMPT             a prompt waits for its device
    withdrawn DEVICE PROMPT STATE    a device need not show a prompt any more
    sign_in SIGN_IN                  the state of a sign-in has changed
    device DEVICE                    a device was removed

Triggers send them (`postgres_schema`): they leave with the commit of the act, and what they speak of can be read when
they arrive. Whoever can connect to the database can send others, so they are no more than hints where to look.

The connection comes back by itself. What was sent meanwhile is lost: so each time it has come back, `lost` is called.
Not here: what is done about them (`node_events`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

from keyvouch.errors import UnavailableError
from keyvouch.ids import DEVICE, PROMPT, SIGN_IN, DeviceId, PromptId, SignInId
from keyvouch_server.domain.model import SignInState
from keyvouch_server.stores import postgres_connection as connections
from keyvouch_server.stores.postgres_connection import SCHEMA, TROUBLE, Connection

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 5.0
"""Seconds before the connection is tried again; twice as many each time, up to a half less by chance."""
LOOK_SECONDS: Final = 5.0
"""A connection that was silent for so long is asked whether it is still there."""
ANSWER_SECONDS: Final = 3.0

_log = logging.getLogger("keyvouch.store")


@dataclass(frozen=True, slots=True)
class PromptMade:
    """A prompt waits for its device."""

    device: DeviceId
    prompt: PromptId


@dataclass(frozen=True, slots=True)
class PromptEnded:
    """A device need not show a prompt any more: its sign-in is in `state`."""

    device: DeviceId
    prompt: PromptId
    state: SignInState


@dataclass(frozen=True, slots=True)
class SignInChanged:
    """The state of a sign-in has changed, or the sign-in is gone."""

    sign_in: SignInId


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """A device was removed."""

    device: DeviceId


Told: TypeAlias = PromptMade | PromptEnded | SignInChanged | DeviceGone
Heard: TypeAlias = Callable[[Told, int], None]
"""Takes what was told, and the number by which the database knows the connection that told it."""

_RANDOM: Final = "[a-z2-7]{26}"
_ENDED: Final = "|".join(state.value for state in SignInState if state is not SignInState.PENDING)
_FORM: Final = re.compile(
    rf"prompt (?P<for>{DEVICE}_{_RANDOM}) (?P<made>{PROMPT}_{_RANDOM})"
    rf"|withdrawn (?P<at>{DEVICE}_{_RANDOM}) (?P<ended>{PROMPT}_{_RANDOM}) (?P<state>{_ENDED})"
    rf"|sign_in (?P<sign_in>{SIGN_IN}_{_RANDOM})"
    rf"|device (?P<gone>{DEVICE}_{_RANDOM})"
)


def parse(payload: str) -> Told | None:
    """What a notification says; None for one that is none of ours."""
    found = _FORM.fullmatch(payload)
    if found is None:
        return None
    if found["made"]:
        return PromptMade(DeviceId(found["for"]), PromptId(found["made"]))
    if found["ended"]:
        return PromptEnded(DeviceId(found["at"]), PromptId(found["ended"]), SignInState(found["state"]))
    if found["sign_in"]:
        return SignInChanged(SignInId(found["sign_in"]))
    return DeviceGone(DeviceId(found["gone"]))


class PostgresWatch:
    """Listens for as long as its `async with` block lasts.

    When the block begins, the connection has been tried once. `heard` is called for each notification, `lost` whenever
    the connection has come later than that: then anything may have been missed.
    """

    def __init__(
        self,
        url: str,
        heard: Heard,
        lost: Callable[[], None],
        *,
        connect: Callable[[str], Awaitable[Connection]] = connections.connect,
        chance: Callable[[float, float], float] = random.uniform,
        look_seconds: float = LOOK_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._url = url
        self._heard = heard
        self._lost = lost
        self._connect = connect
        self._chance = chance
        self._look_seconds = look_seconds
        self._answer_seconds = answer_seconds
        self._tried = asyncio.Event()
        self._complained = False
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._listening = asyncio.create_task(self._run())
        try:
            await self._tried.wait()
        except BaseException:
            self._listening.cancel()
            raise
        return self

    async def __aexit__(self, *failure: object) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening

    async def _run(self) -> None:
        loop, delay = asyncio.get_running_loop(), FIRST_DELAY
        while True:
            began = loop.time()
            try:
                await self._listen()
                why = "the connection has ended"
            except (UnavailableError, *TROUBLE) as error:
                why = str(error) or type(error).__name__
            except Exception as error:  # noqa: BLE001 - a node that never heard again would be no node
                _log.exception("unexpected error")
                why = type(error).__name__
            self._tried.set()
            if loop.time() - began > LONGEST_DELAY:
                delay = FIRST_DELAY
            if delay == FIRST_DELAY:  # an outage is told once
                _log.warning("what other nodes do is not heard now, and is looked up afterwards: %s", why)
            await asyncio.sleep(delay * self._chance(0.5, 1.0))
            delay = min(2 * delay, LONGEST_DELAY)

    async def _listen(self) -> None:
        """One connection, from its beginning to its end. Raises what ended it."""
        connection = await self._connect(self._url)
        try:
            over = asyncio.Event()
            connection.add_termination_listener(lambda _: over.set())
            async with asyncio.timeout(self._answer_seconds):
                await connection.add_listener(SCHEMA, self._notified)
            _log.info("what other nodes do is heard")
            if self._tried.is_set():
                self._lost()
            self._tried.set()
            while not over.is_set():
                await self._stay(connection, over)
        except asyncio.CancelledError:
            await connections.close(connection)
            raise
        finally:
            connection.terminate()

    async def _stay(self, connection: Connection, over: asyncio.Event) -> None:
        """Wait; then ask whether the connection is still there: one whose other end has vanished says nothing."""
        try:
            async with asyncio.timeout(self._look_seconds):
                await over.wait()
        except TimeoutError:
            async with asyncio.timeout(self._answer_seconds):
                await connection.fetchval("SELECT 1")

    def _notified(self, _connection: Any, writer: int, _channel: str, payload: Any) -> None:
        told = parse(payload)
        if told is not None:
            self._heard(told, writer)
        elif not self._complained:  # once: whoever sends such may send many
            self._complained = True
            _log.warning("notifications of an unknown form come from connection %d, and are ignored", writer)
