"""The key over all keys: random, and wrapped with what Argon2id makes of the PIN (RFC 9106).

There is no verifier beside it. A PIN is right exactly if AES-256-GCM accepts what it unwraps, so every guess
costs a whole Argon2id run. The PIN comes as the left 16 bytes of its SHA-256, which is all that CTAP hands
over; that takes nothing from a PIN of any length a person types.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.ports import Entropy

__all__ = ["KdfParameters", "WrappedKey", "open_sealed", "seal", "unwrap", "wrap"]

WRAP_VERSION = 1
KEY_LENGTH = 32
SALT_LENGTH = 16
NONCE_LENGTH = 12


@dataclass(frozen=True, slots=True)
class KdfParameters:
    """Cost of Argon2id. The default is the second recommended option of RFC 9106 section 4."""

    memory_kib: int = 64 * 1024
    iterations: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        """Refuse what Argon2 cannot do, and costs that only a tampered file would ask for."""
        in_range = 8 * self.lanes <= self.memory_kib <= 1024 * 1024 and 1 <= self.iterations <= 64
        if not (1 <= self.lanes <= 16 and in_range):
            raise ValueError("Argon2id parameters out of range")


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A master key under a PIN: the parameters and salt of the derivation, and nonce and ciphertext."""

    kdf: KdfParameters
    salt: bytes
    sealed: bytes = field(repr=False)


def wrap(master: bytes, pin_hash: bytes, kdf: KdfParameters, entropy: Entropy) -> WrappedKey:
    """Wrap `master` under a PIN with a fresh salt."""
    salt = entropy.token(SALT_LENGTH)
    key = _derive(pin_hash, kdf, salt)
    return WrappedKey(kdf, salt, seal(key, master, _purpose(kdf, salt), entropy))


def unwrap(wrapped: WrappedKey, pin_hash: bytes) -> bytes:
    """Return the master key. Raises `cryptography.exceptions.InvalidTag` for any other PIN."""
    key = _derive(pin_hash, wrapped.kdf, wrapped.salt)
    return open_sealed(key, wrapped.sealed, _purpose(wrapped.kdf, wrapped.salt))


def seal(key: bytes, plaintext: bytes, purpose: bytes, entropy: Entropy) -> bytes:
    """AES-256-GCM with a random 96-bit nonce in front; `purpose` is the additional data."""
    nonce = entropy.token(NONCE_LENGTH)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, purpose)


def open_sealed(key: bytes, sealed: bytes, purpose: bytes) -> bytes:
    """Undo `seal`. Raises `InvalidTag` when the key, the purpose or a byte is not the same."""
    if len(sealed) < NONCE_LENGTH:
        raise InvalidTag
    return AESGCM(key).decrypt(sealed[:NONCE_LENGTH], sealed[NONCE_LENGTH:], purpose)


def _derive(pin_hash: bytes, kdf: KdfParameters, salt: bytes) -> bytes:
    function = Argon2id(
        salt=salt, length=KEY_LENGTH, iterations=kdf.iterations, lanes=kdf.lanes, memory_cost=kdf.memory_kib
    )
    try:
        return function.derive(pin_hash)
    except MemoryError:
        raise DeviceError(
            Reason.DEVICE_FAILED,
            f"There is not enough memory to check the PIN: {kdf.memory_kib // 1024} MiB are needed.",
            fix="Close other programs and try again.",
        ) from None


def _purpose(kdf: KdfParameters, salt: bytes) -> bytes:
    return cbor.encode(["keyvouch-vault/master-key", WRAP_VERSION, kdf.memory_kib, kdf.iterations, kdf.lanes, salt])
