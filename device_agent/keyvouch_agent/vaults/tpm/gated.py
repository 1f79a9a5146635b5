"""The PIN of the TPM vault: set, shown, changed, and how many tries are left.

Unlocked means that the TPM holds a policy session in which the PIN was shown, and that the authorization value made of
the PIN is in memory, wiped at the lock: one session is good for one command, so a second one shows the PIN again. The
tries are the TPM's; a copy of them is kept for times when its owner's password hides them.

What is not here: the ceremony with the server that sets the PIN (`registration`), the commands (`pin_index`), and what
is done behind the PIN (`vault`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.vault import PIN_HASH_LENGTH, PinState
from keyvouch_agent.vaults.tpm import pin_index
from keyvouch_agent.vaults.tpm.account import TpmAccount, TpmLink
from keyvouch_agent.vaults.tpm.account_file import PinRecord
from keyvouch_agent.vaults.tpm.answers import senseless
from keyvouch_agent.vaults.tpm.losses import told_apart
from keyvouch_agent.vaults.tpm.pin_grant import LocalCeremony, PinGrant
from keyvouch_agent.vaults.tpm.recorded import RecordedVault

__all__ = ["DEFAULT_LIMIT", "SEEN_SECONDS", "GatedVault", "Unlocked"]

DEFAULT_LIMIT: Final = 8
"""Wrong PINs that block, where no server says how many: CTAP's own number."""

SEEN_SECONDS: Final = 120.0
"""How long the tries that the TPM told are believed: from the moment a request is shown until it is approved. The TPM
counts all the while, and refuses whatever is believed here.
"""


@dataclass(slots=True)
class Unlocked:
    """From the PIN to the lock."""

    link: TpmLink
    auth: bytearray = field(repr=False)
    policy: Any | None
    """A policy session in which the PIN was shown and which has not been used."""


class GatedVault(RecordedVault):
    """What of a `KeyVault` has to do with its PIN. `grant` is what the server allowed; without one it allows itself."""

    def __init__(
        self,
        account: TpmAccount,
        entropy: Entropy,
        *,
        limit: int = DEFAULT_LIMIT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(account)
        self._entropy = entropy
        self._limit = limit
        self._monotonic = monotonic
        self._seen_until = 0.0
        self._unlocked: Unlocked | None = None
        self._tries_seen: int | None = None
        self.grant: PinGrant | None = None

    def pin_state(self) -> PinState:
        """Ask the TPM: one command, and none again until the PIN is used or two minutes are over.

        So an approval asks nothing that was not asked when its request was shown.
        """
        pin = self._state.pin
        if pin is None or not pin.is_set:
            return PinState(is_set=False, retries_left=self.grant.counter.limit if self.grant else self._limit)
        if self._tries_seen is None or self._monotonic() > self._seen_until:
            with self._account.linked() as link, self._telling_losses_apart(link):
                self._see(self._read_tries(link, pin))
        assert self._tries_seen is not None
        return PinState(is_set=True, retries_left=self._tries_seen, code_points=pin.code_points)

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
            self._finish(link, grant, index, len(pin.decode()))
        self.grant = None
        self._tries_seen = None

    def change_pin(self, pin: bytes) -> None:
        """The TPM changes it for who showed the old one; the keys stay.

        TPM and disk cannot change in one step. So the record says before that it does not know the PIN's length, which
        is true whatever comes. Where nothing can be written afterwards it goes on saying that, and a change that was
        demanded is demanded again; but the PIN is the new one, and no error may say otherwise.
        """
        unlocked, record = self._require_unlocked(), self._state.pin
        assert record is not None
        new, length = _auth(pin), len(pin.decode())
        if record.code_points != length:
            self._note_length(0)
        try:
            pin_index.change_pin(
                unlocked.link.tpm,
                unlocked.link.index,
                unlocked.link.parent,
                old=bytes(unlocked.auth),
                new=new,
                approval=record.approval,
            )
        except DeviceError:
            with suppress(DeviceError):
                self._note_length(record.code_points)
            raise
        self._drop_policy(unlocked)
        unlocked.auth[:] = new
        with suppress(DeviceError):
            self._note_length(length, changed=True)

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
        self._unlocked = Unlocked(link, bytearray(auth), policy)
        self._see(record.limit)

    def lock(self) -> None:
        """Let the TPM forget the session and wipe the authorization value."""
        self._tries_seen = None
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
        self._tries_seen = tries_left
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
        self._tries_seen = None
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

    def _note_length(self, code_points: int, *, changed: bool = False) -> None:
        state = self._state
        assert state.pin is not None
        settings = replace(state.settings, force_pin_change=False) if changed else state.settings
        noted = replace(state, pin=replace(state.pin, code_points=code_points), settings=settings)
        if noted != state:
            self._account.store(noted)

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

    def _finish(self, link: TpmLink, grant: PinGrant, index: pin_index.PinIndex, length: int) -> None:
        done = PinRecord(
            grant.gate,
            grant.counter.limit,
            grant.approval,
            is_set=True,
            serialized=bytes(link.tpm.esapi.tr_serialize(index.handle)),
            tries_left=grant.counter.limit,
            code_points=length,
        )
        settings = replace(self._state.settings, force_pin_change=False)
        self._account.store(replace(self._state, pin=done, settings=settings))

    @contextmanager
    def _shown_pin(self, unlocked: Unlocked) -> Iterator[Any]:
        """A session in which the PIN was shown, for one command behind it; it ends with that, or if that fails."""
        link, policy = unlocked.link, unlocked.policy
        unlocked.policy = None
        try:
            if policy is None:
                policy = pin_index.satisfy(link.tpm, link.index, link.parent, bytes(unlocked.auth))
            yield policy
        except BaseException:
            if policy is not None:
                link.tpm.release(policy)
            raise
        link.tpm.spent(policy)

    def _require_unlocked(self) -> Unlocked:
        if self._unlocked is None:
            raise DeviceError(Reason.PIN_REQUIRED, "The vault is locked.", fix="Enter the PIN first.")
        return self._unlocked

    @staticmethod
    def _drop_policy(unlocked: Unlocked) -> None:
        if unlocked.policy is not None:
            policy, unlocked.policy = unlocked.policy, None
            unlocked.link.tpm.release(policy)


def _auth(pin: bytes) -> bytes:
    return pin_index.auth_value(hashlib.sha256(pin).digest()[:PIN_HASH_LENGTH])
