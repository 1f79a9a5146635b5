"""What PKCS#11 does not do with a PIV card: tell the exact tries of its PIN, lock it, and attest a key.

    VERIFY without data (NIST SP 800-73-4 part 2 section 3.2.1)      63 Cx: x tries are left
    VERIFY with P1 FF (the same)                                     the card forgets that the PIN was shown
    ATTEST, INS F9 (Yubico, "PIV attestation")                       the slot's attestation certificate
    GET DATA 5F FF 01                                                the certificate that signed it

The card is asked through PC/SC while the PKCS#11 module holds it too, shared, each time in a transaction of a few
commands. None of them needs the PIN, and selecting the application that is selected leaves a PIN that was shown as it
is (part 2 section 3.1.1). Needs pyscard; without it, and with cards that know nothing of this, there is no answer.

What is *not* here: judging the attestation. That is the server's (`keyvouch.attestation.formats.piv`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from cryptography import x509

from keyvouch.attestation.der import DerClass, DerError, DerReader, Tag
from keyvouch.cose import CoseKey
from keyvouch.errors import KeyvouchError
from keyvouch_agent.vaults.pkcs11.pins import Counted

__all__ = ["PIV_SLOTS", "attestation", "count_tries", "forget_pin", "is_piv", "wants_pin_always"]

PIV_SLOTS: Final = {b"\x01": 0x9A, b"\x02": 0x9C}
"""CKA_ID, as OpenSC and ykcs11 number them, of the slots for signing: authentication and digital signature.

Key management (9D) decrypts, and card authentication (9E) works without the PIN: neither is used.
"""

_PIV_MAKERS: Final = frozenset(("piv_II", "Yubico (www.yubico.com)"))
"""Manufacturers that OpenSC and ykcs11 name for PIV cards."""

_SELECT: Final = bytes.fromhex("00A4040005A000000308")
_ASK_PIN: Final = bytes.fromhex("00200080")
_FORGET_PIN: Final = bytes.fromhex("0020FF80")
_ATTEST: Final = bytes.fromhex("00F9")
_BLOCKED: Final = 0x6983
_SHOWN: Final = 0x9000
_GET_ATTESTER: Final = bytes.fromhex("00CB3FFF055C035FFF0100")
_POLICIES: Final = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.8")
_ALWAYS: Final = b"\3"
_SLOT_DESCRIPTION: Final = 60
"""Bytes of a reader's name that PKCS#11 surely has: a character that did not fit whole is left away."""
_MOST_ANSWERS: Final = 64
_OBJECT: Final = Tag(0x13, tag_class=DerClass.APPLICATION)  # 53
_CERTIFICATE: Final = Tag(0x10, constructed=True, tag_class=DerClass.APPLICATION)  # 70
_COMPRESSION: Final = Tag(0x11, constructed=True, tag_class=DerClass.APPLICATION)  # 71

_T = TypeVar("_T")


class _NoAnswerError(Exception):
    """The card, its reader or pyscard gives no answer. It never leaves this module."""


def is_piv(manufacturer: str) -> bool:
    """Whether a token with that manufacturer is a PIV card, as its module tells it."""
    return manufacturer in _PIV_MAKERS


def count_tries(reader: str) -> Counted | None:
    """How many tries the PIN of the card in that reader has; None where there is no answer."""

    def ask(card: _Card) -> Counted | None:
        _, status = card.transmit(_ASK_PIN)
        if status in (_BLOCKED, _SHOWN):
            return Counted(0 if status == _BLOCKED else None)
        return Counted(status & 0x0F) if status & 0xFFF0 == 0x63C0 else None

    return _asked(reader, ask)


def forget_pin(reader: str) -> None:
    """Have the card forget that the PIN was shown. Never fails: a card that went away has forgotten it.

    OpenSC's C_Logout forgets it in the module only, and any other program could use the card's keys until it is taken
    out. One that does not know the command is reset. Programs that showed the PIN themselves have to show it again.
    """
    with suppress(_NoAnswerError), _piv_application(reader) as card:
        _, status = card.transmit(_FORGET_PIN)
        card.reset_at_end = status != _SHOWN


def attestation(reader: str, slot: int, public_key: CoseKey) -> tuple[bytes, ...]:
    """The attestation certificates of the key in a slot, in DER: the slot's, and the card's.

    Empty where there are none: for a key that was imported, on a card that makes no attestations, and where the key
    that is attested is not `public_key`, for then the reader holds another card.
    """

    def ask(card: _Card) -> tuple[bytes, ...]:
        leaf = card.demand(_ATTEST + bytes((slot, 0x00, 0x00)))
        attester = _certificate_in(card.demand(_GET_ATTESTER))
        return (leaf, attester) if _same_key(leaf, public_key) else ()

    return _asked(reader, ask) or ()


