"""Every state an account in a TPM can get into has a name, a sentence and a way back (H10), on emulated TPMs.

What `doctor` and `tpm status` say of an account is what an approval would be refused with, word for word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tpm2_pytss import (
    ESYS_TR,
    TPM2_ALG,
    TPM2_RC,
    TPM2B_NV_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_NV,
    TPMA_OBJECT,
    TPMS_NV_PUBLIC,
    TSS2_Exception,
)
from tpm2_pytss.constants import TPM2_CC

from keyvouch.cose import Algorithm
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.tpm import account_file
from keyvouch_agent.vaults.tpm.connection import TpmAccess, TpmSettings
from keyvouch_agent.vaults.tpm.templates import KINDS, storage_root_key
from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import connected
from keyvouch_bench.tpm_faults import Fault, FaultPlan, refuse
from support.tpm_home import PIN, TpmHome

Make = Callable[..., Swtpm]

SRK = 0x81000001
REENROL = "enroll --replace"


@pytest.fixture
def chip(tpm_factory: Make, request: pytest.FixtureRequest) -> Swtpm:
    marker = request.node.get_closest_marker("tpm_profile")
    return tpm_factory(*marker.args) if marker else tpm_factory()


@pytest.fixture
def ada(chip: Swtpm, tmp_path: Path) -> TpmHome:
    """An account that signs."""
    made = TpmHome.at(tmp_path / "home", chip.tcti).enrol()
    made.sign()
    return made


def refused(ada: TpmHome, reason: Reason, message: str, fix: str, *, seen_beforehand: bool = True) -> DeviceError:
    """An approval is refused so, and whoever looks at the account hears the same."""
    with pytest.raises(DeviceError) as caught:
        ada.sign()
    error = caught.value
    assert (error.reason, message in error.message, fix in error.fix) == (reason, True, True), repr(str(error))
    if seen_beforehand:
        problem = ada.standing().problem
        assert problem is not None
        assert (problem.reason, problem.message, problem.fix) == (error.reason, error.message, error.fix)
    return error


def handle_of(ada: TpmHome) -> int:
    pin = account_file.decode(ada.record.read_bytes()).pin
    assert pin is not None
    return pin.gate.handle


def clear(chip: Swtpm) -> None:
    with connected(chip.tcti) as esys:
        esys.clear(ESYS_TR.LOCKOUT)


def set_password(chip: Swtpm, hierarchy: int, password: bytes) -> None:
    with connected(chip.tcti) as esys:
        esys.hierarchy_change_auth(hierarchy, password)


def undefine(chip: Swtpm, handle: int) -> None:
    with connected(chip.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(handle))


def evict_root_key(chip: Swtpm) -> None:
    with connected(chip.tcti) as esys:
        esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(SRK), SRK)


def keep_root_key(chip: Swtpm, algorithm: Algorithm, *, standard: bool = True) -> None:
    """Make a storage root key persistent, as an owner may: the standard one, or one of another template."""
    template = storage_root_key(KINDS[algorithm])
    if not standard:
        template.publicArea.unique.ecc.x.buffer = bytes(32)
        template.publicArea.objectAttributes &= ~TPMA_OBJECT.NODA
    with connected(chip.tcti) as esys:
        made, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
        esys.evict_control(ESYS_TR.OWNER, made, SRK)
        esys.flush_context(made)


# The TPM was cleared, or is another one


def test_h10_a_tpm_that_was_cleared(ada: TpmHome, chip: Swtpm) -> None:
    clear(chip)
    refused(ada, Reason.TPM_CLEARED, "The TPM was cleared, or this is another TPM", REENROL)


def test_h10_a_tpm_that_is_cleared_while_the_pin_is_typed(ada: TpmHome, chip: Swtpm) -> None:
    with pytest.raises(DeviceError) as caught:
        ada.sign_unwarned(between=lambda: clear(chip))
    assert caught.value.reason is Reason.TPM_CLEARED


@pytest.mark.tpm_profile("with-srk")
def test_h10_a_tpm_with_a_persistent_root_key_that_was_cleared(ada: TpmHome, chip: Swtpm) -> None:
    clear(chip)
    refused(ada, Reason.TPM_CLEARED, "The TPM was cleared", REENROL)


def test_h10_another_tpm(ada: TpmHome, tpm_factory: Make) -> None:
    ada.tcti = tpm_factory(chip=1).tcti
    refused(ada, Reason.TPM_CLEARED, "or this is another TPM", REENROL)


# Passwords of the owner


@pytest.mark.tpm_profile("with-srk")
def test_h10_an_owner_password_set_later_does_not_keep_a_key_from_signing(ada: TpmHome, chip: Swtpm) -> None:
    set_password(chip, ESYS_TR.OWNER, b"owner")
    ada.sign()
    with pytest.raises(DeviceError) as caught:
        ada.sign("000000")
    assert (caught.value.reason, caught.value.retries_left) == (Reason.PIN_WRONG, 7)
    assert ada.capabilities().pin_retries_left == 7
    standing = ada.standing().standing
    assert standing is not None
    assert (standing.trouble, standing.tries_left, standing.remembered) == (None, 7, True)
    ada.sign()
    assert ada.capabilities().pin_retries_left == 8


@pytest.mark.tpm_profile("with-srk")
def test_h10_blocked_under_an_owner_password_is_still_blocked(ada: TpmHome, chip: Swtpm) -> None:
    set_password(chip, ESYS_TR.OWNER, b"owner")
    for _ in range(8):
        with pytest.raises(DeviceError):
            ada.sign("000000")
    refused(ada, Reason.PIN_BLOCKED, "blocked", REENROL, seen_beforehand=False)
    problem = ada.standing().problem
    assert problem is not None
    assert problem.reason is Reason.PIN_BLOCKED


def test_h10_an_owner_password_without_a_persistent_root_key_has_to_be_known(ada: TpmHome, chip: Swtpm) -> None:
    set_password(chip, ESYS_TR.OWNER, b"owner")
    refused(ada, Reason.TPM_OWNER_AUTH, "The TPM's owner has set a password", "owner_auth_file")
    password = ada.home.path / "owner"
    password.write_bytes(b"owner\n")
    ada.settings(owner_auth_file=str(password))
    ada.sign()
    standing = ada.standing().standing
    assert standing is not None
    assert (standing.trouble, standing.tries_left, standing.remembered) == (None, 8, False)


def test_an_account_under_an_owner_password_can_be_taken_away(ada: TpmHome, chip: Swtpm) -> None:
    handle = handle_of(ada)
    set_password(chip, ESYS_TR.OWNER, b"owner")
    password = ada.home.path / "owner"
    password.write_bytes(b"owner")
    ada.settings(owner_auth_file=str(password))
    with ada.provider() as provider:
        provider.forget(None)
    with connected(chip.tcti) as esys, pytest.raises(TSS2_Exception):
        esys.tr_from_tpmpublic(handle)


def test_h10_an_endorsement_password_only_hides_what_proves_the_tpm(ada: TpmHome, chip: Swtpm) -> None:
    set_password(chip, ESYS_TR.ENDORSEMENT, b"endorsement")
    ada.sign()
    assert ada.standing().problem is None
    assert ada.report().survey is not None


# The storage root key


@pytest.mark.tpm_profile("with-srk")
def test_h10_a_persistent_root_key_that_is_made_anew_from_its_template(chip: Swtpm, tmp_path: Path) -> None:
    evict_root_key(chip)
    keep_root_key(chip, Algorithm.ES256)
    ada = TpmHome.at(tmp_path / "home", chip.tcti).enrol()
    evict_root_key(chip)
    ada.sign()
    keep_root_key(chip, Algorithm.ES384)
    ada.sign()
    assert ada.standing().problem is None


def test_h10_a_persistent_root_key_of_its_own_that_was_evicted(chip: Swtpm, tmp_path: Path) -> None:
    keep_root_key(chip, Algorithm.ES256, standard=False)
    ada = TpmHome.at(tmp_path / "home", chip.tcti).enrol()
    evict_root_key(chip)
    refused(ada, Reason.DEVICE_KEY_LOST, "storage root key", "Put it back", seen_beforehand=True)
    keep_root_key(chip, Algorithm.ES384)
    refused(ada, Reason.DEVICE_KEY_LOST, "another one took its place at 0x81000001", REENROL)
    evict_root_key(chip)
    keep_root_key(chip, Algorithm.ES256, standard=False)
    ada.sign()


# The PIN's index


def test_h10_a_pin_counter_that_its_owner_removed(ada: TpmHome, chip: Swtpm) -> None:
    undefine(chip, handle_of(ada))
    refused(ada, Reason.DEVICE_KEY_LOST, "The counter of this account's PIN is not in the TPM any more", REENROL)


def test_h10_a_pin_counter_that_is_removed_while_the_pin_is_typed(ada: TpmHome, chip: Swtpm) -> None:
    with pytest.raises(DeviceError) as caught:
        ada.sign_unwarned(between=lambda: undefine(chip, handle_of(ada)))
    assert caught.value.reason is Reason.DEVICE_KEY_LOST


@pytest.mark.parametrize("how", ["the same area", "an ordinary index"])
def test_h10_a_pin_counter_defined_anew_with_another_pin(ada: TpmHome, chip: Swtpm, how: str) -> None:
    """The owner can do that, and gains nothing: no key opens to it. Her PIN is told apart from a wrong one."""
    handle = handle_of(ada)
    pin = account_file.decode(ada.record.read_bytes()).pin
    assert pin is not None
    undefine(chip, handle)
    with connected(chip.tcti) as esys:
        if how == "the same area":
            area = TPM2B_NV_PUBLIC(nvPublic=TPMS_NV_PUBLIC.unmarshal(bytes(pin.gate.unwritten))[0])
            esys.nv_define_space(b"a PIN of the owner's", area)
        else:
            area = TPM2B_NV_PUBLIC(
                nvPublic=TPMS_NV_PUBLIC(
                    nvIndex=handle,
                    nameAlg=TPM2_ALG.SHA256,
                    attributes=TPMA_NV.OWNERWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA,
                    dataSize=8,
                )
            )
            index = esys.nv_define_space(b"a PIN of the owner's", area)
            esys.nv_write(index, bytes(7) + b"\x08", 0, ESYS_TR.OWNER)
    with pytest.raises(DeviceError) as caught:
        ada.sign()
    assert caught.value.reason is Reason.DEVICE_KEY_LOST
    assert REENROL in caught.value.fix
    problem = ada.standing().problem
    assert problem is not None
    assert problem.reason is Reason.DEVICE_KEY_LOST


def test_h10_a_blocked_pin(ada: TpmHome, chip: Swtpm) -> None:
    for left in range(7, -1, -1):
        with pytest.raises(DeviceError) as caught:
            ada.sign("000000")
        assert caught.value.retries_left == left
    assert (caught.value.reason, REENROL in caught.value.fix) == (Reason.PIN_BLOCKED, True)
    refused(ada, Reason.PIN_BLOCKED, "blocked after too many wrong tries", REENROL, seen_beforehand=False)
    problem = ada.standing().problem
    assert problem is not None
    assert (problem.reason, REENROL in problem.fix) == (Reason.PIN_BLOCKED, True)
    assert chip.lockout_counter() == 0


# The files


def test_h10_a_key_file_that_is_gone(ada: TpmHome) -> None:
    kept = ada.key_file.read_bytes()
    ada.key_file.unlink()
    refused(ada, Reason.DEVICE_KEY_LOST, "The file of this account's key is gone", "keyvouch-agent rekey")
    ada.key_file.write_bytes(kept)
    ada.key_file.chmod(0o600)
    ada.sign()


def test_h10_a_key_file_that_is_damaged(ada: TpmHome) -> None:
    from keyvouch_agent.vaults.tpm.key_file import KeyFile

    key = KeyFile.read(ada.key_file.read_bytes())
    key.private.buffer = bytes(key.private.buffer)[:-1] + bytes([bytes(key.private.buffer)[-1] ^ 1])
    ada.key_file.write_bytes(key.to_pem())
    refused(ada, Reason.VAULT_CORRUPT, "damaged", "keyvouch-agent rekey")


def test_h10_a_key_file_that_is_none(ada: TpmHome) -> None:
    ada.key_file.write_bytes(b"-----BEGIN TSS2 PRIVATE KEY-----\nAAAA\n-----END TSS2 PRIVATE KEY-----\n")
    refused(ada, Reason.VAULT_CORRUPT, "damaged", "keyvouch-agent rekey")


@pytest.mark.parametrize("at", [0, 40, -1])
def test_h10_a_damaged_account_record(ada: TpmHome, at: int) -> None:
    kept = bytearray(ada.record.read_bytes())
    kept[at] ^= 1
    ada.record.write_bytes(kept)
    refused(ada, Reason.VAULT_CORRUPT, "The record of this account's TPM keys is damaged", REENROL)


def test_h10_an_account_record_that_is_gone(ada: TpmHome) -> None:
    kept = ada.record.read_bytes()
    ada.record.unlink()
    refused(ada, Reason.DEVICE_KEY_LOST, "is gone", REENROL, seen_beforehand=False)
    problem = ada.standing().problem
    assert problem is not None
    assert (problem.reason, REENROL in problem.fix) == (Reason.DEVICE_KEY_LOST, True)
    ada.record.write_bytes(kept)
    ada.record.chmod(0o600)
    ada.sign()


def test_h10_an_older_copy_of_the_account_record_knows_the_key_no_more(ada: TpmHome) -> None:
    state = account_file.decode(ada.record.read_bytes())
    older = account_file.AccountState(state.parent, state.pin, state.attestation, (), 0)
    ada.record.write_bytes(account_file.encode(older))
    refused(ada, Reason.KEY_NOT_FOUND, "an older copy", "keyvouch-agent rekey")


def test_an_older_copy_of_the_account_record_brings_no_tries_back(ada: TpmHome) -> None:
    kept = ada.record.read_bytes()
    for _ in range(3):
        with pytest.raises(DeviceError):
            ada.sign("000000")
    ada.record.write_bytes(kept)
    assert ada.capabilities().pin_retries_left == 5


# A TPM that does not do what it is asked now


def test_h10_a_tpm_that_is_busy_once_goes_unnoticed(ada: TpmHome) -> None:
    ada.plan = FaultPlan(Fault(refuse(TPM2_RC.NV_RATE), code=TPM2_CC.PolicySecret))
    ada.sign()
    assert ada.plan.struck == 1


def test_h10_a_tpm_that_stays_busy(ada: TpmHome) -> None:
    ada.plan = FaultPlan(Fault(refuse(TPM2_RC.RETRY), code=TPM2_CC.Sign, times=None))
    refused(ada, Reason.TPM_BUSY, "The TPM is busy", "Try again", seen_beforehand=False)
    ada.plan = FaultPlan()
    ada.sign()


def test_h10_a_tpm_without_room_for_objects(ada: TpmHome) -> None:
    ada.plan = FaultPlan(Fault(refuse(TPM2_RC.OBJECT_MEMORY), code=TPM2_CC.Load, times=None))
    refused(ada, Reason.TPM_MEMORY, "no room for another object", "/dev/tpmrm0")
    ada.plan = FaultPlan()
    ada.sign()


def test_h10_a_full_tpm_is_emptied_where_nobody_else_can_use_it(ada: TpmHome, chip: Swtpm) -> None:
    with connected(chip.tcti) as esys:
        for _ in range(3):
            esys.create_primary(None, "ecc256")
    survey = ada.report().survey
    assert survey is not None
    assert survey.objects == 3
    with connected(chip.tcti) as esys:
        for _ in range(3):
            esys.create_primary(None, "ecc256")
    ada.sign()
    assert chip.loaded_handles() == frozenset()


def lock_out(chip: Swtpm) -> None:
    """Wrong passwords for an object of the owner's, until the TPM takes no more."""
    with connected(chip.tcti) as esys:
        esys.dictionary_attack_parameters(3, 1000, 1000)
        area = TPM2B_NV_PUBLIC(
            nvPublic=TPMS_NV_PUBLIC(
                nvIndex=0x01500001, nameAlg=TPM2_ALG.SHA256, attributes=TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE, dataSize=8
            )
        )
        index = esys.nv_define_space(b"right", area)
        esys.tr_set_auth(index, b"wrong")
        for _ in range(3):
            with pytest.raises(TSS2_Exception):
                esys.nv_write(index, bytes(8), 0, index)


