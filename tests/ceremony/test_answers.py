"""Answers that prove something else than they should, on a real server: each is refused and changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from keyvouch import cbor
from keyvouch.errors import Reason, ThrottledError
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import (
    Decision,
    DecisionStatement,
    Purpose,
    SignInOffer,
    challenge,
    proof_statement,
)
from keyvouch.v1 import common_pb2, enrolment_pb2, prompts_pb2, sign_in_pb2
from keyvouch_client.errors import answer
from keyvouch_client.sign_in import new_proof_key
from keyvouch_server.domain.model import Credential, Device, User
from keyvouch_server.use_cases.judgement import Answer, Assertion
from support.live_server import LIMIT, LiveServer, OpenSignIn, Person, refused
from support.registering import begin as begin_registration
from support.registering import complete

OTHER_PURPOSES = [p for p in Purpose if p is not Purpose.SIGN_IN]


async def refused_answer(person: Person, opened: OpenSignIn, given: prompts_pb2.Answer, *reasons: Reason) -> None:
    """The answer is refused with one of the reasons and the sign-in waits on."""
    outcome = await person.stream.send(given)
    assert not outcome.accepted
    assert outcome.reason in {r.value for r in reasons}, outcome
    assert outcome.message
    assert await opened.state() == common_pb2.SIGN_IN_STATE_PENDING


async def asked(live: LiveServer) -> tuple[Person, OpenSignIn, prompts_pb2.Prompt]:
    ada = await live.person("ada")
    opened = await live.begin("ada")
    return ada, opened, await ada.stream.prompt()


def changed(value: object) -> object:
    if isinstance(value, int):
        return value + 1
    return value[:-1] + bytes([value[-1] ^ 1]) if isinstance(value, bytes) else f"{value}x"


async def test_a_statement_about_any_other_offer_is_refused(live: LiveServer):
    ada, opened, prompt = await asked(live)
    offer = SignInOffer.parse(prompt.offer)
    for field in fields(SignInOffer):
        if field.name != "encoded":
            other = replace(offer, **{field.name: changed(getattr(offer, field.name))}).encode()
            given = ada.device.approve(prompt, opened.number, offer=other)
            await refused_answer(ada, opened, given, Reason.STATEMENT_MISMATCH)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted
    await opened.redeem()


async def test_the_audit_log_tells_of_refused_answers(live: LiveServer):
    ada, opened, prompt = await asked(live)
    given = ada.device.approve(prompt, opened.number, offer=b"\xa0")
    await refused_answer(ada, opened, given, Reason.STATEMENT_MISMATCH)
    records = await live.audit("sign_in.answer")
    assert [(r.actor, r.subject, r.outcome) for r in records] == [
        (ada.device.device_id, opened.begun.sign_in_id, Reason.STATEMENT_MISMATCH.value)
    ]


async def test_an_answer_to_an_older_prompt_is_none_to_the_newer_one(live: LiveServer):
    ada, older, old_prompt = await asked(live)
    old_answer = ada.device.approve(old_prompt, older.number)
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    moved = prompts_pb2.Answer()
    moved.CopyFrom(old_answer)
    moved.prompt_id = prompt.prompt_id
    await refused_answer(ada, opened, moved, Reason.STATEMENT_MISMATCH)
    borrowed = ada.device.approve(prompt, opened.number)
    borrowed.assertion.CopyFrom(old_answer.assertion)
    await refused_answer(ada, opened, borrowed, Reason.CHALLENGE)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted


async def test_each_decision_needs_its_own_kind_of_evidence(live: LiveServer):
    ada, opened, prompt = await asked(live)
    approval, denial = ada.device.approve(prompt, opened.number), ada.device.refuse(prompt, Decision.DENY)
    swapped = [
        prompts_pb2.Answer(
            prompt_id=prompt.prompt_id,
            statement=approval.statement,
            channel_signature=sign_proof(ada.device.channel_key, Purpose.SIGN_IN, approval.statement),
        ),
        prompts_pb2.Answer(prompt_id=prompt.prompt_id, statement=approval.statement),
        prompts_pb2.Answer(
            prompt_id=prompt.prompt_id,
            statement=denial.statement,
            assertion=ada.device.credential.assertion(challenge(Purpose.SIGN_IN, denial.statement)),
        ),
    ]
    for given in swapped:
        await refused_answer(ada, opened, given, Reason.MISSING_FIELD)
    crossed = prompts_pb2.Answer()
    crossed.CopyFrom(denial)
    crossed.channel_signature = ada.device.refuse(prompt, Decision.REPORT).channel_signature
    await refused_answer(ada, opened, crossed, Reason.PROOF_INVALID)
    assert (await ada.stream.send(denial)).accepted


async def test_statements_that_are_none_are_refused(live: LiveServer):
    ada, opened, prompt = await asked(live)
    good = DecisionStatement(prompt.offer, Decision.APPROVE, opened.number).encode()
    bad = [
        b"",
        good + b"\0",
        good[:-1],
        prompt.offer,
        cbor.encode({1: prompt.offer, 2: 1}),
        cbor.encode({1: prompt.offer, 2: 4, 3: opened.number}),
        cbor.encode({1: prompt.offer, 2: 2, 3: opened.number}),
        cbor.encode({1: prompt.offer, 2: 1, 3: f" {opened.number}"}),
        cbor.encode({1: prompt.offer, 2: 1, 3: opened.number, 4: 0}),
        b"\x00" * 5000,
    ]
    for statement in bad:
        given = prompts_pb2.Answer(
            prompt_id=prompt.prompt_id,
            statement=statement,
            assertion=ada.device.credential.assertion(challenge(Purpose.SIGN_IN, statement)),
        )
        await refused_answer(ada, opened, given, Reason.STATEMENT_MALFORMED)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted


@pytest.mark.parametrize("purpose", OTHER_PURPOSES)
async def test_a_signature_for_another_purpose_decides_nothing_P5(live: LiveServer, purpose: Purpose):
    ada, opened, prompt = await asked(live)
    for decision, number in ((Decision.APPROVE, opened.number), (Decision.DENY, "")):
        statement = DecisionStatement(prompt.offer, decision, number).encode()
        given = prompts_pb2.Answer(prompt_id=prompt.prompt_id, statement=statement)
        if decision is Decision.APPROVE:
            given.assertion.CopyFrom(ada.device.credential.assertion(challenge(purpose, statement)))
        else:
            given.channel_signature = sign_proof(ada.device.channel_key, purpose, statement)
        await refused_answer(ada, opened, given, Reason.CHALLENGE, Reason.PROOF_INVALID)
    assert (await ada.stream.send(ada.device.approve(prompt, opened.number))).accepted


@pytest.mark.parametrize("purpose", [p for p in Purpose if p is not Purpose.REDEEM])
async def test_a_proof_for_another_purpose_redeems_nothing_P5(live: LiveServer, purpose: Purpose):
    opened = await live.approved(await live.person("ada"))
    with refused(Reason.PROOF_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
        await opened.redeem(opened.proof(purpose=purpose))
    await opened.redeem()


@pytest.mark.parametrize("purpose", [p for p in Purpose if p is not Purpose.REFRESH])
async def test_a_proof_for_another_purpose_refreshes_nothing_P5(live: LiveServer, purpose: Purpose):
    signed_in = await live.signed_in(await live.person("ada"))
    token = signed_in.tokens.refresh_token
    with refused(Reason.PROOF_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
        await signed_in.refresh(proof=signed_in.refresh_proof(token, purpose=purpose))
    await signed_in.refresh()


@pytest.mark.parametrize("purpose", [p for p in Purpose if p is not Purpose.SIGN_IN_SESSION])
async def test_a_proof_for_another_purpose_opens_no_stream_P5(live: LiveServer, purpose: Purpose):
    key = new_proof_key()
    for used in (purpose, Purpose.SIGN_IN_SESSION):
        call = live.connection.sign_ins.SignInSession(timeout=LIMIT)
        nonce = (await answer(call.read())).nonce
        proof = sign_proof(key, used, proof_statement(live.app.world.facts.server_id, nonce.nonce))
        opening = sign_in_pb2.SignInSessionOpen(proof_public_key=spki_of(key.public_key()), proof=proof)
        await call.write(sign_in_pb2.SignInSessionRequest(open=opening))
        await call.done_writing()
        if used is Purpose.SIGN_IN_SESSION:
            assert await call.read() is grpc.aio.EOF
            continue
        with refused(Reason.PROOF_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
            await answer(call.read())
            await answer(call)


@pytest.mark.parametrize("purpose", [p for p in Purpose if p is not Purpose.REGISTRATION])
async def test_an_attestation_for_another_purpose_registers_nothing_P5(live: LiveServer, purpose: Purpose):
    await live.create_user("ada")
    begun = await begin_registration(live, await live.pass_session("ada", await live.issue_pass("ada")))
    client_data, attestation = begun.credential.register(challenge(purpose, begun.begun.statement))
    wrong = enrolment_pb2.CompleteRegistrationRequest(
        client_data_json=client_data, attestation_object=attestation, channel_proof=begun.answer.channel_proof
    )
    with refused(Reason.CHALLENGE, status=grpc.StatusCode.INVALID_ARGUMENT):
        await complete(live, begun, wrong)
    if purpose is not Purpose.CHANNEL:
        wrong.CopyFrom(begun.answer)
        wrong.channel_proof = sign_proof(begun.channel_key, purpose, begun.begun.statement)
        with refused(Reason.PROOF_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
            await complete(live, begun, wrong)
    assert await live.app.store.read(lambda tx: tx.count(Device, {})) == 1
    await complete(live, begun)


async def test_an_assertion_registers_nothing_and_an_attestation_approves_nothing_P5(live: LiveServer):
    ada, opened, prompt = await asked(live)
    approval = ada.device.approve(prompt, opened.number)
    begun = await begin_registration(live, await live.pass_session("ada", await live.issue_pass_again("ada")))
    as_registration = enrolment_pb2.CompleteRegistrationRequest(
        client_data_json=approval.assertion.client_data_json,
        attestation_object=begun.answer.attestation_object,
        channel_proof=begun.answer.channel_proof,
    )
    with refused(Reason.CLIENT_DATA_TYPE, status=grpc.StatusCode.INVALID_ARGUMENT):
        await complete(live, begun, as_registration)
    created, _ = ada.device.credential.register(challenge(Purpose.SIGN_IN, approval.statement))
    approval.assertion.client_data_json = created
    await refused_answer(ada, opened, approval, Reason.CLIENT_DATA_TYPE)
    await complete(live, begun)


async def test_the_registrations_answer_of_another_ceremony_is_refused(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    first, second = await begin_registration(live, session), await begin_registration(live, session)
    with refused(Reason.CHALLENGE, status=grpc.StatusCode.INVALID_ARGUMENT):
        await complete(live, first, second.answer)
    done = await complete(live, first)
    assert (await complete(live, first)).device == done.device  # a lost reply costs nothing
    with refused(Reason.REGISTRATION_CONSUMED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await complete(live, first, second.answer)
    live.clock.advance(600)
    with refused(Reason.REGISTRATION_EXPIRED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await complete(live, second)


# copies and counters


async def test_a_copy_of_the_answer_that_decided_is_consumed_W1(live: LiveServer):
    ada, opened, prompt = await asked(live)
    given = ada.device.approve(prompt, opened.number)
    assert (await ada.stream.send(given)).accepted
    for _ in range(2):
        copy = await ada.stream.send(given)
        assert (copy.accepted, copy.reason) == (False, Reason.CHALLENGE_CONSUMED.value)
    await opened.redeem()
    copy = await ada.stream.send(given)
    assert (copy.accepted, copy.reason) == (False, Reason.CHALLENGE_CONSUMED.value)


async def test_of_fifty_copies_at_once_one_decides_W1(live: LiveServer):
    ada, opened, prompt = await asked(live)
    given = ada.device.approve(prompt, opened.number)
    device = await live.app.store.read(lambda tx: tx.get(Device, id=ada.device.device_id))
    a = given.assertion
    evidence = Assertion(a.credential_id, a.client_data_json, a.authenticator_data, a.signature, a.user_handle)
    copies = [Answer(given.prompt_id, given.statement, evidence) for _ in range(50)]
    assert device is not None
    results = await asyncio.gather(*(live.app.decisions.answer(device, copy) for copy in copies))
    assert sum(r.refusal is None for r in results) == 1
    assert {r.refusal.reason for r in results if r.refusal} <= {Reason.CHALLENGE_CONSUMED, Reason.SIGN_COUNT}
    await opened.redeem()


async def test_the_counter_must_rise_W5(live: LiveServer):
    ada = await live.person("ada")
    ada.device.credential.sign_count = 9
    await live.signed_in(ada)
    stored = await live.app.store.read(lambda tx: tx.find(Credential, {"device_id": ada.device.device_id}))
    assert stored[0].sign_count == 10
    await live.change_policy(approval={"begins_per_minute": 10})
    for clone in (9, 4, -1):
        ada.device.credential.sign_count = clone
        opened = await live.begin("ada")
        prompt = await ada.stream.prompt()
        given = ada.device.approve(prompt, opened.number)
        await refused_answer(ada, opened, given, Reason.SIGN_COUNT)
    ada.device.credential.sign_count = 10
    await live.signed_in(ada)


# wrong numbers and throttling


async def miss(live: LiveServer, ada: Person) -> None:
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    outcome = await ada.stream.send(ada.device.approve(prompt, opened.wrong_number))
    assert outcome.reason == Reason.NUMBER_MISMATCH.value


async def misses_of(live: LiveServer, username: str) -> int:
    users = await live.app.store.read(lambda tx: tx.find(User, {"username_key": username}))
    return users[0].number_misses


def retry_delay(error: ThrottledError) -> int:
    cause = error.__cause__
    details = dict(cause.trailing_metadata())["grpc-status-details-bin"]
    delays = []
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            told = error_details_pb2.RetryInfo()
            detail.Unpack(told)
            delays.append(told.retry_delay)
    assert delays == [duration_pb2.Duration(seconds=int(error.retry_after))]
    return delays[0].seconds


async def test_wrong_numbers_count_on_the_account_and_rest_the_method_P4(live: LiveServer):
    await live.change_policy(approval={"number_misses": 3, "begins_per_minute": 1000})
    ada = await live.person("ada")
    for number in (1, 2):
        await miss(live, ada)
        assert await misses_of(live, "ada") == number
    await live.signed_in(ada)
    assert await misses_of(live, "ada") == 0
    for _ in range(3):
        await miss(live, ada)
    with refused(Reason.THROTTLED, status=grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
        await live.begin("ada")
    assert isinstance(refusal.error, ThrottledError)
    assert retry_delay(refusal.error) == 900
    live.clock.advance(899)
    with refused(Reason.THROTTLED):
        await live.begin("ada")
    live.clock.advance(1)
    assert (await live.signed_in(ada)).session.username == "ada"


async def test_new_requests_do_not_forget_the_misses_P4(live: LiveServer):
    ada = await live.person("ada")
    await miss(live, ada)
    for _ in range(2):
        await live.begin("ada")
        await ada.stream.prompt()
    live.clock.advance(1000)
    assert await misses_of(live, "ada") == 1


async def test_begins_are_throttled_per_user_and_minute_P1(live: LiveServer):
    """A minute has three, and after these comes one a minute; an approval gives all of it back."""
    ada, bob = await live.person("ada"), await live.person("bob")
    for spelling in ("ada", " ADA", "\uff21da"):
        await live.begin(spelling)
        await ada.stream.prompt()
    for _ in range(5):
        with refused(Reason.THROTTLED, status=grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
            await live.begin("ada")
    assert isinstance(refusal.error, ThrottledError)
    assert retry_delay(refusal.error) == 60
    assert (await live.signed_in(bob)).session.username == "bob"
    live.clock.advance(59)
    with refused(Reason.THROTTLED):
        await live.begin("ada")
    live.clock.advance(1)
    assert (await live.signed_in(ada)).session.username == "ada"
    for _ in range(3):
        await live.begin("ada")
