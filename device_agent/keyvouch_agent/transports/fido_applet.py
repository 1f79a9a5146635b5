"""The FIDO applet of a smartcard: APDUs in, APDUs out (CTAP 2.1 section 11.3, ISO7816, ISO14443 and NFC).

A client selects it, then sends CTAP2 commands in NFCCTAP_MSG. If it says that it can poll (P1 0x80), a command that
takes long is answered 9100 with a keep-alive status byte, and fetched, or cancelled, by NFCCTAP_GETRESPONSE; else the
answer comes when it is there. CTAP1/U2F messages are the instructions 1 to 3 of the interindustry class. Any bytes at
all get a status word. Not here: what carries the APDUs (`vpcd`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from keyvouch_agent.transports.command_runner import CommandRunner, RunningCommand
from keyvouch_agent.transports.iso7816 import CHAIN_BIT, GET_RESPONSE, ApduError, CommandApdu, Pieces, StatusWord, parse

__all__ = ["FIDO_AID", "FidoApplet"]

FIDO_AID: Final = bytes.fromhex("A0000006472F0001")
"""Section 11.3.3, applet selection."""

_INTERINDUSTRY: Final = 0x00
_CTAP_CLASS: Final = 0x80
_SELECT: Final = 0xA4
_BY_NAME: Final = 0x04
_MSG: Final = 0x10
_GETRESPONSE: Final = 0x11
_CONTROL: Final = 0x12
_U2F_REGISTER: Final = 0x01
_U2F_AUTHENTICATE: Final = 0x02
_U2F_VERSION: Final = 0x03

_CLIENT_POLLS: Final = 0x80
_CANCEL: Final = 0x11
_END_OF_MESSAGES: Final = 0x01

_PROCESSING: Final = b"\x01"
_UP_NEEDED: Final = b"\x02"

PATIENCE: Final = 0.1
"""Seconds that a command may take before a client that polls is told to. Section 11.3.2 recommends 0.8 at most."""

Answer = tuple[bytes, int]


class FidoApplet:
    """The one applet of the card. Methods are called one after the other, as a reader does."""

    def __init__(self, runner: CommandRunner) -> None:
        self._runner = runner
        self._pieces = Pieces()
        self._running: RunningCommand | None = None
        self._selected = False

    async def transmit(self, apdu: bytes) -> bytes:
        """Answer one command APDU: response data and status word."""
        try:
            command = parse(apdu)
            if command.cla & ~CHAIN_BIT not in (_INTERINDUSTRY, _CTAP_CLASS):
                raise ApduError(StatusWord.CLASS_NOT_SUPPORTED)
            if command.ins == GET_RESPONSE and not command.is_chained:
                return self._pieces.go_on(command)
            whole = self._pieces.join(command)
            if whole is None:
                return _word(StatusWord.SUCCESS)
            data, status = await self._carry_out(whole)
        except ApduError as error:
            return _word(error.status)
        return self._pieces.answer(whole, data, status)

    async def power_cycle(self) -> None:
        """The card loses its power, or is reset: whatever was under way is lost with it."""
        self._pieces.clear()
        self._selected = False
        await self._withdraw()
        await self._runner.power_cycle()

    def give_up(self) -> None:
        """The client is gone while a command runs: end the command soon."""
        self._runner.cancel()

    async def _carry_out(self, command: CommandApdu) -> Answer:
        act = _ACTS.get((command.cla, command.ins))
        if act is None or (act is FidoApplet._u2f and not self._runner.speaks_u2f):
            raise ApduError(StatusWord.INSTRUCTION_NOT_SUPPORTED)
        return await act(self, command)

    async def _select(self, command: CommandApdu) -> Answer:
        """ISO/IEC 7816-4:2005 section 7.1.1, by the full name of the applet. Another one takes this one's place."""
        if command.p1 != _BY_NAME or command.p2 != 0:
            raise ApduError(StatusWord.INCORRECT_PARAMETERS)
        await self._withdraw()
        if command.data != FIDO_AID:
            was_selected, self._selected = self._selected, False
            if was_selected:
                await self._runner.close_session()
            raise ApduError(StatusWord.NOT_FOUND)
        self._selected = True
        return b"U2F_V2" if self._runner.speaks_u2f else b"FIDO_2_0", StatusWord.SUCCESS

    async def _message(self, command: CommandApdu) -> Answer:
        """Section 11.3.7.1. A command that another one interrupts is cancelled."""
        self._require_selected()
        if command.p1 not in (0, _CLIENT_POLLS) or command.p2 != 0:
            raise ApduError(StatusWord.INCORRECT_PARAMETERS)
        await self._withdraw()
        self._running = self._runner.start(command.data)
        return await self._outcome(self._running, PATIENCE if command.p1 == _CLIENT_POLLS else None)

    async def _get_response(self, command: CommandApdu) -> Answer:
        """Section 11.3.7.2."""
        self._require_selected()
        if command.p1 not in (0, _CANCEL) or command.p2 != 0:
            raise ApduError(StatusWord.INCORRECT_PARAMETERS)
        if self._running is None:
            raise ApduError(StatusWord.CONDITIONS_NOT_SATISFIED)
        if command.p1 == _CANCEL:
            self._running.cancel()
        return await self._outcome(self._running, PATIENCE)

    async def _control(self, command: CommandApdu) -> Answer:
        """Section 11.3.7.3: the client is done with CTAP2 commands."""
        self._require_selected()
        if command.p1 != _END_OF_MESSAGES or command.p2 != 0:
            raise ApduError(StatusWord.INCORRECT_PARAMETERS)
        await self._withdraw()
        await self._runner.close_session()
        return b"", StatusWord.SUCCESS

    async def _u2f(self, command: CommandApdu) -> Answer:
        """FIDO NFC Protocol Specification v1.0: the raw messages of U2F are APDUs already."""
        self._require_selected()
        await self._withdraw()
        return await self._runner.u2f(command.ins, command.p1, command.p2, command.data)

    async def _outcome(self, running: RunningCommand, seconds: float | None) -> Answer:
        response = await running.wait(seconds)
        if response is None:
            return _UP_NEEDED if running.needs_user else _PROCESSING, StatusWord.UPDATE
        self._running = None
        return response, StatusWord.SUCCESS

    async def _withdraw(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await running.wait()

    def _require_selected(self) -> None:
        if not self._selected:
            raise ApduError(StatusWord.CONDITIONS_NOT_SATISFIED)


_ACTS: Final[Mapping[tuple[int, int], Callable[[FidoApplet, CommandApdu], Awaitable[Answer]]]] = {
    (_INTERINDUSTRY, _SELECT): FidoApplet._select,
    (_INTERINDUSTRY, _U2F_REGISTER): FidoApplet._u2f,
    (_INTERINDUSTRY, _U2F_AUTHENTICATE): FidoApplet._u2f,
    (_INTERINDUSTRY, _U2F_VERSION): FidoApplet._u2f,
    (_CTAP_CLASS, _MSG): FidoApplet._message,
    (_CTAP_CLASS, _GETRESPONSE): FidoApplet._get_response,
    (_CTAP_CLASS, _CONTROL): FidoApplet._control,
}


def _word(status: StatusWord) -> bytes:
    return status.to_bytes(2, "big")
