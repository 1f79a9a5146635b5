"""Strict reading of DER (ITU-T X.690 section 10), as far as certificate extensions of attestation formats need it.

A reader walks through the elements of one byte string. Lengths must be in their shortest form and definite, and
nothing may be left over. What is not here: certificates themselves (`cryptography` parses them), and writing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique

__all__ = [
    "BOOLEAN",
    "ENUMERATED",
    "INTEGER",
    "OCTET_STRING",
    "SEQUENCE",
    "SET",
    "DerClass",
    "DerError",
    "DerReader",
    "Tag",
    "explicit",
]


class DerError(ValueError):
    """The bytes are not DER, or not of the shape that was expected. Callers turn it into their own reason."""


@unique
class DerClass(IntEnum):
    """The class of a tag (X.690 section 8.1.2.2)."""

    UNIVERSAL = 0
    APPLICATION = 1
    CONTEXT = 2
    PRIVATE = 3


@dataclass(frozen=True, slots=True)
class Tag:
    """An identifier: class, number and whether the content is made of elements itself."""

    number: int
    constructed: bool = False
    tag_class: DerClass = DerClass.UNIVERSAL


BOOLEAN = Tag(1)
INTEGER = Tag(2)
OCTET_STRING = Tag(4)
ENUMERATED = Tag(10)
SEQUENCE = Tag(16, constructed=True)
SET = Tag(17, constructed=True)


_LONG = 0x1F
"""In place of a number: a number above 30 follows."""

_SHORT_TAGS = tuple(Tag(first & 0x1F, bool(first & 0x20), DerClass(first >> 6)) for first in range(256))
"""The tag that each first byte stands for, made once."""


def explicit(number: int) -> Tag:
    """The context-specific, explicit tag `[number]`."""
    return Tag(number, constructed=True, tag_class=DerClass.CONTEXT)


class DerReader:
    """Reads the elements of `data` one after the other. Every method raises `DerError` for what is not DER."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def any(self) -> tuple[Tag, bytes]:
        """Read the next element, whatever it is: its tag and its content."""
        tag = self._tag()
        length = self._length()
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise DerError("An element ends beyond its container.")
        return tag, self._data[start : self._at]

    def read(self, tag: Tag) -> bytes:
        """Read the next element, which has to be of this tag; return its content."""
        found, content = self.any()
        if found != tag:
            raise DerError(f"An element has the tag {found} instead of {tag}.")
        return content

    def enter(self, tag: Tag) -> DerReader:
        """Read the next element, which has to be of this tag; return a reader of what is inside."""
        return DerReader(self.read(tag))

    def integer(self, tag: Tag = INTEGER) -> int:
        """Read the next element as a number in its shortest form; `tag` may be that of an enumeration."""
        content = self.read(tag)
        if not content or (len(content) > 1 and content[0] in (0, 0xFF) and (content[0] ^ content[1]) < 0x80):
            raise DerError("A number is not in its shortest form.")
        return int.from_bytes(content, "big", signed=True)

    def boolean(self) -> bool:
        """Read the next element as a truth value (X.690 section 11.1)."""
        content = self.read(BOOLEAN)
        if content not in (b"\x00", b"\xff"):
            raise DerError("A truth value is neither 00 nor FF.")
        return content == b"\xff"

    def end(self) -> None:
        """Check that nothing is left."""
        if self:
            raise DerError("Bytes follow the last element.")

    def _byte(self) -> int:
        if not self:
            raise DerError("The data ends inside an element.")
        self._at += 1
        return self._data[self._at - 1]

    def _tag(self) -> Tag:
        tag = _SHORT_TAGS[self._byte()]
        if tag.number != _LONG:
            return tag
        return Tag(self._long_number(), tag.constructed, tag.tag_class)

    def _long_number(self) -> int:
        """The number of a tag above 30 (X.690 section 8.1.2.4): base 128, shortest form, at most four bytes."""
        number = 0
        for _ in range(4):
            byte = self._byte()
            number = number << 7 | byte & 0x7F
            if not number:
                break
            if byte < 0x80 and number >= _LONG:
                return number
            if byte < 0x80:
                break
        raise DerError("A tag number is not in its shortest form, or has more than four bytes.")

    def _length(self) -> int:
        first = self._byte()
        if first < 0x80:
            return first
        size = first & 0x7F
        if not 1 <= size <= 4:
            raise DerError("A length is indefinite or has more than four bytes.")
        length = int.from_bytes(bytes(self._byte() for _ in range(size)), "big")
        if length < 0x80 or length >> 8 * (size - 1) == 0:
            raise DerError("A length is not in its shortest form.")
        return length
