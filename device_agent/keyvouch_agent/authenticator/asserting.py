"""authenticatorGetAssertion (0x02) and GetNextAssertion (0x08): the algorithms of sections 6.2.2 and 6.3.

The step numbers in the comments are those of the specification. Steps that concern displays have nothing to do here.
What is *not* here: parsing (`parameters`), the PIN (`client_pin`), built-in user verification (`built_in_uv`), keys
(`vault`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.authenticator.extensions import AssertionInputs, assertion_outputs, known_to_assert
from keyvouch_agent.authenticator.fields import PUBLIC_KEY
from keyvouch_agent.authenticator.hmac_secret import Salts, open_salts
from keyvouch_agent.authenticator.parameters import GetAssertionParameters
from keyvouch_agent.authenticator.pin_protocol import PinProtocols
from keyvouch_agent.authenticator.pin_token import Permission, TokenKeeper
from keyvouch_agent.authenticator.ports import Ask, Clock, PresenceRequest, Purpose
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.user_gate import UserGate, require_presence
from keyvouch_agent.authenticator.vault import Credential, CredentialSecrets, CredProtect, KeyVault, hash_of

__all__ = ["CredentialUser"]

NEXT_ASSERTION_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Request:
    """What every assertion of one command has in common."""

    client_data_hash: bytes
    flags: Flags
    extensions: AssertionInputs
    salts: Salts | None
    wants_large_blob_key: bool


@dataclass(slots=True)
class _PendingAssertions:
    """What authenticatorGetNextAssertion needs to know (section 6.2.2 step 12)."""

    request: _Request
    credentials: Sequence[Credential]
    next: int
    touched: float


class CredentialUser:
    """The commands that use credentials, with the assertion state between them."""

    def __init__(
        self,
        vault: KeyVault,
        clock: Clock,
        standing: Standing,
        gate: UserGate,
        tokens: TokenKeeper,
        protocols: PinProtocols,
    ) -> None:
        self._vault = vault
        self._clock = clock
        self._standing = standing
        self._gate = gate
        self._tokens = tokens
        self._protocols = protocols
        self._pending: _PendingAssertions | None = None

    @property
    def has_pending_assertions(self) -> bool:
        """Whether authenticatorGetNextAssertion can succeed."""
        return self._pending is not None

    def forget_pending(self) -> None:
        """Drop the assertion state, as every command but GetNextAssertion does (section 6.3)."""
        self._pending = None

    def forget_verified(self) -> None:
        """Drop assertions with user verification, as the end of the token that verified it does."""
        if self._pending and self._pending.request.flags & Flags.UV:
            self._pending = None

    def observe(self) -> None:
        """Drop the assertion state when its 30 seconds are over."""
        if self._pending and self._clock.monotonic() - self._pending.touched > NEXT_ASSERTION_SECONDS:
            self._pending = None

    def get_assertion(self, given: GetAssertionParameters, ask: Ask) -> Mapping[int, object]:
        """Section 6.2.2."""
        given = replace(given, extensions=known_to_assert(given.extensions, self._standing))
        self._gate.answer_selection_probe(given.pin_uv_auth_param, ask)  # step 1
        self._gate.check_protocol(given.pin_uv_auth_param, given.pin_uv_auth_protocol)  # step 2
        built_in = self._check_options(given, ask)  # step 4
        wants_presence = given.options.up is not False
        if wants_presence and self._standing.always_uv:  # step 5
            built_in = self._gate.require_uv(given, ask, built_in=built_in)
        flags = self._gate.verify_user(given, Permission.GET_ASSERTION, ask, built_in=built_in)  # step 6
        credentials = self._locate(given, flags)  # step 7
        if not flags and self._vault.properties.pin_gated:
            raise CommandError(Status.PUAT_REQUIRED)  # silent, but the key cannot sign without the PIN
        if wants_presence:  # step 9
            name = credentials[0].user.name if len(credentials) == 1 else ""
            require_presence(ask(PresenceRequest(Purpose.GET_ASSERTION, given.rp_id, name)))
            self._tokens.spend()
            flags |= Flags.UP
        return self._assert_first(self._process_extensions(given, flags), credentials)  # steps 10 to 13

    def get_next_assertion(self) -> Mapping[int, object]:
        """Section 6.3."""
        self.observe()  # step 3
        pending = self._pending
        if pending is None:  # steps 1 and 2
            raise CommandError(Status.NOT_ALLOWED)
        credential = pending.credentials[pending.next]
        response = self._assert(credential, pending.request)
        response[4] = _user_entity(credential, with_names=bool(pending.request.flags & Flags.UV))
        pending.touched = self._clock.monotonic()
        pending.next += 1
        if pending.next == len(pending.credentials):
            self._pending = None
        return response

    def _check_options(self, given: GetAssertionParameters, ask: Ask) -> bool:
        """Step 4. Return whether the "uv" option asks for built-in user verification."""
        built_in = self._gate.wants_built_in_uv(given, ask)
        if given.options.rk is not None:
            raise CommandError(Status.UNSUPPORTED_OPTION)
        return built_in

    def _locate(self, given: GetAssertionParameters, flags: Flags) -> Sequence[Credential]:
        """Step 7, and steps 11 and 12 as far as they choose: of an allowList, the first that may be used."""
        rp_id_hash = hash_of(given.rp_id)
        if given.allow is None:
            found = [one for one in self._vault.discoverable(rp_id_hash) if _may_use(one, flags, named=False)]
        else:
            named = (self._vault.find(rp_id_hash, item) for item in given.allow)
            found = [one for one in named if one is not None and _may_use(one, flags, named=True)][:1]
        if not found:
            raise CommandError(Status.NO_CREDENTIALS)
        return found

    def _process_extensions(self, given: GetAssertionParameters, flags: Flags) -> _Request:
        """Step 10. hmac-secret needs the user's presence (section 12.5)."""
        wanted = given.extensions.large_blob_key
        if wanted is False:
            raise CommandError(Status.INVALID_OPTION)
        salts = None
        if given.extensions.hmac_secret is not None:
            if not flags & Flags.UP:
                raise CommandError(Status.UNSUPPORTED_OPTION)
            salts = open_salts(given.extensions.hmac_secret, self._protocols)
        return _Request(given.client_data_hash, flags, given.extensions, salts, bool(wanted))

    def _assert_first(self, request: _Request, credentials: Sequence[Credential]) -> Mapping[int, object]:
        first = credentials[0]
        response = self._assert(first, request)
        if first.discoverable:
            several = len(credentials) > 1
            response[4] = _user_entity(first, with_names=several and bool(request.flags & Flags.UV))
        if len(credentials) > 1:
            self._pending = _PendingAssertions(request, credentials, 1, self._clock.monotonic())
            response[5] = len(credentials)
        return response

    def _assert(self, credential: Credential, request: _Request) -> dict[int, object]:
        secrets = self._secrets(credential, request)
        outputs = assertion_outputs(request.extensions, credential, secrets, request.salts, request.flags)
        sign_count = self._vault.advance_sign_count(credential.id)
        data = AuthenticatorData.build(credential.rp_id_hash, request.flags, sign_count, extensions=outputs or None)
        signature = self._vault.sign(credential.id, data + request.client_data_hash)
        response: dict[int, object] = {1: {"id": credential.id, "type": PUBLIC_KEY}, 2: data, 3: signature}
        if request.wants_large_blob_key and credential.has_large_blob_key:
            response[7] = secrets.large_blob_key
        return response

    def _secrets(self, credential: Credential, request: _Request) -> CredentialSecrets:
        """Ask the vault for them only where something of them is told."""
        wanted = (
            (request.extensions.cred_blob and credential.has_cred_blob)
            or (request.salts is not None and credential.has_hmac_secret)
            or (request.wants_large_blob_key and credential.has_large_blob_key)
        )
        return self._vault.secrets(credential.id) if wanted else CredentialSecrets()


def _may_use(credential: Credential, flags: Flags, *, named: bool) -> bool:
    """What credProtect lets be found (section 12.1): `named` is one whose id the platform knows already."""
    if flags & Flags.UV:
        return True
    allowed = {CredProtect.UV_OPTIONAL: True, CredProtect.UV_OPTIONAL_WITH_CREDENTIAL_ID_LIST: named}
    return allowed.get(credential.protect, False)


def _user_entity(credential: Credential, *, with_names: bool) -> Mapping[str, object]:
    """Names only after user verification, and only where the platform has to let the user choose (section 6.2)."""
    user = credential.user
    if not with_names:
        return {"id": user.id}
    names = {"name": user.name, "displayName": user.display_name}
    return {"id": user.id, **{key: name for key, name in names.items() if name}}
