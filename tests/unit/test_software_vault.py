"""The software vault beyond the contract: what is on the disk, tampering, crashes, the PIN's cost."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import SOFTWARE_AAGUID, KdfParameters, SoftwareVault, key_pairs, vault_file
from keyvouch_agent.vaults.software import vault as vault_module
from support.software_vaults import (
    OTHER,
    PIN,
    REQUEST,
    RP,
    RP_ID,
    kept,
    opened,
    pin_hash,
    proves_possession,
    with_a_key,
)


def test_survives_a_restart(tmp_path: Path) -> None:
    credential = with_a_key(tmp_path / "v")
    with opened(tmp_path / "v") as vault:
        vault.advance_sign_count(credential.id)
    with opened(tmp_path / "v") as vault:
        assert vault.find(RP, credential.id) == replace(credential, sign_count=1)
        proves_possession(vault, credential)
    assert vault.properties.aaguid == SOFTWARE_AAGUID


def test_pin_costs_64_mib_by_default_A3(tmp_path: Path) -> None:
    with SoftwareVault.open(tmp_path / "v", SystemEntropy()) as vault:
        vault.set_pin(PIN)
        start = time.perf_counter()
        with pytest.raises(DeviceError):
            vault.verify_pin(pin_hash(OTHER))
        assert time.perf_counter() - start > 0.02
        vault.verify_pin(pin_hash(PIN))
    state = vault_file.decode((tmp_path / "v" / "vault.cbor").read_bytes())
    assert state.pin is not None
    assert state.pin.wrapped.kdf == KdfParameters(memory_kib=65536, iterations=3, lanes=4)


@pytest.mark.parametrize("cost", [(0, 1, 1), (7, 1, 1), (8, 0, 1), (8, 1, 0), (2**21, 1, 1), (8, 65, 1), (8, 1, 17)])
def test_absurd_costs_are_refused(cost: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="Argon2id"):
        KdfParameters(*cost)


def test_no_secret_on_the_disk_in_clear_A5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ec.EllipticCurvePrivateKey] = []
    generate = ec.generate_private_key

    def watched(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        seen.append(generate(curve))
        return seen[-1]

    monkeypatch.setattr(key_pairs.ec, "generate_private_key", watched)
    with opened(tmp_path / "v") as vault:
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        beside = vault.secrets(kept(vault).id)
        assert vault._master is not None
        master = bytes(vault._master)
        secrets = [master, PIN, pin_hash(PIN), seen[0].private_numbers().private_value.to_bytes(32, "big")]
        secrets += [beside.with_uv, beside.without_uv, beside.large_blob_key, beside.cred_blob]
        assert repr(vault) == "SoftwareVault(1 keys)"
    content = b"".join(file.read_bytes() for file in (tmp_path / "v").iterdir())
    assert RP_ID.encode() in content  # control: the search finds what is there
    for secret in secrets:
        assert secret not in content


def test_lock_overwrites_the_master_key(tmp_path: Path) -> None:
    with opened(tmp_path / "v") as vault:
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        master = vault._master
        assert master is not None
        assert any(master)
        vault.lock()
        assert not any(master)


def test_every_wrap_and_seal_is_fresh(tmp_path: Path) -> None:
    with opened(tmp_path / "v") as vault:
        seen = set()
        vault.set_pin(PIN)
        for _ in range(3):
            vault.verify_pin(pin_hash(PIN))
            vault.change_pin(PIN)
            assert vault._state.pin is not None
            seen.add((vault._state.pin.wrapped.salt, vault._state.pin.wrapped.sealed[:12]))
            kept(vault, replace(REQUEST, discoverable=False))
        assert len(seen) == 3
        assert len({key.sealed[:12] for key in vault._state.keys}) == 3


# Damage and tampering


def test_each_flipped_byte_is_found(tmp_path: Path) -> None:
    with_a_key(tmp_path / "v")
    file = tmp_path / "v" / "vault.cbor"
    good = file.read_bytes()
    for index in range(len(good)):
        file.write_bytes(good[:index] + bytes([good[index] ^ 0x01]) + good[index + 1 :])
        with pytest.raises(DeviceError) as caught:
            opened(tmp_path / "v")
        assert caught.value.reason in (Reason.VAULT_CORRUPT, Reason.UNSUPPORTED)
        assert caught.value.fix
    file.write_bytes(good)
    opened(tmp_path / "v").close()


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_truncated_or_longer_file_is_left_as_it_is(tmp_path: Path, cut: int) -> None:
    with_a_key(tmp_path / "v")
    file = tmp_path / "v" / "vault.cbor"
    good = file.read_bytes()
    for damaged in (good[:cut], good + b"\0"):
        file.write_bytes(damaged)
        with pytest.raises(DeviceError) as caught:
            opened(tmp_path / "v")
        assert caught.value.reason is Reason.VAULT_CORRUPT
        assert file.read_bytes() == damaged


def rewritten(path: Path, change: Callable[[dict[int, object]], None]) -> None:
    """Change the body on purpose, and put the checksum right."""
    file = path / "vault.cbor"
    outer = cbor.decode(file.read_bytes())
    assert isinstance(outer, dict)
    raw = outer[3]
    assert isinstance(raw, bytes)
    body = cbor.decode(raw)
    change(body)
    raw = cbor.encode(body)
    file.write_bytes(cbor.encode({**outer, 3: raw, 4: hashlib.sha256(raw).digest()}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(1, b"x" * 32), (2, "evil.example"), (3, b"other"), (4, "mallory"), (5, "M"), (6, -35), (7, False), (9, 0)],
        *[(12, b"h" * 32), (13, 2), (14, False), (15, False), (16, False)],
    ],
)
def test_record_changed_on_purpose_does_not_sign(tmp_path: Path, field: int, value: object) -> None:
    with_a_key(tmp_path / "v")
    rewritten(tmp_path / "v", lambda body: body[3][0].update({field: value}))
    with opened(tmp_path / "v") as vault:
        vault.verify_pin(pin_hash(PIN))
        changed = vault._state.keys[0].credential
        for use in (lambda: vault.sign(changed.id, b"m"), lambda: vault.secrets(changed.id)):
            with pytest.raises(DeviceError) as caught:
                use()
            assert caught.value.reason is Reason.VAULT_CORRUPT


def test_counter_that_is_used_up_counts_no_further(tmp_path: Path) -> None:
    credential = with_a_key(tmp_path / "v")
    rewritten(tmp_path / "v", lambda body: body[3][0].update({10: 2**32 - 2}))
    with opened(tmp_path / "v") as vault:
        assert vault.advance_sign_count(credential.id) == 2**32 - 1
        for _ in range(2):
            with pytest.raises(DeviceError) as caught:
                vault.advance_sign_count(credential.id)
            assert caught.value.reason is Reason.DEVICE_FAILED
        assert vault.discoverable()[0].sign_count == 2**32 - 1


@pytest.mark.parametrize(("field", "value"), [(1, 16), (2, 2), (3, 2), (4, b"s" * 16), (5, b"w" * 60), (5, b"")])
def test_pin_record_changed_on_purpose_is_a_wrong_pin(tmp_path: Path, field: int, value: object) -> None:
    with_a_key(tmp_path / "v")
    change = {field: value} | ({1: 16} if (field, value) == (3, 2) else {})
    rewritten(tmp_path / "v", lambda body: body[2].update(change))
    with opened(tmp_path / "v") as vault, pytest.raises(DeviceError) as caught:
        vault.verify_pin(pin_hash(PIN))
    assert caught.value.reason is Reason.PIN_WRONG


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop(1),
        lambda body: body.pop(2),
        lambda body: body.pop(3),
        lambda body: body.pop(4),
        lambda body: body.pop(5),
        lambda body: body.update({4: 1}),
        lambda body: body.update({5: "text"}),
        lambda body: body.update({6: b"short"}),
        lambda body: body.update({7: 1}),
        lambda body: body.update({1: 0}),
        lambda body: body.update({3: {}}),
        lambda body: body[2].update({1: 2**40}),
        lambda body: body[2].update({1: True}),
        lambda body: body[2].update({4: b"short"}),
        lambda body: body[2].update({6: 9}),
        lambda body: body[2].update({6: -1}),
        lambda body: body[2].update({7: -1}),
        lambda body: body[2].update({8: 1}),
        lambda body: body[4].update({1: True}),
        lambda body: body[4].update({2: [1]}),
        lambda body: body[4].update({5: 1}),
        lambda body: body[3][0].pop(11),
        lambda body: body[3][0].update({18: 1}),
        lambda body: body[3][0].update({13: 0}),
        lambda body: body[3][0].update({17: 1}),
        lambda body: body[3][0].update({17: 3}),
        lambda body: body[3][0].update({17: 4}),
        lambda body: body[3][0].update({10: "1"}),
    ],
)
def test_wrong_structure_under_a_right_checksum(tmp_path: Path, change: Callable[[dict[int, object]], None]) -> None:
    with_a_key(tmp_path / "v")
    rewritten(tmp_path / "v", change)
    with pytest.raises(DeviceError) as caught:
        opened(tmp_path / "v")
    assert caught.value.reason is Reason.VAULT_CORRUPT


def test_newer_version_is_named(tmp_path: Path) -> None:
    with_a_key(tmp_path / "v")
    file = tmp_path / "v" / "vault.cbor"
    outer = cbor.decode(file.read_bytes())
    assert isinstance(outer, dict)
    file.write_bytes(cbor.encode({**outer, 2: 3}))
    with pytest.raises(DeviceError) as caught:
        opened(tmp_path / "v")
    assert caught.value.reason is Reason.UNSUPPORTED


def test_copied_vault_is_no_use_without_the_pin_A3(tmp_path: Path) -> None:
    credential = with_a_key(tmp_path / "v")
    copy = tmp_path / "copy"
    copy.mkdir(mode=0o700)
    (copy / "vault.cbor").touch(mode=0o600)
    (copy / "vault.cbor").write_bytes((tmp_path / "v" / "vault.cbor").read_bytes())
    with opened(copy) as vault:
        with pytest.raises(DeviceError):
            vault.sign(credential.id, b"m")
        for _ in range(8):
            with pytest.raises(DeviceError):
                vault.verify_pin(pin_hash(OTHER))
        with pytest.raises(DeviceError) as caught:
            vault.verify_pin(pin_hash(PIN))
        assert caught.value.reason is Reason.PIN_BLOCKED


def test_key_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_module, "MAX_KEYS", 1)
    credential = with_a_key(tmp_path / "v")
    with opened(tmp_path / "v") as vault:
        vault.verify_pin(pin_hash(PIN))
        assert vault.room() == 0
        with pytest.raises(DeviceError) as caught:
            vault.create_key(replace(REQUEST, discoverable=False))
        assert caught.value.reason is Reason.KEY_STORE_FULL
        newer = kept(vault)  # in the place of the other one
        assert newer.created == 2
        assert vault.discoverable() == [newer]
        assert vault.find(RP, credential.id) is None
        vault.delete(newer.id)
        assert vault.room() == 1
        assert kept(vault, replace(REQUEST, discoverable=False)).created == 3


# Permissions and the lock


def test_everything_is_for_the_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with_a_key(tmp_path / "a" / "b" / "v")
    finally:
        os.umask(old)
    assert (tmp_path / "a" / "b" / "v").stat().st_mode & 0o777 == 0o700
    files = list((tmp_path / "a" / "b" / "v").iterdir())
    assert {file.name for file in files} == {"lock", "vault.cbor"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def link_file(path: Path) -> None:
    (path / "vault.cbor").rename(path / "real")
    (path / "vault.cbor").symlink_to(path / "real")


def link_directory(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


def file_for_directory(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.touch(0o600)


def directory_for_file(path: Path) -> None:
    (path / "vault.cbor").unlink()
    (path / "vault.cbor").mkdir(0o700)


def pipe_for_file(path: Path) -> None:
    (path / "vault.cbor").unlink()
    os.mkfifo(path / "vault.cbor", 0o600)


FOREIGN_OWNED: list[Callable[[Path], None]] = [
    lambda path: os.chown(path, 65534, -1),
    lambda path: os.chown(path / "vault.cbor", 65534, -1),
]
if os.geteuid() != 0:  # only root can give files away
    FOREIGN_OWNED.clear()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.chmod(0o750),
        lambda path: path.chmod(0o701),
        lambda path: (path / "vault.cbor").chmod(0o640),
        lambda path: (path / "vault.cbor").chmod(0o602),
        lambda path: os.link(path / "vault.cbor", path / "second"),
        link_file,
        link_directory,
        file_for_directory,
        directory_for_file,
        pipe_for_file,
        *FOREIGN_OWNED,
    ],
)
def test_vault_that_others_could_touch_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    with_a_key(tmp_path / "v")
    opened(tmp_path / "v").close()  # control
    spoil(tmp_path / "v")
    with pytest.raises(DeviceError) as caught:
        opened(tmp_path / "v")
    assert caught.value.reason is Reason.VAULT_PERMISSIONS
    assert "chmod" in caught.value.fix


def test_second_process_is_told_that_the_vault_is_busy(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from keyvouch.errors import DeviceError\n"
        "from keyvouch_agent.system import SystemEntropy\n"
        "from keyvouch_agent.vaults.software import SoftwareVault\n"
        "try: SoftwareVault.open(Path(sys.argv[1]), SystemEntropy()).close()\n"
        "except DeviceError as error: print(error.reason)\n"
        "else: print('opened')\n"
    )

    def second() -> str:
        command = [sys.executable, "-c", script, str(tmp_path / "v")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    with opened(tmp_path / "v"):
        assert second() == "vault_busy"
        with pytest.raises(DeviceError) as caught:
            opened(tmp_path / "v")
        assert caught.value.reason is Reason.VAULT_BUSY
    assert second() == "opened"
