"""`./run` explains itself, and on a machine that lacks something it says the line to type, or types it as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.repository import ROOT

PYTHON_WITHOUT_VENV = f"""#!/bin/sh
case "$*" in *'import ensurepip, venv'*) exit 1 ;; esac
exec {sys.executable} "$@"
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine whose python3 cannot make environments: `bin` holds what stands before the real programs."""
    for name in ("run", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    program(tmp_path, "python3", PYTHON_WITHOUT_VENV)
    program(tmp_path, "apt-get", f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" = update ]\n')
    return tmp_path


def program(machine: Path, name: str, text: str) -> None:
    path = machine / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run(folder: Path, *arguments: str, shell: str = "sh") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KEYVOUCH_", "PYTHON"))}
    path = f"{folder / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    return subprocess.run(
        [shell, folder / "run", *arguments],
        env=kept | {"PATH": path, "KEYVOUCH_INSTALLER": "pip"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("script", ["run", "proto/generate.sh"])
def test_the_script_is_posix_shell(script: str):
    assert subprocess.run(["sh", "-n", ROOT / script], check=False, timeout=10).returncode == 0


def test_help_names_every_command():
    text = (ROOT / "run").read_text(encoding="utf-8").split("\ncase $command in\n")[1]
    commands = {line.strip().split(")")[0] for line in text.splitlines() if line[:4] == "    " and line[4:5].isalpha()}
    shown = run(ROOT, "help").stdout
    assert {"demo", "test", "doctor", "bench"} <= commands
    assert [name for name in commands if f"\n  {name.split(' ')[0]} " not in shown] == []


def test_an_unknown_command_is_refused():
    done = run(ROOT, "away")
    assert done.returncode != 0
    assert "no command called away" in done.stderr


def test_an_ordinary_user_is_told_the_exact_line(machine: Path):
    program(machine, "id", "#!/bin/sh\necho 1000\n")
    program(machine, "sudo", "#!/bin/sh\nexit 1\n")
    done = run(machine, "setup")
    assert done.returncode != 0
    assert "sudo apt-get update && sudo apt-get install -y python3" in done.stderr
    assert "-venv\n" in done.stderr
    assert not (machine / "asked").exists()


def test_root_installs_it_and_a_failure_is_shown(machine: Path):
    program(machine, "id", "#!/bin/sh\necho 0\n")
    done = run(machine, "setup")
    update, install = (machine / "asked").read_text().splitlines()
    assert done.returncode != 0
    assert "apt-get failed" in done.stderr
    assert update.startswith("update")
    assert install.startswith("install -y")
    assert install.endswith("-venv")
