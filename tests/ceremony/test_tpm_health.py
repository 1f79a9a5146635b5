"""Health of devices with a TPM: what they report on connecting, what becomes of their keys, who accepts a change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from keyvouch.errors import Reason
from keyvouch.ids import DeviceId
from keyvouch.statement import Purpose, challenge, health_statement
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, prompts_pb2
from keyvouch_bench.device import BenchDevice, PromptStream
from keyvouch_server.domain.model import Credential, DeviceTpm
from keyvouch_server.domain.oversight_model import AuditRecord
from support.event_logs import DEBUGGER, EFI_ACTION, ERROR, SEPARATOR, Made, agile, done, quote_of, secure_boot
from support.live_server import ADMINISTRATOR, LiveServer, Person, live_server, refused
from support.tpm_device import FIRMWARE, ForgedTpm, Maker, begin, register
from support.tpm_forge import ec_key

MAKER = Maker.new()
GOOD, DRIFTED, FAILED = common_pb2.HEALTH_STATE_GOOD, common_pb2.HEALTH_STATE_DRIFTED, common_pb2.HEALTH_STATE_FAILED
TPM, SOFTWARE = common_pb2.PROTECTION_TPM, common_pb2.PROTECTION_SOFTWARE
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@dataclass
class Reporting:
    """A device with a TPM whose prompt stream is open."""

    live: LiveServer
    tpm: ForgedTpm
    device: BenchDevice
    person: Person

    @property
    def welcome(self) -> prompts_pb2.Welcome:
        assert self.person.stream.welcome is not None
        return self.person.stream.welcome

    async def report(self, **changes: Any) -> prompts_pb2.HealthVerdict:
        """A true report."""
        return await self.send(self.tpm.health(self.live, self.device.device_id, self.welcome, **changes))

    async def send(self, report: prompts_pb2.HealthReport) -> prompts_pb2.HealthVerdict:
        return await self.person.stream.health(report)

    async def row(self) -> DeviceTpm:
        found = await self.live.app.store.read(lambda tx: tx.get(DeviceTpm, device_id=self.device.device_id))
        assert found is not None
        return found

    async def credential(self) -> Credential:
        (found,) = await self.live.app.store.read(lambda tx: tx.find(Credential, {"device_id": self.device.device_id}))
        return found

    async def audited(self, action: str = "device.health") -> list[AuditRecord]:
        return await self.live.audit(action)


@pytest.fixture
async def ada(server_template: Path, tmp_path: Path) -> AsyncIterator[Reporting]:
    """Ada's device, in a server that believes the maker of its TPM."""
    async with live_server(server_template, tmp_path, tpm=MAKER.settings(tmp_path)) as live:
        yield await enrolled(live, "ada")


async def enrolled(live: LiveServer, username: str, tpm: ForgedTpm | None = None) -> Reporting:
    chip = tpm or MAKER.tpm()
    await live.create_user(username)
    session = await live.pass_session(username, await live.issue_pass(username))
    _, device = await register(live, session, chip)
    return Reporting(live, chip, device, await live.connect(username, device))


def codes(verdict: prompts_pb2.HealthVerdict) -> list[str]:
    return [finding.partition(":")[0] for finding in verdict.findings]


async def require(live: LiveServer, **changes: Any) -> None:
    await live.change_policy(health={"required": True, **changes})


# What is asked


async def test_a_welcome_asks_a_device_with_a_tpm_and_no_other(ada: Reporting):
    assert len(ada.welcome.health_nonce) == 32
    assert list(ada.welcome.health_pcrs) == [0, 2, 4, 7]
    async with PromptStream(ada.device) as second:
        assert second.welcome is not None
        assert second.welcome.health_nonce != ada.welcome.health_nonce
    plain = await ada.live.person("bob")
    assert plain.stream.welcome is not None
    assert (plain.stream.welcome.health_nonce, list(plain.stream.welcome.health_pcrs)) == (b"", [])
    with refused(Reason.FIELD_INVALID):
        await plain.stream.health(prompts_pb2.HealthReport(trouble="tpm_busy"))


