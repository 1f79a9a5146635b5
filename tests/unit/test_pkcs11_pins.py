"""What the flags of a token say of its PIN, and when it is not asked for."""

from __future__ import annotations

import pytest
from pkcs11 import TokenFlag

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.pkcs11.failures import GONE, explained
from keyvouch_agent.vaults.pkcs11.pins import Counted, PinStanding, read_standing, require_try, wrong_pin

SET = TokenFlag.USER_PIN_INITIALIZED
LOW, FINAL, LOCKED = TokenFlag.USER_PIN_COUNT_LOW, TokenFlag.USER_PIN_FINAL_TRY, TokenFlag.USER_PIN_LOCKED


@pytest.mark.parametrize(
    ("flags", "left"),
    [(SET, None), (SET | LOW, 2), (SET | FINAL, 1), (SET | LOW | FINAL, 1), (SET | LOCKED, 0),
     (SET | LOW | FINAL | LOCKED, 0)],
)  # fmt: skip
def test_flags(flags: TokenFlag, left: int | None) -> None:
    assert read_standing(flags) == PinStanding(True, left)
    assert read_standing(flags | TokenFlag.PROTECTED_AUTHENTICATION_PATH).on_pad


def test_card_s_own_count_is_believed_more() -> None:
    assert read_standing(SET | FINAL, counted=Counted(3)).tries_left == 3
    assert read_standing(SET, counted=Counted(1)).tries_left == 1
    assert (
        read_standing(SET | FINAL, counted=Counted(None)).tries_left is None
    )  # the PIN was shown, so it is not the last


@pytest.mark.parametrize(
    ("standing", "allow_last", "reason"),
    [
        (PinStanding(False, None), True, Reason.PIN_NOT_SET),
        (PinStanding(True, 0), True, Reason.PIN_BLOCKED),
        (PinStanding(True, 1), False, Reason.PIN_LAST_TRY),
        (PinStanding(True, 1), True, None),
        (PinStanding(True, 2), False, None),
        (PinStanding(True, None), False, None),
    ],
)
def test_when_it_is_asked_for(standing: PinStanding, allow_last: bool, reason: Reason | None) -> None:
    if reason is None:
        require_try(standing, allow_last=allow_last)
        return
    with pytest.raises(DeviceError) as caught:
        require_try(standing, allow_last=allow_last)
    assert (caught.value.reason, caught.value.retries_left) == (reason, standing.tries_left)


@pytest.mark.parametrize(("left", "reason"), [(0, Reason.PIN_BLOCKED), (1, Reason.PIN_WRONG), (2, Reason.PIN_WRONG),
                                              (None, Reason.PIN_WRONG)])  # fmt: skip
def test_wrong_pin(left: int | None, reason: Reason) -> None:
    error = wrong_pin(PinStanding(True, left))
    assert (error.reason, error.retries_left) == (reason, left)
    assert error.fix


def test_every_refusal_has_words() -> None:
    from pkcs11 import exceptions

    names = [name for name in vars(exceptions) if isinstance(getattr(exceptions, name), type) and name != "PKCS11Error"]
    assert set(names) >= GONE
    for name in names:
        error = explained(getattr(exceptions, name)())
        assert error.message
        assert error.fix
        assert (error.reason is Reason.AUTHENTICATOR_REMOVED) is (name in GONE)
    assert "GeneralError" in explained(exceptions.GeneralError()).message
