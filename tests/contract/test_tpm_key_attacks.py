"""What can be tried on a key behind the PIN gate by who has everything but the PIN: none of it signs or moves the key.

Response codes are those of the reference implementation, with the handle, parameter or session they are about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CC
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_DIGEST,
    TPM2B_ECC_PARAMETER,
    TPM2B_ECC_POINT,
    TPM2B_SENSITIVE_DATA,
    TPMS_ECC_POINT,
    TPMT_SYM_DEF_OBJECT,
)

from keyvouch_agent.authenticator.vault import KeyRequest, User
from keyvouch_agent.vaults.tpm.pin_index import auth_value
from keyvouch_bench.swtpm import Swtpm
from support.tpm_accounts import kept, tpm_vault
from support.tpm_attacker import ECDSA, PIN, Attacker, Victim, attacking, pin_hash, victim_in

HASH: Final = pin_hash(PIN)
MINE: Final = b"the thief's own value"
"""What the thief defines an index with."""

POLICY_FAIL: Final = 0x99D
NO_AUTHORIZATION: Final = 0x12F
NO_CIPHER: Final = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL)
NOTHING: Final = TPM2B_DATA()


@pytest.fixture
def victim(tpm: Any, tmp_path: Path) -> Iterator[Victim]:
    with victim_in(tpm, tmp_path / "account") as made:
        yield made


# The key


def none(_thief: Attacker, _session: Any) -> None:
    """A policy session in which nothing happened."""


def by_owner(thief: Attacker, session: Any) -> None:
    """Behind the owner's password, which is empty."""
    thief.esys.policy_secret(ESYS_TR.OWNER, session, expiration=0)


def by_key_value(thief: Attacker, session: Any) -> None:
    """Behind the key's own value, which is empty."""
    thief.esys.policy_auth_value(session)


def by_password(thief: Attacker, session: Any) -> None:
    """The same as a password."""
    thief.esys.policy_password(session)


def for_signing(thief: Attacker, session: Any) -> None:
    """Only for signing."""
    thief.esys.policy_command_code(session, TPM2_CC.Sign)


def by_choice(thief: Attacker, session: Any) -> None:
    """One of two, the key's policy among them."""
    policies = [TPM2B_DIGEST(bytes(32)), TPM2B_DIGEST(thief.gate.key_policy)]
    thief.esys.policy_or(session, policies)


@pytest.mark.parametrize("policy", [none, by_owner, by_key_value, by_password, for_signing, by_choice])
def test_no_other_policy_session_signs_H2(victim: Victim, policy: Callable[[Attacker, Any], None]):
    with victim.attacked() as thief:
        key, session = thief.load_key(), thief.policy()
        policy(thief, session)
        thief.refused(POLICY_FAIL, lambda: thief.sign(key, session))
    assert victim.signs()


def test_the_keys_own_value_signs_nothing_and_nobody_can_make_it_H2(victim: Victim):
    with victim.attacked() as thief:
        key = thief.load_key()
        for session in (ESYS_TR.PASSWORD, thief.hmac()):
            thief.refused(NO_AUTHORIZATION, lambda s=session: thief.sign(key, s))
        # The TPM gives the key another value: it has one, and its policy still is the only way to sign.
        changed = thief.esys.object_change_auth(key, thief.parent, MINE)
        thief.flush(key)
        again = thief.keep(thief.esys.load(thief.parent, changed, thief.key_file.public))
        thief.esys.tr_set_auth(again, MINE)
        thief.refused(NO_AUTHORIZATION, lambda: thief.sign(again, ESYS_TR.PASSWORD))
        session = thief.policy()
        thief.esys.policy_auth_value(session)
        thief.refused(POLICY_FAIL, lambda: thief.sign(again, session))
    assert victim.signs()


AS_SIGNER: Final[dict[str, Callable[[Attacker, Any], object]]] = {
    "TPM2_Quote": lambda thief, key: thief.esys.quote(key, "sha256:0", NOTHING, ECDSA),
    "TPM2_Certify": lambda thief, key: thief.esys.certify(thief.parent, key, NOTHING, ECDSA),
    "TPM2_GetTime": lambda thief, key: thief.esys.get_time(key, NOTHING, ECDSA),
    "TPM2_NV_Certify": lambda thief, key: thief.esys.nv_certify(
        key, thief.index(), NOTHING, ECDSA, 8, 0, ESYS_TR.OWNER
    ),
    "TPM2_GetCommandAuditDigest": lambda thief, key: thief.esys.get_command_audit_digest(key, NOTHING, ECDSA),
    "TPM2_Commit": lambda thief, key: thief.esys.commit(
        key, TPM2B_ECC_POINT(), TPM2B_SENSITIVE_DATA(), TPM2B_ECC_PARAMETER()
    ),
    "TPM2_ECDH_ZGen": lambda thief, key: thief.esys.ecdh_zgen(
        key, TPM2B_ECC_POINT(TPMS_ECC_POINT(x=b"\1" * 32, y=b"\2" * 32))
    ),
}


