"""What a quote proves of an event log, and what nobody can make it say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyvouch.attestation.event_log import EventLog
from keyvouch.attestation.event_log_replay import BootFacts, VerifiedEventLog, replay, verify_event_log
from keyvouch.attestation.tpm import VerifiedQuote
from keyvouch.errors import EvidenceError, Reason
from support import event_logs as make
from support.event_logs import (
    CONFIG_FLAGS,
    DEBUGGER,
    DONE,
    EFI_ACTION,
    ERROR,
    EXIT_BOOT_SERVICES,
    IPL,
    NO_ACTION,
    SEPARATOR,
    SHA1,
    SHA256,
    SHA384,
    VARIABLE,
    Made,
)

DONE_TOO = b"\xff\xff\xff\xff"
DB = Made(7, VARIABLE, make.variable("db", b"a list"))


def verified(events: list[Made], pcrs: range | set[int] = range(16)) -> VerifiedEventLog:
    return verify_event_log(make.log_of(events), quote=make.quote_of(events, pcrs))


def refusal(log: EventLog, quote: VerifiedQuote) -> tuple[str, str | None]:
    with pytest.raises(EvidenceError) as refused:
        verify_event_log(log, quote=quote)
    assert refused.value.reason is Reason.TPM_EVENT_LOG_REPLAY
    assert refused.value.fix
    return refused.value.metadata["check"], refused.value.metadata.get("pcr")


def pcr7(*events: Made) -> list[Made]:
    """A boot of which only PCR 7 is told."""
    return list(events)


# Replay and verification


def test_control_a_good_boot() -> None:
    events = make.good_boot()
    found = verified(events)
    assert found.bank is SHA256
    assert found.digests == {
        pcr: tuple(event.digest(SHA256) for event in events if event.register == pcr) for pcr in range(16)
    }
    assert found.facts == BootFacts(
        secure_boot=True, debugger=False, exit_boot_services=True, platform_errors=frozenset()
    )


def test_replay_of_every_bank() -> None:
    events = [*make.good_boot(), Made(15, IPL, b"the last of the boot"), Made(16, IPL, b"a debugger's")]
    log = make.log_of(events)
    for bank in (SHA1, SHA256):
        expected = make.quote_of(events, {*range(9), 15}, bank).pcr_values
        assert replay(log, bank) == expected
    older = EventLog(make.legacy(events))
    assert replay(older, SHA1) == replay(log, SHA1)


def test_replay_begins_at_the_startup_locality() -> None:
    events = [make.locality(3), *make.good_boot()]
    assert replay(make.log_of(events), SHA256)[0] == make.quote_of(events, {0}, first=3).pcr_values[0]
    assert replay(make.log_of(events), SHA256)[1] == make.quote_of(events, {1}).pcr_values[1]
    assert verify_event_log(make.log_of(events), quote=make.quote_of(events, first=3)).facts.secure_boot
    assert refusal(make.log_of(events), make.quote_of(events)) == ("value", "0")
    assert refusal(make.log_of(make.good_boot()), make.quote_of(events, first=3)) == ("value", "0")


def test_replay_needs_the_bank_in_every_event() -> None:
    log = make.log_of([make.done(0), replace(make.done(1), banks=(SHA1,))])
    assert replay(log, SHA1).keys() == {0, 1}
    with pytest.raises(EvidenceError) as refused:
        replay(log, SHA256)
    assert refused.value.metadata == {"check": "digest", "pcr": "1"}


def test_events_that_extend_nothing_prove_nothing() -> None:
    events = make.good_boot()
    more = [
        Made(0, NO_ACTION, b"SP800-155 Event3"),
        *events,
        Made(7, NO_ACTION, b"x"),
        Made(0xFFFFFFFF, NO_ACTION, b""),
    ]
    assert verify_event_log(make.log_of(more), quote=make.quote_of(events)) == verified(events)


def test_events_of_other_pcrs_are_left_out() -> None:
    assert verified(make.good_boot(), {7, 8}).digests.keys() == {7, 8}
    liar = [*make.good_boot(), Made(3, IPL, b"never extended")]
    quote = make.quote_of(make.good_boot(), {4, 7})
    assert verify_event_log(make.log_of(liar), quote=quote) == verified(make.good_boot(), {4, 7})


def test_only_pcrs_of_the_boot_are_accounted_for() -> None:
    events = [*make.good_boot(), Made(15, IPL, b"x"), Made(16, IPL, b"x"), Made(17, IPL, b"x")]
    quote = make.quote_of(events)
    wide = make.quote_with({**quote.pcr_values, 16: bytes(32), 17: b"\xff" * 32, 23: bytes(32)})
    assert verify_event_log(make.log_of(events), quote=wide).digests.keys() == set(range(16))
    assert refusal(make.log_of(events), make.quote_with({16: bytes(32), 17: bytes(32)})) == ("unextended", None)


def test_the_result_cannot_be_changed() -> None:
    found = verified(make.good_boot())
    with pytest.raises(TypeError):
        found.digests[7] = ()  # type: ignore[index]


@pytest.mark.parametrize("pcr", range(9))
def test_another_value_is_refused(pcr: int) -> None:
    events = make.good_boot()
    values = dict(make.quote_of(events).pcr_values)
    values[pcr] = values[pcr][:-1] + bytes((values[pcr][-1] ^ 1,))
    assert refusal(make.log_of(events), make.quote_with(values)) == ("value", str(pcr))


def test_a_pcr_that_somebody_else_extended_is_refused() -> None:
    quote = make.quote_with({**make.quote_of(make.good_boot()).pcr_values, 10: b"\x01" * 32})
    assert refusal(make.log_of(make.good_boot()), quote) == ("value", "10")


@pytest.mark.parametrize("change", ["left out", "added", "swapped"])
def test_other_events_are_refused(change: str) -> None:
    events = make.good_boot()
    told = list(events)
    if change == "left out":
        del told[2]
    elif change == "added":
        told.append(DB)
    else:
        told[1], told[2] = told[2], told[1]
    assert refusal(make.log_of(told), make.quote_of(events)) == ("value", "7")


def test_the_order_of_different_pcrs_means_nothing() -> None:
    events = make.good_boot()
    other = sorted(events, key=lambda event: -event.register)
    assert verify_event_log(make.log_of(other), quote=make.quote_of(events)) == verified(events)


# Banks that nobody extended (CVE-2021-42299)


def test_bank_the_log_does_not_declare() -> None:
    events = make.good_boot()
    assert refusal(make.log_of(events), make.quote_with(dict.fromkeys(range(8), bytes(48)), SHA384)) == ("bank", None)
    assert refusal(EventLog(make.legacy(events)), make.quote_of(events)) == ("bank", None)


def test_bank_without_events() -> None:
    zeros = make.quote_with(dict.fromkeys(range(16), bytes(32)))
    assert refusal(make.log_of([]), zeros) == ("unextended", None)
    assert refusal(make.log_of([Made(0, NO_ACTION, b"x"), Made(16, IPL, b"x")]), zeros) == ("unextended", None)
    assert refusal(make.log_of(make.good_boot()), make.quote_with({9: bytes(32), 10: bytes(32)})) == (
        "unextended",
        None,
    )


def test_unextended_pcr_beside_extended_ones() -> None:
    events = make.good_boot()
    quote = make.quote_with({**make.quote_of(events).pcr_values, 7: bytes(32)})
    assert refusal(make.log_of(events), quote) == ("unextended", "7")
    at_locality = [make.locality(4), *events]
    quote = make.quote_with({**make.quote_of(events).pcr_values, 0: bytes(31) + b"\x04"})
    assert refusal(make.log_of(at_locality), quote) == ("unextended", "0")


def test_events_that_only_other_banks_have() -> None:
    events = [replace(event, banks=(SHA1,)) if event.register == 7 else event for event in make.good_boot()]
    assert refusal(make.log_of(events), make.quote_of(events)) == ("digest", "7")
    assert verified(events, {*range(7), 8}).facts.secure_boot is None


def test_firmware_pcr_without_events() -> None:
    events = [event for event in make.good_boot() if event.register != 3]
    assert refusal(make.log_of(events), make.quote_of(events)) == ("separator", "3")


# Separators


@pytest.mark.parametrize("pcr", range(8))
@pytest.mark.parametrize("count", [0, 2])
def test_firmware_pcrs_have_one_separator(pcr: int, count: int) -> None:
    events = [event for event in make.good_boot() if (event.register, event.type) != (pcr, SEPARATOR)]
    events += [Made(pcr, IPL, b"something"), *[make.done(pcr)] * count]
    assert refusal(make.log_of(events), make.quote_of(events)) == ("separator", str(pcr))


def test_the_first_pcr_in_trouble_is_named() -> None:
    events = [Made(pcr, IPL, b"something") for pcr in range(8)]
    assert refusal(make.log_of(events), make.quote_of(events)) == ("separator", "0")
    assert refusal(make.log_of(events), make.quote_with(dict.fromkeys((5, 3), b"\x01" * 32))) == ("value", "3")


@pytest.mark.parametrize("data", [DONE, DONE_TOO])
def test_control_separators(data: bytes) -> None:
    assert verified([make.done(pcr, data) for pcr in range(8)]).facts.platform_errors == frozenset()


@pytest.mark.parametrize(
    ("measured", "shown"),
    [
        (b"", b""),
        (b"\x00", b"\x00"),
        (b"WBCL", b"WBCL"),
        (b"\x02\x00\x00\x00", b"\x02\x00\x00\x00"),
        (DONE, b""),
        (DONE, DONE_TOO),
        (DONE_TOO, DONE),
        (ERROR, DONE),
        (DONE, ERROR),
    ],
)
def test_separators_that_separate_nothing(measured: bytes, shown: bytes) -> None:
    events = [Made(2, SEPARATOR, measured, shown)]
    assert refusal(make.log_of(events), make.quote_of(events, {2})) == ("separator", "2")


def test_other_pcrs_have_separators_of_their_own() -> None:
    assert verified([make.done(8, b"WBCL"), make.done(8, b"")], {8}).digests.keys() == {8}


@pytest.mark.parametrize("shown", [ERROR, b"", b"what went wrong"])
def test_errors_of_the_firmware_are_told(shown: bytes) -> None:
    events = [Made(pcr, SEPARATOR, ERROR, shown) for pcr in range(8)]
    assert verified(events).facts == BootFacts(None, False, False, frozenset(range(8)))
    assert verified(events, {2}).facts == BootFacts(None, None, None, frozenset({2}))


@pytest.mark.parametrize("end", [DONE, DONE_TOO])
def test_configuration_flags_are_no_errors(end: bytes) -> None:
    assert verified([Made(1, CONFIG_FLAGS, ERROR), make.done(1, end)], {1}).facts.platform_errors == frozenset()


@pytest.mark.parametrize("pcr", [0, 2, 3, 4, 5, 6, 7])
def test_errors_are_told_whatever_the_log_calls_them(pcr: int) -> None:
    assert verified([Made(pcr, IPL, ERROR), make.done(pcr)], {pcr}).facts.platform_errors == {pcr}


def test_other_pcrs_have_no_errors() -> None:
    assert verified([Made(8, SEPARATOR, ERROR)], {8}).facts.platform_errors == frozenset()


# Facts


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (pcr7(make.secure_boot(b"\x01"), DB, make.done(7)), True),
        (pcr7(make.secure_boot(b"\x01"), make.done(7, DONE_TOO)), True),
        (pcr7(make.secure_boot(b"\x00"), DB, make.done(7)), False),
        (pcr7(make.secure_boot(b""), DB, make.done(7)), False),
        (pcr7(make.secure_boot(b"\x02"), DB, make.done(7)), None),
        (pcr7(make.secure_boot(b"\x01\x00"), DB, make.done(7)), None),
        (pcr7(Made(7, VARIABLE, make.variable("SecureBooT", b"\x01")), make.done(7)), None),
        (pcr7(Made(7, VARIABLE, make.variable("SecureBoot", b"\x01", "00" * 16)), make.done(7)), None),
        (pcr7(Made(7, VARIABLE, b"\x01"), make.done(7)), None),
        (pcr7(make.done(7)), None),
        (pcr7(DB, make.done(7)), None),
        (pcr7(DB, make.secure_boot(), make.done(7)), None),
        (pcr7(make.done(7), make.secure_boot()), None),
        (pcr7(make.done(7, DONE_TOO), make.secure_boot()), None),
        (pcr7(make.secure_boot(b"\x00"), make.secure_boot(b"\x01"), make.done(7)), None),
        (pcr7(make.secure_boot(b"\x01"), make.secure_boot(b"\x01"), make.done(7)), None),
        (pcr7(make.secure_boot(b"\x00"), make.done(7), make.secure_boot(b"\x01")), False),
        (pcr7(make.secure_boot(b"\x01"), make.done(7), make.secure_boot(b"\x00")), True),
        (pcr7(Made(7, EFI_ACTION, DEBUGGER), make.secure_boot(b"\x01"), make.done(7)), True),
        (pcr7(Made(7, EFI_ACTION, b"another action"), make.secure_boot(b"\x01"), make.done(7)), None),
        (pcr7(make.secure_boot(b"\x01"), make.done(7, ERROR)), True),
        (pcr7(make.done(7, ERROR), make.secure_boot(b"\x01")), None),
    ],
)
def test_secure_boot(events: list[Made], expected: bool | None) -> None:
    assert verified(events, {7}).facts.secure_boot is expected


@pytest.mark.parametrize("ends", [(DONE, DONE_TOO), (DONE_TOO, DONE)])
def test_the_firmware_ends_with_the_first_separator_whatever_the_log_calls_it(ends: tuple[bytes, bytes]) -> None:
    """A program that takes over after a boot without Secure Boot extends a second, better boot, and relabels."""
    forged = [Made(7, IPL, ends[0], b"x"), make.secure_boot(), make.done(7, ends[1])]
    assert verified([make.secure_boot(b"\x00"), *forged], {7}).facts.secure_boot is False
    assert verified(forged, {7}).facts.secure_boot is None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debugger(place: int) -> None:
    events = [make.secure_boot(), make.done(7)]
    assert verified(events, {7}).facts.debugger is False
    events.insert(place, Made(7, IPL, DEBUGGER, b"nothing to see"))
    assert verified(events, {7}).facts.debugger is True


def test_exit_boot_services() -> None:
    events = [make.done(5), Made(5, EFI_ACTION, EXIT_BOOT_SERVICES)]
    assert verified(events, {5}).facts.exit_boot_services is True
    assert verified(events[:1], {5}).facts.exit_boot_services is False


def test_facts_of_pcrs_that_are_not_quoted_are_not_known() -> None:
    events = make.good_boot()
    assert verified(events, {0}).facts == BootFacts(None, None, None, frozenset())
    assert verified(events, {5}).facts == BootFacts(None, None, True, frozenset())
    assert verified(events, {7}).facts == BootFacts(True, False, None, frozenset())


def test_actions_count_in_their_own_pcr_only() -> None:
    events = [*make.good_boot()[:-1], Made(4, EFI_ACTION, EXIT_BOOT_SERVICES), Made(5, EFI_ACTION, DEBUGGER)]
    assert verified(events).facts == BootFacts(True, False, False, frozenset())


def test_what_the_log_calls_an_event_and_shows_of_it_changes_nothing() -> None:
    events = make.good_boot()
    expected = verified(events)
    for index, event in enumerate(events):
        if event.type == SEPARATOR:
            continue
        for lie in (replace(event, type=IPL), replace(event, data=make.secure_boot(b"\x00").measured)):
            told = [*events[:index], lie, *events[index + 1 :]]
            assert verify_event_log(make.log_of(told), quote=make.quote_of(events)) == expected


def test_digests_of_other_banks_change_nothing() -> None:
    events = make.good_boot()
    told = [replace(event, banks=(SHA256,), extra={SHA1: b"\x55" * 20}) for event in events]
    assert verify_event_log(make.log_of(told), quote=make.quote_of(events)) == verified(events)
