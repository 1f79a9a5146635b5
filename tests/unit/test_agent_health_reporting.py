"""Reports of health: after each welcome that asks, about this server, device and connection, whatever is in the way."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import Any

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch.statement import Purpose, challenge, health_statement
from keyvouch_agent.agent_ports import HealthVerdict, Welcome
from keyvouch_agent.health_reporting import HealthReporting
from keyvouch_agent.logs import open_log
from keyvouch_agent.ports import HealthReport, TpmCertification
from support.agent_records import sample_enrolment

NONCE, PCRS = b"n" * 32, (0, 7)
REPORT = HealthReport(TpmCertification(b"attest", b"signature"), {0: bytes(32)})


class Holder:
    """A key holder that reports, refuses, or takes its time."""

    def __init__(self, answer: HealthReport | DeviceError | None = REPORT) -> None:
        self.answer = answer
        self.asked: list[tuple[bytes, tuple[int, ...]]] = []

    def health(self, qualifying_data: bytes, pcrs: Sequence[int]) -> HealthReport | None:
        self.asked.append((qualifying_data, tuple(pcrs)))
        if isinstance(self.answer, DeviceError):
            raise self.answer
        return self.answer


class Desk:
    """The reporting of one enrolment, and what it sent and logged."""

    def __init__(self, holder: Holder) -> None:
        self.record = sample_enrolment().enrolment
        self.sent: list[HealthReport] = []
        self.logged = io.StringIO()
        self.signing = asyncio.Lock()
        provider: Any = lambda: holder  # noqa: E731
        self.reporting = HealthReporting(
            current=lambda: self.record,
            provider=provider,
            signing=self.signing,
            send=self.sent.append,
            log=open_log(self.logged),
        )

    async def welcome(self, nonce: bytes = NONCE) -> None:
        self.reporting.welcomed(Welcome("1", 0, nonce, PCRS))
        for _ in range(100):
            await asyncio.sleep(0.005)
            if self.sent:
                return


async def test_report_is_over_server_device_and_nonce() -> None:
    holder = Holder()
    desk = Desk(holder)
    await desk.welcome()
    statement = health_statement(desk.record.server_id, desk.record.device_id, NONCE)
    assert holder.asked == [(challenge(Purpose.HEALTH, statement), PCRS)]
    assert desk.sent == [REPORT]


async def test_nothing_is_reported_unasked_or_where_the_holder_has_nothing_to_say() -> None:
    holder = Holder(None)
    desk = Desk(holder)
    desk.reporting.welcomed(Welcome("1", 0))
    await asyncio.sleep(0.02)
    assert not holder.asked
    desk.reporting.welcomed(Welcome("1", 0, NONCE, PCRS))
    await asyncio.sleep(0.05)
    assert holder.asked
    assert not desk.sent


async def test_what_is_in_the_way_is_reported_H10() -> None:
    desk = Desk(Holder(DeviceError(Reason.TPM_CLEARED, "The TPM was cleared.", fix="Enrol again.")))
    await desk.welcome()
    assert desk.sent == [HealthReport(trouble="tpm_cleared")]


async def test_a_ceremony_under_way_comes_first_and_a_lost_stream_ends_the_report() -> None:
    desk = Desk(Holder())
    async with desk.signing:
        desk.reporting.welcomed(Welcome("1", 0, NONCE, PCRS))
        await asyncio.sleep(0.02)
        assert not desk.sent
        desk.reporting.stop()
        desk.reporting.stop()
    await asyncio.sleep(0.05)
    assert not desk.sent


@pytest.mark.parametrize(("state", "level"), [("good", "INFO"), ("drifted", "WARNING"), ("failed", "WARNING")])
async def test_verdict_is_kept_and_logged(state: str, level: str) -> None:
    desk = Desk(Holder())
    assert desk.reporting.verdict is None
    verdict = HealthVerdict(state, ("firmware_changed: It is another one.",), "tpm/hardware_gated/attested")
    desk.reporting.judged(verdict)
    assert desk.reporting.verdict is verdict
    line = desk.logged.getvalue()
    assert f" {level} health" in line
    assert "firmware_changed" in line
