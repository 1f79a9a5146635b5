"""The committed gRPC stubs are what the committed `.proto` files give, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from support.repository import ROOT, project

STUBS = ROOT / "proto" / "keyvouch" / "v1"


def generate(out: Path) -> dict[str, bytes]:
    tools = str(Path(sys.executable).parent)  # where `python` and the mypy plugin of protoc are
    subprocess.run(
        ["sh", ROOT / "proto" / "generate.sh", out],
        env=os.environ | {"PATH": tools + os.pathsep + os.environ["PATH"]},
        check=True,
        timeout=100,
    )
    return contents(out / "keyvouch" / "v1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*") if path.suffix in {".py", ".pyi"}}


@pytest.mark.parametrize("tool", ["grpcio-tools", "mypy-protobuf"])
def test_the_generators_are_the_pinned_ones(tool: str):
    dev = project()["project"]["optional-dependencies"]["dev"]
    assert f"{tool}=={version(tool)}" in dev


def test_the_committed_stubs_are_fresh(tmp_path: Path):
    fresh, committed = generate(tmp_path), contents(STUBS)
    assert sorted(fresh) == sorted(committed)
    assert [name for name in sorted(fresh) if fresh[name] != committed[name]] == []


def test_there_are_four_stubs_for_each_proto_file():
    assert len(contents(STUBS)) == 4 * len(list(STUBS.glob("*.proto"))) > 0
