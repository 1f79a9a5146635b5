"""Lost or replaced (PS19, T10): old devices go with their sessions in the transaction in which the new one comes."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import administration_pb2, common_pb2, enrolment_pb2
from keyvouch_bench.device import BenchDevice
from keyvouch_server.domain.model import Device, Registration, Session, SignIn, SignInState
from keyvouch_server.domain.oversight_model import RiskEvent, RiskKind
from support.live_server import LiveServer, refused
from support.registering import BegunRegistration, begin, complete

LOST = common_pb2.DEVICE_FATE_LOST
REPLACED = common_pb2.DEVICE_FATE_REPLACED


def answer_with(begun: BegunRegistration, **departing: int) -> enrolment_pb2.CompleteRegistrationRequest:
    """The device's answer, with devices that go by what becomes of them."""
    given = enrolment_pb2.CompleteRegistrationRequest()
    given.CopyFrom(begun.answer)
    for device_id, fate in departing.items():
        given.departing.append(enrolment_pb2.DepartingDevice(device_id=device_id, fate=fate))  # type: ignore[arg-type]
    return given


async def devices_of(live: LiveServer, user_id: str) -> set[str]:
    return {d.id for d in await live.app.store.read(lambda tx: tx.find(Device, {"user_id": user_id}))}


async def test_ps19_the_lost_device_its_sessions_and_its_approvals_go_when_the_new_one_comes_T10_KI12(live: LiveServer):
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    unused = await live.approved(ada)
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada")), name="new phone")
    assert [d.device_id for d in begun.begun.present_devices] == [ada.device.device_id]
    session = await live.signed_in(ada)
    unused = await live.approved(ada)
    done = await complete(live, begun, answer_with(begun, **{ada.device.device_id: LOST}))
    assert list(done.removed_device_ids) == [ada.device.device_id]
    assert done.revoked_sessions == 1
    assert await devices_of(live, session.session.user_id) == {done.device.device_id}
    with refused(Reason.SESSION_REVOKED):
        await session.introspect()
    with refused(Reason.SIGN_IN_CANCELLED):
        await unused.redeem()
    with refused(Reason.DEVICE_REMOVED):
        await ada.stream.prompt()


async def test_ps19_of_a_lost_device_the_administrators_are_told_and_of_a_replaced_one_not(live: LiveServer):
    ada = await live.person("ada")
    second = await complete(live, await begin(live, (await live.signed_in(ada)).metadata, name="second"))
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    given = answer_with(begun, **{ada.device.device_id: REPLACED, second.device.device_id: LOST})
    done = await complete(live, begun, given)
    assert set(done.removed_device_ids) == {ada.device.device_id, second.device.device_id}
    events = await live.app.store.read(lambda tx: tx.find(RiskEvent, {}))
    assert [(e.kind, e.subject) for e in events] == [(RiskKind.DEVICE_LOST, second.device.device_id)]
    fates = {r.subject: r.details for r in await live.audit("device.remove")}
    assert '"fate": "replaced"' in fates[ada.device.device_id]
    assert '"fate": "lost"' in fates[second.device.device_id]


async def test_ps19_the_same_answer_again_gets_the_same_reply_and_another_list_of_devices_none(live: LiveServer):
    ada = await live.person("ada")
    await live.signed_in(ada)
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    await live.signed_in(ada)
    given = answer_with(begun, **{ada.device.device_id: REPLACED})
    first = await complete(live, begun, given)
    again = await complete(live, begun, given)
    assert (again.removed_device_ids, again.revoked_sessions) == (first.removed_device_ids, first.revoked_sessions)
    assert again.device.device_id == first.device.device_id
    assert len(await live.audit("device.remove")) == 1
    for other in (begun.answer, answer_with(begun, **{ada.device.device_id: LOST})):
        with refused(Reason.REGISTRATION_CONSUMED):
            await complete(live, begun, other)


async def test_ps19_copies_of_one_answer_raced_remove_the_device_once(live: LiveServer):
    ada = await live.person("ada")
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    given = answer_with(begun, **{ada.device.device_id: REPLACED})
    done = await asyncio.gather(*(complete(live, begun, given) for _ in range(8)))
    assert {tuple(one.removed_device_ids) for one in done} == {(ada.device.device_id,)}
    assert len(await live.audit("device.remove")) == 1


@pytest.mark.parametrize("whose", ["somebody else's", "nobody's", "its own", "another tenant's"])
async def test_ps19_a_device_that_is_not_the_persons_goes_not_and_nothing_is_written(live: LiveServer, whose: str):
    ada, bob = await live.person("ada"), await live.person("bob")
    other, _ = await live.tenant("second")
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    ids = {
        "somebody else's": bob.device.device_id,
        "nobody's": "dev_" + "a" * 26,
        "its own": begun.device_id,
        "another tenant's": other.device.device_id,
    }
    before = await live.app.store.read(lambda tx: tx.find(Device, {}, order="id"))
    given = answer_with(begun, **{ada.device.device_id: REPLACED, ids[whose]: LOST})
    with refused(Reason.DEVICE_UNKNOWN, status=grpc.StatusCode.NOT_FOUND) as refusal:
        await complete(live, begun, given)
    assert refusal.error.metadata["device_id"] == ids[whose]
    assert await live.app.store.read(lambda tx: tx.find(Device, {}, order="id")) == before
    assert [r.outcome for r in await live.audit("registration.complete")][-1] == Reason.DEVICE_UNKNOWN.value
    done = await complete(live, begun, answer_with(begun, **{ada.device.device_id: REPLACED}))  # control
    assert list(done.removed_device_ids) == [ada.device.device_id]


