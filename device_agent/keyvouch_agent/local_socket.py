"""The agent's UNIX socket, seen from both ends: where it lies, and who is at the other end of it.

The socket is 0600 in the 0700 home. It is reached through a descriptor of the checked home, so neither a long path
nor a link put in the way matters. Both ends ask the kernel who the other is (SO_PEERCRED) before a PIN may pass.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from keyvouch.errors import DeviceError, PermissionDeniedError, Reason, UnavailableError
from keyvouch_agent.home import Home

__all__ = ["LONGEST_LINE", "bind_socket", "check_peer", "connect_socket", "unlink_socket"]

SOCKET_NAME: Final = "agent.sock"
LONGEST_LINE: Final = 16 * 1024
"""Longest request, in bytes."""

_UCRED: Final = struct.Struct("=iII")
_BACKLOG: Final = 32


class _HasOptions(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def check_peer(connection: _HasOptions, *, uid: int) -> None:
    """Refuse a peer of another user, as the kernel knows it (unix(7), SO_PEERCRED).

    Raises `PermissionDeniedError(CREDENTIALS_INVALID)`.
    """
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, peer, _ = _UCRED.unpack(data)
    if peer != uid:
        raise PermissionDeniedError(
            Reason.CREDENTIALS_INVALID,
            "The other end of the agent's socket belongs to another user.",
            fix="Run the command as the user whose agent it is.",
            metadata={"uid": str(peer)},
        )


def bind_socket(home: Home) -> socket.socket:
    """Make the listening socket. Only for the holder of the daemon lock, which makes an old socket a dead one.

    Raises `DeviceError(VAULT_PERMISSIONS)` when something else than a socket of this user lies in its place.
    """
    unlink_socket(home)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listening.fileno(), 0o600)  # the mode the file is born with: there is no moment of openness
        with _near(home) as address:
            listening.bind(address)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise _cannot("open", home, error) from error
    return listening


def unlink_socket(home: Home) -> None:
    """Remove a socket of ours; a missing one is fine. Raises `DeviceError(VAULT_PERMISSIONS)` for anything else."""
    path = home.folder("") / SOCKET_NAME
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise DeviceError(
            Reason.VAULT_PERMISSIONS,
            f"{path} is not a socket of yours. Somebody has put it there.",
            fix="Look at it, remove it, and start the agent again.",
            metadata={"path": str(path)},
        )
    path.unlink(missing_ok=True)


def connect_socket(home: Home, *, seconds: float) -> socket.socket:
    """Connect to the running agent and check that it is this user's.

    Raises `UnavailableError(AGENT_NOT_RUNNING)`, `PermissionDeniedError(CREDENTIALS_INVALID)`.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        with _near(home) as address:
            connection.connect(address)
        check_peer(connection, uid=os.geteuid())
    except OSError as error:
        connection.close()
        raise UnavailableError(
            Reason.AGENT_NOT_RUNNING,
            f"No agent is running with the home {home.path}.",
            fix="Start it with `keyvouch-agent run`, or give its directory with --home.",
        ) from error
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _near(home: Home) -> Iterator[str]:
    """An address of the socket that is short, however deep the home lies, and leads through the checked directory."""
    home.folder("")
    descriptor = os.open(home.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


def _cannot(verb: str, home: Home, error: OSError) -> UnavailableError:
    return UnavailableError(
        Reason.STORE_UNAVAILABLE,
        f"The agent cannot {verb} its socket in {home.path}: {error.strerror}.",
        fix="Give another directory with --home.",
    )
