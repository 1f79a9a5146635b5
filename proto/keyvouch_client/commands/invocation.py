"""Running one command: its arguments, the stored session, the way to the server, and its errors.

Precedence for the server and its CA: argument, environment, last sign-in. The stored tokens go to the server they came
from and to no other. Not here: what the commands do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from keyvouch.errors import KeyvouchError, Reason, UnavailableError, UsageError
from keyvouch.v1 import common_pb2
from keyvouch_client.commands.output import Output
from keyvouch_client.connection import Connection
from keyvouch_client.session import Session
from keyvouch_client.session_file import SessionFile, StoredState, Target, not_signed_in, state_directory

__all__ = ["Invocation", "pages", "perform"]

PageMessage = TypeVar("PageMessage", bound=Message)

_PAGE = 200


class Invocation:
    """One command with everything it works with."""

    def __init__(self, arguments: argparse.Namespace, output: Output, file: SessionFile) -> None:
        self.arguments = arguments
        self.output = output
        self.file = file

    def target(self, stored: Target) -> Target:
        """Where to go: arguments first, then the environment, then the last sign-in. Raises `UsageError`."""
        given, environment = vars(self.arguments), os.environ
        server = given.get("server") or environment.get("KEYVOUCH_SERVER") or stored.server
        if not server:
            raise UsageError(
                "No server is named.", fix="Name it with --server HOST:PORT or KEYVOUCH_SERVER; it is remembered then."
            )
        same = server == stored.server
        ca_file = given.get("ca") or environment.get("KEYVOUCH_CA") or (stored.ca_file if same else "")
        return Target(
            server=server,
            ca_file=str(Path(ca_file).absolute()) if ca_file else "",
            insecure_loopback=given.get("insecure_loopback", same and stored.insecure_loopback and not ca_file),
            tenant=given.get("tenant") or stored.tenant,
            username=given.get("user") or stored.username,
        )

    @contextlib.asynccontextmanager
    async def connection(self, target: Target) -> AsyncIterator[Connection]:
        """The way to `target`."""
        ca_file = Path(target.ca_file) if target.ca_file else None
        async with Connection(target.server, ca_file=ca_file, insecure_loopback=target.insecure_loopback) as connection:
            try:
                yield connection
            except UnavailableError as error:
                raise _naming(target.server, error) from error

    @contextlib.asynccontextmanager
    async def session(self, stored: StoredState | None = None) -> AsyncIterator[Session]:
        """The stored session, for use with the server it came from. Raises `UnauthenticatedError` without one."""
        state = stored or self.file.read()
        if state.session is None:
            raise not_signed_in()
        target = self.target(state.target)
        if target.server != state.target.server:
            raise UsageError(
                f"You are signed in at {state.target.server}, not at {target.server}.",
                fix="Sign in there with `keyvouch sign-in --server ...`, or leave the server out.",
            )
        async with self.connection(target) as connection:
            yield self.file.open_session(state, connection)


def _naming(server: str, error: UnavailableError) -> UnavailableError:
    """The same error with the server's address, which a person may have mistyped."""
    message = error.message.replace("The server", f"The server {server}", 1)
    return UnavailableError(error.reason, message, fix=error.fix, metadata=error.metadata)


async def pages(
    fetch: Callable[[common_pb2.PageRequest], Awaitable[PageMessage]], *, limit: int | None = None
) -> AsyncIterator[PageMessage]:
    """The pages of a list, until the last one or until `limit` items have been asked for."""
    token, left = "", limit
    while left is None or left > 0:
        size = _PAGE if left is None else min(left, _PAGE)
        page = await fetch(common_pb2.PageRequest(size=size, token=token))
        yield page
        token = getattr(page, "next_token", "")
        if not token:
            return
        left = None if left is None else left - size


def _refused_here(error: OSError) -> KeyvouchError:
    where = f" ({error.filename})" if error.filename else ""
    return KeyvouchError(
        Reason.INTERNAL,
        f"This computer refused to read or write{where}: {error.strerror or error}.",
        fix="Put that right. What was asked of the server may be done all the same: look before you ask again.",
    )


def perform(arguments: argparse.Namespace) -> int:
    """Run the command the arguments name; returns the exit status."""
    output = Output(as_json="json" in arguments, utc="utc" in arguments)
    module, _, name = arguments.run.partition(":")
    command: Callable[[Invocation], Awaitable[None]] = getattr(importlib.import_module(module), name)

    async def run() -> None:
        await command(Invocation(arguments, output, SessionFile(state_directory(os.environ))))

    try:
        asyncio.run(run())
    except KeyvouchError as error:
        output.error(error)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        output.note("\nInterrupted." + (" The sign-in has been withdrawn." if name == "sign_in" else ""))
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has enough
        return 1
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what could not be written is not tried again at the end
        output.error(_refused_here(error))
        return 1
    return 0
