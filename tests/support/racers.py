"""Several client processes that send calls at the same moment (`racing_client`)."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from support import racing_client

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Finish:
    """What became of one call: the name of its status, the reason of its refusal, its response.

    `met` are the reasons of the refusals before, if it was sent again: empty where there was no answer. `longest` is
    how many seconds its longest attempt took.
    """

    code: str
    reason: str
    response: bytes
    met: frozenset[str]
    longest: float


class Race:
    """A race that goes on in some of the processes."""

    def __init__(self, running: Sequence[tuple[int, subprocess.Popen[str]]]) -> None:
        self._running = dict(running)

    def finishes(self, *but_for: int) -> list[Finish]:
        """Wait for all processes that were not heard yet `but_for` these; what became of their calls, hand by hand."""
        heard = [number for number in self._running if number not in but_for]
        told = [one for number in heard for one in json.loads(_hear(self._running.pop(number)))]
        return [
            Finish(f["code"], f["reason"], base64.b64decode(f["response"]), frozenset(f["met"]), f["longest"])
            for f in told
        ]


class Racers:
    """Client processes. `start` and `race` are for a thread: they wait for them."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def __len__(self) -> int:
        return len(self._processes)

    def race(
        self,
        method: str,
        requests: Sequence[Message],
        metadata: Sequence[tuple[str, str]] = (),
        *,
        insist: bool = False,
    ) -> list[Finish]:
        """Send `requests`, dealt out to the processes, all at once; returns what became of them, hand by hand."""
        return self.start(method, requests, metadata, insist=insist).finishes()

    def start(
        self,
        method: str,
        requests: Sequence[Message],
        metadata: Sequence[tuple[str, str]] = (),
        *,
        insist: bool = False,
    ) -> Race:
        """The same, without waiting for the end."""
        hands = [requests[n :: len(self)] for n in range(len(self))]
        taking_part = [(n, self._processes[n]) for n, hand in enumerate(hands) if hand]
        for number, process in taking_part:
            encoded = [base64.b64encode(one.SerializeToString()).decode() for one in hands[number]]
            race = {"method": method, "metadata": list(metadata), "requests": encoded, "insist": insist}
            _tell(process, json.dumps(race))
        for _, process in taking_part:
            _hear(process)
        for _, process in taking_part:
            _tell(process, "go")
        return Race(taking_part)


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(f"a racing client ended with {process.wait(10)}")
    return line


@contextmanager
def racers(count: int, servers: Sequence[str], ca: Path) -> Iterator[Racers]:
    """Start `count` processes; they end with the block. The n-th one begins with the n-th of `servers`, in turn."""
    processes = []
    for number in range(count):
        first = number % len(servers)
        command = [sys.executable, "-m", racing_client.__name__, str(ca), *servers[first:], *servers[:first]]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT))
    try:
        yield Racers(processes)
    finally:
        for process in processes:
            process.kill()
        with ThreadPoolExecutor(1) as thread:
            thread.map(lambda p: p.communicate(timeout=10), processes)
