"""COSE public keys as WebAuthn uses them (RFC 9052, RFC 9053, RFC 8230; WebAuthn Level 3 section 5.8.5).

A `CoseKey` is the bytes it was received as. It exists only if its algorithm, key type, curve and coordinate
lengths are one line of a fixed table, no other label is there, and the point lies on the curve. So a key that
was accepted at registration cannot be taken for one of another kind later.

What is not here: which of these algorithms a relying party wants, symmetric keys, and private keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Self, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from keyvouch import cbor
from keyvouch.errors import EvidenceError, MalformedError, Reason, UsageError
from keyvouch.roca import check_modulus

__all__ = ["Algorithm", "CoseKey", "PublicKey", "verify_signature_by"]

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey | rsa.RSAPublicKey


@unique
class Algorithm(IntEnum):
    """The signature algorithms understood here, by their number in the IANA COSE registry."""

    ES256 = -7
    EDDSA = -8
    ES384 = -35
    ES512 = -36
    PS256 = -37
    ED448 = -53
    """EdDSA with Ed448 (RFC 9864 section 2.2). WebAuthn's EDDSA is Ed25519 alone."""
    RS256 = -257


# Labels of a COSE_Key (RFC 9052 section 7.1; RFC 9053 section 7; RFC 8230 section 4).
_KTY, _ALG = 1, 3
_CRV, _X, _Y = -1, -2, -3
_N, _E = -1, -2
_KTY_OKP, _KTY_EC2, _KTY_RSA = 1, 2, 3
_LABELS_EC2 = frozenset((_KTY, _ALG, _CRV, _X, _Y))
_LABELS_OKP = frozenset((_KTY, _ALG, _CRV, _X))
_LABELS_RSA = frozenset((_KTY, _ALG, _N, _E))

_RSA_BITS = range(2048, 4097)
_RSA_EXPONENT = 65537


