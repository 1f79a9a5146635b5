"""How the maker of an emulated TPM changes a standard one. Each function gets an `ESAPI` and the folder of the CA.

The platform hierarchy of a fresh emulated TPM has an empty authorization: whoever starts it may do what a maker does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key, load_pem_private_key
from cryptography.x509.oid import ExtensionOID
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPMA_NV, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_NV_PUBLIC
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

from keyvouch_bench.tpm_contents import read_nv, write_nv

RSA_CERTIFICATE: Final = 0x01C00002
P256_CERTIFICATE: Final = 0x01C0000A
P384_CERTIFICATE: Final = 0x01C00016
"""NV indices of endorsement certificates (TCG EK Credential Profile, section 2.2.1.4)."""

PLATFORM_CERTIFICATE: Final = 0x01C08000

P384_EK: Final = 0x81010016
SRK: Final = 0x81000001

_PADDING: Final = b"\xff" * 24
_READABLE: Final = TPMA_NV.PPREAD | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA
_MAKERS: Final = TPMA_NV.PPWRITE | TPMA_NV.WRITEDEFINE | TPMA_NV.PLATFORMCREATE | _READABLE
_STORAGE: Final = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.DECRYPT
)


def remove_certificates(esys: Any, _ca: Path) -> None:
    """Leave the endorsement keys without certificates, as makers do that offer them for download."""
    for index in (RSA_CERTIFICATE, P384_CERTIFICATE, PLATFORM_CERTIFICATE):
        _remove(esys, index)


def spoil_certificates(esys: Any, _ca: Path) -> None:
    """Encode both certificates anew, as BER allows and DER does not; the signed part stays as it is."""
    for index in (RSA_CERTIFICATE, P384_CERTIFICATE):
        certificate = read_nv(esys, index)
        _remove(esys, index)
        _define(esys, index, b"\x30\x83\x00" + certificate[2:] + _PADDING)


def remove_curve(esys: Any, _ca: Path) -> None:
    """Take away the endorsement key with a curve and its certificate."""
    esys.evict_control(ESYS_TR.PLATFORM, esys.tr_from_tpmpublic(P384_EK), P384_EK)
    _remove(esys, P384_CERTIFICATE)


def persist_srk(esys: Any, _ca: Path) -> None:
    """Make a storage root key persistent, as an operating system does that takes the TPM into use."""
    template = TPM2B_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=_STORAGE)
    key, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
    esys.evict_control(ESYS_TR.OWNER, key, SRK)
    esys.flush_context(key)


def certify_p256(esys: Any, ca: Path) -> None:
    """Issue a certificate for the P-256 endorsement key and store it; all it says but the key is the P-384 one's."""
    _, template = create_ek_template("EK-ECC256", _no_index)
    handle, public, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
    esys.flush_context(handle)
    pattern = x509.load_der_x509_certificate(read_nv(esys, P384_CERTIFICATE))
    _define(esys, P256_CERTIFICATE, _issue(pattern, load_der_public_key(public.to_der()), ca))


def _issue(pattern: x509.Certificate, key: Any, ca: Path) -> bytes:
    signer = load_pem_private_key((ca / "signkey.pem").read_bytes(), None)
    if not isinstance(signer, rsa.RSAPrivateKey):
        raise TypeError("the CA of the emulated TPM has an RSA key")
    builder = (
        x509.CertificateBuilder()
        .subject_name(pattern.subject)
        .issuer_name(pattern.issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(pattern.not_valid_before_utc)
        .not_valid_after(pattern.not_valid_after_utc)
        .public_key(key)
    )
    for extension in pattern.extensions:
        if extension.oid != ExtensionOID.SUBJECT_KEY_IDENTIFIER:
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def _no_index(index: int) -> bytes:
    """There are no templates or nonces in NV: the key is the one of the profile's template."""
    raise NoSuchIndex(index)


def _remove(esys: Any, index: int) -> None:
    esys.nv_undefine_space(esys.tr_from_tpmpublic(index), ESYS_TR.PLATFORM)


def _define(esys: Any, index: int, content: bytes) -> None:
    """An index like those of the maker: read by everybody, written with platform authorization only."""
    public = TPMS_NV_PUBLIC(nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=_MAKERS, dataSize=len(content))
    handle = esys.nv_define_space(None, TPM2B_NV_PUBLIC(nvPublic=public), ESYS_TR.PLATFORM)
    write_nv(esys, handle, content, ESYS_TR.PLATFORM)
