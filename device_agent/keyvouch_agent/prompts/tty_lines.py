"""Lines typed on a terminal, awaited without a thread, so that a withdrawn prompt also withdraws its question.

What was typed before a question was shown is thrown away: nobody approves by accident. Secrets are read without
echo. Not here: what is asked.
"""

from __future__ import annotations

import asyncio
import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

__all__ = ["TtyLines"]

_LONGEST = 4096
_LFLAG = 3


class TtyLines:
    """Questions on the terminal behind the descriptor `source`, shown on `screen`."""

    def __init__(self, source: int, screen: IO[str]) -> None:
        self._source = source
        self._screen = screen

    def show(self, text: str) -> None:
        """Write whole lines."""
        self._screen.write(text + "\n")
        self._screen.flush()

    async def ask(self, question: str, *, secret: bool = False) -> str | None:
        """Show the question and return the line, without its end. None at the end of input."""
        self._screen.write(question)
        self._screen.flush()
        with _echo(self._source, on=not secret):
            line = await self._line()
        if secret or line is None:
            self.show("")
        return line

    async def _line(self) -> str | None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[bytes] = loop.create_future()

        def read() -> None:
            if not ready.done():
                ready.set_result(os.read(self._source, _LONGEST))

        loop.add_reader(self._source, read)
        try:
            data = await ready
        finally:
            loop.remove_reader(self._source)
        return data.decode("utf-8", "replace").rstrip("\r\n") if data else None


@contextmanager
def _echo(source: int, *, on: bool) -> Iterator[None]:
    """Canonical input with or without echo, after throwing away what was typed ahead; restored at the end."""
    before = termios.tcgetattr(source)
    during = termios.tcgetattr(source)
    during[_LFLAG] |= termios.ICANON
    if not on:
        during[_LFLAG] &= ~termios.ECHO
    termios.tcsetattr(source, termios.TCSAFLUSH, during)
    try:
        yield
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)
