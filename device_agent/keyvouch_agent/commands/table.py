"""Tables for people: columns as wide as they have to be, texts of a peer made inert."""

from __future__ import annotations

from collections.abc import Sequence

from keyvouch_agent.prompts.inert import inert

__all__ = ["table"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; its last column is not filled up."""
    cells = [list(head), *([inert(cell, longest=60) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
