"""The commands a Markdown page tells its reader to type.

A block is fenced and marked `console`; words after the mark name the terminal it belongs to:

    ```console server
    $ keyvouch-server run
    listening
    ```

In a block a line that starts with `$ ` is a command, a line that starts with `> ` or follows a trailing backslash
continues it, and every other line is output the reader should see. A block marked with a language and the name of a
file is that file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^```(?P<mark>\S*)(?P<rest>.*)$")


@dataclass(frozen=True, slots=True)
class Command:
    """One command, as the reader types it, and the output the page promises."""

    text: str
    line: int
    output: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced `console` block. `section` is the heading above it, `terminal` is empty when the page names none."""

    section: str
    terminal: str
    commands: tuple[Command, ...]


def console_blocks(markdown: str) -> list[Block]:
    """The `console` blocks of a page in their order; raises `ValueError` for a block that never ends."""
    blocks: list[Block] = []
    section, opened, lines = "", None, list[tuple[int, str]]()
    for number, line in enumerate(markdown.splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, lines = fence, []
        elif opened is None and line.startswith("#"):
            section = line.lstrip("#").strip()
        elif opened is not None and line.strip() == "```":
            if opened["mark"] == "console":
                blocks.append(Block(section, opened["rest"].strip(), tuple(_commands(lines))))
            opened = None
        elif opened is not None:
            lines.append((number, line))
    if opened is not None:
        raise ValueError("a fenced block never ends")
    return blocks


def named_files(markdown: str) -> dict[str, str]:
    """The files a page tells its reader to save: by name, the text of each fenced block that is marked with one."""
    blocks = re.findall(r"^```\w+ (\S+\.\w+)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)
    return dict(blocks)


def _commands(lines: list[tuple[int, str]]) -> list[Command]:
    commands: list[Command] = []
    continues = False
    for number, line in lines:
        if line.startswith("$ "):
            commands.append(Command(line.removeprefix("$ "), number))
        elif not commands:
            raise ValueError(f"line {number}: a console block starts with a command")
        elif continues or line.startswith("> "):
            last = commands.pop()
            text = last.text.removesuffix("\\").rstrip() + " " + line.removeprefix("> ").strip()
            commands.append(Command(text, last.line))
        else:
            last = commands.pop()
            commands.append(Command(last.text, last.line, (*last.output, line)))
            continue
        continues = commands[-1].text.endswith("\\")
    return commands
