"""What can be seen of smartcards without any PIN: the PKCS#11 modules of this computer, and the tokens behind one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keyvouch.errors import DeviceError
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.vaults.pkcs11.failures import require_library
from keyvouch_agent.vaults.pkcs11.module_path import KNOWN, trusted_module

__all__ = ["SeenModule", "SeenToken", "modules", "tokens"]


@dataclass(frozen=True, slots=True)
class SeenModule:
    """A module that is known or named. `trouble` says why it is not loaded; None if it would be."""

    name: str
    path: Path | None
    package: str
    trouble: DeviceError | None = None


@dataclass(frozen=True, slots=True)
class SeenToken:
    """A token that is there. `tries_left` is None where it does not tell."""

    name: str
    reader: str
    pin_is_set: bool
    tries_left: int | None
    on_pad: bool


def modules(wish: CardWish) -> Iterator[SeenModule]:
    """The well-known modules, installed or not, then those that the settings name."""
    for known in KNOWN:
        path = known.installed()
        yield SeenModule(known.name, path, known.package, _trouble(str(path), wish) if path else None)
    for named in dict.fromkeys((*wish.modules, *([wish.module] if wish.module else []))):
        if not any(str(path) == named for known in KNOWN for path in known.paths()):
            yield SeenModule(Path(named).name, Path(named), "", _trouble(named, wish))


def tokens(wish: CardWish) -> list[SeenToken]:
    """The tokens of the module that would be used. Raises `DeviceError` where there is none that can be."""
    require_library()
    path = wish.module_path()
    from keyvouch_agent.vaults.pkcs11 import piv  # noqa: PLC0415 - needs python-pkcs11
    from keyvouch_agent.vaults.pkcs11.library import TokenLibrary  # noqa: PLC0415
    from keyvouch_agent.vaults.pkcs11.pins import read_standing  # noqa: PLC0415

    library = TokenLibrary(path)
    try:
        found = []
        for token in library.tokens():
            counted = piv.count_tries(token.reader) if piv.is_piv(token.name.manufacturer) else None
            standing = read_standing(token.flags, counted=counted)
            found.append(
                SeenToken(str(token.name), token.reader, standing.is_set, standing.tries_left, standing.on_pad)
            )
        return found
    finally:
        library.close()


def _trouble(path: str, wish: CardWish) -> DeviceError | None:
    try:
        trusted_module(path, environment=os.environ, named=wish.modules)
    except DeviceError as error:
        return error
    return None
