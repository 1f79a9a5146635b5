"""The parameters of authenticatorMakeCredential, GetAssertion and ClientPIN.

They are read in the order of their keys, and the first thing that is wrong is the one answered; `fields` says with
which status. Unknown keys, members, options, credential types and extensions are ignored (sections 6 and 8). What is
*not* here: what the values mean, and the commands that manage the authenticator (`management_parameters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from keyvouch_agent.authenticator.extensions import (
    AssertionInputs,
    RegistrationInputs,
    parse_assertion_inputs,
    parse_registration_inputs,
)
from keyvouch_agent.authenticator.fields import (
    PUBLIC_KEY,
    Fields,
    credential_ids,
    hash_bytes,
    map_of,
    optional,
    required,
    text_list,
    typed,
    user_entity,
)
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
    extensions: RegistrationInputs
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
    extensions: AssertionInputs
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
    fields = map_of(data)
    return MakeCredentialParameters(
        client_data_hash=hash_bytes(required(fields, 1, bytes)),
        rp_id=_rp_id(required(fields, 2, dict)),
        user=user_entity(required(fields, 3, dict)),
        algorithms=_algorithms(required(fields, 4, list)),
        exclude=credential_ids(fields, 5) or (),
        extensions=parse_registration_inputs(optional(fields, 6, dict) or {}),
        options=_options(optional(fields, 7, dict) or {}),
        pin_uv_auth_param=optional(fields, 8, bytes),
        pin_uv_auth_protocol=optional(fields, 9, int),
        wants_enterprise_attestation=optional(fields, 10, int) is not None,
        attestation_formats=text_list(fields, 11) or (),
    )


def parse_get_assertion(data: bytes) -> GetAssertionParameters:
    """Parse the parameters of authenticatorGetAssertion (section 6.2)."""
    fields = map_of(data)
    return GetAssertionParameters(
        rp_id=required(fields, 1, str),
        client_data_hash=hash_bytes(required(fields, 2, bytes)),
        allow=credential_ids(fields, 3),
        extensions=parse_assertion_inputs(optional(fields, 4, dict) or {}),
        options=_options(optional(fields, 5, dict) or {}),
        pin_uv_auth_param=optional(fields, 6, bytes),
        pin_uv_auth_protocol=optional(fields, 7, int),
    )


def parse_client_pin(data: bytes) -> ClientPinParameters:
    """Parse the parameters of authenticatorClientPIN (section 6.5.5)."""
    fields = map_of(data)
    return ClientPinParameters(
        protocol=optional(fields, 1, int),
        subcommand=required(fields, 2, int),
        key_agreement=optional(fields, 3, dict),
        pin_uv_auth_param=optional(fields, 4, bytes),
        new_pin_enc=optional(fields, 5, bytes),
        pin_hash_enc=optional(fields, 6, bytes),
        permissions=optional(fields, 9, int),
        rp_id=optional(fields, 10, str),
    )


def _rp_id(rp: Fields) -> str:
    rp_id = required(rp, "id", str)
    optional(rp, "name", str)
    return rp_id


def _algorithms(parameters: list[object]) -> tuple[int, ...]:
    """Validate every element (section 6.1.2 step 3); its missing members are `INVALID_CBOR` there."""
    algorithms = []
    for element in parameters:
        entry = typed(element, dict)
        if "type" not in entry or "alg" not in entry:
            raise CommandError(Status.INVALID_CBOR)
        algorithm = typed(entry["alg"], int)
        if typed(entry["type"], str) == PUBLIC_KEY:
            algorithms.append(algorithm)
    return tuple(algorithms)


def _options(given: Fields) -> Options:
    return Options(rk=optional(given, "rk", bool), up=optional(given, "up", bool), uv=optional(given, "uv", bool))
