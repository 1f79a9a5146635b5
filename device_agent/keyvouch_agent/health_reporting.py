"""Tells the server how the TPM of an enrolment fares, after each welcome that asks for it, and keeps what it answered.

The report is made on a thread, while the stream goes on, and under the same lock as signatures: a key's holder serves
one ceremony at a time. What is in the way of a report is a report too. What is not here: the judgement, which is the
server's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from keyvouch.errors import DeviceError
from keyvouch.statement import Purpose, challenge, health_statement
from keyvouch_agent.agent_ports import HealthVerdict, Welcome
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.logs import AgentLog
from keyvouch_agent.ports import HealthReport, Provider

__all__ = ["HealthReporting"]

_BAD: Final = frozenset({"drifted", "failed"})


class HealthReporting:
    """The health of one enrolment's key holder. `send` puts a report on the open stream."""

    def __init__(
        self,
        *,
        current: Callable[[], Enrolment],
        provider: Callable[[], Provider],
        signing: asyncio.Lock,
        send: Callable[[HealthReport], None],
        log: AgentLog,
    ) -> None:
        self._current = current
        self._provider = provider
        self._signing = signing
        self._send = send
        self._log = log
        self._task: asyncio.Task[None] | None = None
        self.verdict: HealthVerdict | None = None

    def welcomed(self, welcome: Welcome) -> None:
        """Report, if the server asks for it."""
        self.stop()
        if welcome.health_nonce:
            self._task = asyncio.create_task(self._report(welcome))

    def judged(self, verdict: HealthVerdict) -> None:
        """What the server makes of it."""
        self.verdict = verdict
        log = self._log.warning if verdict.state in _BAD else self._log.info
        log("health", device=self._current().device_id, state=verdict.state, findings="; ".join(verdict.findings))

    def stop(self) -> None:
        """The stream is gone: nobody waits for the report any more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _report(self, welcome: Welcome) -> None:
        enrolment = self._current()
        statement = health_statement(enrolment.server_id, enrolment.device_id, welcome.health_nonce)
        async with self._signing:
            report = await asyncio.to_thread(self._ask, challenge(Purpose.HEALTH, statement), welcome.health_pcrs)
        if report is not None:
            self._send(report)

    def _ask(self, qualifying_data: bytes, pcrs: tuple[int, ...]) -> HealthReport | None:
        try:
            return self._provider().health(qualifying_data, pcrs)
        except DeviceError as error:
            return HealthReport(trouble=error.reason.value)
