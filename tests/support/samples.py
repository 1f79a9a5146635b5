"""One good registration of every attestation format, with the roots it is trusted by and the instant it was made for.

`none`, packed with certificates, `fido-u2f` and `tpm` are controls of the generated vectors, packed self attestation is
WebAuthn's own, `android-key` and `apple` come from a device each (see tests/vectors/README.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch import base64url
from keyvouch.attestation import AttestationRequirement, TrustAnchor, TrustStore
from keyvouch.cose import Algorithm
from keyvouch.webauthn import AttestationObject
from support.vectors import ROOT, load

__all__ = ["GENERATED_BASES", "Registration", "samples"]

GENERATED_BASES: Mapping[str, str] = {
    "none": "reg-none-ES256",
    "packed": "reg-packed-ES256",
    "fido-u2f": "reg-fido-u2f-ES256",
    "tpm": "reg-tpm-ES256",
}
"""The base of the generated vectors of a kind."""


@dataclass(frozen=True, slots=True)
class Registration:
    """The response, what is expected of it, and the roots (PEM)."""

    name: str
    client_data: bytes
    attestation_object: bytes
    credential_id: str
    challenge: bytes
    rp_id: str
    origin: str
    instant: datetime
    roots: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """Arguments of `verify_registration`."""
        roots = [x509.load_pem_x509_certificate(pem.encode()) for pem in self.roots]
        return {
            "client_data": self.client_data,
            "attestation_object": self.attestation_object,
            "challenge": self.challenge,
            "rp_id": self.rp_id,
            "origins": frozenset({self.origin}),
            "require_user_verification": False,
            "algorithms": frozenset(Algorithm),
            "attestation": AttestationRequirement.TRUSTED if roots else AttestationRequirement.OPTIONAL,
            "anchors": TrustStore(TrustAnchor(self.name, root) for root in roots),
            "instant": self.instant,
        }


def samples() -> dict[str, Registration]:
    """All of them, by name. `packed` is with certificates, `packed-self` without."""
    made = [*(_generated(name, base) for name, base in GENERATED_BASES.items()), _packed_self(), *_hardware()]
    return {registration.name: registration for registration in made}


def _generated(name: str, base: str) -> Registration:
    vectors = load("generated-webauthn/webauthn_mutations.json")["vectors"]
    vector = next(v for v in vectors if v["base"] == base and v["mutation"] == "pos_plain")
    policy, response = vector["policy"], vector["response"]
    return Registration(
        name,
        base64url.decode(response["response"]["clientDataJSON"]),
        base64url.decode(response["response"]["attestationObject"]),
        response["id"],
        base64url.decode(vector["expectedChallenge"]),
        policy["rpId"],
        policy["origins"][0],
        datetime.fromisoformat(policy["now"]),
        () if name == "none" else tuple(policy["trustAnchorsPem"]),
    )


def _packed_self() -> Registration:
    published = load("w3c-webauthn-l3/webauthn-l3-public.json")
    (case,) = [case for case in published["cases"] if case["section"] == "sctn-test-vectors-packed-self-es256"]
    part = case["registration"]
    return Registration(
        "packed-self",
        bytes.fromhex(part["clientDataJSON"]),
        bytes.fromhex(part["attestationObject"]),
        base64url.encode(bytes.fromhex(part["credential_id"])),
        bytes.fromhex(part["challenge"]),
        published["rpId"],
        published["origin"],
        datetime(2026, 8, 1, tzinfo=UTC),
    )


def _hardware() -> list[Registration]:
    recorded = {vector["id"]: vector for vector in load("simplewebauthn/vectors.json")["vectors"]}
    android, apple = recorded["swa-023"], recorded["swa-025"]
    return [
        _recorded("android-key", android, android["now"], _last_certificate(android["attestationObject"])),
        _recorded("apple", apple, "2020-09-13T12:00:00Z", _APPLE_ROOT.read_text(encoding="ascii")),
    ]


def _recorded(name: str, vector: Mapping[str, str], instant: str, root: str) -> Registration:
    return Registration(
        name,
        base64url.decode(vector["clientDataJSON"]),
        base64url.decode(vector["attestationObject"]),
        vector["credentialId"],
        base64url.decode(vector["expectedChallengeString"]),
        vector["expectedRpId"],
        vector["expectedOrigin"],
        datetime.fromisoformat(instant),
        (root,),
    )


def _last_certificate(attestation_object: str) -> str:
    """Android telephones send the root along."""
    chain = AttestationObject(base64url.decode(attestation_object)).statement["x5c"]
    assert isinstance(chain, list)
    assert isinstance(chain[-1], bytes)
    return x509.load_der_x509_certificate(chain[-1]).public_bytes(Encoding.PEM).decode()


_APPLE_ROOT = ROOT / "apple/apple_webauthn_root_ca.pem"