async def test_a_tpm_nobody_vouches_for_is_not_asked(ada: Reporting):
    await ada.live.create_user("eve")
    session = await ada.live.pass_session("eve", await ada.live.issue_pass("eve"))
    made = await begin(ada.live, session, MAKER.tpm())
    await made.prepare(made.request(endorsement_certificates=[]))
    device = made.device(await made.complete(made.self_attested()))
    async with PromptStream(device) as stream:
        assert stream.welcome is not None
        assert stream.welcome.health_nonce == b""


async def test_policy_chooses_the_pcrs(ada: Reporting):
    policy = (await ada.live.administer("GetPolicy", admin_pb.GetPolicyRequest())).policy
    for bad in ([], [16], [23], [24], [0, 0]):
        policy.health.pcrs[:] = bad
        with refused(Reason.POLICY_INVALID):
            await ada.live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy))
    policy.health.pcrs[:] = [7, 1]
    await ada.live.administer("UpdatePolicy", admin_pb.UpdatePolicyRequest(policy=policy))
    assert list(ada.welcome.health_pcrs) == [0, 2, 4, 7]
    assert (await ada.report()).state == GOOD  # by the stream's own question
    async with PromptStream(ada.device) as second:
        assert second.welcome is not None
        assert list(second.welcome.health_pcrs) == [1, 7]
        report = ada.tpm.health(ada.live, ada.device.device_id, second.welcome)
        assert (await second.health(report)).state == GOOD


# Good


async def test_a_good_report_is_kept_and_audited_once(ada: Reporting):
    verdict = await ada.report()
    assert (verdict.state, list(verdict.findings), verdict.assurance.protection) == (GOOD, [], TPM)
    row = await ada.row()
    assert (row.reported_at, row.clock, row.reset_count) == (ada.live.clock.now(), str(ada.tpm.clock), 5)
    assert json.loads(row.pcr_values) == {str(pcr): ada.tpm.pcrs[pcr].hex() for pcr in (0, 2, 4, 7)}
    ada.live.clock.advance(60)
    assert (await ada.report()).state == GOOD
    assert (await ada.row()).reported_at == ada.live.clock.now()
    (record,) = await ada.audited()
    assert (record.outcome, json.loads(record.details)) == ("ok", {"state": "good", "findings": ""})


async def test_resets_and_restarts_are_no_drift(ada: Reporting):
    for resets, restarts in ((5, 3), (6, 0), (7, 2)):
        ada.tpm.resets, ada.tpm.restarts = resets, restarts
        assert (await ada.report()).state == GOOD
    ada.tpm.resets, ada.tpm.restarts, ada.tpm.safe, ada.tpm.clock = 8, 0, 0, 50  # a power cut: the clock may repeat
    assert (await ada.report()).state == GOOD
    device = (await ada.live.administer("ListDevices", admin_pb.ListDevicesRequest(username="ada"))).devices[0]
    assert (device.tpm.reset_count, device.tpm.restart_count, device.tpm.clock) == (8, 0, 60)
    assert device.tpm.health == GOOD


async def test_a_copy_of_a_report_changes_nothing_and_gets_the_same_verdict(ada: Reporting):
    report = ada.tpm.health(ada.live, ada.device.device_id, ada.welcome)
    first = await ada.send(report)
    before = await ada.row()
    ada.live.clock.advance(3600)
    assert await ada.send(report) == first
    assert await ada.row() == before


# Drifted


DRIFTS: dict[str, tuple[Callable[[ForgedTpm], object], list[str]]] = {
    "another firmware": (lambda tpm: setattr(tpm, "firmware", 0x0007_0002_0005_0000), ["firmware_changed"]),
    "an older, flawed firmware": (
        lambda tpm: setattr(tpm, "firmware", 0x0007_0002_0003_0000),
        ["firmware_changed", "firmware_flaw", "firmware_flaw"],
    ),
    "other measurements": (lambda tpm: tpm.pcrs.update({4: bytes(32), 7: bytes(32)}), ["pcr_changed"]),
    "both": (
        lambda tpm: (setattr(tpm, "firmware", 0x0007_0002_0005_0000), tpm.pcrs.update({0: b"\x01" * 32})),
        ["firmware_changed", "pcr_changed"],
    ),
}


