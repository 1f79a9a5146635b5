"""`keyvouch-agent authenticator serve` in a process of its own, and clients of pcscd in other ones."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from support.programs import PYTHON_PATH

SECONDS = 40.0
_PROGRAM = "import sys; from keyvouch_agent.__main__ import main; sys.exit(main())"


class ServedAuthenticator:
    """A running command with `--json`. Its events can be waited for; all that it says is kept.

    `pin` is given to it with `--pin-fd`.
    """

    def __init__(self, home: Path, *arguments: str, pin: str = "") -> None:
        descriptors = _readable(pin) if pin else ()
        arguments += tuple(word for number in descriptors for word in ("--pin-fd", str(number)))
        command = [sys.executable, "-c", _PROGRAM, "authenticator", "serve", "--home", str(home), "--json", *arguments]
        self._process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": PYTHON_PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=descriptors,
        )
        for number in descriptors:
            os.close(number)
        self.seen: list[dict[str, Any]] = []
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.said: list[str] = []
        self._threads = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_words, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def wait_for(self, event: str, **fields: str) -> dict[str, Any]:
        """The next event of that name with those fields. Fails when the command ends before."""
        while (document := self._events.get(timeout=SECONDS)) is not None:
            if document["event"] == event and fields.items() <= document.items():
                return document
        raise AssertionError(f"the command ended without {event} {fields}: {self.seen} {self.said}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and return its exit status."""
        self._process.send_signal(how)
        return self.status()

    def status(self) -> int:
        """Wait for its end."""
        status = self._process.wait(SECONDS)
        for thread in self._threads:
            thread.join(SECONDS)
        return status

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                document = json.loads(line)
                self.seen.append(document)
                self._events.put(document)
        self._events.put(None)

    def _read_words(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            self.said.extend(json.loads(line)["progress"] if "progress" in line else line for line in lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.status()


def _readable(line: str) -> tuple[int, ...]:
    """A descriptor from which that line is read."""
    source, end = os.pipe()
    with os.fdopen(end, "w") as writing:
        writing.write(f"{line}\n")
    return (source,)


def start_client(environment: Mapping[str, str], code: str, *, connects: bool = True) -> subprocess.Popen[str]:
    """Start a client of pcscd. `device` is the key on the first slot, `ctap` its CTAP2; both unless it `connects`
    itself, with `open_key()`.
    """
    return _start(environment, _CLIENT + (_OPENED if connects else "") + code)


def _start(environment: Mapping[str, str], code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": PYTHON_PATH, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_client(environment: Mapping[str, str], code: str, *, connects: bool = True) -> str:
    """Run a client of pcscd to its end; returns what it printed."""
    return result_of(start_client(environment, code, connects=connects))


def result_of(client: subprocess.Popen[str]) -> str:
    """Wait for the end of a client; returns what it printed."""
    try:
        printed, failure = client.communicate(timeout=SECONDS)
    finally:
        client.kill()
    assert client.returncode == 0, failure
    return printed


def wait_until_missed(environment: Mapping[str, str]) -> None:
    """Wait until pcscd has seen that the card is gone. It looks some twice a second, and misses a quick exchange."""
    result_of(_start(environment, _IMPORTS + "wait_for_card(READER + ' 00 00', present=False)"))


_IMPORTS = """
import time
from keyvouch_bench.fido_reader import open_card, wait_for_card
from keyvouch_bench.pcscd import READER
"""
_CLIENT = (
    _IMPORTS
    + """
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin
from smartcard.Exceptions import SmartcardException

def open_key():
    end = time.monotonic() + 20
    while True:
        try:
            return open_card(READER + " 00 00")
        except SmartcardException:  # pcscd is in the middle of taking notice of the card
            if time.monotonic() > end:
                raise
            time.sleep(0.05)

"""
)
_OPENED = """
device = open_key()
ctap = Ctap2(device)
"""
