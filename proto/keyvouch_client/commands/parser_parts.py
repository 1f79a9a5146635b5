"""What the grammar of the command line is made of: its parser, the options that many commands have, one command.

Nothing but argparse is imported here, so that `--help` is instant. Not here: which commands there are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import NoReturn, TypeAlias

__all__ = [
    "ASSURANCE_HELP",
    "CommandLineError",
    "Commands",
    "Parser",
    "Version",
    "ask_first",
    "common_arguments",
    "group",
    "json_argument",
    "leaf",
    "whole_number",
]


ASSURANCE_HELP = "any, hardware, or protection/verification/provenance[/anchor,...]"
"""How a required assurance is written."""


class CommandLineError(Exception):
    """The command line is not one this program knows."""

    def __init__(self, usage: str, message: str, program: str = "keyvouch") -> None:
        self._fix = f"See `{program} --help`."
        super().__init__(f"{usage}keyvouch: {message}\n          {self._fix}")
        self._message = message

    def as_json(self) -> str:
        """The error in the form all errors have with `--json`."""
        told = {"kind": "UsageError", "reason": "usage", "message": self._message, "fix": self._fix}
        return json.dumps({"error": told})


class Parser(argparse.ArgumentParser):
    """argparse's parser, but for its errors, which are raised."""

    def error(self, message: str) -> NoReturn:
        """Raise `CommandLineError`."""
        raise CommandLineError(self.format_usage(), message, self.prog)


class Version(argparse.Action):
    """`--version`, which looks the version up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and exit."""
        version = importlib.import_module("importlib.metadata").version("keyvouch")
        sys.stdout.write(f"{parser.prog} {version}\n")
        parser.exit()


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # the only name its type has


def json_argument() -> Parser:
    """The one option of commands that ask no server."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="errors and counts as JSON, as results are anyway")
    return common


def common_arguments() -> Parser:
    """The options of all commands that ask a server."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    options = common.add_argument_group("everywhere")
    options.add_argument("--server", metavar="HOST:PORT", help="the server's public listener")
    options.add_argument("--ca", metavar="FILE", help="CA certificate of the server, PEM; default: public roots")
    options.add_argument("--insecure-loopback", action="store_true", help="plaintext, to a loopback address only")
    options.add_argument("--json", action="store_true", help="results and errors as JSON, times in seconds since 1970")
    options.add_argument("--utc", action="store_true", help="show times in UTC instead of local time")
    return common


def leaf(commands: Commands, common: Parser, name: str, run: str, text: str) -> Parser:
    """One command, done by `run`, a `module:function` of `keyvouch_client.commands`."""
    made = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common], allow_abbrev=False
    )
    made.set_defaults(run=f"keyvouch_client.commands.{run}", offline=False)
    return made


def group(objects: Commands, common: Parser, name: str, text: str, *aliases: str) -> Commands:
    """A word that only other words give a meaning."""
    parser = objects.add_parser(name, help=text, aliases=aliases, parents=[common], allow_abbrev=False)
    return parser.add_subparsers(title="actions", metavar="ACTION", required=True)


def whole_number(text: str) -> int:
    """An option that takes a number from 1."""
    if not (text.isascii() and text.isdigit() and int(text[:20]) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def ask_first(command: Parser) -> None:
    """The command takes something away: on a terminal it asks before it does, unless it is told not to."""
    command.add_argument("--yes", action="store_true", help="do not ask, even on a terminal")
