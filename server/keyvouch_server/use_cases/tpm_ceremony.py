"""The transcript of a registration with a TPM: what the server fixed before it believes anything.

    begun      the ceremony key, its private half sealed, and how many tries a PIN has
    prepared   what the device showed and what it was granted; the private half is gone

All of it stands in one column of the registration's row, as canonical CBOR, so one conditional update moves it, and
whoever verifies reads that column and nothing else (TPM5). Afterwards the device's TPM record keeps it, byte for byte.

What is not here: judgement of what a device shows (`tpm_preparation`), evidence held against the transcript
(`tpm_evidence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyvouch import cbor
from keyvouch.attestation.pin_gate import PinGate
from keyvouch.attestation.tpm_marshal import TpmPrivateKey, external_key
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.attestation.tpm_registration import TpmTranscript
from keyvouch.cose import Algorithm
from keyvouch.errors import KeyvouchError, MalformedError, Reason, UnavailableError
from keyvouch.ids import DeviceId, RegistrationId
from keyvouch_server.ports import EndorsedTpm, Keys

__all__ = [
    "BegunTpm",
    "PreparedTpm",
    "TpmGrant",
    "draw_ceremony_key",
    "read_transcript",
    "seal_ceremony_key",
    "subject_public_key",
]

_PURPOSE: Final = "tpm-ceremony-key"
_NONCE: Final = bytes(12)
"""The key is made of the registration's id and token, which are drawn once: each key seals one thing."""
_BEGUN: Final = frozenset({1, 2, 3})
_PREPARED: Final = frozenset({1, 2, *range(4, 13)})


@dataclass(frozen=True, slots=True)
class TpmGrant:
    """What a prepared TPM is answered; see PrepareTpmResponse in enrolment.proto. `sealed_certificate` may be empty."""

    credential_blob: bytes
    encrypted_secret: bytes
    sealed_certificate: bytes
    first_write: bytes
    pin_change: bytes
    statement: bytes

    def parts(self) -> list[bytes]:
        """The fields in their order."""
        return list(astuple(self))


@dataclass(frozen=True, slots=True)
class BegunTpm:
    """A ceremony key that can still sign: for one PIN index, once."""

    ceremony_key: TpmPublic
    pin_limit: int
    sealed_key: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Canonical CBOR for the registration's row."""
        return cbor.encode({1: bytes(self.ceremony_key), 2: self.pin_limit, 3: self.sealed_key})

    def open(self, keys: Keys, registration_id: RegistrationId, token: str) -> TpmPrivateKey:
        """The private half, with the registration's token."""
        der = _cipher(keys, registration_id, token).decrypt(_NONCE, self.sealed_key, self.ceremony_key)
        key = serialization.load_der_private_key(der, password=None)
        assert isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey))
        return key


@dataclass(frozen=True, slots=True)
class PreparedTpm:
    """One attestation key, one PIN index, one endorsement key: what evidence is held against.

    `request` is the SHA-256 of the request that was granted, `activation` what opening the challenge must prove.
    `certificate` is that of the attestation key, and `tpm` what the maker says of the TPM; empty and None where nobody
    vouches for the endorsement key.
    """

    ceremony_key: TpmPublic
    pin_limit: int
    request: bytes
    grant: TpmGrant
    attestation_key: TpmPublic
    certificate: bytes
    handle: int
    activation: bytes = field(repr=False)
    endorsement_key: TpmPublic
    endorsement_certificates: tuple[bytes, ...]
    tpm: EndorsedTpm | None

    def encode(self) -> bytes:
        """Canonical CBOR for the registration's row and the device's TPM record."""
        tpm = self.tpm
        return cbor.encode(
            {
                1: bytes(self.ceremony_key),
                2: self.pin_limit,
                4: self.request,
                5: self.grant.parts(),
                6: bytes(self.attestation_key),
                7: self.certificate,
                8: self.handle,
                9: self.activation,
                10: bytes(self.endorsement_key),
                11: list(self.endorsement_certificates),
                12: [tpm.manufacturer, tpm.model, tpm.version, tpm.anchor] if tpm else [],
            }
        )

    def gate(self, device_id: DeviceId) -> PinGate:
        """The PIN gate of the device."""
        return PinGate(self.ceremony_key, device_id, self.handle)

    def transcript(self, device_id: DeviceId, certificate: bytes) -> TpmTranscript:
        """What the core verifies against; `certificate` is the one issued for this attestation key, in DER."""
        return TpmTranscript(self.attestation_key, certificate, self.gate(device_id), self.pin_limit)