class CoseKey(bytes):
    """The canonical CBOR encoding of one public key, as received, with the key inside ready to use.

    Raises `MalformedError`: `ALGORITHM_NOT_ALLOWED` for an algorithm outside the table, otherwise
    `CREDENTIAL_PUBLIC_KEY`; `EvidenceError` with `WEAK_KEY_ROCA`. Equal keys have equal bytes.
    """

    algorithm: Algorithm
    _key: PublicKey

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`, the canonical CBOR map of a COSE_Key and nothing else."""
        self, end = cls.parse_prefix(data)
        if end != len(data):
            raise _bad("Bytes follow the credential public key.")
        return self

    @classmethod
    def parse_prefix(cls, data: bytes, start: int = 0) -> tuple[Self, int]:
        """Parse the key that starts at `start`; return it with the offset after it."""
        try:
            decoded, end = cbor.decode_prefix(data, start, max_depth=1)
        except MalformedError as error:
            raise _bad(f"The credential public key is not canonical CBOR. {error.message}") from None
        return cls._of(data[start:end], decoded), end

    @classmethod
    def from_map(cls, decoded: object) -> Self:
        """Make the key from a decoded map; its bytes are the canonical encoding of that map."""
        key = cls._of(b"", decoded)  # judged before it is encoded: a stranger's map may hold anything
        return cls._of(cbor.encode(decoded), decoded, key._key)

    @classmethod
    def from_public_key(cls, key: PublicKey, algorithm: Algorithm | None = None) -> Self:
        """Encode a public key. `algorithm` is needed only where the key leaves a choice: PS256 for RSA.

        Raises `UsageError` for a key or a combination outside the table.
        """
        chosen = _natural_algorithm(key) if algorithm is None else algorithm
        try:
            return cls(cbor.encode(_map_of(key, chosen)))
        except MalformedError as error:
            raise UsageError(f"This public key cannot be used with {chosen.name}. {error.message}") from None

    @classmethod
    def _of(cls, data: bytes, decoded: object, key: PublicKey | None = None) -> Self:
        if not isinstance(decoded, dict):
            raise _bad("The credential public key is not a CBOR map.")
        shape = _shape_of(decoded)
        self = super().__new__(cls, data)
        self.algorithm = shape.algorithm
        self._key = shape.read(decoded, shape) if key is None else key
        return self

    def __repr__(self) -> str:
        return f"CoseKey({self.algorithm.name}, {self.hex()})"

    def key_object(self) -> PublicKey:
        """Return the key as `cryptography` knows it, built once."""
        return self._key

    def verify_signature(self, *, signature: bytes, message: bytes) -> None:
        """Check that `signature` was made over `message` by this key with this algorithm.

        Raises `EvidenceError`: `SIGNATURE_ENCODING` if an ECDSA signature is not in its one DER encoding but a
        lenient reader would take it, `SIGNATURE` for everything else that does not verify. An ECDSA signature with
        a large `s` is good: FIDO authenticators make them (WebAuthn section 6.5.5).
        """
        _verify(self._key, self.algorithm, signature, message)


def verify_signature_by(key: PublicKey, algorithm: Algorithm, *, signature: bytes, message: bytes) -> None:
    """Check a signature as `CoseKey.verify_signature` does, by a key that comes in a certificate that is trusted.

    Raises `EvidenceError` as it does, and `UsageError` for a key that is not of the type and curve of `algorithm`.
    """
    shape = _SHAPES[algorithm]
    if not isinstance(key, shape.kind) or _curve_name(key) != (shape.curve and shape.curve.name):
        raise UsageError(f"This public key cannot be used with {algorithm.name}.")
    _verify(key, algorithm, signature, message)


def _curve_name(key: PublicKey) -> str | None:
    return key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else None


def _verify(key: PublicKey, algorithm: Algorithm, signature: bytes, message: bytes) -> None:
    try:
        _VERIFIERS[algorithm](key, signature, message)
    except InvalidSignature:
        raise EvidenceError(
            Reason.SIGNATURE,
            "The signature was not made by this key over this data.",
            fix="Sign the very bytes that are sent, with the key that was registered.",
        ) from None


# The table


@dataclass(frozen=True, slots=True)
class _Shape:
    algorithm: Algorithm
    kty: int
    labels: frozenset[int]
    kind: type[PublicKey]
    read: Callable[[Mapping[object, object], _Shape], PublicKey]
    crv: int = 0
    length: int = 0
    curve: ec.EllipticCurve | None = None


def _read_ec2(decoded: Mapping[object, object], shape: _Shape) -> PublicKey:
    x = _coordinate(decoded, _X, shape)
    y = _coordinate(decoded, _Y, shape)
    assert shape.curve is not None
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(shape.curve, b"\x04" + x + y)
    except ValueError:
        raise _bad("The point of the credential public key does not lie on its curve.") from None


def _read_okp(decoded: Mapping[object, object], shape: _Shape) -> PublicKey:
    x = _coordinate(decoded, _X, shape)
    if shape.algorithm is Algorithm.ED448:
        _check_edwards_point(x, _EDWARDS448)
        return ed448.Ed448PublicKey.from_public_bytes(x)
    _check_edwards_point(x, _EDWARDS25519)
    return ed25519.Ed25519PublicKey.from_public_bytes(x)


def _read_rsa(decoded: Mapping[object, object], _shape: _Shape) -> PublicKey:
    modulus = _unsigned(decoded[_N])
    if _unsigned(decoded[_E]) != _RSA_EXPONENT:
        raise _bad(f"The RSA exponent is not {_RSA_EXPONENT}.")
    if modulus.bit_length() not in _RSA_BITS or modulus % 2 == 0:
        raise _bad(f"The RSA modulus is not an odd number of {_RSA_BITS.start} to {_RSA_BITS.stop - 1} bits.")
    check_modulus(modulus)
    return rsa.RSAPublicNumbers(_RSA_EXPONENT, modulus).public_key()


_SHAPES: Mapping[int, _Shape] = {
    shape.algorithm: shape
    for shape in (
        _Shape(Algorithm.ES256, _KTY_EC2, _LABELS_EC2, ec.EllipticCurvePublicKey, _read_ec2, 1, 32, ec.SECP256R1()),
        _Shape(Algorithm.ES384, _KTY_EC2, _LABELS_EC2, ec.EllipticCurvePublicKey, _read_ec2, 2, 48, ec.SECP384R1()),
        _Shape(Algorithm.ES512, _KTY_EC2, _LABELS_EC2, ec.EllipticCurvePublicKey, _read_ec2, 3, 66, ec.SECP521R1()),
        _Shape(Algorithm.EDDSA, _KTY_OKP, _LABELS_OKP, ed25519.Ed25519PublicKey, _read_okp, 6, 32),
        _Shape(Algorithm.ED448, _KTY_OKP, _LABELS_OKP, ed448.Ed448PublicKey, _read_okp, 7, 57),
        _Shape(Algorithm.RS256, _KTY_RSA, _LABELS_RSA, rsa.RSAPublicKey, _read_rsa),
        _Shape(Algorithm.PS256, _KTY_RSA, _LABELS_RSA, rsa.RSAPublicKey, _read_rsa),
    )
}


def _shape_of(decoded: dict[object, object]) -> _Shape:
    """Find the line of the table for this key, and check everything but the numbers against it."""
    algorithm = decoded.get(_ALG)
    if type(algorithm) is not int:
        raise _bad("The credential public key names no algorithm.")
    shape = _SHAPES.get(algorithm)
    if shape is None:
        raise MalformedError(
            Reason.ALGORITHM_NOT_ALLOWED,
            f"COSE algorithm {algorithm} is not supported.",
            fix=f"Use one of {', '.join(known.name for known in Algorithm)}.",
        )
    if decoded.keys() != shape.labels:
        raise _bad(f"A key for {shape.algorithm.name} has exactly the labels {sorted(shape.labels)}.")
    if decoded[_KTY] != shape.kty or type(decoded[_KTY]) is not int:
        raise _bad(f"The key type does not fit the algorithm {shape.algorithm.name}.")
    if shape.crv and (decoded[_CRV] != shape.crv or type(decoded[_CRV]) is not int):
        raise _bad(f"The curve does not fit the algorithm {shape.algorithm.name}.")
    return shape


def _coordinate(decoded: Mapping[object, object], label: int, shape: _Shape) -> bytes:
    value = decoded[label]
    if not isinstance(value, bytes) or len(value) != shape.length:
        raise _bad(f"A coordinate for {shape.algorithm.name} is a byte string of {shape.length} bytes.")
    return value


def _unsigned(value: object) -> int:
    """Read a big-endian number without leading zero bytes (RFC 8230 section 4)."""
    if not isinstance(value, bytes) or not value or value[0] == 0:
        raise _bad("An RSA number is a byte string without leading zeros.")
    return int.from_bytes(value, "big")


def _bad(message: str) -> MalformedError:
    return MalformedError(
        Reason.CREDENTIAL_PUBLIC_KEY, message, fix="Register a key that this authenticator made itself."
    )


# Edwards points: the library takes any 32 or 57 bytes for a key (RFC 8032 sections 5.1.3 and 5.2.3).


@dataclass(frozen=True, slots=True)
class _Edwards:
    """A curve a*x^2 + y^2 = 1 + d*x^2*y^2 modulo p, and the y of its points of small order.

    A key of small order verifies nearly everything.
    """

    a: int
    d: int
    p: int
    small: frozenset[int]


_P25519 = 2**255 - 19
_P448 = 2**448 - 2**224 - 1
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_EDWARDS25519 = _Edwards(
    -1,
    -121665 * pow(121666, -1, _P25519) % _P25519,
    _P25519,
    frozenset((0, 1, _P25519 - 1, _ORDER_8, _P25519 - _ORDER_8)),
)
_EDWARDS448 = _Edwards(1, -39081, _P448, frozenset((0, 1, _P448 - 1)))


def _check_edwards_point(encoded: bytes, curve: _Edwards) -> None:
    """Check that the y, without the sign of x in its highest bit, is canonical and belongs to a point."""
    a, d, p = curve.a, curve.d, curve.p
    y = int.from_bytes(encoded, "little") & ((1 << 8 * len(encoded) - 1) - 1)
    if y >= p or y in curve.small:
        raise _bad("The Edwards curve public key is not a canonical point of large order.")
    x_squared = (y * y - 1) * pow(d * y * y - a, -1, p) % p
    if pow(x_squared, (p - 1) // 2, p) != 1:
        raise _bad("The point of the credential public key does not lie on its curve.")


# Signatures


def _verify_ecdsa(algorithm: hashes.HashAlgorithm, bits: int) -> Callable[[PublicKey, bytes, bytes], None]:
    scheme = ec.ECDSA(algorithm)
    longest = bits // 8 + 1

    def verify(key: PublicKey, signature: bytes, message: bytes) -> None:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        _check_der(signature, longest)
        key.verify(signature, message, scheme)

    return verify


def _check_der(signature: bytes, longest: int) -> None:
    """Check that `signature` is the DER of a sequence of two positive integers (RFC 3279 section 2.2.3)."""
    end = len(signature)
    start, opening = (2, b"\x30") if end < 130 else (3, b"\x30\x81")
    if not 8 <= end != 130 or not signature.startswith(opening) or signature[start - 1] != end - start:
        raise InvalidSignature  # 130 is no length a DER sequence can have
    middle = _check_integer(signature, start, end, longest)
    if _check_integer(signature, middle, end, longest) != end:
        raise InvalidSignature


def _check_integer(signature: bytes, start: int, end: int, longest: int) -> int:
    """Check the DER integer at `start`; return the offset after it."""
    content = start + 2
    if content >= end or signature[start] != 0x02:
        raise InvalidSignature
    stop = content + signature[start + 1]
    if stop > end or stop == content or signature[content] & 0x80:
        raise InvalidSignature
    if signature[content] == 0 and stop > content + 1 and not signature[content + 1] & 0x80:
        raise _bad_encoding()
    if stop - content > longest:
        raise InvalidSignature
    return stop


def _bad_encoding() -> EvidenceError:
    return EvidenceError(
        Reason.SIGNATURE_ENCODING,
        "The signature is not in DER: a number has leading zeros.",
        fix="Encode r and s as the shortest DER integers.",
    )


def _verify_eddsa(key: PublicKey, signature: bytes, message: bytes) -> None:
    assert isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)
    key.verify(signature, message)


def _verify_rsa(scheme: padding.AsymmetricPadding) -> Callable[[PublicKey, bytes, bytes], None]:
    digest = hashes.SHA256()

    def verify(key: PublicKey, signature: bytes, message: bytes) -> None:
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(signature, message, scheme, digest)

    return verify


_VERIFIERS: Mapping[Algorithm, Callable[[PublicKey, bytes, bytes], None]] = {
    Algorithm.ES256: _verify_ecdsa(hashes.SHA256(), 256),
    Algorithm.ES384: _verify_ecdsa(hashes.SHA384(), 384),
    Algorithm.ES512: _verify_ecdsa(hashes.SHA512(), 521),
    Algorithm.EDDSA: _verify_eddsa,
    Algorithm.ED448: _verify_eddsa,
    Algorithm.RS256: _verify_rsa(padding.PKCS1v15()),
    Algorithm.PS256: _verify_rsa(padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)),
}


# Encoding


def _natural_algorithm(key: PublicKey) -> Algorithm:
    if isinstance(key, ec.EllipticCurvePublicKey):
        for shape in _SHAPES.values():
            if shape.curve is not None and shape.curve.name == key.curve.name:
                return shape.algorithm
    elif isinstance(key, ed25519.Ed25519PublicKey):
        return Algorithm.EDDSA
    elif isinstance(key, ed448.Ed448PublicKey):
        return Algorithm.ED448
    elif isinstance(key, rsa.RSAPublicKey):
        return Algorithm.RS256
    raise UsageError("Only P-256, P-384, P-521, Ed25519, Ed448 and RSA public keys can be encoded.")


def _map_of(key: PublicKey, algorithm: Algorithm) -> dict[int, object]:
    shape = _SHAPES[algorithm]
    start: dict[int, object] = {_KTY: shape.kty, _ALG: int(algorithm)}
    if isinstance(key, ec.EllipticCurvePublicKey):
        numbers, size = key.public_numbers(), (key.curve.key_size + 7) // 8
        return start | {_CRV: shape.crv, _X: numbers.x.to_bytes(size, "big"), _Y: numbers.y.to_bytes(size, "big")}
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return start | {_CRV: shape.crv, _X: key.public_bytes_raw()}
    public = key.public_numbers()
    return start | {_N: _minimal(public.n), _E: _minimal(public.e)}


def _minimal(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
