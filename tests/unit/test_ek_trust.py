"""The makers' certificates in the wheel: all are read, all are where they belong, and real chips chain to them."""

from __future__ import annotations

import base64
import hashlib
import re
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch.assurance import Protection
from keyvouch.attestation.certificates import find_path
from keyvouch.attestation.endorsement import (
    EndorsementCertificate,
    check_self_signed,
    verify_endorsement_certificate,
)
from keyvouch.errors import EvidenceError, KeyvouchError, Reason
from keyvouch_server.ek_trust import EkTrust, load_ek_trust, makers
from support.endorsement_forge import (
    ECDSA_SHA256,
    INSTANT,
    RSA_SHA256,
    EkAuthority,
    attribute,
    authority,
    certificate,
    ek,
    intermediate,
    root,
    sequence,
    store,
    tlv,
)
from support.endorsement_verdicts import refusal, verify
from support.software_tpm import public_area
from support.tpm_forge import ec_key, rsa_key
from support.vectors import ROOT

ROOTS = {
    "GCE_gcp_ek_ak_ca_root",
    "GCE_tpm_ek_root_1",
    "GS_TPM_RT",
    "INF_ECC_010RT",
    "INF_RSA_010RT",
    "INTEL_RT",
    "NTC1",
    "NTC2",
    "NUVO_0100",
    "NUVO_1110",
    "NUVO_1111",
    "NUVO_2110",
    "NUVO_2111",
}

SHA1 = "signed with SHA-1, and the root (VeriSign) is in none of the sources"
NO_ROOT = "the root is in none of the sources"
WITHOUT_PATH = {
    "Alibaba_Cloud_vTPM_EK": NO_ROOT,
    "Nationz_TPM_EK": NO_ROOT,
    "STM_ECC_01RT": NO_ROOT,
    "STM_ECC_01I": NO_ROOT,
    **dict.fromkeys(("IFX1", "IFX2", "IFX3", "IFX4", "IFX5", "IFX8", "IFX15"), SHA1),
    **dict.fromkeys(("IFX_RSA_17I", "IFX_RSA_18I", "IFX_RSA_20I", "IFX_RSA_21I", "IFX_RSA_RT"), SHA1),
}

FILES = sorted(path for path in makers().iterdir() if path.name.endswith(".pem"))


def der(path: Path) -> bytes:
    return base64.b64decode("".join(path.read_text("ascii").split("-----")[2].split()))


@pytest.fixture(scope="module")
def trust() -> EkTrust:
    return load_ek_trust(makers())


def test_every_file_is_read(trust: EkTrust):
    assert len(FILES) == 50
    assert len(trust.anchors) + len(trust.intermediates) == 50


def test_every_root_is_an_anchor_and_nothing_else_is(trust: EkTrust):
    assert {anchor.name for anchor in trust.anchors} == {f"tpm-ek:{name}" for name in ROOTS}
    for anchor in trust.anchors:
        assert anchor.formats == frozenset({"tpm-ek"})
        assert anchor.protection is Protection.TPM
    assert not {anchor.certificate for anchor in trust.anchors} & set(trust.intermediates)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem in ROOTS], ids=lambda path: path.stem)
def test_every_root_has_signed_itself(path: Path):
    """Over the bytes in the file, which of Nuvoton's are not DER."""
    read = EndorsementCertificate.parse(der(path))
    key = read.key.public_key()
    if read.signature_algorithm.hex() == "2a864886f70d010105":
        digest: hashes.HashAlgorithm = hashes.SHA1()
    else:
        digest = hashes.SHA384() if read.signature_algorithm.hex() == "2a8648ce3d040303" else hashes.SHA256()
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(read.signature, read.signed, padding.PKCS1v15(), digest)
    else:
        key.verify(read.signature, read.signed, ec.ECDSA(digest))


def test_nuvoton_roots_lose_nothing_by_being_put_right(trust: EkTrust):
    odd = {path.stem: der(path) for path in FILES if path.stem.startswith(("NTC", "NUVO"))}
    assert len(odd) == 7
    anchors = {anchor.name: anchor.certificate for anchor in trust.anchors}
    for name, data in odd.items():
        with pytest.raises(ValueError, match="SetOrdering"):
            x509.load_der_x509_certificate(data)
        made = anchors[f"tpm-ek:{name}"].public_bytes(Encoding.DER)
        assert made != data
        assert sorted(made) == sorted(data)
        assert EndorsementCertificate.parse(made).subject == EndorsementCertificate.parse(data).subject


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in ROOTS], ids=lambda path: path.stem)
def test_every_intermediate_has_a_path_or_a_reason_not_to(path: Path, trust: EkTrust):
    (one,) = (one for one in trust.intermediates if one.public_bytes(Encoding.DER) == der(path))
    anchors = trust.anchors.anchors_for("tpm-ek", aaguid=bytes(16))

    def find() -> str:
        return find_path(one, trust.intermediates, anchors=anchors, instant=INSTANT).anchor.name

    if path.stem in WITHOUT_PATH:
        with pytest.raises(EvidenceError):
            find()
    else:
        assert find().startswith("tpm-ek:")


