"""The part of a TPM that answers a credential challenge, in software: TPM2_ActivateCredential (Part 3 section 12.5).

Written from the specification alone, without the product's key derivation, so that a mistake there shows.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from keyvouch.attestation.credential_activation import CredentialChallenge
from keyvouch.attestation.tpm_public import TpmPublic

EK_ATTRIBUTES = 0x000300B2  # fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt
AK_NAME = b"\x00\x0b" + hashlib.sha256(b"an attestation key").digest()

_HASHES: dict[int, tuple[str, type[hashes.HashAlgorithm]]] = {
    0x0004: ("sha1", hashes.SHA1),
    0x000B: ("sha256", hashes.SHA256),
    0x000C: ("sha384", hashes.SHA384),
    0x000D: ("sha512", hashes.SHA512),
}
_POLICY_A = {  # TPM2_PolicySecret(TPM_RH_ENDORSEMENT) with each hash (EK Credential Profile annex B.6.2, B.6.3)
    0x000B: "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa",
    0x000C: "8bbf2266537c171cb56e403c4dc1d4b64f432611dc386e6f532050c3278c930e143e8bb1133824ccb431053871c6db53",
    0x000D: "1e3b76502c8a1425aa0b7b3fc646a1b0fae063b03b5368f9c4cddecaff0891dd"
    "682bac1a85d4d832b781ea451915de5fc5bf0dc4a1917cd42fa041e3f998e0ee",
}
_CURVES = {"secp256r1": 0x0003, "secp384r1": 0x0004, "secp521r1": 0x0005}
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def public_area(
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    *,
    name_algorithm: int = 0x000B,
    attributes: int = EK_ATTRIBUTES,
    aes_bits: int = 128,
) -> TpmPublic:
    """The public area of an endorsement key of a standard template."""
    policy = bytes.fromhex(_POLICY_A.get(name_algorithm, ""))
    kind = 0x0001 if isinstance(key, rsa.RSAPublicKey) else 0x0023
    head = struct.pack(">HHI", kind, name_algorithm, attributes) + sized(policy)
    symmetric, scheme = struct.pack(">HHH", 0x0006, aes_bits, 0x0043), struct.pack(">H", 0x0010)
    if isinstance(key, rsa.RSAPublicKey):
        modulus = key.public_numbers().n.to_bytes(key.key_size // 8, "big")
        return TpmPublic(head + symmetric + scheme + struct.pack(">HI", key.key_size, 0) + sized(modulus))
    x, y = _point(key)
    curve = struct.pack(">HH", _CURVES[key.curve.name], 0x0010)
    return TpmPublic(head + symmetric + scheme + curve + sized(x) + sized(y))


@dataclass(frozen=True)
class SoftwareTpm:
    """An endorsement key whose private half is known."""

    private_key: PrivateKey
    public: TpmPublic

    @classmethod
    def of(cls, private_key: PrivateKey, *, name_algorithm: int = 0x000B, aes_bits: int = 128) -> SoftwareTpm:
        """Wrap a key with the public area of a standard template."""
        public = public_area(private_key.public_key(), name_algorithm=name_algorithm, aes_bits=aes_bits)
        return cls(private_key, public)

    def activate(self, challenge: CredentialChallenge, name: bytes) -> bytes:
        """Open a challenge as the TPM would that holds this key and an object of that name. Raises `ValueError`."""
        hash_name, _ = _HASHES[self.public.name_algorithm]
        seed = self._seed(challenge.encrypted_secret)
        mac, identity = _take(challenge.credential_blob)
        key = _kdfa(hash_name, seed, b"INTEGRITY", b"", len(seed) * 8)
        if not hmac.compare_digest(hmac.new(key, identity + name, hash_name).digest(), mac):
            raise ValueError("TPM_RC_INTEGRITY")
        assert self.public.symmetric
        storage = _kdfa(hash_name, seed, b"STORAGE", name, self.public.symmetric.key_bits)
        decryptor = Cipher(algorithms.AES(storage), CFB(bytes(16))).decryptor()
        secret, rest = _take(decryptor.update(identity) + decryptor.finalize())
        if rest:
            raise ValueError("TPM_RC_SIZE")
        return secret

    def _seed(self, encrypted: bytes) -> bytes:
        hash_name, digest = _HASHES[self.public.name_algorithm]
        if isinstance(self.private_key, rsa.RSAPrivateKey):
            return open_labelled(self.private_key, digest(), b"IDENTITY", encrypted)
        x, rest = _take(encrypted)
        y, rest = _take(rest)
        if rest or len(x) != len(y):
            raise ValueError("TPM_RC_SIZE")
        peer = ec.EllipticCurvePublicKey.from_encoded_point(self.private_key.curve, b"\x04" + x + y)
        shared = self.private_key.exchange(ec.ECDH(), peer)
        own, _ = _point(self.private_key.public_key())
        return hashlib.new(hash_name, struct.pack(">I", 1) + shared + b"IDENTITY\0" + x + own).digest()


def open_labelled(key: rsa.RSAPrivateKey, digest: hashes.HashAlgorithm, label: bytes, ciphertext: bytes) -> bytes:
    """RSAES-OAEP with a label that ends in a zero (Part 1 annex B.4). Raises `ValueError`."""
    return key.decrypt(ciphertext, padding.OAEP(padding.MGF1(digest), digest, label + b"\0"))


def sized(content: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(content)) + content


def _take(data: bytes) -> tuple[bytes, bytes]:
    size = 2 + int.from_bytes(data[:2], "big")
    if len(data) < size:
        raise ValueError("TPM_RC_INSUFFICIENT")
    return data[2:size], data[size:]


def _point(key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    size, numbers = (key.curve.key_size + 7) // 8, key.public_numbers()
    return numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")


def _kdfa(hash_name: str, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """Enough for keys that are at most as long as a digest."""
    message = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.new(key, message, hash_name).digest()[: bits // 8]
