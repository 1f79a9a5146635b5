"""Whole ceremonies: everything as a server expects it, but for the bytes under test.

The samples' roots are the anchors, so a seed that is left as it was is accepted.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from keyvouch import base64url
from keyvouch.attestation import CredentialRecord, verify_assertion, verify_registration
from keyvouch.cose import CoseKey
from keyvouch.ids import CredentialId
from support.samples import samples
from support.vectors import load

from .target import Shape, Target

__all__ = ["TARGETS"]

_SAMPLES = samples()


@cache
def _of_registration(name: str) -> dict[str, Any]:
    return _SAMPLES[name].arguments()


@cache
def _of_assertion() -> dict[str, Any]:
    vectors = load("generated-webauthn/webauthn_mutations.json")["vectors"]
    vector = next(v for v in vectors if v["base"] == "auth-ES256" and v["mutation"] == "pos_plain")
    stored, response, policy = vector["stored"], vector["response"]["response"], vector["policy"]
    record = CredentialRecord(
        CredentialId(base64url.decode(stored["credentialId"])),
        CoseKey(base64url.decode(stored["publicKey"])),
        stored["signCount"],
        base64url.decode(stored["userHandle"]),
        stored["backupEligible"],
    )
    return {
        "credential": record,
        "credential_id": record.credential_id,
        "user_handle": None,
        "client_data": base64url.decode(response["clientDataJSON"]),
        "authenticator_data": base64url.decode(response["authenticatorData"]),
        "signature": base64url.decode(response["signature"]),
        "challenge": base64url.decode(vector["expectedChallenge"]),
        "rp_id": policy["rpId"],
        "origins": policy["origins"],
        "require_user_verification": True,
    }


def _registration(name: str) -> Target:
    def act(data: bytes) -> None:
        verify_registration(**_of_registration(name) | {"attestation_object": data})

    return Target(f"registration-{name}", act, Shape.CBOR, 8192, nests=True)


def _assertion(member: str, shape: Shape = Shape.BYTES) -> Target:
    def act(data: bytes) -> None:
        verify_assertion(**_of_assertion() | {member: data})

    return Target(f"assertion-{member.replace('_', '-')}", act, shape, 1024)


TARGETS = (
    *(_registration(name) for name in _SAMPLES),
    _assertion("client_data"),
    _assertion("authenticator_data"),
    _assertion("signature", Shape.DER),
)
