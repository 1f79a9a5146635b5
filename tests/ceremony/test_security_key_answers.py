"""Sign-in with a security key at the client, on a real server: what proves nothing, what a stranger learns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import grpc
import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.proofs import spki_of
from keyvouch.statement import Decision, SignInOffer
from keyvouch.v1 import common_pb2, sign_in_pb2
from keyvouch.webauthn import Flags
from keyvouch_bench.device import SoftKey
from keyvouch_server import bootstrap
from keyvouch_server.domain.model import Prompt
from keyvouch_server.use_cases.offering import SignInRequest
from support.contest import at_once
from support.key_desk import (
    OpenWithKey,
    another_key,
    begin_with_key,
    last_refusal,
    registered_key,
    sessions_of,
)
from support.live_server import LiveServer, refused
from support.own_sign_in import DeviceDesk

APPROVED, PENDING = common_pb2.SIGN_IN_STATE_APPROVED, common_pb2.SIGN_IN_STATE_PENDING
UNAUTHENTICATED, NOT_NOW = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION


# what proves nothing

Bend = Callable[[OpenWithKey, SoftKey], sign_in_pb2.CompleteSecurityKeySignInRequest]


def _flipped(begun: OpenWithKey, key: SoftKey) -> sign_in_pb2.CompleteSecurityKeySignInRequest:
    request = begun.approval(key)
    request.assertion.signature = request.assertion.signature[:-1] + bytes([request.assertion.signature[-1] ^ 1])
    return request


def _handle(begun: OpenWithKey, key: SoftKey) -> sign_in_pb2.CompleteSecurityKeySignInRequest:
    request = begun.approval(key)
    request.assertion.user_handle = bytes(32)
    return request


def _proof_key(begun: OpenWithKey, key: SoftKey) -> sign_in_pb2.CompleteSecurityKeySignInRequest:
    offer = SignInOffer.parse(begun.offers[key.credential_id])
    return begun.approval(key, offer=replace(offer, proof_key=hashlib.sha256(b"eve").digest(), encoded=b"").encode())


def _foreign_offer(begun: OpenWithKey, key: SoftKey) -> sign_in_pb2.CompleteSecurityKeySignInRequest:
    return begun.approval(key, offer=next(o for c, o in begun.offers.items() if c != key.credential_id))


def _denial(begun: OpenWithKey, key: SoftKey) -> sign_in_pb2.CompleteSecurityKeySignInRequest:
    return begun.approval(key, decision=Decision.DENY)


def _cut(begun: OpenWithKey, key: SoftKey) -> sign_in_pb2.CompleteSecurityKeySignInRequest:
    request = begun.approval(key)
    request.statement = request.statement[:-1]
    return request


def _empty(begun: OpenWithKey, key: SoftKey) -> sign_in_pb2.CompleteSecurityKeySignInRequest:
    return sign_in_pb2.CompleteSecurityKeySignInRequest(sign_in_id=begun.begun.sign_in_id)


def _decoy(begun: OpenWithKey, key: SoftKey) -> sign_in_pb2.CompleteSecurityKeySignInRequest:
    request = _foreign_offer(begun, key)
    request.assertion.credential_id = next(c for c in begun.offers if c != key.credential_id)
    return request


BENT: dict[str, tuple[Bend, Reason]] = {
    "the origin of a device": (lambda b, k: b.approval(k, origin="keyvouch-agent://localhost"), Reason.ORIGIN),
    "the origin of another server": (lambda b, k: b.approval(k, origin="keyvouch-client://evil"), Reason.ORIGIN),
    "a longer origin": (lambda b, k: b.approval(k, origin="keyvouch-client://localhost.evil"), Reason.ORIGIN),
    "an https origin": (lambda b, k: b.approval(k, origin="https://localhost"), Reason.ORIGIN),
    "another relying party": (lambda b, k: b.approval(k, rp_id="evil"), Reason.RP_ID_HASH),
    "a registration": (lambda b, k: b.approval(k, kind="webauthn.create"), Reason.CLIENT_DATA_TYPE),
    "no user verification": (lambda b, k: b.approval(k, flags=Flags.UP), Reason.USER_VERIFICATION),
    "no user presence": (lambda b, k: b.approval(k, flags=Flags.UV), Reason.USER_PRESENCE),
    "backup eligible by now": (
        lambda b, k: b.approval(k, flags=Flags.UP | Flags.UV | Flags.BE),
        Reason.BACKUP_ELIGIBLE_CHANGED,
    ),
    "a counter that stands": (lambda b, k: b.approval(k, count=7), Reason.SIGN_COUNT),
    "a counter that fell": (lambda b, k: b.approval(k, count=6), Reason.SIGN_COUNT),
    "a counter that is zero again": (lambda b, k: b.approval(k, count=0), Reason.SIGN_COUNT),
    "a signature with a bit changed": (_flipped, Reason.SIGNATURE),
    "the handle of another user": (_handle, Reason.USER_HANDLE),
    "another proof key": (_proof_key, Reason.STATEMENT_MISMATCH),
    "the offer to another credential": (_foreign_offer, Reason.STATEMENT_MISMATCH),
    "a denial": (_denial, Reason.MISSING_FIELD),
    "a statement cut short": (_cut, Reason.STATEMENT_MALFORMED),
    "nothing": (_empty, Reason.CREDENTIAL_ID),
    "a credential that is none": (_decoy, Reason.CREDENTIAL_ID),
}


@pytest.mark.parametrize("case", BENT)
async def test_what_proves_nothing_is_refused_alike_and_told_apart_in_the_log_W2_W5_W6_W10(live: LiveServer, case: str):
    ada = await registered_key(live)
    before = await begin_with_key(live, "ada")
    assert await before.complete(before.approval(ada.credential, count=7)) == APPROVED
    begun = await begin_with_key(live, "ada")
    bend, reason = BENT[case]
    with refused(Reason.SECURITY_KEY_REFUSED, status=UNAUTHENTICATED) as refusal:
        await begun.complete(bend(begun, ada.credential))
    assert refusal.error.metadata == {}
    assert await last_refusal(live) == reason.value
    assert await begun.state() == PENDING
    assert await begun.complete(begun.approval(ada.credential, count=8)) == APPROVED  # it is still open


async def test_another_users_key_approves_nothing_W2(live: LiveServer):
    ada, eve = await registered_key(live), await registered_key(live, "eve")
    begun, hers = await begin_with_key(live, "ada"), await begin_with_key(live, "eve")
    for request in (
        begun.approval(eve.credential),
        begun.approval(eve.credential, offer=begun.offers[ada.credential.credential_id]),
        begun.approval(eve.credential, offer=hers.offers[eve.credential.credential_id]),
    ):
        with refused(Reason.SECURITY_KEY_REFUSED):
            await begun.complete(request)
        assert await last_refusal(live) == Reason.CREDENTIAL_ID.value
    impostor = begun.approval(eve.credential, offer=begun.offers[ada.credential.credential_id])
    impostor.assertion.credential_id, impostor.assertion.user_handle = ada.credential.credential_id, b""
    with refused(Reason.SECURITY_KEY_REFUSED):
        await begun.complete(impostor)
    assert await last_refusal(live) == Reason.SIGNATURE.value
    assert await begun.complete(begun.approval(ada.credential)) == APPROVED
    assert await hers.complete(hers.approval(eve.credential)) == APPROVED


async def test_another_key_of_the_same_user_does_not_sign_for_this_one(live: LiveServer):
    ada = await registered_key(live)
    second = await another_key(live, "ada")
    begun = await begin_with_key(live, "ada")
    with refused(Reason.SECURITY_KEY_REFUSED):
        await begun.complete(begun.approval(second.credential, offer=begun.offers[ada.credential.credential_id]))
    assert await last_refusal(live) == Reason.STATEMENT_MISMATCH.value
    assert await begun.complete(begun.approval(second.credential)) == APPROVED


async def test_after_five_refused_answers_it_takes_no_more(live: LiveServer):
    ada = await registered_key(live)
    begun = await begin_with_key(live, "ada")
    for _ in range(5):
        with refused(Reason.SECURITY_KEY_REFUSED):
            await begun.complete(_flipped(begun, ada.credential))
    with refused(Reason.THROTTLED, status=grpc.StatusCode.RESOURCE_EXHAUSTED):
        await begun.complete(begun.approval(ada.credential))
    assert await begun.state() == PENDING
    again = await begin_with_key(live, "ada")
    assert await again.complete(again.approval(ada.credential)) == APPROVED


async def test_tries_made_at_once_are_all_counted(live: LiveServer):
    ada = await registered_key(live)
    begun = await begin_with_key(live, "ada")
    tries = [partial(begun.complete, _flipped(begun, ada.credential)) for _ in range(20)]
    reasons = sorted(one.reason for one in await at_once(tries) if isinstance(one, KeyvouchError))
    assert reasons == [Reason.SECURITY_KEY_REFUSED] * 5 + [Reason.THROTTLED] * 15


async def test_a_wrong_number_ends_it_as_everywhere(live: LiveServer):
    ada = await registered_key(live)
    begun = await begin_with_key(live, "ada")
    with refused(Reason.NUMBER_MISMATCH, status=NOT_NOW):
        await begun.complete(begun.approval(ada.credential, number=begun.wrong_number))
    with refused(Reason.NUMBER_MISMATCH):
        await begun.complete(begun.approval(ada.credential))
    with refused(Reason.NUMBER_MISMATCH):
        await begun.redeem()
    assert await sessions_of(live) == []


# the counter


async def test_the_counter_is_kept_and_must_rise_W5(live: LiveServer):
    ada = await registered_key(live)
    for count, good in ((0, True), (0, True), (1, True), (10, True), (5, False), (10, False), (0, False), (11, True)):
        begun = await begin_with_key(live, "ada")
        request = begun.approval(ada.credential, count=count)
        if good:
            assert await begun.complete(request) == APPROVED
        else:
            with refused(Reason.SECURITY_KEY_REFUSED):
                await begun.complete(request)
            assert await last_refusal(live) == Reason.SIGN_COUNT.value
        live.clock.advance(60)


@pytest.mark.parametrize("attempt", range(5))
async def test_of_two_assertions_with_one_counter_one_counts_W5(live: LiveServer, attempt: int):
    """One at the client, one on the key's device: the same key, at the same moment."""
    ada, number = await registered_key(live), attempt + 1
    desk = DeviceDesk.open(ada, live.stack)
    begun = await begin_with_key(live, "ada")
    mine = begun.approval(ada.credential, count=number)
    second = await begin_with_key(live, "ada")  # a newer request ends the older one, so only one of them can win
    theirs = second.approval(ada.credential, count=number)
    done = await at_once([partial(begun.complete, mine), partial(second.complete, theirs)])
    assert [one == APPROVED for one in done] == [False, True]
    own = await desk.begin()
    ada.credential.sign_count = number - 1
    with refused(Reason.SIGN_COUNT):
        await own.complete()
    assert (await own.complete()).state == common_pb2.SIGN_IN_STATE_CONSUMED


