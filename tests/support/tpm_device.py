"""A device whose TPM is played in software, so that it can do what no TPM does: every structure can be bent.

    async with live_server(template, folder, tpm=maker.settings(folder)) as live:
        tpm = maker.tpm()
        device = await enrol(live, session, tpm)

Endorsement key with a certificate of a test maker, attestation key, PIN index, certified key: all of it as a TPM would
marshal it (`support.tpm_forge`, `software_tpm`), signed by keys whose private halves are known here. The numbers are
those of the TPM 2.0 Library, Part 2; policies and names are computed here, without the product.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyvouch.attestation.credential_activation import CredentialChallenge
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.attestation.tpm_registration import TPM_AAGUID
from keyvouch.client_data import CollectedClientData
from keyvouch.cose import CoseKey
from keyvouch.ids import CredentialId
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, RegistrationStatement, challenge, health_statement
from keyvouch.v1 import enrolment_pb2 as pb
from keyvouch.v1 import prompts_pb2
from keyvouch.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, Flags
from keyvouch_bench.device import BenchDevice, SoftKey
from keyvouch_client.errors import answer
from keyvouch_server.ek_trust import TpmSettings
from support import endorsement_forge as forge
from support.live_server import LIMIT, LiveServer, Metadata
from support.software_tpm import SoftwareTpm
from support.tpm_forge import (
    CERTIFY,
    NV,
    QUOTE,
    attest,
    attestation_key,
    certify_info,
    clock_info,
    nv_certify_info,
    pcr_digest,
    public_area,
    quote_info,
    selection,
    sign,
    tpm2b,
)

HANDLE = 0x01800ABC
UNWRITTEN, WRITTEN = 0x020E0088, 0x220E0088  # PIN_FAIL, POLICYWRITE, OWNERREAD, AUTHREAD, POLICYREAD, NO_DA (+ WRITTEN)
GATED = 0x00040432  # fixedTPM, fixedParent, sensitiveDataOrigin, noDA, sign
CHANNEL = 0x00040072
FIRMWARE = 0x0007_0002_0004_0001  # 7.2.4.1
ENDORSEMENT = struct.pack(">I", 0x4000000B)
PCRS = (0, 2, 4, 7)


def name_of(area: bytes) -> bytes:
    """The name of a public area, by SHA-256."""
    return b"\x00\x0b" + hashlib.sha256(area).digest()


def _extend(policy: bytes, command: int, name: bytes, reference: bytes = b"") -> bytes:
    first = hashlib.sha256(policy + struct.pack(">I", command) + name).digest()
    return hashlib.sha256(first + reference).digest()


def pin_index(ceremony_key: bytes, device_id: str, *, attributes: int = UNWRITTEN, handle: int = HANDLE) -> bytes:
    """TPMS_NV_PUBLIC of the PIN index of a registration."""
    key = name_of(ceremony_key)
    first = _extend(bytes(32), 0x160, key, _reference("first-write", device_id))
    change = _extend(bytes(32), 0x16A, key, _reference("change", device_id))
    policy = hashlib.sha256(bytes(32) + struct.pack(">I", 0x171) + first + change).digest()
    return struct.pack(">IHI", handle, 0x000B, attributes) + tpm2b(policy) + struct.pack(">H", 8)


def _reference(act: str, device_id: str) -> bytes:
    return hashlib.sha256(f"keyvouch/tpm-pin/{act}/v1\0{device_id}".encode()).digest()


def key_policy(written: bytes) -> bytes:
    """The policy of a key behind a PIN index: TPM2_PolicySecret with its name."""
    return _extend(bytes(32), 0x151, name_of(written))


@dataclass(frozen=True)
class Maker:
    """A maker of TPMs whose root a test's server knows."""

    authority: forge.EkAuthority
    manufacturer: str = "id:4E544300"  # Nuvoton

    @classmethod
    def new(cls, name: str = "Test TPM maker", manufacturer: str = "id:4E544300") -> Maker:
        """A maker with a root of its own."""
        return cls(forge.authority(name), manufacturer)

    def settings(self, folder: Path, *manufacturers: str) -> TpmSettings:
        """The server's settings that trust this maker; writes its root into a folder."""
        place = folder / "tpm-makers"
        place.mkdir(exist_ok=True)
        pem = self.authority.certificate.public_bytes(serialization.Encoding.PEM)
        (place / "TestMaker.pem").write_bytes(pem)
        return TpmSettings(place, frozenset(manufacturers))

    def certify(self, key: ec.EllipticCurvePublicKey) -> bytes:
        """An endorsement key certificate."""
        name = forge.extension(forge.ALTERNATIVE_NAME, forge.tcg_name(self.manufacturer, "TEST1"))
        return forge.certificate(key, signer=self.authority, extensions={forge.ALTERNATIVE_NAME: name})

    def tpm(self, **changes: Any) -> ForgedTpm:
        """A TPM of this maker; `changes` are fields of it."""
        endorsement = SoftwareTpm.of(ec.generate_private_key(ec.SECP256R1()))
        key = endorsement.private_key.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return ForgedTpm(**{"endorsement": endorsement, "certificates": [self.certify(key)], **changes})


