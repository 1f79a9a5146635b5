"""The key of the device channel, in the TPM: mutual TLS with a private key that nobody can copy.

It has no PIN, because the device has to be reachable while nobody sits there; it approves nothing. Each signature takes
a connection of its own: handshakes are rare, and a TPM without a resource manager serves one program at a time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from tpm2_pytss import TPM2B_DIGEST, TPM2B_SENSITIVE_CREATE

from keyvouch.cose import Algorithm, verify_signature_by
from keyvouch.errors import DeviceError, Reason
from keyvouch.proofs import spki_of
from keyvouch_agent.channel_keys import IN_TPM, is_tpm_key
from keyvouch_agent.vaults.tpm.answers import as_asked, making_sense
from keyvouch_agent.vaults.tpm.connection import Tpm, TpmAccess
from keyvouch_agent.vaults.tpm.key_file import KeyFile, signature_value
from keyvouch_agent.vaults.tpm.parent import choose_parent, number_of, parents
from keyvouch_agent.vaults.tpm.profile import read_profile
from keyvouch_agent.vaults.tpm.templates import KINDS, channel_key, scheme_of

__all__ = ["TpmChannelKey", "TpmChannelKeys"]

_KIND = KINDS[Algorithm.ES256]


@dataclass(frozen=True, slots=True)
class TpmChannelKey:
    """`ChannelKey` in a TPM. `stored` is its key file in DER."""

    access: TpmAccess
    stored: bytes = field(repr=False)

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo. Raises `DeviceError(VAULT_CORRUPT)`."""
        key = KeyFile.read(self.stored).area.key
        return spki_of(key)  # type: ignore[arg-type] # the template is one of a P-256 key

    @property
    def protection(self) -> str:
        """`IN_TPM`."""
        return IN_TPM

    def sign(self, message: bytes) -> bytes:
        """Sign with ECDSA and SHA-256; DER. Raises `DeviceError`: TPM_BUSY, TPM_CLEARED, TPM_UNAVAILABLE and others."""
        key = KeyFile.read(self.stored)
        digest = TPM2B_DIGEST(hashlib.sha256(message).digest())
        with self.access.open() as tpm:
            loaded = _load(tpm, key)
            signature = tpm.do(tpm.esapi.sign, loaded, digest, scheme_of(_KIND))
        with making_sense("a signature"):
            value = signature_value(signature)
            verify_signature_by(key.area.key, Algorithm.ES256, signature=value, message=message)
        return value


class TpmChannelKeys:
    """`ChannelKeys` of one TPM."""

    def __init__(self, access: TpmAccess) -> None:
        self._access = access

    def make(self) -> TpmChannelKey:
        """Make a key. Raises `DeviceError(UNSUPPORTED)` for a TPM without P-256, and what opening it raises."""
        with self._access.open() as tpm:
            profile = read_profile(tpm)
            if _KIND not in profile.kinds:
                raise DeviceError(
                    Reason.UNSUPPORTED,
                    "This TPM makes no keys on P-256, which the device channel needs.",
                    fix="The channel's key is kept in software instead.",
                )
            parent = choose_parent(tpm, profile)[0]
            template = channel_key()
            made = tpm.do(tpm.esapi.create, parent, TPM2B_SENSITIVE_CREATE(), template)
            as_asked(made[1], template)
            return TpmChannelKey(self._access, KeyFile(made[0], made[1], number_of(tpm, parent)).to_der())

    def knows(self, stored: bytes) -> bool:
        """Whether this is a key file of a TPM."""
        return is_tpm_key(stored)

    def load(self, stored: bytes) -> TpmChannelKey:
        """The key that was stored."""
        return TpmChannelKey(self._access, stored)


def _load(tpm: Tpm, key: KeyFile) -> Any:
    """Load it under the storage root key it was made under: the owner's persistent one, or one of a template."""
    last: DeviceError | None = None
    for parent in parents(tpm):
        try:
            return tpm.hold(tpm.do(tpm.esapi.load, parent, key.private, key.public))
        except DeviceError as error:
            if error.reason is not Reason.TPM_CLEARED:
                raise
            last = error
    raise last or DeviceError(Reason.TPM_FAILED, "The TPM has no storage root key.", fix="Run `keyvouch-agent doctor`.")
