"""The record of one account on a token: canonical CBOR, with a checksum. No secret is in it, and no PIN.

    { 1: "keyvouch-card-account", 2: version, 3: body bytes, 4: SHA-256 of the body }
    body   { 1: serial of the last key, 2: token (absent: none chosen), 3: [ key, ... ], 4: [ stray, ... ],
             5: settings }
    token  { 1: label, 2: serial, 3: manufacturer, 4: model, 5: module, 6: [ COSE algorithm, ... ],
             7: [ CKA_ID, certificate, COSE_Key ] of the existing key (absent: the token makes keys) }
    key    { 1: id, 2: rp id, 3: user id, 4: name, 5: display name, 6: algorithm, 7: discoverable, 8: COSE_Key,
             9: serial, 10: sign count, 11: SHA-256 of the rp id, 12: credProtect,
             13: CKA_ID, 14: was it made here?, 15: does it want the PIN each time? }
    stray  CKA_ID of a key pair that was or may have been made on the token and is none of the keys
    settings { 1: least PIN length, 2: [ rp id, ... ] that may ask for it, 3: PIN must be changed?, 4: always UV? }

A key pair is a stray before it is made, until it is kept; and again from the moment it is deleted here until it is
destroyed there. So whenever the agent is killed or the card pulled, the record knows what is left on the token.

Who puts an old copy of this back sets sign counters back, and may have a key destroyed that was a stray then. It gains
nobody the use of a key: that is the token's to allow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from keyvouch import cbor
from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import AuthenticatorSettings, Credential, CredProtect, User
from keyvouch_agent.vaults.pkcs11.profile import ExistingKey, TokenProfile
from keyvouch_agent.vaults.pkcs11.uri import TokenName

__all__ = ["CardKey", "CardState", "decode", "encode"]

_MAGIC = "keyvouch-card-account"
_VERSION = 1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CardKey:
    """A credential and the key pair it is, by its CKA_ID."""

    credential: Credential
    key_id: bytes
    is_ours: bool
    """Whether it was made here, and so is destroyed with the credential."""
    pin_always: bool


@dataclass(frozen=True, slots=True)
class CardState:
    """Everything in the file."""

    token: TokenProfile | None = None
    keys: tuple[CardKey, ...] = ()
    strays: tuple[bytes, ...] = ()
    serial: int = 0
    settings: AuthenticatorSettings = field(default_factory=AuthenticatorSettings)


def encode(state: CardState) -> bytes:
    """Return the file's content."""
    settings = state.settings
    rp_ids = list(settings.min_pin_length_rp_ids)
    body: dict[int, object] = {
        1: state.serial,
        3: [_key_map(key) for key in state.keys],
        4: list(state.strays),
        5: {1: settings.min_pin_length, 2: rp_ids, 3: settings.force_pin_change, 4: settings.always_uv},
    }
    if state.token is not None:
        body[2] = _token_map(state.token)
    raw = cbor.encode(body)
    return cbor.encode({1: _MAGIC, 2: _VERSION, 3: raw, 4: hashlib.sha256(raw).digest()})


def decode(content: bytes) -> CardState:
    """Parse the file's content. Raises `DeviceError`: `VAULT_CORRUPT`, or `UNSUPPORTED` for a newer version."""
    try:
        return _state(_body(content))
    except (KeyvouchError, ValueError) as error:
        if isinstance(error, DeviceError):
            raise
        raise DeviceError(
            Reason.VAULT_CORRUPT,
            "The record of this account's card is damaged. It was left as it is.",
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
            f"The record of this account's card has version {version}; this program knows version {_VERSION}.",
            fix="Use the program that wrote it.",
        )
    return _map(cbor.decode(body))


def _state(body: Mapping[object, object]) -> CardState:
    _check(body, 5 if 2 in body else 4)
    return CardState(
        token=_token(_map(body[2])) if 2 in body else None,
        keys=tuple(_key(_map(item)) for item in _field(body, 3, list)),
        strays=tuple(_items(_field(body, 4, list), bytes)),
        serial=_field(body, 1, int),
        settings=_settings(_map(body.get(5))),
    )


def _token(fields: Mapping[object, object]) -> TokenProfile:
    _check(fields, 7 if 7 in fields else 6)
    label, serial, manufacturer, model, module = (_field(fields, number, str) for number in range(1, 6))
    existing = None
    if 7 in fields:
        existing = ExistingKey(*_items(_field(fields, 7, list), bytes, 3))
    algorithms = tuple(_items(_field(fields, 6, list), int))
    return TokenProfile(TokenName(label, serial, manufacturer, model), module, algorithms, existing)


def _key(fields: Mapping[object, object]) -> CardKey:
    _check(fields, 15)
    credential = Credential(
        id=CredentialId(_field(fields, 1, bytes)),
        rp_id=_field(fields, 2, str),
        user=User(_field(fields, 3, bytes), _field(fields, 4, str), _field(fields, 5, str)),
        algorithm=_field(fields, 6, int),
        discoverable=_field(fields, 7, bool),
        public_key=_field(fields, 8, bytes),
        created=_field(fields, 9, int),
        sign_count=_field(fields, 10, int),
        rp_id_hash=_field(fields, 11, bytes),
        protect=CredProtect(_field(fields, 12, int)),
    )
    return CardKey(credential, _field(fields, 13, bytes), _field(fields, 14, bool), _field(fields, 15, bool))


def _settings(fields: Mapping[object, object]) -> AuthenticatorSettings:
    _check(fields, 4)
    rp_ids = tuple(_items(_field(fields, 2, list), str))
    return AuthenticatorSettings(_field(fields, 1, int), rp_ids, _field(fields, 3, bool), _field(fields, 4, bool))


def _token_map(token: TokenProfile) -> Mapping[int, object]:
    name, existing = token.name, token.existing
    fields: dict[int, object] = {
        1: name.label,
        2: name.serial,
        3: name.manufacturer,
        4: name.model,
        5: token.module,
        6: list(token.algorithms),
    }
    return fields if existing is None else {**fields, 7: [existing.id, existing.certificate, existing.public_key]}


def _key_map(key: CardKey) -> Mapping[int, object]:
    credential, user = key.credential, key.credential.user
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
        10: credential.sign_count,
        11: credential.rp_id_hash,
        12: int(credential.protect),
        13: key.key_id,
        14: key.is_ours,
        15: key.pin_always,
    }


def _items(values: list[object], kind: type[_T], count: int | None = None) -> list[_T]:
    if count not in (None, len(values)):
        raise ValueError("items")
    return [_of(value, kind) for value in values]


def _check(fields: Mapping[object, object], count: int) -> None:
    if len(fields) != count:
        raise ValueError("members")


def _map(value: object) -> Mapping[object, object]:
    if not isinstance(value, dict):
        raise ValueError("not a map")
    return value


def _field(fields: Mapping[object, object], key: int, kind: type[_T]) -> _T:
    return _of(fields.get(key), kind)


def _of(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError("type")
    return value
