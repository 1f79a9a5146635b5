"""Every refusal of a PKCS#11 token in words: CKR codes (PKCS#11 section 5.1), and what the vault itself refuses.

python-pkcs11 has a class for each code. They are known here by their names, so that this needs no module to be loaded.

What is *not* here: PINs that are wrong (`pins`), and which modules are loaded (`module_path`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keyvouch.errors import DeviceError, Reason

__all__ = [
    "BROKEN",
    "GONE",
    "another_token",
    "explained",
    "held_token",
    "key_lost",
    "key_not_fit",
    "locked",
    "no_such_key",
    "no_token",
    "removed",
    "require_library",
    "stuck_module",
    "unread_token",
    "unsupported",
]

REENROL: Final = "Run `keyvouch-agent enroll --replace` with the right card."


@dataclass(frozen=True, slots=True)
class _Words:
    reason: Reason
    message: str
    fix: str = "Try again; `keyvouch-agent doctor` says more."


_REMOVED: Final = _Words(
    Reason.AUTHENTICATOR_REMOVED,
    "The card was taken out, or its reader, while it was used. Nothing was changed.",
    "Put it back in and start again; the card asks for the PIN anew.",
)
_CANCELLED: Final = _Words(Reason.USER_CANCELLED, "The PIN was not entered.", "Try again.")
_NOT_FIT: Final = _Words(
    Reason.UNSUPPORTED,
    "The token does not make keys as they have to be: made inside, never to come out.",
    "Use another token, or an existing key of this one.",
)
_UNABLE: Final = _Words(
    Reason.UNSUPPORTED, "The token cannot do what was asked.", "`keyvouch-agent doctor` says what it can do."
)

GONE: Final = frozenset(
    (
        "DeviceRemoved",
        "TokenNotPresent",
        "TokenNotRecognised",
        "SlotIDInvalid",
        "SessionHandleInvalid",
        "SessionClosed",
        "ObjectHandleInvalid",
        "KeyHandleInvalid",
    )
)
"""What a module may say of anything that was opened before a card was taken out, also when it is back."""

BROKEN: Final = frozenset(("DeviceError", "FunctionFailed", "GeneralError", "PKCS11Error"))
"""What a module says that does not know what went wrong; the last one is any code that python-pkcs11 does not know."""

_TABLE: Final = {
    **dict.fromkeys(GONE, _REMOVED),
    "UserNotLoggedIn": _Words(
        Reason.PIN_REQUIRED,
        "The card no longer knows that the PIN was shown: another program has used it, or it was reset.",
        "Enter the PIN again.",
    ),
    "UserPinNotInitialized": _Words(
        Reason.PIN_NOT_SET, "The token has no PIN yet.", "Set it with the token's own tool: pkcs11-tool --init-pin."
    ),
    "PinExpired": _Words(Reason.PIN_CHANGE_REQUIRED, "The token wants another PIN first.", "Change the PIN."),
    "PinTooWeak": _Words(Reason.PIN_POLICY, "The token does not take such a simple PIN.", "Choose another one."),
    "FunctionCancelled": _CANCELLED,
    "FunctionRejected": _CANCELLED,
    "DeviceMemory": _Words(Reason.KEY_STORE_FULL, "The token has no room for another key.", "Remove one from it."),
    "TokenWriteProtected": _Words(Reason.UNSUPPORTED, "The token is write protected.", "Use an existing key of it."),
    "SessionReadOnly": _Words(Reason.UNSUPPORTED, "The token is write protected.", "Use an existing key of it."),
    **dict.fromkeys(
        ("AttributeTypeInvalid", "AttributeValueInvalid", "AttributeReadOnly", "TemplateIncomplete",
         "TemplateInconsistent", "DomainParamsInvalid", "KeySizeRange"),
        _NOT_FIT,
    ),
    **dict.fromkeys(
        ("MechanismInvalid", "MechanismParamInvalid", "FunctionNotSupported", "KeyTypeInconsistent", "SessionCount"),
        _UNABLE,
    ),
}  # fmt: skip


def explained(error: Exception) -> DeviceError:
    """What a code means to a person. A code without words of its own is DEVICE_FAILED, with its name."""
    words = _TABLE.get(type(error).__name__)
    if words is None:
        return DeviceError(
            Reason.DEVICE_FAILED,
            f"The card or its PKCS#11 module failed ({type(error).__name__}).",
            fix="Take the card out, put it back in and try again; `keyvouch-agent doctor` says more.",
        )
    return DeviceError(words.reason, words.message, fix=words.fix)


def removed() -> DeviceError:
    """The card went away under the hand."""
    return DeviceError(_REMOVED.reason, _REMOVED.message, fix=_REMOVED.fix)


def require_library() -> None:
    """Raise `DeviceError(UNSUPPORTED)` where python-pkcs11 is missing."""
    try:
        import pkcs11  # noqa: F401, PLC0415
    except (ImportError, OSError) as error:
        raise DeviceError(
            Reason.UNSUPPORTED,
            "Smartcards cannot be used: the package python-pkcs11 is missing.",
            fix="Install it: pip install 'keyvouch[pkcs11]'.",
        ) from error


def stuck_module(path: str) -> DeviceError:
    """A call into the module does not come back, and nothing in a process can end one."""
    return DeviceError(
        Reason.MODULE_UNAVAILABLE,
        f"The PKCS#11 module {path} does not answer: what it was asked before is not done yet.",
        fix="Take the card out. If that does not help, end the agent with kill -KILL, and start it again.",
    )


def no_token(wanted: str) -> DeviceError:
    """No token that is there is the one that is wanted."""
    return DeviceError(
        Reason.AUTHENTICATOR_NOT_CONNECTED,
        f"The card {wanted} is in no reader.",
        fix="Put it in. `keyvouch-agent doctor` shows readers and cards.",
    )


def held_token(readers: list[str]) -> DeviceError:
    """There is a card, and another program lets nobody else near it."""
    return DeviceError(
        Reason.AUTHENTICATOR_NOT_CONNECTED,
        f"Another program keeps the card in {', '.join(readers)} to itself.",
        fix="End it, or have it share the card: gpg's does with `pcsc-shared` in scdaemon.conf.",
    )


def unread_token(readers: list[str]) -> DeviceError:
    """There is a card that the module makes nothing of."""
    return DeviceError(
        Reason.AUTHENTICATOR_NOT_CONNECTED,
        f"There is a card in {', '.join(readers)}, and the PKCS#11 module does not know it.",
        fix="Put the right card in, or name the module of this one: [smartcard] module in agent.toml.",
    )


def another_token(wanted: str, there: str) -> DeviceError:
    """There is a card, and it is not the account's."""
    return DeviceError(
        Reason.AUTHENTICATOR_OTHER,
        f"The card in the reader is {there}; this account's key is on {wanted}.",
        fix=f"Put the right card in. If it is lost: {REENROL}",
    )


def key_lost() -> DeviceError:
    """The token is the right one, and does not have the key."""
    return DeviceError(
        Reason.DEVICE_KEY_LOST,
        "The key of this account is not on the card any more: it was deleted or replaced there.",
        fix=REENROL,
    )


def key_not_fit(why: str) -> DeviceError:
    """A key that may not be used."""
    return DeviceError(Reason.UNSUPPORTED, f"The key on the token is not used: {why}.", fix=_NOT_FIT.fix)


def no_such_key() -> DeviceError:
    """The record knows no key of that id."""
    return DeviceError(
        Reason.KEY_NOT_FOUND,
        "The record of this account does not know the key it is enrolled with: it is an older copy, or not all of it.",
        fix=REENROL,
    )


def locked() -> DeviceError:
    """What was asked for needs the PIN."""
    return DeviceError(Reason.PIN_REQUIRED, "The card is locked.", fix="Enter its PIN first.")


def unsupported(what: str) -> DeviceError:
    """The vault has no such thing."""
    return DeviceError(Reason.UNSUPPORTED, what, fix=_UNABLE.fix)
