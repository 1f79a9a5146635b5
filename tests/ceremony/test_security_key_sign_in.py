"""Sign-in with a security key at the client, on a real server: what it takes, that it happens once, what it tells."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import base64url
from keyvouch.errors import ConflictError, KeyvouchError, Reason
from keyvouch.proofs import thumbprint
from keyvouch.statement import Decision, SignInOffer
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, prompts_pb2, sign_in_pb2
from keyvouch_bench.device import PromptStream
from keyvouch_client.errors import answer
from keyvouch_server import bootstrap
from keyvouch_server.domain.model import Credential, Prompt, SignIn, SignInState
from keyvouch_server.rpc.prompts import assertion_of
from support.contest import at_once, shuffled
from support.key_desk import (
    OTHER_MODEL,
    OTHER_NAME,
    SECURITY_KEY,
    OpenWithKey,
    another_key,
    begin_with_key,
    enrolment_of,
    last_refusal,
    registered_key,
    sessions_of,
)
from support.live_server import LIMIT, LiveServer, nothing_arrives, refused
from support.own_sign_in import DeviceDesk, claims_in

APPROVED, PENDING = common_pb2.SIGN_IN_STATE_APPROVED, common_pb2.SIGN_IN_STATE_PENDING
UNAUTHENTICATED, NOT_NOW = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION
HARDWARE = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
    verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
    provenance=common_pb2.PROVENANCE_UNATTESTED,
)


# the way it goes


async def test_the_offer_is_for_this_key_and_this_client(live: LiveServer):
    ada = await registered_key(live)
    begun = await begin_with_key(live, "ada", binding_message="Week 47")
    offer = SignInOffer.parse(begun.offers[ada.credential.credential_id])
    assert offer.server_id == live.app.world.facts.server_id
    assert (offer.device_id, offer.credential_id) == (ada.device_id, ada.credential.credential_id)
    assert (offer.app_id, offer.app_name, offer.audience, offer.binding_message) == (
        "shop", "Shop", "keyvouch", "Week 47",
    )  # fmt: skip
    assert offer.proof_key == thumbprint(begun.proof_key.public_key())
    assert (offer.expires_at, begun.begun.security_key.rp_id) == (begun.begun.expires_at, "localhost")
    assert next(iter(begun.begun.methods)) == SECURITY_KEY
    row = await live.app.store.read(lambda tx: tx.get(SignIn, id=begun.begun.sign_in_id))
    assert row is not None
    assert (row.security_key, row.same_device) == (True, False)


async def test_an_assertion_becomes_a_session_that_is_bound_and_labelled_P3_PS7(live: LiveServer):
    ada = await registered_key(live)
    begun = await begin_with_key(live, "ada", audience="https://orders.test")
    assert await begun.complete(begun.approval(ada.credential)) == APPROVED
    assert await begun.state() == APPROVED
    signed_in = await begun.redeem()
    claims = claims_in(signed_in.tokens.access_token)
    assert claims["cnf"] == {"jkt": base64url.encode(thumbprint(begun.proof_key.public_key()))}
    assert (claims["acr"], claims["amr"]) == ("phishing-resistant", ["swk", "user", "pin", "mfa"])
    assert (claims["aud"], claims["device"]) == ("https://orders.test", ada.device_id)
    assert claims["assurance"] == "software/software_gated/self"
    assert (await signed_in.refresh()).refresh_token != signed_in.tokens.refresh_token
    device = (await live.app.store.read(lambda tx: tx.find(Credential, {"device_id": ada.device_id})))[0]
    assert device.sign_count == ada.credential.sign_count
    history = [(r.action, r.actor, r.outcome) for r in await live.audit() if r.action.startswith("sign_in.")]
    assert history[-3:] == [
        ("sign_in.begin", "anonymous", "ok"),
        ("sign_in.approve", ada.device_id, "ok"),
        ("sign_in.redeem", signed_in.session.user_id, "ok"),
    ]


async def test_any_of_a_users_keys_will_do_and_no_key_of_an_agent_is_offered(live: LiveServer):
    ada = await registered_key(live)
    second = await another_key(live, "ada")
    inside = await (await enrolment_of(live, "ada", provider=common_pb2.PROVIDER_KIND_TPM)).complete()
    for key in (second, ada):
        begun = await begin_with_key(live, "ada")
        assert {ada.credential.credential_id, second.credential.credential_id} <= begun.offers.keys()
        assert inside.credential.credential_id not in begun.offers
        assert await begun.complete(begun.approval(key.credential)) == APPROVED
        assert (await begun.redeem()).session.device_id == key.device_id


async def test_the_keys_that_were_used_last_are_offered(live: LiveServer):
    ada = await registered_key(live)
    others = [await another_key(live, "ada") for _ in range(8)]
    live.clock.advance(60)
    begun = await begin_with_key(live, "ada")
    offered = [key for key in (ada, *others) if key.credential.credential_id in begun.offers]
    assert (len(begun.offers), len(offered)) == (8, 8)
    left_out = next(key for key in (ada, *others) if key not in offered)
    async with PromptStream(left_out) as stream:
        public = await live.begin("ada")
        assert (await stream.send(left_out.approve(await stream.prompt(), public.number))).accepted
    live.clock.advance(60)
    assert left_out.credential.credential_id in (await begin_with_key(live, "ada")).offers


async def test_a_key_that_is_new_is_offered_before_eight_that_were_used_long_ago(live: LiveServer):
    await registered_key(live)
    for _ in range(7):
        await another_key(live, "ada")
    live.clock.advance(60)
    new = await another_key(live, "ada")
    begun = await begin_with_key(live, "ada")
    assert await begun.complete(begun.approval(new.credential)) == APPROVED


async def test_keys_that_may_not_be_used_take_no_place_of_one_that_may(live: LiveServer):
    ada = await registered_key(live)
    live.clock.advance(60)
    for _ in range(8):
        await another_key(live, "ada", model=OTHER_MODEL)
    policy = (await live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy
    policy.registration.authenticators.blocked.append(OTHER_NAME)
    await live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy))
    begun = await begin_with_key(live, "ada")
    assert await begun.complete(begun.approval(ada.credential)) == APPROVED


# by this way and by no other


async def test_its_prompts_come_to_no_device_and_no_device_answers_them_P3(live: LiveServer):
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    begun = await begin_with_key(live, "ada")
    async with PromptStream(ada) as again:
        await nothing_arrives(again)
    offered = await live.app.store.read(lambda tx: tx.find(Prompt, {"sign_in_id": begun.begun.sign_in_id}))
    (prompt,) = (one for one in offered if one.device_id == ada.device_id)
    shown = prompts_pb2.Prompt(prompt_id=prompt.id, offer=prompt.offer)
    for given in (ada.approve(shown, begun.number), ada.refuse(shown, Decision.DENY)):
        outcome = await person.stream.send(given)
        assert (outcome.accepted, outcome.reason) == (False, Reason.SIGN_IN_UNKNOWN.value)
    assert await begun.state() == PENDING
    assert await begun.complete(begun.approval(ada.credential)) == APPROVED
    await nothing_arrives(person.stream)


async def test_what_was_offered_to_a_device_is_not_answered_here_P3(live: LiveServer):
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    public = await live.begin("ada")
    prompt = await person.stream.prompt()
    relayed = OpenWithKey(live, public.begun, public.proof_key)
    request = relayed.approval(ada.credential, offer=prompt.offer, origin="keyvouch-client://localhost")
    with refused(Reason.SIGN_IN_UNKNOWN, status=UNAUTHENTICATED):
        await relayed.complete(request)
    own = await DeviceDesk.open(ada, live.stack).begin()
    theirs = replace(relayed, begun=sign_in_pb2.BeginSignInResponse(
        sign_in_id=own.begun.sign_in_id, sign_in_token=own.begun.sign_in_token, number=own.begun.number,
    ))  # fmt: skip
    with refused(Reason.SIGN_IN_UNKNOWN):
        await theirs.complete(theirs.approval(ada.credential, offer=own.begun.offer, origin=request_origin()))
    newer = await live.begin("ada")
    answered = await person.stream.send(ada.approve(await person.stream.prompt(), newer.number))
    assert answered.accepted


def request_origin() -> str:
    """The origin of clients at the server of these tests."""
    return "keyvouch-client://localhost"


async def test_the_origin_of_clients_is_worth_nothing_on_a_device(live: LiveServer):
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    public = await live.begin("ada")
    prompt = await person.stream.prompt()
    here = OpenWithKey(live, public.begun, public.proof_key).approval(
        ada.credential, offer=prompt.offer, origin=request_origin()
    )
    forged = prompts_pb2.Answer(prompt_id=prompt.prompt_id, statement=here.statement, assertion=here.assertion)
    outcome = await person.stream.send(forged)
    assert (outcome.accepted, outcome.reason) == (False, Reason.ORIGIN.value)
    assert (await person.stream.send(ada.approve(prompt, public.number))).accepted


async def test_it_is_its_clients_own_P15(live: LiveServer):
    ada = await registered_key(live)
    begun, eve = await begin_with_key(live, "ada"), await live.begin("nobody")
    request = begun.approval(ada.credential)
    for metadata in (eve.metadata, (("authorization", "SignIn kvs_x"),)):
        with refused(Reason.SIGN_IN_UNKNOWN, status=UNAUTHENTICATED):
            await begun.complete(request, metadata)
    with refused(Reason.CREDENTIALS_MISSING, status=UNAUTHENTICATED):
        await begun.complete(request, (("x", "y"),))
    assert await begun.complete(request) == APPROVED
    with refused(Reason.PROOF_INVALID, status=UNAUTHENTICATED):
        await begun.redeem(begun.proof(ec.generate_private_key(ec.SECP256R1())))
    assert (await begun.redeem()).session.username == "ada"


# once, and never twice


async def test_copies_that_race_approve_once_W1(live: LiveServer):
    ada = await registered_key(live)
    begun = await begin_with_key(live, "ada")
    request = begun.approval(ada.credential)
    done = await at_once([partial(begun.complete, request)] * 50)
    assert [one for one in done if not isinstance(one, KeyvouchError)] == [APPROVED]
    assert {one.reason for one in done if isinstance(one, KeyvouchError)} == {Reason.CHALLENGE_CONSUMED}
    assert (await begun.redeem()).session.session_id == (await begun.redeem()).session.session_id
    with refused(Reason.CHALLENGE_CONSUMED, status=NOT_NOW):
        await begun.complete(request)
    assert len(await sessions_of(live)) == 1


async def test_an_approval_survives_a_restart_and_is_used_once_P6(live: LiveServer):
    ada = await registered_key(live)
    begun = await begin_with_key(live, "ada")
    request = begun.approval(ada.credential)
    assert await begun.complete(request) == APPROVED
    again = bootstrap.assemble(live.data, live.app.config, live.app.store, clock=live.clock)
    copy = assertion_of(request.assertion)
    token = begun.begun.sign_in_token
    with pytest.raises(ConflictError) as refusal:
        await again.security_keys.complete(request.sign_in_id, token, request.statement, copy)
    assert refusal.value.reason is Reason.CHALLENGE_CONSUMED
    redeemed = await again.redemptions.redeem(request.sign_in_id, token, begun.proof())
    assert (await begun.redeem()).session.session_id == redeemed.issued.session.id  # the reply was lost: the same again
    assert len(await sessions_of(live)) == 1


async def test_acts_that_race_leave_one_end_and_at_most_one_session_P7(live: LiveServer):
    ada = await registered_key(live)
    await live.change_policy(approval={"begins_per_minute": 6000})
    draw = random.Random(7)
    for _ in range(40):
        begun = await begin_with_key(live, "ada")
        request = begun.approval(ada.credential)
        acts: list[Callable[[], Awaitable[object]]] = [
            partial(begun.complete, request),
            partial(begun.complete, request),
            begun.redeem,
            begun.redeem,
            begun.cancel,
            partial(live.begin, "ada"),
            partial(begin_with_key, live, "ada"),
        ]
        draw.shuffle(acts)
        await shuffled(acts, longest=0.01, draw=draw)
        row = await live.app.store.read(lambda tx, key=begun.begun.sign_in_id: tx.get(SignIn, id=key))
        assert row is not None
        made = [one for one in await sessions_of(live) if one.proof_thumbprint == row.proof_thumbprint]
        assert [one.id for one in made] == ([row.session_id] if row.state is SignInState.CONSUMED else [])
        assert row.state is not SignInState.PENDING
        assert (row.device_id == ada.device_id) == bool(row.decision_hash)


async def test_an_answer_to_one_request_is_none_to_another_P6(live: LiveServer):
    ada = await registered_key(live)
    first = await begin_with_key(live, "ada")
    request = first.approval(ada.credential)
    assert await first.complete(request) == APPROVED
    second = await begin_with_key(live, "ada")
    request.sign_in_id = second.begun.sign_in_id
    with refused(Reason.SECURITY_KEY_REFUSED):
        await second.complete(request)
    assert await last_refusal(live) == Reason.STATEMENT_MISMATCH.value


async def test_it_expires_is_superseded_and_withdrawn_KI4(live: LiveServer):
    ada = await registered_key(live)
    late = await begin_with_key(live, "ada")
    live.clock.advance(120)
    with refused(Reason.SIGN_IN_EXPIRED, status=NOT_NOW):
        await late.complete(late.approval(ada.credential))
    older = await begin_with_key(live, "ada")
    newer = await begin_with_key(live, "ada")
    with refused(Reason.SIGN_IN_SUPERSEDED, status=NOT_NOW):
        await older.complete(older.approval(ada.credential))
    await newer.cancel()
    with refused(Reason.SIGN_IN_CANCELLED, status=NOT_NOW):
        await newer.complete(newer.approval(ada.credential))
    assert await sessions_of(live) == []


async def test_a_stranger_with_no_key_disturbs_no_approval_unseen_and_the_other_way_round_P18(live: LiveServer):
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    public = await live.begin("ada")
    prompt = await person.stream.prompt()
    for _ in range(3):
        begun = await begin_with_key(live, "ada")
    with refused(Reason.THROTTLED):
        await begin_with_key(live, "ada")
    assert (await person.stream.send(ada.approve(prompt, public.number))).accepted
    assert await begun.complete(begun.approval(ada.credential)) == APPROVED
    assert (await public.redeem()).session.acr == "number-matched"
    await live.approved(person)
    assert (await begun.redeem()).session.acr == "phishing-resistant"


# policy


async def test_the_method_can_be_switched_off_at_every_step_PS15_P19(live: LiveServer):
    ada = await registered_key(live)
    await live.admin()
    begun = await begin_with_key(live, "ada")
    assert await begun.complete(begun.approval(ada.credential)) == APPROVED
    await live.change_policy(security_key={"enabled": False})
    with refused(Reason.METHOD_DISABLED, status=NOT_NOW):
        await begun.redeem()
    for username in ("ada", "nobody"):
        with refused(Reason.METHOD_DISABLED, status=NOT_NOW):
            await begin_with_key(live, username)
    assert SECURITY_KEY not in (await live.begin("ada")).begun.methods  # approval by a device is another matter
    await live.change_policy(security_key={"enabled": True}, approval={"enabled": False})
    again = await begin_with_key(live, "ada")
    assert list(again.begun.methods) == [SECURITY_KEY, common_pb2.SIGN_IN_METHOD_ACCESS_PASS]
    with refused(Reason.METHOD_DISABLED, status=NOT_NOW):
        await enrolment_of(live, "ada", provider=common_pb2.PROVIDER_KIND_SOFTWARE)
    assert (await another_key(live, "ada")).device_id  # what it is good for is allowed
    assert await again.complete(again.approval(ada.credential)) == APPROVED
    assert (await again.redeem()).session.username == "ada"


async def test_a_stronger_requirement_counts_at_once_KI1_P19(live: LiveServer):
    ada = await registered_key(live)
    await live.admin()
    begun = await begin_with_key(live, "ada")
    await live.change_policy(security_key={"required_assurance": HARDWARE})
    assert await begun.complete(begun.approval(ada.credential)) == APPROVED
    with refused(Reason.ASSURANCE_TOO_LOW, status=NOT_NOW):
        await begun.redeem()
    later = await begin_with_key(live, "ada")
    assert ada.credential.credential_id not in later.offers
    log = (await live.audit("sign_in.begin"))[-1]
    assert (log.outcome, json.loads(log.details)["why"]) == (Reason.NO_METHOD.value, Reason.ASSURANCE_TOO_LOW.value)
    await live.begin("ada")  # what a device needs is said elsewhere
    assert await sessions_of(live) == []


async def test_begins_are_throttled_P1_P12(live: LiveServer):
    await registered_key(live)
    for username in ("ada", "nobody"):
        for _ in range(3):
            await begin_with_key(live, username)
            await live.begin(username)
        for begin in (begin_with_key, LiveServer.begin):
            with refused(Reason.THROTTLED, status=grpc.StatusCode.RESOURCE_EXHAUSTED):
                await begin(live, username)
    live.clock.advance(60)
    for username in ("ada", "nobody"):
        await begin_with_key(live, username)


async def test_a_removed_key_approves_nothing_PS18(live: LiveServer):
    ada = await registered_key(live)
    before = await begin_with_key(live, "ada")
    await before.complete(before.approval(ada.credential))
    session = await before.redeem()
    begun = await begin_with_key(live, "ada")
    request = begun.approval(ada.credential)
    await live.administer("AdminRemoveDevice", admin_pb.AdminRemoveDeviceRequest(device_id=ada.device_id))
    with refused(Reason.SECURITY_KEY_REFUSED, Reason.SIGN_IN_CANCELLED):
        await begun.complete(request)
    with refused(Reason.SESSION_REVOKED):
        await session.introspect()
    assert ada.credential.credential_id not in (await begin_with_key(live, "ada")).offers


async def test_wrong_numbers_rest_approvals_and_no_security_key_P18(live: LiveServer):
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    await live.admin()
    await live.change_policy(approval={"number_misses": 1})
    public = await live.begin("ada")
    await person.stream.send(ada.approve(await person.stream.prompt(), public.wrong_number))
    with refused(Reason.THROTTLED):
        await live.begin("ada")
    begun = await begin_with_key(live, "ada")
    assert await begun.complete(begun.approval(ada.credential)) == APPROVED


async def test_what_a_client_fills_in_neither_counts_nor_clears_wrong_numbers_P4_P18(live: LiveServer):
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    await live.change_policy(approval={"number_misses": 2})
    public = await live.begin("ada")
    await person.stream.send(ada.approve(await person.stream.prompt(), public.wrong_number))
    begun = await begin_with_key(live, "ada")
    with refused(Reason.NUMBER_MISMATCH):
        await begun.complete(begun.approval(ada.credential, number=begun.wrong_number))
    await live.begin("ada")  # that miss was nobody's guess
    await person.stream.prompt()
    good = await begin_with_key(live, "ada")
    assert await good.complete(good.approval(ada.credential)) == APPROVED
    public = await live.begin("ada")
    await person.stream.send(ada.approve(await person.stream.prompt(), public.wrong_number))
    with refused(Reason.THROTTLED):  # the second guess, whatever the key did in between
        await live.begin("ada")


async def test_the_log_says_by_which_way_a_sign_in_began(live: LiveServer):
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    await live.approved(person)
    await begin_with_key(live, "ada")
    await begin_with_key(live, "nobody")
    await DeviceDesk.open(ada, live.stack).begin()
    ways = [json.loads(record.details)["way"] for record in await live.audit("sign_in.begin")]
    assert ways[-4:] == ["prompt", "security_key", "security_key", "same_device"]


async def test_an_access_pass_is_no_method_to_begin_with(live: LiveServer):
    begun = await begin_with_key(live, "ada")
    request = sign_in_pb2.BeginSignInRequest(
        context=sign_in_pb2.SignInContext(tenant="example", username="ada", app_id="shop"),
        proof_public_key=b"", method=common_pb2.SIGN_IN_METHOD_ACCESS_PASS,
    )  # fmt: skip
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
        await answer(live.connection.sign_ins.BeginSignIn(request, timeout=LIMIT))
    assert begun.number
