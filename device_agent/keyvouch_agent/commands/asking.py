"""Secrets for a command: from a descriptor, or typed without echo. Never from arguments or the environment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import AsyncExitStack, contextmanager
from typing import Self, TypeVar

from keyvouch.errors import MalformedError, Reason, UsageError
from keyvouch_agent.pin_standing import tries_left
from keyvouch_agent.ports import Pin, PresenceContext
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.prompts.tty_lines import TtyLines

__all__ = ["LateTerminal", "TerminalInteraction", "ask_secret", "open_terminal", "read_secret"]

_LONGEST = 256
_T = TypeVar("_T")


def read_secret(descriptor: int) -> str:
    """The next line of a descriptor. Raises `MalformedError(FIELD_INVALID)` for an empty or endless one."""
    line = bytearray()
    try:
        while len(line) <= _LONGEST and (byte := os.read(descriptor, 1)) not in {b"", b"\n"}:
            line += byte
        text = line.decode("utf-8").rstrip("\r")
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text or len(line) > _LONGEST:
        raise MalformedError(
            Reason.FIELD_INVALID,
            f"There is no line of text to read from descriptor {descriptor}.",
            fix="Give a descriptor that is open for reading, for example --pin-fd 3 with 3< FILE.",
        )
    return text


@contextmanager
def open_terminal(fix: str = "Give the secrets with --pin-fd and --access-pass-fd.") -> Iterator[TtyLines]:
    """The terminal the command was started from. Raises `UsageError` with `fix` where there is none."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise UsageError("There is no terminal to ask on.", fix=fix) from None
    with os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="replace") as screen:
        try:
            yield TtyLines(descriptor, screen)
        finally:
            os.close(descriptor)


async def ask_secret(lines: TtyLines, question: str) -> str:
    """Ask without echo. Raises `MalformedError(USER_CANCELLED)` for nothing typed."""
    typed = await lines.ask(question, secret=True)
    if not typed:
        raise MalformedError(Reason.USER_CANCELLED, "Nothing was typed.", fix="Run the command again.")
    return typed


class LateTerminal:
    """Opens the terminal when the first question comes, if one comes, and closes it with `stack`."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._lines: TtyLines | None = None

    def get(self) -> TtyLines:
        """The terminal. Raises `UsageError` where there is none."""
        if self._lines is None:
            self._lines = self._stack.enter_context(open_terminal())
        return self._lines

    async def interaction(self, *, last_try: bool = False) -> TerminalInteraction:
        """A provider's questions on it."""
        asking = TerminalInteraction(self.get(), asyncio.get_running_loop(), last_try=last_try)
        return await self._stack.enter_async_context(asking)


class TerminalInteraction:
    """`ProviderInteraction` on a terminal. Providers ask from their own thread; the questions run in `loop`.

    `async with` it: an interrupted command takes its question back, so that the terminal has its echo again. Work that
    ends only when its questions do is done `during` it.
    """

    def __init__(self, lines: TtyLines, loop: asyncio.AbstractEventLoop, *, last_try: bool = False) -> None:
        self._lines = lines
        self._last_try = last_try
        self._loop = loop
        self._questions: set[asyncio.Task[object]] = set()
        self._is_over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._withdraw()

    async def during(self, work: Coroutine[object, object, _T]) -> _T:
        """Do something that asks. When it is interrupted the questions go first, for its threads wait for them."""
        working = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await self._withdraw()
            working.cancel()
            await asyncio.wait({working})
            raise

    async def _withdraw(self) -> None:
        self._is_over = True
        for question in self._questions:
            question.cancel()
        await asyncio.gather(*self._questions, return_exceptions=True)

    def request_pin(self, retries_left: int | None, min_length: int) -> Pin | None:  # noqa: ARG002
        """Ask for the PIN, with the tries that are left."""
        left = "" if retries_left is None else f" ({tries_left(retries_left)})"
        return _pin(self._ask(f"PIN{left}: "))

    def request_new_pin(self, min_length: int) -> Pin | None:
        """Ask for a first PIN, twice."""
        self._lines.show(f"Choose a PIN of at least {min_length} characters. Only what holds the key learns it.")
        return _pin(self._twice(min_length))

    def confirm_presence(self, context: PresenceContext) -> bool:  # noqa: ARG002
        """Whoever started the command on this terminal is there."""
        return True

    def allows_last_try(self) -> bool:
        """What the command was started with."""
        return self._last_try

    def touch_needed(self) -> None:
        """Remind."""
        self.tell("Touch the security key now.")

    def tell(self, text: str) -> None:
        """Show it; a key's own name may be in it."""
        self._lines.show(inert(text, longest=400))

    def _twice(self, min_length: int) -> str | None:
        while True:
            first = self._ask("New PIN: ")
            if not first:
                return None
            if len(first) < min_length:
                self._lines.show(f"That is too short: {min_length} characters at least. Once more:")
                continue
            if first == self._ask("New PIN again: "):
                return first
            self._lines.show("The two are not the same. Once more:")

    def _ask(self, question: str) -> str | None:
        """The line; None at the end of the input, and for a question that is taken back."""
        try:
            return asyncio.run_coroutine_threadsafe(self._put(question), self._loop).result()
        except CancelledError:
            return None

    async def _put(self, question: str) -> str | None:
        if self._is_over:
            return None
        task = asyncio.current_task()
        assert task is not None
        self._questions.add(task)
        try:
            return await self._lines.ask(question, secret=True)
        finally:
            self._questions.discard(task)


def _pin(text: str | None) -> Pin | None:
    return Pin(text) if text else None
