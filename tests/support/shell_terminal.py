"""A terminal with an interactive shell in it, and a person who types there and answers questions.

The shell is bash on a pseudo-terminal of its own; its prompt tells the exit status of the last command. Nothing here
knows Keyvouch: what is asked and what is answered are the caller's.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_PROMPT = re.compile(r"<(\d+)>\$ $")
_ERASED = re.compile(r"[^\n]*\r\x1b\[K")
_ROWS, _COLUMNS = 60, 200
_A_MOMENT = 0.3
"""Seconds between a question and its answer: nobody is faster, and what is typed ahead is thrown away."""

Answers = Mapping[str, Callable[[], str | None]]
"""By pattern of a question: what to type, or None while that is not known yet."""


class ShellTerminal:
    """One terminal. `screen` is everything shown on it, with plain line ends and without lines that were erased."""

    def __init__(self, own_end: int, process: subprocess.Popen[bytes]) -> None:
        self.screen = ""
        self._written = ""
        self._own_end = own_end
        self._process = process
        self._answered = 0

    def look(self) -> str:
        """Read what has been written since, without waiting."""
        with suppress(BlockingIOError, OSError):
            while data := os.read(self._own_end, 65536):
                self._written += data.decode("utf-8", "replace")
        self.screen = _ERASED.sub("", self._written).replace("\r", "")
        return self.screen

    def status(self) -> int | None:
        """The exit status of the last command; None while one is running."""
        found = _PROMPT.search(self.screen, self._answered)
        return int(found[1]) if found else None

    def type(self, line: str) -> int:
        """Type a line; returns the place on the screen from which its effects are to be seen."""
        self._answered = len(self.look())
        os.write(self._own_end, f"{line}\n".encode())
        return self._answered

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._answered = len(self.look())
        os.write(self._own_end, b"\x03")

    def answer(self, answers: Answers) -> None:
        """Answer the question the screen ends with, if it is one of these."""
        open_text = self.look()[self._answered :]
        for pattern, reply in answers.items():
            if re.search(rf"(?:{pattern})$", open_text) and (line := reply()) is not None:
                time.sleep(_A_MOMENT)
                self.type(line)
                return

    def close(self) -> None:
        """Hang up, which ends what still runs there."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGHUP)
        os.close(self._own_end)
        self._process.wait(10)


@contextmanager
def shell_terminal(folder: Path, environment: Mapping[str, str]) -> Iterator[ShellTerminal]:
    """A shell in `folder`, ready for its first command."""
    own_end, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    os.set_blocking(own_end, False)
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "--noediting", "-i"],
        cwd=folder, env={**environment, "PS1": "<$?>$ ", "TERM": "dumb"}, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one call
    )  # fmt: skip
    os.close(theirs)
    terminal = ShellTerminal(own_end, process)
    try:
        end = time.monotonic() + 20
        while terminal.look() is not None and terminal.status() is None:
            assert time.monotonic() < end, terminal.screen
            time.sleep(0.02)
        yield terminal
    finally:
        terminal.close()
