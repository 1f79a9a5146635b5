"""Registration of devices with a TPM: what a good one proves, whose it may be, and what becomes of it repeated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.proofs import spki_of
from keyvouch.statement import RegistrationStatement
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, enrolment_pb2_grpc, prompts_pb2, security_info_pb2
from keyvouch.v1 import enrolment_pb2 as pb
from keyvouch_bench.device import PromptStream
from keyvouch_client import Connection
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Credential, Device, DeviceTpm, Registration
from keyvouch_server.stores.sqlite_upkeep import check
from support.contest import at_once
from support.live_server import LIMIT, LiveServer, Metadata, live_server, refused
from support.tpm_device import FIRMWARE, ForgedTpm, Maker, TpmRegistration, begin, register

MAKER = Maker.new()
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
GATED_TPM = common_pb2.Assurance(
    protection=common_pb2.PROTECTION_TPM,
    verification=common_pb2.VERIFICATION_HARDWARE_GATED,
    provenance=common_pb2.PROVENANCE_ATTESTED,
    anchor="tpm-ek:TestMaker",
)


@pytest.fixture
async def trusting(server_template: Path, tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A running server that believes the test maker's TPMs; its store is sound at the end."""
    async with live_server(server_template, tmp_path, tpm=MAKER.settings(tmp_path)) as running:
        yield running
    assert check(tmp_path / "server" / "keyvouch.db").problems == ()


async def session_of(live: LiveServer, username: str) -> Metadata:
    await live.create_user(username)
    return await live.pass_session(username, await live.issue_pass(username))


async def begun(live: LiveServer, tpm: ForgedTpm, username: str) -> TpmRegistration:
    return await begin(live, await session_of(live, username), tpm)


async def records(live: LiveServer, device_id: str) -> list[object]:
    """Every row of a device, byte for byte."""

    async def work(tx: object) -> list[object]:
        found: list[object] = []
        for table, column in ((Device, "id"), (Credential, "device_id"), (DeviceTpm, "device_id")):
            found += await tx.find(table, {column: device_id})  # type: ignore[attr-defined]
        return found

    return await live.app.store.read(work)


# What it proves


async def test_h5_a_tpm_registration_proves_hardware_its_pin_gate_and_its_maker(trusting: LiveServer):
    tpm = MAKER.tpm()
    made = await begun(trusting, tpm, "ada")
    assert made.begun.tpm.pin_limit == 3
    await made.prepare()
    assert RegistrationStatement.parse(made.statement).ak_name == tpm.ak_area.name
    done = await made.complete(made.completion(with_channel=True))
    assert done.device.assurance == GATED_TPM
    told = done.device.tpm
    assert (told.endorsement_anchor, told.manufacturer, told.model) == (
        "tpm-ek:TestMaker",
        "Nuvoton Technology",
        "TEST1",
    )
    assert (told.firmware, told.pin_limit, told.channel_key_in_tpm) == ("7.2.4.1", 3, True)
    assert (told.health, told.reported_at, list(told.findings)) == (common_pb2.HEALTH_STATE_UNSPECIFIED, 0, [])
    assert (told.reset_count, told.restart_count) == (5, 0)
    assert len(told.endorsement_key_hash) == 32


