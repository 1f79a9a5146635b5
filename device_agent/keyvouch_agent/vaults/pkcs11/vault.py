"""The PKCS#11 vault: the `VerifyingVault` port over the keys of one account on a token.

A key pair is noted in the record before the token makes it, and becomes a key when the record names it as one. What
is on the token and in the record as a stray is destroyed when the token is unlocked the next time. An existing key is
only ever used: not destroyed, not renamed, not moved.

What is not here: the PIN (`gated`), what needs no token (`recorded`), and how keys are made and sign (`keys`,
`signing`). There are no secrets beside the keys: no hmac-secret, no credBlob, no large blobs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import pkcs11

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.vault import (
    Attestation,
    Credential,
    CredentialSecrets,
    KeyRequest,
    VaultProperties,
)
from keyvouch_agent.vaults.pkcs11 import keys, piv, signing
from keyvouch_agent.vaults.pkcs11.account import CardAccount
from keyvouch_agent.vaults.pkcs11.failures import no_such_key, unsupported
from keyvouch_agent.vaults.pkcs11.gated import GatedVault
from keyvouch_agent.vaults.pkcs11.pin_control import least_length
from keyvouch_agent.vaults.pkcs11.profile import ExistingKey
from keyvouch_agent.vaults.pkcs11.record import CardKey, CardState
from keyvouch_agent.vaults.pkcs11.recorded import MAX_KEYS

__all__ = ["SMARTCARD_AAGUID", "Pkcs11Vault"]

SMARTCARD_AAGUID: Final = bytes.fromhex("6a1d9f0e3c7b4f5a8e2d51c4b7a09d36")
"""Names the PKCS#11 vault in every attestation. It says nothing about the token."""

CREDENTIAL_ID_LENGTH: Final = 32
KEY_ID_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class _Made:
    """A key that was made, or chosen, and is not stored yet."""

    key: CardKey

    def is_for(self, credential: CredentialId) -> bool:
        return self.key.credential.id == credential


