"""The TPM vault when it is interrupted: at every system call of every write, by a kill or by a failing disk.

Whatever stopped, the next process finds the account as it was or as it was to be, with every key in it usable and no
file that the record does not name; and the same when that process is stopped at the same place again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.vault import AuthenticatorSettings, KeyRequest, PinState, User
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.vault import TpmVault
from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import TpmDevice
from support.software_vaults import STEPS, InterruptedSteps, Killed
from support.tpm_accounts import access_to, kept
from support.tpm_attacker import PIN, pin_hash, record_of

NEW: Final = b"another PIN of another length"
BLOB: Final = b"blob of the relying party"
REQUEST: Final = KeyRequest("rp.example", User(b"user", "ada", "Ada"), -7, True, cred_blob=BLOB, hmac_secret=True)
FULL: Final = OSError(28, os.strerror(28))


@dataclass
class Stage:
    """One account, opened by one process after the other."""

    tcti: str
    folder: Path

    @contextmanager
    def opened(self, steps: InterruptedSteps | None = None) -> Iterator[TpmVault]:
        account = TpmAccount.open(self.folder, access_to(self.tcti), steps=steps)
        account.sweep()
        vault = TpmVault(account, SystemEntropy())
        try:
            yield vault
        finally:
            vault.close()

    @contextmanager
    def unlocked(self, steps: InterruptedSteps | None = None) -> Iterator[TpmVault]:
        with self.opened(steps) as vault:
            if vault.pin_state().is_set:
                vault.verify_pin(pin_hash(PIN))
            yield vault

    def made(self, name: str) -> Stage:
        """The account as an operation finds it."""
        with self.opened() as vault:
            vault.store_large_blobs(b"something is there")
            if name != "set_pin":
                vault.set_pin(PIN)
                vault.verify_pin(pin_hash(PIN))
                kept(vault, REQUEST)
        return self

    def view(self) -> Mapping[str, Any]:
        """What the account is, without what is random in it. Every key signs and has its secrets."""
        with self.unlocked() as vault:
            keys = record_of(self.folder).keys
            for key in keys:
                CoseKey(key.public_key).verify_signature(signature=vault.sign(key.id, b"m"), message=b"m")
                assert vault.secrets(key.id).cred_blob == BLOB
            assert {file.stem for file in self.folder.glob("*.pem")} == {key.id.hex() for key in keys}
            shown = [(key.user, key.discoverable, key.sign_count) for key in keys]
            rest = (vault.settings, vault.large_blobs(), vault.room())
            return {"pin": vault.pin_state(), "keys": shown, "rest": rest}

    def gone(self) -> None:
        """Nothing of it stays in the TPM."""
        with self.opened() as vault:
            vault.reset()


@pytest.fixture
def stages(tpm: Swtpm | TpmDevice, tmp_path: Path) -> Iterator[Callable[[str], Stage]]:
    """Makes accounts."""
    made: list[Stage] = []

    def make(name: str) -> Stage:
        made.append(Stage(tpm.tcti, tmp_path / str(len(made))))
        return made[-1].made(name)

    yield make
    for stage in made:
        stage.gone()


def set_pin(vault: TpmVault) -> None:
    if not vault.pin_state().is_set:
        vault.set_pin(PIN)


def delete(vault: TpmVault) -> None:
    for credential in vault.discoverable():
        vault.delete(credential.id)


OPERATIONS: Final[Mapping[str, Callable[[TpmVault], object]]] = {
    "store_settings": lambda vault: vault.store_settings(AuthenticatorSettings(8, ("a.example",), always_uv=True)),
    "set_pin": set_pin,
    "keep": lambda vault: kept(vault, replace(REQUEST, user=User(b"user", "new", "New"))),
    "keep_another": lambda vault: kept(vault, replace(REQUEST, discoverable=False)),
    "advance_sign_count": lambda vault: vault.advance_sign_count(vault.discoverable()[0].id),
    "update_user": lambda vault: vault.update_user(vault.discoverable()[0].id, User(b"user", "bob", "Bob")),
    "delete": delete,
    "store_large_blobs": lambda vault: vault.store_large_blobs(b"x" * 4096),
}


@pytest.mark.parametrize("error", [Killed(), FULL], ids=["killed", "full"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_stopped_anywhere_twice_leaves_old_or_new(
    stages: Callable[[str], Stage], name: str, error: BaseException
) -> None:
    views, count = uninterrupted(stages(name), name)
    assert views[0] != views[1]
    assert count >= len(STEPS)
    for stop_at in range(1, count + 1):
        stage, done = stages(name), 0
        for _ in range(2):
            steps = InterruptedSteps(0, error, half=True)
            with stage.unlocked(steps) as vault:
                steps.arm(stop_at)
                with suppress(Killed, DeviceError):
                    OPERATIONS[name](vault)
                steps.arm(0)
            seen = stage.view()
            assert seen in views[done : done + 2], stop_at
            done += seen != views[done]
        with stage.unlocked() as vault:
            OPERATIONS[name](vault)
        assert stage.view() == views[done + 1]


def uninterrupted(stage: Stage, name: str) -> tuple[list[Mapping[str, Any]], int]:
    """The account before the operation, and after one, two and three of it; and how many system calls one takes."""
    views, counts = [stage.view()], []
    for _ in range(3):
        steps = InterruptedSteps(0, Killed())
        with stage.unlocked(steps) as vault:
            steps.arm(0)
            OPERATIONS[name](vault)
            counts.append(len(steps.calls))
        views.append(stage.view())
    return views, counts[0]


def test_key_that_was_not_kept_leaves_no_file(stages: Callable[[str], Stage]) -> None:
    stage = stages("keep")
    before = stage.view()
    with stage.unlocked() as vault:
        files = {file: file.read_bytes() for file in stage.folder.iterdir()}
        credential = vault.create_key(replace(REQUEST, user=User(b"other")))
        vault.attest(credential.id, b"data", b"hash")
        assert {file: file.read_bytes() for file in stage.folder.iterdir()} == files
    assert stage.view() == before


@pytest.mark.parametrize("stop_at", range(1, 11))
def test_key_can_be_kept_again_after_the_disk_was_full(stages: Callable[[str], Stage], stop_at: int) -> None:
    steps, stage = InterruptedSteps(0, FULL), stages("keep")
    with stage.unlocked(steps) as vault:
        credential = vault.create_key(REQUEST)
        steps.arm(stop_at)
        with pytest.raises(DeviceError) as caught:
            vault.keep(credential.id)
        assert caught.value.reason is Reason.KEY_STORE_FULL
        vault.keep(credential.id)
        assert vault.discoverable() == [credential]
    assert [key[0].name for key in stage.view()["keys"]] == ["ada"]


# The PIN: TPM and disk cannot change in one step


@pytest.mark.parametrize("error", [Killed(), FULL], ids=["killed", "full"])
@pytest.mark.parametrize("stop_at", range(1, 11))
def test_change_of_the_pin_that_is_stopped_is_never_said_to_be_done_or_not_done_wrongly(
    stages: Callable[[str], Stage], stop_at: int, error: BaseException
) -> None:
    steps, stage, failed = InterruptedSteps(0, error), stages("change_pin"), None
    demanded = AuthenticatorSettings(force_pin_change=True)
    with stage.unlocked(steps) as vault:
        vault.store_settings(demanded)
        steps.arm(stop_at)
        try:
            vault.change_pin(NEW)
        except (Killed, DeviceError) as stopped:
            failed = stopped
        steps.arm(0)
    with stage.opened() as vault:
        changed = opens(vault, NEW)
        assert changed is (stop_at > len(STEPS))
        assert opens(vault, PIN) is not changed
        if isinstance(failed, DeviceError):
            assert not changed  # an error always means that the old PIN is still the one
        length = vault.pin_state().code_points
        assert length in (0, len(NEW) if changed else len(PIN))
        assert vault.settings == demanded or length == len(NEW)
        vault.verify_pin(pin_hash(NEW if changed else PIN))
        vault.change_pin(PIN)  # once more
        assert vault.pin_state() == PinState(True, 8, code_points=len(PIN))
        assert vault.settings == AuthenticatorSettings()


def test_change_of_the_pin_writes_what_it_has_to(stages: Callable[[str], Stage]) -> None:
    """The control; and with the same length, and no change demanded, there is nothing to write."""
    steps, stage = InterruptedSteps(0, FULL), stages("change_pin")
    with stage.unlocked(steps) as vault:
        vault.store_settings(AuthenticatorSettings(force_pin_change=True))
        steps.arm(0)
        vault.change_pin(NEW)
        assert steps.calls == STEPS * 2
        assert vault.settings == AuthenticatorSettings()
        vault.change_pin(PIN)
        steps.arm(0)
        vault.change_pin(bytes(reversed(PIN)))
        assert steps.calls == []
        vault.change_pin(PIN)


def opens(vault: TpmVault, pin: bytes) -> bool:
    try:
        vault.verify_pin(pin_hash(pin))
    except DeviceError as error:
        if error.reason is not Reason.PIN_WRONG:
            raise
        return False
    return True


def test_reset_that_is_stopped_is_finished_by_the_next(stages: Callable[[str], Stage]) -> None:
    for stop_at in range(1, 4):
        steps, stage = InterruptedSteps(0, Killed()), stages("reset")
        with stage.unlocked(steps) as vault:
            steps.arm(stop_at)
            with suppress(Killed):
                vault.reset()
            steps.arm(0)
        with stage.opened() as vault:
            vault.reset()
            assert (vault.discoverable(), vault.pin_state().is_set) == ([], False)
            assert {file.name for file in stage.folder.iterdir()} == {"lock"}
