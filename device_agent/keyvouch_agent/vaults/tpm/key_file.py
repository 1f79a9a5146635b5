"""Keys of the TPM as files: "TSS2 PRIVATE KEY", what tpm2-openssl, tpm2-tss-engine and tpm2-tools read too.

What is in them is public area and private area as the TPM gave them out: encrypted under the storage root key, of no
use anywhere else. (ASN.1 Specification for TPM 2.0 Key Files; the coding is tpm2-pytss's.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tpm2_pytss import TSS2_Exception
from tpm2_pytss.tsskey import TSSPrivKey

from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.attestation.tpm_structures import TpmSignature
from keyvouch.errors import DeviceError, Reason

__all__ = ["OWNER", "KeyFile", "signature_value"]

OWNER: Final = 0x4000_0001
"""TPM_RH_OWNER in the place of the parent: the primary key of the standard template."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key: its areas as the TSS has them, and the handle of its parent, or `OWNER`."""

    private: Any
    public: Any
    parent: int

    @property
    def area(self) -> TpmPublic:
        """The public area, parsed."""
        return TpmPublic(bytes(self.public.publicArea.marshal()))

    def to_der(self) -> bytes:
        """DER. The authorization value of all keys here is empty."""
        return bytes(TSSPrivKey(self.private, self.public, empty_auth=True, parent=self.parent).to_der())

    def to_pem(self) -> bytes:
        """The same in PEM."""
        return bytes(TSSPrivKey(self.private, self.public, empty_auth=True, parent=self.parent).to_pem())

    @classmethod
    def read(cls, data: bytes) -> KeyFile:
        """Read DER or PEM. Raises `DeviceError(VAULT_CORRUPT)`."""
        read = TSSPrivKey.from_pem if data.startswith(b"-----BEGIN") else TSSPrivKey.from_der
        try:
            key = read(data)
        except (ValueError, TSS2_Exception) as error:
            raise DeviceError(
                Reason.VAULT_CORRUPT,
                "A key file of the TPM is damaged.",
                fix="Restore it from a backup, or enrol this device again.",
            ) from error
        return cls(key.private, key.public, int(key.parent))


def signature_value(signature: Any) -> bytes:
    """What WebAuthn and TLS take: DER of r and s, or the RSA signature. `signature` is a TPMT_SIGNATURE of the TSS."""
    return TpmSignature(bytes(signature.marshal())).value