@dataclass
class ForgedTpm:
    """A TPM in software. `ak_area` and `firmware` may be changed at any time: nothing here checks anything."""

    endorsement: SoftwareTpm
    certificates: list[bytes]
    ak: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ak_changes: dict[str, Any] = field(default_factory=dict)
    firmware: int = FIRMWARE
    clock: int = 100_000
    resets: int = 5
    restarts: int = 0
    safe: int = 1
    pcrs: dict[int, bytes] = field(default_factory=lambda: {pcr: bytes([pcr]) * 32 for pcr in range(24)})
    hierarchy: bytes = ENDORSEMENT

    @property
    def ak_area(self) -> TpmPublic:
        """TPMT_PUBLIC of the attestation key."""
        return attestation_key(self.ak, **self.ak_changes)

    @property
    def signer(self) -> bytes:
        """The qualified name of the attestation key: a primary key of the hierarchy."""
        name = self.ak_area.name
        return name[:2] + hashlib.sha256(self.hierarchy + name).digest()

    def say(self, kind: int, body: bytes, nonce: bytes, **changes: Any) -> pb.TpmAttestation:
        """A TPMS_ATTEST with the attestation key's signature; each one is a moment later."""
        self.clock += 10
        said = {
            "signer": self.signer,
            "clock": clock_info(self.clock, self.resets, self.restarts, self.safe),
            "firmware": self.firmware,
        }
        made = attest(kind, body, nonce=nonce, **{**said, **changes})
        return pb.TpmAttestation(attest=made, signature=sign(self.ak, made))

    def certify(self, area: bytes, nonce: bytes, **changes: Any) -> pb.TpmAttestation:
        """TPM2_Certify."""
        return self.say(CERTIFY, certify_info(name_of(area)), nonce, **changes)

    def nv_certify(self, index: bytes, contents: bytes, nonce: bytes, **changes: Any) -> pb.TpmAttestation:
        """TPM2_NV_Certify of the whole index."""
        return self.say(NV, nv_certify_info(name_of(index), contents), nonce, **changes)

    def quote(self, pcrs: tuple[int, ...], nonce: bytes, **changes: Any) -> pb.TpmAttestation:
        """TPM2_Quote of the SHA-256 bank."""
        digest = pcr_digest({pcr: self.pcrs[pcr] for pcr in pcrs})
        return self.say(QUOTE, quote_info([selection(pcrs)], digest), nonce, **changes)

    def activate(self, response: pb.PrepareTpmResponse, name: bytes | None = None) -> bytes:
        """TPM2_ActivateCredential: the secret of a challenge."""
        given = CredentialChallenge(response.credential_blob, response.encrypted_secret)
        return self.endorsement.activate(given, name or self.ak_area.name)

    def health(
        self, live: LiveServer, device_id: str, welcome: prompts_pb2.Welcome, **changes: Any
    ) -> prompts_pb2.HealthReport:
        """A true report for a stream's welcome."""
        statement = health_statement(live.app.world.facts.server_id, device_id, welcome.health_nonce)  # type: ignore[arg-type]
        pcrs = tuple(welcome.health_pcrs)
        quote = self.quote(pcrs, challenge(Purpose.HEALTH, statement), **changes)
        return prompts_pb2.HealthReport(quote=quote, pcr_values={pcr: self.pcrs[pcr] for pcr in pcrs})


