"""Text of a peer, made safe to show: no control, no direction, no invisible character acts on the screen.

What could act is written out as `<U+202E>`; runs of spaces become one, long texts are cut. Widths are columns of a
terminal (Unicode Standard Annex 11), so that a field of fixed width stays where it belongs.
"""

from __future__ import annotations

import unicodedata

__all__ = ["columns", "fixed", "inert"]

MAX_COLUMNS = 120
"""Columns a text may take where the caller says nothing else."""

_CUT = "..."
_ACTIVE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MARKS = frozenset({"Mn", "Me", "Mc"})
_MAX_MARKS = 2
# Letters and symbols by category, and yet nothing to see: fillers, the blank Braille pattern, variation selectors.
_INVISIBLE = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}


def inert(text: str, *, longest: int = MAX_COLUMNS) -> str:
    """`text` on one line, in at most `longest` columns, with nothing in it that acts on a terminal."""
    shown: list[str] = []
    used = marks = 0
    for character in text[: longest * 4]:
        marks = marks + 1 if unicodedata.category(character) in _MARKS else 0
        piece = _shown(character, marks)
        if piece == " " and shown[-1:] == [" "]:
            continue
        used += columns(piece)
        if used > longest:
            return _cut(shown, longest)
        shown.append(piece)
    if len(text) > longest * 4:
        return _cut(shown, longest)
    return "".join(shown).strip(" ")


def fixed(text: str, width: int) -> str:
    """`text` made inert in exactly `width` columns, padded or cut."""
    shown = inert(text, longest=width)
    return shown + " " * (width - columns(shown))


def columns(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _shown(character: str, marks: int) -> str:
    category = unicodedata.category(character)
    if category in _ACTIVE or character in _INVISIBLE or marks > _MAX_MARKS:
        return f"<U+{ord(character):04X}>"
    return " " if category == "Zs" else character


def _cut(shown: list[str], longest: int) -> str:
    kept = list(shown)
    while kept and columns("".join(kept)) + len(_CUT) > longest:
        kept.pop()
    return "".join(kept) + _CUT[:longest]
