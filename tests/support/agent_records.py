"""Ready-made records of an agent's ledger, with a real channel key and a real certificate chain."""

from __future__ import annotations

import os
from dataclasses import dataclass

from keyvouch.ids import CredentialId, DeviceId, TenantId, UserId
from keyvouch_agent.channel_keys import ChannelKey, SealedChannelKeys
from keyvouch_agent.ledger import Enrolment, KeptAnswer, StagedRegistration
from support.fake_devices import RP_ID, Authority, fresh


@dataclass
class SampleEnrolment:
    """An enrolment with the authority it came from."""

    authority: Authority
    enrolment: Enrolment


def sample_enrolment(
    *,
    credential_id: bytes = b"credential",
    seconds: float = 3600.0,
    key: ChannelKey | None = None,
    device_endpoint: str = "localhost:2",
    authority: Authority | None = None,
) -> SampleEnrolment:
    """An enrolment, at an authority and with a channel key of its own if none are given."""
    authority, key, device_id = authority or Authority(), key or SealedChannelKeys().make(), fresh("dev")
    enrolment = Enrolment(
        public_endpoint="localhost:1",
        public_ca=authority.pem.decode(),
        device_endpoint=device_endpoint,
        server_id=authority.server_id,
        tenant_id=TenantId(fresh("ten")),
        tenant_name="example",
        user_id=UserId(fresh("usr")),
        username="ada",
        device_id=DeviceId(device_id),
        display_name="laptop",
        credential_id=CredentialId(credential_id),
        rp_id=RP_ID,
        provider="software",
        channel_key=key.stored,
        certificate_chain=authority.device_chain(device_id, key.spki, seconds),
    )
    return SampleEnrolment(authority, enrolment)


def sample_staged() -> StagedRegistration:
    """A staged registration; its parts are not related to one another."""
    return StagedRegistration(
        public_endpoint="localhost:1",
        public_ca="",
        tenant_name="example",
        username="ada",
        registration_id=fresh("reg"),
        registration_token="token",
        statement=b"statement",
        rp_id=RP_ID,
        credential_id=CredentialId(os.urandom(32)),
        provider="software",
        channel_key=SealedChannelKeys().make().stored,
        client_data_json=b"{}",
        attestation_object=os.urandom(500),
        channel_proof=b"proof",
    )


def sample_answer(device_id: str, *, expires_at: int = 100) -> KeptAnswer:
    """A denial."""
    return KeptAnswer(device_id, expires_at, fresh("prm"), b"statement", channel_signature=b"signature")
