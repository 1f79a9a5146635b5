"""A person at a real pseudo-terminal, in the process of the test."""

from __future__ import annotations

import os
import pty
from contextlib import suppress

from keyvouch_agent.prompts.tty_lines import TtyLines
from support.agent_bench import until

__all__ = ["Person"]


class Person:
    """`lines` is what asks, `screen` what was shown."""

    def __init__(self) -> None:
        self.own_end, self.terminal = pty.openpty()
        os.set_blocking(self.own_end, False)
        self._shown = os.fdopen(os.dup(self.terminal), "w")
        self.lines = TtyLines(self.terminal, self._shown)
        self.screen = ""

    def look(self) -> str:
        """Read what has been shown since."""
        with suppress(BlockingIOError):
            while data := os.read(self.own_end, 65536):
                self.screen += data.decode("utf-8", "replace")
        return self.screen

    async def sees(self, text: str, count: int = 1) -> None:
        """Wait until it is there, `count` times."""
        await until(lambda: self.look().count(text) >= count)

    async def types(self, line: str, *, times: int = 1, question: str = "(y, n): ") -> None:
        """Wait for the question, then answer; the terminal is in its hands once it has its reader."""
        await self.sees(question, times)
        os.write(self.own_end, f"{line}\n".encode())

    def leave(self) -> None:
        """Close the terminal."""
        self._shown.close()
        os.close(self.own_end)
        os.close(self.terminal)
