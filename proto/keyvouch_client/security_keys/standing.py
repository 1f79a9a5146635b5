"""What a key says of itself without a touch: its PIN and the tries left, its room, and why it cannot be used.

It is read with authenticatorGetInfo (CTAP 2.1 section 6.4) and getPINRetries, getUVRetries (section 6.5.5). What a key
says is for people and for choosing the way; nothing here is evidence.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fido2.ctap import CtapDevice, CtapError
from fido2.ctap2.base import Ctap2, Info
from fido2.ctap2.pin import ClientPin
from fido2.hid import CAPABILITY

from keyvouch.errors import DeviceError, Reason
from keyvouch_client.security_keys.discovery import ConnectedKey
from keyvouch_client.security_keys.failures import device_error, removed

__all__ = ["MALFORMED", "KeyStanding", "read_standing", "require_ctap2", "require_usable", "standing_of"]

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error, RecursionError)
"""What python-fido2 raises while it reads an answer that is not what it should be."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class KeyStanding:
    """How a key stands. Empty and None where it does not say, or has no such thing."""

    versions: tuple[str, ...]
    aaguid: bytes
    takes_pin: bool
    """Whether it knows PINs at all."""
    pin_is_set: bool
    pin_retries_left: int | None
    needs_power_cycle: bool
    must_change_pin: bool
    min_pin_length: int
    built_in: bool | None
    """Verifies its user itself (finger, face, own keypad): None cannot, False could but is not set up."""
    built_in_retries_left: int | None
    room: int | None
    """Discoverable credentials it could still hold, about."""
    algorithms: tuple[int, ...]
    extensions: tuple[str, ...]
    attestation_formats: tuple[str, ...]
    transports: tuple[str, ...]

    @property
    def asks_pin(self) -> bool:
        """Whether an operation will need the PIN, as the key does not verify its user itself or has given up."""
        return not self.built_in or self.built_in_retries_left == 0


def read_standing(key: ConnectedKey) -> KeyStanding:
    """Open a key, read how it stands, close it.

    Raises `DeviceError`: what `ConnectedKey.open` raises, UNSUPPORTED, AUTHENTICATOR_REMOVED.
    """
    device = key.open()
    try:
        return standing_of(device)
    finally:
        device.close()


def standing_of(device: CtapDevice) -> KeyStanding:
    """Read how an open device stands.

    Raises `DeviceError`: UNSUPPORTED for one without CTAP2, AUTHENTICATOR_REMOVED, DEVICE_FAILED.
    """
    require_ctap2(device)
    try:
        ctap = Ctap2(device)
        return _standing(ctap, ctap.info)
    except CtapError as error:
        raise device_error(error) from error
    except OSError as error:
        raise removed(error) from error
    except MALFORMED as error:
        raise DeviceError(
            Reason.DEVICE_FAILED, "The authenticator answered with a malformed response.", fix="Use another one."
        ) from error


def require_ctap2(device: CtapDevice) -> None:
    """Raise `DeviceError(UNSUPPORTED)` for a key that speaks U2F alone: it verifies nobody."""
    if not device.capabilities & CAPABILITY.CBOR:
        raise DeviceError(
            Reason.UNSUPPORTED,
            "This security key speaks U2F only: it has no PIN, so whoever finds it could use it.",
            fix="Use a FIDO2 security key.",
        )


def require_usable(standing: KeyStanding) -> None:
    """Raise `DeviceError(UNSUPPORTED)` for a key that cannot verify its user, however it is set up."""
    if standing.takes_pin or standing.built_in:
        return
    if standing.built_in is False:
        raise DeviceError(
            Reason.UNSUPPORTED,
            "This security key verifies its user by itself only, and nothing is enrolled on it yet.",
            fix="Enrol a finger with its maker's tool, then start again.",
        )
    raise DeviceError(
        Reason.UNSUPPORTED,
        "This security key can verify nobody: it knows neither a PIN nor a fingerprint.",
        fix="Use a FIDO2 security key with a PIN.",
    )


def _standing(ctap: Ctap2, info: Info) -> KeyStanding:
    options = info.options
    pin = ClientPin(ctap) if info.pin_uv_protocols else None
    left, cycle = _or_none(pin.get_pin_retries) or (None, None) if pin and options.get("clientPin") else (None, None)
    built_in = options.get("uv")
    return KeyStanding(
        versions=tuple(info.versions),
        aaguid=bytes(info.aaguid),
        takes_pin="clientPin" in options and pin is not None,
        pin_is_set=bool(options.get("clientPin")),
        pin_retries_left=left,
        needs_power_cycle=bool(cycle),
        must_change_pin=info.force_pin_change,
        min_pin_length=info.min_pin_length,
        built_in=built_in,
        built_in_retries_left=_or_none(pin.get_uv_retries) if pin and built_in else None,
        room=info.remaining_disc_creds,
        algorithms=tuple(int(known["alg"]) for known in info.algorithms),
        extensions=tuple(info.extensions),
        attestation_formats=tuple(info.attestation_formats),
        transports=tuple(info.transports),
    )


def _or_none(ask: Callable[[], _T]) -> _T | None:
    """What a key need not be able to say."""
    try:
        return ask()
    except CtapError:
        return None
