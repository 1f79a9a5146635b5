"""P11, P12, T17: whoever is named and whatever is wrong, as much is done: the same statements, the same keyed hashes.

What it takes in time is measured by `tests/bench/access_pass_timing.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_server.domain.model import UserKind
from keyvouch_server.domain.policy_parts import Targets
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.use_cases.access_pass_sign_in import (
    EARLIEST_SECONDS,
    LATEST_SECONDS,
    OF_ADDRESS,
    AccessPassSignIns,
    drawn_seconds,
)
from keyvouch_server.use_cases.access_passes import PassWish
from support.live_server import TENANT
from support.pass_desk import PassDesk

WRONG = "AAAA2222"
ADDRESS = "192.0.2.7"


@pytest.fixture
async def desk(server_template: Path, tmp_path: Path) -> AsyncIterator[PassDesk]:
    """Users of all kinds."""
    store = SqliteStore.open(tmp_path / "keyvouch.db")
    opened = await PassDesk.open(server_template, store)
    for name in ("ada", "bob", "eve"):
        await opened.add(name)
    await opened.add("ivy", kind=UserKind.GUEST)
    yield opened
    await store.close()


Prepared = tuple[str, str]
"""The name and the code that are tried."""


async def unknown(desk: PassDesk) -> Prepared:
    return "xyz", WRONG


async def without_a_pass(desk: PassDesk) -> Prepared:
    return "ada", WRONG


async def wrong(desk: PassDesk) -> Prepared:
    await desk.issue("ada")
    return "ada", WRONG


async def nearly_right(desk: PassDesk) -> Prepared:
    code = await desk.issue("ada")
    return "ada", code[:-1] + ("A" if code[-1] != "A" else "B")


async def dead(desk: PassDesk) -> Prepared:
    code = await desk.issue("ada")
    for _ in range(5):
        await desk.try_pass("ada", WRONG)
    desk.clock.advance(600)
    await desk.app.budgets.forget_passed()
    return "ada", code


async def switched_off(desk: PassDesk) -> Prepared:
    code = await desk.issue("ada")
    await desk.change_policy(enabled=False)
    return "ada", code


async def not_a_target(desk: PassDesk) -> Prepared:
    code = await desk.issue("ada")
    await desk.change_policy(targets=Targets(exclude_users=((await desk.user("ada")).id,)))
    return "ada", code


async def guest(desk: PassDesk) -> Prepared:
    return "ivy", await desk.issue("ivy")


async def not_yet(desk: PassDesk) -> Prepared:
    return "ada", await desk.issue("ada", PassWish(start_at=desk.clock.now() + 60))


async def expired(desk: PassDesk) -> Prepared:
    code = await desk.issue("ada")
    desk.clock.advance(3600)
    return "ada", code


async def one_time_required(desk: PassDesk) -> Prepared:
    code = await desk.issue("ada")
    await desk.change_policy(one_time_required=True)
    return "ada", code


async def used(desk: PassDesk) -> Prepared:
    code = await desk.issue("ada", PassWish(one_time=True))
    await desk.try_pass("ada", code)
    desk.clock.advance(600)
    await desk.app.budgets.forget_passed()
    return "ada", code


CASES: dict[Callable[[PassDesk], Awaitable[Prepared]], Reason] = {
    unknown: Reason.ACCESS_PASS_NONE,
    without_a_pass: Reason.ACCESS_PASS_NONE,
    wrong: Reason.ACCESS_PASS_WRONG,
    nearly_right: Reason.ACCESS_PASS_WRONG,
    dead: Reason.ACCESS_PASS_ATTEMPTS,
    switched_off: Reason.ACCESS_PASS_NOT_IN_POLICY,
    not_a_target: Reason.ACCESS_PASS_NOT_IN_POLICY,
    guest: Reason.ACCESS_PASS_GUEST,
    not_yet: Reason.ACCESS_PASS_NOT_YET_VALID,
    expired: Reason.ACCESS_PASS_EXPIRED,
    one_time_required: Reason.ACCESS_PASS_ONE_TIME_REQUIRED,
    used: Reason.ACCESS_PASS_USED,
}


async def said_of(desk: PassDesk, name: str, code: str, tenant: str = TENANT) -> tuple[list[str], KeyvouchError | None]:
    """What is asked of store and keys for one try, and how it is refused."""
    sign_ins, said = desk.recorded()
    try:
        await sign_ins.sign_in(tenant, name, code, address=ADDRESS)
    except KeyvouchError as refusal:
        return said, refusal
    return said, None


@pytest.mark.parametrize("prepare", CASES)
async def test_whatever_is_wrong_as_much_is_done_P11_P12_T17(desk: PassDesk, prepare):
    name, code = await prepare(desk)
    expected, _ = await said_of(desk, "zyx", WRONG)
    said, refusal = await said_of(desk, name, code)
    assert said == expected
    assert refusal is not None
    assert refusal.reason is Reason.ACCESS_PASS_REFUSED
    assert (await desk.outcomes())[-1] == CASES[prepare].value
    await desk.change_policy(enabled=True, one_time_required=False, targets=Targets())
    bob = await desk.issue("bob")
    said, refusal = await said_of(desk, "bob", bob)  # the control
    assert refusal is None
    assert said != expected


async def test_a_tenant_that_is_not_there_asks_as_much_P12(desk: PassDesk):
    expected, _ = await said_of(desk, "zyx", WRONG)
    elsewhere = (
        (await said_of(desk, "ada", WRONG))[0],
        (await said_of(desk, "ada", WRONG, tenant="x" * len(TENANT)))[0],
    )
    assert elsewhere[0] == elsewhere[1] == expected


async def test_throttled_ones_ask_as_much_too_P12(desk: PassDesk):
    await desk.issue("ada")
    told = []
    for name in ("ada", "zyx"):
        for _ in range(4):
            await desk.try_pass(name, WRONG, ADDRESS)
        told.append(await said_of(desk, name, WRONG))
    (of_ada, ada), (of_nobody, nobody) = told
    assert of_ada == of_nobody
    assert ada is not None
    assert nobody is not None
    assert ada.reason is Reason.THROTTLED
    assert (ada.message, ada.fix, ada.metadata) == (nobody.message, nobody.fix, nobody.metadata)


async def test_throttled_ones_ask_as_much_of_a_tenant_that_is_not_there_P12(desk: PassDesk):
    """Also once an address has used up its budget, which administrators are told of where there are any."""
    told = []
    for tenant in (TENANT, "x" * len(TENANT)):
        for number in range(OF_ADDRESS.burst + 1):
            await desk.try_pass(f"user{number}", WRONG, ADDRESS, tenant)
        told.append(await said_of(desk, "ada", WRONG, tenant))
    (here, throttled), (nowhere, alike) = told
    assert here == nowhere
    assert throttled is not None
    assert alike is not None
    assert throttled.metadata == alike.metadata
    assert len(await desk.events()) == 1


async def test_a_right_code_that_opens_nothing_is_throttled_like_a_wrong_one_T17_P9(desk: PassDesk):
    """Else the budgets would tell who knows a code, though its pass is over, or nobody's to use."""
    wish = PassWish(start_at=desk.clock.now() + 60)
    told = []
    for name, right in (("ada", True), ("bob", False)):
        code = await desk.issue(name, wish)
        tries = [await desk.try_pass(name, code if right else WRONG, ADDRESS) for _ in range(6)]
        told.append([(r.reason, r.message, r.fix, r.metadata) for r in tries if isinstance(r, KeyvouchError)])
    assert told[0] == told[1]
    assert [said[0] for said in told[0]] == [Reason.ACCESS_PASS_REFUSED] * 4 + [Reason.THROTTLED] * 2
    assert (await desk.held("ada")).attempts == 0  # the owner was early; the pass is none the worse for it


