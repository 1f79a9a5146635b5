"""The security key of the demonstration: emulated, on a virtual card reader, through this machine's real pcscd.

    with served_key(folder) as key:
        key.environment        what a program needs to find it
        key.command            how it was started, as a person would type it

It is the agent's own `authenticator serve`, in a process of its own, with nobody who touches it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyvouch.errors import Reason, UnavailableError
from keyvouch_bench.pcscd import PACKAGES, READER, PrivatePcscd

__all__ = ["ServedKey", "served_key"]

PATIENCE_SECONDS: Final = 30.0

COMPILED: Final = "libpcsclite-dev pkg-config swig gcc libc6-dev python3-dev"
"""The packages with which pyscard is made."""

_IN_USE: Final = '"power-on"'
"""The event of the first contact: pcscd has seen the card."""


@dataclass(frozen=True, slots=True)
class ServedKey:
    """A running key. Programs with `environment` have no other readers than the one it is on."""

    reader: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


@contextmanager
def served_key(folder: Path) -> Iterator[ServedKey]:
    """Serve a fresh key with its home in `folder`. Raises `UnavailableError` where that cannot be."""
    if importlib.util.find_spec("smartcard") is None:
        raise UnavailableError(
            Reason.CONFIGURATION,
            "There is no way to a card reader: pyscard is not installed.",
            fix=f"Run apt-get install {PACKAGES} {COMPILED} and try again.",
        )
    with PrivatePcscd() as pcscd, pcscd.port() as port:
        words = (
            "--home", str(folder / "security-key"), "authenticator", "serve", "--transport", "pcsc", "--vault",
            "software", "--presence", "auto", "--vpcd", f"127.0.0.1:{port}",
        )  # fmt: skip
        with _running([sys.executable, "-m", "keyvouch_agent", *words, "--json"], folder / "security-key.log"):
            yield ServedKey(f"{READER} 00 00", ("keyvouch-agent", *words), pcscd.environment)


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    try:
        _until_in_use(process, log)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _until_in_use(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while _IN_USE not in log.read_text("utf-8", errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            words = log.read_text("utf-8", errors="replace").strip().splitlines()
            raise UnavailableError(
                Reason.DEVICE_FAILED,
                f"The emulated security key did not start: {words[-1] if words else 'it said nothing'}.",
                fix="Start it by hand: `keyvouch-agent authenticator serve --help`.",
            )
        time.sleep(0.02)