def draw_ceremony_key(verifies: Sequence[int]) -> TpmPrivateKey:
    """A new key of the first kind in the list, COSE algorithms, that a ceremony key may be of.

    Entropy comes from the cryptographic library. An RSA key takes a moment: call this in a thread. Raises
    `MalformedError(UNSUPPORTED)`.
    """
    for algorithm in verifies:
        if algorithm in _CURVES:
            return ec.generate_private_key(_CURVES[algorithm])
        if algorithm == Algorithm.RS256:
            return rsa.generate_private_key(65537, 2048)
    raise MalformedError(
        Reason.UNSUPPORTED,
        "The TPM verifies signatures by none of the algorithms that are possible here.",
        fix="Use a TPM that knows ECDSA on P-256 or P-384, or RSA with 2048 bits.",
    )


def seal_ceremony_key(
    key: TpmPrivateKey, pin_limit: int, *, keys: Keys, registration_id: RegistrationId, token: str
) -> BegunTpm:
    """A transcript that has just begun, with a key that only this server can use, for this registration.

    And only while it has the registration's token, which the device keeps and the store does not: what is deleted from
    the store may still be read in its file, in its log or in a backup, and must sign nothing any more.
    """
    public = external_key(key.public_key())
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return BegunTpm(public, pin_limit, _cipher(keys, registration_id, token).encrypt(_NONCE, der, public))


def read_transcript(encoded: bytes) -> BegunTpm | PreparedTpm:
    """Read what `encode` wrote. Raises `UnavailableError(STORE_UNAVAILABLE)` for anything else."""
    try:
        found = cbor.decode(encoded, max_depth=2)
        if not isinstance(found, dict):
            raise _unknown()
        if found.keys() == _BEGUN:
            return BegunTpm(TpmPublic(_octets(found[1])), _number(found[2]), _octets(found[3]))
        if found.keys() == _PREPARED:
            return _prepared({key: value for key, value in found.items() if isinstance(key, int)})
    except UnavailableError:
        raise
    except KeyvouchError as error:
        raise _unknown() from error
    raise _unknown()


def subject_public_key(public: TpmPublic) -> bytes:
    """The key of a public area as SubjectPublicKeyInfo in DER."""
    return public.key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


_CURVES: Final = {int(Algorithm.ES256): ec.SECP256R1(), int(Algorithm.ES384): ec.SECP384R1()}


def _cipher(keys: Keys, registration_id: RegistrationId, token: str) -> AESGCM:
    return AESGCM(keys.mac(_PURPOSE, cbor.encode([registration_id, token])))


def _prepared(m: dict[int, object]) -> PreparedTpm:
    grant, tpm = [_octets(part) for part in _list(m[5], 6)], [_text(part) for part in _list(m[12], 0, 4)]
    return PreparedTpm(
        ceremony_key=TpmPublic(_octets(m[1])),
        pin_limit=_number(m[2]),
        request=_octets(m[4]),
        grant=TpmGrant(*grant),
        attestation_key=TpmPublic(_octets(m[6])),
        certificate=_octets(m[7]),
        handle=_number(m[8]),
        activation=_octets(m[9]),
        endorsement_key=TpmPublic(_octets(m[10])),
        endorsement_certificates=tuple(_octets(part) for part in _list(m[11])),
        tpm=EndorsedTpm(*tpm) if tpm else None,
    )


def _octets(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise _unknown()
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _unknown()
    return value


def _number(value: object) -> int:
    if type(value) is not int:
        raise _unknown()
    return value


def _list(value: object, *lengths: int) -> list[object]:
    if not isinstance(value, list) or (lengths and len(value) not in lengths):
        raise _unknown()
    return value


def _unknown() -> UnavailableError:
    return UnavailableError(
        Reason.STORE_UNAVAILABLE,
        "The store holds a transcript of a TPM that this program does not know.",
        fix="Check the store, or restore a backup.",
    )