async def test_the_certificate_of_the_attestation_key_is_that_of_webauthn_8_3_1(trusting: LiveServer):
    made = await begun(trusting, MAKER.tpm(), "ada")
    await made.prepare()
    leaf = x509.load_der_x509_certificate(made.certificate)
    leaf.verify_directly_issued_by(trusting.app.keyring.attestation_root)
    assert (leaf.version, leaf.subject.rdns) == (x509.Version.v3, [])
    assert leaf.public_key() == made.tpm.ak.public_key()
    assert leaf.not_valid_before_utc.timestamp() == trusting.clock.now() - 300
    assert leaf.not_valid_after_utc.timestamp() == trusting.clock.now() + 7 * 86400
    found = {e.oid.dotted_string: (e.critical, e.value) for e in leaf.extensions}
    critical, names = found["2.5.29.17"]
    assert critical
    (directory,) = names.get_values_for_type(x509.DirectoryName)  # type: ignore[attr-defined]
    assert [(a.oid.dotted_string, a.value) for a in directory] == [
        ("2.23.133.2.1", "id:4E544300"),
        ("2.23.133.2.2", "TEST1"),
        ("2.23.133.2.3", "id:00020008"),
    ]
    assert found["2.5.29.37"] == (False, x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.3")]))
    assert found["2.5.29.19"] == (True, x509.BasicConstraints(ca=False, path_length=None))
    aaguid = found["1.3.6.1.4.1.45724.1.1.4"][1]
    assert aaguid.public_bytes() == b"\x04\x10" + bytes.fromhex("7d5e2c0b9a4143c8b1f06a3e58d9c417")
    assert {"2.5.29.14", "2.5.29.35", "2.5.29.15"} <= found.keys()


async def test_certificates_for_a_smartcard_do_not_come_with_a_tpm(trusting: LiveServer):
    made = await begun(trusting, MAKER.tpm(), "ada")
    await made.prepare()
    answer = made.completion()
    answer.card.certificates.append(made.certificate)
    with refused(Reason.FIELD_INVALID) as refusal:
        await made.complete(answer)
    assert refusal.error.metadata["field"] == "card"
    answer.ClearField("card")
    assert (await made.complete(answer)).device.assurance == GATED_TPM


async def test_the_ceremony_key_is_gone_once_it_has_signed(trusting: LiveServer):
    made = await begun(trusting, MAKER.tpm(), "ada")
    (before,) = await trusting.app.store.read(lambda tx: tx.find(Registration, {"device_id": made.device_id}))
    await made.prepare()
    (after,) = await trusting.app.store.read(lambda tx: tx.find(Registration, {"device_id": made.device_id}))
    assert before.tpm[0] == 0xA3
    sealed = before.tpm[-64:]
    assert sealed not in after.tpm
    assert after.statement == made.statement != before.statement
    assert made.secret not in after.tpm


async def test_a_device_with_a_tpm_signs_people_in_and_is_listed_everywhere(trusting: LiveServer):
    _, device = await register(trusting, await session_of(trusting, "ada"), MAKER.tpm())
    person = await trusting.connect("ada", device)
    signed_in = await trusting.signed_in(person)
    assert signed_in.session.assurance == GATED_TPM
    request = security_info_pb2.GetSecurityInfoRequest()
    session = (await trusting.signed_in(person)).metadata
    own = await answer(trusting.connection.security_info.GetSecurityInfo(request, metadata=session, timeout=LIMIT))
    listed = (await trusting.administer("ListDevices", admin_pb.ListDevicesRequest(username="ada"))).devices
    stub = await trusting.device_stub(device)
    seen = (await stub.GetDevice(prompts_pb2.GetDeviceRequest(), timeout=LIMIT)).device
    assert {d.tpm.model for d in (*own.devices, *listed, seen)} == {"TEST1"}


# Whose TPM it is: PS17


async def test_ps17_a_second_tenant_is_refused_and_told_how_to_unregister(trusting: LiveServer):
    tpm = MAKER.tpm()
    _, device = await register(trusting, await session_of(trusting, "ada"), tpm)
    _, other = await trusting.tenant("other")
    await trusting.create_user("zed", metadata=other.metadata)
    code = await trusting.issue_pass("zed", other.metadata)
    session = await trusting.pass_session("zed", code, "other")
    made = await begin(trusting, session, tpm)
    with refused(Reason.DEVICE_REGISTERED_ELSEWHERE, status=PRECONDITION) as refusal:
        await made.prepare()
    assert "keyvouch-agent unregister" in refusal.error.fix
    assert "example" not in str(refusal.error)
    bare = made.request(endorsement_certificates=[])  # nor by leaving the certificate at home
    with refused(Reason.DEVICE_REGISTERED_ELSEWHERE):
        await made.prepare(bare)
    stub = await trusting.device_stub(device)
    await stub.Unregister(prompts_pb2.UnregisterRequest(), timeout=LIMIT)
    await made.prepare()
    assert (await made.complete(made.completion())).device.assurance == GATED_TPM


async def test_ps17_two_tenants_race_for_one_tpm(trusting: LiveServer):
    """Both have prepared before either completes: the second transaction looks again."""
    tpm = MAKER.tpm()
    mine = await begun(trusting, tpm, "ada")
    _, other = await trusting.tenant("other")
    await trusting.create_user("zed", metadata=other.metadata)
    session = await trusting.pass_session("zed", await trusting.issue_pass("zed", other.metadata), "other")
    theirs = await begin(trusting, session, tpm)
    await mine.prepare()
    await theirs.prepare()
    await mine.complete(mine.completion())
    with refused(Reason.DEVICE_REGISTERED_ELSEWHERE, status=PRECONDITION):
        await theirs.complete(theirs.completion())
    assert await records(trusting, theirs.device_id) == []


@pytest.mark.parametrize("limit", [1, 2])
async def test_ps17_as_many_accounts_in_one_tpm_as_policy_permits(trusting: LiveServer, limit: int):
    tpm = MAKER.tpm()
    sessions = [await session_of(trusting, f"user{n}") for n in range(limit + 1)]
    await trusting.change_policy(registration={"accounts_per_device": limit})
    waiting = await begin(trusting, sessions[limit], tpm)
    await waiting.prepare()  # before the others are there
    for session in sessions[:limit]:
        await register(trusting, session, tpm)
    with refused(Reason.DEVICE_ACCOUNTS, status=PRECONDITION) as refusal:
        await waiting.complete(waiting.completion())
    assert refusal.error.metadata["limit"] == str(limit)
    late = await begin(trusting, sessions[limit], tpm)
    with refused(Reason.DEVICE_ACCOUNTS, status=PRECONDITION):
        await late.prepare()
    await trusting.change_policy(registration={"accounts_per_device": limit + 1})
    assert (await waiting.complete(waiting.completion())).device.assurance == GATED_TPM


async def test_re_enrolment_takes_the_place_of_the_users_device_in_the_same_tpm(trusting: LiveServer):
    tpm, session = MAKER.tpm(), await session_of(trusting, "ada")
    await trusting.change_policy(registration={"devices_per_user": 2})
    old, device = await register(trusting, session, tpm)
    other, _ = await register(trusting, session, MAKER.tpm())
    person = await trusting.connect("ada", device)
    signed_in = await trusting.signed_in(person)
    await trusting.change_policy(registration={"devices_per_user": 3})  # room to begin; the old one counts until then
    made = await begin(trusting, session, tpm)
    await trusting.change_policy(registration={"devices_per_user": 2})
    await made.prepare()
    given = made.completion()
    done = await made.complete(given)
    assert done.replaced_device_id == old.device_id
    assert await records(trusting, old.device_id) == []
    assert len(await records(trusting, other.device_id)) == 3
    with refused(Reason.DEVICE_REMOVED):
        await person.stream.read()
    with refused(Reason.SESSION_REVOKED):
        await signed_in.introspect()
    assert (await made.complete(given)).replaced_device_id == old.device_id
    assert [r.subject for r in await trusting.audit("device.remove")] == [old.device_id]


async def test_tpm7_another_tpm_for_a_registered_device_is_refused_and_changes_no_byte(trusting: LiveServer):
    made, _ = await register(trusting, await session_of(trusting, "ada"), MAKER.tpm())
    before = await records(trusting, made.device_id)
    other = TpmRegistration(
        trusting, MAKER.tpm(), made.begun, made.channel_key, made.key, made.prepared, made.secret, made.certificate
    )
    with refused(Reason.REGISTRATION_CONSUMED, status=PRECONDITION):
        await other.prepare()
    with refused(Reason.REGISTRATION_CONSUMED, status=PRECONDITION):
        await other.complete(other.completion())
    assert await records(trusting, made.device_id) == before
    assert len(before) == 3


# Repeated and raced


async def test_the_same_answer_again_gets_the_same_reply_and_another_one_none(trusting: LiveServer):
    made = await begun(trusting, MAKER.tpm(), "ada")
    request = made.request()
    assert await made.prepare(request) == await made.prepare(request)
    given = made.completion(with_channel=True)
    done = await made.complete(given)
    assert await made.complete(given) == done
    for change in ("activation", "channel_key"):
        other = pb.CompleteRegistrationRequest()
        other.CopyFrom(given)
        setattr(other.tpm, change, b"other")
        with refused(Reason.REGISTRATION_CONSUMED, status=PRECONDITION):
            await made.complete(other)
    assert await made.prepare(request) == made.prepared
    assert [r.outcome for r in await trusting.audit("registration.complete")].count(
        "ok"
    ) == 2  # the administrator's too


@pytest.mark.parametrize("copies", [2, 8, 64])
async def test_copies_of_one_answer_raced_give_one_device(trusting: LiveServer, copies: int):
    made = await begun(trusting, MAKER.tpm(), "ada")
    async with AsyncExitStack() as stack:
        address, ca = f"127.0.0.1:{trusting.public_port}", trusting.data / "ca.pem"
        opened = [await stack.enter_async_context(Connection(address, ca_file=ca)) for _ in range(min(copies, 8))]
        lives = [LiveServerOver(trusting, connection) for connection in opened]
        request = made.request()
        racers = [_over(made, lives[n % len(lives)]) for n in range(copies)]
        granted = await at_once([lambda r=r: r.prepare(request) for r in racers])
        assert len({g.SerializeToString() for g in granted}) == 1  # type: ignore[attr-defined]
        made = racers[0]
        given = made.completion()
        replies = await at_once([lambda r=r: r.complete(given) for r in racers])
    assert not [r for r in replies if isinstance(r, KeyvouchError)]
    assert len({r.SerializeToString() for r in replies}) == 1  # type: ignore[attr-defined]
    assert len(await records(trusting, made.device_id)) == 3
    kept = [r for r in await trusting.audit("registration.complete") if r.subject == made.device_id]
    assert [r.outcome for r in kept] == ["ok"]


@pytest.mark.parametrize("copies", [2, 8, 64])
async def test_different_requests_raced_one_of_them_is_granted(trusting: LiveServer, copies: int):
    made = await begun(trusting, MAKER.tpm(), "ada")
    requests = [made.request() for _ in range(copies)]
    racers = [_over(made, trusting) for _ in range(copies)]
    results = await at_once([lambda r=r, q=q: r.prepare(q) for r, q in zip(racers, requests, strict=True)])
    refusals = [r.reason for r in results if isinstance(r, KeyvouchError)]
    assert refusals == [Reason.TPM_IDENTITY] * (copies - 1)
    (winner,) = [racer for racer in racers if racer.prepared]
    assert (await winner.complete(winner.completion())).device.assurance == GATED_TPM


def _over(made: TpmRegistration, live: object) -> TpmRegistration:
    return TpmRegistration(live, made.tpm, made.begun, made.channel_key, made.key)  # type: ignore[arg-type]


class LiveServerOver:
    """The same server over a connection of its own."""

    def __init__(self, live: LiveServer, connection: Connection) -> None:
        self.app = live.app
        self.enrolment = enrolment_pb2_grpc.EnrolmentServiceStub(connection.channel)


# TPM9: whatever fails in a verification leaves no device


PREPARING = (
    "use_cases.tpm_preparation.check_attestation_key",
    "use_cases.tpm_preparation.check_endorsement_key",
    "use_cases.tpm_preparation.verify_endorsement_certificate",
    "use_cases.tpm_preparation.decide_provable",
    "use_cases.tpm_preparation.make_credential",
    "use_cases.tpm_preparation.seal_certificate",
    "use_cases.tpm_preparation.sign",
)
COMPLETING = (
    "keyvouch_server.use_cases.registration.verify_registration",
    "keyvouch_server.use_cases.registration.verify_proof",
    "keyvouch_server.use_cases.tpm_evidence.verify_tpm_registration",
    "keyvouch_server.use_cases.tpm_evidence.verify_channel_key",
    "keyvouch_server.use_cases.tpm_evidence.known_flaws",
    "keyvouch_server.use_cases.tpm_evidence.hmac.compare_digest",
    "keyvouch.attestation.tpm_registration.check_gated_key",
    "keyvouch.attestation.tpm_registration.verify_nv_certify",
    "keyvouch.attestation.tpm_registration.check_endorsement_primary",
    "keyvouch.attestation.tpm_registration.verify_certify",
    "keyvouch.attestation.tpm_registration.assurance_of",
)


class BrokenError(Exception):
    """What nobody foresaw."""


def broken(*arguments: object, **named: object) -> None:
    raise BrokenError


@pytest.mark.parametrize("step", PREPARING)
async def test_tpm9_a_step_of_the_preparation_that_fails(
    trusting: LiveServer, monkeypatch: pytest.MonkeyPatch, step: str
):
    made = await begun(trusting, MAKER.tpm(), "ada")
    with monkeypatch.context() as failing:
        failing.setattr(f"keyvouch_server.{step}", broken)
        with refused(Reason.INTERNAL, status=grpc.StatusCode.INTERNAL):
            await made.prepare()
    assert [r.outcome for r in await trusting.audit("registration.prepare")] == ["internal"]
    assert await records(trusting, made.device_id) == []
    await made.prepare()
    assert (await made.complete(made.completion())).device.assurance == GATED_TPM


@pytest.mark.parametrize("step", COMPLETING)
async def test_tpm9_a_step_of_the_completion_that_fails(
    trusting: LiveServer, monkeypatch: pytest.MonkeyPatch, step: str
):
    made = await begun(trusting, MAKER.tpm(), "ada")
    await made.prepare()
    given = made.completion(with_channel=True)
    with monkeypatch.context() as failing:
        failing.setattr(step, broken)
        with refused(Reason.INTERNAL, status=grpc.StatusCode.INTERNAL):
            await made.complete(given)
    kept = [r for r in await trusting.audit("registration.complete") if r.subject == made.device_id]
    assert [r.outcome for r in kept] == ["internal"]
    assert await records(trusting, made.device_id) == []
    assert (await made.complete(given)).device.assurance == GATED_TPM


# TPM6: a device is absent until its registration is complete


async def test_tpm6_a_device_that_has_not_finished_is_nowhere(trusting: LiveServer):
    session = await session_of(trusting, "ada")
    made = await begin(trusting, session, MAKER.tpm())
    await made.prepare()
    listed = (await trusting.administer("ListDevices", admin_pb.ListDevicesRequest(username="ada"))).devices
    assert list(listed) == []
    opened = await trusting.begin("ada")
    outcomes = [r.outcome for r in await trusting.audit("sign_in.begin") if r.subject == opened.begun.sign_in_id]
    assert outcomes == [Reason.NO_METHOD.value]
    chain = trusting.app.keyring.device_certificate(made.device_id, _tenant_of(made), _spki(made))  # type: ignore[arg-type]
    device = made.device(_pretended(made, chain))
    with refused(Reason.DEVICE_REMOVED):
        async with PromptStream(device):
            pass


def _tenant_of(made: TpmRegistration) -> str:
    return RegistrationStatement.parse(made.begun.statement).tenant_id


def _spki(made: TpmRegistration) -> bytes:
    return spki_of(made.channel_key.public_key())


def _pretended(made: TpmRegistration, chain: tuple[bytes, ...]) -> pb.CompleteRegistrationResponse:
    device = common_pb2.Device(device_id=made.device_id, credential_id=b"none")
    endpoint = made.live.app.world.facts.device_endpoint
    return pb.CompleteRegistrationResponse(device=device, certificate_chain=chain, device_endpoint=endpoint)


async def test_what_a_registration_attested_is_the_baseline(trusting: LiveServer):
    tpm = MAKER.tpm()
    made, _ = await register(trusting, await session_of(trusting, "ada"), tpm)
    (row,) = await trusting.app.store.read(lambda tx: tx.find(DeviceTpm, {"device_id": made.device_id}))
    assert row.firmware_version == f"{FIRMWARE:016x}"
    assert json.loads(row.baseline) == {"accepted": [], "firmware": row.firmware_version, "pcrs": {}}
    assert (row.clock, row.reset_count) == (str(tpm.clock), 5)
    assert row.endorsement_key_hash == hashlib.sha256(_endorsement(tpm)).digest()


def _endorsement(tpm: ForgedTpm) -> bytes:
    public = tpm.endorsement.private_key.public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
