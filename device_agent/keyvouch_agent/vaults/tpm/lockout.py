"""The TPM's own lockout, which belongs to its owner: it counts wrong passwords of objects that are not Keyvouch's.

Our keys and PIN counters are exempt (noDA), so they neither cause it nor suffer from it. It can be reset by whoever has
the lockout's password, which is empty where nobody set one (TPM 2.0 Library, Part 1 section 19.8).
"""

from __future__ import annotations

from tpm2_pytss import ESYS_TR

from keyvouch.errors import Reason
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.profile import read_lockout
from keyvouch_agent.vaults.tpm.response_codes import Code, Words
from keyvouch_agent.vaults.tpm.sessions import owner_session

__all__ = ["reset_lockout"]


def reset_lockout(tpm: Tpm, auth: bytes) -> None:
    """TPM2_DictionaryAttackLockReset. Raises `DeviceError`: TPM_OWNER_AUTH for a wrong password, TPM_LOCKOUT."""
    waiting = _waiting(read_lockout(tpm).recovery)
    wrong = Words(Reason.TPM_OWNER_AUTH, "That is not the password of the TPM's lockout.", waiting)
    barred = Words(Reason.TPM_LOCKOUT, "A wrong password of the lockout itself was given before.", waiting)
    tpm.esapi.tr_set_auth(ESYS_TR.LOCKOUT, auth)
    try:
        with owner_session(tpm, auth) as session:
            meanings = {Code.AUTH_FAIL: wrong, Code.BAD_AUTH: wrong, Code.LOCKOUT: barred}
            tpm.expecting(meanings, tpm.esapi.dictionary_attack_lock_reset, ESYS_TR.LOCKOUT, session)
    finally:
        tpm.esapi.tr_set_auth(ESYS_TR.LOCKOUT, b"")


def _waiting(recovery: int) -> str:
    until = f"for {recovery} seconds" if recovery else "until the computer is restarted"
    return f"The TPM takes no other one {until}. The lockout also ends by itself, with time."
