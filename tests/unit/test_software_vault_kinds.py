"""The software vault's file of version 1, which people have; and the two kinds of vault, gated by the PIN and not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from keyvouch import cbor
from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.vault import (
    INITIAL_LARGE_BLOBS,
    AuthenticatorSettings,
    CredentialSecrets,
    CredProtect,
    PinState,
    User,
    hash_of,
)
from keyvouch_agent.vaults.software import SoftwareVault, vault_file
from keyvouch_agent.vaults.software.sealed_key import open_key
from support.software_vaults import OTHER, PIN, REQUEST, RP, kept, opened, pin_hash, proves_possession, with_a_key

# Version 1

FIRST_VERSION = bytes.fromhex(
    "a4016e6b6579766f7563682d7661756c74020103590251a3010202a60108020103010450ccce0f076d3492c78b4cab27e3dfab4005583c8a"
    "3db3a12a2d914fb1b79609432d7f7b3d4b3a8b0392e40f9abe51fe18aae73560b2f7beab02147e3c990bee71c42b2454ac66c5071a12a809"
    "9dc5f506070382ab0158201f35c26602a4fb2df6e72da0b7bdb72d151fb2a3cc3503001bbc1bb257e8da1b02716c6f67696e2e6578616d70"
    "6c652e6f72670344757365720465616c6963650565416c696365062607f508584da50102032620012158203b5459353626d986bbe38324d4"
    "c8f790747798d9e24c170eef5aa96e4295dc3422582024c6e984ce5dccf783ce9fffb23896016629685cb41d53f667dfc4e014600e870901"
    "0a010b583c04ec6cff72810a75932bd5551e53e67d09ca8e5baf43271d5adff236198701d3e4bf801fa46e39d75c0a6e0213fc573ef8968d"
    "a8b33a49726ecad913ab015820643af98913be59da06ffe9f2d9d1a0208f43208347edaae3fe79c276903e36c002716c6f67696e2e657861"
    "6d706c652e6f726703467573657220320463626f62056006382207f408586ea501020338222002215830a6516b6300b655de36901f9088bb"
    "da130d35b89e690b93ef00325c9728901675c4338ca216a48df6bc8c484d2dba8f3e225830bbe43730a040d6d53e27cd70e77161e300d056"
    "0c4c2358bb74c01e7fd38ab4c045c846ab3c80e067870654538e6aa19909020a000b584c42838a9edb58f9a8884f954493d0c4a618b0dc06"
    "a0152f2923b1dbbde36fdac147e50dac2e20252522a56d82ae0b8094dcbbfb0f144c0c0323a27d60a3a697ac6b9a31995fc4431c592af348"
    "045820b5a4506831d12f37bfe5be3eca90469668b6559b2fe833d9bcefffc9fcae4de7"
)
"""Written by the program when it knew version 1 only: PIN 123456, one try used; a discoverable key on P-256 for alice,
which has signed once, and a server-side one on P-384 for bob.
"""


def of_version_one(path: Path) -> Path:
    path.mkdir(0o700)
    (path / "vault.cbor").touch(0o600)
    (path / "vault.cbor").write_bytes(FIRST_VERSION)
    return path


def version_of(path: Path) -> object:
    outer = cbor.decode((path / "vault.cbor").read_bytes())
    assert isinstance(outer, dict)
    return outer[2]


def test_file_of_version_1_opens_and_its_keys_sign(tmp_path: Path) -> None:
    path = of_version_one(tmp_path / "v")
    with opened(path) as vault:
        assert vault.pin_state() == PinState(is_set=True, retries_left=7, code_points=0)
        assert (vault.settings, vault.large_blobs()) == (AuthenticatorSettings(), INITIAL_LARGE_BLOBS)
        alice, bob = (key.credential for key in vault._state.keys)
        assert vault.discoverable() == vault.discoverable(RP) == [alice]
        assert (alice.user, alice.sign_count, alice.protect) == (User(b"user", "alice", "Alice"), 1, 1)
        assert (bob.user, bob.algorithm) == (User(b"user 2", "bob"), -35)
        assert not alice.has_hmac_secret
        assert (path / "vault.cbor").read_bytes() == FIRST_VERSION  # looking changes nothing
        for credential in (alice, bob):
            assert vault.find(RP, credential.id) == credential
            proves_possession(vault, credential)
            assert vault.secrets(credential.id) == CredentialSecrets()


def test_file_of_version_1_becomes_one_of_version_2_at_the_next_change(tmp_path: Path) -> None:
    path = of_version_one(tmp_path / "v")
    with opened(path) as vault:
        alice, bob = (key.credential for key in vault._state.keys)
        vault.verify_pin(pin_hash(PIN))
        assert version_of(path) == 2
        vault.update_user(alice.id, User(alice.user.id, "ada", "Ada"))
        vault.advance_sign_count(bob.id)
        new = kept(vault, replace(REQUEST, user=User(b"new")))
        assert new.created == 3
        vault.change_pin(OTHER)
    with opened(path) as vault:
        assert vault.pin_state() == PinState(is_set=True, retries_left=8, code_points=6)
        assert [c.id for c in vault.discoverable()] == [new.id, alice.id]
        assert vault.discoverable()[1].user == User(alice.user.id, "ada", "Ada")
        for credential in (alice, bob, new):
            proves_possession(vault, credential, OTHER)


def test_names_of_a_key_of_version_1_are_sealed_too(tmp_path: Path) -> None:
    path = of_version_one(tmp_path / "v")
    state = vault_file.decode(FIRST_VERSION)
    credential = replace(state.keys[0].credential, user=User(b"user", "mallory", "Alice"))
    changed = replace(state, keys=(replace(state.keys[0], credential=credential), state.keys[1]))
    (path / "vault.cbor").write_bytes(vault_file.encode(changed))
    with opened(path) as vault:
        vault.verify_pin(pin_hash(PIN))
        with pytest.raises(DeviceError) as caught:
            vault.sign(credential.id, b"m")
        assert caught.value.reason is Reason.VAULT_CORRUPT
        assert vault.sign(state.keys[1].credential.id, b"m")  # control


@pytest.mark.parametrize(
    "change",
    [
        {"rp_id_hash": hash_of("other.example")},
        {"protect": CredProtect.UV_REQUIRED},
        {"has_cred_blob": True},
        {"has_hmac_secret": True},
        {"has_large_blob_key": True},
    ],
)
def test_key_of_version_1_has_nothing_that_its_seal_does_not_bind(tmp_path: Path, change: dict[str, object]) -> None:
    """Its seal knows nothing of what came later, so a file that says it of such a key was made on purpose."""
    path = of_version_one(tmp_path / "v")
    state = vault_file.decode(FIRST_VERSION)
    (path / "vault.cbor").write_bytes(vault_file.encode(state))
    opened(path).close()  # control
    first = state.keys[0]
    changed = replace(first, credential=replace(first.credential, **change))
    (path / "vault.cbor").write_bytes(vault_file.encode(replace(state, keys=(changed, state.keys[1]))))
    with pytest.raises(DeviceError) as caught:
        opened(path)
    assert caught.value.reason is Reason.VAULT_CORRUPT


def test_each_flipped_byte_of_version_1_is_found(tmp_path: Path) -> None:
    path = of_version_one(tmp_path / "v")
    opened(path).close()  # control
    for index in range(len(FIRST_VERSION)):
        damaged = FIRST_VERSION[:index] + bytes([FIRST_VERSION[index] ^ 0x01]) + FIRST_VERSION[index + 1 :]
        (path / "vault.cbor").write_bytes(damaged)
        with pytest.raises(DeviceError) as caught:
            opened(path)
        assert caught.value.reason in (Reason.VAULT_CORRUPT, Reason.UNSUPPORTED)


# Gated by the PIN, and not


@pytest.mark.parametrize("pin_gated", [True, False])
def test_vault_of_one_kind_is_not_opened_as_the_other(tmp_path: Path, pin_gated: bool) -> None:
    path = tmp_path / "v"
    credential = with_a_key(path, pin_gated=pin_gated)
    before = (path / "vault.cbor").read_bytes()
    for _ in range(2):  # the first refusal has left no lock behind
        with pytest.raises(DeviceError) as caught:
            opened(path, pin_gated=not pin_gated)
        assert caught.value.reason is Reason.UNSUPPORTED
        assert caught.value.fix
    assert (path / "vault.cbor").read_bytes() == before
    with opened(path, pin_gated=pin_gated) as vault:
        assert vault.properties.pin_gated is pin_gated
        proves_possession(vault, credential)
        vault.reset()
    with pytest.raises(DeviceError):
        opened(path, pin_gated=not pin_gated)  # not even when it is empty


def test_file_of_version_1_is_one_that_the_pin_gates(tmp_path: Path) -> None:
    path = of_version_one(tmp_path / "v")
    with pytest.raises(DeviceError) as caught:
        opened(path, pin_gated=False)
    assert caught.value.reason is Reason.UNSUPPORTED
    opened(path).close()


def test_key_without_the_gate_survives_the_pin_coming_changing_and_being_blocked(tmp_path: Path) -> None:
    with opened(tmp_path / "v", pin_gated=False) as vault:
        credential = kept(vault)
        secrets = vault.secrets(credential.id)
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        vault.change_pin(OTHER)
        vault.lock()
        for _ in range(8):
            with pytest.raises(DeviceError):
                vault.verify_pin(pin_hash(PIN))
        vault.update_user(credential.id, User(b"user", "bob"))
    with opened(tmp_path / "v", pin_gated=False) as vault:
        assert vault.pin_state().retries_left == 0
        signature = vault.sign(credential.id, b"m")
        CoseKey(credential.public_key).verify_signature(signature=signature, message=b"m")
        assert vault.secrets(credential.id) == secrets


def test_key_that_requires_the_pin_does_so_also_without_the_gate(tmp_path: Path) -> None:
    """Whoever reads the file has the open master key; this key is not under it."""
    cautious = replace(REQUEST, protect=CredProtect.UV_REQUIRED, user=User(b"cautious"))
    with opened(tmp_path / "v", pin_gated=False) as vault:
        before_the_pin = kept(vault, replace(cautious, user=User(b"early")))
        vault.set_pin(PIN)
        with pytest.raises(DeviceError) as caught:
            vault.create_key(cautious)
        assert caught.value.reason is Reason.PIN_REQUIRED
        vault.verify_pin(pin_hash(PIN))
        credential, free = kept(vault, cautious), kept(vault)
    with opened(tmp_path / "v", pin_gated=False) as vault:
        for use in (vault.secrets, lambda key: vault.sign(key, b"m"), lambda key: vault.update_user(key, User(b"u"))):
            with pytest.raises(DeviceError) as caught:
                use(credential.id)
            assert caught.value.reason is Reason.PIN_REQUIRED
        assert opens_with_the_open_master(vault) == {before_the_pin.id: True, credential.id: False, free.id: True}
        proves_possession(vault, credential)


def opens_with_the_open_master(vault: SoftwareVault) -> dict[bytes, bool]:
    """What a thief of the file can use: the records that open with the master key that he found in it."""
    assert vault._state.open_master is not None
    stolen = {}
    for key in vault._state.keys:
        try:
            open_key(key, vault._state.open_master)
        except DeviceError:
            stolen[bytes(key.credential.id)] = False
        else:
            stolen[bytes(key.credential.id)] = True
    return stolen


def test_reset_draws_another_open_master(tmp_path: Path) -> None:
    with opened(tmp_path / "v", pin_gated=False) as vault:
        credential = kept(vault)
        stolen = vault_file.decode((tmp_path / "v" / "vault.cbor").read_bytes())
        vault.reset()
        assert vault._state.open_master not in (None, stolen.open_master)
        other = kept(vault)
        assert stolen.open_master is not None
        assert stolen.open_master not in (tmp_path / "v" / "vault.cbor").read_bytes()
        assert vault.discoverable() == [other]
        assert other.id != credential.id
