"""Attempts to make the server believe of a TPM what is not so, by whoever has its owner's rights, or another tenant's.

The attacker has a good access pass, speaks for the agent, and plays the TPM: a genuine one, whose endorsement key the
maker vouches for, unless a test says otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyvouch import cbor
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.statement import Purpose, challenge
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, prompts_pb2
from keyvouch.v1 import enrolment_pb2 as pb
from keyvouch_bench.device import BenchDevice, PromptStream
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Device, DeviceTpm, Registration
from keyvouch_server.stores.sqlite_upkeep import check
from keyvouch_server.trust_anchors import PinnedRoots, TrustSettings
from keyvouch_server.use_cases.tpm_ceremony import draw_ceremony_key
from support import registering
from support.contest import at_once
from support.live_server import LIMIT, LiveServer, Metadata, live_server, refused
from support.software_tpm import SoftwareTpm
from support.tpm_device import CHANNEL, ForgedTpm, Maker, TpmRegistration, begin, register, tpm_credential
from support.tpm_forge import aes_cfb, ec_key, ecc_public, public_area, rsa_key, rsa_public

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


async def session_of(live: LiveServer, username: str = "ada") -> Metadata:
    await live.create_user(username)
    return await live.pass_session(username, await live.issue_pass(username))


async def stranger_of(live: LiveServer, tenant: str = "other") -> tuple[Metadata, Metadata]:
    """Another tenant: its administrator's session, and that of its user zed."""
    _, administrator = await live.tenant(tenant)
    await live.create_user("zed", metadata=administrator.metadata)
    code = await live.issue_pass("zed", administrator.metadata)
    return administrator.metadata, await live.pass_session("zed", code, tenant)


async def tpm_row(live: LiveServer, device_id: str) -> DeviceTpm | None:
    return await live.app.store.read(lambda tx: tx.get(DeviceTpm, device_id=device_id))


async def replace_key(
    live: LiveServer, made: TpmRegistration, stub: Any, key: ec.EllipticCurvePrivateKey
) -> tuple[Any, prompts_pb2.CompleteKeyReplacementRequest]:
    """BeginKeyReplacement, and what the device would send to complete it."""
    begun = await answer(stub.BeginKeyReplacement(prompts_pb2.BeginKeyReplacementRequest(), timeout=LIMIT))
    chip = replace(made, key=key)
    client_data, attestation = tpm_credential(
        begun.statement,
        made.tpm,
        rp_id=begun.rp_id,
        key=key,
        area=chip.key_area(),
        certificate=begun.attestation_certificate,
    )
    nonce = challenge(Purpose.PIN_INDEX, begun.statement)
    return begun, prompts_pb2.CompleteKeyReplacementRequest(
        registration_id=begun.registration_id,
        client_data_json=client_data,
        attestation_object=attestation,
        pin_index=made.tpm.nv_certify(made.written, made.contents, nonce),
    )


# Health


async def false_report(live: LiveServer, tpm: ForgedTpm, device_id: str, welcome: prompts_pb2.Welcome) -> Any:
    return replace(tpm, ak=ec_key(9)).health(live, device_id, welcome)


async def rolled_back(live: LiveServer, tpm: ForgedTpm, device_id: str, welcome: prompts_pb2.Welcome) -> Any:
    return replace(tpm, resets=1).health(live, device_id, welcome)


async def flawed(live: LiveServer, tpm: ForgedTpm, device_id: str, welcome: prompts_pb2.Welcome) -> Any:
    return replace(tpm, firmware=0x0001_0003_0001_0000).health(live, device_id, welcome)


async def cleared(*_: Any) -> prompts_pb2.HealthReport:
    return prompts_pb2.HealthReport(trouble="tpm_cleared")


