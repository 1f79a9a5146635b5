"""The software vault when it is interrupted: at every system call of every write, by a kill or by a failing disk.

Whatever stopped, the next process finds the state before or the one after, with every key in it usable; and the same
when that process is stopped at the same place again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.vault import AuthenticatorSettings, CredProtect, User
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import KdfParameters, SoftwareVault, vault_file
from support.software_vaults import (
    OTHER,
    PIN,
    REQUEST,
    RP,
    STEPS,
    InterruptedSteps,
    Killed,
    kept,
    opened,
    pin_hash,
    proves_possession,
    with_a_key,
)

# Every operation, every system call


def wrong_pin(vault: SoftwareVault) -> None:
    with suppress(DeviceError):
        vault.verify_pin(bytes(16))


def keep(vault: SoftwareVault) -> None:
    """In the place of the key that is there."""
    kept(vault, replace(REQUEST, user=User(b"user", "new", "New"), protect=CredProtect.UV_REQUIRED))


def set_pin(vault: SoftwareVault) -> None:
    if not vault.pin_state().is_set:
        vault.set_pin(PIN)


def delete(vault: SoftwareVault) -> None:
    for credential in vault.discoverable():
        vault.delete(credential.id)


OPERATIONS: Mapping[str, Callable[[SoftwareVault], object]] = {
    "store_settings": lambda vault: vault.store_settings(AuthenticatorSettings(8, ("a.example",), always_uv=True)),
    "set_pin": set_pin,
    "change_pin": lambda vault: vault.change_pin(OTHER),
    "wrong_pin": wrong_pin,
    "keep": keep,
    "keep_another": lambda vault: kept(vault, replace(REQUEST, discoverable=False)),
    "advance_sign_count": lambda vault: vault.advance_sign_count(vault.discoverable()[0].id),
    "update_user": lambda vault: vault.update_user(vault.discoverable()[0].id, User(b"user", "bob", "Bob")),
    "delete": delete,
    "store_large_blobs": lambda vault: vault.store_large_blobs(b"x" * 4096),
    "reset": lambda vault: vault.reset(),
}
FAULTS: Mapping[str, tuple[BaseException, bool]] = {
    "killed": (Killed(), False),
    "killed-half-way": (Killed(), True),
    "full": (OSError(28, os.strerror(28)), False),
    "broken": (OSError(5, os.strerror(5)), True),
}


def unlock(vault: SoftwareVault) -> bytes:
    """Enter the PIN, whichever it is now, and return it."""
    if not vault.pin_state().is_set:
        return b""
    for pin in (PIN, OTHER):
        with suppress(DeviceError):
            vault.verify_pin(pin_hash(pin))
            return pin
    raise AssertionError("no PIN opens the vault")


def view(path: Path, *, pin_gated: bool) -> Mapping[str, Any]:
    """What a vault is, without what is random in it. Every key signs, and has its secrets."""
    copy = path.with_name("seen")
    shutil.copytree(path, copy)
    with opened(copy, pin_gated=pin_gated) as vault:
        state, room = vault.pin_state(), vault.room()
        pin = unlock(vault)
        keys = [key.credential for key in vault._state.keys]
        for credential in keys:
            signature = vault.sign(credential.id, b"m")
            CoseKey(credential.public_key).verify_signature(signature=signature, message=b"m")
            assert vault.secrets(credential.id).cred_blob == REQUEST.cred_blob
        shown = [(c.user, c.protect, c.discoverable, c.sign_count) for c in keys]
        seen = {"pin": pin, "state": state, "keys": shown, "settings": vault.settings, "blobs": vault.large_blobs()}
    shutil.rmtree(copy)
    return {**seen, "room": room}


@contextmanager
def unlocked(path: Path, steps: InterruptedSteps, *, pin_gated: bool) -> Iterator[SoftwareVault]:
    """A vault of another process, ready for anything."""
    vault = opened(path, steps, pin_gated=pin_gated)
    try:
        unlock(vault)
        yield vault
    finally:
        vault.lock()
        vault._directory.close()


def made(path: Path, name: str, *, pin_gated: bool) -> Path:
    """The vault as an operation finds it."""
    if name == "set_pin":
        with opened(path, pin_gated=pin_gated) as vault:
            vault.store_large_blobs(b"something is there")
            if not pin_gated:
                kept(vault)
    else:
        with_a_key(path, pin_gated=pin_gated)
    return path


def views_after(tmp_path: Path, path: Path, name: str, *, pin_gated: bool) -> list[Mapping[str, Any]]:
    """The vault before the operation, and after one, two and three of it, uninterrupted."""
    control = tmp_path / "control"
    shutil.copytree(path, control)
    views = [view(control, pin_gated=pin_gated)]
    for _ in range(3):
        with unlocked(control, InterruptedSteps(0, Killed()), pin_gated=pin_gated) as vault:
            OPERATIONS[name](vault)
        views.append(view(control, pin_gated=pin_gated))
    shutil.rmtree(control)
    return views


@pytest.mark.parametrize("pin_gated", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_stopped_anywhere_twice_leaves_old_or_new(
    tmp_path: Path, name: str, fault: str, pin_gated: bool
) -> None:
    path = made(tmp_path / "v", name, pin_gated=pin_gated)
    views = views_after(tmp_path, path, name, pin_gated=pin_gated)
    assert views[0] != views[1]
    error, half = FAULTS[fault]
    for stop_at, step in enumerate(STEPS, 1):
        stage = tmp_path / f"{step}-{stop_at}"
        shutil.copytree(path, stage)
        done = 0
        for _ in range(2):
            with unlocked(stage, InterruptedSteps(0, error, half=half), pin_gated=pin_gated) as vault:
                stopped_in(vault, name, stop_at)
            done += stop_at == 5  # it was renamed: the new file is there
            assert view(stage, pin_gated=pin_gated) == views[done], (step, stop_at)
        with unlocked(stage, InterruptedSteps(0, error), pin_gated=pin_gated) as vault:
            OPERATIONS[name](vault)
        assert view(stage, pin_gated=pin_gated) == views[done + 1]


def stopped_in(vault: SoftwareVault, name: str, stop_at: int) -> None:
    """Run an operation that is stopped. After a typed error what is in memory is what is on the disk."""
    steps = vault._directory._steps
    assert isinstance(steps, InterruptedSteps)
    steps.arm(stop_at)
    if name == "set_pin" and vault.pin_state().is_set:
        return  # the first time it was set, and a second one writes nothing
    if name == "delete" and not vault.discoverable():
        return
    try:
        OPERATIONS[name](vault)
    except Killed:
        return
    except DeviceError as error:
        if error.reason not in (Reason.KEY_STORE_FULL, Reason.DEVICE_FAILED):
            raise
    content = vault._directory.read("vault.cbor")
    assert content is not None
    assert vault._state == vault_file.decode(content)
    assert len(steps.calls) == stop_at


def test_killed_before_a_key_is_kept_leaves_nothing(tmp_path: Path) -> None:
    with_a_key(tmp_path / "v")
    with opened(tmp_path / "v") as vault:
        vault.verify_pin(pin_hash(PIN))
        before = (tmp_path / "v" / "vault.cbor").read_bytes()
        credential = vault.create_key(replace(REQUEST, discoverable=False))
        vault.attest(credential.id, b"data", b"hash")
    assert (tmp_path / "v" / "vault.cbor").read_bytes() == before
    with opened(tmp_path / "v") as vault:
        assert vault.find(RP, credential.id) is None


def test_key_can_be_kept_again_after_the_disk_was_full(tmp_path: Path) -> None:
    """Also the first of all, for which there is no file yet."""
    for stop_at in range(1, 6):
        path = tmp_path / str(stop_at)
        steps = InterruptedSteps(0, OSError(28, os.strerror(28)))
        with opened(path, steps, pin_gated=False) as vault:
            credential = vault.create_key(REQUEST)
            steps.arm(stop_at)
            with pytest.raises(DeviceError) as caught:
                vault.keep(credential.id)
            assert caught.value.reason is Reason.KEY_STORE_FULL
            vault.keep(credential.id)
        with opened(path, pin_gated=False) as vault:
            assert vault.discoverable() == [credential]
            CoseKey(credential.public_key).verify_signature(signature=vault.sign(credential.id, b"m"), message=b"m")


# One operation, and the PIN


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("stop_at", range(1, 7))
def test_killed_at_each_step_leaves_old_or_new(tmp_path: Path, stop_at: int, half: bool) -> None:
    credential = with_a_key(tmp_path / "v")
    steps = InterruptedSteps(stop_at, Killed(), half=half)
    vault = opened(tmp_path / "v", steps)
    try:
        vault.advance_sign_count(credential.id)
    except Killed:
        vault._directory.close()
    else:
        assert stop_at == 6
        assert steps.calls == STEPS
        vault.close()
    with opened(tmp_path / "v") as after:
        found = after.find(RP, credential.id)
        assert found is not None
        assert found.sign_count == (1 if stop_at >= 5 else 0)
        proves_possession(after, credential)
        assert after.advance_sign_count(credential.id) == found.sign_count + 1


@pytest.mark.parametrize("stop_at", range(1, 6))
@pytest.mark.parametrize(("code", "reason"), [(28, Reason.KEY_STORE_FULL), (5, Reason.DEVICE_FAILED)])
def test_failing_disk_is_a_typed_error_and_memory_follows_the_disk(
    tmp_path: Path, stop_at: int, code: int, reason: Reason
) -> None:
    credential = with_a_key(tmp_path / "v")
    with opened(tmp_path / "v", InterruptedSteps(stop_at, OSError(code, os.strerror(code)))) as vault:
        with pytest.raises(DeviceError) as caught:
            vault.delete(credential.id)
        assert caught.value.reason is reason
        in_memory = vault.find(RP, credential.id)
    with opened(tmp_path / "v") as vault:
        assert vault.find(RP, credential.id) == in_memory


def test_retry_is_on_the_disk_before_the_comparison(tmp_path: Path) -> None:
    """The five steps that store the counter come before anything is known of the PIN; kill after each of them."""
    with_a_key(tmp_path / "v")
    for pin, left in ((PIN, 7), (OTHER, 6)):
        steps = InterruptedSteps(6, Killed())  # the first step of storing the *reset* counter
        vault = opened(tmp_path / "v", steps)
        with pytest.raises((Killed, DeviceError)):
            vault.verify_pin(pin_hash(pin))
        assert steps.calls[:5] == STEPS
        vault._directory.close()
        with opened(tmp_path / "v") as after:
            assert after.pin_state().retries_left == left


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_no_comparison_when_the_retry_cannot_be_stored(tmp_path: Path, stop_at: int) -> None:
    credential = with_a_key(tmp_path / "v")
    with opened(tmp_path / "v", InterruptedSteps(stop_at, OSError(5, "EIO"))) as vault:
        with pytest.raises(DeviceError) as caught:
            vault.verify_pin(pin_hash(PIN))
        assert caught.value.reason is Reason.DEVICE_FAILED
        with pytest.raises(DeviceError) as caught:
            vault.sign(credential.id, b"m")
        assert caught.value.reason is Reason.PIN_REQUIRED


SLOW_KDF = KdfParameters(memory_kib=64 * 1024, iterations=24, lanes=1)

VERIFY = """
import hashlib, sys
from pathlib import Path
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import SoftwareVault
vault = SoftwareVault.open(Path(sys.argv[1]), SystemEntropy())
vault.verify_pin(hashlib.sha256(b"123456").digest()[:16])
"""


def test_killed_while_the_pin_is_checked_has_used_up_a_retry(tmp_path: Path) -> None:
    """Even with the right PIN: it takes a second to find that out, and the process dies before."""
    path = tmp_path / "v"
    with SoftwareVault.open(path, SystemEntropy(), kdf=SLOW_KDF) as vault:
        vault.set_pin(PIN)
    process = subprocess.Popen([sys.executable, "-c", VERIFY, str(path)])
    deadline = time.monotonic() + 30
    while retries_on_disk(path) == 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert retries_on_disk(path) == 7
    with opened(path) as vault:
        vault.verify_pin(pin_hash(PIN))
    assert retries_on_disk(path) == 8


def retries_on_disk(path: Path) -> int:
    state = vault_file.decode((path / "vault.cbor").read_bytes())
    assert state.pin is not None
    return state.pin.retries_left
