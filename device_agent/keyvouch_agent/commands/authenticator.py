"""authenticator serve: this computer as a security key, on a virtual smartcard reader or as a virtual USB key.

What it says: first what is served and how far it can be trusted, then one line for each event. Not here: those first
words (`serving_words`), and the parts and how they fit (`served`).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from keyvouch.errors import UsageError
from keyvouch_agent import bootstrap
from keyvouch_agent.agent_settings import load_card_settings
from keyvouch_agent.authenticator.ports import UserPresence
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.commands.asking import open_terminal, read_secret
from keyvouch_agent.commands.output import Output
from keyvouch_agent.commands.serving_words import GRANTS_EVERYTHING, what_it_is
from keyvouch_agent.home import Home
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.prompts.presence import TerminalPresence
from keyvouch_agent.served import Served, ServeWish, Transport, VaultKind, open_authenticator, serve
from keyvouch_agent.served_card import CardToServe
from keyvouch_agent.system import SystemClock, forbid_core_dumps
from keyvouch_agent.transports.pin_entry import HeldPin
from keyvouch_agent.transports.presence import UnsafeAutoPresence
from keyvouch_agent.transports.vpcd import loopback_address

__all__ = ["serve_authenticator"]

_FOR_CARDS = ("token", "module", "shared_key", "last_try", "pin_fd")


def serve_authenticator(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Serve until SIGTERM or SIGINT."""
    forbid_core_dumps()
    wish = _wish(arguments, home)
    auto = arguments.presence == "auto"
    held = HeldPin(read_secret(arguments.pin_fd)) if _takes_pin(arguments, wish, auto=auto) else None
    asyncio.run(_serve(wish, home, output, auto=auto, held=held))


def _wish(arguments: argparse.Namespace, home: Home) -> ServeWish:
    vault = VaultKind(arguments.vault)
    if vault is not VaultKind.SOFTWARE and arguments.user_verification == "optional":
        where, holder = ("in the TPM", "the TPM") if vault is VaultKind.TPM else ("on a card", "the card")
        raise UsageError(
            f"Keys {where} always take the PIN: {holder} itself checks it.",
            fix="Leave --user-verification out, or serve with --vault software.",
        )
    given = [name for name in _FOR_CARDS if (value := getattr(arguments, name)) is not None and value is not False]
    if given and vault is not VaultKind.PKCS11:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is for keys on a card.", fix="Leave it out, or serve with --vault pkcs11."
        )
    wish = ServeWish(
        transport=Transport(arguments.transport),
        vault=vault,
        always_verify=vault is not VaultKind.SOFTWARE or arguments.user_verification == "always",
        reader=loopback_address(arguments.vpcd),
    )
    if vault is not VaultKind.PKCS11:
        return wish
    card = CardWish(module=arguments.module or "", token=arguments.token or "").over(load_card_settings(home))
    return replace(
        wish,
        card=CardToServe(
            card, named=arguments.token or "", shared_key=arguments.shared_key, last_try=arguments.last_try
        ),
    )


def _takes_pin(arguments: argparse.Namespace, wish: ServeWish, *, auto: bool) -> bool:
    """Whether there is a PIN to read. Nobody types one where nobody is asked, and nobody else gives it elsewhere."""
    if wish.vault is not VaultKind.PKCS11:
        return False
    if auto and arguments.pin_fd is None:
        raise UsageError(
            "With --presence auto nobody is asked, and the card takes no key into use without its PIN.",
            fix="Give the PIN with --pin-fd, for example --pin-fd 3 with 3< FILE.",
        )
    if auto and arguments.last_try:
        raise UsageError(
            "The last try of a card is not for a PIN that nobody types.",
            fix="Leave --last-try out, or serve without --presence auto.",
        )
    if arguments.pin_fd is not None and not auto:
        raise UsageError(
            "Where somebody is asked, the PIN is what she types: it shows that it is she.",
            fix="Leave --pin-fd out; on a test bench, add --presence auto.",
        )
    return auto


async def _serve(wish: ServeWish, home: Home, output: Output, *, auto: bool, held: HeldPin | None) -> None:
    clock, holders = SystemClock(), bootstrap.key_holders(home)
    with (
        _presence(auto=auto) as presence,
        open_authenticator(home, wish, clock=clock, tpm_access=holders.tpm_access) as served,
    ):
        for sentence in what_it_is(served, wish, holds_pin=held is not None):
            output.progress(inert(sentence, longest=400))
        if auto:
            output.progress(GRANTS_EVERYTHING)
        events = _Events(output, auto=auto, is_asking=_question_stands(presence))
        await asyncio.to_thread(_look_at_card, served, held, events)
        verification = "always" if wish.always_verify else "optional"
        card = {"token": served.card.label, "serial": served.card.serial} if served.card else {}
        events.tell("serving", transport=wish.transport, vault=wish.vault, user_verification=verification, **card)
        pins = held or (presence if isinstance(presence, TerminalPresence) else None)
        await _until_signalled(serve(served, wish, presence, events.tell, monotonic=clock.monotonic, pins=pins))
        events.tell("ended")


def _look_at_card(served: Served, held: HeldPin | None, events: _Events) -> None:
    """Say that the card is away; and show it the PIN that is held, so that a wrong one ends the command."""
    if served.card is None:
        return
    if absence := served.card.absence():
        events.tell("card-away", reason=absence.reason.value, says=str(absence))
    elif held is not None:
        served.card.prove(held)


@contextmanager
def _presence(*, auto: bool) -> Iterator[UserPresence]:
    """Whoever is asked. Raises `UsageError` where there is nobody to ask."""
    if auto:
        yield UnsafeAutoPresence()
        return
    with ExitStack() as stack:
        try:
            lines = stack.enter_context(open_terminal())
        except UsageError:
            raise UsageError(
                "There is no terminal to ask on when a client wants somebody to be present.",
                fix="Start it in a terminal; on a test bench, --presence auto grants everything without asking.",
            ) from None
        yield TerminalPresence(lines, asyncio.get_running_loop())


def _question_stands(presence: UserPresence) -> Callable[[], bool]:
    return lambda: isinstance(presence, TerminalPresence) and presence.is_asking


async def _until_signalled(serving: Coroutine[object, object, None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises what the serving raises."""
    loop, signalled = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    tasks: set[asyncio.Task[object]] = {asyncio.create_task(serving), asyncio.create_task(signalled.wait())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Events:
    """One line per event, from any thread; with `--presence auto` every one of them says so.

    While a question stands people get no lines: a client could push it off the screen with them.
    """

    def __init__(self, output: Output, *, auto: bool, is_asking: Callable[[], bool]) -> None:
        self._output = output
        self._auto = auto
        self._is_asking = is_asking
        self._lock = threading.Lock()

    def tell(self, event: str, **fields: object) -> None:
        """A `Journal`."""
        if self._is_asking() and not self._output.as_json:
            return
        document: dict[str, object] = {"event": event, **fields}
        words = inert(" ".join([event, *(str(value) for value in fields.values())]), longest=400)
        if self._auto:
            document["presence"] = "auto"
            words += "  (presence: auto, nobody is asked)"
        with self._lock:
            self._output.result(document, words)
