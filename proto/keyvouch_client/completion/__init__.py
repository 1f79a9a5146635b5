"""Completion of a command line in bash, zsh and fish, made from the argparse grammar of the command.

    print(script(build_parser(), "bash"))

A script holds a table of the places in the grammar and one function that walks to the present one: pressing the tab key
starts no program and asks no server. Not here: words that only a server knows, such as names of users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["script"]


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion of the program that `parser` is for. `shell` is one of `installing.SHELLS`."""
    from keyvouch_client.completion.bash import bash_script  # noqa: PLC0415 - `installing` is for every `--help`
    from keyvouch_client.completion.fish import fish_script  # noqa: PLC0415
    from keyvouch_client.completion.places import places  # noqa: PLC0415
    from keyvouch_client.completion.zsh import zsh_script  # noqa: PLC0415

    scripts = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
    return scripts[shell](parser.prog, places(parser))