# P12: who exists, and who has a key


async def everybody(live: LiveServer) -> dict[str, tuple[str, str]]:
    """Names of every kind: with a key, with a device, with neither, unknown, in a tenant that is unknown."""
    await registered_key(live)
    await live.person("bob")
    await live.create_user("carol")
    return {
        "a key": ("ada", "example"),
        "a device": ("bob", "example"),
        "nothing": ("carol", "example"),
        "unknown": ("dave", "example"),
        "unknown tenant": ("dave", "nowhere"),
    }


def shape(begun: OpenWithKey) -> list[object]:
    """All that can be told of an answer without a key: which fields there are, how many, of what form."""
    offers = begun.parsed()
    assert list(begun.offers) == sorted(begun.offers) == sorted(o.credential_id for o in offers)
    assert {len(o.credential_id) for o in offers} <= {32, 48, 64}
    constant = {(o.server_id, o.tenant_id, o.user_id, o.sign_in_id, o.proof_key, o.expires_at) for o in offers}
    assert len({o.nonce for o in offers}) == len({o.device_id for o in offers}) == len(offers)
    assert (len(constant), offers[0].sign_in_id) == (1, begun.begun.sign_in_id)
    return [
        len(offers),
        [(o.app_id, o.app_name, o.policy_version, o.required_assurance, o.place, o.address) for o in offers],
        [(o.tenant_id[:4], len(o.tenant_id), o.user_id[:4], len(o.user_id), o.device_id[:4]) for o in offers],
        list(begun.begun.methods),
        len(begun.number),
        begun.begun.security_key.rp_id,
    ]


