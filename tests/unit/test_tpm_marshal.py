"""What a TPM is given to unmarshal: written by the Library's numbers, and read back by our own parsers."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from keyvouch.attestation.tpm_marshal import TpmPrivateKey, external_key, nv_public, sign, sized
from keyvouch.attestation.tpm_public import TpmNvAttributes, TpmNvType
from keyvouch.attestation.tpm_structures import TpmHash
from keyvouch.attestation.tpm_wire import TpmAlgorithm
from keyvouch.errors import UsageError
from support import tpm_forge
from support.tpm_forge import NULL, rsa_key

# Names that a swtpm 0.7.1 gave to these keys after TPM2_LoadExternal.
LOADED = {
    "secp256r1": "000b617c6d01a1bc4173eb4fdb7d4ef84be3403f2238954a4e328ac947279ff87a29",
    "secp384r1": "000bcd4d7ceb229ae9271b01759107af1b327ea087878ce5b29d6ea57a8a6a122e4e",
}
SIGNS = 0x00040040  # sign, userWithAuth


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_an_external_key_has_the_name_that_a_tpm_gives_it(curve: ec.EllipticCurve):
    key = ec.derive_private_key(12345, curve)
    public = external_key(key.public_key())
    assert public.name.hex() == LOADED[curve.name]
    assert public == tpm_forge.public_area(key, attributes=SIGNS)
    assert (public.symmetric, public.scheme, public.kdf, public.auth_policy) == (None, None, None, b"")
    assert public.key == key.public_key()


def test_an_external_rsa_key():
    key = rsa_key()
    public = external_key(key.public_key())
    assert public == tpm_forge.public_area(key, attributes=SIGNS, symmetric=NULL, scheme=NULL)
    assert public.name == b"\x00\x0b" + hashlib.sha256(public).digest()
    assert public.key == key.public_key()


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 3072)], ids=["P-521", "RSA-3072"]
)
def test_other_keys_are_not_for_every_tpm(key: TpmPrivateKey):
    with pytest.raises(UsageError):
        external_key(key.public_key())


def test_coordinates_are_as_long_as_the_field():
    short = next(n for n in range(1, 2000) if _coordinates(n)[0] < 1 << 248)
    key = ec.derive_private_key(short, ec.SECP256R1())
    public = external_key(key.public_key())
    x, y = _coordinates(short)
    assert public.endswith(sized(x.to_bytes(32, "big")) + sized(y.to_bytes(32, "big")))


def _coordinates(number: int) -> tuple[int, int]:
    numbers = ec.derive_private_key(number, ec.SECP256R1()).public_key().public_numbers()
    return numbers.x, numbers.y


def test_an_index_as_the_library_writes_it():
    made = nv_public(
        handle=0x01800001,
        kind=TpmNvType.PIN_FAIL,
        attributes=TpmNvAttributes.POLICY_WRITE | TpmNvAttributes.NO_DA,
        auth_policy=b"\x11" * 32,
        data_size=8,
    )
    assert made.hex() == "01800001" + "000b" + "02000088" + "0020" + "11" * 32 + "0008"
    assert (made.type, made.data_size, made.auth_policy) == (TpmNvType.PIN_FAIL, 8, b"\x11" * 32)
    assert made.name == b"\x00\x0b" + hashlib.sha256(made).digest()


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.derive_private_key(7, ec.SECP256R1()), TpmAlgorithm.ECDSA),
        (ec.derive_private_key(7, ec.SECP384R1()), TpmAlgorithm.ECDSA),
        (rsa_key(), TpmAlgorithm.RSASSA),
    ],
    ids=["P-256", "P-384", "RSA"],
)
def test_signatures_are_well_formed_and_verify(key: TpmPrivateKey, algorithm: TpmAlgorithm):
    made = sign(key, b"message")
    assert (made.algorithm, made.hash) == (algorithm, TpmHash.SHA256)
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        public.verify(made.value, b"message", padding.PKCS1v15(), hashes.SHA256())
        assert made.hex().startswith("0014000b0100")
    else:
        public.verify(made.value, b"message", ec.ECDSA(hashes.SHA256()))
        size = (public.curve.key_size + 7) // 8
        assert (made[:6].hex(), len(made)) == (f"0018000b00{size:02x}", 4 + 2 * (2 + size))
