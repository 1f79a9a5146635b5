"""Keeps the device certificate fresh: asks for the next one after two thirds of its life.

By the server's time, as soon as that is known. The old certificate stays valid until it ends, so a failure is only
logged and tried again. The new chain is verified like the first one and used at the next connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from keyvouch.errors import KeyvouchError
from keyvouch_agent.agent_ports import DeviceServer
from keyvouch_agent.channel_identity import VerifiedChain, verify_chain
from keyvouch_agent.channel_keys import ChannelKeys
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.logs import AgentLog
from keyvouch_agent.server_time import ServerTime

__all__ = ["CertificateRenewal"]

_LONGEST_NAP = 6 * 3600.0
_SHORTEST_RETRY = 1.0
_LONGEST_RETRY = 3600.0


class CertificateRenewal:
    """Renews the certificate of one enrolment. `current` gives the record, `store` replaces it durably."""

    def __init__(
        self,
        *,
        current: Callable[[], Enrolment],
        store: Callable[[Enrolment], Awaitable[None]],
        device_server: Callable[[Enrolment], DeviceServer],
        server_time: ServerTime,
        channel_keys: ChannelKeys,
        log: AgentLog,
    ) -> None:
        self._current = current
        self._store = store
        self._device_server = device_server
        self._server_time = server_time
        self._channel_keys = channel_keys
        self._log = log
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """The server's time was learned: look at the dates again."""
        self._woken.set()

    def ended(self, now: float) -> bool:
        """Whether the certificate has ended by the clock that says `now`."""
        return self._chain(self._current()).not_after <= now

    async def run(self) -> None:
        """Renew whenever it is due, until cancelled."""
        await self._woken.wait()
        while True:
            due = self._chain(self._current()).renew_at - self._server_time.now()
            if due > 0:
                await asyncio.sleep(min(due, _LONGEST_NAP))
                continue
            if not await self._renew():
                await asyncio.sleep(self._retry_seconds())

    def _retry_seconds(self) -> float:
        """A tenth of what is left of the certificate, between a second and an hour."""
        left = self._chain(self._current()).not_after - self._server_time.now()
        return min(max(left / 10, _SHORTEST_RETRY), _LONGEST_RETRY)

    async def _renew(self) -> bool:
        enrolment = self._current()
        server = self._device_server(enrolment)
        try:
            chain = self._verify(await server.renew_certificate(), enrolment)
            await self._store(replace(enrolment, certificate_chain=chain.certificates))
        except KeyvouchError as error:
            self._log.warning("certificate-not-renewed", device=enrolment.device_id, reason=error.reason)
            return False
        finally:
            await server.close()
        self._log.info("certificate-renewed", device=enrolment.device_id, until=int(chain.not_after))
        return chain.renew_at > self._server_time.now()

    def _chain(self, enrolment: Enrolment) -> VerifiedChain:
        return self._verify(enrolment.certificate_chain, enrolment)

    def _verify(self, certificates: Sequence[bytes], enrolment: Enrolment) -> VerifiedChain:
        key = self._channel_keys.load(enrolment.channel_key)
        return verify_chain(certificates, server_id=enrolment.server_id, channel_key=key.spki)
