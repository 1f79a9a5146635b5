"""The number of a sign-in, large enough to read across a desk.

Not here: where it is written.
"""

from __future__ import annotations

from typing import Final

__all__ = ["large"]

_ROWS: Final = {
    "0": ("###", "# #", "# #", "# #", "###"),
    "1": ("  #", "  #", "  #", "  #", "  #"),
    "2": ("###", "  #", "###", "#  ", "###"),
    "3": ("###", "  #", "###", "  #", "###"),
    "4": ("# #", "# #", "###", "  #", "  #"),
    "5": ("###", "#  ", "###", "  #", "###"),
    "6": ("###", "#  ", "###", "# #", "###"),
    "7": ("###", "  #", "  #", "  #", "  #"),
    "8": ("###", "# #", "###", "# #", "###"),
    "9": ("###", "# #", "###", "  #", "###"),
}


def large(number: str, *, blocks: bool) -> str:
    """Five lines that draw `number`, with block characters or with `#`. Empty for anything but digits."""
    if not number or any(digit not in _ROWS for digit in number):
        return ""
    ink = "\N{FULL BLOCK}" if blocks else "#"
    lines = ("   ".join(_ROWS[digit][row] for digit in number) for row in range(5))
    return "\n".join("    " + "".join(ink * 2 if dot == "#" else dot * 2 for dot in line).rstrip() for line in lines)
