"""Sessions with a TPM: encrypted ones for everything secret, policy sessions for everything behind a policy.

    secret    HMAC session, salted to the storage root key: an authorization value never crosses the bus, a parameter
              crosses it in AES-128-CFB (TPM 2.0 Library, Part 1 sections 19.6 and 21)
    policy    unsalted where a signature of the server's is all that counts in it; salted where its command carries a
              secret, or says what gets signed: then nobody can put another command in its place
    owner     a password of a hierarchy goes into an HMAC too, unsalted where there is no key yet to salt it to

The salt is encrypted to the storage root key that was pinned when the account was made, so nobody between the agent and
the TPM can put a key of his own in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_SESSION, TPMT_SYM_DEF

from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.templates import AES_128_CFB

__all__ = ["answer_secretly", "owner_session", "policy_session", "salted_policy_session", "secret_session"]

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


def answer_secretly(tpm: Tpm, session: Any) -> None:
    """Have the answer of the next command in a salted policy session encrypted; the command has no secret parameter."""
    _set(tpm, session, TPMA_SESSION.ENCRYPT)


@contextmanager
def owner_session(tpm: Tpm, auth: bytes, *, parent: Any = ESYS_TR.NONE) -> Iterator[Any]:
    """What authorizes one command of a hierarchy: an empty password as it is, else a session that hides it.

    Without `parent` whoever hears the bus could still try passwords against what passed.
    """
    with tpm.undoing():
        session = bare_session(tpm, auth, parent=parent)
        yield session
    tpm.spent(session)


def bare_session(tpm: Tpm, auth: bytes, *, parent: Any = ESYS_TR.NONE) -> Any:
    """The same, to be ended by the caller: an HMAC session that encrypts no parameter."""
    if not auth:
        return ESYS_TR.PASSWORD
    session = _start(tpm, parent, TPM2_SE.HMAC, _NO_CIPHER)
    _set(tpm, session, TPMA_SESSION(0))
    return session


def _start(tpm: Tpm, salt: Any, kind: TPM2_SE, cipher: TPMT_SYM_DEF) -> Any:
    return tpm.hold(tpm.do(tpm.esapi.start_auth_session, salt, ESYS_TR.NONE, kind, cipher, TPM2_ALG.SHA256))


def _set(tpm: Tpm, session: Any, attributes: TPMA_SESSION) -> None:
    """Set exactly these attributes. Sessions without continueSession are gone after the command that uses them."""
    tpm.esapi.trsess_set_attributes(session, attributes)
