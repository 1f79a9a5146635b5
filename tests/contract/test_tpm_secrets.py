"""What a TPM vault keeps beside a key: given out behind the PIN alone, and for that very credential alone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tpm2_pytss.constants import ESYS_TR, TPM2_CC
from tpm2_pytss.types import TPM2B_PRIVATE, TPM2B_PUBLIC

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import (
    Credential,
    CredentialSecrets,
    KeyRequest,
    PinState,
    User,
    hash_of,
)
from keyvouch_agent.vaults.tpm import account_file, credential_secrets
from keyvouch_agent.vaults.tpm.account_file import AccountState, SealedSecrets
from keyvouch_agent.vaults.tpm.pin_index import auth_value
from keyvouch_bench.swtpm import Swtpm
from support.tpm_accounts import kept, tpm_vault
from support.tpm_attacker import PIN, Attacker, attacking, pin_hash, record_of

REQUEST: Final = KeyRequest(
    "login.example.org",
    User(b"user", "ada", "Ada"),
    -7,
    discoverable=True,
    cred_blob=b"blob of the relying party",
    hmac_secret=True,
    large_blob_key=True,
)
POLICY_FAIL: Final = 0x99D
NO_AUTHORIZATION: Final = 0x12F
INTEGRITY: Final = 0x1DF


@pytest.fixture
def vault(tpm: Any, tmp_path: Path) -> Iterator[Any]:
    """Unlocked, with a PIN."""
    with tpm_vault(tpm.tcti, tmp_path / "account") as made:
        made.set_pin(PIN)
        made.verify_pin(pin_hash(PIN))
        yield made
    assert not tpm.loaded_handles()


def load_seed(thief: Attacker, folder: Path) -> Any:
    """The sealed seed out of the account's record."""
    (sealed,) = record_of(folder).secrets.values()
    private, public = TPM2B_PRIVATE.unmarshal(sealed.private)[0], TPM2B_PUBLIC.unmarshal(sealed.public)[0]
    return thief.keep(thief.esys.load(thief.parent, private, public))


# The PIN


def none(_thief: Attacker, _session: Any) -> None:
    """A policy session in which nothing happened."""


def by_owner(thief: Attacker, session: Any) -> None:
    """Behind the owner's password, which is empty."""
    thief.esys.policy_secret(ESYS_TR.OWNER, session, expiration=0)


def by_own_value(thief: Attacker, session: Any) -> None:
    """Behind the object's own value, which is empty."""
    thief.esys.policy_auth_value(session)


def for_unsealing(thief: Attacker, session: Any) -> None:
    """Only for unsealing."""
    thief.esys.policy_command_code(session, TPM2_CC.Unseal)


@pytest.mark.parametrize("policy", [none, by_owner, by_own_value, for_unsealing])
def test_no_other_policy_session_gives_the_seed_out_H3(
    tpm: Any, vault: Any, tmp_path: Path, policy: Callable[[Attacker, Any], None]
) -> None:
    credential = kept(vault, REQUEST)
    vault.lock()
    with attacking(tpm.tcti, tmp_path / "account") as thief:
        seed, session = load_seed(thief, tmp_path / "account"), thief.policy()
        policy(thief, session)
        thief.refused(POLICY_FAIL, lambda: thief.esys.unseal(seed, session))
        for own in (ESYS_TR.PASSWORD, thief.hmac()):
            thief.refused(NO_AUTHORIZATION, lambda own=own: thief.esys.unseal(seed, own))
    vault.verify_pin(pin_hash(PIN))
    assert vault.secrets(credential.id).with_uv


def test_with_the_pin_the_seed_is_given_out(tpm: Any, vault: Any, tmp_path: Path) -> None:
    """The control of the attacks."""
    kept(vault, REQUEST)
    vault.lock()
    with attacking(tpm.tcti, tmp_path / "account") as owner:
        seed, session, index = load_seed(owner, tmp_path / "account"), owner.policy(), owner.index()
        owner.esys.tr_set_auth(index, auth_value(pin_hash(PIN)))
        owner.esys.policy_secret(index, session, expiration=0)
        assert len(bytes(owner.esys.unseal(seed, session))) == 32


def test_secrets_are_not_asked_for_with_a_wrong_pin_and_go_with_the_counter(vault: Any) -> None:
    credential = kept(vault, REQUEST)
    vault.lock()
    for _ in range(vault.properties.max_pin_retries):
        with pytest.raises(DeviceError):
            vault.verify_pin(pin_hash(b"another"))
    for pin in (PIN, b"another"):
        with pytest.raises(DeviceError) as caught:
            vault.verify_pin(pin_hash(pin))
        assert caught.value.reason is Reason.PIN_BLOCKED
    with pytest.raises(DeviceError) as caught:
        vault.secrets(credential.id)
    assert caught.value.reason is Reason.PIN_REQUIRED


