"""Sign-in on the device itself, on a real server: what it takes, and that it happens once."""

from __future__ import annotations

from functools import partial

import grpc
import pytest

from keyvouch import base64url
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.statement import Decision, DecisionStatement
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, same_device_pb2
from keyvouch_bench.device import PromptStream
from keyvouch_server.domain.model import SignIn
from support.contest import at_once
from support.live_server import LiveServer, bearer, nothing_arrives, refused
from support.own_sign_in import DeviceDesk, OwnSignIn, another_desk_of, claims_in, desk_of, sessions_of

CONSUMED = common_pb2.SIGN_IN_STATE_CONSUMED


async def test_the_offer_names_the_certificate_of_the_connection_P15(live: LiveServer):
    desk = await desk_of(live)
    begun = await desk.begin(binding_message="Week 47")
    offer = begun.offer
    assert (offer.device_id, offer.credential_id) == (desk.device.device_id, desk.device.credential.credential_id)
    assert (offer.app_id, offer.app_name, offer.audience) == ("shop", "Shop", "https://orders.test")
    assert (offer.binding_message, offer.place) == ("Week 47", "this computer")
    assert offer.expires_at == begun.begun.expires_at
    assert base64url.encode(offer.proof_key) == desk.thumbprint
    row = await live.app.store.read(lambda tx: tx.get(SignIn, id=begun.begun.sign_in_id))
    assert row is not None
    assert row.proof_thumbprint == offer.proof_key
    assert (row.same_device, row.number) == (True, begun.begun.number)


async def test_an_approval_becomes_a_session_that_is_bound_and_labelled_P13_P15(live: LiveServer):
    desk = await desk_of(live)
    done = await desk.signed_in()
    assert done.state == CONSUMED
    claims = claims_in(done.tokens.access_token)
    assert claims["cnf"] == {"x5t#S256": desk.thumbprint}
    assert (claims["acr"], claims["amr"]) == ("phishing-resistant", ["pop", "pin", "mfa"])
    assert (claims["aud"], claims["device"]) == ("https://orders.test", desk.device.device_id)
    assert (done.session.acr, done.session.username) == ("phishing-resistant", "ada")
    (row,) = await sessions_of(live, desk)
    assert (row.certificate_bound, row.acr) == (True, "phishing-resistant")
    history = [(r.action, r.actor, r.outcome) for r in await live.audit() if r.action.startswith("sign_in.")]
    device, user = desk.device.device_id, done.session.user_id
    assert history[-3:] == [
        ("sign_in.begin", device, "ok"),
        ("sign_in.approve", device, "ok"),
        ("sign_in.redeem", user, "ok"),
    ]


async def test_matching_a_number_never_earns_the_label_P3(live: LiveServer):
    ada = await live.person("ada")
    public = await live.signed_in(ada, audience="https://orders.test")
    claims = claims_in(public.tokens.access_token)
    assert claims["acr"] == "number-matched"
    assert claims["cnf"].keys() == {"jkt"}
    own = await (DeviceDesk.open(ada.device, live.stack)).signed_in()
    assert claims_in(own.tokens.access_token)["acr"] == "phishing-resistant"


async def test_it_is_answered_over_its_own_call_and_nowhere_else(live: LiveServer):
    ada = await live.person("ada")
    desk = DeviceDesk.open(ada.device, live.stack)
    begun = await desk.begin()
    outcome = await ada.stream.send(begun.approval())
    assert (outcome.accepted, outcome.reason) == (False, Reason.SIGN_IN_UNKNOWN.value)
    async with PromptStream(ada.device) as again:
        await nothing_arrives(again)
    await nothing_arrives(ada.stream)
    assert (await begun.complete()).state == CONSUMED


async def test_a_prompt_of_the_stream_is_not_answered_as_a_sign_in_of_the_device_P3(live: LiveServer):
    ada = await live.person("ada")
    desk = DeviceDesk.open(ada.device, live.stack)
    public = await live.begin("ada")
    prompt = await ada.stream.prompt()
    passed_on = same_device_pb2.SameDeviceServiceBeginSignInResponse(
        sign_in_id=public.begun.sign_in_id, sign_in_token=public.begun.sign_in_token,
        prompt_id=prompt.prompt_id, offer=prompt.offer, number=public.number,
    )  # fmt: skip
    relayed = OwnSignIn(desk, passed_on)
    with refused(Reason.SIGN_IN_UNKNOWN, status=grpc.StatusCode.UNAUTHENTICATED):
        await relayed.complete()
    assert await public.state() == common_pb2.SIGN_IN_STATE_PENDING
    own = await desk.begin()
    with refused(Reason.SIGN_IN_UNKNOWN):
        await own.complete(relayed.approval())  # its own token, and the answer to the other
    assert (await own.complete()).state == CONSUMED


