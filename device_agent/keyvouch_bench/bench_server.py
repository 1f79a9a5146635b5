"""A development server for benches: a real one in its own process, with a tenant and an administrator who is signed in.

    with BenchServer.make(folder) as server:
        code = server.access_pass("ada")       # makes the user if there is none of that name
        device = server.enrol("ada")           # a scripted device of theirs (`keyvouch_bench.device`)

Everything here blocks, so that a test needs no event loop of its own; what it needs of one runs on a thread. The server
trusts what its configuration says and nothing else: `keyvouch.toml` in `server.data` can be changed before it starts.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from keyvouch.errors import ConflictError, NotFoundError, Reason
from keyvouch.v1 import administration_pb2 as pb
from keyvouch_bench.device import BenchDevice, PromptStream, enrol_with_pass
from keyvouch_bench.server_process import ServerProcess
from keyvouch_client import Connection, SignIn
from keyvouch_client.errors import answer

__all__ = ["BenchServer"]

Metadata = tuple[tuple[str, str], ...]
T = TypeVar("T")


class BenchServer:
    """One running server. `process` can be killed and started again; what it knows stays."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self._administrator: BenchDevice | None = None
        self._lock = threading.Lock()

    @classmethod
    @contextmanager
    def make(
        cls, folder: Path, *, tenant: str = "example", configure: Callable[[Path], None] = lambda _config: None
    ) -> Iterator[Self]:
        """Make and start one in `folder`; `configure` may change its `keyvouch.toml` before."""
        with ServerProcess.make(folder, tenant=tenant) as process:
            configure(process.data / "keyvouch.toml")
            process.start()
            yield cls(process)

    @property
    def endpoint(self) -> str:
        """host:port for clients and for `keyvouch-agent enroll --server`."""
        return self.process.endpoint

    @property
    def ca(self) -> Path:
        """The certificate that clients and agents trust (`--ca`)."""
        return self.process.ca

    @property
    def tenant(self) -> str:
        """The tenant's name."""
        return self.process.tenant

    @property
    def administrator(self) -> str:
        """The administrator's login name."""
        return self.process.administrator

    def connect(self) -> Connection:
        """A client's connection, for an event loop of the caller."""
        return Connection(self.endpoint, ca_file=self.ca)

    def access_pass(self, username: str) -> str:
        """A fresh Temporary Access Pass for a user, who is made if need be. One from before is taken back."""

        async def work(connection: Connection, metadata: Metadata) -> str:
            stub = connection.administration
            with suppress(ConflictError):
                await answer(stub.CreateUser(pb.CreateUserRequest(username=username), metadata=metadata))
            with suppress(NotFoundError):
                gone = pb.DeleteAccessPassRequest(username=username)
                await answer(stub.DeleteAccessPass(gone, metadata=metadata))
            made = await answer(stub.CreateAccessPass(pb.CreateAccessPassRequest(username=username), metadata=metadata))
            return made.code

        return self.administer(work)

    def enrol(self, username: str) -> BenchDevice:
        """Register a scripted device for a user, who is made if need be."""
        code = self.access_pass(username)

        async def work() -> BenchDevice:
            async with self.connect() as connection:
                return await enrol_with_pass(connection, self.tenant, username, code)

        return _run(work())

    def administer(self, work: Callable[[Connection, Metadata], Coroutine[Any, Any, T]]) -> T:
        """Run `work` with a connection and the metadata of a session of the administrator."""

        async def signed_in() -> T:
            async with self.connect() as connection:
                return await work(connection, await self._sign_in(connection))

        with self._lock:
            return _run(signed_in())

    async def _sign_in(self, connection: Connection) -> Metadata:
        """A session the administrator's own device approves; it is registered the first time."""
        process = self.process
        if self._administrator is None:
            self._administrator = await enrol_with_pass(
                connection, process.tenant, process.administrator, process.administrator_pass
            )
        device = self._administrator
        async with (
            PromptStream(device) as stream,
            SignIn(
                connection,
                tenant=process.tenant,
                username=process.administrator,
                app_id="keyvouch",
                app_name="Bench",
            ) as asked,
        ):
            outcome = await stream.send(device.approve(await stream.prompt(), asked.number))
            if not outcome.accepted:
                raise ConflictError(Reason.SIGN_IN_DENIED, f"The administrator was not signed in: {outcome.reason}.")
            return await (await asked.session()).metadata()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on a loop of its own: the caller may itself be on one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
