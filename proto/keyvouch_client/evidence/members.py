"""The members of a JSON object, each read as what it has to be. A fault is a `UsageError` that names the path.

Not here: what the members mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from keyvouch import base64url
from keyvouch.errors import UsageError

__all__ = ["Members"]

T = TypeVar("T")

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")
_FIX = 'What a vector holds is told in proto/README.md, "Evidence files".'
_WORDS: Mapping[type, str] = {str: "text", bool: "true or false", int: "a whole number", list: "a list"}


class Members:
    """One JSON object. `path` is how a person names it: empty for the vector itself."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, Mapping):
            raise UsageError(f"{f'The member {path}' if path else 'This'} is not a JSON object.", fix=_FIX)
        self._value = value
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def path(self, name: str) -> str:
        """The member's name with the names of the objects around it."""
        return f"{self._path}.{name}" if self._path else name

    def wrong(self, name: str, what: str) -> UsageError:
        """The error of a member that is there and is not `what`."""
        return UsageError(f"The member {self.path(name)} is not {what}.", fix=_FIX)

    def anything(self, name: str) -> object:
        """The member, whatever it is. Raises `UsageError` if it is missing, as every other method does."""
        if name not in self._value:
            raise UsageError(f"The member {self.path(name)} is missing.", fix=_FIX)
        return self._value[name]

    def text(self, name: str) -> str:
        """A string that can be written as UTF-8: JSON can spell halves of characters, which are no text."""
        value = self._typed(name, str)
        if not _is_text(value):
            raise self.wrong(name, "text")
        return value

    def flag(self, name: str, *, absent: bool | None = None) -> bool:
        """True or false; `absent` if the member is missing, where there is such a value."""
        if absent is not None and name not in self._value:
            return absent
        return self._typed(name, bool)

    def number(self, name: str) -> int:
        """A whole number that is not negative."""
        value = self._typed(name, int)
        if isinstance(value, bool) or value < 0:
            raise self.wrong(name, "a whole number from 0")
        return value

    def texts(self, name: str, *, optional: bool = False) -> list[str]:
        """A list of strings; an empty one for a missing member that is optional."""
        if optional and name not in self._value:
            return []
        items = [item for item in self._typed(name, list) if isinstance(item, str) and _is_text(item)]
        if len(items) != len(self._value[name]):
            raise self.wrong(name, "a list of texts")
        return items

    def numbers(self, name: str) -> list[int]:
        """A list of whole numbers, of either sign."""
        items = [item for item in self._typed(name, list) if isinstance(item, int) and not isinstance(item, bool)]
        if len(items) != len(self._value[name]):
            raise self.wrong(name, "a list of whole numbers")
        return items

    def base64url(self, name: str) -> bytes:
        """Bytes, written as base64url without padding."""
        try:
            return base64url.decode(self._typed(name, str))
        except ValueError:
            raise self.wrong(name, "base64url without padding") from None

    def hex(self, name: str) -> bytes:
        """Bytes, written as pairs of hexadecimal digits."""
        value = self._typed(name, str)
        if not _HEX.fullmatch(value):
            raise self.wrong(name, "hexadecimal, two digits a byte")
        return bytes.fromhex(value)

    def within(self, name: str) -> Members:
        """The members of the object that this member is."""
        return Members(self.anything(name), self.path(name))

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self.anything(name)
        if not isinstance(value, kind):
            raise self.wrong(name, _WORDS[kind])
        return value


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
