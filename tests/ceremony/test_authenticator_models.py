"""Rules for models of security keys, on a real server: at registration, and at every use of a registered key."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch.attestation import TrustStore
from keyvouch.errors import Reason, RefusedError
from keyvouch.proofs import spki_of
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2
from keyvouch.webauthn import Flags
from keyvouch_server import bootstrap
from keyvouch_server.domain.model import Credential
from keyvouch_server.trust_anchors import load, read_settings
from keyvouch_server.use_cases.offering import SignInRequest
from support import metadata_forge
from support.attestation_forge import ROOT
from support.key_desk import (
    MODEL,
    MODEL_NAME,
    OTHER_MODEL,
    OTHER_NAME,
    OpenWithKey,
    another_key,
    begin_with_key,
    enrolment_of,
    registered_key,
)
from support.live_server import LiveServer, live_server, refused
from support.own_sign_in import DeviceDesk

PINNED = {
    "name": "Forged Keys",
    "file": "root.pem",
    "formats": ["packed", "fido-u2f"],
    "protection": "secure_element",
    "verification": "hardware_gated",
}
ZERO = bytes(16)
HARDWARE = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
    verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
    provenance=common_pb2.PROVENANCE_UNATTESTED,
)
REFUSED = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def trusting(server_template: Path, tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A running server whose administrator pinned the root of the forge."""
    (tmp_path / "root.pem").write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    async with live_server(server_template, tmp_path, trust=read_settings([PINNED], None, folder=tmp_path)) as running:
        yield running


async def rule(live: LiveServer, *, allowed: tuple[str, ...] = (), blocked: tuple[str, ...] = ()) -> None:
    """Set both lists, though they lock out the administrator, whose key is in software."""
    policy = (await live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy
    rules = policy.registration.authenticators
    rules.allowed[:], rules.blocked[:] = allowed, blocked
    await live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy, accept_lock_out=True))


async def enrolled(live: LiveServer, **how: Any) -> OpenWithKey:
    """Register a key for a new user and sign in with it: approved, not yet redeemed."""
    username = f"user{len(await live.audit('registration.begin'))}"
    await live.create_user(username)
    key = await another_key(live, username, **how)
    begun = await begin_with_key(live, username)
    await begun.complete(begun.approval(key.credential))
    return begun


