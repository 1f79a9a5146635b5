"""The secrets beside a credential's key: all of them come from one seed, which the TPM gives out behind the PIN gate.

    seed          32 random bytes, sealed under the storage root key with the policy of the account's keys
    secrets       HKDF-SHA256 (RFC 5869) of the seed, each under its label, credential id and relying party
    credBlob      AES-256-GCM under one more of them, in the account's record

So a seed that was put beside another credential's key gives what nobody knows. Seed and secrets cross the bus only
encrypted. Without user verification there are no secrets here at all, for the PIN gates everything; CredRandomWithoutUV
is still one of its own (section 12.5). Who kept a copy of the record, and knows the PIN, has them after the key was
deleted too; no TPM forgets what it never kept.

What is not here: the session in which the PIN was shown (`pin_index`), and where the sealed seed is kept (`vault`).
"""

from __future__ import annotations

from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from tpm2_pytss import (
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPM2B_SENSITIVE_DATA,
    TPMS_SENSITIVE_CREATE,
    TSS2_Exception,
)

from keyvouch import cbor
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.vault import Credential, CredentialSecrets, KeyRequest
from keyvouch_agent.vaults.tpm.account_file import SealedSecrets
from keyvouch_agent.vaults.tpm.answers import making_sense, senseless
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.losses import UNUSABLE_SECRETS, damaged_secrets
from keyvouch_agent.vaults.tpm.sessions import answer_secretly, secret_session
from keyvouch_agent.vaults.tpm.templates import sealed_data

__all__ = ["derive", "has_secrets", "load_seed", "seal_secrets", "unseal"]

SEED_LENGTH: Final = 32
_NONCE_LENGTH: Final = 12
_DOMAIN: Final = "keyvouch/tpm-credential-secrets/v1"


def has_secrets(credential: Credential) -> bool:
    """Whether anything is kept beside the key."""
    return credential.has_cred_blob or credential.has_hmac_secret or credential.has_large_blob_key


def seal_secrets(
    tpm: Tpm, parent: Any, policy: bytes, credential: Credential, request: KeyRequest, entropy: Entropy
) -> SealedSecrets:
    """Draw the seed of a new credential and have the TPM seal it. Two commands."""
    seed = entropy.token(SEED_LENGTH)
    private, public = _seal(tpm, parent, policy, seed)
    blob = b"" if request.cred_blob is None else _seal_blob(seed, credential, request.cred_blob, entropy)
    return SealedSecrets(private, public, blob)


def load_seed(tpm: Tpm, parent: Any, sealed: SealedSecrets) -> Any:
    """Load the sealed seed; the handle is held. Raises `DeviceError(VAULT_CORRUPT)`."""
    try:
        private, public = TPM2B_PRIVATE.unmarshal(sealed.private)[0], TPM2B_PUBLIC.unmarshal(sealed.public)[0]
    except (TSS2_Exception, ValueError) as error:
        raise damaged_secrets() from error
    return tpm.hold(tpm.expecting(UNUSABLE_SECRETS, tpm.esapi.load, parent, private, public))


def unseal(tpm: Tpm, loaded: Any, policy: Any) -> bytes:
    """The seed, in a session in which the PIN was shown. One command; its answer is encrypted."""
    answer_secretly(tpm, policy)
    seed = bytes(tpm.do(tpm.esapi.unseal, loaded, policy))
    if len(seed) != SEED_LENGTH:
        raise senseless("a seed of another length than it was given")
    return seed


def derive(seed: bytes, credential: Credential, sealed: SealedSecrets) -> CredentialSecrets:
    """Everything the credential has. Raises `DeviceError(VAULT_CORRUPT)` where the blob is not this credential's."""

    def secret(label: str, wanted: bool) -> bytes:
        return _derived(seed, credential, label) if wanted else b""

    return CredentialSecrets(
        with_uv=secret("with-uv", credential.has_hmac_secret),
        without_uv=secret("without-uv", credential.has_hmac_secret),
        large_blob_key=secret("large-blob-key", credential.has_large_blob_key),
        cred_blob=_open_blob(seed, credential, sealed.cred_blob) if credential.has_cred_blob else b"",
    )


def _seal(tpm: Tpm, parent: Any, policy: bytes, seed: bytes) -> tuple[bytes, bytes]:
    """The two areas that TPM2_Create gives out, marshalled."""
    template = sealed_data(policy)
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=TPM2B_SENSITIVE_DATA(seed)))
    with tpm.undoing():
        session = secret_session(tpm, parent)
        made = tpm.do(tpm.esapi.create, parent, sensitive, template, session1=session)
    tpm.spent(session)
    with making_sense("sealed data"):
        template.publicArea.unique = made[1].publicArea.unique
        if bytes(template.publicArea.marshal()) != bytes(made[1].publicArea.marshal()):
            raise senseless("another object than was asked for")
        return bytes(made[0].marshal()), bytes(made[1].marshal())


def _derived(seed: bytes, credential: Credential, label: str) -> bytes:
    purpose = cbor.encode([_DOMAIN, label, bytes(credential.id), credential.rp_id_hash])
    return HKDF(SHA256(), SEED_LENGTH, salt=None, info=purpose).derive(seed)


def _seal_blob(seed: bytes, credential: Credential, blob: bytes, entropy: Entropy) -> bytes:
    nonce = entropy.token(_NONCE_LENGTH)
    return nonce + AESGCM(_derived(seed, credential, "cred-blob")).encrypt(nonce, blob, None)


def _open_blob(seed: bytes, credential: Credential, sealed: bytes) -> bytes:
    key = AESGCM(_derived(seed, credential, "cred-blob"))
    try:
        return key.decrypt(sealed[:_NONCE_LENGTH], sealed[_NONCE_LENGTH:], None)
    except (InvalidTag, ValueError) as error:
        raise damaged_secrets() from error
