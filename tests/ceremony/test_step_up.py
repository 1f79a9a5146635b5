"""P3, P19, KI1, KI3, KI8 and PS12 at the wire: what a sign-in has to prove, asked before anybody is, and once more."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import grpc
import pytest

from keyvouch.errors import Reason, RefusedError
from keyvouch.statement import SignInOffer
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2
from keyvouch_client import SignIn
from keyvouch_server.domain.model import Credential
from keyvouch_server.domain.oversight_model import RiskEvent, RiskKind
from keyvouch_server.use_cases.sign_in_rules import MOST_VERSIONS
from support.key_desk import begin_with_key, registered_key
from support.live_server import TENANT, LiveServer, Person, SignedIn, nothing_arrives, refused
from support.own_sign_in import DeviceDesk
from support.policy_desk import GATED, HARDWARE, group_of, present, roll_back, save
from support.strangers import CAFE, OFFICE, Answerer, Caller, known_client, row_of, user_of

NOT_NOW = grpc.StatusCode.FAILED_PRECONDITION
Change = Callable[[pb.Policy], None]


def app_rule(*, required: common_pb2.AssuranceRequirement = GATED, resistant: bool = False) -> Change:
    """A rule for the app that tests sign in to."""

    def change(policy: pb.Policy) -> None:
        del policy.apps[:]
        policy.apps.add(app_id="shop", required_assurance=required, phishing_resistant=resistant)

    return change


def campaign(required_by: int, required: common_pb2.AssuranceRequirement = HARDWARE) -> Change:
    """A key that reaches `required`, by that day, for everybody."""

    def change(policy: pb.Policy) -> None:
        del policy.campaigns[:]
        policy.campaigns.add(
            name="keys", required_by=required_by, required_assurance=required, targets=pb.Targets(everybody=True)
        )

    return change


async def told(live: LiveServer, person: Person, **context: object) -> object:
    """What the client of a whole sign-in is told, as the SDK has it."""
    who = {"tenant": TENANT, "username": person.username, "app_id": "shop", "app_name": "Shop", **context}
    async with SignIn(live.connection, **who) as sign_in:  # type: ignore[arg-type]
        await person.stream.send(person.device.approve(await person.stream.prompt(), sign_in.number))
        return await sign_in.session()


async def relayed(live: LiveServer, person: Person, attacker: Caller) -> SignedIn:
    """An attacker in the middle: begins where the person never was, and shows the person the number."""
    begun = await attacker.begins(person.username)
    device = await Answerer.of(live, person)
    assert (await device.approves(begun, begun.sign_in.number)).refusal is None
    return await attacker.opened(begun).redeem()


async def new_places(live: LiveServer) -> list[RiskEvent]:
    return await live.app.store.read(lambda tx: tx.find(RiskEvent, {"kind": RiskKind.NEW_PLACE}))


# P3: what can be relayed is labelled, noted, and refused where that is not enough


async def test_a_relayed_number_is_granted_labelled_and_noted_P3(live: LiveServer) -> None:
    ada = await live.person("ada")
    session = await relayed(live, ada, Caller.at(live, CAFE))
    assert session.session.acr == "number-matched"
    assert session.session.address == CAFE
    assert [(event.address, event.user_id) for event in await new_places(live)] == [(CAFE, session.session.user_id)]
    await relayed(live, ada, Caller.at(live, CAFE))
    assert len(await new_places(live)) == 1  # she has had a session there by now
    await relayed(live, ada, Caller.at(live, OFFICE))
    assert len(await new_places(live)) == 2
    await relayed(live, ada, Caller.at(live, "127.0.0.1"))  # the loopback says nothing
    assert len(await new_places(live)) == 2


async def test_a_host_that_changes_its_address_within_its_network_is_in_no_new_place_P3(live: LiveServer) -> None:
    """Hosts with IPv6 do so from day to day: an event for each would hide the one that counts."""
    ada = await live.person("ada")
    for number in range(1, 4):
        await relayed(live, ada, Caller.at(live, f"2001:db8::{number}"))
    assert len(await new_places(live)) == 1
    await relayed(live, ada, Caller.at(live, "2001:db8:0:1::1"))
    assert len(await new_places(live)) == 2


async def test_a_relayed_number_is_refused_where_policy_asks_for_more_and_nobody_is_asked_P3(live: LiveServer) -> None:
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    await save(live, app_rule(resistant=True))
    for username in ("ada", "nobody"):
        with refused(Reason.STRENGTH_REQUIRED, status=NOT_NOW):
            await live.begin(username)
    assert (await live.signed_in(person, app_id="other")).session.acr == "number-matched"
    key = await begin_with_key(live, "ada")
    await key.complete(key.approval(ada.credential))
    assert (await key.redeem()).session.acr == "phishing-resistant"
    assert (await DeviceDesk.open(ada, live.stack).signed_in()).session.acr == "phishing-resistant"
    refusals = [r for r in await live.audit("sign_in.begin") if r.outcome == Reason.STRENGTH_REQUIRED.value]
    assert [json.loads(r.details)["rule"] for r in refusals] == ["phishing_resistance"] * 2


async def test_a_request_may_ask_for_more_than_policy_P13(live: LiveServer) -> None:
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    with refused(Reason.STRENGTH_REQUIRED, status=NOT_NOW):
        await live.begin("ada", phishing_resistant=True)
    known = await known_client(live, "ada")
    hardware = "hardware/hardware_gated/attested"
    with pytest.raises(RefusedError) as refusal:
        await Caller.at(live, OFFICE).begins("ada", known_client=known, required_assurance=hardware)
    assert refusal.value.reason is Reason.ASSURANCE_TOO_LOW
    opened = await live.begin("ada", required_assurance=GATED)
    prompt = await person.stream.prompt()
    assert SignInOffer.parse(prompt.offer).required_assurance == "any/software_gated/unattested"
    assert (await person.stream.send(ada.approve(prompt, opened.number))).accepted
    assert (await opened.redeem()).session.acr == "number-matched"
    with refused(Reason.FIELD_INVALID):
        await live.begin("ada", required_assurance=common_pb2.AssuranceRequirement(protection=99))  # type: ignore[arg-type]
    many = common_pb2.AssuranceRequirement()
    many.CopyFrom(HARDWARE)
    many.anchors.extend(f"anchor {number}" for number in range(40))
    with refused(Reason.FIELD_INVALID):
        await live.begin("nobody", required_assurance=many)
    key = await begin_with_key(live, "ada", phishing_resistant=True)
    assert await key.complete(key.approval(ada.credential))


async def test_a_stranger_cannot_find_out_what_keys_a_user_has_by_asking_for_more_and_more_P12(
    live: LiveServer,
) -> None:
    ada = await live.person("ada")
    for username in ("ada", "nobody"):
        assert (await live.begin(username, required_assurance=HARDWARE)).number
    begun = [r for r in await live.audit("sign_in.begin") if r.outcome == Reason.NO_METHOD.value]
    assert json.loads(begun[-1].details)["why"] == Reason.ASSURANCE_TOO_LOW.value
    await live.change_policy(approval={"required_assurance": HARDWARE})  # what policy asks for is no secret
    with refused(Reason.ASSURANCE_TOO_LOW, status=NOT_NOW):
        await live.begin("ada")
    await nothing_arrives(ada.stream)


async def test_what_a_request_asks_for_never_weakens_policy_P19(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.change_policy(approval={"required_assurance": HARDWARE})
    anything = common_pb2.AssuranceRequirement()
    anything.CopyFrom(GATED)
    anything.verification = common_pb2.VERIFICATION_NONE
    for weaker in (GATED, anything):
        with refused(Reason.ASSURANCE_TOO_LOW):
            await live.begin("ada", required_assurance=weaker)
    assert ada.username == "ada"


# P19: policies that change between the steps


async def to_hardware(live: LiveServer) -> None:
    await live.change_policy(approval={"required_assurance": HARDWARE})


async def to_gated(live: LiveServer) -> None:
    await live.change_policy(approval={"required_assurance": GATED})


async def app_to_hardware(live: LiveServer) -> None:
    await save(live, app_rule(required=HARDWARE))


async def app_resistant(live: LiveServer) -> None:
    await save(live, app_rule(resistant=True))


async def overdue(live: LiveServer) -> None:
    await save(live, campaign(live.clock.now() - 1), accept=True)


async def without_ada(live: LiveServer) -> None:
    targets = pb.Targets(everybody=True, exclude_users=[(await user_of(live, "ada")).id])
    await live.change_policy(approval={"targets": targets})


async def off(live: LiveServer) -> None:
    await live.change_policy(approval={"enabled": False})


async def longer_numbers(live: LiveServer) -> None:
    await live.change_policy(approval={"number_digits": 6})


async def short_lived(live: LiveServer) -> None:
    await live.change_policy(approval={"lifetime_seconds": 30})


async def nist(live: LiveServer) -> None:
    await live.change_policy(approval={"number_digits": 6}, sign_in={"profile": "nist-800-63b-4"})


@pytest.mark.parametrize(
    ("stricter", "reason"),
    [
        (to_hardware, Reason.ASSURANCE_TOO_LOW),
        (app_to_hardware, Reason.ASSURANCE_TOO_LOW),
        (app_resistant, Reason.STRENGTH_REQUIRED),
        (overdue, Reason.METHOD_REQUIRED),
        (without_ada, Reason.METHOD_NOT_TARGETED),
        (off, Reason.METHOD_DISABLED),
        (longer_numbers, Reason.POLICY_CHANGED),
        (nist, Reason.POLICY_CHANGED),
        (short_lived, Reason.POLICY_CHANGED),
    ],
)
@pytest.mark.parametrize("when", ["before the answer", "before the session"])
async def test_a_policy_that_becomes_stricter_meanwhile_is_asked_again_P19_KI1(
    live: LiveServer, stricter: Callable[[LiveServer], Awaitable[None]], reason: Reason, when: str
) -> None:
    ada = await live.person("ada")
    await live.admin()
    opened = await live.begin("ada", audience="https://orders.test")
    prompt = await ada.stream.prompt()
    live.clock.advance(40)
    if when == "before the answer":
        await stricter(live)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    if when == "before the session":
        await stricter(live)
    with refused(reason):
        await opened.redeem()
    assert (await live.audit("sign_in.redeem"))[-1].outcome == reason.value


@pytest.mark.parametrize(
    "stricter", [to_hardware, app_to_hardware, app_resistant, overdue, without_ada, off, longer_numbers, short_lived]
)
@pytest.mark.parametrize("approved", ["while it held", "before it", "after it"])
async def test_a_policy_that_is_taken_back_meanwhile_counts_too_P19(
    live: LiveServer, stricter: Callable[[LiveServer], Awaitable[None]], approved: str
) -> None:
    """Flipped at each step: what held at the beginning and at the end is not all that has to be satisfied."""
    ada = await live.person("ada")
    await live.admin()
    start = (await present(live)).version
    opened = await live.begin("ada", audience="https://orders.test")
    prompt = await ada.stream.prompt()
    live.clock.advance(40)
    for step in ("before it", "while it held", "after it"):
        if step == "while it held":
            await stricter(live)
        if step == "after it":
            await roll_back(live, start)
        if step == approved:
            assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    with refused(Reason.POLICY_CHANGED, status=grpc.StatusCode.ABORTED) as refusal:
        await opened.redeem()
    assert refusal.error.metadata["version"] == str(start + 1)
    refusals = [r for r in await live.audit("sign_in.redeem") if r.outcome == Reason.POLICY_CHANGED.value]
    assert [json.loads(r.details)["detail"] for r in refusals] == [refusal.error.metadata["detail"]]
    again = await live.approved(ada, audience="https://orders.test")
    assert (await again.redeem()).session.username == "ada"  # the control: only what was under way is concerned


async def test_a_policy_that_changes_in_something_else_ends_no_sign_in_P19(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.admin()
    opened = await live.approved(ada)
    for length in (12, 10, 8):
        await live.change_policy(access_pass={"length": length})
    assert (await opened.redeem()).session.username == "ada"


async def test_a_policy_that_changes_all_the_time_begins_sign_ins_again_P19(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.admin()
    opened = await live.approved(ada)
    for n in range(MOST_VERSIONS + 1):
        await live.change_policy(access_pass={"length": 10 + n})
    with refused(Reason.POLICY_CHANGED, status=grpc.StatusCode.ABORTED):
        await opened.redeem()


@pytest.mark.parametrize("way", ["prompt", "security key", "same device"])
async def test_ki3_whatever_app_a_client_says_it_is_the_rule_of_the_audience_holds_KI8(
    live: LiveServer, way: str
) -> None:
    """Clients name themselves; the token is good for whoever is its audience."""
    ada = await registered_key(live)
    await live.connect("ada", ada)
    desk = DeviceDesk.open(ada, live.stack)
    bank = {"audience": "https://bank.test"}

    async def begins(**context: str) -> object:
        if way == "same device":
            return await desk.begin(**{"audience": "keyvouch", **context})
        return await (live.begin("ada", **context) if way == "prompt" else begin_with_key(live, "ada", **context))

    def rule(policy: pb.Policy) -> None:
        del policy.apps[:]
        policy.apps.add(app_id="https://bank.test", required_assurance=HARDWARE)

    await begins(app_id="weather", **bank)
    await save(live, rule)
    opened = await begins(app_id="weather")  # the control: another audience
    assert opened
    if way == "security key":
        opened = await begin_with_key(live, "ada", app_id="weather", **bank)
        assert ada.credential.credential_id not in opened.offers
        return
    with refused(Reason.ASSURANCE_TOO_LOW):
        await begins(app_id="weather", **bank)


async def test_a_policy_that_becomes_looser_does_not_loosen_what_was_demanded_P19(live: LiveServer) -> None:
    """A key that no policy of the end would refuse was not enough for that of the beginning."""
    ada = await live.person("ada")
    opened = await live.approved(ada)
    row = await row_of(live, opened.begun.sign_in_id)
    hardware = "hardware/hardware_gated/attested"
    where = {"id": row.id}
    await live.app.store.write(lambda tx: tx.update(type(row), where, {"required_assurance": hardware}))
    await to_gated(live)
    with refused(Reason.ASSURANCE_TOO_LOW):
        await opened.redeem()
    await live.app.store.write(
        lambda tx: tx.update(
            type(row), where, {"required_assurance": row.required_assurance, "phishing_resistant": True}
        )
    )
    with refused(Reason.STRENGTH_REQUIRED):
        await opened.redeem()
    await live.app.store.write(lambda tx: tx.update(type(row), where, {"phishing_resistant": False}))
    assert (await opened.redeem()).session.username == "ada"


# KI1, KI3, PS12: targets, on every way


@pytest.mark.parametrize("kind", ["user", "group"])
async def test_ps12_who_is_left_out_is_refused_on_every_way_and_strangers_do_not_learn_it_KI3(
    live: LiveServer, kind: str
) -> None:
    ada, bob = await registered_key(live), await live.person("bob")
    person = await live.connect("ada", ada)
    mine = (await user_of(live, "ada")).id
    group = await group_of(live, "out", mine)
    left_out = pb.Targets(everybody=True, exclude_users=[mine] if kind == "user" else [], exclude_groups=[group])
    await live.change_policy(approval={"targets": left_out}, security_key={"targets": left_out})
    for begin in (live.begin, lambda name: begin_with_key(live, name)):
        for username in ("ada", "nobody"):  # a stranger's request waits, and comes to no device
            waiting = await begin(username)  # type: ignore[operator]
            with refused(Reason.SIGN_IN_PENDING, status=NOT_NOW):
                await waiting.redeem()
    with_key = await begin_with_key(live, "ada")
    assert ada.credential.credential_id not in with_key.offers
    with refused(Reason.METHOD_NOT_TARGETED, status=NOT_NOW):
        await DeviceDesk.open(ada, live.stack).begin()
    with pytest.raises(Exception, match="does not name") as known:
        await Caller.at(live, OFFICE).begins("ada", known_client=await known_client(live, "ada"))
    assert getattr(known.value, "reason", None) is Reason.METHOD_NOT_TARGETED
    records = [r for r in (await live.audit("sign_in.begin"))[-7:] if r.user_id == mine]
    assert [r.outcome for r in records] == [Reason.METHOD_NOT_TARGETED.value] * 5
    assert (await live.signed_in(bob)).session.username == "bob"
    await nothing_arrives(person.stream)


@pytest.mark.parametrize("for_few", [True, False])
async def test_ps12_a_policy_for_few_or_without_some_hides_who_exists_P12(live: LiveServer, for_few: bool) -> None:
    """Of those it names, of those it does not, and of names that nobody has, a stranger gets the same answer."""
    ada, bob = await live.person("ada"), await live.person("bob")
    mine = (await user_of(live, "ada")).id
    targets = pb.Targets(include_users=[mine]) if for_few else pb.Targets(everybody=True, exclude_users=[mine])
    await live.change_policy(approval={"targets": targets})
    answers = [(await live.begin(username)).begun for username in ("ada", "bob", "nobody")]
    assert len({(tuple(one.methods), len(one.number), one.expires_at, one.ByteSize()) for one in answers}) == 1
    asked, left_out = (ada, bob) if for_few else (bob, ada)
    assert (await asked.stream.prompt()).prompt_id
    await nothing_arrives(left_out.stream)


async def test_ki3_the_name_is_a_hint_and_the_session_is_of_whoever_proved_it(live: LiveServer) -> None:
    ada, bob = await live.person("ada"), await live.person("bob")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    outcome = await bob.stream.send(bob.device.approve(prompt, opened.number))
    assert outcome.reason == Reason.SIGN_IN_UNKNOWN.value
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    assert (await opened.redeem()).session.username == "ada"


# KI8: campaigns


async def test_ki8_a_campaign_is_shown_until_its_day_and_enforced_after_it(live: LiveServer) -> None:
    ada = await live.person("ada")
    day = live.clock.now() + 86400
    await save(live, campaign(day))
    session = await told(live, ada)
    (notice,) = session.campaigns  # type: ignore[attr-defined]
    assert (notice.name, notice.required_by, notice.overdue) == ("keys", day, False)
    live.clock.advance(86400)
    for username in ("ada", "admin"):
        with refused(Reason.METHOD_REQUIRED, status=NOT_NOW):
            await live.begin(username, audience="https://orders.test")
    assert (await live.begin("nobody", audience="https://orders.test")).number
    inside = await told(live, ada, audience="keyvouch")
    assert inside.campaigns[0].overdue  # type: ignore[attr-defined]
    with refused(Reason.METHOD_REQUIRED):
        await DeviceDesk.open(ada.device, live.stack).begin(audience="https://orders.test")


async def test_ki8_who_has_registered_what_is_asked_for_sees_nothing_of_it(live: LiveServer) -> None:
    ada = await live.person("ada")
    await save(live, campaign(live.clock.now() - 1, GATED))
    session = await told(live, ada, audience="https://orders.test")
    assert session.campaigns == ()  # type: ignore[attr-defined]
    await live.app.store.write(
        lambda tx: tx.update(Credential, {"device_id": ada.device.device_id}, {"assurance": "software/none/self"})
    )
    with refused(Reason.METHOD_REQUIRED, Reason.ASSURANCE_TOO_LOW):
        await live.begin("ada", audience="https://orders.test")
