"""The agent's settings: `agent.toml` in its home, which need not be there. Read strictly.

[tpm]                          every setting is optional
tcti                    = "device:/dev/tpmrm0"   how the TSS reaches the TPM; else $TSS2_TCTI, else /dev/tpmrm0
owner_auth_file         = "/etc/keyvouch/owner"  a file with the owner hierarchy's password, where it has one
endorsement_auth_file   = "/etc/keyvouch/ek"     the same for the endorsement hierarchy
endorsement_certificate = "/etc/keyvouch/ek.pem" the endorsement key's certificate, where the TPM does not hold it;
                                                 "none" shows servers none
event_log               = "/sys/kernel/security/tpm0/binary_bios_measurements"   the firmware's log of the boot;
                                                 with a TPM of this computer it is looked for there anyway
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any, Final

from keyvouch.errors import MalformedError, Reason, UnavailableError
from keyvouch_agent.home import Home

__all__ = ["FILE", "TpmFileSettings", "load_settings", "read_auth"]

FILE: Final = "agent.toml"
_LONGEST: Final = 64 * 1024
_LONGEST_AUTH: Final = 64


@dataclass(frozen=True, slots=True)
class TpmFileSettings:
    """The table `[tpm]`; see the module for each member. Empty where nothing is said."""

    tcti: str = ""
    owner_auth_file: str = ""
    endorsement_auth_file: str = ""
    endorsement_certificate: str = ""
    event_log: str = ""


def load_settings(home: Home) -> TpmFileSettings:
    """Read the settings of a home. Raises `MalformedError(CONFIGURATION)` for anything unknown or of a wrong type."""
    try:
        text = home.read(FILE, longest=_LONGEST).decode("utf-8")
        document = tomllib.loads(text)
    except FileNotFoundError:
        return TpmFileSettings()
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _broken(f"it is not TOML: {error}") from None
    if unknown := document.keys() - {"tpm"}:
        raise _broken(f"there is no table {min(unknown)!r}")
    return _tpm(document.get("tpm", {}))


def read_auth(path: str) -> bytes:
    """A hierarchy's password out of its file, without the end of the line. Empty for no file.

    Raises `UnavailableError(CONFIGURATION)`.
    """
    if not path:
        return b""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a path as somebody wrote it
            auth = file.read(_LONGEST_AUTH + 2).rstrip(b"\r\n")
    except OSError as error:
        raise UnavailableError(
            Reason.CONFIGURATION,
            f"The file {path} cannot be read: {error.strerror}.",
            fix=f"Correct {FILE}, or the permissions of the file.",
        ) from None
    if not 0 < len(auth) <= _LONGEST_AUTH:
        raise UnavailableError(
            Reason.CONFIGURATION,
            f"The file {path} does not hold a password of a TPM: 1 to {_LONGEST_AUTH} bytes.",
            fix=f"Correct the file, or take it out of {FILE}.",
        )
    return auth


def _tpm(table: Any) -> TpmFileSettings:
    known = TpmFileSettings.__slots__
    if not isinstance(table, dict):
        raise _broken("[tpm] is a table")
    if unknown := table.keys() - set(known):
        raise _broken(f"[tpm] has no setting {min(unknown)!r}")
    if not all(isinstance(value, str) and value for value in table.values()):
        raise _broken("every setting of [tpm] is a text that is not empty")
    return TpmFileSettings(**table)


def _broken(why: str) -> MalformedError:
    return MalformedError(
        Reason.CONFIGURATION,
        f"The agent's {FILE} cannot be used: {why}.",
        fix="Correct the file; what it may hold is in the agent's README.",
    )
