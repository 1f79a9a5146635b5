"""A reader with a PIN pad: the PIN is typed there, and the agent never sees it. There is none on this bench, nor in CI.

So the token is a stand-in that has the flag CKF_PROTECTED_AUTHENTICATION_PATH; the real module's part is not tested.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from pkcs11.exceptions import FunctionCancelled, PinIncorrect

from keyvouch.errors import Reason
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.pkcs11.gated import GatedVault
from keyvouch_agent.vaults.pkcs11.library import PIN_PAD, OpenedToken, PresentToken
from keyvouch_agent.vaults.pkcs11.pin_control import TokenPin
from keyvouch_agent.vaults.pkcs11.pins import PinStanding
from keyvouch_agent.vaults.pkcs11.profile import TokenProfile
from keyvouch_agent.vaults.pkcs11.uri import TokenName
from support.pkcs11_tokens import Typed, reason_of

NAME = TokenName("card", "1", "maker", "model")


class PadLibrary:
    """What `TokenSession` asks of a library. `answer` is what the user does on the pad."""

    generation = 1

    def __init__(self) -> None:
        self.answer: Exception | None = None
        self.pins: list[Any] = []
        self.closed = 0

    def open(self, find: object, *, pin: Any = None, write: bool = False) -> OpenedToken:
        self.pins.append(pin)
        if self.answer is not None:
            raise self.answer
        none: Any = None
        return OpenedToken(none, PresentToken(NAME, none, frozenset(), 0, "reader", True, none), 1)

    def close_session(self, opened: OpenedToken) -> None:
        self.closed += 1

    def tokens(self) -> list[PresentToken]:
        none: Any = None
        return [PresentToken(NAME, none, frozenset(), 0, "reader", True, none)]

    def release(self) -> None:
        """Nothing to release."""

    def is_logged_in(self, name: TokenName) -> bool:
        return False

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        yield


class PadAccount:
    """What the vault's gate asks of an account."""

    profile = TokenProfile(NAME, "/module.so", (-7,), None)

    def __init__(self) -> None:
        self.library = PadLibrary()
        self.standing = PinStanding(True, 3, on_pad=True)

    def pin_standing(self) -> PinStanding:
        return self.standing

    def forget_pin(self) -> None:
        """Nothing to forget."""


@pytest.fixture
def account() -> Any:
    return PadAccount()


def test_pin_is_typed_on_the_reader(account: Any) -> None:
    vault, entry = GatedVault(account), Typed()
    assert vault.uv_state().on_pad
    vault.verify_user(entry)
    assert (entry.on_pad_shown, entry.shown, account.library.pins) == ([3], [], [PIN_PAD])
    assert vault._context_pin(pin_always=True) == ""
    assert vault._context_pin(pin_always=False) is None
    vault.lock()
    assert account.library.closed == 1


@pytest.mark.parametrize(("answer", "reason"), [(FunctionCancelled(), Reason.USER_CANCELLED),
                                                (PinIncorrect(), Reason.PIN_WRONG)])  # fmt: skip
def test_what_the_user_does_there(account: Any, answer: Exception, reason: Reason) -> None:
    account.library.answer = answer
    vault = GatedVault(account)
    assert reason_of(lambda: vault.verify_user(Typed())) is reason
    assert vault._unlocked is None


def test_last_try_is_not_asked_for(account: Any) -> None:
    account.standing = PinStanding(True, 1, on_pad=True)
    entry = Typed()
    assert reason_of(lambda: GatedVault(account).verify_user(entry)) is Reason.PIN_LAST_TRY
    assert (entry.on_pad_shown, account.library.pins) == ([], [])


def test_pin_is_not_changed_here(account: Any) -> None:
    control = TokenPin(account, GatedVault(account))
    assert reason_of(lambda: control.change(Pin("123456"), Pin("654321"))) is Reason.UNSUPPORTED


def test_lock_in_another_thread_while_the_state_is_asked_for(account: Any) -> None:
    """The session is gone between two looks at it."""

    class Locking(GatedVault):
        looks = 0

        def __getattribute__(self, name: str) -> Any:
            if name == "_unlocked":
                type(self).looks += 1
                if type(self).looks > 1:
                    return None
            return super().__getattribute__(name)

    vault = Locking(account)
    vault.verify_user(Typed())
    Locking.looks = 0
    assert vault.uv_state().is_configured
