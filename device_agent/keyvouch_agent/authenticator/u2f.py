"""CTAP1/U2F over the same vault (section 10 and FIDO U2F Raw Message Formats 1.2).

A credential made here works with authenticatorGetAssertion where SHA-256 of the relying party id is the application
parameter. The other way round works an ES256 credential that is not discoverable and asks for no user verification.
Each credential vouches for itself with a certificate over its own key, so none of them names a batch or tells that two
come from one authenticator. What is *not* here: APDUs, which transports take apart.
"""

from __future__ import annotations

import datetime
import struct
from enum import IntEnum, unique
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.ports import Ask, Entropy, Presence, PresenceRequest, Purpose
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.vault import Credential, CredProtect, KeyRequest, KeyVault, User

__all__ = ["StatusWord", "U2f", "U2fAnswer"]

U2fAnswer = tuple[bytes, int]
"""Response data and status word."""

VERSION: Final = b"U2F_V2"

_ENFORCE_PRESENCE, _CHECK_ONLY, _DONT_ENFORCE_PRESENCE = 0x03, 0x07, 0x08
_PARAMETER = 32
_RESERVED = b"\x05"
_PRESENT, _NOT_PRESENT = b"\x01", b"\x00"
_MAX_KEY_HANDLE = 255

_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_SEQUENCE, _BIT_STRING = 0x30, 0x03
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "U2F self attestation")])
_NOT_BEFORE = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_SERIAL_LENGTH = 16


@unique
class Instruction(IntEnum):
    """Raw Message Formats section 3.1."""

    REGISTER = 0x01
    AUTHENTICATE = 0x02
    VERSION = 0x03


@unique
class StatusWord(IntEnum):
    """Status words (Raw Message Formats section 3.3), and two of ISO/IEC 7816-4 for what is not said there."""

    NO_ERROR = 0x9000
    WRONG_LENGTH = 0x6700
    CONDITIONS_NOT_SATISFIED = 0x6985
    COMMAND_NOT_ALLOWED = 0x6986
    WRONG_DATA = 0x6A80
    NOT_ENOUGH_MEMORY = 0x6A84
    INS_NOT_SUPPORTED = 0x6D00
    FAILED = 0x6F00


