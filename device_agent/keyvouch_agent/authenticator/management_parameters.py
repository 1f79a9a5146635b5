"""The parameters of authenticatorCredentialManagement, LargeBlobs and Config.

As in `parameters`, they are read in the order of their keys. What is *not* here: what the values mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from keyvouch import cbor
from keyvouch_agent.authenticator.fields import (
    Fields,
    credential_id,
    hash_bytes,
    map_of,
    optional,
    required,
    text_list,
    unsigned,
    user_entity,
)
from keyvouch_agent.authenticator.vault import User

__all__ = [
    "ConfigParameters",
    "CredentialManagementParameters",
    "LargeBlobsParameters",
    "parse_config",
    "parse_credential_management",
    "parse_large_blobs",
]


@dataclass(frozen=True, slots=True)
class CredentialManagementParameters:
    """Section 6.8. `encoded_params` is subCommandParams as it was sent, empty where it is absent."""

    subcommand: int
    encoded_params: bytes
    rp_id_hash: bytes | None
    credential_id: bytes | None
    user: User | None
    pin_uv_auth_protocol: int | None
    pin_uv_auth_param: bytes | None


@dataclass(frozen=True, slots=True)
class LargeBlobsParameters:
    """Section 6.10."""

    get: int | None
    set: bytes | None = field(repr=False)
    offset: int | None
    length: int | None
    pin_uv_auth_param: bytes | None
    pin_uv_auth_protocol: int | None


@dataclass(frozen=True, slots=True)
class ConfigParameters:
    """Section 6.11. The three members in the middle are those of setMinPINLength (section 6.11.4)."""

    subcommand: int
    encoded_params: bytes
    new_min_pin_length: int | None
    min_pin_length_rp_ids: tuple[str, ...] | None
    force_change_pin: bool
    pin_uv_auth_protocol: int | None
    pin_uv_auth_param: bytes | None


def parse_credential_management(data: bytes) -> CredentialManagementParameters:
    """Parse the parameters of authenticatorCredentialManagement (section 6.8)."""
    fields = map_of(data)
    subcommand = required(fields, 1, int)
    params = optional(fields, 2, dict)
    given: Fields = params or {}
    rp_id_hash, descriptor, user = optional(given, 1, bytes), optional(given, 2, dict), optional(given, 3, dict)
    return CredentialManagementParameters(
        subcommand=subcommand,
        encoded_params=_encoded(params),
        rp_id_hash=None if rp_id_hash is None else hash_bytes(rp_id_hash),
        credential_id=None if descriptor is None else credential_id(descriptor) or b"",
        user=None if user is None else user_entity(user),
        pin_uv_auth_protocol=optional(fields, 3, int),
        pin_uv_auth_param=optional(fields, 4, bytes),
    )


def parse_large_blobs(data: bytes) -> LargeBlobsParameters:
    """Parse the parameters of authenticatorLargeBlobs (section 6.10)."""
    fields = map_of(data)
    return LargeBlobsParameters(
        get=unsigned(fields, 1),
        set=optional(fields, 2, bytes),
        offset=unsigned(fields, 3),
        length=unsigned(fields, 4),
        pin_uv_auth_param=optional(fields, 5, bytes),
        pin_uv_auth_protocol=optional(fields, 6, int),
    )


def parse_config(data: bytes) -> ConfigParameters:
    """Parse the parameters of authenticatorConfig (section 6.11)."""
    fields = map_of(data)
    subcommand = required(fields, 1, int)
    params = optional(fields, 2, dict)
    given: Fields = params or {}
    return ConfigParameters(
        subcommand=subcommand,
        encoded_params=_encoded(params),
        new_min_pin_length=unsigned(given, 1),
        min_pin_length_rp_ids=text_list(given, 2),
        force_change_pin=bool(optional(given, 3, bool)),
        pin_uv_auth_protocol=optional(fields, 3, int),
        pin_uv_auth_param=optional(fields, 4, bytes),
    )


def _encoded(params: Fields | None) -> bytes:
    """What was sent: canonical CBOR has one encoding, and nothing else was let in."""
    return b"" if params is None else cbor.encode(params)
