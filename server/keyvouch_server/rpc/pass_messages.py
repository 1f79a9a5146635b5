"""Temporary Access Passes on the wire. No rules here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin
from keyvouch_server.domain.access_pass import aaguid_binding, bound_aaguid, bound_key_hash, endorsement_key_binding
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.use_cases.access_passes import OldSessions, PassWish, ViewedPass

_OLD_SESSIONS: Final = {s: admin.SessionsOnReplace.Value(f"SESSIONS_ON_REPLACE_{s.name}") for s in OldSessions}
_USABILITY: Final[Mapping[Reason | None, Any]] = {
    None: admin.ACCESS_PASS_USABILITY_ENABLED_BY_POLICY,
    Reason.ACCESS_PASS_NOT_IN_POLICY: admin.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY,
    Reason.ACCESS_PASS_GUEST: admin.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY,
    Reason.ACCESS_PASS_ONE_TIME_REQUIRED: admin.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY,
    Reason.ACCESS_PASS_ATTEMPTS: admin.ACCESS_PASS_USABILITY_EXPIRED,
    Reason.ACCESS_PASS_EXPIRED: admin.ACCESS_PASS_USABILITY_EXPIRED,
    Reason.ACCESS_PASS_NOT_YET_VALID: admin.ACCESS_PASS_USABILITY_NOT_YET_VALID,
    Reason.ACCESS_PASS_USED: admin.ACCESS_PASS_USABILITY_ONE_TIME_USED,
}


def access_pass(view: ViewedPass) -> admin.AccessPass:
    """A pass without its code (T7)."""
    return admin.AccessPass(
        access_pass_id=view.found.id,
        user_id=view.found.user_id,
        username=view.user.username,
        created_at=view.found.created_at,
        start_at=view.found.start_at,
        lifetime_minutes=view.found.lifetime_minutes,
        one_time=view.found.one_time,
        usable=view.refusal is None,
        usability=_USABILITY[view.refusal],
        binding=_binding(view.found.binding),
    )


def _binding(text: str) -> admin.DeviceBinding | None:
    key_hash, aaguid = bound_key_hash(text), bound_aaguid(text)
    if key_hash:
        return admin.DeviceBinding(endorsement_key_hash=key_hash)
    return admin.DeviceBinding(aaguid=aaguid) if aaguid else None


def pass_wish(request: admin.CreateAccessPassRequest | admin.ReplaceAccessPassRequest) -> PassWish:
    """What a new pass is to be."""
    binding = _binding_from(request.binding) if request.HasField("binding") else ""
    return PassWish(request.start_at, request.lifetime_minutes, request.one_time, binding)


def _binding_from(message: admin.DeviceBinding) -> str:
    kind = message.WhichOneof("device")
    if kind is None:
        raise invalid_field("binding", "an endorsement key hash or an AAGUID, or nothing at all")
    if kind == "aaguid":
        return aaguid_binding(message.aaguid)
    return endorsement_key_binding(message.endorsement_key_hash)


def old_sessions(value: int) -> OldSessions:
    """What becomes of sessions when a pass is replaced: always said."""
    for choice, number in _OLD_SESSIONS.items():
        if number == value:
            return choice
    raise invalid_field("sessions", "keep or revoke")
