"""Whatever is sent as an event log is refused with a reason, or means what the quoted PCRs mean."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvouch.attestation.event_log import EventLog
from keyvouch.attestation.event_log_replay import replay, verify_event_log
from keyvouch.attestation.tpm import VerifiedQuote
from keyvouch.errors import EvidenceError, MalformedError
from support import event_logs as make
from support.event_log_vectors import SWEPT, sweep
from support.event_logs import SHA1, SHA256, Made
from support.mutations import damaged
from support.vectors import ROOT

REAL = (ROOT / "event-logs" / "tpm2-tools" / "event-sd-boot-fedora37.bin").read_bytes()
REAL_QUOTE = make.quote_with(replay(EventLog(REAL), SHA256))
BOOT = [make.locality(3), *make.good_boot()]
BOOT_LOG, BOOT_QUOTE = make.agile(BOOT), make.quote_of(BOOT, first=3)
PARTLY = make.quote_of(BOOT, {5, 7})
OLD_LOG, OLD_QUOTE = make.legacy(BOOT), make.quote_of(BOOT, bank=SHA1, first=3)

EVENTS = st.builds(
    Made,
    st.sampled_from((0, 1, 4, 5, 7, 8)),
    st.sampled_from((1, 3, 4, 8, 13, 0x80000001, 0x80000007)),
    st.sampled_from((b"", make.DONE, make.ERROR, make.DEBUGGER, make.EXIT_BOOT_SERVICES, make.secure_boot().measured)),
)


def check(data: bytes, good: bytes, quote: VerifiedQuote) -> None:
    try:
        found = verify_event_log(EventLog(data), quote=quote)
    except (MalformedError, EvidenceError):
        return
    assert found == verify_event_log(EventLog(good), quote=quote)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes(data: bytes) -> None:
    try:
        log = EventLog(data)
    except MalformedError:
        return
    assert log == data
    assert sum(len(event.data) for event in log.events) <= len(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_after_a_header(data: bytes) -> None:
    check(make.header() + data, BOOT_LOG, BOOT_QUOTE)


@settings(max_examples=300, deadline=None)
@given(damaged(REAL))
def test_damage_to_a_real_log(data: bytes) -> None:
    check(data, REAL, REAL_QUOTE)


@settings(max_examples=300, deadline=None)
@given(damaged(BOOT_LOG))
def test_damage(data: bytes) -> None:
    check(data, BOOT_LOG, BOOT_QUOTE)
    check(data, BOOT_LOG, PARTLY)


@settings(max_examples=200, deadline=None)
@given(damaged(OLD_LOG))
def test_damage_to_the_older_form(data: bytes) -> None:
    check(data, OLD_LOG, OLD_QUOTE)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=6))
def test_a_program_that_extends_more_cannot_improve_the_boot(more: list[Made]) -> None:
    """After a boot without Secure Boot a program extends what it likes, and tells the log as it likes."""
    events = [make.secure_boot(b"\x00"), *(make.done(pcr) for pcr in range(8)), *more]
    try:
        facts = verify_event_log(make.log_of(events), quote=make.quote_of(events)).facts
    except EvidenceError:
        return
    assert facts.secure_boot is False
    measured = {(event.register, event.measured) for event in more if event.extends}
    assert facts.debugger is ((7, make.DEBUGGER) in measured)
    assert facts.platform_errors == {pcr for pcr, data in measured if data == make.ERROR and pcr not in (1, 8)}


@pytest.mark.parametrize("file", SWEPT)
def test_a_flipped_bit_is_refused_or_means_nothing(file: str) -> None:
    """Every bit of the smallest log, some 600 of each other."""
    if file.endswith("event-sd-boot-fedora37.bin"):
        assert sweep(file, 8 * len(REAL)) == (10920, 9968)
    else:
        assert all(sweep(file, 600))
