"""Prompts in the terminal of `keyvouch-agent run`.

One prompt at a time. Approve, Deny and "This was not me" are offered alike, with no default; the number is asked
before the PIN, the PIN last and without echo. A withdrawn prompt takes its question with it. A slip (another letter, a
wrong count of digits, a wrong PIN) asks that question again while the request is open.

Not here: how a decision is made and sent (`agent`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_agent.agent import Agent
from keyvouch_agent.pin_standing import check_told_pin
from keyvouch_agent.ports import Pin
from keyvouch_agent.prompts.card import number_choices, number_question, pin_line, prompt_card
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.prompts.tty_lines import TtyLines

__all__ = ["TerminalPrompts"]

_ASK_AGAIN = frozenset({Reason.FIELD_INVALID, Reason.PIN_WRONG})
_CHOICES = "  [a] Approve   [d] Deny   [r] This was not me"
_AFTER = {"reported": " The administrator finds it in the audit log."}


class TerminalPrompts:
    """Shows the prompts of `agent` one after the other, until cancelled or the input ends."""

    def __init__(self, agent: Agent, lines: TtyLines) -> None:
        self._agent = agent
        self._lines = lines
        self._waiting: deque[str] = deque()
        self._current = ""
        self._question: asyncio.Task[None] | None = None
        self._links: dict[str, tuple[str, str]] = {}

    async def run(self) -> None:
        """Follow the agent's events and ask."""
        with self._agent.watch() as events:
            try:
                while True:
                    self._ask_next()
                    await self._wait_for(events)
            finally:
                await self._drop_question()

    async def _wait_for(self, events: asyncio.Queue[Mapping[str, object]]) -> None:
        event = asyncio.create_task(events.get())
        tasks: set[asyncio.Task[object]] = {event}
        if self._question is not None:
            tasks.add(self._question)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                await self._on_event(event.result())
        finally:
            event.cancel()
        if self._question is not None and self._question.done():
            self._question.result()
            self._question, self._current = None, ""

    def _ask_next(self) -> None:
        if self._question is None and self._waiting:
            self._current = self._waiting.popleft()
            self._question = asyncio.create_task(self._ask(self._current))

    async def _on_event(self, event: Mapping[str, object]) -> None:
        prompt_id = str(event.get("prompt_id", ""))
        match event.get("event"):
            case "prompt":
                self._waiting.append(prompt_id)
            case "withdrawn":
                await self._withdraw(prompt_id, str(event.get("state")))
            case "outcome":
                with suppress(ValueError):
                    self._waiting.remove(prompt_id)
            case "key":
                self._lines.show(inert(str(event.get("message")), longest=300))
            case "refused":
                self._lines.show(f"A request was refused. {inert(str(event.get('message')), longest=300)}")
            case "link":
                self._show_link(event)
            case _:
                pass

    def _show_link(self, event: Mapping[str, object]) -> None:
        """Say what changed. An outage is told once, however often the agent tries to connect again."""
        who, state = f"{event.get('username')} {event.get('server')}", str(event.get("state"))
        detail = str(event.get("detail") or "").partition(" Next try")[0]
        before = self._links.get(who, ("", ""))
        if (state, detail) == before or (state == "connecting" and before[0] == "waiting"):
            return
        self._links[who] = (state, detail)
        self._lines.show(_link_line({**event, "detail": detail}))

    async def _withdraw(self, prompt_id: str, state: str) -> None:
        with suppress(ValueError):
            self._waiting.remove(prompt_id)
        if prompt_id == self._current:
            await self._drop_question()
            self._lines.show(f"\nThe request is {inert(state)}; it needs no answer any more.")

    async def _drop_question(self) -> None:
        question, self._question, self._current = self._question, None, ""
        if question is not None:
            question.cancel()
            with suppress(asyncio.CancelledError, KeyvouchError):
                await question

    async def _ask(self, prompt_id: str) -> None:
        """Ask until there is a decision, the prompt is gone or the input has ended."""
        while True:
            try:
                await self._decide(prompt_id, await self._agent.show(prompt_id))
                return
            except KeyvouchError as error:
                self._lines.show(inert(str(error), longest=400))
                if error.reason is Reason.PROMPT_UNKNOWN or (
                    error.reason not in _ASK_AGAIN and not self._is_open(prompt_id)
                ):
                    return

    def _is_open(self, prompt_id: str) -> bool:
        prompts = self._agent.pending()["prompts"]
        return isinstance(prompts, list) and any(p["prompt_id"] == prompt_id for p in prompts)

    async def _decide(self, prompt_id: str, prompt: Mapping[str, object]) -> None:
        """Show the card and carry out the choice."""
        pin = prompt.get("pin")
        assert isinstance(pin, Mapping)
        self._lines.show("\n" + prompt_card(prompt, pin) + "\n" + _CHOICES)
        match await self._ask_until(_is_choice, "Your choice (a, d, r): ", "Type a, d or r, then Enter."):
            case "a":
                await self._approve(prompt_id, prompt, pin)
            case "d":
                self._tell(await self._agent.deny(prompt_id))
            case "r":
                self._tell(await self._agent.report(prompt_id))
            case _:
                self._lines.show("The input has ended. Decide with `keyvouch-agent approve`, `deny` or `report`.")

    async def _approve(self, prompt_id: str, prompt: Mapping[str, object], pin: Mapping[str, object]) -> None:
        check_told_pin(pin)
        digits, choices = prompt.get("number_digits"), number_choices(prompt)
        advice = f"The number has {digits} digits, leading zeros included."
        if choices:
            advice = "Type one of these numbers. If none of them is shown, deny the request: type d."
        number = await self._ask_until(
            lambda typed: typed in [*choices, "d"] if choices else _is_number(typed, digits),
            number_question(prompt),
            advice,
        )
        if number == "d":
            self._tell(await self._agent.deny(prompt_id))
            return
        while number is not None:
            typed = await self._ask_pin(pin)
            if typed is None:
                return
            try:
                self._tell(await self._agent.approve(prompt_id, number, Pin(typed)))
                return
            except KeyvouchError as error:
                if error.reason is not Reason.PIN_WRONG or not self._is_open(prompt_id):
                    raise
                self._lines.show(inert(str(error), longest=400))
            now = (await self._agent.show(prompt_id)).get("pin")
            pin = now if isinstance(now, Mapping) else pin

    async def _ask_pin(self, pin: Mapping[str, object]) -> str | None:
        """The PIN; empty where the key verifies its user itself, None at the end of the input."""
        if not pin.get("asks_pin", True):
            return ""
        return await self._lines.ask(f"PIN ({pin_line(pin)}): ", secret=True)

    async def _ask_until(self, fits: Callable[[str], bool], question: str, advice: str) -> str | None:
        """The first answer that fits, in lower case and without spaces around it; None at the end of the input."""
        while (typed := await self._lines.ask(question)) is not None:
            answer = typed.strip().lower()
            if fits(answer):
                return answer
            self._lines.show(advice)
        return None

    def _tell(self, outcome: Mapping[str, object]) -> None:
        if outcome.get("accepted"):
            state = str(outcome.get("state"))
            self._lines.show(f"Done: {inert(state)}.{_AFTER.get(state, '')}")
        else:
            self._lines.show(inert(str(outcome.get("message") or outcome.get("state")), longest=300))


def _is_choice(typed: str) -> bool:
    return typed in {"a", "d", "r"}


def _is_number(typed: str, digits: object) -> bool:
    return typed.isascii() and typed.isdigit() and len(typed) == digits


def _link_line(event: Mapping[str, object]) -> str:
    who = f"{inert(str(event.get('username')), longest=40)} at {inert(str(event.get('server')), longest=60)}"
    detail = inert(str(event.get("detail") or ""), longest=300)
    return f"{who}: {inert(str(event.get('state')))}. {detail}".rstrip()
