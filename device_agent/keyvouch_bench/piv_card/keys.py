"""A key in a slot: made there or brought in, and what it computes.

What is *not* here: who may use it (`application`), how it is kept (`state`). RSA is done with plain integers, because
cards get their input already padded and no library offers that: good for a bench, and for nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch_bench.piv_card import tlv
from keyvouch_bench.piv_card.identifiers import KeyAlgorithm, Origin, PinPolicy, RefusedError, Status, TouchPolicy

__all__ = ["CardKey", "PrivateKey", "algorithm_of", "generate", "import_key"]

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

EXPONENT: Final = 65537

_Curve = tuple[ec.EllipticCurve, hashes.HashAlgorithm, int]
_CURVES: Final[dict[KeyAlgorithm, _Curve]] = {
    KeyAlgorithm.P256: (ec.SECP256R1(), hashes.SHA256(), 32),
    KeyAlgorithm.P384: (ec.SECP384R1(), hashes.SHA384(), 48),
}
"""Curve, a hash function as long as it, and that length in bytes."""

_RSA_BYTES: Final = 256
_PRIMES: Final = (1, 2)
_CRT: Final = (3, 4, 5)
_SCALAR: Final = 6


@dataclass(frozen=True, slots=True)
class CardKey:
    """A private key with what was settled when it came into its slot."""

    private: PrivateKey
    origin: Origin
    pin_policy: PinPolicy
    touch_policy: TouchPolicy

    @property
    def algorithm(self) -> KeyAlgorithm:
        """As GENERAL AUTHENTICATE names it in P1."""
        return algorithm_of(self.private)

    @property
    def public_template(self) -> bytes:
        """What stands in the 7F49 template (SP 800-73-4 part 2, table 11)."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            numbers = self.private.public_key().public_numbers()
            return tlv.build(0x81, numbers.n.to_bytes(_RSA_BYTES, "big")) + tlv.build(
                0x82, numbers.e.to_bytes(3, "big")
            )
        point = self.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return tlv.build(0x86, point)

    def respond(self, challenge: bytes) -> bytes:
        """RSA of a padded block or a ciphertext; ECDSA of a digest, in DER. Raises `RefusedError(INCORRECT_DATA)`."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            return _rsa(self.private, challenge)
        _, hash_function, length = _CURVES[self.algorithm]
        if not 0 < len(challenge) <= length:
            raise RefusedError(Status.INCORRECT_DATA)
        return self.private.sign(challenge.rjust(length, b"\0"), ec.ECDSA(Prehashed(hash_function)))

    def agree(self, point: bytes) -> bytes:
        """The shared secret with an uncompressed point: its x coordinate. Raises `RefusedError(INCORRECT_DATA)`."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            raise RefusedError(Status.INCORRECT_DATA)
        curve, _, length = _CURVES[self.algorithm]
        if len(point) != 1 + 2 * length or point[0] != 0x04:
            raise RefusedError(Status.INCORRECT_DATA)
        try:
            peer = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        except ValueError:
            raise RefusedError(Status.INCORRECT_DATA) from None
        return self.private.exchange(ec.ECDH(), peer)


def algorithm_of(key: PrivateKey) -> KeyAlgorithm:
    """The algorithm identifier of a key. Raises `RefusedError(INCORRECT_DATA)` for one that no slot takes."""
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size == 8 * _RSA_BYTES and key.public_key().public_numbers().e == EXPONENT:
            return KeyAlgorithm.RSA_2048
    else:
        for algorithm, (curve, _, _) in _CURVES.items():
            if curve.name == key.curve.name:
                return algorithm
    raise RefusedError(Status.INCORRECT_DATA)


def generate(algorithm: KeyAlgorithm) -> PrivateKey:
    """A new key."""
    if algorithm is KeyAlgorithm.RSA_2048:
        return rsa.generate_private_key(EXPONENT, 8 * _RSA_BYTES)
    return ec.generate_private_key(_CURVES[algorithm][0])


def import_key(algorithm: KeyAlgorithm, elements: dict[int, bytes]) -> PrivateKey:
    """A key from the elements of IMPORT KEY: 1 to 5 of an RSA key, or 6. Raises `RefusedError(INCORRECT_DATA)`."""
    try:
        if algorithm is KeyAlgorithm.RSA_2048:
            key: PrivateKey = _rsa_key(*(_number(elements, tag) for tag in (*_PRIMES, *_CRT)))
        else:
            key = ec.derive_private_key(_number(elements, _SCALAR), _CURVES[algorithm][0])
    except ValueError:
        raise RefusedError(Status.INCORRECT_DATA) from None
    if algorithm_of(key) is not algorithm:
        raise RefusedError(Status.INCORRECT_DATA)
    return key


def _number(elements: dict[int, bytes], tag: int) -> int:
    value = elements.get(tag, b"")
    if not 0 < len(value) <= _RSA_BYTES // 2:
        raise RefusedError(Status.INCORRECT_DATA)
    return int.from_bytes(value, "big")


def _rsa_key(p: int, q: int, d_p: int, d_q: int, q_inverse: int) -> rsa.RSAPrivateKey:
    if min(p, q) < 3:
        raise ValueError("no primes")
    d = pow(EXPONENT, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(EXPONENT, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d_p, d_q, q_inverse, public).private_key()


def _rsa(key: rsa.RSAPrivateKey, block: bytes) -> bytes:
    """RSADP and RSASP1, which are one (RFC 8017, sections 5.1.2 and 5.2.1), by the Chinese remainder theorem."""
    numbers = key.private_numbers()
    value = int.from_bytes(block, "big")
    if len(block) != _RSA_BYTES or value >= numbers.public_numbers.n:
        raise RefusedError(Status.INCORRECT_DATA)
    first, second = pow(value, numbers.dmp1, numbers.p), pow(value, numbers.dmq1, numbers.q)
    result = second + numbers.q * ((first - second) * numbers.iqmp % numbers.p)
    return result.to_bytes(_RSA_BYTES, "big")
