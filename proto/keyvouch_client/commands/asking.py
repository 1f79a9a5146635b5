"""Asking before something is taken away. Only people at a terminal are asked; programs have said what they want.

Not here: secrets (`commands.secrets_typed`).
"""

from __future__ import annotations

import asyncio
import os
import sys

from keyvouch.errors import Reason, RefusedError
from keyvouch_client.commands.invocation import Invocation

__all__ = ["at_terminal", "confirm"]

_LONGEST = 4096


def at_terminal(run: Invocation) -> bool:
    """Whether a person reads what is said and can answer."""
    return not run.output.as_json and sys.stdin.isatty() and sys.stderr.isatty()


async def confirm(run: Invocation, what: str) -> None:
    """Ask whether `what` is to be done; with `--yes`, with `--json` and without a terminal nobody is asked.

    Raises `RefusedError(USER_CANCELLED)` for everything but a yes.
    """
    if run.arguments.yes or not at_terminal(run):
        return
    run.output.ask(f"{what} Go on? (y, n): ")
    if (await _line()).strip().lower() not in ("y", "yes"):
        raise RefusedError(Reason.USER_CANCELLED, "Nothing was changed.", fix="Use --yes to skip the question.")


def _settle(typed: asyncio.Future[None]) -> None:
    if not typed.done():
        typed.set_result(None)


async def _line() -> str:
    """The next line that is typed; empty at the end of input. The loop goes on meanwhile, so Ctrl-C works."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    typed: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _settle, typed)
    try:
        await typed
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, _LONGEST).decode("utf-8", "replace")
