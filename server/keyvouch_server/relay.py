"""The relay: wakes the streams that wait in this process for what has just become durable.

It holds no state that matters. A stream subscribes first and reads the rows after, so nothing falls between; a
stream that does not keep up is told to come again, and finds everything in the rows. Another node's streams are
woken by the store's own notifications (`node_events`), not from here. What comes by both ways, or is read again, is
told once: so those who tell need not know what was told before.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from keyvouch.ids import DeviceId, PromptId, SignInId
from keyvouch_server.domain.model import Prompt, SignIn, SignInState
from keyvouch_server.ports import NumberAsked
from keyvouch_server.use_cases.decisions import Answered
from keyvouch_server.use_cases.health import HealthVerdict

MAILBOX = 512
"""Events a device stream may be behind before it is told to reconnect."""
REMEMBERED: Final = 64
"""Prompts of which a device stream knows what it was told. A device has one that is open, seldom more (KI4)."""
MISSED_SECONDS: Final = 30.0
"""How much later than another node's act, at most, this process begins to wait for it."""
MOST_MISSED: Final = 8192


@dataclass(frozen=True, slots=True)
class PromptArrived:
    """A prompt for the device."""

    prompt: Prompt
    asked: NumberAsked


@dataclass(frozen=True, slots=True)
class PromptWithdrawn:
    """A prompt the device need not show any more."""

    prompt_id: PromptId
    state: SignInState


@dataclass(frozen=True, slots=True)
class DeviceRemoved:
    """The device is not registered any more: the stream ends."""


@dataclass(frozen=True, slots=True)
class FellBehind:
    """The stream did not keep up: it ends and the device comes again."""


@dataclass(frozen=True, slots=True)
class OutcomeReady:
    """What became of an answer that came in on this very stream."""

    prompt_id: str
    answered: Answered


@dataclass(frozen=True, slots=True)
class HealthJudged:
    """What was made of a health report that came in on this very stream."""

    verdict: HealthVerdict


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """The device has closed its side."""


@dataclass(frozen=True, slots=True)
class ServerStopping:
    """The server stops: the stream ends and the device comes again."""


Watcher: TypeAlias = Callable[[SignIn | None], None]
"""Takes a sign-in as it is now; None once the row is gone, which is so after the user was deleted."""

DeviceEvent = (
    PromptArrived
    | PromptWithdrawn
    | OutcomeReady
    | HealthJudged
    | DeviceRemoved
    | FellBehind
    | ServerStopping
    | StreamClosed
)


class Mailbox:
    """Events for one device stream, in order. Nothing is told twice, and no prompt after its withdrawal."""

    def __init__(self) -> None:
        self._events: deque[DeviceEvent] = deque()
        self._filled = asyncio.Event()
        self._told: dict[PromptId, SignInState] = {}

    def put(self, event: DeviceEvent) -> None:
        """Add an event; a full box is replaced by the notice that it was full."""
        if not self._is_news(event):
            return
        if len(self._events) >= MAILBOX:
            self._events.clear()
            event = FellBehind()
        self._events.append(event)
        self._filled.set()

    def told(self, prompt: PromptId) -> SignInState | None:
        """As what the device knows the prompt: pending, or what it was withdrawn or answered as; None: not at all."""
        return self._told.get(prompt)

    def _is_news(self, event: DeviceEvent) -> bool:
        match event:
            case PromptArrived(prompt):
                return prompt.id not in self._told and self._note(prompt.id, SignInState.PENDING)
            case PromptWithdrawn(prompt_id, state):
                return self._told.get(prompt_id) is not state and self._note(prompt_id, state)
            case OutcomeReady(prompt_id, answered):
                known = PromptId(prompt_id)  # or anything a device may say: that is not kept
                return known not in self._told or self._note(known, answered.state)
            case _:
                return True

    def _note(self, prompt: PromptId, state: SignInState) -> bool:
        self._told[prompt] = state
        if len(self._told) > REMEMBERED:
            del self._told[next(iter(self._told))]
        return True

    async def take(self) -> DeviceEvent:
        """The next event, waiting for it if need be."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        return self._events.popleft()


class MissedSignIns:
    """Sign-ins that another node has changed when nobody here waited for them, or not yet.

    A node hears of the others on another connection than it writes on. So it may hear that a sign-in was decided before
    it has heard that it began it itself.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._missed: dict[SignInId, float] = {}
        self._any_until = now()

    def add(self, sign_in: SignInId) -> None:
        """Remember one for a while."""
        self._missed.pop(sign_in, None)
        self._missed[sign_in] = self._now() + MISSED_SECONDS
        while len(self._missed) > MOST_MISSED or self._missed[next(iter(self._missed))] <= self._now():
            del self._missed[next(iter(self._missed))]

    def add_any(self) -> None:
        """Any may have been changed: nothing was heard for a time."""
        self._any_until = self._now() + MISSED_SECONDS

    def __contains__(self, sign_in: SignInId) -> bool:
        until = max(self._missed.get(sign_in, self._any_until), self._any_until)
        return self._now() < until


