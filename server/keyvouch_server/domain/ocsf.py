"""Audit records as events of the Open Cybersecurity Schema Framework (OCSF), for systems that collect such.

    3002 Authentication       sign-ins, access passes used, sessions
    3001 Account Change       users, and the keys and passes that they sign in with
    3004 Entity Management    everything else that is managed: tenants, policies, groups, devices' health

Attributes and their numbers are those of OCSF 1.2, which later versions of 1 still have. What an audit record says
goes with each event as `unmapped`, number and hash of the chain included, so that nothing is lost on the way. Not here:
where events are sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from keyvouch_server.domain.oversight_model import AuditRecord

__all__ = ["Naming", "ocsf_event"]

OCSF_VERSION: Final = "1.2.0"

_AUTHENTICATION, _ACCOUNT_CHANGE, _ENTITY_MANAGEMENT = 3002, 3001, 3004
_CLASSES: Final = {
    _AUTHENTICATION: "Authentication",
    _ACCOUNT_CHANGE: "Account Change",
    _ENTITY_MANAGEMENT: "Entity Management",
}
_OTHER: Final = (99, "Other")
_LOGON, _LOGOFF = (1, "Logon"), (2, "Logoff")
_CREATE, _UPDATE, _DELETE = (1, "Create"), (3, "Update"), (4, "Delete")
_ACCOUNT_DELETE, _FACTOR_ENABLE, _FACTOR_DISABLE = (6, "Delete"), (10, "MFA Factor Enable"), (11, "MFA Factor Disable")

_ACTIVITIES: Final[Mapping[str, tuple[int, tuple[int, str]]]] = {
    "sign_in.redeem": (_AUTHENTICATION, _LOGON),
    "access_pass.sign_in": (_AUTHENTICATION, _LOGON),
    "session.revoke": (_AUTHENTICATION, _LOGOFF),
    "user.create": (_ACCOUNT_CHANGE, _CREATE),
    "user.delete": (_ACCOUNT_CHANGE, _ACCOUNT_DELETE),
    "registration.complete": (_ACCOUNT_CHANGE, _FACTOR_ENABLE),
    "device.remove": (_ACCOUNT_CHANGE, _FACTOR_DISABLE),
    "access_pass.create": (_ACCOUNT_CHANGE, _FACTOR_ENABLE),
    "access_pass.replace": (_ACCOUNT_CHANGE, _FACTOR_ENABLE),
    "access_pass.delete": (_ACCOUNT_CHANGE, _FACTOR_DISABLE),
}
"""Acts with an activity of their own. Others belong to a class by what they are about."""

_ABOUT: Final = {
    "sign_in": _AUTHENTICATION,
    "session": _AUTHENTICATION,
    "user": _ACCOUNT_CHANGE,
    "registration": _ACCOUNT_CHANGE,
    "access_pass": _ACCOUNT_CHANGE,
}
_VERBS: Final = {"create": _CREATE, "update": _UPDATE, "delete": _DELETE}

_METHODS: Final = {
    "access_pass.sign_in": ("Temporary Access Pass", False),
    "sign_in.redeem": ("Keyvouch approval with a registered key (WebAuthn)", True),
}
"""Which protocol signed somebody in, and whether that were two factors (PS7)."""

_ANONYMOUS: Final = frozenset({"anonymous", "server"})
_IP_ADDRESS, _USER_NAME, _RESOURCE_UID = 2, 4, 10
_DEVICE_PREFIX = "dev_"


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of what a record has the ids of; `username` and `actor` are empty where nobody has that id now."""

    tenant: str
    username: str
    actor: str
    server: str
    version: str


