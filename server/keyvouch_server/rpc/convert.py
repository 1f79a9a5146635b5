"""Between the records of the domain and the messages of the wire. No rules here."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from keyvouch.assurance import Assurance, AssuranceRequirement, Protection, Provenance, RequiredProtection, Verification
from keyvouch.attestation.tpm_firmware import firmware_text
from keyvouch.attestation.tpm_vendors import find_vendor
from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import common_pb2 as pb
from keyvouch_server.domain.authenticators import AuthenticatorRules
from keyvouch_server.domain.model import (
    AuditRecord,
    DeviceTpm,
    Health,
    ProviderKind,
    Role,
    Session,
    SignInState,
    Tenant,
    User,
)
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.domain.policy import (
    AccessPassPolicy,
    ApprovalPolicy,
    HealthPolicy,
    Policy,
    RegistrationPolicy,
    SecurityKeyPolicy,
    SessionPolicy,
)
from keyvouch_server.use_cases.access_passes import ViewedPass
from keyvouch_server.use_cases.cards import CardView
from keyvouch_server.use_cases.devices import DeviceView
from keyvouch_server.use_cases.sessions import IssuedSession

K = TypeVar("K")

DEFAULT_PAGE: Final = 50
LARGEST_PAGE: Final = 200

_STATE: Final = {s: pb.SignInState.Value(f"SIGN_IN_STATE_{s.name}") for s in SignInState}
_PROVIDER: Final = {p: pb.ProviderKind.Value(f"PROVIDER_KIND_{p.name}") for p in ProviderKind}
_HEALTH: Final = {
    Health.UNKNOWN: pb.HEALTH_STATE_UNSPECIFIED,
    Health.GOOD: pb.HEALTH_STATE_GOOD,
    Health.DRIFTED: pb.HEALTH_STATE_DRIFTED,
    Health.FAILED: pb.HEALTH_STATE_FAILED,
}
_ROLE: Final = {r: admin.Role.Value(f"ROLE_{r.name}") for r in Role}
_PROTECTION: Final = {p: pb.Protection.Value(f"PROTECTION_{p.name}") for p in Protection}
_VERIFICATION: Final = {v: pb.Verification.Value(f"VERIFICATION_{v.name}") for v in Verification}
_PROVENANCE: Final = {p: pb.Provenance.Value(f"PROVENANCE_{p.name}") for p in Provenance}
_REQUIRED: Final = {r: pb.RequiredProtection.Value(f"REQUIRED_PROTECTION_{r.name}") for r in RequiredProtection}
_USABILITY: Final[Mapping[Reason | None, Any]] = {
    None: admin.ACCESS_PASS_USABILITY_ENABLED_BY_POLICY,
    Reason.ACCESS_PASS_NOT_IN_POLICY: admin.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY,
    Reason.ACCESS_PASS_ONE_TIME_REQUIRED: admin.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY,
    Reason.ACCESS_PASS_ATTEMPTS: admin.ACCESS_PASS_USABILITY_EXPIRED,
    Reason.ACCESS_PASS_EXPIRED: admin.ACCESS_PASS_USABILITY_EXPIRED,
    Reason.ACCESS_PASS_NOT_YET_VALID: admin.ACCESS_PASS_USABILITY_NOT_YET_VALID,
    Reason.ACCESS_PASS_USED: admin.ACCESS_PASS_USABILITY_ONE_TIME_USED,
}


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
    return _from_wire(_ROLE, value, "role") if value else Role.USER


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
        last_used_at=view.device.last_used_at,
        connected=connected,
        tpm=tpm(view.tpm) if view.tpm else None,
        card=card(view.card) if view.card else None,
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


def user(row: User, devices: int) -> admin.User:
    """A user."""
    return admin.User(
        user_id=row.id,
        tenant_id=row.tenant_id,
        username=row.username,
        display_name=row.display_name,
        role=_ROLE[row.role],
        created_at=row.created_at,
        device_count=devices,
    )


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
    )


def policy(p: Policy) -> admin.Policy:
    """A policy."""
    return admin.Policy(
        version=p.version,
        approval=admin.ApprovalPolicy(
            enabled=p.approval.enabled,
            number_digits=p.approval.number_digits,
            lifetime_seconds=p.approval.lifetime_seconds,
            required_assurance=requirement(p.approval.required_assurance),
            number_misses=p.approval.number_misses,
            begins_per_minute=p.approval.begins_per_minute,
        ),
        access_pass=admin.AccessPassPolicy(
            enabled=p.access_pass.enabled,
            minimum_lifetime_minutes=p.access_pass.minimum_lifetime_minutes,
            maximum_lifetime_minutes=p.access_pass.maximum_lifetime_minutes,
            default_lifetime_minutes=p.access_pass.default_lifetime_minutes,
            one_time_required=p.access_pass.one_time_required,
            length=p.access_pass.length,
        ),
        registration=admin.RegistrationPolicy(
            required_assurance=requirement(p.registration.required_assurance),
            devices_per_user=p.registration.devices_per_user,
            accounts_per_device=p.registration.accounts_per_device,
            pin_tries=p.registration.pin_tries,
            authenticators=admin.AuthenticatorRules(
                allowed=p.registration.authenticators.allowed, blocked=p.registration.authenticators.blocked
            ),
            card_pin_always=p.registration.card_pin_always,
        ),
        session=admin.SessionPolicy(
            access_token_seconds=p.session.access_token_seconds, session_seconds=p.session.session_seconds
        ),
        health=admin.HealthPolicy(
            required=p.health.required, max_age_minutes=p.health.max_age_minutes, pcrs=p.health.pcrs
        ),
        security_key=admin.SecurityKeyPolicy(
            enabled=p.security_key.enabled, required_assurance=requirement(p.security_key.required_assurance)
        ),
    )


def policy_from(m: admin.Policy) -> Policy:
    """A whole policy from the wire: every part must be there, for a missing one would switch something off."""
    parts = {part: m.HasField(part) for part in ("approval", "access_pass", "registration", "session", "health")}
    parts["security_key"] = m.HasField("security_key")
    parts["registration.authenticators"] = m.registration.HasField("authenticators")
    for part, is_there in parts.items():
        if not is_there:
            raise invalid_field(f"policy.{part}", "the whole part; read the present policy and change it")
    return Policy(
        version=m.version,
        approval=ApprovalPolicy(
            enabled=m.approval.enabled,
            number_digits=m.approval.number_digits,
            lifetime_seconds=m.approval.lifetime_seconds,
            required_assurance=requirement_from(m.approval.required_assurance, "approval.required_assurance"),
            number_misses=m.approval.number_misses,
            begins_per_minute=m.approval.begins_per_minute,
        ),
        access_pass=AccessPassPolicy(
            enabled=m.access_pass.enabled,
            minimum_lifetime_minutes=m.access_pass.minimum_lifetime_minutes,
            maximum_lifetime_minutes=m.access_pass.maximum_lifetime_minutes,
            default_lifetime_minutes=m.access_pass.default_lifetime_minutes,
            one_time_required=m.access_pass.one_time_required,
            length=m.access_pass.length,
        ),
        registration=RegistrationPolicy(
            required_assurance=requirement_from(m.registration.required_assurance, "registration.required_assurance"),
            devices_per_user=m.registration.devices_per_user,
            accounts_per_device=m.registration.accounts_per_device,
            pin_tries=m.registration.pin_tries,
            authenticators=rules_from(m.registration.authenticators),
            card_pin_always=m.registration.card_pin_always,
        ),
        session=SessionPolicy(
            access_token_seconds=m.session.access_token_seconds, session_seconds=m.session.session_seconds
        ),
        health=HealthPolicy(
            required=m.health.required,
            max_age_minutes=m.health.max_age_minutes,
            pcrs=tuple(sorted(m.health.pcrs)),
        ),
        security_key=SecurityKeyPolicy(
            enabled=m.security_key.enabled,
            required_assurance=requirement_from(m.security_key.required_assurance, "security_key.required_assurance"),
        ),
    )


def rules_from(m: admin.AuthenticatorRules) -> AuthenticatorRules:
    """Rules for models, AAGUIDs in lower case and in order; `check_policy` looks at what they are."""
    allowed, blocked = (tuple(sorted(text.strip().lower() for text in texts)) for texts in (m.allowed, m.blocked))
    return AuthenticatorRules(allowed, blocked)


def page(request: pb.PageRequest) -> tuple[str, int]:
    """Where a page starts and how long it is."""
    if not 0 <= request.size <= LARGEST_PAGE:
        raise invalid_field("page.size", f"0 to {LARGEST_PAGE}")
    if len(request.token) > 128:
        raise invalid_field("page.token", "the next_token of the page before")
    return request.token, request.size or DEFAULT_PAGE


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
