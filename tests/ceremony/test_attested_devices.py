"""Registration of attested keys: what the administrator pinned decides what the server believes of a device."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch.errors import Reason
from keyvouch.v1 import common_pb2, enrolment_pb2
from keyvouch.webauthn import AttestationObject
from keyvouch_server.trust_anchors import read_settings
from support.attestation_forge import NOT_CA, ROOT, Authority, aaguid_extension
from support.live_server import LiveServer, live_server, refused
from support.registering import BegunRegistration, begin, complete

LEAF_KEY = ec.generate_private_key(ec.SECP256R1())
PINNED = {
    "name": "Forged Keys",
    "file": "root.pem",
    "formats": ["packed"],
    "protection": "secure_element",
    "verification": "hardware_gated",
}


@pytest.fixture
async def trusting(server_template: Path, tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A running server whose administrator pinned the root of the forge."""
    (tmp_path / "root.pem").write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    async with live_server(server_template, tmp_path, trust=read_settings([PINNED], None, folder=tmp_path)) as running:
        yield running


async def begun(live: LiveServer, username: str) -> BegunRegistration:
    await live.create_user(username)
    return await begin(live, await live.pass_session(username, await live.issue_pass(username)))


def attested(made: BegunRegistration, authority: Authority) -> enrolment_pb2.CompleteRegistrationRequest:
    """The device's answer, with a statement by a key that `authority` vouches for."""
    own = AttestationObject(made.answer.attestation_object)
    leaf = authority.issue(LEAF_KEY, [(NOT_CA, True), (aaguid_extension(own.attested.aaguid), False)])
    return _with(made, [leaf], LEAF_KEY)


def _with(
    made: BegunRegistration, chain: list[x509.Certificate], key: ec.EllipticCurvePrivateKey
) -> enrolment_pb2.CompleteRegistrationRequest:
    data = AttestationObject(made.answer.attestation_object).authenticator_data
    signed = data + hashlib.sha256(made.answer.client_data_json).digest()
    statement = {
        "alg": -7,
        "sig": key.sign(signed, ec.ECDSA(hashes.SHA256())),
        "x5c": [certificate.public_bytes(Encoding.DER) for certificate in chain],
    }
    answer = enrolment_pb2.CompleteRegistrationRequest()
    answer.CopyFrom(made.answer)
    answer.attestation_object = bytes(AttestationObject.build("packed", data, statement))
    return answer


async def test_a_device_under_a_pinned_root_is_what_the_root_says(trusting: LiveServer):
    made = await begun(trusting, "ada")
    device = (await complete(trusting, made, attested(made, ROOT))).device
    assert device.assurance == common_pb2.Assurance(
        protection=common_pb2.PROTECTION_SECURE_ELEMENT,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_ATTESTED,
        anchor="Forged Keys",
    )


async def test_a_device_under_a_root_of_the_same_name_is_refused_and_may_try_again(trusting: LiveServer):
    made = await begun(trusting, "ada")
    with refused(Reason.TRUST_CHAIN):
        await complete(trusting, made, attested(made, Authority.root()))
    (record,) = [r for r in await trusting.audit("registration.complete") if r.outcome == "trust_chain"]
    assert record.subject == made.device_id
    assert (await complete(trusting, made, attested(made, ROOT))).device.assurance.anchor == "Forged Keys"


async def test_without_a_pinned_root_nothing_is_believed(live: LiveServer):
    made = await begun(live, "ada")
    with refused(Reason.TRUST_CHAIN):
        await complete(live, made, attested(made, ROOT))
    device = (await complete(live, made)).device
    assert device.assurance.provenance == common_pb2.PROVENANCE_SELF
    assert device.assurance.protection == common_pb2.PROTECTION_SOFTWARE


async def test_a_policy_that_wants_hardware_refuses_what_only_attests_itself(trusting: LiveServer):
    await trusting.admin()  # whose own device attests itself
    made = await begun(trusting, "ada")
    hardware = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_ATTESTED,
        anchors=["Forged Keys"],
    )
    await trusting.change_policy(registration={"required_assurance": hardware})
    with refused(Reason.ASSURANCE_TOO_LOW):
        await complete(trusting, made)
    assert (await complete(trusting, made, attested(made, ROOT))).device.assurance.anchor == "Forged Keys"
