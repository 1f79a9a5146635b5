"""The virtual PIV card as OpenSC sees it: its own programs and its PKCS#11 module, through a real pcscd."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch_agent.transports.vpcd import ATR
from keyvouch_bench.piv_card import Authority, Issue, VirtualPivCard
from keyvouch_bench.piv_card.authorities import common_name, key_usage
from keyvouch_bench.piv_card.identifiers import KeyAlgorithm
from keyvouch_bench.piv_card.reader import OPENSC_MODULE, PivReader
from support.piv_tools import OBJECT_IDS, OpenSc
from support.repository import ROOT

TEXT = b"what is signed"
MAIN_SLOTS = (0x9A, 0x9C, 0x9D, 0x9E)
WRONG = "999999"


@pytest.fixture
def opensc(issued_piv_card: PivReader, tmp_path: Path) -> OpenSc:
    """OpenSC with an issued card."""
    return OpenSc(issued_piv_card, tmp_path)


@pytest.fixture
def at_a_blank_one(piv_card: PivReader, tmp_path: Path) -> OpenSc:
    return OpenSc(piv_card, tmp_path)


def reissue(opensc: OpenSc, issuer: Authority, algorithm: KeyAlgorithm, slots: tuple[int, ...] = MAIN_SLOTS) -> None:
    opensc.piv.card.personalise(issuer, Issue(keys=dict.fromkeys(slots, algorithm)))


def test_it_is_a_piv_card(opensc: OpenSc):
    assert "Personal Identity Verification Card" in opensc.card("opensc-tool", "--name")
    assert ATR.hex(":") in opensc.card("opensc-tool", "--atr")
    assert "Personal Identity Verification Card" in opensc.card("piv-tool", "--name")


def test_a_blank_card_is_one_too_and_has_no_keys(at_a_blank_one: OpenSc):
    assert "Personal Identity Verification Card" in at_a_blank_one.card("opensc-tool", "--name")
    assert "Private Key Object" not in at_a_blank_one.token("--list-objects", pin=at_a_blank_one.piv.card.pin)


def test_the_token_and_what_is_on_it(opensc: OpenSc):
    slots = opensc.token("--list-slots")
    assert "Ada Lovelace" in slots
    assert "piv_II" in slots
    for word in ("login required", "PIN initialized", "token initialized"):
        assert word in opensc.flags()
    objects = opensc.token("--list-objects", pin=opensc.piv.card.pin)
    for kind in ("Private Key Object; EC", "Public Key Object; EC", "Certificate Object"):
        assert objects.count(kind) == 4
    for slot in MAIN_SLOTS:
        assert opensc.object("cert", slot) == opensc.piv.card.certificate(slot).public_bytes(Encoding.DER)


@pytest.mark.parametrize("slot", [0x9A, 0x9C, 0x9E])
@pytest.mark.parametrize("algorithm", [KeyAlgorithm.P256, KeyAlgorithm.P384])
def test_ecdsa(opensc: OpenSc, piv_issuer: Authority, slot: int, algorithm: KeyAlgorithm):
    reissue(opensc, piv_issuer, algorithm, (slot,))
    hash_function = hashes.SHA256() if algorithm is KeyAlgorithm.P256 else hashes.SHA384()
    digest = hashlib.new(hash_function.name, TEXT).digest()
    signature = opensc.sign(slot, "ECDSA", digest, pin=opensc.piv.card.pin)
    public = opensc.piv.card.certificate(slot).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, digest, ec.ECDSA(Prehashed(hash_function)))


@pytest.mark.parametrize("slot", [0x9A, 0x9C, 0x9E])
def test_rsa(opensc: OpenSc, piv_issuer: Authority, slot: int):
    reissue(opensc, piv_issuer, KeyAlgorithm.RSA_2048, (slot,))
    signature = opensc.sign(slot, "SHA256-RSA-PKCS", TEXT, pin=opensc.piv.card.pin)
    public = opensc.piv.card.certificate(slot).public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    public.verify(signature, TEXT, padding.PKCS1v15(), hashes.SHA256())


def test_rsa_pss_and_decryption(opensc: OpenSc, piv_issuer: Authority):
    reissue(opensc, piv_issuer, KeyAlgorithm.RSA_2048, (0x9A, 0x9D))
    pin, public = opensc.piv.card.pin, opensc.piv.card.certificate(0x9A).public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    signature = opensc.sign(0x9A, "SHA256-RSA-PKCS-PSS", TEXT, pin=pin)
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
    public.verify(signature, TEXT, scheme, hashes.SHA256())
    receiver = opensc.piv.card.certificate(0x9D).public_key()
    assert isinstance(receiver, rsa.RSAPublicKey)
    sent, got = opensc.folder / "sent", opensc.folder / "got"
    sent.write_bytes(receiver.encrypt(b"a secret", padding.PKCS1v15()))
    opensc.token("--decrypt", "--id", "03", "-m", "RSA-PKCS", "-i", sent, "-o", got, pin=pin)
    assert got.read_bytes() == b"a secret"


def test_a_key_is_agreed(opensc: OpenSc):
    peer, own = ec.generate_private_key(ec.SECP256R1()), opensc.piv.card.certificate(0x9D).public_key()
    assert isinstance(own, ec.EllipticCurvePublicKey)
    sent, got = opensc.folder / "peer", opensc.folder / "secret"
    sent.write_bytes(peer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    opensc.token("--derive", "--id", "03", "-m", "ECDH1-DERIVE", "-i", sent, "-o", got, pin=opensc.piv.card.pin)
    assert got.read_bytes() == peer.exchange(ec.ECDH(), own)


def test_a_retired_key_is_seen_by_the_history(opensc: OpenSc, piv_issuer: Authority):
    reissue(opensc, piv_issuer, KeyAlgorithm.P256, (*MAIN_SLOTS, 0x82, 0x83))
    assert opensc.object("cert", 0x83) == opensc.piv.card.certificate(0x83).public_bytes(Encoding.DER)
    assert opensc.token("--list-objects", pin=opensc.piv.card.pin).count("Private Key Object") == 6


def test_the_signature_key_wants_the_pin_right_before(opensc: OpenSc):
    """The context-specific login of PKCS#11: one VERIFY for the session, and one for the signature."""
    opensc.sign(0x9C, "ECDSA", hashlib.sha256(TEXT).digest(), pin=opensc.piv.card.pin)
    entries = [entry for entry in opensc.piv.card.journal if entry.name in ("VERIFY", "GENERAL_AUTHENTICATE")]
    with_pin = [entry for entry in entries if entry.name == "GENERAL_AUTHENTICATE" or entry.length]
    assert [entry.name for entry in with_pin][-3:] == ["VERIFY", "VERIFY", "GENERAL_AUTHENTICATE"]
    keys = opensc.token("--list-objects", "--type", "privkey", pin=opensc.piv.card.pin)
    assert keys.count("always authenticate") == 1


