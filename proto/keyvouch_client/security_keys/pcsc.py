"""Security keys in smartcard readers, contact and NFC, through PC/SC (CTAP 2.1 section 11.3).

A card is asked once after it came whether it has the FIDO applet, and closed again; a reader that is a USB key which
was found already is not asked at all, so what else uses that key's card side is left alone. Needs pyscard and, outside
of Windows and macOS, the daemon pcscd; where they are missing, nothing is found and `problems` says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Lock
from types import ModuleType
from typing import Any, Final, Protocol

from fido2.ctap import STATUS, CtapDevice, CtapError

from keyvouch.errors import DeviceError, Reason
from keyvouch_client.security_keys.discovery import UNNAMED, ConnectedKey, KeySource, Transport, shown_name
from keyvouch_client.security_keys.links import PatientCard

__all__ = ["CardSlot", "PcscReaders", "PcscSource", "Readers", "pcsc_source"]

_CONTACTLESS: Final = (b"\x80\x01",)
"""TD1 and TD2 of the ATR that a reader makes up for a contactless card (PC/SC part 3, section 3.1.3.2.3)."""
_MOST_FAILURES: Final = 20
"""Looks at a card that does not answer, after which only a change on the reader is a reason for another one."""


@dataclass(frozen=True, slots=True)
class CardSlot:
    """A reader, and whether a card is in it. `count` grows with each card that comes or goes."""

    reader: str
    count: int
    atr: bytes
    """Empty without a card, or with one that does not answer."""


class Readers(Protocol):
    """The readers of this computer."""

    def slots(self) -> Sequence[CardSlot]:
        """How they stand now. Raises `DeviceError`: READER_UNAVAILABLE, AUTHENTICATOR_PERMISSION."""

    def connect(self, reader: str) -> CtapDevice | None:
        """Open the FIDO applet of the card in a reader; None where the card has none.

        Raises `DeviceError`: AUTHENTICATOR_REMOVED, VAULT_BUSY while another program has the card for itself.
        """


def pcsc_source() -> KeySource:
    """The keys in this computer's readers."""
    return PcscSource(PcscReaders())


class PcscSource:
    """`KeySource` over readers."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._known: dict[CardSlot, ConnectedKey | None] = {}
        self._failures: dict[CardSlot, int] = {}
        self._problem: DeviceError | None = None
        self._lock = Lock()

    def scan(self, found: Sequence[ConnectedKey]) -> Sequence[ConnectedKey]:
        """See `KeySource`."""
        with self._lock:
            slots = [slot for slot in self._slots() if slot.atr and not _is_found(slot.reader, found)]
            self._known = {slot: self._known.get(slot) for slot in slots if slot in self._known}
            self._failures = {slot: count for slot, count in self._failures.items() if slot in slots}
            for slot in slots:
                if slot not in self._known:
                    self._ask(slot)
            return [key for slot in slots if (key := self._known.get(slot)) is not None]

    def fingerprint(self) -> object:
        """See `KeySource`. It differs each time while a card should be asked once more."""
        with self._lock:
            return (*self._slots(), *self._failures.values())

    def problems(self) -> Sequence[DeviceError]:
        """See `KeySource`."""
        return () if self._problem is None else (self._problem,)

    def _slots(self) -> Sequence[CardSlot]:
        try:
            slots = self._readers.slots()
        except DeviceError as error:
            self._problem = error
            return ()
        self._problem = None
        return slots

    def _ask(self, slot: CardSlot) -> None:
        """Has the card the FIDO applet? One that is busy, or laid down badly, is asked again, but not for ever."""
        try:
            device = self._readers.connect(slot.reader)
        except DeviceError:
            self._failures[slot] = min(self._failures.get(slot, 0) + 1, _MOST_FAILURES)
            return
        self._failures.pop(slot, None)
        if device is not None:
            device.close()
        self._known[slot] = self._key(slot) if device is not None else None

    def _key(self, slot: CardSlot) -> ConnectedKey:
        transport = Transport.NFC if slot.atr[2:4] in _CONTACTLESS else Transport.CARD
        return ConnectedKey(
            name=f"{UNNAMED} in {shown_name(slot.reader)}",
            transport=transport,
            place=slot.reader,
            appearance=f"{slot.reader}#{slot.count}",
            opener=lambda: self._open(slot),
        )

    def _open(self, slot: CardSlot) -> CtapDevice:
        if slot not in self._readers.slots():
            raise _gone(slot.reader)
        device = self._readers.connect(slot.reader)
        if device is None:
            raise _gone(slot.reader)
        return device


class PcscReaders:
    """`Readers` over pyscard."""

    def slots(self) -> Sequence[CardSlot]:
        """See `Readers`."""
        scard = _pyscard("scard")
        with _context(scard) as context:
            code, names = scard.SCardListReaders(context, [])
            if code == scard.SCARD_E_NO_READERS_AVAILABLE or not names:
                return ()
            _require(scard, code)
            code, states = scard.SCardGetStatusChange(context, 0, [(name, scard.SCARD_STATE_UNAWARE) for name in names])
            _require(scard, code)
        return tuple(CardSlot(name, state >> 16, bytes(atr)) for name, state, atr in states)

    def connect(self, reader: str) -> CtapDevice | None:
        """See `Readers`."""
        scard, gone = _pyscard("scard"), _pyscard("Exceptions").SmartcardException
        from fido2.pcsc import CtapPcscDevice  # noqa: PLC0415 - needs pyscard

        connection = _pyscard("pcsc.PCSCReader").PCSCReader(reader).createConnection()
        try:
            return _CardDevice(CtapPcscDevice(PatientCard(connection), reader), gone)
        except gone as error:
            if getattr(error, "hresult", None) == scard.SCARD_E_SHARING_VIOLATION:
                raise _held(reader) from error
            raise _gone(reader) from error
        except OSError as error:
            _let_go(connection, gone)
            raise _gone(reader) from error
        except (CtapError, ValueError, IndexError, TypeError):
            _let_go(connection, gone)
            return None


class _CardDevice(CtapDevice):
    """A card's applet, which fails as every other device does: with `OSError` where it is away."""

    def __init__(self, device: Any, failure: type[Exception]) -> None:
        self._device = device
        self._failure = failure
        self._closed = False

    @property
    def capabilities(self) -> int:
        """Those of the card."""
        return int(self._device.capabilities)

    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        """Pass a command on."""
        try:
            return bytes(self._device.call(cmd, data, event, on_keepalive))
        except self._failure as error:
            raise OSError(f"the card does not answer: {error}") from error

    def close(self) -> None:
        """Let go of card and reader."""
        if not self._closed:
            self._closed = True
            try:
                self._device.close(release=True)
            except self._failure:  # it is away already
                return

    @classmethod
    def list_devices(cls) -> Iterator[CtapDevice]:
        """None of its own kind."""
        return iter(())


