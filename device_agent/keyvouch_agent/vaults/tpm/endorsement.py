"""The endorsement key and its certificates: which one the TPM has, how it is made, and how it opens a challenge.

The certificate stands in NV memory beside the template it is for (TCG EK Credential Profile 2.5, section 2.2.1 and
annex B), those of its issuers in a range of their own (section 2.2.1.6), or an administrator put one into a file. A key
on a curve is made in milliseconds where RSA takes seconds, so curves come first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from tpm2_pytss import (
    ESYS_TR,
    TPM2_CAP,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMA_SESSION,
)
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

from keyvouch.attestation.endorsement import EndorsementCertificate, split_certificates
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.vaults.tpm.answers import listed, making_sense, senseless
from keyvouch_agent.vaults.tpm.connection import WITHHELD, Tpm
from keyvouch_agent.vaults.tpm.profile import nv_handles
from keyvouch_agent.vaults.tpm.response_codes import Code, Words
from keyvouch_agent.vaults.tpm.sessions import owner_session, policy_session, secret_session

__all__ = [
    "EndorsementKey",
    "activate",
    "certificate_from_file",
    "certificate_places",
    "find_endorsement_key",
    "issuers",
    "read_nv",
]

_KINDS: Final[tuple[tuple[str, int], ...]] = (
    ("EK-HIGH-ECC256", 0x01C0_0014),
    ("EK-ECC256", 0x01C0_000A),
    ("EK-HIGH-ECC384", 0x01C0_0016),
    ("EK-RSA2048", 0x01C0_0002),
    ("EK-HIGH-RSA2048", 0x01C0_0012),
    ("EK-HIGH-RSA3072", 0x01C0_001C),
)
"""The templates the agent knows, and where their certificates stand; best first."""
_WITHOUT_CERTIFICATE: Final = ("EK-ECC256", "EK-RSA2048")
_ISSUERS: Final = range(0x01C0_0100, 0x01C0_0200)
_PERSISTENT: Final = range(0x8101_0000, 0x8102_0000)
"""Where endorsement keys are kept (TCG Registry of Reserved TPM 2.0 Handles, section 2.3.1)."""
_LARGEST_READ: Final = 512
_ABSENT: Final = {Code.HANDLE: Words(Reason.KEY_NOT_FOUND, "There is no such index.", "Nothing has to be done.")}


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """An endorsement key, loaded and held or persistent. `certificates`: its own first, as they were found."""

    handle: Any
    public: TpmPublic
    certificates: tuple[bytes, ...]
    loaded: bool
    """Whether it takes room in the TPM, which a persistent one does not."""


def find_endorsement_key(tpm: Tpm, *, has_curves: bool) -> EndorsementKey:
    """The endorsement key that somebody vouches for, else the one of the usual template.

    A certificate that no server believes can be withheld: the TPM is then one that nobody vouches for.
    """
    if tpm.settings.endorsement_certificate == WITHHELD:
        return _made(tpm, _WITHOUT_CERTIFICATE[0 if has_curves else 1], ())
    certificate, taken = certificate_from_file(tpm.settings.endorsement_certificate), nv_handles(tpm)
    if certificate:
        return _made(tpm, _kind_of(certificate), (certificate, *issuers(tpm, taken)))
    for kind, handle in _KINDS:
        if handle in taken:
            return _made(tpm, kind, (read_nv(tpm, handle), *issuers(tpm, taken)))
    _check_absent(tpm)
    return _made(tpm, _WITHOUT_CERTIFICATE[0 if has_curves else 1], ())


def _check_absent(tpm: Tpm) -> None:
    """Ask for each certificate by name: a list that was cut off says too that there is none."""
    for _, handle in _KINDS:
        try:
            tpm.expecting(_ABSENT, tpm.esapi.tr_from_tpmpublic, handle)
        except DeviceError as error:
            if error.reason is not Reason.KEY_NOT_FOUND:
                raise
        else:
            raise senseless("a list of its NV indices in which one is missing")


def certificate_places(taken: frozenset[int]) -> tuple[int, ...]:
    """Which of these NV indices hold certificates of endorsement keys, the preferred one first."""
    return tuple(handle for _, handle in _KINDS if handle in taken)


def read_nv(tpm: Tpm, index: int) -> bytes:
    """The contents of an NV index, by its own empty authorization. Raises `DeviceError(KEY_NOT_FOUND)`."""
    handle = tpm.expecting(_ABSENT, tpm.esapi.tr_from_tpmpublic, index)
    area = tpm.do(tpm.esapi.nv_read_public, handle)[0]
    size, contents = int(area.nvPublic.dataSize), b""
    while len(contents) < size:
        part = min(_LARGEST_READ, size - len(contents))
        read = bytes(tpm.do(tpm.esapi.nv_read, handle, part, len(contents)))
        if len(read) != part:
            raise senseless("another part of an NV index than the one asked for")
        contents += read
    return contents


def activate(
    tpm: Tpm, key: EndorsementKey, attestation_key: Any, parent: Any, *, credential_blob: bytes, encrypted_secret: bytes
) -> bytes:
    """Open a challenge: the secret, which crosses the bus encrypted (Part 3, TPM2_ActivateCredential)."""
    with tpm.undoing():
        hidden = secret_session(tpm, parent)
        tpm.esapi.trsess_set_attributes(hidden, TPMA_SESSION.ENCRYPT)
        allowed = _authorization(tpm, key, parent)
        secret = tpm.expecting(
            _REFUSED,
            tpm.esapi.activate_credential,
            attestation_key,
            key.handle,
            TPM2B_ID_OBJECT(credential=credential_blob),
            TPM2B_ENCRYPTED_SECRET(secret=encrypted_secret),
            hidden,
            allowed,
        )
    tpm.spent(hidden)
    tpm.spent(allowed)
    return bytes(secret)


_NOT_FOR_US: Final = Words(
    Reason.TPM_ACTIVATION,
    "The TPM cannot open the server's challenge: it was made for another TPM.",
    "Begin the registration again. If it goes on, tell your administrator.",
)
_REFUSED: Final = {Code.INTEGRITY: _NOT_FOR_US, Code.VALUE: _NOT_FOR_US, Code.SIZE: _NOT_FOR_US}


def _authorization(tpm: Tpm, key: EndorsementKey, parent: Any) -> Any:
    """What the endorsement key wants: nothing, or the endorsement hierarchy's password (PolicyA)."""
    if int(key.public.attributes) & int(TPMA_OBJECT.USERWITHAUTH):
        return ESYS_TR.PASSWORD
    session = policy_session(tpm)
    with owner_session(tpm, tpm.settings.endorsement_auth, parent=parent) as shown:
        tpm.do(tpm.esapi.policy_secret, ESYS_TR.ENDORSEMENT, session, expiration=0, session1=shown)
    return session


