"""Showing results: JSON for programs, aligned text for people.

Text from elsewhere (names, messages) is made inert before it reaches a terminal: control and direction characters
would let a name pretend to be output of this program. Not here: what is shown, and messages of the protocol
(`commands.messages`), so that a command that talks to no server loads nothing of it.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TextIO

from keyvouch.errors import KeyvouchError

__all__ = ["Output", "details", "inert", "table"]


class Output:
    """Where a command's words go: results to standard output, everything else to standard error."""

    def __init__(
        self, *, as_json: bool, utc: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.as_json = as_json
        self._utc = utc
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr

    def show(self, result: Mapping[str, object], *lines: str) -> None:
        """Show a result: the object with `--json`, else the lines."""
        told = json.dumps(result, ensure_ascii=False) if self.as_json else _wrapped("\n".join(lines), self._stdout)
        self._stdout.write(told + "\n")
        self._stdout.flush()

    def line(self, result: Mapping[str, object]) -> None:
        """Show a result as one line of JSON in ASCII, with and without `--json`."""
        self._stdout.write(json.dumps(result) + "\n")
        self._stdout.flush()

    def aside(self, result: Mapping[str, object]) -> None:
        """Show JSON that is not a result, such as counts of results, beside them."""
        self._stderr.write(json.dumps(result) + "\n")
        self._stderr.flush()

    def note(self, text: str) -> None:
        """Tell a person something that is not a result; silent with `--json`."""
        if not self.as_json:
            self._stderr.write(_wrapped(text, self._stderr) + "\n")
            self._stderr.flush()

    def ask(self, question: str) -> None:
        """Put a question; what is typed follows it on the same line."""
        self._stderr.write(_wrapped(question, self._stderr).rstrip() + " ")
        self._stderr.flush()

    def raw(self, data: bytes) -> None:
        """Write a result that is no text, as it is."""
        self._stdout.buffer.write(data)
        self._stdout.flush()

    def is_screen(self) -> bool:
        """Whether results appear on a terminal."""
        return self._stdout.isatty()

    def folded(self, text: str, indent: int) -> list[str]:
        """A sentence in lines that fit the terminal, or 100 columns, each indented."""
        columns = max(_terminal_columns() or _COLUMNS, 40)
        blank = " " * indent
        return textwrap.wrap(
            inert(text), columns, initial_indent=blank, subsequent_indent=blank, break_on_hyphens=False
        )

    def progress(self, text: str) -> None:
        """Replace the last line of a terminal; silent elsewhere."""
        if not self.as_json and self._stderr.isatty():
            self._stderr.write(f"\r\x1b[K{text}")
            self._stderr.flush()

    def error(self, error: KeyvouchError) -> None:
        """Show an error in the form the caller asked for."""
        if self.as_json:
            told = {
                "kind": type(error).__name__,
                "reason": error.reason.value,
                "message": error.message,
                "fix": error.fix,
            }
            if error.metadata:
                told["metadata"] = error.metadata  # type: ignore[assignment]  # one level deeper than the rest
            self._stderr.write(json.dumps({"error": told}, ensure_ascii=False) + "\n")
            return
        for head, text in (("keyvouch: ", error.message), ("          ", error.fix)):
            if text:
                self._stderr.write(self._folded(head, inert(text)) + "\n")

    def _folded(self, head: str, text: str) -> str:
        """The text under its head, broken between words where a terminal would break inside them."""
        if not self._stderr.isatty():
            return head + text
        columns = max(shutil.get_terminal_size().columns, 40)
        return textwrap.fill(text, columns, initial_indent=head, subsequent_indent=" " * len(head))

    def can_draw_blocks(self) -> bool:
        """Whether standard error can carry block characters."""
        return (self._stderr.encoding or "").lower().replace("-", "") == "utf8"

    def time(self, seconds: int) -> str:
        """An instant for people, in local time with its offset, or in UTC."""
        if seconds <= 0:
            return "-"
        try:
            instant = datetime.fromtimestamp(seconds, UTC)
        except (OverflowError, ValueError, OSError):
            return str(seconds)
        if self._utc:
            return instant.strftime("%Y-%m-%d %H:%M:%S UTC")
        return instant.astimezone().isoformat(" ", "seconds")

    def minute(self, seconds: int) -> str:
        """An instant for tables, where room is scarce: local time to the minute, or UTC, marked with a Z."""
        if seconds <= 0:
            return "-"
        try:
            instant = datetime.fromtimestamp(seconds, UTC)
        except (OverflowError, ValueError, OSError):
            return str(seconds)
        return f"{instant if self._utc else instant.astimezone():%Y-%m-%d %H:%M}{'Z' if self._utc else ''}"


def _wrapped(text: str, stream: TextIO) -> str:
    """The text with breaks between words where a terminal would break inside them; elsewhere as it is."""
    if not stream.isatty():
        return text
    columns = max(shutil.get_terminal_size().columns, 40)
    return "\n".join(_wrapped_line(line, columns) for line in text.split("\n"))


def _wrapped_line(line: str, columns: int) -> str:
    if _width(line) <= columns:
        return line
    blank = " " * (len(line) - len(line.lstrip(" ")))
    return textwrap.fill(line, columns, subsequent_indent=blank, break_long_words=False, break_on_hyphens=False)


def inert(text: str) -> str:
    """`text` with every control, format and separator character replaced, so that it is one harmless line."""
    return "".join(_REPLACED if unicodedata.category(c) in _HARMFUL else c for c in text)


_REPLACED = "\N{REPLACEMENT CHARACTER}"
_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def table(
    titles: Sequence[str], rows: Iterable[Sequence[object]], *, columns: int | None = None, fold: bool = False
) -> str:
    """Columns under their titles; cells are made inert.

    Where that is wider than `columns` (none: the terminal's, else no limit), the last column is broken between words if
    it may `fold`; without that, or without room for it, each row becomes a card of its own. A first column without a
    title holds marks; on a card a mark stands behind the first value.
    """
    cells = [[inert(str(cell)) or "-" for cell in row] for row in rows]
    widths = [max(_width(row[n]) for row in [list(titles), *cells]) for n in range(len(titles))]
    limit = columns if columns is not None else _terminal_columns()
    if cells and limit is not None and sum(widths) + 2 * (len(widths) - 1) > limit:
        room = limit - sum(widths[:-1]) - 2 * (len(widths) - 1)
        if not fold or room < _FOLDED:
            return "\n\n".join(_card(*_with_mark(titles, row)) for row in cells)
        cells = [part for row in cells for part in _folded_row(row, room)]
    lines = [_line(row, widths) for row in [[title.upper() for title in titles], *cells]]
    return "\n".join(lines)


_FOLDED = 24
"""Columns that make a sentence readable."""
_COLUMNS = 100
_ENDLESS = 1_000_000


def _folded_row(row: Sequence[str], room: int) -> Iterator[list[str]]:
    first, *more = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
    yield [*row[:-1], first]
    for part in more:
        yield [*("" for _ in row[:-1]), part]


def details(*rows: tuple[str, str]) -> str:
    """One thing, a line for each of its properties; values are made inert."""
    return _card([name for name, _ in rows], [inert(value) or "-" for _, value in rows])


def _terminal_columns() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _with_mark(titles: Sequence[str], row: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    if titles[0].strip():
        return titles, row
    return titles[1:], [f"{row[1]}  {row[0]}".rstrip(), *row[2:]]


def _card(titles: Sequence[str], row: Sequence[str]) -> str:
    width = max(map(_width, titles))
    room = max((_terminal_columns() or _ENDLESS) - width - 2, _FOLDED)
    lines = []
    for title, cell in zip(titles, row, strict=True):
        first, *more = textwrap.wrap(cell, room, break_on_hyphens=False) if _width(cell) > room else [cell]
        lines.append(f"{title + ' ' * (width - _width(title))}  {first}")
        lines += [" " * (width + 2) + part for part in more]
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)
