"""A server process that believes the makers of emulated TPMs, device agents in processes of their own, and a client's.

with TpmDesk.open(folder, tpm) as desk:
    laptop, ada = desk.device("laptop"), desk.account()
    laptop.enroll(ada)
    with desk.running(laptop):
        sign_in = desk.begin(ada)
        laptop.approve(sign_in.number)
        sign_in.whoami()
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from keyvouch.v1 import administration_pb2 as pb
from keyvouch_bench.server_process import ServerProcess
from keyvouch_bench.swtpm import MANUFACTURER, Swtpm
from keyvouch_client.errors import answer
from support.agent_process import PIN, SECONDS, AgentProcess
from support.crash_stage import Account, Stage
from support.kill_points import wait_until

__all__ = ["ClientSignIn", "TpmDesk", "TpmLaptop"]

WRONG = "000000"


@dataclass(slots=True)
class TpmLaptop:
    """One home whose keys are in a TPM."""

    agent: AgentProcess

    def enroll(self, account: Account, *options: str, pin: str = PIN) -> tuple[int, dict[str, Any]]:
        """`keyvouch-agent enroll`; exit status and JSON."""
        server = self.agent.stage.server
        wish = ["--server", server.endpoint, "--ca", str(server.ca), "--tenant", server.tenant]
        return self.agent.command(
            "enroll", *wish, "--user", account.username, *options, pin_fd=pin, access_pass_fd=account.access_pass
        )

    def prompted(self) -> str:
        """The id of the only prompt, once it is there."""
        wait_until(lambda: len(self.agent.pending()) == 1, f"no prompt came; see {self.agent.log}")
        return self.agent.pending()[0]

    def approve(self, number: str, pin: str = PIN) -> tuple[int, dict[str, Any]]:
        """`keyvouch-agent approve`."""
        return self.agent.command("approve", self.prompted(), "--number", number, pin_fd=pin)

    def told(self, *arguments: str) -> str:
        """What a command tells a person."""
        done = subprocess.run(
            [sys.executable, "-m", "keyvouch_agent", "--home", str(self.agent.home), *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.stdout + done.stderr


@dataclass(slots=True)
class ClientSignIn:
    """`keyvouch sign-in` in a process of its own. `number` is what it shows."""

    home: Path
    process: subprocess.Popen[str]
    number: str

    def result(self) -> tuple[int, str]:
        """Exit status, and everything it wrote after the number."""
        out, _ = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out

    def told(self, *arguments: str) -> str:
        """What another `keyvouch` command tells about this session."""
        return _client(self.home, *arguments).communicate(timeout=SECONDS)[0]


@dataclass(slots=True)
class TpmDesk:
    """See the module."""

    stage: Stage
    tpm: Swtpm
    folder: Path
    _clients: list[ClientSignIn] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, tpm: Swtpm) -> Iterator[Self]:
        """Make and start the server; at the end every process is gone."""
        with ServerProcess.make(folder) as server:
            with (server.data / "keyvouch.toml").open("a") as config:
                config.write(f'\n[tpm]\nendorsement_trust = "{tpm.ca_certificates}"\n')
                config.write(f'unregistered_manufacturers = ["{MANUFACTURER}"]\n')
            server.start()
            stage = Stage(server)
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, stage._prepare({})).result()
            desk = cls(stage, tpm, folder)
            try:
                yield desk
            finally:
                for client in desk._clients:
                    client.process.kill()
                    client.process.communicate()

    def device(self, name: str) -> TpmLaptop:
        """A new home that is told of the TPM."""
        home = self.folder / name / "home"
        home.mkdir(parents=True, mode=0o700)
        (home / "agent.toml").write_text(f'[tpm]\ntcti = "{self.tpm.tcti}"\n')
        (home / "agent.toml").chmod(0o600)
        return TpmLaptop(AgentProcess(home, self.stage))

    @contextmanager
    def running(self, laptop: TpmLaptop, accounts: int = 1) -> Iterator[None]:
        """`keyvouch-agent run`, connected for all its accounts; it must end well."""
        agent = laptop.agent
        agent.start_product()
        try:
            wait_until(lambda: connected(agent) == accounts, f"the agent does not connect; see {agent.log}")
            yield
        except BaseException:
            agent.kill()
            raise
        assert agent.stop() == 0, agent.log.read_text()
        assert "Traceback" not in agent.log.read_text()

    # People

    def account(self, name: str = "ada", **options: Any) -> Account:
        """A new user with a pass."""
        self.administer("CreateUser", pb.CreateUserRequest(username=name))
        return self.new_pass(name, **options)

    def new_pass(self, name: str, **options: Any) -> Account:
        """A pass for a user."""
        made = self.administer("CreateAccessPass", pb.CreateAccessPassRequest(username=name, **options))
        return Account(name, made.code)

    def change_policy(self, **parts: dict[str, Any]) -> None:
        """Save the policy with changes."""
        policy = self.administer("GetPolicy", pb.GetPolicyRequest()).policy
        for part, changes in parts.items():
            for name, value in changes.items():
                setattr(getattr(policy, part), name, value)
        self.administer("UpdatePolicy", pb.UpdatePolicyRequest(policy=policy, accept_lock_out=True))

    def administer(self, method: str, request: Any) -> Any:
        """Call an administration method."""

        async def call() -> Any:
            async with self.stage.connect() as connection:
                stub: Any = connection.administration
                return await answer(getattr(stub, method)(request, metadata=self.stage.administrator, timeout=SECONDS))

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, call()).result()

    def devices(self, name: str) -> list[str]:
        """Ids of a user's devices, as administrators see them."""
        told = self.administer("ListDevices", pb.ListDevicesRequest(username=name))
        return [device.device_id for device in told.devices]

    def begin(self, account: Account) -> ClientSignIn:
        """Begin a sign-in as a person does, and read the number."""
        server, home = self.stage.server, self.folder / f"client-{len(self._clients)}"
        wish = ["--server", server.endpoint, "--ca", str(server.ca), "--tenant", server.tenant]
        process = _client(home, "sign-in", *wish, "--user", account.username)
        client = ClientSignIn(home, process, "")
        self._clients.append(client)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Number:"):
                client.number = line.split()[-1]
                break
        return client

    def signed_in(self, laptop: TpmLaptop, account: Account, pin: str = PIN) -> ClientSignIn:
        """Begin a sign-in and approve it."""
        sign_in = self.begin(account)
        status, outcome = laptop.approve(sign_in.number, pin)
        assert status == 0, outcome
        assert sign_in.result()[0] == 0
        return sign_in


def connected(agent: AgentProcess) -> int:
    """How many links of an agent are up."""
    return [link["state"] for link in agent.ask("status")["enrolments"]].count("connected")


def _client(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "keyvouch_client", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "KEYVOUCH_HOME": str(home)},
    )
