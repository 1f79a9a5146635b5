"""The vault's file: canonical CBOR, with a checksum over all of it.

    { 1: "keyvouch-vault", 2: version, 3: body bytes, 4: SHA-256 of the body }
    body     { 1: serial of the last key, 2: PIN (absent: none set), 3: [ key, ... ], 4: settings, 5: large-blob array,
               6: master key of a vault that the PIN does not gate (absent: it gates) }
    PIN      { 1: memory KiB, 2: iterations, 3: lanes, 4: salt, 5: wrapped master key, 6: retries left,
               7: code points of the PIN (0: not known) }
    settings { 1: least PIN length, 2: [ rp id, ... ] that may ask for it, 3: PIN must be changed?, 4: always UV? }
    key      { 1: id, 2: rp id, 3: user id, 4: name, 5: display name, 6: algorithm, 7: discoverable, 8: COSE_Key,
               9: serial, 10: sign count, 11: sealed record, 12: SHA-256 of the rp id, 13: credProtect,
               14: has credBlob?, 15: has hmac-secret?, 16: has largeBlobKey?, 17: what the record is sealed under }

Version 1 ends with body 3, PIN 6 and key 11, and is read as well: whoever has such a file keeps his keys.

The checksum finds damage. Against somebody who changes the file on purpose there is the seal: the record opens only
with the very credential it was sealed with (`sealed_key`). What can be changed unseen are the counters, the order, the
settings, the PIN's length, and the large-blob array, whose entries platforms encrypt; the file itself can be put back
as well, so they prove nothing to others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from keyvouch import cbor
from keyvouch.errors import DeviceError, MalformedError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import (
    INITIAL_LARGE_BLOBS,
    AuthenticatorSettings,
    Credential,
    CredProtect,
    User,
)
from keyvouch_agent.vaults.software.master_key import KEY_LENGTH, SALT_LENGTH, KdfParameters, WrappedKey
from keyvouch_agent.vaults.software.sealed_key import SealedKey, SealedUnder, public_map

__all__ = ["PinRecord", "VaultState", "decode", "encode"]

FORMAT_VERSION = 2
_MAGIC = "keyvouch-vault"
_MAX_RETRIES = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PinRecord:
    """The master key under the PIN, how many wrong PINs are left, and the PIN's length in code points."""

    wrapped: WrappedKey
    retries_left: int
    code_points: int = 0


@dataclass(frozen=True, slots=True)
class VaultState:
    """Everything in the file."""

    serial: int = 0
    pin: PinRecord | None = None
    keys: tuple[SealedKey, ...] = ()
    settings: AuthenticatorSettings = field(default_factory=AuthenticatorSettings)
    large_blobs: bytes = INITIAL_LARGE_BLOBS
    open_master: bytes | None = field(default=None, repr=False)

    def with_retries(self, retries_left: int) -> VaultState:
        """Return the state with another retry counter. There must be a PIN."""
        assert self.pin is not None
        return replace(self, pin=replace(self.pin, retries_left=retries_left))

    def with_key(self, key: SealedKey) -> VaultState:
        """Return the state with `key` in the place of the one of its id."""
        keys = tuple(key if known.credential.id == key.credential.id else known for known in self.keys)
        return replace(self, keys=keys)


def encode(state: VaultState) -> bytes:
    """Return the file's content."""
    body: dict[int, object] = {
        1: state.serial,
        3: [_key_map(key) for key in state.keys],
        4: _settings_map(state.settings),
        5: state.large_blobs,
    }
    if state.pin is not None:
        body[2] = _pin_map(state.pin)
    if state.open_master is not None:
        body[6] = state.open_master
    raw = cbor.encode(body)
    return cbor.encode({1: _MAGIC, 2: FORMAT_VERSION, 3: raw, 4: hashlib.sha256(raw).digest()})


def decode(content: bytes) -> VaultState:
    """Parse the file's content. Raises `DeviceError`: `VAULT_CORRUPT`, or `UNSUPPORTED` for another version."""
    try:
        version, body = _body(content)
        return _first_state(body) if version == 1 else _state(body)
    except (MalformedError, ValueError):
        raise DeviceError(
            Reason.VAULT_CORRUPT,
            "The key vault's file is damaged, so its keys cannot be used. It was left as it is.",
            fix="Restore vault.cbor from a backup, or move it away and register this device again.",
        ) from None


def _body(content: bytes) -> tuple[int, Mapping[object, object]]:
    outer = _map(cbor.decode(content))
    if _field(outer, 1, str) != _MAGIC:
        raise ValueError("not a vault")
    version = _field(outer, 2, int)
    body, checksum = _field(outer, 3, bytes), _field(outer, 4, bytes)
    if hashlib.sha256(body).digest() != checksum or len(outer) != 4:
        raise ValueError("checksum")
    if version > FORMAT_VERSION:
        raise DeviceError(
            Reason.UNSUPPORTED,
            f"The key vault's file has version {version}; this program knows version {FORMAT_VERSION}.",
            fix="Use the newer program that wrote it.",
        )
    if version < 1:
        raise ValueError("version")
    return version, _map(cbor.decode(body))


