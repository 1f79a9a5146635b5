"""The TPM's part in a key replacement (prompts.proto): same attestation key, same PIN, a new key behind it.

    accept        the server's fresh certificate of the attestation key, which the statement names
      -- the PIN is asked for, the key made and certified --
    certify_pin   the PIN's index as it is now, over the statement of this replacement

Nothing here needs a connection that stays: while a person types, the TPM is everybody's.
"""

from __future__ import annotations

import hmac
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch.errors import DeviceError, EvidenceError, Reason
from keyvouch.ids import CredentialId
from keyvouch.statement import Purpose, RegistrationStatement, challenge
from keyvouch_agent.ports import TpmCertification
from keyvouch_agent.vaults.tpm import attestation_key
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.account_file import AttestationRecord
from keyvouch_agent.vaults.tpm.response_codes import REENROL
from keyvouch_agent.vaults.tpm.vault import TpmVault

__all__ = ["TpmReplacement"]


class TpmReplacement:
    """The steps of one replacement; see `keyvouch_agent.ports.ReplacementSteps`."""

    def __init__(self, account: TpmAccount, vault: TpmVault) -> None:
        self._account = account
        self._vault = vault

    def accept(self, statement: bytes, certificate: bytes) -> None:
        """Keep the certificate. Asks the TPM nothing.

        Raises `EvidenceError(STATEMENT_MISMATCH)` where statement or certificate are for another attestation key.
        """
        record = self._require_record()
        named = RegistrationStatement.parse(statement).ak_name
        if not hmac.compare_digest(named, record.public.name) or not _is_for(certificate, record):
            raise EvidenceError(
                Reason.STATEMENT_MISMATCH,
                "The server's answer is for another attestation key than this account's.",
                fix="Nothing was changed. Tell your administrator.",
            )
        renewed = replace(record, certificate=certificate)
        self._account.store(replace(self._account.state, attestation=renewed))

    def certify_pin(self, statement: bytes) -> TpmCertification:
        """TPM2_NV_Certify of the PIN's index over the statement."""
        with self._account.linked() as link:
            said = attestation_key.certify_index(
                link.tpm, link.attestation_key, link.index, challenge(Purpose.PIN_INDEX, statement)
            )
        return TpmCertification(said.attest, said.signature)

    def forget(self, credential_id: CredentialId) -> None:
        """Destroy a key that came to nothing. Does nothing for one that is not there."""
        if credential_id in {key.id for key in self._account.state.keys}:
            self._vault.delete(credential_id)

    def keep_only(self, credential_id: CredentialId) -> None:
        """Destroy every other key of the account: those replaced, and those that came to nothing."""
        for key in self._account.state.keys:
            if key.id != credential_id:
                self._vault.delete(key.id)

    def _require_record(self) -> AttestationRecord:
        record = self._account.state.attestation
        if record is None or not record.certificate:
            raise DeviceError(
                Reason.UNSUPPORTED,
                "Nobody vouches for this TPM at the server, so a new key of it would prove nothing.",
                fix=REENROL,
            )
        return record


def _is_for(certificate: bytes, record: AttestationRecord) -> bool:
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except ValueError:
        return False
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(*form) == record.public.key.public_bytes(*form)
