"""What this agent can keep keys in, put together: vault, authenticator, provider, for each kind.

    holders = KeyHolderSet(home, clock, kdf=None)
    holders.makers()         for the shelf
    holders.channel_keys()   for the device channel
    holders.tpm_access()     the way to the TPM, for commands about it

The TPM's modules are loaded when a TPM is wanted, and not before: they need libtss2, which is not everywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.agent_ports import Clock
from keyvouch_agent.agent_settings import load_card_settings, load_fido2_settings, load_settings, read_auth
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.cards.account import CardAccounts
from keyvouch_agent.cards.provider import CardProvider
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.channel_keys import (
    ChannelKey,
    ChannelKeys,
    FirstThatWorks,
    SealedChannelKeys,
    UnusableChannelKey,
    is_tpm_key,
)
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Ledger
from keyvouch_agent.ports import KeyProtection, Provider, ProviderKind
from keyvouch_agent.provider_shelf import ProviderKey, ProviderMaker, ProviderShelf
from keyvouch_agent.providers.built_in import BuiltInProvider, NativeHolder
from keyvouch_agent.providers.ctap_requests import CredentialWish
from keyvouch_agent.roaming.provider import EnrolledKey, RoamingProvider
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import KdfParameters, SoftwareVault
from keyvouch_agent.vaults.tpm.connection import TpmAccess, TpmSettings
from keyvouch_client.security_keys.discovery import SecurityKeys, connected_security_keys

__all__ = ["CARD_FOLDER", "TPM_FOLDER", "KeyHolderSet", "ShelfHolders"]

EVENT_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"
"""Where Linux shows the firmware's log."""

CARD_FOLDER: Final = "vault-card"
TPM_FOLDER: Final = "vault-tpm"
_TPM_RECORD: Final = "account.cbor"
_SOFTWARE_FOLDER: Final = "vault-software"

Opened = tuple[Provider, Callable[[], None]]


