"""Which PKCS#11 modules may be loaded: what stands on the disk decides, so the tests make files and folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.pkcs11 import module_path
from keyvouch_agent.vaults.pkcs11.module_path import KNOWN, LIBRARY_PATH, default_module, known_module, trusted_module

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can make files of root's")


@pytest.fixture
def safe(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A module's file in a folder that only root may change: not under /tmp."""
    folder = Path("/var/lib") / f"keyvouch-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    file = folder / "module.so"
    file.write_bytes(b"")
    file.chmod(0o644)
    yield file
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def refusal(path: str | Path, *named: str, environment: dict[str, str] | None = None) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        trusted_module(str(path), environment=environment or {}, named=named)
    return caught.value


def test_well_known_module_is_taken_by_its_real_path() -> None:
    installed = known_module("softhsm2").installed()
    assert installed is not None
    assert trusted_module(str(installed), environment={}) == installed.resolve()


def test_default_is_a_module_for_cards() -> None:
    assert default_module() in [path for known in KNOWN if known.is_default for path in known.paths()]
    assert not known_module("softhsm2").is_default
    assert not known_module("p11-kit").is_default


def test_no_module_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_path, "_folders", lambda: [Path("/nowhere")])
    with pytest.raises(DeviceError) as caught:
        default_module()
    assert caught.value.reason is Reason.MODULE_UNAVAILABLE
    assert "opensc-pkcs11" in caught.value.fix


@needs_root
def test_named_module_of_root_is_taken_also_through_a_link(safe: Path) -> None:
    assert refusal(safe).reason is Reason.MODULE_REFUSED  # nobody has named it
    assert trusted_module(str(safe), environment={}, named=[str(safe)]) == safe.resolve()
    link = safe.with_name("link.so")
    link.symlink_to(safe)
    assert trusted_module(str(link), environment={}, named=[str(safe)]) == safe.resolve()
    assert trusted_module(str(safe), environment={}, named=[str(link)]) == safe.resolve()


def test_module_in_tmp_is_refused(tmp_path: Path) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(b"")
    error = refusal(module, str(module))
    assert (error.reason, "/tmp" in error.message or str(tmp_path) in error.message) == (Reason.MODULE_REFUSED, True)


@pytest.mark.parametrize("path", ["opensc-pkcs11.so", "./module.so", "../lib/module.so", ""])
def test_path_that_is_not_absolute(path: str) -> None:
    assert refusal(path, path).reason is Reason.MODULE_REFUSED


@pytest.mark.parametrize("path", ["/nowhere/module.so", "/usr/lib/\0.so"])
def test_module_that_is_not_there(path: str) -> None:
    assert refusal(path, path).reason is Reason.MODULE_UNAVAILABLE


def test_folder_is_no_module() -> None:
    assert refusal("/usr/lib", "/usr/lib").reason is Reason.MODULE_REFUSED


@needs_root
@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_file_that_others_may_write(safe: Path, mode: int) -> None:
    safe.chmod(mode)
    assert refusal(safe, str(safe)).reason is Reason.MODULE_REFUSED


@needs_root
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_folder_that_others_may_write(safe: Path, mode: int) -> None:
    safe.parent.chmod(mode)
    error = refusal(safe, str(safe))
    assert error.reason is Reason.MODULE_REFUSED
    assert str(safe.parent) in error.message


@needs_root
def test_file_or_folder_of_somebody_else(safe: Path) -> None:
    os.chown(safe, 65534, 0)
    assert refusal(safe, str(safe)).reason is Reason.MODULE_REFUSED
    os.chown(safe, 0, 0)
    os.chown(safe.parent, 65534, 0)
    assert refusal(safe, str(safe)).reason is Reason.MODULE_REFUSED


@needs_root
def test_link_into_a_weak_folder_is_followed_before_it_is_judged(safe: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "module.so"
    hostile.write_bytes(b"")
    link = safe.with_name("link.so")
    link.symlink_to(hostile)
    assert refusal(link, str(link)).reason is Reason.MODULE_REFUSED


@pytest.mark.parametrize(
    "value",
    ["/tmp", "", ":/usr/lib", "/usr/lib:", "lib", "/usr/lib:/tmp", "/usr/lib;/tmp", ";/usr/lib", "/tmp/not/there/yet",
     "/tmp/$LIB", "/usr/${LIB}", "/usr/lib:$ORIGIN"],
)  # fmt: skip
def test_library_path_that_others_may_fill(value: str) -> None:
    installed = known_module("softhsm2").installed()
    assert installed is not None
    if not value:  # the same as none
        assert trusted_module(str(installed), environment={LIBRARY_PATH: value})
        return
    error = refusal(installed, environment={LIBRARY_PATH: value})
    assert error.reason is Reason.MODULE_REFUSED
    assert LIBRARY_PATH in error.message


def test_library_path_of_root_s_folders_is_no_obstacle() -> None:
    installed = known_module("softhsm2").installed()
    assert installed is not None
    assert trusted_module(str(installed), environment={LIBRARY_PATH: "/usr/lib:/nowhere/at/all"})
