"""Completion in the shells themselves: each script is loaded by its shell, which is then asked, or typed at."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from keyvouch_agent.__main__ import _parser as agent_parser
from keyvouch_client.commands.parser import build_parser
from keyvouch_client.completion import script
from keyvouch_client.completion.installing import SHELLS as OFFERED
from keyvouch_client.completion.places import Values, places
from keyvouch_server.__main__ import _parser as server_parser
from support.programs import run_program
from support.typing_shell import SHELLS, typed

GRAMMARS = {"keyvouch": build_parser, "keyvouch-agent": agent_parser, "keyvouch-server": server_parser}

_ASK_BASH = """\
source "$1"
shift
function="$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(( $# - 1 ))
"$function"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(session_directory: Path) -> dict[tuple[str, str], Path]:
    folder = session_directory / "completion"
    folder.mkdir(exist_ok=True)
    made = {}
    for program, grammar in GRAMMARS.items():
        for shell in OFFERED:
            made[program, shell] = folder / f"{program}.{shell}"
            made[program, shell].write_text(script(grammar(), shell))
    return made


def bash_words(path: Path, *words: str) -> list[str]:
    """What bash offers for the last of `words`, which are split as bash splits them."""
    name = "_" + words[0].replace("-", "_")
    asked = ["bash", "--norc", "--noprofile", "-c", _ASK_BASH, "bash", str(path), name, *words]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False, cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


ASKED: dict[tuple[str, ...], set[str]] = {
    ("keyvouch", "adm"): {"admin"},
    ("keyvouch", "admin", "user", "u"): {"update"},
    ("keyvouch", "admin", "user", "alias", ""): {"add", "remove"},
    ("keyvouch", "--json", "admin", "tap", "re"): {"replace"},
    ("keyvouch", "admin", "pass", "replace", "ada", "--keep"): {"--keep-sessions"},
    ("keyvouch", "--server", "localhost", ":", "7443", "admin", "ris"): {"risk"},
    ("keyvouch", "--server", "admin", "ri"): set(),
    ("keyvouch", "admin", "user", "create", "--role", "global_"): {"global_reader", "global_administrator"},
    ("keyvouch", "admin", "user", "create", "--role", "=", "global_r"): {"global_reader"},
    ("keyvouch", "security-info", "default", "la"): {"last"},
    ("keyvouch", "completion", ""): {"bash", "zsh", "fish"},
    ("keyvouch", "verify", "keyvouch.z"): {"keyvouch.zsh"},
    ("keyvouch", "--ca", "keyvouch.z"): {"keyvouch.zsh"},
    ("keyvouch", "whoami", "no"): set(),
    ("keyvouch-agent", "tpm", ""): {"status", "unlock", "forget"},
    ("keyvouch-agent", "enroll", "--provider", "f"): {"fido2"},
    ("keyvouch-server", "ba"): {"backup"},
    ("keyvouch-server", "backup", "--data", "keyvouch-server.b"): {"keyvouch-server.bash"},
}


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_bash_offers_the_words_that_may_come_next(scripts: dict[tuple[str, str], Path], words: tuple[str, ...]) -> None:
    assert set(bash_words(scripts[words[0], "bash"], *words)) == ASKED[words]


@pytest.mark.parametrize("program", GRAMMARS)
def test_bash_offers_every_command_and_every_option_at_its_place(
    scripts: dict[tuple[str, str], Path], program: str
) -> None:
    for place in places(GRAMMARS[program]()):
        offered = set(bash_words(scripts[program, "bash"], program, *place.path.split(), ""))
        assert offered >= {word.text for word in place.commands} | set(place.values.words), place.path
        options = {spelling for option in place.options for spelling in option.spellings}
        assert set(bash_words(scripts[program, "bash"], program, *place.path.split(), "-")) == options, place.path


@pytest.mark.parametrize("shell", SHELLS)
def test_the_tab_key_completes_what_is_typed(scripts: dict[tuple[str, str], Path], shell: str, tmp_path: Path) -> None:
    keys = "keyvouch --server localhost:7443 adm\tus\tcre\t--rol\tglobal_a\t"
    given = typed(shell, scripts["keyvouch", shell], "keyvouch", keys, tmp_path)
    assert given == "--server localhost:7443 admin user create --role global_administrator"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("program", "keys", "expected"),
    [
        ("keyvouch-agent", "keyvouch-agent tp\tforg\t--aban\t", "tpm forget --abandoned"),
        ("keyvouch-server", "keyvouch-server back\t--dat\tonly-f\t", "backup --data only-folder"),
    ],
)
def test_the_tab_key_works_for_the_other_programs_too(
    scripts: dict[tuple[str, str], Path], shell: str, program: str, keys: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "only-folder").mkdir()
    given = typed(shell, scripts[program, shell], program, keys, tmp_path)
    assert given.rstrip("/") == expected  # zsh takes the slash of a folder away again


@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_in_a_grammar_is_run_by_the_shell(shell: str, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser(prog="careful", add_help=False)
    commands = parser.add_subparsers()
    commands.add_parser("first", help="isn't `touch ran` $(touch ran) \\' \"; touch ran; %% end: of it")
    commands.add_parser("second", help="$HOME")
    path = tmp_path / "careful"
    path.write_text(script(parser, shell))
    assert typed(shell, path, "careful", "careful f\tse\t", tmp_path) == "first se"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("program", GRAMMARS)
def test_each_program_prints_its_script_and_says_how_to_install_it(program: str) -> None:
    for shell in OFFERED:
        printed = run_program(program, "completion", shell)
        assert (printed.returncode, printed.stderr) == (0, "")
        assert printed.stdout == script(GRAMMARS[program](), shell)
    told = run_program(program, "completion", "--help").stdout
    assert f"{program} completion bash > ~/.local/share/bash-completion/completions/{program}" in told
    assert run_program(program, "completion", "tcsh").returncode == 2


def test_what_an_option_takes_is_read_from_the_grammar() -> None:
    parser = argparse.ArgumentParser(prog="p")
    parser.add_argument("--file", metavar="DIR|FILE.pem")
    parser.add_argument("--path", type=Path)
    parser.add_argument("--text", help="one thing; and more of it")
    parser.add_argument("--kind", choices=("a", "b"))
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    (place,) = places(parser)
    taken = {option.spellings[-1]: option.values for option in place.options}
    assert taken == {
        "--help": None,
        "--file": Values(files=True),
        "--path": Values(files=True),
        "--text": Values(),
        "--kind": Values(words=("a", "b")),
        "--flag": None,
    }
    assert next(option for option in place.options if option.spellings == ("--text",)).meaning == "one thing"
