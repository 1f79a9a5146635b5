"""What people are told of security keys: `doctor`, the card of a prompt, settings, and the words before a PIN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fido2.ctap import CtapDevice

from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.agent_settings import FILE, Fido2FileSettings, load_fido2_settings, load_settings
from keyvouch_agent.commands.decisions import touch_line
from keyvouch_agent.commands.findings import Finding
from keyvouch_agent.commands.security_key_findings import security_key_findings
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.pin_standing import tries_left
from keyvouch_agent.ports import Pin
from keyvouch_agent.prompts.card import pin_line
from keyvouch_agent.provider_shelf import ProviderMaker, ProviderShelf
from keyvouch_client.security_keys.discovery import ConnectedKey, Transport
from keyvouch_client.security_keys.pcsc import CardSlot
from support.agent_records import sample_enrolment
from support.roaming import Person, enrolled_on, provider_over
from support.security_keys import FORCE_PIN_CHANGE, GET_INFO, OPTIONS, Bench, KeyOnBench

NOBODY = ProviderShelf({})


class NoReaders:
    """`Readers` of a computer without one, or without the service."""

    def __init__(self, *slots: CardSlot, failure: DeviceError | None = None) -> None:
        self._slots = slots
        self._failure = failure

    def slots(self) -> Sequence[CardSlot]:
        if self._failure is not None:
            raise self._failure
        return self._slots

    def connect(self, reader: str) -> CtapDevice | None:
        return None


def found(bench: Bench, readers: NoReaders | None = None) -> list[Finding]:
    return security_key_findings(bench.keys, readers or NoReaders(), NOBODY, ())


def about(key: KeyOnBench) -> Finding:
    return found(Bench().put_in(key))[0]


def test_without_keys_and_readers_nothing_is_wrong() -> None:
    findings = found(Bench())
    assert [finding.check for finding in findings] == ["security keys", "smartcard readers"]
    assert all(finding.optional for finding in findings)


def test_a_key_is_described() -> None:
    key = KeyOnBench("Maker Key")
    key.set_pin()
    finding = about(key)
    assert finding.ok
    assert finding.check == "security key Maker Key"
    assert "USB, /dev/hidraw0" in finding.detail
    assert "FIDO_2_1" in finding.detail
    assert "PIN set, 8 tries left" in finding.detail
    assert not key.finger.asked


def without_pin(answer: dict[int, Any]) -> None:
    del answer[OPTIONS]["clientPin"]


@pytest.mark.parametrize(
    ("state", "said", "fix"),
    [
        ("no pin", "no PIN set", "enroll --provider fido2"),
        ("forced", "must be changed", "pin --provider fido2"),
        ("blocked", "PIN blocked", "Reset it"),
        ("cycle", "three wrong PINs", "put it in again"),
        ("bare", "neither a PIN nor", "Use a FIDO2 security key"),
        ("u2f", "U2F only", "Use a FIDO2 security key"),
        ("gone", "removed", "Connect it"),
    ],
)
def test_every_state_of_a_key_has_words_and_a_way_back(state: str, said: str, fix: str) -> None:
    key = KeyOnBench("Maker Key", ctap2=state != "u2f")
    if state not in {"no pin", "bare"}:
        key.set_pin()
    if state == "forced":
        key.says(FORCE_PIN_CHANGE, True)
    if state == "bare":
        key.changes[GET_INFO] = without_pin
    if state == "gone":
        key.fails = 0
    if state == "blocked":
        key.answers_retries(0)
    if state == "cycle":
        key.answers_retries(5, cycle=True)
    finding = about(key)
    assert not finding.ok
    assert finding.optional  # nobody is enrolled with a key
    assert said in finding.detail
    assert fix in finding.fix
    assert said in finding.line


def test_a_fingerprint_is_told() -> None:
    key = KeyOnBench()
    key.set_pin()
    key.says(OPTIONS, {"uv": True})
    assert "verifies you itself" in about(key).detail
    key.says(OPTIONS, {"uv": False})
    assert "no finger is enrolled" in about(key).detail


def test_a_key_that_may_not_be_opened_is_told_with_the_rule() -> None:
    trouble = DeviceError(Reason.AUTHENTICATOR_PERMISSION, "This user may not open it.", fix='KERNEL=="hidraw*"')
    shut = ConnectedKey("Shut", Transport.USB, "/dev/hidraw0", "1", lambda: KeyOnBench().device(), trouble)
    finding = found(Bench(trouble=[shut]))[0]
    assert (finding.detail, finding.fix, finding.ok) == (trouble.message, trouble.fix, False)


def test_readers_are_listed_or_what_is_missing() -> None:
    finding = found(Bench(), NoReaders(CardSlot("ACS ACR122U", 1, b"\x3b"), CardSlot("Slot", 0, b"")))[-1]
    assert finding.detail == "ACS ACR122U (a card), Slot (empty)"
    missing = DeviceError(Reason.READER_UNAVAILABLE, "The PC/SC service does not run.", fix="Install `pcscd`.")
    finding = found(Bench(), NoReaders(failure=missing))[-1]
    assert (finding.detail, finding.fix, finding.optional) == (missing.message, missing.fix, True)


# what comes before the PIN


@pytest.mark.parametrize(
    ("pin", "line"),
    [
        ({"pin_is_set": True, "retries_left": 8}, "8 PIN tries left"),
        ({"pin_is_set": True, "retries_left": 1}, "1 PIN try left: a wrong one blocks the PIN"),
        ({"pin_is_set": True, "retries_left": 0}, "PIN blocked"),
        ({"pin_is_set": True, "retries_left": None}, "PIN set"),
        ({"pin_is_set": False, "retries_left": 8}, "no PIN set"),
        ({"connected": False, "pin_is_set": False}, "not connected: connect it before you answer"),
        ({"connected": True, "asks_pin": False, "pin_is_set": True}, "verifies you itself"),
    ],
)
def test_where_the_pin_stands_is_on_the_card(pin: dict[str, object], line: str) -> None:
    assert pin_line(pin) == line


def test_the_last_try_is_said_to_be_the_last() -> None:
    assert tries_left(2) == "2 tries left"
    assert tries_left(1) == "1 try left: a wrong one blocks the PIN"


def test_what_happens_next_is_said() -> None:
    assert touch_line({"provider": "software"}, {}) == "Waiting for the server."
    assert "Touch" in touch_line({"provider": "fido2"}, {"connected": True})
    assert "Connect" in touch_line({"provider": "fido2"}, {"connected": False})


def test_an_empty_pin_is_none() -> None:
    told: list[str] = []
    given = GivenPin(Pin(""), tell=told.append)
    assert given.request_pin(8, 4) is None
    given.touch_needed()
    given.tell("Put it in again.")
    assert told == ["Touch the security key now.", "Put it in again."]


# settings


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


def test_settings_of_security_keys(home: Home) -> None:
    assert load_fido2_settings(home) == Fido2FileSettings(resident=False, protect=True)
    home.write(FILE, b'[tpm]\ntcti = "device:/dev/x"\n[fido2]\nresident = true\nprotect = false\n')
    assert load_fido2_settings(home) == Fido2FileSettings(resident=True, protect=False)
    assert load_settings(home).tcti == "device:/dev/x"


@pytest.mark.parametrize(
    "text", ["fido2 = 1", "[fido2]\ncolour = true", "[fido2]\nresident = 1", "[fido2]\nprotect = ''"]
)
def test_settings_that_are_none(home: Home, text: str) -> None:
    home.write(FILE, text.encode())
    for load in (load_fido2_settings, load_settings):
        with pytest.raises(KeyvouchError) as caught:
            load(home)
        assert caught.value.reason is Reason.CONFIGURATION
        assert caught.value.fix


def account_finding(key: KeyOnBench, then: Callable[[Bench], object]) -> Finding:
    """What is said of an account whose key is `key`, after something has happened in the ports."""
    bench = Bench().put_in(key)
    known = enrolled_on(bench, key, Person())
    enrolment = replace(sample_enrolment(credential_id=known.credential_id).enrolment, provider="fido2", account="one")
    shelf = ProviderShelf({"fido2": ProviderMaker(lambda _account: (provider_over(bench, known), lambda: None))})
    then(bench)
    return security_key_findings(bench.keys, NoReaders(), shelf, [enrolment])[-1]


def test_an_account_is_told_how_its_key_stands() -> None:
    key = KeyOnBench()
    key.set_pin()
    fine = account_finding(key, lambda _bench: None)
    assert (fine.ok, fine.detail) == (True, "Bench Key: 8 PIN tries left")
    gone = account_finding(key, lambda bench: bench.take_out(key))
    assert (gone.ok, gone.optional) == (False, True)
    assert "is not connected" in gone.detail
    other = account_finding(key, lambda bench: (bench.take_out(key), bench.put_in(KeyOnBench("Other"))))
    assert (other.ok, other.optional) == (False, True)
    assert "no key that is connected is" in other.detail
    assert "--replace" in other.fix
    blocked = account_finding(key, lambda _bench: key.answers_retries(0))
    assert (blocked.ok, blocked.optional) == (False, False)
    assert "PIN blocked" in blocked.detail
    assert "enrol again" in blocked.fix
