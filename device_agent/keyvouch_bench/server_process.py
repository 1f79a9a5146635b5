"""A real verification server in a process of its own, for tests, benches and the demonstration.

with ServerProcess.make(folder) as server:
    server.start()
    ...
    server.kill()          # as in kill -9
    server.start()         # the same data, the same ports
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from keyvouch.errors import Reason, UnavailableError

START_SECONDS = 30.0

_PORTS = (15000, 32000)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now. Another program may take one before you do; then starting fails and says so.

    They lie below the ports that systems give to outgoing connections. Else a client that calls a killed server again
    and again is, one day, given the server's own port, and the server cannot have it back.
    """
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", _PORTS[0] + secrets.randbelow(_PORTS[1] - _PORTS[0])))
            except OSError:
                candidate.close()
                continue
            sockets.append(candidate)
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


@dataclass(slots=True)
class ServerProcess:
    """One server: its data directory, its ports, its process while it runs.

    `administrator_pass` is the access pass that `keyvouch-server init` printed. `command` starts the server
    program; a test may put its own program there that takes the same arguments.
    """

    data: Path
    public_port: int
    device_port: int
    tenant: str
    administrator: str
    administrator_pass: str
    command: Sequence[str] = (sys.executable, "-m", "keyvouch_server")
    environment: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(cls, folder: Path, *, tenant: str = "example", administrator: str = "admin", store: str = "") -> Self:
        """Run `keyvouch-server init` for a new data directory inside `folder`, on free ports of the loopback.

        `store` is the address of a PostgreSQL database; without it the store is a file in the data directory.
        """
        public, device = free_ports(2)
        data = folder / "server"
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", "keyvouch_server", "init", "--json", "--data", str(data), "--tenant", tenant,
             "--administrator", administrator, "--public-listen", f"127.0.0.1:{public}",
             "--device-listen", f"127.0.0.1:{device}", "--store", store],
            check=True, capture_output=True, timeout=START_SECONDS,
        )  # fmt: skip
        report = json.loads(done.stdout)
        return cls(data, public, device, tenant, administrator, report["access_pass"])

    @property
    def endpoint(self) -> str:
        """host:port of the public listener."""
        return f"localhost:{self.public_port}"

    @property
    def ca(self) -> Path:
        """The certificate clients and agents trust."""
        return self.data / "ca.pem"

    @property
    def log(self) -> Path:
        """What the server wrote to its standard error, all starts together."""
        return self.data.parent / "server.log"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise UnavailableError(Reason.SERVER_UNREACHABLE, "The server process is not running.", fix="Start it.")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it says that it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [*self.command, "serve", "--json", "--data", str(self.data)],
                stdout=subprocess.PIPE, stderr=log, env={**os.environ, **self.environment},
            )  # fmt: skip
        stdout = self._process.stdout
        line = stdout.readline() if stdout is not None else b""
        if not line.startswith(b'{"ready"'):
            self.kill()
            raise UnavailableError(
                Reason.SERVER_UNREACHABLE, "The server process did not start.", fix=f"Its last words are in {self.log}."
            )

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask the process to end and wait for it; returns its exit status."""
        return self._end(signal.SIGTERM)

    def wait(self, seconds: float = START_SECONDS) -> int:
        """Wait until the process has ended by itself; returns its exit status, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        status = process.wait(seconds)
        if process.stdout is not None:
            process.stdout.close()
        return status

    def _end(self, how: signal.Signals) -> int:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
