"""The checks that registration and assertion have in common (WebAuthn Level 3 sections 7.1 and 7.2)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass

from keyvouch.client_data import CollectedClientData
from keyvouch.errors import EvidenceError, Reason, UsageError
from keyvouch.webauthn import AuthenticatorData

__all__ = ["Expected", "check_authenticator_data", "check_client_data"]

MIN_CHALLENGE = 16
"""Shortest challenge that may be expected, in bytes (WebAuthn section 13.4.3)."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the relying party expects of both ceremonies. Bad expectations are a `UsageError`."""

    challenge: bytes
    rp_id: str
    origins: Collection[str]
    require_user_verification: bool
    allow_cross_origin: bool
    top_origins: Collection[str]

    def __post_init__(self) -> None:
        if len(self.challenge) < MIN_CHALLENGE:
            raise UsageError(f"A challenge has at least {MIN_CHALLENGE} bytes.", fix="Draw 32 random bytes.")
        if isinstance(self.origins, str) or isinstance(self.top_origins, str):
            raise UsageError("Origins are a collection of strings, not one string.", fix="Wrap it: {origin}.")
        if not self.origins or not self.rp_id:
            raise UsageError("An RP ID and at least one origin are expected.", fix="Take them from the configuration.")


def check_client_data(client_data: CollectedClientData, type: str, expected: Expected) -> None:  # noqa: A002
    """Check type, challenge and origins: sections 7.1 steps 7 to 11, 7.2 steps 10 to 14.

    The top origin is judged before the cross-origin flag, because it says more about the embedding page.
    """
    if client_data.type != type:
        raise _refuse(Reason.CLIENT_DATA_TYPE, f"The client data is not of type {type}.")
    if not hmac.compare_digest(client_data.challenge, expected.challenge):
        raise _refuse(Reason.CHALLENGE, "The client data is not for the challenge of this ceremony.")
    if client_data.origin not in expected.origins:
        raise _refuse(Reason.ORIGIN, "The client data comes from an origin that is not expected.")
    if client_data.top_origin is not None or client_data.cross_origin:
        _check_embedding(client_data, expected)


def _check_embedding(client_data: CollectedClientData, expected: Expected) -> None:
    """Check the page around a cross-origin frame. Where top origins are listed, it must name one of them."""
    top_origin = client_data.top_origin
    if top_origin is not None and not (client_data.cross_origin and top_origin in expected.top_origins):
        raise _refuse(Reason.TOP_ORIGIN, "The page around the frame has an origin that is not expected.")
    if not expected.allow_cross_origin:
        raise _refuse(Reason.CROSS_ORIGIN, "The client ran in a cross-origin frame, which is not allowed.")
    if top_origin is None and expected.top_origins:
        raise _refuse(Reason.TOP_ORIGIN, "The client does not name the page around its frame.")


def check_authenticator_data(data: AuthenticatorData, expected: Expected) -> None:
    """Check relying party, presence and verification: sections 7.1 steps 14 to 16, 7.2 steps 15 to 17.

    The backup flags (7.1 step 17, 7.2 step 18) were checked when the data was parsed.
    """
    if data.rp_id_hash != hashlib.sha256(expected.rp_id.encode()).digest():
        raise _refuse(Reason.RP_ID_HASH, "The authenticator data is for another relying party.")
    if not data.user_present:
        raise _refuse(Reason.USER_PRESENCE, "The authenticator did not check that a user is present.")
    if expected.require_user_verification and not data.user_verified:
        raise _refuse(Reason.USER_VERIFICATION, "The authenticator did not verify the user by PIN or biometric.")


def _refuse(reason: Reason, message: str) -> EvidenceError:
    return EvidenceError(reason, message, fix="Start the ceremony again from the genuine page or application.")
