"""Streams that a session holds open: they end when the session does, and not when their client likes (P14, PS18).

All of them are looked at together, as rows: so it does not matter which node ended a session, nor how many streams
there are. Not here: streams of devices and of sign-ins, which the relay wakes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

from keyvouch.errors import KeyvouchError
from keyvouch_server.use_cases.world import limit_reached

Over = Callable[[Collection[str]], Awaitable[Mapping[str, KeyvouchError]]]
"""Of these sessions, those that are over, each with why."""

LOOK_EVERY_SECONDS: Final = 0.4
"""A session that ended takes its streams with it in less than a second."""

MOST_STREAMS: Final = 64
"""Streams that one session holds open at one listener."""

_log = logging.getLogger("keyvouch.rpc")


class HeldStreams:
    """The streams of one listener, by their sessions. Looks at those only while there are any."""

    def __init__(self, over: Over) -> None:
        self._over = over
        self._held: dict[str, set[asyncio.Timeout]] = {}
        self._why: Mapping[str, KeyvouchError] = {}
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def hold(self, session_id: str) -> AsyncIterator[None]:
        """While the context lasts, what runs in it ends with the session.

        Raises why the session is over, or LIMIT_REACHED.
        """
        if len(self._held.get(session_id, ())) >= MOST_STREAMS:
            raise limit_reached(f"A session holds at most {MOST_STREAMS} streams open.", MOST_STREAMS)
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._held.setdefault(session_id, set()).add(limit)
                if self._looking is None:
                    self._looking = asyncio.create_task(self._look())
                yield
        except TimeoutError:
            if limit.expired():
                raise self._why[session_id] from None
            raise
        finally:
            self._let_go(session_id, limit)

    def _let_go(self, session_id: str, limit: asyncio.Timeout) -> None:
        streams = self._held.get(session_id, set())
        streams.discard(limit)
        if not streams:
            self._held.pop(session_id, None)
        if not self._held and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            try:
                over = await self._over(tuple(self._held))
            except Exception:  # noqa: BLE001 - asked again in a moment: streams must not outlive what could not be read
                _log.exception("whether sessions with open streams have ended cannot be found out now")
                continue
            self._why = {**{s: why for s, why in self._why.items() if s in self._held}, **over}
            for session_id in over:
                for limit in self._held.get(session_id, ()):
                    with suppress(RuntimeError):  # it is ending by itself
                        limit.reschedule(asyncio.get_running_loop().time())
