"""The contract of `KeyVault`: one body for every vault; a TPM is emulated, or with `--tpm-device` a real one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import (
    INITIAL_LARGE_BLOBS,
    MAX_CRED_BLOB,
    AuthenticatorSettings,
    Credential,
    CredentialSecrets,
    CredProtect,
    KeyRequest,
    KeyVault,
    PinState,
    User,
    hash_of,
)
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import SoftwareVault
from support.memory_vault import MemoryVault
from support.software_vaults import FAST_KDF
from support.tpm_accounts import tpm_vault

PIN, OTHER = b"123456", "päss wörd".encode()
RP_ID = "login.example.org"
RP = hash_of(RP_ID)
KINDS = ("memory", "software", "software-ungated", "tpm")


def pin_hash(pin: bytes) -> bytes:
    return hashlib.sha256(pin).digest()[:16]


@pytest.fixture(params=KINDS)
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyVault]:
    if request.param == "memory":
        yield MemoryVault()
    elif request.param == "tpm":
        with tpm_vault(request.getfixturevalue("tpm").tcti, tmp_path / "account") as made:
            yield made
    else:
        with software(tmp_path / "vault", pin_gated=request.param == "software") as opened:
            yield opened


def software(path: Path, *, pin_gated: bool = True) -> SoftwareVault:
    return SoftwareVault.open(path, SystemEntropy(), kdf=FAST_KDF, pin_gated=pin_gated)


@pytest.fixture
def unlocked(vault: KeyVault) -> KeyVault:
    vault.set_pin(PIN)
    vault.verify_pin(pin_hash(PIN))
    return vault


def key_for(
    rp_id: str = RP_ID, user: bytes = b"user", *, algorithm: int = -7, discoverable: bool = True, **more: Any
) -> KeyRequest:
    return KeyRequest(rp_id, User(user, "alice", "Alice"), algorithm, discoverable, **more)


def kept(vault: KeyVault, request: KeyRequest | None = None) -> Credential:
    credential = vault.create_key(request or key_for())
    vault.keep(credential.id)
    return credential


def reason_of(action: Callable[[], object]) -> Reason:
    with pytest.raises(DeviceError) as caught:
        action()
    return caught.value.reason


def test_new_vault_has_no_pin_and_no_keys(vault: KeyVault) -> None:
    assert vault.pin_state() == PinState(is_set=False, retries_left=8)
    assert vault.discoverable(RP) == []
    assert reason_of(lambda: vault.verify_pin(pin_hash(PIN))) is Reason.PIN_NOT_SET
    assert reason_of(lambda: vault.change_pin(OTHER)) is Reason.PIN_REQUIRED
    assert vault.settings == AuthenticatorSettings()
    assert vault.large_blobs() == INITIAL_LARGE_BLOBS


def test_without_a_pin_only_what_the_pin_does_not_gate_makes_keys(vault: KeyVault) -> None:
    if vault.properties.pin_gated:
        assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_NOT_SET
        return
    credential = kept(vault, key_for(hmac_secret=True))
    proves_possession(vault, credential)
    assert vault.secrets(credential.id).with_uv
    kept(vault, key_for(user=b"cautious", protect=CredProtect.UV_REQUIRED))


def test_properties(vault: KeyVault) -> None:
    properties = vault.properties
    assert len(properties.aaguid) == 16
    assert properties.algorithms[0] == -7
    assert properties.protection in {"software", "tpm"}
    assert properties.max_large_blobs >= 1024  # section 6.10 asks for as many


def test_set_pin_leaves_it_locked(vault: KeyVault) -> None:
    vault.set_pin(PIN)
    assert vault.pin_state() == PinState(is_set=True, retries_left=8, code_points=6)
    assert reason_of(lambda: vault.change_pin(OTHER)) is Reason.PIN_REQUIRED
    assert reason_of(lambda: vault.set_pin(OTHER)) is Reason.PIN_POLICY
    if vault.properties.pin_gated:
        assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_REQUIRED
    vault.verify_pin(pin_hash(PIN))
    assert kept(vault)


def proves_possession(vault: KeyVault, credential: Credential) -> None:
    signature = vault.sign(credential.id, b"m")
    CoseKey(credential.public_key).verify_signature(signature=signature, message=b"m")


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("algorithm", [-7, -8, -35])
def test_key_signs_with_its_algorithm(unlocked: KeyVault, algorithm: int, stored: bool) -> None:
    if algorithm not in unlocked.properties.algorithms:
        assert reason_of(lambda: unlocked.create_key(key_for(algorithm=algorithm))) is Reason.UNSUPPORTED
        return
    credential = unlocked.create_key(key_for(algorithm=algorithm))
    if stored:
        unlocked.keep(credential.id)
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
    credential = kept(unlocked, key_for(protect=CredProtect.UV_REQUIRED, hmac_secret=True))
    before = unlocked.secrets(credential.id)
    unlocked.lock()
    unlocked.lock()
    assert reason_of(lambda: unlocked.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
    assert reason_of(lambda: unlocked.attest(credential.id, b"m", b"h")) is Reason.PIN_REQUIRED
    assert reason_of(lambda: unlocked.secrets(credential.id)) is Reason.PIN_REQUIRED
    assert reason_of(lambda: unlocked.create_key(key_for(protect=CredProtect.UV_REQUIRED))) is Reason.PIN_REQUIRED
    assert unlocked.find(RP, credential.id) == credential
    unlocked.verify_pin(pin_hash(PIN))
    proves_possession(unlocked, credential)
    assert unlocked.secrets(credential.id) == before


def test_locked_keys_that_the_pin_does_not_gate_sign(unlocked: KeyVault) -> None:
    credential = kept(unlocked, key_for(hmac_secret=True))
    unlocked.lock()
    if unlocked.properties.pin_gated:
        assert reason_of(lambda: unlocked.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
        assert reason_of(lambda: unlocked.secrets(credential.id)) is Reason.PIN_REQUIRED
        assert reason_of(lambda: unlocked.create_key(key_for())) is Reason.PIN_REQUIRED
        return
    proves_possession(unlocked, credential)
    assert unlocked.secrets(credential.id).without_uv
    assert unlocked.create_key(key_for())


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
    credential = kept(unlocked, key_for(protect=CredProtect.UV_REQUIRED))
    unlocked.lock()
    reasons = [reason_of(lambda: unlocked.verify_pin(pin_hash(OTHER))) for _ in range(8)]
    assert reasons == [Reason.PIN_WRONG] * 7 + [Reason.PIN_BLOCKED]
    assert reason_of(lambda: unlocked.verify_pin(pin_hash(PIN))) is Reason.PIN_BLOCKED
    assert unlocked.pin_state() == PinState(is_set=True, retries_left=0, code_points=6)
    assert reason_of(lambda: unlocked.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
    unlocked.reset()
    assert unlocked.pin_state() == PinState(is_set=False, retries_left=8)
    assert unlocked.find(RP, credential.id) is None
    unlocked.set_pin(OTHER)
    unlocked.verify_pin(pin_hash(OTHER))


def test_wrong_pin_does_not_lock_what_is_unlocked(unlocked: KeyVault) -> None:
    credential = kept(unlocked)
    assert reason_of(lambda: unlocked.verify_pin(pin_hash(OTHER))) is Reason.PIN_WRONG
    assert unlocked.sign(credential.id, b"m")


def test_change_pin_keeps_the_keys(unlocked: KeyVault) -> None:
    credential = kept(unlocked)
    unlocked.change_pin(OTHER)
    unlocked.lock()
    assert reason_of(lambda: unlocked.verify_pin(pin_hash(PIN))) is Reason.PIN_WRONG
    unlocked.verify_pin(pin_hash(OTHER))
    proves_possession(unlocked, credential)
    assert unlocked.pin_state() == PinState(is_set=True, retries_left=8, code_points=9)


def test_lookup_by_relying_party_and_id(unlocked: KeyVault) -> None:
    first = kept(unlocked)
    hidden = kept(unlocked, key_for(discoverable=False))
    other = kept(unlocked, key_for("other.example"))
    last = kept(unlocked, key_for(user=b"user 2"))
    assert [c.id for c in unlocked.discoverable(RP)] == [last.id, first.id]
    assert first.created < hidden.created < other.created < last.created
    assert unlocked.find(RP, hidden.id) == hidden
    assert unlocked.find(RP, other.id) is None
    assert unlocked.find(RP, b"unknown") is None


def test_sign_count_goes_up_one_by_one(unlocked: KeyVault) -> None:
    one, two = kept(unlocked), kept(unlocked, key_for(user=b"two"))
    assert [unlocked.advance_sign_count(one.id) for _ in range(3)] == [1, 2, 3]
    assert unlocked.advance_sign_count(two.id) == 1
    found = unlocked.find(RP, one.id)
    assert found is not None
    assert found.sign_count == 3
    assert unlocked.sign(one.id, b"m")


def test_unknown_and_deleted_keys(unlocked: KeyVault) -> None:
    credential, other = kept(unlocked), kept(unlocked, key_for(user=b"other"))
    unlocked.delete(credential.id)
    for gone in (credential.id, CredentialId(b"unknown")):
        assert reason_of(lambda gone=gone: unlocked.sign(gone, b"m")) is Reason.KEY_NOT_FOUND
        assert reason_of(lambda gone=gone: unlocked.delete(gone)) is Reason.KEY_NOT_FOUND
        assert reason_of(lambda gone=gone: unlocked.attest(gone, b"", b"")) is Reason.KEY_NOT_FOUND
        assert reason_of(lambda gone=gone: unlocked.advance_sign_count(gone)) is Reason.KEY_NOT_FOUND
    assert unlocked.find(RP, other.id) == other


def test_no_private_key_in_what_it_returns_H2(unlocked: KeyVault) -> None:
    public = {name for name in dir(unlocked) if not name.startswith("_")}
    assert not {name for name in public if "private" in name or "export" in name}
    assert "private" not in repr(kept(unlocked))


# A key is made, then kept


def test_key_that_was_not_kept_is_nowhere(unlocked: KeyVault) -> None:
    older, room = kept(unlocked), unlocked.room()
    credential = unlocked.create_key(key_for(hmac_secret=True))
    assert unlocked.find(RP, credential.id) is None
    assert unlocked.discoverable() == [older]
    assert unlocked.room() == room
    for action in (unlocked.delete, unlocked.advance_sign_count, lambda gone: unlocked.update_user(gone, User(b"u"))):
        assert reason_of(lambda action=action: action(credential.id)) is Reason.KEY_NOT_FOUND
    assert unlocked.secrets(credential.id).with_uv
    unlocked.keep(credential.id)
    assert unlocked.discoverable() == [credential]


def test_next_key_and_lock_end_one_that_was_not_kept(unlocked: KeyVault) -> None:
    first = unlocked.create_key(key_for())
    second = unlocked.create_key(key_for())
    assert reason_of(lambda: unlocked.keep(first.id)) is Reason.KEY_NOT_FOUND
    assert reason_of(lambda: unlocked.sign(first.id, b"m")) is Reason.KEY_NOT_FOUND
    proves_possession(unlocked, second)  # control
    unlocked.lock()
    unlocked.verify_pin(pin_hash(PIN))
    assert reason_of(lambda: unlocked.keep(second.id)) is Reason.KEY_NOT_FOUND
    assert reason_of(lambda: unlocked.sign(second.id, b"m")) is Reason.KEY_NOT_FOUND
    third = kept(unlocked)
    assert reason_of(lambda: unlocked.keep(third.id)) is Reason.KEY_NOT_FOUND
    assert unlocked.discoverable() == [third]


def test_keep_replaces_the_discoverable_key_of_the_same_account(unlocked: KeyVault) -> None:
    older, server_side = kept(unlocked), kept(unlocked, key_for(discoverable=False))
    other_rp, other_user = kept(unlocked, key_for("other.example")), kept(unlocked, key_for(user=b"another"))
    newer = kept(unlocked)
    assert unlocked.find(RP, older.id) is None
    assert reason_of(lambda: unlocked.sign(older.id, b"m")) is Reason.KEY_NOT_FOUND
    assert [c.id for c in unlocked.discoverable()] == [newer.id, other_user.id, other_rp.id]
    assert unlocked.find(RP, server_side.id) == server_side
    second_server_side = kept(unlocked, key_for(discoverable=False))
    assert unlocked.find(RP, newer.id) == newer
    assert unlocked.find(RP, server_side.id) == server_side
    for credential in (newer, server_side, second_server_side):
        proves_possession(unlocked, credential)


def test_room_counts_down_by_one_and_up_again(unlocked: KeyVault) -> None:
    room = unlocked.room()
    credential = kept(unlocked)
    assert unlocked.room() == room - 1
    credential = kept(unlocked)  # in the place of the first
    assert unlocked.room() == room - 1
    unlocked.delete(credential.id)
    assert unlocked.room() == room


def test_key_of_a_relying_party_that_is_known_by_its_hash_alone(unlocked: KeyVault) -> None:
    """CTAP1/U2F names it so."""
    credential = kept(unlocked, key_for("", b"u", discoverable=False, rp_id_hash=RP))
    assert credential.rp_id == ""
    assert unlocked.find(RP, credential.id) == credential
    assert unlocked.find(hash_of(""), credential.id) is None
    assert unlocked.discoverable(RP) == []
    proves_possession(unlocked, credential)


# What is kept beside a key

EVERYTHING = {"hmac_secret": True, "large_blob_key": True, "cred_blob": b"blob of the relying party"}


def test_secrets_are_there_where_they_were_asked_for(unlocked: KeyVault) -> None:
    plain = kept(unlocked, key_for(user=b"1"))
    assert unlocked.secrets(plain.id) == CredentialSecrets()
    assert (plain.has_hmac_secret, plain.has_large_blob_key, plain.has_cred_blob) == (False, False, False)
    random = kept(unlocked, key_for(user=b"2", hmac_secret=True))
    only = unlocked.secrets(random.id)
    assert (len(only.with_uv), len(only.without_uv), only.large_blob_key, only.cred_blob) == (32, 32, b"", b"")
    blob = kept(unlocked, key_for(user=b"3", cred_blob=b"x" * MAX_CRED_BLOB))
    assert unlocked.secrets(blob.id) == CredentialSecrets(cred_blob=b"x" * MAX_CRED_BLOB)
    assert (blob.has_hmac_secret, blob.has_large_blob_key, blob.has_cred_blob) == (False, False, True)
    empty = kept(unlocked, key_for(user=b"4", cred_blob=b""))
    assert empty.has_cred_blob
    assert unlocked.secrets(empty.id) == CredentialSecrets()
    assert unlocked.find(RP, blob.id) == blob


def test_secrets_are_distinct_and_stay_the_same(unlocked: KeyVault) -> None:
    made = unlocked.create_key(key_for(**EVERYTHING))
    first = unlocked.secrets(made.id)
    unlocked.keep(made.id)
    other = unlocked.secrets(kept(unlocked, key_for(user=b"other", **EVERYTHING)).id)
    drawn = [getattr(s, name) for s in (first, other) for name in ("with_uv", "without_uv", "large_blob_key")]
    assert len(set(drawn)) == 6
    assert {len(secret) for secret in drawn} == {32}
    unlocked.advance_sign_count(made.id)
    unlocked.change_pin(OTHER)
    assert unlocked.secrets(made.id) == first
    unlocked.lock()
    unlocked.verify_pin(pin_hash(OTHER))
    assert unlocked.secrets(made.id) == first
    proves_possession(unlocked, made)
    assert repr(first) == "CredentialSecrets(...)"


def test_secrets_go_with_their_key(unlocked: KeyVault) -> None:
    one, two = kept(unlocked, key_for(**EVERYTHING)), kept(unlocked, key_for(user=b"two", **EVERYTHING))
    unlocked.delete(one.id)
    assert reason_of(lambda: unlocked.secrets(one.id)) is Reason.KEY_NOT_FOUND
    assert unlocked.secrets(two.id).cred_blob  # control
    unlocked.reset()
    assert reason_of(lambda: unlocked.secrets(two.id)) is Reason.KEY_NOT_FOUND


def test_credential_keeps_how_it_is_protected(unlocked: KeyVault) -> None:
    for number, protect in enumerate(CredProtect):
        credential = kept(unlocked, key_for(user=bytes([number]), protect=protect))
        found = unlocked.find(RP, credential.id)
        assert found is not None
        assert found.protect is protect


def test_other_names_for_the_same_account(unlocked: KeyVault) -> None:
    credential = kept(unlocked, key_for(**EVERYTHING))
    before = unlocked.secrets(credential.id)
    unlocked.advance_sign_count(credential.id)
    unlocked.update_user(credential.id, User(b"user", "bob", ""))
    changed = replace(credential, user=User(b"user", "bob", ""), sign_count=1)
    assert unlocked.find(RP, credential.id) == changed
    assert unlocked.discoverable() == [changed]
    assert unlocked.secrets(credential.id) == before
    proves_possession(unlocked, credential)
    assert reason_of(lambda: unlocked.update_user(CredentialId(b"unknown"), User(b"u"))) is Reason.KEY_NOT_FOUND
    unlocked.update_user(credential.id, User(b"another id", "eve", ""))
    assert unlocked.discoverable()[0].user == User(b"user", "eve", "")


# Settings and large blobs

SETTINGS = AuthenticatorSettings(8, ("a.example", "b.example"), force_pin_change=True, always_uv=True)


def test_settings_stay_until_a_reset(vault: KeyVault) -> None:
    vault.store_settings(SETTINGS)
    assert vault.settings == SETTINGS
    vault.set_pin(PIN)
    assert vault.settings == replace(SETTINGS, force_pin_change=False)
    vault.verify_pin(pin_hash(PIN))
    vault.store_settings(SETTINGS)
    vault.change_pin(OTHER)
    assert vault.settings == replace(SETTINGS, force_pin_change=False)
    vault.reset()
    assert vault.settings == AuthenticatorSettings()


def test_large_blobs_stay_until_a_reset(unlocked: KeyVault) -> None:
    longest = b"x" * unlocked.properties.max_large_blobs
    for array in (b"short", longest):
        unlocked.store_large_blobs(array)
        assert unlocked.large_blobs() == array
    assert reason_of(lambda: unlocked.store_large_blobs(longest + b"x")) is Reason.KEY_STORE_FULL
    assert unlocked.large_blobs() == longest
    unlocked.lock()
    assert unlocked.large_blobs() == longest
    unlocked.reset()
    assert unlocked.large_blobs() == INITIAL_LARGE_BLOBS
