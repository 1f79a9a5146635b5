"""Sessions with a TPM: encrypted ones for everything secret, policy sessions for everything behind a policy.

    secret    HMAC session, salted to the storage root key: an authorization value never crosses the bus, a parameter
              crosses it in AES-128-CFB (TPM 2.0 Library, Part 1 sections 19.6 and 21)
    policy    unsalted: what happens in it is not secret. Salted where its command carries a secret

The salt is encrypted to the storage root key that was pinned when the account was made, so nobody between the agent and
the TPM can put a key of his own in its place.
"""

from __future__ import annotations

from typing import Any

from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_SESSION, TPMT_SYM_DEF

from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.templates import AES_128_CFB

__all__ = ["owner_session", "policy_session", "salted_policy_session", "secret_session"]

_NO_CIPHER = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)


def secret_session(tpm: Tpm, parent: Any, *, keep: bool = False) -> Any:
    """A session for one command (or several, to `keep`) whose first parameter and authorization are secret."""
    session = _start(tpm, parent, TPM2_SE.HMAC, AES_128_CFB)
    _set(tpm, session, TPMA_SESSION.DECRYPT | (TPMA_SESSION.CONTINUESESSION if keep else TPMA_SESSION(0)))
    return session


def policy_session(tpm: Tpm) -> Any:
    """A policy session that ends with the command it authorizes."""
    session = _start(tpm, ESYS_TR.NONE, TPM2_SE.POLICY, _NO_CIPHER)
    _set(tpm, session, TPMA_SESSION(0))
    return session


def salted_policy_session(tpm: Tpm, parent: Any) -> Any:
    """A policy session whose command has a secret first parameter."""
    session = _start(tpm, parent, TPM2_SE.POLICY, AES_128_CFB)
    _set(tpm, session, TPMA_SESSION.DECRYPT)
    return session


def owner_session(tpm: Tpm, parent: Any, auth: bytes) -> Any:
    """What authorizes a command of a hierarchy: nothing but an empty password, or a session that hides the password."""
    return secret_session(tpm, parent) if auth else ESYS_TR.PASSWORD


def _start(tpm: Tpm, salt: Any, kind: TPM2_SE, cipher: TPMT_SYM_DEF) -> Any:
    return tpm.hold(tpm.do(tpm.esapi.start_auth_session, salt, ESYS_TR.NONE, kind, cipher, TPM2_ALG.SHA256))


def _set(tpm: Tpm, session: Any, attributes: TPMA_SESSION) -> None:
    """Set exactly these attributes. Sessions without continueSession are gone after the command that uses them."""
    tpm.esapi.trsess_set_attributes(session, attributes)
