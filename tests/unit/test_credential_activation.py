"""Credential challenges: the key derivations against published vectors, the whole against a TPM in software."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keyvouch.attestation.credential_activation import (
    ENTROPY_SIZE,
    CredentialChallenge,
    kdfa,
    kdfe,
    make_credential,
)
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.attestation.tpm_wire import TpmHash
from keyvouch.errors import EvidenceError, Reason, UsageError
from support.software_tpm import AK_NAME, SoftwareTpm, open_labelled, public_area
from support.tpm_forge import ec_key, rsa_key
from support.vectors import load

SECRET = bytes(range(32))
ENTROPY = bytes(range(100, 100 + ENTROPY_SIZE))
SHA256, SHA384, SHA512 = 0x000B, 0x000C, 0x000D

KDFA = load("go-tpm/kdfa.json")
ENCAPSULATIONS = load("go-tpm/rsa_labeled_encaps.json")
ACTIVATIONS = load("swtpm-activation/activation.json")["vectors"]


def make(tpm: SoftwareTpm, **changes: Any) -> CredentialChallenge:
    arguments = {"endorsement_key": tpm.public, "name": AK_NAME, "secret": SECRET, "entropy": ENTROPY}
    return make_credential(**arguments | changes)


@pytest.fixture(scope="module")
def rsa_tpm() -> SoftwareTpm:
    return SoftwareTpm.of(rsa_key(7))


@pytest.fixture(scope="module")
def ecc_tpm() -> SoftwareTpm:
    return SoftwareTpm.of(ec_key(7))


# Key derivation


def test_all_hundred_vectors_of_kdfa():
    assert len(KDFA) == 100
    for vector in KDFA:
        derived = kdfa(
            TpmHash(vector["HashAlg"]),
            key=bytes.fromhex(vector["Key"]),
            label=vector["Label"].encode(),
            context_u=bytes.fromhex(vector["ContextU"]),
            context_v=bytes.fromhex(vector["ContextV"]),
            bits=vector["Bits"],
        )
        assert derived.hex() == vector["Result"], vector["Name"]


@pytest.mark.parametrize("bits", [8, 250, 255, 256, 257, 264, 512, 520])
def test_kdfe_counts_blocks_and_clears_what_is_above_its_bits(bits: int):
    def block(number: int) -> bytes:
        return sha256(number.to_bytes(4, "big") + b"Z" * 32 + b"IDENTITY\0" + b"U" * 32 + b"V" * 32).digest()

    whole = (block(1) + block(2) + block(3))[: (bits + 7) // 8]
    expected = bytes([whole[0] & (0xFF >> -bits % 8)]) + whole[1:]
    found = kdfe(TpmHash.SHA256, shared=b"Z" * 32, label=b"IDENTITY", party_u=b"U" * 32, party_v=b"V" * 32, bits=bits)
    assert found == expected


def test_labelled_encapsulations_of_others_open_with_our_software_tpm():
    """So the software TPM that judges our challenges reads the label as other implementations write it."""
    assert len(ENCAPSULATIONS) == 100
    digests = {"SHA1": hashes.SHA1(), "SHA256": hashes.SHA256(), "SHA384": hashes.SHA384(), "SHA512": hashes.SHA512()}
    for vector in ENCAPSULATIONS:
        description = vector["Description"]
        if description.startswith("un"):
            digest = digests[description.rsplit(" for OAEP", 1)[0].rsplit(" ", 1)[1]]
        else:
            digest = digests[description.split("name alg ")[1].split(",")[0]]
        key = private_key(vector)
        opened = open_labelled(key, digest, vector["Label"].encode(), bytes.fromhex(vector["Ciphertext"]))
        assert opened.hex() == vector["Secret"], vector["Name"]


def private_key(vector: dict[str, str]) -> rsa.RSAPrivateKey:
    """The TPMT_SENSITIVE ends in one prime of the key."""
    key = TpmPublic(bytes.fromhex(vector["PublicKey"])).key
    assert isinstance(key, rsa.RSAPublicKey)
    n, e = key.public_numbers().n, key.public_numbers().e
    p = int.from_bytes(bytes.fromhex(vector["PrivateKey"])[-key.key_size // 16 :], "big")
    q = n // p
    d = rsa.rsa_recover_private_exponent(e, p, q)
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(e, n)
    )
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


# Challenges


@pytest.mark.parametrize("vector", ACTIVATIONS, ids=lambda vector: vector["key"])
def test_the_challenge_that_a_tpm_opened_comes_out_again(vector: dict[str, str]):
    assert len(ACTIVATIONS) == 6
    challenge = make_credential(
        endorsement_key=TpmPublic(bytes.fromhex(vector["endorsement_key"])),
        name=bytes.fromhex(vector["name"]),
        secret=bytes.fromhex(vector["secret"]),
        entropy=bytes.fromhex(vector["entropy"]),
    )
    assert challenge.credential_blob.hex() == vector["credential_blob"]
    assert len(challenge.encrypted_secret) * 2 == len(vector["encrypted_secret"])
    if vector["key"].startswith("ecc"):
        assert challenge.encrypted_secret.hex() == vector["encrypted_secret"]


@pytest.mark.parametrize(
    ("curve", "name_algorithm", "aes_bits"),
    [
        (ec.SECP256R1, SHA256, 128),
        (ec.SECP384R1, SHA384, 256),
        (ec.SECP521R1, SHA512, 256),
        (ec.SECP256R1, SHA512, 256),
    ],
)
def test_an_ecc_tpm_opens_it(curve: type[ec.EllipticCurve], name_algorithm: int, aes_bits: int):
    tpm = SoftwareTpm.of(ec_key(7, curve), name_algorithm=name_algorithm, aes_bits=aes_bits)
    assert tpm.activate(make(tpm), AK_NAME) == SECRET


@pytest.mark.parametrize(("name_algorithm", "aes_bits"), [(SHA256, 128), (SHA256, 256), (SHA384, 256), (SHA512, 256)])
def test_an_rsa_tpm_opens_it(name_algorithm: int, aes_bits: int):
    tpm = SoftwareTpm.of(rsa_key(7), name_algorithm=name_algorithm, aes_bits=aes_bits)
    assert tpm.activate(make(tpm), AK_NAME) == SECRET


@pytest.mark.parametrize("bits", [3072, 4096])
def test_long_rsa_keys_are_good_too(bits: int):
    (vector,) = [v for v in ENCAPSULATIONS if v["Name"].startswith("00_") or f"R_{bits}" in v["Name"]][-1:]
    tpm = SoftwareTpm.of(private_key(vector))
    assert isinstance(tpm.private_key, rsa.RSAPrivateKey)
    assert tpm.private_key.key_size == bits
    assert tpm.activate(make(tpm), AK_NAME) == SECRET


def test_the_answer_needs_the_named_object(rsa_tpm: SoftwareTpm, ecc_tpm: SoftwareTpm):
    other = AK_NAME[:-1] + bytes([AK_NAME[-1] ^ 1])
    for tpm in (rsa_tpm, ecc_tpm):
        challenge = make(tpm)
        assert tpm.activate(challenge, AK_NAME) == SECRET
        with pytest.raises(ValueError, match="INTEGRITY"):
            tpm.activate(challenge, other)


def test_the_answer_needs_the_endorsement_key(ecc_tpm: SoftwareTpm):
    with pytest.raises(ValueError, match="INTEGRITY"):
        SoftwareTpm.of(ec_key(8)).activate(make(ecc_tpm), AK_NAME)


def test_the_encrypted_identity_depends_on_the_name(ecc_tpm: SoftwareTpm):
    """Not only its integrity does."""
    other = make(ecc_tpm, name=AK_NAME[:-1] + bytes([AK_NAME[-1] ^ 1]))
    assert make(ecc_tpm).credential_blob[34:] != other.credential_blob[34:]


def test_entropy_decides_everything_but_the_padding_of_rsa(rsa_tpm: SoftwareTpm, ecc_tpm: SoftwareTpm):
    assert make(ecc_tpm) == make(ecc_tpm)
    assert make(ecc_tpm) != make(ecc_tpm, entropy=bytes(ENTROPY_SIZE))
    first, second = make(rsa_tpm), make(rsa_tpm)
    assert first.credential_blob == second.credential_blob
    assert first.encrypted_secret != second.encrypted_secret
    assert first.credential_blob != make(rsa_tpm, entropy=bytes(ENTROPY_SIZE)).credential_blob


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_every_entropy_makes_a_private_key_of_the_curve(curve: type[ec.EllipticCurve]):
    """Zero is taken for one, the order less one for one, the order less two for the greatest."""
    tpm = SoftwareTpm.of(ec_key(7, curve), name_algorithm=SHA512)
    order = curve().group_order
    for number in (0, 1, order - 2, order - 1, order, 2 ** (8 * ENTROPY_SIZE) - 1):
        challenge = make(tpm, entropy=number.to_bytes(ENTROPY_SIZE, "big"))
        assert tpm.activate(challenge, AK_NAME) == SECRET
        x = ec.derive_private_key(number % (order - 1) + 1, curve()).public_key().public_numbers().x
        size = (curve.key_size + 7) // 8
        assert challenge.encrypted_secret[:2] == size.to_bytes(2, "big")
        assert challenge.encrypted_secret[2 : 2 + size] == x.to_bytes(size, "big")


def test_coordinates_keep_their_leading_zeros(ecc_tpm: SoftwareTpm):
    number = next(
        n
        for n in range(1, 5000)
        if ec.derive_private_key(n, ec.SECP256R1()).public_key().public_numbers().x >> 248 == 0
    )
    challenge = make(ecc_tpm, entropy=(number - 1).to_bytes(ENTROPY_SIZE, "big"))
    assert challenge.encrypted_secret[:3] == b"\x00\x20\x00"
    assert ecc_tpm.activate(challenge, AK_NAME) == SECRET


@pytest.mark.parametrize("size", [1, 31, 32])
def test_a_secret_may_be_as_long_as_a_digest(ecc_tpm: SoftwareTpm, size: int):
    assert ecc_tpm.activate(make(ecc_tpm, secret=SECRET[:size]), AK_NAME) == SECRET[:size]


def test_the_longest_secret_follows_the_name_algorithm():
    tpm = SoftwareTpm.of(ec_key(7), name_algorithm=SHA384)
    assert tpm.activate(make(tpm, secret=bytes(48)), AK_NAME) == bytes(48)
    with pytest.raises(UsageError):
        make(tpm, secret=bytes(49))


@pytest.mark.parametrize(
    "name",
    [
        b"\x00\x0b" + bytes(32),
        b"\x00\x0c" + bytes(48),
        b"\x00\x0d" + bytes(64),
    ],
)
def test_names_of_sha2_are_good(ecc_tpm: SoftwareTpm, name: bytes):
    assert ecc_tpm.activate(make(ecc_tpm, name=name), name) == SECRET


@pytest.mark.parametrize(
    "changes",
    [
        {"name": b""},
        {"name": b"\x00"},
        {"name": b"\x00\x0b"},
        {"name": b"\x00\x0b" + bytes(31)},
        {"name": b"\x00\x0b" + bytes(33)},
        {"name": b"\x00\x0b" + bytes(48)},
        {"name": b"\x00\x04" + bytes(20)},
        {"name": b"\x00\x10"},
        {"secret": b""},
        {"secret": bytes(33)},
        {"entropy": bytes(ENTROPY_SIZE - 1)},
        {"entropy": bytes(ENTROPY_SIZE + 1)},
        {"entropy": b""},
    ],
)
def test_a_caller_that_passes_something_else_is_told(ecc_tpm: SoftwareTpm, changes: dict[str, bytes]):
    with pytest.raises(UsageError):
        make(ecc_tpm, **changes)


@pytest.mark.parametrize(
    "attributes",
    [0x000300B0, 0x000300A2, 0x00030092, 0x000200B2, 0x000100B2, 0x000700B2],
    ids=["not fixed to the TPM", "not to its parent", "imported", "not restricted", "not for decryption", "signs"],
)
def test_a_key_that_is_no_endorsement_key_gets_no_challenge(attributes: int):
    good = public_area(ec_key(7).public_key())
    assert make_credential(endorsement_key=good, name=AK_NAME, secret=SECRET, entropy=ENTROPY)
    wrong = public_area(ec_key(7).public_key(), attributes=attributes)
    with pytest.raises(EvidenceError) as caught:
        make_credential(endorsement_key=wrong, name=b"", secret=b"", entropy=b"")
    assert caught.value.reason is Reason.TPM_EK_ATTRIBUTES
