"""What the keys are that the agent makes in a TPM: one template for each purpose.

    storage root key   P-256 or RSA-2048, restricted decryption (TCG TPM v2.0 Provisioning Guidance, section 7.5.1)
    attestation key    restricted signing, a primary key of the endorsement hierarchy: what it signs is true
    credential key     signs behind the PIN gate, and by nothing else
    channel key        signs for the device channel, without a PIN; always on P-256
    sealed data        32 bytes of the agent's that the TPM gives out behind the PIN gate, and by nothing else

All keys: fixedTPM, fixedParent, sensitiveDataOrigin (made inside, never leaves). Everything is noDA, so that no use of
it can ever lock the owner out. What is not here: endorsement keys, whose templates their makers chose (`endorsement`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tpm2_pytss import (
    TPM2_ALG,
    TPM2_ECC,
    TPM2B_DIGEST,
    TPM2B_PUBLIC,
    TPMA_OBJECT,
    TPMS_ECC_PARMS,
    TPMS_ECC_POINT,
    TPMS_KEYEDHASH_PARMS,
    TPMS_RSA_PARMS,
    TPMS_SCHEME_HASH,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_KEYEDHASH_SCHEME,
    TPMT_PUBLIC,
    TPMT_RSA_SCHEME,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
    TPMT_SYM_DEF_OBJECT,
    TPMU_ASYM_SCHEME,
    TPMU_PUBLIC_ID,
    TPMU_PUBLIC_PARMS,
    TPMU_SIG_SCHEME,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from keyvouch.cose import Algorithm

__all__ = [
    "AES_128_CFB",
    "KINDS",
    "KeyKind",
    "attestation_key",
    "channel_key",
    "credential_key",
    "scheme_of",
    "sealed_data",
    "storage_root_key",
]

_MADE_INSIDE = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
_STORAGE = _MADE_INSIDE | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT | TPMA_OBJECT.NODA
_ATTESTATION = (
    _MADE_INSIDE | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.NODA
)
_CREDENTIAL = _MADE_INSIDE | TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.NODA
_CHANNEL = _CREDENTIAL | TPMA_OBJECT.USERWITHAUTH
_SEALED = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.NODA
_RSA_BITS: Final = 2048

AES_128_CFB: Final = TPMT_SYM_DEF(
    algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
)
"""How parameters are encrypted on their way to the TPM and back."""


@dataclass(frozen=True, slots=True)
class KeyKind:
    """A kind of key a TPM may be able to make: its COSE algorithm, and its curve or None for RSA."""

    algorithm: Algorithm
    curve: int | None
    hash: int
    signature: int


KINDS: Final[Mapping[Algorithm, KeyKind]] = {
    Algorithm.ES256: KeyKind(Algorithm.ES256, TPM2_ECC.NIST_P256, TPM2_ALG.SHA256, TPM2_ALG.ECDSA),
    Algorithm.ES384: KeyKind(Algorithm.ES384, TPM2_ECC.NIST_P384, TPM2_ALG.SHA384, TPM2_ALG.ECDSA),
    Algorithm.RS256: KeyKind(Algorithm.RS256, None, TPM2_ALG.SHA256, TPM2_ALG.RSASSA),
}
"""The kinds the agent makes, best first."""


def storage_root_key(kind: KeyKind) -> TPM2B_PUBLIC:
    """The template of a storage root key: P-256 or P-384, or RSA."""
    symmetric = TPMT_SYM_DEF_OBJECT(
        algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
    )
    return _public(kind, _STORAGE, symmetric, with_scheme=False)


def attestation_key(kind: KeyKind, unique: bytes) -> TPM2B_PUBLIC:
    """The template of an attestation key. `unique` (32 bytes) makes it another one for each account."""
    made = _public(kind, _ATTESTATION, _NO_CIPHER, with_scheme=True)
    made.publicArea.unique = _unique(kind, unique)
    return made


def credential_key(kind: KeyKind, policy: bytes) -> TPM2B_PUBLIC:
    """The template of a key behind a PIN gate."""
    return _public(kind, _CREDENTIAL, _NO_CIPHER, with_scheme=False, policy=policy)


def channel_key() -> TPM2B_PUBLIC:
    """The template of the device channel's key."""
    return _public(KINDS[Algorithm.ES256], _CHANNEL, _NO_CIPHER, with_scheme=False)


def sealed_data(policy: bytes) -> TPM2B_PUBLIC:
    """The template of an object that is only data, behind a PIN gate (TPM2_Unseal)."""
    detail = TPMS_KEYEDHASH_PARMS(scheme=TPMT_KEYEDHASH_SCHEME(scheme=TPM2_ALG.NULL))
    area = TPMT_PUBLIC(
        type=TPM2_ALG.KEYEDHASH,
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=_SEALED,
        authPolicy=TPM2B_DIGEST(policy),
        parameters=TPMU_PUBLIC_PARMS(keyedHashDetail=detail),
    )
    return TPM2B_PUBLIC(publicArea=area)


def scheme_of(kind: KeyKind) -> TPMT_SIG_SCHEME:
    """The signature scheme of a kind, for a key that leaves it open."""
    details = TPMU_SIG_SCHEME(any=TPMS_SCHEME_HASH(hashAlg=kind.hash))
    return TPMT_SIG_SCHEME(scheme=kind.signature, details=details)


_NO_CIPHER = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL)


def _public(
    kind: KeyKind, attributes: int, symmetric: TPMT_SYM_DEF_OBJECT, *, with_scheme: bool, policy: bytes = b""
) -> TPM2B_PUBLIC:
    scheme = _asymmetric(kind, with_scheme=with_scheme)
    if kind.curve is None:
        detail = TPMS_RSA_PARMS(symmetric=symmetric, scheme=scheme, keyBits=_RSA_BITS, exponent=0)
        parameters = TPMU_PUBLIC_PARMS(rsaDetail=detail)
    else:
        kdf = TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL)
        ecc = TPMS_ECC_PARMS(symmetric=symmetric, scheme=scheme, curveID=kind.curve, kdf=kdf)
        parameters = TPMU_PUBLIC_PARMS(eccDetail=ecc)
    area = TPMT_PUBLIC(
        type=TPM2_ALG.RSA if kind.curve is None else TPM2_ALG.ECC,
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=attributes,
        authPolicy=TPM2B_DIGEST(policy),
        parameters=parameters,
    )
    return TPM2B_PUBLIC(publicArea=area)


def _asymmetric(kind: KeyKind, *, with_scheme: bool) -> Any:
    made = TPMT_RSA_SCHEME if kind.curve is None else TPMT_ECC_SCHEME
    if not with_scheme:
        return made(scheme=TPM2_ALG.NULL)
    return made(scheme=kind.signature, details=TPMU_ASYM_SCHEME(anySig=TPMS_SCHEME_HASH(hashAlg=kind.hash)))


def _unique(kind: KeyKind, unique: bytes) -> TPMU_PUBLIC_ID:
    if kind.curve is None:
        return TPMU_PUBLIC_ID(rsa=unique)
    return TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=unique, y=b""))
