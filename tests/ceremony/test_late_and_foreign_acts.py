"""Acts that come a moment too late, from the wrong device of the right person, or on too weak a ground."""

from __future__ import annotations

import grpc
import pytest

from keyvouch.errors import Reason, UnauthenticatedError
from keyvouch.statement import Decision
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2
from keyvouch_server.domain.model import Device, Role, SignInState, User
from keyvouch_server.use_cases.judgement import Answer, Assertion
from support.live_server import LiveServer, Person, refused

SOFTWARE = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_ANY,
    verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
    provenance=common_pb2.PROVENANCE_SELF,
)
HARDWARE = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
    verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
    provenance=common_pb2.PROVENANCE_UNATTESTED,
)


async def device_row(live: LiveServer, device_id: str) -> Device:
    found = await live.app.store.read(lambda tx: tx.get(Device, id=device_id))
    assert found is not None
    return found


async def two_devices(live: LiveServer) -> tuple[Person, Person]:
    """One person with two devices, both online."""
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    first, second = await live.enrol("ada", code), await live.enrol("ada", code)
    return await live.connect("ada", first), await live.connect("ada", second)


@pytest.mark.parametrize("decision", [Decision.DENY, Decision.REPORT])
async def test_a_device_cannot_refuse_in_the_name_of_another(live: LiveServer, decision: Decision):
    first, second = await two_devices(live)
    opened = await live.begin("ada")
    theirs, own = await first.stream.prompt(), await second.stream.prompt()
    outcome = await second.stream.send(second.device.refuse(theirs, decision))
    assert (outcome.accepted, outcome.reason) == (False, Reason.SIGN_IN_UNKNOWN)
    assert await opened.state() == common_pb2.SIGN_IN_STATE_PENDING
    assert (await second.stream.send(second.device.refuse(own, decision))).accepted


async def test_a_device_cannot_approve_in_the_name_of_another(live: LiveServer):
    first, second = await two_devices(live)
    opened = await live.begin("ada")
    theirs, own = await first.stream.prompt(), await second.stream.prompt()
    outcome = await second.stream.send(second.device.approve(theirs, opened.number))
    assert (outcome.accepted, outcome.reason) == (False, Reason.SIGN_IN_UNKNOWN)
    assert (await second.stream.send(second.device.approve(own, opened.number))).accepted


@pytest.mark.parametrize("late", [False, True])
async def test_an_answer_counts_until_the_expiry_even_before_the_sweep_P20(live: LiveServer, late: bool):
    ada = await live.person("ada")
    await live.begin("ada")
    prompt = await ada.stream.prompt()
    refusal = ada.device.refuse(prompt, Decision.DENY)
    answer = Answer(refusal.prompt_id, refusal.statement, refusal.channel_signature)
    row = await device_row(live, ada.device.device_id)
    live.clock.advance(prompt.expires_at - live.clock.now() - (0 if late else 1))
    answered = await live.app.decisions.answer(row, answer)
    assert answered.state is (SignInState.EXPIRED if late else SignInState.DENIED)
    assert (answered.refusal is None) is not late


async def test_an_approval_after_the_expiry_is_worth_nothing_P20(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    given = ada.device.approve(prompt, opened.number)
    a = given.assertion
    evidence = Assertion(a.credential_id, a.client_data_json, a.authenticator_data, a.signature, a.user_handle)
    row = await device_row(live, ada.device.device_id)
    live.clock.advance(prompt.expires_at - live.clock.now())
    answered = await live.app.decisions.answer(row, Answer(given.prompt_id, given.statement, evidence))
    assert answered.refusal is not None
    assert answered.refusal.reason is Reason.SIGN_IN_EXPIRED


async def test_a_session_that_ended_since_it_was_admitted_does_nothing_any_more(live: LiveServer):
    admin = await live.signed_in(await live.person("helen", Role.GLOBAL_ADMINISTRATOR))
    caller = await live.app.sessions.caller(admin.session.session_id)
    await live.app.directory.create(caller, "before", "", Role.USER)
    await live.app.sessions.revoke(caller, "")
    with pytest.raises(UnauthenticatedError) as caught:
        await live.app.directory.create(caller, "after", "", Role.USER)
    assert caught.value.reason is Reason.SESSION_REVOKED
    made = await live.app.store.read(lambda tx: tx.find(User, {"tenant_id": caller.user.tenant_id}))
    assert {"before"} == {u.username for u in made} & {"before", "after"}


async def test_a_key_below_what_registration_requires_registers_no_device_H8(live: LiveServer):
    await live.create_user("ada")
    code = await live.issue_pass("ada")
    await live.change_policy(registration={"required_assurance": HARDWARE})
    with refused(Reason.ASSURANCE_TOO_LOW, status=grpc.StatusCode.FAILED_PRECONDITION):
        await live.enrol("ada", code)
    users = await live.app.store.read(lambda tx: tx.find(User, {"username_key": "ada"}))
    assert await live.app.store.read(lambda tx: tx.count(Device, {"user_id": users[0].id})) == 0
    assert [r.outcome for r in await live.audit("registration.complete")][-1] == Reason.ASSURANCE_TOO_LOW.value
    await live.change_policy(registration={"required_assurance": SOFTWARE})
    await live.enrol("ada", code)


@pytest.mark.parametrize("away", [-1, 1, 50])
async def test_a_policy_is_saved_over_the_version_that_was_seen_and_no_other(live: LiveServer, away: int):
    await live.change_policy(approval={"number_digits": 3})
    policy = (await live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy
    policy.version += away
    policy.approval.number_digits = 4
    with refused(Reason.POLICY_CHANGED, status=grpc.StatusCode.ABORTED):
        await live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy))
    policy.version -= away
    saved = (await live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy))).policy
    assert (saved.version, saved.approval.number_digits) == (policy.version + 1, 4)
