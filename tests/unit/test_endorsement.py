"""Endorsement key certificates: what a good one has to say, and who has to stand above it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import prod

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keyvouch.attestation.endorsement import (
    EndorsementCertificate,
)
from keyvouch.attestation.tpm_vendors import find_vendor
from keyvouch.attestation.trust import TrustAnchor, TrustStore
from keyvouch.errors import EvidenceError, Reason, UsageError
from support import endorsement_forge as forge
from support.endorsement_forge import (
    ALTERNATIVE_NAME,
    CONSTRAINTS,
    INSTANT,
    KEY_USAGE,
    PURPOSES,
    TCG,
    EkAuthority,
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
    assert verified.certificate.encoding == certificate(key(), signature=b"\0" + verified.certificate.signature)


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


# The path


@pytest.mark.parametrize(
    ("instant", "good"),
    [
        (datetime(2019, 12, 31, 23, 59, 59, tzinfo=UTC), False),
        (datetime(2020, 1, 1, tzinfo=UTC), True),
        (datetime(2021, 6, 1, 12, 0, 0, tzinfo=UTC), True),
        (datetime(2021, 6, 1, 12, 0, 1, tzinfo=UTC), False),
    ],
)
def test_it_is_valid_from_its_first_to_its_last_second(instant: datetime, good: bool):
    validity = sequence(tlv(0x17, b"200101000000Z"), tlv(0x17, b"210601120000Z"))
    data = certificate(validity=validity, signer=root())
    if good:
        assert verify(data, instant=instant)
    else:
        assert refusal(data, instant=instant) is Reason.TRUST_CHAIN


def test_an_instant_without_a_zone_is_a_mistake_of_the_caller():
    with pytest.raises(UsageError):
        verify(certificate(), instant=datetime(2026, 8, 1))  # noqa: DTZ001


def test_an_expired_intermediate_breaks_the_path():
    old = authority("Old", root(), end=INSTANT - timedelta(days=1))
    data = certificate(signer=old)
    assert refusal(data, intermediates=[old.der]) is Reason.TRUST_CHAIN
    assert verify(data, intermediates=[old.der], instant=INSTANT - timedelta(days=2))


def test_another_root_of_the_same_name_is_no_anchor():
    assert refusal(certificate(), anchors=store(authority("EK Root"))) is Reason.TRUST_CHAIN
    assert refusal(certificate(), anchors=TrustStore()) is Reason.TRUST_CHAIN


def test_only_anchors_for_endorsement_keys_count():
    def anchors(*formats: str) -> TrustStore:
        return TrustStore([TrustAnchor("a", root().certificate, formats=frozenset(formats))])

    assert verify(certificate(), anchors=anchors("tpm-ek"))
    assert refusal(certificate(), anchors=anchors("tpm", "packed")) is Reason.TRUST_CHAIN


def test_the_signature_is_over_the_signed_part():
    good = Parse(certificate())
    signature = bytearray(good.signature)
    signature[-1] ^= 1
    assert refusal(certificate(signature=b"\0" + bytes(signature))) is Reason.TRUST_CHAIN
    for spoilt in (b"\0", b"\0\x30\x00", b"\0" + good.signature):  # the last one is of another day's randomness
        data = certificate(signature=spoilt, serial=bytes.fromhex("020102"))
        assert refusal(data) is Reason.TRUST_CHAIN


@pytest.mark.parametrize(
    "algorithm", ["06072a8648ce3d0401", "06082a8648ce3d040301", "06092a864886f70d01010b0500", "06032b6570"]
)
def test_weak_foreign_and_unknown_signature_algorithms_are_refused(algorithm: str):
    assert refusal(certificate(algorithm=sequence(bytes.fromhex(algorithm)))) is Reason.TRUST_CHAIN


def test_an_rsa_issuer_does_not_sign_by_ecdsa_or_sha1():
    issuer = authority("RSA", key=rsa_key(1))
    for algorithm in ("06082a8648ce3d040302", "06092a864886f70d0101050500"):
        data = certificate(signer=issuer, algorithm=sequence(bytes.fromhex(algorithm)))
        assert refusal(data, anchors=store(issuer)) is Reason.TRUST_CHAIN
    wrong = certificate(signer=issuer, signature=b"\0" + bytes(256))
    assert refusal(wrong, anchors=store(issuer)) is Reason.TRUST_CHAIN
    assert verify(certificate(signer=issuer), anchors=store(issuer))


def test_an_issuer_has_to_be_an_authority_that_may_sign_certificates():
    usage = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    ca = x509.BasicConstraints(ca=True, path_length=None)
    good = authority("CA", root(), extensions=(ca, x509.KeyUsage(key_cert_sign=True, **usage)))
    assert verify(certificate(signer=good), intermediates=[good.der])
    for extensions in (
        (),
        (x509.BasicConstraints(ca=False, path_length=None),),
        (ca, x509.KeyUsage(key_cert_sign=False, **usage | {"crl_sign": True})),
    ):
        bad = authority("CA", root(), extensions=extensions)
        assert refusal(certificate(signer=bad), intermediates=[bad.der]) is Reason.TRUST_CHAIN
        assert refusal(certificate(signer=bad), anchors=store(bad)) is Reason.TRUST_CHAIN


@pytest.mark.parametrize(("allowed", "good"), [(0, False), (1, True), (None, True)])
def test_path_lengths_count_the_issuer_as_an_intermediate(allowed: int | None, good: bool):
    top = authority("Top", extensions=(x509.BasicConstraints(ca=True, path_length=allowed),))
    issuer = authority("Issuer", top)
    data, anchors = certificate(signer=issuer), store(top)
    if good:
        assert verify(data, intermediates=[issuer.der], anchors=anchors)
    else:
        assert refusal(data, intermediates=[issuer.der], anchors=anchors) is Reason.TRUST_CHAIN


@pytest.mark.parametrize(("allowed", "good"), [(0, False), (1, True)])
def test_path_lengths_hold_for_intermediates_too(allowed: int, good: bool):
    upper = authority("Upper", root(), extensions=(x509.BasicConstraints(ca=True, path_length=allowed),))
    issuer = authority("Issuer", upper, extensions=(x509.BasicConstraints(ca=True, path_length=0),))
    data, pool = certificate(signer=issuer), [issuer.der, upper.der]
    if good:
        assert verify(data, intermediates=pool).issuers == (issuer.certificate, upper.certificate)
    else:
        assert refusal(data, intermediates=pool) is Reason.TRUST_CHAIN


@pytest.mark.parametrize(("purpose", "good"), [("2.23.133.8.1", True), ("2.5.29.37.0", True), ("2.23.133.8.3", False)])
def test_an_issuer_limited_to_other_purposes_vouches_for_nothing(purpose: str, good: bool):
    limits = x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose)])
    issuer = authority("Limited", root(), extensions=(x509.BasicConstraints(True, None), limits))
    data = certificate(signer=issuer)
    if good:
        assert verify(data, intermediates=[issuer.der])
    else:
        assert refusal(data, intermediates=[issuer.der]) is Reason.TRUST_CHAIN


def test_an_issuer_with_the_roca_weakness_is_told_apart():
    product = prod(n for n in range(3, 168) if all(n % d for d in range(2, n)))
    modulus = pow(65537, 3, product) + product * (1 << 1829)
    weak = rsa.RSAPublicNumbers(65537, modulus + (modulus + 1) % 2 * product).public_key()
    issuer = EkAuthority(root().key, _certificate_for("Weak", weak))
    assert refusal(certificate(signer=issuer), intermediates=[issuer.der]) is Reason.WEAK_KEY_ROCA


def _certificate_for(text: str, key: PublicKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, text)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(root().certificate.subject).public_key(key)
    builder = builder.serial_number(5).not_valid_before(forge.START).not_valid_after(forge.END)
    return builder.add_extension(x509.BasicConstraints(True, None), True).sign(root().key, hashes.SHA256())


@pytest.mark.parametrize(("allowed", "good"), [(1, False), (2, True)])
def test_path_lengths_count_every_intermediate(allowed: int, good: bool):
    top = authority("Top", extensions=(x509.BasicConstraints(ca=True, path_length=allowed),))
    upper = authority("Upper", top)
    issuer = authority("Issuer", upper)
    data, pool, anchors = certificate(signer=issuer), [issuer.der, upper.der], store(top)
    if good:
        assert verify(data, intermediates=pool, anchors=anchors)
    else:
        assert refusal(data, intermediates=pool, anchors=anchors) is Reason.TRUST_CHAIN
