"""P12: whoever asks for a sign-in or tries a pass learns nothing of who exists.

A thousand names that are somebody's and a thousand that are nobody's, of all kinds of people. A classifier that may
look at everything in an answer is trained on one half of the answers, and guesses about the other half. What an answer
takes in time is measured elsewhere (`tests/bench`); nothing here looks at a clock.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.proofs import spki_of
from keyvouch.v1 import common_pb2
from keyvouch.v1 import sign_in_pb2 as pb
from keyvouch_server.domain.model import AccessPass, Credential, Device, LoginName, ProviderKind, Role, Tenant, UserKind
from keyvouch_server.use_cases.decoys import with_key
from support.every_rpc import Told, call
from support.key_desk import registered_key
from support.live_server import TENANT, LiveServer, live_server
from support.two_tenants import put_user

PAIRS = 1000
KEY_PAIRS = 300
"""Of those, the ones that are asked for offers to security keys too."""
LENGTHS = (32, 48, 64, 64)
"""Bytes of credential ids, as those of keys are."""
BEGIN = "/keyvouch.v1.SignInService/BeginSignIn"
SPEND = "/keyvouch.v1.SignInService/SignInWithAccessPass"
APPROVAL, KEY = common_pb2.SIGN_IN_METHOD_APPROVAL, common_pb2.SIGN_IN_METHOD_SECURITY_KEY

Features = tuple[str, ...]
Sample = tuple[Features, bool]
"""What is seen of an answer, and whether the name was somebody's."""

NAMES = random.Random(20_12)


def name() -> str:
    return "".join(NAMES.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(9))


