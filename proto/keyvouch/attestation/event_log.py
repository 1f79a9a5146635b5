"""TCG event logs: the list, kept by the firmware, of what it extended into the PCRs of a TPM while it booted.

Source: TCG PC Client Platform Firmware Profile (PFP) 1.06 section 10. Two forms are read, both little-endian: the
crypto-agile one (a header event "Spec ID Event03", then TCG_PCR_EVENT2) and the older one with SHA-1 digests only
(TCG_PCR_EVENT). A log is strict and bounded here: at most `MAX_LOG_SIZE` bytes and `MAX_EVENTS` events, only digests
of the algorithms its header declares, each once and of its exact size, and no byte after the last event. Padding of
a log area is refused as well: the kernels cut the log at its last event, and zeros are events in the older form.

Nothing signs a log. Every byte of an `EventLog` is a claim until `keyvouch.attestation.event_log_replay` has held
it against a quote, and even then only what that module returns is proved.

What is not here: the meaning of events; ACPI tables; the logs of confidential virtual machines, whose registers
are not PCRs (CCEL, with RTMRs), and the TCG Canonical Event Log. Those two are recognised and refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Self

from keyvouch.attestation.tpm_wire import TpmHash
from keyvouch.errors import MalformedError, Reason

__all__ = ["MAX_EVENTS", "MAX_EVENT_SIZE", "MAX_LOG_SIZE", "NO_REGISTER", "PCR_COUNT", "Event", "EventLog", "EventType"]

MAX_LOG_SIZE = 1 << 20
"""Bytes of a log. Those of real machines have 15 to 80 thousand."""
MAX_EVENTS = 8192
"""Events of a log. Those of real machines have 20 to 200."""
MAX_EVENT_SIZE = 1 << 18
"""Bytes of one event's data. The largest of real machines are lists of revoked signatures, 25 thousand."""
PCR_COUNT = 24
"""PCRs of a PC Client TPM (TCG PC Client Platform TPM Profile section 4.6)."""
NO_REGISTER = 0xFFFFFFFF
"""The register of an event that is not about one. Only EV_NO_ACTION may have it."""

_SPEC_ID = b"Spec ID Event03\0"
_STARTUP_LOCALITY = b"StartupLocality\0"
_LOCALITIES = (b"\x00", b"\x03", b"\x04")  # PFP section 10.4.5.3
_MAJOR_VERSION = 2
_CCEL = b"CCEL"  # signature of the ACPI table that points to a log of RTMRs
_CANONICAL = b"\x00\x00\x00\x00\x08" + bytes(8)  # record number 0 of eight bytes, type and length big-endian
_DIGEST_SIZES: Mapping[int, int] = {
    **{algorithm: algorithm.digest_size for algorithm in TpmHash},
    0x0012: 32,  # SM3_256
    0x0027: 32,  # SHA3_256
    0x0028: 48,  # SHA3_384
    0x0029: 64,  # SHA3_512
}


@unique
class EventType(IntEnum):
    """The event types with a part in replay (PFP section 10.4.1). No digest covers an event's type."""

    NO_ACTION = 0x00000003
    SEPARATOR = 0x00000004


@dataclass(frozen=True, slots=True)
class Event:
    """One event as the log claims it: `register` 0 to 23 or `NO_REGISTER`, digests by bank, and its data.

    Digests of algorithms other than `TpmHash` are read and left out.
    """

    register: int
    type: int
    digests: Mapping[TpmHash, bytes]
    data: bytes

    @property
    def extends(self) -> bool:
        """Whether the event was extended into its PCR (PFP section 10.4.5: EV_NO_ACTION never is)."""
        return self.type != EventType.NO_ACTION