async def test_an_answer_does_not_tell_who_exists_or_has_a_key_P12(live: LiveServer):
    names = await everybody(live)
    begun = {kind: await begin_with_key(live, *name) for kind, name in names.items()}
    assert [kind for kind, one in begun.items() if shape(one) != shape(begun["a key"])] == []


async def test_the_same_is_written_for_everybody_and_gone_at_the_end_P12(live: LiveServer):
    names = await everybody(live)
    for _ in range(2):
        await another_key(live, "ada")
    written: dict[str, int] = {}
    for kind, name in names.items():
        begun = await begin_with_key(live, *name)
        of_this = {"sign_in_id": begun.begun.sign_in_id}
        written[kind] = await live.app.store.read(lambda tx, where=of_this: tx.count(Prompt, where))
        await begun.cancel()
        assert await live.app.store.read(lambda tx, where=of_this: tx.count(Prompt, where)) == 0
    assert set(written.values()) == {8}


async def test_credentials_that_are_none_stay_the_same_for_one_name_however_it_is_spelt_P12(live: LiveServer):
    names = await everybody(live)
    first = {kind: await begin_with_key(live, *name) for kind, name in names.items()}
    live.clock.advance(86400)
    for kind, (username, tenant) in names.items():
        again = await begin_with_key(live, f" {username.upper()} ", tenant)
        known = [(o.credential_id, o.device_id, o.user_id, o.tenant_id) for o in first[kind].parsed()]
        assert [(o.credential_id, o.device_id, o.user_id, o.tenant_id) for o in again.parsed()] == known
        assert not {o.nonce for o in again.parsed()} & {o.nonce for o in first[kind].parsed()}
    assert len({credential for one in first.values() for credential in one.offers}) == 8 * len(names)