@pytest.mark.parametrize("drift", DRIFTS)
async def test_a_drift_stays_until_an_administrator_accepts_it(ada: Reporting, drift: str):
    change, expected = DRIFTS[drift]
    await ada.report()
    change(ada.tpm)
    for _ in range(2):
        verdict = await ada.report()
        assert (verdict.state, codes(verdict), verdict.assurance.protection) == (DRIFTED, expected, TPM)
    reported_at = (await ada.row()).reported_at
    ada.live.clock.advance(60)
    told = await accept(ada, reported_at)
    assert (told.tpm.health, list(told.tpm.findings)) == (GOOD, [])
    verdict = await ada.report()
    assert (verdict.state, list(verdict.findings)) == (GOOD, [])
    (record,) = await ada.audited("device.health.accept")
    assert (record.outcome, record.actor[:4], json.loads(record.details)) == (
        "ok",
        "usr_",
        {"findings": ", ".join(expected)},
    )
    assert len(await ada.audited()) == 2  # good, drifted: not one for each report


async def accept(ada: Reporting, reported_at: int) -> common_pb2.Device:
    request = admin_pb.AcceptDeviceHealthRequest(device_id=ada.device.device_id, reported_at=reported_at)
    device: common_pb2.Device = (await ada.live.administer("AcceptDeviceHealth", request)).device
    return device


async def test_only_what_was_looked_at_is_accepted_and_only_a_drift(ada: Reporting):
    await ada.report()
    with refused(Reason.DEVICE_HEALTH, status=PRECONDITION):
        await accept(ada, (await ada.row()).reported_at)  # good already
    ada.tpm.pcrs[7] = bytes(32)
    await ada.report()
    seen = (await ada.row()).reported_at
    ada.live.clock.advance(5)
    ada.tpm.firmware += 1
    await ada.report()
    with refused(Reason.DEVICE_HEALTH, status=PRECONDITION):
        await accept(ada, seen)
    await ada.send(prompts_pb2.HealthReport(trouble="tpm_busy"))
    with refused(Reason.DEVICE_HEALTH, status=PRECONDITION):
        await accept(ada, (await ada.row()).reported_at)  # that is no word of the TPM
    outcomes = [r.outcome for r in await ada.audited("device.health.accept")]
    assert outcomes == [Reason.DEVICE_HEALTH.value] * 3
    await ada.report()
    assert (await accept(ada, (await ada.row()).reported_at)).tpm.health == GOOD


async def test_going_back_to_the_baseline_is_good_again(ada: Reporting):
    await ada.report()
    ada.tpm.pcrs[7] = bytes(32)
    assert (await ada.report()).state == DRIFTED
    ada.tpm.pcrs[7] = bytes([7]) * 32
    assert (await ada.report()).state == GOOD


@pytest.mark.parametrize("trouble", ["tpm_busy", "tpm_permission", "tpm_lockout", "no such reason", "x" * 5000])
async def test_trouble_is_a_drift_and_renews_nothing(ada: Reporting, trouble: str):
    await ada.report()
    before = await ada.row()
    ada.live.clock.advance(60)
    verdict = await ada.send(prompts_pb2.HealthReport(trouble=trouble))
    known = trouble if trouble.startswith("tpm_") else "internal"
    assert (verdict.state, codes(verdict), verdict.assurance.protection) == (DRIFTED, [known], TPM)
    after = await ada.row()
    assert replace(after, health=before.health, findings=before.findings) == before
    assert (await ada.report()).state == GOOD


# The boot log


BOOT_DRIFTS: dict[str, tuple[list[Made], list[str]]] = {
    "without Secure Boot": ([secure_boot(b"\x00")], ["secure_boot_off"]),
    "with a debugger": ([secure_boot(), Made(7, EFI_ACTION, DEBUGGER)], ["debugger_allowed"]),
    "with an error": ([secure_boot(), Made(2, SEPARATOR, ERROR)], ["platform_error"]),
}


