"""Who may do what, cell by cell: every role, every act, every kind of target, in and out of the tenant."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from keyvouch.errors import KeyvouchError, NotFoundError, PermissionDeniedError, Reason
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import Role, User, UserKind
from support.sample_records import USER, variant

INITIALS = dict(zip(["U", "R", "A", "P", "V", "G"], Role, strict=True))
"""The roles by their initials, in the order of `Role`: user, global reader, authentication administrator,
authentication policy administrator, privileged authentication administrator, global administrator.
"""

# What the product rules say, written down once more: for each act, the roles that may do it to each target role.
#            target:              U     R     A     P     V     G
EXPECTED: dict[Action, str] = {
    Action.CREATE_TENANT: "       G     G     G     G     G     G",
    Action.LIST_TENANTS: "        RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.READ_DIRECTORY: "      RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.CREATE_USER: "         G     G     G     G     G     G",
    Action.UPDATE_USER: "         G     G     G     G     G     G",
    Action.CHANGE_ROLE: "         G     G     G     G     G     G",
    Action.DELETE_USER: "         G     G     G     G     G     G",
    Action.MANAGE_ALIASES: "      G     G     G     G     G     G",
    Action.READ_GROUPS: "         RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.MANAGE_GROUPS: "       G     G     G     G     G     G",
    Action.CREATE_ACCESS_PASS: "  AVG   VG    VG    VG    VG    VG",
    Action.REPLACE_ACCESS_PASS: " AVG   VG    VG    VG    VG    VG",
    Action.DELETE_ACCESS_PASS: "  AVG   VG    VG    VG    VG    VG",
    Action.LIST_ACCESS_PASSES: "  RAVG  RVG   RVG   RVG   RVG   RVG",
    Action.REMOVE_DEVICE: "       AVG   VG    VG    VG    VG    VG",
    Action.ACCEPT_HEALTH: "       AVG   VG    VG    VG    VG    VG",
    Action.READ_POLICY: "         RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.PREVIEW_POLICY: "      RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.CHANGE_POLICY: "       PG    PG    PG    PG    PG    PG",
    Action.ROLL_BACK_POLICY: "    PG    PG    PG    PG    PG    PG",
    Action.READ_SESSIONS: "       RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.REVOKE_SESSIONS: "     AVG   VG    VG    VG    VG    VG",
    Action.REVOKE_TENANT_SESSIONS: "G   G     G     G     G     G",
    Action.READ_RISKS: "          RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.CLOSE_RISK: "          AVG   VG    VG    VG    VG    VG",
    Action.EXPLAIN: "             RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.READ_RECEIPT: "        RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.READ_CHECKPOINTS: "    RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
    Action.READ_AUDIT: "          RAPVG RAPVG RAPVG RAPVG RAPVG RAPVG",
}

# Nobody does these to themselves; a reader may look at its own pass, for it reads whatever there is (T5).
NEVER_ON_SELF = {
    Action.CHANGE_ROLE: "URAPVG",
    Action.DELETE_USER: "URAPVG",
    Action.CREATE_ACCESS_PASS: "URAPVG",
    Action.REPLACE_ACCESS_PASS: "URAPVG",
    Action.DELETE_ACCESS_PASS: "URAPVG",
    Action.LIST_ACCESS_PASSES: "UAPVG",
}

MISSING = NotFoundError(Reason.DEVICE_UNKNOWN, "There is no such thing.")


def expected(actor: Role, action: Action, target: Role) -> bool:
    column = EXPECTED[action].split()[list(Role).index(target)]
    return actor in {INITIALS[letter] for letter in column}


def person(name: str, tenant: str, role: Role, kind: UserKind = UserKind.MEMBER) -> User:
    return variant(USER, id=f"usr_{name}", tenant_id=f"ten_{tenant}", role=role, kind=kind)


def verdict(*args: Any, **options: Any) -> Reason | None:
    refusal: KeyvouchError | None = None
    try:
        authorise(*args, **options)
    except KeyvouchError as error:
        refusal = error
    if refusal is None:
        return None
    denied = refusal.reason in (Reason.ROLE_REQUIRED, Reason.SELF_FORBIDDEN)
    assert isinstance(refusal, PermissionDeniedError if denied else NotFoundError)
    assert refusal.fix or refusal is MISSING
    return refusal.reason


def test_the_table_has_every_act():
    assert EXPECTED.keys() == set(Action)
    assert {len(row.split()) for row in EXPECTED.values()} == {len(Role)}
    assert set("".join(EXPECTED.values())) <= {*INITIALS, " "} - {"U"}


@pytest.mark.parametrize("action", Action)
def test_t5_every_cell_of_the_matrix_P16(action: Action):
    """What an act is refused for: the role first, then that the target is not there, or is oneself."""
    seen: Counter[Reason | None] = Counter()
    for actor_role, target_role, kind in itertools.product(Role, Role, UserKind):
        actor = person("actor", "a", actor_role)
        may = expected(actor_role, action, target_role)
        may_at_all = expected(actor_role, action, Role.USER)
        same, other = (person("target", tenant, target_role, kind) for tenant in "ab")
        cells = [
            (verdict(actor, action, same), None if may else Reason.ROLE_REQUIRED),
            (verdict(actor, action, same, unknown=MISSING), None if may else Reason.ROLE_REQUIRED),
            (verdict(actor, action, other), Reason.USER_UNKNOWN if may_at_all else Reason.ROLE_REQUIRED),
            (
                verdict(actor, action, other, unknown=MISSING),
                Reason.DEVICE_UNKNOWN if may_at_all else Reason.ROLE_REQUIRED,
            ),
            (verdict(actor, action, None), None if may_at_all else Reason.ROLE_REQUIRED),
            (
                verdict(actor, action, None, unknown=MISSING),
                Reason.DEVICE_UNKNOWN if may_at_all else Reason.ROLE_REQUIRED,
            ),
        ]
        for found, wanted in cells:
            assert found is wanted, (actor_role, action, target_role, kind)
        seen.update(found for found, _ in cells)
    assert sum(seen.values()) == 6 * 6 * 2 * 6
    assert seen.keys() == {None, Reason.ROLE_REQUIRED, Reason.USER_UNKNOWN, Reason.DEVICE_UNKNOWN}


@pytest.mark.parametrize("actor_role", Role)
def test_t5_nobody_does_to_themselves_what_opens_or_ends_an_account(actor_role: Role):
    for action in Action:
        me = person("actor", "a", actor_role)
        forbidden = actor_role in {INITIALS[letter] for letter in NEVER_ON_SELF.get(action, "")}
        wanted = None if expected(actor_role, action, actor_role) else Reason.ROLE_REQUIRED
        assert verdict(me, action, me) is (Reason.SELF_FORBIDDEN if forbidden else wanted), action
        # Somebody of another tenant with the same id is not oneself, and is not there.
        stranger = variant(me, tenant_id="ten_b")
        at_all = Reason.USER_UNKNOWN if expected(actor_role, action, Role.USER) else Reason.ROLE_REQUIRED
        assert verdict(me, action, stranger) is at_all, action


def test_a_target_of_another_tenant_is_as_unknown_as_one_that_was_made_up_P17():
    """The very same error, whoever the other one is."""
    for action, actor_role, target_role in itertools.product(Action, Role, Role):
        answers = []
        for target in (person("x", "b", target_role), None):
            with pytest.raises(KeyvouchError) as caught:
                authorise(person("actor", "a", actor_role), action, target, unknown=MISSING)
            error = caught.value
            answers.append((error.reason, error.message, error.fix, dict(error.metadata)))
        assert answers[0] == answers[1], (action, actor_role, target_role)


def test_what_is_allowed_is_handed_back():
    target = person("target", "a", Role.USER)
    assert (
        authorise(person("actor", "a", Role.GLOBAL_ADMINISTRATOR), Action.UPDATE_USER, target, unknown=MISSING)
        is target
    )
