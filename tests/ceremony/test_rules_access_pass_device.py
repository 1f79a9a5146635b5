"""P8 on a real server: a pass that is for one device registers that device, as proved, and no other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch.errors import Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch_bench.device import BenchDevice
from keyvouch_server.domain.model import Credential, Device, DeviceTpm
from keyvouch_server.trust_anchors import read_settings
from support.attestation_forge import ROOT
from support.key_desk import MODEL, MODEL_NAME, OTHER_MODEL, begin_enrolment
from support.live_server import LiveServer, Metadata, live_server, refused
from support.registering import begin, complete
from support.tpm_device import ForgedTpm, Maker, register
from support.tpm_device import begin as begin_tpm

MAKER = Maker.new()
PINNED = {
    "name": "Forged Keys",
    "file": "root.pem",
    "formats": ["packed", "fido-u2f"],
    "protection": "secure_element",
    "verification": "hardware_gated",
}
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
Binding = admin_pb.DeviceBinding


@pytest.fixture
async def trusting(server_template: Path, tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A server that believes one maker of TPMs and one of security keys."""
    (tmp_path / "root.pem").write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    trust = read_settings([PINNED], None, folder=tmp_path)
    async with live_server(server_template, tmp_path, trust=trust, tpm=MAKER.settings(tmp_path)) as running:
        yield running


def hash_of(tpm: ForgedTpm) -> bytes:
    """What an inventory would know of a TPM."""
    key = tpm.endorsement.private_key.public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


async def session_of(live: LiveServer, binding: Binding, **options: Any) -> Metadata:
    return await live.pass_session("ada", await live.issue_pass("ada", binding=binding, **options))


async def nothing_was_written(live: LiveServer) -> bool:
    ada = (await live.audit("user.create"))[-1].user_id
    tables: tuple[type[Any], ...] = (Device, Credential, DeviceTpm)
    return not any([await live.app.store.read(lambda tx, t=table: tx.find(t, {"user_id": ada})) for table in tables])  # type: ignore[misc]


async def last_refusal(live: LiveServer, action: str = "registration.complete") -> tuple[str, dict[str, str]]:
    record = (await live.audit(action))[-1]
    return record.outcome, json.loads(record.details)


async def test_one_tpm_by_its_endorsement_key_P8(trusting: LiveServer):
    await trusting.create_user("ada")
    own, other = MAKER.tpm(), MAKER.tpm()
    session = await session_of(trusting, Binding(endorsement_key_hash=hash_of(own)))
    with refused(Reason.ACCESS_PASS_DEVICE, status=REFUSED) as refusal:
        await register(trusting, session, other)
    assert "one device" in refusal.error.message
    assert await nothing_was_written(trusting)
    outcome, details = await last_refusal(trusting, "registration.prepare")  # before anybody makes a PIN for it
    assert outcome == Reason.ACCESS_PASS_DEVICE.value
    assert details["detail"] == f"ek:{hash_of(own).hex()}"
    assert details["found"] == f"ek:{hash_of(other).hex()}"
    with refused(Reason.ACCESS_PASS_DEVICE, status=REFUSED):
        await BenchDevice.enrol(trusting.connection, metadata=session)
    assert (await last_refusal(trusting))[1]["found"] == "nothing"
    assert await nothing_was_written(trusting)
    await register(trusting, session, own)  # the control
    assert not await nothing_was_written(trusting)


async def test_a_tpm_that_nobody_vouches_for_is_not_the_one_P8(trusting: LiveServer):
    """It would open the challenge; but nothing would show that the new key is in it, so that key may be anywhere."""
    await trusting.create_user("ada")
    tpm = MAKER.tpm()
    session = await session_of(trusting, Binding(endorsement_key_hash=hash_of(tpm)))
    made = await begin_tpm(trusting, session, tpm)
    with refused(Reason.ACCESS_PASS_DEVICE, status=REFUSED):
        await made.prepare(made.request(endorsement_certificates=[]))
    assert await nothing_was_written(trusting)
    await register(trusting, session, tpm)


async def test_one_model_as_a_trusted_chain_names_it_P8_W4(trusting: LiveServer):
    await trusting.create_user("ada")
    session = await session_of(trusting, Binding(aaguid=MODEL_NAME))
    for how in ({"model": MODEL}, {"model": MODEL, "format": "none"}, {"model": OTHER_MODEL, "authority": ROOT}):
        begun = await begin_enrolment(trusting, session)
        with refused(Reason.ACCESS_PASS_DEVICE, status=REFUSED):
            await begun.complete(**how)
        assert await nothing_was_written(trusting)
    with refused(Reason.ACCESS_PASS_DEVICE, status=REFUSED):
        await register(trusting, session, MAKER.tpm())
    assert await nothing_was_written(trusting)
    await (await begin_enrolment(trusting, session)).complete(model=MODEL, authority=ROOT)
    assert not await nothing_was_written(trusting)


async def test_a_refused_device_leaves_a_one_time_pass_unspent_P8(trusting: LiveServer):
    await trusting.create_user("ada")
    own = MAKER.tpm()
    session = await session_of(trusting, Binding(endorsement_key_hash=hash_of(own)), one_time=True)
    with refused(Reason.ACCESS_PASS_DEVICE):
        await BenchDevice.enrol(trusting.connection, metadata=session)
    await register(trusting, session, own)
    with refused(Reason.SESSION_REVOKED):
        await register(trusting, session, own)


async def test_another_session_of_the_user_registers_what_it_likes_P8(live: LiveServer):
    """The pass is bound, not the user: a session that was approved with a device is no session of the pass."""
    ada = await live.person("ada")
    await live.issue_pass_again("ada", binding=Binding(aaguid=MODEL_NAME))
    approved = await live.signed_in(ada)
    begun = await begin(live, approved.metadata)
    await complete(live, begun)


async def test_the_binding_is_shown_and_stays_in_the_audit_log_P8(live: LiveServer):
    await live.create_user("ada")
    binding = Binding(endorsement_key_hash=bytes(range(32)))
    await live.issue_pass("ada", binding=binding)
    assert (await live.listed_pass("ada")).binding == binding
    record = (await live.audit("access_pass.create"))[-1]
    assert json.loads(record.details)["binding"] == "ek:" + bytes(range(32)).hex()
    await live.issue_pass_again("ada", binding=Binding(aaguid=MODEL_NAME.upper()))
    assert (await live.listed_pass("ada")).binding == Binding(aaguid=MODEL_NAME)
    await live.issue_pass_again("ada")
    assert not (await live.listed_pass("ada")).HasField("binding")


@pytest.mark.parametrize(
    "binding",
    [
        Binding(),
        Binding(endorsement_key_hash=b""),
        Binding(endorsement_key_hash=bytes(31)),
        Binding(aaguid=""),
        Binding(aaguid="yubikey"),
        Binding(aaguid="00000000-0000-0000-0000-000000000000"),
    ],
)
async def test_a_binding_that_names_no_device_is_refused_P8(live: LiveServer, binding: Binding):
    await live.create_user("ada")
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await live.issue_pass("ada", binding=binding)
    assert refusal.error.metadata["field"].startswith("binding")
