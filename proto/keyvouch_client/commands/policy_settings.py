"""The settings of a policy by dotted names, as text: reading them, changing them.

The names are those of the fields of `keyvouch.v1.Policy`; rules of apps and campaigns are named by what they are called
(`apps.payroll.phishing_resistant`). Not here: asking a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from keyvouch.errors import UsageError
from keyvouch_client.commands.messages import fields_of, words_of

__all__ = ["Assignment", "assign", "changes_between", "parse_assignment", "settings_of"]

_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NAMED_BY = {"apps": "app_id", "campaigns": "name"}


@dataclass(frozen=True, slots=True)
class Assignment:
    """A change as it was typed. `operator` is `=`, or `+=` and `-=` for lists of texts."""

    name: str
    operator: str
    text: str

    @property
    def items(self) -> list[str]:
        """The parts of a list."""
        return [item.strip() for item in self.text.split(",") if item.strip()]


def parse_assignment(text: str) -> Assignment:
    """Read KEY=VALUE, KEY+=VALUE or KEY-=VALUE. Raises `UsageError`."""
    name, equals, value = text.partition("=")
    operator = f"{name[-1]}=" if name.endswith(("+", "-")) else "="
    name = name.rstrip("+-")
    if not equals or not name:
        raise UsageError(f"{text!r} is not a change.", fix="Write key=value, for example approval.number_digits=6.")
    return Assignment(name, operator, value)


def settings_of(policy: Message) -> dict[str, str]:
    """Every setting but the version, as text, in the order of the policy."""
    settings = dict(_flat(policy, ""))
    settings.pop("version", None)
    return settings


def changes_between(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The settings that are different, each with what it was and what it is; nothing is an empty text."""
    names = [*after, *(name for name in before if name not in after)]
    return {
        name: {"from": before.get(name, ""), "to": after.get(name, "")}
        for name in names
        if before.get(name, "") != after.get(name, "")
    }


def _flat(message: Message, path: str) -> Iterator[tuple[str, str]]:
    for field in fields_of(message):
        value, name = getattr(message, field.name), f"{path}{field.name}"
        if field.name in _NAMED_BY:
            for item in value:
                yield from _named(item, _NAMED_BY[field.name], name)
        elif isinstance(value, Message):
            yield from _flat(value, f"{name}.")
        else:
            yield name, _spelled(field, value)


def _named(item: Message, key: str, path: str) -> Iterator[tuple[str, str]]:
    prefix = f"{path}.{getattr(item, key)}."
    for name, value in _flat(item, prefix):
        if name != f"{prefix}{key}":
            yield name, value


def _spelled(field: FieldDescriptor, value: object) -> str:
    if field.is_repeated:
        return ",".join(map(str, value)) if isinstance(value, Iterable) else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return words_of(field).get(value, str(value)) if isinstance(value, int) else str(value)


def assign(message: Message, change: Assignment) -> None:
    """Make a change in a policy. Raises `UsageError` for what is no setting, or no value for it."""
    group, leaf = _group_of(message, change.name)
    field = next((field for field in fields_of(group) if field.name == leaf), None)
    if field is None or field.message_type is not None or change.name == "version":
        raise _unknown(change.name)
    try:
        if field.is_repeated:
            getattr(group, leaf)[:] = _list(field, list(getattr(group, leaf)), change)
        elif change.operator != "=":
            raise ValueError
        else:
            setattr(group, leaf, _parsed(field, change.text))
    except (ValueError, KeyError):
        raise UsageError(f"{change.text!r} is not a value for {change.name}.", fix=_advice(field)) from None


def _group_of(message: Message, name: str) -> tuple[Message, str]:
    """The message that has the setting `name`, and the setting's own name in it."""
    *path, leaf = name.split(".")
    group = message
    for step in path:
        inner = getattr(group, step, None)
        if not isinstance(inner, Message):
            raise _unknown(name)
        group = inner
    return group, leaf


def _list(field: FieldDescriptor, present: list[object], change: Assignment) -> list[object]:
    is_text = field.type == FieldDescriptor.TYPE_STRING
    items: list[object] = [item if is_text else int(item) for item in change.items]
    if change.operator == "+=":
        return [*present, *(item for item in items if item not in present)]
    return [item for item in present if item not in items] if change.operator == "-=" else items


def _parsed(field: FieldDescriptor, text: str) -> object:
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
    first = name.split(".", 1)[0]
    if first in _NAMED_BY:
        object_ = "app" if first == "apps" else "campaign"
        return UsageError(f"{name!r} is not set by name.", fix=f"`keyvouch admin policy {object_} set` does it.")
    return UsageError(f"There is no setting {name!r}.", fix="`keyvouch admin policy show` lists them.")