FAILURES: dict[str, Any] = {
    "a false report": false_report,
    "an old state of the TPM": rolled_back,
    "a firmware that gives keys away": flawed,
    "a TPM that was cleared": cleared,
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("excuse", ["tpm_busy", "internal", "\x1b[2J\u202e"])
async def test_a_device_that_failed_does_not_get_well_by_an_excuse_H8(trusting: LiveServer, failure: str, excuse: str):
    made, device = await register(trusting, await session_of(trusting), MAKER.tpm())
    async with PromptStream(device) as stream:
        assert stream.welcome is not None
        await stream.health(made.tpm.health(trusting, device.device_id, stream.welcome))
        bad = await FAILURES[failure](trusting, made.tpm, device.device_id, stream.welcome)
        failed = await stream.health(bad)
        for _ in range(2):
            verdict = await stream.health(prompts_pb2.HealthReport(trouble=excuse))
            assert verdict.state == failed.state == common_pb2.HEALTH_STATE_FAILED
            assert verdict.assurance.protection == common_pb2.PROTECTION_SOFTWARE
            assert [f for f in verdict.findings if f in failed.findings] == list(failed.findings)
            assert len(verdict.findings) == 2
            assert all(c.isprintable() for finding in verdict.findings for c in finding)
        true_one = made.tpm.health(trusting, device.device_id, stream.welcome)
        assert (await stream.health(true_one)).assurance == GATED_TPM


async def test_quotes_made_ahead_for_a_stream_that_is_kept_open_count_for_ten_minutes(trusting: LiveServer):
    """The quotes are true, of a good boot; the stream is kept open elsewhere while the machine boots something else."""
    made, device = await register(trusting, await session_of(trusting), MAKER.tpm())
    await trusting.change_policy(health={"required": True, "max_age_minutes": 5})
    async with PromptStream(device) as stream:
        assert stream.welcome is not None
        ahead = [made.tpm.health(trusting, device.device_id, stream.welcome) for _ in range(4)]
        await stream.health(ahead[0])
        trusting.clock.advance(540)
        assert (await stream.health(ahead[1])).state == common_pb2.HEALTH_STATE_GOOD
        kept = await tpm_row(trusting, device.device_id)
        trusting.clock.advance(60)
        assert (await stream.health(ahead[1])).state == common_pb2.HEALTH_STATE_GOOD  # a copy, and changes nothing
        with refused(Reason.DEADLINE, status=grpc.StatusCode.DEADLINE_EXCEEDED):
            await stream.health(ahead[2])
    assert await tpm_row(trusting, device.device_id) == kept
    trusting.clock.advance(300)
    with refused(Reason.DEVICE_HEALTH):
        await trusting.begin("ada")
    async with PromptStream(device) as again:
        assert again.welcome is not None
        assert (await again.health(ahead[3])).state == common_pb2.HEALTH_STATE_FAILED  # that is another question
        assert (await again.health(made.tpm.health(trusting, device.device_id, again.welcome))).assurance == GATED_TPM
    await trusting.begin("ada")


async def test_bad_news_is_never_too_late(trusting: LiveServer):
    made, device = await register(trusting, await session_of(trusting), MAKER.tpm())
    async with PromptStream(device) as stream:
        assert stream.welcome is not None
        await stream.health(made.tpm.health(trusting, device.device_id, stream.welcome))
        trusting.clock.advance(3600)
        bad = await false_report(trusting, made.tpm, device.device_id, stream.welcome)
        assert (await stream.health(bad)).state == common_pb2.HEALTH_STATE_FAILED
        lost = await stream.health(prompts_pb2.HealthReport(trouble="device_key_lost"))
        assert [finding.partition(":")[0] for finding in lost.findings] == ["device_key_lost"]


async def test_evidence_of_one_purpose_is_none_of_another(trusting: LiveServer):
    """All of it is signed by one attestation key, over challenges that name their purpose."""
    made, device = await register(trusting, await session_of(trusting), MAKER.tpm())
    given = made.completion(with_channel=True)
    stub = await trusting.device_stub(device)
    _, replacement = await replace_key(trusting, made, stub, ec_key(31))
    async with PromptStream(device) as stream:
        assert stream.welcome is not None
        report = made.tpm.health(trusting, device.device_id, stream.welcome)
        said = (report.quote, given.tpm.pin_index, given.tpm.channel_key_certification, replacement.pin_index)
        for quote in said[1:]:
            bad = prompts_pb2.HealthReport(quote=quote, pcr_values=report.pcr_values)
            assert (await stream.health(bad)).state == common_pb2.HEALTH_STATE_FAILED
        assert (await stream.health(report)).assurance == GATED_TPM
    for index in (given.tpm.pin_index, report.quote, given.tpm.channel_key_certification):
        bent = prompts_pb2.CompleteKeyReplacementRequest()
        bent.CopyFrom(replacement)
        bent.pin_index.CopyFrom(index)
        with refused(Reason.TPM_NONCE, Reason.TPM_ATTEST_TYPE):
            await answer(stub.CompleteKeyReplacement(bent, timeout=LIMIT))
    await answer(stub.CompleteKeyReplacement(replacement, timeout=LIMIT))


# Which TPM it is


def _without_leading_zeros() -> tuple[SoftwareTpm, TpmPublic]:
    """An endorsement key whose point has a leading zero, and its public area as older TPMs write it."""
    for number in range(1, 5000):
        key = ec.derive_private_key(number, ec.SECP256R1())
        numbers = key.public_key().public_numbers()
        if numbers.x < 1 << 248 or numbers.y < 1 << 248:
            own = SoftwareTpm.of(key)
            x, y = (n.to_bytes((n.bit_length() + 7) // 8, "big") for n in (numbers.x, numbers.y))
            short = ecc_public(x, y, attributes=0x000300B2, policy=own.public.auth_policy, symmetric=aes_cfb())
            return own, TpmPublic(short)
    raise AssertionError("unreachable")


def _with_its_exponent_spelt_out() -> tuple[SoftwareTpm, TpmPublic]:
    key: rsa.RSAPrivateKey = rsa_key(7)
    own, modulus = SoftwareTpm.of(key), key.public_key().public_numbers().n.to_bytes(256, "big")
    policy = own.public.auth_policy
    area = rsa_public(modulus, exponent=65537, attributes=0x000300B2, policy=policy, symmetric=aes_cfb())
    return own, TpmPublic(area)


def _with_other_attributes() -> tuple[SoftwareTpm, TpmPublic]:
    key = ec_key(41)
    return SoftwareTpm.of(key), TpmPublic(public_area(key, attributes=0x000300F2, symmetric=aes_cfb(256)))


SPELLINGS: dict[str, Callable[[], tuple[SoftwareTpm, TpmPublic]]] = {
    "a point without its leading zeros": _without_leading_zeros,
    "an exponent that is the default": _with_its_exponent_spelt_out,
    "attributes and cipher of another template": _with_other_attributes,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_ps17_an_endorsement_key_is_the_same_however_it_is_written(trusting: LiveServer, spelling: str):
    own, other = SPELLINGS[spelling]()
    assert own.public.name != other.name
    assert own.public.key == other.key
    certificates = [MAKER.certify(own.private_key.public_key())]  # type: ignore[arg-type]
    tpm = replace(MAKER.tpm(), endorsement=own, certificates=certificates)
    await register(trusting, await session_of(trusting), tpm)
    _, session = await stranger_of(trusting)
    elsewhere = await begin(trusting, session, tpm)
    bob = await begin(trusting, await session_of(trusting, "bob"), tpm)
    for made, reason in ((elsewhere, Reason.DEVICE_REGISTERED_ELSEWHERE), (bob, Reason.DEVICE_ACCOUNTS)):
        for area in (other, own.public):
            for shown in (certificates, []):
                with refused(reason, status=PRECONDITION):
                    await made.prepare(made.request(endorsement_key=bytes(area), endorsement_certificates=shown))


async def test_known_limit_a_tpm_with_two_certified_endorsement_keys_passes_for_two(trusting: LiveServer):
    """RSA and ECC, say. Nothing that a TPM signs ties one to the other: attestation keys can be made anew at will."""
    tpm, second = MAKER.tpm(), MAKER.tpm()
    await register(trusting, await session_of(trusting), tpm)
    _, session = await stranger_of(trusting)
    twin = replace(tpm, endorsement=second.endorsement, certificates=second.certificates)
    made, _ = await register(trusting, session, twin)
    row = await tpm_row(trusting, made.device_id)
    assert row is not None
    assert row.proved_assurance.startswith("tpm/hardware_gated/attested")


async def test_ps17_all_at_once_one_tenant_and_one_account_get_the_tpm(trusting: LiveServer):
    tpm = MAKER.tpm()
    sessions = [await session_of(trusting, f"user{n}") for n in range(3)]
    sessions += [(await stranger_of(trusting, f"other{n}"))[1] for n in range(3)]
    made = [await begin(trusting, session, tpm) for session in sessions]
    for one in made:
        await one.prepare()
    answers = [one.completion() for one in made]
    attempts = [lambda n=n: made[n].complete(answers[n]) for n in range(6)]
    results: list[Any] = await at_once(attempts)
    refusals = [result.reason for result in results if isinstance(result, KeyvouchError)]
    assert len(refusals) == 5
    assert set(refusals) <= {Reason.DEVICE_REGISTERED_ELSEWHERE, Reason.DEVICE_ACCOUNTS}
    devices = await trusting.app.store.read(lambda tx: tx.find(DeviceTpm, {}))
    assert len({row.tenant_id for row in devices}) == len(devices) == 1


async def test_ps17_a_device_is_replaced_by_its_own_user_in_its_own_tpm_only(trusting: LiveServer):
    await trusting.change_policy(registration={"accounts_per_device": 2})
    tpm, mine = MAKER.tpm(), await session_of(trusting)
    first, _ = await register(trusting, mine, tpm)
    other, _ = await register(trusting, mine, MAKER.tpm())  # the same user in another TPM
    bob, _ = await register(trusting, await session_of(trusting, "bob"), tpm)  # another user in this one
    again = await begin(trusting, mine, tpm)
    await again.prepare()
    done = await again.complete(again.completion())
    assert done.replaced_device_id == first.device_id
    assert await tpm_row(trusting, first.device_id) is None
    for kept in (other, bob, again):
        assert await tpm_row(trusting, kept.device_id) is not None
    claimed = await begin(trusting, mine, replace(MAKER.tpm(), certificates=[]))  # not its owner: it opens nothing
    request = claimed.request(endorsement_key=bytes(other.tpm.endorsement.public), endorsement_certificates=[])
    with pytest.raises(ValueError, match="TPM_RC"):
        await claimed.prepare(request)
    claimed.secret = bytes(32)
    with refused(Reason.TPM_ACTIVATION):
        await claimed.complete(claimed.self_attested())
    assert await tpm_row(trusting, other.device_id) is not None


# Keys that are not what they are said to be


async def test_the_attestation_key_itself_is_neither_credential_nor_channel_key(trusting: LiveServer):
    session = await session_of(trusting)
    made = await begin(trusting, session, MAKER.tpm())
    await made.prepare()
    ak = bytes(made.tpm.ak_area)
    with refused(Reason.TPM_KEY_ATTRIBUTES):
        await made.complete(made.completion(area=ak, key=made.tpm.ak))
    dressed = made.key_area()  # another public area of the same key, certified by it
    twin = replace(made, key=made.tpm.ak)
    with refused(Reason.ATTESTATION_STATEMENT, Reason.TPM, Reason.TPM_KEY_POLICY, Reason.TPM_KEY_ATTRIBUTES):
        await made.complete(twin.completion(area=dressed, key=made.tpm.ak))
    given = made.completion()
    given.tpm.channel_key = ak
    nonce = challenge(Purpose.CHANNEL_KEY, made.statement)
    given.tpm.channel_key_certification.CopyFrom(made.tpm.certify(ak, nonce))
    with refused(Reason.TPM_NAME):
        await made.complete(given)
    assert (await made.complete(made.completion())).device.assurance == GATED_TPM


async def test_the_credentials_key_is_no_channel_key_of_the_registration(trusting: LiveServer):
    made = await begin(trusting, await session_of(trusting), MAKER.tpm())
    await made.prepare()
    given = made.completion()
    area = made.key_area()
    given.tpm.channel_key = area
    nonce = challenge(Purpose.CHANNEL_KEY, made.statement)
    given.tpm.channel_key_certification.CopyFrom(made.tpm.certify(area, nonce))
    with refused(Reason.CHANNEL_KEY):
        await made.complete(given)
    for attributes in (CHANNEL | 0x800, CHANNEL | 0x10000, CHANNEL | 0x20000, CHANNEL & ~0x40):
        loose = public_area(made.channel_key, attributes=attributes)
        given.tpm.channel_key = loose
        given.tpm.channel_key_certification.CopyFrom(made.tpm.certify(loose, nonce))
        with refused(Reason.TPM_KEY_ATTRIBUTES):
            await made.complete(given)
    assert (await made.complete(made.completion(with_channel=True))).device.tpm.channel_key_in_tpm


async def test_a_server_that_pins_the_authority_of_another_one_believes_no_pin(
    server_template: Path, tmp_path: Path, trusting: LiveServer
):
    """The certificate says that the attestation key was activated, and that is all it is taken for."""
    made, _ = await register(trusting, await session_of(trusting), MAKER.tpm())
    root = tmp_path / "theirs.pem"
    root.write_bytes(trusting.app.world.keys.attestation_root.public_bytes(serialization.Encoding.PEM))
    folder = tmp_path / "second"
    folder.mkdir()
    roots = PinnedRoots("theirs", root, frozenset({"tpm"}), *_most(), frozenset())
    async with live_server(server_template, folder, trust=TrustSettings(pinned=(roots,))) as second:
        plain = await registering.begin(second, await session_of(second))
        client_data, attestation = tpm_credential(
            plain.begun.statement,
            made.tpm,
            rp_id=plain.begun.rp_id,
            key=made.key,
            area=made.key_area(),
            certificate=made.certificate,
        )
        given = pb.CompleteRegistrationRequest()
        given.CopyFrom(plain.answer)
        given.client_data_json, given.attestation_object = client_data, attestation
        done = await registering.complete(second, plain, given)
        assert (done.device.assurance.verification, done.device.assurance.anchor) == (
            common_pb2.VERIFICATION_SOFTWARE_GATED,
            "theirs",
        )
        assert not done.device.HasField("tpm")


def _most() -> tuple[Any, Any]:
    """The most that an administrator can say of an anchor."""
    from keyvouch.assurance import Protection, Verification

    return Protection.TPM, Verification.HARDWARE_GATED


async def test_a_transcript_is_of_one_server(server_template: Path, tmp_path: Path, trusting: LiveServer):
    """The same TPM, the same keys of the server, another store: what was proved there is nothing here."""
    tpm = MAKER.tpm()
    made = await begin(trusting, await session_of(trusting), tpm)
    await made.prepare()
    folder = tmp_path / "second"
    folder.mkdir()
    async with live_server(server_template, folder, tpm=MAKER.settings(folder)) as second:
        there = await begin(second, await session_of(second), tpm)
        await there.prepare()
        with refused(Reason.CHALLENGE):
            await there.complete(made.completion())
        with refused(Reason.REGISTRATION_UNKNOWN):
            await replace(made, live=second).complete(made.completion())
        await there.complete(there.completion())
    await made.complete(made.completion())


async def test_a_tpm_that_nobody_vouches_for_is_not_said_to_count_pins(trusting: LiveServer):
    """It is a program that opens its own challenge; no index was ever certified."""
    made = await begin(trusting, await session_of(trusting), MAKER.tpm())
    await made.prepare(made.request(endorsement_certificates=[]))
    given = made.self_attested()
    given.tpm.pin_index.CopyFrom(made.completion().tpm.pin_index)
    given.tpm.channel_key = public_area(made.channel_key, attributes=CHANNEL)
    nonce = challenge(Purpose.CHANNEL_KEY, made.statement)
    given.tpm.channel_key_certification.CopyFrom(made.tpm.certify(given.tpm.channel_key, nonce))
    told = (await made.complete(given)).device
    assert told.assurance.protection == common_pb2.PROTECTION_SOFTWARE
    assert told.assurance.verification == common_pb2.VERIFICATION_SOFTWARE_GATED
    seen = (told.tpm.pin_limit, told.tpm.channel_key_in_tpm, told.tpm.endorsement_anchor, told.tpm.firmware)
    assert seen == (0, False, "", "")
    proved = await begin(trusting, await session_of(trusting, "bob"), MAKER.tpm())
    await proved.prepare()
    assert (await proved.complete(proved.completion())).device.tpm.pin_limit == 3


# Policy: P19


async def test_a_pin_has_no_more_tries_than_policy_allows_at_any_step_P19(trusting: LiveServer):
    session = await session_of(trusting)
    await trusting.change_policy(registration={"pin_tries": 10})
    shown, late = await begin(trusting, session, MAKER.tpm()), await begin(trusting, session, MAKER.tpm())
    shown.contents = late.contents = struct.pack(">II", 0, 10)
    await shown.prepare()
    await trusting.change_policy(registration={"pin_tries": 3})
    with refused(Reason.POLICY_CHANGED) as refusal:
        await late.prepare()
    assert refusal.error.metadata["limit"] == "3"
    with refused(Reason.POLICY_CHANGED):
        await shown.complete(shown.completion())
    assert await trusting.app.store.read(lambda tx: tx.count(DeviceTpm, {})) == 0
    for action, made in (("registration.prepare", late), ("registration.complete", shown)):
        records = await trusting.audit(action)
        assert (records[-1].subject, records[-1].outcome) == (made.device_id, Reason.POLICY_CHANGED.value)
    await trusting.change_policy(registration={"pin_tries": 10})
    await late.prepare()
    for made in (shown, late):
        assert (await made.complete(made.completion())).device.tpm.pin_limit == 10


# What the server keeps


async def test_whoever_has_all_files_and_keys_cannot_sign_for_a_ceremony_that_is_over(trusting: LiveServer):
    """A second first write would give the PIN index to the TPM's owner: the ceremony key must be gone for good."""
    made = await begin(trusting, await session_of(trusting), MAKER.tpm())
    (row,) = await trusting.app.store.read(lambda tx: tx.find(Registration, {"device_id": made.device_id}))
    begun: Any = cbor.decode(row.tpm, max_depth=2)
    sealed, token = begun[3], made.begun.registration_token
    before = _files(trusting.data)
    assert sealed in before  # it is in the file or its log, and may be there for long
    await made.prepare()
    await made.complete(made.completion())
    kept = _files(trusting.data)
    for secret in (token.encode(), token.removeprefix("kve_").encode(), made.secret):
        assert secret not in kept
        assert secret not in before
    keys = trusting.app.world.keys
    for context in (row.id.encode(), cbor.encode([row.id, ""]), cbor.encode([row.id, row.token_hash])):
        with pytest.raises(InvalidTag):
            AESGCM(keys.mac("tpm-ceremony-key", context)).decrypt(bytes(12), sealed, begun[1])
    opened = AESGCM(keys.mac("tpm-ceremony-key", cbor.encode([row.id, token])))
    private = serialization.load_der_private_key(opened.decrypt(bytes(12), sealed, begun[1]), password=None)
    assert private.public_key() == TpmPublic(begun[1]).key  # the control: with the device's token it would


def _files(data: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(data.glob("keyvouch.db*")))


async def test_no_log_and_no_audit_record_tells_a_secret(trusting: LiveServer, caplog: pytest.LogCaptureFixture):
    made = await begin(trusting, await session_of(trusting), MAKER.tpm())
    with refused(Reason.TPM_NV_INDEX):
        await made.prepare(made.request(pin_index=bytes(made.request().pin_index[:-2]) + b"\0\x09"))
    await made.prepare()
    bad = made.completion()
    bad.tpm.activation = bytes(32)
    with refused(Reason.TPM_ACTIVATION):
        await made.complete(bad)
    given = made.completion()
    await made.complete(given)
    told = caplog.text + "".join(record.details + record.outcome for record in await trusting.audit())
    for secret in (made.secret, given.tpm.activation, made.certificate, made.begun.registration_token.encode()):
        for shape in (secret.hex(), repr(secret), secret.decode("latin-1")):
            assert shape not in told


# A trace of everything


async def test_every_refused_key_replacement_leaves_a_trace(trusting: LiveServer):
    made, device = await register(trusting, await session_of(trusting), MAKER.tpm())
    stub = await trusting.device_stub(device)
    begun, given = await replace_key(trusting, made, stub, ec_key(32))
    trusting.clock.advance(601)
    with refused(Reason.REGISTRATION_EXPIRED):
        await answer(stub.CompleteKeyReplacement(given, timeout=LIMIT))
    _, good = await replace_key(trusting, made, stub, ec_key(32))
    await answer(stub.CompleteKeyReplacement(good, timeout=LIMIT))
    good.pin_index.signature += b"\0"
    with refused(Reason.REGISTRATION_CONSUMED):
        await answer(stub.CompleteKeyReplacement(good, timeout=LIMIT))
    await trusting.change_policy(approval={"enabled": False})
    with refused(Reason.METHOD_DISABLED):
        await replace_key(trusting, made, stub, ec_key(33))
    assert [r.outcome for r in await trusting.audit("device.key.replace")] == [
        Reason.REGISTRATION_EXPIRED.value,
        "ok",
        Reason.REGISTRATION_CONSUMED.value,
    ]
    assert [r.outcome for r in await trusting.audit("device.key.begin")] == ["ok", "ok", Reason.METHOD_DISABLED.value]
    assert begun.registration_id


async def test_another_answer_to_a_registration_that_is_complete_leaves_a_trace(trusting: LiveServer):
    made, _ = await register(trusting, await session_of(trusting), MAKER.tpm())
    with refused(Reason.REGISTRATION_CONSUMED):
        await made.complete(made.completion())
    assert [r.outcome for r in await trusting.audit("registration.complete")][-1] == "registration_consumed"


async def test_a_device_without_a_transcript_that_begins_a_replacement_leaves_a_trace(trusting: LiveServer):
    plain = await trusting.person("bob")
    stub = await trusting.device_stub(plain.device)
    with refused(Reason.TPM_NOT_PREPARED):
        await answer(stub.BeginKeyReplacement(prompts_pb2.BeginKeyReplacementRequest(), timeout=LIMIT))
    (record,) = await trusting.audit("device.key.begin")
    assert (record.subject, record.outcome) == (plain.device.device_id, Reason.TPM_NOT_PREPARED.value)


# Races


async def test_a_new_key_races_with_all_that_may_happen_to_its_device(trusting: LiveServer):
    """Whoever is first, the records agree (`check` at the end), and a device that is gone has no key."""
    session = await session_of(trusting)
    for turn in range(6):
        made, device = await register(trusting, session, MAKER.tpm())
        stub = await trusting.device_stub(device)
        _, given = await replace_key(trusting, made, stub, ec.generate_private_key(ec.SECP256R1()))
        again = await begin(trusting, session, made.tpm)
        await again.prepare()
        async with PromptStream(device) as stream:
            assert stream.welcome is not None
            rival = await _rival(trusting, turn, device, again, stub, stream)
            replaced: Any = lambda s=stub, g=given: answer(s.CompleteKeyReplacement(g, timeout=LIMIT))  # noqa: E731
            pair = [replaced, rival] if turn % 2 else [rival, replaced]
            await at_once(pair)
        row = await tpm_row(trusting, device.device_id)
        exists = await trusting.app.store.read(lambda tx, d=device: tx.get(Device, id=d.device_id)) is not None
        assert exists is (row is not None)
        if row is not None:
            assert row.health == "failed"
            view = await answer(stub.GetDevice(prompts_pb2.GetDeviceRequest(), timeout=LIMIT))
            assert view.device.assurance.protection == common_pb2.PROTECTION_SOFTWARE


async def _rival(
    live: LiveServer, turn: int, device: BenchDevice, again: TpmRegistration, stub: Any, stream: PromptStream
) -> Callable[[], Any]:
    """What happens at the same moment: removal, registering again, or a failure of health."""
    if turn // 2 == 0:
        return lambda: answer(stub.Unregister(prompts_pb2.UnregisterRequest(), timeout=LIMIT))
    if turn // 2 == 1:
        given = again.completion()
        return lambda: again.complete(given)
    return lambda: stream.health(prompts_pb2.HealthReport(trouble="tpm_cleared"))


async def test_many_requests_for_one_registration_use_the_ceremony_key_once(trusting: LiveServer):
    made = await begin(trusting, await session_of(trusting), MAKER.tpm())
    requests = [made.request() for _ in range(8)]
    metadata = made.metadata
    calls = [
        lambda r=request: answer(trusting.enrolment.PrepareTpm(r, metadata=metadata, timeout=LIMIT))
        for request in requests
    ]
    results: list[Any] = await at_once(calls)
    granted = [result for result in results if not isinstance(result, KeyvouchError)]
    assert len(granted) == 1
    assert {r.reason for r in results if isinstance(r, KeyvouchError)} == {Reason.TPM_IDENTITY}


# Other tenants: P17


async def test_an_administrator_of_another_tenant_reaches_no_tpm_here_P17(trusting: LiveServer):
    made, device = await register(trusting, await session_of(trusting), MAKER.tpm())
    async with PromptStream(device) as stream:
        assert stream.welcome is not None
        await stream.health(made.tpm.health(trusting, device.device_id, stream.welcome))
        made.tpm.pcrs[7] = bytes(32)
        await stream.health(made.tpm.health(trusting, device.device_id, stream.welcome))
    kept = await tpm_row(trusting, device.device_id)
    assert kept is not None
    stranger, _ = await stranger_of(trusting)
    told = []
    for device_id in (device.device_id, "dev_" + "a" * 26):
        request = admin_pb.AcceptDeviceHealthRequest(device_id=device_id, reported_at=kept.reported_at)
        with refused(Reason.DEVICE_UNKNOWN, status=grpc.StatusCode.NOT_FOUND) as refusal:
            await trusting.administer("AcceptDeviceHealth", request, stranger)
        told.append(str(refusal.error))
        with refused(Reason.DEVICE_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
            removal = admin_pb.AdminRemoveDeviceRequest(device_id=device_id)
            await trusting.administer("AdminRemoveDevice", removal, stranger)
    assert told[0] == told[1]
    listed = await trusting.administer("ListDevices", admin_pb.ListDevicesRequest(), stranger)
    assert device.device_id not in {one.device_id for one in listed.devices}
    assert await tpm_row(trusting, device.device_id) == kept


# Work that is asked of the server


async def test_ceremony_keys_of_rsa_are_drawn_one_at_a_time(trusting: LiveServer, monkeypatch: pytest.MonkeyPatch):
    """Whoever has a session can ask for many of them; the other cores stay free for everybody else."""
    session = await session_of(trusting)
    at_work, most = 0, 0

    def watched(verifies: tuple[int, ...]) -> Any:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        key = draw_ceremony_key(verifies)
        at_work -= 1
        return key

    monkeypatch.setattr("keyvouch_server.use_cases.registration.draw_ceremony_key", watched)
    tpm = MAKER.tpm()
    made: list[Any] = await at_once([lambda: begin(trusting, session, tpm, verifies=(-257,)) for _ in range(6)])
    assert most == 1
    assert len({one.begun.tpm.ceremony_key for one in made}) == 6
