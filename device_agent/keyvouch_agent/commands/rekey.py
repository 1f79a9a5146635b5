"""rekey: a new key for an account whose key is in the TPM, behind the same PIN. A running agent lends its providers."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack

from keyvouch_agent import bootstrap
from keyvouch_agent.channel_keys import protection_of
from keyvouch_agent.commands.accounts import chosen
from keyvouch_agent.commands.asking import TerminalInteraction, open_terminal, read_secret
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.local_client import borrow_providers
from keyvouch_agent.ports import Pin, ProviderInteraction
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.views import enrolment_document

__all__ = ["rekey"]


def rekey(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Replace the key of one enrolment, or finish a replacement that was interrupted."""
    enrolment = chosen(arguments.account, home)
    with borrow_providers(home):
        new = asyncio.run(_rekey(arguments, home, output, enrolment))
    output.result(
        enrolment_document(new, channel_key=protection_of(new.channel_key)),
        f"{new.username} of {inert(new.tenant_name)} has a new key. The PIN is the same; the old key is gone.",
    )


async def _rekey(arguments: argparse.Namespace, home: Home, output: Output, enrolment: Enrolment) -> Enrolment:
    async with AsyncExitStack() as stack:
        interaction = await _interaction(arguments, stack, asks=Ledger(home).replacement(enrolment.device_id) is None)
        work = bootstrap.rekey(home=home, enrolment=enrolment, interaction=interaction, progress=output.progress)
        return await (interaction.during(work) if isinstance(interaction, TerminalInteraction) else work)


async def _interaction(arguments: argparse.Namespace, stack: AsyncExitStack, *, asks: bool) -> ProviderInteraction:
    """What is only being finished asks for no PIN, and needs no terminal."""
    if arguments.pin_fd is not None:
        return GivenPin(Pin(read_secret(arguments.pin_fd)))
    if not asks:
        return GivenPin(Pin(""))
    lines = stack.enter_context(open_terminal())
    return await stack.enter_async_context(TerminalInteraction(lines, asyncio.get_running_loop()))
