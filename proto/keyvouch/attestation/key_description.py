"""The extension by which Android's key store describes an attested key: `KeyDescription`, 1.3.6.1.4.1.11129.2.1.17.

Source: Android Keystore documentation, "Key and ID attestation", schema versions 1 to 4 (Keymaster) and 100 to 400
(KeyMint). All have the same eight fields; versions differ in what the two authorization lists may hold. Of these
lists the entries are read that say who may use the key for what; of the others only that they are DER.

What is not here: which descriptions are good (`keyvouch.attestation.formats.android_key`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, unique

from cryptography import x509

from keyvouch.attestation.der import ENUMERATED, OCTET_STRING, SEQUENCE, SET, DerError, DerReader, Tag, explicit
from keyvouch.errors import MalformedError, Reason

__all__ = ["KEY_DESCRIPTION", "AuthorizationList", "KeyDescription", "SecurityLevel"]

KEY_DESCRIPTION = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.1.17")

VERSIONS = frozenset((1, 2, 3, 4, 100, 200, 300, 400))
"""The schema versions that are published."""

# Entries of an authorization list, by their tag.
_PURPOSE = 1
_NO_AUTH_REQUIRED = 503
_USER_AUTH_TYPE = 504
_AUTH_TIMEOUT = 505
_ALL_APPLICATIONS = 600
_ORIGIN = 702

_NULL = Tag(5)


@unique
class SecurityLevel(IntEnum):
    """Where a key lives, or where it was attested; the larger, the better."""

    SOFTWARE = 0
    TEE = 1
    STRONGBOX = 2


@dataclass(frozen=True, slots=True)
class AuthorizationList:
    """What one of the two lists says; what is not in it is empty, False or None.

    `user_auth_type` is a set of bits (1 password, 2 biometric), `auth_timeout` in seconds.
    """

    purposes: frozenset[int] = frozenset()
    no_auth_required: bool = False
    user_auth_type: int = 0
    auth_timeout: int | None = None
    all_applications: bool = False
    origin: int | None = None

    @classmethod
    def read(cls, reader: DerReader) -> AuthorizationList:
        """Read the entries, which are explicitly tagged and ascend. Raises `DerError`."""
        entries = dict(_entries(reader))
        return cls(
            frozenset(_integers(entries[_PURPOSE])) if _PURPOSE in entries else frozenset(),
            _is_there(entries.get(_NO_AUTH_REQUIRED)),
            _number(entries.get(_USER_AUTH_TYPE)) or 0,
            _number(entries.get(_AUTH_TIMEOUT)),
            _is_there(entries.get(_ALL_APPLICATIONS)),
            _number(entries.get(_ORIGIN)),
        )


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """The description of one key: by what it was attested, in which ceremony, and what binds its use."""

    version: int
    attestation_level: SecurityLevel
    key_level: SecurityLevel
    challenge: bytes
    software_enforced: AuthorizationList
    tee_enforced: AuthorizationList

    @classmethod
    def parse(cls, data: bytes) -> KeyDescription:
        """Parse the content of the extension. Raises `MalformedError` with `ATTESTATION_CERTIFICATE`."""
        try:
            return cls._read(DerReader(data))
        except DerError as error:
            raise _malformed(str(error)) from None

    @classmethod
    def _read(cls, reader: DerReader) -> KeyDescription:
        fields = reader.enter(SEQUENCE)
        reader.end()
        version, attestation_level = fields.integer(), _level(fields)
        if version not in VERSIONS:
            raise DerError(f"Schema version {version} is not known.")
        _unsigned(fields)  # the version of Keymaster or KeyMint
        key_level = _level(fields)
        challenge = fields.read(OCTET_STRING)
        fields.read(OCTET_STRING)  # the unique id
        software_enforced = AuthorizationList.read(fields.enter(SEQUENCE))
        tee_enforced = AuthorizationList.read(fields.enter(SEQUENCE))
        fields.end()
        return cls(version, attestation_level, key_level, challenge, software_enforced, tee_enforced)


def _entries(reader: DerReader) -> Iterator[tuple[int, DerReader]]:
    last = -1
    while reader:
        tag, content = reader.any()
        if tag != explicit(tag.number) or tag.number <= last:
            raise DerError("The entries of an authorization list are not tagged in ascending order.")
        last = tag.number
        inside = DerReader(content)
        inside.any()
        inside.end()
        yield last, DerReader(content)


def _integers(entry: DerReader) -> Iterator[int]:
    reader = entry.enter(SET)
    while reader:
        yield _unsigned(reader)


def _is_there(entry: DerReader | None) -> bool:
    if entry is not None and entry.read(_NULL):
        raise DerError("A NULL has a content.")
    return entry is not None


def _number(entry: DerReader | None) -> int | None:
    return None if entry is None else _unsigned(entry)


def _unsigned(reader: DerReader) -> int:
    number = reader.integer()
    if number < 0:
        raise DerError("A number is negative.")
    return number


def _level(reader: DerReader) -> SecurityLevel:
    number = reader.integer(ENUMERATED)
    if number not in list(SecurityLevel):
        raise DerError(f"Security level {number} is not known.")
    return SecurityLevel(number)


def _malformed(why: str) -> MalformedError:
    return MalformedError(
        Reason.ATTESTATION_CERTIFICATE,
        f"The key description in the attestation certificate is wrong. {why}",
        fix="Use a device whose key attestation follows a published schema, or none.",
    )
