"""What stays behind in a TPM and in memory when a step fails: nothing, also while the connection is open still.

A chip has three places for objects and three for sessions. One step after the other of a registration fails at each of
its commands; what is loaded then may be what was loaded before it, and no more.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
from tpm2_pytss.constants import TPM2_CC

from keyvouch.attestation.tpm_marshal import sign
from keyvouch.cose import Algorithm
from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.authenticator.vault import KeyRequest, User
from keyvouch_agent.ports import TpmGrant
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.private_directory import FileSteps
from keyvouch_agent.vaults.tpm import pin_index
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.channel_key import TpmChannelKeys
from keyvouch_agent.vaults.tpm.parent import choose_parent
from keyvouch_agent.vaults.tpm.pin_grant import LocalCeremony
from keyvouch_agent.vaults.tpm.pin_index import auth_value
from keyvouch_agent.vaults.tpm.profile import read_profile
from keyvouch_agent.vaults.tpm.registration import TpmRegistration
from keyvouch_agent.vaults.tpm.vault import TpmVault
from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import read_contents
from keyvouch_bench.tpm_faults import Action, Fault, FaultPlan, FaultyTpm, refuse
from keyvouch_bench.tpm_tcti import Recording
from support.tpm_accounts import access_to, kept, tpm_vault
from support.tpm_attacker import PIN, own_key, pin_hash
from support.tpm_registering import ScriptedServer

NEW: Final = b"another PIN"
REQUEST: Final = KeyRequest("rp", User(b"u"), -7, discoverable=True, cred_blob=b"blob", hmac_secret=True)
FAILURE, RETRY = 0x101, 0x922


class Armed(FaultPlan):
    """A plan that counts from the moment it is given a fault."""

    def __init__(self) -> None:
        super().__init__()
        self._now = FaultPlan()

    def arm(self, *faults: Fault) -> None:
        self._now = FaultPlan(*faults)

    def action_for(self, code: int) -> Action | None:
        return self._now.action_for(code)


@dataclass
class Scene:
    """A registration, its steps to be called one after the other."""

    tpm: Swtpm
    account: TpmAccount
    vault: TpmVault
    ceremony: TpmRegistration
    plan: Armed
    recording: Recording
    channel_key: bytes
    server: ScriptedServer = field(default_factory=ScriptedServer)
    grant: TpmGrant | None = None
    credential: Any = None

    def prepare(self) -> None:
        self.grant = self.server.grant(self.ceremony.prepare(self.server.offer))

    def accept(self) -> None:
        assert self.grant is not None
        self.ceremony.accept(self.grant)

    def set_pin(self) -> None:
        self.vault.set_pin(PIN)

    def verify_pin(self) -> None:
        self.vault.verify_pin(pin_hash(PIN))

    def create_key(self) -> None:
        self.credential = kept(self.vault, REQUEST)

    def attest(self) -> None:
        self.vault.attest(self.credential.id, b"data", b"hash")

    def sign(self) -> None:
        self.vault.sign(self.credential.id, b"statement")

    def secrets(self) -> None:
        self.vault.secrets(self.credential.id)

    def sign_again(self) -> None:
        self.vault.sign(self.credential.id, b"statement")

    def evidence(self) -> None:
        assert self.grant is not None
        self.ceremony.evidence(self.grant.statement, self.channel_key)

    def change_pin(self) -> None:
        self.vault.change_pin(NEW)

    def loaded(self) -> frozenset[int]:
        return self.tpm.loaded_handles()


STEPS: Final = (
    Scene.prepare,
    Scene.accept,
    Scene.set_pin,
    Scene.verify_pin,
    Scene.create_key,
    Scene.attest,
    Scene.sign,
    Scene.secrets,
    Scene.sign_again,
    Scene.evidence,
    Scene.change_pin,
)


@contextmanager
def scene(tpm: Swtpm, folder: Path) -> Iterator[Scene]:
    """With a link that stays open throughout, and what it keeps loaded loaded already."""
    plan, recording = Armed(), Recording()
    channel_key = TpmChannelKeys(access_to(tpm.tcti)).make().stored
    account = TpmAccount.open(folder, access_to(tpm.tcti, FaultyTpm(tpm.tcti).connections(plan, recording)))
    vault = TpmVault(account, SystemEntropy(), limit=3)
    try:
        ceremony = TpmRegistration(account, vault, SystemEntropy())
        made = Scene(tpm, account, vault, ceremony, plan, recording, channel_key)
        with account.linked() as link:
            assert link.parent
            yield made
        plan.arm()
        made.ceremony.close()
        vault.reset()
    finally:
        vault.close()
    assert not tpm.loaded_handles()


@pytest.mark.parametrize("step", STEPS[1:], ids=lambda step: step.__name__)
def test_a_step_that_fails_leaves_nothing_loaded(tpm_factory: Callable[[], Swtpm], tmp_path: Path, step: Any):
    tpm = tpm_factory()
    before = STEPS[: STEPS.index(step)]
    for position, command in enumerate(commands_of(tpm, tmp_path / "whole", before, step), 1):
        if command == TPM2_CC.FlushContext:
            continue  # what a TPM does not flush it keeps
        with scene(tpm, tmp_path / f"{position}") as made:
            for earlier in before:
                earlier(made)
            was = made.loaded()
            made.plan.arm(Fault(refuse(FAILURE), at=position))
            with pytest.raises(DeviceError) as caught:
                step(made)
            assert caught.value.reason is Reason.TPM_FAILED
            assert made.loaded() <= was, f"{TPM2_CC(command)} at {position}"


def commands_of(tpm: Swtpm, folder: Path, before: Any, step: Any) -> list[int]:
    """What a step sends when nothing goes wrong."""
    with scene(tpm, folder) as made:
        for earlier in before:
            earlier(made)
        made.recording.exchanges.clear()
        step(made)
        sent = [one.code for one in made.recording.exchanges if one.result != RETRY]
    assert sent
    return sent


def test_a_right_pin_on_a_full_disk_leaves_no_session_open(tpm_factory: Callable[[], Swtpm], tmp_path: Path):
    tpm, disk = tpm_factory(), FullDisk()
    account = TpmAccount.open(tmp_path / "account", access_to(tpm.tcti), steps=disk)
    vault = TpmVault(account, SystemEntropy(), limit=3)
    try:
        vault.set_pin(PIN)
        with pytest.raises(DeviceError, match="wrong"):
            vault.verify_pin(pin_hash(NEW))
        with account.linked() as link:
            assert link.parent
            was = tpm.loaded_handles()
            disk.full = True
            with pytest.raises(DeviceError) as caught:
                vault.verify_pin(pin_hash(PIN))
            assert caught.value.reason is not Reason.PIN_WRONG
            assert tpm.loaded_handles() == was
            disk.full = False
            vault.verify_pin(pin_hash(PIN))
            vault.lock()
        vault.reset()
    finally:
        vault.close()


class FullDisk(FileSteps):
    """A disk that takes nothing more while it is full."""

    full = False

    def write(self, file: int, data: bytes) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(file, data)


# Memory


def test_no_object_of_ours_shows_a_secret_when_it_is_printed_A4(tpm_factory: Callable[[], Swtpm], tmp_path: Path):
    with scene(tpm_factory(), tmp_path / "account") as made:
        for step in STEPS[:-1]:
            step(made)
        assert made.grant is not None
        value, secret = auth_value(pin_hash(PIN)), made.server.secret
        assert bytes(made.vault._unlocked.auth) == value  # type: ignore[union-attr] # it is there: the vault is unlocked
        for thing in ours(made.vault, made.ceremony):
            shown = repr(thing)
            for hidden in (value, secret, PIN, made.grant.first_write):
                assert repr(hidden)[2:-1] not in shown, type(thing)
                assert hidden.hex() not in shown
        made.vault.lock()
        assert made.vault._unlocked is None


def ours(*roots: object) -> Iterator[object]:
    """Everything of the product's own types that can be reached from here."""
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type) or callable(thing):
            continue
        seen.add(id(thing))
        if type(thing).__module__.startswith("keyvouch_agent"):
            yield thing
        if type(thing).__module__.startswith(("keyvouch_agent", "builtins")):
            waiting += gc.get_referents(thing)


