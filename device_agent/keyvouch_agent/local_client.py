"""The commands' end of the local API: plain blocking calls, light to import."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from keyvouch.errors import DeviceError, KeyvouchError, Reason, UnavailableError, error_for
from keyvouch_agent.home import Home
from keyvouch_agent.local_socket import connect_socket
from keyvouch_agent.strict_json import dump_object

__all__ = ["borrow_providers", "call_agent", "watch_agent"]

_LONGEST_ANSWER = 1 << 20


def call_agent(home: Home, op: str, *, seconds: float = 60.0, **fields: str) -> dict[str, object]:
    """Ask the running agent and return its answer.

    Raises what the agent raised, or `UnavailableError(AGENT_NOT_RUNNING)`.
    """
    with connect_socket(home, seconds=seconds) as connection:
        try:
            _say(connection, {"op": op, **fields})
            with connection.makefile("rb") as answers:
                return _ok(answers.readline(_LONGEST_ANSWER))
        except OSError as error:
            raise _gone() from error


def watch_agent(home: Home) -> Iterator[dict[str, object]]:
    """Events of the running agent, until it ends."""
    with connect_socket(home, seconds=60.0) as connection:
        _say(connection, {"op": "watch"})
        with connection.makefile("rb") as events:
            _ok(events.readline(_LONGEST_ANSWER))
            connection.settimeout(None)
            while line := events.readline(_LONGEST_ANSWER):
                yield _object(line)


@contextmanager
def borrow_providers(home: Home) -> Iterator[bool]:
    """Have the running agent let go of the key providers for the block, then take up what is new in the ledger.

    Gives False where no agent runs; then there is nothing to borrow.
    """
    try:
        connection = connect_socket(home, seconds=60.0)
    except UnavailableError:
        yield False
        return
    with connection:
        _say(connection, {"op": "lend"})
        with connection.makefile("rb") as answers:
            _ok(answers.readline(_LONGEST_ANSWER))
        yield True
    call_agent(home, "reload")


def _say(connection: socket.socket, request: Mapping[str, str]) -> None:
    # An agent that refuses the caller says so and hangs up without listening: its answer is there all the same.
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(dump_object(request))


def _ok(line: bytes) -> dict[str, object]:
    document = _object(line)
    error = document.get("error")
    if isinstance(error, dict):
        raise _error(error)
    result = document.get("ok")
    if not isinstance(result, dict):
        raise _gone()
    return result


def _object(line: bytes) -> dict[str, object]:
    try:
        document = json.loads(line)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _gone()
    return document


def _error(document: Mapping[str, object]) -> KeyvouchError:
    found = document.get("metadata")
    metadata = {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
    kind, reason, message, fix = (str(document.get(name, "")) for name in ("kind", "reason", "message", "fix"))
    error = error_for(kind, reason, message, fix=fix, metadata=metadata)
    retries = document.get("retries_left")
    if isinstance(error, DeviceError) and isinstance(retries, int):
        error.retries_left = retries
    return error


def _gone() -> UnavailableError:
    return UnavailableError(
        Reason.AGENT_NOT_RUNNING,
        "The agent ended before it had answered.",
        fix="Look at its log, start it with `keyvouch-agent run`, and list the prompts again.",
    )
