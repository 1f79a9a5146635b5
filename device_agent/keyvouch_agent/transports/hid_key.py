"""A USB security key without the USB: CTAPHID packets in, packets out, commands carried out in between.

    key = HidKey(runner, send=..., entropy=..., monotonic=...)
    key.receive(packet)      a packet has come; answers go to `send`, now or later
    key.leave()              the last client is gone
    await key.unplug()

Belongs to one event loop. Not here: the protocol (`ctaphid`), and the device file the packets go through (`uhid`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.transports.command_runner import CommandRunner, RunningCommand
from keyvouch_agent.transports.ctaphid import Capability, CtapHid, HidCommand, Reaction
from keyvouch_agent.transports.iso7816 import ApduError, StatusWord, parse

__all__ = ["HidKey"]

_SOON: Final = 0.001
"""Timers of an event loop may come a little early; this much later is never too early."""


class HidKey:
    """One security key. `send` takes one packet of 64 bytes and does not block."""

    def __init__(
        self,
        runner: CommandRunner,
        *,
        send: Callable[[bytes], None],
        entropy: Entropy,
        monotonic: Callable[[], float],
        version: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        self._runner = runner
        self._send = send
        self._monotonic = monotonic
        self._hid = CtapHid(
            new_channel=lambda: int.from_bytes(entropy.token(4), "big"),
            capabilities=self._capabilities,
            device_version=version,
        )
        self._command: RunningCommand | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def receive(self, packet: bytes) -> None:
        """Take one packet from the client."""
        self._react(self._hid.receive(packet, self._monotonic()))

    def leave(self) -> None:
        """No client is there any more: cancel what runs, so that nobody is asked for one that is gone."""
        self._runner.cancel()

    async def unplug(self) -> None:
        """Cancel what runs and wait for its end."""
        if self._timer is not None:
            self._timer.cancel()
        self._runner.cancel()
        if self._task is not None:
            await self._task

    def _capabilities(self) -> Capability:
        both = Capability.WINK | Capability.CBOR
        return both if self._runner.speaks_u2f else both | Capability.NMSG

    def _react(self, reaction: Reaction) -> None:
        for packet in reaction.packets:
            self._send(packet)
        if reaction.wink:
            self._runner.journal("wink")
        if reaction.cancel:
            self._runner.cancel()
        if reaction.start is not None:
            self._start(*reaction.start)
        self._set_timer()

    def _start(self, command: HidCommand, data: bytes) -> None:
        if command is HidCommand.CBOR:
            self._command = self._runner.start(data)
            self._task = asyncio.create_task(self._finish(self._command))
        else:
            self._task = asyncio.create_task(self._finish_u2f(data))

    async def _finish(self, command: RunningCommand) -> None:
        response = await command.wait()
        assert response is not None
        self._command = None
        self._react(self._hid.finish(response))

    async def _finish_u2f(self, message: bytes) -> None:
        """FIDO U2F Raw Message Formats, section 3: they are APDUs, answered in one piece whatever their form."""
        try:
            apdu = parse(message)
            if apdu.cla != 0:
                raise ApduError(StatusWord.CLASS_NOT_SUPPORTED)
            data, status = await self._runner.u2f(apdu.ins, apdu.p1, apdu.p2, apdu.data)
        except ApduError as error:
            data, status = b"", error.status
        self._react(self._hid.finish(data + status.to_bytes(2, "big")))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._hid.deadline
        if deadline is not None:
            seconds = max(0.0, deadline - self._monotonic()) + _SOON
            self._timer = asyncio.get_running_loop().call_later(seconds, self._elapse)

    def _elapse(self) -> None:
        needs_user = self._command is not None and self._command.needs_user
        self._react(self._hid.elapse(self._monotonic(), needs_user=needs_user))
