"""The record of one account in a TPM: canonical CBOR, with a checksum. No secret is in it.

    { 1: "keyvouch-tpm-account", 2: version, 3: body bytes, 4: SHA-256 of the body }
    body   { 1: serial of the last key, 2: parent, 3: PIN index (absent: none), 4: attestation key (absent: none),
             5: [ key, ... ] }
    parent { 1: COSE algorithm, 2: name }
    index  { 1: ceremony key, 2: device id, 3: handle, 4: limit, 5: approval of PIN changes, 6: is a PIN set?,
             7: the TSS's own record of the index, 8: tries left when last seen }
    attestation key { 1: COSE algorithm, 2: unique, 3: public area, 4: certificate (empty: none) }
    key    { 1: id, 2: rp id, 3: user id, 4: name, 5: display name, 6: algorithm, 7: discoverable, 8: COSE_Key,
             9: serial, 10: sign count }

Private areas stand in key files beside it. Whoever puts an old copy of all this back gains nothing: the tries are
counted in the TPM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from keyvouch import cbor
from keyvouch.attestation.pin_gate import PinGate
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.cose import Algorithm
from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import Credential, User

__all__ = ["AccountState", "AttestationRecord", "PinRecord", "StorageParent", "decode", "encode"]

_MAGIC = "keyvouch-tpm-account"
_VERSION = 1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StorageParent:
    """The storage root key an account is under: the kind of its template, and its name."""

    algorithm: Algorithm
    name: bytes


@dataclass(frozen=True, slots=True)
class PinRecord:
    """The PIN's index. `is_set` is False from the moment it is planned until its first write is done."""

    gate: PinGate
    limit: int
    approval: bytes = b""
    is_set: bool = False
    serialized: bytes = b""
    tries_left: int = 0


@dataclass(frozen=True, slots=True)
class AttestationRecord:
    """The attestation key: how to make it again, what then must come out, and its certificate in DER."""

    algorithm: Algorithm
    unique: bytes
    public: TpmPublic
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class AccountState:
    """Everything in the file."""

    parent: StorageParent | None = None
    pin: PinRecord | None = None
    attestation: AttestationRecord | None = None
    keys: tuple[Credential, ...] = ()
    serial: int = 0


def encode(state: AccountState) -> bytes:
    """Return the file's content."""
    body: dict[int, object] = {1: state.serial, 5: [_key_map(key) for key in state.keys]}
    if state.parent is not None:
        body[2] = {1: int(state.parent.algorithm), 2: state.parent.name}
    if state.pin is not None:
        body[3] = _pin_map(state.pin)
    if state.attestation is not None:
        a = state.attestation
        body[4] = {1: int(a.algorithm), 2: a.unique, 3: bytes(a.public), 4: a.certificate}
    raw = cbor.encode(body)
    return cbor.encode({1: _MAGIC, 2: _VERSION, 3: raw, 4: hashlib.sha256(raw).digest()})


def decode(content: bytes) -> AccountState:
    """Parse the file's content. Raises `DeviceError`: `VAULT_CORRUPT`, or `UNSUPPORTED` for a newer version."""
    try:
        return _state(_body(content))
    except (KeyvouchError, ValueError) as error:
        if isinstance(error, DeviceError):
            raise
        raise DeviceError(
            Reason.VAULT_CORRUPT,
            "The record of this account's TPM keys is damaged. It was left as it is.",
            fix="Restore the folder from a backup, or get an access pass and run `keyvouch-agent enroll --replace`.",
        ) from None


def _body(content: bytes) -> Mapping[object, object]:
    outer = _map(cbor.decode(content))
    if _field(outer, 1, str) != _MAGIC:
        raise ValueError("not an account")
    version = _field(outer, 2, int)
    body, checksum = _field(outer, 3, bytes), _field(outer, 4, bytes)
    if len(outer) != 4 or hashlib.sha256(body).digest() != checksum:
        raise ValueError("checksum")
    if version != _VERSION:
        raise DeviceError(
            Reason.UNSUPPORTED,
            f"The record of this account's TPM keys has version {version}; this program knows version {_VERSION}.",
            fix="Use the program that wrote it.",
        )
    return _map(cbor.decode(body))


def _state(body: Mapping[object, object]) -> AccountState:
    if not body.keys() <= {1, 2, 3, 4, 5}:
        raise ValueError("body")
    return AccountState(
        parent=_parent(_map(body[2])) if 2 in body else None,
        pin=_pin(_map(body[3])) if 3 in body else None,
        attestation=_attestation(_map(body[4])) if 4 in body else None,
        keys=tuple(_key(_map(item)) for item in _field(body, 5, list)),
        serial=_field(body, 1, int),
    )


def _parent(fields: Mapping[object, object]) -> StorageParent:
    _check(fields, 2)
    return StorageParent(Algorithm(_field(fields, 1, int)), _field(fields, 2, bytes))


def _pin(fields: Mapping[object, object]) -> PinRecord:
    _check(fields, 8)
    gate = PinGate(TpmPublic(_field(fields, 1, bytes)), _field(fields, 2, str), _field(fields, 3, int))
    return PinRecord(
        gate,
        limit=_field(fields, 4, int),
        approval=_field(fields, 5, bytes),
        is_set=_field(fields, 6, bool),
        serialized=_field(fields, 7, bytes),
        tries_left=_field(fields, 8, int),
    )


def _attestation(fields: Mapping[object, object]) -> AttestationRecord:
    _check(fields, 4)
    algorithm, public = Algorithm(_field(fields, 1, int)), TpmPublic(_field(fields, 3, bytes))
    return AttestationRecord(algorithm, _field(fields, 2, bytes), public, _field(fields, 4, bytes))


def _key(fields: Mapping[object, object]) -> Credential:
    _check(fields, 10)
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
    gate = pin.gate
    place = {1: bytes(gate.ceremony_key), 2: gate.device_id, 3: gate.handle}
    return {**place, 4: pin.limit, 5: pin.approval, 6: pin.is_set, 7: pin.serialized, 8: pin.tries_left}


def _key_map(key: Credential) -> Mapping[int, object]:
    user = key.user
    return {
        1: key.id,
        2: key.rp_id,
        3: user.id,
        4: user.name,
        5: user.display_name,
        6: key.algorithm,
        7: key.discoverable,
        8: key.public_key,
        9: key.created,
        10: key.sign_count,
    }


def _check(fields: Mapping[object, object], count: int) -> None:
    if len(fields) != count:
        raise ValueError("members")


def _map(value: object) -> Mapping[object, object]:
    if not isinstance(value, dict):
        raise ValueError("not a map")
    return value


def _field(fields: Mapping[object, object], key: int, kind: type[_T]) -> _T:
    value = fields.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"field {key}")
    return value
