"""The session that a registration came from: it still stands, and its access pass is for this very device (T8, P8).

Asked of a TPM as soon as it is shown, before anybody makes a PIN for it, and of every device when it is registered.
The rules themselves are `domain.access_pass.decide_binding` and `decide_pass_policy`.
"""

from __future__ import annotations

from typing import Final

from keyvouch.assurance import Provenance
from keyvouch.errors import Reason, UnauthenticatedError
from keyvouch_server.domain.access_pass import decide_binding, decide_pass_policy
from keyvouch_server.domain.authenticators import Model
from keyvouch_server.domain.model import AccessPass, Registration, Session, User
from keyvouch_server.domain.policy import Policy
from keyvouch_server.ports import Snapshot
from keyvouch_server.use_cases.world import World

NO_MODEL: Final = Model(bytes(16), "none", Provenance.UNATTESTED)
"""Of a device that is no FIDO2 authenticator, or has not proved to be one."""


async def decide_session(tx: Snapshot, world: World, row: Registration) -> None:
    """T8, KI1: the session that began a registration stands, and so does its pass, in policy as well.

    Raises SESSION_REVOKED, or what `decide_pass_policy` raises.
    """
    session = await tx.get(Session, id=row.session_id)
    user = await tx.get(User, id=row.user_id)
    if session is None or session.revoked_at or user is None:
        raise session_ended()
    await decide_session_pass(tx, world, session, user, await world.policy_of(tx, row.tenant_id))


async def decide_session_pass(tx: Snapshot, world: World, session: Session, user: User, policy: Policy) -> None:
    """The same of a session at hand. One that no pass has opened does not mind what policy says of passes."""
    if not session.access_pass_id:
        return
    found = await tx.get(AccessPass, id=session.access_pass_id)
    if found is None:
        raise session_ended()
    decide_pass_policy(policy, found, await world.subject_of(tx, user))


def session_ended() -> UnauthenticatedError:
    """For a registration whose session was ended since it began."""
    return UnauthenticatedError(
        Reason.SESSION_REVOKED, "The session that began this registration was ended.", fix="Sign in again."
    )


async def access_pass_of(tx: Snapshot, row: Registration) -> AccessPass | None:
    """The pass that opened the session of a registration, if one did."""
    session = await tx.get(Session, id=row.session_id)
    return await tx.get(AccessPass, id=session.access_pass_id) if session is not None else None


async def decide_pass(tx: Snapshot, row: Registration, *, endorsement_key_hash: bytes, model: Model = NO_MODEL) -> None:
    """What is proved of the device, empty and `NO_MODEL` where nothing is. Raises ACCESS_PASS_DEVICE."""
    found = await access_pass_of(tx, row)
    decide_binding(found.binding if found else "", endorsement_key_hash=endorsement_key_hash, model=model)
