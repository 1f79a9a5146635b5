"""Reading the CBOR maps of requests, with the exact status for what is wrong with them.

CBOR that is not canonical, or too deep, is `INVALID_CBOR`; a required member that is absent is `MISSING_PARAMETER`; a
member of another CBOR type is `CBOR_UNEXPECTED_TYPE`; a byte string of an impossible length is `INVALID_LENGTH`; a list
longer than we said we take is `LIMIT_EXCEEDED`. What is *not* here: which members a command has (`parameters`,
`management_parameters`, `extensions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, TypeVar

from keyvouch import cbor
from keyvouch.errors import MalformedError
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.vault import User

__all__ = [
    "MAX_CREDENTIALS_IN_LIST",
    "PUBLIC_KEY",
    "Fields",
    "credential_id",
    "credential_ids",
    "hash_bytes",
    "map_of",
    "need",
    "optional",
    "required",
    "text_list",
    "typed",
    "unsigned",
    "user_entity",
]

HASH_LENGTH = 32
MAX_CREDENTIALS_IN_LIST = 16
MAX_USER_ID_LENGTH = 64
MAX_NAME_LENGTH = 64
"""Bytes of a user's name that are kept; section 6.1.2 permits truncation to no less."""
PUBLIC_KEY = "public-key"

Fields: TypeAlias = Mapping[object, object]

_T = TypeVar("_T")


def map_of(data: bytes) -> Fields:
    """Decode the parameters of a command."""
    try:
        value = cbor.decode(data)
    except MalformedError:
        raise CommandError(Status.INVALID_CBOR) from None
    return typed(value, dict)


def typed(value: object, kind: type[_T]) -> _T:
    """Return `value` if it is of CBOR type `kind`. A CBOR boolean is not an integer."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CommandError(Status.CBOR_UNEXPECTED_TYPE)
    return value


def required(fields: Fields, key: object, kind: type[_T]) -> _T:
    """Return a member that must be there."""
    if key not in fields:
        raise CommandError(Status.MISSING_PARAMETER)
    return typed(fields[key], kind)


def optional(fields: Fields, key: object, kind: type[_T]) -> _T | None:
    """Return a member, or None where it is absent."""
    return typed(fields[key], kind) if key in fields else None


def need(value: _T | None) -> _T:
    """Return a parameter that one subcommand requires and another does not."""
    if value is None:
        raise CommandError(Status.MISSING_PARAMETER)
    return value


def unsigned(fields: Fields, key: object) -> int | None:
    """Return an unsigned integer, or None. A negative one is of another CBOR type."""
    value = optional(fields, key, int)
    if value is not None and value < 0:
        raise CommandError(Status.CBOR_UNEXPECTED_TYPE)
    return value


def hash_bytes(value: bytes) -> bytes:
    """Return what must have the length of a SHA-256."""
    if len(value) != HASH_LENGTH:
        raise CommandError(Status.INVALID_LENGTH)
    return value


def text_list(fields: Fields, key: object) -> tuple[str, ...] | None:
    """Return a list of text strings, or None."""
    entries = optional(fields, key, list)
    return None if entries is None else tuple(typed(item, str) for item in entries)


def user_entity(user: Fields) -> User:
    """Read a PublicKeyCredentialUserEntity. Names are cut at a character, not in it."""
    user_id = required(user, "id", bytes)
    if not 1 <= len(user_id) <= MAX_USER_ID_LENGTH:
        raise CommandError(Status.INVALID_LENGTH)
    name, display_name = optional(user, "name", str), optional(user, "displayName", str)
    return User(id=user_id, name=_truncate(name or ""), display_name=_truncate(display_name or ""))


def credential_id(descriptor: Fields) -> bytes | None:
    """Read a PublicKeyCredentialDescriptor; None for a type of credential that is not known here."""
    found = required(descriptor, "id", bytes)
    return found if required(descriptor, "type", str) == PUBLIC_KEY else None


def credential_ids(fields: Fields, key: object) -> tuple[bytes, ...] | None:
    """Read a list of descriptors. An empty one counts as absent."""
    entries = optional(fields, key, list)
    if not entries:
        return None
    if len(entries) > MAX_CREDENTIALS_IN_LIST:
        raise CommandError(Status.LIMIT_EXCEEDED)
    found = [credential_id(typed(element, dict)) for element in entries]
    return tuple(item for item in found if item is not None)


def _truncate(name: str) -> str:
    return name.encode()[:MAX_NAME_LENGTH].decode(errors="ignore")
