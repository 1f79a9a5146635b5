"""Software vaults for tests: one with a key that has everything, and file steps that stop half-way."""

from __future__ import annotations

import hashlib
from pathlib import Path

from keyvouch.cose import CoseKey
from keyvouch_agent.authenticator.vault import Credential, KeyRequest, User, hash_of
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import FileSteps, KdfParameters, SoftwareVault

__all__ = [
    "FAST_KDF",
    "OTHER",
    "PIN",
    "REQUEST",
    "RP",
    "RP_ID",
    "STEPS",
    "InterruptedSteps",
    "Killed",
    "kept",
    "opened",
    "pin_hash",
    "proves_possession",
    "with_a_key",
]

FAST_KDF = KdfParameters(memory_kib=8, iterations=1, lanes=1)
"""Argon2id at its cheapest, for tests only."""

PIN, OTHER = b"123456", b"654321"
RP_ID = "login.example.org"
RP = hash_of(RP_ID)
REQUEST = KeyRequest(
    RP_ID,
    User(b"user", "alice", "Alice"),
    -7,
    discoverable=True,
    cred_blob=b"blob of the relying party",
    hmac_secret=True,
    large_blob_key=True,
)

STEPS = ["create", "write", "sync", "rename", "sync"]
"""One atomic replacement of a file."""


def pin_hash(pin: bytes) -> bytes:
    """What CTAP shows of a PIN."""
    return hashlib.sha256(pin).digest()[:16]


def opened(path: Path, steps: FileSteps | None = None, *, pin_gated: bool = True) -> SoftwareVault:
    """A vault whose PIN costs nothing."""
    return SoftwareVault.open(path, SystemEntropy(), kdf=FAST_KDF, steps=steps, pin_gated=pin_gated)


def kept(vault: SoftwareVault, request: KeyRequest = REQUEST) -> Credential:
    """Make a key and keep it."""
    credential = vault.create_key(request)
    vault.keep(credential.id)
    return credential


def with_a_key(path: Path, *, pin_gated: bool = True) -> Credential:
    """Make a vault with a PIN and a key."""
    with opened(path, pin_gated=pin_gated) as vault:
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        return kept(vault)


def proves_possession(vault: SoftwareVault, credential: Credential, pin: bytes = PIN) -> None:
    """Unlock the vault and have the key sign."""
    vault.verify_pin(pin_hash(pin))
    signature = vault.sign(credential.id, b"m")
    CoseKey(credential.public_key).verify_signature(signature=signature, message=b"m")


class Killed(BaseException):
    """The process ends here."""


class InterruptedSteps(FileSteps):
    """Stops at the n-th system call, counted anew from `arm`; `half` lets half of a write through before."""

    def __init__(self, stop_at: int, error: BaseException, *, half: bool = False) -> None:
        self.calls: list[str] = []
        self._stop_at, self._error, self._half = stop_at, error, half

    def arm(self, stop_at: int) -> None:
        """Count from here, and stop at that one; 0 for never."""
        self.calls.clear()
        self._stop_at = stop_at

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self._stop_at:
            raise self._error

    def create(self, directory: int, name: str) -> int:
        self._step("create")
        return super().create(directory, name)

    def write(self, file: int, data: bytes) -> int:
        if self._half and len(self.calls) + 1 == self._stop_at:
            super().write(file, data[: len(data) // 2])
        self._step("write")
        return super().write(file, data)

    def sync(self, file: int) -> None:
        self._step("sync")
        super().sync(file)

    def rename(self, directory: int, source: str, target: str) -> None:
        self._step("rename")
        super().rename(directory, source, target)
