"""A claim on a TPM that has no resource manager: one connection at a time among the programs of one user.

Without a resource manager every connection sees, and fills, the same few places for objects and sessions, and whoever
opens one flushes what a killed program left there. So a second connection has to wait until the first is closed. The
claim is a lock on a file (flock), which also ends when its program is killed; the file stays, empty.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from keyvouch.errors import DeviceError, Reason

__all__ = ["PATIENCE_SECONDS", "TpmClaim", "claim_path"]

PATIENCE_SECONDS: Final = 20.0
"""How long a connection waits for its turn: longer than any ceremony holds one, but for a first registration."""
_STEP_SECONDS: Final = 0.005


def claim_path(configuration: str, environment: Mapping[str, str]) -> Path:
    """The file: in the user's runtime folder where the system has such folders, else in the one for temporary files."""
    folder = environment.get("XDG_RUNTIME_DIR", "")
    name = hashlib.sha256(configuration.encode()).hexdigest()[:16]
    return Path(folder if Path(folder).is_absolute() else tempfile.gettempdir()) / f"keyvouch-tpm-{os.geteuid()}-{name}"


class TpmClaim:
    """A claim that is held, until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path, *, patience: float = PATIENCE_SECONDS) -> TpmClaim:
        """Wait for the claim, `patience` seconds at most.

        Raises `DeviceError`: TPM_BUSY when the time is over, TPM_PERMISSION where the file is not this user's own.
        """
        descriptor = _open(path)
        deadline = time.monotonic() + patience
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise _busy() from None
                    time.sleep(_STEP_SECONDS)
                else:
                    return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def release(self) -> None:
        """Let the next one have it. Does nothing the second time."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise _not_ours(path) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise _not_ours(path)
    return descriptor


def _busy() -> DeviceError:
    return DeviceError(
        Reason.TPM_BUSY,
        "Another program of yours is using the TPM, and this TPM has no resource manager, so it serves one at a time.",
        fix="Try again when it has finished. With the kernel's resource manager, /dev/tpmrm0, both work at once.",
    )


def _not_ours(path: Path) -> DeviceError:
    return DeviceError(
        Reason.TPM_PERMISSION,
        f"The lock of the TPM, {path}, cannot be used: it cannot be opened, or belongs to another user.",
        fix="Remove that file, or set XDG_RUNTIME_DIR to a folder of your own.",
        metadata={"path": str(path)},
    )
