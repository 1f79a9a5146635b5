"""The virtual key on a card reader: the way of every real NFC key and card, through the real pcscd.

    with PrivatePcscd() as pcscd, VirtualFido.make(folder) as key, ReaderKey(key, pcscd) as fido:
        Ctap2(fido.device).get_info()      # python-fido2's CtapPcscDevice
        fido.remove()

Here pyscard is needed: `pip install 'keyvouch[bench,pcsc]'`. What is *not* here: the card's side of the conversation
(`keyvouch_agent.transports`).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.backoff import Backoff
from keyvouch_agent.transports.command_runner import CommandRunner
from keyvouch_agent.transports.fido_applet import FidoApplet
from keyvouch_agent.transports.vpcd import VirtualReader
from keyvouch_bench.pcscd import READER, PrivatePcscd
from keyvouch_bench.virtual_fido import VirtualFido, pin_of

if TYPE_CHECKING:
    from fido2.pcsc import CtapPcscDevice

__all__ = ["ReaderKey", "open_card", "wait_for_card"]

PATIENCE_SECONDS: Final = 20.0
"""How long a card may take to be seen, or to be missed."""


class ReaderKey:
    """A virtual key in one slot of the private reader while inside a `with`."""

    emulated: Final = True

    def __init__(self, key: VirtualFido, pcscd: PrivatePcscd, *, slot: int = 0) -> None:
        self.key = key
        self._pcscd = pcscd
        self._slot = slot
        self._card: _CardThread | None = None
        self._device: CtapPcscDevice | None = None

    @property
    def reader(self) -> str:
        """The reader's name as pcscd has it."""
        return f"{READER} 00 {self._slot:02X}"

    @property
    def device(self) -> CtapPcscDevice:
        """The key through pcscd. Raises `DeviceError(AUTHENTICATOR_REMOVED)` while it is not there."""
        if self._device is None:
            if self._card is None:
                raise _removed(self.reader)
            self._device = open_card(self.reader)
        return self._device

    @property
    def touch(self) -> bool:
        """Whether it is touched whenever it asks."""
        return self.key.touch

    @touch.setter
    def touch(self, on: bool) -> None:
        self.key.touch = on

    def pin(self) -> str:
        """Its PIN, which is set now if none is."""
        return pin_of(self.device)

    def insert(self) -> None:
        """Put it on the reader and wait until pcscd has seen it. Nothing happens if it is there."""
        if self._card is None:
            self._card = _CardThread(self.key, self._pcscd, self._slot)
            wait_for_card(self.reader, present=True)

    def remove(self) -> None:
        """Take it away and wait until pcscd has missed it. Nothing happens if it is not there."""
        self.close()
        card, self._card = self._card, None
        if card is not None:
            card.end()
            wait_for_card(self.reader, present=False)

    def power_cycle(self) -> None:
        """Take the power away, as a reader does when its last user is done, and give it back."""
        self.device.close()
        self.device.connect()  # type: ignore[no-untyped-call] # of python-fido2

    def close(self) -> None:
        """Let go of it, so that another program has it alone; `device` opens it again."""
        device, self._device = self._device, None
        if device is not None:
            with suppress(Exception):  # whatever pyscard says of a card that is gone
                device.close(release=True)

    def __enter__(self) -> Self:
        self.insert()
        return self

    def __exit__(self, *failure: object) -> None:
        self.remove()  # and not sooner: pcscd would take the next card for this one


class _CardThread:
    """The card's side of the conversation with vpcd, on an event loop and a thread of its own."""

    def __init__(self, key: VirtualFido, pcscd: PrivatePcscd, slot: int) -> None:
        self._key = key
        self._connect = lambda: pcscd.connect(slot)
        self._loop = asyncio.new_event_loop()
        self._serving = self._loop.create_task(self._serve())
        self._thread = threading.Thread(target=self._run, name="virtual card", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Take the card out, whatever it is doing."""
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(PATIENCE_SECONDS)

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        self._loop.close()

    async def _serve(self) -> None:
        runner = CommandRunner(self._key.authenticator, self._key.user, journal=_untold)
        backoff = Backoff(jitter=random.random, first=0.02, longest=0.5)
        try:
            await VirtualReader(FidoApplet(runner), self._connect, backoff=backoff, journal=_untold).run()
        finally:
            await runner.close()


def open_card(reader: str) -> CtapPcscDevice:
    """The key on the reader of that name, as python-fido2 opens it. Waits until it is there."""
    from fido2.pcsc import CtapPcscDevice  # noqa: PLC0415 - needs pyscard, which not every bench has
    from smartcard.System import readers  # noqa: PLC0415

    wait_for_card(reader, present=True)
    found = next(each for each in readers() if each.name == reader)
    return CtapPcscDevice(found.createConnection(), reader)


def wait_for_card(reader: str, *, present: bool) -> None:
    """Wait until pcscd sees a card in the reader of that name, or sees none. Raises `DeviceError`."""
    from smartcard import scard  # noqa: PLC0415 - needs pyscard

    failed, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    if failed:
        raise _unreachable(reader)
    try:
        state, end = scard.SCARD_STATE_UNAWARE, time.monotonic() + PATIENCE_SECONDS
        while (left := end - time.monotonic()) > 0:
            _, changes = scard.SCardGetStatusChange(context, int(left * 1000), [(reader, state)])
            state = changes[0][1] & ~scard.SCARD_STATE_CHANGED
            if state & scard.SCARD_STATE_UNKNOWN:
                raise _unreachable(reader)
            if bool(state & scard.SCARD_STATE_PRESENT) is present:
                return
    finally:
        scard.SCardReleaseContext(context)
    raise _removed(reader) if present else _stays(reader)


def _untold(_event: str, **_fields: object) -> None:
    """A journal nobody reads."""


def _removed(reader: str) -> DeviceError:
    return DeviceError(
        Reason.AUTHENTICATOR_REMOVED, f"There is no key on the reader {reader!r}.", fix="Put one there: `insert()`."
    )


def _stays(reader: str) -> DeviceError:
    return DeviceError(Reason.DEVICE_FAILED, f"The reader {reader!r} does not let go of its card.", fix="Start anew.")


def _unreachable(reader: str) -> DeviceError:
    return DeviceError(
        Reason.READER_UNAVAILABLE,
        f"There is no reader {reader!r}, or no pcscd to ask for it.",
        fix="`pcsc_scan -r` lists the readers that there are.",
    )
