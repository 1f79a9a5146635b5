"""The agent's log: one line per event, no secrets, nothing that forges a line."""

from __future__ import annotations

import io

from keyvouch_agent.agent_ports import LinkState, Secret
from keyvouch_agent.logs import open_log
from keyvouch_agent.ports import Pin


def test_an_event_is_one_line_with_its_fields() -> None:
    stream = io.StringIO()
    open_log(stream).info("link", device="dev_x", state=LinkState.CONNECTED, tries=3)
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('Z INFO link device="dev_x" state="connected" tries=3')


def test_text_of_a_peer_stays_inside_its_quotes() -> None:
    stream = io.StringIO()
    open_log(stream).warning("refused", detail='x"\n2026-01-01T00:00:00Z INFO forged\x1b[2J\u202e' + "y" * 5000)
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert line.isascii()
    assert len(line) < 1000


def test_secrets_are_asterisks_by_name_and_by_type() -> None:
    stream = io.StringIO()
    log = open_log(stream)
    log.error("event", pin="canary", access_pass="canary", refresh_token="canary", channel_key="canary")
    log.error("event", value=Pin("canary"), other=Secret("canary"))
    assert "canary" not in stream.getvalue()
    assert "canary" not in repr(Secret("canary")) + str(Secret("canary"))


def test_quiet_below_the_level() -> None:
    stream = io.StringIO()
    log = open_log(stream)
    log.debug("detail")
    assert stream.getvalue() == ""
