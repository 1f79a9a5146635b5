"""The agent's home: one directory that belongs to one user, and files in it that are written whole or not at all.

Every file is 0600 in a directory of mode 0700, checked each time, never reached through a symbolic link.
A write goes to a temporary file, is synced, renamed over the old one, and the directory is synced: after a
crash there is the old file or the new one. Not here: what the files mean (`ledger`).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keyvouch.errors import ConflictError, DeviceError, Reason, UnavailableError

__all__ = ["DAEMON_LOCK", "ENROL_LOCK", "Home"]

DAEMON_LOCK = "agent.lock"
ENROL_LOCK = "enrol.lock"

_TEMPORARY = ".writing-"
_ABANDONED = 600.0


class Home:
    """A private directory. `open` checks or makes it; names may hold one folder, as in `outbox/x.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> Home:
        """Make the directory if it is missing and check that it is private.

        Raises `DeviceError(VAULT_PERMISSIONS)` when others can look into it, `UnavailableError(STORE_UNAVAILABLE)`
        when it cannot be made.
        """
        home = cls(path.absolute())
        home.folder("")
        return home

    def folder(self, name: str) -> Path:
        """The private folder of that name inside the home, made if missing; the home itself for an empty name."""
        path = self.path / name if name else self.path
        try:
            path.mkdir(mode=0o700, parents=not name, exist_ok=True)
            found = path.lstat()
        except OSError as error:
            raise _cannot("use", path, error) from error
        _check_private(path, found, stat.S_ISDIR(found.st_mode), "700")
        return path

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of the finished files in a folder that end in `suffix`, sorted, relative to the home."""
        found = self.folder(folder).iterdir()
        return sorted(f"{folder}/{p.name}" for p in found if p.name.endswith(suffix) and not p.name.startswith("."))

    def read(self, name: str, *, longest: int) -> bytes:
        """Read a private file of at most `longest` bytes.

        Raises `FileNotFoundError`, `DeviceError(VAULT_PERMISSIONS)`, `UnavailableError(STORE_UNAVAILABLE)`. A longer
        file comes back cut after `longest + 1` bytes, for the parser to refuse.
        """
        path = self.path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _cannot("read", path, error) from error
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            _check_private(path, found, stat.S_ISREG(found.st_mode), "600")
            return file.read(longest + 1)

    def write(self, name: str, data: bytes) -> None:
        """Put `data` durably in place of the file. Raises `UnavailableError`; then nothing has changed."""
        path = self.path / name
        folder = self.folder(str(Path(name).parent) if "/" in name else "")
        temporary = folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            _write_synced(temporary, data)
            temporary.replace(path)
            _sync_directory(folder)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise _cannot("write", path, error) from error

    def delete(self, name: str) -> None:
        """Remove a file durably; a missing one is fine. Raises `UnavailableError(STORE_UNAVAILABLE)`."""
        path = self.path / name
        try:
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                _sync_directory(path.parent)
        except OSError as error:
            raise _cannot("remove", path, error) from error

    def sweep(self, folder: str) -> None:
        """Remove temporary files that a crash has left in a folder; young ones may belong to a living process."""
        oldest = time.time() - _ABANDONED
        for path in self.folder(folder).glob(f"{_TEMPORARY}*"):
            with suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    path.unlink()

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold an exclusive lock; it ends with the process at the latest. Raises `ConflictError(AGENT_RUNNING)`."""
        self.folder("")
        path = self.path / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _cannot("lock", path, error) from error
        try:
            _lock_or_refuse(descriptor, name, self.path)
            yield
        finally:
            os.close(descriptor)


def _lock_or_refuse(descriptor: int, name: str, home: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        what = "An agent is running" if name == DAEMON_LOCK else "Another enrolment is under way"
        raise ConflictError(
            Reason.AGENT_RUNNING,
            f"{what} with the home {home} (process {holder or 'unknown'}).",
            fix="Use that one, end it first, or give another directory with --home.",
            metadata={"process": holder},
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)


def _check_private(path: Path, found: os.stat_result, right_kind: bool, mode: str) -> None:
    if right_kind and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return
    fix = f"Check who had access, then run: chmod {mode} {path}"
    if not right_kind or found.st_uid != os.geteuid():
        fix = "Move it away, or give another directory with --home."
    raise DeviceError(
        Reason.VAULT_PERMISSIONS,
        f"{path} holds secrets but is not private: it must belong to you, be no link, and be closed to all others.",
        fix=fix,
        metadata={"path": str(path), "mode": f"{stat.S_IMODE(found.st_mode):o}"},
    )


def _cannot(verb: str, path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        Reason.STORE_UNAVAILABLE,
        f"The agent cannot {verb} {path}: {error.strerror}.",
        fix="Nothing was changed. Make room or correct the permissions, then try again.",
        metadata={"path": str(path)},
    )


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
