"""Canonical names: one identity however a name is typed.

A login name is compared by its key: Unicode NFKC, case-folded, NFKC again (Unicode Standard 3.13, D146), with
surrounding space removed. Two spellings with one key are one user, one counter, one limit.
"""

from __future__ import annotations

import re
import unicodedata

from keyvouch.errors import MalformedError, Reason

MAX_NAME = 64
"""Longest login or tenant name, in characters."""

MAX_TYPED = 256
"""Longest text that is folded at all. Unicode normalisation takes a time that grows with the square of the length:
64 KiB of accents would keep the server busy for more than a second (G3)."""

_INVISIBLE = (
    *((0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164)),
    *((0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF)),
)
"""Letters and marks that are Default_Ignorable_Code_Point (Unicode Standard 5.21): two names would look alike."""


def name_key(name: str) -> str:
    """The canonical key of a name. Total: gives some key for any input, so lookups need no special case.

    What is longer than `MAX_TYPED` is nobody's name: its key is empty, which no name's is.
    """
    if len(name) > MAX_TYPED:
        return ""
    if name.isascii():
        return name.strip().casefold()
    key, folded = name, _fold(name)
    while key != folded:  # a few characters come to rest at the second turn only
        key, folded = folded, _fold(folded)
    return key


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()


_USER_ID = re.compile(r"usr_[a-z2-7]{26}")
_GROUP_ID = re.compile(r"grp_[a-z2-7]{26}")


def is_user_id(text: str) -> bool:
    """Whether a text has the form of a user's id. No name has it, so that ids and names share one field."""
    return _USER_ID.fullmatch(text) is not None


def is_group_id(text: str) -> bool:
    """Whether a text has the form of a group's id. No name has that either."""
    return _GROUP_ID.fullmatch(text) is not None


def check_name(name: str, field: str) -> str:
    """Return the name as it will be shown, or raise `MalformedError(FIELD_INVALID)`.

    1 to 64 characters, none of them a control, format, surrogate, private-use or separator character other
    than a single inner space, and none that shows nothing.
    """
    shown = unicodedata.normalize("NFC", name.strip()) if len(name) <= MAX_TYPED else ""
    bad = any((unicodedata.category(c)[0] in "CZ" and c != " ") or _is_invisible(c) for c in shown)
    is_id = is_user_id(name_key(shown)) or is_group_id(name_key(shown))
    if not shown or len(shown) > MAX_NAME or bad or is_id or "  " in shown or not name_key(shown):
        raise invalid_field(field, f"1 to {MAX_NAME} visible characters")
    return shown


def _is_invisible(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _INVISIBLE)


def check_text(text: str, field: str, *, longest: int, required: bool = True) -> str:
    """Return a text to be shown to people, or raise. Control and bidirectional characters are refused."""
    if (required and not text) or len(text) > longest or _has_controls(text):
        raise invalid_field(field, f"{'1' if required else '0'} to {longest} characters without control characters")
    return text


def _has_controls(text: str) -> bool:
    if text.isascii():  # there, what is not printable is a control character
        return not text.isprintable()
    return any(unicodedata.category(c)[0] == "C" for c in text)


def invalid_field(field: str, expected: str) -> MalformedError:
    """The error for a request field that is not what it should be."""
    return MalformedError(
        Reason.FIELD_INVALID,
        f"The field {field} is not valid: it takes {expected}.",
        fix="Correct the field and send the request again.",
        metadata={"field": field, "expected": expected},
    )
