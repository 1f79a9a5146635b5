"""The record of one account in a TPM: canonical CBOR, with a checksum. No secret is in it.

    { 1: "keyvouch-tpm-account", 2: version, 3: body bytes, 4: SHA-256 of the body }
    body   { 1: serial of the last key, 2: parent, 3: PIN index (absent: none), 4: attestation key (absent: none),
             5: [ key, ... ], 6: settings, 7: large-blob array }
    parent { 1: COSE algorithm, 2: name }
    index  { 1: ceremony key, 2: device id, 3: handle, 4: limit, 5: approval of PIN changes, 6: is a PIN set?,
             7: the TSS's own record of the index, 8: tries left when last seen,
             9: code points of the PIN (0: not known) }
    attestation key { 1: COSE algorithm, 2: unique, 3: public area, 4: certificate (empty: none) }
    key    { 1: id, 2: rp id, 3: user id, 4: name, 5: display name, 6: algorithm, 7: discoverable, 8: COSE_Key,
             9: serial, 10: sign count, 11: SHA-256 of the rp id, 12: credProtect, 13: has credBlob?,
             14: has hmac-secret?, 15: has largeBlobKey?, 16: secrets (absent: none) }
    secrets [ private area of their seed, public area, sealed credBlob ]
    settings { 1: least PIN length, 2: [ rp id, ... ] that may ask for it, 3: PIN must be changed?, 4: always UV? }

Version 1 ends with body 5, index 8 and key 10, and is read as well.

Private areas of keys stand in key files beside it; those of their secrets stand here, so that a key and its secrets
are there or not there by one write. All of them are encrypted by the TPM. Whoever puts an old copy of all this back
gains nothing: the tries are counted in the TPM. Names and settings he can change; what signs, and for whom the secrets
are, he cannot (`credential_secrets`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from keyvouch import cbor
from keyvouch.attestation.pin_gate import PinGate
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.cose import Algorithm
from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import (
    INITIAL_LARGE_BLOBS,
    AuthenticatorSettings,
    Credential,
    CredProtect,
    User,
)

__all__ = ["AccountState", "AttestationRecord", "PinRecord", "SealedSecrets", "StorageParent", "decode", "encode"]

_MAGIC = "keyvouch-tpm-account"
_VERSION = 2

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
    code_points: int = 0


@dataclass(frozen=True, slots=True)
class AttestationRecord:
    """The attestation key: how to make it again, what then must come out, and its certificate in DER."""

    algorithm: Algorithm
    unique: bytes
    public: TpmPublic
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class SealedSecrets:
    """The seed of a credential's secrets as the TPM sealed it (TPM2B_PRIVATE, TPM2B_PUBLIC), and its credBlob."""

    private: bytes
    public: bytes
    cred_blob: bytes = b""


@dataclass(frozen=True, slots=True)
class AccountState:
    """Everything in the file."""

    parent: StorageParent | None = None
    pin: PinRecord | None = None
    attestation: AttestationRecord | None = None
    keys: tuple[Credential, ...] = ()
    serial: int = 0
    settings: AuthenticatorSettings = field(default_factory=AuthenticatorSettings)
    large_blobs: bytes = INITIAL_LARGE_BLOBS
    secrets: Mapping[CredentialId, SealedSecrets] = field(default_factory=dict)
    """Of those keys that have any."""

    def with_keys(self, keys: tuple[Credential, ...]) -> AccountState:
        """Return the state with other keys, without the secrets of those that are gone."""
        known = {key.id for key in keys}
        left = {credential: sealed for credential, sealed in self.secrets.items() if credential in known}
        return replace(self, keys=keys, secrets=left)


def encode(state: AccountState) -> bytes:
    """Return the file's content."""
    body: dict[int, object] = {
        1: state.serial,
        5: [_key_map(key, state.secrets.get(key.id)) for key in state.keys],
        6: _settings_map(state.settings),
        7: state.large_blobs,
    }
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
        return _state(*_body(content))
    except (KeyvouchError, ValueError) as error:
        if isinstance(error, DeviceError):
            raise
        raise DeviceError(
            Reason.VAULT_CORRUPT,
            "The record of this account's TPM keys is damaged. It was left as it is.",
            fix="Restore the folder from a backup, or get an access pass and run `keyvouch-agent enroll --replace`.",
        ) from None


def _body(content: bytes) -> tuple[int, Mapping[object, object]]:
    outer = _map(cbor.decode(content))
    if _field(outer, 1, str) != _MAGIC:
        raise ValueError("not an account")
    version = _field(outer, 2, int)
    body, checksum = _field(outer, 3, bytes), _field(outer, 4, bytes)
    if len(outer) != 4 or hashlib.sha256(body).digest() != checksum:
        raise ValueError("checksum")
    if not 1 <= version <= _VERSION:
        raise DeviceError(
            Reason.UNSUPPORTED,
            f"The record of this account's TPM keys has version {version}; this program knows version {_VERSION}.",
            fix="Use the program that wrote it.",
        )
    return version, _map(cbor.decode(body))


