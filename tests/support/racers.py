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
    """What became of one call: the name of its status, the reason of its refusal, its response."""

    code: str
    reason: str
    response: bytes


class Racers:
    """Client processes. `race` is for a thread: it waits for them."""

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
        hands = [requests[n :: len(self)] for n in range(len(self))]
        taking_part = [(p, hand) for p, hand in zip(self._processes, hands, strict=True) if hand]
        for process, hand in taking_part:
            encoded = [base64.b64encode(one.SerializeToString()).decode() for one in hand]
            race = {"method": method, "metadata": list(metadata), "requests": encoded, "insist": insist}
            _tell(process, json.dumps(race))
        for process, _ in taking_part:
            _hear(process)
        for process, _ in taking_part:
            _tell(process, "go")
        told = [one for process, _ in taking_part for one in json.loads(_hear(process))]
        return [Finish(one["code"], one["reason"], base64.b64decode(one["response"])) for one in told]


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
def racers(count: int, server: str, ca: Path) -> Iterator[Racers]:
    """Start `count` processes; they end with the block."""
    command = [sys.executable, "-m", racing_client.__name__, server, str(ca)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(count)
    ]
    try:
        yield Racers(processes)
    finally:
        for process in processes:
            process.kill()
        with ThreadPoolExecutor(1) as thread:
            thread.map(lambda p: p.communicate(timeout=10), processes)
