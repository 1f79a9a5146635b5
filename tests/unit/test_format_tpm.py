"""The tpm format: every check from both sides (WebAuthn Level 3 sections 8.3 and 8.3.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation import AttestationEvidence, TrustStore, assurance_of, verify_registration
from keyvouch.attestation.evidence import TpmFacts
from keyvouch.cose import Algorithm
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason
from keyvouch.webauthn import AttestationObject
from support.attestation_forge import (
    AAGUID_OID,
    CA,
    END,
    NOT_CA,
    ROOT,
    TRUST,
    Extensions,
    aaguid_extension,
    anchor,
    encoded,
    key_for,
    name,
    registration,
    unrecognized,
    verdict,
)
from support.forge import Forge, sign
from support.roca_keys import weak_modulus
from support.tpm_forge import (
    CERTIFY,
    LOGIN_ATTRIBUTES,
    QUOTE,
    attest,
    certify_info,
    public_area,
    quote_info,
    rsa_public,
    tpm2b,
)

FORGE = Forge()
AIK = key_for(Algorithm.ES256, "aik")
FACTS = TpmFacts("Intel", "Forged", "id:00020000")
EK_USAGE, AIK_USAGE = x509.ObjectIdentifier("2.23.133.8.1"), x509.ObjectIdentifier("2.23.133.8.3")
USAGE = x509.ExtendedKeyUsage([AIK_USAGE])
ATTRIBUTES = {"1": "id:494E5443", "2": "Forged", "3": "id:00020000"}


def tcg(number: str, value: str) -> x509.NameAttribute:
    return x509.NameAttribute(x509.ObjectIdentifier(f"2.23.133.2.{number}"), value)


def directory(*attributes: x509.NameAttribute) -> x509.DirectoryName:
    return x509.DirectoryName(x509.Name(list(attributes)))


def tpm_name(**changes: str | None) -> x509.SubjectAlternativeName:
    """The alternative name of a TPM; a change to None drops an attribute."""
    values = ATTRIBUTES | {number.removeprefix("_"): value for number, value in changes.items()}
    return x509.SubjectAlternativeName([directory(*(tcg(number, value) for number, value in values.items() if value))])


EXTENSIONS: tuple[tuple[x509.ExtensionType, bool], ...] = (
    (NOT_CA, True),
    (USAGE, False),
    (tpm_name(), True),
    (aaguid_extension(), False),
)


def leaf(extensions: Extensions = EXTENSIONS, *, key: Any = AIK, subject: x509.Name | None = None) -> x509.Certificate:
    return ROOT.issue(key, extensions, name() if subject is None else subject)


def replaced(value: x509.ExtensionType, *, critical: bool = False) -> x509.Certificate:
    """A leaf with another extension of this kind."""
    return leaf([*(pair for pair in EXTENSIONS if type(pair[0]) is not type(value)), (value, critical)])


def without(kind: type[x509.ExtensionType]) -> x509.Certificate:
    return leaf([pair for pair in EXTENSIONS if type(pair[0]) is not kind])


LEAF = leaf()


def tpm(
    *chain: x509.Certificate | bytes,
    forge: Forge = FORGE,
    public: bytes | None = None,
    certify: Callable[[bytes, bytes], bytes] | None = None,
    key: Any = AIK,
    algorithm: Algorithm = Algorithm.ES256,
    digest: str = "sha256",
    arguments: dict[str, Any] | None = None,
    **members: object,
) -> dict[str, Any]:
    """A registration. `certify` makes certInfo of name and nonce; `members` replace those of the statement."""
    area = public_area(forge.private_key) if public is None else public  # type: ignore[arg-type]
    name_of_key = b"\x00\x0b" + hashlib.sha256(area).digest()
    make = certify or (lambda subject, nonce: attest(CERTIFY, certify_info(subject), nonce=nonce))

    def statement(data: bytes, client_data_hash: bytes) -> dict[str, object]:
        info = make(name_of_key, hashlib.new(digest, data + client_data_hash).digest())
        good: dict[str, object] = {
            "ver": "2.0",
            "alg": int(algorithm),
            "x5c": encoded(chain or (LEAF,)),
            "sig": sign(key, algorithm, info),
            "certInfo": info,
            "pubArea": area,
        }
        return {member: value for member, value in (good | members).items() if value is not None}

    return registration(forge, "tpm", statement, **arguments or {})


def error_of(arguments: dict[str, Any]) -> KeyvouchError:
    with pytest.raises(KeyvouchError) as caught:
        verify_registration(**arguments)
    return caught.value


def check_of(arguments: dict[str, Any]) -> str:
    """The finer reason of a refusal with `TPM`."""
    error = error_of(arguments)
    assert error.reason is Reason.TPM
    assert error.fix
    return error.metadata["check"]


# What a good statement proves


def test_a_good_statement() -> None:
    evidence = verify_registration(**tpm())
    wanted = AttestationEvidence(
        "tpm",
        Provenance.ATTESTED,
        "forge",
        Protection.TPM,
        Verification.SOFTWARE_GATED,
        (LEAF,),
        FACTS,
    )
    assert evidence.attestation == wanted
    assert assurance_of(evidence) == Assurance(
        Protection.TPM, Verification.SOFTWARE_GATED, Provenance.ATTESTED, "forge"
    )


def test_the_anchor_does_not_say_what_a_tpm_is_worth() -> None:
    store = TrustStore([anchor(protection=Protection.SMARTCARD, verification=Verification.HARDWARE_GATED)])
    attestation = verify_registration(**tpm(arguments={"anchors": store})).attestation
    assert attestation.protection is Protection.TPM
    assert attestation.verification is Verification.SOFTWARE_GATED


def test_a_chain_with_an_intermediate() -> None:
    authority = ROOT.subordinate()
    certificate = authority.issue(AIK, EXTENSIONS, name())
    attestation = verify_registration(**tpm(certificate, authority.certificate)).attestation
    assert attestation.path == (certificate, authority.certificate)


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        (Algorithm.ES256, "sha256"),
        (Algorithm.ES384, "sha384"),
        (Algorithm.ES512, "sha512"),
        (Algorithm.RS256, "sha256"),
        (Algorithm.PS256, "sha256"),
    ],
)
def test_algorithms_of_the_attestation_key(algorithm: Algorithm, digest: str) -> None:
    key = key_for(algorithm, "aik")
    assert verdict(tpm(leaf(key=key), key=key, algorithm=algorithm, digest=digest)) is None
    other = "sha512" if digest == "sha256" else "sha256"
    assert check_of(tpm(leaf(key=key), key=key, algorithm=algorithm, digest=other)) == "tpm_nonce"


@pytest.mark.parametrize("algorithm", [Algorithm.ES384, Algorithm.ES512, Algorithm.RS256])
def test_algorithms_of_the_credential(algorithm: Algorithm) -> None:
    assert verdict(tpm(forge=Forge(algorithm))) is None


def test_keys_of_windows_hello() -> None:
    """RSA keys that may decrypt too, without dictionary attack protection, and with the policy of the platform."""
    policy = bytes.fromhex("9dffcbf36c383ae699fb9868dc6dcb89d7153884be2803922c124158bfad22ae")
    forge = Forge(Algorithm.RS256)
    area = public_area(forge.private_key, attributes=0x00060472, policy=policy)  # type: ignore[arg-type]
    together = x509.RelativeDistinguishedName([tcg("2", "NPCT75x"), tcg("1", "id:4E544300"), tcg("3", "id:00070002")])
    names = x509.SubjectAlternativeName([x509.DirectoryName(x509.Name([together]))])
    evidence = verify_registration(**tpm(replaced(names, critical=True), forge=forge, public=area))
    assert evidence.attestation.facts == TpmFacts("Nuvoton Technology", "NPCT75x", "id:00070002")


# The statement

STATEMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "no ver": lambda: tpm(ver=None),
    "ver 1.2": lambda: tpm(ver="1.2"),
    "ver in bytes": lambda: tpm(ver=b"2.0"),
    "ver a number": lambda: tpm(ver=2),
    "no alg": lambda: tpm(alg=None),
    "alg RS1": lambda: tpm(alg=-65535),
    "alg EdDSA": lambda: tpm(alg=-8),
    "alg Ed448": lambda: tpm(alg=int(Algorithm.ED448)),
    "alg of another key": lambda: tpm(alg=-257),
    "alg of another scheme": lambda: tpm(
        leaf(key=key_for(Algorithm.RS256)), key=key_for(Algorithm.RS256), algorithm=Algorithm.RS256, alg=-37
    ),
    "no sig": lambda: tpm(sig=None),
    "sig empty": lambda: tpm(sig=b""),
    "sig text": lambda: tpm(sig="sig"),
    "sig of another key": lambda: tpm(key=key_for(Algorithm.ES256, "stranger")),
    "no x5c": lambda: tpm(x5c=None),
    "x5c empty": lambda: tpm(x5c=[]),
    "x5c no certificate": lambda: tpm(b"certificate"),
    "no certInfo": lambda: tpm(certInfo=None),
    "certInfo empty": lambda: tpm(certInfo=b""),
    "certInfo text": lambda: tpm(certInfo="info"),
    "no pubArea": lambda: tpm(pubArea=None),
    "pubArea empty": lambda: tpm(pubArea=b""),
    "pubArea text": lambda: tpm(pubArea="area"),
    "one member more": lambda: tpm(ecdaaKeyId=b""),
}


@pytest.mark.parametrize("case", list(STATEMENTS))
def test_bad_statements(case: str) -> None:
    assert verdict(STATEMENTS[case]()) is Reason.ATTESTATION_STATEMENT


def test_a_signature_over_something_else() -> None:
    assert verdict(tpm(sig=sign(AIK, Algorithm.ES256, b"something else"))) is Reason.ATTESTATION_STATEMENT


# Structures and what binds them


@pytest.mark.parametrize(
    ("case", "check"),
    [
        ("cut off", "tpm_parse"),
        ("one byte more", "tpm_parse"),
        ("of another key", "tpm_public_key"),
        ("of another curve", "tpm_public_key"),
        ("of no key", "tpm_public_key"),
        ("weak", "weak_key_roca"),
    ],
)
def test_bad_public_areas(case: str, check: str) -> None:
    area = public_area(FORGE.private_key)  # type: ignore[arg-type]
    areas = {
        "cut off": area[:-1],
        "one byte more": area + b"\0",
        "of another key": public_area(Forge().private_key),  # type: ignore[arg-type]
        "of another curve": public_area(Forge(Algorithm.ES384).private_key),  # type: ignore[arg-type]
        "of no key": b"\x00\x08" + area[2:],
        "weak": rsa_public(weak_modulus().to_bytes(256, "big")),
    }
    assert verdict(tpm(public=area)) is None
    assert check_of(tpm(public=areas[case])) == check


CERTIFICATIONS: dict[str, tuple[Callable[[bytes, bytes], bytes], str]] = {
    "magic": (
        lambda subject, nonce: attest(CERTIFY, certify_info(subject), nonce=nonce, magic=b"GCT\xff"),
        "tpm_magic",
    ),
    "a quote": (lambda _, nonce: attest(QUOTE, quote_info([], b""), nonce=nonce), "tpm_attest_type"),
    "of the time": (lambda subject, nonce: attest(0x8019, certify_info(subject), nonce=nonce), "tpm_attest_type"),
    "cut off": (lambda subject, nonce: attest(CERTIFY, certify_info(subject), nonce=nonce)[:-1], "tpm_parse"),
    "one byte more": (lambda subject, nonce: attest(CERTIFY, certify_info(subject), nonce=nonce) + b"\0", "tpm_parse"),
    "in a TPM2B": (lambda subject, nonce: tpm2b(attest(CERTIFY, certify_info(subject), nonce=nonce)), "tpm_parse"),
    "no nonce": (lambda subject, _: attest(CERTIFY, certify_info(subject), nonce=b""), "tpm_nonce"),
    "half a nonce": (lambda subject, nonce: attest(CERTIFY, certify_info(subject), nonce=nonce[:16]), "tpm_nonce"),
    "another nonce": (lambda subject, _: attest(CERTIFY, certify_info(subject)), "tpm_nonce"),
    "no name": (lambda _, nonce: attest(CERTIFY, certify_info(b""), nonce=nonce), "tpm_name"),
    "half a name": (lambda subject, nonce: attest(CERTIFY, certify_info(subject[:-1]), nonce=nonce), "tpm_name"),
    "another name": (
        lambda subject, nonce: attest(CERTIFY, certify_info(subject[:-1] + bytes([subject[-1] ^ 1])), nonce=nonce),
        "tpm_name",
    ),
}


@pytest.mark.parametrize("case", list(CERTIFICATIONS))
def test_bad_certifications(case: str) -> None:
    certify, check = CERTIFICATIONS[case]
    assert check_of(tpm(certify=certify)) == check


def test_the_kind_of_an_error_is_kept() -> None:
    assert isinstance(error_of(tpm(certify=CERTIFICATIONS["cut off"][0])), MalformedError)
    assert isinstance(error_of(tpm(certify=CERTIFICATIONS["a quote"][0])), EvidenceError)
    assert isinstance(error_of(tpm(certify=CERTIFICATIONS["no name"][0])), EvidenceError)


@pytest.mark.parametrize("bit", [1, 4, 5, 11, 16, 18])
def test_attributes_of_the_credential_key(bit: int) -> None:
    area = public_area(FORGE.private_key, attributes=LOGIN_ATTRIBUTES ^ 1 << bit)  # type: ignore[arg-type]
    assert verdict(tpm(public=area)) is Reason.TPM_KEY_ATTRIBUTES


def test_attributes_are_judged_after_the_name_and_before_the_path() -> None:
    area = public_area(FORGE.private_key, attributes=0x00020072)  # type: ignore[arg-type]
    assert check_of(tpm(public=area, certify=CERTIFICATIONS["no name"][0])) == "tpm_name"
    assert verdict(tpm(public=area, arguments={"anchors": TrustStore()})) is Reason.TPM_KEY_ATTRIBUTES


# The path and the certificate


def test_a_path_to_nowhere() -> None:
    assert verdict(tpm(arguments={"anchors": TrustStore()})) is Reason.TRUST_CHAIN
    assert (
        verdict(tpm(arguments={"anchors": TrustStore([anchor(formats=frozenset({"packed"}))])})) is Reason.TRUST_CHAIN
    )
    assert verdict(tpm(arguments={"anchors": TRUST, "instant": END + timedelta(seconds=1)})) is Reason.TRUST_CHAIN


def test_the_path_is_judged_before_the_certificate() -> None:
    bad = leaf([(CA, True)])
    assert verdict(tpm(bad, arguments={"anchors": TrustStore()})) is Reason.TRUST_CHAIN
    assert verdict(tpm(bad)) is Reason.ATTESTATION_CERTIFICATE


NAMES = x509.SubjectAlternativeName
LEAVES: dict[str, Callable[[], x509.Certificate]] = {
    "an authority": lambda: replaced(CA, critical=True),
    "no basic constraints": lambda: without(x509.BasicConstraints),
    "with a subject": lambda: leaf(subject=name((NameOID.COMMON_NAME, "TPM"))),
    "no usage": lambda: without(x509.ExtendedKeyUsage),
    "usage of an endorsement key": lambda: replaced(x509.ExtendedKeyUsage([EK_USAGE])),
    "usage of a client": lambda: replaced(x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")])),
    "no alternative name": lambda: without(x509.SubjectAlternativeName),
    "a host": lambda: replaced(NAMES([x509.DNSName("tpm.example")])),
    "no maker": lambda: replaced(tpm_name(_1=None)),
    "no model": lambda: replaced(tpm_name(_2=None)),
    "no version": lambda: replaced(tpm_name(_3=None)),
    "an unknown maker": lambda: replaced(tpm_name(_1="id:00000000")),
    "the maker of the conformance tools": lambda: replaced(tpm_name(_1="id:FFFFF1D0")),
    "two makers": lambda: replaced(
        NAMES([directory(*(tcg(n, v) for n, v in ATTRIBUTES.items()), tcg("1", "id:414D4400"))])
    ),
    "two makers and no model": lambda: replaced(
        NAMES([directory(tcg("1", ATTRIBUTES["1"]), tcg("1", "id:414D4400"), tcg("3", ATTRIBUTES["3"]))])
    ),
    "two names": lambda: replaced(NAMES([*tpm_name(), *tpm_name()])),
    "another model of authenticator": lambda: leaf([*EXTENSIONS[:3], (aaguid_extension(bytes(16)), False)]),
    "a malformed model": lambda: leaf([*EXTENSIONS[:3], (unrecognized(AAGUID_OID, b"\x04\x11" + bytes(16)), False)]),
}


@pytest.mark.parametrize("case", list(LEAVES))
def test_bad_certificates(case: str) -> None:
    assert verdict(tpm(LEAVES[case]())) is Reason.ATTESTATION_CERTIFICATE


GOOD_LEAVES: dict[str, Callable[[], x509.Certificate]] = {
    "without a model of authenticator": lambda: leaf(EXTENSIONS[:3]),
    "alternative name not critical": lambda: replaced(tpm_name()),
    "more usages": lambda: replaced(x509.ExtendedKeyUsage([EK_USAGE, AIK_USAGE])),
    "more names": lambda: replaced(NAMES([x509.DNSName("tpm.example"), *tpm_name()])),
    "more attributes": lambda: replaced(NAMES([directory(*(tcg(n, v) for n, v in ATTRIBUTES.items()), tcg("4", "x"))])),
    "digits in lower case": lambda: replaced(tpm_name(_1="id:494e5443")),
}


@pytest.mark.parametrize("case", list(GOOD_LEAVES))
def test_good_certificates(case: str) -> None:
    assert verify_registration(**tpm(GOOD_LEAVES[case]())).attestation.facts == FACTS


def test_attributes_of_the_name_are_not_empty() -> None:
    nothing = x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.2"), "", _validate=False)
    names = NAMES([directory(tcg("1", "id:494E5443"), nothing, tcg("3", "id:1"))])
    assert verdict(tpm(replaced(names))) is Reason.ATTESTATION_CERTIFICATE


def test_the_certificate_is_judged_before_the_signature() -> None:
    assert verdict(tpm(LEAVES["no usage"](), sig=b"sig")) is Reason.ATTESTATION_CERTIFICATE
    assert verdict(tpm(sig=b"sig")) is Reason.ATTESTATION_STATEMENT


def test_a_leaf_key_that_cannot_make_the_signature() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    assert verdict(tpm(leaf(key=key))) is Reason.ATTESTATION_STATEMENT


@pytest.mark.parametrize("member", ["certInfo", "pubArea", "sig"])
def test_every_byte_counts(member: str) -> None:
    arguments = tpm()
    good = AttestationObject(arguments["attestation_object"])
    value = good.statement[member]
    assert isinstance(value, bytes)
    for index in range(len(value)):
        flipped = value[:index] + bytes([value[index] ^ 1 << index % 8]) + value[index + 1 :]
        bad = AttestationObject.build("tpm", good.authenticator_data, {**good.statement, member: flipped})  # type: ignore[dict-item]
        assert verdict(arguments | {"attestation_object": bytes(bad)}) is not None
