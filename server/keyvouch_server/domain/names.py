"""Canonical names: one identity however a name is typed.

A login name is compared by its key: Unicode NFKC, case-folded, NFKC again (Unicode Standard 3.13, D146), with
surrounding space removed. Two spellings with one key are one user, one counter, one limit.
"""

from __future__ import annotations

import unicodedata

from keyvouch.errors import MalformedError, Reason

MAX_NAME = 64
"""Longest login or tenant name, in characters."""


def name_key(name: str) -> str:
    """The canonical key of a name. Total: gives some key for any input, so lookups need no special case."""
    folded = unicodedata.normalize("NFKC", name.strip()).casefold()
    return unicodedata.normalize("NFKC", folded)


def check_name(name: str, field: str) -> str:
    """Return the name as it will be shown, or raise `MalformedError(FIELD_INVALID)`.

    1 to 64 characters, none of them a control, format, surrogate, private-use or separator character other
    than a single inner space.
    """
    shown = unicodedata.normalize("NFC", name.strip())
    bad = any(unicodedata.category(c)[0] in "CZ" and c != " " for c in shown)
    if not shown or len(shown) > MAX_NAME or bad or "  " in shown or not name_key(shown):
        raise invalid_field(field, f"1 to {MAX_NAME} visible characters")
    return shown


def check_text(text: str, field: str, *, longest: int, required: bool = True) -> str:
    """Return a text to be shown to people, or raise. Control and bidirectional characters are refused."""
    if (required and not text) or len(text) > longest or any(unicodedata.category(c)[0] == "C" for c in text):
        raise invalid_field(field, f"{'1' if required else '0'} to {longest} characters without control characters")
    return text


def invalid_field(field: str, expected: str) -> MalformedError:
    """The error for a request field that is not what it should be."""
    return MalformedError(
        Reason.FIELD_INVALID,
        f"The field {field} is not valid: it takes {expected}.",
        fix="Correct the field and send the request again.",
        metadata={"field": field, "expected": expected},
    )
