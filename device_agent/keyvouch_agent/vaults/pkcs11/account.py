"""One account on a token: its record on the disk, and the way to the token it is on.

The token is chosen when the account is opened for the first time, and is the account's from its first key on.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from keyvouch.errors import DeviceError
from keyvouch_agent.vaults.pkcs11 import piv, record
from keyvouch_agent.vaults.pkcs11.library import PresentToken, TokenLibrary
from keyvouch_agent.vaults.pkcs11.pins import PinStanding, read_standing
from keyvouch_agent.vaults.pkcs11.profile import TokenProfile, attestation_of, survey
from keyvouch_agent.vaults.pkcs11.record import CardState
from keyvouch_agent.vaults.pkcs11.session import find_token
from keyvouch_agent.vaults.pkcs11.uri import TokenUri
from keyvouch_agent.vaults.private_directory import FileSteps, PrivateDirectory

__all__ = ["FILE_NAME", "CardAccount"]

FILE_NAME: Final = "account.cbor"


class CardAccount:
    """The record and the token. Make one with `open`, and `close` it to release the folder's lock."""

    def __init__(self, directory: PrivateDirectory, library: TokenLibrary, wanted: TokenUri) -> None:
        self.library = library
        self._directory = directory
        self._state = self._load()
        self.profile: TokenProfile = self._state.token or survey(library, wanted)
        """Which token it is on, or would be."""

    @classmethod
    def open(
        cls, path: Path, library: TokenLibrary, wanted: TokenUri | None = None, *, steps: FileSteps | None = None
    ) -> Self:
        """Open the account in directory `path`, which is created if it is not there.

        `wanted` chooses the token, and the key if an existing one is to be used; it counts only for a new account, and
        then the card has to be there. Raises `DeviceError`: VAULT_PERMISSIONS, VAULT_BUSY, VAULT_CORRUPT, and as
        `survey` does.
        """
        directory = PrivateDirectory(path, steps or FileSteps())
        try:
            return cls(directory, library, wanted or TokenUri())
        except BaseException:
            directory.close()
            raise

    def close(self) -> None:
        """Let another process open it, and other programs have the card. Does nothing the second time."""
        self._directory.close()
        self.library.release()

    @property
    def state(self) -> CardState:
        """What is on the disk."""
        return self._state

    def store(self, state: CardState) -> None:
        """Replace the record durably. After a failed write it is read again."""
        try:
            self._directory.replace(FILE_NAME, record.encode(state))
        except DeviceError:
            self._state = self._load()
            raise
        self._state = state

    def erase(self) -> None:
        """Remove the record."""
        self._directory.remove(FILE_NAME)
        self._state = CardState()

    def token(self) -> PresentToken:
        """The account's token, as it is now. Raises `DeviceError`: AUTHENTICATOR_NOT_CONNECTED, AUTHENTICATOR_OTHER."""
        return find_token(self.library, self.profile.name)

    def pin_standing(self) -> PinStanding:
        """How its PIN stands now, by the card's own count where it tells one. Raises as `token` does."""
        token = self.token()
        with self.library.exclusively():
            counted = piv.count_tries(token.reader) if self.profile.is_piv else None
        return read_standing(token.flags, counted=counted)

    def forget_pin(self) -> None:
        """Have the card itself forget that the PIN was shown, where a logout leaves that to us. Never fails."""
        if self.profile.is_piv:
            with suppress(DeviceError):
                token = self.token()
                with self.library.exclusively():
                    piv.forget_pin(token.reader)

    def attestation(self) -> tuple[bytes, ...]:
        """The card's attestation of the account's key, in DER; empty where there is none. Raises as `token` does."""
        return attestation_of(self.library, self.profile, self.token())

    def _load(self) -> CardState:
        content = self._directory.read(FILE_NAME)
        return CardState() if content is None else record.decode(content)
