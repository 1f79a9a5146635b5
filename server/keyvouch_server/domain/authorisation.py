"""Who may do what: one table over (actor's role, action, target's role), and one rule about oneself.

Tenants are not here: an actor sees only its own tenant, because every lookup is made inside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from keyvouch.errors import PermissionDeniedError, Reason
from keyvouch_server.domain.model import Role

R = Role
_ADMINISTRATORS: Final = frozenset(R) - {R.USER}
_EVERYONE: Final = frozenset(R)
_GLOBAL: Final = frozenset({R.GLOBAL_ADMINISTRATOR})


class Action(StrEnum):
    """An administrative act."""

    CREATE_TENANT = "create_tenant"
    LIST_TENANTS = "list_tenants"
    READ_DIRECTORY = "read_directory"
    CREATE_USER = "create_user"
    DELETE_USER = "delete_user"
    CREATE_ACCESS_PASS = "create_access_pass"
    DELETE_ACCESS_PASS = "delete_access_pass"
    LIST_ACCESS_PASSES = "list_access_passes"
    REMOVE_DEVICE = "remove_device"
    ACCEPT_HEALTH = "accept_health"
    READ_POLICY = "read_policy"
    CHANGE_POLICY = "change_policy"
    READ_AUDIT = "read_audit"


_MANAGE_AUTHENTICATION: Final[Mapping[Role, frozenset[Role]]] = {
    R.GLOBAL_ADMINISTRATOR: _EVERYONE,
    R.PRIVILEGED_AUTHENTICATION_ADMINISTRATOR: _EVERYONE,
    R.AUTHENTICATION_ADMINISTRATOR: frozenset({R.USER}),
}

_TABLE: Final[Mapping[Action, Mapping[Role, frozenset[Role]]]] = {
    Action.CREATE_TENANT: dict.fromkeys(_GLOBAL, _EVERYONE),
    Action.LIST_TENANTS: dict.fromkeys(_ADMINISTRATORS, _EVERYONE),
    Action.READ_DIRECTORY: dict.fromkeys(_ADMINISTRATORS, _EVERYONE),
    Action.CREATE_USER: dict.fromkeys(_GLOBAL, _EVERYONE),
    Action.DELETE_USER: dict.fromkeys(_GLOBAL, _EVERYONE),
    Action.CREATE_ACCESS_PASS: _MANAGE_AUTHENTICATION,
    Action.DELETE_ACCESS_PASS: _MANAGE_AUTHENTICATION,
    Action.LIST_ACCESS_PASSES: {**_MANAGE_AUTHENTICATION, R.GLOBAL_READER: _EVERYONE},
    Action.REMOVE_DEVICE: _MANAGE_AUTHENTICATION,
    Action.ACCEPT_HEALTH: _MANAGE_AUTHENTICATION,
    Action.READ_POLICY: dict.fromkeys(_ADMINISTRATORS, _EVERYONE),
    Action.CHANGE_POLICY: dict.fromkeys((R.GLOBAL_ADMINISTRATOR, R.AUTHENTICATION_POLICY_ADMINISTRATOR), _EVERYONE),
    Action.READ_AUDIT: dict.fromkeys(_ADMINISTRATORS, _EVERYONE),
}

_NEVER_ON_SELF: Final = frozenset({Action.DELETE_USER, Action.CREATE_ACCESS_PASS, Action.DELETE_ACCESS_PASS})


def authorise(actor: Role, action: Action, *, target: Role = Role.USER, on_self: bool = False) -> None:
    """Raise `PermissionDeniedError` (ROLE_REQUIRED or SELF_FORBIDDEN) unless the table allows the act."""
    if on_self and action in _NEVER_ON_SELF:
        raise PermissionDeniedError(
            Reason.SELF_FORBIDDEN,
            "Nobody may do this to their own account.",
            fix="Ask another administrator.",
            metadata={"action": action.value},
        )
    if target in _TABLE[action].get(actor, frozenset()):
        return
    allowed = sorted(r.value for r, targets in _TABLE[action].items() if target in targets)
    raise PermissionDeniedError(
        Reason.ROLE_REQUIRED,
        f"The role {actor.value} may not do this.",
        fix=f"Ask somebody with one of these roles: {', '.join(allowed)}.",
        metadata={"action": action.value, "roles": ", ".join(allowed)},
    )
