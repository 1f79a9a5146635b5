"""A smartcard, or any PKCS#11 token, as what holds the keys of an authenticator that is served to other programs.

A card that makes keys makes one for each site. Where it only has keys that exist already, as a PIV card, every site
would be given the same public key, and sites could tell by it that their users are one person: what a security key
must never let them (WebAuthn section 14.4.3). So that is refused, unless whoever serves says otherwise. The card's
attestation, which names the card itself, is shown to no site at all.

OpenSC looks into every reader for cards. One of them would be the virtual reader, where a client waits for us while we
wait for OpenSC. So the two go together only where its configuration leaves that reader out.

Not here: transports, and what is said of it (`served`, `commands.authenticator`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.ports import PinEntry
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.transports.pin_entry import HeldPin, PinRequest
from keyvouch_agent.vaults.pkcs11.failures import require_library
from keyvouch_agent.vaults.pkcs11.uri import TokenUri

if TYPE_CHECKING:  # they need python-pkcs11
    from keyvouch_agent.vaults.pkcs11.account import CardAccount
    from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault

__all__ = ["CardToServe", "ServedCard", "open_card"]

_RECORD: Final = "account.cbor"
_IN_SOFTWARE: Final = "SoftHSM"
"""How the manufacturer of a token names itself that is a program."""
_LOOKS_EVERYWHERE: Final = ("opensc", "p11-kit")
_CONFIGURATION: Final = "OPENSC_CONF"
_USUAL: Final = Path("/etc/opensc/opensc.conf")
_LEAVES_OUT: Final = re.compile(r"^[^#\n]*\bignored_readers\s*=\s*\"", re.MULTILINE)
"""Which reader it leaves out is for its owner to know: a virtual one may have another name than the usual."""


@dataclass(frozen=True, slots=True)
class CardToServe:
    """Which card, for the first time; `named` is the URI by which it was named now, if it was.

    `shared_key`: also one whose existing key all sites share. `last_try`: the last try of its PIN may be spent, once.
    """

    wish: CardWish = field(default_factory=CardWish)
    named: str = ""
    shared_key: bool = False
    last_try: bool = False


class ServedCard:
    """The vault on a card, whether the card is in its reader or not."""

    def __init__(self, account: CardAccount, vault: Pkcs11Vault) -> None:
        self._account = account
        self.vault = vault

    @property
    def label(self) -> str:
        """The token's, as it says itself."""
        name = self._account.profile.name
        return name.label or name.model

    @property
    def serial(self) -> str:
        """The token's serial number, as it says itself."""
        return self._account.profile.name.serial

    @property
    def is_emulated(self) -> bool:
        """Whether the token says that it is a program."""
        return self._account.profile.name.manufacturer.startswith(_IN_SOFTWARE)

    @property
    def shared_key(self) -> str:
        """Which key all sites share; empty where the token makes one for each."""
        existing = self._account.profile.existing
        if existing is None:
            return ""
        return f"slot {existing.slot:X}" if existing.slot is not None else f"id {existing.id.hex()}"

    def is_meant(self, uri: TokenUri) -> bool:
        """Whether that URI names this token."""
        return replace(uri, slot_id=None).matches(self._account.profile.name, 0)

    def absence(self) -> DeviceError | None:
        """Why the card cannot be used now; None where it is there."""
        try:
            self._account.token()
        except DeviceError as error:
            return error
        return None

    def prove(self, pin: HeldPin) -> None:
        """Show the card a PIN, once, unless the card is away. Raises `DeviceError` when it is not taken."""
        if self.absence() is not None:
            return
        try:
            self.vault.verify_user(_AtTheStart(pin))
        except DeviceError as error:
            pin.heard(error)
            raise
        pin.heard(None)
        self.vault.lock()


@dataclass(frozen=True, slots=True)
class _AtTheStart(PinEntry):
    pin: HeldPin

    def ask(self, retries_left: int | None) -> str | None:
        return self.pin.ask_pin(PinRequest(), retries_left, lambda: False)

    def on_pad(self, retries_left: int | None) -> None:
        self.pin.on_pad(PinRequest(), retries_left)


@contextmanager
def open_card(folder: Path, what: CardToServe, *, in_a_reader: bool) -> Iterator[ServedCard]:
    """Open the vault in `folder` for the time of the block. For the first time, the card has to be there.

    Raises `DeviceError` as `trusted_module` and `CardAccount.open` do, and UNSUPPORTED for a key that all would share
    and, where it is served `in_a_reader`, for a module that would look for its card there.
    """
    require_library()
    from keyvouch_agent.vaults.pkcs11.account import CardAccount  # noqa: PLC0415 - needs python-pkcs11
    from keyvouch_agent.vaults.pkcs11.library import TokenLibrary  # noqa: PLC0415
    from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault  # noqa: PLC0415

    wish = what.wish if what.shared_key else replace(what.wish, key="")
    path = wish.module_path(_remembered(folder))
    if in_a_reader:
        _check_module(path)
    library = TokenLibrary(path)
    try:
        account = CardAccount.open(folder, library, wish.uri())
        try:
            vault = Pkcs11Vault(account, SystemEntropy(), shows_attestation=False)
        except BaseException:
            account.close()
            raise
        try:
            card = ServedCard(account, vault)
            _check(card, what)
            vault.allow_last_try(what.last_try)
            yield card
        finally:
            vault.close()
    finally:
        library.close()


def _check(card: ServedCard, what: CardToServe) -> None:
    if what.named and not card.is_meant(TokenUri.parse(what.named)):
        raise DeviceError(
            Reason.AUTHENTICATOR_OTHER,
            f"The authenticator of this home is on another token, {card.label!r} (serial number {card.serial}).",
            fix="Leave --token out, or name another --home.",
        )
    if card.shared_key and not what.shared_key:
        raise DeviceError(
            Reason.UNSUPPORTED,
            f"The card {card.label!r} makes no keys here, it has one (in {card.shared_key}). Every site would be given "
            "that same public key, and sites could tell by it that their users are one person.",
            fix="Serve a token that makes keys, or a TPM. Where it does not matter, as on a bench: --shared-key.",
        )


def _check_module(path: Path) -> None:
    if not any(name in path.name for name in _LOOKS_EVERYWHERE):
        return
    with suppress(OSError):
        if _LEAVES_OUT.search(Path(os.environ.get(_CONFIGURATION) or _USUAL).read_text("utf-8", "replace")):
            return
    raise DeviceError(
        Reason.UNSUPPORTED,
        f"The module {path} looks for cards in every reader, also in the virtual one while a client waits there for an "
        "answer. Both would wait for ever.",
        fix="Serve with --transport uhid. Or have OpenSC leave it out: "
        f'app default {{ ignored_readers = "Virtual PCD"; }} in {_USUAL}.',
    )


def _remembered(folder: Path) -> str:
    """The module through which the card was found the first time; empty where there was none."""
    from keyvouch_agent.vaults.pkcs11 import record  # noqa: PLC0415 - needs python-pkcs11

    with suppress(OSError, DeviceError):
        state = record.decode((folder / _RECORD).read_bytes())
        return state.token.module if state.token else ""
    return ""
