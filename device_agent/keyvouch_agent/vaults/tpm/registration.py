"""The TPM's part in a registration, from the keys it shows to the evidence it gives (drawn in enrolment.proto).

    prepare     endorsement key with certificates, attestation key, the PIN index to come, a session's nonce
    accept      open the server's challenge: out comes the attestation key's certificate
      -- the PIN is set: index defined, written by the server's leave (`vault.set_pin`); key made and certified --
    evidence    the proof of activation, the PIN index certified, the channel key too where it is in this TPM

One connection serves from `prepare` to `close`: the policy session whose nonce the server signed lives in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from keyvouch.attestation.activation_certificate import activation_proof, open_certificate
from keyvouch.attestation.pin_gate import PinCounter, PinGate
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.errors import EvidenceError, Reason, UsageError
from keyvouch.statement import Purpose, challenge
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.channel_keys import is_tpm_key
from keyvouch_agent.ports import GateOffer, TpmCertification, TpmEvidence, TpmGrant, TpmPreparation
from keyvouch_agent.vaults.tpm import attestation_key
from keyvouch_agent.vaults.tpm.account import TpmAccount, TpmLink
from keyvouch_agent.vaults.tpm.account_file import AttestationRecord
from keyvouch_agent.vaults.tpm.attestation_key import UNIQUE_SIZE, AttestationKeySeed
from keyvouch_agent.vaults.tpm.endorsement import EndorsementKey, activate, find_endorsement_key
from keyvouch_agent.vaults.tpm.grant_review import review_grant
from keyvouch_agent.vaults.tpm.key_file import KeyFile
from keyvouch_agent.vaults.tpm.pin_grant import PinGrant
from keyvouch_agent.vaults.tpm.pin_index import free_handle
from keyvouch_agent.vaults.tpm.sessions import policy_session
from keyvouch_agent.vaults.tpm.vault import TpmVault

__all__ = ["TpmRegistration"]

_LONGEST_LIMIT: Final = range(1, 33)
"""PIN limits the agent takes from a server: fewer lock people out, more are no limit."""


@dataclass(slots=True)
class _Prepared:
    link: TpmLink
    endorsement: EndorsementKey
    gate: PinGate
    counter: PinCounter
    session: Any
    nonce: Any
    secret: bytes = field(default=b"", repr=False)


class TpmRegistration:
    """The steps of one registration; see `keyvouch_agent.ports.NativeSteps`."""

    def __init__(self, account: TpmAccount, vault: TpmVault, entropy: Entropy) -> None:
        self._account = account
        self._vault = vault
        self._entropy = entropy
        self._prepared: _Prepared | None = None

    def prepare(self, offer: GateOffer) -> TpmPreparation:
        """Show the TPM. Raises `UsageError` the second time."""
        if self._prepared is not None:
            raise UsageError("This registration has been prepared already.")
        if offer.limit not in _LONGEST_LIMIT:
            raise _senseless(f"{offer.limit} tries of a PIN")
        link = self._account.keep()
        try:
            self._prepared = self._prepare(link, offer)
        except BaseException:
            self._account.let_go()
            raise
        return self._shown(self._prepared)

    def accept(self, grant: TpmGrant) -> None:
        """Open the challenge, keep the certificate, and have leave to set the PIN.

        Raises as `review_grant` does, and `DeviceError` or `EvidenceError` with TPM_ACTIVATION for a challenge or
        certificate for another TPM.
        """
        prepared = self._require_prepared()
        link, key = prepared.link, prepared.link.attestation_key
        review_grant(
            grant,
            gate=prepared.gate,
            counter=prepared.counter,
            nonce=bytes(prepared.nonce),
            name=key.public.name,
        )
        secret = activate(
            link.tpm,
            prepared.endorsement,
            key.handle,
            link.parent,
            credential_blob=grant.credential_blob,
            encrypted_secret=grant.encrypted_secret,
        )
        if prepared.endorsement.loaded:
            link.tpm.release(prepared.endorsement.handle)
        certificate = b""
        if grant.sealed_certificate:
            certificate = open_certificate(grant.sealed_certificate, secret=secret, name=key.public.name)
        self._keep_certificate(certificate)
        prepared.secret = secret
        self._vault.grant = PinGrant(
            prepared.gate, prepared.counter, prepared.session, prepared.nonce, grant.first_write, grant.pin_change
        )

    def evidence(self, statement: bytes, channel_key: bytes) -> TpmEvidence:
        """What the TPM proves beside the attestation statement. `channel_key` is its stored form, of whatever kind."""
        prepared = self._require_prepared()
        link = prepared.link
        index = attestation_key.certify_index(
            link.tpm, link.attestation_key, link.index, challenge(Purpose.PIN_INDEX, statement)
        )
        public, certification = self._certify_channel_key(link, statement, channel_key)
        return TpmEvidence(
            activation=activation_proof(statement, secret=prepared.secret),
            pin_index=TpmCertification(index.attest, index.signature),
            channel_key=public,
            channel_key_certification=certification,
        )

    def close(self) -> None:
        """End the connection. A grant that was not used is void with it."""
        self._vault.grant = None
        if self._prepared is not None:
            self._prepared = None
            self._account.let_go()

    def _prepare(self, link: TpmLink, offer: GateOffer) -> _Prepared:
        endorsement = find_endorsement_key(link.tpm, has_curves=self._account.profile.has_curves)
        self._keep_seed(link)
        gate = PinGate(TpmPublic(offer.ceremony_key), offer.device_id, free_handle(link.tpm))
        session = policy_session(link.tpm)
        nonce = link.tpm.esapi.trsess_get_nonce_tpm(session)
        return _Prepared(link, endorsement, gate, PinCounter(0, offer.limit), session, nonce)

    def _keep_seed(self, link: TpmLink) -> None:
        """A fresh attestation key for this account, and what it takes to make it again."""
        seed = AttestationKeySeed(self._account.profile.kinds[0].algorithm, self._entropy.token(UNIQUE_SIZE))
        key = attestation_key.make(link.tpm, seed)
        record = AttestationRecord(seed.algorithm, seed.unique, key.public)
        self._account.store(replace(self._account.state, attestation=record))
        link.use_attestation_key(key)

    def _keep_certificate(self, certificate: bytes) -> None:
        record = self._account.state.attestation
        assert record is not None
        renewed = replace(record, certificate=certificate)
        self._account.store(replace(self._account.state, attestation=renewed))

    @staticmethod
    def _shown(prepared: _Prepared) -> TpmPreparation:
        return TpmPreparation(
            endorsement_key=bytes(prepared.endorsement.public),
            endorsement_certificates=prepared.endorsement.certificates,
            attestation_key=bytes(prepared.link.attestation_key.public),
            pin_index=bytes(prepared.gate.unwritten),
            session_nonce=bytes(prepared.nonce),
        )

    @staticmethod
    def _certify_channel_key(
        link: TpmLink, statement: bytes, channel_key: bytes
    ) -> tuple[bytes, TpmCertification | None]:
        """Only a key of this very account's parent can be loaded here; any other stays what it says it is."""
        if not is_tpm_key(channel_key):
            return b"", None
        key = KeyFile.read(channel_key)
        signer, parent, tpm = link.attestation_key, link.parent, link.tpm
        with tpm.passing():
            loaded = tpm.hold(tpm.do(tpm.esapi.load, parent, key.private, key.public))
            said = attestation_key.certify(tpm, signer, loaded, key.area, challenge(Purpose.CHANNEL_KEY, statement))
        return bytes(key.area), TpmCertification(said.attest, said.signature)

    def _require_prepared(self) -> _Prepared:
        if self._prepared is None:
            raise UsageError("The registration has not been prepared.", fix="Call prepare first.")
        return self._prepared


def _senseless(what: str) -> EvidenceError:
    return EvidenceError(
        Reason.STATEMENT_MISMATCH,
        f"The server asks for {what}, which makes no sense.",
        fix="Nothing was made. Tell your administrator.",
    )