def test_three_wrong_pins_lock_it_and_the_puk_unlocks_it(opensc: OpenSc):
    flags = []
    for _ in range(3):
        assert "CKR_PIN_INCORRECT" in opensc.token("--list-objects", pin=WRONG, good=False)
        flags.append(opensc.flags())
    assert "final user PIN try" in flags[1]
    assert "user PIN locked" in flags[2]
    assert "CKR_PIN_LOCKED" in opensc.token("--list-objects", pin=opensc.piv.card.pin, good=False)
    unblock = ("--unblock-pin", "--auth-id", "01", "--new-pin", "112233", "--puk")
    opensc.card("pkcs15-tool", *unblock, "00000000", good=False)
    opensc.card("pkcs15-tool", *unblock, opensc.piv.card.puk)
    assert "locked" not in opensc.flags()
    assert opensc.piv.card.pin == "112233"
    opensc.token("--list-objects", pin="112233")


def test_the_pin_is_changed_by_both_programs(opensc: OpenSc):
    first = opensc.piv.card.pin
    opensc.card("pkcs15-tool", "--change-pin", "--auth-id", "01", "--pin", first, "--new-pin", "445566")
    assert opensc.piv.card.pin == "445566"
    opensc.token("--change-pin", "--new-pin", "77889900", pin="445566")
    assert opensc.piv.card.pin == "77889900"
    opensc.token("--list-objects", pin="445566", good=False)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_a_blank_card_gets_a_key_and_a_certificate(
    at_a_blank_one: OpenSc, piv_issuer: Authority, algorithm: KeyAlgorithm
):
    opensc = at_a_blank_one
    opensc.generate(0x9A, algorithm)
    public = opensc.piv.card.state.keys[0x9A].private.public_key()
    certificate = piv_issuer.issue(common_name("Grace Hopper"), public, [(key_usage(digital_signature=True), True)])
    opensc.load_certificate(0x9A, certificate)
    assert opensc.object("cert", 0x9A) == certificate.public_bytes(Encoding.DER)
    mechanism = "SHA256-RSA-PKCS" if isinstance(public, rsa.RSAPublicKey) else "ECDSA-SHA256"
    signature = opensc.sign(0x9A, mechanism, TEXT, pin=opensc.piv.card.pin)
    if isinstance(public, rsa.RSAPublicKey):
        public.verify(signature, TEXT, padding.PKCS1v15(), hashes.SHA256())
    else:
        public.verify(signature, TEXT, ec.ECDSA(hashes.SHA256()))


