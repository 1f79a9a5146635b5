"""The rows behind the names that people sign in with: each of one user, under its canonical key (P10)."""

from __future__ import annotations

from keyvouch.errors import ConflictError, Reason
from keyvouch_server.domain.model import LoginName, User
from keyvouch_server.domain.names import name_key
from keyvouch_server.ports import Duplicate, Transaction


async def insert_name(tx: Transaction, user: User, shown: str, *, alias: bool) -> None:
    """Give a user one more name. Raises USER_EXISTS."""
    try:
        await tx.insert(LoginName(user.tenant_id, name_key(shown), shown, user.id, alias))
    except Duplicate:
        raise name_taken(shown) from None


async def rename(tx: Transaction, before: User, wanted: User) -> None:
    """The login name's row follows the user's. An alias of theirs may become the login name. Raises USER_EXISTS."""
    if wanted.username_key != before.username_key:
        own_alias = {"tenant_id": before.tenant_id, "name_key": wanted.username_key, "user_id": before.id}
        await tx.delete(LoginName, {**own_alias, "alias": True})
    row = {"tenant_id": before.tenant_id, "name_key": before.username_key, "user_id": before.id}
    try:
        await tx.update(LoginName, row, {"name_key": wanted.username_key, "name": wanted.username})
    except Duplicate:
        raise name_taken(wanted.username) from None


def name_taken(shown: str) -> ConflictError:
    """For a name that leads to somebody already."""
    return ConflictError(Reason.USER_EXISTS, f"There is a user named {shown} already.", fix="Choose another name.")
