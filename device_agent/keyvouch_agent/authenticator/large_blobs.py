"""authenticatorLargeBlobs (0x0C): the large-blob array, read and written piece by piece (section 6.10).

The array is opaque here but for its length and the hash at its end. What is *not* here: the blobs inside, which
platforms encrypt with a credential's largeBlobKey.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.management_parameters import LargeBlobsParameters
from keyvouch_agent.authenticator.pin_token import Permission
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.user_gate import UserGate
from keyvouch_agent.authenticator.vault import KeyVault

__all__ = ["LargeBlobs"]

HASH_LENGTH = 16
"""Bytes of SHA-256 at the end of the array."""
MIN_LENGTH = HASH_LENGTH + 1

_CONTEXT = b"\xff" * 32 + b"\x0c\x00"


@dataclass(frozen=True, slots=True)
class _Pending:
    """An array that is being written."""

    length: int = 0
    content: bytes = b""


class LargeBlobs:
    """The command, with the array whose fragments are still coming in. A command that fails leaves both alone."""

    def __init__(self, vault: KeyVault, standing: Standing, gate: UserGate) -> None:
        self._vault = vault
        self._standing = standing
        self._gate = gate
        self._pending = _Pending()

    def forget_pending(self) -> None:
        """Drop an array whose fragments are still coming in, as the end of a token does."""
        self._pending = _Pending()

    def handle(self, given: LargeBlobsParameters) -> Mapping[int, object]:
        """Read or write a fragment; the step numbers are those of section 6.10.2."""
        if given.offset is None:  # step 1
            raise CommandError(Status.INVALID_PARAMETER)
        if given.get is not None and given.set is None:
            return self._read(given, given.offset, given.get)
        if given.set is not None and given.get is None:
            return self._write(given, given.offset, given.set)
        raise CommandError(Status.INVALID_PARAMETER)  # steps 2 and 3

    def _read(self, given: LargeBlobsParameters, offset: int, count: int) -> Mapping[int, object]:
        """Step 4."""
        if (given.length, given.pin_uv_auth_param, given.pin_uv_auth_protocol) != (None, None, None):
            raise CommandError(Status.INVALID_PARAMETER)
        if count > self._standing.max_fragment_length:
            raise CommandError(Status.INVALID_LENGTH)
        array = self._vault.large_blobs()
        if offset > len(array):
            raise CommandError(Status.INVALID_PARAMETER)
        return {1: array[offset : offset + count]}

    def _write(self, given: LargeBlobsParameters, offset: int, fragment: bytes) -> Mapping[int, object]:
        """Step 5."""
        if len(fragment) > self._standing.max_fragment_length:
            raise CommandError(Status.INVALID_LENGTH)
        pending = self._begun(given.length) if offset == 0 else self._going_on(given.length, offset)
        if self._gate.is_protected or self._standing.always_uv:
            message = _CONTEXT + struct.pack("<I", offset) + hashlib.sha256(fragment).digest()
            self._gate.authorize(
                given.pin_uv_auth_protocol, given.pin_uv_auth_param, message, Permission.LARGE_BLOB_WRITE
            )
        if offset + len(fragment) > pending.length:
            raise CommandError(Status.INVALID_PARAMETER)
        self._pending = replace(pending, content=pending.content + fragment)
        if len(self._pending.content) == self._pending.length:
            self._commit()
        return {}

    def _begun(self, length: int | None) -> _Pending:
        """A first fragment says how long the array will be."""
        if length is None:
            raise CommandError(Status.INVALID_PARAMETER)
        if length > self._standing.properties.max_large_blobs:
            raise CommandError(Status.LARGE_BLOB_STORAGE_FULL)
        if length < MIN_LENGTH:
            raise CommandError(Status.INVALID_PARAMETER)
        return _Pending(length)

    def _going_on(self, length: int | None, offset: int) -> _Pending:
        if length is not None:
            raise CommandError(Status.INVALID_PARAMETER)
        if offset != len(self._pending.content):
            raise CommandError(Status.INVALID_SEQ)
        return self._pending

    def _commit(self) -> None:
        array, self._pending = self._pending.content, _Pending()
        if hashlib.sha256(array[:-HASH_LENGTH]).digest()[:HASH_LENGTH] != array[-HASH_LENGTH:]:
            raise CommandError(Status.INTEGRITY_FAILURE)
        try:
            self._vault.store_large_blobs(array)
        except DeviceError as error:
            if error.reason is Reason.KEY_STORE_FULL:
                raise CommandError(Status.LARGE_BLOB_STORAGE_FULL) from error
            raise
