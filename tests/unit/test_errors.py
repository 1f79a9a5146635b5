"""Errors that travelled over a wire are made anew, also by a client that is older than the server."""

from __future__ import annotations

import pytest

from keyvouch.errors import (
    DeviceError,
    EvidenceError,
    KeyvouchError,
    MalformedError,
    Reason,
    ThrottledError,
    UsageError,
    error_for,
)


@pytest.mark.parametrize("kind", [MalformedError, EvidenceError, DeviceError, KeyvouchError])
def test_an_error_comes_back_as_what_it_was(kind: type[KeyvouchError]) -> None:
    error = error_for(kind.__name__, "trust_chain", "What happened.", fix="What to do.", metadata={"detail": "x"})
    assert type(error) is kind
    assert (error.reason, error.message, error.fix) == (Reason.TRUST_CHAIN, "What happened.", "What to do.")
    assert error.metadata == {"detail": "x"}
    assert str(error) == "What happened. What to do."


def test_an_unknown_reason_is_kept_for_people() -> None:
    error = error_for("EvidenceError", "reason_of_tomorrow", "What happened.")
    assert error.reason is Reason.INTERNAL
    assert error.metadata == {"reason": "reason_of_tomorrow"}


def test_an_unknown_kind_is_an_error_all_the_same() -> None:
    assert type(error_for("KindOfTomorrow", "throttled", "What happened.")) is KeyvouchError


def test_how_long_to_wait_survives() -> None:
    error = error_for("ThrottledError", "throttled", "Too many.", retry_after=3.5, fix="Wait.")
    assert isinstance(error, ThrottledError)
    assert (error.retry_after, error.fix, error.reason) == (3.5, "Wait.", Reason.THROTTLED)


def test_a_mistake_of_the_caller_has_one_reason() -> None:
    error = error_for("UsageError", "trust_chain", "Wrongly called.", fix="Look it up.")
    assert isinstance(error, UsageError)
    assert (error.reason, error.fix) == (Reason.USAGE, "Look it up.")


def test_tries_left_are_told_where_they_are_known() -> None:
    assert DeviceError(Reason.PIN_WRONG, "Wrong.", retries_left=2).retries_left == 2
    assert DeviceError(Reason.PIN_WRONG, "Wrong.").retries_left is None
