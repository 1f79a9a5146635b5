"""The accounts on cards of one home: a folder each, opened over the PKCS#11 module that it needs.

    vault-card/<account>/account.cbor     which token, which keys (`keyvouch_agent.vaults.pkcs11.record`); no secret

A new account takes over what a killed enrolment left on the same token: the token destroys key pairs only behind its
PIN, so that is done when the PIN is typed the next time. A module is initialised once, and ended with its last account.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyvouch.errors import DeviceError, KeyvouchError
from keyvouch_agent.agent_ports import Clock
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.ports import KeyProtection
from keyvouch_agent.providers.built_in import BuiltInProvider, NativeHolder
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.pkcs11.failures import no_such_key, require_library

if TYPE_CHECKING:  # they need python-pkcs11
    from keyvouch_agent.vaults.pkcs11.account import CardAccount
    from keyvouch_agent.vaults.pkcs11.library import TokenLibrary
    from keyvouch_agent.vaults.pkcs11.record import CardState
    from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault

__all__ = ["CardAccounts", "OpenedAccount"]

RECORD: Final = "account.cbor"
_LOCK: Final = "lock"
_IN_SOFTWARE: Final = "SoftHSM"
"""How the manufacturer of a token names itself that is a program."""


class OpenedAccount:
    """One account over its token. `close` it."""

    def __init__(self, account: CardAccount, vault: Pkcs11Vault, clock: Clock, certificates: tuple[bytes, ...]) -> None:
        from keyvouch_agent.vaults.pkcs11.pin_control import TokenPin  # noqa: PLC0415 - needs python-pkcs11

        self._account = account
        self._vault = vault
        native = NativeHolder(
            name=str(account.profile.name),
            protection=_protection(account.profile.name.manufacturer),
            no_such_key=no_such_key,
            pin=TokenPin(account, vault),
            last_try=vault.allow_last_try,
            certificates=certificates,
        )
        self.provider = BuiltInProvider(Authenticator(vault, clock, SystemEntropy()), native=native)

    @property
    def name(self) -> str:
        """The token's, with the slot of the key where an existing one is used."""
        profile = self._account.profile
        slot = profile.existing.slot if profile.existing else None
        return str(profile.name) if slot is None else f"{profile.name}, slot {slot:X}"

    def check_present(self) -> None:
        """Raise `DeviceError`: AUTHENTICATOR_NOT_CONNECTED, or AUTHENTICATOR_OTHER where another card is there."""
        self._account.token()

    def forget(self) -> Sequence[bytes]:
        """Forget every key. Returns the CKA_IDs of those that stay on the token until its PIN is typed."""
        self._vault.reset()
        return self._account.state.strays

    def close(self) -> None:
        """Lock the token, and let another process open the account."""
        self._vault.close()