class Pkcs11Vault(GatedVault):
    """Keys of one account. With `pin_always` the token wants the PIN for each signature of the keys it makes.

    Without `shows_attestation` a card's attestation of its key is shown to no server.
    """

    def __init__(
        self, account: CardAccount, entropy: Entropy, *, pin_always: bool = False, shows_attestation: bool = True
    ) -> None:
        super().__init__(account)
        self._shows_attestation = shows_attestation
        self._entropy = entropy
        self._pin_always = pin_always
        self._made: _Made | None = None
        self._attestation: tuple[bytes, ...] = ()
        if account.state.token is None:  # a new account, and the card is there
            self._look_for_attestation()

    @property
    def properties(self) -> VaultProperties:
        """What this token can do for this account."""
        profile = self._account.profile
        return VaultProperties(
            aaguid=SMARTCARD_AAGUID,
            protection="smartcard",
            algorithms=profile.algorithms,
            pin_gated=True,
            attestation_formats=self._formats,
            min_pin_length=least_length(profile),
            verifies_itself=True,
            keeps_secrets=False,
        )

    @property
    def _formats(self) -> tuple[str, ...]:
        if self._attestation and self._shows_attestation:
            return ("piv",)
        return () if self._account.profile.existing is None else ("packed",)

    def close(self) -> None:
        """Lock the vault and let another process open it."""
        self.lock()
        self._account.close()

    def __repr__(self) -> str:
        return f"Pkcs11Vault({len(self._state.keys)} keys)"

    def lock(self) -> None:
        """Log out, and destroy a key that was made and not kept, if the card still does that."""
        made, self._made = self._made, None
        if made is not None and self._unlocked is not None:
            with suppress(DeviceError):
                self._sweep()
        super().lock()

    def create_key(self, request: KeyRequest) -> Credential:
        """Have the token make a key, or take the account's existing one."""
        self._require_unlocked()
        algorithm = self._algorithm(request.algorithm)
        if len(self._state.keys) - len(self._replaced_by(request)) >= MAX_KEYS:
            raise _full()
        if self._made is not None:
            self._made = None
            self._sweep()
        existing = self._account.profile.existing
        made = self._make(request, algorithm) if existing is None else self._take(request, algorithm, existing)
        self._made = _Made(made)
        return made.credential

    def attest(self, credential: CredentialId, authenticator_data: bytes, client_data_hash: bytes) -> Attestation:
        """The statement `piv` where the card attests its key; else nobody vouches for it.

        Then it is `none` for a key that was made here. One that existed before signs its own (`packed`): it shows that
        it is there, which a certificate that comes with it cannot.
        """
        key = self._known(credential)
        self._require_unlocked()
        if key.is_ours:
            return Attestation("none", {})
        signature = self.sign(credential, authenticator_data + client_data_hash)
        if not self._attestation or not self._shows_attestation:
            return Attestation("packed", {"alg": key.credential.algorithm, "sig": signature})
        chain = list(self._attestation)
        return Attestation("piv", {"alg": key.credential.algorithm, "sig": signature, "x5c": chain})

    def keep(self, credential: CredentialId) -> None:
        """Name the key in the record, and those it replaces as strays; then those are destroyed."""
        made = self._made
        if made is None or not made.is_for(credential):
            raise no_such_key()
        replaced = tuple(key for key in self._replaced_by(made.key.credential) if key.credential.id != credential)
        others = tuple(key for key in self._state.keys if key not in replaced and key.credential.id != credential)
        state = replace(self._state, keys=(*others, made.key), serial=made.key.credential.created)
        self._account.store(self._as_strays(state, replaced))
        self._made = None
        with suppress(DeviceError):
            self._sweep()

    def sign(self, credential: CredentialId, message: bytes) -> bytes:
        """One signature on the token. It has been verified."""
        return self._signed(self._known(credential), message)

    def _signed(self, key: CardKey, message: bytes) -> bytes:
        unlocked = self._require_unlocked()
        algorithm = Algorithm(key.credential.algorithm)
        pin = self._context_pin(pin_always=key.pin_always)

        def act(session: pkcs11.Session) -> bytes:
            private = keys.private_key(session, key.key_id, algorithm)
            return signing.sign(private, algorithm, message, unlocked.session.mechanisms, pin)

        return signing.checked(self._on_token(act), message, key.credential.public_key)

    def secrets(self, credential: CredentialId) -> CredentialSecrets:
        """There are none."""
        self._known(credential)
        self._require_unlocked()
        return CredentialSecrets()

    def delete(self, credential: CredentialId) -> None:
        """Drop the key from the record. One that was made here is destroyed, now or when the token is unlocked."""
        key = self._find(credential)
        left = tuple(other for other in self._state.keys if other is not key)
        self._account.store(self._as_strays(replace(self._state, keys=left), (key,)))
        with suppress(DeviceError):
            self._sweep()

    def reset(self) -> None:
        """Forget everything. Keys made here are destroyed, now or when the token is unlocked; others stay there."""
        state = self._as_strays(CardState(token=self._state.token), self._state.keys)
        self._account.store(replace(state, strays=(*self._state.strays, *state.strays)))
        self._made = None
        with suppress(DeviceError):
            self._sweep()
        if not self._state.strays:
            self._account.erase()
        self.lock()

    def _make(self, request: KeyRequest, algorithm: Algorithm) -> CardKey:
        """Note the key pair that there will be, then have it made."""
        key_id = self._entropy.token(KEY_ID_LENGTH)
        state = replace(self._state, token=self._account.profile, strays=(*self._state.strays, key_id))
        self._account.store(state)
        label = keys.label_for(request.rp_id, request.user.name)
        public = self._on_token(
            lambda session: keys.generate(session, algorithm, key_id, label, pin_always=self._pin_always)
        )
        made = CardKey(self._credential(request, bytes(public)), key_id, is_ours=True, pin_always=self._pin_always)
        self._check_made(made)
        return made

    def _check_made(self, made: CardKey) -> None:
        """Have a new key sign: no attestation vouches for it, and the token may have told another public key."""
        try:
            self._signed(made, made.credential.id)
        except DeviceError as error:
            with suppress(DeviceError):
                self._sweep()
            if error.reason is not Reason.DEVICE_KEY_LOST:
                raise
            raise keys.another_key() from error

    def _take(self, request: KeyRequest, algorithm: Algorithm, existing: ExistingKey) -> CardKey:
        if self._state.token is None:
            self._account.store(replace(self._state, token=self._account.profile))
        pin_always = self._on_token(
            lambda session: keys.check_existing(keys.private_key(session, existing.id, algorithm))
        )
        credential = self._credential(request, bytes(CoseKey(existing.public_key)))
        pin_always = pin_always or piv.wants_pin_always(self._attestation)
        return CardKey(credential, existing.id, is_ours=False, pin_always=pin_always)

    def _credential(self, request: KeyRequest, public_key: bytes) -> Credential:
        """What is made of a request: without the secrets that it may have asked for."""
        plain = replace(request, cred_blob=None, hmac_secret=False, large_blob_key=False)
        return plain.as_made(
            CredentialId(self._entropy.token(CREDENTIAL_ID_LENGTH)), public_key, self._state.serial + 1
        )

    def _on_unlocked(self) -> None:
        """What needs the token once it is unlocked. A token that does not oblige is not in the way of a signature."""
        unlocked = self._require_unlocked()
        if not self._may_want_pin() and unlocked.pin is not None:
            unlocked.pin[:] = bytes(len(unlocked.pin))
            unlocked.pin = None
        try:
            self._sweep()
        except DeviceError:
            if self._unlocked is None:  # the card is gone, or wants the PIN again
                raise
        if not self._attestation:
            self._look_for_attestation()

    def _may_want_pin(self) -> bool:
        if self._account.profile.existing is not None or self._pin_always:
            return True
        return any(key.pin_always for key in self._state.keys)

    def _forget(self) -> None:
        self._made = None
        super()._forget()

    def _look_for_attestation(self) -> None:
        with suppress(DeviceError):
            self._attestation = self._account.attestation()

    def _sweep(self) -> None:
        """Destroy the strays, then take them out of the record. Needs the token unlocked."""
        strays = self._state.strays
        if not strays or self._unlocked is None:
            return
        self._on_token(lambda session: keys.destroy(session, strays))
        self._account.store(replace(self._state, strays=()))

    def _as_strays(self, state: CardState, gone: tuple[CardKey, ...]) -> CardState:
        """The state in which keys that were made here are strays, and none that is a key is one."""
        kept = {key.key_id for key in state.keys}
        strays = (*state.strays, *(key.key_id for key in gone if key.is_ours))
        return replace(state, strays=tuple(key_id for key_id in strays if key_id not in kept))

    def _known(self, credential: CredentialId) -> CardKey:
        """A stored key, or the one that was just made."""
        if self._made is not None and self._made.is_for(credential):
            return self._made.key
        return self._find(credential)

    def _algorithm(self, algorithm: int) -> Algorithm:
        if algorithm not in self._account.profile.algorithms:
            raise unsupported(f"The card has no keys for COSE algorithm {algorithm}.")
        return Algorithm(algorithm)


def _full() -> DeviceError:
    return DeviceError(
        Reason.KEY_STORE_FULL, f"This account holds {MAX_KEYS} keys, which is all it takes.", fix="Remove one."
    )
