"""Somebody at a shell who types and presses the tab key: what the shell makes of it is what is run.

    typed("bash", script, "keyvouch", "keyvouch adm\\tus\\tcre\\t", folder)   # "admin user create"

The program is a function of the shell that says what it was given. Not here: what a script of completion holds.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
import time
from contextlib import suppress
from pathlib import Path

_LIMIT = 30.0
_READY, _RAN = "READY-TO-BE-TYPED-AT", re.compile(r"RAN<([^>]*)>NAR")

_START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
_SETUP = {
    "bash": 'source {script}; {program}() {{ echo "RA""N<$*>NAR"; }}; echo READY-TO-BE-"TYPED-AT"',
    "zsh": "autoload -Uz compinit; compinit -u -D; source {script}; "
    '{program}() {{ print -r -- "RA""N<$*>NAR"; }}; echo READY-TO-BE-"TYPED-AT"',
    "fish": 'source {script}; function {program}; echo "RA""N<$argv>NAR"; end; echo READY-TO-BE-"TYPED-AT"',
}

SHELLS = tuple(shell for shell in _START if shutil.which(shell))
"""Those that this machine has; bash is everywhere where the product runs."""


def typed(shell: str, script: Path, program: str, keys: str, folder: Path) -> str:
    """What `program` was given after `keys` and Enter were pressed in an interactive `shell`."""
    setup = folder / "setup"
    setup.write_text(_SETUP[shell].format(script=script, program=program) + "\n")
    own_end, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    os.set_blocking(own_end, False)
    process = subprocess.Popen(
        _START[shell], cwd=folder, env={**os.environ, "HOME": str(folder), "TERM": "xterm"},
        stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one call
    )  # fmt: skip
    os.close(theirs)
    try:
        os.write(own_end, f"source {setup}\n".encode())
        _until(own_end, re.compile(f"({_READY})"))
        os.write(own_end, f"{keys}\n".encode())
        return _until(own_end, _RAN).strip()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        os.close(own_end)


def _until(own_end: int, wanted: re.Pattern[str]) -> str:
    """Read until `wanted` has been shown; returns its group."""
    shown, end = "", time.monotonic() + _LIMIT
    while time.monotonic() < end:
        with suppress(BlockingIOError, OSError):
            shown += os.read(own_end, 65536).decode("utf-8", "replace")
        if found := wanted.search(shown):
            return found[1]
        time.sleep(0.01)
    raise AssertionError(f"{wanted.pattern!r} was not shown, but: {shown!r}")