def test_h3_h10_a_tpm_in_lockout_goes_on_serving_our_keys(ada: TpmHome, chip: Swtpm, tmp_path: Path) -> None:
    lock_out(chip)
    found = ada.report().survey
    assert found is not None
    assert (found.lockout.in_lockout, found.lockout.counter, found.lockout.limit) == (True, 3, 3)
    ada.sign()
    with pytest.raises(DeviceError) as caught:
        ada.sign("000000")
    assert caught.value.reason is Reason.PIN_WRONG
    bob = TpmHome.at(tmp_path / "bob", chip.tcti).enrol()
    bob.sign()
    assert ada.standing().problem is None


def test_h10_a_tpm_that_is_gone(ada: TpmHome, chip: Swtpm) -> None:
    chip.power_cut()
    refused(ada, Reason.TPM_UNAVAILABLE, f"No TPM answers at {chip.tcti}", "keyvouch-agent doctor")
    chip.start()
    ada.sign()


def test_h10_a_tpm_that_goes_while_the_pin_is_typed(ada: TpmHome, chip: Swtpm) -> None:
    with pytest.raises(DeviceError) as caught:
        ada.sign_unwarned(between=chip.power_cut)
    assert caught.value.reason is Reason.TPM_UNAVAILABLE
    chip.start()
    ada.sign()


