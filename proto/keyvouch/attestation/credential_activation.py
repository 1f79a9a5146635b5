"""Making of the challenge that only one TPM can answer: TPM2_MakeCredential without a TPM.

The server encrypts a secret to an endorsement key so that the TPM which holds it gives the secret out only if it also
holds the object of a certain name (TPM2_ActivateCredential). Who answers has shown that both keys live in one TPM.

    seed        random, as long as a digest of the endorsement key's name algorithm; goes to the TPM by
                RSA-OAEP or is agreed by ECDH                       TPM 2.0 Library Part 1, annexes B.10 and C.6
    identity    AES-CFB of the sized secret, key = KDFa(seed, "STORAGE", name)             Part 1, section 24.4
    integrity   HMAC of the encrypted identity and the name, key = KDFa(seed, "INTEGRITY") Part 1, section 24.5

What is not here: opening a challenge (the TPM does that), and judging the attestation key whose name it is.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from keyvouch.attestation.tpm_keys import check_endorsement_key
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.attestation.tpm_wire import TpmHash
from keyvouch.errors import UsageError

__all__ = ["ENTROPY_SIZE", "CredentialChallenge", "kdfa", "kdfe", "make_credential"]

ENTROPY_SIZE: Final = 74
"""Random bytes that one challenge uses up: a P-521 private key and eight bytes more (FIPS 186-5, appendix A.2.1)."""

_IDENTITY, _STORAGE, _INTEGRITY = b"IDENTITY", b"STORAGE", b"INTEGRITY"
_HASHES: Mapping[TpmHash, hashes.HashAlgorithm] = {
    TpmHash.SHA256: hashes.SHA256(),
    TpmHash.SHA384: hashes.SHA384(),
    TpmHash.SHA512: hashes.SHA512(),
}


@dataclass(frozen=True, slots=True)
class CredentialChallenge:
    """The two outputs of TPM2_MakeCredential, each without the length of its TPM2B.

    `credential_blob` is what a TPM2B_ID_OBJECT holds: the sized integrity and the encrypted identity.
    `encrypted_secret` is what a TPM2B_ENCRYPTED_SECRET holds: an RSA ciphertext or a TPMS_ECC_POINT.
    """

    credential_blob: bytes
    encrypted_secret: bytes


def make_credential(*, endorsement_key: TpmPublic, name: bytes, secret: bytes, entropy: bytes) -> CredentialChallenge:
    """Make the challenge whose answer is `secret` (Part 3, TPM2_MakeCredential).

    `name` is that of the attestation key: the hash algorithm (2 bytes) and a digest of it. `secret` has one byte to
    as many as a digest of the endorsement key's name algorithm. `entropy` is `ENTROPY_SIZE` fresh random bytes; the
    seed or the ephemeral key is made of it. One thing it does not decide: the padding of RSA-OAEP, which the library
    draws from the operating system itself and does not let a caller choose.

    Checks, in this order:

     1. the endorsement key is one (`check_endorsement_key`), so it opens a challenge only for the object of that name
     2. `name`, `secret` and `entropy` have the form they must have, and `name` is not a SHA-1 one

    Raises `EvidenceError` with `TPM_EK_ATTRIBUTES` for the first, `UsageError` for the second.
    """
    check_endorsement_key(endorsement_key)
    _check_name(name)
    algorithm, symmetric = endorsement_key.name_algorithm, endorsement_key.symmetric
    assert symmetric is not None  # an endorsement key has one
    if not 1 <= len(secret) <= algorithm.digest_size:
        raise UsageError(f"The secret for this endorsement key has 1 to {algorithm.digest_size} bytes.")
    if len(entropy) != ENTROPY_SIZE:
        raise UsageError(f"A challenge needs {ENTROPY_SIZE} random bytes.")
    seed, encrypted = _share_seed(endorsement_key, algorithm, entropy)
    return CredentialChallenge(_protect(secret, name, seed, algorithm, symmetric.key_bits), encrypted)


def kdfa(algorithm: TpmHash, *, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """Derive `bits` bits by SP 800-108 in counter mode with HMAC (Part 1, section 11.4.10.2). `label` has no zero."""
    fixed = label + b"\0" + context_u + context_v + bits.to_bytes(4, "big")
    blocks = (hmac.digest(key, counter + fixed, algorithm.hash_name) for counter in _counters(algorithm, bits))
    return _cut(blocks, bits)


def kdfe(algorithm: TpmHash, *, shared: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """Derive `bits` bits by SP 800-56A from the x coordinate of an ECDH point (Part 1, section 11.4.10.3)."""
    fixed = shared + label + b"\0" + party_u + party_v
    return _cut((algorithm.digest(counter + fixed) for counter in _counters(algorithm, bits)), bits)


def _counters(algorithm: TpmHash, bits: int) -> Iterable[bytes]:
    blocks = -(-bits // (8 * algorithm.digest_size))
    return (number.to_bytes(4, "big") for number in range(1, blocks + 1))


def _cut(blocks: Iterable[bytes], bits: int) -> bytes:
    """The first bytes of `blocks`; what is above `bits` in the very first byte is zero."""
    derived = b"".join(blocks)[: (bits + 7) // 8]
    if bits % 8:
        return bytes([derived[0] & (1 << bits % 8) - 1]) + derived[1:]
    return derived


def _check_name(name: bytes) -> None:
    """Check the form of a TPM2B_NAME's content for an object (Part 1, section 16)."""
    lengths: Mapping[int, int] = {algorithm: algorithm.digest_size for algorithm in _HASHES}
    if len(name) - 2 != lengths.get(int.from_bytes(name[:2], "big")):
        raise UsageError(
            "The name of the attestation key is not a hash algorithm of SHA-2 and a digest of it.",
            fix="Judge the attestation key first and pass the name of its public area.",
        )


