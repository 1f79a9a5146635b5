"""The server's part in a registration with a TPM, played by a test that sees every secret and can bend every answer.

server = ScriptedServer()
with registering(account, vault, server) as ceremony:
    grant = server.grant(ceremony.prepare(server.offer))
    ceremony.accept(grant)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.attestation.activation_certificate import seal_certificate
from keyvouch.attestation.credential_activation import ENTROPY_SIZE, make_credential
from keyvouch.attestation.pin_gate import PinCounter, PinGate, first_write_message
from keyvouch.attestation.tpm_marshal import TpmPrivateKey, external_key, sign
from keyvouch.attestation.tpm_public import TpmNvPublic, TpmPublic
from keyvouch.ids import DeviceId, RegistrationId, ServerId, TenantId, UserId
from keyvouch.statement import RegistrationStatement
from keyvouch_agent.ports import GateOffer, TpmGrant, TpmPreparation
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.registration import TpmRegistration
from keyvouch_agent.vaults.tpm.vault import TpmVault

__all__ = ["ScriptedServer", "registering"]


@dataclass
class ScriptedServer:
    """One registration. `certificate` is what gets sealed, empty for a TPM that nobody vouches for."""

    ceremony_key: TpmPrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    limit: int = 3
    certificate: bytes = b"a certificate of the attestation key"
    secret: bytes = field(default_factory=lambda: os.urandom(32))
    device_id: str = "dev_a"

    @property
    def offer(self) -> GateOffer:
        """What the agent is told first."""
        return GateOffer(self.device_id, bytes(external_key(self.ceremony_key.public_key())), self.limit)

    def gate(self, shown: TpmPreparation) -> PinGate:
        """The gate of an index that was shown, which must be the one of this registration."""
        index = TpmNvPublic(shown.pin_index)
        gate = PinGate(TpmPublic(self.offer.ceremony_key), self.device_id, index.handle)
        assert index == gate.unwritten
        return gate

    def grant(self, shown: TpmPreparation, **bent: Any) -> TpmGrant:
        """The answer; `bent` are fields of it that shall be otherwise."""
        gate, name = self.gate(shown), TpmPublic(shown.attestation_key).name
        challenge = make_credential(
            endorsement_key=TpmPublic(shown.endorsement_key),
            name=name,
            secret=self.secret,
            entropy=os.urandom(ENTROPY_SIZE),
        )
        write = first_write_message(gate, nonce=shown.session_nonce, counter=PinCounter(0, self.limit))
        sealed = seal_certificate(self.certificate, secret=self.secret, name=name) if self.certificate else b""
        grant = TpmGrant(
            credential_blob=challenge.credential_blob,
            encrypted_secret=challenge.encrypted_secret,
            sealed_certificate=sealed,
            first_write=bytes(sign(self.ceremony_key, write)),
            pin_change=bytes(sign(self.ceremony_key, gate.change_message)),
            statement=self.statement(name),
        )
        return replace(grant, **bent)

    def statement(self, name: bytes) -> bytes:
        """The registration statement with the name of an attestation key."""
        return RegistrationStatement(
            server_id=ServerId(bytes(32)),
            tenant_id=TenantId("ten_a"),
            user_id=UserId("usr_a"),
            device_id=DeviceId(self.device_id),
            registration_id=RegistrationId("reg_a"),
            nonce=bytes(32),
            expires_at=1_800_000_000,
            channel_key=bytes(32),
            ak_name=name,
        ).encode()


@contextmanager
def registering(account: TpmAccount, vault: TpmVault) -> Iterator[TpmRegistration]:
    """The agent's steps, closed at the end whatever happens."""
    ceremony = TpmRegistration(account, vault, SystemEntropy())
    try:
        yield ceremony
    finally:
        ceremony.close()
