"""Rules PS15 to PS21, KI1 and KI4 on a real server: policy, ownership, removal, reconnects, superseding."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.client_data import CollectedClientData
from keyvouch.cose import CoseKey
from keyvouch.errors import Reason, UnavailableError
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, SignInOffer, challenge
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, enrolment_pb2, prompts_pb2, security_info_pb2
from keyvouch.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, Flags
from keyvouch_bench.device import BenchDevice, PromptStream, SoftKey, completion
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Device, Prompt, SignIn
from support.live_server import LIMIT, TENANT, LiveServer, Metadata, Person, nothing_arrives, refused

SELF_ATTESTED = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_ANY,
    verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
    provenance=common_pb2.PROVENANCE_SELF,
)
HARDWARE = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
    verification=common_pb2.VERIFICATION_HARDWARE_GATED,
    provenance=common_pb2.PROVENANCE_ATTESTED,
)


async def enrol_unattested(live: LiveServer, session: Metadata) -> BenchDevice:
    """A device whose key nobody vouches for, not even itself: attestation format `none`."""
    channel_key = ec.generate_private_key(ec.SECP256R1())
    request = enrolment_pb2.BeginRegistrationRequest(
        channel_public_key=spki_of(channel_key.public_key()), display_name="unattested"
    )
    begun = await answer(live.enrolment.BeginRegistration(request, metadata=session, timeout=LIMIT))
    credential = SoftKey(begun.rp_id, begun.user_handle)
    expected = challenge(Purpose.REGISTRATION, begun.statement)
    public = CoseKey.from_public_key(credential.key.public_key())
    attested = AttestedCredentialData.build(bytes(16), credential.credential_id, public)
    data = AuthenticatorData.build(credential._rp_id_hash(), Flags.UP | Flags.UV, 0, attested=attested)
    complete = enrolment_pb2.CompleteRegistrationRequest(
        client_data_json=bytes(CollectedClientData.build("webauthn.create", expected, credential.origin)),
        attestation_object=bytes(AttestationObject.build("none", data, {})),
        channel_proof=sign_proof(channel_key, Purpose.CHANNEL, begun.statement),
    )
    token = (("authorization", f"Registration {begun.registration_token}"),)
    done = await answer(live.enrolment.CompleteRegistration(complete, metadata=token, timeout=LIMIT))
    assert done.device.assurance.provenance == common_pb2.PROVENANCE_UNATTESTED
    chain = tuple(done.certificate_chain)
    return BenchDevice(done.device.device_id, "", credential, channel_key, chain, done.device_endpoint)


# policy


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"enabled": False}, Reason.METHOD_DISABLED), ({"required_assurance": HARDWARE}, Reason.ASSURANCE_TOO_LOW)],
)
async def test_ki1_policy_says_no_before_any_device_is_asked(live: LiveServer, changes, reason):
    ada = await live.person("ada")
    await live.change_policy(approval=changes)
    with refused(reason, status=grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        await live.begin("ada")
    assert refusal.error.fix
    assert await live.app.store.read(lambda tx: tx.count(Prompt, {"device_id": ada.device.device_id})) == 0
    assert [r.outcome for r in await live.audit("sign_in.begin")][-1] == reason.value
    await nothing_arrives(ada.stream)


async def test_ki1_only_devices_that_reach_the_required_assurance_are_asked(live: LiveServer):
    ada = await live.person("ada")
    weak = await enrol_unattested(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    weak_stream = await live.stack.enter_async_context(PromptStream(weak))
    await live.change_policy(approval={"required_assurance": SELF_ATTESTED})
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    await nothing_arrives(weak_stream)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    await opened.redeem()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"enabled": False}, Reason.METHOD_DISABLED), ({"required_assurance": HARDWARE}, Reason.ASSURANCE_TOO_LOW)],
)
async def test_ki1_policy_changed_between_approval_and_redeem_is_refused(live: LiveServer, changes, reason):
    ada = await live.person("ada")
    before, after = await live.approved(ada), None
    assert (await before.redeem()).session.username == "ada"
    after = await live.approved(ada)
    await live.change_policy(approval=changes)
    with refused(reason, status=grpc.StatusCode.FAILED_PRECONDITION):
        await after.redeem()
    assert await after.state() == common_pb2.SIGN_IN_STATE_APPROVED
    assert [r.outcome for r in await live.audit("sign_in.redeem")][-1] == reason.value


@pytest.mark.parametrize(("changes", "asked"), [({"enabled": False}, False), ({"number_misses": 5}, True)])
async def test_ki1_a_device_that_reconnects_is_not_asked_what_policy_does_not_allow_any_more_PS21(
    live: LiveServer, changes, asked: bool
):
    ada = await live.person("ada")
    await live.admin()
    await live.begin("ada")
    await ada.stream.prompt()
    await live.change_policy(approval=changes)
    again = await live.connect("ada", ada.device)
    if asked:
        assert (await again.stream.prompt()).offer
    else:
        await nothing_arrives(again.stream)


async def test_ps15_policy_off_refuses_sign_in_and_registration_and_on_again_allows_them(live: LiveServer):
    ada = await live.person("ada")
    await live.create_user("bob")
    session = await live.pass_session("bob", await live.issue_pass("bob"))
    await live.change_policy(approval={"enabled": False})
    with refused(Reason.METHOD_DISABLED):
        await live.begin("ada")
    with refused(Reason.METHOD_DISABLED):
        await BenchDevice.enrol(live.connection, metadata=session)
    await live.change_policy(approval={"enabled": True})
    await BenchDevice.enrol(live.connection, metadata=session)
    assert (await live.signed_in(ada)).session.username == "ada"


async def test_ps15_policy_off_hides_who_exists(live: LiveServer):
    await live.person("ada")
    await live.change_policy(approval={"enabled": False})
    told = []
    for username in ("ada", "nobody"):
        with refused(Reason.METHOD_DISABLED) as refusal:
            await live.begin(username)
        told.append((refusal.status, refusal.error.message, refusal.error.fix, refusal.error.metadata))
    assert told[0] == told[1]


async def test_ps15_the_number_does_not_tell_who_exists(live: LiveServer):
    await live.person("ada")
    await live.change_policy(approval={"number_digits": 6, "lifetime_seconds": 90})
    known, unknown = await live.begin("ada"), await live.begin("nobody")
    assert len(known.number) == len(unknown.number) == 6
    assert known.begun.expires_at == unknown.begun.expires_at
    assert known.begun.methods == unknown.begun.methods
    assert known.begun.ByteSize() == unknown.begun.ByteSize()


async def test_ps15_a_user_without_a_device_is_asked_nowhere(live: LiveServer):
    ada = await live.person("ada")
    await live.create_user("bob")
    opened = await live.begin("bob")
    assert await opened.state() == common_pb2.SIGN_IN_STATE_PENDING
    assert await live.app.store.read(lambda tx: tx.count(Prompt, {"sign_in_id": opened.begun.sign_in_id})) == 0
    assert [r.outcome for r in await live.audit("sign_in.begin")][-1] == Reason.NO_METHOD.value
    live.clock.advance(121)
    assert await opened.state() == common_pb2.SIGN_IN_STATE_EXPIRED
    await nothing_arrives(ada.stream)


# whose device


async def test_ps16_a_device_belongs_to_one_user_in_one_tenant(live: LiveServer):
    ada, bob = await live.person("ada"), await live.person("bob")
    opened = await live.begin("ada")
    offer = SignInOffer.parse((await ada.stream.prompt()).offer)
    assert offer.device_id == ada.device.device_id
    bobs = await live.signed_in(bob)
    request = security_info_pb2.RemoveDeviceRequest(device_id=ada.device.device_id)
    with refused(Reason.DEVICE_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
        call = live.connection.security_info.RemoveDevice(request, metadata=bobs.metadata, timeout=LIMIT)
        await answer(call)
    assert await opened.state() == common_pb2.SIGN_IN_STATE_PENDING


async def test_ps16_a_channel_key_is_not_registered_for_a_second_user(live: LiveServer):
    ada = await live.person("ada")
    await live.create_user("bob")
    session = await live.pass_session("bob", await live.issue_pass("bob"))
    request = enrolment_pb2.BeginRegistrationRequest(
        channel_public_key=spki_of(ada.device.channel_key.public_key()), display_name="same device"
    )
    begun = await answer(live.enrolment.BeginRegistration(request, metadata=session, timeout=LIMIT))
    credential = SoftKey(begun.rp_id, begun.user_handle)
    token = (("authorization", f"Registration {begun.registration_token}"),)
    given = completion(begun.statement, credential, ada.device.channel_key)
    with refused(Reason.CREDENTIAL_EXISTS, status=grpc.StatusCode.ALREADY_EXISTS):
        await answer(live.enrolment.CompleteRegistration(given, metadata=token, timeout=LIMIT))
    assert (await live.signed_in(ada)).session.username == "ada"


async def test_ps16_a_device_cannot_answer_for_another_user(live: LiveServer):
    ada, bob = await live.person("ada"), await live.person("bob")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    outcome = await bob.stream.send(bob.device.approve(prompt, opened.number))
    assert (outcome.accepted, outcome.reason) == (False, Reason.SIGN_IN_UNKNOWN.value)
    genuine = ada.device.approve(prompt, opened.number)
    outcome = await bob.stream.send(genuine)
    assert (outcome.accepted, outcome.reason) == (False, Reason.SIGN_IN_UNKNOWN.value)
    assert (await ada.stream.send(genuine)).accepted


# removal


async def remove_by_owner(live: LiveServer, ada: Person, session: Metadata) -> int:
    request = security_info_pb2.RemoveDeviceRequest(device_id=ada.device.device_id)
    call = live.connection.security_info.RemoveDevice(request, metadata=session, timeout=LIMIT)
    return (await answer(call)).revoked_sessions


async def remove_by_agent(live: LiveServer, ada: Person, session: Metadata) -> int:
    stub = await live.device_stub(ada.device)
    return (await answer(stub.Unregister(prompts_pb2.UnregisterRequest(), timeout=LIMIT))).revoked_sessions


async def remove_by_administrator(live: LiveServer, ada: Person, session: Metadata) -> int:
    request = admin_pb.AdminRemoveDeviceRequest(device_id=ada.device.device_id)
    return (await live.administer("AdminRemoveDevice", request)).revoked_sessions


async def open_stream(device: BenchDevice) -> None:
    """Open a stream; once more where the client's transport lost the status to a write that came too late."""
    for _ in range(3):
        with suppress(UnavailableError):
            async with PromptStream(device):
                return
    raise AssertionError("neither a stream nor a refusal")


