"""Event logs are read as PFP 1.06 section 10 writes them, and nothing else is."""

from __future__ import annotations

import pytest

from keyvouch.attestation.event_log import (
    MAX_EVENT_SIZE,
    MAX_EVENTS,
    MAX_LOG_SIZE,
    NO_REGISTER,
    PCR_COUNT,
    Event,
    EventLog,
)
from keyvouch.errors import MalformedError, Reason
from support import event_logs as make
from support.event_logs import IPL, NO_ACTION, SHA1, SHA256, Made

EVENT = Made(4, IPL, b"measured", b"shown")
DIGEST1, DIGEST256 = SHA1.digest(b"measured"), SHA256.digest(b"measured")
ONE = make.new_event(4, IPL, [(4, DIGEST1), (11, DIGEST256)], b"shown")
OLD = make.old_event(4, IPL, DIGEST1, b"shown")
VERSION = make.old_event(0, 8, DIGEST1, b"v")


def agile_one(*digests: tuple[int, bytes], body: bytes | None = None) -> bytes:
    return make.header(body) + make.new_event(4, IPL, digests, b"shown")


def test_crypto_agile() -> None:
    log = EventLog(make.header() + ONE)
    assert log.banks == {SHA1, SHA256}
    assert log.events == (Event(4, IPL, {SHA1: DIGEST1, SHA256: DIGEST256}, b"shown"),)
    assert log.startup_locality == 0
    assert log == make.header() + ONE
    assert repr(log) == "EventLog(1 events)"


def test_older_form() -> None:
    log = EventLog(OLD + OLD)
    assert log.banks == {SHA1}
    assert log.events == (Event(4, IPL, {SHA1: DIGEST1}, b"shown"),) * 2


def test_a_parsed_log_is_not_parsed_again() -> None:
    log = EventLog(OLD)
    assert EventLog(log) is log


def test_a_log_may_end_with_its_header() -> None:
    assert EventLog(make.header()).events == ()


def test_banks_may_be_left_out_of_an_event_and_come_in_any_order() -> None:
    assert EventLog(agile_one((11, DIGEST256))).events[0].digests == {SHA256: DIGEST256}
    assert EventLog(agile_one((11, DIGEST256), (4, DIGEST1))).events[0].digests == {SHA1: DIGEST1, SHA256: DIGEST256}


@pytest.mark.parametrize(
    ("number", "size", "known"),
    [
        (4, 20, True),
        (11, 32, True),
        (12, 48, True),
        (13, 64, True),
        (0x12, 32, False),
        (0x27, 32, False),
        (0x28, 48, False),
        (0x29, 64, False),
    ],
)
def test_every_algorithm_has_its_digest_size(number: int, size: int, known: bool) -> None:
    log = EventLog(agile_one((number, b"d" * size), body=make.spec_id([(number, size)])))
    assert log.banks == ({number} if known else set())
    assert log.events[0].digests == ({number: b"d" * size} if known else {})
    with pytest.raises(MalformedError):
        EventLog(make.header(make.spec_id([(number, size - 1)])))


def test_what_a_header_may_say() -> None:
    every = [(4, 20), (11, 32), (12, 48), (13, 64), (0x12, 32), (0x27, 32), (0x28, 48), (0x29, 64)]
    bodies = [
        make.spec_id(vendor=b"x" * 255),
        make.spec_id(platform=0xFFFFFFFF),
        make.spec_id(word_size=1),
        make.spec_id(every),
    ]
    for body in bodies:
        assert len(EventLog(make.header(body) + ONE).events) == 1


@pytest.mark.parametrize("text", [b"Spec ID Event02\0", b"Spec ID Event03", b"Spec ID Event0"])
def test_an_older_log_may_begin_with_another_header(text: bytes) -> None:
    log = EventLog(make.old_event(0, NO_ACTION, bytes(20), text) + OLD)
    assert log.banks == {SHA1}
    assert len(log.events) == 2


def test_only_no_action_makes_a_header() -> None:
    assert len(EventLog(make.old_event(0, IPL, bytes(20), make.spec_id()) + OLD).events) == 2


def test_extending_and_other_events() -> None:
    log = EventLog(make.agile([make.done(0), Made(NO_REGISTER, NO_ACTION, b"SP800-155 Event3"), make.done(1)]))
    assert [event.extends for event in log.events] == [True, False, True]


@pytest.mark.parametrize("value", [0, 3, 4])
def test_startup_locality(value: int) -> None:
    assert EventLog(make.agile([make.done(1), make.locality(value), EVENT])).startup_locality == value
    assert EventLog(make.legacy([make.locality(value), EVENT])).startup_locality == value


def test_only_no_action_tells_the_startup_locality() -> None:
    data = make.locality(3).shown
    assert EventLog(make.agile([Made(0, IPL, b"x", data)])).startup_locality == 0


@pytest.mark.parametrize(
    "events",
    [
        [make.locality(1)],
        [make.locality(255)],
        [Made(0, NO_ACTION, b"StartupLocality\0")],
        [Made(0, NO_ACTION, b"StartupLocality\0\x03\x00")],
        [Made(1, NO_ACTION, b"StartupLocality\0\x03")],
        [Made(NO_REGISTER, NO_ACTION, b"StartupLocality\0\x03")],
        [make.done(0), make.locality(3)],
        [make.done(0), make.done(1), make.locality(3)],
        [make.locality(3), make.locality(3)],
        [make.locality(0), make.locality(3)],
    ],
)
def test_startup_locality_comes_once_and_first(events: list[Made]) -> None:
    with pytest.raises(MalformedError) as refused:
        EventLog(make.agile(events))
    assert refused.value.metadata["check"] == "startup_locality"