def _made(tpm: Tpm, kind: str, certificates: tuple[bytes, ...]) -> EndorsementKey:
    """The key of a template: the persistent one, if it is the certificate's, else made anew."""
    if certificates and (found := _persistent(tpm, certificates[0])) is not None:
        return EndorsementKey(found[0], found[1], certificates, loaded=False)
    template = create_ek_template(kind, _reader(tpm))[1]
    with owner_session(tpm, tpm.settings.endorsement_auth) as session:
        made = tpm.do(
            tpm.esapi.create_primary, TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT, session1=session
        )
    return EndorsementKey(tpm.hold(made[0]), _area(made[1]), certificates, loaded=True)


def _persistent(tpm: Tpm, certificate: bytes) -> tuple[Any, TpmPublic] | None:
    try:
        wanted = EndorsementCertificate.parse(certificate).key
    except KeyvouchError:
        return None  # the server shall judge it
    for number in listed(tpm, TPM2_CAP.HANDLES, _PERSISTENT.start):
        if number not in _PERSISTENT:
            continue
        try:
            handle = tpm.expecting(_ABSENT, tpm.esapi.tr_from_tpmpublic, number)
        except DeviceError as error:
            if error.reason is not Reason.KEY_NOT_FOUND:
                raise
            continue  # removed since it was listed
        try:
            public = _area(tpm.do(tpm.esapi.read_public, handle)[0])
        except KeyvouchError:
            continue  # a key of another kind
        if public.key.public_numbers() == wanted:
            return handle, public
    return None


def _area(public: TPM2B_PUBLIC) -> TpmPublic:
    with making_sense("an endorsement key"):
        return TpmPublic(bytes(public.publicArea.marshal()))


def _reader(tpm: Tpm) -> Callable[[int], bytes]:
    """What tpm2-pytss reads templates and nonces by."""

    def read(index: int) -> bytes:
        try:
            return read_nv(tpm, index)
        except DeviceError as error:
            if error.reason is Reason.KEY_NOT_FOUND:
                raise NoSuchIndex(index) from None
            raise

    return read


def issuers(tpm: Tpm, taken: frozenset[int]) -> tuple[bytes, ...]:
    """Certificates of issuers that the TPM brings along: one sequence, however it is spread over NV indices."""
    handles = sorted(handle for handle in taken if handle in _ISSUERS)
    together = b"".join(read_nv(tpm, handle) for handle in handles)
    try:
        return tuple(split_certificates(together)) if together else ()
    except KeyvouchError:
        return ()


def certificate_from_file(path: str) -> bytes:
    """The certificate an administrator named, empty for no path. Raises `DeviceError(TPM_EK_CERTIFICATE)`."""
    if not path:
        return b""
    try:
        return _decoded(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise DeviceError(
            Reason.TPM_EK_CERTIFICATE,
            f"The certificate of the endorsement key in {path} cannot be read: {error}.",
            fix="Correct [tpm] endorsement_certificate in agent.toml: a file in PEM or DER.",
        ) from None


def _decoded(data: bytes) -> bytes:
    """DER out of PEM; anything else as it is, for the server to judge."""
    from base64 import b64decode  # noqa: PLC0415

    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    if begin not in data:
        return data
    return b64decode(b"".join(data.partition(begin)[2].partition(end)[0].split()), validate=True)


def _kind_of(certificate: bytes) -> str:
    """The usual template of the kind of key a certificate is for."""
    try:
        key = EndorsementCertificate.parse(certificate).key
    except KeyvouchError:
        return _WITHOUT_CERTIFICATE[0]
    if isinstance(key, rsa.RSAPublicNumbers):
        return "EK-RSA2048"
    return "EK-ECC256" if key.curve.name == "secp256r1" else "EK-HIGH-ECC384"
