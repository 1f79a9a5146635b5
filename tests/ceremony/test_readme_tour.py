"""The README's five-minute tour, typed as it stands there by a person at three terminals.

Every command goes into a real shell on a pseudo-terminal; questions for pass, PIN, number and choice are answered as
they come; every line of output the page shows has to appear, in its order; the Python files are the page's own. What
differs from the page: free ports in place of the fixed ones, and the environment the tests already run in, so that
`./run setup` and the activation are not typed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from keyvouch_bench.server_process import free_ports
from support.programs import PYTHON_PATH, programs
from support.readme import Command, console_blocks, named_files
from support.repository import ROOT
from support.shell_terminal import Answers, ShellTerminal, shell_terminal

PIN = "493817"
PATIENCE_SECONDS = 30.0
TERMINALS = ("server", "device", "desk")
NOT_TYPED = ("./run setup bench", ". .venv/bin/activate")
PORTS = ("7443", "7444", "7445")
STAY = re.compile(r"^keyvouch-server serve |^keyvouch-agent run ")
"""Commands that keep their terminal until Ctrl-C."""

VARIABLE = {
    r"\b[a-z]{3}_[a-z2-7]{26}\b": "<id>",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d": "<time>",
    r"\b[0-9A-Z]{8}\b": "<pass>",
    r"(?<=Number: )\d+": "<number>",
}
"""What is another text each time, on the page as on the screen."""

PAGE = (ROOT / "README.md").read_text("utf-8")


class Reader:
    """Somebody who follows the page."""

    def __init__(self, terminals: dict[str, ShellTerminal], ports: dict[str, str]) -> None:
        self._terminals = terminals
        self._ports = ports
        self._begun = dict.fromkeys(terminals, 0)

    def here(self, text: str) -> str:
        """The page's text with the ports of this run."""
        for fixed, free in self._ports.items():
            text = text.replace(fixed, free)
        return text

    def follow(self, name: str, command: Command) -> None:
        """Type a command, and wait for what the page promises."""
        terminal = self._terminals[name]
        if terminal.status() is None:
            terminal.interrupt()
            self._wait(name, lambda: terminal.status() is not None, "Ctrl-C")
            assert terminal.status() == 0, terminal.screen
        line = self.here(command.text)
        if line.startswith("keyvouch-server init "):
            public, devices, _ = self._ports.values()
            line += f" --public-listen 127.0.0.1:{public} --device-listen 127.0.0.1:{devices}"
        self._begun[name] = terminal.type(line)
        stays = STAY.match(line) is not None

        def done() -> bool:
            return terminal.status() is not None or (stays and self._missing(name, command) is None)

        self._wait(name, done, line)
        assert self._missing(name, command) is None, f"{line}: {self._missing(name, command)!r} in {terminal.screen}"
        assert terminal.status() == (None if stays else 0), f"{line}: {terminal.screen}"

    def _missing(self, name: str, command: Command) -> str | None:
        """The first line the page shows and the screen does not, in order."""
        shown = [masked(line) for line in self._terminals[name].look()[self._begun[name] :].splitlines()[1:]]
        for promised in filter(str.strip, command.output):
            wanted = masked(self.here(promised)).rstrip()
            at = next((n for n, line in enumerate(shown) if line.rstrip() == wanted), None)
            if at is None:
                return promised
            shown = shown[at + 1 :]
        return None

    def _wait(self, name: str, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not done():
            assert time.monotonic() < end, "\n".join([what, *(t.screen for t in self._terminals.values())])
            for terminal in self._terminals.values():
                terminal.answer(self._answers(name))
            time.sleep(0.05)

    def _answers(self, active: str) -> Answers:
        """What a person who reads all three screens replies."""
        return {
            r"Temporary Access Pass: ": self._access_pass,
            r"New PIN: |New PIN again: |PIN \([^)]*\): ": lambda: PIN,
            r"Your choice \(a, d, r\): ": lambda: "a",
            r"Number shown where you sign in \(2 digits\): ": lambda: self._number(active),
            r"Type yes to go on: ": lambda: "yes",
        }

    def _access_pass(self) -> str:
        """The pass that was shown last."""
        screens = self._terminals["server"].screen + self._terminals["desk"].screen
        return re.findall(r"^ +(?:access pass +)?([0-9A-Z]{8})(?: .*)?$", screens, re.MULTILINE)[-1]  # type: ignore[no-any-return]

    def _number(self, active: str) -> str | None:
        found = re.findall(r"Number: (\d+)", self._terminals[active].screen[self._begun[active] :])
        return found[-1] if found else None


def masked(line: str) -> str:
    for pattern, word in VARIABLE.items():
        line = re.sub(pattern, word, line)
    return line


def put_programs_on_path(folder: Path) -> dict[str, str]:
    """Commands that run the product of this tree, as an installation would make them; returns the environment."""
    folder.mkdir()
    for name, entry in programs().items():
        module, function = entry.split(":")
        code = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; sys.exit({function}())"
        write_program(folder / name, f"-c {shlex.quote(code)}")
    write_program(folder / "python3", "")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KEYVOUCH_", "XDG_", "COV_"))}
    return {**kept, "PATH": f"{folder}:{kept['PATH']}", "PYTHONPATH": PYTHON_PATH, "HOME": str(folder)}


def write_program(path: Path, arguments: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
    path.chmod(0o755)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    assert shutil.which("bash"), "the tour is typed into bash: apt-get install bash"
    environment = put_programs_on_path(tmp_path / "programs")
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    with ExitStack() as stack:
        terminals = {name: stack.enter_context(shell_terminal(tmp_path, environment)) for name in TERMINALS}
        yield Reader(terminals, ports)


def tour() -> list[tuple[str, Command]]:
    """The commands of the tour with their terminals, in the page's order."""
    blocks = [block for block in console_blocks(PAGE) if block.section == "Five-minute tour"]
    return [(block.terminal, c) for block in blocks for c in block.commands if c.text not in NOT_TYPED]


def test_the_tour_of_the_readme(reader: Reader, tmp_path: Path) -> None:
    steps = tour()
    assert {terminal for terminal, _ in steps} == set(TERMINALS)
    files = named_files(PAGE)
    assert len(files) == 2
    for terminal, command in steps:
        reader.follow(terminal, command)
        for name, text in files.items():
            if (tmp_path / name).parent.is_dir():
                (tmp_path / name).write_text(reader.here(text))
