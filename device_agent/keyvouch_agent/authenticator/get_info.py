"""authenticatorGetInfo (0x04): what this authenticator is and can do (section 6.4)."""

from __future__ import annotations

from collections.abc import Mapping

from keyvouch_agent.authenticator.client_pin import ClientPin
from keyvouch_agent.authenticator.parameters import MAX_CREDENTIALS_IN_LIST, PUBLIC_KEY
from keyvouch_agent.authenticator.vault import KeyVault

__all__ = ["MAX_CREDENTIAL_ID_LENGTH", "MAX_MESSAGE_SIZE", "get_info"]

MAX_MESSAGE_SIZE = 2048
"""Bytes of a request, the command byte included."""
MAX_CREDENTIAL_ID_LENGTH = 128


def get_info(vault: KeyVault, client_pin: ClientPin, *, make_cred_uv_not_required: bool) -> Mapping[int, object]:
    """Build the response map of section 6.4.

    `alwaysUv` is true for a vault whose keys the PIN gates: no credential can be made or used without user
    verification then. `makeCredUvNotRqd` must be absent or false beside it.
    """
    properties = vault.properties
    options: dict[str, bool] = {
        "rk": True,
        "up": True,
        "plat": False,
        "clientPin": vault.pin_state().is_set,
        "pinUvAuthToken": True,
        "makeCredUvNotRqd": make_cred_uv_not_required and not properties.pin_gated,
    }
    if properties.pin_gated:
        options["alwaysUv"] = True
    return {
        0x01: ["FIDO_2_0", "FIDO_2_1"],
        0x03: properties.aaguid,
        0x04: options,
        0x05: MAX_MESSAGE_SIZE,
        0x06: list(client_pin.versions),
        0x07: MAX_CREDENTIALS_IN_LIST,
        0x08: MAX_CREDENTIAL_ID_LENGTH,
        0x0A: [{"alg": algorithm, "type": PUBLIC_KEY} for algorithm in properties.algorithms],
        0x0D: client_pin.min_pin_length,
        0x16: [*properties.attestation_formats, "none"],
    }
