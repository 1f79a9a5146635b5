"""Which PKCS#11 modules are loaded into the agent: known or named ones that nobody but root can change.

A module sees every PIN. So it is loaded by its real path, from a file and folders that belong to root and that nobody
else may write to; and it is one of the well-known ones, or the agent's settings name it. The loader takes the parts a
module is linked with from LD_LIBRARY_PATH first: a folder there has to be as safe.

What is *not* here: what a module loads by settings of its own (opensc.conf; p11-kit's module configurations, for which
p11-kit is never taken unless it is named).
"""

from __future__ import annotations

import re
import stat
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyvouch.errors import DeviceError, Reason

__all__ = ["KNOWN", "LIBRARY_PATH", "KnownModule", "default_module", "known_module", "trusted_module"]

LIBRARY_PATH: Final = "LD_LIBRARY_PATH"
_ROOT: Final = 0
_SEPARATORS: Final = re.compile("[:;]")


@dataclass(frozen=True, slots=True)
class KnownModule:
    """A module that is well known: its name here, where distributions put it, and the Debian package it is in."""

    name: str
    files: tuple[str, ...]
    package: str
    is_default: bool
    """Whether it is taken where nobody names one. SoftHSM2 is no card, p11-kit loads whatever users configure."""

    def paths(self) -> Iterator[Path]:
        """Where it may be, the likeliest first."""
        for folder in _folders():
            for file in self.files:
                yield folder / file

    def installed(self) -> Path | None:
        """Where it is."""
        return next((path for path in self.paths() if path.is_file()), None)


KNOWN: Final = (
    KnownModule("opensc", ("opensc-pkcs11.so", "pkcs11/opensc-pkcs11.so"), "opensc-pkcs11", is_default=True),
    KnownModule("ykcs11", ("libykcs11.so.2", "libykcs11.so"), "ykcs11", is_default=True),
    KnownModule("softhsm2", ("softhsm/libsofthsm2.so", "libsofthsm2.so"), "libsofthsm2", is_default=False),
    KnownModule("p11-kit", ("p11-kit-proxy.so", "libp11-kit.so.0"), "p11-kit", is_default=False),
)
"""In the order in which a default is looked for."""


def known_module(name: str) -> KnownModule:
    """The well-known module of that name. Raises `KeyError`."""
    return {module.name: module for module in KNOWN}[name]


def default_module() -> Path:
    """The first well-known module that is installed. Raises `DeviceError(MODULE_UNAVAILABLE)` where there is none."""
    for known in KNOWN:
        if known.is_default and (path := known.installed()):
            return path
    raise DeviceError(
        Reason.MODULE_UNAVAILABLE,
        "No PKCS#11 module for smartcards is installed.",
        fix=f"Install one: apt-get install {KNOWN[0].package}. Or name yours in agent.toml: [smartcard] module.",
    )


def trusted_module(path: str, *, environment: Mapping[str, str], named: Collection[str] = ()) -> Path:
    """Return the real path by which to load a module. `named` are those that the agent's settings name.

    Raises `DeviceError`: MODULE_UNAVAILABLE where there is no such file; MODULE_REFUSED for a path that is not
    absolute, a module that is neither known nor named, or one that somebody other than root could change.
    """
    if not Path(path).is_absolute():
        raise _refused(path, "its path is not absolute", "Write the whole path, from / on.")
    real = _real(path)
    allowed = {_resolved(item) for item in named if Path(item).is_absolute()}
    if real not in allowed and not any(real == _resolved(str(p)) for known in KNOWN for p in known.paths()):
        fix = "If it is the right one, name it in agent.toml: [smartcard] modules."
        raise _refused(path, "it is none of the well-known ones, and the settings do not name it", fix)
    if not stat.S_ISREG(real.stat().st_mode):
        raise _refused(path, "it is not a regular file", "Name the module's file.")
    if weak := _weak_part(real):
        raise _refused(path, f"not only root can change {weak}", _OWNERSHIP)
    _check_library_path(environment.get(LIBRARY_PATH))
    return real


_OWNERSHIP: Final = (
    "Install the module from a package; or have root own it and every folder above it, writable by root only."
)


def _check_library_path(value: str | None) -> None:
    """Colons and semicolons separate; an empty entry is the present folder, and `$LIB` another word (ld.so(8))."""
    for entry in _SEPARATORS.split(value) if value else ():
        if "$" in entry or not Path(entry).is_absolute() or _is_weak_folder(Path(entry)):
            raise _refused(
                f"of {LIBRARY_PATH}={value}",
                f"the loader would look in {entry or 'the present folder'} first, and not only root can change that",
                f"Start the agent without {LIBRARY_PATH}.",
            )


def _is_weak_folder(folder: Path) -> bool:
    """Whether somebody other than root may change it, or make it where it is not there."""
    try:
        real = folder.resolve()
        return _weak_part(next(part for part in (real, *real.parents) if part.exists())) is not None
    except (OSError, RuntimeError, ValueError):
        return True


def _weak_part(real: Path) -> Path | None:
    """The first of a file and the folders above it that somebody other than root may change."""
    for part in (real, *real.parents):
        status = part.lstat()
        if status.st_uid != _ROOT or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return part
    return None


def _real(path: str) -> Path:
    try:
        return Path(path).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise DeviceError(
            Reason.MODULE_UNAVAILABLE,
            f"There is no PKCS#11 module at {path}.",
            fix="Install the package that brings it, or correct agent.toml: [smartcard] module.",
        ) from None


def _resolved(path: str) -> Path | None:
    try:
        return Path(path).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None


def _folders() -> list[Path]:
    folders = [Path("/usr/lib64"), Path("/usr/lib"), Path("/usr/local/lib")]
    triplet = sysconfig.get_config_var("MULTIARCH")
    return [Path("/usr/lib") / str(triplet), *folders] if triplet else folders


def _refused(path: str, why: str, fix: str) -> DeviceError:
    return DeviceError(Reason.MODULE_REFUSED, f"The PKCS#11 module {path} is not loaded: {why}.", fix=fix)