def _first_state(body: Mapping[object, object]) -> VaultState:
    """Version 1: a vault that the PIN gates, with nothing in it but keys."""
    pin = _pin(_map(body[2]), 6) if 2 in body else None
    keys = tuple(_first_key(_map(item)) for item in _field(body, 3, list))
    return _checked(VaultState(_field(body, 1, int), pin, keys), body, 2)


def _state(body: Mapping[object, object]) -> VaultState:
    state = VaultState(
        serial=_field(body, 1, int),
        pin=_pin(_map(body[2]), 7) if 2 in body else None,
        keys=tuple(_key(_map(item)) for item in _field(body, 3, list)),
        settings=_settings(_map(body.get(4))),
        large_blobs=_field(body, 5, bytes),
        open_master=_field(body, 6, bytes) if 6 in body else None,
    )
    if state.open_master is not None and len(state.open_master) != KEY_LENGTH:
        raise ValueError("master key")
    return _checked(state, body, 4)


def _checked(state: VaultState, body: Mapping[object, object], required: int) -> VaultState:
    """What no writer of this file makes: left-over members, keys without the master key they are sealed under."""
    optional = (state.pin is not None) + (state.open_master is not None)
    if len(body) != required + optional or any(key.credential.created > state.serial for key in state.keys):
        raise ValueError("body")
    for key in state.keys:
        if (state.open_master if key.under is SealedUnder.FILE else state.pin) is None:
            raise ValueError("key without a master key")
    return state


def _pin(fields: Mapping[object, object], members: int) -> PinRecord:
    kdf = KdfParameters(_field(fields, 1, int), _field(fields, 2, int), _field(fields, 3, int))
    wrapped = WrappedKey(kdf, _field(fields, 4, bytes), _field(fields, 5, bytes))
    retries_left, code_points = _field(fields, 6, int), _field(fields, 7, int) if members == 7 else 0
    counts = 0 <= retries_left <= _MAX_RETRIES and code_points >= 0
    if len(fields) != members or len(wrapped.salt) != SALT_LENGTH or not counts:
        raise ValueError("pin")
    return PinRecord(wrapped, retries_left, code_points)


def _settings(fields: Mapping[object, object]) -> AuthenticatorSettings:
    rp_ids = _field(fields, 2, list)
    if len(fields) != 4 or not all(isinstance(rp_id, str) for rp_id in rp_ids):
        raise ValueError("settings")
    return AuthenticatorSettings(
        _field(fields, 1, int), tuple(rp_ids), _field(fields, 3, bool), _field(fields, 4, bool)
    )


def _first_key(fields: Mapping[object, object]) -> SealedKey:
    if len(fields) != 11:
        raise ValueError("key")
    return SealedKey(_credential(fields), SealedUnder.PIN_FIRST_FORM, _field(fields, 11, bytes))


def _key(fields: Mapping[object, object]) -> SealedKey:
    if len(fields) != 17:
        raise ValueError("key")
    credential = replace(
        _credential(fields),
        rp_id_hash=_field(fields, 12, bytes),
        protect=CredProtect(_field(fields, 13, int)),
        has_cred_blob=_field(fields, 14, bool),
        has_hmac_secret=_field(fields, 15, bool),
        has_large_blob_key=_field(fields, 16, bool),
    )
    under = SealedUnder(_field(fields, 17, int))
    if under is SealedUnder.PIN_FIRST_FORM and credential != _credential(fields):
        raise ValueError("key of version 1 with what its seal does not bind")
    return SealedKey(credential, under, _field(fields, 11, bytes))


def _credential(fields: Mapping[object, object]) -> Credential:
    return Credential(
        id=CredentialId(_field(fields, 1, bytes)),
        rp_id=_field(fields, 2, str),
        user=User(_field(fields, 3, bytes), _field(fields, 4, str), _field(fields, 5, str)),
        algorithm=_field(fields, 6, int),
        discoverable=_field(fields, 7, bool),
        public_key=_field(fields, 8, bytes),
        created=_field(fields, 9, int),
        sign_count=_field(fields, 10, int),
    )


def _pin_map(pin: PinRecord) -> Mapping[int, object]:
    wrapped, kdf = pin.wrapped, pin.wrapped.kdf
    cost = {1: kdf.memory_kib, 2: kdf.iterations, 3: kdf.lanes}
    return {**cost, 4: wrapped.salt, 5: wrapped.sealed, 6: pin.retries_left, 7: pin.code_points}


def _settings_map(settings: AuthenticatorSettings) -> Mapping[int, object]:
    rp_ids = list(settings.min_pin_length_rp_ids)
    return {1: settings.min_pin_length, 2: rp_ids, 3: settings.force_pin_change, 4: settings.always_uv}


def _key_map(key: SealedKey) -> Mapping[int, object]:
    return {**public_map(key.credential), 10: key.credential.sign_count, 11: key.sealed, 17: int(key.under)}


def _map(value: object) -> Mapping[object, object]:
    if not isinstance(value, dict):
        raise ValueError("not a map")
    return value


def _field(fields: Mapping[object, object], key: int, kind: type[_T]) -> _T:
    value = fields.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"field {key}")
    return value
