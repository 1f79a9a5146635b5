"""authenticatorCredentialManagement (0x0A): list, delete and rename discoverable credentials (section 6.8).

The first platforms that could do this call it by its number 0x41; that is the same command. What is *not* here:
credentials that are not discoverable, which nobody can list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, unique

from keyvouch import cbor
from keyvouch_agent.authenticator.fields import PUBLIC_KEY, need
from keyvouch_agent.authenticator.management_parameters import CredentialManagementParameters
from keyvouch_agent.authenticator.pin_token import Permission, TokenKeeper
from keyvouch_agent.authenticator.ports import Clock
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.user_gate import UserGate
from keyvouch_agent.authenticator.vault import Credential, KeyVault, User

__all__ = ["CredentialManagement"]

ENUMERATION_SECONDS = 30.0
"""How long the next one may be asked for (section 6, stateful commands)."""


@unique
class Subcommand(IntEnum):
    """Section 6.8."""

    GET_CREDS_METADATA = 0x01
    ENUMERATE_RPS_BEGIN = 0x02
    ENUMERATE_RPS_GET_NEXT = 0x03
    ENUMERATE_CREDENTIALS_BEGIN = 0x04
    ENUMERATE_CREDENTIALS_GET_NEXT = 0x05
    DELETE_CREDENTIAL = 0x06
    UPDATE_USER_INFORMATION = 0x07


_CONTINUES = frozenset((Subcommand.ENUMERATE_RPS_GET_NEXT, Subcommand.ENUMERATE_CREDENTIALS_GET_NEXT))


@dataclass(slots=True)
class _Enumeration:
    """What is still to be told, and the subcommand that tells it."""

    subcommand: Subcommand
    credentials: Sequence[Credential]
    touched: float


class CredentialManagement:
    """The command, with the enumeration that is under way."""

    def __init__(self, vault: KeyVault, clock: Clock, gate: UserGate, tokens: TokenKeeper) -> None:
        self._vault = vault
        self._clock = clock
        self._gate = gate
        self._tokens = tokens
        self._pending: _Enumeration | None = None

    def forget_pending(self) -> None:
        """Drop the enumeration, as every other command does, and the end of the token that began it."""
        self._pending = None

    def observe(self) -> None:
        """Drop the enumeration when its time is over."""
        if self._pending and self._clock.monotonic() - self._pending.touched > ENUMERATION_SECONDS:
            self._pending = None

    def handle(self, given: CredentialManagementParameters) -> Mapping[int, object]:
        """Carry out one subcommand and return its response map, empty for none."""
        if given.subcommand not in frozenset(Subcommand):
            self._pending = None
            raise CommandError(Status.INVALID_SUBCOMMAND)
        subcommand = Subcommand(given.subcommand)
        if subcommand in _CONTINUES:
            return self._continue(subcommand)
        self._pending = None
        message = bytes([subcommand]) + given.encoded_params
        self._require_parameters(subcommand, given)
        self._gate.authorize(
            given.pin_uv_auth_protocol, given.pin_uv_auth_param, message, Permission.CREDENTIAL_MANAGEMENT
        )
        match subcommand:
            case Subcommand.GET_CREDS_METADATA:
                return self._get_metadata()
            case Subcommand.ENUMERATE_RPS_BEGIN:
                return self._begin_relying_parties()
            case Subcommand.ENUMERATE_CREDENTIALS_BEGIN:
                return self._begin_credentials(need(given.rp_id_hash))
            case Subcommand.DELETE_CREDENTIAL:
                return self._delete(need(given.credential_id))
            case _:
                return self._update(need(given.credential_id), need(given.user))

    def _require_parameters(self, subcommand: Subcommand, given: CredentialManagementParameters) -> None:
        """The first step of each: what is mandatory is there, once there is a pinUvAuthParam to begin with."""
        if given.pin_uv_auth_param is None:
            raise CommandError(Status.PUAT_REQUIRED)
        if subcommand is Subcommand.ENUMERATE_CREDENTIALS_BEGIN:
            need(given.rp_id_hash)
        if subcommand in (Subcommand.DELETE_CREDENTIAL, Subcommand.UPDATE_USER_INFORMATION):
            need(given.credential_id)
        if subcommand is Subcommand.UPDATE_USER_INFORMATION:
            need(given.user)

    def _get_metadata(self) -> Mapping[int, object]:
        """Section 6.8.2."""
        self._tokens.require_unbound()
        return {1: len(self._vault.discoverable()), 2: self._vault.room()}

    def _begin_relying_parties(self) -> Mapping[int, object]:
        """Section 6.8.3. One credential stands for each relying party."""
        self._tokens.require_unbound()
        found = list({credential.rp_id_hash: credential for credential in self._vault.discoverable()}.values())
        return {**self._begin(Subcommand.ENUMERATE_RPS_GET_NEXT, found), 5: len(found)}

    def _begin_credentials(self, rp_id_hash: bytes) -> Mapping[int, object]:
        """Section 6.8.4."""
        self._tokens.require_not_bound_elsewhere(rp_id_hash)
        found = self._vault.discoverable(rp_id_hash)
        return {**self._begin(Subcommand.ENUMERATE_CREDENTIALS_GET_NEXT, found), 9: len(found)}

    def _begin(self, subcommand: Subcommand, found: Sequence[Credential]) -> Mapping[int, object]:
        if not found:
            raise CommandError(Status.NO_CREDENTIALS)
        response = self._tell(subcommand, found[0])
        if len(found) > 1:
            self._pending = _Enumeration(subcommand, found[1:], self._clock.monotonic())
        return response

    def _continue(self, subcommand: Subcommand) -> Mapping[int, object]:
        """Tell the next one. It needs no pinUvAuthParam: the enumeration was begun with one."""
        self.observe()
        pending, self._pending = self._pending, None
        if pending is None or pending.subcommand is not subcommand:
            raise CommandError(Status.NOT_ALLOWED)
        response = self._tell(subcommand, pending.credentials[0])
        if len(pending.credentials) > 1:
            self._pending = _Enumeration(subcommand, pending.credentials[1:], self._clock.monotonic())
        return response

    def _tell(self, subcommand: Subcommand, credential: Credential) -> dict[int, object]:
        if subcommand is Subcommand.ENUMERATE_RPS_GET_NEXT:
            return {3: {"id": credential.rp_id}, 4: credential.rp_id_hash}
        response: dict[int, object] = {
            6: _user_entity(credential.user),
            7: {"id": credential.id, "type": PUBLIC_KEY},
            8: cbor.decode(credential.public_key),
            10: int(credential.protect),
        }
        if credential.has_large_blob_key:
            response[11] = self._vault.secrets(credential.id).large_blob_key
        return response

    def _delete(self, credential_id: bytes) -> Mapping[int, object]:
        """Section 6.8.5."""
        self._vault.delete(self._named(credential_id).id)
        return {}

    def _update(self, credential_id: bytes, user: User) -> Mapping[int, object]:
        """Section 6.8.6: other names for the same account. A name that is left out is taken away."""
        credential = self._named(credential_id)
        if credential.user.id != user.id:
            raise CommandError(Status.INVALID_PARAMETER)
        self._vault.update_user(credential.id, user)
        return {}

    def _named(self, credential_id: bytes) -> Credential:
        for credential in self._vault.discoverable():
            if credential.id == credential_id:
                self._tokens.require_not_bound_elsewhere(credential.rp_id_hash)
                return credential
        raise CommandError(Status.NO_CREDENTIALS)


def _user_entity(user: User) -> Mapping[str, object]:
    names = {"name": user.name, "displayName": user.display_name}
    return {"id": user.id, **{key: name for key, name in names.items() if name}}
