"""COSE keys: the fixed table, bad points, and signatures against Wycheproof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keyvouch import cbor
from keyvouch.cose import Algorithm, CoseKey, _check_der, verify_signature_by
from keyvouch.errors import EvidenceError, MalformedError, Reason, UsageError
from support.forge import new_key, sign
from support.vectors import load

MESSAGE = b"a message to be signed"


def encoded(algorithm: Algorithm) -> dict[Any, Any]:
    decoded = cbor.decode(CoseKey.from_public_key(new_key(algorithm).public_key(), algorithm))
    assert isinstance(decoded, dict)
    return decoded


EC2 = encoded(Algorithm.ES256)
OKP = encoded(Algorithm.EDDSA)
OKP448 = encoded(Algorithm.ED448)
RSA = encoded(Algorithm.RS256)


def refusal(key: object) -> Reason:
    with pytest.raises(MalformedError) as from_map:
        CoseKey.from_map(key)
    with pytest.raises(MalformedError) as from_bytes:
        CoseKey(cbor.encode(key))
    assert from_map.value.reason is from_bytes.value.reason
    return from_bytes.value.reason


@pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda algorithm: algorithm.name)
def test_every_algorithm_there_and_back(algorithm: Algorithm) -> None:
    private = new_key(algorithm)
    key = CoseKey.from_public_key(private.public_key(), algorithm)
    again = CoseKey(bytes(key))
    assert again == key == CoseKey.from_map(cbor.decode(key))
    assert again.algorithm is algorithm
    assert again.key_object() is again.key_object()
    assert again.key_object() == private.public_key()
    assert algorithm.name in repr(again)
    signature = sign(private, algorithm, MESSAGE)
    again.verify_signature(signature=signature, message=MESSAGE)
    bad = (signature[:-1] + bytes([signature[-1] ^ 1]), signature[:-1], signature + b"\x00", b"")
    for wrong in bad:
        with pytest.raises(EvidenceError) as caught:
            again.verify_signature(signature=wrong, message=MESSAGE)
        assert caught.value.reason is Reason.SIGNATURE
    with pytest.raises(EvidenceError):
        again.verify_signature(signature=signature, message=MESSAGE + b".")


def test_a_key_keeps_the_bytes_it_came_as() -> None:
    data = cbor.encode(EC2)
    assert bytes(CoseKey(data)) == data
    assert CoseKey.from_public_key(CoseKey(data).key_object()) == data
    assert CoseKey.from_public_key(CoseKey(cbor.encode(OKP)).key_object()) == cbor.encode(OKP)
    assert CoseKey.from_public_key(CoseKey(cbor.encode(RSA)).key_object()) == cbor.encode(RSA)


@pytest.mark.parametrize(("algorithm", "curve"), [(Algorithm.ES384, ec.SECP384R1()), (Algorithm.ES512, ec.SECP521R1())])
def test_the_curve_names_the_algorithm(algorithm: Algorithm, curve: ec.EllipticCurve) -> None:
    assert CoseKey.from_public_key(ec.generate_private_key(curve).public_key()).algorithm is algorithm


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (EC2, {1: 1}),
        (EC2, {1: 3}),
        (EC2, {1: 4}),
        (EC2, {1: None}),
        (EC2, {3: None}),
        (EC2, {3: "ES256"}),
        (EC2, {3: -8}),
        (EC2, {3: -35}),
        (EC2, {3: -36}),
        (EC2, {3: -257}),
        (EC2, {-1: 2}),
        (EC2, {-1: True}),
        (EC2, {-1: None}),
        (EC2, {-2: EC2[-2][1:]}),
        (EC2, {-2: b"\x00" + EC2[-2]}),
        (EC2, {-2: 7}),
        (EC2, {-2: b"\xff" * 32}),
        (EC2, {-2: bytes(32), -3: bytes(32)}),
        (EC2, {-3: EC2[-3][:-1] + bytes([EC2[-3][-1] ^ 1])}),
        (EC2, {-3: True}),
        (EC2, {-3: None}),
        (EC2, {-4: b"private" * 4}),
        (EC2, {2: b"kid"}),
        (EC2, {4: [2]}),
        (OKP, {1: 2}),
        (OKP, {1: True}),
        (OKP, {3: -7}),
        (OKP, {-1: 7}),
        (OKP, {-2: b"\x01" + bytes(31)}),
        (OKP, {-2: bytes(32)}),
        (OKP, {-2: b"\xec" + b"\xff" * 30 + b"\x7f"}),
        (OKP, {-2: b"\xee" + b"\xff" * 30 + b"\x7f"}),
        (OKP, {-2: bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")}),
        (OKP, {-2: bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa")}),
        (OKP, {-2: b"\x02" + bytes(31)}),
        (OKP, {-2: bytes(31)}),
        (OKP448, {-1: 6}),
        (OKP448, {3: -8}),
        (OKP448, {-2: bytes(57)}),  # y = 0, order 4
        (OKP448, {-2: b"\x01" + bytes(56)}),
        (OKP448, {-2: b"\x01" + bytes(55) + b"\x80"}),
        (OKP448, {-2: ((1 << 448) - (1 << 224) - 2).to_bytes(57, "little")}),  # y = -1, order 2
        (OKP448, {-2: ((1 << 448) - (1 << 224) - 1).to_bytes(57, "little")}),  # y = p is 0 again
        (OKP448, {-2: OKP448[-2][:56] + b"\x40"}),
        (OKP448, {-2: b"\x02" + bytes(56)}),
        (OKP448, {-2: OKP448[-2][:56]}),
        (OKP, {-3: bytes(32)}),
        (OKP, {-4: bytes(32)}),
        (RSA, {1: 2}),
        (RSA, {3: -7}),
        (RSA, {-1: b"\x00" + RSA[-1]}),
        (RSA, {-1: RSA[-1][:128]}),
        (RSA, {-1: b"\xff" * 513}),
        (RSA, {-1: RSA[-1][:-1] + b"\x00"}),
        (RSA, {-1: b""}),
        (RSA, {-1: 65537}),
        (RSA, {-2: b"\x03"}),
        (RSA, {-2: b"\x00\x01\x00\x01"}),
        (RSA, {-2: 65537}),
        (RSA, {-3: RSA[-1]}),
    ],
    ids=lambda value: f"label {next(iter(value))}" if isinstance(value, dict) and len(value) < 3 else "key",
)
def test_keys_outside_the_table_are_refused_w8(key: dict[Any, Any], change: dict[Any, Any]) -> None:
    assert CoseKey.from_map(key)  # the control
    changed = {label: value for label, value in (key | change).items() if value is not None}
    assert refusal(changed) is Reason.CREDENTIAL_PUBLIC_KEY


@pytest.mark.parametrize("algorithm", [0, 5, -9, -25, -47, -65535, 1 << 63])
def test_unknown_and_symmetric_algorithms_are_not_allowed_w8(algorithm: int) -> None:
    assert refusal(EC2 | {3: algorithm}) is Reason.ALGORITHM_NOT_ALLOWED
    assert refusal({1: 4, 3: algorithm, -1: bytes(32)}) is Reason.ALGORITHM_NOT_ALLOWED


@pytest.mark.parametrize("key", [7, b"", [], "key", {}], ids=repr)
def test_what_is_no_key_is_refused(key: object) -> None:
    assert refusal(key) is Reason.CREDENTIAL_PUBLIC_KEY


@pytest.mark.parametrize("data", [b"", b"\xa5", cbor.encode(EC2) + b"\x00", b"\x81" * 9, b"\xbf\xff"], ids=range(5))
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        CoseKey(data)
    assert caught.value.reason is Reason.CREDENTIAL_PUBLIC_KEY


@pytest.mark.parametrize(
    "algorithm", [known for known in Algorithm if known is not Algorithm.PS256], ids=lambda known: known.name
)
def test_a_key_names_its_algorithm_where_it_leaves_no_choice(algorithm: Algorithm) -> None:
    assert CoseKey.from_public_key(new_key(algorithm).public_key()).algorithm is algorithm


@pytest.mark.parametrize(
    "make",
    [
        lambda: (ec.generate_private_key(ec.SECP256K1()).public_key(), None),
        lambda: (ec.generate_private_key(ec.SECP384R1()).public_key(), Algorithm.ES256),
        lambda: (ec.generate_private_key(ec.SECP256R1()).public_key(), Algorithm.EDDSA),
        lambda: (ed25519.Ed25519PrivateKey.generate().public_key(), Algorithm.RS256),
        lambda: (rsa.generate_private_key(65537, 2048).public_key(), Algorithm.ES256),
        lambda: (rsa.generate_private_key(3, 2048).public_key(), None),
        lambda: (ed448.Ed448PrivateKey.generate().public_key(), Algorithm.EDDSA),
        lambda: (ed25519.Ed25519PrivateKey.generate().public_key(), Algorithm.ED448),
        lambda: (dsa.generate_parameters(1024).generate_private_key().public_key(), None),
    ],
)
def test_keys_that_cannot_be_encoded_are_a_mistake_of_the_caller(make: Callable[[], tuple[Any, Any]]) -> None:
    key, algorithm = make()
    with pytest.raises(UsageError):
        CoseKey.from_public_key(key, algorithm)


@pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda algorithm: algorithm.name)
def test_keys_of_certificates_verify_for_their_own_algorithms_alone(algorithm: Algorithm) -> None:
    private = new_key(algorithm)
    key, signature = private.public_key(), sign(private, algorithm, MESSAGE)
    verify_signature_by(key, algorithm, signature=signature, message=MESSAGE)
    with pytest.raises(EvidenceError) as caught:
        verify_signature_by(key, algorithm, signature=signature, message=MESSAGE + b".")
    assert caught.value.reason is Reason.SIGNATURE
    both = {Algorithm.RS256, Algorithm.PS256}
    for other in set(Algorithm) - ({algorithm} | (both if algorithm in both else set())):
        with pytest.raises(UsageError):
            verify_signature_by(key, other, signature=signature, message=MESSAGE)


def test_ed448_as_published() -> None:
    """RFC 8032 section 7.4, the test with one octet."""
    public = bytes.fromhex(
        "43ba28f430cdff456ae531545f7ecd0ac834a55d9358c0372bfa0c6c6798c0866aea01eb00742802b8438ea4cb82169c235160627b4c3a94"
        "80"
    )
    signature = bytes.fromhex(
        "26b8f91727bd62897af15e41eb43c377efb9c610d48f2335cb0bd0087810f4352541b143c4b981b7e18f62de8ccdf633fc1bf037ab7cd779"
        "805e0dbcc0aae1cbcee1afb2e027df36bc04dcecbf154336c19f0af7e0a6472905e799f1953d2a0ff3348ab21aa4adafd1d234441cf807c0"
        "3a00"
    )
    key = CoseKey.from_map({1: 1, 3: -53, -1: 7, -2: public})
    key.verify_signature(signature=signature, message=b"\x03")
    with pytest.raises(EvidenceError):
        key.verify_signature(signature=signature, message=b"\x04")


def integer(content: bytes) -> bytes:
    return b"\x02" + bytes([len(content)]) + content


def sequence(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return b"\x30" + (bytes([len(body)]) if len(body) < 128 else b"\x81" + bytes([len(body)])) + body


ONE = integer(b"\x01")


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (sequence(ONE, ONE), Reason.SIGNATURE),  # well encoded, and wrong
        (sequence(integer(b"\x00\x01"), ONE), Reason.SIGNATURE_ENCODING),
        (sequence(ONE, integer(b"\x00\x00\x80")), Reason.SIGNATURE_ENCODING),
        (sequence(integer(b"\x00\x80"), ONE), Reason.SIGNATURE),  # one leading zero is right here
        (sequence(integer(b"\xff"), ONE), Reason.SIGNATURE),
        (sequence(integer(b"\x00"), ONE), Reason.SIGNATURE),
        (sequence(integer(b""), integer(b"\x01\x01")), Reason.SIGNATURE),
        (sequence(integer(b"\x01" * 34), ONE), Reason.SIGNATURE),
        (sequence(ONE, ONE, ONE), Reason.SIGNATURE),
        (sequence(ONE, b"\x04\x01\x01"), Reason.SIGNATURE),
        (sequence(ONE, b"\x02\x02\x01"), Reason.SIGNATURE),
        (sequence(integer(b"\x01" * 4)), Reason.SIGNATURE),
        (sequence(integer(b"\x01" * 3), b"\x02"), Reason.SIGNATURE),
        (b"\x30\x81\x06" + ONE + ONE, Reason.SIGNATURE),  # a long form for a short length
        (b"\x30\x80" + ONE + ONE + b"\x00\x00", Reason.SIGNATURE),
        (b"\x31\x06" + ONE + ONE, Reason.SIGNATURE),
        (b"\x30\x81\x7f" + bytes(127), Reason.SIGNATURE),
        (b"\x30\x80" + bytes(128), Reason.SIGNATURE),
        (b"\x30\x81\xff" + bytes(255), Reason.SIGNATURE),
        (b"\x30", Reason.SIGNATURE),
    ],
    ids=lambda value: value.hex()[:24] if isinstance(value, bytes) else value,
)
def test_ecdsa_signatures_are_strict_der(signature: bytes, reason: Reason) -> None:
    with pytest.raises(EvidenceError) as caught:
        CoseKey.from_map(EC2).verify_signature(signature=signature, message=MESSAGE)
    assert caught.value.reason is reason


WYCHEPROOF = {
    "ecdsa_secp256r1_sha256_test.json": (None, {"valid": 174, "invalid": 310}),
    "ecdsa_secp384r1_sha384_test.json": (None, {"valid": 194, "invalid": 310}),
    "ecdsa_secp521r1_sha512_test.json": (None, {"valid": 232, "invalid": 310}),
    "ed25519_test.json": (None, {"valid": 88, "invalid": 63}),
    "rsa_signature_2048_sha256_test.json": (None, {"valid": 7, "invalid": 250, "other exponent": 2}),
    "rsa_signature_3072_sha256_test.json": (None, {"valid": 7, "invalid": 251, "other exponent": 1}),
    "rsa_pss_3072_sha256_mgf1_32_test.json": (Algorithm.PS256, {"valid": 63, "invalid": 45}),
    "rsa_pss_2048_sha256_mgf1_32_test.json": (Algorithm.PS256, {"valid": 63, "invalid": 45}),
}


@pytest.mark.parametrize("name", list(WYCHEPROOF))
def test_wycheproof(name: str) -> None:
    """`acceptable` counts as invalid: those are signatures that a lenient reader may take."""
    algorithm, expected = WYCHEPROOF[name]
    seen: Counter[str] = Counter()
    for group in load(f"wycheproof/{name}")["testGroups"]:
        der = group.get("publicKeyDer") or group["publicKeyAsn"]
        try:
            key = CoseKey.from_public_key(load_der_public_key(bytes.fromhex(der)), algorithm)  # type: ignore[arg-type]
        except UsageError:
            seen["other exponent"] += 1
            continue
        for test in group["tests"]:
            verdict = "valid"
            try:
                key.verify_signature(signature=bytes.fromhex(test["sig"]), message=bytes.fromhex(test["msg"]))
            except EvidenceError:
                verdict = "invalid"
            assert verdict == ("valid" if test["result"] == "valid" else "invalid"), test["comment"]
            seen[verdict] += 1
    assert seen == expected


# What a table says is only pinned by numbers that come from elsewhere than the table.


def test_algorithms_have_their_registered_numbers() -> None:
    assert {algorithm.name: int(algorithm) for algorithm in Algorithm} == {
        "ES256": -7,
        "EDDSA": -8,
        "ES384": -35,
        "ES512": -36,
        "PS256": -37,
        "ED448": -53,
        "RS256": -257,
    }


@pytest.mark.parametrize(
    ("algorithm", "curve", "number"),
    [
        (Algorithm.ES256, ec.SECP256R1(), 1),
        (Algorithm.ES384, ec.SECP384R1(), 2),
        (Algorithm.ES512, ec.SECP521R1(), 3),
    ],
)
def test_elliptic_curve_keys_as_the_registry_has_them(
    algorithm: Algorithm, curve: ec.EllipticCurve, number: int
) -> None:
    public = ec.generate_private_key(curve).public_key()
    numbers, size = public.public_numbers(), (curve.key_size + 7) // 8
    x, y = numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
    assert CoseKey.from_map({1: 2, 3: int(algorithm), -1: number, -2: x, -3: y}).key_object() == public


def rsa_map(modulus: int, algorithm: int = -257) -> dict[int, object]:
    size = (modulus.bit_length() + 7) // 8
    return {1: 3, 3: algorithm, -1: modulus.to_bytes(size, "big"), -2: b"\x01\x00\x01"}


@pytest.mark.parametrize("algorithm", [Algorithm.RS256, Algorithm.PS256])
@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_rsa_keys_as_the_registry_has_them(algorithm: Algorithm, bits: int) -> None:
    key = CoseKey.from_map(rsa_map((1 << bits) - 1, int(algorithm)))
    assert isinstance(key.key_object(), rsa.RSAPublicKey)
    assert (key.algorithm, key.key_object().key_size) == (algorithm, bits)


@pytest.mark.parametrize("bits", [1, 1024, 2047, 4097])
def test_rsa_keys_of_other_sizes(bits: int) -> None:
    assert refusal(rsa_map((1 << bits) - 1)) is Reason.CREDENTIAL_PUBLIC_KEY


def test_an_rsa_key_of_the_weak_library() -> None:
    product = prod(n for n in range(3, 168) if all(n % d for d in range(2, n)))
    weak = pow(65537, 7, product) + (product << 1830)
    assert 2048 <= weak.bit_length() <= 4096
    assert weak % 2
    for make in (CoseKey.from_map, lambda key: CoseKey(cbor.encode(key))):
        with pytest.raises(EvidenceError) as caught:
            make(rsa_map(weak))
        assert caught.value.reason is Reason.WEAK_KEY_ROCA


def signature_of(*integers: bytes, opening: bytes = b"\x30") -> bytes:
    content = b"".join(b"\x02" + bytes([len(integer)]) + integer for integer in integers)
    return opening + bytes([len(content)]) + content


ONE = b"\x01"
ENCODINGS: dict[str, tuple[bytes, type[Exception] | None]] = {
    "shortest": (signature_of(ONE, ONE), None),
    "zero before a high bit": (signature_of(b"\x00\x80", ONE), None),
    "a zero": (signature_of(b"\x00", ONE), None),
    "longest with one byte of length": (b"\x30\x7f" + signature_of(ONE * 61, ONE * 62)[2:], None),
    "shortest with two bytes of length": (b"\x30\x81\x80" + signature_of(ONE * 62, ONE * 62)[2:], None),
    "longest": (b"\x30\x81\x88" + signature_of(ONE * 66, ONE * 66)[2:], None),
    "zero before a low bit": (signature_of(b"\x00\x01", ONE), EvidenceError),
    "zero before the second": (signature_of(ONE, b"\x00\x7f"), EvidenceError),
    "nothing": (b"", InvalidSignature),
    "seven bytes": (signature_of(ONE, b""), InvalidSignature),
    "no sequence": (signature_of(ONE, ONE, opening=b"\x31"), InvalidSignature),
    "length too long": (b"\x30\x07" + signature_of(ONE, ONE)[2:], InvalidSignature),
    "length too short": (b"\x30\x05" + signature_of(ONE, ONE)[2:], InvalidSignature),
    "two bytes of length for 127": (b"\x30\x81\x7f" + signature_of(ONE * 61, ONE * 62)[2:], InvalidSignature),
    "one byte of length for 128": (b"\x30\x80" + signature_of(ONE * 62, ONE * 62)[2:], InvalidSignature),
    "first is no integer": (b"\x30\x06\x03\x01\x01\x02\x01\x01", InvalidSignature),
    "second is no integer": (b"\x30\x06\x02\x01\x01\x03\x01\x01", InvalidSignature),
    "first is empty": (b"\x30\x06\x02\x00\x02\x02\x01\x01", InvalidSignature),
    "second is empty": (b"\x30\x06\x02\x02\x01\x01\x02\x00", InvalidSignature),
    "first is negative": (signature_of(b"\x80", ONE), InvalidSignature),
    "second is negative": (signature_of(ONE, b"\xff"), InvalidSignature),
    "first goes beyond the end": (b"\x30\x06\x02\x05\x01\x02\x01\x01", InvalidSignature),
    "second goes beyond the end": (b"\x30\x06\x02\x01\x01\x02\x02\x01", InvalidSignature),
    "second is cut to its tag": (b"\x30\x06\x02\x03\x01\x01\x01\x02", InvalidSignature),
    "one integer": (b"\x30\x06\x02\x04\x01\x01\x01\x01", InvalidSignature),
    "three integers": (signature_of(ONE, ONE, ONE), InvalidSignature),
    "a byte more": (signature_of(ONE, ONE) + b"\x00", InvalidSignature),
    "a byte more inside": (b"\x30\x07" + signature_of(ONE, ONE)[2:] + b"\x00", InvalidSignature),
    "first is longer than the curve": (signature_of(ONE * 67, ONE), InvalidSignature),
    "second is longer than the curve": (signature_of(ONE, ONE * 67), InvalidSignature),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_encoding_is_judged_before_a_library_sees_it(name: str) -> None:
    signature, error = ENCODINGS[name]
    if error is None:
        _check_der(signature, 66)
        return
    with pytest.raises(error):
        _check_der(signature, 66)


@pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.ES384, Algorithm.ES512])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 6])
def test_every_algorithm_has_one_curve(algorithm: Algorithm, number: int) -> None:
    good = encoded(algorithm)
    if number == good[-1]:
        CoseKey.from_map(good)
    else:
        assert refusal(good | {-1: number}) is Reason.CREDENTIAL_PUBLIC_KEY


@pytest.mark.parametrize("algorithm", [Algorithm.EDDSA, Algorithm.ED448])
def test_every_edwards_key_that_a_library_makes_is_a_point(algorithm: Algorithm) -> None:
    for _ in range(24):  # half of all numbers would pass for points of a wrong curve
        CoseKey.from_public_key(new_key(algorithm).public_key(), algorithm)
