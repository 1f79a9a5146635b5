"""The places of a grammar: what may come next after `keyvouch`, after `keyvouch admin`, after `keyvouch admin user` ...

Not here: how a shell is told.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Option", "OptionAt", "Place", "Values", "Word", "options_by_values", "places"]

_FILES = ("FILE", "DIR", "PATH")


@dataclass(frozen=True, slots=True)
class Word:
    """A word and what it means."""

    text: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Values:
    """What may be given: some words, or a file; neither: something nobody knows beforehand."""

    words: tuple[str, ...] = ()
    files: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """An option with all its spellings; `values` is None for one that takes nothing."""

    spellings: tuple[str, ...]
    meaning: str
    values: Values | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where one can be in a command line: the words that lead there, joined by blanks, and what may follow."""

    path: str
    commands: tuple[Word, ...]
    aliases: tuple[str, ...]
    options: tuple[Option, ...]
    values: Values


@dataclass(frozen=True, slots=True)
class OptionAt:
    """One spelling of an option at a place; without a path, wherever it may be given."""

    path: str | None
    spelling: str


def places(parser: argparse.ArgumentParser) -> list[Place]:
    """All places of the grammar of `parser`, the first one with an empty path."""
    return list(_from(parser, ""))


def _from(parser: argparse.ArgumentParser, path: str) -> Iterator[Place]:
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    following = next((action for action in actions if isinstance(action, argparse._SubParsersAction)), None)
    commands = _commands(following)
    known = {} if following is None else dict(following.choices)
    yield Place(
        path=path,
        commands=commands,
        aliases=tuple(name for name in known if name not in {word.text for word in commands}),
        options=tuple(_option(parser, action) for action in actions if action.option_strings),
        values=_together(
            [_values(action) for action in actions if not action.option_strings and action is not following]
        ),
    )
    for name, inner in known.items():
        yield from _from(inner, f"{path} {name}".strip())


def _commands(following: argparse._SubParsersAction[argparse.ArgumentParser] | None) -> tuple[Word, ...]:
    if following is None:
        return ()
    return tuple(Word(action.dest, _meaning(action.help or "")) for action in following._get_subactions())


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    told = parser._get_formatter()._expand_help(action) if action.help else ""
    return Option(tuple(action.option_strings), _meaning(told), None if action.nargs == 0 else _values(action))


def _values(action: argparse.Action) -> Values:
    if action.choices is not None:
        return Values(words=tuple(str(choice) for choice in action.choices))
    is_path = getattr(action.type, "__name__", "") == "Path"
    return Values(files=is_path or any(word in str(action.metavar or "") for word in _FILES))


def _together(several: list[Values]) -> Values:
    words = tuple(word for values in several for word in values.words)
    return Values(words, any(values.files for values in several))


def _meaning(text: str) -> str:
    """The first clause, for a list with one line for each word."""
    return text.partition(";")[0].strip().rstrip(".")


def options_by_values(places: Sequence[Place]) -> list[tuple[Values, list[OptionAt]]]:
    """Which options take the same, for those of which something is known."""
    taken: dict[str, dict[str, Values]] = {}
    for place in places:
        for option in place.options:
            for spelling in option.spellings if option.values is not None else ():
                taken.setdefault(spelling, {})[place.path] = option.values or Values()
    found: dict[Values, list[OptionAt]] = {}
    for spelling, by_path in taken.items():
        if len(set(by_path.values())) == 1:
            found.setdefault(next(iter(by_path.values())), []).append(OptionAt(None, spelling))
        else:
            for path, values in by_path.items():
                found.setdefault(values, []).append(OptionAt(path, spelling))
    return [(values, options) for values, options in found.items() if values != Values()]