def test_the_list_of_certificates_is_complete():
    text = makers().joinpath("README.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| `(\S+\.pem)` \|.*\| `([0-9a-f]{64})` \|$", text, re.MULTILINE))
    assert listed == {path.name: hashlib.sha256(der(path)).hexdigest() for path in FILES}
    roots = set(re.findall(r"^\| `(\S+)\.pem` .*\| root \|", text, re.MULTILINE))
    assert roots == ROOTS


# Certificates out of real TPMs


@pytest.mark.parametrize(
    ("name", "vendor", "anchor"),
    [
        ("go-tpm-tools/uca_tpm_rsa_enc_cert.pem", "Google", "tpm-ek:GCE_tpm_ek_root_1"),
        ("go-tpm-tools/uca_tpm_ecc_enc_cert.pem", "Google", "tpm-ek:GCE_tpm_ek_root_1"),
    ],
)
def test_a_real_certificate_leads_to_its_maker(name: str, vendor: str, anchor: str, trust: EkTrust):
    path = ROOT / name
    read = EndorsementCertificate.parse(der(path))
    arguments = {"endorsement_key": public_area(read.key.public_key()), "instant": datetime(2026, 8, 1, tzinfo=UTC)}
    verified = verify_endorsement_certificate(
        read, intermediates=trust.intermediates, anchors=trust.anchors, **arguments
    )
    assert verified.vendor
    assert (verified.vendor.name, verified.anchor.name) == (vendor, anchor)
    with pytest.raises(EvidenceError) as caught:
        verify_endorsement_certificate(read, intermediates=[], anchors=trust.anchors, **arguments)
    assert caught.value.reason is Reason.TRUST_CHAIN


# An administrator's folder


def pem(*ders: bytes) -> str:
    return "".join(x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM).decode() for one in ders)


def test_an_administrator_adds_a_folder(tmp_path: Path):
    (tmp_path / "own.pem").write_text("Our own makers\n" + pem(root().der, intermediate().der))
    (tmp_path / "notes.txt").write_text("not read")
    trust = load_ek_trust(makers(), tmp_path)
    assert len(trust.anchors) == len(ROOTS) + 1
    assert load_ek_trust(tmp_path).intermediates == (intermediate().certificate,)
    verified = verify_endorsement_certificate(
        EndorsementCertificate.parse(certificate()),
        endorsement_key=public_area(ek()),
        intermediates=trust.intermediates,
        anchors=trust.anchors,
        instant=INSTANT,
    )
    assert verified.anchor.name == "tpm-ek:own"


def test_what_issued_itself_but_is_no_authority_is_no_anchor(tmp_path: Path):
    (tmp_path / "leaf.pem").write_text(pem(authority("Leaf", extensions=(x509.BasicConstraints(False, None),)).der))
    assert len(load_ek_trust(tmp_path).anchors) == 0


def test_an_authority_that_only_bears_the_name_of_its_issuer_is_no_anchor(tmp_path: Path):
    """As the certificate of a new key is that the old one signed."""
    old = authority("Maker")
    new = authority("Maker", old)
    (tmp_path / "new.pem").write_text(pem(new.der))
    trust = load_ek_trust(tmp_path)
    assert (len(trust.anchors), trust.intermediates) == (0, (new.certificate,))
    (tmp_path / "old.pem").write_text(pem(old.der))
    trust = load_ek_trust(tmp_path)
    assert [anchor.certificate for anchor in trust.anchors] == [old.certificate]
    assert trust.intermediates == (new.certificate,)


def test_a_root_is_signed_over_the_bytes_it_came_as(tmp_path: Path):
    spoilt = bytearray(root().der)
    spoilt[-1] ^= 1
    (tmp_path / "spoilt.pem").write_text(pem(bytes(spoilt)))
    assert len(load_ek_trust(tmp_path).anchors) == 0


RSA_SHA1 = sequence(bytes.fromhex("06092a864886f70d0101050500"))


@pytest.mark.parametrize(
    ("key", "algorithm", "digest", "good"),
    [
        (rsa_key(1), sequence(RSA_SHA256), hashes.SHA256(), True),
        (rsa_key(1), RSA_SHA1, hashes.SHA1(), True),
        (rsa_key(1), RSA_SHA1, hashes.SHA256(), False),
        (rsa_key(1), sequence(bytes.fromhex("06092a864886f70d0101040500")), hashes.MD5(), False),
        (ec_key(9), sequence(ECDSA_SHA256), hashes.SHA256(), True),
        (ec_key(9), RSA_SHA1, hashes.SHA1(), False),
        (ec_key(9), sequence(bytes.fromhex("06072a8648ce3d0401")), hashes.SHA1(), False),
    ],
)
def test_by_which_algorithms_a_root_signs_itself(key: Any, algorithm: bytes, digest: hashes.HashAlgorithm, good: bool):
    data = itself(key, algorithm=algorithm, digest=digest)
    if good:
        check_self_signed(EndorsementCertificate.parse(data))
    else:
        with pytest.raises(EvidenceError) as caught:
            check_self_signed(EndorsementCertificate.parse(data))
        assert caught.value.reason is Reason.TRUST_CHAIN


