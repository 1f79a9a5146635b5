"""The demonstration with a security key, and the stand on which any program meets one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keyvouch_bench.demo_keys import chosen
from keyvouch_bench.pcscd import READER
from support.repository import ROOT

LOOK = """
import os
from fido2.pcsc import CtapPcscDevice
from urllib.request import urlopen
(device,) = CtapPcscDevice.list_devices(os.environ["KEYVOUCH_FIDO_READER"])
print("version", device.version)
print(urlopen(os.environ["KEYVOUCH_FIDO_CONTROL"] + "/usb1/power/off", timeout=20).status)
print(list(CtapPcscDevice.list_devices()))
device.close(release=True)
raise SystemExit(7)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def stand(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keyvouch_bench.fido_stand", "--", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_whole_story_is_told_with_a_security_key() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyvouch_bench.demo", "--provider", "fido2", "--unattended"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "EMULATED security key" in done.stdout
    assert f"Security key in {READER} 00 00" in done.stdout
    assert "Signed in as ada" in done.stdout
    assert "PIN tries left: 7" in done.stdout
    assert "The demo took" in done.stdout


def test_the_key_is_adas_and_says_what_it_is(place: Path) -> None:
    with chosen("fido2", place) as keys:
        assert [keys.provider(person) for person in range(2)] == ["software", "fido2"]
        assert "EMULATED" in keys.told
        assert Path(keys.environment["PCSCLITE_CSOCK_NAME"]).is_socket()
        assert {"--presence", "auto"} <= set(keys.command)
    assert not Path(keys.environment["PCSCLITE_CSOCK_NAME"]).exists()


def test_where_there_can_be_none_another_takes_its_place_and_says_why(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(place))
    with chosen("fido2", place) as keys:
        assert "fido2" not in {keys.provider(person) for person in range(2)}
        assert "There can be no security key here." in keys.told
        assert "apt-get install pcscd vsmartcard-vpcd" in keys.told
        assert keys.command == ()


def test_any_program_meets_a_key_on_the_stand() -> None:
    done = stand(sys.executable, "-c", LOOK)
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines()[1:] == ["200", "[]"]
    assert done.stdout.startswith("version 2\n")
    assert "It protects nothing." in done.stderr


def test_the_stand_tells_a_program_its_reader() -> None:
    done = stand(sys.executable, "-c", "import sys; print(sys.argv[1:])", "--reader", "{reader}", "{control}")
    assert f"['--reader', '{READER} 00 00', 'http://127.0.0.1:" in done.stdout


def test_a_stand_that_cannot_be_says_what_to_install(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyvouch_bench.fido_stand", "--", "true"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install pcscd" in done.stderr
    assert "Traceback" not in done.stderr
