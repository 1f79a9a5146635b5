"""All that a card keeps without power, and its file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from keyvouch.errors import Reason, UnavailableError
from keyvouch_bench.piv_card.identifiers import (
    ATTESTATION_SLOT,
    ManagementAlgorithm,
    Object,
    Origin,
    PinPolicy,
    TouchPolicy,
)
from keyvouch_bench.piv_card.keys import CardKey
from keyvouch_bench.piv_card.reference_data import DEFAULT_PIN, DEFAULT_PUK, ReferenceData

__all__ = ["DEFAULT_MANAGEMENT_KEY", "DEFAULT_TRIES", "CardState", "load", "save"]

DEFAULT_MANAGEMENT_KEY: Final = bytes.fromhex("0102030405060708" * 3)
"""What makers of cards leave in them, and everybody knows."""

DEFAULT_TRIES: Final = 3
FIRMWARE: Final = (5, 4, 3)
_FORMAT: Final = 1


@dataclass(slots=True)
class CardState:
    """Keys by slot, objects by tag (the value of their 53 template), secrets with their tries."""

    serial: int
    firmware: tuple[int, int, int] = FIRMWARE
    form_factor: int = 1
    pin: ReferenceData = field(default_factory=lambda: ReferenceData.fresh(DEFAULT_PIN, DEFAULT_TRIES))
    puk: ReferenceData = field(default_factory=lambda: ReferenceData.fresh(DEFAULT_PUK, DEFAULT_TRIES))
    management_algorithm: ManagementAlgorithm = ManagementAlgorithm.TDES
    management_key: bytes = DEFAULT_MANAGEMENT_KEY
    keys: dict[int, CardKey] = field(default_factory=dict)
    objects: dict[int, bytes] = field(default_factory=dict)

    def wipe(self) -> None:
        """Back to how the maker left it; serial number, tries and the attestation key stay."""
        self.pin = ReferenceData.fresh(DEFAULT_PIN, self.pin.tries)
        self.puk = ReferenceData.fresh(DEFAULT_PUK, self.puk.tries)
        self.management_algorithm, self.management_key = ManagementAlgorithm.TDES, DEFAULT_MANAGEMENT_KEY
        self.keys = {slot: key for slot, key in self.keys.items() if slot == ATTESTATION_SLOT}
        self.objects = {tag: value for tag, value in self.objects.items() if tag == Object.ATTESTATION_CERTIFICATE}


def save(state: CardState, path: Path) -> None:
    """Write it in one step. The file protects nothing: a bench's card has no secrets worth it."""
    written: dict[str, Any] = {
        "format": _FORMAT,
        "serial": state.serial,
        "firmware": list(state.firmware),
        "form_factor": state.form_factor,
        "pin": _secret(state.pin),
        "puk": _secret(state.puk),
        "management": [state.management_algorithm.value, state.management_key.hex()],
        "keys": {f"{slot:02x}": _key(key) for slot, key in state.keys.items()},
        "objects": {f"{tag:06x}": value.hex() for tag, value in state.objects.items()},
    }
    unfinished = path.with_suffix(".new")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(written, indent=1), encoding="utf-8")
    os.replace(unfinished, path)  # noqa: PTH105 - it replaces, and says so


def load(path: Path) -> CardState:
    """Read what `save` wrote. Raises `UnavailableError(CONFIGURATION)` for anything else."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if read["format"] != _FORMAT:
            raise ValueError(f"format {read['format']}")
        algorithm, management_key = read["management"]
        return CardState(
            serial=read["serial"],
            firmware=tuple(read["firmware"]),
            form_factor=read["form_factor"],
            pin=_read_secret(read["pin"]),
            puk=_read_secret(read["puk"]),
            management_algorithm=ManagementAlgorithm(algorithm),
            management_key=bytes.fromhex(management_key),
            keys={int(slot, 16): _read_key(key) for slot, key in read["keys"].items()},
            objects={int(tag, 16): bytes.fromhex(value) for tag, value in read["objects"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            Reason.CONFIGURATION,
            f"{path} holds no virtual PIV card: {error}.",
            fix="Give the folder of one, or an empty folder for a new one.",
        ) from None


def _secret(secret: ReferenceData) -> list[str | int]:
    return [secret.value.hex(), secret.tries, secret.left]


def _read_secret(read: list[Any]) -> ReferenceData:
    value, tries, left = read
    return ReferenceData(bytes.fromhex(value), int(tries), int(left))


def _key(key: CardKey) -> dict[str, str | int]:
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return {
        "private": pem,
        "origin": key.origin.value,
        "pin_policy": key.pin_policy.value,
        "touch_policy": key.touch_policy.value,
    }


def _read_key(read: dict[str, Any]) -> CardKey:
    private = load_pem_private_key(read["private"].encode(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise TypeError("a key of a kind that no slot takes")
    return CardKey(private, Origin(read["origin"]), PinPolicy(read["pin_policy"]), TouchPolicy(read["touch_policy"]))