async def test_another_device_completes_nothing_P15(live: LiveServer):
    desk, other = await desk_of(live), await desk_of(live, "eve")
    second = await another_desk_of(live)
    begun = await desk.begin()
    for stranger in (other, second):
        with refused(Reason.SIGN_IN_UNKNOWN, status=grpc.StatusCode.UNAUTHENTICATED):
            await begun.complete(desk=stranger)
    with refused(Reason.SIGN_IN_UNKNOWN):
        await begun.complete(token="kvs_x")
    assert (await begun.complete()).state == CONSUMED


async def test_an_answer_is_judged_like_every_other(live: LiveServer):
    desk, other = await desk_of(live), await desk_of(live, "eve")
    begun = await desk.begin()
    forged = begun.approval()
    forged.assertion.signature = other.device.credential.assertion(b"\0" * 32).signature
    with refused(Reason.SIGNATURE, status=grpc.StatusCode.INVALID_ARGUMENT):
        await begun.complete(forged)
    foreign = begun.approval()
    foreign.statement = DecisionStatement((await other.begin()).begun.offer, Decision.APPROVE, "00").encode()
    with refused(Reason.STATEMENT_MISMATCH):
        await begun.complete(foreign)
    channel_key = begun.approval()
    channel_key.channel_signature = begun.refusal(Decision.DENY).channel_signature
    with refused(Reason.MISSING_FIELD):
        await begun.complete(channel_key)
    assert await sessions_of(live, desk) == []
    assert (await begun.complete()).state == CONSUMED


async def test_a_wrong_number_ends_it_as_everywhere(live: LiveServer):
    desk = await desk_of(live)
    begun = await desk.begin()
    wrong = begun.approval(str((int(begun.begun.number) + 1) % 100).zfill(2))
    for _ in range(2):
        with refused(Reason.NUMBER_MISMATCH, status=grpc.StatusCode.FAILED_PRECONDITION):
            await begun.complete(wrong)
    with refused(Reason.NUMBER_MISMATCH):
        await begun.complete()
    assert await sessions_of(live, desk) == []


@pytest.mark.parametrize(
    ("decision", "state", "reason"),
    [
        (Decision.DENY, common_pb2.SIGN_IN_STATE_DENIED, Reason.SIGN_IN_DENIED),
        (Decision.REPORT, common_pb2.SIGN_IN_STATE_REPORTED, Reason.SIGN_IN_REPORTED),
    ],
)
async def test_it_can_be_refused_once_and_again(live: LiveServer, decision: Decision, state: int, reason: Reason):
    desk = await desk_of(live)
    begun = await desk.begin()
    refusal = begun.refusal(decision)
    for _ in range(2):
        done = await begun.complete(refusal)
        assert (done.state, done.HasField("tokens")) == (state, False)
    with refused(reason):
        await begun.complete()


@pytest.mark.parametrize(
    "app", [{"app_id": ""}, {"app_name": "Sh\u202eop"}, {"audience": "x" * 257}, {"binding_message": "x" * 129}]
)
async def test_what_is_shown_to_people_is_checked_A2(live: LiveServer, app: dict[str, str]):
    desk = await desk_of(live)
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await desk.begin(**app)
    assert refusal.error.metadata["field"] == next(iter(app))
    await desk.begin()


# once, and never twice


@pytest.mark.parametrize("count", [2, 8, 64])
async def test_copies_that_race_give_one_session_P7(live: LiveServer, count: int):
    desk = await desk_of(live)
    channels = [DeviceDesk.open(desk.device, live.stack) for _ in range(min(count, 8))]
    for _ in range(3):
        begun = await desk.begin()
        approval = begun.approval()
        before = len(await sessions_of(live, desk))
        copies = [partial(begun.complete, approval, desk=channels[n % len(channels)]) for n in range(count)]
        done = await at_once(copies)
        assert not [one for one in done if isinstance(one, KeyvouchError)]
        assert len({(one.session.session_id, one.tokens.refresh_token) for one in done}) == 1
        assert len(await sessions_of(live, desk)) == before + 1


async def test_an_approval_and_a_denial_that_race_have_one_outcome_P7(live: LiveServer):
    desk = await desk_of(live)
    for _ in range(10):
        begun = await desk.begin()
        before = len(await sessions_of(live, desk))
        answers = begun.approval(), begun.refusal(Decision.DENY)
        approved, denied = await at_once([partial(begun.complete, given) for given in answers])
        assert isinstance(approved, KeyvouchError) != isinstance(denied, KeyvouchError)
        assert len(await sessions_of(live, desk)) == before + (not isinstance(approved, KeyvouchError))


