"""What a listener says it offers, by gRPC reflection: the full names of its methods with their shapes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb

from keyvouch_client.errors import answer
from support.live_server import LIMIT, Metadata

REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Both names of the service. Messages and methods are the same; only the older one has a file that describes it."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method: `/package.Service/Name`, and on which sides it streams."""

    path: str
    client_streams: bool
    server_streams: bool

    async def call(
        self, channel: grpc.aio.Channel, metadata: Metadata = (), request: bytes = b"", *, answers: int = 1
    ) -> Any:
        """Call it with one message of raw bytes; returns the bytes of the answer of that number. Raises as `answer`."""
        raw: Any = channel  # its calls are typed for messages; these are bytes
        if not self.server_streams:
            return await answer(raw.unary_unary(self.path)(request, metadata=metadata, timeout=LIMIT))
        if not self.client_streams:
            return await _read(raw.unary_stream(self.path)(request, metadata=metadata, timeout=LIMIT), answers)

        for _ in range(5):
            stream = raw.stream_stream(self.path)(metadata=metadata, timeout=LIMIT)
            with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the server may have refused already
                await stream.write(request)
                await stream.done_writing()
            if "error from Core" not in (await stream.details() if stream.done() else ""):
                break  # else the client's transport lost the status to a write that came too late
        return await _read(stream, answers)


async def _read(call: Any, answers: int) -> Any:
    try:
        for _ in range(answers):
            last = await answer(call.read())
        if last is grpc.aio.EOF:
            await answer(_status(call))
    finally:
        call.cancel()
    return last


async def _status(call: Any) -> None:
    if await call.code() is not grpc.StatusCode.OK:
        await call


async def ask(channel: grpc.aio.Channel, service: str, metadata: Metadata, request: Any) -> pb.ServerReflectionResponse:
    """One question of reflection."""
    method = Method(f"/{service}/ServerReflectionInfo", client_streams=True, server_streams=True)
    return pb.ServerReflectionResponse.FromString(await method.call(channel, metadata, request.SerializeToString()))


async def methods_of(channel: grpc.aio.Channel, service: str, metadata: Metadata) -> dict[str, Method]:
    """Every method of the listener by its path, as reflection under the name `service` describes it."""
    listed = await ask(channel, service, metadata, pb.ServerReflectionRequest(list_services=""))
    methods: dict[str, Method] = {}
    for offered in listed.list_services_response.service:
        described = REFLECTION[1] if offered.name == REFLECTION[0] else offered.name
        request = pb.ServerReflectionRequest(file_containing_symbol=described)
        told = await ask(channel, service, metadata, request)
        for method in _in_files(told.file_descriptor_response.file_descriptor_proto, described, offered.name):
            methods[method.path] = method
    return methods


def _in_files(files: Any, described: str, name: str) -> list[Method]:
    for encoded in files:
        file = descriptor_pb2.FileDescriptorProto.FromString(encoded)
        for found in file.service:
            if f"{file.package}.{found.name}" == described:
                return [Method(f"/{name}/{m.name}", m.client_streaming, m.server_streaming) for m in found.method]
    raise AssertionError(f"reflection does not describe {described}")
