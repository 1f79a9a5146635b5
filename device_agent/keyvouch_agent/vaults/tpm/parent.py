"""The storage root key: the parent of every key the agent makes in a TPM, and what secrets on the bus are salted to.

The owner's persistent one at 0x81000001 is used where there is one, else the same key is made anew each time from the
standard template; it is then a matter of a command more. Its name is pinned with the account: under another name there
is another TPM, or this one was cleared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tpm2_pytss import ESYS_TR, TPM2B_SENSITIVE_CREATE

from keyvouch.attestation.tpm_public import TpmObjectAttributes, TpmPublic
from keyvouch.cose import Algorithm
from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.vaults.tpm.account_file import StorageParent
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.key_file import OWNER
from keyvouch_agent.vaults.tpm.profile import TpmProfile
from keyvouch_agent.vaults.tpm.response_codes import REENROL, Code, Words
from keyvouch_agent.vaults.tpm.sessions import owner_session
from keyvouch_agent.vaults.tpm.templates import KINDS, storage_root_key

__all__ = ["PERSISTENT", "choose_parent", "number_of", "open_parent", "parents"]

PERSISTENT: Final = 0x8100_0001
"""Where the storage root key stands (TCG TPM v2.0 Provisioning Guidance, section 7.8)."""

_A = TpmObjectAttributes
_STORAGE = _A.RESTRICTED | _A.DECRYPT | _A.FIXED_TPM | _A.FIXED_PARENT | _A.SENSITIVE_DATA_ORIGIN | _A.USER_WITH_AUTH
_ABSENT = Words(Reason.KEY_NOT_FOUND, "There is no persistent storage root key.", "Nothing has to be done.")


def choose_parent(tpm: Tpm, profile: TpmProfile) -> tuple[Any, StorageParent]:
    """The storage root key for a new account, held, and what to pin of it."""
    handle = _persistent(tpm)
    if handle is not None and (public := _storage_key(tpm, handle)) is not None:
        return handle, StorageParent(_algorithm_of(public), public.name)
    if not profile.kinds:
        raise DeviceError(
            Reason.UNSUPPORTED,
            "This TPM makes neither keys on P-256 or P-384 nor RSA keys of 2048 bits.",
            fix="Use another key provider.",
        )
    algorithm = profile.kinds[0].algorithm
    handle, name = _primary(tpm, algorithm)
    return handle, StorageParent(algorithm, name)


def open_parent(tpm: Tpm, pinned: StorageParent) -> Any:
    """The storage root key of an account. Raises `DeviceError(TPM_CLEARED)` where the TPM has another one."""
    handle = _persistent(tpm)
    if handle is not None and bytes(tpm.esapi.tr_get_name(handle)) == pinned.name:
        return handle
    handle, name = _primary(tpm, pinned.algorithm)
    if name != pinned.name:
        raise _cleared()
    return handle


def number_of(tpm: Tpm, parent: Any) -> int:
    """What a key file names as its parent: the persistent handle, or `OWNER` for the key of the template."""
    return PERSISTENT if int(tpm.esapi.tr_get_tpm_handle(parent)) == PERSISTENT else OWNER


def parents(tpm: Tpm) -> Iterator[Any]:
    """Every storage root key a key could be under, one held at a time: the persistent one, then those of templates."""
    handle = _persistent(tpm)
    if handle is not None:
        yield handle
    for algorithm in KINDS:
        try:
            handle, _ = _primary(tpm, algorithm)
        except DeviceError as error:
            if error.reason is not Reason.TPM_FAILED:
                raise
            continue  # a kind of key that this TPM does not make
        yield handle
        tpm.release(handle)


def _persistent(tpm: Tpm) -> Any | None:
    try:
        return tpm.expecting({Code.HANDLE: _ABSENT}, tpm.esapi.tr_from_tpmpublic, PERSISTENT)
    except DeviceError as error:
        if error.reason is not Reason.KEY_NOT_FOUND:
            raise
        return None


def _storage_key(tpm: Tpm, handle: Any) -> TpmPublic | None:
    """The public area, if it is one of a storage key of a kind the agent knows."""
    area = tpm.do(tpm.esapi.read_public, handle)[0]
    try:
        public = TpmPublic(bytes(area.publicArea.marshal()))
    except KeyvouchError:
        return None
    return public if public.attributes & _STORAGE == _STORAGE and not public.auth_policy else None


def _algorithm_of(public: TpmPublic) -> Algorithm:
    curve = getattr(public.key, "curve", None)
    if curve is None:
        return Algorithm.RS256
    return Algorithm.ES384 if curve.name == "secp384r1" else Algorithm.ES256


def _primary(tpm: Tpm, algorithm: Algorithm) -> tuple[Any, bytes]:
    template = storage_root_key(KINDS[algorithm])
    with owner_session(tpm, tpm.settings.owner_auth) as session:
        made = tpm.do(tpm.esapi.create_primary, TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER, session1=session)
    handle = tpm.hold(made[0])
    return handle, bytes(tpm.esapi.tr_get_name(handle))


def _cleared() -> DeviceError:
    return DeviceError(
        Reason.TPM_CLEARED,
        "The TPM was cleared, or this is another TPM: it does not know the keys of this account any more.",
        fix=REENROL,
    )
