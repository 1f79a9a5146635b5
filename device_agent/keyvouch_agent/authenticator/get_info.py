"""authenticatorGetInfo (0x04): what this authenticator is and can do (section 6.4)."""

from __future__ import annotations

from collections.abc import Mapping

from keyvouch_agent.authenticator.configuration import MAX_MIN_PIN_LENGTH_RP_IDS
from keyvouch_agent.authenticator.extensions import extension_names
from keyvouch_agent.authenticator.fields import MAX_CREDENTIALS_IN_LIST, PUBLIC_KEY
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.vault import MAX_CRED_BLOB, KeyVault

__all__ = ["MAX_CREDENTIAL_ID_LENGTH", "get_info"]

MAX_CREDENTIAL_ID_LENGTH = 128
PLATFORM_UV_ATTEMPTS = 1
"""Tries of built-in user verification in a row that a platform should make (preferredPlatformUvAttempts)."""
PASSCODE_INTERNAL = 0x0004
"""How a user is verified (uvModality, FIDO Registry section 3.1): by a PIN that is none of CTAP's."""


def get_info(
    vault: KeyVault, standing: Standing, pin_protocols: tuple[int, ...], *, uv_is_ready: bool
) -> Mapping[int, object]:
    """Build the response map of section 6.4, of what is true at this moment."""
    properties = vault.properties
    members: dict[int, object] = {
        0x01: (["U2F_V2"] if standing.speaks_u2f else []) + ["FIDO_2_0", "FIDO_2_1"],
        0x02: extension_names(standing),
        0x03: properties.aaguid,
        0x04: _options(standing, uv_is_ready=uv_is_ready),
        0x05: standing.options.max_message_size,
        0x06: list(pin_protocols),
        0x07: MAX_CREDENTIALS_IN_LIST,
        0x08: MAX_CREDENTIAL_ID_LENGTH,
        0x09: list(standing.options.transports),
        0x0A: [{"alg": algorithm, "type": PUBLIC_KEY} for algorithm in properties.algorithms],
        0x14: vault.room(),
        0x16: [*properties.attestation_formats, "none"],
    }
    if standing.takes_pin:
        members |= {0x0C: standing.must_change_pin, 0x0D: standing.min_pin_length, 0x10: MAX_MIN_PIN_LENGTH_RP_IDS}
    else:
        members |= {0x11: PLATFORM_UV_ATTEMPTS, 0x12: PASSCODE_INTERNAL}
    if standing.keeps_secrets:
        members[0x0F] = MAX_CRED_BLOB
    if standing.keeps_large_blobs:
        members[0x0B] = properties.max_large_blobs
    if properties.firmware_version:
        members[0x0E] = properties.firmware_version
    return members


def _options(standing: Standing, *, uv_is_ready: bool) -> Mapping[str, bool]:
    """Section 6.4, table of option IDs. What is absent is not supported: `ep` and `bioEnroll` among them."""
    options = {
        "rk": True,
        "up": True,
        "plat": False,
        "pinUvAuthToken": True,
        "credMgmt": True,
        "authnrCfg": True,
        "alwaysUv": standing.always_uv,
        "makeCredUvNotRqd": standing.make_cred_uv_not_required,
    }
    if standing.takes_pin:
        options |= {"clientPin": standing.is_protected, "setMinPINLength": True}
    else:
        options |= {"uv": uv_is_ready, "uvAcfg": True}
    if standing.keeps_large_blobs:
        options["largeBlobs"] = True
    return options
