"""What the demonstration takes for its keys, and what it says about that."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import DeviceError, Reason, UnavailableError
from keyvouch_agent.vaults.tpm.connection import TpmAccess
from keyvouch_bench.demo_keys import chosen
from keyvouch_bench.swtpm import Swtpm

NO_TPM = "swtpm:host=127.0.0.1,port=1"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_tpm_that_is_named_is_taken_for_one_person_and_nothing_is_claimed_of_it(
    tpm_factory: Callable[[], Swtpm], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tpm = tpm_factory()
    monkeypatch.setenv("TSS2_TCTI", tpm.tcti)
    with chosen("", place) as keys:
        assert [keys.provider(person) for person in range(2)] == ["software", "tpm"]
        assert "counts as one in software" in keys.told
        assert keys.settings(1) == f'[tpm]\ntcti = "{tpm.tcti}"\nendorsement_certificate = "none"\n'
    assert not tpm.loaded_handles()


def test_emulated_ones_serve_where_no_tpm_answers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSS2_TCTI", NO_TPM)
    with chosen("", place) as keys:
        assert [keys.provider(person) for person in range(2)] == ["tpm", "tpm"]
        assert "emulated" in keys.told
        assert NO_TPM in keys.told
        (place / "server").mkdir()
        keys.trust(place / "server")
        assert "unregistered_manufacturers" in (place / "server" / "keyvouch.toml").read_text()


def without_swtpm(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(shutil, "which", lambda *_arguments, **_named: None)
    return "apt-get install swtpm"


def without_library(monkeypatch: pytest.MonkeyPatch) -> str:
    def missing(_self: TpmAccess) -> None:
        raise DeviceError(Reason.UNSUPPORTED, "The libraries are missing.", fix="Install them.")

    monkeypatch.setattr(TpmAccess, "require_library", missing)
    return "The libraries are missing"


@pytest.mark.parametrize("spoil", [without_swtpm, without_library])
def test_software_is_what_is_left_and_the_reason_is_told(
    spoil: Callable[[pytest.MonkeyPatch], str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSS2_TCTI", NO_TPM)
    why = spoil(monkeypatch)
    with chosen("", place) as keys:
        assert (keys.provider(0), keys.settings(0)) == ("software", "")
        assert why in keys.told
    with pytest.raises(UnavailableError) as caught, chosen("tpm", place):
        pass
    assert caught.value.reason is Reason.TPM_UNAVAILABLE
    assert "--provider software" in caught.value.fix


def test_software_is_taken_where_it_is_asked_for(place: Path, tpm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSS2_TCTI", tpm.tcti)
    with chosen("software", place) as keys:
        assert (keys.provider(1), keys.emulated) == ("software", ())
        assert "as you asked" in keys.told
