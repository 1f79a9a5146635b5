"""Devices as `keyvouch` shows them: with a smartcard, and without one."""

from __future__ import annotations

import io

import pytest

from keyvouch.v1 import common_pb2
from keyvouch_client.commands.devices import device_table
from keyvouch_client.commands.messages import document
from keyvouch_client.commands.output import Output

CARD = common_pb2.CardDevice(
    slot="9c",
    firmware="5.4.3",
    serial="15732500",
    pin_policy="always",
    touch_policy="never",
    authority="Example\x1b[2J Badges",
    certificate_hash=bytes(32),
    certificate_expires_at=1_900_000_000,
)
DEVICES = (
    common_pb2.Device(device_id="dev_a", assurance=common_pb2.Assurance(provenance=common_pb2.PROVENANCE_CERTIFIED)),
    common_pb2.Device(device_id="dev_b", card=CARD),
)


@pytest.fixture
def output() -> Output:
    return Output(as_json=False, utc=True, stdout=io.StringIO(), stderr=io.StringIO())


def test_cards_have_a_table_of_their_own(output: Output):
    shown = device_table(output, DEVICES)
    _, cards = shown.split("\n\n")
    titles, row = cards.splitlines()
    assert titles.split("  ")[0] == "DEVICE"
    for told in ("dev_b", "15732500", "9c", "5.4.3", "always", "never", "Badges", "2030-03-17 17:46:40 UTC"):
        assert told in row
    assert "\x1b" not in shown
    assert "certified" in shown
    assert "\n\n" not in device_table(output, DEVICES[:1])


def test_programs_get_null_where_there_is_no_card():
    without, with_card = map(document, DEVICES)
    assert without["card"] is None
    card = with_card["card"]
    assert isinstance(card, dict)
    assert (card["slot"], card["serial"], card["certificate_expires_at"]) == ("9c", "15732500", 1_900_000_000)
    assert isinstance(without["assurance"], dict)
    assert without["assurance"]["provenance"] == "certified"
