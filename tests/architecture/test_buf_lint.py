"""The protocol keeps buf's STANDARD rules, without exceptions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.repository import ROOT

PROTO = ROOT / "proto"


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    """A copy of the protocol that a test may spoil."""
    copy = tmp_path / "proto"
    shutil.copytree(PROTO, copy, ignore=shutil.ignore_patterns("*.py", "*.pyi", "__pycache__"))
    return copy


def lint(folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    buf = Path(sys.executable).parent / "buf"
    return subprocess.run(
        [buf, "lint", folder],
        env=os.environ | {"BUF_CACHE_DIR": str(home), "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_protocol_is_clean(tmp_path: Path):
    done = lint(PROTO, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_badly_named_field_is_found(protocol: Path, tmp_path: Path):
    source = protocol / "keyvouch" / "v1" / "common.proto"
    source.write_text(source.read_text() + "\nmessage Spoilt {\n  string badlyNamed = 1;\n}\n")
    done = lint(protocol, tmp_path)
    assert done.returncode != 0
    assert "lower_snake_case" in done.stdout


def test_no_rule_is_excepted_and_no_comment_silences_one():
    assert "except" not in (PROTO / "buf.yaml").read_text()
    assert [path.name for path in PROTO.rglob("*.proto") if "buf:lint:ignore" in path.read_text()] == []
