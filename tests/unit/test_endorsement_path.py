"""Endorsement key certificates: who has to stand above them, and how much is looked at to find out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import prod
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from keyvouch.attestation import certificates
from keyvouch.attestation.certificates import validate_path
from keyvouch.attestation.endorsement import EndorsementCertificate
from keyvouch.attestation.trust import TrustAnchor, TrustStore
from keyvouch.errors import EvidenceError, Reason, UsageError
from support import endorsement_forge as forge
from support.endorsement_forge import (
    INSTANT,
    EkAuthority,
    PublicKey,
    authority,
    certificate,
    intermediate,
    root,
    sequence,
    store,
    tlv,
)
from support.endorsement_verdicts import refusal, verify
from support.tpm_forge import ec_key, rsa_key

Parse = EndorsementCertificate.parse


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
    assert verify(certificate(), anchors=anchors("tpm", "tpm-ek"))
    assert refusal(certificate(), anchors=anchors("tpm", "packed")) is Reason.TRUST_CHAIN


def test_an_anchor_for_every_format_is_not_one_for_endorsement_keys():
    general = TrustAnchor("general", root().certificate)
    assert refusal(certificate(), anchors=TrustStore([general])) is Reason.TRUST_CHAIN
    assert verify(certificate(), anchors=TrustStore([general, *store()])).anchor.name == "anchor-0"


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


# Work


def test_intermediates_of_a_peer_have_at_most_16_kib_in_all():
    own = intermediate().der
    known = [authority("Known").certificate]
    most = 16 * 1024 - len(own)
    assert verify(certificate(), intermediates=[own, b"\xff" * (most - 1), b"\xff", *known])
    assert refusal(certificate(), intermediates=[own, b"\xff" * most, b"\xff"]) is Reason.TPM_EK_CERTIFICATE


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[x509.Certificate]]:
    """The candidates for a path that are judged, as they come. They are judged as ever."""
    seen: list[Sequence[x509.Certificate]] = []

    def judge(path: Sequence[x509.Certificate], **arguments: Any) -> certificates.CertificationPath:
        seen.append(path)
        return validate_path(path, **arguments)

    monkeypatch.setattr(certificates, "validate_path", judge)
    return seen


@pytest.mark.parametrize(("number", "judgements"), [(1, 1), (2, 4), (3, 15), (4, 64), (16, 64)])
def test_all_issuers_share_one_budget(number: int, judgements: int, judged: list[object]):
    """Authorities of one name and one key that name each other: as many orders of them as one likes."""
    key = ec_key(9)
    crowd = [authority("Crowd", key=key) for _ in range(number)]
    data = certificate(signer=crowd[0])
    assert refusal(data, intermediates=[one.der for one in crowd]) is Reason.TRUST_CHAIN
    assert len(judged) == judgements


def test_several_issuers_of_one_name_each_have_a_share(judged: list[object]):
    crowd = [authority("EK Intermediate").der for _ in range(6)]
    assert verify(certificate(), intermediates=[*crowd[:3], intermediate().der, *crowd[3:]])
    assert len(judged) == 3 * 16 + 1


def test_no_key_of_a_stranger_is_computed_with():
    """A stranger's key would say that the signature is good; it is never asked, as the last reason shows."""
    stranger = authority("Stranger")
    with pytest.raises(EvidenceError) as caught:
        verify(certificate(signer=stranger, signature=b"\0"), intermediates=[stranger.der])
    assert caught.value.metadata == {"detail": "anchor"}
    with pytest.raises(EvidenceError) as caught:
        verify(certificate(signature=b"\0"))
    assert caught.value.reason is Reason.TRUST_CHAIN
    assert not caught.value.metadata
