"""A card in vsmartcard's virtual reader: the protocol between its driver in pcscd (vpcd) and a card.

The driver listens on a TCP port, and the card connects to it. Every message is two bytes of length, most significant
first, and that many bytes. One byte alone is about power, or asks for the answer to reset; everything longer is an
APDU. Source: the documentation of vsmartcard, "Creating a virtual smart card".
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_agent.backoff import Backoff
from keyvouch_agent.transports.command_runner import Journal, tell_nobody

__all__ = ["ATR", "DEFAULT_PORT", "Card", "VirtualCard", "VirtualReader", "dial", "loopback_address"]

DEFAULT_PORT: Final = 35963
"""Of the first slot of the reader."""

_CONNECT_SECONDS: Final = 5.0
_STEADY_SECONDS: Final = 5.0
"""A connection that lasted longer is no reason to wait longer before the next."""

# PC/SC part 3, section 3.1.3.2.3: how a reader presents a contactless card. Its historical bytes are those of ISO/IEC
# 7816-4:2005 section 8.1: card capabilities (selection by name, command chaining, extended lengths), and our name.
_HISTORICAL: Final = bytes.fromhex("8073C021C058") + b"Keyvouch"


def _answer_to_reset(historical: bytes) -> bytes:
    body = bytes([0x80 | len(historical), 0x80, 0x01]) + historical
    check = 0
    for byte in body:
        check ^= byte
    return b"\x3b" + body + bytes([check])


ATR: Final = _answer_to_reset(_HISTORICAL)
"""The answer to reset: T=0 and T=1 offered, checksum last (ISO/IEC 7816-3 section 8.2)."""


class Card(Protocol):
    """What is put in the reader."""

    async def transmit(self, apdu: bytes) -> bytes:
        """Answer a command APDU."""

    async def power_cycle(self) -> None:
        """Lose the power, or be reset."""

    def give_up(self) -> None:
        """The reader is gone: end soon what runs."""


def loopback_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, or `HOST` alone. Raises `UsageError` for anything but an address of this machine itself."""
    named = ":" in text and not text.endswith("]")
    host, port = text.rsplit(":", 1) if named else (text, str(DEFAULT_PORT))
    host = host.strip("[]")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
        number = int(port) if port.isascii() and port.isdigit() else 0
    except ValueError:
        local, number = False, 0
    if not local or not 0 < number < 1 << 16:
        raise UsageError(
            f"{text!r} is no address of the virtual reader on this machine.",
            fix=f"Give one like 127.0.0.1:{DEFAULT_PORT}: what passes there is not protected.",
        )
    return host, number


class VirtualCard:
    """A card's side of the conversation with the reader it is put in, over one connection after the other."""

    def __init__(self, card: Card, journal: Journal = tell_nobody) -> None:
        self._card = card
        self._journal = journal
        self._powered = False

    async def serve(self, link: socket.socket) -> None:
        """Be in the reader at the other end of `link` until that goes away, or this is cancelled; `link` is closed."""
        _acknowledge_at_once(link)
        reader, writer = await asyncio.open_connection(sock=link)
        message = asyncio.ensure_future(_message(reader))
        try:
            while True:
                request = await message
                message = asyncio.ensure_future(_message(reader))
                answer = await self._unless_gone(self._answer(request), message)
                if answer is not None:
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
                _acknowledge_at_once(link)
        except (EOFError, OSError):
            pass
        finally:
            message.cancel()
            await asyncio.gather(message, return_exceptions=True)
            writer.close()
            await self._power_off()

    async def _unless_gone(
        self, answer: Coroutine[Any, Any, bytes | None], message: asyncio.Future[bytes]
    ) -> bytes | None:
        """Wait for the answer; when the reader goes away meanwhile, let the card end what it does."""
        answering = asyncio.ensure_future(answer)
        both: set[asyncio.Future[Any]] = {answering, message}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if message.done() and message.exception() is not None:
                self._card.give_up()
            return await asyncio.shield(answering)
        finally:
            if not answering.done():  # the card is taken out
                self._card.give_up()
                await asyncio.gather(answering, return_exceptions=True)

    async def _answer(self, request: bytes) -> bytes | None:
        match request:
            case b"\x00":
                await self._power_off()
            case b"\x01":
                await self._power_on()
            case b"\x02":
                await self._reset()
            case b"\x04":  # several times a second: this is how the driver sees whether the card is still there
                return ATR
            case _ if len(request) != 1:
                return await self._card.transmit(request)
            case _:
                pass
        return None

    async def _power_off(self) -> None:
        if self._powered:
            self._powered = False
            self._journal("power-off")
            await self._card.power_cycle()

    async def _power_on(self) -> None:
        """Power up. The card's clocks start here, so it starts afresh though it has forgotten everything already."""
        if not self._powered:
            self._powered = True
            self._journal("power-on")
            await self._card.power_cycle()

    async def _reset(self) -> None:
        """A warm reset: a card forgets as much by it as it does without power."""
        self._powered = True
        self._journal("reset")
        await self._card.power_cycle()


class VirtualReader:
    """Keeps a card in the reader that `connect` reaches, and puts it in again when pcscd was away."""

    def __init__(
        self, card: Card, connect: Callable[[], socket.socket], *, backoff: Backoff, journal: Journal = tell_nobody
    ) -> None:
        self._card = VirtualCard(card, journal)
        self._connect = connect
        self._backoff = backoff
        self._journal = journal

    async def run(self) -> None:
        """Serve until cancelled. Raises `UnavailableError` when the reader is not there at the start."""
        link = await asyncio.to_thread(self._connect)
        while True:
            self._journal("inserted")
            started = asyncio.get_running_loop().time()
            await self._card.serve(link)
            self._journal("reader-gone")
            if asyncio.get_running_loop().time() - started > _STEADY_SECONDS:
                self._backoff.reset()
            link = await self._connect_again()

    async def _connect_again(self) -> socket.socket:
        while True:
            await asyncio.sleep(self._backoff.delay())
            try:
                return await asyncio.to_thread(self._connect)
            except UnavailableError:
                continue


def dial(address: tuple[str, int]) -> socket.socket:
    """Connect to the reader. Raises `UnavailableError(READER_UNAVAILABLE)`."""
    host, port = address
    try:
        return socket.create_connection(address, timeout=_CONNECT_SECONDS)
    except OSError as error:
        raise UnavailableError(
            Reason.READER_UNAVAILABLE,
            f"No virtual smartcard reader listens at {host}:{port}: {error.strerror or error}.",
            fix="Install pcscd and vsmartcard-vpcd, and start pcscd (`sudo systemctl restart pcscd`).",
            metadata={"address": f"{host}:{port}"},
        ) from error


def _acknowledge_at_once(link: socket.socket) -> None:
    """Have the next segment acknowledged when it comes (tcp(7), TCP_QUICKACK; it has to be said again each time).

    The driver sends length and message one after the other, and its system keeps the second back until the first is
    acknowledged. Left alone, ours takes 40 ms to do that, for every message.
    """
    if link.family != socket.AF_UNIX:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


async def _message(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
