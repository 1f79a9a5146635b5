"""The long-lived agent: one link per enrolment, and what user interfaces may ask of it.

It owns no socket and no terminal: `local_api` and `prompts.terminal` call the same methods. Decisions on different
prompts are signed one after the other, because a key's holder serves one ceremony at a time.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TypeAlias

from keyvouch.errors import ConflictError, KeyvouchError, NotFoundError, Reason
from keyvouch.statement import Decision
from keyvouch_agent.device_link import DeviceLink
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ledger import Enrolment, Ledger, not_enrolled
from keyvouch_agent.logs import AgentLog
from keyvouch_agent.pin_standing import check_pin_usable
from keyvouch_agent.ports import Pin
from keyvouch_agent.provider_shelf import ProviderShelf
from keyvouch_agent.session_ports import AppRequest
from keyvouch_agent.views import Document, pin_document

__all__ = ["Agent", "Events"]

Events: TypeAlias = asyncio.Queue[Document]

MAX_UNREAD = 256
"""Events a watcher may leave unread before it loses the newest ones."""

MakeLink: TypeAlias = Callable[[Enrolment, Callable[[Document], None]], DeviceLink]


@dataclasses.dataclass(slots=True)
class _Running:
    link: DeviceLink
    task: asyncio.Task[object]


class Agent:
    """Runs the links of every enrolment in the ledger."""

    def __init__(
        self, *, ledger: Ledger, make_link: MakeLink, shelf: ProviderShelf, signing: asyncio.Lock, log: AgentLog
    ) -> None:
        self._ledger = ledger
        self._shelf = shelf
        self._signing = signing
        self._make_link = make_link
        self._log = log
        self._running: dict[str, _Running] = {}
        self._watchers: set[Events] = set()
        self._stopping = asyncio.Event()
        self._loading = asyncio.Lock()

    async def run(self) -> None:
        """Run until `stop`. Raises LEDGER_CORRUPT and the errors of the home before anything is opened."""
        await asyncio.to_thread(self._ledger.sweep)
        try:
            await self.reload()
            await self._stopping.wait()
        finally:
            self._stopping.set()
            await self._end(list(self._running))
            self._shelf.close()
            self._log.info("stopped")

    def stop(self) -> None:
        """Ask `run` to end. May be called any number of times."""
        self._stopping.set()

    async def stopped(self) -> None:
        """Wait until somebody has asked the agent to stop."""
        await self._stopping.wait()

    async def reload(self) -> Document:
        """Take up enrolments that were added to the ledger or got a new key, and let go of those that were removed."""
        async with self._loading:
            found = {e.device_id: e for e in await asyncio.to_thread(self._ledger.enrolments)}
            running = [r.link.enrolment for r in self._running.values()]
            await self._end([e.device_id for e in running if not _goes_on(e, found.get(e.device_id))])
            for device_id, enrolment in found.items():
                if device_id not in self._running:
                    self._start(enrolment)
        return {"enrolments": len(self._running)}

    def status(self) -> Document:
        """Every enrolment and how its stream fares."""
        return {"enrolments": [running.link.status() for running in self._running.values()]}

    def pending(self) -> Document:
        """Prompts that wait for a decision, of all enrolments."""
        return {"prompts": [prompt for running in self._running.values() for prompt in running.link.prompts()]}

    async def show(self, prompt_id: str) -> Document:
        """One prompt, with the standing of the PIN it needs. An empty id means the only one."""
        link, prompt_id = self._find(prompt_id)
        capabilities = await link.capabilities()
        prompt = next((p for p in link.prompts() if p["prompt_id"] == prompt_id), {"prompt_id": prompt_id})
        return {**prompt, "pin": pin_document(capabilities)}

    async def approve(self, prompt_id: str, number: str, pin: Pin, *, last_try: bool = False) -> Document:
        """Approve with the number the person typed. The PIN is used once and dropped.

        `last_try`: she knows that a wrong one would block the card, and has said to go on.
        """
        link, prompt_id = self._find(prompt_id)
        interaction = GivenPin(pin, last_try=last_try, tell=self._teller(prompt_id))
        return await link.approve(prompt_id, number, interaction)

    async def begin_sign_in(self, account: str, wanted: AppRequest) -> Document:
        """Begin a sign-in for an app on this device; returns what the person is to be shown, with the PIN's standing.

        `account` is a user name or device id; empty for the only one.
        """
        link = self._account(account)
        capabilities = await link.capabilities()
        check_pin_usable(capabilities)
        return {**await link.own_sign_ins.begin(wanted), "pin": pin_document(capabilities)}

    async def sign_in(self, prompt_id: str, pin: Pin, *, last_try: bool = False) -> Document:
        """Complete it with the PIN, which is used once and dropped. Returns the session with its tokens."""
        interaction = GivenPin(pin, last_try=last_try, tell=self._teller(prompt_id))
        links = [r.link for r in self._running.values() if r.link.own_sign_ins.holds(prompt_id)]
        if not links:
            raise _no_prompt("There is no such sign-in: it was completed or has expired.")
        return await links[0].own_sign_ins.complete(prompt_id, interaction)

    async def deny(self, prompt_id: str) -> Document:
        """Deny. Needs no PIN."""
        return await self._refuse(prompt_id, Decision.DENY)

    async def report(self, prompt_id: str) -> Document:
        """Deny and tell the administrators that it was not the person."""
        return await self._refuse(prompt_id, Decision.REPORT)

    @contextmanager
    def watch(self) -> Iterator[Events]:
        """Events from now on, prompts that wait already first."""
        events: Events = asyncio.Queue(MAX_UNREAD)
        for prompt in [p for running in self._running.values() for p in running.link.prompts()]:
            _offer(events, {"event": "prompt", **prompt})
        self._watchers.add(events)
        try:
            yield events
        finally:
            self._watchers.discard(events)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[None]:
        """Let another process use the key providers until the end of the block. Raises VAULT_BUSY."""
        with ExitStack() as loan:
            async with self._signing:  # a ceremony that is under way ends first
                loan.enter_context(self._shelf.lent())
            yield

    async def _refuse(self, prompt_id: str, decision: Decision) -> Document:
        link, prompt_id = self._find(prompt_id)
        return await link.refuse(prompt_id, decision)

    def _account(self, account: str) -> DeviceLink:
        links = [r.link for r in self._running.values()]
        found = [e for e in links if account in ("", e.enrolment.device_id, e.enrolment.username)]
        if not found:
            raise not_enrolled()
        if len(found) > 1:
            raise _several(found)
        return found[0]

    def _find(self, prompt_id: str) -> tuple[DeviceLink, str]:
        open_prompts = [(r.link, str(p["prompt_id"])) for r in self._running.values() for p in r.link.prompts()]
        if prompt_id:
            known = [(r.link, prompt_id) for r in self._running.values() if r.link.holds(prompt_id)]
            if not known:
                raise _no_prompt("There is no such prompt: it was answered, was withdrawn or has expired.")
            return known[0]
        if not open_prompts:
            raise _no_prompt("No prompt is waiting.")
        if len(open_prompts) > 1:
            raise ConflictError(
                Reason.PROMPT_UNKNOWN,
                f"{len(open_prompts)} prompts are waiting, so it has to be said which one is meant.",
                fix="Name it: `keyvouch-agent pending` lists them.",
                metadata={"prompts": " ".join(name for _, name in open_prompts)},
            )
        return open_prompts[0]

    def _start(self, enrolment: Enrolment) -> None:
        link = self._make_link(enrolment, self._emit)
        task: asyncio.Task[object] = asyncio.create_task(self._run_link(link))
        task.add_done_callback(self._on_link_end)
        self._running[enrolment.device_id] = _Running(link, task)

    async def _run_link(self, link: DeviceLink) -> None:
        try:
            await link.run()
        except KeyvouchError as error:
            self._log.error("link-failed", device=link.enrolment.device_id, reason=error.reason, message=str(error))
            link.detail = str(error)

    def _on_link_end(self, task: asyncio.Task[object]) -> None:
        """A link that failed for a reason nobody foresaw ends the agent, which then raises it."""
        if not task.cancelled() and task.exception() is not None:
            self.stop()

    async def _end(self, device_ids: list[str]) -> None:
        for device_id in device_ids:
            running = self._running.pop(device_id)
            running.task.cancel()
            with suppress(asyncio.CancelledError):
                await running.task

    def _teller(self, prompt_id: str) -> Callable[[str], None]:
        """Passes on, from any thread, what the person is to do with the key that a prompt needs."""
        loop = asyncio.get_running_loop()

        def tell(text: str) -> None:
            event: Document = {"event": "key", "prompt_id": prompt_id, "message": text}
            with suppress(RuntimeError):  # the agent has ended meanwhile
                loop.call_soon_threadsafe(self._emit, event)

        return tell

    def _emit(self, document: Document) -> None:
        for events in self._watchers:
            _offer(events, document)


def _goes_on(running: Enrolment, found: Enrolment | None) -> bool:
    return found is not None and found.credential_id == running.credential_id


def _offer(events: Events, document: Document) -> None:
    with suppress(asyncio.QueueFull):
        events.put_nowait(document)


def _several(links: list[DeviceLink]) -> ConflictError:
    return ConflictError(
        Reason.FIELD_INVALID,
        f"{len(links)} accounts are enrolled on this device.",
        fix="Name one of them: " + ", ".join(link.enrolment.device_id for link in links),
    )


def _no_prompt(what: str) -> NotFoundError:
    return NotFoundError(
        Reason.PROMPT_UNKNOWN, what, fix="List what is open with `keyvouch-agent pending`, or begin the sign-in again."
    )