class KeyHolderSet:
    """The holders of one home.

    `open_tcti` takes the place of the configured TPM, and `security_keys` that of the keys connected to this computer,
    for benches. `card` says which card a new account is to be on, before the settings do.
    """

    def __init__(
        self,
        home: Home,
        clock: Clock,
        *,
        kdf: KdfParameters | None = None,
        open_tcti: Callable[[], Any] | None = None,
        security_keys: SecurityKeys | None = None,
        card: CardWish | None = None,
    ) -> None:
        self._home = home
        self._security_keys = security_keys or connected_security_keys()
        self._clock = clock
        self._kdf = kdf
        self._open_tcti = open_tcti
        self._card = card or CardWish()
        self._cards = CardAccounts(
            lambda: home.folder(CARD_FOLDER), clock, wish=self.card_wish, abandoned=self.abandoned_card_accounts
        )

    def makers(self) -> Mapping[str, ProviderMaker]:
        """By kind."""
        return {
            ProviderKind.SOFTWARE.value: ProviderMaker(self._software),
            ProviderKind.TPM.value: ProviderMaker(self._tpm, _new_account, self._erase_tpm),
            ProviderKind.FIDO2.value: ProviderMaker(self._fido2, _new_account),
            ProviderKind.SMARTCARD.value: ProviderMaker(self._smartcard, _new_account, self._cards.erase),
        }

    def channel_keys(self, provider: str = "") -> ChannelKeys:
        """Where channel keys live: new ones in the TPM if `provider` is that, else in software; both can be loaded."""
        sealed, tpm = SealedChannelKeys(), _LateTpmChannelKeys(self.tpm_access)
        return FirstThatWorks([tpm, sealed] if provider == ProviderKind.TPM else [sealed, tpm])

    def security_keys(self) -> SecurityKeys:
        """The keys that are connected, for commands about them."""
        return self._security_keys

    def tpm_access(self) -> TpmAccess:
        """The way to the TPM. Raises CONFIGURATION for settings that cannot be used."""
        s = load_settings(self._home)
        settings = TpmSettings(
            tcti=s.tcti,
            owner_auth=read_auth(s.owner_auth_file),
            endorsement_auth=read_auth(s.endorsement_auth_file),
            endorsement_certificate=s.endorsement_certificate,
        )
        return TpmAccess(settings, open_tcti=self._open_tcti)

    def card_wish(self) -> CardWish:
        """Which module, token and key are meant. Raises CONFIGURATION for settings that cannot be used."""
        return self._card.over(load_card_settings(self._home))

    def abandoned_card_accounts(self) -> tuple[str, ...]:
        """Those on cards that neither an enrolment nor an interrupted registration names."""
        return self._abandoned(CARD_FOLDER)

    def tpm_accounts(self) -> tuple[str, ...]:
        """Names of the accounts that have a folder, in use or left behind."""
        return self._accounts(TPM_FOLDER)

    def abandoned_tpm_accounts(self) -> tuple[str, ...]:
        """Those that neither an enrolment nor an interrupted registration names: a killed `enroll` left them."""
        return self._abandoned(TPM_FOLDER)

    def has_tpm_record(self, name: str) -> bool:
        """Whether an account still knows what it has in the TPM, damaged or not."""
        return (self._home.path / TPM_FOLDER / name / _TPM_RECORD).exists()

    def discard_tpm_account(self, name: str) -> None:
        """Remove the files of an account whose record is damaged. What it had in the TPM stays there."""
        folder = self._home.folder(f"{TPM_FOLDER}/{name}")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def best_kind(self, say: Callable[[str], None]) -> str:
        """The kind of provider for who does not name one: a TPM that can be used, else software. Says which and why."""
        access = self.tpm_access()
        if not access.is_there:
            return ProviderKind.SOFTWARE.value
        try:
            access.require_library()
            access.open().close()
        except DeviceError as error:
            say(f"The key goes into the software vault. {error.message} {error.fix}")
            return ProviderKind.SOFTWARE.value
        say("The key goes into the TPM.")
        return ProviderKind.TPM.value

    def sweep_tpm(self, shelf: ProviderShelf) -> None:
        """Take out of the TPM what abandoned accounts left there. What cannot be taken out waits for the next time."""
        holders = ShelfHolders(shelf, ProviderKind.TPM.value)
        for account in self.abandoned_tpm_accounts():
            with suppress(KeyvouchError):
                holders.forget("", account, None)

    def sweep_cards(self) -> None:
        """Remove what abandoned accounts on cards have left here."""
        self._cards.sweep()

    def _accounts(self, folder: str) -> tuple[str, ...]:
        if not (self._home.path / folder).exists():
            return ()
        return tuple(sorted(path.name for path in self._home.folder(folder).iterdir() if path.is_dir()))

    def _abandoned(self, folder: str) -> tuple[str, ...]:
        ledger = Ledger(self._home)
        used = {e.account for e in ledger.enrolments()} | {s.account for s in ledger.staged()}
        return tuple(account for account in self._accounts(folder) if account not in used)

    def _software(self, _account: str) -> Opened:
        entropy = SystemEntropy()
        vault = SoftwareVault.open(self._home.folder(_SOFTWARE_FOLDER), entropy, kdf=self._kdf)

        return BuiltInProvider(Authenticator(vault, self._clock, entropy)), vault.close

    def _fido2(self, name: str) -> Opened:
        """Security keys; an account's name says which credential to look for."""
        settings = load_fido2_settings(self._home)
        provider = RoamingProvider(
            self._security_keys,
            enrolled=lambda: self._enrolled_key(name),
            wish=CredentialWish(resident=settings.resident, protect=settings.protect),
        )
        return provider, lambda: None

    def _smartcard(self, name: str) -> Opened:
        """The card of an account; without a name whichever is in the reader, for commands about its PIN."""
        provider = CardProvider(self._cards, name or _new_account(), adopts=bool(name))
        return provider, provider.close

    def _enrolled_key(self, name: str) -> EnrolledKey | None:
        found = [e for e in Ledger(self._home).enrolments() if name and e.account == name]
        return EnrolledKey(e.credential_id, e.rp_id, e.username, e.key_name) if (e := next(iter(found), None)) else None

    def _tpm(self, name: str) -> Opened:
        if not name:
            raise _no_account()
        access = self.tpm_access()
        access.require_library()
        from keyvouch_agent.vaults.tpm.account import TpmAccount  # noqa: PLC0415 - needs libtss2
        from keyvouch_agent.vaults.tpm.health import report  # noqa: PLC0415
        from keyvouch_agent.vaults.tpm.losses import NO_SUCH_KEY  # noqa: PLC0415
        from keyvouch_agent.vaults.tpm.registration import TpmRegistration  # noqa: PLC0415
        from keyvouch_agent.vaults.tpm.replacement import TpmReplacement  # noqa: PLC0415
        from keyvouch_agent.vaults.tpm.vault import TpmVault  # noqa: PLC0415

        entropy = SystemEntropy()
        account = TpmAccount.open(self._home.folder(TPM_FOLDER) / name, access)
        account.sweep()
        vault, profile = TpmVault(account, entropy), account.profile
        native = NativeHolder(
            name=profile.name,
            protection=KeyProtection.EMULATED_HARDWARE if profile.is_emulated else KeyProtection.HARDWARE,
            verifies=profile.algorithms,
            steps=lambda: TpmRegistration(account, vault, entropy),
            health=lambda data, pcrs: report(account, data, pcrs, event_log=self._event_log(access)),
            forget=vault.reset,
            replacement=lambda: TpmReplacement(account, vault),
            no_such_key=NO_SUCH_KEY.error,
        )
        return BuiltInProvider(Authenticator(vault, self._clock, entropy), native=native), vault.close

    def _event_log(self, access: TpmAccess) -> str:
        """The log of the boot of this computer is none of a TPM elsewhere."""
        configured = load_settings(self._home).event_log
        return configured or (EVENT_LOG if access.configuration.startswith("device:") else "")

    def _erase_tpm(self, name: str) -> None:
        """Remove the folder of an account that was forgotten: only the lock is left in it."""
        folder = self._home.folder(TPM_FOLDER) / name
        with suppress(OSError):
            (folder / "lock").unlink()
            folder.rmdir()


