"""The agent's socket: whose it is, who may speak, and what it makes of nonsense (security A1)."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from keyvouch.errors import (
    DeviceError,
    KeyvouchError,
    MalformedError,
    NotFoundError,
    PermissionDeniedError,
    Reason,
    UnavailableError,
)
from keyvouch_agent import bootstrap
from keyvouch_agent.home import Home
from keyvouch_agent.local_api import LocalApi
from keyvouch_agent.local_client import borrow_providers, call_agent, watch_agent
from keyvouch_agent.local_socket import LONGEST_LINE, bind_socket, check_peer, connect_socket
from keyvouch_agent.logs import open_log


@pytest.fixture
def home(tmp_path: Path) -> Home:
    deep = tmp_path / ("deep-" * 20)  # longer than a UNIX socket's path may be
    deep.mkdir()
    return Home.open(deep / "home")


@asynccontextmanager
async def serving(home: Home, *, uid: int | None = None) -> AsyncIterator[io.StringIO]:
    """An agent without enrolments behind its socket; gives the log."""
    logged = io.StringIO()
    log = open_log(logged)
    agent = bootstrap.build_agent(home=home, log=log).agent
    api = LocalApi(agent, home=home, log=log, uid=uid)
    await api.start()
    try:
        yield logged
    finally:
        await api.close()


async def ask(home: Home, op: str, **fields: str) -> dict[str, object]:
    return await asyncio.to_thread(call_agent, home, op, seconds=5.0, **fields)


async def say(home: Home, data: bytes) -> list[dict[str, object]]:
    """Send bytes, hang up the sending side, and return every answer."""

    def talk() -> bytes:
        with closing(connect_socket(home, seconds=5.0)) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the agent had heard enough
            try:
                with connection.makefile("rb") as answers:
                    return answers.read()
            except ConnectionResetError:
                return b""  # it hung up on what was still on its way

    return [json.loads(line) for line in (await asyncio.to_thread(talk)).splitlines()]


async def test_the_socket_is_private_and_goes_away(home: Home) -> None:
    async with serving(home):
        found = (home.path / "agent.sock").lstat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert await ask(home, "status") == {"enrolments": []}
    assert not (home.path / "agent.sock").exists()


async def test_the_socket_is_private_whatever_the_umask(home: Home) -> None:
    before = os.umask(0)
    try:
        async with serving(home):
            assert stat.S_IMODE((home.path / "agent.sock").lstat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("own", [True, False])
async def test_only_the_own_user_is_heard(home: Home, own: bool) -> None:
    async with serving(home, uid=os.geteuid() if own else os.geteuid() + 1) as logged:
        if own:
            assert await ask(home, "pending") == {"prompts": []}
            return
        with pytest.raises(PermissionDeniedError) as caught:
            await ask(home, "pending")
        assert caught.value.reason is Reason.CREDENTIALS_INVALID
        assert f'uid="{os.geteuid()}"' in logged.getvalue()


def test_the_kernel_says_who_the_other_end_is() -> None:
    one, other = socket.socketpair()
    with one, other:
        check_peer(one, uid=os.geteuid())
        with pytest.raises(PermissionDeniedError):
            check_peer(one, uid=os.geteuid() + 1)


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_something_else_in_the_sockets_place_is_refused(home: Home, tmp_path: Path, kind: str) -> None:
    path = home.path / "agent.sock"
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    with pytest.raises(DeviceError) as caught:
        bind_socket(home)
    assert caught.value.reason is Reason.VAULT_PERMISSIONS
    assert not (tmp_path / "elsewhere").exists()


def test_a_dead_agents_socket_is_replaced(home: Home) -> None:
    bind_socket(home).close()
    with pytest.raises(UnavailableError) as caught:
        connect_socket(home, seconds=1.0)
    assert caught.value.reason is Reason.AGENT_NOT_RUNNING
    with bind_socket(home), connect_socket(home, seconds=1.0):
        pass


def test_a_home_open_to_others_is_not_spoken_into(home: Home) -> None:
    with bind_socket(home):
        home.path.chmod(0o755)
        with pytest.raises(DeviceError) as caught:
            connect_socket(home, seconds=1.0)
        assert caught.value.reason is Reason.VAULT_PERMISSIONS
        home.path.chmod(0o700)
        connect_socket(home, seconds=1.0).close()


NONSENSE = {
    "not JSON": b"hello\n",
    "no object": b"[1]\n",
    "no operation": b"{}\n",
    "unknown operation": b'{"op": "format"}\n',
    "operation of another type": b'{"op": 1}\n',
    "a name twice": b'{"op": "status", "op": "stop"}\n',
    "a field too many": b'{"op": "status", "pin": "1"}\n',
    "a field missing": b'{"op": "approve", "prompt_id": "x", "number": "07"}\n',
    "a number as number": b'{"op": "approve", "prompt_id": "x", "number": 7, "pin": "1"}\n',
    "a last try that is none": b'{"op": "approve", "prompt_id": "x", "number": "07", "pin": "1", "last_try": "no"}\n',
    "a last try of nothing": b'{"op": "deny", "prompt_id": "x", "last_try": "yes"}\n',
    "an endless PIN": b'{"op": "approve", "prompt_id": "x", "number": "07", "pin": "' + b"1" * 300 + b'"}\n',
    "not UTF-8": b'{"op": "\xff"}\n',
    "a lone surrogate": b'{"op": "deny", "prompt_id": "\\ud800"}\n',
    "deep": b"[" * 15_000 + b"\n",
    "too long": b" " * (LONGEST_LINE + 10) + b"\n",
    "unfinished": b'{"op": "status"}',
}


@pytest.mark.parametrize("kind", NONSENSE)
async def test_nonsense_gets_one_coded_answer_and_hurts_nobody(home: Home, kind: str) -> None:
    async with serving(home):
        (answer,) = await say(home, NONSENSE[kind])
        error = answer["error"]
        assert isinstance(error, dict)
        assert (error["kind"], error["reason"]) == ("MalformedError", "encoding")
        assert error["fix"]
        assert await ask(home, "status") == {"enrolments": []}


async def test_an_endless_line_is_cut_off(home: Home) -> None:
    async with serving(home):
        answers = await say(home, b"x" * 5_000_000)
        assert len(answers) <= 1
        assert await ask(home, "pending") == {"prompts": []}


async def test_many_silent_connections_leave_room_again(home: Home) -> None:
    async with serving(home):
        crowd = [connect_socket(home, seconds=1.0) for _ in range(32)]
        await asyncio.sleep(0.1)
        with pytest.raises(KeyvouchError):
            await ask(home, "status")
        for connection in crowd:
            connection.close()
        await asyncio.sleep(0.1)
        assert await ask(home, "status") == {"enrolments": []}


async def test_errors_keep_their_kind_over_the_socket(home: Home) -> None:
    async with serving(home):
        with pytest.raises(NotFoundError) as caught:
            await ask(home, "approve", prompt_id="prm_x", number="07", pin="123456")
        assert caught.value.reason is Reason.PROMPT_UNKNOWN
        with pytest.raises(MalformedError):
            await ask(home, "nothing")


async def test_lending_lasts_as_long_as_the_borrower(home: Home) -> None:
    def borrow_twice() -> Reason:
        with borrow_providers(home) as lent:
            assert lent
            with pytest.raises(DeviceError) as caught, borrow_providers(home):
                pass
            return caught.value.reason

    async with serving(home):
        assert await asyncio.to_thread(borrow_twice) is Reason.VAULT_BUSY
        assert await asyncio.to_thread(borrow_twice) is Reason.VAULT_BUSY
    with borrow_providers(home) as lent:
        assert not lent


async def test_a_watcher_that_hangs_up_is_forgotten(home: Home) -> None:
    async with serving(home):
        for _ in range(40):
            (answer,) = await say(home, b'{"op": "watch"}\n')
            assert answer == {"ok": {"watching": True}}


async def test_watching_ends_with_the_agent(home: Home) -> None:
    async with serving(home):
        watching = asyncio.create_task(asyncio.to_thread(lambda: list(watch_agent(home))))
        await asyncio.sleep(0.2)
    assert await watching == []


def test_without_an_agent_the_error_says_how_to_start_one(home: Home) -> None:
    with pytest.raises(UnavailableError) as caught:
        call_agent(home, "status")
    assert caught.value.reason is Reason.AGENT_NOT_RUNNING
    assert "keyvouch-agent run" in caught.value.fix
