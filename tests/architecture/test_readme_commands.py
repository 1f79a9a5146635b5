"""What the pages tell people to type exists: every program, subcommand and option."""

from __future__ import annotations

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from support.programs import programs, run_program
from support.readme import Command, console_blocks
from support.repository import ROOT, files, text_of

ORDINARY = {
    ".",
    "buf",
    "cd",
    "cp",
    "curl",
    "export",
    "git",
    "grpcurl",
    "kill",
    "openssl",
    "python3",
    "pytest",
    "rm",
    "scp",
    "sh",
}
ORDINARY |= {"sudo", "apt-get", "systemctl", "useradd", "install"}
"""Programs of the system that a page may use; what they are told is not checked."""

_SEPARATORS = {"&&", "||", ";", "|", "&"}
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")


def pages() -> list[Path]:
    return [path for path in files() if path.suffix == ".md" and "vectors" not in path.parts]


def shell_words(text: str) -> list[list[str]]:
    """The simple commands of a line of shell, without assignments, redirections and `$( )`."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if word in _SEPARATORS:
            commands.append([])
        elif set(word) <= {"<", ">", "&"}:
            redirected = True
        elif redirected:
            redirected = False
        elif commands[-1] or not _ASSIGNMENT.fullmatch(word):
            commands[-1].append(word)
    return [words for words in commands if words]


@cache
def help_of(program: str, *subcommands: str) -> str:
    done = run_program(program, *subcommands, "--help")
    assert done.returncode == 0, f"{program} {' '.join(subcommands)} --help: {done.stderr}"
    return done.stdout


@cache
def run_help() -> str:
    return subprocess.run([ROOT / "run", "help"], capture_output=True, text=True, check=True).stdout


def names_subcommand(page: str, word: str) -> bool:
    """Whether the help page lists the word at the head of a line, as argparse lists subcommands and their aliases."""
    name = re.escape(word)
    return re.search(rf"^\s+(?:{name}|\S+ \((?:[^)]*, )?{name}(?:, [^)]*)?\))(?:\s|$)", page, re.MULTILINE) is not None


def fault_in(words: list[str]) -> str | None:
    """Why the words cannot be typed, or None."""
    program, rest = words[0], words[1:]
    if program in ORDINARY:
        return None
    if program == "./run":
        return fault_in_run(rest)
    if program not in programs():
        return f"there is no program {program}"
    return fault_in_ours(program, rest)


def fault_in_run(rest: list[str]) -> str | None:
    if not rest or not names_subcommand(run_help(), rest[0]):
        return f"./run has no command {rest[:1]}"
    if rest[0] == "exec" and rest[1] in programs():
        return fault_in(rest[1:])
    return None


def fault_in_ours(program: str, rest: list[str]) -> str | None:
    subcommands: list[str] = []
    for word in rest:
        page = help_of(program, *subcommands)
        if word.startswith("--"):
            option = word.split("=")[0]
            if re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page) is None:
                return f"{program} {' '.join(subcommands)} has no option {option}"
        elif names_subcommand(page, word):
            subcommands.append(word)
        elif not subcommands:
            return f"{program} has no command {word}"
    return None


@pytest.mark.parametrize("page", pages(), ids=str)
def test_every_command_of_the_page_exists(page: Path):
    text = text_of(page)
    assert text is not None
    commands: list[Command] = [command for block in console_blocks(text) for command in block.commands]
    faults = {
        f"{page}:{command.line}": fault
        for command in commands
        for words in shell_words(command.text)
        if (fault := fault_in(words))
    }
    assert faults == {}


@pytest.mark.parametrize(
    "line",
    ["keyvouch conjure", "keyvouch sign-in --no-such-option", "keyvouch-wand wave", "./run away", "FOO=1 keyvouch-x"],
)
def test_what_does_not_exist_is_found(line: str):
    (words,) = shell_words(line)
    assert fault_in(words) is not None


@pytest.mark.parametrize(
    "line",
    ["keyvouch sign-in --tenant example --user=alice", "A=b ./run test tests/unit", "keyvouch whoami > file 2>&1 &"],
)
def test_what_exists_is_accepted(line: str):
    assert [fault_in(words) for words in shell_words(line)] == [None]
