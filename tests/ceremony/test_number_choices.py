"""What a sign-in keeps of the rules and of its approval; the number under the NIST profile and in the legacy choice."""

from __future__ import annotations

import json

from keyvouch import cbor
from keyvouch.errors import Reason
from keyvouch.statement import Decision, DecisionStatement
from keyvouch_server.domain.model import Role, SignInWay
from support.live_server import LiveServer, refused
from support.strangers import OFFICE, Caller, row_of

# what each rule said, and what approved it


async def test_a_sign_in_keeps_what_each_rule_said_and_what_approved_it(live: LiveServer) -> None:
    ada = await live.person("ada")
    opened = await live.approved(ada)
    row = await row_of(live, opened.begun.sign_in_id)
    rules = {one["rule"]: one["outcome"] for one in json.loads(row.rules)}
    assert rules["approval.enabled"] == rules["approval.targets"] == rules["required_assurance"] == "allowed"
    assert rules[f"key.{ada.device.device_id}"] == "allowed"
    assert rules["app"] == rules["campaigns"] == "not_concerned"
    evidence = cbor.decode(row.evidence)
    assert isinstance(evidence, dict)
    assert sorted(evidence) == list(range(1, 8))
    statement = DecisionStatement.parse(evidence[1])  # type: ignore[arg-type]
    assert (statement.decision, statement.number) == (Decision.APPROVE, opened.number)
    assert evidence[2] == ada.device.credential.credential_id
    session = (await opened.redeem()).session
    kept = await live.app.sessions.caller(session.session_id)
    assert (kept.session.sign_in_id, kept.session.address) == (row.id, "127.0.0.1")


async def test_a_denial_leaves_no_evidence_of_an_approval(live: LiveServer) -> None:
    ada = await live.person("ada")
    opened = await live.begin("ada")
    await ada.stream.send(ada.device.refuse(await ada.stream.prompt(), Decision.DENY))
    assert (await row_of(live, opened.begun.sign_in_id)).evidence == b""


# the profile, and the legacy choice


async def test_the_nist_profile_draws_six_digits_at_least(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.change_policy(approval={"number_digits": 6}, sign_in={"profile": "nist-800-63b-4"})
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    assert (len(opened.number), prompt.number_digits) == (6, 6)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted


async def test_the_legacy_choice_shows_three_numbers_and_is_labelled_weaker(live: LiveServer) -> None:
    ada = await live.person("ada")
    plain = await live.begin("ada")
    assert list((await ada.stream.prompt()).number_choices) == []
    assert plain.number
    await live.change_policy(approval={"legacy_choice_of_three": True, "begins_per_minute": 100})
    places = set()
    for _ in range(30):
        opened = await live.begin("ada")
        choices = list((prompt := await ada.stream.prompt()).number_choices)
        assert len(set(choices)) == 3
        assert all(len(one) == 2 and one.isdigit() for one in choices)
        places.add(choices.index(opened.number))
    assert places == {0, 1, 2}
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    session = await opened.redeem()
    assert session.session.acr == "number-chosen"
    reconnected = await live.begin("ada")
    again = await ada.stream.prompt()
    wrong = next(one for one in again.number_choices if one != reconnected.number)
    assert (await ada.stream.send(ada.device.approve(again, wrong))).reason == Reason.NUMBER_MISMATCH.value


async def test_the_legacy_choice_is_never_for_administrators_nor_beside_the_nist_profile(live: LiveServer) -> None:
    eve, ada = await live.person("eve", Role.GLOBAL_READER), await live.person("ada")
    opened = await live.begin("ada")
    await ada.stream.prompt()
    await live.change_policy(approval={"legacy_choice_of_three": True})
    await live.begin("eve")
    assert list((await eve.stream.prompt()).number_choices) == []
    chosen = await live.approved(ada)
    await live.change_policy(approval={"legacy_choice_of_three": False})
    with refused(Reason.POLICY_CHANGED):
        await chosen.redeem()
    with refused(Reason.POLICY_INVALID):
        await live.change_policy(
            approval={"legacy_choice_of_three": True, "number_digits": 6}, sign_in={"profile": "nist-800-63b-4"}
        )
    assert opened.number


async def test_prompts_of_a_choice_come_again_after_a_reconnect(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.change_policy(approval={"legacy_choice_of_three": True})
    begun = await Caller.at(live, OFFICE).begins("ada")
    first = await ada.stream.prompt()
    again = await live.app.decisions.open_prompts(begun.prompts[0].device_id)
    assert [list(asked.choices) for _, asked in again] == [list(first.number_choices)]
    with_key = await Caller.at(live, OFFICE).begins("ada", way=SignInWay.SECURITY_KEY)
    assert with_key.sign_in.choices == ""
