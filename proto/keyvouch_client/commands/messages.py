"""Messages of the protocol as JSON and as words. Not here: where they are shown (`commands.output`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from keyvouch.base64url import encode as base64url
from keyvouch.v1 import administration_pb2, common_pb2

__all__ = ["document", "fields_of", "spoken", "words_of"]


def spoken(enum_name: str, prefix: str) -> str:
    """`ROLE_GLOBAL_READER` with prefix `ROLE_` as `global_reader`; unspecified as an empty text."""
    name = enum_name.removeprefix(prefix).lower()
    return "" if name == "unspecified" else name


def fields_of(message: Message) -> list[FieldDescriptor]:
    """The fields of a message, in the order of their definition."""
    return list(cast("Sequence[FieldDescriptor]", message.DESCRIPTOR.fields))


def words_of(field: FieldDescriptor) -> dict[int, str]:
    """The values of an enum field as lower-case words without their common prefix, by number; else nothing."""
    if field.enum_type is None:
        return {}
    prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix).lower() for value in field.enum_type.values}


def document(message: Message) -> dict[str, object]:
    """A message as JSON: its field names, enums as lower-case words, bytes as base64url, instants as numbers.

    What a device without a TPM or a smartcard has of one is null, and so is the device of a pass that is for any.
    """
    return {field.name: _value(field, _present(message, field)) for field in fields_of(message)}


def _present(message: Message, field: FieldDescriptor) -> object:
    absent = field.message_type in _OF_SOME and not message.HasField(field.name)
    return None if absent else getattr(message, field.name)


_OF_SOME = (
    common_pb2.TpmDevice.DESCRIPTOR,
    common_pb2.CardDevice.DESCRIPTOR,
    administration_pb2.DeviceBinding.DESCRIPTOR,
)


def _value(field: FieldDescriptor, value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: FieldDescriptor, value: object) -> object:
    if isinstance(value, Message):
        return document(value)
    if isinstance(value, bytes):
        return base64url(value)
    if field.enum_type is not None and isinstance(value, int):
        return "" if value == 0 else words_of(field).get(value, str(value))
    return value
