"""Between a tenant's policy and its message on the wire. No rules here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from keyvouch.v1 import administration_pb2 as admin
from keyvouch_server.domain.authenticators import AuthenticatorRules
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.policy_parts import (
    AccessPassPolicy,
    AppPolicy,
    ApprovalPolicy,
    Campaign,
    HealthPolicy,
    RegistrationPolicy,
    SecurityKeyPolicy,
    SessionPolicy,
    SignInPolicy,
    Targets,
)
from keyvouch_server.rpc import convert

_TARGETED: Final = ("approval", "access_pass", "security_key")
_LISTS: Final = ("include_users", "include_groups", "exclude_users", "exclude_groups")


def policy_message(p: Policy) -> admin.Policy:
    """A policy."""
    return admin.Policy(
        version=p.version,
        approval=admin.ApprovalPolicy(
            enabled=p.approval.enabled,
            number_digits=p.approval.number_digits,
            lifetime_seconds=p.approval.lifetime_seconds,
            required_assurance=convert.requirement(p.approval.required_assurance),
            number_misses=p.approval.number_misses,
            begins_per_minute=p.approval.begins_per_minute,
            targets=_targets_message(p.approval.targets),
            legacy_choice_of_three=p.approval.legacy_choice_of_three,
        ),
        access_pass=admin.AccessPassPolicy(
            enabled=p.access_pass.enabled,
            minimum_lifetime_minutes=p.access_pass.minimum_lifetime_minutes,
            maximum_lifetime_minutes=p.access_pass.maximum_lifetime_minutes,
            default_lifetime_minutes=p.access_pass.default_lifetime_minutes,
            one_time_required=p.access_pass.one_time_required,
            length=p.access_pass.length,
            targets=_targets_message(p.access_pass.targets),
        ),
        registration=admin.RegistrationPolicy(
            required_assurance=convert.requirement(p.registration.required_assurance),
            devices_per_user=p.registration.devices_per_user,
            accounts_per_device=p.registration.accounts_per_device,
            pin_tries=p.registration.pin_tries,
            authenticators=admin.AuthenticatorRules(
                allowed=p.registration.authenticators.allowed, blocked=p.registration.authenticators.blocked
            ),
            card_pin_always=p.registration.card_pin_always,
        ),
        session=admin.SessionPolicy(
            access_token_seconds=p.session.access_token_seconds,
            session_seconds=p.session.session_seconds,
            proof_required=p.session.proof_required,
        ),
        health=admin.HealthPolicy(
            required=p.health.required, max_age_minutes=p.health.max_age_minutes, pcrs=p.health.pcrs
        ),
        security_key=admin.SecurityKeyPolicy(
            enabled=p.security_key.enabled,
            required_assurance=convert.requirement(p.security_key.required_assurance),
            targets=_targets_message(p.security_key.targets),
        ),
        sign_in=admin.SignInPolicy(disclose_methods=p.sign_in.disclose_methods, profile=p.sign_in.profile),
        apps=[_app_message(app) for app in p.apps],
        campaigns=[_campaign_message(campaign) for campaign in p.campaigns],
    )


def _targets_message(targets: Targets) -> admin.Targets:
    return admin.Targets(**asdict(targets))


def _app_message(app: AppPolicy) -> admin.AppPolicy:
    return admin.AppPolicy(
        app_id=app.app_id,
        required_assurance=convert.requirement(app.required_assurance),
        phishing_resistant=app.phishing_resistant,
    )


def _campaign_message(campaign: Campaign) -> admin.Campaign:
    return admin.Campaign(
        name=campaign.name,
        targets=_targets_message(campaign.targets),
        required_assurance=convert.requirement(campaign.required_assurance),
        required_by=campaign.required_by,
    )


def policy_from(m: admin.Policy) -> Policy:
    """A whole policy from the wire. Raises FIELD_INVALID naming a part that is missing."""
    _must_be_whole(m)
    return Policy(
        version=m.version,
        approval=ApprovalPolicy(
            enabled=m.approval.enabled,
            number_digits=m.approval.number_digits,
            lifetime_seconds=m.approval.lifetime_seconds,
            required_assurance=convert.requirement_from(m.approval.required_assurance, "approval.required_assurance"),
            number_misses=m.approval.number_misses,
            begins_per_minute=m.approval.begins_per_minute,
            targets=_targets(m.approval.targets),
            legacy_choice_of_three=m.approval.legacy_choice_of_three,
        ),
        access_pass=AccessPassPolicy(
            enabled=m.access_pass.enabled,
            minimum_lifetime_minutes=m.access_pass.minimum_lifetime_minutes,
            maximum_lifetime_minutes=m.access_pass.maximum_lifetime_minutes,
            default_lifetime_minutes=m.access_pass.default_lifetime_minutes,
            one_time_required=m.access_pass.one_time_required,
            length=m.access_pass.length,
            targets=_targets(m.access_pass.targets),
        ),
        registration=RegistrationPolicy(
            required_assurance=convert.requirement_from(
                m.registration.required_assurance, "registration.required_assurance"
            ),
            devices_per_user=m.registration.devices_per_user,
            accounts_per_device=m.registration.accounts_per_device,
            pin_tries=m.registration.pin_tries,
            authenticators=_rules_from(m.registration.authenticators),
            card_pin_always=m.registration.card_pin_always,
        ),
        session=SessionPolicy(
            access_token_seconds=m.session.access_token_seconds,
            session_seconds=m.session.session_seconds,
            proof_required=m.session.proof_required,
        ),
        health=HealthPolicy(
            required=m.health.required,
            max_age_minutes=m.health.max_age_minutes,
            pcrs=tuple(sorted(m.health.pcrs)),
        ),
        security_key=SecurityKeyPolicy(
            enabled=m.security_key.enabled,
            required_assurance=convert.requirement_from(
                m.security_key.required_assurance, "security_key.required_assurance"
            ),
            targets=_targets(m.security_key.targets),
        ),
        sign_in=SignInPolicy(disclose_methods=m.sign_in.disclose_methods, profile=m.sign_in.profile),
        apps=tuple(_app(app, f"apps[{n}]") for n, app in enumerate(m.apps)),
        campaigns=tuple(_campaign(campaign, f"campaigns[{n}]") for n, campaign in enumerate(m.campaigns)),
    )


def _must_be_whole(m: admin.Policy) -> None:
    """Every part must be there, for a missing one would switch something off."""
    parts = {part: m.HasField(part) for part in ("approval", "access_pass", "registration", "session", "health")}
    parts |= {part: m.HasField(part) for part in ("security_key", "sign_in")}
    parts |= {f"{part}.targets": getattr(m, part).HasField("targets") for part in _TARGETED}
    parts |= {f"campaigns[{n}].targets": c.HasField("targets") for n, c in enumerate(m.campaigns)}
    parts["registration.authenticators"] = m.registration.HasField("authenticators")
    for part, is_there in parts.items():
        if not is_there:
            raise invalid_field(f"policy.{part}", "the whole part; read the present policy and change it")


def _targets(m: admin.Targets) -> Targets:
    """Each list in order and each id once."""
    lists = {name: tuple(sorted(set(getattr(m, name)))) for name in _LISTS}
    return Targets(everybody=m.everybody, **lists)


def _app(m: admin.AppPolicy, field: str) -> AppPolicy:
    required = convert.requirement_from(m.required_assurance, f"{field}.required_assurance")
    return AppPolicy(m.app_id, required, m.phishing_resistant)


def _campaign(m: admin.Campaign, field: str) -> Campaign:
    required = convert.requirement_from(m.required_assurance, f"{field}.required_assurance")
    return Campaign(m.name, m.required_by, _targets(m.targets), required)


def _rules_from(m: admin.AuthenticatorRules) -> AuthenticatorRules:
    """Rules for models, AAGUIDs in lower case and in order; `check_policy` looks at what they are."""
    allowed, blocked = (tuple(sorted(text.strip().lower() for text in texts)) for texts in (m.allowed, m.blocked))
    return AuthenticatorRules(allowed, blocked)
