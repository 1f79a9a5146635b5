"""From the bytes of a command to its parameters, with the exact status for what is wrong with them.

The rules, in this order for each parameter in the order of its key: CBOR that is not canonical, or not a
map of depth four, is `INVALID_CBOR`; a required parameter that is absent is `MISSING_PARAMETER`; a value or
a member of another CBOR type is `CBOR_UNEXPECTED_TYPE`; a byte string of an impossible length is
`INVALID_LENGTH`; a list longer than we said we take is `LIMIT_EXCEEDED`. Unknown keys, members, options,
credential types and extensions are ignored (sections 6 and 8). What is *not* here: what the values mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from keyvouch import cbor
from keyvouch.errors import MalformedError
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.vault import User

__all__ = [
    "ClientPinParameters",
    "GetAssertionParameters",
    "MakeCredentialParameters",
    "Options",
    "parse_client_pin",
    "parse_get_assertion",
    "parse_make_credential",
]

HASH_LENGTH = 32
MAX_CREDENTIALS_IN_LIST = 16
MAX_USER_ID_LENGTH = 64
MAX_NAME_LENGTH = 64
"""Bytes of a user's name that are kept; section 6.1.2 permits truncation to no less."""
PUBLIC_KEY = "public-key"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Options:
    """The options map; None where an option is absent."""

    rk: bool | None = None
    up: bool | None = None
    uv: bool | None = None


@dataclass(frozen=True, slots=True)
class MakeCredentialParameters:
    """Section 6.1."""

    client_data_hash: bytes
    rp_id: str
    user: User
    algorithms: tuple[int, ...]
    exclude: tuple[bytes, ...]
    options: Options
    pin_uv_auth_param: bytes | None
    pin_uv_auth_protocol: int | None
    wants_enterprise_attestation: bool
    attestation_formats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GetAssertionParameters:
    """Section 6.2. An empty allowList counts as absent."""

    rp_id: str
    client_data_hash: bytes
    allow: tuple[bytes, ...] | None
    options: Options
    pin_uv_auth_param: bytes | None
    pin_uv_auth_protocol: int | None


@dataclass(frozen=True, slots=True)
class ClientPinParameters:
    """Section 6.5.5. Which of them are required depends on the subcommand."""

    protocol: int | None
    subcommand: int
    key_agreement: Mapping[object, object] | None
    pin_uv_auth_param: bytes | None
    new_pin_enc: bytes | None
    pin_hash_enc: bytes | None
    permissions: int | None
    rp_id: str | None

    def __repr__(self) -> str:
        return f"ClientPinParameters(subcommand={self.subcommand})"


def parse_make_credential(data: bytes) -> MakeCredentialParameters:
    """Parse the parameters of authenticatorMakeCredential (section 6.1)."""
    fields = _map_of(data)
    return MakeCredentialParameters(
        client_data_hash=_hash(_required(fields, 1, bytes)),
        rp_id=_rp_id(_required(fields, 2, dict)),
        user=_user(_required(fields, 3, dict)),
        algorithms=_algorithms(_required(fields, 4, list)),
        exclude=_descriptors(_optional(fields, 5, list)) or (),
        options=_options(fields, extensions=6, options=7),
        pin_uv_auth_param=_optional(fields, 8, bytes),
        pin_uv_auth_protocol=_optional(fields, 9, int),
        wants_enterprise_attestation=_optional(fields, 10, int) is not None,
        attestation_formats=tuple(_typed(item, str) for item in _optional(fields, 11, list) or ()),
    )


def parse_get_assertion(data: bytes) -> GetAssertionParameters:
    """Parse the parameters of authenticatorGetAssertion (section 6.2)."""
    fields = _map_of(data)
    return GetAssertionParameters(
        rp_id=_required(fields, 1, str),
        client_data_hash=_hash(_required(fields, 2, bytes)),
        allow=_descriptors(_optional(fields, 3, list)),
        options=_options(fields, extensions=4, options=5),
        pin_uv_auth_param=_optional(fields, 6, bytes),
        pin_uv_auth_protocol=_optional(fields, 7, int),
    )


