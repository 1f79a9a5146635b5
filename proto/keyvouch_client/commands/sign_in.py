"""`keyvouch sign-in`: number matching with a device, or a Temporary Access Pass. A security key is in `security_key`.

The number goes to standard error for people; with `--json` it is the first object on standard output, so that a test
bench can read it while the command waits.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from keyvouch.errors import KeyvouchError, UsageError
from keyvouch.v1 import common_pb2
from keyvouch_client.commands.after_sign_in import show_session
from keyvouch_client.commands.invocation import Invocation
from keyvouch_client.commands.messages import spoken
from keyvouch_client.commands.number import large
from keyvouch_client.commands.output import inert
from keyvouch_client.commands.requirements import require
from keyvouch_client.commands.secrets_typed import read_secret, type_secret
from keyvouch_client.connection import Connection
from keyvouch_client.session import Session
from keyvouch_client.session_file import StoredState, Target
from keyvouch_client.sign_in import SignIn, sign_in_with_access_pass

__all__ = ["sign_in"]

_APP_ID = "keyvouch-cli"
_THIS_SERVER = "keyvouch"
_LONGEST_PASS = 256
_OTHER_WAYS = {
    "security_key": "a security key on this computer, with `keyvouch sign-in --security-key`",
    "access_pass": "a Temporary Access Pass, with `keyvouch sign-in --access-pass`",
}


async def sign_in(run: Invocation) -> None:
    """Sign in and keep the session."""
    stored = _remembered(run)
    target = run.target(stored.target)
    if not target.tenant or not target.username:
        raise UsageError("Who signs in is not named.", fix="Name --tenant and --user; they are remembered then.")
    _check_arguments(run)
    access_pass = _access_pass(run)
    async with run.connection(target) as connection:
        if access_pass:
            session = await sign_in_with_access_pass(
                connection, tenant=target.tenant, username=target.username, access_pass=access_pass
            )
        elif run.arguments.security_key:
            session = await _with_security_key(run, connection, target, stored)
        else:
            session = await _with_device(run, connection, target, stored)
        run.file.keep(replace(target, username=session.details.username or target.username), session)
        await show_session(run, session)


def _check_arguments(run: Invocation) -> None:
    given = run.arguments
    if not given.security_key and (given.pin_fd is not None or given.rp_id):
        raise UsageError("--pin-fd and --rp-id are for --security-key.", fix="Name that too, or leave them out.")
    by_pass = given.access_pass or given.access_pass_fd is not None
    if by_pass and (given.assurance is not None or given.phishing_resistant):
        raise UsageError("An access pass has no assurance.", fix="Leave out --assurance and --phishing-resistant.")
    if given.explain and given.audience != _THIS_SERVER:
        raise UsageError(
            "A session for another audience cannot ask this server for an explanation.",
            fix="Leave out --audience, or ask an administrator: `keyvouch admin explain`.",
        )


def _remembered(run: Invocation) -> StoredState:
    try:
        return run.file.read()
    except KeyvouchError as error:
        run.output.note(f"The stored session is not used: {error}")
        return StoredState()


def _required_assurance(run: Invocation) -> common_pb2.AssuranceRequirement | None:
    """What is asked of the key this time, beyond policy."""
    if run.arguments.assurance is None:
        return None
    required = common_pb2.AssuranceRequirement()
    require(required, run.arguments.assurance)
    return required


async def _with_security_key(run: Invocation, connection: Connection, target: Target, stored: StoredState) -> Session:
    from keyvouch_client.commands.security_key import with_security_key  # noqa: PLC0415 - needs an extra

    known = stored.session.server_id if stored.session and stored.target.server == target.server else None
    shown = stored.known_client(target)
    return await with_security_key(
        run, connection, target, known, app_id=_APP_ID, known_client=shown, required=_required_assurance(run)
    )


async def _with_device(run: Invocation, connection: Connection, target: Target, stored: StoredState) -> Session:
    arguments = run.arguments
    ceremony = SignIn(
        connection,
        tenant=target.tenant,
        username=target.username,
        app_id=_APP_ID,
        app_name=arguments.app,
        audience=arguments.audience,
        binding_message=arguments.message,
        known_client=stored.known_client(target),
        required_assurance=_required_assurance(run),
        phishing_resistant=arguments.phishing_resistant,
    )
    async with ceremony as begun:
        _show_number(run, begun)
        waiting = asyncio.create_task(_show_waiting(run, begun.expires_at))
        try:
            return await begun.session()
        finally:
            waiting.cancel()
            run.output.progress("")


def _show_number(run: Invocation, begun: SignIn) -> None:
    methods = [spoken(common_pb2.SignInMethod.Name(method), "SIGN_IN_METHOD_") for method in begun.methods]
    if run.output.as_json:
        run.output.show({"event": "number", "number": begun.number, "expires_at": begun.expires_at, "methods": methods})
        return
    drawing = large(begun.number, blocks=run.output.can_draw_blocks())
    run.output.note(f"\n{drawing}\n\nNumber: {inert(begun.number)}")
    run.output.note("On your device choose Approve, type this number and give your PIN; never if you did not ask.")
    run.output.note("Nothing appears on the device? See that `keyvouch-agent run` is running there.")
    for place, method in enumerate(methods):
        if method in _OTHER_WAYS:  # the first one is what the server would take, where this client may know
            run.output.note(f"{'Another way' if place else 'Quicker for you now'}: {_OTHER_WAYS[method]}.")


async def _show_waiting(run: Invocation, expires_at: int) -> None:
    run.output.note("Waiting for your device.")
    while True:
        left = max(int(expires_at - time.time()), 0)
        run.output.progress(f"{left} seconds left, Ctrl-C to give up")
        await asyncio.sleep(1)


def _access_pass(run: Invocation) -> str:
    """The pass the person was asked for, or empty where none is wanted. Never from arguments or environment."""
    descriptor = run.arguments.access_pass_fd
    if descriptor is not None:
        return _required(read_secret(descriptor, longest=_LONGEST_PASS, what="an access pass"))
    if not run.arguments.access_pass:
        return ""
    return _required(type_secret("Temporary Access Pass: ", what="the pass", instead="--access-pass-fd") or "")


def _required(text: str) -> str:
    if not text.strip():
        raise UsageError("The access pass is empty.", fix="Ask your administrator for one.")
    return text.strip()