def open_seal(sealed: bytes, secret: bytes, name: bytes) -> bytes:
    """The certificate that was sealed for a TPM."""
    key = hmac.digest(secret, b"keyvouch/attestation-certificate/v1", "sha256")
    return AESGCM(key).decrypt(bytes(12), sealed, name)


@dataclass
class TpmRegistration:
    """A registration of a device with a TPM, step by step. Whatever is sent can be looked at and bent before."""

    live: LiveServer
    tpm: ForgedTpm
    begun: pb.BeginRegistrationResponse
    channel_key: ec.EllipticCurvePrivateKey
    key: ec.EllipticCurvePrivateKey
    prepared: pb.PrepareTpmResponse | None = None
    secret: bytes = b""
    certificate: bytes = b""
    contents: bytes = struct.pack(">II", 0, 3)

    @property
    def device_id(self) -> str:
        """The id the server has drawn for the device."""
        return RegistrationStatement.parse(self.begun.statement).device_id

    @property
    def metadata(self) -> Metadata:
        """Metadata that carries the registration token."""
        return (("authorization", f"Registration {self.begun.registration_token}"),)

    @property
    def statement(self) -> bytes:
        """The statement that counts."""
        assert self.prepared is not None
        return self.prepared.statement

    @property
    def written(self) -> bytes:
        """The PIN index once it is written."""
        return pin_index(self.begun.tpm.ceremony_key, self.device_id, attributes=WRITTEN)

    def request(self, **changes: Any) -> pb.PrepareTpmRequest:
        """What the device shows."""
        good: dict[str, Any] = {
            "endorsement_key": bytes(self.tpm.endorsement.public),
            "endorsement_certificates": self.tpm.certificates,
            "attestation_key": bytes(self.tpm.ak_area),
            "pin_index": pin_index(self.begun.tpm.ceremony_key, self.device_id),
            "session_nonce": os.urandom(32),
        }
        return pb.PrepareTpmRequest(**{**good, **changes})

    async def prepare(self, request: pb.PrepareTpmRequest | None = None) -> pb.PrepareTpmResponse:
        """PrepareTpm, and TPM2_ActivateCredential of its reply."""
        call = self.live.enrolment.PrepareTpm(request or self.request(), metadata=self.metadata, timeout=LIMIT)
        self.prepared = await answer(call)
        self.secret = self.tpm.activate(self.prepared)
        if self.prepared.sealed_certificate:
            self.certificate = open_seal(self.prepared.sealed_certificate, self.secret, self.tpm.ak_area.name)
        return self.prepared

    def key_area(self, **changes: Any) -> bytes:
        """TPMT_PUBLIC of the credential's key, behind the gate."""
        good: dict[str, Any] = {"attributes": GATED, "policy": key_policy(self.written)}
        return public_area(self.key, **{**good, **changes})

    def completion(
        self,
        *,
        area: bytes | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        statement: bytes | None = None,
        tpm: ForgedTpm | None = None,
        with_channel: bool = False,
    ) -> pb.CompleteRegistrationRequest:
        """What the device sends at the end; another key, statement or TPM may take the place of the right one."""
        said, chip = statement or self.statement, tpm or self.tpm
        client_data, attestation = tpm_credential(
            said,
            chip,
            rp_id=self.begun.rp_id,
            key=key or self.key,
            area=self.key_area() if area is None else area,
            certificate=self.certificate,
        )
        evidence = pb.TpmEvidence(
            activation=hmac.digest(self.secret, b"keyvouch/activation/v1\0" + said, "sha256"),
            pin_index=chip.nv_certify(self.written, self.contents, challenge(Purpose.PIN_INDEX, said)),
        )
        if with_channel:
            channel = public_area(self.channel_key, attributes=CHANNEL)
            evidence.channel_key = channel
            nonce = challenge(Purpose.CHANNEL_KEY, said)
            evidence.channel_key_certification.CopyFrom(chip.certify(channel, nonce))
        return pb.CompleteRegistrationRequest(
            client_data_json=client_data,
            attestation_object=attestation,
            channel_proof=sign_proof(self.channel_key, Purpose.CHANNEL, said),
            tpm=evidence,
        )

    def self_attested(self, *, statement: bytes | None = None) -> pb.CompleteRegistrationRequest:
        """The answer of a device whose TPM nobody vouches for: a key that attests itself, and the opened challenge."""
        said = statement or self.statement
        credential = SoftKey(self.begun.rp_id, self.begun.user_handle, self.key)
        client_data, attestation = credential.register(challenge(Purpose.REGISTRATION, said))
        return pb.CompleteRegistrationRequest(
            client_data_json=client_data,
            attestation_object=attestation,
            channel_proof=sign_proof(self.channel_key, Purpose.CHANNEL, said),
            tpm=pb.TpmEvidence(activation=hmac.digest(self.secret, b"keyvouch/activation/v1\0" + said, "sha256")),
        )

    async def complete(self, given: pb.CompleteRegistrationRequest) -> pb.CompleteRegistrationResponse:
        """CompleteRegistration."""
        call = self.live.enrolment.CompleteRegistration(given, metadata=self.metadata, timeout=LIMIT)
        return await answer(call)

    def device(self, done: pb.CompleteRegistrationResponse) -> BenchDevice:
        """The enrolled device, for its listener and for sign-ins."""
        credential = SoftKey(
            self.begun.rp_id, self.begun.user_handle, self.key, CredentialId(done.device.credential_id)
        )
        return BenchDevice(
            device_id=done.device.device_id,
            username=self.begun.username,
            credential=credential,
            channel_key=self.channel_key,
            certificate_chain=tuple(done.certificate_chain),
            endpoint=done.device_endpoint,
        )


