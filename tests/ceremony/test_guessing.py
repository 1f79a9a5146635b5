"""P2, P4 and P20: attackers who begin while the user does, who guess numbers, and clocks that jump."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_server.domain.model import SignIn, SignInState
from keyvouch_server.domain.oversight_model import RiskEvent, RiskKind
from keyvouch_server.domain.policy import REST_SECONDS
from keyvouch_server.domain.sign_in import draw_choices, draw_number
from keyvouch_server.use_cases.sign_in import BegunSignIn
from support.guessing import guess
from support.live_server import LiveServer, Person, refused
from support.strangers import OFFICE, Answerer, Caller, row_of

PEOPLE, ROUNDS = 50, 200


# P2: the attacker begins before, after, or both; the user types the number that their own client shows


async def interleave(live: LiveServer, person: Person, seed: int) -> Counter[str]:
    """Rounds of one person, who always answers the newest prompt with their own number."""
    source, device, outcomes = random.Random(seed), await Answerer.of(live, person), Counter[str]()
    user, attacker = Caller.at(live, "127.0.0.1"), Caller.at(live, "127.0.0.2")
    attacks: list[BegunSignIn] = []
    for _ in range(ROUNDS):
        order = source.choice(
            ("user", "attacker user", "user attacker", "attacker user attacker", "user attacker user")
        )
        begun: dict[str, list[BegunSignIn]] = {"user": [], "attacker": []}
        for who in order.split():
            caller = user if who == "user" else attacker
            begun[who].append(await caller.begins(person.username))
        own, newest = begun["user"][-1], begun[order.split()[-1]][-1]
        if source.random() < 0.5:  # or the prompt that has been withdrawn is still in sight
            newest = source.choice([*begun["user"], *begun["attacker"]])
        answered = await device.approves(newest, own.sign_in.number)
        outcomes["granted" if answered.refusal is None else answered.refusal.reason.value] += 1
        attacks += begun["attacker"]
    for one in attacks:
        assert (await row_of(live, one.sign_in.id)).state not in {SignInState.APPROVED, SignInState.CONSUMED}
    for one in attacks[-20:]:
        with pytest.raises(KeyvouchError):
            await live.app.redemptions.consume(one.sign_in.id)
    return outcomes


async def test_whoever_begins_beside_the_user_is_never_granted_P2(live: LiveServer) -> None:
    """Ten thousand interleavings. With eight digits no number is another's by chance."""
    await live.change_policy(approval={"number_digits": 8, "number_misses": 100, "begins_per_minute": 6000})
    people = [await live.person(f"user{number}") for number in range(PEOPLE)]
    outcomes: Counter[str] = Counter()
    for done in await asyncio.gather(*(interleave(live, one, seed) for seed, one in enumerate(people))):
        outcomes.update(done)
    assert outcomes.total() == PEOPLE * ROUNDS == 10_000
    assert outcomes["granted"] > 2000  # the control: the user comes in
    assert outcomes[Reason.NUMBER_MISMATCH.value] > 1000  # own number in the attacker's prompt
    assert outcomes[Reason.SIGN_IN_SUPERSEDED.value] > 500
    assert set(outcomes) == {"granted", Reason.NUMBER_MISMATCH.value, Reason.SIGN_IN_SUPERSEDED.value}


# P4: guesses


async def test_ten_wrong_numbers_in_a_quarter_of_an_hour_are_all_that_are_compared_P4(live: LiveServer) -> None:
    """`tests/bench/guesses.py` does the same a hundred thousand times."""
    ada = await live.person("ada")
    await live.change_policy(approval={"number_digits": 6}, sign_in={"profile": "nist-800-63b-4"})
    attempts, seconds = 5_000, 2
    outcomes = await guess(live, ada, attempts, seconds=seconds, seed=4)
    rests = attempts * seconds // REST_SECONDS + 1
    assert outcomes["accepted"] == 0
    assert 10 <= outcomes[Reason.NUMBER_MISMATCH.value] <= 10 * rests
    assert outcomes[Reason.THROTTLED.value] == attempts - outcomes[Reason.NUMBER_MISMATCH.value]
    events = await live.app.store.read(lambda tx: tx.find(RiskEvent, {"kind": RiskKind.NUMBERS_GUESSED}))
    assert len(events) == 1
    live.clock.advance(REST_SECONDS)
    begun = await Caller.at(live, OFFICE).begins("ada")
    device = await Answerer.of(live, ada)
    assert (await device.approves(begun, begun.sign_in.number)).refusal is None


