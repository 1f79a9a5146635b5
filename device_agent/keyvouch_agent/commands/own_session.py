"""The session of `keyvouch` on this computer, for an enrolment without an access pass (PS14).

It is read where that command keeps it; its refreshes are stored there too. Not here: signing in.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from keyvouch.errors import Reason, RefusedError, UsageError
from keyvouch.ids import ServerId
from keyvouch_client import Connection, Session
from keyvouch_client.session_file import KeptSession, SessionFile, StoredState, Target, not_signed_in, state_directory

__all__ = ["OwnSession"]


@dataclass(frozen=True, slots=True)
class OwnSession:
    """Where, and as whom, somebody has signed in. `ca` names a file in PEM, None for the usual anchors."""

    server: str
    ca: str | None
    tenant: str
    username: str
    server_id: ServerId
    file: SessionFile
    state: StoredState

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> OwnSession:
        """The session as it is stored; `--ca` takes the place of what is stored with it.

        Its tokens go to the server they came from and to no other: `--server` names another listener only where the
        sign-in was over plaintext. Raises `UnauthenticatedError` where nobody has signed in, `RefusedError` for a
        session of another user or tenant than the one that is named, `UsageError` for one of another server, or over
        plaintext.
        """
        if arguments.access_pass_fd is not None:
            raise UsageError("A session and an access pass are two ways to register.", fix="Name one of them.")
        file = SessionFile(state_directory(os.environ))
        state = file.read()
        if state.session is None:
            raise not_signed_in()
        _check_account(arguments, state.session, state.target.tenant)
        _check_server(arguments, state.session, state.target)
        if state.target.insecure_loopback and not arguments.server:
            raise UsageError(
                "You have signed in over plaintext, and a device is registered over TLS only.",
                fix="Name the TLS listener of the same server with --server, and its CA with --ca.",
            )
        return cls(
            server=arguments.server or state.target.server,
            ca=arguments.ca or state.target.ca_file or None,
            tenant=state.target.tenant,
            username=state.session.details.username,
            server_id=state.session.server_id,
            file=file,
            state=state,
        )

    def open(self) -> Session:
        """The session over a connection of its own, in the event loop that runs now."""
        return self.file.open_session(self.state, Connection(self.server, ca_file=Path(self.ca) if self.ca else None))


def _check_server(arguments: argparse.Namespace, session: KeptSession, target: Target) -> None:
    if arguments.server not in (None, target.server) and not target.insecure_loopback:
        raise UsageError(
            f"You are signed in at {target.server}, not at {arguments.server}.",
            fix="Leave --server out, or sign in there first with `keyvouch sign-in --server ...`.",
        )
    if arguments.server_id and arguments.server_id.lower() != session.server_id.hex():
        raise UsageError(
            f"You are signed in at the server with the identity {session.server_id.hex()}; --server-id says another.",
            fix="Leave --server-id out, or sign in at that server first.",
        )


def _check_account(arguments: argparse.Namespace, session: KeptSession, tenant: str) -> None:
    for option, said, signed_in in (
        ("--user", arguments.user, session.details.username),
        ("--tenant", arguments.tenant, tenant),
    ):
        if said and said.casefold() != signed_in.casefold():
            raise RefusedError(
                Reason.WRONG_USER if option == "--user" else Reason.WRONG_TENANT,
                f"You are signed in as {session.details.username} of {tenant}; {option} says {said}.",
                fix=f"Leave {option} out, or sign in as the other one first.",
            )
