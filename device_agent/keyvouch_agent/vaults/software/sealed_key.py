"""A credential's key under its seal: one sealed record with the private key and the secrets beside it.

    record { 1: private key, 2: CredRandomWithUV, 3: CredRandomWithoutUV, 4: largeBlobKey, 5: credBlob }

Members 2 to 5 are there where the credential has them. In a file of version 1 the record is the private key alone.

The seal binds all of the credential but its sign count: for another relying party, under other names, or with a weaker
credProtect the record does not open. So who changes the names seals anew, and needs the master key for it.

What is not here: where the master keys are (`vault`), and how a sealed key looks in the file (`vault_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, unique

from cryptography.exceptions import InvalidTag

from keyvouch import cbor
from keyvouch.errors import DeviceError, MalformedError, Reason
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.vault import Credential, CredentialSecrets, KeyRequest, User
from keyvouch_agent.vaults.software.master_key import open_sealed, seal

__all__ = ["KeyContents", "SealedKey", "SealedUnder", "draw_secrets", "open_key", "public_map", "seal_key"]

SECRET_LENGTH = 32
_SEAL_VERSION = 2


@unique
class SealedUnder(IntEnum):
    """Which master key a record is sealed under."""

    PIN_FIRST_FORM = 1
    """The one the PIN wraps; the record as version 1 of the file has it."""
    PIN = 2
    """The one the PIN wraps."""
    FILE = 3
    """The one that stands in the file, in a vault that the PIN does not gate."""


@dataclass(frozen=True, slots=True)
class KeyContents:
    """What is under the seal."""

    private: bytes = field(repr=False)
    secrets: CredentialSecrets = field(default_factory=CredentialSecrets)


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A credential and its sealed record."""

    credential: Credential
    under: SealedUnder
    sealed: bytes = field(default=b"", repr=False)

    @property
    def purpose(self) -> bytes:
        """What the seal binds."""
        if self.under is SealedUnder.PIN_FIRST_FORM:
            return cbor.encode(["keyvouch-vault/credential-key", 1, first_public_map(self.credential)])
        bound = public_map(self.credential)
        return cbor.encode(["keyvouch-vault/credential-key", _SEAL_VERSION, int(self.under), bound])

    def renamed(self, user: User) -> SealedKey:
        """The same with other names of its user. It is not sealed yet."""
        named = User(self.credential.user.id, user.name, user.display_name)
        under = SealedUnder.PIN if self.under is SealedUnder.PIN_FIRST_FORM else self.under
        return SealedKey(replace(self.credential, user=named), under)


def draw_secrets(request: KeyRequest, entropy: Entropy) -> CredentialSecrets:
    """The secrets that a new credential shall have."""

    def drawn(wanted: bool) -> bytes:
        return entropy.token(SECRET_LENGTH) if wanted else b""

    return CredentialSecrets(
        with_uv=drawn(request.hmac_secret),
        without_uv=drawn(request.hmac_secret),
        large_blob_key=drawn(request.large_blob_key),
        cred_blob=request.cred_blob or b"",
    )


def seal_key(key: SealedKey, contents: KeyContents, master: bytes, entropy: Entropy) -> SealedKey:
    """Return the key with its record sealed under `master`."""
    return replace(key, sealed=seal(master, _encode(contents), key.purpose, entropy))


def open_key(key: SealedKey, master: bytes) -> KeyContents:
    """Open the record. Raises `DeviceError(VAULT_CORRUPT)` where the credential is not the one that was sealed."""
    try:
        record = open_sealed(master, key.sealed, key.purpose)
        return KeyContents(record) if key.under is SealedUnder.PIN_FIRST_FORM else _decode(record)
    except (InvalidTag, MalformedError, ValueError):
        raise DeviceError(
            Reason.VAULT_CORRUPT,
            "This key's record does not fit its seal: the vault's file was changed.",
            fix="Restore vault.cbor from a backup, or register this device again.",
        ) from None


def first_public_map(credential: Credential) -> Mapping[int, object]:
    """What version 1 of the file says of a credential, but for its sign count."""
    user = credential.user
    return {
        1: credential.id,
        2: credential.rp_id,
        3: user.id,
        4: user.name,
        5: user.display_name,
        6: credential.algorithm,
        7: credential.discoverable,
        8: credential.public_key,
        9: credential.created,
    }


def public_map(credential: Credential) -> Mapping[int, object]:
    """What the file says of a credential, but for its sign count."""
    return {
        **first_public_map(credential),
        12: credential.rp_id_hash,
        13: int(credential.protect),
        14: credential.has_cred_blob,
        15: credential.has_hmac_secret,
        16: credential.has_large_blob_key,
    }


def _encode(contents: KeyContents) -> bytes:
    secrets = contents.secrets
    parts = (contents.private, secrets.with_uv, secrets.without_uv, secrets.large_blob_key, secrets.cred_blob)
    return cbor.encode({number: part for number, part in enumerate(parts, 1) if part})


def _decode(record: bytes) -> KeyContents:
    fields = cbor.decode(record)
    if not isinstance(fields, dict):
        raise ValueError("record")
    private, with_uv, without_uv, large_blob_key, cred_blob = (_part(fields, number) for number in range(1, 6))
    return KeyContents(private, CredentialSecrets(with_uv, without_uv, large_blob_key, cred_blob))


def _part(fields: cbor.CborMap, number: int) -> bytes:
    part = fields.get(number, b"")
    if not isinstance(part, bytes):
        raise ValueError("record")
    return part
