"""What the core is given to judge of a registration with a TPM: everything good, until a test bends it."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.assurance import Protection
from keyvouch.attestation import (
    AttestationRequirement,
    TrustAnchor,
    TrustStore,
    VerifiedRegistration,
    verify_registration,
)
from keyvouch.attestation.pin_gate import PinGate
from keyvouch.attestation.tpm_marshal import external_key
from keyvouch.attestation.tpm_registration import TPM_AAGUID, Certification, TpmTranscript
from keyvouch.cose import Algorithm
from keyvouch.ids import DeviceId, RegistrationId, ServerId, TenantId, UserId
from keyvouch.statement import Purpose, RegistrationStatement, challenge
from keyvouch.v1 import enrolment_pb2
from keyvouch_server.attestation_ca import AttestationAuthority, authority_certificate
from keyvouch_server.ports import EndorsedTpm
from support.tpm_device import GATED, ForgedTpm, Maker, key_policy, tpm_credential
from support.tpm_forge import ec_key, public_area

NOW = 1_800_000_000
RP_ID = "keys.example"
DEVICE = DeviceId("dev_a")
ANCHOR = "tpm-ek:TestMaker"


class StandingClock:
    """Always the same instant."""

    def now(self) -> int:
        """See `keyvouch_server.ports.Clock`."""
        return NOW


AUTHORITY = AttestationAuthority(ec_key(900), authority_certificate(ec_key(900), NOW), StandingClock())


def certification(message: enrolment_pb2.TpmAttestation) -> Certification:
    """The core's type of it."""
    return Certification(message.attest, message.signature)


@dataclass
class Stage:
    """One TPM, one ceremony."""

    tpm: ForgedTpm = field(default_factory=lambda: Maker.new().tpm())
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec_key(901))
    manufacturer: str = "id:4E544300"
    limit: int = 3

    def __post_init__(self) -> None:
        self.gate = PinGate(external_key(ec_key(902).public_key()), DEVICE, 0x01800ABC)
        named = EndorsedTpm(self.manufacturer, "TEST1", "id:00020008", ANCHOR)
        self.certificate = AUTHORITY.certify(self.tpm.ak.public_key(), named)
        self.statement = RegistrationStatement(
            server_id=ServerId(bytes(32)),
            tenant_id=TenantId("ten_a"),
            user_id=UserId("usr_a"),
            device_id=DEVICE,
            registration_id=RegistrationId("reg_a"),
            nonce=bytes(32),
            expires_at=NOW,
            channel_key=hashlib.sha256(b"channel").digest(),
            ak_name=self.tpm.ak_area.name,
        ).encode()

    @property
    def transcript(self) -> TpmTranscript:
        """What the server fixed."""
        return TpmTranscript(self.tpm.ak_area, self.certificate, self.gate, self.limit)

    def area(self, **changes: Any) -> bytes:
        """TPMT_PUBLIC of the credential's key."""
        policy = key_policy(bytes(self.gate.written))
        return public_area(self.key, **{"attributes": GATED, "policy": policy, **changes})

    def anchors(self, *manufacturers: str) -> TrustStore:
        """The attestation authority, for this registration."""
        anchor = TrustAnchor(
            ANCHOR,
            AUTHORITY.certificate,
            formats=frozenset({"tpm"}),
            aaguids=frozenset({TPM_AAGUID}),
            protection=Protection.TPM,
            manufacturers=frozenset(manufacturers),
        )
        return TrustStore().including(anchor)

    def registration(
        self, area: bytes | None = None, *, certificate: bytes | None = None, manufacturers: tuple[str, ...] = ()
    ) -> VerifiedRegistration:
        """A verified registration of the format `tpm`."""
        client_data, attestation = tpm_credential(
            self.statement,
            self.tpm,
            rp_id=RP_ID,
            key=self.key,
            area=self.area() if area is None else area,
            certificate=self.certificate if certificate is None else certificate,
        )
        return self.verified(client_data, attestation, manufacturers)

    def verified(
        self, client_data: bytes, attestation: bytes, manufacturers: tuple[str, ...] = ()
    ) -> VerifiedRegistration:
        """Through the one entry."""
        return verify_registration(
            client_data=client_data,
            attestation_object=attestation,
            challenge=challenge(Purpose.REGISTRATION, self.statement),
            rp_id=RP_ID,
            origins={f"keyvouch-agent://{RP_ID}"},
            require_user_verification=True,
            algorithms=[Algorithm.ES256],
            attestation=AttestationRequirement.OPTIONAL,
            anchors=self.anchors(*manufacturers),
            instant=datetime.fromtimestamp(NOW, UTC),
        )

    def pin_index(
        self, *, count: int = 0, limit: int = 3, index: bytes | None = None, statement: bytes | None = None, **says: Any
    ) -> Certification:
        """TPM2_NV_Certify of the PIN index."""
        nonce = challenge(Purpose.PIN_INDEX, self.statement if statement is None else statement)
        contents = struct.pack(">II", count, limit)
        return certification(self.tpm.nv_certify(index or bytes(self.gate.written), contents, nonce, **says))

    def leaf(self) -> x509.Certificate:
        """The attestation key's certificate."""
        return x509.load_der_x509_certificate(self.certificate)