@pytest.fixture
async def live(server_template: Path, tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with live_server(server_template, tmp_path) as running:
        await running.admin()
        yield running


async def somebody(live: LiveServer, tenant: str, number: int, lengths: Sequence[int]) -> str:
    """The login name of a new user: a member, a guest, an administrator, or one who has registered nothing."""
    role = Role.AUTHENTICATION_ADMINISTRATOR if number % 4 == 2 else Role.USER
    things = await put_user(live, name(), tenant, role, UserKind.GUEST if number % 4 == 1 else UserKind.MEMBER)
    key_id = NAMES.randbytes(NAMES.choice(lengths))

    async def work(tx: Any) -> None:
        await tx.update(Credential, {"user_id": things.user_id}, {"id": key_id})
        await tx.update(Device, {"user_id": things.user_id}, {"provider": ProviderKind.FIDO2})
        counted = (await tx.find(Tenant, {"id": tenant}))[0].key_lengths  # as a registration does
        await tx.update(Tenant, {"id": tenant}, {"key_lengths": with_key(counted, len(key_id))})
        if number % 4 == 3:
            for table in (Device, AccessPass):
                await tx.delete(table, {"user_id": things.user_id})

    await live.app.store.write(work)
    return things.username


async def names_of(live: LiveServer, pairs: int = PAIRS, lengths: Sequence[int] = LENGTHS) -> list[tuple[str, bool]]:
    """The names, in an order that says nothing."""
    tenant = (await live.introspect(await live.admin())).session.tenant_id
    names = [(await somebody(live, tenant, number, lengths), True) for number in range(pairs)]
    names += [(f"{name()} user", False) for _ in range(pairs)]
    NAMES.shuffle(names)
    return names


async def begun(live: LiveServer, username: str, method: int) -> Told:
    """One request, of a client of its own."""
    proof_key = spki_of(ec.generate_private_key(ec.SECP256R1()).public_key())
    context = pb.SignInContext(tenant=TENANT, username=username, app_id="shop", app_name="Shop", audience="shop")
    request = pb.BeginSignInRequest(context=context, proof_public_key=proof_key, method=method)
    return await call(live.connection.channel, BEGIN, request)


def features_of(told: Told, now: int) -> Features:
    """All that can be seen: status, sizes, fields, and what the fresh values are like."""
    r = pb.BeginSignInResponse.FromString(told.answer)
    sizes = [len(offer.credential_id) for offer in r.security_key.offers]
    seen: dict[str, Any] = {
        "status": told.code.name,
        "message": told.message,
        "size": len(told.answer),
        "trailers": told.trailers,
        "methods": tuple(r.methods),
        "expires": r.expires_at - now,
        "digits": len(r.number),
        "number": r.number[-1:],
        "id": (len(r.sign_in_id), r.sign_in_id[4:5]),
        "token": (len(r.sign_in_token), r.sign_in_token[-1:]),
        "rp": r.security_key.rp_id,
        "offers": len(r.security_key.offers),
        "credential sizes": tuple(sizes),
        "offer sizes": tuple(len(o.offer) for o in r.security_key.offers),
        "unlike": len({o.credential_id for o in r.security_key.offers}),
        **{f"size of {number}": size for number, size in enumerate(sizes)},
        **{f"of size {size}": sizes.count(size) for size in (*LENGTHS, 96)},
    }
    return tuple(f"{field}={value}" for field, value in seen.items())


def accuracy(samples: Sequence[Sample]) -> float:
    """How often a naive Bayes classifier is right about the second half, having learnt from the first."""
    middle = len(samples) // 2
    seen: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for features, known in samples[:middle]:
        seen[known].update(features)

    def guess(features: Features) -> bool:
        return sum(math.log((seen[True][f] + 1) / (seen[False][f] + 1)) for f in features) > 0

    right = sum(guess(features) == known for features, known in samples[middle:])
    return right / (len(samples) - middle)


async def answers(live: LiveServer, names: Sequence[tuple[str, bool]], method: int) -> list[Sample]:
    told = [(await begun(live, username, method), known) for username, known in names]
    return [(features_of(one, live.clock.now()), known) for one, known in told]


async def test_a_classifier_cannot_tell_who_exists_from_begun_sign_ins_P12(live: LiveServer):
    names = await names_of(live)
    samples = await answers(live, names, APPROVAL)
    assert {features[:6] for features, known in samples if known} == {f[:6] for f, known in samples if not known}
    assert len({features[:6] for features, _ in samples}) == 1  # one status, one size, one list of methods
    assert abs(accuracy(samples) - 0.5) < 0.07


@pytest.mark.parametrize("lengths", [LENGTHS, (32,), (96,), (64,) * 9 + (96,)], ids=str)
async def test_a_classifier_cannot_tell_who_exists_from_offers_to_security_keys_P12(
    live: LiveServer, lengths: tuple[int, ...]
):
    """There are as many offers whoever is named, to keys or to decoys, and as long ones, whatever keys are in use."""
    samples = await answers(live, await names_of(live, KEY_PAIRS, lengths), KEY)
    assert {features[0] for features, _ in samples} == {"status=OK"}
    assert len({(f[4], f[11], f[14]) for f, _ in samples}) == 1  # methods, offers, and no two alike
    assert abs(accuracy(samples) - 0.5) < 0.12


async def test_the_classifier_finds_what_a_policy_discloses(live: LiveServer):
    """The control: a tenant that chose to be friendly to strangers tells them who has a pass."""
    await live.change_policy(sign_in={"disclose_methods": True})
    samples = await answers(live, await names_of(live, KEY_PAIRS), APPROVAL)
    methods = [((features[4],), known) for features, known in samples]  # three in four are told apart, give or take
    assert accuracy(methods) > 0.65


async def test_of_wrong_passes_every_answer_is_the_same_bytes_P12(live: LiveServer):
    """Known or unknown, with a pass or without: one status, one message, one set of trailers."""
    seen: Counter[tuple[Told, bool]] = Counter()
    names = await names_of(live)

    async def tried(username: str, known: bool) -> None:
        request = pb.SignInWithAccessPassRequest(tenant=TENANT, username=username, access_pass="ABCD2345")
        seen[await call(live.connection.channel, SPEND, request), known] += 1

    for start in range(0, len(names), 50):
        live.clock.advance(60)  # so that no budget of the tenant is used up by so many
        await asyncio.gather(*(tried(*one) for one in names[start : start + 50]))
    assert {told for told, _ in seen} == {next(iter(seen))[0]}
    assert next(iter(seen))[0].code is grpc.StatusCode.UNAUTHENTICATED
    assert sorted(seen.values()) == [PAIRS, PAIRS]


async def test_decoys_stay_the_same_from_one_request_to_the_next_P12(live: LiveServer):
    """A made-up credential that changed would give itself away."""
    await live.change_policy(approval={"begins_per_minute": 6000})
    for username in ("nobody", "admin"):
        ids = set()
        for spelling in (username, username.upper(), f" {username}"):
            told = await begun(live, spelling, KEY)
            offers = pb.BeginSignInResponse.FromString(told.answer).security_key.offers
            ids.add(tuple(o.credential_id for o in offers))
        assert len(ids) == 1, username
    assert ids != {()}


async def test_decoys_are_as_long_as_the_ids_of_keys_that_were_registered_P12(live: LiveServer):
    """Also in a tenant whose keys all have ids of a length of their own."""
    ada = await registered_key(live)
    size = len(ada.credential.credential_id)
    for username in ("ada", "nobody"):
        told = await begun(live, username, KEY)
        offers = pb.BeginSignInResponse.FromString(told.answer).security_key.offers
        assert [len(one.credential_id) for one in offers] == [size] * 8
    tenants = await live.app.store.read(lambda tx: tx.find(Tenant, {}))
    assert [one.key_lengths for one in tenants] == [f"{size}:1"]


def test_lengths_are_counted_and_so_many_of_them_at_most():
    lengths = ""
    for size in [*range(1, 100), 5, 5]:
        lengths = with_key(lengths, size)
    assert lengths.split() == [f"{size}:{3 if size == 5 else 1}" for size in range(1, 17)]


async def test_the_offers_of_two_names_of_one_user_show_no_key_among_decoys_P12(live: LiveServer):
    """What is of the user's own would be all that the answers for both names have in common."""
    await registered_key(live)
    user = (await live.app.store.read(lambda tx: tx.find(LoginName, {"name_key": "ada"})))[0]
    alias = replace(user, name_key="countess", name="Countess", alias=True)
    await live.app.store.write(lambda tx: tx.insert(alias))
    ids = set()
    for username in ("ada", "countess"):
        told = pb.BeginSignInResponse.FromString((await begun(live, username, KEY)).answer)
        ids.add(tuple(offer.credential_id for offer in told.security_key.offers))
    assert len(ids) == 1
