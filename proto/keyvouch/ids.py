"""Identifiers: opaque, typed, never reused.

An id is a short prefix, an underscore and 128 random bits in lower-case base32 without padding
(RFC 4648 section 6), so it can be read aloud, sorted by kind and pasted into a shell. Entropy is an
argument: nothing here draws any.
"""

from __future__ import annotations

from typing import NewType

TenantId = NewType("TenantId", str)
UserId = NewType("UserId", str)
DeviceId = NewType("DeviceId", str)
RegistrationId = NewType("RegistrationId", str)
SignInId = NewType("SignInId", str)
PromptId = NewType("PromptId", str)
SessionId = NewType("SessionId", str)
AccessPassId = NewType("AccessPassId", str)
GroupId = NewType("GroupId", str)
RiskEventId = NewType("RiskEventId", str)
CredentialId = NewType("CredentialId", bytes)
ServerId = NewType("ServerId", bytes)
"""SHA-256 of the DER SubjectPublicKeyInfo of the server's identity key, 32 bytes."""

TENANT, USER, DEVICE, REGISTRATION, SIGN_IN, PROMPT, SESSION, ACCESS_PASS, GROUP, RISK_EVENT = (
    "ten",
    "usr",
    "dev",
    "reg",
    "sin",
    "prm",
    "ses",
    "tap",
    "grp",
    "rsk",
)

ID_ENTROPY = 16
"""Random bytes in an id."""

_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = tuple(a + b for a in _DIGITS for b in _DIGITS)
_SHIFTS = tuple(range(120, -1, -10))


def new_id(prefix: str, entropy: bytes) -> str:
    """Make an id of kind `prefix` from 16 random bytes."""
    if len(entropy) != ID_ENTROPY:
        raise ValueError(f"an id needs {ID_ENTROPY} random bytes, got {len(entropy)}")
    # 128 bits and two of padding are 13 pairs of base32 digits; the library's encoder takes ten times as long.
    bits = int.from_bytes(entropy, "big") << 2
    return f"{prefix}_{''.join([_PAIRS[bits >> shift & 1023] for shift in _SHIFTS])}"
