"""TPM structures: what is read out of them, and every way in which they can be wrong (TPM 2.0 Library, Part 2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.attestation.tpm_structures import (
    TpmAlgorithm,
    TpmAttest,
    TpmAttestType,
    TpmCertified,
    TpmClock,
    TpmCreated,
    TpmCreationData,
    TpmHash,
    TpmNvAttributes,
    TpmNvCertified,
    TpmNvPublic,
    TpmNvType,
    TpmObjectAttributes,
    TpmPcrSelection,
    TpmPublic,
    TpmQuoted,
    TpmScheme,
    TpmSignature,
    TpmSymmetric,
    attest_type,
    check_framing,
    unwrap_tpm2b,
)
from keyvouch.errors import KeyvouchError, MalformedError, Reason
from support.roca_keys import weak_modulus
from support.tpm_forge import (
    CERTIFY,
    CREATION,
    ECDSA,
    NONCE,
    NV,
    QUALIFIED_NAME,
    QUOTE,
    RSAPSS,
    RSASSA,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    aes_cfb,
    attest,
    certify_info,
    clock_info,
    creation_data,
    ec_key,
    ecc_public,
    nv_certify_info,
    nv_public,
    public_area,
    quote_info,
    rsa_key,
    rsa_public,
    scheme,
    selection,
    tpm2b,
)

MODULUS = rsa_key().public_key().public_numbers().n.to_bytes(256, "big")
NAME = b"\x00\x0b" + b"\x66" * 32


def reason_of(parse: Callable[[bytes], object], data: bytes) -> Reason | None:
    try:
        parse(data)
    except KeyvouchError as error:
        return error.reason
    return None


def point(key: ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    numbers, size = key.public_key().public_numbers(), (key.key_size + 7) // 8
    return numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")


X, Y = point(ec_key())

GOOD: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
    "ecc": (TpmPublic, public_area(ec_key())),
    "rsa": (TpmPublic, public_area(rsa_key())),
    "certify": (TpmAttest, attest(CERTIFY, certify_info(NAME))),
    "quote": (TpmAttest, attest(QUOTE, quote_info([selection([0, 7])], b"\x77" * 32))),
    "creation": (TpmAttest, attest(CREATION, certify_info(NAME, b"\x88" * 32))),
    "nv": (TpmAttest, attest(NV, nv_certify_info(NAME, b"contents", 4))),
    "creation data": (TpmCreationData, creation_data(selections=(selection([1]),))),
    "nv public": (TpmNvPublic, nv_public(policy=b"\x99" * 32)),
    "tpm2b": (unwrap_tpm2b, tpm2b(b"content")),
}
SIGNATURES = {
    "ecdsa": scheme(ECDSA) + tpm2b(b"\x01" * 32) + tpm2b(b"\x02" * 32),
    "rsassa": scheme(RSASSA) + tpm2b(b"\x03" * 256),
}


@pytest.mark.parametrize("kind", list(GOOD))
def test_nothing_is_cut_off_or_added(kind: str) -> None:
    parse, data = GOOD[kind]
    assert reason_of(parse, data) is None
    for end in range(len(data)):
        assert reason_of(parse, data[:end]) is Reason.TPM_PARSE
    assert reason_of(parse, data + b"\x00") is Reason.TPM_PARSE


@pytest.mark.parametrize("kind", list(SIGNATURES))
def test_nothing_is_cut_off_a_signature_or_added(kind: str) -> None:
    data = SIGNATURES[kind]
    assert reason_of(TpmSignature, data) is None
    for end in range(len(data)):
        assert reason_of(TpmSignature, data[:end]) is Reason.SIGNATURE
    assert reason_of(TpmSignature, data + b"\x00") is Reason.SIGNATURE


@pytest.mark.parametrize("kind", [kind for kind in GOOD if kind != "tpm2b"])
def test_a_structure_is_its_bytes(kind: str) -> None:
    parse, data = GOOD[kind]
    structure = parse(data)
    assert structure == data
    assert parse(structure) is structure
    assert data.hex() in repr(structure)
    assert repr(structure).startswith(type(structure).__name__)


def test_a_signature_is_its_bytes() -> None:
    signature = TpmSignature(SIGNATURES["ecdsa"])
    assert signature == SIGNATURES["ecdsa"]
    assert TpmSignature(signature) is signature
    assert repr(signature) == f"TpmSignature({signature.hex()})"


def test_unwrap() -> None:
    assert unwrap_tpm2b(b"\x00\x03abc") == b"abc"
    assert unwrap_tpm2b(b"\x00\x00") == b""
    assert unwrap_tpm2b(b"\x01\x00" + bytes(256)) == bytes(256)


# Hashes


@pytest.mark.parametrize(
    ("algorithm", "size"), [(TpmHash.SHA1, 20), (TpmHash.SHA256, 32), (TpmHash.SHA384, 48), (TpmHash.SHA512, 64)]
)
def test_hashes(algorithm: TpmHash, size: int) -> None:
    assert algorithm.digest_size == size
    assert algorithm.digest(b"abc") == hashlib.new(algorithm.hash_name, b"abc").digest()
    assert len(algorithm.digest(b"")) == size


# Public areas of keys


def test_an_ecc_public_area() -> None:
    public = TpmPublic(public_area(ec_key(), policy=b"\x12" * 32, scheme=scheme(ECDSA, SHA384), kdf=scheme(0x20)))
    assert public.type is TpmAlgorithm.ECC
    assert public.name_algorithm is TpmHash.SHA256
    assert public.attributes == 0x40072
    assert public.auth_policy == b"\x12" * 32
    assert public.symmetric is None
    assert public.scheme == TpmScheme(TpmAlgorithm.ECDSA, TpmHash.SHA384)
    assert public.kdf == TpmScheme(TpmAlgorithm.KDF1_SP800_56A, TpmHash.SHA256)
    assert public.key == ec_key().public_key()
    assert public.name == b"\x00\x0b" + hashlib.sha256(public).digest()


def test_an_rsa_public_area() -> None:
    public = TpmPublic(public_area(rsa_key(), name_algorithm=SHA384, symmetric=aes_cfb(256), attributes=0x300B2))
    assert public.type is TpmAlgorithm.RSA
    assert public.name_algorithm is TpmHash.SHA384
    assert public.attributes == 0x300B2
    assert public.auth_policy == b""
    assert public.symmetric == TpmSymmetric(TpmAlgorithm.AES, 256, TpmAlgorithm.CFB)
    assert public.scheme is None
    assert public.kdf is None
    assert public.key == rsa_key().public_key()
    assert public.name == b"\x00\x0c" + hashlib.sha384(public).digest()


@pytest.mark.parametrize(
    ("attribute", "bit"),
    [
        ("FIXED_TPM", 1),
        ("ST_CLEAR", 2),
        ("FIXED_PARENT", 4),
        ("SENSITIVE_DATA_ORIGIN", 5),
        ("USER_WITH_AUTH", 6),
        ("ADMIN_WITH_POLICY", 7),
        ("FIRMWARE_LIMITED", 8),
        ("SVN_LIMITED", 9),
        ("NO_DA", 10),
        ("ENCRYPTED_DUPLICATION", 11),
        ("RESTRICTED", 16),
        ("DECRYPT", 17),
        ("SIGN", 18),
        ("X509_SIGN", 19),
    ],
)
def test_object_attributes(attribute: str, bit: int) -> None:
    assert TpmPublic(public_area(ec_key(), attributes=1 << bit)).attributes is TpmObjectAttributes[attribute]


@pytest.mark.parametrize("bit", [0, 3, 12, 13, 14, 15, *range(20, 32)])
def test_reserved_object_attributes(bit: int) -> None:
    assert reason_of(TpmPublic, public_area(ec_key(), attributes=0x40072 | 1 << bit)) is Reason.TPM_PARSE


@pytest.mark.parametrize("digest", [SHA1, SHA256, SHA384, SHA512])
def test_a_policy_has_the_length_of_the_name_algorithm(digest: int) -> None:
    size = TpmHash(digest).digest_size
    for length in (0, size):
        data = public_area(ec_key(), name_algorithm=digest, policy=bytes(length))
        assert len(TpmPublic(data).auth_policy) == length
    for length in (1, size - 1, size + 1):
        assert (
            reason_of(TpmPublic, public_area(ec_key(), name_algorithm=digest, policy=bytes(length))) is Reason.TPM_PARSE
        )


@pytest.mark.parametrize("number", [0x0000, 0x0005, 0x0010, 0x0012, 0x0027, 0xFFFF])
def test_unknown_name_algorithms(number: int) -> None:
    assert reason_of(TpmPublic, public_area(ec_key(), name_algorithm=number)) is Reason.TPM_PARSE


@pytest.mark.parametrize("algorithm", [0x0003, 0x0006, 0x0013, 0x0026])
@pytest.mark.parametrize("mode", [0x40, 0x41, 0x42, 0x43, 0x44])
def test_symmetric_algorithms(algorithm: int, mode: int) -> None:
    member = algorithm.to_bytes(2, "big") + b"\x00\x80" + mode.to_bytes(2, "big")
    assert TpmPublic(public_area(ec_key(), symmetric=member)).symmetric == TpmSymmetric(
        TpmAlgorithm(algorithm), 128, TpmAlgorithm(mode)
    )


@pytest.mark.parametrize("member", ["000a00800043", "000600800010", "000600800045", "ffff00800043"])
def test_unknown_symmetric_algorithms(member: str) -> None:
    assert reason_of(TpmPublic, public_area(ec_key(), symmetric=bytes.fromhex(member))) is Reason.TPM_PARSE


@pytest.mark.parametrize("algorithm", [0x18, 0x19, 0x1B, 0x1C, 0x1D])
def test_ecc_schemes(algorithm: int) -> None:
    data = public_area(ec_key(), scheme=scheme(algorithm, SHA512))
    assert TpmPublic(data).scheme == TpmScheme(TpmAlgorithm(algorithm), TpmHash.SHA512)
    assert reason_of(TpmPublic, public_area(rsa_key(), scheme=scheme(algorithm))) is Reason.TPM_PARSE


def test_ecdaa_has_a_counter() -> None:
    with_counter = scheme(0x1A) + b"\x00\x07"
    assert TpmPublic(public_area(ec_key(), scheme=with_counter)).scheme == TpmScheme(TpmAlgorithm.ECDAA, TpmHash.SHA256)
    assert reason_of(TpmPublic, public_area(ec_key(), scheme=scheme(0x1A))) is Reason.TPM_PARSE


@pytest.mark.parametrize("algorithm", [0x14, 0x16, 0x17])
def test_rsa_schemes(algorithm: int) -> None:
    data = public_area(rsa_key(), scheme=scheme(algorithm, SHA1))
    assert TpmPublic(data).scheme == TpmScheme(TpmAlgorithm(algorithm), TpmHash.SHA1)
    assert reason_of(TpmPublic, public_area(ec_key(), scheme=scheme(algorithm))) is Reason.TPM_PARSE


def test_rsaes_has_no_hash() -> None:
    assert TpmPublic(public_area(rsa_key(), scheme=b"\x00\x15")).scheme == TpmScheme(TpmAlgorithm.RSAES, None)


@pytest.mark.parametrize("algorithm", [0x07, 0x20, 0x21, 0x22])
def test_key_derivation_schemes(algorithm: int) -> None:
    data = public_area(ec_key(), kdf=scheme(algorithm, SHA384))
    assert TpmPublic(data).kdf == TpmScheme(TpmAlgorithm(algorithm), TpmHash.SHA384)


@pytest.mark.parametrize(
    "members", [{"kdf": scheme(0x18)}, {"kdf": b"\xff\xff"}, {"scheme": scheme(0x20)}, {"scheme": scheme(ECDSA, 0x10)}]
)
def test_unknown_schemes(members: dict[str, Any]) -> None:
    assert reason_of(TpmPublic, public_area(ec_key(), **members)) is Reason.TPM_PARSE


@pytest.mark.parametrize("kind", [0x0008, 0x0025, 0x0000, 0x0010])
def test_objects_without_a_public_key(kind: int) -> None:
    data = kind.to_bytes(2, "big") + public_area(ec_key())[2:]
    assert reason_of(TpmPublic, data) is Reason.TPM_PUBLIC_KEY


# Keys


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_curves(curve: type[ec.EllipticCurve]) -> None:
    key = ec_key(0, curve)
    assert TpmPublic(public_area(key)).key == key.public_key()


@pytest.mark.parametrize("number", [0x0000, 0x0001, 0x0002, 0x0006, 0x0010, 0x0020, 0x7FFF])
def test_unknown_curves(number: int) -> None:
    assert reason_of(TpmPublic, ecc_public(X, Y, curve=number)) is Reason.TPM_PUBLIC_KEY


BAD_POINTS = {
    "zero": (bytes(32), bytes(32)),
    "exchanged": (Y, X),
    "not on the curve": (X, Y[:-1] + bytes([Y[-1] ^ 1])),
    "of another curve": point(ec_key(0, ec.SECP384R1)),
    "empty x": (b"", Y),
    "empty y": (X, b""),
    "long x": (b"\x00" + X, Y),
    "long y": (X, b"\x00" + Y),
    "beyond the field": (b"\xff" * 32, Y),
}


@pytest.mark.parametrize("case", list(BAD_POINTS))
def test_bad_points(case: str) -> None:
    assert reason_of(TpmPublic, ecc_public(X, Y)) is None
    assert reason_of(TpmPublic, ecc_public(*BAD_POINTS[case])) is Reason.TPM_PUBLIC_KEY


def test_coordinates_without_leading_zeros_are_those_of_older_tpms() -> None:
    keys = [ec.derive_private_key(number, ec.SECP256R1()) for number in range(1, 1000)]
    short_x = next(key for key in keys if point(key)[0][0] == 0)
    x, y = point(short_x)
    assert TpmPublic(ecc_public(x.lstrip(b"\0"), y)).key == short_x.public_key()
    short_y = next(key for key in keys if point(key)[1][0] == 0)
    x, y = point(short_y)
    assert TpmPublic(ecc_public(x, y.lstrip(b"\0"))).key == short_y.public_key()


@pytest.mark.parametrize("exponent", [0, 65537])
def test_the_exponent(exponent: int) -> None:
    assert TpmPublic(rsa_public(MODULUS, exponent=exponent)).key == rsa_key().public_key()


@pytest.mark.parametrize("exponent", [1, 3, 65535, 65536, 65539, 2**32 - 1])
def test_other_exponents(exponent: int) -> None:
    assert reason_of(TpmPublic, rsa_public(MODULUS, exponent=exponent)) is Reason.TPM_PUBLIC_KEY


def modulus_of(bits: int) -> bytes:
    return ((1 << bits) - 1).to_bytes((bits + 7) // 8, "big")


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_lengths_of_a_modulus(bits: int) -> None:
    assert TpmPublic(rsa_public(modulus_of(bits), bits=bits)).key.key_size == bits


BAD_MODULI = {
    "1024 bits": (modulus_of(1024), 1024),
    "2040 bits": (modulus_of(2040), 2040),
    "4104 bits": (modulus_of(4104), 4104),
    "4097 bits": (modulus_of(4097), 4097),
    "2047 bits in 256 bytes": (modulus_of(2047), 2048),
    "longer than it says": (modulus_of(3072), 2048),
    "shorter than it says": (MODULUS, 3072),
    "a leading zero": (b"\x00" + MODULUS, 2048),
    "a leading zero that counts": (b"\x00" + MODULUS, 2056),
    "even": (MODULUS[:-1] + bytes([MODULUS[-1] & 0xFE]), 2048),
    "empty": (b"", 2048),
    "empty and says so": (b"", 0),
}


@pytest.mark.parametrize("case", list(BAD_MODULI))
def test_bad_moduli(case: str) -> None:
    modulus, bits = BAD_MODULI[case]
    assert reason_of(TpmPublic, rsa_public(modulus, bits=bits)) is Reason.TPM_PUBLIC_KEY


def test_a_modulus_with_the_roca_weakness_W13() -> None:
    weak = weak_modulus().to_bytes(256, "big")
    assert reason_of(TpmPublic, rsa_public(weak)) is Reason.WEAK_KEY_ROCA
    assert reason_of(TpmPublic, rsa_public(MODULUS)) is None


# Public areas of NV indices


def test_an_nv_public_area() -> None:
    public = TpmNvPublic(nv_public(index=0x01C00002, attributes=0x20040084, policy=b"\x01" * 32, size=300))
    assert public.handle == 0x01C00002
    assert public.name_algorithm is TpmHash.SHA256
    assert public.type is TpmNvType.PIN_FAIL
    assert public.attributes == TpmNvAttributes.WRITTEN | TpmNvAttributes.AUTH_READ | TpmNvAttributes.AUTH_WRITE
    assert public.auth_policy == b"\x01" * 32
    assert public.data_size == 300
    assert public.name == b"\x00\x0b" + hashlib.sha256(public).digest()


@pytest.mark.parametrize("number", [0, 1, 2, 4, 8, 9])
def test_types_of_an_nv_index(number: int) -> None:
    public = TpmNvPublic(nv_public(attributes=number << 4))
    assert public.type is TpmNvType(number)
    assert public.attributes == 0


@pytest.mark.parametrize("number", [3, 5, 6, 7, 10, 15])
def test_unknown_types_of_an_nv_index(number: int) -> None:
    assert reason_of(TpmNvPublic, nv_public(attributes=number << 4)) is Reason.TPM_PARSE


@pytest.mark.parametrize(
    ("attribute", "bit"),
    [
        ("PP_WRITE", 0),
        ("OWNER_WRITE", 1),
        ("AUTH_WRITE", 2),
        ("POLICY_WRITE", 3),
        ("POLICY_DELETE", 10),
        ("WRITE_LOCKED", 11),
        ("WRITE_ALL", 12),
        ("WRITE_DEFINE", 13),
        ("WRITE_ST_CLEAR", 14),
        ("GLOBAL_LOCK", 15),
        ("PP_READ", 16),
        ("OWNER_READ", 17),
        ("AUTH_READ", 18),
        ("POLICY_READ", 19),
        ("NO_DA", 25),
        ("ORDERLY", 26),
        ("CLEAR_ST_CLEAR", 27),
        ("READ_LOCKED", 28),
        ("WRITTEN", 29),
        ("PLATFORM_CREATE", 30),
        ("READ_ST_CLEAR", 31),
    ],
)
def test_nv_attributes(attribute: str, bit: int) -> None:
    assert TpmNvPublic(nv_public(attributes=1 << bit)).attributes is TpmNvAttributes[attribute]


@pytest.mark.parametrize("bit", [8, 9, 20, 21, 22, 23, 24])
def test_reserved_nv_attributes(bit: int) -> None:
    assert reason_of(TpmNvPublic, nv_public(attributes=0x20040004 | 1 << bit)) is Reason.TPM_PARSE


@pytest.mark.parametrize("index", [0x01000000, 0x01FFFFFF])
def test_handles_of_an_nv_index(index: int) -> None:
    assert TpmNvPublic(nv_public(index=index)).handle == index


@pytest.mark.parametrize("index", [0x00FFFFFF, 0x02000000, 0x81000000, 0])
def test_other_handles(index: int) -> None:
    assert reason_of(TpmNvPublic, nv_public(index=index)) is Reason.TPM_PARSE


@pytest.mark.parametrize("members", [{"policy": bytes(31)}, {"name_algorithm": 0x10}])
def test_other_bad_nv_public_areas(members: dict[str, Any]) -> None:
    assert reason_of(TpmNvPublic, nv_public(**members)) is Reason.TPM_PARSE


# Attestations


def test_a_certification() -> None:
    said = TpmAttest(attest(CERTIFY, certify_info(NAME)))
    assert said.type is TpmAttestType.CERTIFY
    assert said.qualified_signer == b"\x00\x0b" + b"\x22" * 32
    assert said.extra_data == NONCE
    assert said.clock == TpmClock(12345, 2, 1, safe=True)
    assert said.firmware_version == 0x0102030405060708
    assert said.attested == TpmCertified(NAME, QUALIFIED_NAME)


def test_a_quote() -> None:
    body = quote_info([selection([0, 8, 23]), selection([], SHA1)], b"\x77" * 32)
    assert TpmAttest(attest(QUOTE, body)).attested == TpmQuoted(
        (TpmPcrSelection(TpmHash.SHA256, frozenset({0, 8, 23})), TpmPcrSelection(TpmHash.SHA1, frozenset())),
        b"\x77" * 32,
    )


def test_a_creation() -> None:
    said = TpmAttest(attest(CREATION, certify_info(NAME, b"\x88" * 32)))
    assert said.type is TpmAttestType.CREATION
    assert said.attested == TpmCreated(NAME, b"\x88" * 32)


def test_a_certification_of_nv_contents() -> None:
    said = TpmAttest(attest(NV, nv_certify_info(NAME, b"contents", 258)))
    assert said.type is TpmAttestType.NV
    assert said.attested == TpmNvCertified(NAME, 258, b"contents")


@pytest.mark.parametrize(("safe", "wanted"), [(0, False), (1, True)])
def test_the_clock_may_be_unsafe(safe: int, wanted: bool) -> None:
    clock = clock_info(2**64 - 1, 2**32 - 1, 2**32 - 2, safe)
    assert TpmAttest(attest(CERTIFY, certify_info(NAME), clock=clock)).clock == TpmClock(
        2**64 - 1, 2**32 - 1, 2**32 - 2, wanted
    )


def test_safe_is_a_truth_value() -> None:
    data = attest(CERTIFY, certify_info(NAME), clock=clock_info(safe=2))
    assert reason_of(TpmAttest, data) is Reason.TPM_PARSE


@pytest.mark.parametrize("magic", [b"\0\0\0\0", b"GCT\xff", b"\xffTCF", b"\xfeTCG"])
def test_the_mark_of_what_a_tpm_made(magic: bytes) -> None:
    assert reason_of(TpmAttest, attest(CERTIFY, certify_info(NAME), magic=magic)) is Reason.TPM_MAGIC


@pytest.mark.parametrize("kind", [0x0000, 0x8015, 0x8016, 0x8019, 0x801C, 0x8021, 0xFFFF])
def test_unknown_types_of_attestation(kind: int) -> None:
    assert reason_of(TpmAttest, attest(kind, certify_info(NAME))) is Reason.TPM_ATTEST_TYPE


def test_magic_and_type_are_judged_before_the_rest() -> None:
    assert attest_type(attest(CERTIFY, b"")) is TpmAttestType.CERTIFY
    assert reason_of(TpmAttest, attest(0x8019, b"", magic=b"\0\0\0\0")) is Reason.TPM_MAGIC
    assert reason_of(TpmAttest, attest(0x8019, b"")) is Reason.TPM_ATTEST_TYPE
    assert reason_of(TpmAttest, b"\xffTCG\x80\x19") is Reason.TPM_ATTEST_TYPE


def test_framing() -> None:
    data = attest(CERTIFY, certify_info(NAME))
    assert reason_of(check_framing, data) is None
    assert reason_of(check_framing, tpm2b(data)) is Reason.TPM_PARSE
    assert reason_of(TpmAttest, tpm2b(data)) is Reason.TPM_PARSE
    assert reason_of(check_framing, bytes(5)) is Reason.TPM_PARSE
    assert reason_of(check_framing, bytes(6)) is None
    assert reason_of(check_framing, b"\x00\x05" + bytes(4)) is None
    assert reason_of(check_framing, b"\x00\x03" + bytes(4)) is None


# PCR selections


def quoted(*selections: bytes, count: int | None = None) -> bytes:
    number = len(selections) if count is None else count
    return attest(QUOTE, number.to_bytes(4, "big") + b"".join(selections) + tpm2b(bytes(32)))


@pytest.mark.parametrize("pcr", range(24))
def test_every_pcr(pcr: int) -> None:
    said = TpmAttest(quoted(selection([pcr]))).attested
    assert isinstance(said, TpmQuoted)
    assert said.selections == (TpmPcrSelection(TpmHash.SHA256, frozenset({pcr})),)


def test_no_more_than_sixteen_selections() -> None:
    assert reason_of(TpmAttest, quoted(*[selection([0])] * 16)) is None
    assert reason_of(TpmAttest, quoted(*[selection([0])] * 17)) is Reason.TPM_PARSE
    assert reason_of(TpmAttest, quoted(selection([0]), count=2**32 - 1)) is Reason.TPM_PARSE


@pytest.mark.parametrize(
    "bad", [selection([0], size=2), selection([0], size=4), selection([], size=0), selection([0], bank=0x0012)]
)
def test_bad_selections(bad: bytes) -> None:
    assert reason_of(TpmAttest, quoted(selection([0]))) is None
    assert reason_of(TpmAttest, quoted(bad)) is Reason.TPM_PARSE


# Creation data and signatures


def test_creation_data() -> None:
    data = TpmCreationData(creation_data(b"why", locality=3, selections=(selection([1, 2], SHA384),)))
    assert data.selections == (TpmPcrSelection(TpmHash.SHA384, frozenset({1, 2})),)
    assert data.pcr_digest == b"\x33" * 32
    assert data.locality == 3
    assert data.parent_name_algorithm == TpmHash.SHA256
    assert data.parent_name == b"\x00\x0b" + b"\x44" * 32
    assert data.parent_qualified_name == b"\x00\x0b" + b"\x55" * 32
    assert data.outside_info == b"why"


def test_an_ecdsa_signature_becomes_der() -> None:
    signature = TpmSignature(scheme(ECDSA, SHA384) + tpm2b(b"\x00\x81") + tpm2b(b"\x02"))
    assert signature.algorithm is TpmAlgorithm.ECDSA
    assert signature.hash is TpmHash.SHA384
    assert signature.value == bytes.fromhex("30070202008102 0102".replace(" ", ""))


@pytest.mark.parametrize("algorithm", [RSASSA, RSAPSS])
def test_an_rsa_signature_stays_as_it_is(algorithm: int) -> None:
    signature = TpmSignature(scheme(algorithm, SHA512) + tpm2b(b"\x03" * 256))
    assert signature.algorithm is TpmAlgorithm(algorithm)
    assert signature.hash is TpmHash.SHA512
    assert signature.value == b"\x03" * 256


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x10",
        scheme(0x1A) + bytes(8),
        scheme(0x0005) + bytes(40),
        scheme(ECDSA, 0x10) + bytes(8),
        scheme(RSASSA, 0x27) + bytes(8),
    ],
)
def test_other_signature_algorithms(data: bytes) -> None:
    assert reason_of(TpmSignature, data) is Reason.TPM_SIGNATURE_ALGORITHM


def test_malformed_is_malformed() -> None:
    with pytest.raises(MalformedError) as caught:
        TpmPublic(b"")
    assert caught.value.fix
    with pytest.raises(MalformedError):
        TpmPublic(ecc_public(bytes(32), bytes(32)))
    with pytest.raises(MalformedError):
        TpmSignature(b"\x00\x10")


def test_a_coordinate_has_at_least_one_byte():
    """The point with x = 0 lies on P-256: without x it would be taken for it."""
    p, b = 2**256 - 2**224 + 2**192 + 2**96 - 1, 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    y = pow(b, (p + 1) // 4, p).to_bytes(32, "big")

    def public(x: bytes) -> bytes:
        head = bytes.fromhex("0023 000b 00050072 0000 0010 0018 000b 0003 0010")
        return head + len(x).to_bytes(2, "big") + x + len(y).to_bytes(2, "big") + y

    assert TpmPublic(public(b"\0")) == public(b"\0")  # the control: leading zeros may be left out
    with pytest.raises(MalformedError) as caught:
        TpmPublic(public(b""))
    assert caught.value.reason is Reason.TPM_PUBLIC_KEY


@pytest.mark.parametrize(
    ("structure", "data", "name"),
    [
        (TpmPublic, b"\x00\x01", "TPMT_PUBLIC"),
        (TpmNvPublic, b"\x01\x00\x00\x00", "TPMS_NV_PUBLIC"),
        (TpmAttest, b"\xff", "TPMS_ATTEST"),
        (TpmAttest, b"\xffTCG\x80\x17\x00", "TPMS_ATTEST"),
        (TpmCreationData, b"\x00", "TPMS_CREATION_DATA"),
        (TpmSignature, b"\x00\x18", "TPMT_SIGNATURE"),
        (unwrap_tpm2b, b"\x00\x01", "TPM2B"),
    ],
)
def test_an_error_names_the_structure(structure: Callable[[bytes], object], data: bytes, name: str) -> None:
    with pytest.raises(MalformedError) as caught:
        structure(data)
    assert f" {name} " in caught.value.message
