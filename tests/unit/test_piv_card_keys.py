"""Keys of the virtual PIV card: made, brought in, used; who may (SP 800-73-4 part 2, sections 3.2.4 and 3.3.2)."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch_bench.piv_card.tlv import build, parse
from support.piv_cards import DEFAULT_PIN, CardClient, blank, pad, snapshot

P256, P384, RSA = 0x11, 0x14, 0x07
SLOTS = [0x9A, 0x9C, 0x9D, 0x9E, 0x82, 0x95]
DIGESTS = {P256: hashlib.sha256(b"text").digest(), P384: hashlib.sha384(b"text").digest()}


@pytest.fixture
def client() -> CardClient:
    """A client with the management key shown."""
    client = blank()
    assert client.become_administrator() == 0x9000
    return client


def padded(digest: bytes = hashlib.sha256(b"text").digest()) -> bytes:
    """EMSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 9.2)."""
    info = bytes.fromhex("3031300d060960864801650304020105000420") + digest
    return b"\0\1" + b"\xff" * (256 - 3 - len(info)) + b"\0" + info


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("algorithm", [P256, P384])
def test_ecdsa_in_every_slot(client: CardClient, slot: int, algorithm: int):
    public = client.generate(slot, algorithm)
    assert client.verify(DEFAULT_PIN) == 0x9000
    status, signature = client.use(slot, algorithm, DIGESTS[algorithm])
    assert status == 0x9000
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, b"text", ec.ECDSA(hashes.SHA256() if algorithm == P256 else hashes.SHA384()))


def test_a_shorter_digest_is_signed_and_a_longer_one_is_not(client: CardClient):
    public = client.generate(0x9E, P384)
    status, signature = client.use(0x9E, P384, DIGESTS[P256])
    assert status == 0x9000
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, DIGESTS[P256], ec.ECDSA(Prehashed(hashes.SHA256())))
    assert client.use(0x9E, P384, bytes(49))[0] == 0x6A80
    assert client.use(0x9E, P384, b"")[0] == 0x6A80


def test_rsa_signs_and_decrypts(client: CardClient):
    public = client.generate(0x9D, RSA)
    assert isinstance(public, rsa.RSAPublicKey)
    client.verify(DEFAULT_PIN)
    status, signature = client.use(0x9D, RSA, padded())
    assert status == 0x9000
    public.verify(signature, b"text", padding.PKCS1v15(), hashes.SHA256())
    status, plain = client.use(0x9D, RSA, public.encrypt(b"secret", padding.PKCS1v15()))
    assert status == 0x9000
    assert plain.endswith(b"\0secret")
    assert client.use(0x9D, RSA, padded()[1:])[0] == 0x6A80
    assert client.use(0x9D, RSA, b"\xff" * 256)[0] == 0x6A80


@pytest.mark.parametrize(("slot", "wanted"), [(0x9D, 0x9000), (0x82, 0x9000), (0x9A, 0x6A80), (0x9E, 0x6A80)])
def test_keys_are_agreed_in_the_slots_for_that(client: CardClient, slot: int, wanted: int):
    public = client.generate(slot, P256)
    client.verify(DEFAULT_PIN)
    peer = ec.generate_private_key(ec.SECP256R1())
    status, secret = client.use(slot, P256, point(peer), 0x85)
    assert status == wanted
    if wanted == 0x9000:
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert secret == peer.exchange(ec.ECDH(), public)


def test_points_that_are_none(client: CardClient):
    client.generate(0x9D, P256)
    client.verify(DEFAULT_PIN)
    good = point(ec.generate_private_key(ec.SECP256R1()))
    for bad in (
        b"",
        good[:-1],
        good + b"\0",
        b"\x02" + good[1:33],
        b"\x04" + bytes(64),
        good[:-1] + bytes([good[-1] ^ 1]),
    ):
        assert client.use(0x9D, P256, bad, 0x85)[0] == 0x6A80
    assert client.use(0x9D, P256, good, 0x85)[0] == 0x9000


@pytest.mark.parametrize(
    ("slot", "before", "first", "second"),
    [(0x9A, 0x6982, 0x9000, 0x9000), (0x9C, 0x6982, 0x9000, 0x6982), (0x9E, 0x9000, 0x9000, 0x9000)],
)
def test_pin_policies_of_the_slots(client: CardClient, slot: int, before: int, first: int, second: int):
    client.generate(slot, P256)
    assert client.use(slot, P256, DIGESTS[P256])[0] == before
    client.verify(DEFAULT_PIN)
    assert client.use(slot, P256, DIGESTS[P256])[0] == first
    assert client.use(slot, P256, DIGESTS[P256])[0] == second


def test_the_pin_right_before_each_signature(client: CardClient):
    """Any other command in between will do to forget it, and so will a signature that failed."""
    client.generate(0x9C, P256)
    client.verify(DEFAULT_PIN)
    client.read(0x7E)
    assert client.use(0x9C, P256, DIGESTS[P256])[0] == 0x6982
    client.verify(DEFAULT_PIN)
    assert client.use(0x9C, P256, bytes(33))[0] == 0x6A80
    assert client.use(0x9C, P256, DIGESTS[P256])[0] == 0x6982
    client.verify(DEFAULT_PIN)
    assert client.use(0x9C, P256, DIGESTS[P256])[0] == 0x9000


@pytest.mark.parametrize("policy", [1, 2, 3])
def test_policies_are_settled_with_the_key(client: CardClient, policy: int):
    client.generate(0x9A, P256, build(0xAA, bytes([policy])))
    client.verify(DEFAULT_PIN)
    client.read(0x7E)
    once = client.use(0x9A, P256, DIGESTS[P256])[0]
    client.card.reset()
    never = client.use(0x9A, P256, DIGESTS[P256])[0]
    assert (never, once) == {1: (0x9000, 0x9000), 2: (0x6982, 0x9000), 3: (0x6982, 0x6982)}[policy]


@pytest.mark.parametrize("policy", [2, 3])
def test_a_key_that_wants_a_touch(client: CardClient, policy: int):
    client.generate(0x9E, P256, build(0xAB, bytes([policy])))
    assert client.use(0x9E, P256, DIGESTS[P256])[0] == 0x9000
    client.card.touch = False
    assert client.use(0x9E, P256, DIGESTS[P256])[0] == 0x6982


@pytest.mark.parametrize(
    "more",
    [
        build(0xAA, b"\x04"),
        build(0xAB, b"\x04"),
        build(0xAA, b""),
        build(0xAA, b"\x01\x01"),
        build(0xAC, b"\x01"),
        b"\xaa",
    ],
)
def test_policies_that_there_are_none_of(client: CardClient, more: bytes):
    before = snapshot(client.card.state)
    assert client.send(0x47, 0, 0x9A, build(0xAC, build(0x80, b"\x11") + more))[0] == 0x6A80
    assert snapshot(client.card.state) == before


def test_the_security_status_is_lost_by_reset_and_by_another_application(client: CardClient):
    client.generate(0x9A, P256)
    for lose in (client.card.reset, lambda: client.send(0xA4, 4, 0, bytes.fromhex("A000000151000000"))):
        client.verify(DEFAULT_PIN)
        assert client.use(0x9A, P256, DIGESTS[P256])[0] == 0x9000
        lose()
        client.good(0xA4, 4, 0, bytes.fromhex("A000000308"))
        assert client.use(0x9A, P256, DIGESTS[P256])[0] == 0x6982
        assert client.send(0x47, 0, 0x9A, build(0xAC, build(0x80, b"\x11")))[0] == 0x6982


def test_what_is_selected_already_keeps_its_status(client: CardClient):
    client.verify(DEFAULT_PIN)
    client.good(0xA4, 4, 0, bytes.fromhex("A000000308000010000100"))
    assert client.tries() == 0x9000
    assert client.send(0xA4, 4, 0, bytes.fromhex("A0000006472F0001"))[0] == 0x6A82
    assert client.tries() == 0x9000


def test_algorithm_slot_and_template_have_to_fit(client: CardClient):
    client.generate(0x9E, P256)
    digest = DIGESTS[P256]
    assert client.use(0x9E, P256, digest)[0] == 0x9000
    assert client.use(0x9E, P384, digest)[0] == 0x6A86
    assert client.use(0x9E, 0x06, digest)[0] == 0x6A86
    assert client.use(0x9F, P256, digest)[0] == 0x6A86
    assert client.use(0xF9, P256, digest)[0] == 0x6A86
    assert client.use(0x9A, P256, digest)[0] == 0x6A88
    for template in (
        b"",
        build(0x7C),
        build(0x7C, build(0x82)),
        build(0x7C, build(0x81, digest) + build(0x85, digest)),
        build(0x7C, build(0x82, b"x") + build(0x81, digest)),
        build(0x7C, build(0x81, digest)) + b"\0\0",
        build(0x7C, build(0x81, digest) * 2),
        build(0x7D, build(0x81, digest)),
        build(0x7C, build(0x81, digest))[:-1],
    ):
        assert client.send(0x87, P256, 0x9E, template)[0] == 0x6A80


# The card management key

KEYS = {3: bytes(range(24)), 8: bytes(range(16)), 0x0A: bytes(range(24)), 0x0C: bytes(range(32))}


@pytest.mark.parametrize("algorithm", list(KEYS))
def test_the_management_key_is_shown_in_both_ways(client: CardClient, algorithm: int):
    key = KEYS[algorithm]
    client.good(0xFF, 0xFF, 0xFF, bytes([algorithm, 0x9B, len(key)]) + key)
    for show in (client.become_administrator, client.show_management_key):
        client.card.reset()
        assert client.write(0x5FC102, b"x") == 0x6982
        assert show(bytes(len(key)), algorithm) == 0x6982
        assert client.write(0x5FC102, b"x") == 0x6982
        assert show(key, algorithm) == 0x9000
        assert client.write(0x5FC102, b"x") == 0x9000
    assert client.send(0x87, 3 if algorithm != 3 else 8, 0x9B, bytes.fromhex("7C028000"))[0] == 0x6A86


def test_three_key_triple_des_has_two_identifiers(client: CardClient):
    client.card.reset()
    assert client.show_management_key(algorithm=3) == 0x9000
    assert client.send(0x87, 0, 0x9B, bytes.fromhex("7C028000"))[0] == 0x9000


def test_a_challenge_is_answered_at_once_or_not_at_all(client: CardClient):
    client.card.reset()
    witness = client.witness()
    client.tries()
    template = build(0x7C, build(0x80, witness) + build(0x81, bytes(8)))
    assert client.send(0x87, 3, 0x9B, template)[0] == 0x6985
    client.challenge()
    assert client.send(0x87, 3, 0x9B, template)[0] == 0x6985
    client.witness()
    assert client.send(0x87, 3, 0x9B, build(0x7C, build(0x82, bytes(8))))[0] == 0x6985


def test_the_card_encrypts_nothing_for_those_who_do_not_know_the_key(client: CardClient):
    """Else its own challenge could be given back to it."""
    client.card.reset()
    challenge = client.challenge()
    assert client.send(0x87, 3, 0x9B, build(0x7C, build(0x81, challenge) + build(0x82)))[0] == 0x6A80
    witness = client.witness()
    assert client.send(0x87, 3, 0x9B, build(0x7C, build(0x80, witness) + build(0x81, challenge)))[0] == 0x6982


def test_a_wrong_answer_ends_the_administration(client: CardClient):
    assert client.write(0x5FC102, b"x") == 0x9000
    assert client.show_management_key(bytes(24)) == 0x6982
    assert client.write(0x5FC102, b"x") == 0x6982


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x03\x9b\x18" + bytes(23),
        b"\x03\x9b\x10" + bytes(16),
        b"\x07\x9b\x18" + bytes(24),
        b"\x03\x9a\x18" + bytes(24),
    ],
)
def test_management_keys_that_are_none(client: CardClient, data: bytes):
    before = snapshot(client.card.state)
    assert client.send(0xFF, 0xFF, 0xFF, data)[0] == 0x6A80
    assert client.send(0xFF, 0, 0xFF, data)[0] == 0x6A86
    assert snapshot(client.card.state) == before


# Keys from outside


def elements(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return build(6, key.private_numbers().private_value.to_bytes(key.key_size // 8, "big"))
    numbers = key.private_numbers()
    values = (numbers.p, numbers.q, numbers.dmp1, numbers.dmq1, numbers.iqmp)
    return b"".join(build(number, value.to_bytes(128, "big")) for number, value in enumerate(values, 1))


@pytest.mark.parametrize("algorithm", [P256, P384, RSA])
def test_a_key_is_brought_in(client: CardClient, algorithm: int):
    key = {
        P256: lambda: ec.generate_private_key(ec.SECP256R1()),
        P384: lambda: ec.generate_private_key(ec.SECP384R1()),
        RSA: lambda: rsa.generate_private_key(65537, 2048),
    }[algorithm]()
    client.good(0xFE, algorithm, 0x9E, elements(key) + build(0xAA, b"\x01") + build(0xAB, b"\x01"))
    status, signature = client.use(0x9E, algorithm, padded() if algorithm == RSA else DIGESTS[algorithm])
    assert status == 0x9000
    if isinstance(key, rsa.RSAPrivateKey):
        key.public_key().verify(signature, b"text", padding.PKCS1v15(), hashes.SHA256())
    else:
        scheme = ec.ECDSA(hashes.SHA256() if algorithm == P256 else hashes.SHA384())
        key.public_key().verify(signature, b"text", scheme)
    assert parse(client.good(0xF7, 0, 0x9E))[3] == b"\x02"
    assert client.send(0xF9, 0x9E)[0] == 0x6A80  # nothing is said of where it was made


def test_keys_from_outside_that_are_none(client: CardClient):
    before = snapshot(client.card.state)
    good = elements(rsa.generate_private_key(65537, 2048))
    small = elements(rsa.generate_private_key(65537, 1024))
    for algorithm, data in (
        (P256, b""),
        (P256, build(6, bytes(32))),
        (P256, build(6, b"\xff" * 32)),
        (P256, build(6, b"\x01" * 64)),
        (P256, good),
        (RSA, build(6, b"\x01" * 32)),
        (RSA, good[:-1]),
        (RSA, good.replace(b"\x05\x81\x80", b"\x06\x81\x80")),
        (RSA, b"".join(build(number, b"\x01") for number in range(1, 6))),
        (RSA, small),
    ):
        assert client.send(0xFE, algorithm, 0x9A, data)[0] == 0x6A80, data.hex()
    assert client.send(0xFE, 0x06, 0x9A, good)[0] == 0x6A86
    assert client.send(0xFE, RSA, 0x9B, good)[0] == 0x6A86
    assert snapshot(client.card.state) == before
    assert client.send(0xFE, RSA, 0x9A, good)[0] == 0x9000


def test_nobody_but_the_administrator_fills_slots():
    client = blank()
    client.verify(DEFAULT_PIN)
    template = build(0xAC, build(0x80, b"\x11"))
    assert client.each([(0x47, 0, 0x9A, template), (0xFE, P256, 0x9A, build(6, b"\x01" * 32))]) == [0x6982, 0x6982]
    assert client.send(0xFF, 0xFF, 0xFF, b"\x03\x9b\x18" + bytes(24))[0] == 0x6982
    assert client.send(0x24, 0, 0x9B, pad(DEFAULT_PIN) * 2)[0] == 0x6A88
    client.become_administrator()
    assert client.send(0x47, 0, 0x9A, template)[0] == 0x9000
