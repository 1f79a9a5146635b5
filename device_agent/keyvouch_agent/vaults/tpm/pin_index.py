"""The PIN's NV index in the TPM: define it, write it once, open it, change its PIN, read its tries, take it away.

The design is `keyvouch.attestation.pin_gate`'s; here are its commands. The authorization value of the index is made of
what CTAP shows of a PIN, the left 16 bytes of its SHA-256. It crosses the bus encrypted when it is set and never else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tpm2_pytss import (
    ESYS_TR,
    TPM2_CC,
    TPM2B_DIGEST,
    TPM2B_NONCE,
    TPM2B_NV_PUBLIC,
    TPM2B_PUBLIC,
    TPML_DIGEST,
    TPMS_NV_PUBLIC,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
)

from keyvouch.attestation.pin_gate import HANDLES, INDEX_SIZE, PinCounter, PinGate
from keyvouch.attestation.tpm_public import TpmNvPublic
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.tpm.answers import making_sense, senseless
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.profile import nv_handles
from keyvouch_agent.vaults.tpm.response_codes import REENROL, Code, Words
from keyvouch_agent.vaults.tpm.sessions import owner_session, salted_policy_session, secret_session

__all__ = [
    "PIN_MEANINGS",
    "PinIndex",
    "auth_value",
    "change_pin",
    "define",
    "free_handle",
    "lost",
    "open_index",
    "pin_refused",
    "public_area",
    "read_counter",
    "remove",
    "satisfy",
    "write_first",
]

_DOMAIN: Final = b"keyvouch/tpm-pin/v1\0"
_FIRST_TRIED: Final = 0x0180_4B00
"""Where the search for a free handle begins: away from the lowest ones, which others number theirs from."""

_LOST = Words(
    Reason.DEVICE_KEY_LOST,
    "The counter of this account's PIN is not in the TPM any more: its owner removed it or put another in its place.",
    REENROL,
)
_WRONG = Words(Reason.PIN_WRONG, "The PIN is wrong.", "Enter the PIN again, carefully.")
_BLOCKED = Words(
    Reason.PIN_BLOCKED,
    "The PIN was entered wrong too often: the TPM does not open this account's key any more.",
    "Get an access pass and run `keyvouch-agent enroll --replace`. Nothing else in the TPM is affected.",
)
PIN_MEANINGS: Final[Mapping[Code, Words]] = {
    Code.HANDLE: _LOST,
    Code.BAD_AUTH: _WRONG,
    Code.AUTH_FAIL: _WRONG,
    Code.AUTH_UNAVAILABLE: _BLOCKED,
    Code.NV_UNINITIALIZED: _LOST,
}
"""What the TPM's refusals mean where the PIN index authorizes a command."""
_ABSENT: Final[Mapping[Code, Words]] = {Code.HANDLE: _LOST}
_TAKEN: Final[Mapping[Code, Words]] = {
    Code.NV_DEFINED: Words(Reason.TPM_BUSY, "Another program took the place of the PIN's counter.", "Try again.")
}


@dataclass(frozen=True, slots=True)
class PinIndex:
    """An index in one connection: its handle there, and the gate it belongs to."""

    handle: Any
    gate: PinGate


def auth_value(pin_hash: bytes) -> bytes:
    """The authorization value, 32 bytes. The last is never zero: a TPM cuts those off (Part 1 section 19.6.4.3)."""
    digest = hashlib.sha256(_DOMAIN + pin_hash).digest()
    return digest[:-1] + bytes([digest[-1] | 1])


def free_handle(tpm: Tpm) -> int:
    """A handle that no index has."""
    taken = nv_handles(tpm)
    return next(handle for handle in range(_FIRST_TRIED, HANDLES.stop) if handle not in taken)


