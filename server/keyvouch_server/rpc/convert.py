"""Between the records of the domain and the messages of the wire. No rules here."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from keyvouch.assurance import Assurance, AssuranceRequirement, Protection, Provenance, RequiredProtection, Verification
from keyvouch.attestation.tpm_firmware import firmware_text
from keyvouch.attestation.tpm_vendors import find_vendor
from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import common_pb2 as pb
from keyvouch.v1 import directory_pb2 as directory
from keyvouch_server.domain.model import (
    DeviceTpm,
    Health,
    ProviderKind,
    Role,
    Session,
    SignInState,
    Tenant,
    User,
    UserKind,
)
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.use_cases.cards import CardView
from keyvouch_server.use_cases.devices import DeviceView
from keyvouch_server.use_cases.directory_views import GroupView, UserView
from keyvouch_server.use_cases.sessions import IssuedSession

K = TypeVar("K")

_STATE: Final = {s: pb.SignInState.Value(f"SIGN_IN_STATE_{s.name}") for s in SignInState}
_PROVIDER: Final = {p: pb.ProviderKind.Value(f"PROVIDER_KIND_{p.name}") for p in ProviderKind}
_HEALTH: Final = {
    Health.UNKNOWN: pb.HEALTH_STATE_UNSPECIFIED,
    Health.GOOD: pb.HEALTH_STATE_GOOD,
    Health.DRIFTED: pb.HEALTH_STATE_DRIFTED,
    Health.FAILED: pb.HEALTH_STATE_FAILED,
}
_ROLE: Final = {r: admin.Role.Value(f"ROLE_{r.name}") for r in Role}
_USER_KIND: Final = {k: pb.UserKind.Value(f"USER_KIND_{k.name}") for k in UserKind}
_PROTECTION: Final = {p: pb.Protection.Value(f"PROTECTION_{p.name}") for p in Protection}
_VERIFICATION: Final = {v: pb.Verification.Value(f"VERIFICATION_{v.name}") for v in Verification}
_PROVENANCE: Final = {p: pb.Provenance.Value(f"PROVENANCE_{p.name}") for p in Provenance}
_REQUIRED: Final = {r: pb.RequiredProtection.Value(f"REQUIRED_PROTECTION_{r.name}") for r in RequiredProtection}


def state(value: SignInState) -> Any:
    """A sign-in state on the wire."""
    return _STATE[value]


def _from_wire(table: Mapping[K, Any], value: int, field: str) -> K:
    for member, number in table.items():
        if number == value:
            return member
    raise invalid_field(field, "one of the named values")


def provider(value: int) -> ProviderKind:
    """A provider kind from the wire; nothing said means software."""
    return _from_wire(_PROVIDER, value, "provider") if value else ProviderKind.SOFTWARE


def role(value: int) -> Role:
    """A role from the wire; nothing said means user."""
    return named_role(value) if value else Role.USER


def named_role(value: int) -> Role:
    """A role from the wire, where one has to be said."""
    return _from_wire(_ROLE, value, "role")


def user_kind(value: int) -> UserKind:
    """A kind of user from the wire; nothing said means member."""
    return named_user_kind(value) if value else UserKind.MEMBER


def named_user_kind(value: int) -> UserKind:
    """A kind of user from the wire, where one has to be said."""
    return _from_wire(_USER_KIND, value, "kind")


def assurance(text: str) -> pb.Assurance:
    """An assurance on the wire; empty where nothing is known."""
    if not text:
        return pb.Assurance()
    a = Assurance.parse(text)
    return pb.Assurance(
        protection=_PROTECTION[a.protection],
        verification=_VERIFICATION[a.verification],
        provenance=_PROVENANCE[a.provenance],
        anchor=a.anchor,
    )


def requirement(text: str) -> pb.AssuranceRequirement:
    """A requirement on the wire."""
    r = AssuranceRequirement.parse(text)
    return pb.AssuranceRequirement(
        protection=_REQUIRED[r.protection],
        verification=_VERIFICATION[r.verification],
        provenance=_PROVENANCE[r.provenance],
        anchors=sorted(r.anchors),
    )


def requirement_from(message: pb.AssuranceRequirement, field: str) -> str:
    """A requirement from the wire."""
    return AssuranceRequirement(
        _from_wire(_REQUIRED, message.protection, f"{field}.protection"),
        _from_wire(_VERIFICATION, message.verification, f"{field}.verification"),
        _from_wire(_PROVENANCE, message.provenance, f"{field}.provenance"),
        frozenset(message.anchors),
    ).text()


def tokens(issued: IssuedSession) -> pb.SessionTokens:
    """Tokens as they leave the server."""
    return pb.SessionTokens(
        session_id=issued.session.id,
        access_token=issued.access_token,
        access_expires_at=issued.access_expires_at,
        refresh_token=issued.refresh_token,
        session_expires_at=issued.session.expires_at,
    )


def session(row: Session, user: User) -> pb.Session:
    """A session."""
    return pb.Session(
        session_id=row.id,
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        username=user.username,
        device_id=row.device_id,
        app_name=row.app_name,
        amr=row.amr.split(),
        acr=row.acr,
        auth_time=row.auth_time,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked=bool(row.revoked_at),
        assurance=assurance(row.assurance),
        revoke_reason=row.revoke_reason,
        address=row.address,
    )


def device(view: DeviceView, *, connected: bool) -> pb.Device:
    """A device with its credential."""
    return pb.Device(
        device_id=view.device.id,
        tenant_id=view.device.tenant_id,
        user_id=view.device.user_id,
        display_name=view.device.display_name,
        provider=_PROVIDER[view.device.provider],
        assurance=assurance(view.credential.assurance),
        credential_id=view.credential.id,
        registered_at=view.device.registered_at,
        last_used_at=view.credential.last_used_at,
        connected=connected,
        tpm=tpm(view.tpm) if view.tpm else None,
        card=card(view.card) if view.card else None,
        aaguid=view.credential.aaguid,
    )


def card(view: CardView) -> pb.CardDevice:
    """A device's smartcard."""
    facts = view.facts
    serial = facts.serial if facts else None
    return pb.CardDevice(
        slot=facts.slot if facts else "",
        firmware=facts.firmware if facts else "",
        serial="" if serial is None else str(serial),
        pin_policy=facts.pin_policy if facts else "",
        touch_policy=facts.touch_policy if facts else "",
        authority=view.authority,
        certificate_hash=view.certificate_hash,
        certificate_expires_at=view.expires_at,
    )


