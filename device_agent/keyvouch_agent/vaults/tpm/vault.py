"""The TPM vault: the `KeyVault` port over the keys of one account in a TPM.

Unlocked means that the TPM holds a policy session in which the PIN was shown, and that the authorization value made of
the PIN is in memory, wiped at the lock: one session is good for one signature, so a second one shows the PIN again. The
tries are the TPM's; a copy of them is kept for times when its owner's password hides them.

What is not here: the ceremony with the server that sets the PIN (`registration`), the commands (`pin_index`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tpm2_pytss import TPM2B_DIGEST, TPM2B_SENSITIVE_CREATE

from keyvouch.attestation.tpm_registration import TPM_AAGUID
from keyvouch.attestation.tpm_structures import TpmSignature
from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.vault import (
    PIN_HASH_LENGTH,
    Attestation,
    Credential,
    KeyRequest,
    PinState,
    VaultProperties,
)
from keyvouch_agent.vaults.tpm import attestation_key, pin_index
from keyvouch_agent.vaults.tpm.account import TpmAccount, TpmLink
from keyvouch_agent.vaults.tpm.account_file import AccountState, PinRecord
from keyvouch_agent.vaults.tpm.answers import as_asked, making_sense, senseless
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.key_file import KeyFile, signature_value
from keyvouch_agent.vaults.tpm.losses import NO_SUCH_KEY, UNUSABLE_KEY_FILE, told_apart
from keyvouch_agent.vaults.tpm.parent import number_of
from keyvouch_agent.vaults.tpm.pin_grant import LocalCeremony, PinGrant
from keyvouch_agent.vaults.tpm.templates import KINDS, KeyKind, credential_key, scheme_of

__all__ = ["DEFAULT_LIMIT", "MAX_KEYS", "SEEN_SECONDS", "TpmVault"]

DEFAULT_LIMIT: Final = 8
"""Wrong PINs that block, where no server says how many: CTAP's own number."""

SEEN_SECONDS: Final = 120.0
"""How long the tries that the TPM told are believed: from the moment a request is shown until it is approved. The TPM
counts all the while, and refuses whatever is believed here.
"""

MAX_KEYS: Final = 64
CREDENTIAL_ID_LENGTH: Final = 32
_MAX_SIGN_COUNT: Final = (1 << 32) - 1
_HASHES: Final = {Algorithm.ES256: "sha256", Algorithm.ES384: "sha384", Algorithm.RS256: "sha256"}


@dataclass(slots=True)
class _Unlocked:
    link: TpmLink
    auth: bytearray = field(repr=False)
    policy: Any | None
    """A policy session in which the PIN was shown and which has not been used."""