def tpm_credential(
    statement: bytes,
    tpm: ForgedTpm,
    *,
    rp_id: str,
    key: ec.EllipticCurvePrivateKey,
    area: bytes,
    certificate: bytes,
    changes: Mapping[str, Any] | None = None,
    credential_id: bytes = b"",
) -> tuple[bytes, bytes]:
    """Client data and an attestation object of the format `tpm`, its key certified by the attestation key."""
    client_data = CollectedClientData.build(
        "webauthn.create", challenge(Purpose.REGISTRATION, statement), f"keyvouch-agent://{rp_id}"
    )
    public = CoseKey.from_public_key(key.public_key())
    attested = AttestedCredentialData.build(TPM_AAGUID, CredentialId(credential_id or os.urandom(32)), public)
    flags = Flags.UP | Flags.UV
    data = AuthenticatorData.build(hashlib.sha256(rp_id.encode()).digest(), flags, 0, attested=attested)
    nonce = hashlib.sha256(bytes(data) + hashlib.sha256(client_data).digest()).digest()
    certified = tpm.certify(area, nonce)
    members: dict[str, Any] = {
        "ver": "2.0",
        "alg": -7,
        "x5c": [certificate],
        "sig": tpm.ak.sign(certified.attest, ec.ECDSA(hashes.SHA256())),
        "certInfo": certified.attest,
        "pubArea": area,
    }
    statement_of = {**members, **(changes or {})}
    return bytes(client_data), bytes(AttestationObject.build("tpm", data, statement_of))


async def begin(
    live: LiveServer, session: Metadata, tpm: ForgedTpm, *, verifies: tuple[int, ...] = (-7,), name: str = "laptop"
) -> TpmRegistration:
    """BeginRegistration for a device with this TPM."""
    channel_key = ec.generate_private_key(ec.SECP256R1())
    request = pb.BeginRegistrationRequest(
        channel_public_key=spki_of(channel_key.public_key()),
        display_name=name,
        tpm=pb.TpmAbilities(verifies=verifies),
    )
    begun = await answer(live.enrolment.BeginRegistration(request, metadata=session, timeout=LIMIT))
    return TpmRegistration(live, tpm, begun, channel_key, ec.generate_private_key(ec.SECP256R1()))


async def register(live: LiveServer, session: Metadata, tpm: ForgedTpm) -> tuple[TpmRegistration, BenchDevice]:
    """The whole registration."""
    made = await begin(live, session, tpm)
    await made.prepare()
    return made, made.device(await made.complete(made.completion()))