class CardAccounts:
    """Opens accounts in `folder`. `abandoned` names those that nothing leads to any more."""

    def __init__(
        self,
        folder: Callable[[], Path],
        clock: Clock,
        *,
        wish: Callable[[], CardWish],
        abandoned: Callable[[], Sequence[str]],
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._wish = wish
        self._abandoned = abandoned
        self._libraries: dict[Path, tuple[TokenLibrary, int]] = {}

    @property
    def wish(self) -> CardWish:
        """What is wished for now. Raises CONFIGURATION."""
        return self._wish()

    def has_record(self, name: str) -> bool:
        """Whether an account knows its token already."""
        return (self._folder() / name / RECORD).exists()

    def open(self, name: str, *, adopts: bool = True) -> tuple[OpenedAccount, Callable[[], None]]:
        """Open an account; the second value is called after it was closed. A new one takes the token that is wished
        for, which must be there.

        With `adopts` it takes over what is left of killed enrolments. Raises `DeviceError` as `trusted_module`,
        `CardAccount.open` and `require_library` do.
        """
        require_library()
        wish, is_new = self._wish(), not self.has_record(name)
        path = wish.module_path(self._remembered(name))
        library = self._take(path)
        try:
            account = self._account(name, library, wish)
            if is_new and adopts:
                self._adopt(name, account, library)
            opened = self._opened(account, wish)
        except BaseException:
            self._release(path)
            self.erase(name)
            raise
        return opened, lambda: self._let_go(name, path)

    def _account(self, name: str, library: TokenLibrary, wish: CardWish) -> CardAccount:
        from keyvouch_agent.vaults.pkcs11.account import CardAccount  # noqa: PLC0415 - needs python-pkcs11

        return CardAccount.open(self._folder() / name, library, wish.uri())

    def _opened(self, account: CardAccount, wish: CardWish) -> OpenedAccount:
        from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault  # noqa: PLC0415

        existing = account.profile.existing
        shown = (existing.certificate,) if existing and wish.certificate else ()
        try:
            vault = Pkcs11Vault(account, SystemEntropy(), shows_attestation=wish.attestation)
            return OpenedAccount(account, vault, self._clock, shown)
        except BaseException:
            account.close()
            raise

    def _let_go(self, name: str, path: Path) -> None:
        self._release(path)
        self.erase(name)

    def _release(self, path: Path) -> None:
        """One account less needs this module. The last one ends it, so that other programs find the token free."""
        library, users = self._libraries.pop(path)
        if users > 1:
            self._libraries[path] = (library, users - 1)
        else:
            library.close()

    def erase(self, name: str) -> None:
        """Remove the folder of an account that has no record."""
        folder = self._folder() / name
        if not self.has_record(name):
            with suppress(OSError):
                for left in (_LOCK, f"{RECORD}.new"):
                    (folder / left).unlink(missing_ok=True)
                folder.rmdir()

    def sweep(self) -> None:
        """Remove abandoned accounts that have nothing on any token. Others wait for their token's PIN."""
        with suppress(DeviceError):
            require_library()
            self._sweep()

    def _sweep(self) -> None:
        for name in self._abandoned():
            state = self._state(name)
            if state is not None and not _left_by(state):
                (self._folder() / name / RECORD).unlink(missing_ok=True)
            self.erase(name)

    def _adopt(self, name: str, account: CardAccount, library: TokenLibrary) -> None:
        """Take over what abandoned accounts have left on this token. Whenever this stops, one record names it."""
        for other in self._abandoned():
            state = self._state(other)
            if other == name or state is None or state.token is None:
                continue
            if not state.token.name.same_token(account.profile.name):
                continue
            with suppress(KeyvouchError):
                self._take_over(other, state, account, library)

    def _take_over(self, other: str, state: CardState, account: CardAccount, library: TokenLibrary) -> None:
        from keyvouch_agent.vaults.pkcs11.account import CardAccount  # noqa: PLC0415 - needs python-pkcs11

        left = CardAccount.open(self._folder() / other, library)  # its lock: nobody is using it
        try:
            strays = (*account.state.strays, *_left_by(state))
            account.store(replace(account.state, token=account.profile, strays=strays))
            left.erase()
        finally:
            left.close()
        self.erase(other)

    def _take(self, path: Path) -> TokenLibrary:
        from keyvouch_agent.vaults.pkcs11.library import TokenLibrary  # noqa: PLC0415 - needs python-pkcs11

        library, users = self._libraries.get(path, (None, 0))
        library = library or TokenLibrary(path)
        self._libraries[path] = (library, users + 1)
        return library

    def _remembered(self, name: str) -> str:
        state = self._state(name)
        return state.token.module if state and state.token else ""

    def _state(self, name: str) -> CardState | None:
        """The record of an account; None where there is none that can be read."""
        from keyvouch_agent.vaults.pkcs11 import record  # noqa: PLC0415 - needs python-pkcs11

        try:
            return record.decode((self._folder() / name / RECORD).read_bytes())
        except (OSError, DeviceError):
            return None


def _left_by(state: CardState) -> tuple[bytes, ...]:
    """The key pairs that an account has, or may have, made on its token."""
    return (*state.strays, *(key.key_id for key in state.keys if key.is_ours))


def _protection(manufacturer: str) -> KeyProtection:
    """What a token says of itself, for people. A server believes only what is attested."""
    is_program = manufacturer.startswith(_IN_SOFTWARE)
    return KeyProtection.EMULATED_HARDWARE if is_program else KeyProtection.HARDWARE