class EventLog(bytes):
    """A well-formed event log. `banks` are those its header declares, `events` follow the header in order.

    `startup_locality` is the locality of TPM2_Startup, the last byte of the first value of PCR 0.
    """

    banks: frozenset[TpmHash]
    events: tuple[Event, ...]
    startup_locality: int

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`. Raises `MalformedError` with `TPM_EVENT_LOG`, and what is wrong as `check` in its metadata."""
        if isinstance(data, cls):
            return data
        self = super().__new__(cls, data)
        _refuse_other_logs(data)
        reader = _Reader(data)
        first = _read_event(reader)
        if first.data.startswith(_SPEC_ID) and not first.extends:
            sizes = _read_header(first)
            self.banks = frozenset(bank for bank in TpmHash if bank in sizes)
            self.events = _read_events(reader, sizes, [])
        else:
            self.banks = frozenset((TpmHash.SHA1,))
            self.events = _read_events(reader, None, [first])
        self.startup_locality = _startup_locality(self.events)
        return self

    def __repr__(self) -> str:
        return f"EventLog({len(self.events)} events)"


class _Reader:
    """Reads little-endian members one after the other."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise _malformed("length", "It ends inside an event.")
        return self._data[start : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


# Members


def _refuse_other_logs(data: bytes) -> None:
    if len(data) > MAX_LOG_SIZE:
        raise _malformed("size", f"It has more than {MAX_LOG_SIZE} bytes.")
    if data.startswith(_CCEL):
        raise _malformed("ccel", "It is the ACPI table of a confidential virtual machine, not the log of a TPM.")
    if data.startswith(_CANONICAL):
        raise _malformed("canonical", "It is a TCG Canonical Event Log, which is not supported.")


def _read_events(reader: _Reader, sizes: Mapping[int, int] | None, events: list[Event]) -> tuple[Event, ...]:
    while reader:
        if len(events) == MAX_EVENTS:
            raise _malformed("count", f"It has more than {MAX_EVENTS} events.")
        events.append(_read_event(reader, sizes))
    return tuple(events)


def _read_event(reader: _Reader, sizes: Mapping[int, int] | None = None) -> Event:
    """Read a TCG_PCR_EVENT, or a TCG_PCR_EVENT2 if `sizes` tells the digests of the declared algorithms."""
    register, kind = reader.number(4), reader.number(4)
    if register >= PCR_COUNT and (register, kind) != (NO_REGISTER, EventType.NO_ACTION):
        raise _malformed("register", f"A TPM has no PCR {register}.")
    digests = {TpmHash.SHA1: reader.take(TpmHash.SHA1.digest_size)} if sizes is None else _read_digests(reader, sizes)
    size = reader.number(4)
    if size > MAX_EVENT_SIZE:
        raise _malformed("event_size", f"An event has more than {MAX_EVENT_SIZE} bytes of data.")
    return Event(register, kind, digests, reader.take(size))


def _read_digests(reader: _Reader, sizes: Mapping[int, int]) -> dict[TpmHash, bytes]:
    """Read a TPML_DIGEST_VALUES (PFP section 10.2.2). A log may leave out banks that are not active."""
    count = reader.number(4)
    if not 1 <= count <= len(sizes):
        raise _malformed("digests", f"An event has {count} digests, its header declares {len(sizes)} algorithms.")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        number = reader.number(2)
        if number not in sizes or number in digests:
            raise _malformed("digests", f"A digest of the algorithm {number:#06x} is not declared, or doubled.")
        digests[number] = reader.take(sizes[number])
    return {algorithm: digests[algorithm] for algorithm in TpmHash if algorithm in digests}


def _read_header(header: Event) -> dict[int, int]:
    """Read TCG_EfiSpecIdEvent (PFP section 10.4.5.1): the declared algorithms and the sizes of their digests."""
    if header.register == 1:
        raise _malformed("ccel", "It is the log of a confidential virtual machine: its registers are RTMRs.")
    if header.register != 0 or any(header.digests[TpmHash.SHA1]):
        raise _malformed("header", "Its header is not an event of PCR 0 with a digest of zeros.")
    body = _Reader(header.data)
    body.take(len(_SPEC_ID) + 4)  # and the platform class
    _, major, _, word_size = (body.number(1) for _ in range(4))
    if major != _MAJOR_VERSION or word_size not in (1, 2):
        raise _malformed("header", "Its header is of another version of the specification.")
    sizes = _read_algorithms(body)
    body.take(body.number(1))  # the firmware maker's own bytes
    if body:
        raise _malformed("header", "Bytes follow the content of its header.")
    return sizes


def _read_algorithms(body: _Reader) -> dict[int, int]:
    count = body.number(4)
    if not 1 <= count <= len(_DIGEST_SIZES):
        raise _malformed("header", f"Its header declares {count} algorithms.")
    sizes: dict[int, int] = {}
    for _ in range(count):
        number, size = body.number(2), body.number(2)
        if number in sizes or _DIGEST_SIZES.get(number) != size:
            raise _malformed("header", f"The algorithm {number:#06x} is unknown, doubled, or not of {size} bytes.")
        sizes[number] = size
    return sizes


def _startup_locality(events: tuple[Event, ...]) -> int:
    """Find TCG_EfiStartupLocalityEvent (PFP section 10.4.5.3): at most one, before PCR 0 is extended."""
    found: int | None = None
    begun = False
    for event in events:
        begun |= event.extends and event.register == 0
        if event.extends or not event.data.startswith(_STARTUP_LOCALITY):
            continue
        locality = event.data[len(_STARTUP_LOCALITY) :]
        if event.register or begun or found is not None or locality not in _LOCALITIES:
            raise _malformed("startup_locality", "Its startup locality is late, doubled, or not 0, 3 or 4.")
        found = locality[0]
    return found or 0


def _malformed(check: str, why: str) -> MalformedError:
    return MalformedError(
        Reason.TPM_EVENT_LOG,
        f"The event log is wrong. {why}",
        fix="Send the log as the kernel keeps it, for example binary_bios_measurements of Linux.",
        metadata={"check": check},
    )