class TpmVault:
    """Keys of one account. `grant` is what the server allowed for its PIN; without one the vault allows itself."""

    def __init__(
        self,
        account: TpmAccount,
        entropy: Entropy,
        *,
        limit: int = DEFAULT_LIMIT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account = account
        self._entropy = entropy
        self._limit = limit
        self._monotonic = monotonic
        self._seen_until = 0.0
        self._unlocked: _Unlocked | None = None
        self._seen: PinState | None = None
        self.grant: PinGrant | None = None

    @property
    def properties(self) -> VaultProperties:
        """What this TPM can do for this account."""
        attested = self._state.attestation is not None and self._state.attestation.certificate
        return VaultProperties(
            aaguid=TPM_AAGUID,
            protection="tpm",
            algorithms=self._account.profile.algorithms,
            pin_gated=True,
            attestation_formats=("tpm",) if attested else ("packed",),
            max_pin_retries=self._state.pin.limit if self._state.pin else self._limit,
        )

    @property
    def _state(self) -> AccountState:
        return self._account.state

    def close(self) -> None:
        """Lock the vault and let another process open it."""
        self.lock()
        self._account.close()

    def __repr__(self) -> str:
        return f"TpmVault({len(self._state.keys)} keys)"

    # The PIN

    def pin_state(self) -> PinState:
        """Ask the TPM: one command, and none again until the PIN is used or two minutes are over.

        So an approval asks nothing that was not asked when its request was shown.
        """
        pin = self._state.pin
        if pin is None or not pin.is_set:
            return PinState(is_set=False, retries_left=self.grant.counter.limit if self.grant else self._limit)
        if self._seen is None or self._monotonic() > self._seen_until:
            with self._account.linked() as link, self._telling_losses_apart(link):
                self._see(self._read_tries(link, pin))
        assert self._seen is not None
        return self._seen

    def set_pin(self, pin: bytes) -> None:
        """Define the index, have its first write done, and keep what that took."""
        if self._state.pin is not None and self._state.pin.is_set:
            raise DeviceError(Reason.PIN_POLICY, "A PIN is set already.", fix="Change it, or enrol this device again.")
        with self._account.linked() as link:
            self._take_away_unfinished(link)
            grant = self.grant or self._own_grant(link)
            self._plan(grant)
            index = pin_index.define(link.tpm, link.parent, grant.gate, _auth(pin))
            grant.write(link.tpm, index)
            link.forget_index()
            self._finish(link, grant, index)
        self.grant = None
        self._seen = None

    def change_pin(self, pin: bytes) -> None:
        """The TPM changes it for who showed the old one; the keys stay."""
        unlocked, record = self._require_unlocked(), self._state.pin
        assert record is not None
        new = _auth(pin)
        pin_index.change_pin(
            unlocked.link.tpm,
            unlocked.link.index,
            unlocked.link.parent,
            old=bytes(unlocked.auth),
            new=new,
            approval=record.approval,
        )
        self._drop_policy(unlocked)
        unlocked.auth[:] = new

    def verify_pin(self, pin_hash: bytes) -> None:
        """Show the PIN to the TPM, which counts."""
        record = self._state.pin
        if record is None or not record.is_set:
            raise DeviceError(Reason.PIN_NOT_SET, "No PIN is set.", fix="Set a PIN first.")
        link = self._account.keep()
        try:
            auth = pin_index.auth_value(pin_hash)
            with self._telling_losses_apart(link):
                policy = self._satisfy(link, auth, record)
        except BaseException:
            self._account.let_go()
            raise
        self.lock()
        self._unlocked = _Unlocked(link, bytearray(auth), policy)
        self._see(record.limit)

    def lock(self) -> None:
        """Let the TPM forget the session and wipe the authorization value."""
        self._seen = None
        if self._unlocked is not None:
            unlocked, self._unlocked = self._unlocked, None
            unlocked.auth[:] = bytes(len(unlocked.auth))
            self._drop_policy(unlocked)
            self._account.let_go()

    @contextmanager
    def _telling_losses_apart(self, link: TpmLink) -> Iterator[None]:
        try:
            yield
        except DeviceError as error:
            if error.reason is Reason.DEVICE_KEY_LOST:
                raise told_apart(link.tpm, self._state) from error
            raise

    def _see(self, tries_left: int) -> None:
        self._seen = PinState(is_set=True, retries_left=tries_left)
        self._seen_until = self._monotonic() + SEEN_SECONDS

    def _satisfy(self, link: TpmLink, auth: bytes, record: PinRecord) -> Any:
        index, parent = link.index, link.parent
        try:
            with link.tpm.undoing():
                policy = pin_index.satisfy(link.tpm, index, parent, auth)
                self._keep_tries(record.limit)
        except DeviceError as error:
            if error.reason in (Reason.PIN_WRONG, Reason.PIN_BLOCKED):
                raise self._refused(link, record, error) from error
            raise
        return policy

    def _refused(self, link: TpmLink, record: PinRecord, error: DeviceError) -> DeviceError:
        """What the TPM's refusal of a PIN means: also an index that is not the account's any more refuses every PIN."""
        if pin_index.public_area(link.tpm, record.gate.handle) != record.gate.written:
            return pin_index.lost()
        self._seen = None
        left = 0 if error.reason is Reason.PIN_BLOCKED else self._read_tries(link, record, after_miss=True)
        self._keep_tries(left)
        return pin_index.pin_refused(left)

    def _read_tries(self, link: TpmLink, record: PinRecord, *, after_miss: bool = False) -> int:
        """The tries that are left, by the TPM; by our own count where its owner's password hides them."""
        try:
            counter = pin_index.read_counter(link.tpm, link.index)
        except DeviceError as error:
            if error.reason is not Reason.TPM_OWNER_AUTH:
                raise
            return max(0, record.tries_left - after_miss)
        if counter.limit != record.limit:
            raise senseless("another limit of PINs than the one it was given")
        return counter.tries_left

    def _keep_tries(self, tries_left: int) -> None:
        pin = self._state.pin
        if pin is not None and pin.tries_left != tries_left:
            self._account.store(replace(self._state, pin=replace(pin, tries_left=tries_left)))

    def _take_away_unfinished(self, link: TpmLink) -> None:
        """An index whose first write never came opens nothing, and only takes room."""
        if self._state.pin is not None:
            pin_index.remove(link.tpm, self._state.pin.gate)

    def _own_grant(self, link: TpmLink) -> PinGrant:
        kind = self._account.profile.kinds[0]
        return LocalCeremony(kind.algorithm, self._entropy, limit=self._limit).grant(link.tpm)

    def _plan(self, grant: PinGrant) -> None:
        """Write down which index there will be before there is one, so that a killed process leaves none unknown."""
        planned = PinRecord(grant.gate, grant.counter.limit, grant.approval)
        if self._state.pin != planned:
            self._account.store(replace(self._state, pin=planned))

    def _finish(self, link: TpmLink, grant: PinGrant, index: pin_index.PinIndex) -> None:
        serialized = bytes(link.tpm.esapi.tr_serialize(index.handle))
        limit = grant.counter.limit
        done = PinRecord(grant.gate, limit, grant.approval, is_set=True, serialized=serialized, tries_left=limit)
        self._account.store(replace(self._state, pin=done))

    # The keys

    def create_key(self, request: KeyRequest) -> Credential:
        """Have the TPM make a key behind the account's PIN."""
        if self._state.pin is None or not self._state.pin.is_set:
            raise DeviceError(Reason.PIN_NOT_SET, "No PIN is set.", fix="Set a PIN first.")
        link, kind = self._require_unlocked().link, _kind(request.algorithm)
        if kind not in self._account.profile.kinds:
            raise _unsupported(request.algorithm)
        if len(self._state.keys) >= MAX_KEYS:
            raise DeviceError(
                Reason.KEY_STORE_FULL, f"This account holds {MAX_KEYS} keys, which is all it takes.", fix="Remove one."
            )
        template = credential_key(kind, self._state.pin.gate.key_policy)
        made = link.tpm.do(link.tpm.esapi.create, link.parent, TPM2B_SENSITIVE_CREATE(), template)
        as_asked(made[1], template)
        key = KeyFile(made[0], made[1], number_of(link.tpm, link.parent))
        credential = self._record(request, key)
        self._account.write_key(credential.id, key)
        keys = (*self._state.keys, credential)
        self._account.store(replace(self._state, keys=keys, serial=credential.created))
        return credential

    def attest(self, credential: CredentialId, authenticator_data: bytes, client_data_hash: bytes) -> Attestation:
        """The statement `tpm` by the account's attestation key; without a certificate for that, self attestation."""
        record = self._find(credential)
        message = authenticator_data + client_data_hash
        unlocked, attestation = self._require_unlocked(), self._state.attestation
        if attestation is None or not attestation.certificate:
            return Attestation("packed", {"alg": record.algorithm, "sig": self.sign(credential, message)})
        key, link = self._account.read_key(credential), unlocked.link
        signer, parent = link.attestation_key, link.parent
        nonce = hashlib.new(_HASHES[attestation.algorithm], message).digest()
        with link.tpm.passing():
            said = attestation_key.certify(link.tpm, signer, self._load(link.tpm, parent, key), key.area, nonce)
        statement: dict[str, object] = {
            "ver": "2.0",
            "alg": int(attestation.algorithm),
            "x5c": [attestation.certificate],
            "sig": TpmSignature(said.signature).value,
            "certInfo": said.attest,
            "pubArea": bytes(key.area),
        }
        return Attestation("tpm", statement)

    def find(self, rp_id: str, credential: bytes) -> Credential | None:
        """Look a credential up by relying party and id."""
        for key in self._state.keys:
            if key.id == credential and key.rp_id == rp_id:
                return key
        return None

    def discoverable(self, rp_id: str) -> Sequence[Credential]:
        """Discoverable credentials, the newest first."""
        return [key for key in reversed(self._state.keys) if key.discoverable and key.rp_id == rp_id]

    def advance_sign_count(self, credential: CredentialId) -> int:
        """Count up on the disk."""
        key = self._find(credential)
        count = key.sign_count + 1
        if count > _MAX_SIGN_COUNT:
            raise DeviceError(Reason.DEVICE_FAILED, "This key's counter is used up.", fix="Register this device again.")
        keys = tuple(replace(k, sign_count=count) if k is key else k for k in self._state.keys)
        self._account.store(replace(self._state, keys=keys))
        return count

    def sign(self, credential: CredentialId, message: bytes) -> bytes:
        """One TPM2_Sign in a session in which the PIN was shown. The signature has been verified."""
        record = self._find(credential)
        kind = _kind(record.algorithm)
        unlocked = self._require_unlocked()
        link = unlocked.link
        loaded = self._load(link.tpm, link.parent, self._account.read_key(credential))
        policy, unlocked.policy = unlocked.policy, None
        try:
            if policy is None:
                policy = pin_index.satisfy(link.tpm, link.index, link.parent, bytes(unlocked.auth))
            digest = TPM2B_DIGEST(hashlib.new(_HASHES[kind.algorithm], message).digest())
            signature = link.tpm.do(link.tpm.esapi.sign, loaded, digest, scheme_of(kind), None, policy)
        except BaseException:
            link.tpm.release(*([policy] if policy is not None else []), loaded)
            raise
        link.tpm.spent(policy)
        link.tpm.release(loaded)
        with making_sense("a signature"):
            value = signature_value(signature)
            CoseKey(record.public_key).verify_signature(signature=value, message=message)
        return value

    def delete(self, credential: CredentialId) -> None:
        """Drop the key's record, then its file: nothing else in the world can load it."""
        key = self._find(credential)
        self._account.store(replace(self._state, keys=tuple(k for k in self._state.keys if k is not key)))
        self._account.remove_key(credential)

    def reset(self) -> None:
        """Take the index out of the TPM and erase the account's files."""
        self.lock()
        pin = self._state.pin
        if pin is not None:
            with self._account.linked() as link:
                pin_index.remove(link.tpm, pin.gate)
        self._account.erase()
        self.grant = None

    def _record(self, request: KeyRequest, key: KeyFile) -> Credential:
        return Credential(
            id=CredentialId(self._entropy.token(CREDENTIAL_ID_LENGTH)),
            rp_id=request.rp_id,
            user=request.user,
            algorithm=request.algorithm,
            discoverable=request.discoverable,
            public_key=bytes(CoseKey.from_public_key(key.area.key)),
            created=self._state.serial + 1,
            sign_count=0,
        )

    @staticmethod
    def _load(tpm: Tpm, parent: Any, key: KeyFile) -> Any:
        return tpm.hold(tpm.expecting(UNUSABLE_KEY_FILE, tpm.esapi.load, parent, key.private, key.public))

    def _find(self, credential: CredentialId) -> Credential:
        for key in self._state.keys:
            if key.id == credential:
                return key
        raise NO_SUCH_KEY.error()

    def _require_unlocked(self) -> _Unlocked:
        if self._unlocked is None:
            raise DeviceError(Reason.PIN_REQUIRED, "The vault is locked.", fix="Enter the PIN first.")
        return self._unlocked

    @staticmethod
    def _drop_policy(unlocked: _Unlocked) -> None:
        if unlocked.policy is not None:
            policy, unlocked.policy = unlocked.policy, None
            unlocked.link.tpm.release(policy)


def _auth(pin: bytes) -> bytes:
    return pin_index.auth_value(hashlib.sha256(pin).digest()[:PIN_HASH_LENGTH])


def _kind(algorithm: int) -> KeyKind:
    try:
        return KINDS[Algorithm(algorithm)]
    except (KeyError, ValueError):
        raise _unsupported(algorithm) from None


def _unsupported(algorithm: int) -> DeviceError:
    return DeviceError(
        Reason.UNSUPPORTED,
        f"This TPM makes no keys for COSE algorithm {algorithm}.",
        fix="Use one that it makes: `keyvouch-agent tpm status` shows them.",
    )
