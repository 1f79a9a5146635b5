"""A card that an organisation issued, the virtual one, at a real server: its slots, certificates and attestation."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import Reason
from keyvouch.v1 import common_pb2, enrolment_pb2
from keyvouch.webauthn import AttestationObject
from keyvouch_bench.device import completion
from keyvouch_bench.piv_card import Holder as Person
from keyvouch_bench.piv_card import Issue, VirtualPivCard
from keyvouch_bench.piv_card.identifiers import KeyAlgorithm
from keyvouch_bench.piv_card.tlv import parse, single
from keyvouch_server.card_authorities import read_settings
from keyvouch_server.trust_anchors import read_settings as read_trust
from support.attestation_forge import encoded
from support.card_registering import Holder, with_statement
from support.live_server import LiveServer, live_server, refused
from support.piv_cards import BATCH, ISSUER, CardClient
from support.registering import BegunRegistration, complete

UPN = "ada@example.org"
ATTESTATION = 0x5FFF01
LOGON = "1.3.6.1.4.1.311.20.2.2"


class CardSigner:
    """A key in a slot in the place of a private key: `sign` sends commands, with the PIN before each."""

    def __init__(self, client: CardClient, slot: int) -> None:
        self._client, self._slot = client, slot

    def public_key(self) -> Any:
        return self._client.card.certificate(self._slot).public_key()

    def sign(self, message: bytes, _algorithm: object) -> bytes:
        self._client.verify(self._client.card.pin)
        status, signature = self._client.use(self._slot, KeyAlgorithm.P256, hashlib.sha256(message).digest())
        assert status == 0x9000
        return signature


@pytest.fixture
def client() -> CardClient:
    """A client of a card that was issued to Ada."""
    card = VirtualPivCard.blank(BATCH, serial=15732500)
    card.personalise(ISSUER, Issue(Person("Ada Lovelace", UPN)))
    return CardClient(card)


@asynccontextmanager
async def serving(template: Path, folder: Path, **table: object) -> AsyncIterator[LiveServer]:
    """A server that believes the batch of the card and its issuer."""
    (folder / "batch.pem").write_bytes(BATCH.pem)
    (folder / "issuer.pem").write_bytes(ISSUER.pem)
    makers = {"name": "virtual cards", "file": "batch.pem", "formats": ["piv"]}
    issuer = {"name": "Issuer", "file": "issuer.pem", "match": "upn", **table}
    trust, cards = read_trust([makers], None, folder=folder), read_settings([issuer], folder=folder)
    async with live_server(template, folder, trust=trust, cards=cards) as running:
        yield running


async def begun(holder: Holder, client: CardClient, slot: int) -> BegunRegistration:
    """A registration whose credential is the key in a slot; it attests itself, with the certificate in the slot."""
    made = await holder.begin()
    made.credential.key = CardSigner(client, slot)  # type: ignore[assignment]
    made.answer = completion(made.begun.statement, made.credential, made.channel_key)
    made.answer.card.certificates.extend(encoded([client.card.certificate(slot)]))
    return made


def attested(made: BegunRegistration, client: CardClient, slot: int) -> enrolment_pb2.CompleteRegistrationRequest:
    """The same with the attestation of the card."""
    data = AttestationObject(made.answer.attestation_object).authenticator_data
    message = data + hashlib.sha256(made.answer.client_data_json).digest()
    card = parse(single(client.read(ATTESTATION)[1], 0x53))[0x70]
    chain = [client.good(0xF9, slot), card]
    signature = made.credential.key.sign(message, None)  # type: ignore[arg-type, call-arg]
    return with_statement(made, "piv", {"alg": -7, "sig": signature, "x5c": chain})


@pytest.mark.parametrize(("slot", "pin_policy"), [(0x9A, "once"), (0x9C, "always")])
async def test_h7_a_card_that_was_issued_registers_attested_and_signs_in(
    server_template: Path, tmp_path: Path, client: CardClient, slot: int, pin_policy: str
):
    async with serving(server_template, tmp_path) as live:
        ada = await Holder.new(live, UPN)
        made = await begun(ada, client, slot)
        device, person = await ada.register(made, attested(made, client, slot))
        assert device.assurance.protection == common_pb2.PROTECTION_SMARTCARD
        assert device.assurance.anchor == "virtual cards"
        told = device.card
        assert (told.slot, told.serial, told.pin_policy) == (f"{slot:02x}", "15732500", pin_policy)
        assert told.authority == "Issuer"
        assert (await live.signed_in(person)).session.assurance == device.assurance


async def test_h7_without_its_attestation_it_is_certified_and_no_more(
    server_template: Path, tmp_path: Path, client: CardClient
):
    async with serving(server_template, tmp_path) as live:
        ada = await Holder.new(live, UPN)
        made = await begun(ada, client, 0x9A)
        device, person = await ada.register(made, made.answer)
        assert device.assurance.protection == common_pb2.PROTECTION_SOFTWARE
        assert device.assurance.provenance == common_pb2.PROVENANCE_CERTIFIED
        assert (device.card.slot, device.card.authority) == ("", "Issuer")
        await live.signed_in(person)


@pytest.mark.parametrize(("slot", "detail"), [(0x9D, "key_usage"), (0x9E, "card_authentication")])
async def test_certificates_of_slots_that_are_not_for_signing_in(
    server_template: Path, tmp_path: Path, client: CardClient, slot: int, detail: str
):
    async with serving(server_template, tmp_path) as live:
        ada = await Holder.new(live, UPN)
        made = await begun(ada, client, slot)
        with refused(Reason.CARD_CERTIFICATE) as refusal:
            await complete(live, made)
        assert refusal.error.metadata["detail"] == detail
        made = await begun(ada, client, 0x9A)
        await complete(live, made)


async def test_an_issuer_that_asks_for_smart_card_logon(server_template: Path, tmp_path: Path, client: CardClient):
    async with serving(server_template, tmp_path, required_eku=[LOGON]) as live:
        ada = await Holder.new(live, UPN)
        made = await begun(ada, client, 0x9C)
        with refused(Reason.CARD_CERTIFICATE) as refusal:
            await complete(live, made)
        assert refusal.error.metadata["detail"] == "purpose"
        made = await begun(ada, client, 0x9A)
        await complete(live, made)


async def test_the_card_of_somebody_else(server_template: Path, tmp_path: Path, client: CardClient):
    async with serving(server_template, tmp_path) as live:
        eve = await Holder.new(live, "eve@example.org")
        made = await begun(eve, client, 0x9A)
        for answer in (made.answer, attested(made, client, 0x9A)):
            with refused(Reason.CARD_USER):
                await complete(live, made, answer)
        ada = await Holder.new(live, UPN)
        made = await begun(ada, client, 0x9A)
        await complete(live, made, attested(made, client, 0x9A))
