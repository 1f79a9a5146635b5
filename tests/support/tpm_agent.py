"""`keyvouch-agent` in processes of its own over an emulated TPM, against a server in this process that knows its maker.

async with tpm_agent(template, folder, home, chip) as agent:
    code, told, said = await agent.command("tpm", "status", "--json")
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keyvouch_agent.agent_settings import FILE
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_bench.swtpm import MANUFACTURER, Swtpm
from keyvouch_server.ek_trust import TpmSettings
from support.agent_bench import until
from support.live_server import TENANT, LiveServer, OpenSignIn, live_server

__all__ = ["PIN", "USERNAME", "TpmAgent", "tpm_agent"]

PIN: Final = "493817"
USERNAME: Final = "ada"
SECONDS: Final = 60.0
_PROGRAM: Final = (sys.executable, "-m", "keyvouch_agent")


@dataclass
class TpmAgent:
    """One home, one TPM, one server."""

    live: LiveServer
    chip: Swtpm
    home: Path

    @property
    def ledger(self) -> Ledger:
        """What the home knows."""
        return Ledger(Home.open(self.home))

    @property
    def enrolment(self) -> Enrolment:
        """The only one."""
        (found,) = self.ledger.enrolments()
        return found

    def settings(self, **more: str) -> None:
        """Write agent.toml."""
        lines = "".join(f'{name} = "{value}"\n' for name, value in {"tcti": self.chip.tcti, **more}.items())
        Home.open(self.home).write(FILE, f"[tpm]\n{lines}".encode())

    async def command(self, *arguments: str, secrets: tuple[str, ...] = (), **named: str) -> tuple[int, str, str]:
        """Run one command to its end: exit code, standard output, standard error.

        `secrets` are read one after the other from the descriptor that stands for `@` in the arguments.
        """
        reading, writing = os.pipe()
        os.write(writing, "".join(f"{line}\n" for line in secrets).encode())
        os.close(writing)
        given = [str(reading) if argument == "@" else argument for argument in arguments]
        try:
            process = await asyncio.create_subprocess_exec(
                *_PROGRAM, "--home", str(self.home), *given, stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
                pass_fds=(reading,), start_new_session=True, env={**os.environ, **named},
            )  # fmt: skip
            try:
                out, err = await asyncio.wait_for(process.communicate(), SECONDS)
            except TimeoutError:
                process.kill()
                raise
        finally:
            os.close(reading)
        assert process.returncode is not None
        assert b"Traceback" not in err, err.decode()
        return process.returncode, out.decode(), err.decode()

    async def asked(self, *arguments: str, secrets: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
        """The same with `--json`: exit code, and the result or the error."""
        code, out, err = await self.command(*arguments, "--json", secrets=secrets)
        told: dict[str, Any] = json.loads((out or err).splitlines()[-1])
        return code, told

    async def enrol(self, username: str = USERNAME, *extra: str, code: str = "") -> dict[str, Any]:
        """`keyvouch-agent enroll --provider tpm`."""
        access_pass = code or await self.live.issue_pass_again(username)
        server = ("--server", f"127.0.0.1:{self.live.public_port}", "--ca", str(self.live.data / "ca.pem"))
        status, told = await self.asked(
            "enroll", *server, "--tenant", TENANT, "--user", username, "--provider", "tpm",
            "--pin-fd", "@", "--access-pass-fd", "@", *extra, secrets=(PIN, access_pass),
        )  # fmt: skip
        assert status == 0, told
        return told

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """`keyvouch-agent run` in the background, connected."""
        process = await asyncio.create_subprocess_exec(
            *_PROGRAM, "--home", str(self.home), "run", "--quiet-prompts", stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE,
            start_new_session=True,
        )  # fmt: skip
        try:
            await until((self.home / "agent.sock").exists, seconds=20)
            await self.connected()
            yield
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            _, err = await asyncio.wait_for(process.communicate(), SECONDS)
            assert process.returncode == 0, err
            assert b"Traceback" not in err, err

    async def connected(self) -> None:
        """Wait until every stream is open."""
        async with asyncio.timeout(30):
            while {e["state"] for e in (await self.asked("status"))[1]["enrolments"]} - {"connected"}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def pending(self) -> None:
        """Wait until a prompt is there."""
        async with asyncio.timeout(30):
            while not (await self.asked("pending"))[1]["prompts"]:  # noqa: ASYNC110 - another process is asked
                await asyncio.sleep(0.1)

    async def approve(self, opened: OpenSignIn, pin: str = PIN) -> tuple[int, dict[str, Any]]:
        """Approve what was begun."""
        await self.pending()
        return await self.asked("approve", "--number", opened.number, "--pin-fd", "@", secrets=(pin,))

    async def signs_in(self, username: str = USERNAME) -> None:
        """The whole ceremony, through a running agent."""
        opened = await self.live.begin(username)
        code, told = await self.approve(opened)
        assert code == 0, told
        await opened.redeem()


@asynccontextmanager
async def tpm_agent(template: Path, folder: Path, home: Path, chip: Swtpm) -> AsyncIterator[TpmAgent]:
    """Start the server and make its user. The path of `home` has to be short: there will be a socket in it."""
    settings = TpmSettings(chip.ca_certificates, frozenset({MANUFACTURER}))
    async with live_server(template, folder, tpm=settings) as live:
        await live.change_policy(registration={"accounts_per_device": 20}, approval={"begins_per_minute": 6000})
        await live.create_user(USERNAME)
        made = TpmAgent(live, chip, home)
        made.settings()
        yield made