async def test_a_copy_is_answered_until_the_sign_in_expires_and_the_session_is_used_P6(live: LiveServer):
    desk = await desk_of(live)
    begun = await desk.begin()
    approval = begun.approval()
    first = await begun.complete(approval)
    live.clock.advance(119)
    assert (await begun.complete(approval)).tokens.refresh_token == first.tokens.refresh_token
    other = desk.device.approve(begun.prompt, begun.begun.number)  # the same statement under another signature
    assert (await begun.complete(other)).session.session_id == first.session.session_id
    with refused(Reason.CHALLENGE_CONSUMED):
        await begun.complete(begun.refusal(Decision.DENY))
    await desk.refresh(first.tokens.refresh_token)
    with refused(Reason.CHALLENGE_CONSUMED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await begun.complete(approval)
    live.clock.advance(1)
    with refused(Reason.CHALLENGE_CONSUMED):
        await begun.complete(approval)
    assert len(await sessions_of(live, desk)) == 1


async def test_it_expires(live: LiveServer):
    desk = await desk_of(live)
    begun = await desk.begin()
    live.clock.advance(120)
    with refused(Reason.SIGN_IN_EXPIRED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await begun.complete()
    assert (await desk.signed_in()).state == CONSUMED


async def test_a_device_ends_an_older_prompt_and_no_stranger_ends_what_it_began_KI4_P18(live: LiveServer):
    ada = await live.person("ada")
    desk = DeviceDesk.open(ada.device, live.stack)
    public = await live.begin("ada")
    prompt = await ada.stream.prompt()
    own = await desk.begin()
    assert (await ada.stream.withdrawn()).prompt_id == prompt.prompt_id
    late = await ada.stream.send(ada.device.approve(prompt, public.number))
    assert late.reason == Reason.SIGN_IN_SUPERSEDED.value
    newer = await live.begin("ada")
    assert (await own.complete()).session.acr == "phishing-resistant"
    prompt = await ada.stream.prompt()
    assert (await ada.stream.send(ada.device.approve(prompt, newer.number))).accepted
    assert (await newer.redeem()).session.acr == "number-matched"
    assert sorted(one.certificate_bound for one in await sessions_of(live, desk)) == [False, True]


# policy


async def test_policy_is_asked_before_and_once_more_at_the_end_KI1_P19(live: LiveServer):
    desk = await desk_of(live)
    begun = await desk.begin()
    await live.admin()
    await live.change_policy(approval={"enabled": False})
    with refused(Reason.METHOD_DISABLED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await begun.complete()
    with refused(Reason.METHOD_DISABLED):
        await desk.begin()
    assert await sessions_of(live, desk) == []
    await live.change_policy(approval={"enabled": True})
    with refused(Reason.POLICY_CHANGED) as refusal:  # it was approved while the policy did not allow it
        await begun.complete()
    assert refusal.error.metadata["detail"] == Reason.METHOD_DISABLED.value
    assert (await (await desk.begin()).complete()).state == CONSUMED


async def test_a_stronger_requirement_counts_at_once_KI1_P19(live: LiveServer):
    desk = await desk_of(live)
    await live.admin()
    begun = await desk.begin()
    required = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
        verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
        provenance=common_pb2.PROVENANCE_UNATTESTED,
    )
    await live.change_policy(approval={"required_assurance": required})
    with refused(Reason.ASSURANCE_TOO_LOW):
        await begun.complete()
    with refused(Reason.ASSURANCE_TOO_LOW):
        await desk.begin()
    assert await sessions_of(live, desk) == []


async def test_begins_of_a_device_have_a_budget_of_their_own_P1_P18(live: LiveServer):
    ada = await live.person("ada")
    desk = DeviceDesk.open(ada.device, live.stack)
    for _ in range(3):
        await live.begin("ada")
    with refused(Reason.THROTTLED):
        await live.begin("ada")
    for _ in range(3):
        await desk.begin()
    with refused(Reason.THROTTLED, status=grpc.StatusCode.RESOURCE_EXHAUSTED):
        await desk.begin()
    live.clock.advance(60)
    await desk.signed_in()
    await desk.begin()


async def test_a_removed_device_begins_and_completes_nothing(live: LiveServer):
    desk = await desk_of(live)
    begun, done = await desk.begin(), await desk.signed_in()
    await live.administer("AdminRemoveDevice", admin_pb.AdminRemoveDeviceRequest(device_id=desk.device.device_id))
    for attempt in (begun.complete, desk.begin, lambda: desk.refresh(done.tokens.refresh_token)):
        with refused(Reason.DEVICE_REMOVED, status=grpc.StatusCode.UNAUTHENTICATED):
            await attempt()
    with refused(Reason.SESSION_REVOKED):
        await live.introspect(bearer(done.tokens.access_token))