def test_the_value_is_wiped_at_the_lock_A4(tpm_factory: Callable[[], Swtpm], tmp_path: Path):
    with tpm_vault(tpm_factory().tcti, tmp_path / "account") as vault:
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        kept = vault._unlocked.auth
        assert bytes(kept) == auth_value(pin_hash(PIN))
        vault.lock()
        assert bytes(kept) == bytes(32)


def test_the_tss_forgets_the_value_once_the_index_is_defined_A4(tpm_factory: Callable[[], Swtpm], tmp_path: Path):
    tpm, value = tpm_factory(), auth_value(pin_hash(PIN))
    with access_to(tpm.tcti).open() as link:
        parent, _ = choose_parent(link, read_profile(link))
        grant = LocalCeremony(Algorithm.ES256, SystemEntropy(), limit=3).grant(link)
        index = pin_index.define(link, parent, grant.gate, value)
        grant.write(link, index)
        with pytest.raises(DeviceError, match="password"):
            link.do(link.esapi.nv_read, index.handle, 8)
        link.esapi.tr_set_auth(index.handle, value)
        assert link.do(link.esapi.nv_read, index.handle, 8)


# A server that answers nonsense

NONSENSE: Final[dict[str, dict[str, bytes]]] = {
    "no challenge": {"credential_blob": b"", "encrypted_secret": b""},
    "a long challenge": {"credential_blob": bytes(5000)},
    "a long secret": {"encrypted_secret": bytes(5000)},
    "a short challenge": {"credential_blob": b"\0\1\2"},
    "another challenge": {"credential_blob": b"\0\x20" + bytes(66)},
    "another seal": {"sealed_certificate": bytes(100)},
    "a short seal": {"sealed_certificate": b"x"},
    "no first write": {"first_write": b""},
    "a first write that is none": {"first_write": b"\0\x18\0\x0b\0\x20" + bytes(10)},
    "a long first write": {"first_write": bytes(5000)},
    "a first write of another key": {"first_write": bytes(sign(own_key()[0], b"whatever"))},
    "no approval": {"pin_change": b""},
    "an approval that is none": {"pin_change": b"\xff" * 70},
    "an approval of another key": {"pin_change": bytes(sign(own_key()[0], b"whatever"))},
    "a long approval": {"pin_change": bytes(5000)},
    "no statement": {"statement": b""},
    "a statement that is none": {"statement": b"\xa0"},
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_a_server_that_answers_nonsense_is_refused_in_words_and_nothing_stays(
    tpm_factory: Callable[[], Swtpm], tmp_path: Path, nonsense: str
):
    tpm = tpm_factory()
    before = read_contents(tpm.tcti)
    with scene(tpm, tmp_path / "account") as made:
        made.prepare()
        assert made.grant is not None
        made.grant = replace(made.grant, **NONSENSE[nonsense])
        with pytest.raises(KeyvouchError) as caught:
            made.accept()
        assert caught.value.fix
        assert made.vault.grant is None
        assert made.vault.properties.attestation_formats == ("packed",)
    assert read_contents(tpm.tcti) == before
