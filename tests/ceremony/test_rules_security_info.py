"""Security info: what a person has to sign in with, how each counts, and what to look at (PS6, PS19)."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from keyvouch.errors import Reason
from keyvouch.receipt import verify_receipt
from keyvouch.statement import Decision
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2
from keyvouch.v1 import security_info_pb2 as pb
from keyvouch_bench.device import AAGUID
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Device, Session, User
from keyvouch_server.domain.oversight_model import RiskEvent, RiskKind
from support.live_server import LIMIT, LiveServer, Metadata, Person, refused
from support.registering import begin, complete

APPROVAL = common_pb2.SIGN_IN_METHOD_APPROVAL
SECURITY_KEY = common_pb2.SIGN_IN_METHOD_SECURITY_KEY
ACCESS_PASS = common_pb2.SIGN_IN_METHOD_ACCESS_PASS
ONE_DEVICE = "You have one device. If it is lost, only an administrator can help you: enrol a second one."


async def call(live: LiveServer, rpc: str, session: Metadata, **fields: Any) -> Any:
    """One call of SecurityInfoService."""
    request = getattr(pb, f"{rpc}Request")(**fields)
    return await answer(getattr(live.connection.security_info, rpc)(request, metadata=session, timeout=LIMIT))


async def info_of(live: LiveServer, session: Metadata) -> pb.GetSecurityInfoResponse:
    told: pb.GetSecurityInfoResponse = await call(live, "GetSecurityInfo", session)
    return told


def reasons(info: pb.GetSecurityInfoResponse) -> dict[int, str]:
    """Why each method cannot be used; empty where it can."""
    assert all(
        state.usable is (not state.reason) and bool(state.message) is bool(state.reason) for state in info.methods
    )
    return {int(state.method): state.reason for state in info.methods}


async def signed_in(live: LiveServer, person: Person) -> Metadata:
    return (await live.signed_in(person)).metadata


# -- methods -------------------------------------------------------------------------------------------------------


async def test_methods_say_whether_they_can_be_used_and_why_not(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    info = await info_of(live, session)
    assert reasons(info) == {APPROVAL: "no_method", SECURITY_KEY: "no_method", ACCESS_PASS: ""}
    assert info.warnings[0].startswith("No device can approve your sign-ins yet.")
    await complete(live, await begin(live, session))
    info = await info_of(live, session)
    assert reasons(info) == {APPROVAL: "", SECURITY_KEY: "no_method", ACCESS_PASS: ""}
    assert info.warnings[0] == ONE_DEVICE
    await complete(live, await begin(live, session, name="key", provider=common_pb2.PROVIDER_KIND_FIDO2))
    info = await info_of(live, session)
    assert reasons(info) == dict.fromkeys((APPROVAL, SECURITY_KEY, ACCESS_PASS), "")
    assert ONE_DEVICE not in info.warnings


async def test_a_method_counts_as_policy_sees_it_now_H8(live: LiveServer):
    ada = await live.person("ada")
    session = await signed_in(live, ada)
    assert reasons(await info_of(live, session))[APPROVAL] == ""  # control
    hardware = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_ATTESTED,
    )
    await live.change_policy(approval={"required_assurance": hardware})
    assert reasons(await info_of(live, session))[APPROVAL] == "assurance_too_low"
    await live.change_policy(approval={"enabled": False}, access_pass={"enabled": False})
    found = reasons(await info_of(live, session))
    assert (found[APPROVAL], found[ACCESS_PASS]) == ("method_disabled", "method_disabled")


async def test_a_method_that_rests_after_wrong_numbers_says_so(live: LiveServer):
    ada = await live.person("ada")
    session = await signed_in(live, ada)
    until = live.clock.now() + 300
    await live.app.store.write(lambda tx: tx.update(User, {"username": "ada"}, {"locked_until": until}))
    assert reasons(await info_of(live, session))[APPROVAL] == "throttled"
    live.clock.advance(301)
    assert reasons(await info_of(live, session))[APPROVAL] == ""


async def test_last_use_of_each_method_is_told(live: LiveServer):
    ada = await live.person("ada")
    used_pass = live.clock.now()
    live.clock.advance(100)
    session = await signed_in(live, ada)
    uses = {int(s.method): s.last_used_at for s in (await info_of(live, session)).methods}
    assert uses == {APPROVAL: live.clock.now(), SECURITY_KEY: 0, ACCESS_PASS: used_pass}


async def test_a_device_tells_its_model_and_where_it_is_connected(live: LiveServer):
    ada = await live.person("ada")
    device = (await info_of(live, await signed_in(live, ada))).devices[0]
    assert device.aaguid == AAGUID
    assert device.connected
    assert device.last_used_at == live.clock.now()


async def test_a_pass_that_ends_soon_is_warned_of(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada", lifetime_minutes=120))
    assert not any("ends with your access pass" in w for w in (await info_of(live, session)).warnings)
    live.clock.advance(90 * 60)
    assert any("in 30 min" in w for w in (await info_of(live, session)).warnings)


async def test_a_report_that_nobody_has_closed_is_warned_of_P1(live: LiveServer):
    bob = await live.person("bob")
    session = await signed_in(live, bob)
    assert not any("reported" in w for w in (await info_of(live, session)).warnings)
    await live.begin("bob")
    await bob.stream.send(bob.device.refuse(await bob.stream.prompt(), Decision.REPORT))
    assert any("You reported a sign-in" in w for w in (await info_of(live, session)).warnings)


async def test_a_campaign_is_told_until_it_is_fulfilled_KI8(live: LiveServer):
    ada = await live.person("ada")
    session = await signed_in(live, ada)
    assert not (await info_of(live, session)).campaigns
    wanted = admin_pb.Campaign(name="hardware", required_by=live.clock.now() + 86400)
    wanted.targets.everybody = True
    wanted.required_assurance.protection = common_pb2.REQUIRED_PROTECTION_HARDWARE
    wanted.required_assurance.verification = common_pb2.VERIFICATION_HARDWARE_GATED
    wanted.required_assurance.provenance = common_pb2.PROVENANCE_UNATTESTED
    policy = (await live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy
    policy.campaigns.append(wanted)
    await live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy, accept_lock_out=True))
    assert [(c.name, c.overdue) for c in (await info_of(live, session)).campaigns] == [("hardware", False)]
    live.clock.advance(86401)
    again = await signed_in(live, ada)
    assert [(c.name, c.overdue) for c in (await info_of(live, again)).campaigns] == [("hardware", True)]


# -- lost or replaced ----------------------------------------------------------------------------------------------


async def test_ps19_whoever_comes_with_a_new_pass_is_asked_and_nobody_else_T10_KI12(live: LiveServer):
    await live.create_user("ada")
    first = await live.pass_session("ada", await live.issue_pass("ada"))
    assert not (await info_of(live, first)).ask_lost_or_replaced
    old = await complete(live, await begin(live, first, name="old"))
    assert not (await info_of(live, first)).ask_lost_or_replaced  # it came with this very pass
    later = await live.pass_session("ada", await live.issue_pass_again("ada"))
    assert (await info_of(live, later)).ask_lost_or_replaced
    await complete(live, await begin(live, later, name="new"))
    assert (await info_of(live, later)).ask_lost_or_replaced  # T10: after the new one is there, too
    await call(live, "RemoveDevice", later, device_id=old.device.device_id, fate=common_pb2.DEVICE_FATE_LOST)
    assert not (await info_of(live, later)).ask_lost_or_replaced
    ada = await live.person("bob")
    assert not (await info_of(live, await signed_in(live, ada))).ask_lost_or_replaced


async def test_ps19_a_device_removed_as_lost_is_told_to_the_administrators_PS18(live: LiveServer):
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    other = await live.signed_in(ada)
    await complete(live, await begin(live, session.metadata, name="second"))
    fate = common_pb2.DEVICE_FATE_LOST
    done = await call(live, "RemoveDevice", session.metadata, device_id=ada.device.device_id, fate=fate)
    assert done.revoked_sessions == 2  # also the present one: it was approved by the device that is gone
    for ended in (session, other):
        with refused(Reason.SESSION_REVOKED):
            await ended.introspect()
    events = await live.app.store.read(lambda tx: tx.find(RiskEvent, {}))
    assert [(e.kind, e.subject) for e in events] == [(RiskKind.DEVICE_LOST, ada.device.device_id)]
    record = (await live.audit("device.remove"))[0]
    assert '"fate": "lost"' in record.details
    assert '"left": "1"' in record.details


async def test_the_last_device_goes_too_and_the_audit_log_says_that_none_is_left(live: LiveServer):
    ada = await live.person("ada")
    session = await live.pass_session("ada", await live.issue_pass_again("ada"))
    await call(live, "RemoveDevice", session, device_id=ada.device.device_id)
    record = (await live.audit("device.remove"))[0]
    assert '"left": "0"' in record.details
    assert '"fate": "unused"' in record.details
    assert not await live.app.store.read(lambda tx: tx.find(RiskEvent, {}))
    assert (await info_of(live, session)).warnings[0].startswith("No device can approve")


# -- changing ------------------------------------------------------------------------------------------------------


async def test_a_device_gets_another_name_and_somebody_elses_does_not(live: LiveServer):
    ada, bob = await live.person("ada"), await live.person("bob")
    session = await signed_in(live, ada)
    done = await call(live, "RenameDevice", session, device_id=ada.device.device_id, display_name="Phone of Ada")
    assert done.device.display_name == "Phone of Ada"
    assert (await info_of(live, session)).devices[0].display_name == "Phone of Ada"
    assert [r.subject for r in await live.audit("device.rename")] == [ada.device.device_id]
    before = await live.app.store.read(lambda tx: tx.get(Device, id=bob.device.device_id))
    for unknown in (bob.device.device_id, "dev_" + "a" * 26, ""):
        with refused(Reason.DEVICE_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
            await call(live, "RenameDevice", session, device_id=unknown, display_name="mine")
    assert await live.app.store.read(lambda tx: tx.get(Device, id=bob.device.device_id)) == before


@pytest.mark.parametrize("name", ["", "x" * 65, "line\nbreak", "right\u202eleft"])
async def test_a_name_that_nobody_can_read_is_refused(live: LiveServer, name: str):
    ada = await live.person("ada")
    session = await signed_in(live, ada)
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
        await call(live, "RenameDevice", session, device_id=ada.device.device_id, display_name=name)


async def test_ps6_the_default_method_is_what_the_person_sets_and_has_a_key_for(live: LiveServer):
    ada = await live.person("ada")
    session = await signed_in(live, ada)
    assert (await info_of(live, session)).default_method == 0
    await call(live, "SetDefaultMethod", session, method=APPROVAL)
    assert (await info_of(live, session)).default_method == APPROVAL
    with refused(Reason.NO_METHOD, status=grpc.StatusCode.FAILED_PRECONDITION):
        await call(live, "SetDefaultMethod", session, method=SECURITY_KEY)
    for no_default in (ACCESS_PASS, 77):
        with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
            await call(live, "SetDefaultMethod", session, method=no_default)
    assert (await info_of(live, session)).default_method == APPROVAL
    await call(live, "SetDefaultMethod", session)
    assert (await info_of(live, session)).default_method == 0
    assert len(await live.audit("user.set_default_method")) == 2


async def test_every_other_session_ends_and_the_present_one_stays(live: LiveServer):
    ada, bob = await live.person("ada"), await live.person("bob")
    sessions = [await live.signed_in(ada) for _ in range(3)]
    elsewhere, opened = await live.signed_in(bob), await live.approved(ada)
    ended = await call(live, "RevokeOtherSessions", sessions[0].metadata)
    assert ended.revoked_sessions >= 2
    for other in sessions[1:]:
        with refused(Reason.SESSION_REVOKED):
            await other.introspect()
    with refused(Reason.SIGN_IN_CANCELLED):  # it would be one more session a moment later
        await opened.redeem()
    assert not (await sessions[0].introspect()).session.revoked
    assert not (await elsewhere.introspect()).session.revoked


async def test_a_session_of_a_pass_ends_no_others_and_has_no_receipt_T8(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    for method in ("RevokeOtherSessions", "GetOwnReceipt", "ExplainOwnSignIn"):
        with refused(Reason.SESSION_PURPOSE):
            await call(live, method, session)


async def test_a_sign_in_explains_itself_and_gives_its_receipt(live: LiveServer):
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    told = await call(live, "ExplainOwnSignIn", session.metadata)
    assert told.policy_version == 1
    assert "approval.enabled" in {rule.rule for rule in told.rules}
    assert {rule.outcome for rule in told.rules} <= {
        common_pb2.RULE_OUTCOME_ALLOWED,
        common_pb2.RULE_OUTCOME_NOT_CONCERNED,
    }
    own = await call(live, "GetOwnReceipt", session.metadata)
    named = await call(live, "GetOwnReceipt", session.metadata, session_id=session.session.session_id)
    server_id = live.app.world.facts.server_id
    present, by_id = (verify_receipt(one.receipt, server_id=server_id).receipt for one in (own, named))
    assert present == by_id
    assert present.session_id == session.session.session_id
    bob = await live.signed_in(await live.person("bob"))
    with refused(Reason.SESSION_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
        await call(live, "GetOwnReceipt", bob.metadata, session_id=session.session.session_id)


async def test_an_ended_session_changes_nothing_any_more(live: LiveServer):
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    await complete(live, await begin(live, session.metadata, name="second"))
    now = live.clock.now()
    await live.app.store.write(
        lambda tx: tx.update(Session, {"id": session.session.session_id}, {"revoked_at": now, "revoke_reason": "test"})
    )
    for method, fields in (
        ("RemoveDevice", {"device_id": ada.device.device_id}),
        ("RenameDevice", {"device_id": ada.device.device_id, "display_name": "x"}),
        ("SetDefaultMethod", {"method": APPROVAL}),
    ):
        with refused(Reason.SESSION_REVOKED):
            await call(live, method, session.metadata, **fields)
    assert await live.app.store.read(lambda tx: tx.count(Device, {"id": ada.device.device_id})) == 1
