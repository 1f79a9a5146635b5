"""The script for fish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keyvouch_client.completion.places import Place, Values, Word, options_by_values

__all__ = ["fish_script"]

_SCRIPT = """\
# Completion of {program} in fish; made by `{program} completion fish`.

function {name}_at --no-scope-shadowing
    set commands
    set aliases
    set options
    set valued
    set values
    set files
    switch $argv[1]
{places}
    end
end

function {name}_value --no-scope-shadowing
    set values
    set files
    switch $argv[1]
{values}
    end
end

function {name}
    set -l place ''
    set -l option ''
    set -l commands
    set -l aliases
    set -l options
    set -l valued
    set -l values
    set -l files
    {name}_at ''
    for word in (commandline -opc)[2..-1]
        if test -n "$option"
            set option ''
        else if contains -- $word $valued
            set option $word
        else if contains -- $word $aliases; or string match -q -- "$word"\\t'*' $commands
            set place (string trim -- "$place $word")
            {name}_at $place
        end
    end
    set -l present (commandline -ct)
    if test -n "$option"
        {name}_value "$place $option"
    else if string match -q -- '--*=*' $present
        set -l parts (string split -m 1 = -- $present)
        {name}_value "$place $parts[1]"
        for word in $values
            echo "$parts[1]=$word"
        end
        return
    else if string match -q -- '-*' $present
        printf '%s\\n' $options
        return
    else
        test -n "$commands"; and printf '%s\\n' $commands
    end
    test -n "$values"; and printf '%s\\n' $values
    test -n "$files"; and __fish_complete_path $present
    return 0
end

complete -c {program} -e
complete -c {program} -f -a '({name})'
"""


def fish_script(program: str, places: Sequence[Place]) -> str:
    """The script for `program`."""
    return _SCRIPT.format(
        program=program,
        name="__" + program.replace("-", "_"),
        places="\n".join(_branch(place) for place in places),
        values="\n".join(_value_branches(places)),
    )


def _branch(place: Place) -> str:
    spelled = [Word(spelling, option.meaning) for option in place.options for spelling in option.spellings]
    valued = [spelling for option in place.options if option.values is not None for spelling in option.spellings]
    told = {
        "commands": [f"{word.text}\t{word.meaning}" for word in place.commands],
        "aliases": place.aliases,
        "options": [f"{word.text}\t{word.meaning}" for word in spelled],
        "valued": valued,
    }
    lines = [f"            set {name} {_list(words)}" for name, words in told.items() if words]
    return "\n".join([f"        case {_quoted(place.path)}", *lines, *_assigned(place.values)])


def _value_branches(places: Sequence[Place]) -> Iterable[str]:
    for values, options in options_by_values(places):
        patterns = [f"{'*' if option.path is None else option.path} {option.spelling}" for option in options]
        yield "\n".join([f"        case {_list(patterns)}", *_assigned(values)])


def _assigned(values: Values) -> list[str]:
    words = [f"            set values {_list(values.words)}"] if values.words else []
    return [*words, "            set files yes"] if values.files else words


def _list(words: Iterable[str]) -> str:
    return " ".join(map(_quoted, words))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
