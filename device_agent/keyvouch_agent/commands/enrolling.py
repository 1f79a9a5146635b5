"""enroll: register this device, with an access pass or in a session of `keyvouch`. A running agent lends its key
providers for it.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from keyvouch.errors import MalformedError, Reason, UnavailableError, UsageError
from keyvouch.ids import ServerId
from keyvouch_agent import bootstrap
from keyvouch_agent.agent_ports import Secret
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.ceremonies.departures import ChooseDeparting
from keyvouch_agent.ceremonies.registration import RegistrationWish
from keyvouch_agent.channel_keys import protection_of
from keyvouch_agent.commands.asking import LateTerminal, TerminalInteraction, ask_secret, read_secret
from keyvouch_agent.commands.departing_question import DepartingQuestion
from keyvouch_agent.commands.output import Output
from keyvouch_agent.commands.own_session import OwnSession
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.local_client import borrow_providers
from keyvouch_agent.ports import Pin, ProviderInteraction
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.views import enrolment_document

__all__ = ["enroll"]


def enroll(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Register this device."""
    own = OwnSession.of(arguments) if arguments.with_session else None
    wish = _wish(arguments, own)
    with borrow_providers(home):
        enrolment = asyncio.run(_enrol(arguments, home, output, wish, own))
    output.result(
        enrolment_document(enrolment, channel_key=protection_of(enrolment.channel_key)),
        f"Enrolled: {enrolment.username} of {inert(enrolment.tenant_name)}, device {enrolment.device_id}.",
        "Next: `keyvouch-agent run`, and leave it running: sign-in requests reach this device through it.",
    )


async def _enrol(
    arguments: argparse.Namespace, home: Home, output: Output, wish: RegistrationWish, own: OwnSession | None
) -> Enrolment:
    async with AsyncExitStack() as stack:
        lines = LateTerminal(stack)
        interaction: ProviderInteraction
        if arguments.pin_fd is None:
            interaction = await lines.interaction(last_try=arguments.last_try)
        else:
            given = Pin(read_secret(arguments.pin_fd))
            interaction = GivenPin(given, may_set=True, last_try=arguments.last_try, tell=output.progress)
        provider = arguments.provider or bootstrap.key_holders(home).best_kind(output.progress)
        enrolling = bootstrap.enrol(
            home=home,
            wish=wish,
            provider=provider,
            interaction=interaction,
            ask_access_pass=None if own else _access_pass(arguments, lines),
            progress=output.progress,
            session=own.open() if own else None,
            choose_departing=_question(arguments, lines),
            card=CardWish(
                arguments.module or "", (), arguments.token or "", arguments.key or "", arguments.certificate
            ),
        )
        return await (interaction.during(enrolling) if isinstance(interaction, TerminalInteraction) else enrolling)


def _question(arguments: argparse.Namespace, lines: LateTerminal) -> ChooseDeparting | None:
    """Lost or replaced? Asked of a person at a terminal who has not said it already, and never of a program."""
    if arguments.pin_fd is not None or arguments.keep_all or arguments.lost or arguments.replaces:
        return None
    return DepartingQuestion(lines).ask


def _access_pass(arguments: argparse.Namespace, lines: LateTerminal) -> Callable[[], Awaitable[Secret]]:
    async def ask() -> Secret:
        if arguments.access_pass_fd is not None:
            return Secret(read_secret(arguments.access_pass_fd))
        return Secret(await ask_secret(lines.get(), "Temporary Access Pass: "))

    return ask


def _wish(arguments: argparse.Namespace, own: OwnSession | None) -> RegistrationWish:
    if own is None and not (arguments.server and arguments.tenant and arguments.user):
        raise UsageError(
            "It is not said for whom and where to register.",
            fix="Give --server, --tenant and --user with an access pass; or sign in with `keyvouch`, and use "
            "--with-session.",
        )
    return RegistrationWish(
        public_endpoint=own.server if own else arguments.server,
        public_ca=_authority(own.ca if own else arguments.ca),
        tenant=own.tenant if own else arguments.tenant,
        username=own.username if own else arguments.user,
        display_name=(arguments.name or platform.node() or "device")[:64],
        server_id=_server_id(arguments.server_id) or (own.server_id if own else None),
        replace=arguments.replace,
        lost=tuple(arguments.lost),
        replaced=tuple(arguments.replaces),
    )


def _server_id(typed: str | None) -> ServerId | None:
    if typed is None:
        return None
    try:
        return ServerId(bytes.fromhex(typed))
    except ValueError:
        raise UsageError("--server-id is not 64 hexadecimal digits.", fix="Copy it from the server again.") from None


def _authority(path: str | None) -> str:
    if path is None:
        return ""
    try:
        pem = Path(path).read_text("ascii")
    except (OSError, ValueError) as error:
        raise UnavailableError(
            Reason.CONFIGURATION, f"The file {path} cannot be read: {error}.", fix="Give the server's CA file in PEM."
        ) from error
    if "-----BEGIN CERTIFICATE-----" not in pem:
        raise MalformedError(
            Reason.CONFIGURATION, f"The file {path} holds no certificate in PEM.", fix="Give the server's CA file."
        )
    return pem