async def test_ps19_a_refused_registration_removes_nothing(live: LiveServer):
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    again = await live.signed_in(ada)
    await live.change_policy(approval={"enabled": False})
    with refused(Reason.METHOD_DISABLED):
        await complete(live, begun, answer_with(begun, **{ada.device.device_id: LOST}))
    assert await devices_of(live, session.session.user_id) == {ada.device.device_id}
    assert (await again.introspect()).session.session_id == again.session.session_id
    assert not await live.app.store.read(lambda tx: tx.find(RiskEvent, {}))


@pytest.mark.parametrize("departing", ["twice", "too many", "no fate of ours"])
async def test_a_list_of_departing_devices_that_makes_no_sense_is_refused(live: LiveServer, departing: str):
    ada = await live.person("ada")
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    given = answer_with(begun, **{ada.device.device_id: LOST})
    if departing == "twice":
        given.departing.append(enrolment_pb2.DepartingDevice(device_id=ada.device.device_id, fate=REPLACED))
    elif departing == "too many":
        given.departing.extend(enrolment_pb2.DepartingDevice(device_id=f"dev_{n}") for n in range(100))
    else:
        given.departing[0].fate = 77  # type: ignore[assignment]
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
        await complete(live, begun, given)
    assert len(await live.app.store.read(lambda tx: tx.find(Device, {"id": ada.device.device_id}))) == 1


# -- the limit -----------------------------------------------------------------------------------------------------


