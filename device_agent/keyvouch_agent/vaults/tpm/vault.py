"""The TPM vault: the `KeyVault` port over the keys of one account in a TPM.

A key is made by the TPM, and kept when its file is written and then the record that names it. Each use of it, and of
the seed of its secrets, is one command in a session in which the PIN was shown.

What is not here: the PIN (`gated`), what needs no TPM (`recorded`), and how secrets come from a seed
(`credential_secrets`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from tpm2_pytss import TPM2B_DIGEST, TPM2B_SENSITIVE_CREATE

from keyvouch.attestation.tpm_registration import TPM_AAGUID
from keyvouch.attestation.tpm_structures import TpmSignature
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.vault import (
    Attestation,
    Credential,
    CredentialSecrets,
    KeyRequest,
    VaultProperties,
)
from keyvouch_agent.vaults.tpm import attestation_key, credential_secrets, pin_index
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.account_file import SealedSecrets
from keyvouch_agent.vaults.tpm.answers import as_asked, making_sense
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.gated import DEFAULT_LIMIT, SEEN_SECONDS, GatedVault
from keyvouch_agent.vaults.tpm.key_file import KeyFile, signature_value
from keyvouch_agent.vaults.tpm.losses import NO_SUCH_KEY, UNUSABLE_KEY_FILE
from keyvouch_agent.vaults.tpm.parent import number_of
from keyvouch_agent.vaults.tpm.recorded import MAX_KEYS, MAX_LARGE_BLOBS
from keyvouch_agent.vaults.tpm.templates import KINDS, KeyKind, credential_key, scheme_of

__all__ = ["DEFAULT_LIMIT", "MAX_KEYS", "SEEN_SECONDS", "TpmVault"]

CREDENTIAL_ID_LENGTH: Final = 32
_HASHES: Final = {Algorithm.ES256: "sha256", Algorithm.ES384: "sha384", Algorithm.RS256: "sha256"}


@dataclass(frozen=True, slots=True)
class _Made:
    """A key that was made and is not stored yet."""

    credential: Credential
    file: KeyFile
    secrets: SealedSecrets | None


class TpmVault(GatedVault):
    """Keys of one account. `grant` is what the server allowed for its PIN; without one the vault allows itself."""

    def __init__(
        self,
        account: TpmAccount,
        entropy: Entropy,
        *,
        limit: int = DEFAULT_LIMIT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(account, entropy, limit=limit, monotonic=monotonic)
        self._made: _Made | None = None

    @property
    def properties(self) -> VaultProperties:
        """What this TPM can do for this account."""
        attested = self._state.attestation is not None and self._state.attestation.certificate
        return VaultProperties(
            aaguid=TPM_AAGUID,
            protection="tpm",
            algorithms=self._account.profile.algorithms,
            pin_gated=True,
            attestation_formats=("tpm",) if attested else ("packed",),
            max_pin_retries=self._state.pin.limit if self._state.pin else self._limit,
            max_large_blobs=MAX_LARGE_BLOBS,
        )

    def close(self) -> None:
        """Lock the vault and let another process open it."""
        self.lock()
        self._account.close()

    def __repr__(self) -> str:
        return f"TpmVault({len(self._state.keys)} keys)"

    def lock(self) -> None:
        """Let the TPM forget the session, wipe the authorization value, and forget a key that was not kept."""
        self._made = None
        super().lock()

    def create_key(self, request: KeyRequest) -> Credential:
        """Have the TPM make a key behind the account's PIN, and seal a seed beside it where secrets are wanted."""
        if self._state.pin is None or not self._state.pin.is_set:
            raise DeviceError(Reason.PIN_NOT_SET, "No PIN is set.", fix="Set a PIN first.")
        link, kind = self._require_unlocked().link, _kind(request.algorithm)
        if kind not in self._account.profile.kinds:
            raise _unsupported(request.algorithm)
        if len(self._state.keys) - len(self._replaced_by(request)) >= MAX_KEYS:
            raise _full()
        policy = self._state.pin.gate.key_policy
        template = credential_key(kind, policy)
        made = link.tpm.do(link.tpm.esapi.create, link.parent, TPM2B_SENSITIVE_CREATE(), template)
        as_asked(made[1], template)
        key = KeyFile(made[0], made[1], number_of(link.tpm, link.parent))
        credential = request.as_made(
            CredentialId(self._entropy.token(CREDENTIAL_ID_LENGTH)),
            bytes(CoseKey.from_public_key(key.area.key)),
            self._state.serial + 1,
        )
        secrets = None
        if credential_secrets.has_secrets(credential):
            secrets = credential_secrets.seal_secrets(link.tpm, link.parent, policy, credential, request, self._entropy)
        self._made = _Made(credential, key, secrets)
        return credential

    def attest(self, credential: CredentialId, authenticator_data: bytes, client_data_hash: bytes) -> Attestation:
        """The statement `tpm` by the account's attestation key; without a certificate for that, self attestation."""
        record = self._known(credential)
        message = authenticator_data + client_data_hash
        unlocked, attestation = self._require_unlocked(), self._state.attestation
        if attestation is None or not attestation.certificate:
            return Attestation("packed", {"alg": record.algorithm, "sig": self.sign(credential, message)})
        key, link = self._key_file(credential), unlocked.link
        signer, parent = link.attestation_key, link.parent
        nonce = hashlib.new(_HASHES[attestation.algorithm], message).digest()
        with link.tpm.passing():
            said = attestation_key.certify(link.tpm, signer, self._load(link.tpm, parent, key), key.area, nonce)
        statement: dict[str, object] = {
            "ver": "2.0",
            "alg": int(attestation.algorithm),
            "x5c": [attestation.certificate],
            "sig": TpmSignature(said.signature).value,
            "certInfo": said.attest,
            "pubArea": bytes(key.area),
        }
        return Attestation("tpm", statement)

    def keep(self, credential: CredentialId) -> None:
        """Write the key's file, then the record that names it and not those it replaces; then their files go."""
        made = self._made
        if made is None or made.credential.id != credential:
            raise NO_SUCH_KEY.error()
        replaced = [key for key in self._replaced_by(made.credential) if key.id != credential]
        others = (key for key in self._state.keys if key.id != credential and key not in replaced)
        state = replace(self._state.with_keys((*others, made.credential)), serial=made.credential.created)
        if made.secrets is not None:
            state = replace(state, secrets={**state.secrets, credential: made.secrets})
        try:
            self._account.write_key(credential, made.file)
            self._account.store(state)
        except DeviceError:
            if made.credential not in self._state.keys:
                self._remove_files(made.credential)
            raise
        self._made = None
        self._remove_files(*replaced)

    def sign(self, credential: CredentialId, message: bytes) -> bytes:
        """One TPM2_Sign in a session in which the PIN was shown. The signature has been verified."""
        record = self._known(credential)
        kind = _kind(record.algorithm)
        unlocked = self._require_unlocked()
        link, parent = unlocked.link, unlocked.link.parent
        with link.tpm.passing():
            loaded = self._load(link.tpm, parent, self._key_file(credential))
            with self._shown_pin(unlocked) as policy:
                digest = TPM2B_DIGEST(hashlib.new(_HASHES[kind.algorithm], message).digest())
                signature = link.tpm.do(link.tpm.esapi.sign, loaded, digest, scheme_of(kind), None, policy)
        with making_sense("a signature"):
            value = signature_value(signature)
            CoseKey(record.public_key).verify_signature(signature=value, message=message)
        return value

    def secrets(self, credential: CredentialId) -> CredentialSecrets:
        """One TPM2_Unseal in a session in which the PIN was shown; nothing where the key was made without secrets."""
        record = self._known(credential)
        unlocked = self._require_unlocked()
        sealed = self._sealed_secrets(credential)
        if sealed is None:
            return CredentialSecrets()
        link, parent = unlocked.link, unlocked.link.parent
        with link.tpm.passing():
            loaded = credential_secrets.load_seed(link.tpm, parent, sealed)
            with self._shown_pin(unlocked) as policy:
                seed = credential_secrets.unseal(link.tpm, loaded, policy)
        return credential_secrets.derive(seed, record, sealed)

    def reset(self) -> None:
        """Take the index out of the TPM and erase the account's files."""
        self.lock()
        pin = self._state.pin
        if pin is not None:
            with self._account.linked() as link:
                pin_index.remove(link.tpm, pin.gate)
        self._account.erase()
        self.grant = None

    @staticmethod
    def _load(tpm: Tpm, parent: Any, key: KeyFile) -> Any:
        return tpm.hold(tpm.expecting(UNUSABLE_KEY_FILE, tpm.esapi.load, parent, key.private, key.public))

    def _known(self, credential: CredentialId) -> Credential:
        """A stored key, or the one that was just made."""
        if self._made is not None and self._made.credential.id == credential:
            return self._made.credential
        return self._find(credential)

    def _key_file(self, credential: CredentialId) -> KeyFile:
        if self._made is not None and self._made.credential.id == credential:
            return self._made.file
        return self._account.read_key(credential)

    def _sealed_secrets(self, credential: CredentialId) -> SealedSecrets | None:
        if self._made is not None and self._made.credential.id == credential:
            return self._made.secrets
        return self._state.secrets.get(credential)


def _kind(algorithm: int) -> KeyKind:
    try:
        return KINDS[Algorithm(algorithm)]
    except (KeyError, ValueError):
        raise _unsupported(algorithm) from None


def _full() -> DeviceError:
    return DeviceError(
        Reason.KEY_STORE_FULL, f"This account holds {MAX_KEYS} keys, which is all it takes.", fix="Remove one."
    )


def _unsupported(algorithm: int) -> DeviceError:
    return DeviceError(
        Reason.UNSUPPORTED,
        f"This TPM makes no keys for COSE algorithm {algorithm}.",
        fix="Use one that it makes: `keyvouch-agent tpm status` shows them.",
    )