def itself(own: Any, **parts: Any) -> bytes:
    """A certificate that names itself as its issuer."""
    signer = EkAuthority(own, root().certificate)
    return certificate(own.public_key(), signer=signer, subject=signer.name, **parts)


def test_a_root_bears_its_own_name_and_a_key_that_is_one():
    key = ec_key(9)
    point = b"\x03\x42\0\x04" + bytes(64)
    bad_point = sequence(sequence(bytes.fromhex("06072a8648ce3d020106082a8648ce3d030107")), point)
    for data in (
        certificate(key.public_key(), signer=EkAuthority(key, root().certificate)),
        itself(key, key=bad_point),
    ):
        with pytest.raises(EvidenceError) as caught:
            check_self_signed(EndorsementCertificate.parse(data))
        assert caught.value.reason is Reason.TRUST_CHAIN
    check_self_signed(EndorsementCertificate.parse(itself(key)))


def test_a_signature_with_sha1_is_good_for_a_root_only():
    signer = authority("RSA", key=rsa_key(1))
    data = certificate(signer=signer, algorithm=RSA_SHA1, digest=hashes.SHA1())
    assert refusal(data, anchors=store(signer)) is Reason.TRUST_CHAIN
    assert verify(certificate(signer=signer), anchors=store(signer))


def test_long_names_of_makers_warn_nobody(tmp_path: Path):
    """Warnings are errors in tests. Read on their own, these names give one."""
    path = next(path for path in FILES if path.stem == "GCE_tpm_ek_root_1")
    with pytest.warns(UserWarning, match="length"):
        x509.load_pem_x509_certificate(path.read_bytes()).subject  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (anchor,) = (one for one in load_ek_trust(makers()).anchors if one.name == f"tpm-ek:{path.stem}")
        assert anchor.certificate.subject == anchor.certificate.issuer
        with pytest.raises(UserWarning, match="still there"):
            warnings.warn("The filters are still there.", stacklevel=1)


def test_a_name_that_cannot_be_read_harms_nobody_else(tmp_path: Path):
    key = ec_key(9)
    nameless = sequence(tlv(0x31, attribute("550403", b"\xe9", 0x14)))
    data = certificate(key.public_key(), signer=EkAuthority(key, root().certificate), subject=nameless)
    with pytest.raises(ValueError, match="asn1"):
        x509.load_der_x509_certificate(data).subject  # noqa: B018
    (tmp_path / "own.pem").write_text(pem(data, root().der))
    trust = load_ek_trust(tmp_path)
    assert (len(trust.anchors), len(trust.intermediates)) == (1, 1)


def test_an_empty_folder_vouches_for_nothing(tmp_path: Path):
    trust = load_ek_trust(tmp_path)
    assert (len(trust.anchors), trust.intermediates) == (0, ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str):
    (tmp_path / "bad.pem").write_text(text)
    with pytest.raises(KeyvouchError) as caught:
        load_ek_trust(makers(), tmp_path)
    assert caught.value.reason is Reason.CONFIGURATION
    assert "bad.pem" in caught.value.message


BLOCK = pem(root().der)
BEGIN, END = "-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "more",
    [
        BLOCK.replace(BEGIN, f"{BEGIN}Name: value\n\n"),
        f"{BEGIN}AA*A\n{END}",
        f"{BEGIN}AAAA\n",
        BLOCK.replace(" CERTIFICATE", " TRUSTED CERTIFICATE"),
        BLOCK.replace(" CERTIFICATE", " X509 CRL"),
    ],
    ids=["headers", "no base64", "no end", "trusted", "another kind"],
)
def test_no_block_of_a_file_is_skipped(tmp_path: Path, more: str):
    good = pem(intermediate().der)
    for text in (good + more, more + good):
        (tmp_path / "bad.pem").write_text(text)
        with pytest.raises(KeyvouchError) as caught:
            load_ek_trust(tmp_path)
        assert caught.value.reason is Reason.CONFIGURATION
        assert "bad.pem" in caught.value.message
    (tmp_path / "bad.pem").write_text(f"Text - before\n{good}Text between\n{BLOCK}")
    trust = load_ek_trust(tmp_path)
    assert (len(trust.anchors), len(trust.intermediates)) == (1, 1)


def test_a_folder_that_is_not_there_and_a_file_that_is_none_are_named(tmp_path: Path):
    (tmp_path / "folder.pem").mkdir()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(KeyvouchError) as caught:
            load_ek_trust(folder)
        assert caught.value.reason is Reason.CONFIGURATION
        assert str(folder) in caught.value.message
