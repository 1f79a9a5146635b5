"""An authenticator of our own, served to other programs: the composition root of `keyvouch-agent authenticator serve`.

    with open_authenticator(home, wish, ...) as served:     the vault, opened and locked, and the engine over it
        await serve(served, wish, presence, journal)        until cancelled

It has a folder of its own in the home and shares nothing with the agent's accounts. Not here: what the command says
and how it is stopped (`commands.authenticator`).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum, unique
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyvouch_agent.agent_ports import Clock
from keyvouch_agent.authenticator.engine import Authenticator, AuthenticatorOptions
from keyvouch_agent.authenticator.ports import UserPresence
from keyvouch_agent.authenticator.vault import KeyVault
from keyvouch_agent.backoff import Backoff
from keyvouch_agent.home import Home
from keyvouch_agent.served_card import CardToServe, ServedCard, open_card
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.transports.command_runner import CommandRunner, Journal
from keyvouch_agent.transports.fido_applet import FidoApplet
from keyvouch_agent.transports.hid_key import HidKey
from keyvouch_agent.transports.pin_entry import PinDesk
from keyvouch_agent.transports.presence import DeferredPresence, UnsafeAutoPresence
from keyvouch_agent.transports.uhid import MESSAGE_SIZE, UHID, UhidDevice, open_uhid
from keyvouch_agent.transports.vpcd import VirtualReader, dial
from keyvouch_agent.vaults.software import KdfParameters, SoftwareVault

if TYPE_CHECKING:
    from keyvouch_agent.vaults.tpm.connection import TpmAccess

__all__ = ["ServeWish", "Served", "Transport", "VaultKind", "open_authenticator", "serve"]

_TICK_SECONDS: Final = 1.0
_FIRST_DELAY: Final = 0.2
_LONGEST_DELAY: Final = 5.0


@unique
class Transport(StrEnum):
    """Where the authenticator is put."""

    PCSC = "pcsc"
    UHID = "uhid"


@unique
class VaultKind(StrEnum):
    """What holds its keys."""

    SOFTWARE = "software"
    TPM = "tpm"
    PKCS11 = "pkcs11"


@dataclass(frozen=True, slots=True)
class ServeWish:
    """What to serve and where. `always_verify`: no key is made or used without the PIN; only `software` knows else.

    `reader` is the loopback address of the virtual smartcard reader, `uhid` the kernel's device for making devices,
    `card` which card is meant by `VaultKind.PKCS11`.
    """

    transport: Transport
    vault: VaultKind
    always_verify: bool
    reader: tuple[str, int]
    uhid: Path = UHID
    card: CardToServe = field(default_factory=CardToServe)

    @property
    def folder(self) -> str:
        """The authenticator's own, in the home."""
        return f"authenticator-{self.vault}"


@dataclass(frozen=True, slots=True)
class Served:
    """An authenticator with its vault open."""

    authenticator: Authenticator
    folder: Path
    is_emulated: bool
    """Whether the keys are in software, whatever the vault is called: an emulated TPM is a program."""
    card: ServedCard | None = None
    """Where the keys are, if on a card."""


@contextmanager
def open_authenticator(
    home: Home,
    wish: ServeWish,
    *,
    clock: Clock,
    tpm_access: Callable[[], TpmAccess],
    kdf: KdfParameters | None = None,
) -> Iterator[Served]:
    """Open the vault for the time of the block. Raises `DeviceError`: VAULT_BUSY when it is served already."""
    folder = home.folder(wish.folder)
    match wish.vault:
        case VaultKind.SOFTWARE:
            with SoftwareVault.open(folder, SystemEntropy(), kdf=kdf, pin_gated=wish.always_verify) as vault:
                yield Served(_authenticator(vault, clock, wish), folder, is_emulated=True)
        case VaultKind.TPM:
            with _in_a_tpm(folder, tpm_access()) as (tpm_vault, is_emulated):
                yield Served(_authenticator(tpm_vault, clock, wish), folder, is_emulated=is_emulated)
        case VaultKind.PKCS11:
            with open_card(folder, wish.card, in_a_reader=wish.transport is Transport.PCSC) as card:
                authenticator = _authenticator(card.vault, clock, wish)
                yield Served(authenticator, folder, is_emulated=card.is_emulated, card=card)


@contextmanager
def _in_a_tpm(folder: Path, access: TpmAccess) -> Iterator[tuple[KeyVault, bool]]:
    """The vault, and whether the TPM is a program."""
    access.require_library()
    from keyvouch_agent.vaults.tpm.account import TpmAccount  # noqa: PLC0415 - needs libtss2
    from keyvouch_agent.vaults.tpm.vault import TpmVault  # noqa: PLC0415

    account = TpmAccount.open(folder, access)
    account.sweep()
    vault = TpmVault(account, SystemEntropy())
    try:
        yield vault, account.profile.is_emulated
    finally:
        vault.close()


def _authenticator(vault: KeyVault, clock: Clock, wish: ServeWish) -> Authenticator:
    return Authenticator(vault, clock, SystemEntropy(), _options(wish))


def _options(wish: ServeWish) -> AuthenticatorOptions:
    if wish.transport is Transport.PCSC:
        return AuthenticatorOptions(
            make_cred_uv_not_required=not wish.always_verify,
            transports=("nfc", "smart-card"),
            reset_window=None,
            u2f=True,
        )
    return AuthenticatorOptions(
        make_cred_uv_not_required=not wish.always_verify,
        transports=("usb",),
        max_message_size=MESSAGE_SIZE,
        u2f=True,
    )


async def serve(
    served: Served,
    wish: ServeWish,
    presence: UserPresence,
    journal: Journal,
    *,
    monotonic: Callable[[], float],
    pins: PinDesk | None = None,
) -> None:
    """Serve until cancelled. `pins` has the PIN of a card. Raises `UnavailableError` or `DeviceError` when the
    transport is not there.
    """
    deferred = None if isinstance(presence, UnsafeAutoPresence) else DeferredPresence(presence, monotonic)
    runner = CommandRunner(served.authenticator, presence, journal=journal, u2f_presence=deferred, pins=pins)
    ticking = asyncio.create_task(_tick(runner))
    try:
        if wish.transport is Transport.PCSC:
            await _in_a_reader(runner, wish, journal)
        else:
            await _on_the_bus(runner, wish, journal, monotonic)
    finally:
        ticking.cancel()
        if deferred is not None:
            deferred.withdraw()
        await runner.close()


async def _in_a_reader(runner: CommandRunner, wish: ServeWish, journal: Journal) -> None:
    backoff = Backoff(jitter=random.SystemRandom().random, first=_FIRST_DELAY, longest=_LONGEST_DELAY)
    await VirtualReader(FidoApplet(runner), lambda: dial(wish.reader), backoff=backoff, journal=journal).run()


async def _on_the_bus(runner: CommandRunner, wish: ServeWish, journal: Journal, monotonic: Callable[[], float]) -> None:
    descriptor = open_uhid(wish.uhid)
    try:
        device = UhidDevice(descriptor, journal=journal)
        key = HidKey(runner, send=device.send, entropy=SystemEntropy(), monotonic=monotonic)
        try:
            await device.run(key.receive, key.leave)
        finally:
            await key.unplug()
    finally:
        os.close(descriptor)


async def _tick(runner: CommandRunner) -> None:
    """Tokens end by themselves, also while nobody asks for anything."""
    with suppress(RuntimeError):  # the runner's thread is gone: the program ends
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            await runner.tick()
