"""The packed format with certificates: every check from both sides (WebAuthn Level 3 sections 8.2 and 8.2.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation import AttestationEvidence, TrustStore, assurance_of, verify_registration
from keyvouch.attestation.der import SEQUENCE, DerReader
from keyvouch.cose import Algorithm
from keyvouch.errors import Reason
from keyvouch.webauthn import Flags
from support.attestation_forge import (
    AAGUID_OID,
    BEGIN,
    CA,
    CERTIFIED_KEYS,
    END,
    MODEL,
    NOT_CA,
    ROOT,
    Authority,
    aaguid_extension,
    anchor,
    encoded,
    key_for,
    name,
    octet_string,
    registration,
    signed_by,
    tlv,
    unrecognized,
    verdict,
)
from support.forge import AAGUID, UP_UV, Forge, sign

FORGE = Forge()
KEY = key_for(Algorithm.ES256, "leaf")
EXTENSIONS = ((NOT_CA, True), (aaguid_extension(), False))
LEAF = ROOT.issue(KEY, EXTENSIONS)


def packed(
    *chain: x509.Certificate | bytes, key: Any = KEY, algorithm: int = Algorithm.ES256, **changes: Any
) -> dict[str, Any]:
    """A registration with a packed statement. Changes in lower case are to its members."""
    arguments = {member: changes.pop(member) for member in ("anchors", "instant", "flags") if member in changes}
    return registration(FORGE, "packed", signed_by(key, algorithm, chain or (LEAF,), **changes), **arguments)


def with_extensions(*extensions: tuple[x509.ExtensionType, bool]) -> dict[str, Any]:
    return packed(ROOT.issue(KEY, extensions))


def with_subject(*attributes: tuple[x509.ObjectIdentifier, str]) -> dict[str, Any]:
    return packed(ROOT.issue(KEY, EXTENSIONS, name(*attributes)))


def changed(oid: x509.ObjectIdentifier, value: str) -> tuple[tuple[x509.ObjectIdentifier, str], ...]:
    return tuple((kind, value if kind == oid else text) for kind, text in MODEL)


def test_the_evidence_is_what_the_anchor_says() -> None:
    trusted = anchor(protection=Protection.SECURE_ELEMENT, verification=Verification.HARDWARE_GATED)
    evidence = verify_registration(**packed(anchors=TrustStore([trusted])))
    assert evidence.attestation == AttestationEvidence(
        "packed", Provenance.ATTESTED, "forge", Protection.SECURE_ELEMENT, Verification.HARDWARE_GATED, (LEAF,)
    )
    assert assurance_of(evidence) == Assurance(
        Protection.SECURE_ELEMENT, Verification.HARDWARE_GATED, Provenance.ATTESTED, "forge"
    )


def test_an_anchor_that_says_nothing_proves_no_hardware() -> None:
    attestation = verify_registration(**packed()).attestation
    assert (attestation.protection, attestation.verification) == (Protection.SOFTWARE, Verification.SOFTWARE_GATED)


@pytest.mark.parametrize(
    ("said", "proved"),
    [
        (Verification.HARDWARE_GATED, Verification.SOFTWARE_GATED),
        (Verification.SOFTWARE_GATED, Verification.SOFTWARE_GATED),
        (Verification.NONE, Verification.NONE),
    ],
)
@pytest.mark.parametrize("flags", [Flags.BE, Flags.BE | Flags.BS])
def test_a_key_that_can_be_backed_up_is_not_kept_in_hardware(
    flags: Flags, said: Verification, proved: Verification
) -> None:
    trusted = TrustStore([anchor(protection=Protection.SECURE_ELEMENT, verification=said)])
    attestation = verify_registration(**packed(anchors=trusted, flags=UP_UV | flags)).attestation
    assert (attestation.protection, attestation.verification) == (Protection.SOFTWARE, proved)
    assert attestation.provenance is Provenance.ATTESTED
    control = verify_registration(**packed(anchors=trusted)).attestation
    assert (control.protection, control.verification) == (Protection.SECURE_ELEMENT, said)


def test_one_attribute_twice_does_not_stand_for_another() -> None:
    twice = [attribute for attribute in MODEL if attribute[0] != NameOID.ORGANIZATIONAL_UNIT_NAME]
    twice.append((NameOID.COMMON_NAME, "Another"))
    assert len(twice) == len(MODEL)
    assert verdict(with_subject(*twice)) is Reason.ATTESTATION_CERTIFICATE


@pytest.mark.parametrize("kind", list(CERTIFIED_KEYS))
def test_a_key_that_is_certified_for_its_user_does_not_attest(kind: str) -> None:
    usage = (x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")]), False)
    assert verdict(with_extensions(*EXTENSIONS, usage)) is None
    assert verdict(with_extensions(*EXTENSIONS, CERTIFIED_KEYS[kind])) is Reason.ATTESTATION_CERTIFICATE


@pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda algorithm: algorithm.name)
def test_a_leaf_key_of_every_algorithm(algorithm: Algorithm) -> None:
    key = ed448.Ed448PrivateKey.generate() if algorithm is Algorithm.ED448 else key_for(algorithm, "leaf")
    leaf = ROOT.issue(key, EXTENSIONS)
    assert verdict(packed(leaf, key=key, algorithm=algorithm)) is None
    for other in set(Algorithm) - {algorithm}:
        assert verdict(packed(leaf, key=key, algorithm=algorithm, alg=int(other))) is Reason.ATTESTATION_STATEMENT


# The statement

STATEMENTS: dict[str, Any] = {
    "alg_missing": lambda: packed(alg=None),
    "alg_text": lambda: packed(alg="ES256"),
    "alg_true": lambda: packed(alg=True),
    "alg_list": lambda: packed(alg=[-7]),
    "alg_map": lambda: packed(alg={}),
    "alg_rs1": lambda: packed(alg=-65535),
    "alg_of_another_curve": lambda: packed(alg=-35),
    "alg_of_another_kind": lambda: packed(alg=-257),
    "sig_missing": lambda: packed(sig=None),
    "sig_empty": lambda: packed(sig=b""),
    "sig_text": lambda: packed(sig="signature"),
    "sig_of_the_credential": lambda: packed(key=FORGE.private_key),
    "sig_of_another_key": lambda: packed(key=key_for(Algorithm.ES256, "other")),
    "x5c_number": lambda: packed(x5c=1),
    "x5c_true": lambda: packed(x5c=True),
    "x5c_empty": lambda: packed(x5c=[]),
    "x5c_bytes": lambda: packed(x5c=encoded([LEAF])[0]),
    "x5c_map": lambda: packed(x5c={"x": b"c"}),
    "x5c_of_text": lambda: packed(x5c=[*encoded([LEAF]), "certificate"]),
    "x5c_of_empty": lambda: packed(b""),
    "x5c_of_no_certificate": lambda: packed(b"\x30\x00"),
    "x5c_trailing": lambda: packed(encoded([LEAF])[0] + b"\x00"),
    "x5c_truncated": lambda: packed(encoded([LEAF])[0][:-1]),
    "ecdaa": lambda: packed(ecdaaKeyId=b"key"),
    "ecdaa_without_x5c": lambda: packed(ecdaaKeyId=b"key", x5c=None),
    "x5c_without_alg_and_sig": lambda: packed(alg=None, sig=None),
    "another_member": lambda: packed(ver="2.0"),
    "x5c_dropped": lambda: packed(x5c=None),
}


@pytest.mark.parametrize("case", list(STATEMENTS))
def test_a_wrong_statement_is_refused(case: str) -> None:
    assert verdict(packed()) is None
    assert verdict(STATEMENTS[case]()) is Reason.ATTESTATION_STATEMENT


def test_x5c_is_bounded() -> None:
    chain = _long_chain(8)
    assert verdict(packed(*chain, anchors=TrustStore([anchor(chain[-1])]))) is None
    assert verdict(packed(*[LEAF] * 8)) is Reason.TRUST_CHAIN
    assert verdict(packed(*[LEAF] * 9)) is Reason.ATTESTATION_STATEMENT


def _long_chain(length: int) -> list[x509.Certificate]:
    authorities = [ROOT]
    while len(authorities) < length:
        authorities.append(authorities[-1].subordinate(f"Authority {len(authorities)}"))
    leaf = authorities[-1].issue(KEY, EXTENSIONS)
    return [leaf, *(authority.certificate for authority in reversed(authorities[1:]))]


def test_the_certificates_together_are_bounded() -> None:
    intermediate = ROOT.subordinate()
    assert verdict(packed(*_chain_of(32 * 1024, intermediate))) is None
    assert verdict(packed(*_chain_of(32 * 1024 + 1, intermediate))) is Reason.ATTESTATION_STATEMENT


def _chain_of(size: int, intermediate: Authority) -> list[x509.Certificate]:
    """A chain of so many bytes; the signatures in it differ in length, so try until it fits."""
    padding = 30_000
    while True:
        padded = (unrecognized("1.2.3.4", bytes(padding)), False)
        chain = [intermediate.issue(KEY, [*EXTENSIONS, padded]), intermediate.certificate]
        missing = size - sum(map(len, encoded(chain)))
        if not missing:
            return chain
        padding += missing


def test_what_is_signed() -> None:
    def over(change: Any) -> dict[str, Any]:
        def make(data: bytes, client_data_hash: bytes) -> dict[str, object]:
            signature = sign(KEY, Algorithm.ES256, change(data, client_data_hash))
            return {"alg": -7, "sig": signature, "x5c": encoded([LEAF])}

        return registration(FORGE, "packed", make)

    assert verdict(over(lambda data, client: data + client)) is None
    for wrong in (
        lambda data, client: data,
        lambda data, client: client,
        lambda data, client: client + data,
        lambda data, client: data + bytes(32),
        lambda data, client: data + hashlib.sha256(client).digest(),
        lambda data, client: b"\x00" + data + client,
    ):
        assert verdict(over(wrong)) is Reason.ATTESTATION_STATEMENT


def test_an_ecdsa_signature_is_strict_der() -> None:
    def make(data: bytes, client_data_hash: bytes) -> dict[str, object]:
        signature = sign(KEY, Algorithm.ES256, data + client_data_hash)
        length = signature[3]
        r, rest = signature[4 : 4 + length], signature[4 + length :]
        padded = b"\x30" + bytes([signature[1] + 1, 0x02, length + 1, 0]) + r + rest
        return {"alg": -7, "sig": padded, "x5c": encoded([LEAF])}

    assert verdict(registration(FORGE, "packed", make)) is Reason.ATTESTATION_STATEMENT


# The leaf certificate

EXTENSION_CASES: dict[str, Any] = {
    "no_basic_constraints": lambda: with_extensions((aaguid_extension(), False)),
    "authority": lambda: with_extensions((CA, True), (aaguid_extension(), False)),
    "aaguid_of_another_model": lambda: with_extensions((NOT_CA, True), (aaguid_extension(bytes(16)), False)),
    "aaguid_shorter": lambda: with_extensions((NOT_CA, True), (aaguid_extension(AAGUID[:-1]), False)),
    "aaguid_longer": lambda: with_extensions((NOT_CA, True), (aaguid_extension(AAGUID + b"\0"), False)),
    "aaguid_not_wrapped": lambda: with_extensions((NOT_CA, True), (unrecognized(AAGUID_OID, AAGUID), False)),
    "aaguid_of_another_type": lambda: with_extensions(
        (NOT_CA, True), (unrecognized(AAGUID_OID, b"\x03" + octet_string(AAGUID)[1:]), False)
    ),
    "aaguid_trailing": lambda: with_extensions(
        (NOT_CA, True), (unrecognized(AAGUID_OID, octet_string(AAGUID) + b"\x05\x00"), False)
    ),
    "aaguid_empty": lambda: with_extensions((NOT_CA, True), (unrecognized(AAGUID_OID, b""), False)),
    "aaguid_critical": lambda: with_extensions((NOT_CA, True), (aaguid_extension(), True)),
}


@pytest.mark.parametrize("case", list(EXTENSION_CASES))
def test_a_leaf_with_wrong_extensions_is_refused(case: str) -> None:
    assert verdict(with_extensions(*EXTENSIONS)) is None
    assert verdict(EXTENSION_CASES[case]()) is Reason.ATTESTATION_CERTIFICATE


def test_basic_constraints_need_not_be_critical_and_the_aaguid_need_not_be_there() -> None:
    assert verdict(with_extensions((NOT_CA, False))) is None
    assert verdict(with_extensions((unrecognized("1.2.3.4", b"\x05\x00"), False), *EXTENSIONS)) is None


def test_extensions_that_cannot_be_read() -> None:
    encoded_leaf = encoded([LEAF])[0]
    constraints = b"\x04\x02\x30\x00"
    assert encoded_leaf.count(constraints) == 1
    broken = encoded_leaf.replace(constraints, b"\x04\x02\x05\x00")
    assert verdict(packed(broken)) is Reason.ATTESTATION_CERTIFICATE
    neighbour = x509.ObjectIdentifier(AAGUID_OID.dotted_string[:-1] + "5")
    leaf = ROOT.issue(KEY, [*EXTENSIONS, (unrecognized(neighbour, octet_string(AAGUID)), False)])
    tail = bytes.fromhex("82e51c010105")
    assert encoded([leaf])[0].count(tail) == 1
    doubled = encoded([leaf])[0].replace(tail, tail[:-1] + b"\x04")
    assert verdict(packed(leaf)) is None
    assert verdict(packed(doubled)) is Reason.ATTESTATION_CERTIFICATE


SUBJECTS = {
    "no_country": MODEL[1:],
    "no_organisation": MODEL[:1] + MODEL[2:],
    "no_unit": MODEL[:2] + MODEL[3:],
    "no_common_name": MODEL[:3],
    "nothing": (),
    "two_countries": (*MODEL, (NameOID.COUNTRY_NAME, "DE")),
    "two_organisations": (*MODEL, (NameOID.ORGANIZATION_NAME, "Other")),
    "two_units": (*MODEL, (NameOID.ORGANIZATIONAL_UNIT_NAME, "Authenticator Attestation")),
    "two_common_names": (*MODEL, (NameOID.COMMON_NAME, "Other")),
    "country_in_lower_case": changed(NameOID.COUNTRY_NAME, "se"),
    "country_of_digits": changed(NameOID.COUNTRY_NAME, "S1"),
    "another_unit": changed(NameOID.ORGANIZATIONAL_UNIT_NAME, "Authenticator"),
    "unit_in_lower_case": changed(NameOID.ORGANIZATIONAL_UNIT_NAME, "authenticator attestation"),
    "unit_with_a_tail": changed(NameOID.ORGANIZATIONAL_UNIT_NAME, "Authenticator Attestation "),
}


@pytest.mark.parametrize("case", list(SUBJECTS))
def test_a_leaf_with_a_wrong_subject_is_refused(case: str) -> None:
    assert verdict(with_subject(*MODEL)) is None
    assert verdict(with_subject(*SUBJECTS[case])) is Reason.ATTESTATION_CERTIFICATE


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.parametrize(
    "attributes",
    [
        changed(NameOID.COUNTRY_NAME, "S"),
        changed(NameOID.COUNTRY_NAME, "SWE"),
        changed(NameOID.COUNTRY_NAME, ""),
        changed(NameOID.ORGANIZATION_NAME, ""),
        changed(NameOID.COMMON_NAME, ""),
    ],
)
def test_a_subject_of_wrong_lengths_is_refused(attributes: Any) -> None:
    assert verdict(with_subject(*attributes)) is Reason.ATTESTATION_CERTIFICATE


def typed(oid: x509.ObjectIdentifier, kind: _ASN1Type, value: str = "") -> dict[str, Any]:
    attributes = [
        x509.NameAttribute(other, value or text, kind, _validate=False) if other == oid else single
        for other, text in MODEL
        for single in [x509.NameAttribute(other, text)]
    ]
    return packed(ROOT.issue(KEY, EXTENSIONS, x509.Name(attributes)))


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.parametrize("country", ["SE\n", "S\n", "\u00c9", "\u0415\u0415"])
def test_a_country_is_two_plain_letters(country: str) -> None:
    assert verdict(typed(NameOID.COUNTRY_NAME, _ASN1Type.UTF8String, "DE")) is None
    assert verdict(typed(NameOID.COUNTRY_NAME, _ASN1Type.UTF8String, country)) is Reason.ATTESTATION_CERTIFICATE


def test_other_attributes_are_not_looked_at() -> None:
    more = x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "M\u00e4lar", _ASN1Type.BMPString)
    attributes = [x509.NameAttribute(oid, text) for oid, text in MODEL]
    multi = x509.Name([x509.RelativeDistinguishedName([*attributes[:2], more]), *map(_single, attributes[2:])])
    assert verdict(packed(ROOT.issue(KEY, EXTENSIONS, multi))) is None


def _single(attribute: x509.NameAttribute[str]) -> x509.RelativeDistinguishedName:
    return x509.RelativeDistinguishedName([attribute])


def test_the_leaf_is_of_version_3() -> None:
    trusted = TrustStore([anchor(LEAF)])
    assert verdict(packed(LEAF, anchors=trusted)) is None
    old = as_version_1(LEAF)
    pinned = TrustStore([anchor(x509.load_der_x509_certificate(old))])
    assert verdict(packed(old, anchors=pinned)) is Reason.ATTESTATION_CERTIFICATE


def as_version_1(certificate: x509.Certificate) -> bytes:
    """The certificate without its version number, so of version 1; only a pin can trust it, for nobody signed it."""
    outer = DerReader(encoded([certificate])[0]).enter(SEQUENCE)
    fields = outer.enter(SEQUENCE)
    fields.any()
    tbs = b"".join(_elements(fields))
    return tlv(0x30, tlv(0x30, tbs) + b"".join(_elements(outer)))


def _elements(reader: DerReader) -> Iterator[bytes]:
    while reader:
        tag, content = reader.any()
        yield tlv(tag.tag_class << 6 | tag.constructed << 5 | tag.number, content)


# The path


def test_the_path() -> None:
    intermediate = ROOT.subordinate()
    leaf = intermediate.issue(KEY, EXTENSIONS)
    evidence = verify_registration(**packed(leaf, intermediate.certificate))
    assert evidence.attestation.path == (leaf, intermediate.certificate)
    assert verdict(packed(leaf)) is Reason.TRUST_CHAIN
    assert verdict(packed(intermediate.certificate, leaf)) is Reason.TRUST_CHAIN
    assert verdict(packed(leaf, intermediate.certificate, anchors=TrustStore())) is Reason.TRUST_CHAIN
    stranger = TrustStore([anchor(Authority.root().certificate)])
    assert verdict(packed(leaf, intermediate.certificate, anchors=stranger)) is Reason.TRUST_CHAIN


def test_the_instant() -> None:
    assert verdict(packed(instant=BEGIN)) is None
    assert verdict(packed(instant=END)) is None
    assert verdict(packed(instant=END + timedelta(seconds=1))) is Reason.TRUST_CHAIN
    assert verdict(packed(instant=BEGIN - timedelta(seconds=1))) is Reason.TRUST_CHAIN


def test_the_anchor_is_one_for_the_format_and_the_model() -> None:
    key_id = x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()).digest

    def judged(**changes: Any) -> Reason | None:
        return verdict(packed(anchors=TrustStore([anchor(**changes)])))

    assert judged(formats=frozenset({"packed"})) is None
    assert judged(formats=frozenset({"tpm"})) is Reason.TRUST_CHAIN
    assert judged(aaguids=frozenset({AAGUID})) is None
    assert judged(aaguids=frozenset({bytes(16)})) is Reason.TRUST_CHAIN
    assert judged(key_ids=frozenset({key_id})) is None
    assert judged(key_ids=frozenset({bytes(20)})) is Reason.TRUST_CHAIN


def test_the_order_of_the_reasons() -> None:
    other = key_for(Algorithm.ES256, "other")
    bare = ROOT.issue(KEY, [(NOT_CA, True)], name())
    assert verdict(packed(bare, alg=None, anchors=TrustStore())) is Reason.ATTESTATION_STATEMENT
    assert verdict(packed(bare, sig=b"", anchors=TrustStore())) is Reason.ATTESTATION_STATEMENT
    assert verdict(packed(bare, key=other, anchors=TrustStore())) is Reason.TRUST_CHAIN
    assert verdict(packed(bare, key=other)) is Reason.ATTESTATION_CERTIFICATE
    assert verdict(packed(LEAF, key=other)) is Reason.ATTESTATION_STATEMENT


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP256K1()), dsa.generate_private_key(1024)], ids=["secp256k1", "dsa"]
)
def test_a_leaf_key_of_an_unknown_kind(key: Any) -> None:
    leaf = ROOT.issue(key, EXTENSIONS)
    refused = verdict(packed(leaf, sig=b"signature"))
    assert refused in (Reason.TRUST_CHAIN, Reason.ATTESTATION_STATEMENT)
