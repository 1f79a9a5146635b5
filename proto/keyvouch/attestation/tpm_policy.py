"""Policies of TPM entities, computed without a TPM: the digests that policy sessions arrive at.

A policy is the list of commands that must have succeeded in a session, hashed step by step (TPM 2.0 Library, Part 1
section 19.7, Part 3 section 23). Every digest here is by SHA-256, 32 bytes; a policy begins as `EMPTY`.

What is not here: which policy an entity must have (`keyvouch.attestation.pin_gate`).
"""

from __future__ import annotations

import hashlib
from enum import IntEnum, unique
from typing import Final

__all__ = [
    "EMPTY",
    "TpmCommand",
    "command_parameters_hash",
    "policy_authorize",
    "policy_command_code",
    "policy_or",
    "policy_secret",
    "policy_signed",
]

EMPTY: Final = bytes(32)
"""The policy digest of a session that has just been started."""


@unique
class TpmCommand(IntEnum):
    """TPM_CC, the codes that policies and parameter hashes name (Part 2 section 6.5.2)."""

    NV_WRITE = 0x137
    NV_CHANGE_AUTH = 0x13B
    POLICY_SECRET = 0x151
    POLICY_SIGNED = 0x160
    POLICY_AUTHORIZE = 0x16A
    POLICY_COMMAND_CODE = 0x16C
    POLICY_OR = 0x171


def policy_secret(policy: bytes, name: bytes, reference: bytes = b"") -> bytes:
    """Extend `policy` by TPM2_PolicySecret: the authorization value of the entity called `name` was shown."""
    return _update(policy, TpmCommand.POLICY_SECRET, name, reference)


def policy_signed(policy: bytes, name: bytes, reference: bytes = b"") -> bytes:
    """Extend `policy` by TPM2_PolicySigned: the key called `name` signed for this session."""
    return _update(policy, TpmCommand.POLICY_SIGNED, name, reference)


def policy_authorize(name: bytes, reference: bytes = b"") -> bytes:
    """The policy after TPM2_PolicyAuthorize: the key called `name` approved the policy before, which is forgotten."""
    return _update(EMPTY, TpmCommand.POLICY_AUTHORIZE, name, reference)


def policy_command_code(policy: bytes, command: TpmCommand) -> bytes:
    """Extend `policy` by TPM2_PolicyCommandCode: the session is good for this command only."""
    return _hash(policy, _u32(TpmCommand.POLICY_COMMAND_CODE), _u32(command))


def policy_or(*branches: bytes) -> bytes:
    """The policy after TPM2_PolicyOR: one of two to eight `branches` was fulfilled."""
    return _hash(EMPTY, _u32(TpmCommand.POLICY_OR), *branches)


def command_parameters_hash(command: TpmCommand, names: tuple[bytes, ...], parameters: bytes) -> bytes:
    """cpHash: one command with the entities of its handles and all its parameters (Part 1 section 16.7)."""
    return _hash(_u32(command), *names, parameters)


def _update(policy: bytes, command: TpmCommand, name: bytes, reference: bytes) -> bytes:
    """PolicyUpdate (Part 3 section 23.2.3)."""
    return _hash(_hash(policy, _u32(command), name), reference)


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")