def wants_pin_always(attestation: tuple[bytes, ...]) -> bool:
    """Whether the attested policy of a key is a PIN before each signature. PKCS#11 knows that of slot 9C only."""
    if not attestation:
        return False
    try:
        extensions = x509.load_der_x509_certificate(attestation[0]).extensions
        value = extensions.get_extension_for_oid(_POLICIES).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return isinstance(value, x509.UnrecognizedExtension) and value.value[:1] == _ALWAYS


def _asked(reader: str, ask: Callable[[_Card], _T]) -> _T | None:
    try:
        with _piv_application(reader) as card:
            return ask(card)
    except _NoAnswerError:
        return None


class _Card:
    """The card in a transaction."""

    def __init__(self, scard: Any, handle: Any, protocol: int) -> None:
        self._scard = scard
        self._handle = handle
        self._protocol = protocol
        self.reset_at_end = False

    def demand(self, apdu: bytes) -> bytes:
        """The answer to a command that must succeed."""
        answer, status = self.transmit(apdu)
        if status != 0x9000:
            raise _NoAnswerError
        return answer

    def transmit(self, apdu: bytes) -> tuple[bytes, int]:
        """The whole answer, GET RESPONSE included (ISO 7816-4 section 5.3.4), and the status word."""
        answer, status = self._once(apdu)
        for _ in range(_MOST_ANSWERS):
            if status >> 8 != 0x61:
                return answer, status
            more, status = self._once(bytes((0x00, 0xC0, 0x00, 0x00, status & 0xFF)))
            answer += more
        raise _NoAnswerError

    def _once(self, apdu: bytes) -> tuple[bytes, int]:
        scard = self._scard
        pci = scard.SCARD_PCI_T0 if self._protocol == scard.SCARD_PROTOCOL_T0 else scard.SCARD_PCI_T1
        result, answer = scard.SCardTransmit(self._handle, pci, list(apdu))
        if result != scard.SCARD_S_SUCCESS or len(answer) < 2:
            raise _NoAnswerError
        return bytes(answer[:-2]), int.from_bytes(bytes(answer[-2:]), "big")


@contextmanager
def _piv_application(reader: str) -> Iterator[_Card]:
    """The card with its PIV application selected. Others wait meanwhile; afterwards it is left as it is."""
    try:
        scard = importlib.import_module("smartcard.scard")
    except ImportError:
        raise _NoAnswerError from None
    result, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    _require(scard, result)
    try:
        protocols = scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
        found = _whole_name(scard, context, reader)
        result, handle, protocol = scard.SCardConnect(context, found, scard.SCARD_SHARE_SHARED, protocols)
        _require(scard, result)
        try:
            _require(scard, scard.SCardBeginTransaction(handle))
            card = _Card(scard, handle, protocol)
            try:
                card.demand(_SELECT)
                yield card
            finally:
                disposition = scard.SCARD_RESET_CARD if card.reset_at_end else scard.SCARD_LEAVE_CARD
                scard.SCardEndTransaction(handle, disposition)
        finally:
            scard.SCardDisconnect(handle, scard.SCARD_LEAVE_CARD)
    finally:
        scard.SCardReleaseContext(context)


def _whole_name(scard: Any, context: Any, reader: str) -> str:
    """The reader's name for PC/SC: PKCS#11 has the first 64 bytes of it (CK_SLOT_INFO)."""
    result, readers = scard.SCardListReaders(context, [])
    _require(scard, result)
    if reader in readers:
        return reader
    longer = [name for name in readers if len(reader.encode()) >= _SLOT_DESCRIPTION and name.startswith(reader)]
    if len(longer) != 1:
        raise _NoAnswerError
    return str(longer[0])


def _require(scard: Any, result: int) -> None:
    if result != scard.SCARD_S_SUCCESS:
        raise _NoAnswerError


def _certificate_in(answer: bytes) -> bytes:
    """The certificate in a data object (SP 800-73-4 part 1 appendix A, table 10). A compressed one is not read."""
    try:
        outer = DerReader(answer)
        content = outer.enter(_OBJECT)
        certificate = content.read(_CERTIFICATE)
        if content.read(_COMPRESSION) != b"\0":
            raise _NoAnswerError
        return certificate
    except DerError:
        raise _NoAnswerError from None


def _same_key(leaf: bytes, public_key: CoseKey) -> bool:
    try:
        found: Any = x509.load_der_x509_certificate(leaf).public_key()
        return CoseKey.from_public_key(found) == public_key
    except (ValueError, KeyvouchError):
        return False
