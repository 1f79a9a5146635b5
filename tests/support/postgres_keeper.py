"""What ends the processes of a test cluster (`support.postgres_server`), and does so when its owner is gone.

A script of its own, started beside the cluster. It waits until the process that its first argument numbers ends, in
whatever way, or until something arrives on its standard input or that is closed; then it ends PostgreSQL and removes
the folder that its second argument names. Linux' own means are not enough: a signal at the parent's death comes when
the *thread* that started the child ends, and does not reach those that are stopped (SIGSTOP).

PostgreSQL's processes are each in a session of their own. They are known by their names and command lines, in which the
name of the folder stands: anybody may read these, while what else /proc tells of another user's processes, not even
root may read in a container. Only the standard library is imported: this starts in some 30 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

DATA = "data"
"""The data directory, in the folder of the cluster."""

PID_FILE = "postmaster.pid"

PATIENCE_SECONDS = 30.0

_NAMES = ("postgres", "initdb")
_QUIT_SECONDS = 3.0
_IPC_RMID = 0  # linux/ipc.h


def processes(folder: Path) -> dict[int, str]:
    """The cluster's processes in `folder`: the state (`T` is stopped, see proc(5)) by process number. No zombies.

    The folder's name is the cluster's too (setting `cluster_name`), and with it the titles of all processes begin.
    """
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):  # it has just ended
            name, _, rest = Path(entry, "stat").read_text().partition("(")[2].rpartition(")")
            if name in _NAMES and folder.name.encode() in Path(entry, "cmdline").read_bytes():
                found[int(entry.name)] = rest.split()[0]
    return found


def signal_all(folder: Path, number: signal.Signals) -> None:
    """Send a signal to all processes of the cluster in `folder`."""
    for process in processes(folder):
        with suppress(ProcessLookupError):
            os.kill(process, number)


def kill_all(folder: Path) -> None:
    """Kill all processes of the cluster in `folder`, and wait until they are gone. Raises `TimeoutError`."""
    end = time.monotonic() + PATIENCE_SECONDS
    while processes(folder):
        signal_all(folder, signal.SIGKILL)
        if time.monotonic() > end:
            raise TimeoutError(f"processes in {folder} do not end although they were killed")
        time.sleep(0.005)


def stop_all(folder: Path) -> None:
    """Stop (SIGSTOP) all processes of the cluster in `folder`; wait until they stand still. Raises `TimeoutError`."""
    end = time.monotonic() + PATIENCE_SECONDS
    still = 0
    while still < 2:  # seen twice: what a process began just before it was stopped is stopped too
        signal_all(folder, signal.SIGSTOP)
        still = still + 1 if set(processes(folder).values()) <= {"T"} else 0
        if time.monotonic() > end:
            raise TimeoutError(f"processes in {folder} do not stop")
        time.sleep(0.002)


def forget_traces(folder: Path) -> None:
    """Remove what a killed PostgreSQL leaves: its lock files, and the shared memory that would outlast its folder."""
    pid_file = folder / DATA / PID_FILE
    if pid_file.exists():
        lines = pid_file.read_text().splitlines()
        if len(lines) > 6 and lines[6].strip():  # the key and the number of the segment
            ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), _IPC_RMID, None)
        pid_file.unlink()
    for left in folder.glob(".s.PGSQL.*"):
        left.unlink()


def end(folder: Path) -> None:
    """End the cluster, in order where that goes quickly, and remove its folder."""
    signal_all(folder, signal.SIGCONT)
    with suppress(OSError, ValueError, IndexError):
        postmaster = int((folder / DATA / PID_FILE).read_text().splitlines()[0])
        if postmaster in processes(folder):
            os.kill(postmaster, signal.SIGQUIT)
            limit = time.monotonic() + _QUIT_SECONDS
            while processes(folder) and time.monotonic() < limit:
                time.sleep(0.01)
    kill_all(folder)
    with suppress(OSError):
        forget_traces(folder)
    shutil.rmtree(folder, ignore_errors=True)
    kill_all(folder)  # what was about to start; it fails without its folder, but might have begun to make it anew
    shutil.rmtree(folder, ignore_errors=True)


def main(owner: str, folder: str) -> None:
    """Wait for the end of the process `owner`, or of the standard input; then end the cluster."""
    watched: list[int] = [0]
    with suppress(OSError):  # a kernel without it, or the owner is gone already: the input tells that too
        watched.append(os.pidfd_open(int(owner)))
    select.select(watched, [], [])
    end(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