async def test_codes_are_compared_as_keyed_hashes_of_one_length_P11(desk: PassDesk):
    """A guess that begins right has a hash like any other, so that no comparison says how much of it is right."""
    code = await desk.issue("ada")
    said, _ = await said_of(desk, "ada", code[:7] + ("A" if code[7] != "A" else "B"))
    assert [line.split()[:2] for line in said if line.startswith("mac")] == [
        ["mac", "nobody"],
        ["mac", "decoy-tenant"],
        ["mac", "access-pass"],
    ]


async def test_refusals_leave_at_a_drawn_instant_and_answers_at_once_P11(desk: PassDesk):
    waited: list[float] = []

    async def note(seconds: float) -> None:
        waited.append(seconds)

    sign_ins = AccessPassSignIns(desk.app.world, desk.app.sessions, pause=note)
    code = await desk.issue("ada")
    await sign_ins.sign_in(TENANT, "ada", code, address=ADDRESS)
    assert waited == []
    for name in ("ada", "xyz"):
        with pytest.raises(KeyvouchError):
            await sign_ins.sign_in(TENANT, name, WRONG, address=ADDRESS)
    assert len(waited) == 2
    assert 0 <= min(waited) <= max(waited) < LATEST_SECONDS


def test_the_instant_is_uniform_P11():
    drawn = [drawn_seconds(number.to_bytes(2)) for number in range(65536)]
    assert drawn[0] == EARLIEST_SECONDS
    assert drawn == sorted(set(drawn))
    assert LATEST_SECONDS - 1e-6 < max(drawn) < LATEST_SECONDS
    assert (
        EARLIEST_SECONDS < sum(drawn) / len(drawn) == pytest.approx((EARLIEST_SECONDS + LATEST_SECONDS) / 2, rel=1e-3)
    )
