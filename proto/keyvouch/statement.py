"""Statements: what a key signs in Keyvouch, and the challenge a statement becomes.

Nobody signs an opaque nonce. A statement is canonical CBOR with integer keys that names the server, the
tenant, the user, the device and the act. It is bound to one purpose by its domain:

    signed message = "keyvouch/<purpose>/v1" || 0x00 || statement
    challenge      = SHA-256(signed message)

WebAuthn credentials sign the challenge inside their client data; plain keys (the channel key of a device,
the proof key of a client) make an ES256 signature over the signed message, which hashes to the same value.

A signed value is its bytes: a parsed statement keeps the bytes it was parsed from in `encoded`, and a
decision embeds the offer as a byte string, so nobody ever signs or hashes a re-encoding.

Not here: who may sign what, key material, entropy, the clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Final

from keyvouch import cbor
from keyvouch.errors import EvidenceError, MalformedError, Reason
from keyvouch.ids import CredentialId, DeviceId, RegistrationId, ServerId, SignInId, TenantId, UserId

__all__ = [
    "Decision",
    "DecisionStatement",
    "Purpose",
    "RegistrationStatement",
    "SignInOffer",
    "challenge",
    "health_statement",
    "proof_statement",
    "redeem_statement",
    "signed_message",
]

MAX_STATEMENT: Final = 4096
"""Longest statement anyone here parses, in bytes."""

MAX_TEXT: Final = 256
"""Longest text field of a statement, in characters."""


class Purpose(StrEnum):
    """What a signature is for. A signature for one purpose is worthless for every other.

    Of three the challenge is the qualifying data of what a TPM attests: `pin-index` and `channel-key` over the
    registration statement, `health` over `health_statement`.
    """

    REGISTRATION = "registration"
    SIGN_IN = "sign-in"
    CHANNEL = "channel"
    REDEEM = "redeem"
    REFRESH = "refresh"
    SIGN_IN_SESSION = "sign-in-session"
    PIN_INDEX = "pin-index"
    CHANNEL_KEY = "channel-key"
    HEALTH = "health"
    CALL = "call"
    AUDIT_CHECKPOINT = "audit-checkpoint"
    RECEIPT = "receipt"


_DOMAIN: Final[Mapping[Purpose, bytes]] = {p: f"keyvouch/{p.value}/v1".encode() + b"\x00" for p in Purpose}


def signed_message(purpose: Purpose, statement: bytes) -> bytes:
    """The bytes a plain key signs for `statement`."""
    return _DOMAIN[purpose] + statement


def challenge(purpose: Purpose, statement: bytes) -> bytes:
    """The 32-byte WebAuthn challenge of `statement`."""
    return hashlib.sha256(_DOMAIN[purpose] + statement).digest()


class Decision(IntEnum):
    """What the person decided."""

    APPROVE = 1
    DENY = 2
    REPORT = 3


def _refuse(why: str) -> MalformedError:
    return MalformedError(
        Reason.STATEMENT_MALFORMED,
        f"This is not a well-formed statement: {why}.",
        fix="Nothing was signed. If it happens again, check that both sides run the same version.",
    )


def _decode_map(encoded: bytes, required: int, optional: frozenset[int] = frozenset()) -> dict[int, object]:
    """Decode a map whose keys are exactly 1..required, plus any of `optional`."""
    if len(encoded) > MAX_STATEMENT:
        raise _refuse(f"it is longer than {MAX_STATEMENT} bytes")
    try:
        value = cbor.decode(encoded, max_depth=1)
    except MalformedError as error:
        raise _refuse("it is not canonical CBOR") from error
    if not isinstance(value, dict):
        raise _refuse("it is not a map")
    expected = frozenset(range(1, required + 1))
    keys = value.keys()
    if not expected <= keys or not keys <= expected | optional:
        raise _refuse("a field is missing or unknown")
    return {key: field for key, field in value.items() if isinstance(key, int)}


def _text(value: object, name: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or (not value and not empty):
        raise _refuse(f"{name} is not a text of the right length")
    return value


def _octets(value: object, name: str, shortest: int, longest: int) -> bytes:
    if not isinstance(value, bytes) or not shortest <= len(value) <= longest:
        raise _refuse(f"{name} is not a byte string of the right length")
    return value


def _count(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _refuse(f"{name} is not a number")
    return value


@dataclass(frozen=True, slots=True)
class RegistrationStatement:
    """What a new credential signs into existence. Keys 1..8 in this order; 9 only with a TPM.

    `nonce` has 32 bytes; `expires_at` is in seconds since the epoch; `channel_key` is the SHA-256 of the
    DER SubjectPublicKeyInfo of the device channel's key; `ak_name` the TPM Name of the attestation key.
    """

    server_id: ServerId
    tenant_id: TenantId
    user_id: UserId
    device_id: DeviceId
    registration_id: RegistrationId
    nonce: bytes
    expires_at: int
    channel_key: bytes
    ak_name: bytes = b""
    encoded: bytes = b""

    def encode(self) -> bytes:
        """Canonical CBOR of the fields; what the server sends and stores."""
        document: dict[int, object] = {
            1: self.server_id,
            2: self.tenant_id,
            3: self.user_id,
            4: self.device_id,
            5: self.registration_id,
            6: self.nonce,
            7: self.expires_at,
            8: self.channel_key,
        }
        if self.ak_name:
            document[9] = self.ak_name
        return cbor.encode(document)

    @classmethod
    def parse(cls, encoded: bytes) -> RegistrationStatement:
        """Parse received bytes. Raises `MalformedError(STATEMENT_MALFORMED)`."""
        m = _decode_map(encoded, 8, frozenset({9}))
        return cls(
            server_id=ServerId(_octets(m[1], "server id", 32, 32)),
            tenant_id=TenantId(_text(m[2], "tenant id")),
            user_id=UserId(_text(m[3], "user id")),
            device_id=DeviceId(_text(m[4], "device id")),
            registration_id=RegistrationId(_text(m[5], "registration id")),
            nonce=_octets(m[6], "nonce", 32, 32),
            expires_at=_count(m[7], "expiry"),
            channel_key=_octets(m[8], "channel key", 32, 32),
            ak_name=_octets(m[9], "attestation key name", 2, 68) if 9 in m else b"",
            encoded=encoded,
        )


@dataclass(frozen=True, slots=True)
class SignInOffer:
    """What a device is asked to decide on: everything the person is shown, and what binds it.

    Field n of this class is key n of the map. `proof_key` is the RFC 7638 thumbprint (32 bytes) of the
    waiting client's key; `place` and `address` say where the request came from, empty where unknown;
    instants are seconds since the epoch on the server's clock; `required_assurance` is the text form of
    `keyvouch.assurance.Assurance`. The number is not here: it is shown to the person by the client only.
    """

    server_id: ServerId
    tenant_id: TenantId
    user_id: UserId
    device_id: DeviceId
    credential_id: CredentialId
    sign_in_id: SignInId
    nonce: bytes
    app_id: str
    app_name: str
    audience: str
    proof_key: bytes
    place: str
    address: str
    binding_message: str
    issued_at: int
    expires_at: int
    policy_version: int
    required_assurance: str
    encoded: bytes = b""

    def encode(self) -> bytes:
        """Canonical CBOR of the fields; what the server sends and stores."""
        return cbor.encode({key: getattr(self, name) for key, name in _OFFER_FIELDS})

    @classmethod
    def parse(cls, encoded: bytes) -> SignInOffer:
        """Parse received bytes. Raises `MalformedError(STATEMENT_MALFORMED)`."""
        m = _decode_map(encoded, 18)
        return cls(
            server_id=ServerId(_octets(m[1], "server id", 32, 32)),
            tenant_id=TenantId(_text(m[2], "tenant id")),
            user_id=UserId(_text(m[3], "user id")),
            device_id=DeviceId(_text(m[4], "device id")),
            credential_id=CredentialId(_octets(m[5], "credential id", 1, 1023)),
            sign_in_id=SignInId(_text(m[6], "sign-in id")),
            nonce=_octets(m[7], "nonce", 32, 32),
            app_id=_text(m[8], "app id"),
            app_name=_text(m[9], "app name"),
            audience=_text(m[10], "audience"),
            proof_key=_octets(m[11], "proof key", 32, 32),
            place=_text(m[12], "place", empty=True),
            address=_text(m[13], "address", empty=True),
            binding_message=_text(m[14], "binding message", empty=True),
            issued_at=_count(m[15], "issue time"),
            expires_at=_count(m[16], "expiry"),
            policy_version=_count(m[17], "policy version"),
            required_assurance=_text(m[18], "required assurance"),
            encoded=encoded,
        )


_OFFER_FIELDS: Final = tuple((i, f.name) for i, f in enumerate(fields(SignInOffer), start=1) if f.name != "encoded")


@dataclass(frozen=True, slots=True)
class DecisionStatement:
    """What the device signs: {1: the offer's bytes as received, 2: decision, 3: the number typed}.

    `number` is the digits as typed for an approval and empty for a denial or a report.
    """

    offer: bytes
    decision: Decision
    number: str = ""
    encoded: bytes = b""

    def encode(self) -> bytes:
        """Canonical CBOR of the decision."""
        document: dict[int, object] = {1: self.offer, 2: int(self.decision)}
        if self.decision is Decision.APPROVE:
            document[3] = self.number
        return cbor.encode(document)

    @classmethod
    def parse(cls, encoded: bytes) -> DecisionStatement:
        """Parse received bytes. Raises `MalformedError(STATEMENT_MALFORMED)`."""
        m = _decode_map(encoded, 2, frozenset({3}))
        number = _count(m[2], "decision")
        if number not in _DECISIONS:
            raise _refuse("the decision is unknown")
        decision = Decision(number)
        if (3 in m) != (decision is Decision.APPROVE):
            raise _refuse("a number belongs to an approval and to nothing else")
        typed = _text(m[3], "number") if 3 in m else ""
        if typed and not (typed.isascii() and typed.isdigit()):
            raise _refuse("the number has other characters than digits")
        return cls(offer=_octets(m[1], "offer", 1, MAX_STATEMENT), decision=decision, number=typed, encoded=encoded)


_DECISIONS: Final = frozenset(int(d) for d in Decision)


def check_offer(
    offer: SignInOffer, *, server_id: ServerId, tenant_id: TenantId, user_id: UserId, device_id: DeviceId
) -> None:
    """Hold an offer against the device's own enrolment record, before anything is shown or signed.

    Checks, in this order: server id, tenant, user, device. Raises `EvidenceError` with WRONG_SERVER,
    WRONG_TENANT, WRONG_USER or WRONG_DEVICE. An approval collected by one server is worthless at another.
    """
    pairs = (
        (offer.server_id, server_id, Reason.WRONG_SERVER, "another server"),
        (offer.tenant_id, tenant_id, Reason.WRONG_TENANT, "another tenant"),
        (offer.user_id, user_id, Reason.WRONG_USER, "another user"),
        (offer.device_id, device_id, Reason.WRONG_DEVICE, "another device"),
    )
    _compare(pairs)


def check_registration(statement: RegistrationStatement, *, server_id: ServerId, channel_key: bytes) -> None:
    """Hold a registration statement against what the agent knows: its server and its own channel key.

    Raises `EvidenceError` with WRONG_SERVER or CHANNEL_KEY.
    """
    _compare(
        (
            (statement.server_id, server_id, Reason.WRONG_SERVER, "another server"),
            (statement.channel_key, channel_key, Reason.CHANNEL_KEY, "another channel key"),
        )
    )


def _compare(pairs: tuple[tuple[object, object, Reason, str], ...]) -> None:
    for found, expected, reason, what in pairs:
        if found != expected:
            raise EvidenceError(
                reason,
                f"The request names {what} than this device is enrolled with.",
                fix="Nothing was signed. Tell your administrator: somebody may be relaying requests.",
            )


def redeem_statement(server_id: ServerId, sign_in_id: SignInId, sign_in_token: str) -> bytes:
    """What a client's proof key signs to redeem an approval (purpose `redeem`)."""
    return cbor.encode({1: server_id, 2: sign_in_id, 3: hashlib.sha256(sign_in_token.encode()).digest()})


def health_statement(server_id: ServerId, device_id: DeviceId, nonce: bytes) -> bytes:
    """What a device's TPM attests its health for (purpose `health`): this server, this device, a nonce of 32 bytes."""
    return cbor.encode({1: server_id, 2: device_id, 3: nonce})


def proof_statement(server_id: ServerId, secret: bytes) -> bytes:
    """What a proof key signs for the purposes `refresh` (SHA-256 of the token) and `sign-in-session` (nonce)."""
    return cbor.encode({1: server_id, 2: secret})
