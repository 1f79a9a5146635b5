"""The people of a benchmark: users with an enrolled scripted device each, prompt streams open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import prompts_pb2 as prompts
from keyvouch_bench.device import BenchDevice, PromptStream, enrol_with_pass
from keyvouch_bench.server_process import ServerProcess
from keyvouch_client import Connection, SignIn


@dataclass(slots=True)
class Person:
    """A user, the device, and what the two have to do with each other in this benchmark."""

    username: str
    device: BenchDevice
    stream: PromptStream
    arrived: asyncio.Queue[prompts.Prompt] = field(default_factory=asyncio.Queue)
    outcomes: asyncio.Queue[prompts.Outcome] = field(default_factory=asyncio.Queue)

    async def listen(self) -> None:
        """Sort what the server says."""
        async for message in self.stream.messages():
            event = message.WhichOneof("event")
            if event == "prompt":
                self.arrived.put_nowait(message.prompt)
            elif event == "outcome":
                self.outcomes.put_nowait(message.outcome)

    async def approve(self, number: str) -> None:
        """Answer the next prompt with a number."""
        prompt = await self.arrived.get()
        await self.stream.write(self.device.approve(prompt, number))


@dataclass(slots=True)
class Population:
    """Everybody, and the connection the clients use."""

    connection: Connection
    tenant: str
    people: list[Person]


@asynccontextmanager
async def populate(server: ServerProcess, count: int, say: Callable[[str], None]) -> AsyncIterator[Population]:
    """Make `count` users through the public API, enrol their devices, open their streams."""
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(Connection(server.endpoint, ca_file=server.ca))
        metadata = await _administrator(server, connection)
        await _allow_load(connection, metadata)
        say(f"making {count} users with a device each")
        people = []
        for i in range(count):
            person = await _person(server, connection, metadata, f"person{i}", stack)
            people.append(person)
            listening = asyncio.create_task(person.listen())
            stack.callback(listening.cancel)
        yield Population(connection, server.tenant, people)


async def _administrator(server: ServerProcess, connection: Connection) -> Any:
    who = {"tenant": server.tenant, "username": server.administrator}
    device = await enrol_with_pass(connection, server.tenant, server.administrator, server.administrator_pass)
    async with (
        PromptStream(device) as stream,
        SignIn(connection, **who, app_id="keyvouch", app_name="Bench") as sign_in,
    ):
        await stream.send(device.approve(await stream.prompt(), sign_in.number))
        return await (await sign_in.session()).metadata()


async def _allow_load(connection: Connection, metadata: Any) -> None:
    """The limit on begun sign-ins per user is there to stop what a benchmark does."""
    stub = connection.administration
    policy = (await stub.GetPolicy(admin.GetPolicyRequest(), metadata=metadata)).policy
    policy.approval.begins_per_minute = 6000
    await stub.UpdatePolicy(admin.UpdatePolicyRequest(policy=policy), metadata=metadata)


async def _person(
    server: ServerProcess, connection: Connection, metadata: Any, name: str, stack: AsyncExitStack
) -> Person:
    stub = connection.administration
    await stub.CreateUser(admin.CreateUserRequest(username=name), metadata=metadata)
    made = await stub.CreateAccessPass(admin.CreateAccessPassRequest(username=name), metadata=metadata)
    device = await enrol_with_pass(connection, server.tenant, name, made.code)
    stream = await stack.enter_async_context(PromptStream(device))
    return Person(name, device, stream)
