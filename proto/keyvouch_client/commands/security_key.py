"""`keyvouch sign-in --security-key`: a security key on this computer, its PIN, and a touch.

What the person has to do goes to standard error. With `--json` it is an object on standard output, `{"event": ...}`:
`connect`, `touch` (with the names of the keys) and `pin`, each when it is due, and the session last.

Needs the extra `security-key`. Not here: what is signed (`keyvouch_client.security_key`), and how keys are found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from threading import Event
from typing import TYPE_CHECKING

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import ServerId
from keyvouch.v1 import common_pb2
from keyvouch_client.commands.invocation import Invocation
from keyvouch_client.commands.output import inert
from keyvouch_client.commands.secrets_typed import read_secret, type_secret
from keyvouch_client.connection import Connection
from keyvouch_client.security_key import SecurityKeySigner, SecurityKeySignIn
from keyvouch_client.session import Session
from keyvouch_client.session_file import Target

if TYPE_CHECKING:
    from keyvouch_client.security_keys.discovery import SecurityKeys

__all__ = ["with_security_key"]

_LONGEST_PIN = 63
"""Bytes (CTAP 2.1 section 6.5.1)."""
_MISSING = frozenset({"fido2"})


async def with_security_key(
    run: Invocation,
    connection: Connection,
    target: Target,
    known: ServerId | None,
    *,
    app_id: str,
    known_client: str = "",
    required: common_pb2.AssuranceRequirement | None = None,
    keys: SecurityKeys | None = None,
) -> Session:
    """Sign in with a security key of this computer, or one of `keys`. `known` is who the server was last time."""
    arguments = run.arguments
    person = _AtTheTerminal(run)
    signer = _signer(person, keys)
    ceremony = SecurityKeySignIn(
        connection,
        tenant=target.tenant,
        username=target.username,
        app_id=app_id,
        app_name=arguments.app,
        audience=arguments.audience,
        binding_message=arguments.message,
        known_client=known_client,
        required_assurance=required,
        rp_id=arguments.rp_id,
        server_id=known,
    )
    async with ceremony as begun:
        waiting = asyncio.create_task(person.remind(begun.expires_at))
        try:
            return await begun.session(signer)
        finally:
            waiting.cancel()
            run.output.progress("")


def _signer(person: _AtTheTerminal, keys: SecurityKeys | None) -> SecurityKeySigner:
    """The connected keys. Raises `DeviceError(UNSUPPORTED)` where the library for them is not installed."""
    try:
        from keyvouch_client.connected_signer import ConnectedSigner  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        if error.name not in _MISSING:
            raise
        raise DeviceError(
            Reason.UNSUPPORTED,
            "This installation cannot use security keys: the library for them is missing.",
            fix="Install it with `pip install 'keyvouch[security-key]'`; for NFC readers and card readers also "
            "`keyvouch[pcsc]`.",
        ) from None
    return ConnectedSigner(person, keys)


class _AtTheTerminal:
    """`AtTheKey`: told and asked on the terminal, or in events for a program."""

    def __init__(self, run: Invocation) -> None:
        self._output = run.output
        self._pin_fd: int | None = run.arguments.pin_fd
        self._told = ""
        self._waits = ""

    def connect(self, *, another: bool) -> None:
        """See `AtTheKey`."""
        none_fits = "No connected key is one you can sign in with here. Connect the right one."
        self._tell({"event": "connect", "another": another}, none_fits if another else "Connect your security key.")

    def touch(self, names: Sequence[str]) -> None:
        """See `AtTheKey`."""
        which = inert(names[0]) if len(names) == 1 else "the security key you want to use"
        self._tell({"event": "touch", "keys": list(names)}, f"Touch {which}.")
        self._waits = f"Touch {which}"

    async def remind(self, expires_at: int) -> None:
        """Say again what is waited for, and for how long still; never while a PIN is typed."""
        while True:
            await asyncio.sleep(1)
            if self._waits:
                left = max(int(expires_at - time.time()), 0)
                self._output.progress(f"{self._waits}: {left} seconds left, Ctrl-C to give up")

    def pin(self, name: str, tries_left: int | None, *, wrong: bool, cancelled: Event) -> str | None:
        """See `AtTheKey`. A PIN from a file descriptor is given once: a wrong one is not tried again."""
        self._tell({"event": "pin", "key": name, "tries_left": tries_left, "wrong": wrong}, "")
        if self._pin_fd is not None:
            return None if wrong else read_secret(self._pin_fd, longest=_LONGEST_PIN, what="a PIN").strip("\r\n")
        self._waits = ""
        self._output.progress("")
        if wrong:
            self._output.note("The PIN is wrong.")
        prompt = f"PIN of {inert(name)}{_left(tries_left)}: "
        return type_secret(prompt, what="the PIN", instead="--pin-fd", cancelled=cancelled) or None

    def _tell(self, event: dict[str, object], sentence: str) -> None:
        if self._output.as_json:
            self._output.show(event)
        elif sentence and sentence != self._told:
            self._told = sentence
            self._output.note(sentence)


def _left(tries: int | None) -> str:
    if tries is None:
        return ""
    return " (the last try before it is blocked)" if tries == 1 else f" ({tries} tries left)"
