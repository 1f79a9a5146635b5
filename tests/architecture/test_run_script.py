"""`./run` explains itself, and on a machine that lacks something it says the line to type, or types it as root."""

from __future__ import annotations

import hashlib
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

PYTHON_THAT_CANNOT_INSTALL = f"""#!/bin/sh
case "$*" in
    *'pip install'*) echo 'the compiler said no'; exit 1 ;;
    *keyvouch_bench.demo*) echo 'the demo ran'; exit 0 ;;
esac
exec {sys.executable} "$@"
"""


NO_TSS = "#!/bin/sh\ncase $2 in tss2-*) exit 1 ;; esac\n"
NO_PCSC = "#!/bin/sh\ncase $2 in libpcsclite) exit 1 ;; esac\n"


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


# What the TPM needs


@pytest.fixture
def without_tss(machine: Path) -> Path:
    """A machine that cannot compile the TPM library, used by somebody who may not install anything."""
    program(machine, "pkg-config", NO_TSS)
    program(machine, "id", "#!/bin/sh\necho 1000\n")
    program(machine, "sudo", "#!/bin/sh\nexit 1\n")
    return machine


@pytest.mark.parametrize("command", ["setup", "lint", "test"])
def test_the_tests_want_libtss2(without_tss: Path, command: str):
    done = run(without_tss, command)
    assert done.returncode != 0
    assert "sudo apt-get update && sudo apt-get install -y libtss2-dev pkg-config\n" in done.stderr


@pytest.mark.parametrize("command", ["demo", "bench", "exec", "doctor"])
def test_what_works_without_a_tpm_does_not_want_libtss2(without_tss: Path, command: str):
    done = run(without_tss, command, "--help")
    assert "-venv\n" in done.stderr
    assert "libtss2" not in done.stderr


def test_setup_tpm_wants_it_by_name(prepared: Path):
    program(prepared, "pkg-config", "#!/bin/sh\nexit 1\n")
    program(prepared, "id", "#!/bin/sh\necho 1000\n")
    program(prepared, "sudo", "#!/bin/sh\nexit 1\n")
    done = run(prepared, "setup", "tpm")
    assert done.returncode != 0
    assert "install -y libtss2-dev pkg-config\n" in done.stderr


@pytest.fixture
def prepared(machine: Path) -> Path:
    """A machine with a ready environment, an emulated TPM and libtss2, on which nothing more can be installed."""
    program(machine, "swtpm", "#!/bin/sh\n")
    program(machine, "pkg-config", "#!/bin/sh\n")
    program(machine, "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (machine / ".venv/bin").mkdir(parents=True)
    shutil.copy(machine / "bin/python3", machine / ".venv/bin/python")
    (machine / ".venv/bin/python").write_text(PYTHON_THAT_CANNOT_INSTALL)
    parts = ((machine / "pyproject.toml").read_bytes(), str(machine.resolve()).encode(), sys.version.encode())
    fingerprint = hashlib.sha256(b"\0".join(parts)).hexdigest()
    (machine / ".venv/keyvouch-stamp").write_text(f"bench {fingerprint}\n")
    return machine


def test_a_tpm_library_that_cannot_be_installed_does_not_keep_the_demo_from_running(prepared: Path):
    done = run(prepared, "demo")
    assert (done.returncode, done.stdout) == (0, "the demo ran\n")
    assert "the compiler said no" in done.stderr
    assert "the software key does the work" in done.stderr


def test_without_a_tpm_of_any_kind_the_library_is_not_even_tried(prepared: Path):
    program(prepared, "pkg-config", "#!/bin/sh\nexit 1\n")
    done = run(prepared, "demo")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the demo ran\n", "")


def test_a_tpm_library_that_is_there_is_not_installed_again(prepared: Path):
    stamp = (prepared / ".venv/keyvouch-stamp").read_text().split()[1]
    (prepared / ".venv/keyvouch-extra-tpm").write_text(f"{stamp}\n")
    done = run(prepared, "demo")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the demo ran\n", "")


# What keys on smartcard readers need


@pytest.mark.parametrize("command", ["setup", "lint", "test"])
def test_the_tests_want_libpcsclite(without_tss: Path, command: str):
    program(without_tss, "pkg-config", NO_PCSC)
    done = run(without_tss, command)
    assert done.returncode != 0
    assert "sudo apt-get update && sudo apt-get install -y libpcsclite-dev pkg-config\n" in done.stderr


def test_setup_pcsc_wants_it_by_name(prepared: Path):
    program(prepared, "pkg-config", NO_PCSC)
    program(prepared, "id", "#!/bin/sh\necho 1000\n")
    program(prepared, "sudo", "#!/bin/sh\nexit 1\n")
    done = run(prepared, "setup", "pcsc")
    assert done.returncode != 0
    assert "install -y libpcsclite-dev pkg-config\n" in done.stderr


def test_a_reader_library_that_cannot_be_installed_does_not_keep_the_demo_from_running(prepared: Path):
    program(prepared, "pkg-config", NO_TSS)
    done = run(prepared, "demo", "--provider", "fido2")
    assert (done.returncode, done.stdout) == (0, "the demo ran\n")
    assert "the compiler said no" in done.stderr
    assert "there is no reader here" in done.stderr


def test_a_demo_without_a_security_key_does_not_try_the_reader_library(prepared: Path):
    program(prepared, "pkg-config", NO_TSS)
    done = run(prepared, "demo")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the demo ran\n", "")