CASES: dict[str, tuple[dict[str, tuple[str, ...]], dict[str, Any], bool]] = {
    "no rule, attested": ({}, {"model": MODEL, "authority": ROOT}, True),
    "no rule, self": ({}, {"model": MODEL}, True),
    "no rule, none": ({}, {"model": ZERO, "format": "none"}, True),
    "allowed and attested": ({"allowed": (MODEL_NAME,)}, {"model": MODEL, "authority": ROOT}, True),
    "one of several allowed": ({"allowed": (OTHER_NAME, MODEL_NAME)}, {"model": MODEL, "authority": ROOT}, True),
    "attested as another model": ({"allowed": (MODEL_NAME,)}, {"model": OTHER_MODEL, "authority": ROOT}, False),
    "allowed, but only by its own word": ({"allowed": (MODEL_NAME,)}, {"model": MODEL}, False),
    "allowed, but nobody vouches": ({"allowed": (MODEL_NAME,)}, {"model": MODEL, "format": "none"}, False),
    "no model at all": ({"allowed": (MODEL_NAME,)}, {"model": ZERO, "format": "none"}, False),
    "attested without a model": ({"allowed": (MODEL_NAME,)}, {"model": ZERO, "authority": ROOT}, False),
    "blocked and attested": ({"blocked": (MODEL_NAME,)}, {"model": MODEL, "authority": ROOT}, False),
    "blocked, by its own word": ({"blocked": (MODEL_NAME,)}, {"model": MODEL}, False),
    "blocked, and nobody vouches": ({"blocked": (MODEL_NAME,)}, {"model": MODEL, "format": "none"}, False),
    "another one is blocked": ({"blocked": (OTHER_NAME,)}, {"model": MODEL, "authority": ROOT}, True),
    "allowed, another one blocked": (
        {"allowed": (MODEL_NAME,), "blocked": (OTHER_NAME,)},
        {"model": MODEL, "authority": ROOT},
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_h6_a_model_is_judged_at_registration_W4(trusting: LiveServer, case: str):
    rules, how, good = CASES[case]
    await trusting.admin()
    await trusting.create_user("ada")
    begun = await enrolment_of(trusting, "ada")
    await rule(trusting, **rules)
    if good:
        assert (await begun.complete(**how)).device_id
        return
    with refused(Reason.AUTHENTICATOR_MODEL, status=REFUSED) as refusal:
        await begun.complete(**how)
    assert refusal.error.metadata["aaguid"] == str(uuid.UUID(bytes=how["model"]))
    assert refusal.error.fix
    assert (await trusting.audit("registration.complete"))[-1].outcome == "authenticator_model"
    await rule(trusting)
    assert (await begun.complete(**how)).device_id  # the rules alone were in its way


@pytest.mark.parametrize(
    ("how", "rules", "stands"),
    [
        ({"authority": ROOT}, {"blocked": (MODEL_NAME,)}, False),
        ({"authority": ROOT}, {"allowed": (OTHER_NAME,)}, False),
        ({}, {"allowed": (MODEL_NAME,)}, False),
        ({}, {"blocked": (MODEL_NAME,)}, False),
        ({"authority": ROOT}, {"allowed": (MODEL_NAME,)}, True),
        ({"authority": ROOT}, {"blocked": (OTHER_NAME,)}, True),
        ({}, {"blocked": (OTHER_NAME,)}, True),
    ],
)
async def test_h6_registered_keys_are_judged_again_by_every_way_KI1_P19(
    trusting: LiveServer, how: dict[str, Any], rules: dict[str, tuple[str, ...]], stands: bool
):
    await trusting.admin()
    ada = await registered_key(trusting, "ada", **how)
    person = await trusting.connect("ada", ada)
    metadata = await trusting.admin()
    public = await trusting.approved(person)
    await rule(trusting, **rules)
    if stands:
        assert (await public.redeem()).session.device_id == ada.device_id
        begun = await begin_with_key(trusting, "ada")
        await begun.complete(begun.approval(ada.credential))
        assert (await begun.redeem()).session.device_id == ada.device_id
        assert (await DeviceDesk.open(ada, trusting.stack).signed_in()).session.device_id == ada.device_id
        return
    with refused(Reason.AUTHENTICATOR_MODEL, status=REFUSED):
        await public.redeem()
    with refused(Reason.AUTHENTICATOR_MODEL, status=REFUSED) as told:
        await trusting.begin("ada")
    assert (told.error.metadata, MODEL_NAME in str(told.error)) == ({}, False)  # anybody can ask: not what key it is
    with refused(Reason.AUTHENTICATOR_MODEL, status=REFUSED) as told:
        await DeviceDesk.open(ada, trusting.stack).begin()
    assert told.error.metadata["aaguid"] == MODEL_NAME
    assert ada.credential.credential_id not in (await begin_with_key(trusting, "ada")).offers
    log = (await trusting.audit("sign_in.begin"))[-1]
    assert (log.outcome, json.loads(log.details)["why"]) == ("no_method", "authenticator_model")
    policy = (await trusting.administer("GetPolicy", admin_pb.GetPolicyRequest(), metadata)).policy
    policy.registration.authenticators.Clear()
    policy.registration.authenticators.SetInParent()
    await trusting.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy), metadata)
    assert (await trusting.approved(person)).number


async def test_h6_an_approval_with_a_key_is_judged_once_more_at_its_end_P19(trusting: LiveServer):
    await trusting.admin()
    begun = await enrolled(trusting, authority=ROOT)
    await rule(trusting, blocked=(MODEL_NAME,))
    with refused(Reason.AUTHENTICATOR_MODEL, status=REFUSED):
        await begun.redeem()
    await rule(trusting)
    with refused(Reason.POLICY_CHANGED):  # what held meanwhile counts too
        await begun.redeem()
    session = (await (await enrolled(trusting, authority=ROOT)).redeem()).session
    assert list(session.amr) == ["hwk", "user", "pin", "mfa"]
    assert session.assurance.anchor == "Forged Keys"


async def test_h6_a_key_that_may_not_be_used_is_passed_over_where_there_is_another(trusting: LiveServer):
    await trusting.admin()
    ada = await registered_key(trusting, "ada", authority=ROOT)
    second = await another_key(trusting, "ada", model=OTHER_MODEL, authority=ROOT)
    await rule(trusting, blocked=(OTHER_NAME,))
    begun = await begin_with_key(trusting, "ada")
    assert ada.credential.credential_id in begun.offers
    assert second.credential.credential_id not in begun.offers
    person = await trusting.connect("ada", ada)
    assert (await trusting.signed_in(person)).session.device_id == ada.device_id


