"""What a security review found, where no server is needed to show it."""

from __future__ import annotations

import time

import pytest

from keyvouch.errors import MalformedError, Reason
from keyvouch_server.domain.names import MAX_TYPED, check_name, name_key
from keyvouch_server.use_cases.access_passes import CreatedPass
from keyvouch_server.use_cases.registration import BegunRegistration
from keyvouch_server.use_cases.sessions import IssuedSession
from keyvouch_server.use_cases.sign_in import BegunSignIn

ACCENTS = "a" + "\u0301" * 15_000 + "\u0323" * 15_000
"""Marks in the wrong order: Unicode normalisation sorts them in a time that grows with the square of their number."""


def test_a_name_that_is_too_long_is_not_even_folded_G3() -> None:
    started = time.thread_time()
    assert name_key(ACCENTS) == name_key("a" * (MAX_TYPED + 1)) == ""
    with pytest.raises(MalformedError) as refusal:
        check_name(ACCENTS, "name")
    assert refusal.value.reason is Reason.FIELD_INVALID
    assert time.thread_time() - started < 0.3  # two seconds and more before
    assert name_key(" \u212bngstr\u00f6m ") == name_key("\u00c5NGSTRO\u0308M")
    assert len(name_key("a" * MAX_TYPED)) == MAX_TYPED


@pytest.mark.parametrize(
    ("record", "secrets"),
    [
        (CreatedPass, {"code"}),
        (BegunRegistration, {"token"}),
        (BegunSignIn, {"token"}),
        (IssuedSession, {"access_token", "refresh_token"}),
    ],
)
def test_records_that_carry_secrets_do_not_print_them_G6(record: type, secrets: set[str]) -> None:
    values = {name: f"canary-{name}" for name in record.__dataclass_fields__}  # type: ignore[attr-defined]
    shown = repr(record(**values))
    assert {name for name in values if f"canary-{name}" not in shown} == secrets
