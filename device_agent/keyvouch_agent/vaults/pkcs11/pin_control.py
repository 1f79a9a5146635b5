"""Changing the PIN of a token, which is the token's own and every program's: C_SetPIN with the old and the new one.

A token that has no PIN yet gets its first from its security officer, and a blocked one from who has the PUK; neither
is the agent's to do.
"""

from __future__ import annotations

from typing import Final, NoReturn

from pkcs11.exceptions import DataInvalid, PinIncorrect, PinInvalid, PinLenRange, PinLocked, PinTooWeak, PKCS11Error

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.pkcs11.account import CardAccount
from keyvouch_agent.vaults.pkcs11.failures import unsupported
from keyvouch_agent.vaults.pkcs11.gated import GatedVault, can_be_pin, not_a_pin, refusal_of_pin
from keyvouch_agent.vaults.pkcs11.pins import require_try
from keyvouch_agent.vaults.pkcs11.profile import TokenProfile
from keyvouch_agent.vaults.pkcs11.session import TokenSession, told_of

__all__ = ["TokenPin", "least_length"]

_LEAST: Final = 4
_LEAST_OF_PIV: Final = 6
"""NIST SP 800-73-4 part 2 section 2.4.3: 6 to 8 digits."""

_WRONG: Final = (PinIncorrect, PinLocked)
_POLICY: Final = (DataInvalid, PinInvalid, PinLenRange, PinTooWeak)
"""The first is what OpenSC makes of 6A80, by which a PIV card refuses a new PIN (SP 800-73-4 part 2 section 3.2.2)."""


def least_length(profile: TokenProfile) -> int:
    """The fewest characters of a PIN. PKCS#11 knows the token's number; python-pkcs11 does not tell it."""
    return _LEAST_OF_PIV if profile.is_piv else _LEAST


class TokenPin:
    """`PinControl` over a card account. The vault is locked before the PIN changes."""

    def __init__(self, account: CardAccount, vault: GatedVault) -> None:
        self._account = account
        self._vault = vault

    @property
    def is_set(self) -> bool:
        """Whether the token has a PIN. Raises `DeviceError` where the card is not there."""
        return self._account.pin_standing().is_set

    @property
    def retries_left(self) -> int | None:
        """What the token tells of it."""
        return self._account.pin_standing().tries_left

    @property
    def min_length(self) -> int:
        """In characters."""
        return least_length(self._account.profile)

    def set(self, new: Pin) -> NoReturn:  # noqa: ARG002 - the port's
        """Not the agent's to do: UNSUPPORTED."""
        raise unsupported("A card gets its first PIN from whoever issued it.")

    def change(self, old: Pin, new: Pin) -> None:
        """Put `new` in the place of `old`.

        Raises `DeviceError`: PIN_WRONG, PIN_BLOCKED, PIN_LAST_TRY, PIN_POLICY; UNSUPPORTED where it is typed on the
        reader.
        """
        self._vault.lock()
        account = self._account
        standing = account.pin_standing()
        if standing.on_pad:
            raise unsupported("This PIN is typed on the reader. Change it with pkcs11-tool --change-pin.")
        require_try(standing, allow_last=self._vault.take_last_try())
        if not can_be_pin(old.reveal()):
            raise not_a_pin(standing)
        if len(new.reveal()) < self.min_length or not can_be_pin(new.reveal()):
            raise self._policy()
        try:
            with TokenSession(account.library, account.profile.name, write=True) as session:
                session.do(lambda opened: opened.set_pin(old.reveal(), new.reveal()), passing=(*_WRONG, *_POLICY))
        except _WRONG as error:
            raise refusal_of_pin(error, account) from error
        except _POLICY as error:
            raise self._policy() from error
        except PKCS11Error as error:
            raise told_of(account.library, account.profile.name, error) from error
        finally:
            account.forget_pin()  # to a PIV card the old PIN was shown (SP 800-73-4 part 2 section 3.2.2)
            account.library.release()

    def _policy(self) -> DeviceError:
        what = (
            "6 to 8 digits" if self._account.profile.is_piv else f"{_LEAST} characters or more, as the token takes them"
        )
        return DeviceError(Reason.PIN_POLICY, "The card does not take this PIN.", fix=f"Choose another one: {what}.")
