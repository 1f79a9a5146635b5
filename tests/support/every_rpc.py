"""Every method that the protocol describes, from the descriptors: what its requests hold, and a call of it that tells
all a caller learns. A method that is added to a .proto file is here at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from keyvouch.v1 import (
    administration_pb2,
    directory_pb2,
    enrolment_pb2,
    oversight_pb2,
    policies_pb2,
    prompts_pb2,
    same_device_pb2,
    security_info_pb2,
    sessions_pb2,
    sign_in_pb2,
)
from support.live_server import LIMIT, Metadata

FILES = (
    administration_pb2,
    directory_pb2,
    enrolment_pb2,
    oversight_pb2,
    policies_pb2,
    prompts_pb2,
    same_device_pb2,
    security_info_pb2,
    sessions_pb2,
    sign_in_pb2,
)

Path = tuple[str, ...]
"""Names of fields, from a request down to one of its fields."""


def methods() -> dict[str, MethodDescriptor]:
    """All methods of all services, by their path on the wire."""
    found: dict[str, MethodDescriptor] = {}
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                found[f"/{service.full_name}/{method.name}"] = method
    return found


METHODS = methods()


def request_of(path: str, **fields: Any) -> Any:
    """A request of a method."""
    return message_factory.GetMessageClass(METHODS[path].input_type)(**fields)


def texts_of(message: Descriptor, *, within: Path = ()) -> Iterator[tuple[Path, FieldDescriptor]]:
    """Every field of a message that holds a text or bytes, however deep; keys and values of maps are left out."""
    for field in message.fields:
        path, inner = (*within, field.name), field.message_type
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield path, field
        elif inner is not None and not inner.GetOptions().map_entry:
            yield from texts_of(inner, within=path)


def with_value(request: Any, path: Path, value: str | bytes) -> Any:
    """A copy of a request with another value in one field; lists get it as their first element."""
    changed = type(request)()
    changed.CopyFrom(request)
    part = changed
    for name in path[:-1]:
        part = getattr(part, name)
        if hasattr(part, "add"):
            part = part[0] if len(part) else part.add()
    if hasattr(getattr(part, path[-1]), "append"):
        del getattr(part, path[-1])[:]
        getattr(part, path[-1]).append(value)
    else:
        setattr(part, path[-1], value)
    return changed


@dataclass(frozen=True, slots=True)
class Told:
    """All a caller learns from one call: status, message, every trailer; the answer, or the last of a stream."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[Any, ...]
    answer: bytes


async def call(
    channel: grpc.aio.Channel, path: str, request: Any, metadata: Metadata = (), *, first: tuple[Any, ...] = ()
) -> Told:
    """Call a method with one request, whatever its shape is; a stream of them begins with those of `first`."""
    method = METHODS[path]
    response = message_factory.GetMessageClass(method.output_type)
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    make: Any = getattr(channel, shape)(
        path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
    )
    requests = _each(*first, request) if method.client_streaming else request
    started = make(requests, metadata=metadata, timeout=LIMIT)
    told = b""
    try:
        if method.server_streaming:
            async for message in started:
                told = message.SerializeToString(deterministic=True)
                if not method.client_streaming:
                    break
        else:
            told = (await started).SerializeToString(deterministic=True)
    except grpc.RpcError:
        pass
    if method.server_streaming and not started.done():
        started.cancel()
        return Told(grpc.StatusCode.OK, "", (), told)
    trailers = tuple((key, value) for key, value in (await started.trailing_metadata() or ()))
    return Told(await started.code(), await started.details() or "", trailers, told)


async def _each(*requests: Any) -> Any:
    for request in requests:
        yield request
