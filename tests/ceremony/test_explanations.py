"""Explanations: which rule decided what, by the rules that sign-in itself asks, and nothing is changed by asking."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, directory_pb2, security_info_pb2
from keyvouch.v1 import oversight_pb2 as pb
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Role, SignIn, User
from keyvouch_server.domain.oversight_model import AuditRecord, Throttle
from support.live_server import LIMIT, LiveServer, refused

HARDWARE = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
    verification=common_pb2.VERIFICATION_HARDWARE_GATED,
    provenance=common_pb2.PROVENANCE_UNATTESTED,
)
NEVER = [AuditRecord, SignIn, Throttle]


async def explain(live: LiveServer, sign_in_id: str = "", **question: Any) -> pb.ExplainSignInResponse:
    """Ask about a sign-in that took place, or about one that Ada would begin at the shop."""
    asked = {"user": "ada", "app_id": "shop", "audience": "keyvouch", **question}
    request = (
        pb.ExplainSignInRequest(sign_in_id=sign_in_id)
        if sign_in_id
        else pb.ExplainSignInRequest(question=pb.SignInQuestion(**asked))
    )
    call = live.connection.oversight.ExplainSignIn(request, metadata=await live.admin(), timeout=LIMIT)
    told: pb.ExplainSignInResponse = await answer(call)
    return told


def deciding(told: pb.ExplainSignInResponse) -> tuple[str, str]:
    """The rule that refused, and its reason."""
    first = next(r for r in told.rules if r.outcome == common_pb2.RULE_OUTCOME_REFUSED)
    return first.rule, first.reason


async def begin_refusal(live: LiveServer, **context: Any) -> Reason | None:
    """What a sign-in of Ada's meets when it is begun."""
    try:
        opened = await live.begin("ada", **context)
    except KeyvouchError as error:
        return error.reason
    await opened.cancel()
    return None


async def rows(live: LiveServer) -> list[int]:
    return [await live.app.store.read(lambda tx, kind=kind: tx.count(kind, {})) for kind in NEVER]


async def test_a_sign_in_that_would_be_let_through_is_told_rule_by_rule(live: LiveServer):
    ada = await live.person("ada")
    told = await explain(live)
    assert told.allowed
    assert told.policy_version == 1
    rules = {r.rule: r for r in told.rules}
    assert {"approval.enabled", "approval.targets", "phishing_resistance", "throttle.user"} <= rules.keys()
    own = [r for r in told.rules if r.rule.startswith(f"key.{ada.device.device_id}")]
    assert own
    assert {r.outcome for r in told.rules} == {
        common_pb2.RULE_OUTCOME_ALLOWED,
        common_pb2.RULE_OUTCOME_NOT_CONCERNED,
    }
    assert await begin_refusal(live) is None


async def test_nothing_is_written_and_nobody_is_asked(live: LiveServer):
    ada = await live.person("ada")
    await explain(live)  # whatever a session writes when it is made is there by now
    before = await rows(live)
    for method in (common_pb2.SIGN_IN_METHOD_APPROVAL, common_pb2.SIGN_IN_METHOD_SECURITY_KEY):
        for _ in range(5):
            await explain(live, method=method)
    assert await rows(live) == before
    with pytest.raises(TimeoutError):
        await ada.stream.prompt(0.1)


@pytest.mark.parametrize(
    ("policy", "question", "rule", "reason"),
    [
        ({"approval": {"enabled": False}}, {}, "approval.enabled", Reason.METHOD_DISABLED),
        ({}, {"phishing_resistant": True}, "phishing_resistance", Reason.STRENGTH_REQUIRED),
        ({"approval": {"required_assurance": HARDWARE}}, {}, "required_assurance", Reason.ASSURANCE_TOO_LOW),
        ({}, {"required_assurance": HARDWARE}, "required_assurance", Reason.ASSURANCE_TOO_LOW),
    ],
)
async def test_the_rule_that_refuses_is_the_one_that_a_sign_in_would_meet(
    live: LiveServer, policy: dict[str, Any], question: dict[str, Any], rule: str, reason: Reason
):
    await live.person("ada")
    await live.admin()
    await live.change_policy(**policy)
    told = await explain(live, **question)
    assert not told.allowed
    assert deciding(told) == (rule, reason.value)
    asks_for_more = "required_assurance" in question  # then a stranger is not told, and nobody is asked (P12)
    assert await begin_refusal(live, **question) is (None if asks_for_more else reason)


async def test_a_user_outside_the_targets_is_told_precisely_to_administrators_alone_PS12(live: LiveServer):
    await live.person("ada")
    user_id = (await explain(live)).user_id
    policy = (await live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy
    policy.approval.targets.exclude_users.append(user_id)
    await live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy, accept_lock_out=True))
    assert deciding(await explain(live)) == ("approval.targets", "method_not_targeted")
    waiting = await live.begin("ada")  # a stranger is not even told that somebody is left out
    assert deciding(await explain(live, waiting.begun.sign_in_id)) == ("approval.targets", "method_not_targeted")


async def test_each_key_is_told_whether_it_counts_and_why_not(live: LiveServer):
    ada = await live.person("ada")
    told = await explain(live, required_assurance=HARDWARE)
    key = next(r for r in told.rules if r.rule == f"key.{ada.device.device_id}.required_assurance")
    assert key.outcome == common_pb2.RULE_OUTCOME_REFUSED
    assert "software/software_gated" in key.detail
    told = await explain(live)
    key = next(r for r in told.rules if r.rule == f"key.{ada.device.device_id}.required_assurance")
    assert key.outcome == common_pb2.RULE_OUTCOME_ALLOWED


async def test_a_user_without_any_key_would_have_nobody_to_ask(live: LiveServer):
    await live.create_user("ada")
    told = await explain(live)
    assert not told.allowed
    assert deciding(told) == ("keys", "no_method")


