"""Points at which a test program ends itself with SIGKILL, as `kill -9` or a crash would.

A point has a name of its program's choosing and a number: the N-th time it is reached. The file
KEYVOUCH_TEST_POINTS names receives a line for every point that is reached. SIGUSR1 arms the point written in the file
KEYVOUCH_TEST_ARM names, counting from then on, and is answered by the line `armed`. A point written as `pause POINT`
does not end the program: it stops where it is, until SIGCONT.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.repository import ROOT

POINTS, ARM = "KEYVOUCH_TEST_POINTS", "KEYVOUCH_TEST_ARM"
PAUSE = "pause "


class Points:
    """Counts what is reached, writes it down, and ends the process at the armed point."""

    def __init__(self) -> None:
        log, arm = os.environ.get(POINTS), os.environ.get(ARM)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else -1
        self._arm_file = Path(arm) if arm else None
        self._armed = ""
        self._signal = signal.SIGKILL
        self._seen: Counter[str] = Counter()

    def arm(self) -> None:
        """Take up the point in the file, and count from here."""
        self._seen.clear()
        told = self._arm_file.read_text().strip() if self._arm_file else ""
        self._armed = told.removeprefix(PAUSE)
        self._signal = signal.SIGSTOP if told.startswith(PAUSE) else signal.SIGKILL
        self._write("armed")

    def reach(self, name: str) -> None:
        """The program is at this point."""
        self._seen[name] += 1
        point = f"{name} {self._seen[name]}"
        self._write(point)
        if point == self._armed:
            os.kill(os.getpid(), self._signal)

    def _write(self, line: str) -> None:
        if self._log >= 0:
            os.write(self._log, f"{line}\n".encode())


@dataclass(frozen=True, slots=True)
class Trigger:
    """The test's end of a program with points; `folder` holds the two files."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the program needs to be started with."""
        path = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            POINTS: str(self.folder / "points"),
            ARM: str(self.folder / "armed"),
            "PYTHONPATH": os.pathsep.join(path),
        }

    def set(self, point: str) -> None:
        """Write down the point, before a program starts that arms itself."""
        (self.folder / "points").write_bytes(b"")
        (self.folder / "armed").write_text(point)

    def reached(self) -> list[str]:
        """What was reached since a point was set."""
        return (self.folder / "points").read_text().splitlines()

    def arm(self, pid: int, point: str) -> None:
        """From now on the program counts, and kills itself at `point` (none: it only counts)."""
        self.set(point)
        os.kill(pid, signal.SIGUSR1)
        wait_until(lambda: "armed" in self.reached(), f"process {pid} did not arm {point!r}")


def wait_until(holds: Callable[[], object], otherwise: str, seconds: float = 20.0) -> None:
    """Block until `holds()`."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise AssertionError(otherwise)
        time.sleep(0.01)


def start_program(module: str, *arguments: str, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a Python program of ours with pipes for what it is told and what it says."""
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **environment},
        )
