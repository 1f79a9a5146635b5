"""Registrations of keys on smartcards, by a scripted device: with an organisation's certificate, a card's attestation.

The key is in memory, and the attestation of the card is a forged one under a root that the test's server has pinned.
Not here: a card (`keyvouch_bench.piv_card`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keyvouch.v1 import administration_pb2, common_pb2, enrolment_pb2
from keyvouch.webauthn import AttestationObject
from keyvouch_bench.device import BenchDevice
from keyvouch_server.card_authorities import CardSettings, read_settings
from keyvouch_server.trust_anchors import TrustSettings
from keyvouch_server.trust_anchors import read_settings as read_trust
from support import card_certificates
from support.attestation_forge import ROOT, encoded, name, unrecognized
from support.certificate_forge import Issued, intermediate, root
from support.live_server import LiveServer, Metadata, Person
from support.registering import BegunRegistration, begin, complete

WIDE: Mapping[str, Any] = {
    "not_before": datetime(2020, 1, 1, tzinfo=UTC),
    "not_after": datetime(2049, 1, 1, tzinfo=UTC),
}
ORGANISATION = root("Example Organisation", **WIDE)
BADGES = intermediate(ORGANISATION, "Example Badges", **WIDE)

TABLE: Mapping[str, Any] = {"name": "Example Badges", "file": "organisation.pem", "match": "upn"}
PROMISE: Mapping[str, Any] = {**TABLE, "protection": "smartcard", "verification": "hardware_gated"}

CARD = ROOT.subordinate("Forged PIV Attestation")
ARC = "1.3.6.1.4.1.41482.3"


def card_settings(folder: Path, *tables: Mapping[str, Any]) -> tuple[CardSettings, ...]:
    """The tables of a server's configuration, with their file."""
    (folder / "organisation.pem").write_bytes(ORGANISATION.certificate.public_bytes(Encoding.PEM))
    return read_settings(list(tables), folder=folder)


def card_makers(folder: Path) -> TrustSettings:
    """The maker of the forged cards, pinned as `Example Cards`."""
    (folder / "cards.pem").write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    table = {"name": "Example Cards", "file": "cards.pem", "formats": ["piv"]}
    return read_trust([table], None, folder=folder)


def badge(made: BegunRegistration, upn: str, **changes: Any) -> Issued:
    """The organisation's certificate for the key of a registration."""
    given = {"key": made.credential.key, "named": card_certificates.upn(upn), **WIDE, **changes}
    return card_certificates.badge(BADGES, **given)


def with_certificates(
    answer: enrolment_pb2.CompleteRegistrationRequest, *certificates: Issued
) -> enrolment_pb2.CompleteRegistrationRequest:
    """The answer with certificates beside it."""
    dressed = enrolment_pb2.CompleteRegistrationRequest()
    dressed.CopyFrom(answer)
    dressed.card.CopyFrom(enrolment_pb2.CardEvidence(certificates=[one.der for one in certificates]))
    return dressed


def certified(made: BegunRegistration, upn: str, **changes: Any) -> enrolment_pb2.CompleteRegistrationRequest:
    """The device's answer, its key attesting itself, with the organisation's certificate for it."""
    return with_certificates(made.answer, badge(made, upn, **changes), BADGES)


def unattested(made: BegunRegistration) -> enrolment_pb2.CompleteRegistrationRequest:
    """The device's answer with the attestation format none."""
    return with_statement(made, "none", {})


def in_card(
    made: BegunRegistration, *, slot: str = "9a", pin: int = 2, touch: int = 1
) -> enrolment_pb2.CompleteRegistrationRequest:
    """The device's answer with a PIV attestation of its key; `pin` 1 never, 2 once, 3 always, `touch` likewise."""
    stated = {f"{ARC}.3": b"\x05\x04\x03", f"{ARC}.7": bytes.fromhex("020400f00f14"), f"{ARC}.8": bytes((pin, touch))}
    extensions = [(unrecognized(oid, value), False) for oid, value in stated.items()]
    subject = name((NameOID.COMMON_NAME, f"YubiKey PIV Attestation {slot}"))
    leaf = CARD.issue(made.credential.key, extensions, subject)
    return with_statement(made, "piv", _signed(made, [leaf, CARD.certificate]))


def _signed(made: BegunRegistration, chain: Sequence[x509.Certificate]) -> dict[str, object]:
    data = AttestationObject(made.answer.attestation_object).authenticator_data
    message = data + hashlib.sha256(made.answer.client_data_json).digest()
    return {"alg": -7, "sig": made.credential.key.sign(message, ec.ECDSA(hashes.SHA256())), "x5c": encoded(chain)}


def with_statement(
    made: BegunRegistration, form: str, statement: Mapping[str, object]
) -> enrolment_pb2.CompleteRegistrationRequest:
    """The device's answer with another attestation statement."""
    data = AttestationObject(made.answer.attestation_object).authenticator_data
    answer = enrolment_pb2.CompleteRegistrationRequest()
    answer.CopyFrom(made.answer)
    answer.attestation_object = bytes(AttestationObject.build(form, data, statement))
    return answer


@dataclass(slots=True)
class Holder:
    """A user who is about to register a card."""

    live: LiveServer
    username: str
    session: Metadata

    @classmethod
    async def new(cls, live: LiveServer, username: str) -> Holder:
        """A new user with an access pass."""
        await live.create_user(username)
        return cls(live, username, await live.pass_session(username, await live.issue_pass(username)))

    async def begin(self, provider: int = common_pb2.PROVIDER_KIND_SMARTCARD) -> BegunRegistration:
        """BeginRegistration, as an agent does for a smartcard."""
        return await begin(self.live, self.session, provider=provider)

    async def register(
        self, made: BegunRegistration, answer: enrolment_pb2.CompleteRegistrationRequest
    ) -> tuple[common_pb2.Device, Person]:
        """CompleteRegistration, then the device's prompt stream."""
        done = await complete(self.live, made, answer)
        device = BenchDevice(
            done.device.device_id,
            self.username,
            made.credential,
            made.channel_key,
            tuple(done.certificate_chain),
            done.device_endpoint,
        )
        return done.device, await self.live.connect(self.username, device)

    async def certified(self, **changes: Any) -> tuple[common_pb2.Device, Person]:
        """The whole registration with a badge that names this user."""
        made = await self.begin()
        return await self.register(made, certified(made, self.username, **changes))

    async def listed(self) -> common_pb2.Device:
        """The user's one device, as administrators see it."""
        request = administration_pb2.ListDevicesRequest(username=self.username)
        told: administration_pb2.ListDevicesResponse = await self.live.administer("ListDevices", request)
        (device,) = told.devices
        return device