def define(tpm: Tpm, parent: Any, gate: PinGate, auth: bytes) -> PinIndex:
    """Define the index with the PIN's value, encrypted on its way. It opens nothing before its first write."""
    area = TPM2B_NV_PUBLIC(nvPublic=TPMS_NV_PUBLIC.unmarshal(gate.unwritten)[0])
    with tpm.undoing():
        session = secret_session(tpm, parent)
        handle = tpm.expecting(_TAKEN, tpm.esapi.nv_define_space, auth, area, ESYS_TR.OWNER, session)
    tpm.spent(session)
    tpm.esapi.tr_set_auth(handle, b"")  # the TSS would keep the value as long as the connection lasts
    return PinIndex(handle, gate)


def write_first(tpm: Tpm, index: PinIndex, session: Any, *, nonce: Any, counter: PinCounter, signature: bytes) -> None:
    """The one write that the ceremony key allowed: `signature` (TPMT_SIGNATURE) over the nonce of `session`."""
    gate, api = index.gate, tpm.esapi
    permitted, reference = TPM2B_DIGEST(gate.write_hash(counter)), TPM2B_NONCE(gate.first_write)
    proof = TPMT_SIGNATURE.unmarshal(signature)[0]
    with tpm.passing():
        key = _load_ceremony_key(tpm, gate, ESYS_TR.NULL)
        tpm.do(api.policy_signed, key, session, proof, nonce, permitted, reference, 0)
    tpm.do(api.policy_or, session, _branches(gate))
    tpm.do(api.nv_write, index.handle, counter.encode(), 0, index.handle, session)


def open_index(tpm: Tpm, gate: PinGate, serialized: bytes) -> PinIndex:
    """The index of an account. `serialized` is what `Esys_TR_Serialize` gave for it, to spare the TPM a question.

    Raises `DeviceError(DEVICE_KEY_LOST)` where the TPM has no such index, or another one in its place.
    """
    if serialized:
        try:
            return PinIndex(tpm.do(tpm.esapi.tr_deserialize, serialized), gate)
        except DeviceError:
            pass  # written by another version of the TSS
    handle = tpm.expecting(_ABSENT, tpm.esapi.tr_from_tpmpublic, gate.handle)
    if bytes(tpm.esapi.tr_get_name(handle)) != gate.written.name:
        raise lost()
    return PinIndex(handle, gate)


def satisfy(tpm: Tpm, index: PinIndex, parent: Any, auth: bytes) -> Any:
    """Show the PIN: a policy session, held, in which the keys behind the gate sign once. Three commands.

    It is salted, so that nobody on the bus can have anything else signed in it. Raises `DeviceError`: PIN_WRONG,
    PIN_BLOCKED, DEVICE_KEY_LOST. A wrong one is counted by the TPM.
    """
    with tpm.undoing():
        session = salted_policy_session(tpm, parent)
        _show(tpm, index, parent, auth, session)
    return session


def change_pin(tpm: Tpm, index: PinIndex, parent: Any, *, old: bytes, new: bytes, approval: bytes) -> None:
    """Change the authorization value by what the ceremony key approved (`approval`, TPMT_SIGNATURE) and the old one."""
    with tpm.undoing():
        session = salted_policy_session(tpm, parent)
        _show(tpm, index, parent, old, session)
        tpm.do(tpm.esapi.policy_command_code, session, TPM2_CC.NV_ChangeAuth)
        _authorize_change(tpm, index.gate, session, approval)
        with _knowing(tpm, index, old):  # it is part of the key under which the new value is encrypted (section 21.3)
            tpm.do(tpm.esapi.nv_change_auth, index.handle, new, session)
    tpm.spent(session)


def read_counter(tpm: Tpm, index: PinIndex) -> PinCounter:
    """Count and limit, by the owner's right to read. One command. Raises `DeviceError(TPM_OWNER_AUTH)`."""
    meanings = {Code.HANDLE: _LOST, Code.NV_UNINITIALIZED: _LOST}
    with owner_session(tpm, tpm.settings.owner_auth) as session:
        contents = tpm.expecting(meanings, tpm.esapi.nv_read, index.handle, INDEX_SIZE, 0, ESYS_TR.OWNER, session)
    counter = PinCounter.decode(bytes(contents))
    if len(contents) != INDEX_SIZE or not 0 <= counter.count <= counter.limit or not counter.limit:
        raise senseless("a count of PINs that cannot be")
    return counter


