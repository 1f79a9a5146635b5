"""The contract of `VerifyingVault`: one body for SoftHSM2, and for a virtual PIV card behind OpenSC and pcscd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.vault import (
    INITIAL_LARGE_BLOBS,
    AuthenticatorSettings,
    CredentialSecrets,
    PinState,
    User,
    hash_of,
)
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.pkcs11.pin_control import TokenPin
from keyvouch_agent.vaults.pkcs11.uri import TokenUri
from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault
from support.pkcs11_tokens import Typed, card_library, card_vault, kept, key_for, proves_possession, reason_of

RP = hash_of("login.example.org")
KINDS = ("softhsm", "softhsm-always", "piv-9a", "piv-9c")


@dataclass
class Stage:
    """A vault over a token, and how to open it once more."""

    vault: Pkcs11Vault
    pin: str
    open: Callable[[], Any]
    makes_keys: bool

    def unlock(self, vault: Pkcs11Vault | None = None) -> Pkcs11Vault:
        (vault or self.vault).verify_user(Typed(self.pin))
        return vault or self.vault


@pytest.fixture(params=KINDS)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    kind: str = request.param
    makes_keys = kind.startswith("softhsm")
    if makes_keys:
        token = request.getfixturevalue("softhsm")
        module, pin, wanted = "softhsm2", token.user_pin, TokenUri(serial=token.serial)
    else:
        card = request.getfixturevalue("issued_piv_card").card
        module, pin, wanted = "opensc", card.pin, TokenUri(id=b"\x01" if kind == "piv-9a" else b"\x02")
    with card_library(module) as library:

        def opened() -> Any:
            return card_vault(library, tmp_path / "account", wanted, pin_always=kind == "softhsm-always")

        with opened() as vault:
            yield Stage(vault, pin, opened, makes_keys)


def test_properties(stage: Stage) -> None:
    properties = stage.vault.properties
    assert (properties.protection, properties.verifies_itself, properties.pin_gated) == ("smartcard", True, True)
    assert properties.algorithms[0] == -7
    assert properties.max_large_blobs == 0
    assert properties.attestation_formats == (() if stage.makes_keys else ("piv",))


def test_new_account_is_locked_and_empty(stage: Stage) -> None:
    vault = stage.vault
    assert vault.uv_state().is_configured
    assert vault.discoverable() == []
    assert vault.room() == 16
    assert vault.settings == AuthenticatorSettings()
    assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_REQUIRED


def test_its_pin_is_none_of_ctaps(stage: Stage) -> None:
    assert stage.vault.pin_state() == PinState(is_set=False, retries_left=0)
    for refused in (stage.vault.set_pin, stage.vault.change_pin, stage.vault.verify_pin):
        assert reason_of(lambda refused=refused: refused(b"123456")) is Reason.UNSUPPORTED  # type: ignore[misc]


def test_key_is_made_kept_and_signs(stage: Stage) -> None:
    vault = stage.unlock()
    credential = vault.create_key(key_for())
    assert (credential.rp_id, credential.user.name, credential.sign_count) == ("login.example.org", "alice", 0)
    proves_possession(vault, credential)
    assert vault.find(RP, credential.id) is None
    vault.keep(credential.id)
    assert vault.find(RP, credential.id) == credential
    proves_possession(vault, credential)
    vault.lock()
    assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
    assert vault.discoverable(RP) == [credential]


def test_attestation_is_what_the_properties_say(stage: Stage) -> None:
    vault = stage.unlock()
    credential = vault.create_key(key_for())
    attestation = vault.attest(credential.id, b"data", b"hash")
    assert attestation.format == ("none" if stage.makes_keys else "piv")
    if stage.makes_keys:
        assert attestation.statement == {}


def test_another_process_goes_on_with_it(stage: Stage) -> None:
    credential = kept(stage.unlock())
    stage.vault.close()
    with stage.open() as again:
        assert again.find(RP, credential.id) == credential
        assert reason_of(lambda: again.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
        proves_possession(stage.unlock(again), credential)


def test_wrong_pin_opens_nothing(stage: Stage) -> None:
    vault = stage.vault
    assert reason_of(lambda: vault.verify_user(Typed("000000"))) is Reason.PIN_WRONG
    assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_REQUIRED
    kept(stage.unlock())


def test_wrong_pin_after_the_right_one_locks(stage: Stage) -> None:
    vault = stage.unlock()
    credential = kept(vault)
    assert reason_of(lambda: vault.verify_user(Typed("000000"))) is Reason.PIN_WRONG
    assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
    proves_possession(stage.unlock(), credential)


@pytest.mark.parametrize(("typed", "reason"), [(None, Reason.USER_CANCELLED), ("", Reason.PIN_WRONG),
                                               ("12\x0034", Reason.PIN_WRONG)])  # fmt: skip
def test_what_is_no_pin_is_not_tried(stage: Stage, typed: str | None, reason: Reason) -> None:
    before = stage.vault.uv_state()
    assert reason_of(lambda: stage.vault.verify_user(Typed(typed))) is reason
    assert stage.vault.uv_state() == before
    assert reason_of(lambda: stage.vault.create_key(key_for())) is Reason.PIN_REQUIRED


def test_key_that_is_not_kept_is_gone(stage: Stage) -> None:
    vault = stage.unlock()
    first = vault.create_key(key_for())
    second = vault.create_key(key_for())
    assert reason_of(lambda: vault.sign(first.id, b"m")) is Reason.KEY_NOT_FOUND
    assert reason_of(lambda: vault.keep(first.id)) is Reason.KEY_NOT_FOUND
    vault.lock()
    stage.unlock()
    assert reason_of(lambda: vault.sign(second.id, b"m")) is Reason.KEY_NOT_FOUND
    assert vault.discoverable() == []


def test_new_discoverable_key_takes_the_place_of_the_old(stage: Stage) -> None:
    vault = stage.unlock()
    old, other = kept(vault), kept(vault, key_for(user=b"other"))
    server_side = kept(vault, key_for(discoverable=False))
    new = kept(vault)
    assert vault.discoverable(RP) == [new, other]
    assert vault.find(RP, old.id) is None
    assert vault.find(RP, server_side.id) == server_side
    for credential in (new, other, server_side):
        proves_possession(vault, credential)


def test_counter_names_and_settings_are_on_the_disk(stage: Stage) -> None:
    vault = stage.unlock()
    credential = kept(vault)
    assert [vault.advance_sign_count(credential.id) for _ in range(2)] == [1, 2]
    vault.update_user(credential.id, User(b"ignored", "bob", "Bob"))
    vault.store_settings(AuthenticatorSettings(8, ("example.org",), False, True))
    vault.close()
    with stage.open() as again:
        (found,) = again.discoverable()
        assert (found.sign_count, found.user) == (2, User(b"user", "bob", "Bob"))
        assert again.settings == AuthenticatorSettings(8, ("example.org",), False, True)
    assert reason_of(lambda: vault.advance_sign_count(CredentialId(b"unknown"))) is Reason.KEY_NOT_FOUND


def test_deleted_key_is_gone(stage: Stage) -> None:
    vault = stage.unlock()
    gone, stays = kept(vault, key_for(user=b"a")), kept(vault, key_for(user=b"b"))
    vault.delete(gone.id)
    assert reason_of(lambda: vault.sign(gone.id, b"m")) is Reason.KEY_NOT_FOUND
    assert reason_of(lambda: vault.delete(gone.id)) is Reason.KEY_NOT_FOUND
    proves_possession(vault, stays)


def test_reset_works_when_locked_and_begins_anew(stage: Stage) -> None:
    vault = stage.unlock()
    credential = kept(vault)
    vault.lock()
    vault.reset()
    assert vault.discoverable() == []
    assert vault.settings == AuthenticatorSettings()
    stage.unlock()
    assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.KEY_NOT_FOUND
    proves_possession(vault, kept(vault))


def test_there_are_no_secrets(stage: Stage) -> None:
    vault = stage.unlock()
    credential = vault.create_key(key_for(hmac_secret=True, cred_blob=b"blob", large_blob_key=True))
    assert not any((credential.has_hmac_secret, credential.has_cred_blob, credential.has_large_blob_key))
    assert vault.secrets(credential.id) == CredentialSecrets()
    assert vault.large_blobs() == INITIAL_LARGE_BLOBS
    assert reason_of(lambda: vault.store_large_blobs(b"x" * 40)) is Reason.KEY_STORE_FULL


def test_algorithm_that_the_token_lacks(stage: Stage) -> None:
    vault = stage.unlock()
    assert reason_of(lambda: vault.create_key(key_for(algorithm=-8))) is Reason.UNSUPPORTED
    proves_possession(vault, vault.create_key(key_for()))


def test_account_is_one_process_s(stage: Stage) -> None:
    assert reason_of(lambda: stage.open().__enter__()) is Reason.VAULT_BUSY


def test_pin_is_changed_and_the_keys_stay(stage: Stage) -> None:
    credential = kept(stage.unlock())
    control = TokenPin(stage.vault._account, stage.vault)
    assert control.is_set
    assert reason_of(lambda: control.change(Pin("111111"), Pin("222222"))) is Reason.PIN_WRONG
    assert reason_of(lambda: control.change(Pin(stage.pin), Pin("1"))) is Reason.PIN_POLICY
    control.change(Pin(stage.pin), Pin("24682468"))
    assert reason_of(lambda: stage.vault.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
    assert reason_of(stage.unlock) is Reason.PIN_WRONG
    stage.vault.verify_user(Typed("24682468"))
    proves_possession(stage.vault, credential)
    assert reason_of(lambda: control.set(Pin("123456"))) is Reason.UNSUPPORTED