async def test_a_new_request_and_a_new_client_forget_no_miss_P4(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.change_policy(approval={"number_misses": 3})
    device, refusals = await Answerer.of(live, ada), []
    for number in range(4):
        live.clock.advance(61)
        caller = Caller.at(live, f"192.0.2.{number}")
        try:
            begun = await caller.begins("ada")
        except KeyvouchError as error:
            refusals.append(error.reason)
            continue
        answered = await device.approves(begun, caller.opened(begun).wrong_number)
        assert answered.refusal is not None
        refusals.append(answered.refusal.reason)
    assert refusals == [Reason.NUMBER_MISMATCH] * 3 + [Reason.THROTTLED]


def chi_square(counts: Counter[str], cells: int) -> float:
    """Pearson's statistic against equal chances."""
    expected = counts.total() / cells
    return sum((counts[str(cell)] - expected) ** 2 / expected for cell in range(cells))


def test_a_million_numbers_are_uniform_P4() -> None:
    """Chi-square with 99 degrees of freedom: 148.2 is passed once in a thousand. The seed makes it once for all."""
    source, counts = random.Random(4), Counter[str]()
    for _ in range(1_000_000):
        counts[str(int(draw_number(2, source.randbytes(16))))] += 1
    assert chi_square(counts, 100) < 148.2
    biased = Counter({str(cell): 10_000 + (600 if cell < 10 else 0) for cell in range(100)})
    assert chi_square(biased, 100) > 148.2  # the control


def test_each_of_three_choices_is_as_likely_in_each_place_P4() -> None:
    source, places, others = random.Random(5), Counter[str](), Counter[str]()
    for _ in range(60_000):
        choices = draw_choices("07", source.randbytes(32))
        assert len(set(choices)) == 3
        places[str(choices.index("07"))] += 1
        others.update(str(int(one)) for one in choices if one != "07")
    assert chi_square(places, 3) < 13.8  # 2 degrees of freedom, once in a thousand
    assert others["7"] == 0
    others["7"] = round(others.total() / 99)
    assert chi_square(others, 100) < 148.2


# P20: the server's clock jumps


async def test_no_jump_of_the_clock_approves_late_or_twice_P20(live: LiveServer) -> None:
    ada = await live.person("ada")
    device, office = await Answerer.of(live, ada), Caller.at(live, OFFICE)
    for jump, reason in ((3600, Reason.SIGN_IN_EXPIRED), (120, Reason.SIGN_IN_EXPIRED)):
        begun = await office.begins("ada")
        live.clock.advance(jump)
        answered = await device.approves(begun, begun.sign_in.number)
        assert answered.refusal is not None
        assert answered.refusal.reason is reason
        live.clock.advance(-jump)
    begun = await office.begins("ada")
    live.clock.advance(-3600)
    assert (await device.approves(begun, begun.sign_in.number)).refusal is None
    again = await device.approves(begun, begun.sign_in.number)
    assert again.refusal is not None
    assert again.refusal.reason is Reason.CHALLENGE_CONSUMED
    live.clock.advance(3600 + 121)
    with refused_locally(Reason.SIGN_IN_EXPIRED):
        await live.app.redemptions.consume(begun.sign_in.id)
    live.clock.advance(-3600)
    first = await live.app.redemptions.consume(begun.sign_in.id)
    live.clock.advance(-3600)
    second = await live.app.redemptions.consume(begun.sign_in.id)
    assert first.issued.session.id == second.issued.session.id


async def test_what_has_expired_does_not_come_back_with_the_clock_P20(live: LiveServer) -> None:
    ada = await live.person("ada")
    device, office = await Answerer.of(live, ada), Caller.at(live, OFFICE)
    begun = await office.begins("ada")
    live.clock.advance(3600)
    await live.app.sign_ins.expire()
    live.clock.advance(-3600)
    answered = await device.approves(begun, begun.sign_in.number)
    assert answered.refusal is not None
    assert answered.refusal.reason is Reason.SIGN_IN_EXPIRED
    assert (await row_of(live, begun.sign_in.id)).state is SignInState.EXPIRED


async def test_a_clock_that_goes_back_gives_one_new_budget_and_no_end_of_a_rest_P20(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.change_policy(approval={"number_misses": 1})
    device, office = await Answerer.of(live, ada), Caller.at(live, OFFICE)

    async def begun_until_throttled() -> list[BegunSignIn]:
        taken: list[BegunSignIn] = []
        with refused_locally(Reason.THROTTLED):
            while True:
                taken.append(await office.begins("ada"))
        return taken

    first = await begun_until_throttled()
    assert len(first) == 3
    live.clock.advance(-3600)
    assert (
        len(await begun_until_throttled()) == 3
    )  # the row of the future says nothing; whoever waits, waits for nothing
    live.clock.advance(-1)
    assert await begun_until_throttled() == []  # a correction of the clock is no new budget
    live.clock.advance(3601)
    last = (await begun_until_throttled())[-1]
    answered = await device.approves(last, office.opened(last).wrong_number)
    assert answered.refusal is not None
    live.clock.advance(60)
    for jump in (0, -3600):
        live.clock.advance(jump)
        assert await begun_until_throttled() == []
    live.clock.advance(3600 + REST_SECONDS)
    assert await office.begins("ada")
    assert await live.app.store.read(lambda tx: tx.count(SignIn, {"state": SignInState.APPROVED})) == 0


def refused_locally(reason: Reason):
    """A use case refuses with this reason."""
    return pytest.raises(KeyvouchError, check=lambda error: error.reason is reason)


async def test_the_devices_time_is_never_asked_P20(live: LiveServer) -> None:
    """What a device signs holds the server's instants, and the server's clock alone judges them."""
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    assert prompt.expires_at == live.clock.now() + 120
    live.clock.advance(119)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    live.clock.advance(1)
    with refused(Reason.SIGN_IN_EXPIRED):
        await opened.redeem()