def _look_nowhere(_sign_in: SignInId) -> None:
    """A store with one node: nobody else changes what is in it."""


class Relay:
    """Subscriptions of this process. Implements `ports.Announcer`."""

    def __init__(self) -> None:
        self.missed = MissedSignIns()
        self.look_again: Callable[[SignInId], None] = _look_nowhere
        """Has the row of a sign-in read, and whoever watches it told, if it is pending no more."""
        self._devices: defaultdict[DeviceId, list[Mailbox]] = defaultdict(list)
        self._watchers: defaultdict[SignInId, list[Watcher]] = defaultdict(list)

    @contextmanager
    def device(self, device: DeviceId) -> Iterator[Mailbox]:
        """A mailbox that receives the device's events while the block lasts."""
        mailbox = Mailbox()
        self._devices[device].append(mailbox)
        try:
            yield mailbox
        finally:
            self._devices[device].remove(mailbox)
            if not self._devices[device]:
                del self._devices[device]

    def is_connected(self, device: DeviceId) -> bool:
        """Whether a stream of this device is open in this process."""
        return device in self._devices

    def connected(self) -> Collection[DeviceId]:
        """The devices with a stream in this process."""
        return tuple(self._devices)

    def is_watched(self, sign_in: SignInId) -> bool:
        """Whether somebody in this process waits for the sign-in."""
        return sign_in in self._watchers

    def watched(self) -> Collection[SignInId]:
        """The sign-ins that somebody in this process waits for."""
        return tuple(self._watchers)

    def watch(self, sign_in: SignInId, notify: Watcher) -> None:
        """Call `notify` at every change of the sign-in, until `unwatch`; the same state may be told again."""
        self._watchers[sign_in].append(notify)
        if sign_in in self.missed:
            self.look_again(sign_in)

    def unwatch(self, sign_in: SignInId, notify: Watcher) -> None:
        """Undo `watch`; harmless when it was undone already."""
        watchers = self._watchers.get(sign_in, [])
        if notify in watchers:
            watchers.remove(notify)
        if not watchers:
            self._watchers.pop(sign_in, None)

    def prompt(self, prompt: Prompt, asked: NumberAsked) -> None:
        """See `ports.Announcer`."""
        for mailbox in self._devices.get(prompt.device_id, ()):
            mailbox.put(PromptArrived(prompt, asked))

    def sign_in(self, sign_in: SignIn, prompts: Sequence[Prompt]) -> None:
        """See `ports.Announcer`."""
        for notify in tuple(self._watchers.get(sign_in.id, ())):
            notify(sign_in)
        if sign_in.state is SignInState.PENDING or sign_in.security_key:  # no device was ever told of the latter
            return
        for prompt in prompts:
            self.withdrawn(prompt.device_id, prompt.id, sign_in.state)

    def gone(self, sign_in: SignInId) -> None:
        """The row of a sign-in is not there any more."""
        for notify in tuple(self._watchers.get(sign_in, ())):
            notify(None)

    def withdrawn(self, device: DeviceId, prompt: PromptId, state: SignInState) -> None:
        """A device need not show a prompt any more."""
        for mailbox in self._devices.get(device, ()):
            mailbox.put(PromptWithdrawn(prompt, state))

    def wants(self, device: DeviceId, prompt: PromptId) -> bool:
        """Whether a stream of the device is open here that knows nothing of the prompt."""
        return any(mailbox.told(prompt) is None for mailbox in self._devices.get(device, ()))

    def shows(self, device: DeviceId, prompt: PromptId) -> bool:
        """Whether a stream of the device is open here on which the prompt still waits."""
        return any(mailbox.told(prompt) is SignInState.PENDING for mailbox in self._devices.get(device, ()))

    def device_removed(self, device: DeviceId) -> None:
        """See `ports.Announcer`."""
        for mailbox in tuple(self._devices.get(device, ())):
            mailbox.put(DeviceRemoved())

    def drain(self) -> None:
        """The server stops: device streams end now and come again elsewhere, or here after the restart."""
        for mailboxes in tuple(self._devices.values()):
            for mailbox in tuple(mailboxes):
                mailbox.put(ServerStopping())
