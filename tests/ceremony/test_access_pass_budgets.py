"""P9, P18: how many passes may be tried, by whom and for whom; counted in the store before anything is compared."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keyvouch.errors import KeyvouchError, Reason, ThrottledError
from keyvouch_server.domain.oversight_model import RiskKind, Throttle
from keyvouch_server.ports import Transaction
from keyvouch_server.stores.memory import MemoryStore
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.use_cases.access_pass_sign_in import (
    COPY_SECONDS,
    OF_ADDRESS,
    OF_ADDRESS_AND_USER,
    OF_SERVER,
    OF_TENANT,
    OF_USER,
    OpenedWithPass,
)
from keyvouch_server.use_cases.access_passes import PassWish
from keyvouch_server.use_cases.budgets import FORGET_AT_ONCE, Budget, Budgets, Charge, source_of
from support.pass_desk import PassDesk

WRONG = "AAAA2222"
HOME, ELSEWHERE = "192.0.2.7", "198.51.100.9"


@pytest.fixture(params=[MemoryStore, SqliteStore])
async def desk(request: pytest.FixtureRequest, server_template: Path, tmp_path: Path) -> AsyncIterator[PassDesk]:
    """Ada, also called countess, and her tenant."""
    store = MemoryStore() if request.param is MemoryStore else SqliteStore.open(tmp_path / "keyvouch.db")
    opened = await PassDesk.open(server_template, store)
    await opened.add("ada", aliases=("countess",))
    yield opened
    await store.close()


def reason(outcome: OpenedWithPass | KeyvouchError) -> str:
    return outcome.reason.value if isinstance(outcome, KeyvouchError) else "ok"


async def test_one_address_never_kills_a_pass_and_its_owner_signs_in_from_another_P18(desk: PassDesk):
    code = await desk.issue("ada")
    told = Counter([reason(await desk.try_pass("ada", WRONG, ELSEWHERE)) for _ in range(300)])
    assert told == {"access_pass_refused": OF_ADDRESS_AND_USER.burst, "throttled": 300 - OF_ADDRESS_AND_USER.burst}
    assert (await desk.held("ada")).attempts == OF_ADDRESS_AND_USER.burst
    assert reason(await desk.try_pass("ada", code, HOME)) == "ok"
    assert await desk.events() == []


async def test_what_is_throttled_is_not_compared_even_if_it_is_right_P9(desk: PassDesk):
    code = await desk.issue("ada")
    for _ in range(OF_ADDRESS_AND_USER.burst):
        await desk.try_pass("ada", WRONG, HOME)
    refusal = await desk.try_pass("ada", code, HOME)
    assert isinstance(refusal, ThrottledError)
    assert refusal.retry_after == 600
    assert (await desk.held("ada")).attempts == OF_ADDRESS_AND_USER.burst
    desk.clock.advance(599)
    assert reason(await desk.try_pass("ada", code, HOME)) == "throttled"
    desk.clock.advance(1)
    assert reason(await desk.try_pass("ada", code, HOME)) == "ok"


async def test_spellings_and_aliases_share_one_budget_P10(desk: PassDesk):
    await desk.issue("ada")
    for name in ("ada", "ADA", " ada ", "countess"):
        assert reason(await desk.try_pass(name, WRONG, HOME)) == "access_pass_refused"
    for name in ("ada", "\uff21da", "Countess"):
        assert reason(await desk.try_pass(name, WRONG, HOME)) == "throttled"


@pytest.mark.parametrize("name", ["ada", "nobody"])
async def test_many_addresses_that_try_one_name_known_or_not_P12(desk: PassDesk, name: str):
    told = [reason(await desk.try_pass(name, WRONG, f"203.0.113.{n}")) for n in range(OF_USER.burst + 5)]
    assert Counter(told) == {"access_pass_refused": OF_USER.burst, "throttled": 5}
    desk.clock.advance(1)
    assert reason(await desk.try_pass(name, WRONG, HOME)) == "access_pass_refused"


async def test_one_address_that_tries_many_names_and_an_office_behind_one_P18(desk: PassDesk):
    code = await desk.issue("ada")
    told = [reason(await desk.try_pass(f"user{n}", WRONG, ELSEWHERE)) for n in range(OF_ADDRESS.burst + 20)]
    assert Counter(told) == {"access_pass_refused": OF_ADDRESS.burst, "throttled": 20}
    assert reason(await desk.try_pass("ada", code, ELSEWHERE)) == "throttled"
    assert reason(await desk.try_pass("ada", code, HOME)) == "ok"
    desk.clock.advance(3)
    assert reason(await desk.try_pass("ada", code, ELSEWHERE)) == "ok"
    (event,) = await desk.events()
    assert (event.kind, event.subject, event.address) == (RiskKind.PASS_BUDGET, OF_ADDRESS.name, ELSEWHERE)


async def test_right_codes_cost_nothing_so_a_help_desk_can_work_P9(desk: PassDesk):
    code = await desk.issue("ada")
    told = {reason(await desk.try_pass("ada", code, HOME)) for _ in range(OF_USER.burst * 3)}
    assert told == {"ok"}
    desk.clock.advance(3600)  # the pass has expired: its code opens nothing, and costs what a wrong one does
    told = [reason(await desk.try_pass("ada", code, HOME)) for _ in range(OF_USER.burst)]
    assert Counter(told) == {"access_pass_refused": OF_ADDRESS_AND_USER.burst, "throttled": OF_USER.burst - 4}
    assert (await desk.held("ada")).attempts == 0


async def test_copies_of_a_request_that_opened_a_session_cost_nothing_for_a_minute_P9(desk: PassDesk):
    """A client sends again what it has had no reply to; what comes later is one who tries an old code."""
    code = await desk.issue("ada", PassWish(one_time=True))
    assert reason(await desk.try_pass("ada", code, HOME)) == "ok"
    desk.clock.advance(COPY_SECONDS)
    assert {reason(await desk.try_pass("ada", code, HOME)) for _ in range(10)} == {"access_pass_refused"}
    desk.clock.advance(1)
    told = Counter([reason(await desk.try_pass("ada", code, HOME)) for _ in range(10)])
    assert told == {"access_pass_refused": OF_ADDRESS_AND_USER.burst, "throttled": 10 - OF_ADDRESS_AND_USER.burst}


async def test_a_right_code_takes_back_its_own_count_and_no_wrong_one_P9(desk: PassDesk):
    code = await desk.issue("ada")
    for tries in range(1, 5):
        await desk.try_pass("ada", WRONG)
        assert reason(await desk.try_pass("ada", code)) == "ok"
        assert (await desk.held("ada")).attempts == tries
    await desk.try_pass("ada", WRONG)
    assert reason(await desk.try_pass("ada", code)) == "access_pass_refused"
    assert (await desk.outcomes())[-1] == Reason.ACCESS_PASS_ATTEMPTS.value


async def test_a_pass_that_dies_is_a_risk_event_once_P9(desk: PassDesk):
    await desk.issue("ada")
    for _ in range(8):
        await desk.try_pass("ada", WRONG)
    ada, dead = await desk.user("ada"), await desk.held("ada")
    (event,) = await desk.events()
    assert (event.kind, event.user_id, event.subject) == (RiskKind.PASS_GUESSED, ada.id, dead.id)
    assert (await desk.outcomes())[-8:] == ["access_pass_wrong"] * 5 + ["access_pass_attempts"] * 3
    await desk.issue("ada")
    for _ in range(5):
        await desk.try_pass("ada", WRONG)
    assert [e.kind for e in await desk.events()] == [RiskKind.PASS_GUESSED] * 2


@pytest.mark.parametrize("desk", [SqliteStore], indirect=True)
async def test_a_flood_of_addresses_and_names_is_bounded_and_an_owner_gets_through_P9_P18(desk: PassDesk):
    code = await desk.issue("ada")
    flood = range(OF_TENANT.burst + 100)
    sent = [desk.try_pass(f"user{n}", WRONG, f"10.{n // 250}.{n % 250}.1") for n in flood]
    told = Counter(map(reason, await asyncio.gather(*sent)))
    assert told == {"access_pass_refused": OF_TENANT.burst, "throttled": 100}
    assert [(e.kind, e.subject) for e in await desk.events()] == [(RiskKind.PASS_BUDGET, OF_TENANT.name)]
    refusal = await desk.try_pass("ada", code, HOME)
    assert isinstance(refusal, ThrottledError)
    assert refusal.retry_after == 1
    desk.clock.advance(1)
    assert reason(await desk.try_pass("ada", code, HOME)) == "ok"


@pytest.mark.parametrize("desk", [SqliteStore], indirect=True)
async def test_tenants_have_budgets_of_their_own_and_one_together_P9(desk: PassDesk):
    code = await desk.issue("ada")
    sent = [
        desk.try_pass("x", WRONG, tenant=f"t{n}")
        for n in range(OF_SERVER.burst // OF_USER.burst)
        for _ in range(OF_USER.burst)
    ]
    assert Counter(map(reason, await asyncio.gather(*sent))) == {"access_pass_refused": OF_SERVER.burst}
    assert reason(await desk.try_pass("ada", code)) == "throttled"
    assert [(e.kind, e.subject) for e in await desk.events()] == [(RiskKind.PASS_BUDGET, OF_SERVER.name)]
    desk.clock.advance(1)
    assert reason(await desk.try_pass("ada", code)) == "ok"


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", ""),
        ("127.8.9.1", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        ("", ""),
        ("unix:", ""),
    ],
)
def test_whose_budget_an_address_draws_from_P9(address: str, source: str):
    assert source_of(address) == source


async def test_addresses_of_this_machine_have_no_budget_for_a_proxy_may_hide_everybody_P9(desk: PassDesk):
    told = Counter([reason(await desk.try_pass(f"user{n}", WRONG, "::1")) for n in range(OF_ADDRESS.burst + 20)])
    assert told == {"access_pass_refused": OF_ADDRESS.burst + 20}


# the budgets themselves


async def test_a_budget_is_its_burst_and_then_its_rate(desk: PassDesk):
    budgets, charge = Budgets(desk.app.world), Charge(Budget("x", 3, 30), "y")

    async def work(tx: Transaction) -> int:
        return await budgets.take(tx, charge, await budgets.read(tx, [charge]), desk.tenant_id)

    async def take() -> int:
        return await desk.store.write(work)

    assert [await take() for _ in range(5)] == [0, 0, 0, 2, 2]
    for _ in range(10):
        desk.clock.advance(2)
        assert [await take(), await take()] == [0, 2]
    desk.clock.advance(1)
    assert await take() == 1
    desk.clock.advance(3600)
    assert [await take() for _ in range(4)] == [0, 0, 0, 2]


async def test_nothing_is_taken_where_one_of_several_has_nothing_left(desk: PassDesk):
    budgets = Budgets(desk.app.world)
    small, large = Charge(Budget("small", 1, 1), "x"), Charge(Budget("large", 5, 1), "x")

    async def take(*charges: Charge) -> str:
        used_up = await desk.store.write(lambda tx: budgets.take_all(tx, charges, desk.tenant_id))
        return used_up.charge.budget.name if used_up else ""

    assert [await take(large, small), await take(large, small), await take(small, large)] == ["", "small", "small"]
    assert [await take(large) for _ in range(5)] == ["", "", "", "", "large"]
    await desk.store.write(lambda tx: budgets.give_back_one(tx, [large], due=False))
    assert await take(large) == "large"
    await desk.store.write(lambda tx: budgets.give_back_one(tx, [large], due=True))
    assert [await take(large), await take(large)] == ["", "large"]


async def test_a_clock_that_is_set_back_rests_nobody_for_longer_than_a_budget_does_P20(desk: PassDesk):
    code = await desk.issue("ada", PassWish(lifetime_minutes=1440))
    for _ in range(OF_ADDRESS_AND_USER.burst):
        await desk.try_pass("ada", WRONG, HOME)
    assert reason(await desk.try_pass("ada", code, HOME)) == "throttled"
    desk.clock.advance(-3600)
    assert reason(await desk.try_pass("ada", code, HOME)) == "ok"
    assert (await desk.held("ada")).attempts == OF_ADDRESS_AND_USER.burst


async def test_rows_that_say_nothing_are_swept_once_a_minute(desk: PassDesk):
    budgets = Budgets(desk.app.world)

    async def rows() -> int:
        return await desk.store.read(lambda tx: tx.count(Throttle, {"tenant_id": desk.tenant_id}))

    for number in range(FORGET_AT_ONCE + 1):
        await desk.try_pass(f"user{number}", WRONG)
    before = await rows()
    assert before == FORGET_AT_ONCE + 3  # each user's, the tenant's, the server's
    await budgets.forget_passed()
    assert await rows() == before
    desk.clock.advance(59)
    await budgets.forget_passed()
    assert await rows() == before
    desk.clock.advance(1)
    await budgets.forget_passed()
    assert await rows() == 0