def test_nobody_administers_without_the_management_key(at_a_blank_one: OpenSc):
    at_a_blank_one.management_key.write_text(bytes(24).hex(":"))
    said = at_a_blank_one.card("piv-tool", "-A", "M:9B:03", "-G", "9A:11", good=False)
    assert "admin_mode failed" in said
    assert 0x9A not in at_a_blank_one.piv.card.state.keys


def test_an_attestation_by_hand(opensc: OpenSc, piv_root: Path):
    said = opensc.card("piv-tool", "--send-apdu", "00:F9:9A:00:00")
    dump = "".join(line[:48] for line in said.splitlines() if line[2:3] == " " and line[:2].isalnum())
    leaf = x509.load_der_x509_certificate(bytes.fromhex(dump))
    card = opensc.piv.card.certificate(0xF9)
    leaf.verify_directly_issued_by(card)
    card.verify_directly_issued_by(x509.load_pem_x509_certificate(piv_root.read_bytes()))
    assert leaf.public_key() == opensc.piv.card.certificate(0x9A).public_key()


CLIENT = """
import sys
import pkcs11
from pkcs11 import Attribute, Mechanism, ObjectClass

module, label, pin, identifier, digest = sys.argv[1:]
token = pkcs11.lib(module).get_token(token_label=label)
with token.open(user_pin=pin) as session:
    (key,) = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: bytes.fromhex(identifier)})
    print(key.sign(bytes.fromhex(digest), mechanism=Mechanism.ECDSA, pin=pin if identifier == "02" else None).hex())
"""


@pytest.mark.parametrize("slot", [0x9A, 0x9C])
def test_python_signs_with_it_through_the_module(opensc: OpenSc, slot: int):
    """The signature key wants the PIN once more, right before. PKCS#11 signatures are r and s without DER."""
    digest, pin = hashlib.sha256(TEXT).digest(), opensc.piv.card.pin
    said = opensc.run(sys.executable, "-c", CLIENT, OPENSC_MODULE, "Ada Lovelace", pin, OBJECT_IDS[slot], digest.hex())
    signature = bytes.fromhex(said.split()[-1])
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    public = opensc.piv.card.certificate(slot).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(hashes.SHA256())))


STAND = (sys.executable, "-m", "keyvouch_bench.piv_card")
PYTHON_PATH = os.pathsep.join(str(ROOT / folder) for folder in ("proto", "server", "device_agent"))


def stand(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STAND, *words],
        env={**os.environ, "PYTHONPATH": PYTHON_PATH},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_any_program_with_a_card_of_its_own(tmp_path: Path):
    """The command for benches: it issues a card, keeps it, and has it again."""
    folder = str(tmp_path / "card")
    listing = ("--", "pkcs11-tool", "--module", OPENSC_MODULE, "--list-slots")
    first = stand("--folder", folder, "--issue", "Grace Hopper", "--algorithm", "p384", *listing)
    assert first.returncode == 0, first.stderr
    assert "Grace Hopper" in first.stdout
    kept = VirtualPivCard.kept(tmp_path / "card")
    kept.certificate(0xF9).verify_directly_issued_by(
        x509.load_pem_x509_certificate((tmp_path / "card" / "piv-root.pem").read_bytes())
    )
    kept.certificate(0x9A).verify_directly_issued_by(
        x509.load_pem_x509_certificate((tmp_path / "card" / "issuer-root.pem").read_bytes())
    )
    second = stand("--folder", folder, "--", "opensc-tool", "--reader", "{reader}", "--serial")
    assert second.returncode == 0, second.stderr
    assert VirtualPivCard.kept(tmp_path / "card").state.serial == kept.state.serial
    assert stand("--folder", folder, "--", "false").returncode == 1


def test_a_folder_without_a_card_is_told(tmp_path: Path):
    (tmp_path / "card.json").write_text("{}")
    refused = stand("--folder", str(tmp_path), "--", "true")
    assert refused.returncode == 1
    assert "holds no virtual PIV card" in refused.stderr


def test_slots_have_the_names_of_opensc():
    assert (OBJECT_IDS[0x9A], OBJECT_IDS[0x82], OBJECT_IDS[0x95]) == ("01", "05", "18")
