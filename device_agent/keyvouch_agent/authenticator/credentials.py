"""authenticatorMakeCredential, GetAssertion and GetNextAssertion: the algorithms of sections 6.1.2, 6.2.2, 6.3.

The step numbers in the comments are those of the specification. Steps that concern built-in user
verification, enterprise attestation, displays and extensions have nothing to do here. What is *not* here:
parsing (`parameters`), the PIN (`client_pin`), keys (`vault`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from keyvouch.errors import DeviceError
from keyvouch.webauthn import AttestedCredentialData, AuthenticatorData, Flags
from keyvouch_agent.authenticator.client_pin import ClientPin
from keyvouch_agent.authenticator.parameters import (
    PUBLIC_KEY,
    GetAssertionParameters,
    MakeCredentialParameters,
    Options,
)
from keyvouch_agent.authenticator.pin_token import Permission, TokenKeeper
from keyvouch_agent.authenticator.ports import Clock, Presence, PresenceRequest, Purpose
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.vault import Attestation, Credential, KeyRequest, KeyVault

__all__ = ["Ask", "CredentialCommands"]

NEXT_ASSERTION_SECONDS = 30.0

_NO_FLAGS = Flags(0)

Ask = Callable[[PresenceRequest], Presence]
"""Asks the user of the command that is running for a sign of presence."""


@dataclass(slots=True)
class _PendingAssertions:
    """What authenticatorGetNextAssertion needs to know (section 6.2.2 step 13)."""

    client_data_hash: bytes
    flags: Flags
    credentials: Sequence[Credential]
    next: int
    touched: float


class CredentialCommands:
    """The commands that make and use credentials, with the assertion state between them."""

    def __init__(
        self,
        vault: KeyVault,
        clock: Clock,
        client_pin: ClientPin,
        tokens: TokenKeeper,
        *,
        make_cred_uv_not_required: bool,
    ) -> None:
        self._vault = vault
        self._clock = clock
        self._client_pin = client_pin
        self._tokens = tokens
        self._uv_not_required = make_cred_uv_not_required
        self._pending: _PendingAssertions | None = None

    @property
    def has_pending_assertions(self) -> bool:
        """Whether authenticatorGetNextAssertion can succeed."""
        return self._pending is not None

    def forget_pending(self) -> None:
        """Drop the assertion state, as every command but GetNextAssertion does (section 6.3)."""
        self._pending = None

    def observe(self) -> None:
        """Drop the assertion state when its 30 seconds are over."""
        if self._pending and self._clock.monotonic() - self._pending.touched > NEXT_ASSERTION_SECONDS:
            self._pending = None

    def make_credential(self, given: MakeCredentialParameters, ask: Ask) -> Mapping[int, object]:
        """Section 6.1.2."""
        self._answer_selection_probe(given.pin_uv_auth_param, ask)  # step 1
        self._check_protocol(given.pin_uv_auth_param, given.pin_uv_auth_protocol)  # step 2
        algorithm = self._choose_algorithm(given.algorithms)  # step 3
        self._check_make_options(given)  # step 5
        if given.pin_uv_auth_param is None and self._is_uv_needed_to_make(given.options):  # steps 6 to 8
            raise CommandError(Status.PUAT_REQUIRED)
        if given.wants_enterprise_attestation:  # step 9
            raise CommandError(Status.INVALID_PARAMETER)
        flags = self._verify_user(given, Permission.MAKE_CREDENTIAL)  # steps 10 and 11
        self._refuse_excluded(given, ask)  # step 12
        request = PresenceRequest(Purpose.MAKE_CREDENTIAL, given.rp_id, given.user.name)
        _require_presence(ask(request))  # step 14
        self._tokens.spend()
        return self._create(given, algorithm, flags | Flags.UP)  # steps 16 to 19

    def get_assertion(self, given: GetAssertionParameters, ask: Ask) -> Mapping[int, object]:
        """Section 6.2.2."""
        self._answer_selection_probe(given.pin_uv_auth_param, ask)  # step 1
        self._check_protocol(given.pin_uv_auth_param, given.pin_uv_auth_protocol)  # step 2
        wants_presence = self._check_get_options(given)  # step 4
        if wants_presence and given.pin_uv_auth_param is None and self._vault.properties.pin_gated:  # step 5
            raise CommandError(Status.PUAT_REQUIRED)
        flags = self._verify_user(given, Permission.GET_ASSERTION)  # step 6
        credentials = self._locate(given)  # step 7
        if given.pin_uv_auth_param is None and self._vault.properties.pin_gated:
            raise CommandError(Status.PUAT_REQUIRED)  # silent, but the key cannot sign without the PIN
        if wants_presence:  # step 9
            name = credentials[0].user.name if len(credentials) == 1 else ""
            _require_presence(ask(PresenceRequest(Purpose.GET_ASSERTION, given.rp_id, name)))
            self._tokens.spend()
            flags |= Flags.UP
        return self._assert_first(given, credentials, flags)  # steps 12 to 14

    def get_next_assertion(self) -> Mapping[int, object]:
        """Section 6.3."""
        self.observe()  # step 3
        pending = self._pending
        if pending is None:  # steps 1 and 2
            raise CommandError(Status.NOT_ALLOWED)
        credential = pending.credentials[pending.next]
        response = self._assert(credential, pending.client_data_hash, pending.flags)
        response[4] = _user_entity(credential, with_names=bool(pending.flags & Flags.UV))
        pending.touched = self._clock.monotonic()
        pending.next += 1
        if pending.next == len(pending.credentials):
            self._pending = None
        return response

    def _answer_selection_probe(self, param: bytes | None, ask: Ask) -> None:
        """A zero length pinUvAuthParam only asks "which of these authenticators do you mean?"."""
        if param != b"":
            return
        _require_presence(ask(PresenceRequest(Purpose.SELECTION)))
        raise CommandError(Status.PIN_INVALID if self._vault.pin_state().is_set else Status.PIN_NOT_SET)

    def _check_protocol(self, param: bytes | None, version: int | None) -> None:
        if param is not None:
            self._client_pin.require_supported(version)

    def _choose_algorithm(self, offered: Sequence[int]) -> int:
        for algorithm in offered:
            if algorithm in self._vault.properties.algorithms:
                return algorithm
        raise CommandError(Status.UNSUPPORTED_ALGORITHM)

    def _check_make_options(self, given: MakeCredentialParameters) -> None:
        """Step 5 of section 6.1.2. There is no built-in user verification, and presence is not optional."""
        if _asks_for_built_in_uv(given) or given.options.up is False:
            raise CommandError(Status.INVALID_OPTION)

    def _check_get_options(self, given: GetAssertionParameters) -> bool:
        """Step 4 of section 6.2.2. Return whether user presence is wanted."""
        if _asks_for_built_in_uv(given):
            raise CommandError(Status.INVALID_OPTION)
        if given.options.rk is not None:
            raise CommandError(Status.UNSUPPORTED_OPTION)
        return given.options.up is not False

    def _is_uv_needed_to_make(self, options: Options) -> bool:
        if self._vault.properties.pin_gated:  # step 6, alwaysUv
            return True
        if not self._vault.pin_state().is_set:
            return False
        return bool(options.rk) or not self._uv_not_required  # steps 7 and 8

    def _verify_user(self, given: MakeCredentialParameters | GetAssertionParameters, needed: Permission) -> Flags:
        """Return the UV flag for a valid pinUvAuthParam, and no flag for none.

        The specification looks at a pinUvAuthParam only when a PIN is set. Without a PIN there is no token, so
        none can be valid: refusing is stricter, and no platform does it.
        """
        param, version = given.pin_uv_auth_param, given.pin_uv_auth_protocol
        if param is None or version is None:
            return _NO_FLAGS
        self._tokens.authorize(version, given.client_data_hash, param, needed, given.rp_id)
        return Flags.UV

    def _refuse_excluded(self, given: MakeCredentialParameters, ask: Ask) -> None:
        """Step 12: the user shows presence before the platform learns that a credential exists."""
        if not any(self._vault.find(given.rp_id, credential) for credential in given.exclude):
            return
        ask(PresenceRequest(Purpose.MAKE_CREDENTIAL, given.rp_id, given.user.name))
        raise CommandError(Status.CREDENTIAL_EXCLUDED)

    def _locate(self, given: GetAssertionParameters) -> Sequence[Credential]:
        if given.allow is None:
            found = self._vault.discoverable(given.rp_id)
        else:
            found = [c for c in (self._vault.find(given.rp_id, item) for item in given.allow) if c is not None][:1]
        if not found:
            raise CommandError(Status.NO_CREDENTIALS)
        return found

    def _create(self, given: MakeCredentialParameters, algorithm: int, flags: Flags) -> Mapping[int, object]:
        discoverable = bool(given.options.rk)
        replaced = self._same_account(given) if discoverable else ()
        credential = self._vault.create_key(KeyRequest(given.rp_id, given.user, algorithm, discoverable))
        data = self._registration_data(credential, flags)
        try:
            attestation = self._attest(credential, data, given)
        except DeviceError:
            self._vault.delete(credential.id)
            raise
        for older in replaced:  # step 17: one discoverable credential for each account
            self._vault.delete(older.id)
        return {1: attestation.format, 2: data, 3: attestation.statement}

    def _same_account(self, given: MakeCredentialParameters) -> Sequence[Credential]:
        return [c for c in self._vault.discoverable(given.rp_id) if c.user.id == given.user.id]

    def _registration_data(self, credential: Credential, flags: Flags) -> AuthenticatorData:
        aaguid = self._vault.properties.aaguid
        attested = AttestedCredentialData.build(aaguid, credential.id, credential.public_key)
        return AuthenticatorData.build(_hash(credential.rp_id), flags, credential.sign_count, attested=attested)

    def _attest(self, credential: Credential, data: bytes, given: MakeCredentialParameters) -> Attestation:
        """Attest in the first format of the platform's preference that is known (CTAP 2.2 section 6.1.2)."""
        known = (*self._vault.properties.attestation_formats, "none")
        preferred = [name for name in given.attestation_formats if name in known]
        if preferred and preferred[0] == "none":
            return Attestation("none", {})
        return self._vault.attest(credential.id, data, given.client_data_hash)

    def _assert_first(
        self, given: GetAssertionParameters, credentials: Sequence[Credential], flags: Flags
    ) -> Mapping[int, object]:
        first = credentials[0]
        response = self._assert(first, given.client_data_hash, flags)
        if first.discoverable:
            several = len(credentials) > 1
            response[4] = _user_entity(first, with_names=several and bool(flags & Flags.UV))
        if len(credentials) > 1:
            now = self._clock.monotonic()
            self._pending = _PendingAssertions(given.client_data_hash, flags, credentials, 1, now)
            response[5] = len(credentials)
        return response

    def _assert(self, credential: Credential, client_data_hash: bytes, flags: Flags) -> dict[int, object]:
        sign_count = self._vault.advance_sign_count(credential.id)
        data = AuthenticatorData.build(_hash(credential.rp_id), flags, sign_count)
        signature = self._vault.sign(credential.id, data + client_data_hash)
        return {1: {"id": credential.id, "type": PUBLIC_KEY}, 2: data, 3: signature}


def _asks_for_built_in_uv(given: MakeCredentialParameters | GetAssertionParameters) -> bool:
    """A pinUvAuthParam makes the "uv" option count as false (section 6.1.2 step 5, section 6.2.2 step 4)."""
    return bool(given.options.uv) and given.pin_uv_auth_param is None


def _hash(rp_id: str) -> bytes:
    return hashlib.sha256(rp_id.encode()).digest()


def _user_entity(credential: Credential, *, with_names: bool) -> Mapping[str, object]:
    """Names only after user verification, and only where the platform has to let the user choose (section 6.2)."""
    user = credential.user
    if not with_names:
        return {"id": user.id}
    names = {"name": user.name, "displayName": user.display_name}
    return {"id": user.id, **{key: name for key, name in names.items() if name}}


def _require_presence(presence: Presence) -> None:
    """Declined and timed out look alike here (section 6.1.2 step 14); a cancelled command has its own status."""
    if presence is Presence.CANCELLED:
        raise CommandError(Status.KEEPALIVE_CANCEL)
    if presence is not Presence.GRANTED:
        raise CommandError(Status.OPERATION_DENIED)
