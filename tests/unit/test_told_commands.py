"""Messages tell people what to type next. What they tell exists: each command, and each option at its place."""

from __future__ import annotations

import re

import pytest

from keyvouch_agent.__main__ import _parser as agent_parser
from keyvouch_client.commands.parser import build_parser
from keyvouch_client.completion.places import Place, places
from keyvouch_server.__main__ import _parser as server_parser
from support.repository import ROOT, python_sources

GRAMMARS = {"keyvouch": build_parser, "keyvouch-agent": agent_parser, "keyvouch-server": server_parser}
_TOLD = re.compile(r"`(keyvouch(?:-agent|-server)?) ([^`\n]+)`")


def told() -> dict[tuple[str, str], str]:
    """Program and words of every command in the sources, and one file it is in."""
    found: dict[tuple[str, str], str] = {}
    for path in python_sources():
        for program, words in _TOLD.findall((ROOT / path).read_text("utf-8")):
            found[program, words] = str(path)
    return found


def fault_in(program: str, words: str, grammar: dict[str, Place]) -> str:
    """What does not exist of a command; nothing where all does."""
    path, rest = "", [word for word in words.split() if word != "..."]
    while rest and grammar[path].commands:
        word = rest[0]
        if word.startswith("{"):
            return ""  # filled in later
        if word.startswith("-"):
            break
        following = f"{path} {word}".strip()
        if following not in grammar:
            return "" if path and grammar[path].values.words else f"no command {following!r}"
        path, rest = following, rest[1:]
    known = {spelling for option in grammar[path].options for spelling in option.spellings}
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    return f"no option {unknown[0]!r} of {program} {path}" if unknown else ""


@pytest.mark.parametrize("program", GRAMMARS)
def test_every_command_that_a_message_names_exists(program: str) -> None:
    grammar = {place.path: place for place in places(GRAMMARS[program]())}
    named = {words: path for (name, words), path in told().items() if name == program}
    assert named
    faults = {
        f"{program} {words}": (fault, path)
        for words, path in named.items()
        if (fault := fault_in(program, words, grammar))
    }
    assert faults == {}


@pytest.mark.parametrize("words", ["admin usr list", "admin user list --rolle", "nothing", "sign-in --pass"])
def test_what_does_not_exist_would_be_found(words: str) -> None:
    grammar = {place.path: place for place in places(build_parser())}
    assert fault_in("keyvouch", words, grammar)