async def test_a_budget_that_is_used_up_is_told_and_not_touched_P1(live: LiveServer):
    await live.person("ada")
    for _ in range(3):
        assert await begin_refusal(live) is None
    assert deciding(await explain(live)) == ("throttle.user", "throttled")
    live.clock.advance(3600)
    assert (await explain(live)).allowed


async def test_wrong_numbers_rest_the_method_and_the_explanation_says_so(live: LiveServer):
    await live.person("ada")
    until = live.clock.now() + 60
    await live.app.store.write(lambda tx: tx.update(User, {"username_key": "ada"}, {"locked_until": until}))
    assert deciding(await explain(live)) == ("throttle.wrong_numbers", "throttled")
    assert deciding(await explain(live, method=common_pb2.SIGN_IN_METHOD_SECURITY_KEY)) == ("keys", "no_method")
    live.clock.advance(60)
    assert (await explain(live)).allowed


async def test_an_access_pass_is_explained_too(live: LiveServer):
    await live.create_user("ada")
    asked = {"method": common_pb2.SIGN_IN_METHOD_ACCESS_PASS}
    assert deciding(await explain(live, **asked)) == ("access_pass.usable", "access_pass_none")
    await live.issue_pass("ada")
    assert (await explain(live, **asked)).allowed
    live.clock.advance(3600)
    assert deciding(await explain(live, **asked)) == ("access_pass.usable", "access_pass_expired")
    await live.change_policy(access_pass={"enabled": False})
    assert deciding(await explain(live, **asked)) == ("access_pass.enabled", "method_disabled")


async def test_a_sign_in_that_took_place_is_told_as_it_was_then(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.approved(ada)
    await live.change_policy(approval={"enabled": False})
    told = await explain(live, opened.begun.sign_in_id)
    assert (told.allowed, told.policy_version, told.state) == (True, 1, common_pb2.SIGN_IN_STATE_APPROVED)
    assert "approval.enabled" in {r.rule for r in told.rules}
    assert told.user_id == (await explain(live)).user_id
    assert not (await explain(live)).allowed


async def test_what_refused_a_sign_in_at_its_redemption_is_told_KI1_P19(live: LiveServer):
    opened = await live.approved(await live.person("ada"))
    sign_in_id = opened.begun.sign_in_id
    await live.change_policy(approval={"enabled": False})
    for _ in range(3):  # however often it is tried
        with refused(Reason.METHOD_DISABLED):
            await opened.redeem()
    told = await explain(live, sign_in_id)
    assert (told.allowed, told.state) == (False, common_pb2.SIGN_IN_STATE_APPROVED)
    assert deciding(told) == ("redemption", "method_disabled")
    assert [r.rule for r in told.rules].count("redemption") == 1
    assert told.rules[-1].rule == "redemption"
    assert told.rules[-1].detail


async def test_a_redemption_that_was_refused_and_then_let_through_ends_allowed(live: LiveServer):
    await live.person("ada")
    directory, admin = live.connection.directory, await live.admin()
    made = await answer(directory.CreateGroup(directory_pb2.CreateGroupRequest(name="on leave"), metadata=admin))
    policy = (await live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy
    policy.approval.targets.exclude_groups.append(made.group.group_id)
    await live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy))
    opened = await live.approved(live.people["ada"])
    member = {"group": "on leave", "user": "ada"}
    await answer(directory.AddGroupMember(directory_pb2.AddGroupMemberRequest(**member), metadata=admin))
    with refused(Reason.METHOD_NOT_TARGETED):
        await opened.redeem()
    assert deciding(await explain(live, opened.begun.sign_in_id)) == ("redemption", "method_not_targeted")
    await answer(directory.RemoveGroupMember(directory_pb2.RemoveGroupMemberRequest(**member), metadata=admin))
    await opened.redeem()
    told = await explain(live, opened.begun.sign_in_id)
    assert (told.allowed, told.state) == (True, common_pb2.SIGN_IN_STATE_CONSUMED)
    assert told.rules[-1].rule == "redemption"


async def test_the_user_asks_the_same_of_the_present_session(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.approved(ada)
    signed_in = await opened.redeem()
    request = security_info_pb2.ExplainOwnSignInRequest()
    call = live.connection.security_info.ExplainOwnSignIn(request, metadata=signed_in.metadata, timeout=LIMIT)
    assert list((await answer(call)).rules) == list((await explain(live, opened.begun.sign_in_id)).rules)


async def test_sign_ins_of_other_tenants_and_of_nobody_are_unknown(live: LiveServer):
    person, _ = await live.tenant("other")
    theirs = await live.approved(person, audience="keyvouch")
    for unknown in (theirs.begun.sign_in_id, "sgn_x"):
        with refused(Reason.SIGN_IN_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
            await explain(live, unknown)
    for user in ("nobody", theirs.begun.sign_in_id, ""):
        with refused(Reason.USER_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
            await explain(live, user=user)
    for wrong in ({"app_id": ""}, {"method": 99}, {"audience": "x" * 300}):
        with refused(Reason.FIELD_INVALID):
            await explain(live, **wrong)


async def test_administrators_alone_ask(live: LiveServer):
    signed_in = await live.signed_in(await live.person("ada"))
    reader = await live.signed_in(await live.person("reader", Role.GLOBAL_READER))
    request = pb.ExplainSignInRequest(question=pb.SignInQuestion(user="ada", app_id="shop"))
    call = live.connection.oversight.ExplainSignIn
    assert (await answer(call(request, metadata=reader.metadata, timeout=LIMIT))).allowed
    with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
        await answer(call(request, metadata=signed_in.metadata, timeout=LIMIT))
