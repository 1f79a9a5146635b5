"""TPM accounts for tests: a vault over an emulated TPM, or over whatever TCTI a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keyvouch_agent.authenticator.vault import Credential, KeyRequest, KeyVault
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.tpm.connection import TpmAccess, TpmSettings

__all__ = ["access_to", "kept", "tpm_vault"]


def access_to(tcti: str, open_tcti: Callable[[], Any] | None = None) -> TpmAccess:
    """How an agent reaches the TPM at `tcti`, or the one that `open_tcti` leads to. It never waits for a busy one."""
    return TpmAccess(TpmSettings(tcti=tcti), open_tcti=open_tcti, pause=lambda _seconds: None)


def kept(vault: KeyVault, request: KeyRequest) -> Credential:
    """Have a key made, and kept."""
    credential = vault.create_key(request)
    vault.keep(credential.id)
    return credential


@contextmanager
def tpm_vault(tcti: str, path: Path, *, limit: int = 8, open_tcti: Callable[[], Any] | None = None) -> Iterator[Any]:
    """A `TpmVault` with a PIN of its own making. What it put into the TPM is taken out again."""
    from keyvouch_agent.vaults.tpm.account import TpmAccount
    from keyvouch_agent.vaults.tpm.vault import TpmVault

    account = TpmAccount.open(path, access_to(tcti, open_tcti))
    vault = TpmVault(account, SystemEntropy(), limit=limit)
    try:
        yield vault
        vault.reset()
    finally:
        vault.close()
