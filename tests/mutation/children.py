"""Runs each mutant in a child process of its own, several at a time, with a limit on time and memory."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, unique

__all__ = ["Verdict", "Work", "run_all"]

_MEMORY = 4 << 30
_INCONCLUSIVE = 77


@unique
class Verdict(Enum):
    """What became of a mutant."""

    KILLED = "killed"
    TIMEOUT = "timeout"
    SURVIVED = "survived"
    ELSEWHERE = "elsewhere"
    """It cannot be judged in this way; try the other one."""


@dataclass(frozen=True, slots=True)
class Work:
    """One mutant for a child. `act` returns True if the tests passed, None if it could not be judged this way."""

    name: str
    seconds: float
    act: Callable[[], bool | None]


def run_all(work: list[Work], *, jobs: int) -> Iterator[tuple[str, Verdict]]:
    """Fork a child for each piece of work; yield its name and verdict as they come."""
    waiting, running = list(reversed(work)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            piece = waiting.pop()
            pid = _start(piece)
            running[os.pidfd_open(pid)] = (pid, piece.name, time.monotonic() + piece.seconds)
        soonest = min(deadline for _, _, deadline in running.values())
        ready, _, _ = select.select(list(running), [], [], max(0.0, soonest - time.monotonic()))
        late = [fd for fd, (_, _, deadline) in running.items() if fd not in ready and deadline <= time.monotonic()]
        for fd in (*ready, *late):
            pid, name, _ = running.pop(fd)
            os.close(fd)
            yield name, _end(pid, late=fd in late)


def _start(piece: Work) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nowhere, fd)
        _stop_clocks()
        passed = piece.act()
        status = _INCONCLUSIVE if passed is None else 0 if passed else 1
    finally:
        os._exit(status)


def _stop_clocks() -> None:
    """Tests with a limit on time would fail on a busy machine and kill mutants that they cannot tell from the original.

    A mutant that never ends is found by the time limit of its child.
    """
    for clock in ("perf_counter", "thread_time", "process_time"):
        setattr(time, clock, lambda: 0.0)


def _end(pid: int, *, late: bool) -> Verdict:
    if late:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if late:
        return Verdict.TIMEOUT
    code = os.waitstatus_to_exitcode(status)
    return {0: Verdict.SURVIVED, _INCONCLUSIVE: Verdict.ELSEWHERE}.get(code, Verdict.KILLED)
