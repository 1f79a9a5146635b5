"""Keys on smartcards at a real server: whose they are by certificate, what a card attests, what becomes of it later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2
from keyvouch_server.card_authorities import CardFiles
from keyvouch_server.stores.sqlite_upkeep import check
from support import card_certificates
from support.agent_bench import until
from support.card_registering import (
    BADGES,
    ORGANISATION,
    PROMISE,
    TABLE,
    Holder,
    badge,
    card_makers,
    card_settings,
    certified,
    in_card,
    unattested,
    with_certificates,
    with_statement,
)
from support.certificate_forge import new_key, root
from support.live_server import LiveServer, live_server, nothing_arrives, refused
from support.registering import complete

ADA, EVE = "ada@corp.example", "eve@corp.example"
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
DAY = timedelta(days=1)


class Serving(Protocol):
    def __call__(self, *tables: Mapping[str, Any]) -> AbstractAsyncContextManager[LiveServer]: ...


@pytest.fixture
def serving(server_template: Path, tmp_path: Path) -> Serving:
    """Starts a server that believes the forged cards and these card authorities; its store is sound at the end."""

    @asynccontextmanager
    async def serve(*tables: Mapping[str, Any]) -> AsyncIterator[LiveServer]:
        cards = card_settings(tmp_path, *tables)
        async with live_server(server_template, tmp_path, trust=card_makers(tmp_path), cards=cards) as running:
            yield running
        assert check(tmp_path / "server" / "keyvouch.db").problems == ()

    return serve


@pytest.fixture
async def live(serving: Serving) -> AsyncIterator[LiveServer]:
    async with serving(TABLE) as running:
        yield running


def assurance(protection: str, verification: str, provenance: str, anchor: str = "") -> common_pb2.Assurance:
    return common_pb2.Assurance(
        protection=common_pb2.Protection.Value(f"PROTECTION_{protection}"),
        verification=common_pb2.Verification.Value(f"VERIFICATION_{verification}"),
        provenance=common_pb2.Provenance.Value(f"PROVENANCE_{provenance}"),
        anchor=anchor,
    )


def requirement(protection: str, verification: str, provenance: str, *anchors: str) -> common_pb2.AssuranceRequirement:
    return common_pb2.AssuranceRequirement(
        protection=common_pb2.RequiredProtection.Value(f"REQUIRED_PROTECTION_{protection}"),
        verification=common_pb2.Verification.Value(f"VERIFICATION_{verification}"),
        provenance=common_pb2.Provenance.Value(f"PROVENANCE_{provenance}"),
        anchors=anchors,
    )


# An organisation's certificate


async def test_h7_a_card_with_the_organisations_certificate_registers_and_signs_in(live: LiveServer):
    ada = await Holder.new(live, ADA)
    made = await ada.begin()
    certificate = badge(made, "Ada@Corp.example")
    device, person = await ada.register(made, with_certificates(made.answer, certificate, BADGES))
    assert device.assurance == assurance("SOFTWARE", "SOFTWARE_GATED", "CERTIFIED", "Example Badges")
    digest = hashlib.sha256(certificate.der).digest()
    assert device.card == common_pb2.CardDevice(
        authority="Example Badges",
        certificate_hash=digest,
        certificate_expires_at=int(certificate.certificate.not_valid_after_utc.timestamp()),
    )
    session = await live.signed_in(person)
    assert session.session.assurance == device.assurance
    listed = await ada.listed()
    assert (listed.card, listed.assurance) == (device.card, device.assurance)
    (record,) = [r for r in await live.audit("registration.complete") if r.subject == device.device_id]
    told = json.loads(record.details)
    assert (told["card_authority"], told["certificate"]) == ("Example Badges", digest.hex())


async def test_what_an_organisation_promises_of_its_cards_counts_in_its_name(serving: Serving):
    async with serving(PROMISE) as live:
        await live.admin()
        hardware = requirement("HARDWARE", "HARDWARE_GATED", "CERTIFIED", "Example Badges")
        await live.change_policy(registration={"required_assurance": hardware})
        ada = await Holder.new(live, ADA)
        made = await ada.begin()
        with refused(Reason.ASSURANCE_TOO_LOW, status=PRECONDITION):
            await complete(live, made)
        device, _ = await ada.register(made, certified(made, ADA))
        assert device.assurance == assurance("SMARTCARD", "HARDWARE_GATED", "CERTIFIED", "Example Badges")
        attested = requirement("HARDWARE", "HARDWARE_GATED", "ATTESTED")
        await live.change_policy(registration={"required_assurance": attested})
        made = await (other := await Holder.new(live, EVE)).begin()
        with refused(Reason.ASSURANCE_TOO_LOW):
            await complete(live, made, certified(made, EVE))
        made = await other.begin()
        assert (await complete(live, made, in_card(made))).device.assurance.anchor == "Example Cards"


async def test_a_promise_that_is_taken_back_or_changed_counts_as_it_is_now(serving: Serving):
    async with serving(PROMISE) as live:
        ada = await Holder.new(live, ADA)
        await ada.certified()
        promised = live.app.world.cards.authorities
        live.app.world.cards.authorities = card_trust(live, TABLE)
        assert (await ada.listed()).assurance == assurance("SOFTWARE", "SOFTWARE_GATED", "CERTIFIED", "Example Badges")
        hardware = requirement("HARDWARE", "HARDWARE_GATED", "CERTIFIED")
        await live.change_policy(approval={"required_assurance": hardware})
        with refused(Reason.ASSURANCE_TOO_LOW):
            await live.begin(ADA)
        live.app.world.cards.authorities = promised
        await live.signed_in(live.people[ADA])


def card_trust(live: LiveServer, *tables: Mapping[str, Any]) -> Any:
    """What other tables would make of the same files."""
    settings = card_settings(live.data.parent, *tables)
    return CardFiles(settings, instant=datetime.fromtimestamp(live.clock.now(), UTC)).trust.authorities


async def test_a_certificate_is_worth_nothing_without_its_key(live: LiveServer):
    ada = await Holder.new(live, ADA)
    made = await ada.begin()
    with refused(Reason.CARD_CERTIFICATE) as refusal:
        await complete(live, made, with_certificates(unattested(made), badge(made, ADA), BADGES))
    assert refusal.error.metadata["detail"] == "possession"
    forged = with_statement(made, "packed", {"alg": -7, "sig": new_key().sign(b"", ec.ECDSA(hashes.SHA256()))})
    with refused(Reason.ATTESTATION_STATEMENT):
        await complete(live, made, with_certificates(forged, badge(made, ADA), BADGES))
    assert [r.outcome for r in await live.audit("registration.complete")][-2] == "card_certificate"
    assert (await complete(live, made, certified(made, ADA))).device.card.authority == "Example Badges"


async def test_somebody_elses_badge(live: LiveServer):
    ada, eve = await Holder.new(live, ADA), await Holder.new(live, EVE)
    of_ada, of_eve = await ada.begin(), await eve.begin()
    with refused(Reason.CARD_USER):
        await complete(live, of_eve, certified(of_eve, ADA))
    with refused(Reason.CARD_CERTIFICATE) as refusal:
        await complete(live, of_eve, with_certificates(of_eve.answer, badge(of_ada, EVE), BADGES))
    assert refusal.error.metadata["detail"] == "other_key"
    details = [json.loads(r.details) for r in await live.audit("registration.complete")][-2:]
    assert [told.get("detail") for told in details] == [None, "other_key"]
    assert all(len(told["certificate"]) == 64 for told in details)
    await complete(live, of_ada, certified(of_ada, ADA))
    await complete(live, of_eve, certified(of_eve, EVE))


async def test_certificates_come_with_no_security_key_whose_sign_ins_would_take_longer_by_them_p12(live: LiveServer):
    ada = await Holder.new(live, ADA)
    made = await ada.begin(common_pb2.PROVIDER_KIND_FIDO2)
    with refused(Reason.FIELD_INVALID) as refusal:
        await complete(live, made, certified(made, ADA))
    assert refusal.error.metadata["field"] == "card"
    await complete(live, made)
    made = await ada.begin()
    await complete(live, made, certified(made, ADA))


@pytest.mark.parametrize("given", ["none", "garbage", "stranger"])
async def test_what_is_no_certificate_of_the_organisation(live: LiveServer, given: str):
    ada = await Holder.new(live, ADA)
    made = await ada.begin()
    dressed = with_certificates(made.answer)
    if given == "garbage":
        dressed.card.certificates.append(b"certificate")
    if given == "stranger":
        key = made.credential.key
        dressed = with_certificates(made.answer, card_certificates.badge(root("Stranger"), key=key))
    with refused(Reason.CARD_CERTIFICATE, status=grpc.StatusCode.INVALID_ARGUMENT):
        await complete(live, made, dressed)
    await complete(live, made, certified(made, ADA))


async def test_an_authority_of_one_tenant_certifies_nobody_elsewhere(serving: Serving):
    async with serving({**TABLE, "tenant": "EXAMPLE"}) as live:
        ada = await Holder.new(live, ADA)
        made = await ada.begin()
        live.app.world.cards.authorities = card_trust(live, {**TABLE, "tenant": "elsewhere"})
        with refused(Reason.CARD_CERTIFICATE) as refusal:
            await complete(live, made, certified(made, ADA))
        assert refusal.error.metadata["detail"] == "anchor"
        live.app.world.cards.authorities = card_trust(live, {**TABLE, "tenant": "Example"})
        await complete(live, made, certified(made, ADA))


async def test_the_same_answer_again_gets_the_same_reply_and_another_one_does_not(live: LiveServer):
    ada = await Holder.new(live, ADA)
    made = await ada.begin()
    answer = certified(made, ADA)
    first = await complete(live, made, answer)
    assert (await complete(live, made, answer)).device == first.device
    for other in (made.answer, certified(made, ADA), with_certificates(made.answer)):
        with refused(Reason.REGISTRATION_CONSUMED):
            await complete(live, made, other)


# Later


async def test_h8_an_expired_certificate_signs_nobody_in_and_no_device_is_asked(live: LiveServer):
    ada = await Holder.new(live, ADA)
    end = datetime.fromtimestamp(live.clock.now() + 3600, UTC)
    _, person = await ada.certified(not_after=end)
    await live.signed_in(person)
    live.clock.advance(3601)
    with refused(Reason.CARD_CERTIFICATE, status=PRECONDITION) as refusal:
        await live.begin(ADA)
    assert "detail" not in refusal.error.metadata
    assert "expired" not in refusal.error.message
    await nothing_arrives(person.stream)
    record = (await live.audit("sign_in.begin"))[-1]
    assert (record.outcome, json.loads(record.details)["detail"]) == ("card_certificate", "validity")


async def test_h8_a_certificate_that_is_revoked_signs_nobody_in(serving: Serving, tmp_path: Path):
    now = datetime.now(UTC)
    lists = {"organisation.crl": (ORGANISATION,), "badges.crl": (BADGES,)}
    for file, (issuer,) in lists.items():
        (tmp_path / file).write_bytes(card_certificates.crl_der(issuer, instant=now))
    async with serving({**TABLE, "crls": list(lists)}) as live:
        ada = await Holder.new(live, ADA)
        made = await ada.begin()
        certificate = badge(made, ADA)
        _, person = await ada.register(made, with_certificates(made.answer, certificate, BADGES))
        approved = await live.approved(person)
        (tmp_path / "badges.crl").write_bytes(card_certificates.crl_der(BADGES, certificate, instant=now))
        authority = live.app.world.cards.named  # its lists are read again without being told
        await until(lambda: any(one.revoked for one in authority("Example Badges").revocation))  # type: ignore[union-attr]
        with refused(Reason.CARD_CERTIFICATE, status=PRECONDITION) as refusal:
            await approved.redeem()
        assert refusal.error.metadata["detail"] == "revoked"
        with refused(Reason.CARD_CERTIFICATE):
            await live.begin(ADA)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (None, Reason.CARD_CERTIFICATE),
        ({**TABLE, "name": "Renamed"}, Reason.CARD_CERTIFICATE),
        ({**TABLE, "tenant": "elsewhere"}, Reason.CARD_CERTIFICATE),
        ({**TABLE, "required_eku": ["1.2.3"]}, Reason.CARD_CERTIFICATE),
        ({**TABLE, "match": "email"}, Reason.CARD_USER),
    ],
)
async def test_h8_what_the_administrator_changes_counts_for_registered_cards(
    live: LiveServer, table: Mapping[str, Any] | None, reason: Reason
):
    ada = await Holder.new(live, ADA)
    _, person = await ada.certified()
    before = live.app.world.cards.authorities
    approved = await live.approved(person)
    live.app.world.cards.authorities = card_trust(live, table) if table else ()
    with refused(reason, status=PRECONDITION):
        await approved.redeem()
    with refused(Reason.CARD_CERTIFICATE, status=PRECONDITION) as stranger:  # whatever it is (P12)
        await live.begin(ADA)
    assert stranger.error.metadata == {}
    redeemed, begun = (await live.audit("sign_in.redeem"))[-1], (await live.audit("sign_in.begin"))[-1]
    assert (redeemed.outcome, begun.outcome) == (reason.value, reason.value)
    assert ("detail" in json.loads(redeemed.details)) is (reason is Reason.CARD_CERTIFICATE)
    live.app.world.cards.authorities = before
    await live.signed_in(person)


async def test_a_key_whose_authority_is_gone_is_shown_as_one_that_nobody_vouches_for(live: LiveServer):
    ada = await Holder.new(live, ADA)
    await ada.certified()
    live.app.world.cards.authorities = ()
    assert (await ada.listed()).assurance == assurance("SOFTWARE", "SOFTWARE_GATED", "UNATTESTED")


# A card that attests


async def test_h7_an_attested_card_is_a_smartcard_and_its_facts_are_kept_and_shown(live: LiveServer):
    ada = await Holder.new(live, ADA)
    made = await ada.begin()
    device, person = await ada.register(made, in_card(made, slot="9c", pin=3, touch=2))
    assert device.assurance == assurance("SMARTCARD", "HARDWARE_GATED", "ATTESTED", "Example Cards")
    facts = {"slot": "9c", "firmware": "5.4.3", "serial": "15732500", "pin_policy": "always", "touch_policy": "always"}
    assert device.card == common_pb2.CardDevice(**facts)
    assert (await ada.listed()).card == device.card
    (record,) = [r for r in await live.audit("registration.complete") if r.subject == device.device_id]
    assert json.loads(record.details) == {
        **facts,
        "assurance": "smartcard/hardware_gated/attested/Example Cards",
        "format": "piv",
    }
    assert (await live.signed_in(person)).session.assurance == device.assurance


async def test_ps8_a_slot_that_asks_for_no_pin_is_refused(live: LiveServer):
    ada = await Holder.new(live, ADA)
    made = await ada.begin()
    with refused(Reason.ASSURANCE_TOO_LOW) as refusal:
        await complete(live, made, in_card(made, pin=1))
    assert refusal.error.metadata["found"] == "smartcard/none/attested/Example Cards"
    await complete(live, made, in_card(made))


async def test_a7_a_certificate_promises_no_pin_for_a_slot_that_is_attested_to_ask_for_none(serving: Serving):
    async with serving(PROMISE) as live:
        ada = await Holder.new(live, ADA)
        made = await ada.begin()
        with refused(Reason.ASSURANCE_TOO_LOW):
            await complete(live, made, with_certificates(in_card(made, pin=1), badge(made, ADA), BADGES))


async def test_h7_a_policy_that_wants_an_attested_card_believes_no_word(live: LiveServer):
    await live.admin()
    wanted = requirement("HARDWARE", "HARDWARE_GATED", "ATTESTED", "Example Cards")
    await live.change_policy(registration={"required_assurance": wanted})
    ada = await Holder.new(live, ADA)
    made = await ada.begin()
    for answer in (made.answer, unattested(made), certified(made, ADA)):
        with refused(Reason.ASSURANCE_TOO_LOW):
            await complete(live, made, answer)
    await complete(live, made, in_card(made))


async def test_a7_a_policy_that_wants_the_pin_before_each_signature(live: LiveServer):
    ada, eve = await Holder.new(live, ADA), await Holder.new(live, EVE)
    of_ada, of_eve = await ada.begin(), await eve.begin()
    _, once = await ada.register(of_ada, in_card(of_ada, pin=2))
    await live.signed_in(once)
    await live.change_policy(registration={"card_pin_always": True})
    with refused(Reason.ASSURANCE_TOO_LOW) as refusal:
        await live.begin(ADA)
    assert refusal.error.metadata.keys().isdisjoint({"found", "required"})
    with refused(Reason.ASSURANCE_TOO_LOW) as refusal:
        await complete(live, of_eve, in_card(of_eve, pin=2))
    assert refusal.error.metadata["found"] == "pin_policy=once"
    _, always = await eve.register(of_eve, in_card(of_eve, pin=3))
    await live.signed_in(always)


@pytest.mark.parametrize("way", ["said to be a card", "certified"])
async def test_a7_a_card_that_attests_nothing_is_not_attested_to_ask_for_its_pin(live: LiveServer, way: str):
    ada, eve = await Holder.new(live, ADA), await Holder.new(live, EVE)
    provider = common_pb2.PROVIDER_KIND_SMARTCARD if way == "said to be a card" else common_pb2.PROVIDER_KIND_SOFTWARE

    async def answered(holder: Holder) -> Any:
        made = await holder.begin(provider)
        return made, made.answer if way == "said to be a card" else certified(made, holder.username)

    _, person = await ada.register(*await answered(ada))
    await live.signed_in(person)
    await live.change_policy(registration={"card_pin_always": True})
    with refused(Reason.ASSURANCE_TOO_LOW):
        await live.begin(ADA)
    made, answer = await answered(eve)
    with refused(Reason.ASSURANCE_TOO_LOW) as refusal:
        await complete(live, made, answer)
    assert refusal.error.metadata["found"] == "pin_policy=unproved"
    made = await eve.begin(common_pb2.PROVIDER_KIND_SOFTWARE)
    _, software = await eve.register(made, made.answer)  # a key on no card is not concerned
    await live.signed_in(software)


async def test_a7_a_promise_does_not_say_when_a_card_asks_for_its_pin(serving: Serving):
    async with serving(PROMISE) as live:
        await live.change_policy(registration={"card_pin_always": True})
        ada = await Holder.new(live, ADA)
        made = await ada.begin()
        with refused(Reason.ASSURANCE_TOO_LOW) as refusal:
            await complete(live, made, certified(made, ADA))
        assert refusal.error.metadata["found"] == "pin_policy=unproved"
        both = with_certificates(in_card(made, pin=3), badge(made, ADA), BADGES)
        device, person = await ada.register(made, both)
        assert device.assurance == assurance("SMARTCARD", "HARDWARE_GATED", "ATTESTED", "Example Cards")
        assert (device.card.pin_policy, device.card.authority) == ("always", "Example Badges")
        await live.signed_in(person)
        live.app.world.cards.authorities = ()
        with refused(Reason.CARD_CERTIFICATE):
            await live.begin(ADA)


async def test_a_list_of_models_speaks_of_no_card_that_is_attested_or_promised(serving: Serving):
    async with serving(PROMISE) as live:
        ada = await Holder.new(live, ADA)
        policy = (await live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy
        policy.registration.authenticators.allowed.append("2fc0579f-8113-47ea-b116-bb5a8db9202a")
        await live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy, accept_lock_out=True))
        made = await ada.begin()
        with refused(Reason.AUTHENTICATOR_MODEL):
            await complete(live, made)
        _, person = await ada.register(made, certified(made, ADA))
        await live.signed_in(person)
        live.app.world.cards.authorities = card_trust(live, TABLE)
        with refused(Reason.AUTHENTICATOR_MODEL):
            await live.begin(ADA)