@pytest.mark.parametrize("command", AS_SIGNER)
def test_no_other_command_uses_the_key_without_the_pin_H2(victim: Victim, command: str):
    with victim.attacked() as thief:
        key = thief.load_key()
        thief.refused(NO_AUTHORIZATION, lambda: AS_SIGNER[command](thief, key))
    assert victim.signs()


def test_the_pin_of_another_account_opens_that_account_only_H3(tpm: Any, victim: Victim, tmp_path: Path):
    folder, pin = tmp_path / "other", b"the thief's PIN"
    with tpm_vault(tpm.tcti, folder) as vault:
        vault.set_pin(pin)
        vault.verify_pin(hashlib.sha256(pin).digest()[:16])
        kept(vault, KeyRequest("rp", User(b"thief"), -7, discoverable=True))
        vault.lock()
        with attacking(tpm.tcti, folder) as own:
            index, session = own.index(), own.policy()
            own.esys.tr_set_auth(index, auth_value(hashlib.sha256(pin).digest()[:16]))
            own.esys.policy_secret(index, session, expiration=0)
            with_key = Attacker(own.esys, victim.folder)
            key = own.keep(own.esys.load(own.parent, with_key.key_file.private, with_key.key_file.public))
            own.refused(POLICY_FAIL, lambda: own.sign(key, session))
            own.flush(key)
            assert own.sign(own.load_key(), session)
    assert victim.signs()


# Moving it


def test_the_key_cannot_be_duplicated_not_even_with_the_pin_H2(victim: Victim):
    with victim.attacked() as thief:
        key, index = thief.load_key(), thief.index()
        allowed, with_pin = thief.policy(), thief.policy()
        thief.esys.policy_command_code(allowed, TPM2_CC.Duplicate)
        thief.esys.tr_set_auth(index, auth_value(HASH))
        thief.esys.policy_secret(index, with_pin, expiration=0)
        for session, code in ((allowed, POLICY_FAIL), (with_pin, POLICY_FAIL)):
            thief.refused(code, lambda s=session: duplicate(thief, key, s))
        thief.esys.policy_command_code(with_pin, TPM2_CC.Duplicate)
        thief.refused(POLICY_FAIL, lambda: duplicate(thief, key, with_pin))
    assert victim.signs()


def duplicate(thief: Attacker, key: Any, session: Any) -> object:
    return thief.esys.duplicate(key, ESYS_TR.NULL, NOTHING, NO_CIPHER, session)


def test_a_saved_context_or_a_persistent_copy_is_as_closed_as_the_key_H2(victim: Victim):
    with victim.attacked() as thief:
        key = thief.load_key()
        saved = thief.esys.context_save(key)
        thief.flush(key)
        again = thief.keep(thief.esys.context_load(saved))
        thief.refused(NO_AUTHORIZATION, lambda: thief.sign(again, ESYS_TR.PASSWORD))
        persistent = thief.esys.evict_control(ESYS_TR.OWNER, again, 0x8100_4B01)
        try:
            thief.flush(again)
            session = thief.policy()
            thief.refused(POLICY_FAIL, lambda: thief.sign(persistent, session))
            thief.refused(NO_AUTHORIZATION, lambda: thief.sign(persistent, ESYS_TR.PASSWORD))
        finally:
            thief.esys.evict_control(ESYS_TR.OWNER, persistent, 0x8100_4B01)
    assert victim.signs()


def test_the_files_are_of_no_use_in_another_tpm_H2(tpm_factory: Callable[..., Swtpm], tmp_path: Path):
    here, elsewhere, folder = tpm_factory(), tpm_factory(chip=1), tmp_path / "account"
    with tpm_vault(here.tcti, folder) as vault:
        vault.set_pin(PIN)
        vault.verify_pin(HASH)
        kept(vault, KeyRequest("rp", User(b"u"), -7, discoverable=True))
        vault.lock()
        with attacking(elsewhere.tcti, folder) as thief:
            thief.refused(0x1DF, thief.load_key)  # TPM_RC_INTEGRITY
        with attacking(here.tcti, folder) as thief:
            assert thief.load_key()


def test_after_a_clear_the_files_are_of_no_use_in_the_same_tpm_H2(tpm_factory: Callable[..., Swtpm], tmp_path: Path):
    tpm, folder = tpm_factory(), tmp_path / "account"
    with tpm_vault(tpm.tcti, folder) as vault:
        vault.set_pin(PIN)
        vault.verify_pin(HASH)
        kept(vault, KeyRequest("rp", User(b"u"), -7, discoverable=True))
        vault.lock()
        with attacking(tpm.tcti, folder) as thief:
            thief.esys.clear(ESYS_TR.LOCKOUT)
            thief.define(MINE)
            thief.refused(0x1DF, thief.load_key)