def test_a_seed_is_of_no_use_in_another_tpm_H2(tpm_factory: Callable[..., Swtpm], tmp_path: Path) -> None:
    here, elsewhere, folder = tpm_factory(), tpm_factory(chip=1), tmp_path / "account"
    with tpm_vault(here.tcti, folder) as vault:
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        kept(vault, REQUEST)
        vault.lock()
        with attacking(elsewhere.tcti, folder) as thief:
            thief.refused(INTEGRITY, lambda: load_seed(thief, folder))
        with attacking(here.tcti, folder) as thief:
            assert load_seed(thief, folder)


def test_secrets_come_from_the_seed_by_hkdf_and_will_tomorrow(vault: Any) -> None:
    """RFC 5869 by hand: whatever was encrypted with a secret must open with the program of any later day."""
    made = vault.create_key(REQUEST)
    credential = replace(made, id=CredentialId(b"i" * 32), rp_id_hash=hash_of("login.example.org"))
    seed = bytes(range(32))

    def by_hand(label: str) -> bytes:
        purpose = ["keyvouch/tpm-credential-secrets/v1", label, b"i" * 32, hash_of("login.example.org")]
        extracted = hmac.digest(bytes(32), seed, "sha256")
        return hmac.digest(extracted, cbor.encode(purpose) + b"\x01", "sha256")

    blob = bytes(12) + AESGCM(by_hand("cred-blob")).encrypt(bytes(12), b"blob", None)
    derived = credential_secrets.derive(seed, credential, SealedSecrets(b"", b"", blob))
    labels = (by_hand("with-uv"), by_hand("without-uv"), by_hand("large-blob-key"))
    assert derived == CredentialSecrets(*labels, cred_blob=b"blob")
    assert by_hand("with-uv").hex() == "0341bd74f499d449d89ab565bd85599aa88fed6574f02fc66ea2a6c5b22c8f20"


# The record, changed on purpose


@contextmanager
def changed(vault: Any, change: Callable[[AccountState], AccountState]) -> Iterator[None]:
    """With another record, as if it had been found on the disk like that."""
    before = vault._account.state
    vault._account.store(change(before))
    yield
    vault._account.store(before)


def corrupt(vault: Any, credential: Credential) -> bool:
    with pytest.raises(DeviceError) as caught:
        vault.secrets(credential.id)
    assert "rekey" in caught.value.fix
    return caught.value.reason is Reason.VAULT_CORRUPT


def test_seed_of_another_credential_gives_what_nobody_knows(vault: Any) -> None:
    mine = kept(vault, replace(REQUEST, cred_blob=None))
    theirs = kept(vault, replace(REQUEST, cred_blob=None, user=User(b"other")))
    known = {vault.secrets(mine.id).with_uv, vault.secrets(theirs.id).with_uv}
    assert len(known) == 2

    def exchanged(state: AccountState) -> AccountState:
        return replace(state, secrets={mine.id: state.secrets[theirs.id], theirs.id: state.secrets[mine.id]})

    with changed(vault, exchanged):
        assert vault.secrets(mine.id).with_uv not in known
        assert vault.secrets(theirs.id).large_blob_key
    assert vault.secrets(mine.id).with_uv in known


def test_secrets_are_those_of_one_relying_party(vault: Any) -> None:
    credential = kept(vault, replace(REQUEST, cred_blob=None))
    right = vault.secrets(credential.id)

    def for_evil(state: AccountState) -> AccountState:
        return replace(state, keys=(replace(state.keys[0], rp_id="evil.example", rp_id_hash=b"e" * 32),))

    with changed(vault, for_evil):
        wrong = vault.secrets(credential.id)
    names = ("with_uv", "without_uv", "large_blob_key")
    assert not {getattr(right, name) for name in names} & {getattr(wrong, name) for name in names}


