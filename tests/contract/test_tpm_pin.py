"""The PIN that a TPM enforces: how many wrong ones block, what that touches, and what brings no tries back."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tpm2_pytss import TSS2_Exception
from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import TPM2B_AUTH, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE

from keyvouch.attestation.tpm import verify_quote
from keyvouch.attestation.tpm_structures import TpmClock, TpmHash
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import KeyRequest, PinState, User
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.tpm import attestation_key, pin_index
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.attestation_key import AttestationKeySeed
from keyvouch_agent.vaults.tpm.vault import TpmVault
from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import connected
from support.tpm_accounts import access_to, kept, tpm_vault
from support.tpm_attacker import DIGEST, ECDSA, attacking, record_of

PIN, OTHER, WRONG = b"493817", b"no longer the same", b"000000"
REQUEST = KeyRequest("login.example.org", User(b"user", "ada", "Ada"), -7, discoverable=True)
LIMITS = [2, 3, 5, 10]


def pin_hash(pin: bytes) -> bytes:
    return hashlib.sha256(pin).digest()[:16]


def with_key(vault: Any, pin: bytes = PIN) -> Any:
    """Set the PIN and make a key; leaves the vault locked."""
    vault.set_pin(pin)
    vault.verify_pin(pin_hash(pin))
    credential = kept(vault, REQUEST)
    vault.lock()
    return credential


def signs(vault: Any, credential: Any, pin: bytes = PIN) -> bool:
    """Show the PIN and sign; the signature must verify with the key that the credential names."""
    vault.verify_pin(pin_hash(pin))
    signature = vault.sign(credential.id, b"statement")
    vault.lock()
    CoseKey(credential.public_key).verify_signature(signature=signature, message=b"statement")
    return True


def refused(vault: Any, pin: bytes) -> tuple[Reason, int | None]:
    """Show a PIN that is refused."""
    with pytest.raises(DeviceError) as caught:
        vault.verify_pin(pin_hash(pin))
    return caught.value.reason, caught.value.retries_left


def reason_of(action: Callable[[], object]) -> Reason:
    with pytest.raises(DeviceError) as caught:
        action()
    return caught.value.reason


@contextmanager
def two_accounts(tcti: str, folder: Path, limit: int) -> Iterator[tuple[Any, Any]]:
    """Two accounts in one TPM, each with its PIN and a key. One at a time may be unlocked: there is one connection."""
    with tpm_vault(tcti, folder / "one", limit=limit) as one, tpm_vault(tcti, folder / "two", limit=limit) as two:
        yield one, two


# What blocks


@pytest.mark.parametrize("limit", LIMITS)
def test_wrong_pins_block_this_key_and_nothing_else_in_the_tpm_H3(tpm: Any, tmp_path: Path, limit: int):
    with two_accounts(tpm.tcti, tmp_path, limit) as (one, two):
        mine, theirs = with_key(one), with_key(two, OTHER)
        before = tpm.lockout_counter()
        tries = [refused(one, WRONG) for _ in range(limit)]
        assert tries == [*((Reason.PIN_WRONG, left) for left in range(limit - 1, 0, -1)), (Reason.PIN_BLOCKED, 0)]
        assert refused(one, PIN) == refused(one, WRONG) == (Reason.PIN_BLOCKED, 0)
        assert one.pin_state() == PinState(is_set=True, retries_left=0, code_points=6)
        assert reason_of(lambda: one.sign(mine.id, b"m")) is Reason.PIN_REQUIRED
        assert signs(two, theirs, OTHER)
        assert two.pin_state().retries_left == limit
        assert tpm.lockout_counter() == before
        assert not tpm.loaded_handles()


def test_wrong_values_of_other_keys_are_what_the_owners_counter_counts_H3(tpm_factory: Callable[[], Swtpm]):
    tpm = tpm_factory()
    with connected(tpm.tcti) as esys:
        secret = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=TPM2B_AUTH(b"right")))
        attributes = "sign|userwithauth|fixedtpm|fixedparent|sensitivedataorigin"
        template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256", objectAttributes=attributes)
        key = esys.create_primary(secret, template, ESYS_TR.OWNER)[0]
        esys.tr_set_auth(key, b"wrong")
        with pytest.raises(TSS2_Exception, match="DA counter incremented"):
            esys.sign(key, DIGEST, ECDSA, None)
        esys.flush_context(key)
    assert tpm.lockout_counter() == 1


def test_a_blocked_pin_cannot_be_changed_by_who_was_unlocked_before_H3(tpm: Any, tmp_path: Path):
    with tpm_vault(tpm.tcti, tmp_path / "account", limit=3) as vault:
        credential = with_key(vault)
        vault.verify_pin(pin_hash(PIN))
        assert [refused(vault, WRONG)[1] for _ in range(3)] == [2, 1, 0]
        assert vault.sign(credential.id, b"m")  # by the session in which the PIN was shown before
        assert reason_of(lambda: vault.change_pin(OTHER)) is Reason.PIN_BLOCKED
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_BLOCKED
        vault.lock()
        assert refused(vault, OTHER) == (Reason.PIN_BLOCKED, 0)
    assert not tpm.loaded_handles()


def test_wrong_pins_in_between_are_forgiven_by_the_right_one_H3(tpm: Any, tmp_path: Path):
    with tpm_vault(tpm.tcti, tmp_path / "account", limit=3) as vault:
        credential = with_key(vault)
        for _ in range(5):
            assert [refused(vault, WRONG)[1] for _ in range(2)] == [2, 1]
            assert signs(vault, credential)
            assert vault.pin_state().retries_left == 3
        assert [refused(vault, WRONG)[1] for _ in range(3)] == [2, 1, 0]


# What brings no tries back


def test_an_old_copy_of_the_files_gives_no_further_tries_A3(tpm: Any, tmp_path: Path):
    account, copy = tmp_path / "account", tmp_path / "copy"
    with opened(tpm.tcti, account) as vault:
        credential = with_key(vault)
    shutil.copytree(account, copy)
    for left in (4, 3, 2, 1, 0):
        with opened(tpm.tcti, account) as vault:
            assert refused(vault, WRONG)[1] == left
        shutil.rmtree(account)
        shutil.copytree(copy, account)
    pin = record_of(account).pin
    assert pin is not None
    assert pin.tries_left == 5  # what the old copy claims
    with opened(tpm.tcti, account) as vault:
        assert vault.pin_state().retries_left == 0
        assert refused(vault, PIN) == (Reason.PIN_BLOCKED, 0)
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
        vault.reset()


@contextmanager
def opened(tcti: str, folder: Path) -> Iterator[Any]:
    """The vault of a folder, which stays."""
    account = TpmAccount.open(folder, access_to(tcti))
    vault = TpmVault(account, SystemEntropy(), limit=5)
    try:
        yield vault
    finally:
        vault.close()


def test_neither_power_nor_the_owners_reset_of_lockouts_gives_further_tries_H3(
    tpm_factory: Callable[[], Swtpm], tmp_path: Path
):
    tpm = tpm_factory()
    with tpm_vault(tpm.tcti, tmp_path / "account", limit=3) as vault:
        with_key(vault)
        assert [refused(vault, WRONG)[1] for _ in range(2)] == [2, 1]
        tpm.power_cut()
        tpm.start()
        assert vault.pin_state().retries_left == 1
        assert refused(vault, WRONG) == (Reason.PIN_BLOCKED, 0)
        tpm.stop()
        tpm.start()
        with connected(tpm.tcti) as esys:
            esys.dictionary_attack_lock_reset(ESYS_TR.LOCKOUT)
        assert refused(vault, PIN) == (Reason.PIN_BLOCKED, 0)


def test_known_limit_an_old_memory_of_an_emulated_tpm_gives_tries_back_and_its_quotes_show_the_rollback_A3(
    tpm_factory: Callable[[], Swtpm], tmp_path: Path
):
    tpm = tpm_factory()
    with tpm_vault(tpm.tcti, tmp_path / "account", limit=3) as vault:
        credential = with_key(vault)
        tpm.stop()
        old = tpm.snapshot()
        tpm.start()
        assert [refused(vault, WRONG)[1] for _ in range(3)] == [2, 1, 0]
        tpm.stop()
        tpm.start()
        assert refused(vault, PIN) == (Reason.PIN_BLOCKED, 0)
        before = clock(tpm.tcti)
        tpm.stop()
        tpm.restore(old)
        tpm.start()
        assert signs(vault, credential)
        after = clock(tpm.tcti)
        assert (after.reset_count, after.clock) < (before.reset_count, before.clock)


def clock(tcti: str) -> TpmClock:
    """What a quote by a primary key of the endorsement hierarchy says of resets and time."""
    seed, nonce = AttestationKeySeed(Algorithm.ES256, bytes(32)), bytes(32)
    with access_to(tcti).open() as tpm:
        key = attestation_key.make(tpm, seed)
        said, values = attestation_key.quote(tpm, key, [0, 7], nonce)
    quoted = verify_quote(
        attestation_key=key.public,
        attest=said.attest,
        signature=said.signature,
        qualifying_data=nonce,
        selection={TpmHash.SHA256: [0, 7]},
        pcr_values={TpmHash.SHA256: values},
    )
    return quoted.clock


# Changing it


def test_a_changed_pin_opens_the_same_key_and_the_old_one_is_a_wrong_one_H3(tpm: Any, tmp_path: Path):
    account = tmp_path / "account"
    with tpm_vault(tpm.tcti, account, limit=3) as vault:
        credential = with_key(vault)
        was = what_stays(account, credential.id)
        vault.verify_pin(pin_hash(PIN))
        vault.change_pin(OTHER)
        assert vault.sign(credential.id, b"m")  # unlocked still, by the new one
        vault.lock()
        assert refused(vault, PIN) == (Reason.PIN_WRONG, 2)
        assert vault.pin_state().retries_left == 2
        assert signs(vault, credential, OTHER)
        assert vault.pin_state().retries_left == 3
        assert what_stays(account, credential.id) == was
        assert vault.find(REQUEST.rp_id_hash, credential.id) == credential


def what_stays(account: Path, credential: CredentialId) -> tuple[object, ...]:
    """The key's file, byte for byte, and the index with its policies."""
    pin = record_of(account).pin
    assert pin is not None
    return (account / f"{credential.hex()}.pem").read_bytes(), pin.gate, pin.approval, pin.serialized, pin.limit


