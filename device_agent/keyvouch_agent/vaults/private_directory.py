"""A directory only its owner can enter, locked against a second process, with files replaced atomically.

A replacement is: write a new file beside the old one, sync it, rename it over the old one, sync the
directory. Whenever that stops, the old or the new content is there in full. What is *not* here: what the
files mean.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from keyvouch.errors import DeviceError, Reason

__all__ = ["FileSteps", "PrivateDirectory"]

_LOCK = "lock"
_MAX_FILE_SIZE = 16 * 1024 * 1024
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_FIX_PERMISSIONS = "Make it yours alone: check who created it, then use chown, and chmod 700 (files 600)."


class FileSteps:
    """The system calls of an atomic replacement, one method each, so that a test can stop between any two."""

    def create(self, directory: int, name: str) -> int:
        """Create `name` for the owner only, refusing one that exists, and return its descriptor."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=directory)

    def write(self, file: int, data: bytes) -> int:
        """Write some of `data` and return how much."""
        return os.write(file, data)

    def sync(self, file: int) -> None:
        """Force a file, or a directory, to the storage medium."""
        os.fsync(file)

    def rename(self, directory: int, source: str, target: str) -> None:
        """Put `source` in the place of `target`."""
        os.rename(source, target, src_dir_fd=directory, dst_dir_fd=directory)


class PrivateDirectory:
    """An open, checked and locked directory. Raises `DeviceError` only.

    `VAULT_PERMISSIONS`: somebody else could read or replace what is in it, or it is not what it should be.
    `VAULT_BUSY`: another process has it open. `KEY_STORE_FULL`: no room. `DEVICE_FAILED`: any other trouble.
    """

    def __init__(self, path: Path, steps: FileSteps) -> None:
        self._path = path
        self._steps = steps
        self._directory = _open_directory(path)
        try:
            self._lock = self._take_lock()
        except BaseException:
            os.close(self._directory)
            raise

    def close(self) -> None:
        """Release the lock. Does nothing the second time."""
        if self._directory < 0:
            return
        os.close(self._lock)
        os.close(self._directory)
        self._directory = -1

    def read(self, name: str) -> bytes | None:
        """Return the content of `name`, or None if there is no such file."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in its place must not hang us
        try:
            file = os.open(name, flags, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._not_private(name, "it is a symbolic link") from None
            raise _failed(error) from error
        try:
            self._check_file(name, os.fstat(file))
            return _read_all(file)
        except OSError as error:
            raise _failed(error) from error
        finally:
            os.close(file)

    def replace(self, name: str, data: bytes) -> None:
        """Put `data` in the place of the content of `name`, durably, or leave that as it is."""
        try:
            self._replace(name, data)
        except OSError as error:
            raise _failed(error) from error

    def names(self, suffix: str) -> list[str]:
        """Names of the files that end in `suffix`, sorted."""
        try:
            found = os.listdir(self._directory)  # noqa: PTH208 - of what was opened and checked, not of a path
            return sorted(name for name in found if name.endswith(suffix))
        except OSError as error:
            raise _failed(error) from error

    def remove(self, name: str) -> None:
        """Remove a file durably. Does nothing where there is none."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
            self._steps.sync(self._directory)
        except OSError as error:
            raise _failed(error) from error

    def _replace(self, name: str, data: bytes) -> None:
        fresh = name + ".new"
        with suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=self._directory)  # left by a process that was killed
        file = self._steps.create(self._directory, fresh)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._steps.write(file, bytes(rest)) :]
            self._steps.sync(file)
        finally:
            os.close(file)
        self._steps.rename(self._directory, fresh, name)
        self._steps.sync(self._directory)

    def _take_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            lock = os.open(_LOCK, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise _failed(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise DeviceError(
                Reason.VAULT_BUSY,
                f"Another process is using the key vault in {self._path}.",
                fix="Stop the other agent, or wait until it has finished.",
            ) from None
        return lock

    def _check_file(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self._not_private(name, "it is not a regular file")
        if status.st_uid != os.geteuid():
            raise self._not_private(name, "it belongs to somebody else")
        if status.st_mode & 0o077 or status.st_nlink != 1:
            raise self._not_private(name, "others may read or change it")

    def _not_private(self, name: str, why: str) -> DeviceError:
        return _not_private(self._path / name, why)


def _open_directory(path: Path) -> int:
    """Create the directory if it is not there, open it without following a link, and check what was opened."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise _not_private(path, "it is not a directory but a file or a link") from None
        raise _failed(error) from error
    status = os.fstat(directory)
    if status.st_uid == os.geteuid() and not status.st_mode & 0o077:
        return directory
    os.close(directory)
    raise _not_private(path, "others own it or may enter it")


def _read_all(file: int) -> bytes:
    with os.fdopen(file, "rb", closefd=False) as stream:
        return stream.read(_MAX_FILE_SIZE)


def _not_private(path: Path, why: str) -> DeviceError:
    return DeviceError(
        Reason.VAULT_PERMISSIONS, f"The key vault at {path} cannot be trusted: {why}.", fix=_FIX_PERMISSIONS
    )


def _failed(error: OSError) -> DeviceError:
    if error.errno in _NO_ROOM:
        return DeviceError(
            Reason.KEY_STORE_FULL, "There is no room to store the key vault.", fix="Free some space and try again."
        )
    return DeviceError(
        Reason.DEVICE_FAILED,
        f"The key vault's files cannot be used: {error.strerror}.",
        fix="Check the disk and the permissions of the directory, then try again.",
    )