def _share_seed(key: TpmPublic, algorithm: TpmHash, entropy: bytes) -> tuple[bytes, bytes]:
    """Return the seed, and what carries it to the TPM."""
    if isinstance(key.key, rsa.RSAPublicKey):
        seed, digest = entropy[: algorithm.digest_size], _HASHES[algorithm]
        return seed, key.key.encrypt(seed, padding.OAEP(padding.MGF1(digest), digest, _IDENTITY + b"\0"))
    return _agree_seed(key.key, algorithm, entropy)


def _agree_seed(key: ec.EllipticCurvePublicKey, algorithm: TpmHash, entropy: bytes) -> tuple[bytes, bytes]:
    """One-pass ECDH (Part 1, annex C.6.1). Coordinates are as long as the field, with leading zeros (C.8)."""
    number = int.from_bytes(entropy, "big") % (key.curve.group_order - 1) + 1
    ephemeral = ec.derive_private_key(number, key.curve)
    x, y = _coordinates(ephemeral.public_key())
    seed = kdfe(
        algorithm,
        shared=ephemeral.exchange(ec.ECDH(), key),
        label=_IDENTITY,
        party_u=x,
        party_v=_coordinates(key)[0],
        bits=8 * algorithm.digest_size,
    )
    return seed, _sized(x) + _sized(y)


def _coordinates(key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    size, numbers = (key.curve.key_size + 7) // 8, key.public_numbers()
    return numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")


def _protect(secret: bytes, name: bytes, seed: bytes, algorithm: TpmHash, key_bits: int) -> bytes:
    """Encrypt and then authenticate the secret, both bound to `name`."""
    storage = kdfa(algorithm, key=seed, label=_STORAGE, context_u=name, context_v=b"", bits=key_bits)
    encryptor = Cipher(algorithms.AES(storage), CFB(bytes(16))).encryptor()  # the key is used once, so no IV is needed
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    bits = 8 * algorithm.digest_size
    integrity = kdfa(algorithm, key=seed, label=_INTEGRITY, context_u=b"", context_v=b"", bits=bits)
    return _sized(hmac.digest(integrity, identity + name, algorithm.hash_name)) + identity


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content