REFUSED = {
    "nothing": (b"", "length"),
    "a cut header": (make.header()[:31], "length"),
    "cut data": ((make.header() + ONE)[:-1], "length"),
    "cut data of the older form": (OLD[:-1], "length"),
    "a byte more": (make.header() + ONE + b"\0", "length"),
    "padding with zeros": (make.header() + ONE + bytes(64), "digests"),
    "padding with ones": (make.header() + ONE + b"\xff" * 64, "register"),
    "padding with ones, older form": (OLD + b"\xff" * 64, "register"),
    "PCR 24": (make.header() + make.new_event(24, IPL, [(4, DIGEST1)], b""), "register"),
    "PCR 24, not extended": (make.header() + make.new_event(24, NO_ACTION, [(4, DIGEST1)], b""), "register"),
    "PCR 24, older form": (make.old_event(24, IPL, DIGEST1, b""), "register"),
    "no register, but extended": (make.header() + make.new_event(NO_REGISTER, IPL, [(4, DIGEST1)], b""), "register"),
    "no digest": (agile_one(), "digests"),
    "more digests than algorithms": (agile_one((4, DIGEST1), (11, DIGEST256), (12, b"d" * 48)), "digests"),
    "an undeclared algorithm": (agile_one((12, b"d" * 48)), "digests"),
    "a doubled algorithm": (agile_one((4, DIGEST1), (4, DIGEST1)), "digests"),
    "RTMRs": (make.header(register=1) + ONE, "ccel"),
    "an ACPI table": (b"CCEL" + bytes(60), "ccel"),
    "a canonical log": (b"\0\0\0\0\x08" + bytes(8) + b"\x01\0\0\0\x04" + bytes(60), "canonical"),
    "a header of PCR 2": (make.header(register=2), "header"),
    "a header with a digest": (make.header(digest=bytes(19) + b"\x01"), "header"),
    "version 1": (make.header(make.spec_id(major=1)), "header"),
    "version 3": (make.header(make.spec_id(major=3)), "header"),
    "no word size": (make.header(make.spec_id(word_size=0)), "header"),
    "word size of 3": (make.header(make.spec_id(word_size=3)), "header"),
    "no algorithm": (make.header(make.spec_id([])), "header"),
    "more algorithms than there are": (make.header(make.spec_id([(4, 20)] * 9)), "header"),
    "a doubled declaration": (make.header(make.spec_id([(4, 20), (4, 20)])), "header"),
    "an unknown algorithm": (make.header(make.spec_id([(5, 20)])), "header"),
    "a digest size too large": (make.header(make.spec_id([(4, 21)])), "header"),
    "bytes after the header": (make.header(make.spec_id() + b"\0"), "header"),
    "a cut maker's part": (make.header(make.spec_id(vendor=b"xy")[:-1]), "length"),
    "a cut list of algorithms": (make.header(make.spec_id()[:35]), "length"),
    "no version": (make.header(b"Spec ID Event03\0"), "length"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_malformed(name: str) -> None:
    data, check = REFUSED[name]
    with pytest.raises(MalformedError) as refused:
        EventLog(data)
    assert refused.value.reason is Reason.TPM_EVENT_LOG
    assert refused.value.metadata["check"] == check
    assert refused.value.fix


def test_the_last_pcr_and_no_register() -> None:
    assert EventLog(make.legacy([Made(PCR_COUNT - 1, IPL, b"")])).events[0].register == 23
    assert EventLog(make.legacy([Made(NO_REGISTER, NO_ACTION, b"x")])).events[0].register == NO_REGISTER


def test_an_older_log_that_begins_like_a_canonical_one() -> None:
    assert EventLog(VERSION).events[0].type == 8
    with_a_zero = make.old_event(0, 8, bytes(4) + b"\x01" * 16, b"v")
    assert EventLog(with_a_zero).events[0].digests == {SHA1: bytes(4) + b"\x01" * 16}


def test_limits() -> None:
    assert (MAX_LOG_SIZE, MAX_EVENTS, MAX_EVENT_SIZE) == (1 << 20, 8192, 1 << 18)
    assert (PCR_COUNT, NO_REGISTER) == (24, 0xFFFFFFFF)


def test_largest_event() -> None:
    assert len(EventLog(make.old_event(4, IPL, DIGEST1, bytes(MAX_EVENT_SIZE))).events[0].data) == MAX_EVENT_SIZE
    with pytest.raises(MalformedError) as refused:
        EventLog(make.old_event(4, IPL, DIGEST1, bytes(MAX_EVENT_SIZE + 1)))
    assert refused.value.metadata["check"] == "event_size"


def test_longest_log() -> None:
    large = make.old_event(4, IPL, DIGEST1, bytes(MAX_EVENT_SIZE - 32))
    log = large * (MAX_LOG_SIZE // len(large))
    assert len(log) == MAX_LOG_SIZE
    assert len(EventLog(log).events) == 4
    with pytest.raises(MalformedError) as refused:
        EventLog(log + b"\0")
    assert refused.value.metadata["check"] == "size"


@pytest.mark.parametrize("start", [b"", make.header(make.spec_id([(4, 20)]))])
def test_most_events(start: bytes) -> None:
    event = make.new_event(4, IPL, [(4, DIGEST1)], b"") if start else make.old_event(4, IPL, DIGEST1, b"")
    assert len(EventLog(start + event * MAX_EVENTS).events) == MAX_EVENTS
    with pytest.raises(MalformedError) as refused:
        EventLog(start + event * (MAX_EVENTS + 1))
    assert refused.value.metadata["check"] == "count"
