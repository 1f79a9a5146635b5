"""The repository is fit to be shown: nothing of one machine, nothing left undone, every exception explained."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from support.repository import ROOT, files, project, text_of

FOLDERS_WITH_README = (".", "proto", "server", "device_agent", "tests", "tests/bench", "tests/vectors")

# Written in pieces, so that this file does not hold what it forbids.
REGISTRIES = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "crates" + ".io", "--index" + "-url")
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(?:" + "work|opt/py" + "pi|opt/wheels|root/\\.)" + r"|/tmp/(?:dev|bash)")
UNDONE = re.compile(r"\b(?:TO" + "DO|FIX" + "ME|XX" + r"X)\b")
NOQA = re.compile(r"#\s*(?:noqa(?!: [A-Z]+[0-9]+)|type: ignore(?!\[))")


def ours() -> list[Path]:
    """Every text we wrote: all files but test vectors of others and generated stubs."""
    return [path for path in files() if "vectors" not in path.parts and "_pb2" not in path.name]


def lines_with(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate((text_of(path) or "").splitlines(), start=1)
        if pattern.search(line)
    ]


def test_no_package_registry_is_named():
    assert lines_with(re.compile("|".join(map(re.escape, REGISTRIES))), files()) == []


def test_no_path_of_one_machine_is_written():
    assert lines_with(MACHINE_PATHS, ours()) == []


@pytest.mark.parametrize("text", ["see /wo" + "rk/notes", "in /tmp/d" + "ev/x"])
def test_a_path_of_one_machine_would_be_found(text: str):
    assert MACHINE_PATHS.search(text)


@pytest.mark.parametrize("text", ["keyvouch.v1/work/item", "framework/x", "/tmp/kv-abc"])
def test_an_ordinary_path_is_left_alone(text: str):
    assert not MACHINE_PATHS.search(text)


def test_nothing_is_left_undone():
    assert lines_with(UNDONE, ours()) == []


def test_the_changelog_begins_with_the_version_of_the_project():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert versions[0] == project()["project"]["version"]


@pytest.mark.parametrize("folder", FOLDERS_WITH_README)
def test_the_folder_explains_itself(folder: str):
    readme = ROOT / folder / "README.md"
    assert readme.is_file()
    assert readme.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("script", ["run", ".ci/run"])
def test_the_script_can_be_started(script: str):
    assert os.access(ROOT / script, os.X_OK)


def test_the_top_level_is_the_agreed_one():
    agreed = {
        *("pyproject.toml", "proto", "server", "device_agent", "tests", "README.md", "run"),
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", ".ci", ".gitignore"),
    }
    assert {path.parts[0] for path in files()} == agreed


def test_every_ignored_ruff_rule_says_why():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ignored = text.split("\nignore = [\n")[1].split("]")[0].splitlines()
    per_file = text.split("[tool.ruff.lint.per-file-ignores]\n")[1].split("\n\n")[0].splitlines()
    lines = [line for line in ignored + per_file if line.strip() and not line.strip().startswith("#")]
    assert len(lines) >= 2
    assert [line for line in lines if "#" not in line] == []


def test_every_silenced_check_names_the_rule():
    assert lines_with(NOQA, [path for path in ours() if path.suffix in {".py", ".toml"}]) == []


def test_test_files_have_unique_names():
    names = [path.name for path in files() if path.name.startswith("test_") and path.suffix == ".py"]
    assert sorted(names) == sorted(set(names))