def parse_client_pin(data: bytes) -> ClientPinParameters:
    """Parse the parameters of authenticatorClientPIN (section 6.5.5)."""
    fields = _map_of(data)
    return ClientPinParameters(
        protocol=_optional(fields, 1, int),
        subcommand=_required(fields, 2, int),
        key_agreement=_optional(fields, 3, dict),
        pin_uv_auth_param=_optional(fields, 4, bytes),
        new_pin_enc=_optional(fields, 5, bytes),
        pin_hash_enc=_optional(fields, 6, bytes),
        permissions=_optional(fields, 9, int),
        rp_id=_optional(fields, 10, str),
    )


def _map_of(data: bytes) -> Mapping[object, object]:
    try:
        value = cbor.decode(data)
    except MalformedError:
        raise CommandError(Status.INVALID_CBOR) from None
    return _typed(value, dict)


def _typed(value: object, kind: type[_T]) -> _T:
    """Return `value` if it is of CBOR type `kind`. A CBOR boolean is not an integer."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CommandError(Status.CBOR_UNEXPECTED_TYPE)
    return value


def _required(fields: Mapping[object, object], key: object, kind: type[_T]) -> _T:
    if key not in fields:
        raise CommandError(Status.MISSING_PARAMETER)
    return _typed(fields[key], kind)


def _optional(fields: Mapping[object, object], key: object, kind: type[_T]) -> _T | None:
    return _typed(fields[key], kind) if key in fields else None


def _hash(value: bytes) -> bytes:
    if len(value) != HASH_LENGTH:
        raise CommandError(Status.INVALID_LENGTH)
    return value


def _rp_id(rp: Mapping[object, object]) -> str:
    rp_id = _required(rp, "id", str)
    _optional(rp, "name", str)
    return rp_id


def _user(user: Mapping[object, object]) -> User:
    user_id = _required(user, "id", bytes)
    if not 1 <= len(user_id) <= MAX_USER_ID_LENGTH:
        raise CommandError(Status.INVALID_LENGTH)
    name, display_name = _optional(user, "name", str), _optional(user, "displayName", str)
    return User(id=user_id, name=_truncate(name or ""), display_name=_truncate(display_name or ""))


def _truncate(name: str) -> str:
    return name.encode()[:MAX_NAME_LENGTH].decode(errors="ignore")


def _algorithms(parameters: list[object]) -> tuple[int, ...]:
    """Validate every element (section 6.1.2 step 3); its missing members are `INVALID_CBOR` there."""
    algorithms = []
    for element in parameters:
        entry = _typed(element, dict)
        if "type" not in entry or "alg" not in entry:
            raise CommandError(Status.INVALID_CBOR)
        algorithm = _typed(entry["alg"], int)
        if _typed(entry["type"], str) == PUBLIC_KEY:
            algorithms.append(algorithm)
    return tuple(algorithms)


def _descriptors(entries: list[object] | None) -> tuple[bytes, ...] | None:
    if not entries:
        return None
    if len(entries) > MAX_CREDENTIALS_IN_LIST:
        raise CommandError(Status.LIMIT_EXCEEDED)
    found = []
    for element in entries:
        entry = _typed(element, dict)
        credential = _required(entry, "id", bytes)
        if _required(entry, "type", str) == PUBLIC_KEY:
            found.append(credential)
    return tuple(found)


def _options(fields: Mapping[object, object], *, extensions: int, options: int) -> Options:
    """Read the options. No extension is supported: whatever is asked for is ignored, but it must be a map."""
    _optional(fields, extensions, dict)
    given = _optional(fields, options, dict) or {}
    return Options(rk=_optional(given, "rk", bool), up=_optional(given, "up", bool), uv=_optional(given, "uv", bool))
