"""A state machine over the public API beside a small pure model: whatever the order of acts, both say the same.

Hypothesis draws acts of administrators, people, devices and clients, mixed with time; after each the server's answer is
compared with the model's (`support.model`). Steps are calls over the wire; `--model-steps` says how many at least,
`./run soak` asks for a million.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from keyvouch_server.domain.model import SignIn as SignInRow
from keyvouch_server.domain.oversight_model import Throttle
from keyvouch_server.domain.sign_in import OPEN
from keyvouch_server.ports import Store
from keyvouch_server.use_cases.access_pass_sign_in import OF_SERVER
from support import postgres_server
from support.audited_store import AuditedStore
from support.live_server import LiveServer, OpenSignIn, live_server
from support.model import OK, Person, Session, SignIn, Tenant
from support.model_stage import Holder, TenantStage
from support.postgres_server import PostgresCluster
from support.stubborn import StubbornDevice

T = TypeVar("T")

NAMES = st.sampled_from(["ada", "ada", "ada", "bob", "bob", "cyd"])
PICK = st.integers(0, 2**16)
EXAMPLES_AT_ONCE = 20
STEPS = 80
DAYS = 4
PARTS = 4
"""Tests that share the steps, so that they can run side by side."""
POSTGRES_SHARE = 40
"""One step more for so many: the rules are the same, the store is another one."""


class Bench:
    """The one server of all examples, and the loop it runs in."""

    def __init__(self, template: Path, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self.calls = 0
        self.told: Counter[str] = Counter()
        self.audited: list[AuditedStore] = []
        server = live_server(template, folder, around=self._around)
        self.live: LiveServer = self.run(self._stack.enter_async_context(server))
        self._start = self.live.clock.now() - DAYS * 86400

    def _around(self, store: Store) -> Store:
        self.audited.append(AuditedStore(store))
        return self.audited[0]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop."""
        return self.loop.run_until_complete(work)

    def rewind(self) -> int:
        """Back to the beginning, for another tenant. It lies days ago, for connections judge certificates by the real
        clock, and what time goes by in an example must not lead beyond that.
        """
        self.live.clock.instant = self._start
        # The one budget that all tenants share: it would count what all examples do at what is one instant to it.
        self.run(self.live.app.store.write(lambda tx: tx.delete(Throttle, {"key": OF_SERVER.key("")})))
        return self._start

    def close(self) -> None:
        """End the server and the loop."""
        self.run(self._stack.aclose())
        self.loop.close()


async def row_of(live: LiveServer, opened: OpenSignIn) -> SignInRow | None:
    """A sign-in as it is stored."""
    return await live.app.store.read(lambda tx: tx.get(SignInRow, id=opened.begun.sign_in_id))


