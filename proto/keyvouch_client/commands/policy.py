"""`keyvouch admin policy`: show the settings by dotted names, and change some of them.

The names are those of the fields of `keyvouch.v1.Policy`. A change is sent with the version it was made from, so it
never runs over a change somebody else made meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from keyvouch.errors import UsageError
from keyvouch.v1 import administration_pb2
from keyvouch_client.commands.invocation import Invocation
from keyvouch_client.commands.messages import document, fields_of, words_of
from keyvouch_client.commands.output import inert

__all__ = ["change", "show"]

_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


async def show(run: Invocation) -> None:
    """Show every setting."""
    async with run.session() as session:
        told = await session.call(session.connection.administration.GetPolicy, administration_pb2.GetPolicyRequest())
    settings = dict(_settings(told.policy))
    width = max(map(len, settings))
    run.output.show(document(told.policy), *(f"{name:<{width}}  {inert(value)}" for name, value in settings.items()))


async def change(run: Invocation) -> None:
    """Change settings; shows what changes."""
    wanted = [_assignment(text) for text in run.arguments.settings]
    async with run.session() as session:
        stub = session.connection.administration
        policy = (await session.call(stub.GetPolicy, administration_pb2.GetPolicyRequest())).policy
        before = dict(_settings(policy))
        for name, value in wanted:
            _assign(policy, name, value)
        after = dict(_settings(policy))
        if not run.arguments.dry_run and before != after:
            request = administration_pb2.UpdatePolicyRequest(
                policy=policy, accept_lock_out=run.arguments.accept_lock_out
            )
            policy = (await session.call(stub.UpdatePolicy, request)).policy
    changes = {
        name: {"from": before.get(name, ""), "to": after[name]} for name in after if before.get(name) != after[name]
    }
    lines = [f"{name}: {inert(step['from']) or '-'} -> {inert(step['to'])}" for name, step in changes.items()]
    closing = "Nothing would change." if run.arguments.dry_run else "Nothing has changed."
    run.output.show(
        {"changes": changes, "dry_run": run.arguments.dry_run, "policy": document(policy)}, *(lines or [closing])
    )


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not a change.", fix="Write key=value, for example approval.number_digits=6.")
    return name, value


def _settings(message: Message, path: str = "") -> Iterator[tuple[str, str]]:
    for field in fields_of(message):
        value, name = getattr(message, field.name), f"{path}{field.name}"
        if isinstance(value, Message):
            yield from _settings(value, f"{name}.")
        else:
            yield name, _spelled(field, value)


def _spelled(field: FieldDescriptor, value: object) -> str:
    if field.is_repeated:
        return ",".join(map(str, value)) if isinstance(value, Iterable) else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return words_of(field).get(value, str(value)) if isinstance(value, int) else str(value)


def _assign(policy: Message, name: str, text: str) -> None:
    group, leaf = _group_of(policy, name)
    field = next((field for field in fields_of(group) if field.name == leaf), None)
    if field is None or field.message_type is not None or name == "version":
        raise _unknown(name)
    try:
        value = _parsed(field, text)
        if field.is_repeated:
            getattr(group, leaf)[:] = value
        else:
            setattr(group, leaf, value)
    except (ValueError, KeyError):
        raise UsageError(f"{text!r} is not a value for {name}.", fix=_advice(field)) from None


def _group_of(policy: Message, name: str) -> tuple[Message, str]:
    """The message that has the setting `name`, and the setting's own name in it."""
    *path, leaf = name.split(".")
    group = policy
    for step in path:
        inner = getattr(group, step, None)
        if not isinstance(inner, Message):
            raise _unknown(name)
        group = inner
    return group, leaf


def _parsed(field: FieldDescriptor, text: str) -> object:
    if field.is_repeated:
        items = [item.strip() for item in text.split(",") if item.strip()]
        return items if field.type == FieldDescriptor.TYPE_STRING else [int(item) for item in items]
    if field.enum_type is not None:
        return {word: number for number, word in words_of(field).items()}[text.lower()]
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _TRUTH[text.lower()]
    return text if field.type == FieldDescriptor.TYPE_STRING else int(text)


def _advice(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return "One of: " + ", ".join(words_of(field).values()) + "."
    if field.is_repeated:
        return "Write whole numbers with commas between them."
    return "Write true or false." if field.type == FieldDescriptor.TYPE_BOOL else "Write a whole number."


def _unknown(name: str) -> UsageError:
    return UsageError(f"There is no setting {name!r}.", fix="`keyvouch admin policy show` lists them.")
