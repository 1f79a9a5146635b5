"""The demonstration with a smartcard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from keyvouch_bench.demo_keys import chosen
from support.repository import ROOT


def test_the_whole_story_is_told_with_a_smartcard() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyvouch_bench.demo", "--provider", "smartcard", "--unattended"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "EMULATED smartcard" in done.stdout
    assert "smartcard ('Ada Lovelace'" in done.stdout
    assert "Signed in as ada" in done.stdout
    assert "Refused by the smartcard itself" in done.stdout
    assert "Phone of ada: lost, or replaced by this device? [l/r]: l" in done.stdout
    assert "The session was ended." in done.stdout
    assert "It says accept" in done.stdout
    assert "nothing changed, missing or put in" in done.stdout
    assert "The demo took" in done.stdout


def test_where_there_can_be_none_another_takes_its_place_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with chosen("smartcard", tmp_path) as keys:
        assert keys.card is None
        assert "smartcard" not in {keys.provider(person) for person in range(2)}
        assert "There can be no smartcard here." in keys.told
        assert "apt-get install pcscd" in keys.told
