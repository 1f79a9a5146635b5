"""What the command line shows: inert names, aligned tables, large numbers, JSON."""

from __future__ import annotations

import io
import json

import pytest

import keyvouch_client
from keyvouch.errors import DeviceError, Reason, UsageError
from keyvouch.v1 import administration_pb2, common_pb2
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.number import large
from keyvouch_client.commands.output import Output, inert, table
from keyvouch_client.commands.policy_settings import Assignment, assign, settings_of


@pytest.mark.parametrize(
    "evil", ["\x1b[2J", "a\nb", "a\rb", "\u202egnp", "\u2066x", "\u200bx", "\u2028x", "\x7f", "\x9b31m", "\ud800"]
)
def test_text_from_elsewhere_is_made_inert_A2(evil: str) -> None:
    assert inert("Ada Lovelace, Prüfstand 3, 東京") == "Ada Lovelace, Prüfstand 3, 東京"
    assert evil not in inert(f"x{evil}y")
    assert "\N{REPLACEMENT CHARACTER}" in inert(f"x{evil}y")


def test_tables_are_aligned_by_what_is_seen() -> None:
    shown = table(("name", "n"), [("ada", 1), ("東京", 22), ("", "x")])
    assert shown.splitlines() == ["NAME  N", "ada   1", "東京  22", "-     x"]


def test_a_table_wider_than_the_terminal_becomes_cards() -> None:
    rows = [("ada", "x" * 20), ("東京", "y")]
    assert table(("name", "n"), rows, columns=26).splitlines()[0] == "NAME  N"
    assert table(("name", "n"), rows, columns=25).splitlines() == [
        "name  ada", f"n     {'x' * 20}", "", "name  東京", "n     y",
    ]  # fmt: skip
    assert table(("name", "n"), [], columns=3) == "NAME  N"


def test_every_digit_can_be_drawn() -> None:
    drawn = large("0123456789", blocks=False).splitlines()
    assert len(drawn) == 5
    assert len({large(digit, blocks=False) for digit in "0123456789"}) == 10
    assert large("42", blocks=True).replace("\N{FULL BLOCK}", "#") == large("42", blocks=False)
    assert large("4x", blocks=True) == ""


def test_messages_as_json() -> None:
    device = common_pb2.Device(device_id="dev_1", credential_id=b"\xff\xfe", registered_at=1_800_000_000)
    device.assurance.provenance = common_pb2.PROVENANCE_SELF
    shown = document(device)
    assert (shown["credential_id"], shown["registered_at"], shown["provider"]) == ("__4", 1_800_000_000, "")
    assert shown["assurance"] == {"protection": "", "verification": "", "provenance": "self", "anchor": ""}
    record = administration_pb2.AuditRecord(details={"a": "b"})
    assert document(record)["details"] == {"a": "b"}
    tenants = administration_pb2.ListTenantsResponse(tenants=[administration_pb2.Tenant(name="x")])
    assert document(tenants)["tenants"] == [{"tenant_id": "", "name": "x", "created_at": 0}]


def test_enum_words() -> None:
    assert spoken("ROLE_GLOBAL_READER", "ROLE_") == "global_reader"
    assert spoken("ROLE_UNSPECIFIED", "ROLE_") == ""


def test_instants_for_people() -> None:
    utc = Output(as_json=False, utc=True)
    assert utc.time(1_800_000_000) == "2027-01-15 08:00:00 UTC"
    assert utc.time(0) == "-"
    assert utc.time(1 << 62) == str(1 << 62)
    assert Output(as_json=False).time(1_800_000_000)[:7] == "2027-01"


def test_errors_for_people_and_for_programs() -> None:
    error = DeviceError(Reason.PIN_WRONG, "Wrong\x1b[31m PIN.", fix="Try again.", metadata={"left": "2"})
    stream = io.StringIO()
    Output(as_json=False, stderr=stream).error(error)
    assert stream.getvalue() == "keyvouch: Wrong\N{REPLACEMENT CHARACTER}[31m PIN.\n          Try again.\n"
    stream = io.StringIO()
    Output(as_json=True, stderr=stream).error(error)
    assert json.loads(stream.getvalue())["error"] == {
        "kind": "DeviceError",
        "reason": "pin_wrong",
        "message": "Wrong\x1b[31m PIN.",
        "fix": "Try again.",
        "metadata": {"left": "2"},
    }


def test_every_setting_of_a_policy_can_be_named_and_set_to_itself() -> None:
    policy = administration_pb2.Policy(version=1)
    policy.approval.required_assurance.anchors.extend(["one", "two"])
    before = settings_of(policy)
    assert before["approval.required_assurance.anchors"] == "one,two"
    for name, value in before.items():
        if name != "version":
            assign(policy, Assignment(name, "=", value))
    assert settings_of(policy) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("approval.enabled", "maybe"),
        ("approval.number_digits", "six"),
        ("approval.number_digits", "99999999999"),
        ("approval.required_assurance.verification", "x"),
        ("approval.SerializeToString", "1"),
        ("SerializeToString.x", "1"),
        ("approval", "1"),
        ("version", "2"),
        ("", "1"),
    ],
)
def test_settings_that_cannot_be_are_usage_errors(name: str, value: str) -> None:
    with pytest.raises(UsageError):
        assign(administration_pb2.Policy(), Assignment(name, "=", value))


def test_the_package_offers_what_it_names_and_nothing_else() -> None:
    for name in keyvouch_client.__all__:
        assert getattr(keyvouch_client, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = keyvouch_client.Nothing