DAMAGES: Final[dict[str, Callable[[SealedSecrets], SealedSecrets]]] = {
    "private": lambda sealed: replace(sealed, private=sealed.private[:-1] + bytes([sealed.private[-1] ^ 1])),
    "private cut off": lambda sealed: replace(sealed, private=sealed.private[:20]),
    "private empty": lambda sealed: replace(sealed, private=b""),
    "public": lambda sealed: replace(sealed, public=sealed.public[:-1] + bytes([sealed.public[-1] ^ 1])),
    "public cut off": lambda sealed: replace(sealed, public=sealed.public[:9]),
    "blob": lambda sealed: replace(sealed, cred_blob=sealed.cred_blob[:-1] + bytes([sealed.cred_blob[-1] ^ 1])),
    "blob cut off": lambda sealed: replace(sealed, cred_blob=sealed.cred_blob[:5]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_secrets_are_named_and_the_key_still_signs(tpm: Any, vault: Any, name: str) -> None:
    credential = kept(vault, REQUEST)
    with changed(vault, lambda s: replace(s, secrets={credential.id: DAMAGES[name](s.secrets[credential.id])})):
        before = tpm.loaded_handles()
        assert corrupt(vault, credential)
        assert tpm.loaded_handles() <= before
        assert vault.sign(credential.id, b"m")
    assert vault.secrets(credential.id).cred_blob == REQUEST.cred_blob


# The record of version 1

FIRST_VERSION: Final = bytes.fromhex(
    "a401746b6579766f7563682d74706d2d6163636f756e74020103590168a201020582aa0158201f35c26602a4fb2df6e72da0b7bdb72d151f"
    "b2a3cc3503001bbc1bb257e8da1b02716c6f67696e2e6578616d706c652e6f72670344757365720465616c6963650565416c696365062607"
    "f508584da50102032620012158203b5459353626d986bbe38324d4c8f790747798d9e24c170eef5aa96e4295dc3422582024c6e984ce5dcc"
    "f783ce9fffb23896016629685cb41d53f667dfc4e014600e8709010a03aa015820643af98913be59da06ffe9f2d9d1a0208f43208347edaa"
    "e3fe79c276903e36c002716c6f67696e2e6578616d706c652e6f726703467573657220320463626f62056006382207f408586ea501020338"
    "222002215830a6516b6300b655de36901f9088bbda130d35b89e690b93ef00325c9728901675c4338ca216a48df6bc8c484d2dba8f3e2258"
    "30bbe43730a040d6d53e27cd70e77161e300d0560c4c2358bb74c01e7fd38ab4c045c846ab3c80e067870654538e6aa19909020a00045820"
    "f88c918def9bb8168d7929105832969cffb46e2345a84a87b026b6d8cd7e8195"
)
"""Written by the program when it knew version 1 only: two keys, the first has signed three times; no parent, no PIN."""


def test_record_of_version_1_is_read() -> None:
    state = account_file.decode(FIRST_VERSION)
    alice, bob = state.keys
    assert (alice.user, alice.sign_count, alice.rp_id) == (User(b"user", "alice", "Alice"), 3, "login.example.org")
    assert (bob.user, bob.algorithm, bob.discoverable) == (User(b"user 2", "bob"), -35, False)
    assert (state.serial, state.secrets) == (2, {})
    again = account_file.encode(state)
    assert version_of(again) == 2
    assert account_file.decode(again) == state


def test_account_of_version_1_goes_on(vault: Any, tmp_path: Path) -> None:
    credential = kept(vault, replace(REQUEST, cred_blob=None, hmac_secret=False, large_blob_key=False))
    record = tmp_path / "account" / "account.cbor"
    record.write_bytes(as_version_1(record.read_bytes()))
    vault._account._state = vault._account._load()
    assert vault.pin_state() == PinState(is_set=True, retries_left=8, code_points=0)
    assert vault.discoverable() == [credential]
    assert vault.secrets(credential.id) == CredentialSecrets()
    assert vault.sign(credential.id, b"m")
    assert version_of(record.read_bytes()) == 1
    vault.advance_sign_count(credential.id)
    assert version_of(record.read_bytes()) == 2
    other = kept(vault, replace(REQUEST, user=User(b"new")))
    assert vault.secrets(other.id).with_uv
    vault.change_pin(b"654321")
    assert vault.pin_state().code_points == 6


def version_of(content: bytes) -> object:
    outer = cbor.decode(content)
    assert isinstance(outer, dict)
    return outer[2]


def as_version_1(content: bytes) -> bytes:
    """The same record without what version 2 added."""
    state = account_file.decode(content)
    outer = cbor.decode(content)
    assert isinstance(outer, dict)
    assert isinstance(outer[3], bytes)
    body = cbor.decode(outer[3])
    assert isinstance(body, dict)
    del body[6], body[7]
    body[3].pop(9)
    for key in body[5]:
        for number in range(11, 16):
            key.pop(number)
    raw = cbor.encode(body)
    assert state.secrets == {}
    return cbor.encode({**outer, 2: 1, 3: raw, 4: hashlib.sha256(raw).digest()})


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop(6),
        lambda body: body.pop(7),
        lambda body: body.update({8: 1}),
        lambda body: body[3].pop(9),
        lambda body: body[5][0].pop(11),
        lambda body: body[5][0].update({12: 4}),
        lambda body: body[5][0].update({15: 1}),
        lambda body: body[5][0].pop(16),
        lambda body: body[5][0].update({16: []}),
        lambda body: body[5][0].update({16: [b"", b"", 1]}),
        lambda body: body[5][0].update({13: False, 14: False, 15: False}),
        lambda body: body[6].update({2: [1]}),
    ],
)
def test_record_of_another_structure_is_damaged(vault: Any, tmp_path: Path, change: Callable[[Any], object]) -> None:
    kept(vault, REQUEST)
    content = (tmp_path / "account" / "account.cbor").read_bytes()
    outer = cbor.decode(content)
    assert isinstance(outer, dict)
    assert isinstance(outer[3], bytes)
    assert account_file.decode(content).keys  # control
    body = cbor.decode(outer[3])
    change(body)
    raw = cbor.encode(body)
    with pytest.raises(DeviceError) as caught:
        account_file.decode(cbor.encode({**outer, 3: raw, 4: hashlib.sha256(raw).digest()}))
    assert caught.value.reason is Reason.VAULT_CORRUPT
