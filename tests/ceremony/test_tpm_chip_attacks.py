"""What a registration rests on in the chip itself: attempts of a TPM's owner that only the TPM can refuse.

Response codes are those of the reference implementation, with the handle, parameter or session they are about.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CC, TPM2_SE, TPMA_SESSION
from tpm2_pytss.types import (
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMT_PUBLIC,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
)

from keyvouch.attestation.credential_activation import CredentialChallenge, make_credential
from keyvouch.attestation.tpm_keys import check_attestation_key, check_signing_key
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch_agent.vaults.tpm.pin_index import auth_value
from keyvouch_bench.tpm_tcti import open_tcti
from support.tpm_attacker import PIN, Attacker, pin_hash, victim_in
from support.tpm_device import CHANNEL
from support.tpm_forge import attestation_key, public_area

NO_CIPHER: Final = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
NO_SUCH_ENTITY_TO_BIND: Final = 0x28B
NO_AUTHORIZATION: Final = 0x12F
ENDORSEMENT_KEY: Final = 0x81010001  # that of RSA
HIERARCHIES: Final = {"owner": ESYS_TR.OWNER, "endorsement": ESYS_TR.ENDORSEMENT, "null": ESYS_TR.NULL}


def refused(code: int, action: Callable[[], object]) -> None:
    with pytest.raises(TSS2_Exception) as caught:
        action()
    assert caught.value.rc == code, f"0x{caught.value.rc:x}, not 0x{code:x}"


# PINs


def test_a_session_bound_to_the_pin_index_tries_no_pins_H3(tpm: Any, tmp_path: Path):
    """Its key would come from the PIN, so that every command in it would tell if that was right, uncounted."""
    with victim_in(tpm, tmp_path / "account") as victim:
        with victim.attacked() as thief:
            for guess in (b"a guess", auth_value(pin_hash(PIN))):
                for kind in (TPM2_SE.HMAC, TPM2_SE.POLICY):
                    refused(NO_SUCH_ENTITY_TO_BIND, lambda g=guess, k=kind: _bound(thief, g, k))
            assert thief.count() == 0
        assert victim.signs()


def _bound(thief: Attacker, guess: bytes, kind: Any) -> None:
    index = thief.index()
    thief.esys.tr_set_auth(index, guess)
    session = thief.keep(thief.esys.start_auth_session(ESYS_TR.NONE, index, kind, NO_CIPHER, TPM2_ALG.SHA256))
    thief.esys.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.AUDIT)
    thief.esys.get_random(8, session1=session)


# Keys of which the TPM has nothing but the public half: their attributes are whatever the owner writes


@pytest.fixture
def owner(tpm_factory: Callable[..., Any]) -> Iterator[Any]:
    """A connection of the TPM's owner, whose passwords are empty."""
    with open_tcti(tpm_factory().tcti) as tcti, ESAPI(tcti) as esys:
        yield esys


@contextmanager
def loaded(esys: Any, area: bytes, hierarchy: Any) -> Iterator[Any]:
    """A public area from outside, in the TPM."""
    public = TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(area)[0])
    handle = esys.load_external(public, None, hierarchy)
    try:
        yield handle
    finally:
        esys.flush_context(handle)


@contextmanager
def policy_session(esys: Any, algorithm: Any = TPM2_ALG.SHA256) -> Iterator[Any]:
    session = esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, NO_CIPHER, algorithm)
    try:
        yield session
    finally:
        with suppress(TSS2_Exception):
            esys.flush_context(session)


def policy_of(command: int) -> bytes:
    """A policy that anybody fulfils, for one command: TPM2_PolicyCommandCode alone."""
    return hashlib.sha256(bytes(32) + struct.pack(">II", TPM2_CC.PolicyCommandCode, command)).digest()


@pytest.mark.parametrize("hierarchy", HIERARCHIES)
@pytest.mark.parametrize("by_policy", [False, True], ids=["by value", "by policy"])
def test_an_attestation_key_in_software_opens_no_challenge_TPM4(owner: Any, hierarchy: str, by_policy: bool):
    own = ec.generate_private_key(ec.SECP256R1())
    changes = {"policy": policy_of(TPM2_CC.ActivateCredential)} if by_policy else {}
    area = attestation_key(own, **changes)
    check_attestation_key(area)  # the server sees nothing wrong with it
    genuine = _primary(owner, bytes(attestation_key(own)))
    with loaded(owner, area, HIERARCHIES[hierarchy]) as handle:
        refused(NO_AUTHORIZATION, lambda: _activate(owner, handle, area.name, by_policy=by_policy))
    handle, name = genuine
    assert _activate(owner, handle, name, by_policy=False)  # the control
    owner.flush_context(handle)


def _primary(esys: Any, area: bytes) -> tuple[Any, bytes]:
    """The endorsement hierarchy's own key of this template."""
    template = TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(area)[0])
    made = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
    return made[0], TpmPublic(bytes(made[1].publicArea.marshal())).name


def _activate(esys: Any, handle: Any, name: bytes, *, by_policy: bool) -> bytes:
    """TPM2_ActivateCredential of a challenge over `name`; returns the secret."""
    endorsement_key = esys.tr_from_tpmpublic(ENDORSEMENT_KEY)
    shown = esys.read_public(endorsement_key)
    public = TpmPublic(bytes(shown[0].publicArea.marshal()))
    given = make_credential(endorsement_key=public, name=name, secret=os.urandom(32), entropy=os.urandom(74))
    blob, secret = _structures(given)
    with policy_session(esys, public.name_algorithm.value) as opens, policy_session(esys) as session:
        esys.policy_secret(ESYS_TR.ENDORSEMENT, opens, expiration=0)
        esys.policy_command_code(session, TPM2_CC.ActivateCredential)
        first = session if by_policy else ESYS_TR.PASSWORD
        told = esys.activate_credential(handle, endorsement_key, blob, secret, session1=first, session2=opens)
        return bytes(told)


def _structures(given: CredentialChallenge) -> tuple[Any, Any]:
    blob, secret = (len(part).to_bytes(2, "big") + part for part in (given.credential_blob, given.encrypted_secret))
    return TPM2B_ID_OBJECT.unmarshal(blob)[0], TPM2B_ENCRYPTED_SECRET.unmarshal(secret)[0]


@pytest.mark.parametrize("by_policy", [False, True], ids=["by value", "by policy"])
def test_a_key_in_software_is_not_certified_TPM4(owner: Any, by_policy: bool):
    own = ec.generate_private_key(ec.SECP256R1())
    changes = {"policy": policy_of(TPM2_CC.Certify)} if by_policy else {}
    area = TpmPublic(public_area(own, attributes=CHANNEL, **changes))
    check_signing_key(area)  # the server sees nothing wrong with it
    signer, _ = _primary(owner, bytes(attestation_key(own)))
    with loaded(owner, area, ESYS_TR.NULL) as handle, policy_session(owner) as session:
        owner.policy_command_code(session, TPM2_CC.Certify)
        first = session if by_policy else ESYS_TR.PASSWORD
        refused(NO_AUTHORIZATION, lambda: _certify(owner, handle, signer, first))
    genuine, _ = _primary(owner, bytes(area) if not by_policy else public_area(own, attributes=CHANNEL))
    assert _certify(owner, genuine, signer, ESYS_TR.PASSWORD)  # the control
    for handle in (genuine, signer):
        owner.flush_context(handle)


def _certify(esys: Any, handle: Any, signer: Any, session: Any) -> bytes:
    scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
    said = esys.certify(handle, signer, b"nonce", scheme, session1=session, session2=ESYS_TR.PASSWORD)
    return bytes(said[0])
