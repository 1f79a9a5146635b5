"""The PIN gate of a TPM: an NV index that counts wrong PINs, and the policy that binds a key to it.

    index   TPM_NT_PIN_FAIL {count, limit}; its authorization value comes from the PIN. A wrong one adds to the count,
            the right one clears it, and at the limit the index answers nobody. No other counter of the TPM moves.
    key     signs only in a session in which the index was opened: authPolicy = PolicySecret(index, once written)

Server and agent compute both from the same four values, so the server knows the name the index must have, and with it
every attribute, and knows that no policy but this one opens the key. What makes the gate hold:

 1. The limit counts only in authorizations by value. So no policy of the index may ask for the value itself
    (PolicyAuthValue): such a session could try PINs without end.
 2. Whoever owns the TPM can remove the index and define it again, under the same name, with a PIN of his own. So an
    index is worthless until its first write, and only the server can allow that: by a signature of a ceremony key over
    the nonce of one session and over the very write (PolicySigned, cpHash). It cannot be used again.
 3. The ceremony key is made for one registration and destroyed when it has signed twice: the first write, and the
    approval of PIN changes (PolicyAuthorize), which need the old PIN under the same limit.
 4. The index is neither orderly nor writable or removable by any other authority than the owner's removal, which takes
    the key with it.

(TPM 2.0 Library, Part 1 sections 19.7 and 37.2.8, Part 2 section 13.) What is not here: the TPM commands, and proof
that a TPM holds index and key (`keyvouch.attestation.tpm_registration`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from keyvouch.attestation.tpm_marshal import nv_public, sized
from keyvouch.attestation.tpm_policy import (
    EMPTY,
    TpmCommand,
    command_parameters_hash,
    policy_authorize,
    policy_command_code,
    policy_or,
    policy_secret,
    policy_signed,
)
from keyvouch.attestation.tpm_public import TpmNvAttributes, TpmNvPublic, TpmNvType, TpmPublic

__all__ = ["HANDLES", "INDEX_SIZE", "PinCounter", "PinGate", "first_write_message"]

INDEX_SIZE: Final = 8
"""Bytes of TPMS_NV_PIN_COUNTER_PARAMETERS (Part 2 section 13.3): count and limit."""

HANDLES: Final = range(0x0180_0000, 0x01C0_0000)
"""Handles of NV indices that the owner of a TPM may define (TCG Registry of Reserved TPM 2.0 Handles, section 2.2)."""

_ATTRIBUTES: Final = (
    TpmNvAttributes.POLICY_WRITE
    | TpmNvAttributes.OWNER_READ
    | TpmNvAttributes.AUTH_READ
    | TpmNvAttributes.POLICY_READ
    | TpmNvAttributes.NO_DA
)
_FOREVER: Final = bytes(4)
"""An authorization that does not expire while its session lasts."""


@dataclass(frozen=True, slots=True)
class PinCounter:
    """What the index holds: wrong PINs in a row, and how many block it."""

    count: int
    limit: int

    def encode(self) -> bytes:
        """8 bytes: both as 32-bit numbers."""
        return self.count.to_bytes(4, "big") + self.limit.to_bytes(4, "big")

    @classmethod
    def decode(cls, contents: bytes) -> PinCounter:
        """Read the 8 bytes of an index."""
        return cls(int.from_bytes(contents[:4], "big"), int.from_bytes(contents[4:INDEX_SIZE], "big"))

    @property
    def tries_left(self) -> int:
        """Wrong PINs until it is blocked."""
        return max(0, self.limit - self.count)


@dataclass(frozen=True, slots=True)
class PinGate:
    """The gate of one account: the ceremony key's public area, the account's device id, the handle of its index."""

    ceremony_key: TpmPublic
    device_id: str
    handle: int

    @property
    def first_write(self) -> bytes:
        """policyRef of the first write, 32 bytes: the longest that every TPM takes."""
        return _reference("first-write", self.device_id)

    @property
    def change(self) -> bytes:
        """policyRef of the approval of PIN changes, 32 bytes."""
        return _reference("change", self.device_id)

    @property
    def branches(self) -> tuple[bytes, bytes]:
        """The two policies of the index: the first write, and what the ceremony key approved."""
        key = self.ceremony_key.name
        return policy_signed(EMPTY, key, self.first_write), policy_authorize(key, self.change)

    @property
    def unwritten(self) -> TpmNvPublic:
        """The public area of the index as it is defined."""
        return self._index(_ATTRIBUTES)

    @property
    def written(self) -> TpmNvPublic:
        """The public area of the index from its first write on."""
        return self._index(_ATTRIBUTES | TpmNvAttributes.WRITTEN)

    @property
    def key_policy(self) -> bytes:
        """authPolicy of the keys behind the gate."""
        return policy_secret(EMPTY, self.written.name)

    @property
    def change_policy(self) -> bytes:
        """The policy by which the PIN changes: the old PIN was shown, and the command is TPM2_NV_ChangeAuth."""
        return policy_command_code(policy_secret(EMPTY, self.written.name), TpmCommand.NV_CHANGE_AUTH)

    @property
    def change_message(self) -> bytes:
        """What the ceremony key signs to approve `change_policy`; its hash is the aHash of TPM2_PolicyAuthorize."""
        return self.change_policy + self.change

    def write_hash(self, counter: PinCounter) -> bytes:
        """cpHash of the first write: TPM2_NV_Write of `counter` to the unwritten index, authorized by itself."""
        name = self.unwritten.name
        return command_parameters_hash(TpmCommand.NV_WRITE, (name, name), sized(counter.encode()) + bytes(2))

    def _index(self, attributes: TpmNvAttributes) -> TpmNvPublic:
        return nv_public(
            handle=self.handle,
            kind=TpmNvType.PIN_FAIL,
            attributes=attributes,
            auth_policy=policy_or(*self.branches),
            data_size=INDEX_SIZE,
        )


def first_write_message(gate: PinGate, *, nonce: bytes, counter: PinCounter) -> bytes:
    """What the ceremony key signs to allow the first write, once: `nonce` is the nonceTPM of the policy session.

    Its hash is the aHash of TPM2_PolicySigned (Part 3 section 23.3): nonceTPM, expiration, cpHash, policyRef.
    """
    return nonce + _FOREVER + gate.write_hash(counter) + gate.first_write


def _reference(act: str, device_id: str) -> bytes:
    return hashlib.sha256(f"keyvouch/tpm-pin/{act}/v1".encode() + b"\0" + device_id.encode()).digest()