def remove(tpm: Tpm, gate: PinGate) -> bool:
    """Undefine the index, if what stands at its handle is it; return whether it did."""
    try:
        handle = tpm.expecting(_ABSENT, tpm.esapi.tr_from_tpmpublic, gate.handle)
    except DeviceError as error:
        if error.reason is not Reason.DEVICE_KEY_LOST:
            raise
        return False
    if bytes(tpm.esapi.tr_get_name(handle)) not in (gate.unwritten.name, gate.written.name):
        return False
    with owner_session(tpm, tpm.settings.owner_auth) as session:
        tpm.do(tpm.esapi.nv_undefine_space, handle, ESYS_TR.OWNER, session)
    return True


def lost() -> DeviceError:
    """The index is gone, or another one stands in its place."""
    return _LOST.error()


def pin_refused(tries_left: int) -> DeviceError:
    """The PIN was wrong, or is blocked."""
    words = _WRONG if tries_left else _BLOCKED
    return DeviceError(words.reason, words.message, retries_left=tries_left, fix=words.fix)


def public_area(tpm: Tpm, handle: int) -> TpmNvPublic:
    """What the TPM says of an index. Raises `DeviceError(DEVICE_KEY_LOST)` where there is none."""
    found = tpm.expecting(_ABSENT, tpm.esapi.tr_from_tpmpublic, handle)
    area = tpm.do(tpm.esapi.nv_read_public, found)[0]
    with making_sense("an NV index"):
        return TpmNvPublic(bytes(area.nvPublic.marshal()))


def _show(tpm: Tpm, index: PinIndex, parent: Any, auth: bytes, session: Any) -> None:
    """PolicySecret: the authorization value of the index makes an HMAC in a session that is salted."""
    secret = secret_session(tpm, parent)  # flushed by the caller's `undoing` if it fails
    with _knowing(tpm, index, auth):
        tpm.expecting(PIN_MEANINGS, tpm.esapi.policy_secret, index.handle, session, expiration=0, session1=secret)
    tpm.spent(secret)


@contextmanager
def _knowing(tpm: Tpm, index: PinIndex, auth: bytes) -> Iterator[None]:
    """Let the TSS know the authorization value, for the block only."""
    tpm.esapi.tr_set_auth(index.handle, auth)
    try:
        yield
    finally:
        tpm.esapi.tr_set_auth(index.handle, b"")


def _authorize_change(tpm: Tpm, gate: PinGate, session: Any, approval: bytes) -> None:
    """PolicyAuthorize and PolicyOR: from the approved policy to that of the index."""
    api = tpm.esapi
    key = _load_ceremony_key(tpm, gate, ESYS_TR.OWNER)
    digest = TPM2B_DIGEST(hashlib.sha256(gate.change_message).digest())
    ticket = tpm.do(api.verify_signature, key, digest, TPMT_SIGNATURE.unmarshal(approval)[0])
    policy, reference = TPM2B_DIGEST(gate.change_policy), TPM2B_NONCE(gate.change)
    tpm.do(api.policy_authorize, session, policy, api.tr_get_name(key), ticket, reference)
    tpm.release(key)
    tpm.do(api.policy_or, session, _branches(gate))


def _load_ceremony_key(tpm: Tpm, gate: PinGate, hierarchy: Any) -> Any:
    """Only with a hierarchy the TPM makes tickets of what a key verified."""
    area = TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(gate.ceremony_key)[0])
    return tpm.hold(tpm.do(tpm.esapi.load_external, area, None, hierarchy))


def _branches(gate: PinGate) -> TPML_DIGEST:
    return TPML_DIGEST([TPM2B_DIGEST(branch) for branch in gate.branches])