def test_a_pin_can_be_changed_again_and_again_and_each_change_wants_the_last_one_H3(tpm: Any, tmp_path: Path):
    with tpm_vault(tpm.tcti, tmp_path / "account", limit=3) as vault:
        credential, pin = with_key(vault), PIN
        for number in range(4):
            following = b"pin number %d" % number
            assert refused(vault, following)[0] is Reason.PIN_WRONG
            vault.verify_pin(pin_hash(pin))
            vault.change_pin(following)
            vault.lock()
            assert refused(vault, pin) == (Reason.PIN_WRONG, 2)
            assert signs(vault, credential, following)
            pin = following
    assert not tpm.loaded_handles()


def test_a_change_by_a_pin_that_is_not_the_present_one_counts_as_a_wrong_one_H3(tpm: Any, tmp_path: Path):
    account = tmp_path / "account"
    with tpm_vault(tpm.tcti, account, limit=3) as vault:
        credential = with_key(vault)
        vault.verify_pin(pin_hash(PIN))
        change_elsewhere(vault, OTHER)
        assert reason_of(lambda: vault.change_pin(b"third one")) is Reason.PIN_WRONG
        vault.lock()
        with attacking(tpm.tcti, account) as thief:
            assert thief.count() == 1
        assert signs(vault, credential, OTHER)


def change_elsewhere(vault: Any, new: bytes) -> None:
    """What another program does that holds the account's files and knows the PIN."""
    link, record = vault._unlocked.link, vault._state.pin
    old, after = (pin_index.auth_value(pin_hash(pin)) for pin in (PIN, new))
    pin_index.change_pin(link.tpm, link.index, link.parent, old=old, new=after, approval=record.approval)