def ocsf_event(record: AuditRecord, names: Naming) -> dict[str, Any]:
    """A record as one event."""
    class_uid, (activity_id, activity) = _activity(record)
    succeeded = record.outcome == "ok"
    details = _details(record)
    event: dict[str, Any] = {
        "activity_id": activity_id,
        "activity_name": activity,
        "category_uid": 3,
        "category_name": "Identity & Access Management",
        "class_uid": class_uid,
        "class_name": _CLASSES[class_uid],
        "type_uid": class_uid * 100 + activity_id,
        "type_name": f"{_CLASSES[class_uid]}: {activity}",
        "time": record.at * 1000,
        "severity_id": 1 if succeeded else 2,
        "severity": "Informational" if succeeded else "Low",
        "status_id": 1 if succeeded else 2,
        "status": "Success" if succeeded else "Failure",
        "message": f"{record.action}: {record.outcome}",
        "metadata": _metadata(record, names),
        "actor": _actor(record, names),
        "unmapped": _unmapped(record),
    }
    if not succeeded:
        event["status_code"] = event["status_detail"] = record.outcome
    if details.get("address"):
        event["src_endpoint"] = {"ip": details["address"]}
    if class_uid == _ENTITY_MANAGEMENT:
        event["entity"] = _entity(record, names)
    else:
        event["user"] = _user(record.user_id, names.username)
    if class_uid == _AUTHENTICATION:
        event |= _authentication(record, names)
    event["observables"] = _observables(event)
    return event


def _activity(record: AuditRecord) -> tuple[int, tuple[int, str]]:
    known = _ACTIVITIES.get(record.action)
    if known is not None:
        return known
    about, _, verb = record.action.partition(".")
    class_uid = _ABOUT.get(about, _ENTITY_MANAGEMENT)
    return class_uid, _VERBS.get(verb, _OTHER) if class_uid == _ENTITY_MANAGEMENT else _OTHER


def _metadata(record: AuditRecord, names: Naming) -> dict[str, Any]:
    return {
        "version": OCSF_VERSION,
        "product": {"name": "Keyvouch", "vendor_name": "Keyvouch", "version": names.version},
        "uid": f"{record.tenant_id}:{record.sequence}",
        "sequence": record.sequence,
        "event_code": record.action,
        "log_name": "audit",
        "log_provider": names.server,
        "original_time": str(record.at),
        "tenant_uid": record.tenant_id,
    }


def _actor(record: AuditRecord, names: Naming) -> dict[str, Any]:
    if record.actor in _ANONYMOUS:
        return {"app_name": record.actor}
    if record.actor.startswith(_DEVICE_PREFIX):
        return {"app_name": "Keyvouch agent", "app_uid": record.actor}
    return {"user": _user(record.actor, names.actor)}


def _user(user_id: str, name: str) -> dict[str, Any]:
    """A user has a name or an id (OCSF wants one of them): nobody known is called so."""
    user: dict[str, Any] = {"type_id": 1, "type": "User"} if user_id else {"type_id": 0, "type": "Unknown"}
    if user_id:
        user["uid"] = user_id
    if name or not user_id:
        user["name"] = name or "unknown"
    return user


def _entity(record: AuditRecord, names: Naming) -> dict[str, Any]:
    kind = record.action.partition(".")[0]
    return {"type": kind, "uid": record.subject or record.tenant_id or names.server, "name": names.tenant or kind}


def _authentication(record: AuditRecord, names: Naming) -> dict[str, Any]:
    protocol, factors = _METHODS.get(record.action, ("Keyvouch", None))
    told: dict[str, Any] = {
        "auth_protocol_id": _OTHER[0],
        "auth_protocol": protocol,
        "is_remote": True,
        "logon_type_id": 3,
        "logon_type": "Network",
        "service": {"name": "Keyvouch", "uid": names.server},
    }
    if factors is not None:
        told["is_mfa"] = factors
    if record.action.startswith("session."):
        told["session"] = {"uid": record.subject}
    return told


def _observables(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "src_endpoint" in event:
        found.append({"name": "src_endpoint.ip", "type_id": _IP_ADDRESS, "value": event["src_endpoint"]["ip"]})
    if "name" in event.get("user", {}):
        found.append({"name": "user.name", "type_id": _USER_NAME, "value": event["user"]["name"]})
    if "uid" in event.get("user", {}):
        found.append({"name": "user.uid", "type_id": _RESOURCE_UID, "value": event["user"]["uid"]})
    return found


def _unmapped(record: AuditRecord) -> dict[str, Any]:
    chained = {"chain_number": record.chain_number, "hash": record.hash.hex()} if record.chain_number else {}
    return {"action": record.action, "subject": record.subject, "details": _details(record), **chained}


def _details(record: AuditRecord) -> dict[str, Any]:
    """Details as an object. Nobody vouches for records from before the chain: they may be anything."""
    try:
        details = json.loads(record.details)
    except ValueError:
        details = None
    return details if isinstance(details, dict) else {"text": record.details}
