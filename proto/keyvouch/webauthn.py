"""The three containers of WebAuthn Level 3: client data, authenticator data, attestation object.

Each is a `bytes` subclass: what is hashed and verified is what was received, never a re-encoding. Making one
from bytes parses it strictly and raises `MalformedError`; an instance that exists is well-formed. `build`
makes new ones, for authenticators and tests.

What is not here: expectations. Whether a challenge, an origin or a flag is the right one is judged in
`keyvouch.attestation`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntFlag
from typing import Final, Self

from keyvouch import cbor
from keyvouch.client_data import CollectedClientData
from keyvouch.cose import CoseKey
from keyvouch.errors import MalformedError, Reason, UsageError
from keyvouch.ids import CredentialId

__all__ = [
    "AttestationObject",
    "AttestedCredentialData",
    "AuthenticatorData",
    "CollectedClientData",
    "Flags",
]

MAX_CREDENTIAL_ID: Final = 1023
"""Longest credential id, in bytes (WebAuthn section 7.1 step 25)."""

_MAX_ATTESTATION_OBJECT: Final = 64 * 1024
_MIN_AUTHENTICATOR_DATA: Final = 37
_MIN_ATTESTED_DATA: Final = 18


class Flags(IntFlag):
    """Flags of authenticator data (WebAuthn section 6.1). Reserved bits are kept and mean nothing."""

    UP = 0x01
    UV = 0x04
    BE = 0x08
    BS = 0x10
    AT = 0x40
    ED = 0x80


_UP, _UV, _BE, _BS, _AT, _ED = (int(flag) for flag in Flags)


class AttestedCredentialData(bytes):
    """A new credential inside authenticator data (WebAuthn section 6.5.2)."""

    aaguid: bytes
    credential_id: CredentialId
    public_key: CoseKey

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`, which must hold nothing else."""
        self, end = cls.parse_prefix(data)
        if end != len(data):
            raise _malformed(Reason.AUTHDATA_TRAILING, "Bytes follow the attested credential data.")
        return self

    @classmethod
    def parse_prefix(cls, data: bytes, start: int = 0) -> tuple[Self, int]:
        """Parse what starts at `start`; return it with the offset after it."""
        key_start = start + _MIN_ATTESTED_DATA
        if len(data) < key_start:
            raise _short("the AAGUID and the length of the credential id")
        (id_length,) = struct.unpack_from(">H", data, key_start - 2)
        id_start, key_start = key_start, key_start + id_length
        if len(data) <= key_start:
            raise _short("the credential id and the public key")
        if not 0 < id_length <= MAX_CREDENTIAL_ID:
            raise _malformed(
                Reason.CREDENTIAL_ID_LENGTH,
                f"A credential id has 1 to {MAX_CREDENTIAL_ID} bytes; this one has {id_length}.",
            )
        public_key, end = CoseKey.parse_prefix(data, key_start)
        self = super().__new__(cls, data[start:end])
        self.aaguid = bytes(data[start : start + 16])
        self.credential_id = CredentialId(bytes(data[id_start:key_start]))
        self.public_key = public_key
        return self, end

    @classmethod
    def build(cls, aaguid: bytes, credential_id: bytes, public_key: bytes) -> Self:
        """Join the parts: 16 bytes of AAGUID, 1 to 1023 bytes of id, the bytes of a `CoseKey`."""
        if len(aaguid) != 16 or not 0 < len(credential_id) <= MAX_CREDENTIAL_ID:
            raise UsageError(f"An AAGUID has 16 bytes, a credential id 1 to {MAX_CREDENTIAL_ID}.")
        return cls(aaguid + struct.pack(">H", len(credential_id)) + credential_id + public_key)

    def __repr__(self) -> str:
        return f"AttestedCredentialData({self.hex()})"


