"""What the software vault refuses, in words."""

from __future__ import annotations

from keyvouch.errors import DeviceError, Reason

__all__ = [
    "counter_used_up",
    "locked",
    "no_room_for_blobs",
    "no_room_for_keys",
    "no_such_key",
    "of_the_other_kind",
    "pin_blocked",
    "pin_is_set",
    "pin_not_set",
    "pin_wrong",
]


def of_the_other_kind(pin_gated: bool) -> DeviceError:
    """The file is of the other kind than it was opened as."""
    made, wanted = ("without", "with") if pin_gated else ("with", "without")
    return DeviceError(
        Reason.UNSUPPORTED,
        f"The keys of this vault were made to work {made} the PIN as their gate, and it was opened as one {wanted} it.",
        fix="Open it as it was made, or take another folder.",
    )


def no_such_key() -> DeviceError:
    """No key has that id."""
    return DeviceError(
        Reason.KEY_NOT_FOUND, "The vault has no such key.", fix="Register this device again with the server."
    )


def pin_not_set() -> DeviceError:
    """There is no PIN yet."""
    return DeviceError(Reason.PIN_NOT_SET, "No PIN is set.", fix="Set a PIN first.")


def pin_wrong(retries_left: int) -> DeviceError:
    """The PIN was wrong, or is blocked with that."""
    if retries_left == 0:
        return pin_blocked()
    return DeviceError(
        Reason.PIN_WRONG, "The PIN is wrong.", retries_left=retries_left, fix=f"{retries_left} attempts are left."
    )


def pin_blocked() -> DeviceError:
    """No try is left."""
    return DeviceError(
        Reason.PIN_BLOCKED,
        "The PIN was entered wrong too often and is blocked.",
        retries_left=0,
        fix="Reset the vault, which destroys its keys, and register this device again.",
    )


def pin_is_set() -> DeviceError:
    """There is a PIN already."""
    return DeviceError(
        Reason.PIN_POLICY, "A PIN is set already.", fix="Change it, or reset the vault and register again."
    )


def locked() -> DeviceError:
    """What was asked for needs the PIN."""
    return DeviceError(Reason.PIN_REQUIRED, "The vault is locked.", fix="Enter the PIN first.")


def no_room_for_keys(limit: int) -> DeviceError:
    """It is full of keys."""
    return DeviceError(
        Reason.KEY_STORE_FULL, f"The key vault holds {limit} keys, which is all it takes.", fix="Remove one."
    )


def no_room_for_blobs(length: int, limit: int) -> DeviceError:
    """The large-blob array is too long."""
    return DeviceError(
        Reason.KEY_STORE_FULL,
        f"The key vault keeps {limit} bytes of large blobs; these are {length}.",
        fix="Remove one of them.",
    )


def counter_used_up() -> DeviceError:
    """The sign count has no higher value."""
    return DeviceError(Reason.DEVICE_FAILED, "This key's counter is used up.", fix="Register this device again.")
