"""Endorsement key certificates: what a good one has to say, and what it proves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch.attestation.endorsement import EndorsementCertificate
from keyvouch.attestation.tpm_public import TpmObjectAttributes, TpmPublic
from keyvouch.attestation.tpm_vendors import find_vendor
from keyvouch.errors import EvidenceError, Reason
from support.endorsement_forge import (
    ALTERNATIVE_NAME,
    CONSTRAINTS,
    KEY_USAGE,
    PURPOSES,
    TCG,
    PublicKey,
    alternative_name,
    attribute,
    authority,
    certificate,
    ek,
    extension,
    intermediate,
    root,
    rsa_ek,
    sequence,
    store,
    tcg_name,
    tlv,
)
from support.endorsement_verdicts import refusal, verify
from support.software_tpm import EK_ATTRIBUTES, public_area
from support.tpm_forge import ec_key, rsa_key

Parse = EndorsementCertificate.parse


# What a good one proves


@pytest.mark.parametrize(
    "key", [ek, rsa_ek, lambda: ec_key(7, ec.SECP384R1).public_key(), lambda: ec_key(7, ec.SECP521R1).public_key()]
)
def test_a_good_certificate_says_who_made_the_tpm(key: Callable[[], PublicKey]):
    verified = verify(certificate(key()), key=key())
    assert verified.vendor == find_vendor("id:494E5443")
    assert verified.manufacturer == "id:494E5443"
    assert (verified.model, verified.version) == ("Example", "id:00020008")
    assert verified.issuers == (intermediate().certificate,)
    assert verified.anchor.name == "anchor-0"
    assert verified.certificate.serial == 1
    assert verified.endorsement_key == public_area(key())
    assert verified.certificate.encoding == certificate(key(), signature=b"\0" + verified.certificate.signature)


@pytest.mark.parametrize("key", [ek, rsa_ek])
def test_the_identity_of_a_tpm_is_that_of_its_key_whatever_its_name(key: Callable[[], PublicKey]):
    """The certificate says nothing of attributes and policy, so the host may claim several names for one key."""
    data = certificate(key())
    claims = [public_area(key()), public_area(key(), attributes=EK_ATTRIBUTES | TpmObjectAttributes.NO_DA)]
    one, other = (verify(data, endorsement_key=claim) for claim in claims)
    assert [one.endorsement_key, other.endorsement_key] == claims
    assert one.endorsement_key.name != other.endorsement_key.name
    info = key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert one.key_hash == other.key_hash == hashlib.sha256(info).digest()


def test_the_default_exponent_may_be_written_out_and_makes_no_other_tpm():
    """Zero stands for 65537 (Part 2 section 12.2.3.5), so one key has two public areas."""
    default = public_area(rsa_ek())
    written = TpmPublic(default.replace(bytes.fromhex("080000000000"), bytes.fromhex("080000010001")))
    assert default.name != written.name
    one, other = (verify(certificate(rsa_ek()), endorsement_key=claim) for claim in (default, written))
    assert one.key_hash == other.key_hash


def test_two_tpms_have_two_identities():
    other = ec_key(8).public_key()
    assert verify(certificate()).key_hash != verify(certificate(other), key=other).key_hash


def test_an_anchor_may_issue_it_itself():
    verified = verify(certificate(signer=root()), intermediates=[])
    assert verified.issuers == ()


def test_an_intermediate_may_be_an_anchor():
    verified = verify(certificate(), anchors=store(intermediate()), intermediates=[])
    assert verified.issuers == ()
    assert verify(certificate(), anchors=store(intermediate())).issuers == ()


@pytest.mark.parametrize("digest", [hashes.SHA384(), hashes.SHA512()])
def test_longer_digests_are_good(digest: hashes.HashAlgorithm):
    last = {"sha384": "03", "sha512": "04"}[digest.name]
    algorithm = sequence(bytes.fromhex("06082a8648ce3d0403" + last))
    assert verify(certificate(algorithm=algorithm, digest=digest))


@pytest.mark.parametrize(
    ("digest", "last"), [(hashes.SHA256(), "0b"), (hashes.SHA384(), "0c"), (hashes.SHA512(), "0d")]
)
@pytest.mark.parametrize("parameters", ["0500", ""])
def test_rsa_authorities_are_good(digest: hashes.HashAlgorithm, last: str, parameters: str):
    issuer = authority("RSA", key=rsa_key(1))
    algorithm = sequence(bytes.fromhex(f"06092a864886f70d0101{last}{parameters}"))
    assert verify(certificate(signer=issuer, algorithm=algorithm, digest=digest), anchors=store(issuer))


def test_known_intermediates_help_as_those_of_the_peer_do():
    assert verify(certificate(), intermediates=[intermediate().certificate])
    assert refusal(certificate(), intermediates=[]) is Reason.TRUST_CHAIN


def test_intermediates_may_be_in_any_order_and_hold_junk():
    second = authority("Second", intermediate())
    junk = [b"", b"\x30\x00", authority("Other").der, certificate()]
    data = certificate(signer=second)
    for pool in ([second.der, intermediate().der, *junk], [*junk, intermediate().der, second.der]):
        assert verify(data, intermediates=pool).issuers == (second.certificate, intermediate().certificate)


def test_an_intermediate_whose_name_cannot_be_read_does_no_harm():
    old = certificate(version=b"")
    strange = certificate(
        subject=sequence(tlv(0x31, attribute("55042d", b"\0\1", 0x03))), version=bytes.fromhex("a003020102")
    )
    assert x509.load_der_x509_certificate(old).version is x509.Version.v1
    assert verify(certificate(), intermediates=[old, strange, intermediate().der])
    assert refusal(certificate(), intermediates=[old, strange]) is Reason.TRUST_CHAIN


def test_a_doubtful_namesake_of_the_issuer_does_no_harm():
    impostor = authority("EK Intermediate")
    for pool in ([impostor.der, intermediate().der], [intermediate().der, impostor.der]):
        assert verify(certificate(), intermediates=pool)
    assert refusal(certificate(), intermediates=[impostor.der]) is Reason.TRUST_CHAIN


def test_at_most_four_certificates_of_the_name_of_the_issuer_are_tried():
    impostors = [authority("EK Intermediate").der for _ in range(4)]
    assert verify(certificate(), intermediates=[*impostors[:3], intermediate().der])
    assert verify(certificate(), intermediates=[intermediate().der, *impostors])
    assert refusal(certificate(), intermediates=[*impostors, intermediate().der]) is Reason.TRUST_CHAIN


def test_at_most_sixteen_intermediates_of_a_peer_are_read():
    known = [authority("Known").certificate]
    assert verify(certificate(), intermediates=[intermediate().der] * 16 + known)
    assert refusal(certificate(), intermediates=[intermediate().der] * 17) is Reason.TPM_EK_CERTIFICATE


# The profile


@pytest.mark.parametrize(
    "other", [lambda: ec_key(8).public_key(), rsa_ek, lambda: ec_key(7, ec.SECP384R1).public_key()]
)
def test_a_certificate_for_another_key_is_refused(other: Callable[[], PublicKey]):
    assert refusal(certificate(), key=other()) is Reason.TPM_EK_CERTIFICATE
    assert refusal(certificate(other()), key=ek()) is Reason.TPM_EK_CERTIFICATE
    assert verify(certificate(other()), key=other())


@pytest.mark.parametrize("value", ["3000", "3003010100", "3003020100"])
def test_not_a_certification_authority(value: str):
    """The default may be written out; a path length alone makes no authority."""
    assert verify(certificate(extensions={CONSTRAINTS: extension(CONSTRAINTS, bytes.fromhex(value))}))


@pytest.mark.parametrize("value", ["30030101ff", "3003010101", "30060101ff020100"])
def test_a_certification_authority_is_no_endorsement_key(value: str):
    data = certificate(extensions={CONSTRAINTS: extension(CONSTRAINTS, bytes.fromhex(value))})
    assert refusal(data) is Reason.TPM_EK_CERTIFICATE


def test_constraints_have_to_be_there():
    assert refusal(certificate(without=[CONSTRAINTS])) is Reason.TPM_EK_CERTIFICATE


@pytest.mark.parametrize(
    ("key", "usage", "good"),
    [
        (rsa_ek, "03020001", False),
        (ek, "03020001", False),
        (rsa_ek, "03020520", True),
        (rsa_ek, "030205a0", True),
        (rsa_ek, "03020308", False),
        (rsa_ek, "03020780", False),
        (rsa_ek, "030100", False),
        (ek, "03020308", True),
        (ek, "0303030880", True),
        (ek, "03020520", False),
        (ek, "03020780", False),
        (ek, "0303070008", False),
    ],
)
def test_the_key_is_for_encryption(key: Callable[[], PublicKey], usage: str, good: bool):
    data = certificate(key(), extensions={KEY_USAGE: extension(KEY_USAGE, bytes.fromhex(usage))})
    if good:
        assert verify(data, key=key())
    else:
        assert refusal(data, key=key()) is Reason.TPM_EK_CERTIFICATE


def test_key_usage_may_be_left_out():
    read = Parse(certificate(without=[KEY_USAGE]))
    assert read.key_usage is None
    assert verify(certificate(without=[KEY_USAGE]))


@pytest.mark.parametrize(
    ("purposes", "good"),
    [
        ("300706056781050801", True),
        ("300f06062b060105050706056781050801", True),
        ("300706056781050803", False),
        ("30060604551d2500", False),
        ("3000", False),
    ],
    ids=["endorsement key", "one of several", "attestation key", "any", "none"],
)
def test_the_purpose_is_that_of_an_endorsement_key(purposes: str, good: bool):
    data = certificate(extensions={PURPOSES: extension(PURPOSES, bytes.fromhex(purposes))})
    if good:
        assert verify(data)
    else:
        assert refusal(data) is Reason.TPM_EK_CERTIFICATE


def test_the_purpose_has_to_be_there():
    assert Parse(certificate(without=[PURPOSES])).extended_key_usage is None
    assert refusal(certificate(without=[PURPOSES])) is Reason.TPM_EK_CERTIFICATE


def test_the_alternative_name_has_to_be_there():
    read = Parse(certificate(without=[ALTERNATIVE_NAME]))
    assert (read.manufacturer, read.model, read.version) == (None, None, None)
    assert refusal(certificate(without=[ALTERNATIVE_NAME])) is Reason.TPM_EK_CERTIFICATE


@pytest.mark.parametrize("missing", ["manufacturer", "model", "version"])
def test_every_attribute_has_to_be_there(missing: str):
    values = {"manufacturer": "id:494E5443", "model": "M", "version": "V"}
    full = alternative_name(*(attribute(TCG[name], value) for name, value in values.items()))
    assert verify(certificate(extensions={ALTERNATIVE_NAME: extension(ALTERNATIVE_NAME, full)}))
    value = values.pop(missing)
    less = alternative_name(*(attribute(TCG[name], text) for name, text in values.items()))
    data = certificate(extensions={ALTERNATIVE_NAME: extension(ALTERNATIVE_NAME, less)})
    assert getattr(Parse(data), missing) is None
    assert (
        getattr(Parse(certificate(extensions={ALTERNATIVE_NAME: extension(ALTERNATIVE_NAME, full)})), missing) == value
    )
    assert refusal(data) is Reason.TPM_EK_CERTIFICATE
    empty = tcg_name(**{missing: ""})
    assert refusal(certificate(extensions={ALTERNATIVE_NAME: extension(ALTERNATIVE_NAME, empty)})) is (
        Reason.TPM_EK_CERTIFICATE
    )


@pytest.mark.parametrize("manufacturer", ["id:FFFFF1D0", "INTC", "id:494E544", "494E5443", "id:"])
def test_a_manufacturer_that_is_not_registered_is_refused(manufacturer: str):
    san = extension(ALTERNATIVE_NAME, tcg_name(manufacturer))
    with pytest.raises(EvidenceError) as caught:
        verify(certificate(extensions={ALTERNATIVE_NAME: san}))
    assert caught.value.reason is Reason.TPM_EK_CERTIFICATE
    assert caught.value.metadata == {"manufacturer": manufacturer}


def test_an_emulator_is_accepted_only_where_it_is_wanted():
    san = extension(ALTERNATIVE_NAME, tcg_name("id:00001014"))
    data = certificate(extensions={ALTERNATIVE_NAME: san})
    verified = verify(data, unregistered_manufacturers={"id:00001014"})
    assert (verified.manufacturer, verified.vendor) == ("id:00001014", None)
    assert refusal(data, unregistered_manufacturers={"id:00001015"}) is Reason.TPM_EK_CERTIFICATE
    assert refusal(data) is Reason.TPM_EK_CERTIFICATE


def test_a_long_manufacturer_is_cut_for_the_log():
    san = extension(ALTERNATIVE_NAME, tcg_name("x" * 100))
    with pytest.raises(EvidenceError) as caught:
        verify(certificate(extensions={ALTERNATIVE_NAME: san}))
    assert caught.value.metadata == {"manufacturer": "x" * 32}


@pytest.mark.parametrize(
    ("stated", "shown"),
    [
        (" id:~", " id:~"),
        ("\x1b[31m\n", "?[31m?"),
        ("\x7f\x00\x1f", "???"),
        ("\u00e9\u202e\U0001f511", "???"),
        ("\n" * 100, "?" * 32),
    ],
)
def test_nothing_that_a_log_would_obey_is_shown(stated: str, shown: str):
    san = extension(ALTERNATIVE_NAME, tcg_name(stated))
    with pytest.raises(EvidenceError) as caught:
        verify(certificate(extensions={ALTERNATIVE_NAME: san}))
    assert caught.value.metadata == {"manufacturer": shown}


def test_what_a_verified_certificate_says_is_printable():
    san = extension(ALTERNATIVE_NAME, tcg_name("id:\t", "M\u00f6del ~", "1\r2"))
    verified = verify(certificate(extensions={ALTERNATIVE_NAME: san}), unregistered_manufacturers={"id:\t"})
    assert (verified.manufacturer, verified.model, verified.version) == ("id:?", "M?del ~", "1?2")
    assert verified.certificate.model == "M\u00f6del ~"


def test_attributes_may_share_a_set_and_stand_among_other_names():
    shared = tlv(
        0x31,
        b"".join(
            (
                attribute(TCG["version"], "2"),
                attribute(TCG["model"], "M"),
                attribute(TCG["manufacturer"], "id:414d4400"),
            )
        ),
    )
    names = sequence(tlv(0x82, b"tpm.example"), tlv(0xA4, sequence(shared, tlv(0x31, attribute("550406", "US", 0x13)))))
    verified = verify(certificate(extensions={ALTERNATIVE_NAME: extension(ALTERNATIVE_NAME, names)}))
    assert (verified.manufacturer, verified.model, verified.version) == ("id:414d4400", "M", "2")
    assert verified.vendor == find_vendor("id:414D4400")


def test_a_name_that_is_not_critical_is_good():
    assert verify(certificate(extensions={ALTERNATIVE_NAME: extension(ALTERNATIVE_NAME, tcg_name(), b"")}))


@pytest.mark.parametrize("oids", [["551d09"], ["551d20"], ["551d09", "551d20", PURPOSES]])
def test_critical_extensions_that_are_understood(oids: list[str]):
    values = {PURPOSES: bytes.fromhex("300706056781050801")}
    assert verify(certificate(extensions={oid: extension(oid, values.get(oid, b"\x30\x00")) for oid in oids}))


@pytest.mark.parametrize("oid", ["551d1e", "551d24", "551d23", "2a03"])
def test_a_critical_extension_that_is_not_understood_is_refused(oid: str):
    assert refusal(certificate(extensions={oid: extension(oid, b"\x30\x00")})) is Reason.TPM_EK_CERTIFICATE
    assert verify(certificate(extensions={oid: extension(oid, b"\x30\x00", b"")}))
