"""Makes TCG event logs, byte by byte, and what a quote of their PCRs would hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from keyvouch.attestation.event_log import EventLog
from keyvouch.attestation.tpm import VerifiedQuote
from keyvouch.attestation.tpm_structures import TpmClock, TpmHash

NO_ACTION, SEPARATOR, CRTM_VERSION, CONFIG_FLAGS, IPL = 0x3, 0x4, 0x8, 0xA, 0xD
VARIABLE, EFI_ACTION = 0x80000001, 0x80000007
SHA1, SHA256, SHA384 = TpmHash.SHA1, TpmHash.SHA256, TpmHash.SHA384

DONE = bytes(4)
ERROR = b"\x01\x00\x00\x00"
DEBUGGER = b"UEFI Debug Mode"
EXIT_BOOT_SERVICES = b"Exit Boot Services Invocation"


@dataclass(frozen=True)
class Made:
    """An event that measures `measured`. `data` is what the log shows, the same unless it lies."""

    register: int
    type: int
    measured: bytes
    data: bytes | None = None
    banks: tuple[TpmHash, ...] = (SHA1, SHA256)
    extra: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def extends(self) -> bool:
        return self.type != NO_ACTION

    @property
    def shown(self) -> bytes:
        return self.measured if self.data is None else self.data

    def digest(self, bank: TpmHash) -> bytes:
        return bank.digest(self.measured) if self.extends else bytes(bank.digest_size)

    def digests(self) -> dict[int, bytes]:
        return {bank: self.digest(bank) for bank in self.banks} | dict(self.extra)


def u8(number: int) -> bytes:
    return number.to_bytes(1, "little")


def u16(number: int) -> bytes:
    return number.to_bytes(2, "little")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def sized(data: bytes) -> bytes:
    return u32(len(data)) + data


def old_event(register: int, kind: int, digest: bytes, data: bytes) -> bytes:
    """TCG_PCR_EVENT."""
    return u32(register) + u32(kind) + digest + sized(data)


def new_event(register: int, kind: int, digests: Iterable[tuple[int, bytes]], data: bytes) -> bytes:
    """TCG_PCR_EVENT2."""
    listed = [u16(algorithm) + digest for algorithm, digest in digests]
    return u32(register) + u32(kind) + u32(len(listed)) + b"".join(listed) + sized(data)


def spec_id(
    algorithms: Iterable[tuple[int, int]] = ((4, 20), (11, 32)),
    *,
    major: int = 2,
    word_size: int = 2,
    vendor: bytes = b"",
    platform: int = 0,
) -> bytes:
    """TCG_EfiSpecIdEvent."""
    listed = [u16(number) + u16(size) for number, size in algorithms]
    head = b"Spec ID Event03\0" + u32(platform) + bytes((0, major, 5, word_size))
    return head + u32(len(listed)) + b"".join(listed) + u8(len(vendor)) + vendor


def header(body: bytes | None = None, *, register: int = 0, digest: bytes = bytes(20)) -> bytes:
    return old_event(register, NO_ACTION, digest, spec_id() if body is None else body)


def agile(events: Iterable[Made], *, body: bytes | None = None) -> bytes:
    return header(body) + b"".join(
        new_event(event.register, event.type, event.digests().items(), event.shown) for event in events
    )


def legacy(events: Iterable[Made]) -> bytes:
    return b"".join(old_event(event.register, event.type, event.digest(SHA1), event.shown) for event in events)


def locality(value: int) -> Made:
    return Made(0, NO_ACTION, b"StartupLocality\0" + u8(value))


def variable(name: str, data: bytes, guid: str = "61dfe48bca93d211aa0d00e098032b8c") -> bytes:
    """UEFI_VARIABLE_DATA."""
    sizes = len(name).to_bytes(8, "little") + len(data).to_bytes(8, "little")
    return bytes.fromhex(guid) + sizes + name.encode("utf-16-le") + data


def secure_boot(data: bytes = b"\x01") -> Made:
    return Made(7, VARIABLE, variable("SecureBoot", data))


def done(pcr: int, data: bytes = DONE) -> Made:
    return Made(pcr, SEPARATOR, data)


def good_boot() -> list[Made]:
    """A boot with Secure Boot: version, SecureBoot, db, separators, a boot loader and the end of boot services."""
    return [
        Made(0, CRTM_VERSION, b"1\x00.\x002\x00"),
        secure_boot(),
        Made(7, VARIABLE, variable("db", b"a list", "cbb219d73a3d9645a3bcdad00e67656f")),
        *(done(pcr) for pcr in range(8)),
        Made(4, 0x80000003, b"a program", b"where it is"),
        Made(8, IPL, b"linux /vmlinuz", b"grub_cmd: linux /vmlinuz\0"),
        Made(5, EFI_ACTION, EXIT_BOOT_SERVICES),
    ]


def quote_with(values: Mapping[int, bytes], bank: TpmHash = SHA256) -> VerifiedQuote:
    return VerifiedQuote(bank, dict(values), TpmClock(0, 0, 0, True), 0)


def quote_of(
    events: Iterable[Made], pcrs: Collection[int] = range(16), bank: TpmHash = SHA256, *, first: int = 0
) -> VerifiedQuote:
    """What a TPM quotes after these events; `first` is the last byte of the first value of PCR 0."""
    values = {pcr: (first if pcr == 0 else 0).to_bytes(bank.digest_size, "big") for pcr in pcrs}
    for event in events:
        if event.extends and event.register in values and bank in event.banks:
            values[event.register] = bank.digest(values[event.register] + event.digest(bank))
    return quote_with(values, bank)


def log_of(events: Iterable[Made]) -> EventLog:
    return EventLog(agile(events))
