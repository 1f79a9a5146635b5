"""TPMs that lack algorithms: what they list, what they refuse with which code, and that the rest still works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_CC, TPM2_ECC, TPM2_RC, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC_PARMS

from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_algorithms import P384_ONLY, RSA_ONLY, AlgorithmFilterTcti, Algorithms
from keyvouch_bench.tpm_faults import Fault, FaultingTcti, FaultPlan, refuse
from keyvouch_bench.tpm_tcti import Recording, RecordingTcti, open_tcti

FAILURE = int(TPM2_RC.FAILURE)
STORAGE = "ecc256:aes128cfb"
P256_KEY = TPM2B_PUBLIC.from_pem(
    ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)


@pytest.fixture
def tpm(tpm_factory: Callable[[], Swtpm]) -> Swtpm:
    """An emulated TPM, also where the other tests have a real one: a resource manager would clear up behind us."""
    return tpm_factory()


@contextmanager
def esys_over(tcti: Any) -> Iterator[Any]:
    with tcti, ESAPI(tcti) as esys:
        yield esys


def code_of(action: Callable[[], object]) -> int:
    with pytest.raises(TSS2_Exception) as caught:
        action()
    return int(caught.value.rc)


def algorithms(esys: Any) -> set[int]:
    _, answer = esys.get_capability(TPM2_CAP.ALGS, 0, 254)
    return {int(entry.alg) for entry in answer.data.algorithms}


def curves(esys: Any) -> set[int]:
    _, answer = esys.get_capability(TPM2_CAP.ECC_CURVES, 0, 254)
    return {int(curve) for curve in answer.data.eccCurves}


def test_without_a_filter_both_kinds_are_there(tpm: Swtpm):
    with esys_over(AlgorithmFilterTcti(open_tcti(tpm.tcti), Algorithms())) as esys:
        assert {TPM2_ALG.RSA, TPM2_ALG.ECC, TPM2_ALG.ECDSA} <= algorithms(esys)
        assert {TPM2_ECC.NIST_P256, TPM2_ECC.NIST_P384} <= curves(esys)


def test_an_rsa_only_tpm_knows_no_curve(tpm: Swtpm):
    with esys_over(AlgorithmFilterTcti(open_tcti(tpm.tcti), RSA_ONLY)) as esys:
        assert TPM2_ALG.RSA in algorithms(esys)
        assert algorithms(esys).isdisjoint({TPM2_ALG.ECC, TPM2_ALG.ECDSA, TPM2_ALG.ECDH})
        assert code_of(lambda: curves(esys)) == 0x1C4
        assert code_of(lambda: esys.create_primary(None, STORAGE)) == 0x2CA
        key, *_ = esys.create_primary(None, "rsa2048:aes128cfb")
        assert code_of(lambda: esys.create(key, None, "ecc256")) == 0x2CA
        esys.flush_context(key)


def test_a_p384_only_tpm_knows_rsa_and_one_curve(tpm: Swtpm):
    with esys_over(AlgorithmFilterTcti(open_tcti(tpm.tcti), P384_ONLY)) as esys:
        assert {TPM2_ALG.RSA, TPM2_ALG.ECC} <= algorithms(esys)
        assert curves(esys) == {TPM2_ECC.NIST_P384}
        assert code_of(lambda: esys.create_primary(None, STORAGE)) == 0x2E6
        key, *_ = esys.create_primary(None, "ecc384:aes128cfb")
        for kind in ("ecc256", "ecc256:ecdsa-sha256:null", "ecc256:ecdaa4-sha256:null"):
            public = TPM2B_PUBLIC.parse(kind, objectAttributes=TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.USERWITHAUTH)
            assert code_of(lambda public=public: esys.create(key, None, public)) == 0x2E6
        assert code_of(lambda: esys.load_external(P256_KEY, None, ESYS_TR.NULL)) == 0x2E6
        private, public, *_ = esys.create(key, None, "ecc384")
        for handle in (esys.load(key, private, public), key):
            esys.flush_context(handle)


def test_a_tpm_may_have_curves_and_no_rsa(tpm: Swtpm):
    with esys_over(AlgorithmFilterTcti(open_tcti(tpm.tcti), Algorithms(rsa=False))) as esys:
        assert algorithms(esys).isdisjoint({TPM2_ALG.RSA, TPM2_ALG.RSASSA, TPM2_ALG.RSAPSS, TPM2_ALG.OAEP})
        assert code_of(lambda: esys.create_primary(None, "rsa2048:aes128cfb")) == 0x2CA
        key, *_ = esys.create_primary(None, STORAGE)
        esys.flush_context(key)


def test_parameters_that_are_only_tried_are_refused_too(tpm: Swtpm):
    public = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=TPMA_OBJECT.SIGN_ENCRYPT).publicArea
    parameters = TPMT_PUBLIC_PARMS(type=public.type, parameters=public.parameters)
    for filter_, code in ((P384_ONLY, 0x1E6), (RSA_ONLY, 0x1CA)):
        with esys_over(AlgorithmFilterTcti(open_tcti(tpm.tcti), filter_)) as esys:
            assert code_of(lambda esys=esys: esys.test_parms(parameters)) == code
    with esys_over(AlgorithmFilterTcti(open_tcti(tpm.tcti), Algorithms())) as esys:
        esys.test_parms(parameters)


def test_filters_faults_and_recordings_can_be_stacked(tpm: Swtpm):
    seen, reached = Recording(), Recording()
    plan = FaultPlan(Fault(refuse(FAILURE), code=TPM2_CC.GetRandom))
    inner = AlgorithmFilterTcti(RecordingTcti(open_tcti(tpm.tcti), reached), P384_ONLY)
    with esys_over(RecordingTcti(FaultingTcti(inner, plan), seen)) as esys:
        assert code_of(lambda: esys.get_random(1)) == FAILURE
        assert code_of(lambda: esys.create_primary(None, STORAGE)) == 0x2E6
        assert curves(esys) == {TPM2_ECC.NIST_P384}
    assert [one.result for one in seen.exchanges] == [FAILURE, 0x2E6, 0]
    assert reached.codes == (TPM2_CC.GetCapability,)