class ShelfHolders:
    """`KeyHolders` over the shelf, for registrations of one kind."""

    def __init__(self, shelf: ProviderShelf, kind: str) -> None:
        self._shelf = shelf
        self._kind = kind

    def new(self) -> tuple[str, Provider]:
        """See `KeyHolders`."""
        key = self._shelf.for_new_account(self._kind)
        return key.account, self._shelf.get(key)

    def forget(self, provider: str, account: str, credential_id: CredentialId | None) -> None:
        """See `KeyHolders`."""
        key = ProviderKey(provider or self._kind, account)
        self._shelf.get(key).forget(credential_id)
        self._shelf.erase(key)


def _new_account() -> str:
    return secrets.token_hex(8)


def _no_account() -> DeviceError:
    return DeviceError(
        Reason.KEY_NOT_FOUND,
        "A TPM keeps the keys of each account apart, and no account of this home has its key there.",
        fix="Make one with `keyvouch-agent enroll --provider tpm`.",
    )


class _LateTpmChannelKeys:
    """The TPM's channel keys, with the modules behind them loaded at the first use."""

    def __init__(self, access: Callable[[], TpmAccess]) -> None:
        self._access = access

    def make(self) -> ChannelKey:
        """See `ChannelKeys`."""
        return self._keys().make()

    def knows(self, stored: bytes) -> bool:
        """See `ChannelKeys`."""
        return is_tpm_key(stored)

    def load(self, stored: bytes) -> ChannelKey:
        """See `ChannelKeys`."""
        try:
            return self._keys().load(stored)
        except DeviceError as error:
            return UnusableChannelKey(stored, error)

    def _keys(self) -> ChannelKeys:
        access = self._access()
        access.require_library()
        from keyvouch_agent.vaults.tpm.channel_key import TpmChannelKeys  # noqa: PLC0415 - needs libtss2

        return TpmChannelKeys(access)