class U2f:
    """The three messages of U2F."""

    def __init__(self, vault: KeyVault, entropy: Entropy, standing: Standing) -> None:
        self._vault = vault
        self._entropy = entropy
        self._standing = standing

    def handle(self, instruction: int, p1: int, data: bytes, ask: Ask) -> U2fAnswer:
        """Answer one message with response data and a status word. P2 means nothing in any of them."""
        try:
            return self._dispatch(instruction, p1, data, ask), StatusWord.NO_ERROR
        except _RefusedError as error:
            return b"", error.status
        except DeviceError as error:
            full = error.reason is Reason.KEY_STORE_FULL
            return b"", StatusWord.NOT_ENOUGH_MEMORY if full else StatusWord.FAILED

    def _dispatch(self, instruction: int, p1: int, data: bytes, ask: Ask) -> bytes:
        if not self._standing.options.u2f:
            raise _RefusedError(StatusWord.INS_NOT_SUPPORTED)
        if not self._standing.speaks_u2f:  # section 7.2.4
            raise _RefusedError(StatusWord.COMMAND_NOT_ALLOWED)
        match instruction:
            case Instruction.REGISTER:
                return self._register(data, ask)
            case Instruction.AUTHENTICATE:
                return self._authenticate(p1, data, ask)
            case Instruction.VERSION:
                return _version(data)
            case _:
                raise _RefusedError(StatusWord.INS_NOT_SUPPORTED)

    def _register(self, data: bytes, ask: Ask) -> bytes:
        """Raw Message Formats section 4. P1 is not looked at: registration always needs the user's presence."""
        if len(data) != 2 * _PARAMETER:
            raise _RefusedError(StatusWord.WRONG_LENGTH)
        challenge, application = data[:_PARAMETER], data[_PARAMETER:]
        _require_presence(ask(PresenceRequest(Purpose.MAKE_CREDENTIAL, application=application)))
        request = KeyRequest("", User(application), Algorithm.ES256, discoverable=False, rp_id_hash=application)
        credential = self._vault.create_key(request)
        if len(credential.id) > _MAX_KEY_HANDLE:
            raise _RefusedError(StatusWord.FAILED)
        public_key = _public_key(credential)
        point = public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        certificate = self._certificate(credential, public_key)
        signed = b"\0" + application + challenge + credential.id + point
        signature = self._vault.sign(credential.id, signed)
        if ask.cancelled():
            raise _RefusedError(StatusWord.CONDITIONS_NOT_SATISFIED)
        self._vault.keep(credential.id)
        return _RESERVED + point + bytes([len(credential.id)]) + credential.id + certificate + signature

    def _authenticate(self, p1: int, data: bytes, ask: Ask) -> bytes:
        """Raw Message Formats section 5."""
        if len(data) < 2 * _PARAMETER + 1 or len(data) != 2 * _PARAMETER + 1 + data[2 * _PARAMETER]:
            raise _RefusedError(StatusWord.WRONG_LENGTH)
        if p1 not in (_ENFORCE_PRESENCE, _CHECK_ONLY, _DONT_ENFORCE_PRESENCE):
            raise _RefusedError(StatusWord.WRONG_DATA)
        challenge, application = data[:_PARAMETER], data[_PARAMETER : 2 * _PARAMETER]
        credential = self._vault.find(application, data[2 * _PARAMETER + 1 :])
        if credential is None or not _is_for_u2f(credential):
            raise _RefusedError(StatusWord.WRONG_DATA)
        if p1 == _CHECK_ONLY:
            raise _RefusedError(StatusWord.CONDITIONS_NOT_SATISFIED)
        presence = _NOT_PRESENT
        if p1 == _ENFORCE_PRESENCE:
            rp_id, name = credential.rp_id, credential.user.name
            _require_presence(ask(PresenceRequest(Purpose.GET_ASSERTION, rp_id, name, application)))
            presence = _PRESENT
        counter = struct.pack(">I", self._vault.advance_sign_count(credential.id))
        signature = self._vault.sign(credential.id, application + presence + counter + challenge)
        return presence + counter + signature

    def _certificate(self, credential: Credential, public_key: ec.EllipticCurvePublicKey) -> bytes:
        """A certificate over the credential's key, signed by it.

        `cryptography` signs only with keys it holds, so a key of no meaning signs the draft, and the vault's
        signature takes that one's place.
        """
        draft = (
            x509.CertificateBuilder()
            .subject_name(_NAME)
            .issuer_name(_NAME)
            .public_key(public_key)
            .serial_number(int.from_bytes(self._entropy.token(_SERIAL_LENGTH), "big") >> 1 | 1)
            .not_valid_before(_NOT_BEFORE)
            .not_valid_after(_NOT_AFTER)
            .sign(ec.derive_private_key(1, ec.SECP256R1()), hashes.SHA256())
        )
        signature = self._vault.sign(credential.id, draft.tbs_certificate_bytes)
        return _der(_SEQUENCE, draft.tbs_certificate_bytes + _ECDSA_WITH_SHA256 + _der(_BIT_STRING, b"\0" + signature))


class _RefusedError(Exception):
    """A message ends with this status word."""

    def __init__(self, status: StatusWord) -> None:
        super().__init__(status.name)
        self.status = status


def _version(data: bytes) -> bytes:
    """Raw Message Formats section 6."""
    if data:
        raise _RefusedError(StatusWord.WRONG_LENGTH)
    return VERSION


def _require_presence(presence: Presence) -> None:
    """Without the user a platform tries again for as long as it likes."""
    if presence is not Presence.GRANTED:
        raise _RefusedError(StatusWord.CONDITIONS_NOT_SATISFIED)


def _is_for_u2f(credential: Credential) -> bool:
    free = not credential.discoverable and credential.protect is CredProtect.UV_OPTIONAL
    return free and credential.algorithm == Algorithm.ES256


def _public_key(credential: Credential) -> ec.EllipticCurvePublicKey:
    key = CoseKey(credential.public_key).key_object()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _der(tag: int, content: bytes) -> bytes:
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