class AuthenticatorData(bytes):
    """What an authenticator says about itself and the ceremony (WebAuthn section 6.1).

    `attested` is there exactly if the AT flag is set, `extensions` exactly if ED is.
    """

    sign_count: int
    attested: AttestedCredentialData | None
    extensions: Mapping[str, cbor.CborValue] | None

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`.

        Raises `MalformedError`: `AUTHDATA_LENGTH` if it ends early or has more than 64 KiB, `BACKUP_FLAGS` for BS
        without BE, the reasons of the attested credential data, `AUTHDATA_EXTENSIONS`, `AUTHDATA_TRAILING`.
        """
        if isinstance(data, cls):
            return data
        if len(data) < _MIN_AUTHENTICATOR_DATA:
            raise _short("the RP ID hash, the flags and the counter")
        if len(data) > _MAX_ATTESTATION_OBJECT:
            raise _malformed(
                Reason.AUTHDATA_LENGTH, f"The authenticator data has more than {_MAX_ATTESTATION_OBJECT} bytes."
            )
        self = super().__new__(cls, data)
        flags, self.sign_count = struct.unpack_from(">BI", data, 32)
        self.attested = self.extensions = None
        if flags & (_BE | _BS) == _BS:
            raise _malformed(Reason.BACKUP_FLAGS, "A credential that cannot be backed up says that it is backed up.")
        end = _MIN_AUTHENTICATOR_DATA
        if flags & _AT:
            self.attested, end = AttestedCredentialData.parse_prefix(data, end)
        if flags & _ED:
            self.extensions, end = _parse_extensions(data, end)
        if end != len(data):
            raise _malformed(Reason.AUTHDATA_TRAILING, f"{len(data) - end} bytes follow the authenticator data.")
        return self

    @classmethod
    def build(
        cls,
        rp_id_hash: bytes,
        flags: int,
        sign_count: int,
        *,
        attested: bytes | None = None,
        extensions: Mapping[str, object] | None = None,
    ) -> Self:
        """Join the parts; the AT and ED flags are set from what is given, the others are taken from `flags`."""
        if len(rp_id_hash) != 32 or not 0 <= sign_count < 1 << 32 or not 0 <= flags <= 0xFF:
            raise UsageError("An RP ID hash has 32 bytes, a counter 32 bits, flags 8 bits.")
        flags &= ~(_AT | _ED)
        flags |= (_AT if attested is not None else 0) | (_ED if extensions is not None else 0)
        tail = (attested or b"") + (cbor.encode(extensions) if extensions is not None else b"")
        return cls(rp_id_hash + struct.pack(">BI", flags, sign_count) + tail)

    def __repr__(self) -> str:
        return f"AuthenticatorData({self.hex()})"

    @property
    def rp_id_hash(self) -> bytes:
        """SHA-256 of the RP ID, 32 bytes."""
        return self[:32]

    @property
    def flags(self) -> Flags:
        """All flags at once."""
        return Flags(self[32])

    @property
    def user_present(self) -> bool:
        """The UP flag."""
        return self[32] & _UP != 0

    @property
    def user_verified(self) -> bool:
        """The UV flag."""
        return self[32] & _UV != 0

    @property
    def backup_eligible(self) -> bool:
        """The BE flag; it never changes in the life of a credential."""
        return self[32] & _BE != 0

    @property
    def backup_state(self) -> bool:
        """The BS flag."""
        return self[32] & _BS != 0


class AttestationObject(bytes):
    """Authenticator data of a new credential, with the statement that vouches for it (WebAuthn section 6.5.4)."""

    format: str
    authenticator_data: AuthenticatorData
    attested: AttestedCredentialData
    statement: cbor.CborMap

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`: a canonical map of exactly `fmt`, `attStmt` and `authData`.

        Raises `MalformedError`: `ATTESTATION_OBJECT`, a CBOR reason for bytes that are CBOR but not canonical,
        `ATTESTED_DATA` if there is no new credential inside, or a reason of `AuthenticatorData`.
        """
        if isinstance(data, cls):
            return data
        members = _parse_attestation_object(data)
        name, statement, raw = members["fmt"], members["attStmt"], members["authData"]
        if not (isinstance(name, str) and isinstance(statement, dict) and isinstance(raw, bytes)):
            raise _malformed(Reason.ATTESTATION_OBJECT, "A member of the attestation object has the wrong type.")
        self = super().__new__(cls, data)
        self.format, self.statement = name, statement
        self.authenticator_data, self.attested = _registered(raw)
        return self

    @classmethod
    def build(cls, format: str, authenticator_data: bytes, statement: Mapping[str, object]) -> Self:  # noqa: A002
        """Join the parts."""
        return cls(cbor.encode({"fmt": format, "authData": authenticator_data, "attStmt": statement}))

    def __repr__(self) -> str:
        return f"AttestationObject({self.hex()})"


# Authenticator data


def _parse_extensions(data: bytes, start: int) -> tuple[Mapping[str, cbor.CborValue], int]:
    try:
        decoded, end = cbor.decode_prefix(data, start)
    except MalformedError as error:
        raise _bad_extensions(error.message) from None
    if not isinstance(decoded, dict):
        raise _bad_extensions("They are not a map.")
    extensions = {name: value for name, value in decoded.items() if isinstance(name, str)}
    if len(extensions) != len(decoded):
        raise _bad_extensions("Their names are not text.")
    return extensions, end


def _bad_extensions(why: str) -> MalformedError:
    return _malformed(Reason.AUTHDATA_EXTENSIONS, f"The extensions in the authenticator data are wrong. {why}")


# Attestation object


def _parse_attestation_object(data: bytes) -> cbor.CborMap:
    if len(data) > _MAX_ATTESTATION_OBJECT:
        raise _malformed(Reason.ATTESTATION_OBJECT, f"It has more than {_MAX_ATTESTATION_OBJECT} bytes.")
    try:
        members = cbor.decode(data)
    except MalformedError as error:
        if error.reason in (Reason.CBOR_MALFORMED, Reason.CBOR_LIMIT):
            raise _malformed(Reason.ATTESTATION_OBJECT, f"It is not CBOR. {error.message}") from None
        raise
    if not isinstance(members, dict) or members.keys() != {"fmt", "attStmt", "authData"}:
        raise _malformed(Reason.ATTESTATION_OBJECT, "It is not a map of fmt, attStmt and authData.")
    return members


def _registered(raw: bytes) -> tuple[AuthenticatorData, AttestedCredentialData]:
    """Look at the AT flag first: without it the credential would count as left-over bytes."""
    if len(raw) >= _MIN_AUTHENTICATOR_DATA and not raw[32] & _AT:
        raise _malformed(Reason.ATTESTED_DATA, "The authenticator data has no attested credential data.")
    data = AuthenticatorData(raw)
    assert data.attested is not None
    return data, data.attested


def _short(of: str) -> MalformedError:
    return _malformed(Reason.AUTHDATA_LENGTH, f"The authenticator data ends before {of}.")


def _malformed(reason: Reason, message: str) -> MalformedError:
    return MalformedError(reason, message, fix="Start the ceremony again with a conforming WebAuthn client.")