def test_a_session_opened_while_the_tpm_is_gone_says_so(ada: TpmHome, chip: Swtpm) -> None:
    with ada.provider() as provider:
        chip.power_cut()
        with pytest.raises(DeviceError) as caught:
            provider.open(None, rp_id="x")  # type: ignore[arg-type]
        assert caught.value.reason is Reason.TPM_UNAVAILABLE


@pytest.mark.parametrize("command", [TPM2_CC.NV_DefineSpace, TPM2_CC.NV_Write])
def test_h10_a_first_pin_that_cannot_be_set_says_why(chip: Swtpm, tmp_path: Path, command: int) -> None:
    ada = TpmHome.at(tmp_path / "home", chip.tcti)
    ada.plan = FaultPlan(Fault(refuse(TPM2_RC.LOCKOUT), code=command, times=None))
    with pytest.raises(DeviceError) as caught:
        ada.enrol()
    assert (caught.value.reason, "tpm unlock" in caught.value.fix) == (Reason.TPM_LOCKOUT, True)
    ada.plan = FaultPlan()
    ada.enrol().sign()


def test_h10_a_pin_that_cannot_be_changed_says_why(ada: TpmHome) -> None:
    ada.plan = FaultPlan(Fault(refuse(TPM2_RC.RETRY), code=TPM2_CC.NV_ChangeAuth, times=None))
    with ada.provider() as provider, provider.open(GivenPin(Pin(PIN)), rp_id="x") as session:
        control = session.pin()
        assert control is not None
        with pytest.raises(DeviceError) as caught:
            control.change(Pin(PIN), Pin("918273"))
    assert caught.value.reason is Reason.TPM_BUSY
    ada.plan = FaultPlan()
    ada.sign()


