"""authenticatorMakeCredential (0x01): the algorithm of section 6.1.2.

The step numbers in the comments are those of the specification. Steps that concern enterprise attestation and displays
have nothing to do here. What is *not* here: parsing (`parameters`), the PIN (`client_pin`), built-in user verification
(`built_in_uv`), keys (`vault`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from keyvouch.webauthn import AttestedCredentialData, AuthenticatorData, Flags
from keyvouch_agent.authenticator.extensions import known_to_register, registration_outputs
from keyvouch_agent.authenticator.hmac_secret import Salts, open_salts
from keyvouch_agent.authenticator.parameters import MakeCredentialParameters
from keyvouch_agent.authenticator.pin_protocol import PinProtocols
from keyvouch_agent.authenticator.pin_token import Permission, TokenKeeper
from keyvouch_agent.authenticator.ports import Ask, Presence, PresenceRequest, Purpose
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.user_gate import UserGate, require_presence
from keyvouch_agent.authenticator.vault import (
    Attestation,
    Credential,
    CredentialSecrets,
    CredProtect,
    KeyRequest,
    KeyVault,
    hash_of,
)

__all__ = ["CredentialMaker"]


@dataclass(frozen=True, slots=True)
class _Extras:
    """What the extensions add to the key that will be made (step 15)."""

    large_blob_key: bool
    salts: Salts | None


class CredentialMaker:
    """Makes credentials, one a command, and remembers nothing."""

    def __init__(
        self, vault: KeyVault, standing: Standing, gate: UserGate, tokens: TokenKeeper, protocols: PinProtocols
    ) -> None:
        self._vault = vault
        self._standing = standing
        self._gate = gate
        self._tokens = tokens
        self._protocols = protocols

    def make_credential(self, given: MakeCredentialParameters, ask: Ask) -> Mapping[int, object]:
        """Section 6.1.2."""
        given = replace(given, extensions=known_to_register(given.extensions, self._standing))
        self._gate.answer_selection_probe(given.pin_uv_auth_param, ask)  # step 1
        self._gate.check_protocol(given.pin_uv_auth_param, given.pin_uv_auth_protocol)  # step 2
        algorithm = self._choose_algorithm(given.algorithms)  # step 3
        built_in = self._check_options(given, ask)  # step 5
        built_in = self._check_user_verification(given, ask, built_in=built_in)  # steps 6 to 8
        if given.wants_enterprise_attestation:  # step 9
            raise CommandError(Status.INVALID_PARAMETER)
        flags = self._gate.verify_user(given, Permission.MAKE_CREDENTIAL, ask, built_in=built_in)  # steps 10 and 11
        self._refuse_excluded(given, flags, ask)  # step 12
        require_presence(ask(PresenceRequest(Purpose.MAKE_CREDENTIAL, given.rp_id, given.user.name)))  # step 14
        self._tokens.spend()
        extras = self._process_extensions(given)  # step 15
        return self._create(given, algorithm, flags | Flags.UP, extras, ask)  # steps 16 to 19

    def _choose_algorithm(self, offered: Sequence[int]) -> int:
        for algorithm in offered:
            if algorithm in self._vault.properties.algorithms:
                return algorithm
        raise CommandError(Status.UNSUPPORTED_ALGORITHM)

    def _check_options(self, given: MakeCredentialParameters, ask: Ask) -> bool:
        """Step 5: presence is not optional. Return whether the "uv" option asks for built-in user verification."""
        if given.options.up is False:
            raise CommandError(Status.INVALID_OPTION)
        return self._gate.wants_built_in_uv(given, ask)

    def _check_user_verification(self, given: MakeCredentialParameters, ask: Ask, *, built_in: bool) -> bool:
        """Steps 6 to 8: what may not be made without user verification. Return whether it is to be the built-in one."""
        if self._standing.always_uv:  # step 6
            return self._gate.require_uv(given, ask, built_in=built_in)
        without_uv = self._standing.make_cred_uv_not_required and not given.options.rk
        if not built_in and given.pin_uv_auth_param is None and not without_uv and self._gate.is_protected:
            raise self._gate.lack_of_uv()  # steps 7 and 8
        return built_in

    def _refuse_excluded(self, given: MakeCredentialParameters, flags: Flags, ask: Ask) -> None:
        """Step 12: the user shows presence, or declines, before the platform learns that a credential exists.

        One that requires user verification is not even looked at without it.
        """
        rp_id_hash = hash_of(given.rp_id)
        found = (self._vault.find(rp_id_hash, item) for item in given.exclude)
        if not any(one and (flags & Flags.UV or one.protect is not CredProtect.UV_REQUIRED) for one in found):
            return
        presence = ask(PresenceRequest(Purpose.MAKE_CREDENTIAL, given.rp_id, given.user.name))
        raise CommandError(Status.KEEPALIVE_CANCEL if presence is Presence.CANCELLED else Status.CREDENTIAL_EXCLUDED)

    def _process_extensions(self, given: MakeCredentialParameters) -> _Extras:
        """Step 15. A largeBlobKey is for discoverable credentials (section 12.3)."""
        wanted = given.extensions.large_blob_key
        if wanted is False or (wanted and not given.options.rk):
            raise CommandError(Status.INVALID_OPTION)
        secret = given.extensions.hmac_secret_mc
        return _Extras(bool(wanted), open_salts(secret, self._protocols) if secret else None)

    def _create(
        self, given: MakeCredentialParameters, algorithm: int, flags: Flags, extras: _Extras, ask: Ask
    ) -> Mapping[int, object]:
        """Steps 16 to 19. The key is stored last, when nothing else can fail, in place of its account's older one.

        It can take long to make one. If the command is cancelled meanwhile, nothing is stored.
        """
        credential = self._vault.create_key(_request(given, algorithm, extras))
        secrets = self._secrets(credential, extras)
        outputs = registration_outputs(given.extensions, self._standing, credential, secrets, extras.salts, flags)
        data = self._registration_data(credential, flags, outputs)
        attestation = self._attest(credential, data, given)
        if ask.cancelled():
            raise CommandError(Status.KEEPALIVE_CANCEL)
        self._vault.keep(credential.id)
        response: dict[int, object] = {1: attestation.format, 2: data, 3: attestation.statement}
        if extras.large_blob_key:
            response[5] = secrets.large_blob_key
        return response

    def _secrets(self, credential: Credential, extras: _Extras) -> CredentialSecrets:
        """Ask the vault for them only where something of them is told."""
        wanted = extras.large_blob_key or extras.salts is not None
        return self._vault.secrets(credential.id) if wanted else CredentialSecrets()

    def _registration_data(
        self, credential: Credential, flags: Flags, extensions: Mapping[str, object]
    ) -> AuthenticatorData:
        aaguid = self._vault.properties.aaguid
        attested = AttestedCredentialData.build(aaguid, credential.id, credential.public_key)
        return AuthenticatorData.build(
            credential.rp_id_hash, flags, credential.sign_count, attested=attested, extensions=extensions or None
        )

    def _attest(self, credential: Credential, data: bytes, given: MakeCredentialParameters) -> Attestation:
        """Attest in the first format of the platform's preference that is known (CTAP 2.2 section 6.1.2)."""
        known = (*self._vault.properties.attestation_formats, "none")
        preferred = [name for name in given.attestation_formats if name in known]
        if preferred and preferred[0] == "none":
            return Attestation("none", {})
        return self._vault.attest(credential.id, data, given.client_data_hash)


def _request(given: MakeCredentialParameters, algorithm: int, extras: _Extras) -> KeyRequest:
    return KeyRequest(
        rp_id=given.rp_id,
        user=given.user,
        algorithm=algorithm,
        discoverable=bool(given.options.rk),
        protect=given.extensions.protect or CredProtect.UV_OPTIONAL,
        cred_blob=given.extensions.stored_cred_blob,
        hmac_secret=given.extensions.hmac_secret,
        large_blob_key=extras.large_blob_key,
    )
