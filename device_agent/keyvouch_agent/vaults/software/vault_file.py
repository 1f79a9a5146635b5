"""The vault's file: canonical CBOR, with a checksum over all of it.

    { 1: "keyvouch-vault", 2: version, 3: body bytes, 4: SHA-256 of the body }
    body   { 1: serial of the last key, 2: PIN (absent: none set), 3: [ key, ... ] }
    PIN    { 1: memory KiB, 2: iterations, 3: lanes, 4: salt, 5: wrapped master key, 6: retries left }
    key    { 1: id, 2: rp id, 3: user id, 4: name, 5: display name, 6: algorithm, 7: discoverable,
             8: COSE_Key, 9: serial, 10: sign count, 11: sealed private key }

The checksum finds damage. Against somebody who changes the file on purpose there is the seal: the private
key opens only with the very rp id, user and public key it was sealed with. What can be changed unseen are
the two counters and the order; the file itself can be put back as well, so they prove nothing to others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from keyvouch import cbor
from keyvouch.errors import DeviceError, MalformedError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import Credential, User
from keyvouch_agent.vaults.software.master_key import FORMAT_VERSION, SALT_LENGTH, KdfParameters, WrappedKey

__all__ = ["PinRecord", "SealedKey", "VaultState", "decode", "encode"]

_MAGIC = "keyvouch-vault"
_MAX_RETRIES = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PinRecord:
    """The master key under the PIN, and how many wrong PINs are left."""

    wrapped: WrappedKey
    retries_left: int


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A credential and its private key, sealed under the master key."""

    credential: Credential
    sealed: bytes

    def purpose(self) -> bytes:
        """What the seal binds: the purpose, the format version, and all of the credential but its sign count."""
        return cbor.encode(["keyvouch-vault/credential-key", FORMAT_VERSION, _public_map(self.credential)])


@dataclass(frozen=True, slots=True)
class VaultState:
    """Everything in the file."""

    serial: int = 0
    pin: PinRecord | None = None
    keys: tuple[SealedKey, ...] = ()

    def with_retries(self, retries_left: int) -> VaultState:
        """Return the state with another retry counter. There must be a PIN."""
        assert self.pin is not None
        return replace(self, pin=replace(self.pin, retries_left=retries_left))


def encode(state: VaultState) -> bytes:
    """Return the file's content."""
    body: dict[int, object] = {1: state.serial, 3: [_key_map(key) for key in state.keys]}
    if state.pin is not None:
        body[2] = _pin_map(state.pin)
    raw = cbor.encode(body)
    return cbor.encode({1: _MAGIC, 2: FORMAT_VERSION, 3: raw, 4: hashlib.sha256(raw).digest()})


def decode(content: bytes) -> VaultState:
    """Parse the file's content. Raises `DeviceError`: `VAULT_CORRUPT`, or `UNSUPPORTED` for another version."""
    try:
        return _state(_body(content))
    except (MalformedError, ValueError):
        raise DeviceError(
            Reason.VAULT_CORRUPT,
            "The key vault's file is damaged, so its keys cannot be used. It was left as it is.",
            fix="Restore vault.cbor from a backup, or move it away and register this device again.",
        ) from None


def _body(content: bytes) -> Mapping[object, object]:
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
    if version != FORMAT_VERSION:
        raise ValueError("version")
    return _map(cbor.decode(body))


def _state(body: Mapping[object, object]) -> VaultState:
    pin = _pin(_map(body[2])) if 2 in body else None
    keys = tuple(_key(_map(item)) for item in _field(body, 3, list))
    serial = _field(body, 1, int)
    if len(body) != (3 if pin else 2) or (keys and not pin) or any(key.credential.created > serial for key in keys):
        raise ValueError("body")
    return VaultState(serial, pin, keys)


def _pin(fields: Mapping[object, object]) -> PinRecord:
    kdf = KdfParameters(_field(fields, 1, int), _field(fields, 2, int), _field(fields, 3, int))
    wrapped = WrappedKey(kdf, _field(fields, 4, bytes), _field(fields, 5, bytes))
    retries_left = _field(fields, 6, int)
    if len(fields) != 6 or len(wrapped.salt) != SALT_LENGTH or not 0 <= retries_left <= _MAX_RETRIES:
        raise ValueError("pin")
    return PinRecord(wrapped, retries_left)


def _key(fields: Mapping[object, object]) -> SealedKey:
    credential = Credential(
        id=CredentialId(_field(fields, 1, bytes)),
        rp_id=_field(fields, 2, str),
        user=User(_field(fields, 3, bytes), _field(fields, 4, str), _field(fields, 5, str)),
        algorithm=_field(fields, 6, int),
        discoverable=_field(fields, 7, bool),
        public_key=_field(fields, 8, bytes),
        created=_field(fields, 9, int),
        sign_count=_field(fields, 10, int),
    )
    if len(fields) != 11:
        raise ValueError("key")
    return SealedKey(credential, _field(fields, 11, bytes))


def _pin_map(pin: PinRecord) -> Mapping[int, object]:
    wrapped, kdf = pin.wrapped, pin.wrapped.kdf
    cost = {1: kdf.memory_kib, 2: kdf.iterations, 3: kdf.lanes}
    return {**cost, 4: wrapped.salt, 5: wrapped.sealed, 6: pin.retries_left}


def _key_map(key: SealedKey) -> Mapping[int, object]:
    return {**_public_map(key.credential), 10: key.credential.sign_count, 11: key.sealed}


def _public_map(credential: Credential) -> Mapping[int, object]:
    user = credential.user
    return {
        1: credential.id,
        2: credential.rp_id,
        3: user.id,
        4: user.name,
        5: user.display_name,
        6: credential.algorithm,
        7: credential.discoverable,
        8: credential.public_key,
        9: credential.created,
    }


def _map(value: object) -> Mapping[object, object]:
    if not isinstance(value, dict):
        raise ValueError("not a map")
    return value


def _field(fields: Mapping[object, object], key: int, kind: type[_T]) -> _T:
    value = fields.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"field {key}")
    return value
