"""The script for bash. It runs in bash 3.2 and later, with and without the package bash-completion."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence

from keyvouch_client.completion.places import Place, Values, options_by_values

__all__ = ["bash_script", "branches_of_values"]

_SCRIPT = """\
# Completion of {program} in bash; made by `{program} completion bash`.

{name}_at() {{
    commands='' aliases='' options='' valued='' words='' files=''
    case "$1" in
{places}
    esac
}}

{name}_value() {{
    words='' files=''
    case "$1" in
{values}
    esac
}}

{name}() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" place='' option='' n=1 word
    local commands aliases options valued words files
    {name}_at ''
    while (( n < COMP_CWORD )); do
        word="${{COMP_WORDS[n]}}" option=''
        if [[ " $valued " == *" $word "* ]]; then
            option="$word"
            (( n += 1 ))
            [[ "${{COMP_WORDS[n]}}" == '=' && $n -lt $COMP_CWORD ]] && (( n += 1 ))
            (( n >= COMP_CWORD )) && break
            # bash breaks words at these characters: localhost:7443 is three
            while [[ "${{COMP_WORDS[n + 1]}}" == [:=] && $(( n + 1 )) -lt $COMP_CWORD ]]; do (( n += 2 )); done
        elif [[ " $commands $aliases " == *" $word "* ]]; then
            place="${{place:+$place }}$word"
            {name}_at "$place"
        fi
        (( n += 1 ))
        option=''
    done
    [[ "$cur" == '=' ]] && cur=''
    COMPREPLY=()
    if [[ -n "$option" ]]; then
        {name}_value "$place $option"
    elif [[ "$cur" == -* ]]; then
        words="$options" files=''
    else
        words="$words $commands"
    fi
    while IFS='' read -r word; do COMPREPLY+=("$word"); done < <(compgen -W "$words" -- "$cur")
    if [[ -n "$files" ]]; then
        compopt -o filenames 2>/dev/null
        while IFS='' read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$cur")
    fi
}}

complete -F {name} {program}
"""


def bash_script(program: str, places: Sequence[Place]) -> str:
    """The script for `program`."""
    return _SCRIPT.format(
        program=program,
        name="_" + program.replace("-", "_"),
        places="\n".join(_branch(place) for place in places),
        values=branches_of_values(places, _assigned),
    )


def _branch(place: Place) -> str:
    told = {
        "commands": (word.text for word in place.commands),
        "aliases": place.aliases,
        "options": (spelling for option in place.options for spelling in option.spellings),
        "valued": (spelling for option in place.options if option.values is not None for spelling in option.spellings),
    }
    parts = [f"{name}={_quoted(words)}" for name, words in told.items()]
    return f"        {shlex.quote(place.path)}) {' '.join(parts)} {_assigned(place.values)} ;;"


def _assigned(values: Values) -> str:
    return f"words={_quoted(values.words)} files={'yes' if values.files else _quoted(())}"


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def branches_of_values(places: Sequence[Place], assigned: Callable[[Values], str]) -> str:
    """The branches of a `case` over a place and an option, in the syntax that bash and zsh share."""
    lines = []
    for values, options in options_by_values(places):
        patterns = (
            f"*{shlex.quote(f' {o.spelling}')}" if o.path is None else shlex.quote(f"{o.path} {o.spelling}")
            for o in options
        )
        lines.append(f"        {'|'.join(patterns)}) {assigned(values)} ;;")
    return "\n".join(lines)