async def test_lists_are_checked_and_kept_as_they_are_meant(trusting: LiveServer):
    await trusting.admin()
    await rule(trusting, allowed=(f" {MODEL_NAME.upper()} ",), blocked=(OTHER_NAME,))
    told = (await trusting.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy.registration.authenticators
    assert (list(told.allowed), list(told.blocked)) == ([MODEL_NAME], [OTHER_NAME])
    for wrong in (("*",), ("",), ("2fc0579f",), (str(uuid.UUID(int=0)),), (MODEL_NAME, MODEL_NAME.upper())):
        with refused(Reason.POLICY_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT) as refusal:
            await rule(trusting, allowed=wrong)
        assert refusal.error.metadata["field"] == "registration.authenticators.allowed"
    with refused(Reason.POLICY_INVALID):
        await rule(trusting, allowed=(MODEL_NAME,), blocked=(MODEL_NAME,))
    with refused(Reason.POLICY_INVALID):
        await rule(trusting, blocked=tuple(str(uuid.UUID(int=n)) for n in range(1, 258)))


# what a registration proves


async def test_h6_a_key_of_the_metadata_is_what_the_metadata_says(server_template: Path, tmp_path: Path):
    statement = metadata_forge.statement(attestationRootCertificates=[metadata_forge.der64(ROOT.certificate)])
    known = metadata_forge.payload(
        metadata_forge.entry(metadataStatement=statement),
        metadata_forge.entry(aaguid=OTHER_NAME, statusReports=[metadata_forge.report("REVOKED")]),
        nextUpdate="2043-01-01",
    )
    (tmp_path / "mds.jwt").write_bytes(metadata_forge.blob(known))
    (tmp_path / "mds.pem").write_bytes(metadata_forge.ROOT.certificate.public_bytes(Encoding.PEM))
    table = {"blob": "mds.jwt", "root": "mds.pem", "signer": metadata_forge.SIGNER_NAME}
    async with live_server(server_template, tmp_path, trust=read_settings(None, table, folder=tmp_path)) as live:
        await live.create_user("ada")
        begun = await enrolment_of(live, "ada")
        with refused(Reason.AUTHENTICATOR_STATUS, status=grpc.StatusCode.INVALID_ARGUMENT):
            await begun.complete(model=OTHER_MODEL, authority=ROOT)
        key = await another_key(live, "ada", authority=ROOT)
        (row,) = await live.app.store.read(lambda tx: tx.find(Credential, {"device_id": key.device_id}))
        assert row.assurance == f"secure_element/hardware_gated/attested/mds:{MODEL_NAME}"


@pytest.mark.parametrize(
    ("how", "assurance"),
    [
        ({"authority": ROOT}, "secure_element/hardware_gated/attested/Forged Keys"),
        ({}, "software/software_gated/self"),
        ({"format": "none"}, "software/software_gated/unattested"),
    ],
)
async def test_h6_without_a_trusted_chain_a_key_is_never_more_than_software(
    trusting: LiveServer, how: dict[str, Any], assurance: str
):
    key = await registered_key(trusting, "ada", **how)
    (row,) = await trusting.app.store.read(lambda tx: tx.find(Credential, {"device_id": key.device_id}))
    assert (row.assurance, row.aaguid) == (assurance, MODEL)


@pytest.mark.parametrize(
    ("flags", "reason"), [(Flags.UP, Reason.USER_VERIFICATION), (Flags.UP | Flags.UV, Reason.ASSURANCE_TOO_LOW)]
)
async def test_a_u2f_key_verifies_nobody_and_is_not_registered_PS8(trusting: LiveServer, flags: Flags, reason: Reason):
    await trusting.create_user("ada")
    begun = await enrolment_of(trusting, "ada")
    with refused(reason):
        await begun.complete(model=ZERO, authority=ROOT, format="fido-u2f", flags=flags)
    assert (await begun.complete(authority=ROOT)).device_id


# metadata


def sign_in_request(username: str) -> SignInRequest:
    """What a client would ask for."""
    key = metadata_forge.p256_key("client").public_key()
    return SignInRequest("example", username, "shop", "Shop", "", "", spki_of(key), "", "")


@pytest.mark.parametrize("distrusted", [True, False])
async def test_h6_metadata_of_today_judges_keys_that_were_registered_before_W9(
    trusting: LiveServer, tmp_path: Path, distrusted: bool
):
    ada = await registered_key(trusting, "ada", authority=ROOT)
    models = [metadata_forge.entry(aaguid=OTHER_NAME if distrusted else MODEL_NAME)]
    revoked = MODEL_NAME if distrusted else OTHER_NAME
    models.append(metadata_forge.entry(aaguid=revoked, statusReports=[metadata_forge.report("REVOKED")]))
    (tmp_path / "mds.jwt").write_bytes(metadata_forge.blob(metadata_forge.payload(*models)))
    (tmp_path / "mds.pem").write_bytes(metadata_forge.ROOT.certificate.public_bytes(Encoding.PEM))
    table = {"blob": "mds.jwt", "root": "mds.pem", "signer": metadata_forge.SIGNER_NAME}
    settings = read_settings([PINNED], table, folder=tmp_path)
    anchors = load(settings, instant=metadata_forge.INSTANT, folder=tmp_path)
    app = bootstrap.assemble(trusting.data, trusting.app.config, trusting.app.store, clock=trusting.clock)
    world = replace(app.world, anchors=anchors)  # the server after a restart, with the file of today
    restarted = bootstrap.SignIns(world, bootstrap.Openings(world))
    with_key = bootstrap.SecurityKeySignIns(world, restarted, app.decisions)
    if not distrusted:
        assert (await restarted.begin(sign_in_request("ada"))).prompts
        return
    with pytest.raises(RefusedError) as refusal:
        await restarted.begin(sign_in_request("ada"))
    assert refusal.value.reason is Reason.AUTHENTICATOR_STATUS
    assert (refusal.value.metadata, "revoked" in str(refusal.value).lower()) == ({}, False)
    begun = await with_key.begin(sign_in_request("ada"))
    assert ada.credential.credential_id not in dict(begun.offers)


# anchors


@pytest.mark.parametrize("known", [True, False])
async def test_h6_an_anchor_that_is_gone_vouches_for_no_key_that_was_registered_under_it_H8(
    trusting: LiveServer, known: bool
):
    ada = await registered_key(trusting, "ada", authority=ROOT)
    await trusting.change_policy(
        approval={"required_assurance": HARDWARE}, security_key={"required_assurance": HARDWARE}
    )
    begun = await begin_with_key(trusting, "ada")
    await begun.complete(begun.approval(ada.credential))
    kept = trusting.app.world.anchors if known else TrustStore()
    world = replace(trusting.app.world, anchors=kept)  # the server after a restart, without the table
    redemptions = bootstrap.Redemptions(world, trusting.app.sessions)
    again = bootstrap.SignIns(world, bootstrap.Openings(world))
    with_key = bootstrap.SecurityKeySignIns(world, again, trusting.app.decisions)
    shown = await bootstrap.Devices(world, trusting.app.sessions).view(ada.device_id)
    if known:
        assert (await redemptions.consume(begun.begun.sign_in_id)).issued.session.assurance.endswith("/Forged Keys")
        assert (await again.begin(sign_in_request("ada"))).prompts
        assert ada.credential.credential_id in dict((await with_key.begin(sign_in_request("ada"))).offers)
        return
    assert shown.credential.assurance == "software/software_gated/unattested"
    with pytest.raises(RefusedError) as refusal:
        await redemptions.consume(begun.begun.sign_in_id)
    assert refusal.value.reason is Reason.ASSURANCE_TOO_LOW
    with pytest.raises(RefusedError) as refusal:
        await again.begin(sign_in_request("ada"))
    assert refusal.value.reason is Reason.ASSURANCE_TOO_LOW
    assert ada.credential.credential_id not in dict((await with_key.begin(sign_in_request("ada"))).offers)


async def test_h6_an_allow_list_believes_no_model_whose_anchor_is_gone_W4(trusting: LiveServer):
    ada = await registered_key(trusting, "ada", authority=ROOT)
    await rule(trusting, allowed=(MODEL_NAME,))
    assert ada.credential.credential_id in (await begin_with_key(trusting, "ada")).offers
    world = replace(trusting.app.world, anchors=TrustStore())
    with pytest.raises(RefusedError) as refusal:
        await bootstrap.SignIns(world, bootstrap.Openings(world)).begin(sign_in_request("ada"))
    assert refusal.value.reason is Reason.AUTHENTICATOR_MODEL
