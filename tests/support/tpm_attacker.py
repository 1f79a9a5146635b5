"""Somebody who has everything but the PIN: owner of the TPM, the account's files, and what passed on the bus.

    with attacking(tpm.tcti, folder) as thief:
        thief.refused(0x12F, lambda: thief.sign(thief.load_key(), ESYS_TR.PASSWORD))

Everything here speaks to the TPM itself, without the vault. What is loaded is flushed at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CC, TPM2_SE, TPMA_SESSION
from tpm2_pytss.types import (
    TPM2B_DIGEST,
    TPM2B_NV_PUBLIC,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_NV_PUBLIC,
    TPMS_SCHEME_HASH,
    TPMT_PUBLIC,
    TPMT_SIG_SCHEME,
    TPMT_SIGNATURE,
    TPMT_SYM_DEF,
    TPMU_SIG_SCHEME,
)

from keyvouch.attestation.pin_gate import PinGate
from keyvouch.attestation.tpm_marshal import external_key
from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.vault import KeyRequest, User
from keyvouch_agent.vaults.tpm import account_file
from keyvouch_agent.vaults.tpm.account import FILE_NAME
from keyvouch_agent.vaults.tpm.account_file import AccountState
from keyvouch_agent.vaults.tpm.key_file import KeyFile
from keyvouch_agent.vaults.tpm.templates import KINDS, storage_root_key
from keyvouch_bench.tpm_tcti import Recording, RecordingTcti, open_tcti
from support.tpm_accounts import kept, tpm_vault

__all__ = ["DIGEST", "ECDSA", "PIN", "Attacker", "Victim", "attacking", "own_key", "pin_hash", "record_of", "victim_in"]

PIN: Final = b"493817"

ECDSA = TPMT_SIG_SCHEME(scheme=TPM2_ALG.ECDSA, details=TPMU_SIG_SCHEME(any=TPMS_SCHEME_HASH(hashAlg=TPM2_ALG.SHA256)))
DIGEST = TPM2B_DIGEST(hashlib.sha256(b"pay the thief").digest())
_NO_CIPHER = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)


def pin_hash(pin: bytes) -> bytes:
    """What CTAP shows of a PIN."""
    return hashlib.sha256(pin).digest()[:16]


def record_of(folder: Path) -> AccountState:
    """The account's record as anybody reads it who can read the file."""
    return account_file.decode((folder / FILE_NAME).read_bytes())


class Attacker:
    """Commands to a TPM. `gate` is the account's, `approval` the captured approval of PIN changes."""

    def __init__(self, esys: Any, folder: Path) -> None:
        self.esys = esys
        state = record_of(folder)
        assert state.pin is not None
        assert state.parent is not None
        self.gate: PinGate = state.pin.gate
        self.approval = state.pin.approval
        self._algorithm = state.parent.algorithm
        self._key = KeyFile.read(next(folder.glob("*.pem")).read_bytes())
        self._loaded: list[Any] = []
        self._parent: Any = None

    def refused(self, code: int, action: Callable[[], object]) -> None:
        """The TPM answers the action with this response code."""
        with pytest.raises(TSS2_Exception) as caught:
            action()
        assert caught.value.rc == code, f"0x{caught.value.rc:x}, not 0x{code:x}"

    def close(self) -> None:
        """Flush everything."""
        for handle in reversed(self._loaded):
            self.flush(handle)

    def keep(self, handle: Any) -> Any:
        """Flush it at the end."""
        self._loaded.append(handle)
        return handle

    def flush(self, handle: Any) -> None:
        """Flush it now, if it is there still."""
        if handle in self._loaded:
            self._loaded.remove(handle)
        with suppress(TSS2_Exception):
            self.esys.flush_context(handle)

    # The key

    @property
    def parent(self) -> Any:
        """The storage root key."""
        if self._parent is None:
            template = storage_root_key(KINDS[self._algorithm])
            made = self.esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
            self._parent = self.keep(made[0])
        return self._parent

    def load_key(self) -> Any:
        """The account's key out of its file."""
        return self.keep(self.esys.load(self.parent, self._key.private, self._key.public))

    @property
    def key_file(self) -> KeyFile:
        """The file."""
        return self._key

    def sign(self, key: Any, session: Any) -> Any:
        """TPM2_Sign of a digest."""
        return self.esys.sign(key, DIGEST, ECDSA, None, session)

    # Sessions

    def policy(self, kind: Any = TPM2_SE.POLICY) -> Any:
        """A policy session."""
        session = self.esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, kind, _NO_CIPHER, TPM2_ALG.SHA256)
        self.esys.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION)
        return self.keep(session)

    def hmac(self) -> Any:
        """An HMAC session without salt."""
        return self.policy(TPM2_SE.HMAC)

    # The index

    def index(self) -> Any:
        """The index at the account's handle, whatever it is."""
        return self.esys.tr_from_tpmpublic(self.gate.handle)

    def undefine(self) -> None:
        """What the owner of a TPM can always do."""
        self.esys.nv_undefine_space(self.index())

    def define(self, auth: bytes, area: bytes = b"") -> Any:
        """Define the index again with another value; its public area is the account's if no other is given."""
        public = TPMS_NV_PUBLIC.unmarshal(area or bytes(self.gate.unwritten))[0]
        index = self.esys.nv_define_space(auth, TPM2B_NV_PUBLIC(nvPublic=public))
        self.esys.tr_set_auth(index, auth)
        return index

    def count(self) -> int:
        """Wrong PINs in a row, by the owner's right to read."""
        contents = self.esys.nv_read(self.index(), 8, 0, ESYS_TR.OWNER)
        return int.from_bytes(bytes(contents)[:4], "big")

    def ceremony_key(self, area: bytes = b"", hierarchy: Any = ESYS_TR.OWNER) -> Any:
        """Load the public half of the ceremony key, or another one."""
        public = TPMT_PUBLIC.unmarshal(area or bytes(self.gate.ceremony_key))[0]
        return self.keep(self.esys.load_external(TPM2B_PUBLIC(publicArea=public), None, hierarchy))

    def ticket(self, key: Any, message: bytes, signature: bytes) -> Any:
        """TPM2_VerifySignature."""
        digest = TPM2B_DIGEST(hashlib.sha256(message).digest())
        return self.esys.verify_signature(key, digest, TPMT_SIGNATURE.unmarshal(signature)[0])


