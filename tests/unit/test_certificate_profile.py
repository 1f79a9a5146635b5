"""What certificates say of themselves: extensions, keys, signature algorithms, and what cannot be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from keyvouch.attestation.certificate_profile import PathRule
from keyvouch.attestation.certificates import (
    find_path,
    key_identifier,
    parse_certificate,
)
from keyvouch.errors import EvidenceError, MalformedError, Reason
from support.certificate_forge import (
    INSTANT,
    Issued,
    element,
    elements,
    inside,
    intermediate,
    leaf,
    named,
    resign,
    root,
    rsa_key,
)
from support.certificate_paths import LEAF, MIDDLE, TOP, broken_rule, validate
from support.roca_keys import weak_modulus

AK = x509.ObjectIdentifier("2.23.133.8.3")
EK = x509.ObjectIdentifier("2.23.133.8.1")
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


def eku(*purposes: x509.ObjectIdentifier, critical: bool = False) -> list[tuple[x509.ExtensionType, bool]]:
    return [(x509.ExtendedKeyUsage(purposes), critical)]


# Extensions

CONSTRAINED = x509.NameConstraints([x509.DNSName("example")], None)
POLICIES = x509.CertificatePolicies([x509.PolicyInformation(EK, None)])
EXTENSIONS: dict[str, tuple[x509.ExtensionType, bool, PathRule | None]] = {
    "unknown": (UNKNOWN, False, None),
    "unknown critical": (UNKNOWN, True, PathRule.CRITICAL_EXTENSION),
    "critical key identifier": (x509.SubjectKeyIdentifier(b"1"), True, PathRule.CRITICAL_EXTENSION),
    "critical CRL number": (x509.CRLNumber(1), True, PathRule.CRITICAL_EXTENSION),
    "critical OCSP": (x509.OCSPNoCheck(), True, PathRule.CRITICAL_EXTENSION),
    "policies": (POLICIES, True, None),
    "alternative name": (x509.SubjectAlternativeName([x509.DirectoryName(named("x"))]), True, None),
    "name constraints": (CONSTRAINED, False, PathRule.NAME_CONSTRAINTS),
    "critical name constraints": (CONSTRAINED, True, PathRule.NAME_CONSTRAINTS),
    "explicit policy": (x509.PolicyConstraints(0, None), True, PathRule.EXPLICIT_POLICY),
    "explicit policy later": (x509.PolicyConstraints(5, 1), False, PathRule.EXPLICIT_POLICY),
    "no policy mapping": (x509.PolicyConstraints(None, 0), True, None),
    "no any-policy": (x509.InhibitAnyPolicy(0), True, None),
    "critical purposes": (x509.ExtendedKeyUsage([AK]), True, None),
}


@pytest.mark.parametrize("who", ["leaf", "intermediate"])
@pytest.mark.parametrize("case", EXTENSIONS)
def test_extensions_of_every_certificate(case: str, who: str) -> None:
    extension, critical, rule = EXTENSIONS[case]
    changes = {"extensions": [(extension, critical)]}
    middle = intermediate(TOP, **(changes if who == "intermediate" else {}))
    end = leaf(middle, **(changes if who == "leaf" else {}))
    if rule is None:
        assert validate(end, middle)
    else:
        assert broken_rule(validate, end, middle) is rule


ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
PURPOSES: dict[str, tuple[list[x509.ObjectIdentifier], list[x509.ObjectIdentifier], bool]] = {
    "neither": ([], [], True),
    "only the leaf": ([AK], [], True),
    "only the CA": ([], [AK], True),
    "the same": ([AK], [AK], True),
    "one of several": ([AK], [EK, AK], True),
    "any for the CA": ([AK], [ANY], True),
    "another": ([AK], [EK], False),
    "one too many": ([AK, EK], [AK], False),
    "any for the leaf": ([ANY], [AK], False),
}


@pytest.mark.parametrize("who", ["intermediate", "anchor"])
@pytest.mark.parametrize("case", PURPOSES)
def test_a_ca_vouches_for_its_purposes(case: str, who: str) -> None:
    of_leaf, of_ca, is_good = PURPOSES[case]
    purposes = {"extensions": eku(*of_ca) if of_ca else []}
    top = root(**(purposes if who == "anchor" else {}))
    middle = intermediate(top, **(purposes if who == "intermediate" else {}))
    end = leaf(middle, extensions=eku(*of_leaf) if of_leaf else [])
    if is_good:
        assert validate(end, middle, anchors=[top])
    else:
        assert broken_rule(validate, end, middle, anchors=[top]) is PathRule.EXTENDED_KEY_USAGE


# Keys and signature algorithms


def ec_key(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve)


KEYS: dict[str, tuple[Callable[[], object], PathRule | None]] = {
    "P-256": (lambda: ec_key(ec.SECP256R1()), None),
    "P-384": (lambda: ec_key(ec.SECP384R1()), None),
    "P-521": (lambda: ec_key(ec.SECP521R1()), None),
    "Ed25519": (ed25519.Ed25519PrivateKey.generate, None),
    "Ed448": (ed448.Ed448PrivateKey.generate, None),
    "RSA-2048": (lambda: rsa_key(2048), None),
    "RSA-2040": (lambda: rsa_key(2040), PathRule.WEAK_KEY),
    "RSA-1024": (lambda: rsa_key(1024), PathRule.WEAK_KEY),
    "P-224": (lambda: ec_key(ec.SECP224R1()), PathRule.WEAK_KEY),
    "secp256k1": (lambda: ec_key(ec.SECP256K1()), PathRule.WEAK_KEY),
}


@pytest.mark.parametrize("who", ["leaf", "intermediate", "anchor"])
@pytest.mark.parametrize("case", KEYS)
def test_keys_of_every_certificate(case: str, who: str) -> None:
    make, rule = KEYS[case]
    changes = {"key": make()}
    top = root(**(changes if who == "anchor" else {}))
    middle = intermediate(top, **(changes if who == "intermediate" else {}))
    end = leaf(middle, **(changes if who == "leaf" else {}))
    if rule is None:
        assert validate(end, middle, anchors=[top])
    else:
        assert broken_rule(validate, end, middle, anchors=[top]) is rule


def test_a_key_that_cannot_sign() -> None:
    end = leaf(MIDDLE, public_key=x25519.X25519PrivateKey.generate().public_key())
    assert broken_rule(validate, end, MIDDLE) is PathRule.WEAK_KEY


@pytest.mark.parametrize("who", ["leaf", "intermediate", "anchor", "included anchor"])
def test_a_key_with_the_roca_weakness_W13(who: str) -> None:
    weak = {"public_key": rsa.RSAPublicNumbers(65537, weak_modulus()).public_key()}
    top = root(**(weak if "anchor" in who else {}))
    middle = intermediate(top, **(weak if who == "intermediate" else {}))
    end = leaf(middle, **(weak if who == "leaf" else {}))
    with pytest.raises(EvidenceError) as caught:
        validate(end, middle, *([top] if "included" in who else []), anchors=[top])
    assert caught.value.reason is Reason.WEAK_KEY_ROCA


NO_ALGORITHM = bytes.fromhex("300506032a0304")
TOP_NAME = TOP.certificate.subject.public_bytes()
ECDSA_SHA1 = bytes.fromhex("300906072a8648ce3d0401")
HASHES: dict[str, tuple[Callable[[], Issued], PathRule | None]] = {
    "ECDSA SHA-256": (lambda: leaf(TOP), None),
    "ECDSA SHA-384": (lambda: leaf(TOP, hash=hashes.SHA384()), None),
    "ECDSA SHA-512": (lambda: leaf(TOP, hash=hashes.SHA512()), None),
    "ECDSA SHA-224": (lambda: leaf(TOP, hash=hashes.SHA224()), PathRule.SIGNATURE_ALGORITHM),
    "ECDSA SHA3-256": (lambda: leaf(TOP, hash=hashes.SHA3_256()), PathRule.SIGNATURE_ALGORITHM),
    "ECDSA SHA-1": (
        lambda: resign(LEAF, TOP, lambda f: [*f[:2], ECDSA_SHA1, TOP_NAME, *f[4:]], algorithm=ECDSA_SHA1),
        PathRule.SIGNATURE_ALGORITHM,
    ),
    "unknown": (
        lambda: resign(LEAF, TOP, lambda f: [*f[:2], NO_ALGORITHM, TOP_NAME, *f[4:]], algorithm=NO_ALGORITHM),
        PathRule.SIGNATURE_ALGORITHM,
    ),
}


@pytest.mark.parametrize("case", HASHES)
def test_signature_algorithms_of_the_last_certificate(case: str) -> None:
    make, rule = HASHES[case]
    if rule is None:
        assert validate(make())
    else:
        assert broken_rule(validate, make()) is rule


def test_signature_algorithms_within_the_list() -> None:
    assert validate(leaf(MIDDLE, hash=hashes.SHA384()), MIDDLE)
    weak = leaf(MIDDLE, hash=hashes.SHA224())
    assert broken_rule(validate, weak, MIDDLE) is PathRule.SIGNATURE_ALGORITHM


def test_the_hash_of_an_anchors_own_signature_does_not_matter() -> None:
    weak = root(hash=hashes.SHA224())
    assert validate(leaf(weak), anchors=[weak])
    assert validate(leaf(weak), weak, anchors=[weak])


def test_rsa_with_pss() -> None:
    top = root(key=rsa_key(2048))

    def signed(digest: hashes.HashAlgorithm) -> Issued:
        return leaf(top, hash=digest, padding=padding.PSS(padding.MGF1(digest), padding.PSS.DIGEST_LENGTH))

    assert validate(signed(hashes.SHA256()), anchors=[top])
    assert broken_rule(validate, signed(hashes.SHA224()), anchors=[top]) is PathRule.SIGNATURE_ALGORITHM


# Certificates that are made to break the reader


def twice(fields: list[bytes]) -> list[bytes]:
    present = elements(inside(inside(fields[7])))
    return [*fields[:7], element(0xA3, element(0x30, *present, present[0]))]


def with_garbage(fields: list[bytes]) -> list[bytes]:
    garbage = element(0x30, bytes.fromhex("0603551d0f"), element(0x04, b"\xff\xff"))
    return [*fields[:7], element(0xA3, element(0x30, garbage))]


def with_x400_address(fields: list[bytes]) -> list[bytes]:
    names = element(0x30, element(0xA3, b"\x30\x00"))
    extension = element(0x30, bytes.fromhex("0603551d11"), element(0x04, names))
    return [*fields[:7], element(0xA3, element(0x30, extension))]


def with_name(fields: list[bytes]) -> list[bytes]:
    not_utf8 = element(0x30, bytes.fromhex("0603550403"), element(0x0C, b"\xff"))
    return [*fields[:5], element(0x30, element(0x31, not_utf8)), *fields[6:]]


def with_issuer(fields: list[bytes]) -> list[bytes]:
    return [*fields[:3], with_name(fields)[5], *fields[4:]]


def with_unknown_key(fields: list[bytes]) -> list[bytes]:
    return [*fields[:6], element(0x30, NO_ALGORITHM, b"\x03\x02\x00\x01"), *fields[7:]]


def with_point_off_the_curve(fields: list[bytes]) -> list[bytes]:
    algorithm, _ = elements(inside(fields[6]))
    return [*fields[:6], element(0x30, algorithm, element(0x03, b"\x00\x04", bytes(64))), *fields[7:]]


HOSTILE = [twice, with_garbage, with_x400_address, with_name, with_unknown_key, with_point_off_the_curve]


@pytest.mark.parametrize("change", HOSTILE)
def test_hostile_certificates_are_refused(change: Callable[[list[bytes]], list[bytes]]) -> None:
    end, middle, top = resign(LEAF, MIDDLE, change), resign(MIDDLE, TOP, change), resign(TOP, TOP, change)
    rule = PathRule.WEAK_KEY if change is with_unknown_key else PathRule.UNREADABLE
    assert broken_rule(validate, end, MIDDLE) is rule
    nameless = change is with_name  # nobody looks at a name that is not the one to be found
    assert broken_rule(validate, LEAF, middle) is (PathRule.ISSUER_NAME if nameless else rule)
    assert broken_rule(validate, end, anchors=[end]) is rule
    assert broken_rule(find_path, end.certificate, [], anchors=[TOP.anchor], instant=INSTANT) is rule
    assert len(key_identifier(end.certificate)) == 20
    pool = [middle.certificate, MIDDLE.certificate]
    assert find_path(LEAF.certificate, pool, anchors=[TOP.anchor], instant=INSTANT)
    assert validate(LEAF, MIDDLE, anchors=[top, TOP]).anchor.certificate == TOP.certificate


def test_an_issuer_that_cannot_be_read_is_nobody() -> None:
    end, middle = resign(LEAF, MIDDLE, with_issuer), resign(MIDDLE, TOP, with_issuer)
    assert broken_rule(validate, end, MIDDLE) is PathRule.ISSUER_NAME
    assert broken_rule(validate, LEAF, middle) is PathRule.ANCHOR
    assert broken_rule(validate, LEAF, middle, TOP) is PathRule.ISSUER_NAME
    limited = root("Limited", path_length=0)
    below = intermediate(limited)
    nobodys = resign(below, limited, with_issuer)
    assert broken_rule(validate, leaf(below), nobodys, limited, anchors=[limited]) is PathRule.UNREADABLE


@pytest.mark.parametrize("change", HOSTILE)
def test_hostile_anchors_vouch_for_nothing(change: Callable[[list[bytes]], list[bytes]]) -> None:
    top = resign(TOP, TOP, change)
    nameless = change is with_name
    rule = broken_rule(validate, LEAF, MIDDLE, anchors=[top])
    readable = PathRule.WEAK_KEY if change is with_unknown_key else PathRule.UNREADABLE
    assert rule is (PathRule.ANCHOR if nameless else readable)


def with_diffie_hellman_key(fields: list[bytes]) -> list[bytes]:
    """Loading this one key takes seconds: its modulus is a prime, so that every test for primes is done to its end."""
    prime = ((1 << 4423) - 1).to_bytes(553, "big")
    parameters = element(0x30, element(0x02, prime), b"\x02\x01\x02")
    algorithm = element(0x30, bytes.fromhex("06092a864886f70d010301"), parameters)
    return [*fields[:6], element(0x30, algorithm, element(0x03, b"\x00\x02\x01\x02")), *fields[7:]]


def test_keys_of_other_kinds_are_not_even_loaded() -> None:
    end, top = resign(LEAF, MIDDLE, with_diffie_hellman_key), resign(TOP, TOP, with_diffie_hellman_key)
    assert broken_rule(validate, end, MIDDLE) is PathRule.WEAK_KEY
    assert broken_rule(validate, end, anchors=[]) is PathRule.WEAK_KEY
    assert broken_rule(validate, LEAF, MIDDLE, anchors=[top]) is PathRule.WEAK_KEY


@pytest.mark.parametrize(("bits", "is_good"), [(2040, False), (2048, True), (8192, True), (8193, False)])
def test_the_length_of_an_rsa_key(bits: int, is_good: bool) -> None:
    numbers = rsa.RSAPublicNumbers(65537, (1 << bits - 1) + 0x1DF)  # nobody has the key; nobody needs it of a leaf
    end = leaf(MIDDLE, public_key=numbers.public_key())
    if is_good:
        assert validate(end, MIDDLE)
    else:
        assert broken_rule(validate, end, MIDDLE) is PathRule.WEAK_KEY


@pytest.mark.parametrize("place", [0, 1])
def test_a_date_in_the_year_0_is_unreadable(place: int) -> None:
    def without_a_year(fields: list[bytes]) -> list[bytes]:
        dates = elements(inside(fields[4]))
        dates[place] = element(0x18, b"00000101000000Z")
        return [*fields[:4], element(0x30, *dates), *fields[5:]]

    assert broken_rule(validate, resign(LEAF, MIDDLE, without_a_year), MIDDLE) is PathRule.UNREADABLE
    assert broken_rule(validate, LEAF, resign(MIDDLE, TOP, without_a_year)) is PathRule.UNREADABLE


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("serial", ["020180", "020100", "0215" + "7f" * 21])
def test_serial_numbers_play_no_part_in_a_path(serial: str) -> None:
    assert validate(resign(LEAF, MIDDLE, lambda fields: [fields[0], bytes.fromhex(serial), *fields[2:]]), MIDDLE)


# Parsing


def test_parsing_is_strict() -> None:
    assert parse_certificate(LEAF.der) == LEAF.certificate
    for bad in (b"", LEAF.der[:-1], LEAF.der + b"\x00", b"\x30\x00", LEAF.der * 2, b"garbage"):
        with pytest.raises(MalformedError) as caught:
            parse_certificate(bad)
        assert caught.value.reason is Reason.ATTESTATION_STATEMENT


@pytest.mark.filterwarnings("ignore:Parsed a serial number", "ignore:The parsed certificate")
@pytest.mark.parametrize(("serial", "is_sound"), [("020101", True), ("020100", False), ("0201ff", False)])
def test_a_serial_number_is_positive(serial: str, is_sound: bool) -> None:
    """Whether the library warns of it, as now, or refuses it, as it will."""
    made = resign(LEAF, MIDDLE, lambda fields: [fields[0], bytes.fromhex(serial), *fields[2:]])
    if is_sound:
        assert parse_certificate(made.der)
        return
    with pytest.raises(MalformedError):
        parse_certificate(made.der)


def test_a_signature_is_made_of_whole_bytes() -> None:
    """A count of unused bits is outside of what is signed: it would give one certificate several encodings."""
    even = next(end for end in iter(lambda: leaf(MIDDLE), None) if end.certificate.signature[-1] % 2 == 0)
    at = -len(even.certificate.signature) - 1
    assert parse_certificate(even.der)
    with pytest.raises(MalformedError) as caught:
        parse_certificate(even.der[:at] + b"\x01" + even.der[at + 1 :])
    assert caught.value.reason is Reason.ATTESTATION_STATEMENT


def test_pem_is_not_der() -> None:
    with pytest.raises(MalformedError):
        parse_certificate(LEAF.certificate.public_bytes(Encoding.PEM))


def test_a_version_that_does_not_exist() -> None:
    bad = LEAF.der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020105"), 1)
    with pytest.raises(MalformedError):
        parse_certificate(bad)


def test_key_identifiers() -> None:
    point = LEAF.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    expected = hashlib.sha1(point, usedforsecurity=False).digest()
    assert key_identifier(LEAF.certificate) == expected
    assert key_identifier(resign(LEAF, MIDDLE, lambda fields: fields[1:7]).certificate) == expected
    rsa_leaf = leaf(MIDDLE, key=rsa_key(2048))
    stated = x509.SubjectKeyIdentifier.from_public_key(rsa_key(2048).public_key())
    assert key_identifier(rsa_leaf.certificate) == stated.digest


def test_rules_are_called_by_names_that_stay() -> None:
    """They travel in the metadata of errors, and logs are searched for them."""
    assert [rule.value for rule in PathRule] == [
        "length",
        "doubled",
        "unreadable",
        "critical_extension",
        "name_constraints",
        "explicit_policy",
        "weak_key",
        "validity",
        "not_a_ca",
        "key_usage",
        "path_length",
        "extended_key_usage",
        "signature_algorithm",
        "issuer_name",
        "signature",
        "anchor",
    ]
