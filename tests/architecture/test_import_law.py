"""Who may import whom. The contracts stand in `pyproject.toml`; here they are run, shown to bite, and completed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.repository import PACKAGES, ROOT, python_sources

CORE = "proto/keyvouch/"
CORE_MAY_IMPORT = {
    *("__future__", "abc", "base64", "binascii", "collections", "contextlib", "dataclasses", "datetime", "enum"),
    *("functools", "hashlib", "hmac", "io", "ipaddress", "itertools", "json", "math", "operator", "re", "string"),
    *("struct", "types", "typing", "unicodedata", "cryptography", "keyvouch"),
}
"""All the core may lean on: computation, no world. Whoever adds a name here answers for its being pure."""

WORLDLY_CALLS = {"now", "utcnow", "today", "urandom", "open", "print", "input", "exec", "eval", "generate_private_key"}
GRPC_FAMILY = {"grpc", "grpc_health", "grpc_reflection", "grpc_status", "google"}
GRPC_EDGE = (
    "proto/keyvouch_client/",
    "server/keyvouch_server/rpc/",
    "device_agent/keyvouch_agent/rpc/",
    "device_agent/keyvouch_bench/",
)

VIOLATIONS = {
    "core imports a store": ("proto/keyvouch/ids.py", "sqlite3"),
    "core imports messages": ("proto/keyvouch/ids.py", "keyvouch.v1.common_pb2"),
    "core imports the client": ("proto/keyvouch/ids.py", "keyvouch_client"),
    "server imports agent": ("server/keyvouch_server/domain/model.py", "keyvouch_agent"),
    "agent imports server": ("device_agent/keyvouch_agent/ports.py", "keyvouch_server"),
    "domain imports grpc": ("server/keyvouch_server/domain/model.py", "grpc"),
    "domain imports a use case": ("server/keyvouch_server/domain/model.py", "keyvouch_server.use_cases"),
    "use case imports rpc": ("server/keyvouch_server/use_cases/__init__.py", "keyvouch_server.rpc"),
    "engine imports ceremonies": ("device_agent/keyvouch_agent/authenticator/__init__.py", "keyvouch_agent.ceremonies"),
    "client imports the bench": ("proto/keyvouch_client/__init__.py", "keyvouch_bench"),
    "core imports the TPM library": ("proto/keyvouch/ids.py", "tpm2_pytss"),
    "server imports the TPM library": ("server/keyvouch_server/ek_trust.py", "tpm2_pytss"),
    "another vault imports the TPM library": ("device_agent/keyvouch_agent/vaults/software/vault.py", "tpm2_pytss"),
    "use case imports the PostgreSQL library": ("server/keyvouch_server/use_cases/__init__.py", "asyncpg"),
    "client imports the PostgreSQL library": ("proto/keyvouch_client/__init__.py", "asyncpg"),
}
"""A module, and an import that it must not have, not even a late one."""


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    folders = os.pathsep.join(str(tree / folder) for folder in ("proto", "server", "device_agent"))
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--config", tree / "pyproject.toml"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": folders},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def imports(path: Path) -> set[str]:
    """The top-level names a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def calls(path: Path) -> set[str]:
    """The last names of everything a module calls."""
    functions = (
        node.func for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))) if isinstance(node, ast.Call)
    )
    return {
        function.attr if isinstance(function, ast.Attribute) else function.id
        for function in functions
        if isinstance(function, ast.Attribute | ast.Name)
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages that a test may spoil."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def core_modules() -> list[Path]:
    return [path for path in python_sources() if str(path).startswith(CORE) and "v1" not in path.parts]


def test_the_contracts_are_kept():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS)
def test_the_contracts_bite(tree: Path, violation: tuple[str, str]):
    path, imported = violation
    module = tree / path
    module.write_text(
        module.read_text(encoding="utf-8") + f"\n\ndef late():\n    import {imported}\n", encoding="utf-8"
    )
    done = lint_imports(tree)
    assert done.returncode == 1
    importer = path.split("/", 1)[1].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert f"{importer} -> {imported} " in done.stdout.split("Broken contracts")[1]


def test_the_core_leans_on_nothing_but_computation():
    strange = {str(path): extra for path in core_modules() if (extra := imports(path) - CORE_MAY_IMPORT)}
    assert strange == {}


def test_the_core_reads_no_clock_draws_no_randomness_and_opens_no_file():
    worldly = {str(path): names for path in core_modules() if (names := calls(path) & WORLDLY_CALLS)}
    assert worldly == {}


def test_only_the_edge_knows_grpc():
    inside = [path for path in python_sources() if not str(path).startswith((*GRPC_EDGE, "proto/keyvouch/v1/"))]
    assert [str(path) for path in inside if imports(path) & GRPC_FAMILY] == []
    assert any(imports(path) & GRPC_FAMILY for path in python_sources())
