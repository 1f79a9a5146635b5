"""Replacing the key of a device with a TPM: a new key behind the same PIN, and nothing else changes."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.ids import CredentialId
from keyvouch.statement import Purpose, RegistrationStatement, challenge
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2, prompts_pb2
from keyvouch_bench.device import BenchDevice, PromptStream, SoftKey
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Credential, Device, DeviceTpm, KeyReplacement
from keyvouch_server.stores.sqlite_upkeep import check
from support.contest import at_once
from support.live_server import LIMIT, LiveServer, live_server, refused
from support.policy_desk import save
from support.tpm_device import GATED, ForgedTpm, Maker, TpmRegistration, begin, register, tpm_credential
from support.tpm_forge import ec_key

MAKER = Maker.new()
BAD_REQUEST, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@dataclass
class Replacing:
    """A replacement between its two calls."""

    made: TpmRegistration
    device: BenchDevice
    stub: Any
    begun: prompts_pb2.BeginKeyReplacementResponse
    key: ec.EllipticCurvePrivateKey

    def request(
        self,
        *,
        tpm: ForgedTpm | None = None,
        area: bytes | None = None,
        certificate: bytes | None = None,
        credential_id: bytes = b"",
    ) -> prompts_pb2.CompleteKeyReplacementRequest:
        """What the device sends."""
        chip = tpm or self.made.tpm
        self.made.key = self.key
        client_data, attestation = tpm_credential(
            self.begun.statement,
            chip,
            rp_id=self.begun.rp_id,
            key=self.key,
            area=self.made.key_area() if area is None else area,
            certificate=self.begun.attestation_certificate if certificate is None else certificate,
            credential_id=credential_id,
        )
        nonce = challenge(Purpose.PIN_INDEX, self.begun.statement)
        return prompts_pb2.CompleteKeyReplacementRequest(
            registration_id=self.begun.registration_id,
            client_data_json=client_data,
            attestation_object=attestation,
            pin_index=chip.nv_certify(self.made.written, self.made.contents, nonce),
        )

    async def complete(self, given: prompts_pb2.CompleteKeyReplacementRequest) -> common_pb2.Device:
        done = await answer(self.stub.CompleteKeyReplacement(given, timeout=LIMIT))
        device: common_pb2.Device = done.device
        return device


@dataclass
class Bench:
    """A server, and Ada's device in it."""

    live: LiveServer
    made: TpmRegistration
    device: BenchDevice
    stub: Any

    async def begin(self) -> Replacing:
        begun = await answer(self.stub.BeginKeyReplacement(prompts_pb2.BeginKeyReplacementRequest(), timeout=LIMIT))
        return Replacing(self.made, self.device, self.stub, begun, ec.generate_private_key(ec.SECP256R1()))

    async def rows(self) -> tuple[Any, ...]:
        async def work(tx: Any) -> tuple[Any, ...]:
            where = {"device_id": self.device.device_id}
            return (
                await tx.get(Device, id=self.device.device_id),
                await tx.find(Credential, where),
                await tx.get(DeviceTpm, **where),
            )

        return await self.live.app.store.read(work)

    async def outcomes(self) -> list[str]:
        return [r.outcome for r in await self.live.audit("device.key.replace")]


@pytest.fixture
async def ada(server_template: Path, tmp_path: Path) -> AsyncIterator[Bench]:
    """Ada's device, enrolled; the store is sound at the end."""
    async with live_server(server_template, tmp_path, tpm=MAKER.settings(tmp_path)) as live:
        await live.create_user("ada")
        session = await live.pass_session("ada", await live.issue_pass("ada"))
        made, device = await register(live, session, MAKER.tpm())
        yield Bench(live, made, device, await live.device_stub(device))
    assert check(tmp_path / "server" / "keyvouch.db").problems == ()


def with_key(replacing: Replacing, done: common_pb2.Device) -> BenchDevice:
    """The device with its new key."""
    old = replacing.device.credential
    credential = SoftKey(old.rp_id, old.user_handle, replacing.key, CredentialId(done.credential_id))
    return replace(replacing.device, credential=credential)


async def test_a_new_key_takes_the_place_of_the_old_one_and_signs_in(ada: Bench):
    device_before, (credential_before,), tpm_before = await ada.rows()
    replacing = await ada.begin()
    statement = RegistrationStatement.parse(replacing.begun.statement)
    assert (statement.device_id, statement.registration_id) == (ada.device.device_id, replacing.begun.registration_id)
    assert statement.ak_name == ada.made.tpm.ak_area.name
    assert replacing.begun.attestation_certificate != ada.made.certificate
    assert (replacing.begun.username, replacing.begun.user_handle) == ("ada", ada.device.credential.user_handle)
    done = await replacing.complete(replacing.request())
    device, (credential,), tpm = await ada.rows()
    assert (device, tpm) == (device_before, tpm_before)
    assert credential.id == done.credential_id != credential_before.id
    assert credential.assurance == credential_before.assurance == tpm.proved_assurance
    person = await ada.live.connect("ada", with_key(replacing, done))
    assert (await ada.live.signed_in(person)).session.assurance.protection == common_pb2.PROTECTION_TPM
    assert await ada.outcomes() == ["ok"]