async def test_ki5_a_full_limit_is_no_obstacle_when_enough_devices_go(live: LiveServer):
    ada = await live.person("ada")
    session = (await live.signed_in(ada)).metadata
    second = await complete(live, await begin(live, session, name="second"))
    await live.change_policy(registration={"devices_per_user": 2})
    begun = await begin(live, session, name="third")
    assert begun.begun.devices_allowed == len(begun.begun.present_devices) == 2
    with refused(Reason.DEVICE_LIMIT, status=grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        await complete(live, begun)
    assert refusal.error.metadata["limit"] == "2"
    assert ada.device.device_id in refusal.error.metadata["devices"]
    assert second.device.device_id in refusal.error.metadata["devices"]
    done = await complete(live, begun, answer_with(begun, **{second.device.device_id: REPLACED}))
    assert list(done.removed_device_ids) == [second.device.device_id]


async def test_ki5_a_limit_that_was_lowered_needs_as_many_to_go_as_are_too_many(live: LiveServer):
    ada = await live.person("ada")
    session = (await live.signed_in(ada)).metadata
    others = [(await complete(live, await begin(live, session, name=f"{n}"))).device.device_id for n in range(3)]
    await live.change_policy(registration={"devices_per_user": 2})
    begun = await begin(live, session)
    with refused(Reason.DEVICE_LIMIT):
        await complete(live, begun, answer_with(begun, **dict.fromkeys(others[:2], REPLACED)))
    assert len(await devices_of(live, begun.begun.present_devices[0].user_id)) == 4
    done = await complete(live, begun, answer_with(begun, **dict.fromkeys(others, REPLACED)))
    assert set(done.removed_device_ids) == set(others)


async def test_ki5_many_devices_of_one_user_and_each_of_them_is_asked(live: LiveServer):
    ada = await live.person("ada")
    session = (await live.signed_in(ada)).metadata
    await live.change_policy(registration={"devices_per_user": 10})
    for number in range(9):
        await complete(live, await begin(live, session, name=f"device {number}"))
    begun = await begin(live, session)
    assert len(begun.begun.present_devices) == 10
    with refused(Reason.DEVICE_LIMIT):
        await complete(live, begun)


# -- prerequisites -------------------------------------------------------------------------------------------------


async def test_ps11_a_refused_registration_names_each_prerequisite_with_its_state(live: LiveServer):
    ada = await live.person("ada")
    session = (await live.signed_in(ada)).metadata
    await live.change_policy(approval={"enabled": False}, registration={"devices_per_user": 1})
    with refused(Reason.METHOD_DISABLED, status=grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        await begin(live, session)
    states = dict(one.split("=", 1) for one in refusal.error.metadata["prerequisites"].split(","))
    assert states == {
        "approval.enabled": "method_disabled",
        "approval.targets": "ok",
        "device_room": "device_limit",
        "device_endpoint": live.app.world.facts.device_endpoint,
    }
    await live.change_policy(approval={"enabled": True})
    assert (await begin(live, session)).begun.device_endpoint == live.app.world.facts.device_endpoint  # control


async def test_ps11_whom_policy_does_not_name_registers_nothing_and_reads_why_PS12(live: LiveServer):
    ada, bob = await live.person("ada"), await live.person("bob")
    sessions = {who.username: (await live.signed_in(who)).metadata for who in (ada, bob)}
    user_id = (await live.introspect(sessions["ada"])).session.user_id
    all_but_ada = administration_pb2.Targets(everybody=True, exclude_users=[user_id])
    await live.change_policy(approval={"targets": all_but_ada})
    with refused(Reason.METHOD_NOT_TARGETED, status=grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        await begin(live, sessions["ada"])
    assert "approval.targets=method_not_targeted" in refusal.error.metadata["prerequisites"]
    await begin(live, sessions["bob"])  # control
    key = await begin(live, sessions["ada"], provider=common_pb2.PROVIDER_KIND_FIDO2)  # a method that is for her
    assert key.begun.registration_id


async def test_ps15_policy_that_changes_in_between_is_asked_again_at_the_end_P19(live: LiveServer):
    ada = await live.person("ada")
    session = (await live.signed_in(ada)).metadata
    begun = await begin(live, session)
    await live.change_policy(approval={"enabled": False})
    with refused(Reason.METHOD_DISABLED) as refusal:
        await complete(live, begun)
    assert "approval.enabled=method_disabled" in refusal.error.metadata["prerequisites"]
    rows = await live.app.store.read(lambda tx: tx.find(Registration, {"id": begun.begun.registration_id}))
    assert [row.answer_hash for row in rows] == [b""]
    await live.change_policy(approval={"enabled": True})
    await complete(live, begun)  # control


async def test_ps14_a_second_device_comes_from_an_authenticated_session(live: LiveServer):
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    second = await BenchDevice.enrol(live.connection, metadata=session.metadata)
    sessions = await live.app.store.read(lambda tx: tx.find(Session, {"user_id": session.session.user_id}))
    assert second.device_id in await devices_of(live, session.session.user_id)
    assert not any(s.revoked_at for s in sessions)
    signed = await live.approved(await live.connect("ada", second))
    rows = await live.app.store.read(lambda tx: tx.find(SignIn, {"id": signed.begun.sign_in_id}))
    assert rows[0].state is SignInState.APPROVED


# -- passes, and answers that race ---------------------------------------------------------------------------------


async def test_ps19_a_one_time_pass_takes_away_what_its_one_registration_names_and_no_more_P8_T13(live: LiveServer):
    ada = await live.person("ada")
    second = await complete(live, await begin(live, (await live.signed_in(ada)).metadata, name="second"))
    session = await live.pass_session("ada", await live.issue_pass_again("ada", one_time=True))
    first, other = [await begin(live, session) for _ in range(2)]
    answers = [
        answer_with(first, **{ada.device.device_id: LOST}),
        answer_with(other, **{second.device.device_id: LOST}),
    ]
    done = await asyncio.gather(
        *(complete(live, begun, given) for begun, given in zip((first, other), answers, strict=True)),
        return_exceptions=True,
    )
    (registered,) = (one for one in done if isinstance(one, enrolment_pb2.CompleteRegistrationResponse))
    (refusal,) = (one for one in done if isinstance(one, KeyvouchError))
    assert refusal.reason is Reason.SESSION_REVOKED
    removed = [r.subject for r in await live.audit("device.remove")]
    assert removed == list(registered.removed_device_ids)
    staying = {ada.device.device_id, second.device.device_id, registered.device.device_id} - set(removed)
    assert await devices_of(live, registered.device.user_id) == staying
    assert len(await live.app.store.read(lambda tx: tx.find(RiskEvent, {}))) == 1


async def test_ps19_a_pass_for_another_device_takes_none_away_P8(live: LiveServer):
    ada = await live.person("ada")
    binding = administration_pb2.DeviceBinding(endorsement_key_hash=b"k" * 32)
    session = await live.pass_session("ada", await live.issue_pass_again("ada", binding=binding))
    begun = await begin(live, session)
    with refused(Reason.ACCESS_PASS_DEVICE, status=grpc.StatusCode.FAILED_PRECONDITION):
        await complete(live, begun, answer_with(begun, **{ada.device.device_id: LOST}))
    assert await devices_of(live, begun.begun.present_devices[0].user_id) == {ada.device.device_id}
    assert not await live.audit("device.remove")


async def test_ps19_of_different_answers_raced_one_counts_and_the_other_leaves_a_trace(live: LiveServer):
    ada = await live.person("ada")
    begun = await begin(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    given = [answer_with(begun, **{ada.device.device_id: fate}) for fate in (LOST, REPLACED)]
    done = await asyncio.gather(*(complete(live, begun, one) for one in given), return_exceptions=True)
    reasons = [one.reason for one in done if isinstance(one, KeyvouchError)]
    assert reasons == [Reason.REGISTRATION_CONSUMED]
    outcomes = [r.outcome for r in await live.audit("registration.complete") if r.subject == begun.device_id]
    assert sorted(outcomes) == ["ok", Reason.REGISTRATION_CONSUMED.value]
