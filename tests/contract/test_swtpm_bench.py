"""The emulated TPM of the bench: what each profile says is in the chip, and what survives which kind of ending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from tpm2_pytss import TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_ECC, TPM2_SE, TPMA_NV, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_NV_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_NV_PUBLIC,
    TPMS_SENSITIVE_CREATE,
    TPMT_SYM_DEF,
)
from tpm2_pytss.utils import NVReadEK, create_ek_template

from keyvouch.attestation.endorsement import EndorsementCertificate
from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_bench.swtpm import MANUFACTURER, Profile, Swtpm, SwtpmFactory
from keyvouch_bench.tpm_contents import connected, read_contents, read_nv

RSA, P256, P384 = 0x01C00002, 0x01C0000A, 0x01C00016
RSA_EK, P384_EK, SRK = 0x81010001, 0x81010016, 0x81000001
COUNT = 0x01800099
NO_SUCH_INDEX = 0x18B

Make = Callable[..., Swtpm]


def certificates(tpm: Swtpm) -> dict[int, bytes]:
    """The endorsement certificates in NV."""
    with connected(tpm.tcti) as esys:
        return {
            index: read_nv(esys, index) for index in (RSA, P256, P384) if index in read_contents(tpm.tcti).nv_indices
        }


def clock(tpm: Swtpm) -> tuple[int, int, bool]:
    """Resets, restarts, and whether the clock is safe."""
    with connected(tpm.tcti) as esys:
        now = esys.read_clock()
        return int(now.clockInfo.resetCount), int(now.clockInfo.restartCount), bool(now.clockInfo.safe)


def define(tpm: Swtpm, content: bytes) -> None:
    attributes = TPMA_NV.OWNERWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE | TPMA_NV.NO_DA
    public = TPMS_NV_PUBLIC(nvIndex=COUNT, nameAlg=TPM2_ALG.SHA256, attributes=attributes, dataSize=len(content))
    with connected(tpm.tcti) as esys:
        esys.nv_write(esys.nv_define_space(None, TPM2B_NV_PUBLIC(nvPublic=public)), content)


def content(tpm: Swtpm) -> bytes:
    with connected(tpm.tcti) as esys:
        return read_nv(esys, COUNT)


def chain_of(tpm: Swtpm) -> list[x509.Certificate]:
    return [
        x509.load_pem_x509_certificate((tpm.ca_certificates / name).read_bytes()) for name in ("issuer.pem", "root.pem")
    ]


@pytest.fixture
def chip(tpm_factory: Make) -> Swtpm:
    """An emulated TPM, also where the other tests have a real one."""
    return tpm_factory()


# Profiles


def test_a_standard_chip_has_two_certified_endorsement_keys(chip: Swtpm):
    held = certificates(chip)
    assert held.keys() == {RSA, P384}
    kinds = [type(x509.load_der_x509_certificate(held[index]).public_key()) for index in (RSA, P384)]
    assert [issubclass(kinds[0], rsa.RSAPublicKey), issubclass(kinds[1], ec.EllipticCurvePublicKey)] == [True, True]
    assert {RSA_EK, P384_EK} == read_contents(chip.tcti).persistent


@pytest.mark.parametrize("index", [RSA, P384])
def test_its_certificates_lead_to_the_published_root_and_name_no_registered_maker(chip: Swtpm, index: int):
    held = certificates(chip)[index]
    issuer, root = chain_of(chip)
    x509.load_der_x509_certificate(held).verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(root)
    name = x509.load_der_x509_certificate(held).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    (directory_name,) = name.value.get_values_for_type(x509.DirectoryName)
    assert MANUFACTURER in {attribute.value for attribute in directory_name}


def test_no_private_key_is_published(chip: Swtpm):
    assert {path.name for path in chip.ca_certificates.iterdir()} == {"root.pem", "issuer.pem"}
    assert all("PRIVATE" not in path.read_text() for path in chip.ca_certificates.iterdir())


@pytest.mark.parametrize(("kind", "index"), [("EK-RSA2048", RSA), ("EK-HIGH-ECC384", P384), ("EK-ECC256", P256)])
def test_the_key_of_the_template_is_the_certified_one(tpm_factory: Make, kind: str, index: int):
    tpm = tpm_factory(Profile.P256_EK)
    with connected(tpm.tcti) as esys:
        _, template = create_ek_template(kind, NVReadEK(esys))
        handle, public, *_ = esys.create_primary(None, template, ESYS_TR.ENDORSEMENT)
        esys.flush_context(handle)
    certified = x509.load_der_x509_certificate(certificates(tpm)[index])
    assert certified.public_key().public_numbers() == load_der_public_key(public.to_der()).public_numbers()
    certified.verify_directly_issued_by(chain_of(tpm)[0])


def test_a_chip_without_certificates_still_has_its_keys(tpm_factory: Make):
    tpm = tpm_factory("no-ek-certificate")
    contents = read_contents(tpm.tcti)
    assert contents.nv_indices == frozenset()
    assert {RSA_EK, P384_EK} == contents.persistent
    with connected(tpm.tcti) as esys, pytest.raises(TSS2_Exception) as caught:
        esys.tr_from_tpmpublic(RSA)
    assert caught.value.rc == NO_SUCH_INDEX


def test_certificates_that_are_not_der_are_still_readable_as_ber(tpm_factory: Make):
    tpm = tpm_factory("non-der-certificate")
    good = certificates(tpm_factory())
    for index, odd in certificates(tpm).items():
        with pytest.raises(ValueError, match="InvalidLength"):
            x509.load_der_x509_certificate(odd)
        assert EndorsementCertificate.parse(odd).signed == EndorsementCertificate.parse(good[index]).signed


def test_a_chip_may_have_no_endorsement_key_with_a_curve(tpm_factory: Make):
    tpm = tpm_factory("rsa-ek")
    assert certificates(tpm).keys() == {RSA}
    assert read_contents(tpm.tcti).persistent == {RSA_EK}


def test_a_storage_root_key_may_be_there_already(tpm_factory: Make):
    tpm = tpm_factory("with-srk")
    with connected(tpm.tcti) as esys:
        public, *_ = esys.read_public(esys.tr_from_tpmpublic(SRK))
        area = public.publicArea
        assert area.parameters.eccDetail.curveID == TPM2_ECC.NIST_P256
        assert area.objectAttributes & TPMA_OBJECT.RESTRICTED
        assert area.objectAttributes & TPMA_OBJECT.DECRYPT
        assert area.objectAttributes & TPMA_OBJECT.NODA


@pytest.mark.parametrize("profile", list(Profile))
def test_every_profile_starts_with_nothing_loaded(tpm_factory: Make, profile: Profile):
    tpm = tpm_factory(profile)
    assert tpm.loaded_handles() == frozenset()
    assert tpm.lockout_counter() == 0


# Chips and copies


def test_copies_of_a_chip_share_their_keys_and_nothing_else(tpm_factory: Make):
    first, second = tpm_factory(), tpm_factory()
    assert certificates(first) == certificates(second)
    define(first, b"mine")
    assert COUNT not in read_contents(second.tcti).nv_indices


def test_two_chips_have_different_keys_and_one_maker(tpm_factory: Make):
    first, second = tpm_factory(chip=0), tpm_factory(chip=1)
    assert set(certificates(first).values()).isdisjoint(certificates(second).values())
    assert first.ca_certificates == second.ca_certificates
    x509.load_der_x509_certificate(certificates(second)[RSA]).verify_directly_issued_by(chain_of(first)[0])


# Off and on


@pytest.mark.parametrize("end", [Swtpm.stop, Swtpm.power_cut])
def test_nv_survives_and_the_reset_is_counted(chip: Swtpm, end: Callable[[Swtpm], None]):
    define(chip, b"kept")
    before, tcti = clock(chip), chip.tcti
    end(chip)
    assert not chip.running
    chip.start()
    assert chip.tcti == tcti
    assert content(chip) == b"kept"
    assert clock(chip)[:2] == (before[0] + 1, 0)


def test_only_an_orderly_end_leaves_the_clock_safe(chip: Swtpm):
    chip.stop()
    chip.start()
    assert clock(chip)[2]
    chip.power_cut()
    chip.start()
    assert not clock(chip)[2]


def test_a_tpm_that_is_off_does_not_answer(chip: Swtpm):
    chip.power_cut()
    with pytest.raises(TSS2_Exception):
        read_contents(chip.tcti)
    chip.stop()
    chip.power_cut()


def test_restoring_a_snapshot_rolls_the_memory_back(chip: Swtpm):
    define(chip, b"old!")
    chip.stop()
    old = chip.snapshot()
    chip.start()
    with connected(chip.tcti) as esys:
        esys.nv_write(esys.tr_from_tpmpublic(COUNT), b"new!")
    assert content(chip) == b"new!"
    with pytest.raises(UsageError):
        chip.restore(old)
    chip.stop()
    chip.restore(old)
    chip.start()
    assert content(chip) == b"old!"
    assert "old!" not in repr(old)


def test_what_is_loaded_shows_until_it_is_flushed(chip: Swtpm):
    with connected(chip.tcti) as esys:
        null = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        key, *_ = esys.create_primary(None, "ecc256")
        session = esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.HMAC, null, TPM2_ALG.SHA256)
        assert {handle >> 24 for handle in chip.loaded_handles()} == {0x80, 0x02}
        for handle in (key, session):
            esys.flush_context(handle)
    assert chip.loaded_handles() == frozenset()


def test_a_wrong_authorization_is_counted_and_survives(chip: Swtpm):
    with connected(chip.tcti) as esys:
        sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=b"right"))
        handle, *_ = esys.create_primary(sensitive, "ecc256:aes128cfb")
        esys.tr_set_auth(handle, b"wrong")
        with pytest.raises(TSS2_Exception):
            esys.create(handle, None, "ecc256")
    assert chip.lockout_counter() == 1
    chip.power_cut()
    chip.start()
    assert chip.lockout_counter() >= 1


# Failures


def test_missing_programs_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError) as caught:
        SwtpmFactory(tmp_path / "cache").make(tmp_path / "tpm")
    assert caught.value.reason is Reason.CONFIGURATION
    assert "apt-get install swtpm swtpm-tools" in str(caught.value)


def test_a_memory_that_is_no_memory_does_not_start_and_says_where_to_look(chip: Swtpm):
    chip.power_cut()
    (chip.folder / "tpm2-00.permall").write_bytes(b"no memory of a TPM")
    with pytest.raises(UnavailableError) as caught:
        chip.start()
    assert caught.value.reason is Reason.DEVICE_FAILED
    assert str(chip.log) in str(caught.value)
    assert not chip.running