# What is in the way before there is any TPM


def test_h10_a_user_who_may_not_use_the_tpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "tpmrm0"
    device.touch()
    monkeypatch.setattr("os.access", lambda *_arguments, **_named: False)  # root may do everything
    with pytest.raises(DeviceError) as caught:
        TpmAccess(TpmSettings(tcti=f"device:{device}")).open()
    assert caught.value.reason is Reason.TPM_PERMISSION
    assert caught.value.fix == "Run `sudo usermod -aG tss $USER`, then log out and in again."


def test_h10_a_machine_without_the_tpm_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(DeviceError) as caught:
        TpmAccess(TpmSettings(tcti="device:/dev/tpmrm0")).open()
    assert (caught.value.reason, "libtss2" in caught.value.fix) == (Reason.UNSUPPORTED, True)


def test_h10_a_certificate_file_that_cannot_be_read(ada: TpmHome, tmp_path: Path) -> None:
    from keyvouch_agent.vaults.tpm.endorsement import certificate_from_file

    for path, content in ((tmp_path / "none.pem", None), (tmp_path / "broken.pem", b"-----BEGIN CERTIFICATE-----\n!")):
        if content:
            path.write_bytes(content)
        with pytest.raises(DeviceError) as caught:
            certificate_from_file(str(path))
        assert (caught.value.reason, "agent.toml" in caught.value.fix) == (Reason.TPM_EK_CERTIFICATE, True)
        ada.settings(endorsement_certificate=str(path))
        ada.sign()
        survey = ada.report().survey
        assert survey is not None
        assert survey.certificates[0].place == str(path)
        assert survey.certificates[0].trouble


# The survey


@pytest.mark.parametrize(
    ("profile", "found"),
    [
        ("standard", [("0x01C00016", "P-384", True), ("0x01C00002", "RSA-2048", True)]),
        ("no-ek-certificate", []),
        ("non-der-certificate", [("0x01C00016", "P-384", False), ("0x01C00002", "RSA-2048", False)]),
    ],
)
def test_the_survey_reads_the_makers_certificates(tpm_factory: Make, tmp_path: Path, profile: str, found: Any) -> None:
    home = TpmHome.at(tmp_path / "home", tpm_factory(profile).tcti)
    survey = home.report().survey
    assert survey is not None
    assert [(c.place, c.key, c.is_der) for c in survey.certificates] == found
    assert {c.manufacturer for c in survey.certificates} <= {"id:00001014"}
    assert survey.profile.is_emulated
    assert not (home.home.path / "vault-tpm").exists()


def test_looking_changes_nothing(ada: TpmHome, chip: Swtpm) -> None:
    from keyvouch_bench.tpm_contents import read_contents

    before, record = read_contents(chip.tcti), ada.record.read_bytes()
    ada.report()
    assert before.difference(read_contents(chip.tcti)) == ()
    assert ada.record.read_bytes() == record
    assert ada.sign(PIN)
