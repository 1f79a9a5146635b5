"""Device agents in processes of their own: one that can be killed at points, and the product's command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keyvouch_agent.home import Home
from keyvouch_agent.local_client import call_agent
from support import killable_agent
from support.crash_stage import Account, Stage
from support.kill_points import Trigger, start_program, wait_until

PIN = "428913"
SECONDS = 40.0


@dataclass(slots=True)
class AgentProcess:
    """One home, and the processes that use it one after the other."""

    home: Path
    stage: Stage
    _process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def trigger(self) -> Trigger:
        """Arms a killable agent."""
        return Trigger(self.home.parent)

    @property
    def log(self) -> Path:
        """What all processes of this home wrote to their standard error."""
        return self.home.parent / "agent.log"

    def enroll_until(self, point: str, account: Account, *options: str) -> int:
        """Enrol with a process that dies at `point`; returns its exit status."""
        self.trigger.set(point)
        process = self._start(killable_agent.__name__, "enroll", *self._wish(account), *options)
        secrets = json.dumps({"pin": PIN, "access_pass": account.access_pass})
        try:
            process.communicate(secrets.encode(), SECONDS)
        finally:
            process.kill()
        return process.returncode

    def _wish(self, account: Account) -> list[str]:
        server = self.stage.server
        places = ["--home", str(self.home), "--server", server.endpoint, "--ca", str(server.ca)]
        return [*places, "--tenant", server.tenant, "--user", account.username]

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        return start_program(module, *arguments, environment=self.trigger.environment, log=self.log)

    # The product's own commands

    def command(self, name: str, *arguments: str, **secrets: str) -> tuple[int, dict[str, Any]]:
        """Run `keyvouch-agent NAME` to its end; secrets travel through pipes. Returns exit status and JSON."""
        handed = [(option, _pipe_with(secret)) for option, secret in secrets.items()]
        options = [part for option, handle in handed for part in (f"--{option.replace('_', '-')}", str(handle))]
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "keyvouch_agent",
                    name,
                    "--json",
                    "--home",
                    str(self.home),
                    *arguments,
                    *options,
                ],
                capture_output=True,
                timeout=SECONDS,
                check=False,
                pass_fds=[handle for _, handle in handed],
            )
        finally:
            for _, handle in handed:
                os.close(handle)
        lines = (done.stdout or done.stderr).splitlines()
        return done.returncode, json.loads(lines[-1]) if lines else {}

    def enroll(self, account: Account, *options: str) -> tuple[int, dict[str, Any]]:
        """`keyvouch-agent enroll`."""
        wish = [part for part in self._wish(account) if part not in {"--home", str(self.home)}]
        return self.command("enroll", *wish, *options, pin_fd=PIN, access_pass_fd=account.access_pass)

    # The long-lived agent

    def start(self) -> None:
        """Start the killable agent and wait until it says that it is ready."""
        self._process = self._start(killable_agent.__name__, "run", "--home", str(self.home))
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise AssertionError(f"the agent did not start; see {self.log}")

    def start_product(self) -> None:
        """Start `keyvouch-agent run`, and wait until it answers."""
        self._process = self._start("keyvouch_agent", "run", "--home", str(self.home), "--quiet-prompts")
        wait_until(self.answers, f"the agent did not start; see {self.log}")

    def answers(self) -> bool:
        """Whether a running agent answers."""
        try:
            self.ask("status")
        except Exception:  # noqa: BLE001 - whatever the reason is, it does not answer
            return False
        return True

    def arm(self, point: str) -> None:
        """The running agent is to die at `point`."""
        assert self._process is not None
        self.trigger.arm(self._process.pid, point)

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def wait(self) -> int:
        """Wait until the process has ended; returns its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        try:
            process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return process.returncode

    def stop(self) -> int:
        """Ask the agent to end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def ask(self, op: str, **fields: str) -> dict[str, Any]:
        """Ask the running agent over its socket."""
        return call_agent(Home.open(self.home), op, seconds=SECONDS, **fields)

    def pending(self) -> list[str]:
        """Ids of the prompts it shows."""
        return [prompt["prompt_id"] for prompt in self.ask("pending")["prompts"]]

    def link(self) -> dict[str, Any]:
        """How its only enrolment fares."""
        (link,) = self.ask("status")["enrolments"]
        found: dict[str, Any] = link
        return found

    def connected(self) -> None:
        """Wait until its stream is welcomed. It answers before it has taken up its enrolments."""

        def welcomed() -> bool:
            return [link["state"] for link in self.ask("status")["enrolments"]] == ["connected"]

        wait_until(welcomed, f"the agent does not connect; see {self.log}")


def _pipe_with(secret: str) -> int:
    reading, writing = os.pipe()
    os.write(writing, secret.encode() + b"\n")
    os.close(writing)
    return reading
