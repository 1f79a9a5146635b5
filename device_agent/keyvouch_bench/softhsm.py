"""SoftHSM2 tokens for tests and benches: PKCS#11 without any hardware, in a private folder.

    hsm = SoftHsm(folder)
    token = hsm.make_token("one")
    subprocess.run(["pkcs11-tool", "--module", hsm.module, "-L"], env={**os.environ, **hsm.environment})

libsofthsm2 reads SOFTHSM2_CONF when it is initialised, and looks for tokens then. A process that has it loaded must
initialise it anew (python-pkcs11: `lib.reinitialize()`) to see a token made since.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyvouch.errors import Reason, UnavailableError

__all__ = ["MODULE_NAME", "PACKAGES", "SoftHsm", "SoftHsmToken"]

PACKAGES: Final = "softhsm2"
"""The Debian package with program and module."""

MODULE_NAME: Final = "libsofthsm2.so"
SETTINGS_VARIABLE: Final = "SOFTHSM2_CONF"

USER_PIN: Final = "648201"
SO_PIN: Final = "90127856"

_PROGRAM: Final = "softhsm2-util"
_SECONDS: Final = 60.0
_FOLDERS: Final = ("softhsm", "pkcs11", ".")


@dataclass(frozen=True, slots=True)
class SoftHsmToken:
    """A token with its user PIN set. `serial` is its serial number as PKCS#11 tells it."""

    hsm: SoftHsm
    label: str
    serial: str
    user_pin: str
    so_pin: str

    @property
    def module(self) -> str:
        """The path of the PKCS#11 module."""
        return self.hsm.module

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to find this token."""
        return self.hsm.environment

    def remove(self) -> None:
        """Delete it, and all that is in it."""
        self.hsm.run("--delete-token", "--serial", self.serial)


class SoftHsm:
    """A folder of tokens. Raises `UnavailableError(CONFIGURATION)` where SoftHSM2 is not installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = str(_module())
        tokens = folder / "tokens"
        tokens.mkdir(parents=True, exist_ok=True)
        self.settings.write_text(
            f"directories.tokendir = {tokens}\nobjectstore.backend = file\n"
            "log.level = ERROR\nslots.removable = false\n",
            encoding="utf-8",
        )

    @property
    def settings(self) -> Path:
        """Its softhsm2.conf."""
        return self.folder / "softhsm2.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use this folder."""
        return {SETTINGS_VARIABLE: str(self.settings)}

    def claim(self) -> None:
        """Make this the folder of this process too."""
        os.environ[SETTINGS_VARIABLE] = str(self.settings)

    def make_token(self, label: str, *, user_pin: str = USER_PIN, so_pin: str = SO_PIN) -> SoftHsmToken:
        """A new token. The PINs protect nothing: they are in the arguments of a program."""
        before = set(self.serials())
        self.run("--init-token", "--free", "--label", label, "--pin", user_pin, "--so-pin", so_pin)
        (serial,) = set(self.serials()) - before
        return SoftHsmToken(self, label, serial, user_pin, so_pin)

    def serials(self) -> list[str]:
        """The serial numbers of all tokens."""
        return re.findall(r"Serial number:\s*([0-9a-f]{16})\b", self.run("--show-slots"))

    def run(self, *arguments: str) -> str:
        """Run softhsm2-util. Raises `UnavailableError(DEVICE_FAILED)` with its words if it fails."""
        program = shutil.which(_PROGRAM)
        if program is None:
            raise _missing(f"the program {_PROGRAM}")
        done = subprocess.run(  # noqa: S603 - looked up by its name
            [program, *arguments],
            env={**os.environ, **self.environment},
            check=False,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode:
            raise UnavailableError(
                Reason.DEVICE_FAILED,
                f"{_PROGRAM} failed ({arguments[0]}): {(done.stderr or done.stdout).strip()}",
                fix=f"See what is in {self.folder}.",
            )
        return done.stdout


def _module() -> Path:
    libraries = [Path("/usr/lib"), Path("/usr/local/lib"), Path("/usr/lib64")]
    triplet = sysconfig.get_config_var("MULTIARCH")
    if triplet:
        libraries.insert(0, Path("/usr/lib") / str(triplet))
    for library in libraries:
        for folder in _FOLDERS:
            module = library / folder / MODULE_NAME
            if module.exists():
                return module
    raise _missing(f"its module {MODULE_NAME}")


def _missing(what: str) -> UnavailableError:
    return UnavailableError(
        Reason.CONFIGURATION,
        f"There is no SoftHSM2 here: {what} is missing.",
        fix=f"Install it: apt-get install {PACKAGES}",
    )
