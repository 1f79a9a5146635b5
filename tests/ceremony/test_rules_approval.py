"""Rules PS1 to PS10 on a real server over TLS: the key, the number, the decision, the session."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import Reason
from keyvouch.proofs import sign_proof, spki_of, thumbprint
from keyvouch.statement import Decision, DecisionStatement, Purpose, SignInOffer, challenge
from keyvouch.v1 import common_pb2, enrolment_pb2, prompts_pb2, sign_in_pb2, sign_in_pb2_grpc
from keyvouch.webauthn import Flags
from keyvouch_bench.device import SoftKey, completion
from keyvouch_client import SignInStream
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Credential, Device
from support.live_server import LIMIT, TENANT, LiveServer, Person, refused

PIN = "739-canary-PIN-8215"


async def begin_registration(live: LiveServer, username: str, code: str, channel_key: ec.EllipticCurvePrivateKey):
    request = enrolment_pb2.BeginRegistrationRequest(
        channel_public_key=spki_of(channel_key.public_key()), display_name="laptop"
    )
    session = await live.pass_session(username, code)
    return await answer(live.enrolment.BeginRegistration(request, metadata=session, timeout=LIMIT))


async def complete_registration(live: LiveServer, token: str, request: enrolment_pb2.CompleteRegistrationRequest):
    metadata = (("authorization", f"Registration {token}"),)
    return await answer(live.enrolment.CompleteRegistration(request, metadata=metadata, timeout=LIMIT))


def database_bytes(live: LiveServer) -> bytes:
    """Everything the store has written: the file, its log, its index."""
    return b"".join(path.read_bytes() for path in sorted(live.data.glob("keyvouch.db*")))


async def test_ps1_an_approval_by_another_device_key_counts_for_nothing(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    impostor = replace(ada.device.credential, key=ec.generate_private_key(ec.SECP256R1()))
    genuine, ada.device.credential = ada.device.credential, impostor
    outcome = await ada.stream.send(ada.device.approve(prompt, opened.number))
    assert (outcome.accepted, outcome.reason) == (False, Reason.SIGNATURE.value)
    assert await opened.state() == common_pb2.SIGN_IN_STATE_PENDING
    ada.device.credential = genuine
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted


async def test_ps1_an_approval_without_pin_or_biometric_counts_for_nothing(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    statement = DecisionStatement(prompt.offer, Decision.APPROVE, opened.number).encode()
    expected = challenge(Purpose.SIGN_IN, statement)
    for flags, reason in ((Flags.UP, Reason.USER_VERIFICATION), (Flags.UV, Reason.USER_PRESENCE)):
        bare = prompts_pb2.Answer(
            prompt_id=prompt.prompt_id,
            statement=statement,
            assertion=ada.device.credential.assertion(expected, flags=flags),
        )
        outcome = await ada.stream.send(bare)
        assert (outcome.accepted, outcome.reason) == (False, reason.value)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    assert (await opened.redeem()).session.username == "ada"


async def test_ps2_only_the_public_key_is_at_the_server_and_only_the_key_proves_identity(live: LiveServer):
    ada = await live.person("ada")
    await live.signed_in(ada)
    rows = await live.app.store.read(lambda tx: tx.find(Credential, {"device_id": ada.device.device_id}))
    public = ada.device.credential.key.public_key().public_numbers()
    assert public.x.to_bytes(32, "big") in rows[0].public_key
    written = database_bytes(live)
    for key in (ada.device.credential.key, ada.device.channel_key):
        assert key.private_numbers().private_value.to_bytes(32, "big") not in written
    assert public.x.to_bytes(32, "big") in written


async def test_ps3_no_field_of_the_protocol_carries_a_pin_or_biometric():
    files = (enrolment_pb2, prompts_pb2, sign_in_pb2)
    names = {
        f"{message.full_name}.{field.name}"
        for file in files
        for message in file.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    assert "keyvouch.v1.Answer.statement" in names
    private = ("pin", "password", "biometric", "fingerprint", "face")
    found = {n.rpartition(".")[2] for n in names if set(n.rpartition(".")[2].split("_")) & set(private)}
    # A TPM's index that counts wrong PINs, how many it lets pass, and leave to change the PIN in the TPM.
    assert found == {"pin_index", "pin_limit", "pin_change"}


async def test_ps3_nothing_but_the_signed_statement_is_stored_of_an_approval(live: LiveServer):
    """Even an agent gone wrong that adds the PIN to what it sends leaves no trace of it in the store."""
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    given = ada.device.approve(prompt, opened.number)
    given.assertion.user_handle = PIN.encode()
    outcome = await ada.stream.send(given)
    assert (outcome.accepted, outcome.reason) == (False, Reason.USER_HANDLE.value)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    await opened.redeem()
    written = database_bytes(live)
    assert PIN.encode() not in written
    assert opened.begun.sign_in_id.encode() in written


async def test_ps4_number_then_pin_then_session(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    assert len(opened.number) == 2
    assert opened.number.isdigit()
    prompt = await ada.stream.prompt()
    assert prompt.number_digits == 2
    watching = opened.watch()
    assert (await answer(watching.read())).state == common_pb2.SIGN_IN_STATE_PENDING
    with refused(Reason.SIGN_IN_PENDING, status=grpc.StatusCode.FAILED_PRECONDITION):
        await opened.redeem()
    outcome = await ada.stream.send(ada.device.approve(prompt, opened.number))
    assert (outcome.accepted, outcome.state) == (True, common_pb2.SIGN_IN_STATE_APPROVED)
    assert (await answer(watching.read())).state == common_pb2.SIGN_IN_STATE_APPROVED
    signed_in = await opened.redeem()
    assert (await signed_in.introspect()).session.username == "ada"
    assert (await answer(watching.read())).state == common_pb2.SIGN_IN_STATE_CONSUMED


async def test_ps4_the_number_never_reaches_the_device(live: LiveServer):
    await live.change_policy(approval={"number_digits": 8})
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    assert len(opened.number) == 8
    assert opened.number.encode() not in prompt.SerializeToString()
    assert opened.number not in str(SignInOffer.parse(prompt.offer))


async def test_ps4_a_wrong_number_ends_the_request(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    outcome = await ada.stream.send(ada.device.approve(prompt, opened.wrong_number))
    assert (outcome.reason, outcome.state) == (Reason.NUMBER_MISMATCH.value, common_pb2.SIGN_IN_STATE_FAILED)
    again = await ada.stream.send(ada.device.approve(prompt, opened.number))
    assert (again.accepted, again.reason) == (False, Reason.NUMBER_MISMATCH.value)
    with refused(Reason.NUMBER_MISMATCH, status=grpc.StatusCode.FAILED_PRECONDITION):
        await opened.redeem()
    assert (await live.signed_in(ada)).session.username == "ada"


async def test_ps5_the_offer_shows_app_place_time_user_and_tenant(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada", audience="https://api.test", binding_message="Pay 10 to Bob")
    offer = SignInOffer.parse((await ada.stream.prompt()).offer)
    assert (offer.app_id, offer.app_name, offer.audience) == ("shop", "Shop", "https://api.test")
    assert (offer.place, offer.address) == ("this computer", "127.0.0.1")
    assert offer.binding_message == "Pay 10 to Bob"
    assert (offer.issued_at, offer.expires_at) == (live.clock.now(), live.clock.now() + 120)
    device = await live.app.store.read(lambda tx: tx.get(Device, id=ada.device.device_id))
    assert device is not None
    assert (offer.user_id, offer.tenant_id, offer.device_id) == (device.user_id, device.tenant_id, device.id)
    assert offer.proof_key == thumbprint(opened.proof_key.public_key())
    described = await answer((await live.device_stub(ada.device)).GetDevice(prompts_pb2.GetDeviceRequest()))
    assert (described.username, described.tenant_name) == ("ada", TENANT)


@pytest.mark.parametrize(
    ("decision", "state", "reason"),
    [
        (Decision.DENY, common_pb2.SIGN_IN_STATE_DENIED, Reason.SIGN_IN_DENIED),
        (Decision.REPORT, common_pb2.SIGN_IN_STATE_REPORTED, Reason.SIGN_IN_REPORTED),
    ],
)
async def test_ps5_deny_and_report_end_the_request(live: LiveServer, decision, state, reason):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    outcome = await ada.stream.send(ada.device.refuse(prompt, decision))
    assert (outcome.accepted, outcome.state) == (True, state)
    late = await ada.stream.send(ada.device.approve(prompt, opened.number))
    assert (late.accepted, late.state, late.reason) == (False, state, reason.value)
    with refused(reason):
        await opened.redeem()
    name = f"sign_in.{decision.name.lower()}"
    assert [(r.actor, r.outcome) for r in await live.audit(name)] == [(ada.device.device_id, "ok")]


async def test_ps5_nobody_else_can_deny_for_the_device(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    given = ada.device.refuse(prompt, Decision.DENY)
    stranger = ec.generate_private_key(ec.SECP256R1())
    given.channel_signature = sign_proof(stranger, Purpose.SIGN_IN, given.statement)
    outcome = await ada.stream.send(given)
    assert (outcome.accepted, outcome.reason) == (False, Reason.PROOF_INVALID.value)
    assert await opened.state() == common_pb2.SIGN_IN_STATE_PENDING
    assert (await ada.stream.send(ada.device.refuse(prompt, Decision.DENY))).accepted


async def test_ps7_one_approval_is_two_factors_and_no_second_prompt_follows(live: LiveServer):
    ada = await live.person("ada")
    signed_in = await live.signed_in(ada)
    assert list(signed_in.session.amr) == ["pop", "pin", "mfa"]
    assert signed_in.session.acr == "number-matched"
    assert signed_in.session.auth_time == live.clock.now()
    live.clock.advance(400)
    tokens = await signed_in.refresh()
    assert tokens.session_id == signed_in.tokens.session_id
    assert len(await live.audit("sign_in.begin")) == 2  # the administrator's and this one


async def test_ps7_a_pass_is_one_factor_and_says_so(live: LiveServer):
    await live.create_user("ada")
    opened = await live.access_pass_sign_in("ada", await live.issue_pass("ada"))
    assert (list(opened.session.amr), opened.session.acr) == (["otp"], "access-pass")


@pytest.mark.parametrize(("flags", "reason"), [(Flags.UP, Reason.USER_VERIFICATION), (Flags.UV, Reason.USER_PRESENCE)])
async def test_ps8_a_key_without_pin_or_biometric_is_not_registered(live: LiveServer, flags, reason):
    await live.create_user("ada")
    channel_key = ec.generate_private_key(ec.SECP256R1())
    begun = await begin_registration(live, "ada", await live.issue_pass("ada"), channel_key)
    credential = SoftKey(begun.rp_id, begun.user_handle)
    given = completion(begun.statement, credential, channel_key)
    client_data, attestation = credential.register(challenge(Purpose.REGISTRATION, begun.statement), flags=flags)
    bare = enrolment_pb2.CompleteRegistrationRequest(
        client_data_json=client_data, attestation_object=attestation, channel_proof=given.channel_proof
    )
    with refused(reason, status=grpc.StatusCode.INVALID_ARGUMENT):
        await complete_registration(live, begun.registration_token, bare)
    assert await live.app.store.read(lambda tx: tx.count(Device, {})) == 1  # the administrator's
    assert [r.outcome for r in await live.audit("registration.complete")][-1] == reason.value
    done = await complete_registration(live, begun.registration_token, given)
    assert done.device.assurance.verification == common_pb2.VERIFICATION_SOFTWARE_GATED


async def test_ps8_no_policy_can_ask_for_ungated_keys(live: LiveServer):
    ungated = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_ANY,
        verification=common_pb2.VERIFICATION_NONE,
        provenance=common_pb2.PROVENANCE_UNATTESTED,
    )
    for part in ("approval", "registration"):
        with refused(Reason.POLICY_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
            await live.change_policy(**{part: {"required_assurance": ungated}})
    ungated.verification = common_pb2.VERIFICATION_SOFTWARE_GATED
    await live.change_policy(registration={"required_assurance": ungated})


async def test_ps10_a_client_needs_nothing_but_grpc_and_the_protocol(live: LiveServer):
    """A client of its own making: a bare channel, the messages, a P-256 key. No SDK, no push service."""
    ada = await live.person("ada")
    key = ec.generate_private_key(ec.SECP256R1())
    credentials = grpc.ssl_channel_credentials((live.data / "ca.pem").read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{live.public_port}", credentials) as channel:
        stub = sign_in_pb2_grpc.SignInServiceStub(channel)
        context = sign_in_pb2.SignInContext(tenant=TENANT, username="ada", app_id="terminal")
        begun = await stub.BeginSignIn(
            sign_in_pb2.BeginSignInRequest(context=context, proof_public_key=spki_of(key.public_key()))
        )
        prompt = await ada.stream.prompt()
        assert (await ada.stream.send(ada.device.approve(prompt, begun.number))).accepted
        opened = replace(await live.begin("nobody"), begun=begun, proof_key=key)
        request = sign_in_pb2.RedeemSignInRequest(sign_in_id=begun.sign_in_id, proof=opened.proof())
        done = await stub.RedeemSignIn(request, metadata=opened.metadata)
    assert done.session.app_name == "terminal"


async def test_ps10_many_sign_ins_on_one_stream(live: LiveServer):
    people = [await live.person(name) for name in ("ada", "bob", "eve")]
    async with SignInStream(live.connection, app_id="shop", app_name="Shop") as stream:
        pending = [await stream.begin(tenant=TENANT, username=p.username) for p in people]
        for person, sign_in in reversed(list(zip(people, pending, strict=True))):
            await approve(person, sign_in.number)
        sessions = [await sign_in.session() for sign_in in pending]
    assert [s.details.username for s in sessions] == ["ada", "bob", "eve"]


async def approve(person: Person, number: str) -> None:
    prompt = await person.stream.prompt()
    assert (await person.stream.send(person.device.approve(prompt, number))).accepted
