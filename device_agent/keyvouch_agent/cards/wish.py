"""Which PKCS#11 module, token and key are meant: what the command line says, else `agent.toml`, else what is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from keyvouch.errors import UsageError
from keyvouch_agent.agent_settings import CardFileSettings
from keyvouch_agent.vaults.pkcs11.module_path import default_module, trusted_module
from keyvouch_agent.vaults.pkcs11.uri import TokenUri

__all__ = ["CardWish"]

_SLOTS: Final = {"9a": b"\x01", "9c": b"\x02"}
"""CKA_ID of the slots of a PIV card that sign."""


@dataclass(frozen=True, slots=True)
class CardWish:
    """The members of `[smartcard]` in `agent.toml`; what a command line says goes first."""

    module: str = ""
    modules: tuple[str, ...] = ()
    token: str = ""
    key: str = ""
    certificate: bool = False
    attestation: bool = True

    def over(self, settings: CardFileSettings) -> Self:
        """This wish, with what it leaves open taken from the settings. Which modules may be loaded only they say."""
        return replace(
            self,
            module=self.module or settings.module,
            modules=settings.modules,
            token=self.token or settings.token,
            key=self.key or settings.key,
            certificate=self.certificate or settings.certificate,
            attestation=settings.attestation,
        )

    def module_path(self, remembered: str = "", *, environment: Mapping[str, str] | None = None) -> Path:
        """The real path of the module to load; `remembered` is the one an account was enrolled through.

        Raises `DeviceError`: MODULE_UNAVAILABLE, MODULE_REFUSED.
        """
        path = self.module or remembered or str(default_module())
        return trusted_module(path, environment=os.environ if environment is None else environment, named=self.modules)

    def uri(self) -> TokenUri:
        """The token, and the key if one is named. Raises `MalformedError(CONFIGURATION)` and `UsageError`."""
        wanted = TokenUri.parse(self.token) if self.token else TokenUri()
        if not self.key:
            return wanted
        if self.key.lower() in _SLOTS:
            return replace(wanted, id=_SLOTS[self.key.lower()], object=None)
        if not self.key.startswith("pkcs11:"):
            raise UsageError(
                f"{self.key!r} names no key.",
                fix="Name a slot, 9a or 9c, or a PKCS#11 URI such as pkcs11:id=%01.",
            )
        key = TokenUri.parse(self.key)
        return replace(wanted, id=key.id, object=key.object)
