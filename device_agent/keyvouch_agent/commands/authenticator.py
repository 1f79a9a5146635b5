"""authenticator serve: this computer as a security key, on a virtual smartcard reader or as a virtual USB key.

What it says: first what is served and how far it can be trusted, then one line for each event. Not here: the parts and
how they fit (`served`).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager

from keyvouch.errors import UsageError
from keyvouch_agent import bootstrap
from keyvouch_agent.authenticator.ports import UserPresence
from keyvouch_agent.commands.asking import open_terminal
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.prompts.presence import TerminalPresence
from keyvouch_agent.served import Served, ServeWish, Transport, VaultKind, open_authenticator, serve
from keyvouch_agent.system import SystemClock, forbid_core_dumps
from keyvouch_agent.transports.presence import UnsafeAutoPresence
from keyvouch_agent.transports.vpcd import loopback_address

__all__ = ["serve_authenticator"]

_AUTO = (
    "WARNING: --presence auto. Every request is granted at once, nobody is asked, and any program that reaches this "
    "authenticator can use its keys. This is for test benches only."
)


def serve_authenticator(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Serve until SIGTERM or SIGINT."""
    forbid_core_dumps()
    wish = _wish(arguments)
    asyncio.run(_serve(wish, home, output, auto=arguments.presence == "auto"))


def _wish(arguments: argparse.Namespace) -> ServeWish:
    vault = VaultKind(arguments.vault)
    if vault is VaultKind.TPM and arguments.user_verification == "optional":
        raise UsageError(
            "Keys in the TPM always take the PIN: the TPM itself checks it.",
            fix="Leave --user-verification out, or serve with --vault software.",
        )
    return ServeWish(
        transport=Transport(arguments.transport),
        vault=vault,
        always_verify=vault is VaultKind.TPM or arguments.user_verification == "always",
        reader=loopback_address(arguments.vpcd),
    )


async def _serve(wish: ServeWish, home: Home, output: Output, *, auto: bool) -> None:
    clock, holders = SystemClock(), bootstrap.key_holders(home)
    with (
        _presence(auto=auto) as presence,
        open_authenticator(home, wish, clock=clock, tpm_access=holders.tpm_access) as served,
    ):
        for sentence in _what_it_is(served, wish):
            output.progress(sentence)
        if auto:
            output.progress(_AUTO)
        events = _Events(output, auto=auto, is_asking=_question_stands(presence))
        verification = "always" if wish.always_verify else "optional"
        events.tell("serving", transport=wish.transport, vault=wish.vault, user_verification=verification)
        await _until_signalled(serve(served, wish, presence, events.tell, monotonic=clock.monotonic))
        events.tell("ended")


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


def _what_it_is(served: Served, wish: ServeWish) -> Iterator[str]:
    """The truth about it, before the first client sees it."""
    if wish.vault is VaultKind.SOFTWARE:
        yield (
            f"An authenticator in software: its keys are in a file of yours in {served.folder}. Whoever can read that "
            f"file can copy {'it and guess the PIN' if wish.always_verify else 'them'}; this is no hardware."
        )
    elif served.is_emulated:
        yield "An authenticator in an emulated TPM: whoever has that program's host has its keys."
    else:
        yield "An authenticator in this computer's TPM: its keys cannot be copied, and the TPM counts wrong PINs."
    if wish.always_verify:
        yield "Every use takes the PIN. A client sets the first one; before that no key can be made."
    else:
        yield "Without a PIN set, anybody at this computer can use the keys. Clients can set one."
    if wish.transport is Transport.PCSC:
        host, port = wish.reader
        yield f"It goes into the virtual smartcard reader at {host}:{port}. Every user of this machine can reach that."
    else:
        yield f"It is plugged in as a virtual USB key ({wish.uhid}). Every program that may use security keys sees it."


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
        words = " ".join([event, *(str(value) for value in fields.values())])
        if self._auto:
            document["presence"] = "auto"
            words += "  (presence: auto, nobody is asked)"
        with self._lock:
            self._output.result(document, words)