def booted(ada: Reporting, events: list[Made]) -> prompts_pb2.HealthReport:
    """A report with the log of these events, which the TPM has measured."""
    closed = {event.register for event in events if event.type == SEPARATOR}
    measured = [*events, *(done(pcr) for pcr in range(8) if pcr not in closed)]
    ada.tpm.pcrs.update(quote_of(measured).pcr_values)
    report = ada.tpm.health(ada.live, ada.device.device_id, ada.welcome)
    report.event_log = agile(measured)
    return report


async def test_a_good_boot_has_no_findings(ada: Reporting):
    assert (await ada.send(booted(ada, [secure_boot()]))).state == GOOD


@pytest.mark.parametrize("how", BOOT_DRIFTS)
async def test_a_boot_that_is_not_as_it_should_be_is_a_drift_that_can_be_accepted(ada: Reporting, how: str):
    events, expected = BOOT_DRIFTS[how]
    verdict = await ada.send(booted(ada, events))
    assert (verdict.state, codes(verdict)) == (DRIFTED, expected)
    await accept(ada, (await ada.row()).reported_at)
    assert (await ada.send(booted(ada, events))).state == GOOD


async def test_a_log_that_lies_is_a_drift_and_costs_its_own_credit_alone(ada: Reporting):
    report = booted(ada, [secure_boot()])
    report.event_log = agile([secure_boot(b"\x00"), *(done(pcr) for pcr in range(8))])
    verdict = await ada.send(report)
    assert (verdict.state, codes(verdict), verdict.assurance.protection) == (DRIFTED, ["event_log"], TPM)
    assert (await ada.row()).reported_at == ada.live.clock.now()
    large = ada.tpm.health(ada.live, ada.device.device_id, ada.welcome)
    large.event_log = b"\xff" * (192 * 1024)  # more than the public listener takes
    assert codes(await ada.send(large)) == ["event_log"]


# Failed


async def other_nonce(ada: Reporting) -> prompts_pb2.HealthReport:
    welcome = prompts_pb2.Welcome(health_nonce=bytes(32), health_pcrs=ada.welcome.health_pcrs)
    return ada.tpm.health(ada.live, ada.device.device_id, welcome)


async def other_device(ada: Reporting) -> prompts_pb2.HealthReport:
    return ada.tpm.health(ada.live, "dev_other", ada.welcome)


async def other_key(ada: Reporting) -> prompts_pb2.HealthReport:
    return replace(ada.tpm, ak=ec_key(9)).health(ada.live, ada.device.device_id, ada.welcome)


async def other_values(ada: Reporting) -> prompts_pb2.HealthReport:
    report = ada.tpm.health(ada.live, ada.device.device_id, ada.welcome)
    report.pcr_values[7] = bytes(32)
    return report


async def fewer_pcrs(ada: Reporting) -> prompts_pb2.HealthReport:
    welcome = prompts_pb2.Welcome(health_nonce=ada.welcome.health_nonce, health_pcrs=[0])
    return ada.tpm.health(ada.live, ada.device.device_id, welcome)


async def other_hierarchy(ada: Reporting) -> prompts_pb2.HealthReport:
    owner = replace(ada.tpm, hierarchy=b"\x40\x00\x00\x01")
    return owner.health(ada.live, ada.device.device_id, ada.welcome)


async def another_attestation(ada: Reporting) -> prompts_pb2.HealthReport:
    server_id, device_id = ada.live.app.world.facts.server_id, DeviceId(ada.device.device_id)
    statement = health_statement(server_id, device_id, ada.welcome.health_nonce)
    report = ada.tpm.health(ada.live, ada.device.device_id, ada.welcome)
    report.quote.CopyFrom(ada.tpm.certify(b"x", challenge(Purpose.HEALTH, statement)))
    return report


async def nothing(ada: Reporting) -> prompts_pb2.HealthReport:
    return prompts_pb2.HealthReport()


