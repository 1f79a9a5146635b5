"""What nodes hear of each other on PostgreSQL: the form of it, and the connection that comes back by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.errors import Reason, UnavailableError
from keyvouch.ids import DEVICE, PROMPT, SIGN_IN, DeviceId, PromptId, SignInId, new_id
from keyvouch_server.domain.model import SignInState
from keyvouch_server.stores import postgres_connection as connections
from keyvouch_server.stores.postgres_watch import (
    FIRST_DELAY,
    LONGEST_DELAY,
    DeviceGone,
    PostgresWatch,
    PromptEnded,
    PromptMade,
    SignInChanged,
    Told,
    parse,
)
from support.postgres_server import PostgresCluster

A, B, C = (
    DeviceId(new_id(DEVICE, bytes(16))),
    PromptId(new_id(PROMPT, b"\xff" * 16)),
    SignInId(new_id(SIGN_IN, b"a" * 16)),
)
LIMIT = 20.0


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (f"prompt {A} {B}", PromptMade(A, B)),
        (f"withdrawn {A} {B} expired", PromptEnded(A, B, SignInState.EXPIRED)),
        (f"withdrawn {A} {B} approved", PromptEnded(A, B, SignInState.APPROVED)),
        (f"sign_in {C}", SignInChanged(C)),
        (f"device {A}", DeviceGone(A)),
    ],
)
def test_what_is_told_is_understood(payload: str, told: Told):
    assert parse(payload) == told


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "prompt",
        f"prompt {A}",
        f"prompt {B} {A}",
        f"prompt {A} {B} ",
        f"prompt  {A} {B}",
        f"prompt {A} {B} {B}",
        f"PROMPT {A} {B}",
        f"prompt {A.upper()} {B}",
        f"withdrawn {A} {B}",
        f"withdrawn {A} {B} pending",
        f"withdrawn {A} {B} lost",
        f"sign_in {A}",
        f"sign_in {C}\n",
        f"sign_in {C[:-1]}",
        f"sign_in {C}a",
        f"sign_in {C[:-1]}\u017f",
        f"device {C}",
        f"device {A}\0",
        f" device {A}",
        "x" * 7999,
    ],
)
def test_what_is_of_another_form_is_nothing(payload: str):
    assert parse(payload) is None


@given(st.text(max_size=200))
def test_no_text_at_all_breaks_the_parser(payload: str):
    assert parse(payload) is None


class FakeConnection:
    """A connection that ends when it is told to, and answers when it likes."""

    def __init__(self) -> None:
        self.over: Callable[[Any], None] = lambda _: None
        self.notify: Callable[[Any, int, str, Any], None] = lambda *_: None
        self.questions = 0
        self.answers = True
        self.terminated = False

    def add_termination_listener(self, callback: Callable[[Any], None]) -> None:
        self.over = callback

    async def add_listener(self, channel: str, callback: Callable[[Any, int, str, Any], None]) -> None:
        assert channel == "keyvouch"
        self.notify = callback

    async def fetchval(self, query: str) -> int:
        assert query == "SELECT 1"
        self.questions += 1
        if not self.answers:
            await asyncio.Event().wait()
        return 1

    def terminate(self) -> None:
        self.terminated = True

    async def close(self, **_limits: float) -> None:
        """Nothing is left to do."""


class FakeDatabase:
    """Hands out connections, unless it is down."""

    def __init__(self) -> None:
        self.down = False
        self.made: list[FakeConnection] = []
        self.heard: list[tuple[Told, int]] = []
        self.lost = 0
        self.tries = 0
        self.changed = asyncio.Event()

    async def connect(self, url: str) -> Any:
        assert url == "postgresql://"
        self.tries += 1
        self.changed.set()
        if self.down:
            raise UnavailableError(Reason.STORE_UNAVAILABLE, "It is down.", fix="Wait.")
        self.made.append(FakeConnection())
        return self.made[-1]

    def note_lost(self) -> None:
        self.lost += 1
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def watch(self, **options: Any) -> PostgresWatch:
        return PostgresWatch(
            "postgresql://", lambda *told: self.heard.append(told), self.note_lost, connect=self.connect, **options
        )


async def test_it_listens_before_the_block_begins_and_tells_who_told():
    database = FakeDatabase()
    async with database.watch():
        assert database.lost == 0  # nobody can have missed anything yet
        database.made[0].notify(None, 7, "keyvouch", f"sign_in {C}")
    assert database.heard == [(SignInChanged(C), 7)]
    assert database.made[0].terminated


async def test_a_foreign_form_is_told_once_and_what_follows_is_heard(caplog: pytest.LogCaptureFixture):
    database = FakeDatabase()
    async with database.watch():
        for payload in ("one", "two", f"device {A}"):
            database.made[0].notify(None, 7, "keyvouch", payload)
    assert database.heard == [(DeviceGone(A), 7)]
    assert sum("unknown form" in line for line in caplog.messages) == 1


async def test_a_connection_that_ends_is_made_anew_and_what_was_missed_is_said():
    database = FakeDatabase()
    async with database.watch(chance=lambda *_: 0.0):
        database.made[0].over(None)
        await database.until(lambda: database.lost == 1)
        database.made[1].notify(None, 8, "keyvouch", f"device {A}")
    assert [one.terminated for one in database.made] == [True, True]
    assert database.heard == [(DeviceGone(A), 8)]


async def test_a_silent_connection_is_asked_and_given_up_when_it_does_not_answer():
    database = FakeDatabase()
    async with database.watch(chance=lambda *_: 0.0, look_seconds=0.01, answer_seconds=0.05):
        async with asyncio.timeout(LIMIT):
            while database.made[0].questions < 3:  # noqa: ASYNC110 - nobody tells of a question
                await asyncio.sleep(0.01)
        assert database.lost == 0
        database.made[0].answers = False
        await database.until(lambda: database.lost == 1)
    assert database.made[0].terminated


async def test_it_tries_less_and_less_often_and_logs_an_outage_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    database, asked, real = FakeDatabase(), list[float](), asyncio.sleep
    database.down = True

    async def sleep(seconds: float) -> None:
        asked.append(seconds)
        await real(0)

    monkeypatch.setattr("keyvouch_server.stores.postgres_watch.asyncio.sleep", sleep)
    caplog.set_level(logging.INFO)
    async with database.watch(chance=lambda low, high: (low + high) / 2):
        await database.until(lambda: database.tries == 10)
        database.down = False
        await database.until(lambda: database.lost == 1)
    delays = [min(FIRST_DELAY * 2**n, LONGEST_DELAY) for n in range(10)]
    assert asked[:10] == pytest.approx([0.75 * delay for delay in delays])
    assert [line for line in caplog.messages if "heard" in line] == [
        "what other nodes do is not heard now, and is looked up afterwards: It is down. Wait.",
        "what other nodes do is heard",
    ]


async def test_an_unforeseen_failure_leaves_no_node_deaf(caplog: pytest.LogCaptureFixture):
    database = FakeDatabase()
    failing = [True]

    def lost() -> None:
        database.note_lost()
        if failing.pop() if failing else False:
            raise LookupError("a bug")

    watch = PostgresWatch("postgresql://", lambda *_: None, lost, connect=database.connect, chance=lambda *_: 0.0)
    async with watch:
        database.made[0].over(None)
        await database.until(lambda: database.lost == 2)
    assert "unexpected error" in caplog.messages


@pytest.fixture
async def real(postgres_url: str) -> AsyncIterator[tuple[str, list[tuple[Told, int]], list[float]]]:
    """A watch on a real database, with what it heard and when it lost."""
    heard, lost = list[tuple[Told, int]](), list[float]()
    loop = asyncio.get_running_loop()
    async with PostgresWatch(
        postgres_url,
        lambda *told: heard.append(told),
        lambda: lost.append(loop.time()),
        look_seconds=0.2,
        answer_seconds=0.5,
    ):
        yield postgres_url, heard, lost


async def tell(url: str, payload: str) -> int:
    async with connections.connected(url) as connection:
        await connection.execute("SELECT pg_notify('keyvouch', $1)", payload)
        return connection.get_server_pid()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)


async def test_a_real_one_is_heard_and_comes_back_after_its_connection_was_ended(
    real: tuple[str, list[tuple[Told, int]], list[float]],
):
    url, heard, lost = real
    first = await tell(url, f"device {A}")
    await until(lambda: bool(heard))
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()
    await until(lambda: len(lost) == 1)
    second = await tell(url, f"sign_in {C}")
    await until(lambda: len(heard) == 2)
    assert heard == [(DeviceGone(A), first), (SignInChanged(C), second)]


async def test_a_database_that_stands_still_or_dies_is_noticed(
    real: tuple[str, list[tuple[Told, int]], list[float]], postgres_cluster: PostgresCluster
):
    url, heard, lost = real
    postgres_cluster.pause()
    await asyncio.sleep(1.5)
    postgres_cluster.resume()
    await until(lambda: len(lost) == 1)
    postgres_cluster.crash()
    postgres_cluster.start()
    await until(lambda: len(lost) == 2)
    await tell(url, f"device {A}")
    await until(lambda: bool(heard))
