"""What a client wants a card's PIN for, how a running command asks for it, and a PIN that is held for benches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.pin_token import Permission
from keyvouch_agent.transports.command_runner import CommandRunner
from keyvouch_agent.transports.pin_entry import HeldPin, PinRequest, what_for
from support.transport_bench import CRASH, Grants, ScriptedAuthenticator

MAKE = b"\x01" + cbor.encode(
    {
        1: bytes(32),
        2: {"id": "example.org"},
        3: {"id": b"user", "name": "ada"},
        4: [{"alg": -7, "type": "public-key"}],
    }
)
ASSERT = b"\x02" + cbor.encode({1: "example.org", 2: bytes(32)})
TOKEN = b"\x06" + cbor.encode({1: 2, 2: 6, 9: 5, 10: "example.org"})
WRONG = DeviceError(Reason.PIN_WRONG, "The PIN is wrong.", retries_left=2, fix="2 tries are left.")
AWAY = DeviceError(Reason.AUTHENTICATOR_REMOVED, "The card was taken out.")


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (MAKE, PinRequest(Permission.MAKE_CREDENTIAL, "example.org", "ada")),
        (ASSERT, PinRequest(Permission.GET_ASSERTION, "example.org")),
        (TOKEN, PinRequest(Permission.MAKE_CREDENTIAL | Permission.CREDENTIAL_MANAGEMENT, "example.org")),
        (b"\x06" + cbor.encode({1: 2, 2: 6}), PinRequest()),
        (b"\x04", PinRequest()),
        (b"", PinRequest()),
        (MAKE[:-1], PinRequest()),
        (ASSERT + b"\0", PinRequest()),
    ],
)
def test_what_a_request_is_about(request_: bytes, wanted: PinRequest):
    assert what_for(request_) == wanted


@given(st.sampled_from([b"\x01", b"\x02", b"\x06", b""]), st.binary(max_size=64))
def test_no_bytes_break_it(command: bytes, data: bytes):
    what_for(command + data)


class Desk:
    """Notes what it is asked and told; gives a PIN when it is let."""

    def __init__(self) -> None:
        self.asked: list[tuple[PinRequest, int | None]] = []
        self.told: list[Exception | None] = []
        self.is_asked = threading.Event()
        self.lets = threading.Event()

    def ask_pin(self, request: PinRequest, retries_left: int | None, cancelled: Callable[[], bool]) -> str | None:
        self.asked.append((request, retries_left))
        self.is_asked.set()
        while not self.lets.wait(0.01):
            if cancelled():
                return None
        return "648201"

    def on_pad(self, request: PinRequest, retries_left: int | None) -> None:
        self.asked.append((request, retries_left))

    def heard(self, failure: Exception | None) -> None:
        self.told.append(failure)


async def test_a_command_asks_for_itself_and_says_that_it_waits():
    desk, authenticator = Desk(), ScriptedAuthenticator()
    async with CommandRunner(authenticator, Grants(), pins=desk) as runner:
        running = runner.start(MAKE)
        await asyncio.to_thread(desk.is_asked.wait, 20)
        assert running.needs_user
        assert await running.wait(0) is None
        desk.lets.set()
        assert await running.wait(20) == b"\x00" + MAKE[1:]
        assert not running.needs_user
    assert desk.asked == [(PinRequest(Permission.MAKE_CREDENTIAL, "example.org", "ada"), 3)]
    assert authenticator.pins == ["648201"]
    assert desk.told == [None]


async def test_a_cancelled_command_takes_its_question_back():
    desk, authenticator = Desk(), ScriptedAuthenticator()
    async with CommandRunner(authenticator, Grants(), pins=desk) as runner:
        running = runner.start(ASSERT)
        await asyncio.to_thread(desk.is_asked.wait, 20)
        running.cancel()
        assert await running.wait(20)
    assert authenticator.pins == [None]


async def test_what_the_vault_said_is_told_to_whoever_gave_the_pin_and_in_the_events():
    desk, authenticator = Desk(), ScriptedAuthenticator()
    events: list[dict[str, object]] = []
    desk.lets.set()
    authenticator.failure, authenticator.response = WRONG, b"\x3f"
    async with CommandRunner(
        authenticator, Grants(), pins=desk, journal=lambda _, **told: events.append(told)
    ) as runner:
        await runner.start(TOKEN).wait(20)
        await runner.start(CRASH).wait(20)
    assert desk.told == [WRONG]  # and nothing of a command that asked for none
    assert events[0] == {
        "command": "clientPIN",
        "status": "UV_INVALID",
        "reason": "pin_wrong",
        "says": "The PIN is wrong. 2 tries are left.",
    }


async def test_without_anybody_to_ask_there_is_no_entry():
    authenticator = ScriptedAuthenticator()
    async with CommandRunner(authenticator, Grants()) as runner:
        await runner.start(MAKE).wait(20)
    assert authenticator.pins == []


def give(held: HeldPin) -> str | None:
    return held.ask_pin(PinRequest(), None, lambda: False)


def test_a_held_pin_is_given_again_and_again():
    held = HeldPin("648201")
    for _ in range(3):
        assert give(held) == "648201"
        held.heard(None)
    assert held.ask_pin(PinRequest(), None, lambda: True) is None
    assert "648201" not in repr(held)


@pytest.mark.parametrize("reason", [Reason.PIN_WRONG, Reason.PIN_BLOCKED, Reason.PIN_LAST_TRY])
@pytest.mark.parametrize("before", [[], [None]])
def test_one_that_was_not_taken_is_not_given_again(reason: Reason, before: list[None]):
    held = HeldPin("000000")
    for failure in (*before, DeviceError(reason, "No.")):
        give(held)
        held.heard(failure)
    with pytest.raises(DeviceError, match="not tried again") as refusal:
        give(held)
    assert refusal.value.reason is Reason.USER_CANCELLED


def test_a_card_that_was_pulled_costs_a_pin_that_was_taken_before_nothing():
    held = HeldPin("648201")
    give(held)
    held.heard(None)
    held.heard(AWAY)
    assert give(held) == "648201"
    new = HeldPin("648201")
    give(new)
    new.heard(AWAY)
    with pytest.raises(DeviceError):
        give(new)