REMOVALS = [remove_by_owner, remove_by_agent, remove_by_administrator]


@pytest.mark.parametrize("remove", REMOVALS)
async def test_ps18_removal_cuts_the_stream_and_ends_the_sessions_at_once(live: LiveServer, remove):
    ada = await live.person("ada")
    signed_in = await live.signed_in(ada)
    assert (await signed_in.introspect()).session.revoked is False
    assert await remove(live, ada, signed_in.metadata) == 1
    with refused(Reason.DEVICE_REMOVED, status=grpc.StatusCode.UNAUTHENTICATED):
        async with asyncio.timeout(5):
            await ada.stream.read()
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await signed_in.introspect()
    with refused(Reason.SESSION_REVOKED):
        await signed_in.refresh()
    with refused(Reason.DEVICE_REMOVED):
        await open_stream(ada.device)
    stub = await live.device_stub(ada.device)
    with refused(Reason.DEVICE_REMOVED):
        await answer(stub.RenewCertificate(prompts_pb2.RenewCertificateRequest(), timeout=LIMIT))


@pytest.mark.parametrize("remove", REMOVALS)
async def test_ps18_an_approval_of_a_removed_device_opens_no_session(live: LiveServer, remove):
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    opened = await live.approved(ada)
    watching = opened.watch()
    assert (await answer(watching.read())).state == common_pb2.SIGN_IN_STATE_APPROVED
    await remove(live, ada, session.metadata)
    with refused(Reason.SIGN_IN_CANCELLED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await opened.redeem()
    assert (await answer(watching.read())).state == common_pb2.SIGN_IN_STATE_CANCELLED
    assert await live.app.store.read(lambda tx: tx.count(Device, {"id": ada.device.device_id})) == 0


async def test_ps18_sessions_of_other_devices_stay(live: LiveServer):
    ada = await live.person("ada")
    first = await live.signed_in(ada)
    second = await BenchDevice.enrol(live.connection, metadata=first.metadata, name="second")
    request = security_info_pb2.RemoveDeviceRequest(device_id=second.device_id)
    call = live.connection.security_info.RemoveDevice(request, metadata=first.metadata, timeout=LIMIT)
    assert (await answer(call)).revoked_sessions == 0
    assert (await first.introspect()).session.revoked is False
    assert (await live.signed_in(ada)).session.username == "ada"


async def test_ps18_a_stream_that_was_opening_meanwhile_is_cut_too(live: LiveServer):
    """The device is admitted, then removed, and only then says hello."""
    ada = await live.person("ada")
    stub = await live.device_stub(ada.device)
    call = stub.StreamPrompts(wait_for_ready=True)
    await asyncio.sleep(0.2)
    await remove_by_administrator(live, ada, ())
    with refused(Reason.DEVICE_REMOVED):
        await answer(call.write(prompts_pb2.StreamPromptsRequest(hello=prompts_pb2.Hello())))
        async with asyncio.timeout(5):
            while await answer(call.read()) is not grpc.aio.EOF:
                pass
            await answer(call)


async def test_ps18_deleting_a_user_takes_devices_sessions_and_open_requests(live: LiveServer):
    ada = await live.person("ada")
    signed_in = await live.signed_in(ada)
    opened = await live.begin("ada")
    watching = opened.watch()
    assert (await answer(watching.read())).state == common_pb2.SIGN_IN_STATE_PENDING
    gone = await live.administer("DeleteUser", admin_pb.DeleteUserRequest(username="ada"))
    assert (gone.removed_devices, gone.revoked_sessions) == (1, 2)  # the approved one, and that of the pass
    with refused(Reason.SESSION_REVOKED):
        await signed_in.introspect()
    with refused(Reason.DEVICE_REMOVED):
        async with asyncio.timeout(5):
            while True:
                await ada.stream.read()
    assert (await answer(watching.read())).state == common_pb2.SIGN_IN_STATE_CANCELLED
    rows = await live.app.store.read(lambda tx: tx.find(SignIn, {"user_id": signed_in.session.user_id}))
    assert rows == []


# streams


async def test_ps21_prompts_survive_a_reconnect(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    for _ in range(2):
        async with PromptStream(ada.device) as again:
            repeated = await again.prompt()
            assert (repeated.prompt_id, repeated.offer) == (prompt.prompt_id, prompt.offer)
    async with PromptStream(ada.device) as last:
        await last.prompt()
        assert (await last.send(ada.device.approve(prompt, opened.number))).accepted
    assert (await opened.redeem()).session.username == "ada"


async def test_ps21_a_request_begun_while_the_device_was_away_waits_for_it(live: LiveServer):
    await live.create_user("ada")
    device = await live.enrol("ada", await live.issue_pass("ada"))
    opened = await live.begin("ada")
    async with PromptStream(device) as stream:
        prompt = await stream.prompt()
        assert (await stream.send(device.approve(prompt, opened.number))).accepted
    async with PromptStream(device) as stream:
        await nothing_arrives(stream)


async def test_ps21_an_answer_on_one_stream_withdraws_the_prompt_on_the_other_device(live: LiveServer):
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    second = await BenchDevice.enrol(live.connection, metadata=session.metadata, name="second")
    other = await live.stack.enter_async_context(PromptStream(second))
    opened = await live.begin("ada")
    prompt, copy = await ada.stream.prompt(), await other.prompt()
    assert prompt.prompt_id != copy.prompt_id
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    withdrawn = await other.withdrawn()
    assert (withdrawn.prompt_id, withdrawn.state) == (copy.prompt_id, common_pb2.SIGN_IN_STATE_APPROVED)


async def test_ps21_an_expired_prompt_is_withdrawn(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    live.clock.advance(121)
    withdrawn = await ada.stream.withdrawn()
    assert (withdrawn.prompt_id, withdrawn.state) == (prompt.prompt_id, common_pb2.SIGN_IN_STATE_EXPIRED)
    outcome = await ada.stream.send(ada.device.approve(prompt, opened.number))
    assert (outcome.accepted, outcome.reason) == (False, Reason.SIGN_IN_EXPIRED.value)
    with refused(Reason.SIGN_IN_EXPIRED):
        await opened.redeem()


# superseding


async def test_ki4_a_newer_request_supersedes_the_older_one(live: LiveServer):
    ada = await live.person("ada")
    older = await live.begin("ada")
    prompt = await ada.stream.prompt()
    watching = older.watch()
    assert (await answer(watching.read())).state == common_pb2.SIGN_IN_STATE_PENDING
    newer = await live.begin("ada")
    withdrawn = await ada.stream.withdrawn()
    assert (withdrawn.prompt_id, withdrawn.state) == (prompt.prompt_id, common_pb2.SIGN_IN_STATE_SUPERSEDED)
    assert (await answer(watching.read())).state == common_pb2.SIGN_IN_STATE_SUPERSEDED
    late = await ada.stream.send(ada.device.approve(prompt, older.number))
    assert (late.accepted, late.reason) == (False, Reason.SIGN_IN_SUPERSEDED.value)
    with refused(Reason.SIGN_IN_SUPERSEDED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await older.redeem()
    assert [r.subject for r in await live.audit("sign_in.supersede")] == [older.begun.sign_in_id]
    async with PromptStream(ada.device) as again:
        prompt = await again.prompt()
        assert (await again.send(ada.device.approve(prompt, newer.number))).accepted
    assert (await newer.redeem()).session.username == "ada"


async def test_ki4_an_approval_not_yet_redeemed_is_superseded_too(live: LiveServer):
    ada = await live.person("ada")
    older = await live.approved(ada)
    newer = await live.begin("ada")
    with refused(Reason.SIGN_IN_SUPERSEDED):
        await older.redeem()
    prompt = await ada.stream.prompt()
    assert (await ada.stream.send(ada.device.approve(prompt, newer.number))).accepted
    assert (await newer.redeem()).session.username == "ada"


async def test_ki4_one_user_never_supersedes_another(live: LiveServer):
    ada, bob = await live.person("ada"), await live.person("bob")
    hers, his = await live.begin("ada"), await live.begin("bob")
    assert await hers.state() == await his.state() == common_pb2.SIGN_IN_STATE_PENDING
    for person, opened in ((ada, hers), (bob, his)):
        prompt = await person.stream.prompt()
        assert (await person.stream.send(person.device.approve(prompt, opened.number))).accepted
    assert (await hers.redeem()).session.username == "ada"
    assert (await his.redeem()).session.username == "bob"


async def test_ki4_two_requests_at_once_leave_one_open(live: LiveServer):
    ada = await live.person("ada")
    await live.change_policy(approval={"begins_per_minute": 8})
    begun = await asyncio.gather(*(live.begin("ada") for _ in range(8)))
    states = [await b.state() for b in begun]
    assert sorted(states) == [common_pb2.SIGN_IN_STATE_PENDING] + 7 * [common_pb2.SIGN_IN_STATE_SUPERSEDED]
    assert ada.tenant == TENANT