FALSE = {
    other_nonce: Reason.TPM_NONCE,
    other_device: Reason.TPM_NONCE,
    other_key: Reason.SIGNATURE,
    other_values: Reason.TPM_PCR_DIGEST,
    fewer_pcrs: Reason.TPM_PCR_SELECTION,
    other_hierarchy: Reason.TPM_AK_ATTRIBUTES,
    another_attestation: Reason.TPM_ATTEST_TYPE,
    nothing: Reason.TPM_PARSE,
}


@pytest.mark.parametrize("forge", FALSE)
async def test_a_false_report_fails_the_device_until_a_true_one(ada: Reporting, forge: Any):
    await ada.report()
    before = await ada.row()
    ada.live.clock.advance(60)
    verdict = await ada.send(await forge(ada))
    assert (verdict.state, codes(verdict)) == (FAILED, [FALSE[forge].value])
    assert verdict.assurance.protection == SOFTWARE
    assert (await ada.credential()).assurance == "software/software_gated/unattested"
    after = await ada.row()
    assert replace(after, health=before.health, findings=before.findings) == before
    assert (await ada.audited())[-1].outcome == FALSE[forge].value
    verdict = await ada.report()
    assert (verdict.state, verdict.assurance.protection) == (GOOD, TPM)
    assert (await ada.credential()).assurance == before.proved_assurance


@pytest.mark.parametrize(
    "back",
    [
        {"clock": 10},
        {"resets": 4},
        {"resets": 5, "restarts": 1},
        {"clock": 10, "safe": 0},
        {"clock": 10, "resets": 0, "restarts": 0},
    ],
)
async def test_a_tpm_that_is_behind_what_it_said_before_was_cleared_or_copied(ada: Reporting, back: dict[str, int]):
    ada.tpm.restarts = 2
    await ada.report()
    kept = replace(ada.tpm)
    for name, value in back.items():
        setattr(ada.tpm, name, value)
    verdict = await ada.report()
    assert (verdict.state, codes(verdict), verdict.assurance.protection) == (FAILED, ["state_rolled_back"], SOFTWARE)
    assert (await ada.report()).state == FAILED  # and it stays so while it is behind
    ada.tpm.clock, ada.tpm.resets, ada.tpm.restarts = kept.clock + 100, kept.resets, kept.restarts
    ada.tpm.safe = 1
    assert (await ada.report()).state == GOOD


async def test_a_disqualifying_firmware_fails_the_device(ada: Reporting):
    await ada.report()
    ada.tpm.firmware = 0x0001_0003_0001_0000
    verdict = await ada.report()
    assert (verdict.state, codes(verdict), verdict.assurance.protection) == (FAILED, ["firmware_flaw"], SOFTWARE)
    assert "CVE-2023-1017" in verdict.findings[0]
    with refused(Reason.DEVICE_HEALTH):
        await accept(ada, (await ada.row()).reported_at)
    ada.tpm.firmware = FIRMWARE
    assert (await ada.report()).state == GOOD


@pytest.mark.parametrize("trouble", ["tpm_cleared", "device_key_lost"])
async def test_a_device_that_lost_its_key_has_failed(ada: Reporting, trouble: str):
    verdict = await ada.send(prompts_pb2.HealthReport(trouble=trouble))
    assert (verdict.state, codes(verdict), verdict.assurance.protection) == (FAILED, [trouble], SOFTWARE)


async def test_tpm9_a_step_of_the_verification_that_fails_fails_the_device(
    ada: Reporting, monkeypatch: pytest.MonkeyPatch
):
    steps = ("health_statement", "verify_health", "read_transcript")

    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError

    for step in steps:
        async with PromptStream(ada.device) as stream:
            assert stream.welcome is not None
            good = ada.tpm.health(ada.live, ada.device.device_id, stream.welcome)
            assert (await stream.health(good)).state == GOOD
            report = ada.tpm.health(ada.live, ada.device.device_id, stream.welcome)
            with monkeypatch.context() as failing, refused(Reason.INTERNAL):
                failing.setattr(f"keyvouch_server.use_cases.health.{step}", broken)
                await stream.health(report)
        assert (await ada.credential()).assurance == "software/software_gated/unattested"
        assert (await ada.audited())[-1].outcome == "internal"