async def test_what_was_offered_to_the_old_key_can_be_approved_no_more(ada: Bench):
    opened = await ada.live.begin("ada")
    async with PromptStream(ada.device) as stream:
        prompt = await stream.prompt()
        replacing = await ada.begin()
        done = await replacing.complete(replacing.request())
        for device in (ada.device, with_key(replacing, done)):
            outcome = await stream.send(device.approve(prompt, opened.number))
            assert (outcome.accepted, outcome.reason) == (False, Reason.SIGN_IN_UNKNOWN.value)
    person = await ada.live.connect("ada", with_key(replacing, done))
    await ada.live.signed_in(person)


async def test_the_same_answer_again_gets_the_same_reply_and_another_one_none(ada: Bench):
    replacing = await ada.begin()
    given = replacing.request()
    replies = await at_once([lambda: replacing.complete(given) for _ in range(8)])
    assert not [r for r in replies if isinstance(r, KeyvouchError)]
    assert len({r.credential_id for r in replies}) == 1  # type: ignore[attr-defined]
    with refused(Reason.REGISTRATION_CONSUMED, status=PRECONDITION):
        await replacing.complete(replacing.request())
    assert await ada.outcomes() == ["ok", Reason.REGISTRATION_CONSUMED.value]


BENT = {
    "another policy": Reason.TPM_KEY_POLICY,
    "its own value": Reason.TPM_KEY_ATTRIBUTES,
    "another attestation key": Reason.ATTESTATION_STATEMENT,
    "the old certificate": Reason.TPM_ACTIVATION,
    "the limit": Reason.TPM_NV_INDEX,
    "blocked": Reason.TPM_NV_INDEX,
    "another statement": Reason.CHALLENGE,
    "a flawed firmware": Reason.AUTHENTICATOR_STATUS,
    "self attestation": Reason.TPM_ACTIVATION,
}


@pytest.mark.parametrize("bent", BENT)
async def test_what_is_bent_is_refused_and_the_old_key_stays(ada: Bench, bent: str):
    before = await ada.rows()
    replacing = await ada.begin()
    with refused(BENT[bent], status=BAD_REQUEST):
        await replacing.complete(await _bent(ada, replacing, bent))
    assert await ada.rows() == before
    assert await ada.outcomes() == [BENT[bent].value]
    ada.made.contents = struct.pack(">II", 0, 3)
    await replacing.complete(replacing.request())


async def _bent(ada: Bench, replacing: Replacing, bent: str) -> prompts_pb2.CompleteKeyReplacementRequest:
    made = replacing.made
    made.key = replacing.key
    match bent:
        case "another policy":
            return replacing.request(area=made.key_area(policy=b"\1" * 32))
        case "its own value":
            return replacing.request(area=made.key_area(attributes=GATED | 0x40))
        case "another attestation key":
            return replacing.request(tpm=replace(made.tpm, ak=ec_key(55)))
        case "the old certificate":
            return replacing.request(certificate=made.certificate)
        case "the limit":
            made.contents = struct.pack(">II", 0, 100)
            return replacing.request()
        case "blocked":
            made.contents = struct.pack(">II", 3, 3)
            return replacing.request()
        case "another statement":
            given = replacing.request()
            given.client_data_json = made.completion().client_data_json
            return given
        case "a flawed firmware":
            return replacing.request(tpm=replace(made.tpm, firmware=0x0001_0003_0001_0000))
    credential = SoftKey(replacing.begun.rp_id, replacing.begun.user_handle, replacing.key)
    given = replacing.request()
    made_by_itself = credential.register(challenge(Purpose.REGISTRATION, replacing.begun.statement))
    given.client_data_json, given.attestation_object = made_by_itself
    return given


async def test_tpm9_a_step_that_fails_leaves_the_old_key(ada: Bench, monkeypatch: pytest.MonkeyPatch):
    before = await ada.rows()
    replacing = await ada.begin()
    given = replacing.request()

    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError

    for step in ("verify_credential", "verify_gated_key"):
        with monkeypatch.context() as failing, refused(Reason.INTERNAL):
            failing.setattr(f"keyvouch_server.use_cases.key_replacement.{step}", broken)
            await replacing.complete(given)
    assert await ada.rows() == before
    assert await ada.outcomes() == ["internal"] * 2
    await replacing.complete(given)


