"""Waiting until what holds the keys is there, before anything else is asked of person or server."""

from __future__ import annotations

import asyncio
import threading

from keyvouch_agent.ports import Provider, ProviderInteraction

__all__ = ["make_ready"]


async def make_ready(provider: Provider, interaction: ProviderInteraction) -> None:
    """Have a provider make sure that it is there. Whoever interrupts this does not wait for a key any longer.

    Raises as `Provider.ready` does.
    """
    cancelled = threading.Event()
    try:
        await asyncio.to_thread(provider.ready, interaction, cancelled)
    finally:
        cancelled.set()
