"""The contract of `KeyVault`: one body for every vault; a TPM is emulated, or with `--tpm-device` a real one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import KeyRequest, KeyVault, PinState, User
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import SoftwareVault
from support.authenticators import FAST_KDF
from support.memory_vault import MemoryVault
from support.tpm_accounts import tpm_vault

PIN, OTHER = b"123456", "päss wörd".encode()
RP_ID = "login.example.org"


def pin_hash(pin: bytes) -> bytes:
    return hashlib.sha256(pin).digest()[:16]


@pytest.fixture(params=["memory", "software", "tpm"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyVault]:
    if request.param == "memory":
        yield MemoryVault()
        return
    if request.param == "tpm":
        with tpm_vault(request.getfixturevalue("tpm").tcti, tmp_path / "account") as made:
            yield made
        return
    with SoftwareVault.open(tmp_path / "vault", SystemEntropy(), kdf=FAST_KDF) as opened:
        yield opened


@pytest.fixture
def unlocked(vault: KeyVault) -> KeyVault:
    vault.set_pin(PIN)
    vault.verify_pin(pin_hash(PIN))
    return vault


def key_for(rp_id: str = RP_ID, user: bytes = b"user", *, algorithm: int = -7, discoverable: bool = True) -> KeyRequest:
    return KeyRequest(rp_id, User(user, "alice", "Alice"), algorithm, discoverable)


def reason_of(action: Callable[[], object]) -> Reason:
    with pytest.raises(DeviceError) as caught:
        action()
    return caught.value.reason


def test_new_vault_has_no_pin_and_no_keys(vault: KeyVault) -> None:
    assert vault.pin_state() == PinState(is_set=False, retries_left=8)
    assert vault.discoverable(RP_ID) == []
    assert reason_of(lambda: vault.verify_pin(pin_hash(PIN))) is Reason.PIN_NOT_SET
    assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_NOT_SET
    assert reason_of(lambda: vault.change_pin(OTHER)) is Reason.PIN_REQUIRED


def test_properties(vault: KeyVault) -> None:
    properties = vault.properties
    assert len(properties.aaguid) == 16
    assert properties.algorithms[0] == -7
    assert properties.pin_gated
    assert properties.protection in {"software", "tpm"}


def test_set_pin_leaves_it_locked(vault: KeyVault) -> None:
    vault.set_pin(PIN)
    assert vault.pin_state() == PinState(is_set=True, retries_left=8)
    assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_REQUIRED
    assert reason_of(lambda: vault.set_pin(OTHER)) is Reason.PIN_POLICY
    vault.verify_pin(pin_hash(PIN))
    assert vault.create_key(key_for())


@pytest.mark.parametrize("algorithm", [-7, -35])
def test_key_signs_with_its_algorithm(unlocked: KeyVault, algorithm: int) -> None:
    credential = unlocked.create_key(key_for(algorithm=algorithm))
    assert (credential.rp_id, credential.user, credential.sign_count) == (RP_ID, User(b"user", "alice", "Alice"), 0)
    key = CoseKey(credential.public_key)
    assert key.algorithm == algorithm == credential.algorithm
    key.verify_signature(signature=unlocked.sign(credential.id, b"message"), message=b"message")
    attestation = unlocked.attest(credential.id, b"data", b"hash")
    assert attestation.format in unlocked.properties.attestation_formats
    signature = attestation.statement["sig"]
    assert isinstance(signature, bytes)
    key.verify_signature(signature=signature, message=b"datahash")


def test_locked_keys_do_not_sign_but_can_be_found(unlocked: KeyVault) -> None:
    credential = unlocked.create_key(key_for())
    unlocked.lock()
    unlocked.lock()
    assert reason_of(lambda: unlocked.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
    assert reason_of(lambda: unlocked.attest(credential.id, b"m", b"h")) is Reason.PIN_REQUIRED
    assert reason_of(lambda: unlocked.create_key(key_for())) is Reason.PIN_REQUIRED
    assert unlocked.find(RP_ID, credential.id) == credential
    unlocked.verify_pin(pin_hash(PIN))
    assert unlocked.sign(credential.id, b"m")


def test_wrong_pin_counts_and_right_one_resets_H3(unlocked: KeyVault) -> None:
    unlocked.lock()
    for left in (7, 6, 5):
        with pytest.raises(DeviceError) as caught:
            unlocked.verify_pin(pin_hash(OTHER))
        assert (caught.value.reason, caught.value.retries_left) == (Reason.PIN_WRONG, left)
        assert unlocked.pin_state().retries_left == left
    unlocked.verify_pin(pin_hash(PIN))
    assert unlocked.pin_state().retries_left == 8


def test_eight_wrong_pins_block_for_good_H3(unlocked: KeyVault) -> None:
    credential = unlocked.create_key(key_for())
    unlocked.lock()
    reasons = [reason_of(lambda: unlocked.verify_pin(pin_hash(OTHER))) for _ in range(8)]
    assert reasons == [Reason.PIN_WRONG] * 7 + [Reason.PIN_BLOCKED]
    assert reason_of(lambda: unlocked.verify_pin(pin_hash(PIN))) is Reason.PIN_BLOCKED
    assert unlocked.pin_state() == PinState(is_set=True, retries_left=0)
    assert reason_of(lambda: unlocked.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
    unlocked.reset()
    assert unlocked.pin_state() == PinState(is_set=False, retries_left=8)
    assert unlocked.find(RP_ID, credential.id) is None
    unlocked.set_pin(OTHER)
    unlocked.verify_pin(pin_hash(OTHER))


def test_wrong_pin_does_not_lock_what_is_unlocked(unlocked: KeyVault) -> None:
    credential = unlocked.create_key(key_for())
    assert reason_of(lambda: unlocked.verify_pin(pin_hash(OTHER))) is Reason.PIN_WRONG
    assert unlocked.sign(credential.id, b"m")


def test_change_pin_keeps_the_keys(unlocked: KeyVault) -> None:
    credential = unlocked.create_key(key_for())
    unlocked.change_pin(OTHER)
    unlocked.lock()
    assert reason_of(lambda: unlocked.verify_pin(pin_hash(PIN))) is Reason.PIN_WRONG
    unlocked.verify_pin(pin_hash(OTHER))
    signature = unlocked.sign(credential.id, b"m")
    CoseKey(credential.public_key).verify_signature(signature=signature, message=b"m")
    assert unlocked.pin_state().retries_left == 8


def test_lookup_by_relying_party_and_id(unlocked: KeyVault) -> None:
    first = unlocked.create_key(key_for())
    hidden = unlocked.create_key(key_for(discoverable=False))
    other = unlocked.create_key(key_for("other.example"))
    last = unlocked.create_key(key_for(user=b"user 2"))
    assert [c.id for c in unlocked.discoverable(RP_ID)] == [last.id, first.id]
    assert first.created < hidden.created < other.created < last.created
    assert unlocked.find(RP_ID, hidden.id) == hidden
    assert unlocked.find(RP_ID, other.id) is None
    assert unlocked.find(RP_ID, b"unknown") is None


def test_sign_count_goes_up_one_by_one(unlocked: KeyVault) -> None:
    one, two = unlocked.create_key(key_for()), unlocked.create_key(key_for())
    assert [unlocked.advance_sign_count(one.id) for _ in range(3)] == [1, 2, 3]
    assert unlocked.advance_sign_count(two.id) == 1
    found = unlocked.find(RP_ID, one.id)
    assert found is not None
    assert found.sign_count == 3
    assert unlocked.sign(one.id, b"m")


def test_unknown_and_deleted_keys(unlocked: KeyVault) -> None:
    credential = unlocked.create_key(key_for())
    kept = unlocked.create_key(key_for())
    unlocked.delete(credential.id)
    for gone in (credential.id, CredentialId(b"unknown")):
        assert reason_of(lambda gone=gone: unlocked.sign(gone, b"m")) is Reason.KEY_NOT_FOUND
        assert reason_of(lambda gone=gone: unlocked.delete(gone)) is Reason.KEY_NOT_FOUND
        assert reason_of(lambda gone=gone: unlocked.attest(gone, b"", b"")) is Reason.KEY_NOT_FOUND
        assert reason_of(lambda gone=gone: unlocked.advance_sign_count(gone)) is Reason.KEY_NOT_FOUND
    assert unlocked.find(RP_ID, kept.id) == kept


def test_no_private_key_in_what_it_returns_H2(unlocked: KeyVault) -> None:
    public = {name for name in dir(unlocked) if not name.startswith("_")}
    assert not {name for name in public if "private" in name or "export" in name}
    assert "private" not in repr(unlocked.create_key(key_for()))
