"""Who may do what: one function over the actor, the action and the target, each of a tenant.

One table says which role may do an action to users of which role. Three rules stand beside it: what nobody may do to
themselves; that a target of another tenant is as unknown as one that was made up; and that the right to do a thing
at all is asked before anybody is told whether its target exists. Not here: looking the target up (`use_cases.world`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, overload

from keyvouch.errors import NotFoundError, PermissionDeniedError, Reason
from keyvouch_server.domain.model import Role, User

R = Role
_ADMINISTRATORS: Final = frozenset(R) - {R.USER}
_EVERYONE: Final = frozenset(R)


class Action(StrEnum):
    """An administrative act."""

    CREATE_TENANT = "create_tenant"
    LIST_TENANTS = "list_tenants"
    READ_DIRECTORY = "read_directory"
    CREATE_USER = "create_user"
    UPDATE_USER = "update_user"
    CHANGE_ROLE = "change_role"
    DELETE_USER = "delete_user"
    MANAGE_ALIASES = "manage_aliases"
    READ_GROUPS = "read_groups"
    MANAGE_GROUPS = "manage_groups"
    CREATE_ACCESS_PASS = "create_access_pass"
    REPLACE_ACCESS_PASS = "replace_access_pass"
    DELETE_ACCESS_PASS = "delete_access_pass"
    LIST_ACCESS_PASSES = "list_access_passes"
    REMOVE_DEVICE = "remove_device"
    ACCEPT_HEALTH = "accept_health"
    READ_POLICY = "read_policy"
    PREVIEW_POLICY = "preview_policy"
    CHANGE_POLICY = "change_policy"
    ROLL_BACK_POLICY = "roll_back_policy"
    READ_SESSIONS = "read_sessions"
    REVOKE_SESSIONS = "revoke_sessions"
    REVOKE_TENANT_SESSIONS = "revoke_tenant_sessions"
    READ_RISKS = "read_risks"
    CLOSE_RISK = "close_risk"
    EXPLAIN = "explain"
    READ_RECEIPT = "read_receipt"
    READ_CHECKPOINTS = "read_checkpoints"
    READ_AUDIT = "read_audit"


_Rights = Mapping[Role, frozenset[Role]]
"""Which role may act, and on users of which roles."""

_READ: Final[_Rights] = dict.fromkeys(_ADMINISTRATORS, _EVERYONE)
_GLOBAL: Final[_Rights] = {R.GLOBAL_ADMINISTRATOR: _EVERYONE}
_RULES_OF_SIGN_IN: Final[_Rights] = {**_GLOBAL, R.AUTHENTICATION_POLICY_ADMINISTRATOR: _EVERYONE}
_MANAGE_AUTHENTICATION: Final[_Rights] = {
    **_GLOBAL,
    R.PRIVILEGED_AUTHENTICATION_ADMINISTRATOR: _EVERYONE,
    R.AUTHENTICATION_ADMINISTRATOR: frozenset({R.USER}),
}

_TABLE: Final[Mapping[Action, _Rights]] = {
    Action.CREATE_TENANT: _GLOBAL,
    Action.LIST_TENANTS: _READ,
    Action.READ_DIRECTORY: _READ,
    Action.CREATE_USER: _GLOBAL,
    Action.UPDATE_USER: _GLOBAL,
    Action.CHANGE_ROLE: _GLOBAL,
    Action.DELETE_USER: _GLOBAL,
    Action.MANAGE_ALIASES: _GLOBAL,
    Action.READ_GROUPS: _READ,
    Action.MANAGE_GROUPS: _GLOBAL,
    Action.CREATE_ACCESS_PASS: _MANAGE_AUTHENTICATION,
    Action.REPLACE_ACCESS_PASS: _MANAGE_AUTHENTICATION,
    Action.DELETE_ACCESS_PASS: _MANAGE_AUTHENTICATION,
    Action.LIST_ACCESS_PASSES: {**_MANAGE_AUTHENTICATION, R.GLOBAL_READER: _EVERYONE},
    Action.REMOVE_DEVICE: _MANAGE_AUTHENTICATION,
    Action.ACCEPT_HEALTH: _MANAGE_AUTHENTICATION,
    Action.READ_POLICY: _READ,
    Action.PREVIEW_POLICY: _READ,
    Action.CHANGE_POLICY: _RULES_OF_SIGN_IN,
    Action.ROLL_BACK_POLICY: _RULES_OF_SIGN_IN,
    Action.READ_SESSIONS: _READ,
    Action.REVOKE_SESSIONS: _MANAGE_AUTHENTICATION,
    Action.REVOKE_TENANT_SESSIONS: _GLOBAL,
    Action.READ_RISKS: _READ,
    Action.CLOSE_RISK: _MANAGE_AUTHENTICATION,
    Action.EXPLAIN: _READ,
    Action.READ_RECEIPT: _READ,
    Action.READ_CHECKPOINTS: _READ,
    Action.READ_AUDIT: _READ,
}

_NEVER_ON_SELF: Final[Mapping[Action, frozenset[Role]]] = {
    Action.CHANGE_ROLE: _EVERYONE,
    Action.DELETE_USER: _EVERYONE,
    Action.CREATE_ACCESS_PASS: _EVERYONE,
    Action.REPLACE_ACCESS_PASS: _EVERYONE,
    Action.DELETE_ACCESS_PASS: _EVERYONE,
    Action.LIST_ACCESS_PASSES: _EVERYONE - {R.GLOBAL_READER},  # T5: readers read whatever there is
}


@overload
def authorise(actor: User, action: Action, target: User | None = None) -> None: ...


@overload
def authorise(actor: User, action: Action, target: User | None, *, unknown: NotFoundError) -> User: ...


def authorise(
    actor: User, action: Action, target: User | None = None, *, unknown: NotFoundError | None = None
) -> User | None:
    """Raise unless `actor` may do `action` to `target`, None where the act is on no user in particular.

    `PermissionDeniedError(ROLE_REQUIRED)` or `(SELF_FORBIDDEN)` by the tables above. For a target that was looked up,
    pass what was found with `unknown`, the error for one that is not there: it is raised once it is certain that the
    actor may do such things at all, and so is it for a target of another tenant. Returns the target.
    """
    if target is not None and target.tenant_id != actor.tenant_id:
        target, unknown = None, unknown or _unknown()
    _judge(actor.role, action, target.role if target else R.USER, on_self=target is not None and target.id == actor.id)
    if target is None and unknown is not None:
        raise unknown
    return target


def is_further(action: Action, before: Role, after: Role) -> bool:
    """Whether somebody may do `action` to users of the role `before` and not to those of the role `after`."""
    return any(before in targets and after not in targets for targets in _TABLE[action].values())


def _judge(actor: Role, action: Action, target: Role, *, on_self: bool) -> None:
    if on_self and actor in _NEVER_ON_SELF.get(action, frozenset()):
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


def _unknown() -> NotFoundError:
    return NotFoundError(
        Reason.USER_UNKNOWN, "There is no such user in this tenant.", fix="Look up the name in the list of users."
    )