# Policy: KI1


async def test_ki1_health_that_policy_requires_is_asked_before_anybody_is_prompted(ada: Reporting):
    await require(ada.live)
    with refused(Reason.DEVICE_HEALTH, status=PRECONDITION):
        await ada.live.begin("ada")  # it has not reported
    await ada.report()
    await ada.live.signed_in(ada.person)
    ada.tpm.pcrs[7] = bytes(32)
    await ada.report()
    await ada.live.signed_in(ada.person)  # a drift is for an administrator to look at
    await ada.send(await other_nonce(ada))
    with refused(Reason.DEVICE_HEALTH):
        await ada.live.begin("ada")
    await ada.report()
    await ada.live.signed_in(ada.person)
    outcomes = [r.outcome for r in await ada.live.audit("sign_in.begin") if r.outcome not in ("ok", "no_method")]
    assert outcomes == [Reason.DEVICE_HEALTH.value] * 2


async def test_ki1_an_old_report_counts_for_nothing(ada: Reporting):
    await require(ada.live, max_age_minutes=5)
    await ada.report()
    ada.live.clock.advance(299)
    await ada.live.signed_in(ada.person)
    ada.live.clock.advance(1)
    with refused(Reason.DEVICE_HEALTH):
        await ada.live.begin("ada")
    await ada.send(prompts_pb2.HealthReport(trouble="tpm_busy"))
    with refused(Reason.DEVICE_HEALTH):
        await ada.live.begin("ada")
    await ada.report()
    await ada.live.signed_in(ada.person)


async def test_ki1_a_device_in_bad_health_is_passed_over_where_there_is_another(ada: Reporting):
    await require(ada.live)
    session = await ada.live.pass_session("ada", await ada.live.issue_pass_again("ada"))
    other = await BenchDevice.enrol(ada.live.connection, metadata=session)
    opened = await ada.live.begin("ada")
    async with PromptStream(other) as stream:
        outcome = await stream.send(other.approve(await stream.prompt(), opened.number))
    assert outcome.accepted
    assert (await opened.redeem()).session.device_id == other.device_id
    withheld = [e async for e in _messages(ada.person.stream)]
    assert "prompt" not in withheld


async def _messages(stream: PromptStream) -> AsyncIterator[str]:
    """What has come in on a stream until it is asked for a verdict."""
    try:
        async with asyncio.timeout(0.2):
            while True:
                yield str((await stream.read()).WhichOneof("event"))
    except TimeoutError:
        return


async def test_ki1_health_is_asked_again_when_an_approval_is_used(ada: Reporting):
    await require(ada.live)
    await ada.report()
    opened = await ada.live.approved(ada.person)
    await ada.send(await other_nonce(ada))
    with refused(Reason.DEVICE_HEALTH, status=PRECONDITION):
        await opened.redeem()
    await ada.report()
    assert (await opened.redeem()).session.assurance.protection == TPM


async def test_h8_an_approval_is_worth_what_its_device_is_worth_when_it_is_used(ada: Reporting):
    await ada.report()
    opened = await ada.live.approved(ada.person)
    await ada.send(await other_nonce(ada))
    assert (await opened.redeem()).session.assurance.protection == SOFTWARE
    await ada.report()
    assert (await ada.live.signed_in(ada.person)).session.assurance.protection == TPM


async def test_h8_a_policy_for_hardware_refuses_a_device_that_failed(ada: Reporting):
    await ada.report()
    await ada.live.admin()
    required = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_ATTESTED,
    )
    await ada.live.change_policy(approval={"required_assurance": required})
    await ada.live.signed_in(ada.person)
    await ada.send(prompts_pb2.HealthReport(trouble="tpm_cleared"))
    with refused(Reason.ASSURANCE_TOO_LOW):
        await ada.live.begin("ada")


async def test_health_is_not_asked_of_keys_without_a_tpm(ada: Reporting):
    await require(ada.live)
    bob = await ada.live.person("bob")
    await ada.live.signed_in(bob)
    assert ADMINISTRATOR in ada.live.people
