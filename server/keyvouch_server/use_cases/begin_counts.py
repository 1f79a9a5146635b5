"""How many sign-ins were begun for a name in the running minute, and when there are too many (P1, P18).

Those with a security key at the client are counted by themselves: they come to no device, so that whoever begins them
for somebody else would hinder approvals unseen. The counts are in rows, so that they survive restarts and are shared
by nodes: in that of the user, and in the audit log for names that nobody has.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from keyvouch.errors import Reason, ThrottledError
from keyvouch.ids import UserId
from keyvouch_server.domain.model import AuditRecord, SignInWay, User
from keyvouch_server.ports import Snapshot


@dataclass(frozen=True, slots=True)
class Begins:
    """Sign-ins of one minute; the names are those of the columns."""

    begins: int = 0
    key_begins: int = 0

    def one_more(self, way: SignInWay) -> Begins:
        """The same with one that begins now."""
        if way is SignInWay.SECURITY_KEY:
            return replace(self, key_begins=self.key_begins + 1)
        return replace(self, begins=self.begins + 1)

    def refusal(self, way: SignInWay, most: int, *, now: int) -> ThrottledError | None:
        """Why the last one may not begin, where `most` are allowed in a minute."""
        counted = self.key_begins if way is SignInWay.SECURITY_KEY else self.begins
        return throttled("too many sign-ins were begun in this minute", 60 - now % 60) if counted > most else None

    def columns(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def begins_of(user: User, *, now: int) -> Begins:
    """What was begun for a user."""
    return Begins(user.begins, user.key_begins) if user.begins_window == now - now % 60 else Begins()


async def begins_of_nobody(tx: Snapshot, nobody: UserId, *, now: int) -> Begins:
    """What was begun for a name that nobody has. There is no row to count in, so the audit log counts."""
    attempts = {"user_id": nobody, "action": "sign_in.begin"}
    newest = await tx.find(AuditRecord, attempts, order="sequence", descending=True, limit=1)
    if not newest or newest[0].at < now - now % 60:
        return Begins()
    details = json.loads(newest[0].details)
    return Begins(int(details.get("begins", 0)), int(details.get("key_begins", 0)))


def throttled(why: str, seconds: int) -> ThrottledError:
    """The refusal that says when to come again."""
    return ThrottledError(
        Reason.THROTTLED,
        f"Not now: {why}.",
        retry_after=float(max(1, seconds)),
        fix=f"Try again in {max(1, seconds)} seconds, or use another method.",
    )
