"""The relay: wakes the streams that wait in this process for what has just become durable.

It holds no state that matters. A stream subscribes first and reads the rows after, so nothing falls between; a
stream that does not keep up is told to come again, and finds everything in the rows. Another node's streams are
woken by the store's own notifications, not from here.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from keyvouch.ids import DeviceId, PromptId, SignInId
from keyvouch_server.domain.model import Prompt, SignIn, SignInState
from keyvouch_server.ports import NumberAsked
from keyvouch_server.use_cases.decisions import Answered
from keyvouch_server.use_cases.health import HealthVerdict

MAILBOX = 512
"""Events a device stream may be behind before it is told to reconnect."""


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
    """Events for one device stream, in order."""

    def __init__(self) -> None:
        self._events: deque[DeviceEvent] = deque()
        self._filled = asyncio.Event()

    def put(self, event: DeviceEvent) -> None:
        """Add an event; a full box is replaced by the notice that it was full."""
        if len(self._events) >= MAILBOX:
            self._events.clear()
            event = FellBehind()
        self._events.append(event)
        self._filled.set()

    async def take(self) -> DeviceEvent:
        """The next event, waiting for it if need be."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        return self._events.popleft()


class Relay:
    """Subscriptions of this process. Implements `ports.Announcer`."""

    def __init__(self) -> None:
        self._devices: defaultdict[DeviceId, list[Mailbox]] = defaultdict(list)
        self._watchers: defaultdict[SignInId, list[Callable[[SignIn], None]]] = defaultdict(list)

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

    def watch(self, sign_in: SignInId, notify: Callable[[SignIn], None]) -> None:
        """Call `notify` at every change of the sign-in, until `unwatch`."""
        self._watchers[sign_in].append(notify)

    def unwatch(self, sign_in: SignInId, notify: Callable[[SignIn], None]) -> None:
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
            for mailbox in self._devices.get(prompt.device_id, ()):
                mailbox.put(PromptWithdrawn(prompt.id, sign_in.state))

    def device_removed(self, device: DeviceId) -> None:
        """See `ports.Announcer`."""
        for mailbox in tuple(self._devices.get(device, ())):
            mailbox.put(DeviceRemoved())

    def drain(self) -> None:
        """The server stops: device streams end now and come again elsewhere, or here after the restart."""
        for mailboxes in tuple(self._devices.values()):
            for mailbox in tuple(mailboxes):
                mailbox.put(ServerStopping())
