"""Who takes part in the demonstration: the stage it is told on, and the people with their programs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from keyvouch_bench.demo_terminal import PATIENCE_SECONDS, at_terminal
from keyvouch_bench.server_process import ServerProcess

__all__ = ["PATIENCE_SECONDS", "PIN", "WRONG_PIN", "Person", "Stage", "output_of"]

PIN: Final = "493817"
WRONG_PIN: Final = "493818"


class Stage:
    """Where the story is told: numbered headings, sentences, commands and what they print."""

    def __init__(self, folder: Path, *, interactive: bool, colour: bool) -> None:
        self.folder = folder
        self.interactive = interactive
        self._colour = colour
        self._chapter = 0
        self._start = time.monotonic()

    def chapter(self, title: str) -> None:
        """Begin the next step."""
        self._chapter += 1
        self._print(f"\n{self._paint('1;36', f'{self._chapter}. {title}')}")

    def tell(self, text: str) -> None:
        """A sentence of the story."""
        self._print(f"   {text}")

    def good(self, text: str) -> None:
        """A result."""
        self._print(f"   {self._paint('1;32', text)}")

    def command(self, arguments: Sequence[str]) -> None:
        """The command that is about to run, as a person would type it."""
        words = [(a if a == "&" else shlex.quote(a)).replace(str(self.folder), "$DEMO") for a in arguments]
        for line in _wrapped(words, shutil.get_terminal_size().columns - 4):
            self._print(f"   {self._paint('2', line)}")

    def output(self, text: str) -> None:
        """What a program printed."""
        for line in text.rstrip().splitlines():
            self._print(f"   | {line.replace(str(self.folder), '$DEMO')}")

    def finish(self) -> None:
        """The last line."""
        self._print(f"\nThe demo took {time.monotonic() - self._start:.0f} s. Nothing of it is left on this machine.")

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    @staticmethod
    def _print(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    """A command on lines of at most `width`, broken as a shell understands it; an option stays with its value."""
    parts: list[str] = []
    for word in words:
        if parts and parts[-1].startswith("--") and " " not in parts[-1] and not word.startswith(("-", "&")):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines = ["$"]
    for part in parts:
        if len(lines[-1]) + 1 + len(part) + 2 > width and lines[-1] != "$":
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {part}"
    return lines


class Person:
    """Somebody with a client and an agent, each with a home of its own; `device` is the folder of the agent's."""

    def __init__(
        self,
        stage: Stage,
        server: ServerProcess,
        name: str,
        *,
        provider: str,
        settings: str,
        environment: Mapping[str, str],
        device: str = "agent",
    ) -> None:
        self.name = name
        self.provider = provider
        self._extra = environment
        self._stage = stage
        self._server = server
        self._home = stage.folder / name
        self._agent_home = self._home / device
        if settings:
            self._agent_home.mkdir(mode=0o700, parents=True)
            (self._agent_home / "agent.toml").write_text(settings, "utf-8")
            (self._agent_home / "agent.toml").chmod(0o600)

    def with_device(self, device: str) -> Person:
        """The same person with another device, whose keys are in software; the client is the same."""
        return Person(
            self._stage,
            self._server,
            self.name,
            provider="software",
            settings="",
            environment=self._extra,
            device=device,
        )

    def agent(self, *arguments: str, secrets: dict[str, str] | None = None, show: bool = True) -> str:
        """Run `keyvouch-agent`; `secrets` go through descriptors, never through the command line."""
        words = ["keyvouch-agent", "--home", str(self._agent_home), *arguments]
        return self._run("keyvouch_agent", words, secrets or {}, show=show)

    def client(self, *arguments: str, show: bool = True) -> str:
        """Run `keyvouch` and wait for it."""
        return self._run("keyvouch_client", ["keyvouch", *arguments], {}, show=show)

    def _run(self, module: str, words: list[str], secrets: dict[str, str], *, show: bool) -> str:
        with ExitStack() as stack:
            descriptors = {option: stack.enter_context(_pipe(secret)) for option, secret in secrets.items()}
            extra = [word for option, number in descriptors.items() for word in (option, str(number))]
            if show:
                self._stage.command([*words, *extra])
            done = subprocess.run(  # noqa: S603 - our own programs
                [sys.executable, "-m", module, *words[1:], *extra],
                pass_fds=tuple(descriptors.values()), env=self._environment(), capture_output=True, text=True,
                timeout=PATIENCE_SECONDS, check=False,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        if show:
            self._stage.output(done.stdout)
        return done.stdout

    def at_terminal(self, arguments: Sequence[str], answers: Sequence[tuple[str, str]]) -> str:
        """Run `keyvouch-agent` at a terminal of its own and type the answers; returns what stood on the screen."""
        words = ["keyvouch-agent", "--home", str(self._agent_home), *arguments]
        self._stage.command(words)
        return at_terminal([sys.executable, "-m", "keyvouch_agent", *words[1:]], answers, self._environment())

    def _environment(self) -> dict[str, str]:
        own = {"KEYVOUCH_HOME": str(self._home / "client"), "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **self._extra, **own}

    def enrol(self, access_pass: str) -> None:
        """Register this person's device with a pass; the PIN is new and stays on the device."""
        self.agent(
            "enroll", "--server", self._server.endpoint, "--ca", str(self._server.ca), "--tenant", self._server.tenant,
            "--user", self.name, "--name", f"Laptop of {self.name}", "--provider", self.provider,
            secrets={"--access-pass-fd": access_pass, "--pin-fd": PIN},
        )  # fmt: skip

    @contextmanager
    def running_agent(self) -> Iterator[None]:
        """The long-lived agent, in the background."""
        words = ["keyvouch-agent", "--home", str(self._agent_home), "run", "--quiet-prompts"]
        self._stage.command([*words, "&"])
        with self._log.open("w") as log:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "keyvouch_agent", *words[1:]], stdout=log, stderr=log, env=self._environment()
            )
        try:
            self._until_connected()
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)

    def _until_connected(self) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            try:
                if "connected" in self.agent("status", show=False):
                    return
            except RuntimeError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"the agent did not connect; see {self._log}")

    @property
    def _log(self) -> Path:
        return self._agent_home.with_suffix(".log")

    @contextmanager
    def signing_in(self) -> Iterator[subprocess.Popen[str]]:
        """`keyvouch sign-in` in a process of its own, waiting for the device."""
        words = [
            "sign-in", "--server", self._server.endpoint, "--ca", str(self._server.ca), "--tenant", self._server.tenant,
            "--user", self.name, "--app", "Time sheets", "--message", "Open your time sheet",
        ]  # fmt: skip
        self._stage.command(["keyvouch", *words])
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "keyvouch_client", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=self._environment(),
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)
            output_of(process).close()

    def wait_for_prompt(self) -> dict[str, Any]:
        """The request as the agent has it, once it is there."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            waiting: list[dict[str, Any]] = json.loads(self.agent("pending", "--json", show=False))["prompts"]
            if waiting:
                return waiting[0]
            time.sleep(0.1)
        raise RuntimeError("the request did not reach the agent")


@contextmanager
def _pipe(secret: str) -> Iterator[int]:
    """A descriptor from which `secret` can be read once."""
    reading, writing = os.pipe()
    os.write(writing, secret.encode())
    os.close(writing)
    try:
        yield reading
    finally:
        os.close(reading)


def output_of(process: subprocess.Popen[str]) -> TextIO:
    """What a program prints."""
    if process.stdout is None:
        raise RuntimeError("the process has no output to read")
    return process.stdout  # type: ignore[return-value] # IO[str] of a text process
