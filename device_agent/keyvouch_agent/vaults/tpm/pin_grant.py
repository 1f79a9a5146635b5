"""What allows the first write of a PIN index: a server's grant, or our own where there is no server.

    grant = PinGrant(...)         made by the registration ceremony out of the server's reply
    LocalCeremony(...).grant(tpm) a ceremony key of our own, used twice and dropped

With a key of our own the TPM enforces the PIN just the same, but nobody else can know that the key is gone: a server
that sees such a credential learns nothing of its PIN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keyvouch.attestation.pin_gate import PinCounter, PinGate, first_write_message
from keyvouch.attestation.tpm_marshal import TpmPrivateKey, external_key, sign
from keyvouch.cose import Algorithm
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.pin_index import PinIndex, free_handle, write_first
from keyvouch_agent.vaults.tpm.sessions import policy_session

__all__ = ["LocalCeremony", "PinGrant"]

_MAKE: Final[Mapping[Algorithm, Callable[[], TpmPrivateKey]]] = {
    Algorithm.ES256: lambda: ec.generate_private_key(ec.SECP256R1()),
    Algorithm.ES384: lambda: ec.generate_private_key(ec.SECP384R1()),
    Algorithm.RS256: lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
}
"""A key of a kind that the TPM can verify with."""


@dataclass(frozen=True, slots=True)
class PinGrant:
    """Leave to write an index once, in the policy session it was given for, which must be open still."""

    gate: PinGate
    counter: PinCounter
    session: Any
    nonce: Any
    first_write: bytes = field(repr=False)
    """TPMT_SIGNATURE over the nonce and the write."""
    approval: bytes = field(repr=False)
    """TPMT_SIGNATURE that approves PIN changes."""

    def write(self, tpm: Tpm, index: PinIndex) -> None:
        """Use it up."""
        write_first(tpm, index, self.session, nonce=self.nonce, counter=self.counter, signature=self.first_write)
        tpm.spent(self.session)


class LocalCeremony:
    """A ceremony key for one PIN. Its private half lives as long as this object."""

    def __init__(self, algorithm: Algorithm, entropy: Entropy, *, limit: int) -> None:
        self._key = _MAKE[algorithm]()
        self._device_id = f"local_{entropy.token(16).hex()}"
        self._counter = PinCounter(0, limit)

    def grant(self, tpm: Tpm) -> PinGrant:
        """Open a policy session and sign for it."""
        gate = PinGate(external_key(self._key.public_key()), self._device_id, free_handle(tpm))
        session = policy_session(tpm)
        nonce = tpm.esapi.trsess_get_nonce_tpm(session)
        message = first_write_message(gate, nonce=bytes(nonce), counter=self._counter)
        return PinGrant(
            gate,
            self._counter,
            session,
            nonce,
            bytes(sign(self._key, message)),
            bytes(sign(self._key, gate.change_message)),
        )
