"""Audit records as OCSF events: what the schema requires of each class is there, with numbers that fit each other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import keyvouch_server
from keyvouch.ids import TenantId, UserId
from keyvouch_server.domain.ocsf import Naming, ocsf_event
from keyvouch_server.domain.oversight_model import AuditRecord

NAMES = Naming(tenant="example", username="ada", actor="admin", server="ab" * 32, version="0.1.0")
RECORD = AuditRecord(
    7,
    1_800_000_000,
    TenantId("ten_a"),
    "",
    "usr_admin",
    "sin_one",
    UserId("usr_ada"),
    "ok",
    "{}",
    5,
    b"p" * 32,
    b"h" * 32,
)

BASE = {"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"}
REQUIRED: Mapping[int, set[str]] = {3002: {"user"}, 3001: {"user"}, 3004: {"entity"}}
"""Attributes with the requirement `required`, of every event and of each class (OCSF 1.2)."""
ACTIVITIES: Mapping[int, Mapping[int, str]] = {
    3002: {1: "Logon", 2: "Logoff", 99: "Other"},
    3001: {1: "Create", 6: "Delete", 10: "MFA Factor Enable", 11: "MFA Factor Disable", 99: "Other"},
    3004: {1: "Create", 2: "Read", 3: "Update", 4: "Delete", 99: "Other"},
}
AT_LEAST_ONE: Mapping[str, set[str]] = {
    "user": {"account", "name", "uid"},
    "actor": {"process", "user", "invoked_by", "session", "app_name", "app_uid"},
    "entity": {"name", "uid"},
    "src_endpoint": {"ip", "uid", "name", "hostname", "svc_name"},
    "service": {"name", "uid"},
}


ABOUT = "access_pass|call|device|group|policy|registration|risk|session|sign_in|tenant|user"


def actions() -> set[str]:
    """Every act the server writes of, and a few words more that look like one, out of its own code."""
    files = Path(keyvouch_server.__file__).parent.glob("**/*.py")
    found = {name for file in files for name in re.findall(rf'"((?:{ABOUT})\.[a-z_]+)"', file.read_text("utf-8"))}
    return found | {f"sign_in.{event}" for event in ("approve", "deny", "report", "mismatch")}


def event_of(record: AuditRecord, names: Naming = NAMES) -> dict[str, Any]:
    """The event, held against what the schema requires."""
    event = ocsf_event(record, names)
    kind, activity = event["class_uid"], event["activity_id"]
    assert (BASE | REQUIRED[kind]) <= event.keys()
    assert event["category_uid"] == kind // 1000
    assert event["type_uid"] == kind * 100 + activity
    assert ACTIVITIES[kind][activity] == event["activity_name"]
    assert event["status_id"] in (1, 2)
    assert {"version", "product"} <= event["metadata"].keys()
    assert {"name", "vendor_name"} <= event["metadata"]["product"].keys()
    for name, alternatives in AT_LEAST_ONE.items():
        assert name not in event or event[name].keys() & alternatives, name
    if kind == 3002:
        assert {"service", "dst_endpoint"} & event.keys(), "one of them has to be there"
    for observable in event["observables"]:
        outer, inner = observable["name"].split(".")
        assert event[outer][inner] == observable["value"]
        assert isinstance(observable["type_id"], int)
    assert json.loads(json.dumps(event)) == event
    return event


def test_the_acts_of_the_server_are_known() -> None:
    assert {"sign_in.redeem", "sign_in.begin", "policy.update", "user.create", "session.revoke"} <= actions()


@pytest.mark.parametrize("action", sorted(actions()))
@pytest.mark.parametrize("outcome", ["ok", "throttled"])
def test_every_act_is_an_event_that_the_schema_takes(action: str, outcome: str) -> None:
    for actor in ("usr_admin", "dev_laptop", "anonymous", "server"):
        for user in ("usr_ada", ""):
            record = replace(RECORD, action=action, actor=actor, user_id=UserId(user), outcome=outcome)
            event = event_of(record)
            assert event["status_id"] == (1 if outcome == "ok" else 2)
            assert event["unmapped"]["action"] == action
            assert event["metadata"]["event_code"] == action


def test_a_sign_in_is_a_logon_with_two_factors_and_a_pass_one_with_one() -> None:
    approved = event_of(replace(RECORD, action="sign_in.redeem", actor="usr_ada"))
    assert (approved["type_uid"], approved["is_mfa"], approved["status"]) == (300201, True, "Success")
    assert approved["user"] == {"type_id": 1, "type": "User", "uid": "usr_ada", "name": "ada"}
    passed = event_of(replace(RECORD, action="access_pass.sign_in", outcome="access_pass_wrong"))
    assert (passed["type_uid"], passed["is_mfa"], passed["status_detail"]) == (300201, False, "access_pass_wrong")
    ended = event_of(replace(RECORD, action="session.revoke", subject="ses_one"))
    assert (ended["type_uid"], ended["session"]) == (300202, {"uid": "ses_one"})


def test_where_it_came_from_is_told_where_it_is_known() -> None:
    event = event_of(replace(RECORD, action="sign_in.begin", details='{"address": "192.0.2.7"}'))
    assert event["src_endpoint"] == {"ip": "192.0.2.7"}
    assert {"name": "src_endpoint.ip", "type_id": 2, "value": "192.0.2.7"} in event["observables"]
    assert "src_endpoint" not in event_of(replace(RECORD, action="sign_in.begin"))


TYPES = {
    "user.create": 300101,
    "user.delete": 300106,
    "device.remove": 300111,
    "registration.complete": 300110,
    "registration.begin": 300199,
    "policy.update": 300403,
    "tenant.create": 300401,
    "group.delete": 300404,
    "risk.note": 300499,
    "call.denied": 300499,
}


@pytest.mark.parametrize("action", sorted(TYPES))
def test_acts_of_administration_by_class_and_activity(action: str) -> None:
    assert event_of(replace(RECORD, action=action))["type_uid"] == TYPES[action]


def test_the_chain_goes_with_it_and_older_records_have_none() -> None:
    assert event_of(replace(RECORD, action="user.create"))["unmapped"]["hash"] == "68" * 32
    old = event_of(replace(RECORD, action="user.create", chain_number=0, hash=b"", details="not json"))
    assert old["unmapped"] == {"action": "user.create", "subject": "sin_one", "details": {"text": "not json"}}
    assert event_of(replace(RECORD, action="user.create", details="[]"))["unmapped"]["details"] == {"text": "[]"}