class Machine(RuleBasedStateMachine):
    """One tenant, from its beginning."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.stage = TenantStage(self.bench.live)
        self.sessions: list[tuple[Session, Holder]] = []
        self.sign_ins: list[tuple[SignIn, OpenSignIn]] = []

    @initialize()
    def begin_anew(self) -> None:
        self.model = Tenant(self.bench.rewind())
        self.bench.run(self.stage.open())
        for name in ("ada", "bob"):  # somebody to begin with, each with a device
            self.create(name, guest=False)
            self.create_pass(name, one_time=False)
            self.use_pass(name, right=True)
            self.register(len(self.sessions) - 1)

    def teardown(self) -> None:
        self.bench.calls += self.stage.calls
        try:
            if hasattr(self, "model"):
                self.compare_the_rows()
        finally:
            self.bench.run(self.stage.close())

    def compare_the_rows(self) -> None:
        """Every request is in the store as it is in the model, and of each person one is open at most (KI4)."""
        known = [(request, opened) for request, opened in self.sign_ins if not (request.user and request.user.gone)]
        rows = [self.bench.run(row_of(self.bench.live, opened)) for _, opened in known]
        expected = [request.state for request, _ in known]
        assert [row.state.value if row else "" for row in rows] == expected
        waiting = Counter(row.user_id for row in rows if row and row.state in OPEN)
        assert not waiting or max(waiting.values()) == 1

    def compare(self, expected: str, found: str) -> None:
        """The server said what the model says."""
        self.bench.told[expected] += 1
        assert found == expected, f"the model says {expected}, the server {found}"

    # -- administrators ------------------------------------------------------------------------------

    @rule(name=NAMES, guest=st.sampled_from([False, False, False, True]))
    def create(self, name: str, guest: bool) -> None:
        self.compare(self.model.create(name, guest=guest), self.bench.run(self.stage.create(name, guest=guest)))

    @rule(name=NAMES, really=st.integers(0, 3))
    def delete(self, name: str, really: int) -> None:
        if really == 3:
            self.compare(self.model.delete(name), self.bench.run(self.stage.delete(name)))

    @rule(name=NAMES, role=st.sampled_from(["user", "user", "global_reader"]))
    def change_role(self, name: str, role: str) -> None:
        self.compare(self.model.change_role(name, role), self.bench.run(self.stage.change_role(name, role)))

    @rule(name=NAMES, inside=st.booleans())
    def put_into_group(self, name: str, inside: bool) -> None:
        expected = self.model.put_into_group(name, inside=inside)
        self.compare(expected, self.bench.run(self.stage.put_into_group(name, inside=inside)))

    @rule(
        what=st.sampled_from(["approval", "access_pass", "excluded", "one_time"]),
        value=st.booleans(),
        devices=st.integers(1, 3),
    )
    def change_policy(self, what: str, value: bool, devices: int) -> None:
        wanted = replace(self.model.settings, **{what: value}, devices=devices)
        self.compare(self.model.change(wanted), self.bench.run(self.stage.save_policy(wanted)))

    @rule(pick=PICK)
    def roll_back(self, pick: int) -> None:
        number = pick % len(self.model.versions)
        self.compare(self.model.roll_back(number), self.bench.run(self.stage.roll_back(number)))

    @rule(name=NAMES, one_time=st.booleans())
    def create_pass(self, name: str, one_time: bool) -> None:
        expected = self.model.create_pass(name, one_time=one_time)
        self.compare(expected, self.bench.run(self.stage.create_pass(name, one_time=one_time)))

    @rule(name=NAMES, one_time=st.booleans(), keep=st.booleans())
    def replace_pass(self, name: str, one_time: bool, keep: bool) -> None:
        expected = self.model.replace_pass(name, one_time=one_time, keep=keep)
        self.compare(expected, self.bench.run(self.stage.replace_pass(name, one_time=one_time, keep=keep)))

    @rule(name=NAMES)
    def delete_pass(self, name: str) -> None:
        self.compare(self.model.delete_pass(name), self.bench.run(self.stage.delete_pass(name)))

    # -- people and their devices --------------------------------------------------------------------

    @rule(name=NAMES, right=st.sampled_from([True, True, True, True, True, False]))
    def use_pass(self, name: str, right: bool) -> None:
        expected, session = self.model.use_pass(name, right=right)
        found, holder = self.bench.run(self.stage.use_pass(name, right=right))
        self.compare(expected, found)
        if session is not None and holder is not None:
            self.sessions.append((session, holder))

    @precondition(lambda self: self.sessions)
    @rule(pick=PICK)
    def register(self, pick: int) -> None:
        session, holder = self.sessions[pick % len(self.sessions)]
        expected = self.model.register(session)
        found, device = self.bench.run(self.stage.register(holder))
        self.compare(expected, found)
        if device is not None:
            self.model.registered(session, device)

    @precondition(lambda self: any(person.devices for person in self.model.people.values()))
    @rule(pick=PICK)
    def remove_as_administrator(self, pick: int) -> None:
        person, device = self.some_device(pick)
        self.compare(self.model.remove(person, device), self.bench.run(self.stage.remove(device, None)))

    def some_device(self, pick: int) -> tuple[Person, StubbornDevice]:
        owned = [(person, device) for person in self.model.people.values() for device in person.devices]
        person, device = owned[pick % len(owned)]
        assert isinstance(device, StubbornDevice)
        return person, device

    @precondition(lambda self: self.sessions and any(person.devices for person in self.model.people.values()))
    @rule(pick=PICK, other=PICK)
    def remove_as_somebody(self, pick: int, other: int) -> None:
        """Who owns it removes it; to everybody else it is unknown."""
        session, holder = self.sessions[pick % len(self.sessions)]
        _, device = self.some_device(other)
        told = self.model.token(session)
        expected = self.model.remove(session.user, device) if told == OK else told
        self.compare(expected, self.bench.run(self.stage.remove(device, holder)))

    # -- signing in ----------------------------------------------------------------------------------

    @rule(name=NAMES)
    def begin(self, name: str) -> None:
        expected, request = self.model.begin(name)
        found, opened = self.bench.run(self.stage.begin(name))
        self.compare(expected, found)
        if request is not None and opened is not None:
            self.sign_ins.append((request, opened))

    @precondition(lambda self: self.answerable())
    @rule(pick=PICK, other=PICK, decision=st.sampled_from(["approve"] * 6 + ["deny", "report", "wrong"]))
    def answer(self, pick: int, other: int, decision: str) -> None:
        waiting = self.answerable()
        request, opened = waiting[-1 - pick % min(len(waiting), 3)]
        devices = self.devices_of(request)
        device = devices[other % len(devices)]
        expected = self.model.answer(request, device, decision)
        self.compare(expected, self.bench.run(self.stage.answer(opened, device, decision)))

    def answerable(self) -> list[tuple[SignIn, OpenSignIn]]:
        """Requests, ended ones too, whose prompt came to a device that is still there."""
        return [(request, opened) for request, opened in self.sign_ins if self.devices_of(request)]

    def devices_of(self, request: SignIn) -> list[StubbornDevice]:
        if request.user is None or request.user.gone:
            return []
        return [d for d in request.asked if d in request.user.devices and isinstance(d, StubbornDevice)]

    @precondition(lambda self: self.sign_ins)
    @rule(pick=PICK)
    def redeem(self, pick: int) -> None:
        request, opened = self.sign_ins[-1 - pick % min(len(self.sign_ins), 4)]
        had = request.session
        expected, session = self.model.redeem(request)
        found, holder = self.bench.run(self.stage.redeem(opened))
        self.compare(expected, found)
        if session is not None and holder is not None and session is not had:
            self.sessions.append((session, holder))

    @precondition(lambda self: self.sign_ins)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        request, opened = self.sign_ins[-1 - pick % min(len(self.sign_ins), 4)]
        self.compare(self.model.cancel(request), self.bench.run(self.stage.cancel(opened)))

    # -- sessions ------------------------------------------------------------------------------------

    @precondition(lambda self: any(not session.by_pass for session, _ in self.sessions))
    @rule(pick=PICK, back=st.sampled_from([0, 0, 0, 0, 1, 2]))
    def refresh(self, pick: int, back: int) -> None:
        own = [(session, holder) for session, holder in self.sessions if not session.by_pass]
        session, holder = own[pick % len(own)]
        generation = max(1, len(holder.tokens) - back)
        expected = self.model.refresh(session, generation)
        self.compare(expected, self.bench.run(self.stage.refresh(holder, generation)))

    @precondition(lambda self: self.sessions)
    @rule(pick=PICK)
    def sign_out(self, pick: int) -> None:
        session, holder = self.sessions[pick % len(self.sessions)]
        self.compare(self.model.revoke(session), self.bench.run(self.stage.revoke(holder)))

    @precondition(lambda self: self.sessions)
    @rule()
    def look_at_all_sessions(self) -> None:
        for session, holder in self.sessions[-8:]:
            self.compare(self.model.token(session), self.bench.run(self.stage.look(holder)))

    # -- time ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 5, 30, 61, 119, 121, 300, 601, 901, 3601]))
    def pass_time(self, seconds: int) -> None:
        self.bench.live.clock.advance(seconds)
        self.model.pass_time(seconds)
        self.bench.run(self.bench.live.app.sign_ins.expire())


@pytest.fixture
def bench(server_template: Path, tmp_path: Path) -> Iterator[Bench]:
    running = Bench(server_template, tmp_path)
    yield running
    running.close()


@pytest.fixture
def bench_on_postgres(
    server_template: Path, tmp_path: Path, postgres_cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    postgres_cluster.start()
    monkeypatch.setattr(postgres_server, "everywhere", [postgres_cluster])
    running = Bench(server_template, tmp_path)
    yield running
    running.close()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_the_server_does_what_the_model_says(bench: Bench, pytestconfig: pytest.Config, part: int) -> None:
    play(bench, part, int(pytestconfig.getoption("--model-steps")) // PARTS)


@pytest.mark.timeout(7200)
def test_on_postgres_it_does_the_same(bench_on_postgres: Bench, pytestconfig: pytest.Config) -> None:
    play(bench_on_postgres, PARTS, int(pytestconfig.getoption("--model-steps")) // POSTGRES_SHARE)


def play(bench: Bench, part: int, wanted: int) -> None:
    """Draw acts until so many calls have been made."""
    Machine.bench = bench
    profile = settings(
        max_examples=EXAMPLES_AT_ONCE,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    rounds = 0
    while bench.calls < wanted:
        drawn = seed(part * 1_000_000 + rounds)
        run_state_machine_as_test(drawn(type("Machine", (Machine,), {})), settings=profile)
        rounds += 1
        assert bench.audited[0].untold == [], "each act is told by its audit record (G11)"
    tenants = rounds * EXAMPLES_AT_ONCE
    print(f"{bench.calls} calls in {tenants} tenants; outcomes: {dict(bench.told.most_common())}")  # noqa: T201
    assert bench.calls >= wanted
    assert len(bench.told) >= 8  # the control: the acts came to different ends
