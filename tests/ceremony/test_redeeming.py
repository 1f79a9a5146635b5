"""Redeeming an approval on a real server, withdrawing a request, and what a request may say."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, sign_in_pb2
from keyvouch_client.sign_in import new_proof_key
from keyvouch_server.domain.model import Session
from support.live_server import LiveServer, refused


async def test_only_the_key_that_asked_redeems_P15(live: LiveServer):
    ada = await live.person("ada")
    opened, stranger = await live.approved(ada), new_proof_key()
    with refused(Reason.PROOF_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
        await opened.redeem(opened.proof(stranger))
    with refused(Reason.PROOF_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
        await opened.redeem(b"\x30\x00")
    guessed = sign_in_pb2.BeginSignInResponse(sign_in_id=opened.begun.sign_in_id, sign_in_token="kvs_x")
    nobody = replace(opened, begun=guessed)
    with refused(Reason.SIGN_IN_UNKNOWN, status=grpc.StatusCode.UNAUTHENTICATED):
        await nobody.redeem()
    assert (await opened.redeem()).session.username == "ada"


async def test_a_repeated_redeem_gives_the_same_session_and_never_a_second_P7(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.approved(ada)
    results = await asyncio.gather(*(opened.redeem() for _ in range(16)))
    assert len({r.session.session_id for r in results}) == 1
    assert len({r.tokens.refresh_token for r in results}) == 1
    rows = await live.app.store.read(lambda tx: tx.find(Session, {"device_id": ada.device.device_id}))
    assert len(rows) == 1
    await results[0].refresh()
    with refused(Reason.CHALLENGE_CONSUMED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await opened.redeem()


async def test_a_redeem_is_repeated_until_the_sign_in_expires_and_no_longer(live: LiveServer):
    opened = await live.approved(await live.person("ada"))
    live.clock.advance(119)
    await opened.redeem()
    live.clock.advance(1)
    with refused(Reason.CHALLENGE_CONSUMED):
        await opened.redeem()


async def test_an_approval_expires_when_nobody_redeems_it(live: LiveServer):
    opened = await live.approved(await live.person("ada"))
    live.clock.advance(120)
    with refused(Reason.SIGN_IN_EXPIRED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await opened.redeem()


async def test_a_client_withdraws_its_request(live: LiveServer):
    ada = await live.person("ada")
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    assert await opened.cancel() == common_pb2.SIGN_IN_STATE_CANCELLED
    assert (await ada.stream.withdrawn()).prompt_id == prompt.prompt_id
    late = await ada.stream.send(ada.device.approve(prompt, opened.number))
    assert (late.accepted, late.reason) == (False, Reason.SIGN_IN_CANCELLED.value)
    with refused(Reason.SIGN_IN_CANCELLED):
        await opened.redeem()
    assert await opened.cancel() == common_pb2.SIGN_IN_STATE_CANCELLED
    done = await live.approved(ada)
    await done.redeem()
    assert await done.cancel() == common_pb2.SIGN_IN_STATE_CONSUMED


@pytest.mark.parametrize(
    "context",
    [
        {"tenant": "x" * 129},
        {"app_id": ""},
        {"app_id": "x" * 129},
        {"app_name": "x" * 65},
        {"app_name": "Sh\u202eop"},
        {"app_name": "Shop\n"},
        {"app_name": "\x1b[31mShop"},
        {"binding_message": "x" * 129},
        {"binding_message": "pay\u2066me"},
        {"audience": "x" * 257},
    ],
)
async def test_what_is_shown_to_people_is_checked_A2(live: LiveServer, context: dict[str, str]):
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await live.begin("ada", **context)
    assert refusal.error.metadata["field"] == f"context.{next(iter(context))}"
    await live.begin("ada", app_name="Shop für Äpfel", binding_message="Zahle 10 €")


async def test_a_policy_that_no_device_could_sign_is_not_saved(live: LiveServer):
    """The requirement stands in every statement, and texts there are bounded: a longer one would lock everybody out."""
    anchors = [f"root {number} of a manufacturer with quite a long name" for number in range(10)]
    required = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_ANY,
        verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
        provenance=common_pb2.PROVENANCE_ATTESTED,
        anchors=anchors,
    )
    for part in ("approval", "registration"):
        with refused(Reason.POLICY_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT):
            await live.change_policy(**{part: {"required_assurance": required}})
    required.ClearField("anchors")
    required.anchors.append(anchors[0])
    await live.change_policy(approval={"required_assurance": required})
    assert (
        await live.administer("GetPolicy", admin_pb.GetPolicyRequest())
    ).policy.approval.required_assurance == required
