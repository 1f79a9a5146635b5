"""What the next process finds of a `KeyVault`: everything that was kept, of every vault that keeps anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyvouch_agent.authenticator.vault import (
    INITIAL_LARGE_BLOBS,
    AuthenticatorSettings,
    CredProtect,
    PinState,
    User,
)
from keyvouch_agent.system import SystemEntropy
from support.software_vaults import PIN, REQUEST, opened, pin_hash, proves_possession
from support.tpm_accounts import access_to, kept

SETTINGS = AuthenticatorSettings(8, ("a.example", "b.example"), force_pin_change=True, always_uv=True)
BOB = User(b"user", "bob", "Bob")


@pytest.fixture(params=["software", "software-ungated", "tpm"])
def open_vault(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """Opens the same vault again and again."""
    path = tmp_path / "vault"
    if request.param != "tpm":
        return lambda: opened(path, pin_gated=request.param == "software")
    tcti = request.getfixturevalue("tpm").tcti

    def open_account() -> Any:
        from keyvouch_agent.vaults.tpm.account import TpmAccount
        from keyvouch_agent.vaults.tpm.vault import TpmVault

        return TpmVault(TpmAccount.open(path, access_to(tcti)), SystemEntropy())

    return open_account


def test_everything_survives_a_restart_but_what_was_not_kept(open_vault: Callable[[], Any], tmp_path: Path) -> None:
    first = open_vault()
    first.set_pin(PIN)
    first.verify_pin(pin_hash(PIN))
    credential = kept(first, replace(REQUEST, protect=CredProtect.UV_REQUIRED))
    secrets = first.secrets(credential.id)
    first.store_settings(SETTINGS)
    first.store_large_blobs(b"blobs")
    first.update_user(credential.id, BOB)
    first.create_key(replace(REQUEST, user=User(b"not kept")))
    files = {file.name for file in (tmp_path / "vault").iterdir()}
    first.close()
    second = open_vault()
    try:
        assert second.discoverable() == [replace(credential, user=BOB)]
        assert (second.settings, second.large_blobs()) == (SETTINGS, b"blobs")
        assert second.pin_state() == PinState(is_set=True, retries_left=8, code_points=6)
        assert {file.name for file in (tmp_path / "vault").iterdir()} == files
        second.verify_pin(pin_hash(PIN))
        assert second.secrets(credential.id) == secrets
        proves_possession(second, credential)
    finally:
        second.reset()
        second.close()
    third = open_vault()
    assert (third.discoverable(), third.settings) == ([], AuthenticatorSettings())
    assert (third.large_blobs(), third.pin_state().is_set) == (INITIAL_LARGE_BLOBS, False)
    third.close()
