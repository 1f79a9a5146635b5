"""Secrets that a person gives to a command: typed without echo, or read from a file descriptor.

Never from arguments or the environment, which others can read. Not here: what the secrets are for.
"""

from __future__ import annotations

import os
import select
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from keyvouch.errors import UsageError

__all__ = ["read_secret", "type_secret"]

_LOOKS = 0.1
"""Seconds between two looks whether anybody still wants to know."""


def type_secret(prompt: str, *, what: str, instead: str, cancelled: Event | None = None) -> str | None:
    """Ask on the terminal, without echo; None where `cancelled` is set meanwhile, on whatever thread this runs.

    `instead` is the option for programs. Raises `UsageError` without a terminal.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise UsageError(f"There is no terminal to type {what} on.", fix=f"Use {instead} and a pipe.") from None
    try:
        with _without_echo(terminal):
            os.write(terminal, prompt.encode())
            while not select.select([terminal], [], [], _LOOKS)[0]:
                if cancelled is not None and cancelled.is_set():
                    return None
            return os.read(terminal, 4096).decode("utf-8", "replace").rstrip("\r\n")
    finally:
        os.close(terminal)


@contextmanager
def _without_echo(terminal: int) -> Iterator[None]:
    """The terminal gives whole lines and shows nothing of them. It is as it was afterwards, on a new line."""
    before = termios.tcgetattr(terminal)
    silent = [*before]
    silent[3] = (silent[3] & ~termios.ECHO) | termios.ICANON
    termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        os.write(terminal, b"\n")


def read_secret(descriptor: int, *, longest: int, what: str) -> str:
    """Read all of `descriptor`, at most `longest` bytes. Raises `UsageError` for more, or where it cannot be read."""
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(longest + 1)
    except OSError as error:
        raise UsageError(
            f"File descriptor {descriptor} cannot be read: {error.strerror}.",
            fix="Open it for reading: `N< FILE` in a shell.",
        ) from error
    if len(data) > longest:
        raise UsageError(f"What was read is too long to be {what}.", fix="It has to be that, and nothing else.")
    return data.decode("utf-8", "replace")
