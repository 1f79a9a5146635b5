"""The `keyvouch` command in a process of its own, with a state directory, and what it said.

`desk_of` puts a session of a live server into a state directory, as `keyvouch sign-in` would leave it there.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keyvouch_client.session_file import KeptSession, SessionFile, StoredState, Target
from support.live_server import TENANT, LiveServer, SignedIn

_LIMIT = 60.0


@dataclass
class Outcome:
    """What a command left: its exit status and its words."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """What it printed with `--json`."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def error(self) -> dict[str, Any]:
        """The error it printed with `--json`."""
        document: dict[str, Any] = json.loads(self.err)["error"]
        return document


async def start_command(
    *words: str,
    home: Path,
    stdin: int | None = None,
    fds: Iterable[int] = (),
    environment: Mapping[str, str] | None = None,
) -> asyncio.subprocess.Process:
    """Start `keyvouch` with `words`; its state is in `home`, its time zone is UTC."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYVOUCH_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keyvouch_client",
        *words,
        env={**kept, "KEYVOUCH_HOME": str(home), "TZ": "UTC", **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=tuple(fds),
    )


async def run_command(*words: str, home: Path, fds: Iterable[int] = ()) -> Outcome:
    """Run `keyvouch` to its end."""
    process = await start_command(*words, home=home, fds=fds)
    out, err = await asyncio.wait_for(process.communicate(), _LIMIT)
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


@dataclass(frozen=True)
class CommandDesk:
    """A person's machine, signed in at a live server."""

    live: LiveServer
    home: Path

    async def run(self, *words: str) -> Outcome:
        """Run the command to its end."""
        return await run_command(*words, home=self.home)

    async def done(self, *words: str) -> Outcome:
        """The same, where it has to succeed; nothing but text has come out."""
        outcome = await self.run(*words)
        assert (outcome.status, "Traceback" in outcome.err) == (0, False), outcome
        return outcome

    async def told(self, *words: str) -> dict[str, Any]:
        """What a command that succeeds says with `--json`."""
        return (await self.done(*words, "--json")).result

    async def refused(self, *words: str) -> dict[str, Any]:
        """The error of a command that is refused, with `--json`; it says what to do."""
        outcome = await self.run(*words, "--json")
        assert outcome.status == 1, outcome
        assert outcome.error["message"], outcome
        assert outcome.error["fix"], outcome
        return outcome.error


def target_of(live: LiveServer, username: str) -> Target:
    """Where and as whom."""
    return Target(f"127.0.0.1:{live.public_port}", str(live.data / "ca.pem"), tenant=TENANT, username=username)


def desk_of(live: LiveServer, username: str, signed_in: SignedIn, home: Path) -> CommandDesk:
    """A machine on which `username` has signed in."""
    key = signed_in.proof_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    kept = KeptSession(live.app.world.facts.server_id, signed_in.tokens, signed_in.session, key)
    SessionFile(home).write(StoredState(target_of(live, username), kept))
    return CommandDesk(live, home)