async def test_they_stay_the_same_after_a_restart_P12(live: LiveServer):
    names = await everybody(live)
    first = {kind: await begin_with_key(live, *name) for kind, name in names.items()}
    again = bootstrap.assemble(live.data, live.app.config, live.app.store, clock=live.clock)
    for kind, (username, tenant) in names.items():
        proof_key = spki_of(first[kind].proof_key.public_key())
        request = SignInRequest(tenant, username, "shop", "Shop", "", "", proof_key, "", "")
        assert dict((await again.security_keys.begin(request)).offers).keys() == first[kind].offers.keys()


async def test_the_end_does_not_tell_either_P12(live: LiveServer):
    names = await everybody(live)
    told: dict[str, list[tuple[str, str, str]]] = {}
    for kind, name in names.items():
        begun = await begin_with_key(live, *name)
        for credential in list(begun.offers)[:5]:
            stranger = SoftKey("localhost", b"")
            request = begun.approval(stranger, offer=begun.offers[credential])
            request.assertion.credential_id = credential
            with refused(Reason.SECURITY_KEY_REFUSED, status=UNAUTHENTICATED) as refusal:
                await begun.complete(request)
            told.setdefault(kind, []).append((refusal.error.reason, str(refusal.error), str(refusal.error.metadata)))
        with refused(Reason.THROTTLED) as refusal:
            await begun.complete(begun.approval(SoftKey("localhost", b"")))
        assert await begun.state() == PENDING
        with refused(Reason.SIGN_IN_PENDING):
            await begun.redeem()
    assert [kind for kind, answers in told.items() if answers != told["a key"]] == []
