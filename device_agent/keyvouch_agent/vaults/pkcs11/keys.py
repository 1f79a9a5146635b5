"""Key pairs on a token: those it makes for us, and those it already has.

A key that is made here must be made on the token, sensitive and never extractable, and the token must say so itself
afterwards (PKCS#11 sections 4.9 and 5.14.1): else it is destroyed. A key that was there is taken if it is private,
signs, and does not come out now; who made it, and whether a copy is kept somewhere, only an attestation can tell.

What is *not* here: signatures (`signing`), and attestation (`piv`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pkcs11
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.exceptions import AttributeTypeInvalid, PKCS11Error
from pkcs11.util.ec import encode_named_curve_parameters

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.vaults.pkcs11.failures import key_lost, key_not_fit
from keyvouch_agent.vaults.pkcs11.signing import KEY_TYPES, RSA_BITS

__all__ = [
    "LABEL_PREFIX",
    "CertifiedKey",
    "another_key",
    "certified_keys",
    "check_existing",
    "destroy",
    "generate",
    "label_for",
    "private_key",
]

LABEL_PREFIX: Final = "keyvouch:"
_LONGEST_LABEL: Final = 200
_CURVES: Final = {Algorithm.ES256: ec.SECP256R1(), Algorithm.ES384: ec.SECP384R1()}
_MUST: Final = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
    Attribute.SIGN: True,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
"""What a token must say of a key that it made here."""

_MUST_OF_EXISTING: Final = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
}


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """A key that a token has a certificate for: its CKA_ID, the certificate's label and DER, and what it can sign."""

    id: bytes
    label: str
    certificate: bytes
    public_key: CoseKey

    @property
    def algorithm(self) -> Algorithm:
        """What it signs with."""
        return self.public_key.algorithm


def label_for(rp_id: str, user_name: str) -> str:
    """The label of a key, by which people tell it from others in the token's own tools."""
    return f"{LABEL_PREFIX}{rp_id}:{user_name}"[:_LONGEST_LABEL]


def generate(session: pkcs11.Session, algorithm: Algorithm, key_id: bytes, label: str, *, pin_always: bool) -> CoseKey:
    """Have a key pair made that signs and does nothing else. One that is not as it must be is destroyed.

    Raises `DeviceError(UNSUPPORTED)` then.
    """
    private: dict[Attribute, Any] = {
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.DECRYPT: False,
        Attribute.UNWRAP: False,
        Attribute.DERIVE: False,
    }
    if pin_always:
        private[Attribute.ALWAYS_AUTHENTICATE] = True
    common: dict[str, Any] = {
        "id": key_id,
        "label": label,
        "store": True,
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
        "private_template": private,
    }
    if KEY_TYPES[algorithm] is KeyType.EC:
        curve = {Attribute.EC_PARAMS: encode_named_curve_parameters(_CURVES[algorithm].name)}
        parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
        public, key = parameters.generate_keypair(**common)
    else:
        public, key = session.generate_keypair(KeyType.RSA, RSA_BITS, **common)
    try:
        _require(key, _MUST if not pin_always else {**_MUST, Attribute.ALWAYS_AUTHENTICATE: True})
        return _public_key(public, algorithm)
    except BaseException:
        destroy(session, [key_id])
        raise


def destroy(session: pkcs11.Session, key_ids: Iterable[bytes]) -> None:
    """Destroy key pairs that were made here. What bears no label of ours stays, whatever its CKA_ID."""
    for key_id in key_ids:
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            for found in list(session.get_objects({Attribute.CLASS: kind, Attribute.ID: key_id})):
                if _label(found).startswith(LABEL_PREFIX):
                    found.destroy()


def private_key(session: pkcs11.Session, key_id: bytes, algorithm: Algorithm) -> Any:
    """The private key of that CKA_ID. Raises `DeviceError(DEVICE_KEY_LOST)` where there is none, or several."""
    wanted = {
        Attribute.CLASS: ObjectClass.PRIVATE_KEY,
        Attribute.ID: key_id,
        Attribute.KEY_TYPE: KEY_TYPES[algorithm],
    }
    found = list(session.get_objects(wanted))
    if len(found) != 1:
        raise key_lost()
    return found[0]


def certified_keys(session: pkcs11.Session) -> Iterator[CertifiedKey]:
    """The certificates on a token that have keys we can use. They can be read without the PIN."""
    for found in list(session.get_objects({Attribute.CLASS: ObjectClass.CERTIFICATE})):
        try:
            content = bytes(found[Attribute.VALUE])
            public = x509.load_der_x509_certificate(content).public_key()
            if not isinstance(public, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
                continue
            key, key_id = CoseKey.from_public_key(public), bytes(found[Attribute.ID])
        except (PKCS11Error, ValueError, KeyvouchError):
            continue  # a certificate for something else, or none at all
        if key.algorithm in KEY_TYPES:
            yield CertifiedKey(key_id, _label(found), content, key)


def check_existing(key: Any) -> bool:
    """Whether the key wants the PIN each time. Raises `DeviceError(UNSUPPORTED)` for one that is not to be used."""
    _require(key, _MUST_OF_EXISTING)
    return _attribute(key, Attribute.ALWAYS_AUTHENTICATE) is True


def _require(key: Any, wanted: dict[Attribute, bool]) -> None:
    for attribute, value in wanted.items():
        if _attribute(key, attribute) is not value:
            raise key_not_fit(f"the token does not say that {attribute.name} is {str(value).lower()}")


def _attribute(key: Any, attribute: Attribute) -> Any:
    """None for one that the token does not know, or gives in a form that is none."""
    try:
        return key[attribute]
    except (AttributeTypeInvalid, struct.error):
        return None


def _label(found: Any) -> str:
    """The label of an object; empty where there is none in UTF-8, for other programs write what they like."""
    try:
        return str(found[Attribute.LABEL])
    except (UnicodeDecodeError, AttributeTypeInvalid):
        return ""


def _public_key(public: Any, algorithm: Algorithm) -> CoseKey:
    try:
        loaded = _ec_key(public, algorithm) if KEY_TYPES[algorithm] is KeyType.EC else _rsa_key(public)
        return CoseKey.from_public_key(loaded, algorithm)
    except (ValueError, KeyvouchError) as error:
        raise another_key() from error


def another_key() -> DeviceError:
    """A new key is not the one that it should be."""
    return DeviceError(
        Reason.DEVICE_FAILED,
        "The token made another key than the one it was asked for.",
        fix="Use another token, and tell the maker of this one.",
    )


def _ec_key(public: Any, algorithm: Algorithm) -> ec.EllipticCurvePublicKey:
    """CKA_EC_POINT is the DER of an OCTET STRING with the point in it; some tokens leave that away."""
    curve, point = _CURVES[algorithm], bytes(public[Attribute.EC_POINT])
    length = 1 + 2 * (curve.key_size // 8)
    if len(point) == length + 2 and point[:2] == bytes((0x04, length)):
        point = point[2:]
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)


def _rsa_key(public: Any) -> rsa.RSAPublicKey:
    modulus, exponent = public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT]
    return rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")).public_key()