def _state(version: int, body: Mapping[object, object]) -> AccountState:
    if not body.keys() <= set(range(1, 6 if version == 1 else 8)):
        raise ValueError("body")
    keys = [_map(item) for item in _field(body, 5, list)]
    state = AccountState(
        parent=_parent(_map(body[2])) if 2 in body else None,
        pin=_pin(_map(body[3]), 8 if version == 1 else 9) if 3 in body else None,
        attestation=_attestation(_map(body[4])) if 4 in body else None,
        keys=tuple(_first_key(key) if version == 1 else _key(key) for key in keys),
        serial=_field(body, 1, int),
    )
    if version == 1:
        return state
    secrets = {CredentialId(_field(key, 1, bytes)): _secrets(_field(key, 16, list)) for key in keys if 16 in key}
    return replace(state, settings=_settings(_map(body.get(6))), large_blobs=_field(body, 7, bytes), secrets=secrets)


def _parent(fields: Mapping[object, object]) -> StorageParent:
    _check(fields, 2)
    return StorageParent(Algorithm(_field(fields, 1, int)), _field(fields, 2, bytes))


def _pin(fields: Mapping[object, object], members: int) -> PinRecord:
    _check(fields, members)
    gate = PinGate(TpmPublic(_field(fields, 1, bytes)), _field(fields, 2, str), _field(fields, 3, int))
    return PinRecord(
        gate,
        limit=_field(fields, 4, int),
        approval=_field(fields, 5, bytes),
        is_set=_field(fields, 6, bool),
        serialized=_field(fields, 7, bytes),
        tries_left=_field(fields, 8, int),
        code_points=_field(fields, 9, int) if members == 9 else 0,
    )


def _attestation(fields: Mapping[object, object]) -> AttestationRecord:
    _check(fields, 4)
    algorithm, public = Algorithm(_field(fields, 1, int)), TpmPublic(_field(fields, 3, bytes))
    return AttestationRecord(algorithm, _field(fields, 2, bytes), public, _field(fields, 4, bytes))


def _first_key(fields: Mapping[object, object]) -> Credential:
    _check(fields, 10)
    return _credential(fields)


def _key(fields: Mapping[object, object]) -> Credential:
    _check(fields, 16 if 16 in fields else 15)
    key = replace(
        _credential(fields),
        rp_id_hash=_field(fields, 11, bytes),
        protect=CredProtect(_field(fields, 12, int)),
        has_cred_blob=_field(fields, 13, bool),
        has_hmac_secret=_field(fields, 14, bool),
        has_large_blob_key=_field(fields, 15, bool),
    )
    if (key.has_cred_blob or key.has_hmac_secret or key.has_large_blob_key) is not (16 in fields):
        raise ValueError("secrets")
    return key


def _secrets(parts: list[object]) -> SealedSecrets:
    private, public, cred_blob = parts
    if not isinstance(private, bytes) or not isinstance(public, bytes) or not isinstance(cred_blob, bytes):
        raise ValueError("secrets")
    return SealedSecrets(private, public, cred_blob)


def _settings(fields: Mapping[object, object]) -> AuthenticatorSettings:
    _check(fields, 4)
    rp_ids = _field(fields, 2, list)
    if not all(isinstance(rp_id, str) for rp_id in rp_ids):
        raise ValueError("settings")
    return AuthenticatorSettings(
        _field(fields, 1, int), tuple(rp_ids), _field(fields, 3, bool), _field(fields, 4, bool)
    )


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
    gate = pin.gate
    place = {1: bytes(gate.ceremony_key), 2: gate.device_id, 3: gate.handle}
    what = {4: pin.limit, 5: pin.approval, 6: pin.is_set, 7: pin.serialized, 8: pin.tries_left, 9: pin.code_points}
    return {**place, **what}


def _settings_map(settings: AuthenticatorSettings) -> Mapping[int, object]:
    rp_ids = list(settings.min_pin_length_rp_ids)
    return {1: settings.min_pin_length, 2: rp_ids, 3: settings.force_pin_change, 4: settings.always_uv}


def _key_map(key: Credential, secrets: SealedSecrets | None) -> Mapping[int, object]:
    user = key.user
    fields: dict[int, object] = {
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
        11: key.rp_id_hash,
        12: int(key.protect),
        13: key.has_cred_blob,
        14: key.has_hmac_secret,
        15: key.has_large_blob_key,
    }
    return fields if secrets is None else {**fields, 16: [secrets.private, secrets.public, secrets.cred_blob]}


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