async def test_a_replacement_of_another_device_or_that_is_none_or_was_left(ada: Bench):
    session = await ada.live.pass_session("ada", await ada.live.issue_pass_again("ada"))
    made, device = await register(ada.live, session, MAKER.tpm())
    stub = await ada.live.device_stub(device)
    other = Bench(ada.live, made, device, stub)
    mine, theirs = await ada.begin(), await other.begin()
    given = mine.request()
    for registration_id in (theirs.begun.registration_id, "reg_none", ""):
        given.registration_id = registration_id
        with refused(Reason.REGISTRATION_UNKNOWN, status=grpc.StatusCode.UNAUTHENTICATED):
            await mine.complete(given)
    second = await ada.begin()
    with refused(Reason.REGISTRATION_UNKNOWN):
        await mine.complete(mine.request())
    await second.complete(second.request())
    await theirs.complete(theirs.request())


async def test_too_late_and_swept(ada: Bench):
    late = await ada.begin()
    ada.live.clock.advance(601)
    with refused(Reason.REGISTRATION_EXPIRED, status=PRECONDITION):
        await late.complete(late.request())
    done = await ada.begin()
    await done.complete(done.request())
    ada.live.clock.advance(86400 + 601)
    await ada.live.app.replacements.forget_abandoned()
    assert await ada.live.app.store.read(lambda tx: tx.count(KeyReplacement, {})) == 0


async def test_only_of_devices_with_a_tpm_that_somebody_vouches_for(ada: Bench):
    plain = await ada.live.person("bob")
    with refused(Reason.TPM_NOT_PREPARED, status=PRECONDITION):
        stub = await ada.live.device_stub(plain.device)
        await answer(stub.BeginKeyReplacement(prompts_pb2.BeginKeyReplacementRequest(), timeout=LIMIT))
    await ada.live.create_user("eve")
    session = await ada.live.pass_session("eve", await ada.live.issue_pass("eve"))
    made = await begin(ada.live, session, MAKER.tpm())
    await made.prepare(made.request(endorsement_certificates=[]))
    device = made.device(await made.complete(made.self_attested()))
    with refused(Reason.TPM_NOT_PREPARED):
        stub = await ada.live.device_stub(device)
        await answer(stub.BeginKeyReplacement(prompts_pb2.BeginKeyReplacementRequest(), timeout=LIMIT))


async def test_policy_of_registration_is_asked(ada: Bench):
    required = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_ATTESTED,
        anchors=["tpm-ek:Others"],
    )
    replacing = await ada.begin()
    await ada.live.change_policy(registration={"required_assurance": required})
    with refused(Reason.ASSURANCE_TOO_LOW, status=PRECONDITION):
        await replacing.complete(replacing.request())
    required.anchors[:] = ["tpm-ek:TestMaker"]
    await ada.live.change_policy(registration={"required_assurance": required})
    await replacing.complete(replacing.request())
    await ada.live.change_policy(approval={"enabled": False})
    with refused(Reason.METHOD_DISABLED, status=PRECONDITION):
        await ada.begin()
    await ada.live.change_policy(approval={"enabled": True})
    await save(ada.live, for_nobody, accept=True)
    with refused(Reason.METHOD_NOT_TARGETED, status=PRECONDITION):
        await ada.begin()


def for_nobody(policy: pb.Policy) -> None:
    policy.approval.targets.everybody = False


async def test_a_device_that_failed_does_not_get_well_by_a_new_key(ada: Bench):
    async with PromptStream(ada.device) as stream:
        await stream.health(prompts_pb2.HealthReport(trouble="tpm_cleared"))
    replacing = await ada.begin()
    done = await replacing.complete(replacing.request())
    assert done.assurance.protection == common_pb2.PROTECTION_SOFTWARE
    async with PromptStream(ada.device) as stream:
        assert stream.welcome is not None
        verdict = await stream.health(ada.made.tpm.health(ada.live, ada.device.device_id, stream.welcome))
    assert verdict.assurance.protection == common_pb2.PROTECTION_TPM


async def test_an_id_that_another_key_has_already(ada: Bench):
    taken = (await ada.live.person("bob")).device.credential.credential_id
    before = await ada.rows()
    replacing = await ada.begin()
    with refused(Reason.CREDENTIAL_EXISTS, status=grpc.StatusCode.ALREADY_EXISTS):
        await replacing.complete(replacing.request(credential_id=taken))
    assert await ada.rows() == before
    assert await ada.outcomes() == [Reason.CREDENTIAL_EXISTS.value]
    await replacing.complete(replacing.request())
