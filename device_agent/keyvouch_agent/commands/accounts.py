"""unregister, pin: what changes the keys of this device. A running agent lends its key providers for it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

from keyvouch.errors import ConflictError, MalformedError, Reason, UnavailableError, UsageError
from keyvouch_agent import bootstrap
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.ceremonies.readiness import make_ready
from keyvouch_agent.commands.asking import LateTerminal, open_terminal, read_secret
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ledger import Enrolment, Ledger, not_enrolled
from keyvouch_agent.local_client import borrow_providers, call_agent
from keyvouch_agent.pin_standing import check_last_try, check_pin_usable, describe_pin
from keyvouch_agent.ports import Pin, PinControl, Provider, ProviderInteraction, ProviderKind
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.provider_shelf import ProviderKey
from keyvouch_agent.views import pin_document

__all__ = ["change_pin", "chosen", "unregister"]

_PIN_SESSION = "keyvouch"
"""A relying party for sessions that only manage the PIN; nothing is signed in them."""


def unregister(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Remove one enrolment, after asking."""
    enrolment = chosen(arguments.device, home)
    with borrow_providers(home):
        ended = asyncio.run(_unregister(arguments, home, output, enrolment))
    with suppress(UnavailableError):  # where no agent runs, there is nothing to tell
        call_agent(home, "reload")
    output.result(
        {"device_id": enrolment.device_id, "revoked_sessions": ended},
        f"Removed: {enrolment.username} of {inert(enrolment.tenant_name)}. Sessions ended with it: {ended}.",
    )


async def _unregister(arguments: argparse.Namespace, home: Home, output: Output, enrolment: Enrolment) -> int:
    if not arguments.yes:
        with open_terminal("Say --yes: then nobody is asked.") as lines:
            lines.show(f"This removes {enrolment.username} of {inert(enrolment.tenant_name)} and ends its sessions.")
            if (await lines.ask("Type yes to go on: ") or "").strip().lower() != "yes":
                raise MalformedError(
                    Reason.USER_CANCELLED, "Nothing was removed.", fix="Use --yes to skip the question."
                )
    return await bootstrap.unregister(
        home=home, enrolment=enrolment, progress=output.progress, only_here=arguments.only_here
    )


def chosen(wanted: str | None, home: Home) -> Enrolment:
    """The enrolment with that user name or device id; None for the only one. Raises NOT_ENROLLED, FIELD_INVALID."""
    found = [e for e in Ledger(home).enrolments() if wanted in {None, e.device_id, e.username}]
    if not found:
        raise not_enrolled()
    if len(found) > 1:
        raise ConflictError(
            Reason.FIELD_INVALID,
            f"{len(found)} accounts are enrolled on this device.",
            fix="Name one of them: " + ", ".join(e.device_id for e in found),
        )
    return found[0]


def change_pin(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Show where the PIN stands, or set or change it."""
    with borrow_providers(home):
        asyncio.run(_change_pin(arguments, home, output))


async def _change_pin(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    shelf = bootstrap.open_shelf(home, card=CardWish(arguments.module or "", (), arguments.token or ""))
    try:
        key = _provider_key(arguments, home)
        provider = await asyncio.to_thread(shelf.get, key)
        if not key.account or (key.kind == ProviderKind.SMARTCARD and not arguments.status):
            await make_ready(provider, GivenPin(Pin(""), tell=output.progress))
        capabilities = await asyncio.to_thread(provider.capabilities)
        if arguments.status:
            output.result(pin_document(capabilities), f"{capabilities.name}: {describe_pin(capabilities)}.")
            return
        if capabilities.kind in (ProviderKind.TPM, ProviderKind.SMARTCARD):
            check_pin_usable(capabilities)
        check_last_try(capabilities.kind, capabilities.pin_retries_left, allowed=arguments.last_try)
        async with AsyncExitStack() as stack:
            interaction = await _pin_interaction(arguments, LateTerminal(stack), output)
            await _set_or_change(provider, interaction)
        output.result(pin_document(await asyncio.to_thread(provider.capabilities)), "The PIN is set.")
    finally:
        shelf.close()


def _provider_key(arguments: argparse.Namespace, home: Home) -> ProviderKey:
    """Whose PIN: of one holder for all accounts by its kind, else of the account that is named, or of the only one.

    With `--provider fido2` and no account it is the PIN of whichever security key is connected or chosen; with
    `--provider smartcard` and no enrolment on a card that of the card in the reader.
    """
    if arguments.provider == ProviderKind.FIDO2 and arguments.account is None:
        return ProviderKey(ProviderKind.FIDO2.value)
    if arguments.token:
        return ProviderKey(ProviderKind.SMARTCARD.value)
    accounts = [e for e in Ledger(home).enrolments() if arguments.provider in {None, e.provider}]
    named = [e for e in accounts if arguments.account in {None, e.device_id, e.username}]
    keys = {ProviderKey(e.provider, e.account) for e in named}
    if len(keys) == 1:
        return keys.pop()
    if not keys and arguments.account is None:
        return ProviderKey(arguments.provider or ProviderKind.SOFTWARE.value)
    if not keys:
        raise not_enrolled()
    raise ConflictError(
        Reason.FIELD_INVALID,
        f"{len(keys)} accounts on this device have a PIN of their own.",
        fix="Name one of them: " + ", ".join(f"{e.username} ({e.device_id})" for e in named),
    )


async def _pin_interaction(arguments: argparse.Namespace, lines: LateTerminal, output: Output) -> ProviderInteraction:
    if arguments.new_pin_fd is None:
        return await lines.interaction(last_try=arguments.last_try)
    old = "" if arguments.pin_fd is None else read_secret(arguments.pin_fd)
    return _OldAndNew(old, read_secret(arguments.new_pin_fd), output.progress, last_try=arguments.last_try)


class _OldAndNew(GivenPin):
    """The old PIN and the new one, both given."""

    def __init__(self, old: str, new: str, tell: Callable[[str], None], *, last_try: bool) -> None:
        super().__init__(Pin(old), last_try=last_try, tell=tell)
        self._new = new

    def request_new_pin(self, min_length: int) -> Pin | None:  # noqa: ARG002
        return Pin(self._new)


async def _set_or_change(provider: Provider, interaction: ProviderInteraction) -> None:
    session = await asyncio.to_thread(lambda: provider.open(interaction, rp_id=_PIN_SESSION))
    try:
        control = await asyncio.to_thread(session.pin)
        if control is None:
            raise UsageError("This key provider has no PIN to manage.", fix="Use the maker's own tool.")
        await asyncio.to_thread(_ask_and_set, control, interaction)
    except asyncio.CancelledError:
        session.cancel()
        raise
    finally:
        await asyncio.to_thread(session.close)


def _ask_and_set(control: PinControl, interaction: ProviderInteraction) -> None:
    old = interaction.request_pin(control.retries_left, control.min_length) if control.is_set else None
    new = interaction.request_new_pin(control.min_length)
    if new is None or (control.is_set and old is None):
        raise MalformedError(Reason.USER_CANCELLED, "The PIN was not changed.", fix="Run the command again.")
    if old is None:
        control.set(new)
    else:
        control.change(old, new)