def own_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A key of the attacker's, and the public area under which a TPM verifies with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key, bytes(external_key(key.public_key()))


@contextmanager
def attacking(tcti: str, folder: Path) -> Iterator[Attacker]:
    """Over a connection of its own."""
    with open_tcti(tcti) as opened, ESAPI(opened) as esys:
        attacker = Attacker(esys, folder)
        try:
            yield attacker
        finally:
            attacker.close()


@dataclass
class Victim:
    """An account with a PIN and a key, locked; what passed on the bus while its PIN was set."""

    vault: Any
    credential: Any
    folder: Path
    tcti: str
    recording: Recording

    def attacked(self) -> Any:
        """By somebody with a connection of his own."""
        return attacking(self.tcti, self.folder)

    def signs(self) -> bool:
        """With the right PIN: the control of every attack that left the index where it was."""
        self.vault.verify_pin(pin_hash(PIN))
        signature = self.vault.sign(self.credential.id, b"statement")
        self.vault.lock()
        CoseKey(self.credential.public_key).verify_signature(signature=signature, message=b"statement")
        return True

    def is_lost(self) -> bool:
        """The vault says that the counter is gone, and does not call a right PIN wrong."""
        with pytest.raises(DeviceError) as caught:
            self.vault.verify_pin(pin_hash(PIN))
        return caught.value.reason is Reason.DEVICE_KEY_LOST

    def captured_write(self) -> tuple[bytes, bytes]:
        """Nonce and signature of the TPM2_PolicySigned that allowed the first write."""
        command = next(one.command for one in self.recording.exchanges if one.code == TPM2_CC.PolicySigned)
        nonce, rest = _sized(command[18:])
        for _ in range(2):  # cpHash, policyRef
            _, rest = _sized(rest)
        return nonce, rest[4:]


def _sized(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size], data[2 + size :]


@contextmanager
def victim_in(tpm: Any, folder: Path) -> Iterator[Victim]:
    """A new account in a TPM. Nothing may be loaded there at the end."""
    recording = Recording()
    with tpm_vault(tpm.tcti, folder, limit=3, open_tcti=lambda: RecordingTcti(open_tcti(tpm.tcti), recording)) as vault:
        vault.set_pin(PIN)
        vault.verify_pin(pin_hash(PIN))
        credential = kept(vault, KeyRequest("login.example.org", User(b"user"), -7, discoverable=True))
        vault.lock()
        yield Victim(vault, credential, folder, tpm.tcti, recording)
    assert not tpm.loaded_handles()
