"""The fields of an endorsement key certificate (RFC 5280 section 4.1), read with tolerance for what makers do.

Tolerated are serial numbers that are negative or have needless leading bytes, a default of `critical` or `cA` that is
written out, any byte but zero for true, bits of a key usage that are set and unused, RSA keys of the type for
RSAES-OAEP and with any parameters. Whoever reads has put encodings right before (`keyvouch.attestation.ber`). Every
function raises `DerError`, or another `ValueError` for texts and dates.

What is not here: wrappings and signatures (`keyvouch.attestation.endorsement_certificate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keyvouch.attestation.ber import to_der
from keyvouch.attestation.der import BOOLEAN, INTEGER, OCTET_STRING, SEQUENCE, SET, DerError, DerReader, Tag, explicit

__all__ = [
    "BASIC_CONSTRAINTS",
    "EXTENDED_KEY_USAGE",
    "KEY_USAGE",
    "SUBJECT_ALTERNATIVE_NAME",
    "DistinguishedName",
    "Extension",
    "KeyNumbers",
    "SignedFields",
    "read_algorithm",
    "read_alternative_names",
    "read_basic_constraints",
    "read_bits",
    "read_extended_key_usage",
    "read_key_usage",
    "read_signed",
    "subject_of",
]

KeyNumbers: TypeAlias = rsa.RSAPublicNumbers | ec.EllipticCurvePublicNumbers
DistinguishedName: TypeAlias = tuple[frozenset[tuple[bytes, str]], ...]
"""Relative names in their order, each a set of object identifiers and texts. Equal whatever types the texts have."""

# Contents of object identifiers. Extensions are those of RFC 5280 section 4.2.1.
KEY_USAGE: Final = bytes.fromhex("551d0f")
SUBJECT_ALTERNATIVE_NAME: Final = bytes.fromhex("551d11")
BASIC_CONSTRAINTS: Final = bytes.fromhex("551d13")
EXTENDED_KEY_USAGE: Final = bytes.fromhex("551d25")

# The signed part (RFC 5280 section 4.1)

_BIT_STRING, _OID, _UTC_TIME, _GENERALIZED_TIME = Tag(3), Tag(6), Tag(23), Tag(24)
_VERSION_3 = 2
_LONGEST_SERIAL = 64
"""Bytes. RFC 5280 allows 20 (section 4.1.2.2), some makers write more. A number without bound cannot be printed."""
_LONGEST_RSA = 1024
"""Bytes of a modulus or exponent; a TPM has moduli of up to 512."""


class Extension(NamedTuple):
    """Whether it is marked critical, and its value as received."""

    critical: bool
    value: bytes


class SignedFields(NamedTuple):
    """A TBSCertificate. The algorithm identifier is the content of a DER sequence, times are aware."""

    signature_algorithm: bytes
    serial: int
    issuer: DistinguishedName
    not_before: datetime
    not_after: datetime
    subject: DistinguishedName
    key: KeyNumbers
    extensions: Mapping[bytes, Extension]


def read_signed(data: bytes) -> SignedFields:
    """Read a TBSCertificate of version 3."""
    reader = DerReader(data).enter(SEQUENCE)
    version = reader.enter(explicit(0))
    if version.integer() != _VERSION_3:
        raise DerError("It is not of version 3.")
    version.end()
    serial = reader.read(INTEGER)  # some makers' are negative or not shortest
    if len(serial) > _LONGEST_SERIAL:
        raise DerError("Its serial number is too long.")
    number = int.from_bytes(serial, "big", signed=True)
    algorithm, issuer = reader.read(SEQUENCE), _read_name(reader.enter(SEQUENCE))
    validity = reader.enter(SEQUENCE)
    not_before, not_after = _time(validity), _time(validity)
    validity.end()
    subject, key = _read_name(reader.enter(SEQUENCE)), _read_key(reader.enter(SEQUENCE))
    return SignedFields(algorithm, number, issuer, not_before, not_after, subject, key, _read_extensions(reader))


def subject_of(signed: bytes) -> DistinguishedName:
    """Return the subject of a TBSCertificate of version 3 that is DER. Raises `DerError`, `UnicodeDecodeError`."""
    reader = DerReader(signed).enter(SEQUENCE)
    reader.read(explicit(0))
    for _ in ("serial number", "signature", "issuer", "validity"):
        reader.any()
    return _read_name(reader.enter(SEQUENCE))


def _read_name(name: DerReader) -> DistinguishedName:
    """Section 4.1.2.4. Makers write the same name in several types of text, so the types do not count (section 7.1)."""
    relative_names = []
    while name:
        relative_names.append(frozenset(_read_attributes(name.enter(SET))))
    return tuple(relative_names)


def _read_attributes(relative: DerReader) -> Iterator[tuple[bytes, str]]:
    while relative:
        attribute = relative.enter(SEQUENCE)
        oid, (tag, content) = attribute.read(_OID), attribute.any()
        attribute.end()
        if tag not in _TEXTS:
            raise DerError("An attribute of a name is no text.")
        yield oid, content.decode(_TEXTS[tag])


_TEXTS: Mapping[Tag, str] = {
    Tag(12): "utf-8",
    Tag(19): "ascii",  # PrintableString
    Tag(20): "latin-1",  # TeletexString, as everybody uses it
    Tag(22): "ascii",  # IA5String
    Tag(30): "utf-16-be",  # BMPString
}


def _time(reader: DerReader) -> datetime:
    """Section 4.1.2.5: to the second, in universal time; two-digit years are 1950 to 2049."""
    tag, content = reader.any()
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text[:1] < "5" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise DerError("A time is of neither of its two types.")
    if len(text) != 15 or not text[:14].isdecimal():
        raise DerError("A time is not written to the second in universal time.")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def read_algorithm(identifier: bytes) -> bytes:
    """The object identifier of a signature algorithm; all that are used have no parameters, or NULL."""
    reader = DerReader(identifier)
    oid = reader.read(_OID)
    if reader and reader.any() != (Tag(5), b""):
        raise DerError("The signature algorithm has parameters.")
    reader.end()
    return oid


def read_bits(content: bytes) -> bytes:
    """The bytes of a bit string that is made of whole bytes."""
    if content[:1] != b"\0":
        raise DerError("A bit string is not made of whole bytes.")
    return content[1:]


def _read_extensions(reader: DerReader) -> Mapping[bytes, Extension]:
    """The rest of the signed part. No maker uses the unique identifiers that might stand before the extensions."""
    wrapped = reader.enter(explicit(3))
    reader.end()
    items = wrapped.enter(SEQUENCE)
    wrapped.end()
    extensions: dict[bytes, Extension] = {}
    while items:
        item = items.enter(SEQUENCE)
        oid, (tag, content) = item.read(_OID), item.any()
        critical = False
        if tag == BOOLEAN:  # FALSE is the default, which some makers write out
            critical, (tag, content) = _truth(content), item.any()
        item.end()
        if tag != OCTET_STRING or oid in extensions:
            raise DerError("An extension is malformed or stands there twice.")
        extensions[oid] = Extension(critical, content)
    return extensions


# Keys (RFC 3279 section 2.3)

_RSA_KEYS = (
    bytes.fromhex("2a864886f70d010101"),  # rsaEncryption
    bytes.fromhex("2a864886f70d010107"),  # id-RSAES-OAEP, on chips made for the older profile
)
_EC_KEY = bytes.fromhex("2a8648ce3d0201")
_CURVES: Mapping[bytes, ec.EllipticCurve] = {
    bytes.fromhex("2a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("2b81040022"): ec.SECP384R1(),
    bytes.fromhex("2b81040023"): ec.SECP521R1(),
}


def _read_key(reader: DerReader) -> KeyNumbers:
    """Read a SubjectPublicKeyInfo. What parameters an RSA key has, if any, does not matter: the key is compared."""
    algorithm, bits = reader.enter(SEQUENCE), read_bits(reader.read(_BIT_STRING))
    reader.end()
    oid = algorithm.read(_OID)
    if oid in _RSA_KEYS:
        return _read_rsa(bits)
    if oid != _EC_KEY:
        raise DerError("Its key is neither an RSA nor an elliptic curve key.")
    curve = _CURVES.get(algorithm.read(_OID))
    algorithm.end()
    size = 0 if curve is None else (curve.key_size + 7) // 8
    if curve is None or bits[:1] != b"\x04" or len(bits) != 1 + 2 * size:
        raise DerError("Its curve is not supported or its point is not a plain one.")
    x, y = bits[1 : 1 + size], bits[1 + size :]
    return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)


def _read_rsa(bits: bytes) -> rsa.RSAPublicNumbers:
    outer = DerReader(to_der(bits))
    reader = outer.enter(SEQUENCE)
    modulus, exponent = reader.read(INTEGER), reader.read(INTEGER)
    reader.end()
    outer.end()
    if len(modulus) > _LONGEST_RSA or len(exponent) > _LONGEST_RSA:
        raise DerError("Its RSA key is too long.")
    return rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))


# Extensions

_DIRECTORY_NAME = explicit(4)


def _value(extension: Extension, tag: Tag) -> bytes:
    """The content of the one element that the value is."""
    reader = DerReader(to_der(extension.value))
    content = reader.read(tag)
    reader.end()
    return content


def _truth(content: bytes) -> bool:
    """A BOOLEAN as BER has it: one byte, any but zero is true (X.690 section 8.2)."""
    if len(content) != 1:
        raise DerError("A truth value is not one byte.")
    return content != b"\0"


def read_basic_constraints(extension: Extension | None) -> bool | None:
    """Whether the subject is a certification authority (section 4.2.1.9); a path length alone makes none."""
    if extension is None:
        return None
    reader, elements = DerReader(_value(extension, SEQUENCE)), []
    while reader:
        elements.append(reader.any())
    tags = [tag for tag, _ in elements]
    if tags not in _CONSTRAINTS or not all(content for _, content in elements):
        raise DerError("The basic constraints are malformed.")
    return BOOLEAN in tags and _truth(elements[0][1])


_CONSTRAINTS: tuple[list[Tag], ...] = ([], [BOOLEAN], [INTEGER], [BOOLEAN, INTEGER])
"""The elements that basic constraints may have."""


def read_key_usage(extension: Extension | None) -> int | None:
    """The first byte of the bits, those that are unused being zero (section 4.2.1.3; X.690 section 8.6.2)."""
    if extension is None:
        return None
    content = _value(extension, _BIT_STRING)
    if not content or content[0] > (7 if len(content) > 1 else 0):
        raise DerError("The key usage is malformed.")
    unused, bits = content[0], int.from_bytes(content[1:], "big")
    return int.from_bytes((bits >> unused << unused).to_bytes(len(content) - 1, "big")[:1], "big")


def read_extended_key_usage(extension: Extension | None) -> tuple[bytes, ...] | None:
    """Object identifiers of purposes (section 4.2.1.12)."""
    if extension is None:
        return None
    reader, purposes = DerReader(_value(extension, SEQUENCE)), []
    while reader:
        purposes.append(reader.read(_OID))
    return tuple(purposes)


def read_alternative_names(extension: Extension | None) -> Mapping[bytes, str]:
    """The attributes of directory names (EK Credential Profile, section 3.1.2). None may stand there twice."""
    texts: dict[bytes, str] = {}
    names = DerReader(b"" if extension is None else _value(extension, SEQUENCE))
    while names:
        tag, content = names.any()
        if tag != _DIRECTORY_NAME:
            continue
        choice = DerReader(content)
        name = _read_name(choice.enter(SEQUENCE))
        choice.end()
        for oid, text in chain.from_iterable(name):
            if oid in texts:
                raise DerError("The alternative name states an attribute twice.")
            texts[oid] = text
    return texts
