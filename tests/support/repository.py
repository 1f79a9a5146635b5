"""The repository as the tests of its architecture see it: its root, its files and its project file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = (
    "proto/keyvouch",
    "proto/keyvouch_client",
    "server/keyvouch_server",
    "device_agent/keyvouch_agent",
    "device_agent/keyvouch_bench",
)

_NOT_OURS = {"__pycache__", "build", "dist", "node_modules"}
_HIDDEN_BUT_OURS = {".ci", ".gitignore"}


@cache
def project() -> dict[str, Any]:
    """The parsed `pyproject.toml`."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files() -> list[Path]:
    """Every file that belongs to the repository, relative to its root, sorted. Needs no git."""
    return sorted(path.relative_to(ROOT) for path in _walk(ROOT))


def text_of(path: Path) -> str | None:
    """The text of a file of the repository, None if it is binary."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def python_sources() -> list[Path]:
    """Every module of the five packages except generated stubs, relative to the root."""
    return [
        path
        for path in files()
        if path.suffix == ".py" and "_pb2" not in path.name and str(path).startswith(tuple(f"{p}/" for p in PACKAGES))
    ]


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in _NOT_OURS or path.name.endswith(".egg-info"):
            continue
        if path.name.startswith(".") and path.name not in _HIDDEN_BUT_OURS:
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path
