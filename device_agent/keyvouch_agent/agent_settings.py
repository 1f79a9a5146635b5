"""The agent's settings: `agent.toml` in its home, which need not be there. Read strictly.

[tpm]                          every setting is optional
tcti                    = "device:/dev/tpmrm0"   how the TSS reaches the TPM; else $TSS2_TCTI, else /dev/tpmrm0
owner_auth_file         = "/etc/keyvouch/owner"  a file with the owner hierarchy's password, where it has one
endorsement_auth_file   = "/etc/keyvouch/ek"     the same for the endorsement hierarchy
endorsement_certificate = "/etc/keyvouch/ek.pem" the endorsement key's certificate, where the TPM does not hold it;
                                                 "none" shows servers none
event_log               = "/sys/kernel/security/tpm0/binary_bios_measurements"   the firmware's log of the boot;
                                                 with a TPM of this computer it is looked for there anyway

[fido2]                        every setting is optional
resident = false               true: credentials are discoverable, so each takes one of the security key's few slots
protect  = true                credentials are made with credProtect level 2 where the security key knows it

[smartcard]                    every setting is optional
module      = "/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so"   the PKCS#11 module; else OpenSC's, else Yubico's
modules     = ["/opt/maker/lib/maker-pkcs11.so"]   further modules that may be loaded; they have to be root's alone
token       = "pkcs11:serial=9d10dd95ddbc81d1"   which token a new enrolment takes, where there may be several
key         = "9a"             which of its keys: a slot (9a, 9c) or a PKCS#11 URI with id or object
certificate = false            true: a new enrolment shows the server the organisation's certificate of an existing key
attestation = true             false: it shows no attestation of the card, for servers that do not know the card's maker
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any, Final

from keyvouch.errors import MalformedError, Reason, UnavailableError
from keyvouch_agent.home import Home

__all__ = [
    "FILE",
    "CardFileSettings",
    "Fido2FileSettings",
    "TpmFileSettings",
    "load_card_settings",
    "load_fido2_settings",
    "load_settings",
    "read_auth",
]

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


@dataclass(frozen=True, slots=True)
class Fido2FileSettings:
    """The table `[fido2]`; see the module for each member."""

    resident: bool = False
    protect: bool = True


@dataclass(frozen=True, slots=True)
class CardFileSettings:
    """The table `[smartcard]`; see the module for each member. Empty where nothing is said."""

    module: str = ""
    modules: tuple[str, ...] = ()
    token: str = ""
    key: str = ""
    certificate: bool = False
    attestation: bool = True


@dataclass(frozen=True, slots=True)
class _Settings:
    tpm: TpmFileSettings = TpmFileSettings()
    fido2: Fido2FileSettings = Fido2FileSettings()
    smartcard: CardFileSettings = CardFileSettings()


def load_settings(home: Home) -> TpmFileSettings:
    """Read the table `[tpm]` of a home's settings.

    Raises `MalformedError(CONFIGURATION)` for anything in the file that is unknown or of a wrong type.
    """
    return _load(home).tpm


def load_fido2_settings(home: Home) -> Fido2FileSettings:
    """Read the table `[fido2]`. Raises as `load_settings` does."""
    return _load(home).fido2


def load_card_settings(home: Home) -> CardFileSettings:
    """Read the table `[smartcard]`. Raises as `load_settings` does."""
    return _load(home).smartcard


def _load(home: Home) -> _Settings:
    try:
        text = home.read(FILE, longest=_LONGEST).decode("utf-8")
        document = tomllib.loads(text)
    except FileNotFoundError:
        return _Settings()
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _broken(f"it is not TOML: {error}") from None
    if unknown := document.keys() - set(_Settings.__slots__):
        raise _broken(f"there is no table {min(unknown)!r}")
    return _Settings(
        _tpm(document.get("tpm", {})), _fido2(document.get("fido2", {})), _smartcard(document.get("smartcard", {}))
    )


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


def _fido2(table: Any) -> Fido2FileSettings:
    if not isinstance(table, dict):
        raise _broken("[fido2] is a table")
    if unknown := table.keys() - set(Fido2FileSettings.__slots__):
        raise _broken(f"[fido2] has no setting {min(unknown)!r}")
    if not all(isinstance(value, bool) for value in table.values()):
        raise _broken("every setting of [fido2] is true or false")
    return Fido2FileSettings(**table)


def _smartcard(table: Any) -> CardFileSettings:
    if not isinstance(table, dict):
        raise _broken("[smartcard] is a table")
    if unknown := table.keys() - set(CardFileSettings.__slots__):
        raise _broken(f"[smartcard] has no setting {min(unknown)!r}")
    if not all(isinstance(table.get(name, "-"), str) and table.get(name, "-") for name in ("module", "token", "key")):
        raise _broken("module, token and key of [smartcard] are texts that are not empty")
    modules = table.get("modules", [])
    if not isinstance(modules, list) or not all(isinstance(path, str) and path for path in modules):
        raise _broken("modules of [smartcard] is a list of paths")
    if not all(isinstance(table.get(name, False), bool) for name in ("certificate", "attestation")):
        raise _broken("certificate and attestation of [smartcard] are true or false")
    return CardFileSettings(**{**table, "modules": tuple(modules)})


def _broken(why: str) -> MalformedError:
    return MalformedError(
        Reason.CONFIGURATION,
        f"The agent's {FILE} cannot be used: {why}.",
        fix="Correct the file; what it may hold is in the agent's README.",
    )
