"""P5: what approves a sign-in is worth nothing anywhere else, in whatever field of whatever call it is put.

The calls are found in the descriptors, so that a new one is tried too. That signatures for other purposes approve
nothing is in `test_answers`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from keyvouch.errors import KeyvouchError
from keyvouch.v1 import prompts_pb2
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Credential, Device, PolicyVersion, Session, SignIn, SignInState
from support.live_server import LIMIT, LiveServer

FILES = ("administration", "directory", "enrolment", "oversight", "policies", "prompts", "same_device", "security_info")
FILES += ("sessions", "sign_in")
ON_THE_DEVICE_LISTENER = {"PromptService", "SameDeviceService"}
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
}


def methods() -> Iterator[MethodDescriptor]:
    """Every unary call that takes bytes."""
    for file in FILES:
        module: Any = importlib.import_module(f"keyvouch.v1.{file}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                unary = not method.client_streaming and not method.server_streaming
                if unary and next(bytes_fields(method.input_type), None):
                    yield method


def bytes_fields(message: Descriptor, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the fields that hold bytes."""
    for field in message.fields:
        path = (*above, field.name)
        if field.type == FieldDescriptor.TYPE_BYTES and not field.is_repeated:
            yield path
        elif field.message_type is not None and not field.is_repeated and len(path) < 3:
            yield from bytes_fields(field.message_type, path)


def filled(message: Any, part: bytes, names: dict[str, str]) -> Any:
    """The message with `part` in every field of bytes, and ids and names where they belong."""
    for path in bytes_fields(message.DESCRIPTOR):
        holder = message
        for name in path[:-1]:
            holder = getattr(holder, name)
        setattr(holder, path[-1], part)
    for name, value in names.items():
        if name in message.DESCRIPTOR.fields_by_name:
            setattr(message, name, value)
    return message


def parts_of(approval: prompts_pb2.Answer) -> list[bytes]:
    """What is in an approval: each part alone, and the whole."""
    made = approval.assertion
    alone = [approval.statement, made.signature, made.authenticator_data, made.client_data_json, made.credential_id]
    return [*alone, made.SerializeToString(), approval.SerializeToString()]


async def what_there_is(live: LiveServer) -> list[int]:
    """How many rows an accepted call would add to."""
    tables = (Session, Device, Credential, PolicyVersion)
    counts = [await live.app.store.read(lambda tx, table=table: tx.count(table, {})) for table in tables]
    approved = {"state": SignInState.APPROVED}
    return [*counts, await live.app.store.read(lambda tx: tx.count(SignIn, approved))]


async def test_no_part_of_an_approval_is_accepted_in_any_field_of_any_other_call_P5(live: LiveServer) -> None:
    ada = await live.person("ada")
    session = await live.signed_in(ada)
    opened = await live.begin("ada")
    prompt = await ada.stream.prompt()
    approval = ada.device.approve(prompt, opened.number)
    channels = {True: await live.device_channel(ada.device), False: live.connection.channel}
    callers = [(), session.metadata, opened.metadata, (("authorization", f"Registration {prompt.prompt_id}"),)]
    names = {
        "sign_in_id": opened.begun.sign_in_id,
        "sign_in_token": opened.begun.sign_in_token,
        "prompt_id": prompt.prompt_id,
        "refresh_token": session.tokens.refresh_token,
    }
    before, tried = await what_there_is(live), 0
    for method in methods():
        service = method.containing_service
        path, channel = f"/{service.full_name}/{method.name}", channels[service.name in ON_THE_DEVICE_LISTENER]
        kind, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        stub: Any = channel.unary_unary(path, kind.SerializeToString, response.FromString)  # type: ignore[arg-type]
        for part in parts_of(approval):
            for metadata in callers:
                tried += 1
                with pytest.raises(KeyvouchError) as refusal:
                    await answer(stub(filled(kind(), part, names), metadata=metadata, timeout=LIMIT))
                cause: Any = refusal.value.__cause__
                assert cause.code() in REFUSALS, (path, refusal.value)
    assert tried > 200
    assert await what_there_is(live) == before
    assert (await ada.stream.send(approval)).accepted  # the control: it is an approval, and nothing else
    assert (await opened.redeem()).session.username == "ada"
