"""The hmac-secret extension: symmetric secrets bound to a credential (section 12.5).

Salts come encrypted and authenticated under a key agreement like that of the PIN; outputs go back the same way. What
is *not* here: CredRandom itself, which the vault keeps.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from keyvouch_agent.authenticator.fields import Fields, optional, required
from keyvouch_agent.authenticator.pin_protocol import PinProtocol, PinProtocols
from keyvouch_agent.authenticator.status import CommandError, Status

__all__ = ["HmacSecretInput", "Salts", "open_salts", "parse_hmac_secret"]

SALT_LENGTH = 32
_DEFAULT_PROTOCOL = 1


@dataclass(frozen=True, slots=True)
class HmacSecretInput:
    """What the platform sends with authenticatorGetAssertion; hmac-secret-mc sends the same at registration."""

    key_agreement: Mapping[object, object]
    salt_enc: bytes
    salt_auth: bytes
    protocol: int


@dataclass(frozen=True, slots=True)
class Salts:
    """One or two salts, and the shared secret under which they came."""

    protocol: PinProtocol
    shared_secret: bytes
    salts: tuple[bytes, ...]

    def __repr__(self) -> str:
        return "Salts(...)"

    def seal(self, cred_random: bytes) -> bytes:
        """HMAC-SHA-256 of each salt, encrypted for the platform."""
        outputs = b"".join(hmac.digest(cred_random, salt, "sha256") for salt in self.salts)
        return self.protocol.encrypt(self.shared_secret, outputs)


def parse_hmac_secret(given: Fields) -> HmacSecretInput:
    """Read the input. A platform of CTAP 2.0 leaves the protocol out and means the first."""
    protocol = optional(given, 4, int)
    return HmacSecretInput(
        key_agreement=required(given, 1, dict),
        salt_enc=required(given, 2, bytes),
        salt_auth=required(given, 3, bytes),
        protocol=_DEFAULT_PROTOCOL if protocol is None else protocol,
    )


def open_salts(given: HmacSecretInput, protocols: PinProtocols) -> Salts:
    """Take the salts out of the input: agree on the key, check saltAuth, decrypt.

    `INVALID_PARAMETER` for a protocol or a key that cannot be, `PIN_AUTH_INVALID` for salts that are not
    authentic, `INVALID_LENGTH` for anything but one or two salts.
    """
    protocol = protocols.named(given.protocol)
    secret = protocol.decapsulate(given.key_agreement)
    protocol.verify(secret, given.salt_enc, given.salt_auth)
    plain = protocol.decrypt(secret, given.salt_enc)
    if len(plain) not in (SALT_LENGTH, 2 * SALT_LENGTH):
        raise CommandError(Status.INVALID_LENGTH)
    return Salts(protocol, secret, tuple(plain[at : at + SALT_LENGTH] for at in range(0, len(plain), SALT_LENGTH)))
