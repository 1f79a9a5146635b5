"""The certificate that vouches for an authenticator, as each format reads it, in a statement that is else good.

A changed certificate is no longer signed by its issuer. So it is tried twice: in its chain, and alone with itself as
the anchor, where everything that is read after path validation is reached too.
"""

from __future__ import annotations

import contextlib
import hashlib
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keyvouch import cbor
from keyvouch.attestation import AttestationRequirement, TrustAnchor, TrustStore, verify_registration
from keyvouch.attestation.certificates import parse_certificate
from keyvouch.client_data import CollectedClientData
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import MalformedError
from keyvouch.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, Flags
from support.samples import samples

from .target import Shape, Target

__all__ = ["CERTIFIED", "TARGETS", "chain_of"]

CERTIFIED = ("packed", "fido-u2f", "tpm", "android-key", "apple", "piv")
"""The formats whose statement has certificates."""


def chain_of(name: str) -> list[bytes]:
    """The certificates of a good registration."""
    chain = AttestationObject(_arguments(name)["attestation_object"]).statement["x5c"]
    assert isinstance(chain, list)
    return [certificate for certificate in chain if isinstance(certificate, bytes)]


@cache
def _arguments(name: str) -> dict[str, Any]:
    return _piv() if name == "piv" else samples()[name].arguments()


def _with_chain(name: str, chain: list[bytes]) -> dict[str, Any]:
    arguments = _arguments(name)
    good = AttestationObject(arguments["attestation_object"])
    members = {"fmt": good.format, "attStmt": good.statement | {"x5c": chain}, "authData": good.authenticator_data}
    return arguments | {"attestation_object": cbor.encode(members)}


def _leaf(name: str) -> Target:
    def act(data: bytes) -> None:
        with contextlib.suppress(MalformedError):
            anchors = TrustStore([TrustAnchor("itself", parse_certificate(data))])
            alone = Target("", lambda chain: verify_registration(**_with_chain(name, [chain]) | {"anchors": anchors}))
            alone.try_on(data)
        verify_registration(**_with_chain(name, [data, *chain_of(name)[1:]]))

    return Target(f"leaf-{name}", act, Shape.DER, nests=True)


# A card's statement: from a private key that is one, with a signature that is the same every time.

_START = datetime(2026, 1, 1, tzinfo=UTC)
_ARC = "1.3.6.1.4.1.41482.3"
_EXTENSIONS = {"3": b"\x05\x07\x01", "7": b"\x02\x04\x01\x02\x03\x04", "8": b"\x02\x01", "9": b"\x01"}


def _piv() -> dict[str, Any]:
    key = ec.derive_private_key(1, ec.SECP256R1())
    public = CoseKey.from_public_key(key.public_key())
    attested = AttestedCredentialData.build(bytes(16), b"credential", public)
    rp_id, origin, challenge = "login.example", "https://login.example", bytes(32)
    data = AuthenticatorData.build(hashlib.sha256(rp_id.encode()).digest(), Flags.UP | Flags.UV, 0, attested=attested)
    client_data = CollectedClientData.build("webauthn.create", challenge, origin)
    signature = key.sign(data + client_data.sha256, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    statement = {"alg": -7, "sig": signature, "x5c": [_slot_certificate(key.public_key())]}
    return {
        "client_data": client_data,
        "attestation_object": bytes(AttestationObject.build("piv", data, statement)),
        "challenge": challenge,
        "rp_id": rp_id,
        "origins": {origin},
        "require_user_verification": True,
        "algorithms": list(Algorithm),
        "attestation": AttestationRequirement.OPTIONAL,
        "anchors": TrustStore(),
        "instant": _START,
    }


def _slot_certificate(key: ec.EllipticCurvePublicKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "YubiKey PIV Attestation 9a")])
    builder = x509.CertificateBuilder(name, name, key, 7, _START, _START.replace(year=2036))
    for number, value in _EXTENSIONS.items():
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{_ARC}.{number}"), value)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(Ed25519PrivateKey.from_private_bytes(bytes(32)), None).public_bytes(Encoding.DER)


TARGETS = tuple(_leaf(name) for name in CERTIFIED)
