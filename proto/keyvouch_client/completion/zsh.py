"""The script for zsh: a function for a directory of `$fpath`, which can also be sourced.

Its variables are not called `commands`, `aliases` or `options`: those are parameters of zsh itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from keyvouch_client.completion.bash import branches_of_values
from keyvouch_client.completion.places import Place, Values, Word

__all__ = ["zsh_script"]

_SCRIPT = """\
#compdef {program}
# Completion of {program} in zsh; made by `{program} completion zsh`.

{name}_at() {{
    following=() synonyms=() flags=() valued=() values=() files=''
    case "$1" in
{places}
    esac
}}

{name}_value() {{
    values=() files=''
    case "$1" in
{values}
    esac
}}

{name}() {{
    local place='' option='' word n
    local -a following synonyms flags valued values
    local files
    {name}_at ''
    for (( n = 2; n < CURRENT; n += 1 )); do
        word="${{words[n]}}"
        if [[ -n "$option" ]]; then
            option=''
        elif (( ${{valued[(Ie)$word]}} )); then
            option="$word"
        elif (( ${{synonyms[(Ie)$word]}} || ${{following[(I)${{word}}:*]}} )); then
            place="${{place:+$place }}$word"
            {name}_at "$place"
        fi
    done
    if [[ -z "$option" && "$PREFIX" == --*=* ]]; then
        option="${{PREFIX%%=*}}"
        compset -P '*='
    fi
    if [[ -n "$option" ]]; then
        {name}_value "$place $option"
    elif [[ "$PREFIX" == -* ]]; then
        _describe -o option flags
        return
    elif (( $#following )); then
        _describe command following
    fi
    (( $#values )) && compadd -a values
    [[ -n "$files" ]] && _files
    return 0
}}

if [[ "${{funcstack[1]}}" == {name} ]]; then
    {name} "$@"
else
    compdef {name} {program}
fi
"""


def zsh_script(program: str, places: Sequence[Place]) -> str:
    """The script for `program`."""
    return _SCRIPT.format(
        program=program,
        name="_" + program,
        places="\n".join(_branch(place) for place in places),
        values=branches_of_values(places, _assigned),
    )


def _branch(place: Place) -> str:
    spelled = [Word(spelling, option.meaning) for option in place.options for spelling in option.spellings]
    valued = (spelling for option in place.options if option.values is not None for spelling in option.spellings)
    parts = [
        f"following={_array(_described(word) for word in place.commands)}",
        f"synonyms={_array(place.aliases)}",
        f"flags={_array(_described(word) for word in spelled)}",
        f"valued={_array(valued)}",
    ]
    return f"        {shlex.quote(place.path)}) {' '.join(parts)} {_assigned(place.values)} ;;"


def _assigned(values: Values) -> str:
    return f"values={_array(values.words)} files={'yes' if values.files else shlex.quote('')}"


def _described(word: Word) -> str:
    return f"{word.text}:{word.meaning or word.text}"


def _array(words: Iterable[str]) -> str:
    return "(" + " ".join(map(shlex.quote, words)) + ")"