def health(value: Health) -> Any:
    """A health state on the wire."""
    return _HEALTH[value]


def tpm(row: DeviceTpm) -> pb.TpmDevice:
    """A device's TPM: its maker by name where that is registered."""
    vendor = find_vendor(row.manufacturer)
    version = int(row.firmware_version or "0", 16)
    return pb.TpmDevice(
        endorsement_anchor=row.anchor,
        manufacturer=vendor.name if vendor else row.manufacturer,
        model=row.model,
        firmware=firmware_text(row.manufacturer, version) if version else "",
        endorsement_key_hash=row.endorsement_key_hash,
        pin_limit=row.pin_limit,
        channel_key_in_tpm=row.channel_key_in_tpm,
        health=health(row.health),
        reported_at=row.reported_at,
        findings=json.loads(row.findings),
        clock=int(row.clock or "0"),
        reset_count=row.reset_count,
        restart_count=row.restart_count,
    )


def tenant(row: Tenant) -> admin.Tenant:
    """A tenant."""
    return admin.Tenant(tenant_id=row.id, name=row.name, created_at=row.created_at)


def user(view: UserView) -> admin.User:
    """A user."""
    return admin.User(
        user_id=view.user.id,
        tenant_id=view.user.tenant_id,
        username=view.user.username,
        display_name=view.user.display_name,
        role=_ROLE[view.user.role],
        created_at=view.user.created_at,
        device_count=view.devices,
        kind=_USER_KIND[view.user.kind],
        aliases=view.aliases,
        flagged=bool(view.user.flagged_at),
    )


def group(view: GroupView) -> directory.Group:
    """A group."""
    return directory.Group(
        group_id=view.group.id,
        name=view.group.name,
        description=view.group.description,
        created_at=view.group.created_at,
        member_count=view.members,
    )


def audit_record(row: AuditRecord) -> admin.AuditRecord:
    """An audit record."""
    return admin.AuditRecord(
        sequence=row.sequence,
        at=row.at,
        action=row.action,
        actor=row.actor,
        subject=row.subject,
        user_id=row.user_id,
        outcome=row.outcome,
        details=json.loads(row.details),
        chain_number=row.chain_number,
        hash=row.hash,
    )


def address_of(peer: str) -> tuple[str, str]:
    """The caller's address and a word for where it is, from grpc's peer string."""
    kind, _, rest = peer.partition(":")
    host = rest.rsplit(":", 1)[0].replace("%5B", "").replace("%5D", "").strip("[]")
    if kind not in ("ipv4", "ipv6"):
        return "", "this computer" if kind == "unix" else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "", ""
    if address.is_loopback:
        return str(address), "this computer"
    return str(address), "local network" if address.is_private else ""
