"""What the virtual PIV card tells: its application, objects and keys (SP 800-73-4 part 1, and Yubico's extensions)."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation import AttestationRequirement, TrustAnchor, TrustStore, verify_registration
from keyvouch.attestation.evidence import AttestationEvidence, PivFacts
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import Reason
from keyvouch_bench.piv_card import Authority, Holder, Issue, VirtualPivCard
from keyvouch_bench.piv_card.identifiers import AID, OBJECTS, KeyAlgorithm, PinPolicy, TouchPolicy
from keyvouch_bench.piv_card.objects import certificate_object
from keyvouch_bench.piv_card.tlv import build, parse, single
from keyvouch_server.trust_anchors import load, read_settings
from support.attestation_forge import registration, verdict
from support.forge import INSTANT, Forge
from support.piv_cards import BATCH, DEFAULT_PIN, ISSUER, CardClient, blank

CHUID, CCC, PRINTED, HISTORY, ATTESTATION = 0x5FC102, 0x5FC107, 0x5FC109, 0x5FC10C, 0x5FFF01


@pytest.fixture
def client() -> CardClient:
    return blank()


# The application


@pytest.mark.parametrize("length", [5, 9, 11])
def test_selected_by_its_name_whole_or_cut_short(client: CardClient, length: int):
    elements = parse(single(client.good(0xA4, 4, 0, AID[:length]), 0x61))
    assert AID[:5] + elements[0x4F] == AID
    assert single(elements[0x79], 0x4F) == AID[:5]
    assert bytes(KeyAlgorithm) == bytes(x for x in elements[0xAC] if x in set(KeyAlgorithm))


def test_names_and_ways_of_selecting_that_it_has_not(client: CardClient):
    assert client.each([(0xA4, 4, 0, name) for name in (b"", AID[:4], AID + b"\0", b"\xa0\0\0\3\x09")]) == [0x6A82] * 4
    assert client.each([(0xA4, 0, 0, AID), (0xA4, 4, 1, AID)]) == [0x6A86] * 2
    assert client.read(0x7E)[0] == 0x9000


def test_it_is_the_default_application_and_knows_nothing_when_another_is_selected(client: CardClient):
    assert client.read(0x7E)[0] == 0x9000
    client.good(0xA4, 4, 0, bytes.fromhex("A000000151000000"))
    assert client.read(0x7E)[0] == 0x6D00
    client.card.reset()
    assert client.read(0x7E)[0] == 0x9000


@pytest.mark.parametrize("apdu", ["80CB3FFF", "01CB3FFF", "0CCB3FFF", "FFCB3FFF"])
def test_classes_it_does_not_know(client: CardClient, apdu: str):
    assert client.card.answer(bytes.fromhex(apdu)) == b"\x6e\x00"


def test_version_and_serial_number(client: CardClient):
    assert client.good(0xFD) == bytes((5, 4, 3))
    assert client.good(0xF8) == (15732500).to_bytes(4, "big")
    assert client.each([(0xFD, 1, 0, b""), (0xF8, 0, 1, b""), (0xFD, 0, 0, b"x")]) == [0x6A86, 0x6A86, 0x6700]


# Objects


def test_a_blank_card_has_a_discovery_object_and_the_certificate_of_its_maker(client: CardClient):
    assert client.read(0x7E) == (0x9000, build(0x7E, build(0x4F, AID) + build(0x5F2F, b"\x40\0")))
    assert client.read(ATTESTATION)[0] == 0x9000
    client.verify(DEFAULT_PIN)
    assert {tag for tag in OBJECTS if client.read(tag)[0] == 0x9000} == {0x7E, ATTESTATION}


def test_an_object_is_written_read_and_removed(client: CardClient):
    long = bytes(range(256)) * 8
    assert client.write(CHUID, long) == 0x6982
    client.become_administrator()
    assert client.write(CHUID, long) == 0x9000
    assert client.read(CHUID) == (0x9000, build(0x53, long))
    assert client.write(CHUID, b"") == 0x9000
    assert client.read(CHUID)[0] == 0x6A82


def test_extended_lengths_do_as_well(client: CardClient):
    client.become_administrator()
    data = build(0x5C, bytes.fromhex("5FC102")) + build(0x53, bytes(1000))
    assert client.card.answer(b"\0\xdb\x3f\xff\0" + len(data).to_bytes(2, "big") + data) == b"\x90\0"
    assert client.card.answer(bytes.fromhex("00CB3FFF0000055C035FC1020000"))[-2:] == b"\x90\0"


def test_objects_that_the_card_has_not(client: CardClient):
    client.become_administrator()
    before = dict(client.card.state.objects)
    assert client.write(0x5FC1FF, b"x") == 0x6A82
    assert client.write(CHUID, bytes(3053)) == 0x6A84
    assert client.read(0x5FC1FF)[0] == 0x6A82
    for data in (
        b"",
        build(0x5C, b"\x5f\xc1"),
        build(0x5C),
        build(0x5D, b"\x7e"),
        b"\x5c\x03\x5f\xc1",
        build(0x5C, b"\x7e") * 2,
    ):
        assert client.send(0xCB, 0x3F, 0xFF, data)[0] == 0x6A80
        assert client.send(0xDB, 0x3F, 0xFF, data + build(0x54, b"x"))[0] == 0x6A80
    assert client.send(0xDB, 0x3F, 0xFF, build(0x5C, b"\x7e") + build(0x53, b"x"))[0] == 0x6A80
    assert client.each([(0xCB, 0, 0, build(0x5C, b"\x7e")), (0xDB, 0x3F, 0, b"")]) == [0x6A86] * 2
    assert client.card.state.objects == before


def test_what_is_printed_is_read_with_the_pin_only(client: CardClient):
    """And without it nobody sees whether there is anything."""
    assert client.read(PRINTED)[0] == 0x6982
    client.verify(DEFAULT_PIN)
    assert client.read(PRINTED)[0] == 0x6A82
    client.card.personalise(ISSUER)
    assert b"Ada Lovelace" in client.read(PRINTED)[1]


def test_an_issued_card(client: CardClient):
    client.card.personalise(
        ISSUER, Issue(Holder("Grace Hopper", "grace@example.org"), {0x9A: KeyAlgorithm.P384, 0x82: KeyAlgorithm.P256})
    )
    chuid = parse(single(client.read(CHUID)[1], 0x53))
    assert (len(chuid[0x30]), len(chuid[0x34]), chuid[0x35]) == (25, 16, b"20491231")
    assert parse(single(client.read(CCC)[1], 0x53))[0xF0][:7] == bytes.fromhex("A000000116FF02")
    assert parse(single(client.read(HISTORY)[1], 0x53))[0xC1] == b"\x01"
    certificate = x509.load_der_x509_certificate(parse(single(client.read(0x5FC105)[1], 0x53))[0x70])
    certificate.verify_directly_issued_by(ISSUER.certificate)
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "Grace Hopper"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.OtherName)[0].value.endswith(b"grace@example.org")
    assert client.card.certificate(0x82).public_key() == client.card.state.keys[0x82].private.public_key()
    with pytest.raises(KeyError):
        client.card.certificate(0x83)
    assert client.verify(DEFAULT_PIN) == 0x63C2
    assert client.verify(client.card.pin) == 0x9000


def test_metadata(client: CardClient):
    assert parse(client.good(0xF7, 0, 0x80)) == {1: b"\xff", 5: b"\x01", 6: b"\x03\x03"}
    client.verify("999999")
    assert parse(client.good(0xF7, 0, 0x80))[6] == b"\x03\x02"
    assert parse(client.good(0xF7, 0, 0x9B)) == {1: b"\x03", 2: b"\x00\x01", 5: b"\x01"}
    client.become_administrator()
    client.generate(0x9C, 0x11)
    told = parse(client.good(0xF7, 0, 0x9C))
    assert (told[1], told[2], told[3]) == (b"\x11", b"\x03\x01", b"\x01")
    assert client.each([(0xF7, 0, 0x9A, b""), (0xF7, 1, 0x9C, b""), (0xF7, 0, 0x9C, b"x")]) == [0x6A88, 0x6A86, 0x6700]


# Attestation


class CardForge(Forge):
    """The credential is a key in a slot, which signs by commands."""

    def __init__(self, client: CardClient, slot: int, algorithm: KeyAlgorithm, more: bytes = b"") -> None:
        self.client, self.slot, self.card_algorithm = client, slot, algorithm
        client.become_administrator()
        self.public = client.generate(slot, algorithm, more)
        self.algorithm = {0x11: Algorithm.ES256, 0x14: Algorithm.ES384, 0x07: Algorithm.RS256}[algorithm]
        self.public_key = CoseKey.from_public_key(self.public, self.algorithm)

    def sign(self, message: bytes) -> bytes:
        digest = (hashlib.sha384 if self.card_algorithm is KeyAlgorithm.P384 else hashlib.sha256)(message).digest()
        if isinstance(self.public, rsa.RSAPublicKey):
            info = bytes.fromhex("3031300d060960864801650304020105000420") + digest
            digest = b"\0\1" + b"\xff" * (256 - 3 - len(info)) + b"\0" + info
        self.client.verify(self.client.card.pin)
        status, signature = self.client.use(self.slot, self.card_algorithm, digest)
        assert status == 0x9000
        return signature

    def statement(self, data: bytes, client_data_hash: bytes) -> dict[str, object]:
        slot = self.client.good(0xF9, self.slot)
        card = parse(single(self.client.read(ATTESTATION)[1], 0x53))[0x70]
        return {"alg": int(self.algorithm), "sig": self.sign(data + client_data_hash), "x5c": [slot, card]}


def trusting(root: Authority) -> TrustStore:
    return TrustStore([TrustAnchor("virtual cards", root.certificate, formats=frozenset({"piv"}))])


def attested(forge: CardForge, root: Authority = BATCH) -> AttestationEvidence:
    found = verify_registration(**registration(forge, "piv", forge.statement, anchors=trusting(root))).attestation
    assert isinstance(found, AttestationEvidence)
    return found


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
@pytest.mark.parametrize("slot", [0x9A, 0x9C, 0x95])
def test_our_core_takes_its_attestation(client: CardClient, slot: int, algorithm: KeyAlgorithm):
    evidence = attested(CardForge(client, slot, algorithm))
    assert (evidence.provenance, evidence.protection) == (Provenance.ATTESTED, Protection.SMARTCARD)
    assert evidence.verification is Verification.HARDWARE_GATED
    assert evidence.facts == PivFacts(
        slot=f"{slot:02x}",
        firmware="5.4.3",
        serial=15732500,
        pin_policy="always" if slot == 0x9C else "once",
        touch_policy="never",
        form_factor=1,
    )


def test_policies_stand_in_it(client: CardClient):
    forge = CardForge(
        client,
        0x9A,
        KeyAlgorithm.P256,
        build(0xAA, bytes([PinPolicy.NEVER])) + build(0xAB, bytes([TouchPolicy.CACHED])),
    )
    evidence = attested(forge)
    assert isinstance(evidence.facts, PivFacts)
    assert (evidence.facts.pin_policy, evidence.facts.touch_policy) == ("never", "cached")
    assert evidence.verification is Verification.NONE


def test_a_card_of_another_batch_is_not_trusted(client: CardClient):
    forge = CardForge(client, 0x9A, KeyAlgorithm.P256)
    arguments = registration(forge, "piv", forge.statement, anchors=trusting(Authority.root("another batch")))
    assert verdict(arguments) is Reason.TRUST_CHAIN
    assert verdict(registration(forge, "piv", forge.statement, anchors=trusting(BATCH))) is None


def test_a_server_that_pins_the_root_takes_the_card_where_attestation_is_required(client: CardClient, tmp_path: Path):
    (tmp_path / "piv-root.pem").write_bytes(BATCH.pem)
    table = {"name": "virtual cards", "file": "piv-root.pem", "formats": ["piv"]}
    pinned = load(read_settings([table], None, folder=tmp_path), instant=INSTANT, folder=tmp_path)
    forge = CardForge(client, 0x9A, KeyAlgorithm.P256)
    required = {"attestation": AttestationRequirement.TRUSTED, "anchors": pinned}
    assert verdict(registration(forge, "piv", forge.statement, **required)) is None
    client.good(0xFE, 0x11, 0x9A, build(6, b"\1" * 32))  # a key from outside takes its place
    assert client.send(0xF9, 0x9A)[0] == 0x6A80
    assert verdict(forge.registration(format="none", **required)) is Reason.ATTESTATION_REQUIRED


def test_the_attestation_of_another_slot_is_not_that_of_this_key(client: CardClient):
    other, forge = CardForge(client, 0x9E, KeyAlgorithm.P256), CardForge(client, 0x9A, KeyAlgorithm.P256)

    def swapped(data: bytes, client_data_hash: bytes) -> dict[str, object]:
        return forge.statement(data, client_data_hash) | {"x5c": other.statement(data, client_data_hash)["x5c"]}

    assert verdict(registration(forge, "piv", swapped, anchors=trusting(BATCH))) is Reason.ATTESTATION_STATEMENT


def test_what_is_not_attested(client: CardClient):
    assert client.each([(0xF9, 0x9A, 0, b""), (0xF9, 0xF9, 0, b""), (0xF9, 0x9A, 1, b"")]) == [0x6A88, 0x6A86, 0x6A86]
    client.become_administrator()
    client.good(0xFE, 0x11, 0x9A, build(6, b"\x01" * 32))
    assert client.send(0xF9, 0x9A)[0] == 0x6A80
    client.generate(0x9A, 0x11)
    assert client.send(0xF9, 0x9A, 0, b"x")[0] == 0x6700
    assert client.send(0xF9, 0x9A)[0] == 0x9000
    assert client.write(ATTESTATION, b"") == 0x9000
    assert client.send(0xF9, 0x9A)[0] == 0x6985


def test_a_certificate_that_cannot_be_an_issuer(client: CardClient):
    client.become_administrator()
    client.generate(0x9A, 0x11)
    good = parse(single(client.read(ATTESTATION)[1], 0x53))[0x70]
    name = good.index(b"Yubico PIV Attestation") - 2  # the tag of the string
    for bad in (
        b"",
        good[:-1],
        good.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x7f"),
        good[:name] + b"\x01" + good[name + 1 :],
    ):
        assert client.write(ATTESTATION, build(0x70, bad)) == 0x9000
        assert client.send(0xF9, 0x9A)[0] == 0x6985
    assert client.write(ATTESTATION, build(0x70, good)) == 0x9000
    assert client.send(0xF9, 0x9A)[0] == 0x9000


def test_an_organisation_may_put_its_own_attestation_key_there(client: CardClient):
    client.become_administrator()
    own = ec.generate_private_key(ec.SECP256R1())
    certificate = ISSUER.issue(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Own")]),
        own.public_key(),
        [(x509.BasicConstraints(ca=True, path_length=0), True)],
    )
    client.good(0xFE, 0x11, 0xF9, build(6, own.private_numbers().private_value.to_bytes(32, "big")))
    assert client.write(ATTESTATION, certificate_object(certificate)) == 0x9000
    assert attested(CardForge(client, 0x9A, KeyAlgorithm.P256), ISSUER).anchor == "virtual cards"


def test_each_card_has_its_own_attestation_key():
    first, second = (VirtualPivCard.blank(BATCH).certificate(0xF9) for _ in range(2))
    assert first.public_key() != second.public_key()
    assert first.subject != second.subject
    assert first.not_valid_before_utc < datetime(2026, 1, 1, tzinfo=UTC) < first.not_valid_after_utc