def _is_found(reader: str, found: Sequence[ConnectedKey]) -> bool:
    """Whether a reader is part of a USB key that can be used.

    Kernel and pcsc-lite both name a device by the texts of its USB descriptor; a reader's name only goes on, with other
    words.
    """
    name = f"{shown_name(reader)} "
    return any(
        key.transport is Transport.USB and key.trouble is None and name.startswith(f"{key.name} ") for key in found
    )


def _let_go(connection: Any, gone: type[Exception]) -> None:
    with suppress(gone):
        connection.disconnect()
        connection.release()


def _pyscard(module: str) -> ModuleType:
    """A module of pyscard, which is an extra and has no types."""
    try:
        return importlib.import_module(f"smartcard.{module}")
    except ImportError:
        raise DeviceError(
            Reason.READER_UNAVAILABLE,
            "Security keys in smartcard readers (NFC and contact) cannot be used: pyscard is not installed.",
            fix="Install it: pip install 'keyvouch[pcsc]'. Keys on USB need none of this.",
            metadata={"missing": "pyscard"},
        ) from None


@contextmanager
def _context(scard: ModuleType) -> Iterator[Any]:
    code, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    _require(scard, code)
    try:
        yield context
    finally:
        scard.SCardReleaseContext(context)


def _require(scard: ModuleType, code: int) -> None:
    if code == scard.SCARD_S_SUCCESS:
        return
    if code in (scard.SCARD_E_NO_SERVICE, scard.SCARD_E_SERVICE_STOPPED):
        raise DeviceError(
            Reason.READER_UNAVAILABLE,
            "Security keys in smartcard readers (NFC and contact) cannot be used: the PC/SC service does not run.",
            fix="Install the package `pcscd` and start it: systemctl enable --now pcscd.socket",
            metadata={"missing": "pcscd"},
        )
    if code == scard.SCARD_W_SECURITY_VIOLATION:
        raise DeviceError(
            Reason.AUTHENTICATOR_PERMISSION,
            "The PC/SC service does not let this user at the smartcard readers.",
            fix="Allow org.debian.pcsc-lite.access_pcsc and access_card for this user with a polkit rule.",
        )
    raise DeviceError(
        Reason.READER_UNAVAILABLE,
        f"The smartcard readers cannot be listed: {scard.SCardGetErrorMessage(code)}",
        fix="Restart the PC/SC service: systemctl restart pcscd",
    )


def _gone(reader: str) -> DeviceError:
    return DeviceError(
        Reason.AUTHENTICATOR_REMOVED,
        f"The security key in {shown_name(reader)} was taken away, or does not answer.",
        fix="Lay it on the reader again, and leave it there until all is done.",
    )


def _held(reader: str) -> DeviceError:
    return DeviceError(
        Reason.VAULT_BUSY,
        f"Another program uses the card in {shown_name(reader)} and shares it with nobody.",
        fix="End that program (gpg keeps cards for itself: `gpgconf --kill scdaemon`) and try again.",
    )
