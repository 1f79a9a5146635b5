"""The wheel holds the five packages and nothing else, with all they need to run."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path, PurePosixPath

import pytest

from support.repository import PACKAGES, ROOT, files, project

NAMES = {PurePosixPath(package).name for package in PACKAGES}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, built by the backend itself: no network, no second environment."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=100,
    )
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def names(wheel: zipfile.ZipFile) -> set[str]:
    return set(wheel.namelist())


def test_exactly_the_five_packages_are_importable(names: set[str]):
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == NAMES


def test_every_file_of_the_packages_is_in_it_and_no_other(names: set[str]):
    expected = {
        str(path.relative_to(Path(package).parent))
        for package in PACKAGES
        for path in files()
        if path.is_relative_to(package)
    }
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.parametrize("package", sorted(NAMES))
def test_each_package_says_that_it_is_typed(names: set[str], package: str):
    assert {f"{package}/py.typed", f"{package}/__init__.py"} <= names


def test_protocol_and_schema_travel_with_the_code(names: set[str]):
    protocol = {f"keyvouch/v1/{path.name}" for path in files() if path.suffix == ".proto"}
    schema = {str(path.relative_to("server")) for path in files() if path.suffix == ".sql"}
    assert protocol
    assert schema
    assert protocol | schema <= names


def test_no_test_and_no_rubbish_is_in_it(names: set[str]):
    parts = {part for name in names for part in PurePosixPath(name).parts}
    assert parts.isdisjoint({"tests", "conftest.py", "__pycache__", ".venv"})


def test_the_licence_is_in_it(names: set[str]):
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_every_command_leads_to_a_function_in_the_wheel(wheel: zipfile.ZipFile, names: set[str]):
    (path,) = [name for name in names if name.endswith("entry_points.txt")]
    parser = ConfigParser()
    parser.read_string(wheel.read(path).decode())
    scripts = dict(parser["console_scripts"])
    assert scripts == project()["project"]["scripts"]
    for target in scripts.values():
        module, function = target.split(":")
        tree = ast.parse(wheel.read(module.replace(".", "/") + ".py"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, target


def test_the_pytest_plugin_is_announced_and_in_it(wheel: zipfile.ZipFile, names: set[str]):
    (path,) = [name for name in names if name.endswith("entry_points.txt")]
    parser = ConfigParser()
    parser.read_string(wheel.read(path).decode())
    assert dict(parser["pytest11"]) == {"keyvouch": "keyvouch_bench.plugin"}
    assert "keyvouch_bench/plugin.py" in names


@pytest.mark.parametrize("folder", ["proto", "server", "device_agent", "tests"])
def test_a_folder_of_the_repository_is_not_a_package(folder: str):
    assert not (ROOT / folder / "__init__.py").exists()
