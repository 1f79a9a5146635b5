"""What every ceremony works with: the ports, the server's own facts, and the few acts all of them share."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from keyvouch import base64url
from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation import TrustStore
from keyvouch.errors import ConflictError, KeyvouchError, NotFoundError, Reason, RefusedError, UnauthenticatedError
from keyvouch.ids import ID_ENTROPY, ServerId, TenantId, UserId, new_id
from keyvouch_server.domain.audit import details_text, next_record
from keyvouch_server.domain.evaluation import Subject
from keyvouch_server.domain.model import GroupMember, LoginName, PolicyVersion, Session, Tenant, User
from keyvouch_server.domain.names import is_user_id, name_key
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.domain.policy import Policy
from keyvouch_server.ports import Announcer, CardTrust, Clock, EkTrust, Entropy, Keys, Snapshot, Store, T, Transaction

ANONYMOUS = "anonymous"
SERVER = "server"
"""Actors of the audit log that are neither a user nor a device."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the server says of itself: its id, the WebAuthn relying party, token issuer, device endpoint."""

    server_id: ServerId
    rp_id: str
    issuer: str
    device_endpoint: str

    @property
    def agent_origin(self) -> str:
        """The one origin a device agent may write into its client data."""
        return f"keyvouch-agent://{self.rp_id}"

    @property
    def client_origin(self) -> str:
        """The one origin a client may write there that uses a security key by itself."""
        return f"keyvouch-client://{self.rp_id}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling: a session as the store knows it now, and its user."""

    session: Session
    user: User


@dataclass(frozen=True, slots=True)
class World:
    """The ports of one server, handed to every ceremony."""

    store: Store
    clock: Clock
    entropy: Entropy
    keys: Keys
    announcer: Announcer
    facts: ServerFacts
    anchors: TrustStore = field(default_factory=TrustStore)
    """What may vouch for authenticators at registration."""
    endorsers: EkTrust = field(default_factory=lambda: EkTrust(TrustStore()))
    """Who may vouch for endorsement keys of TPMs."""
    cards: CardTrust = field(default_factory=CardTrust)
    """Who may certify whose key it is."""
    policies: dict[str, Policy] = field(default_factory=dict)
    """Parsed policies by their stored text; bounded in `policy_of`."""

    def new_id(self, prefix: str) -> str:
        """A fresh id of kind `prefix`."""
        return new_id(prefix, self.entropy.token(ID_ENTROPY))

    def secret(self, prefix: str) -> str:
        """A fresh opaque secret of 256 bits with a prefix that makes it recognisable in a leak."""
        return f"{prefix}_{base64url.encode(self.entropy.token(32))}"

    def vouched(self, assurance: str) -> str:
        """H6, H8: what a key proves now, of which its registration proved `assurance`.

        An anchor that this server does not know any more vouches for nothing. What is recorded stays: it counts again
        when the anchor comes back. What a card authority promises of its keys is what it promises now.
        """
        anchor = "".join(assurance.split("/", 3)[3:])
        if not anchor:
            return assurance
        if Assurance.parse(assurance).provenance is Provenance.CERTIFIED:
            authority = self.cards.named(anchor)
            if authority is not None:
                verified = Assurance.parse(assurance).verification is not Verification.NONE
                return authority.assurance.in_ceremony(user_verified=verified).text()
        elif anchor in self.anchors.names or anchor in self.endorsers.anchors.names:
            return assurance
        gated = min(Assurance.parse(assurance).verification, Verification.SOFTWARE_GATED)
        return Assurance(Protection.SOFTWARE, gated, Provenance.UNATTESTED).text()

    async def write_and_tell(self, work: Callable[[Transaction], Awaitable[T]], tell: Callable[[T], None]) -> T:
        """Write, and tell the streams that wait for it once it is durable.

        Also where the caller has gone away by then: the act stands, and those who wait must not wait in vain. Else it
        is told in the caller's own step: what the caller does before it waits again comes before anybody hears of a
        later act.
        """
        writing = asyncio.create_task(self.store.write(work))
        try:
            result = await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(lambda done: _tell_of(done, tell))
            raise
        tell(result)
        return result

    async def policy_of(self, tx: Snapshot, tenant: TenantId) -> Policy:
        """The tenant's present policy."""
        newest = await tx.find(PolicyVersion, {"tenant_id": tenant}, order="version", descending=True, limit=1)
        document = newest[0].document
        policy = self.policies.get(document)
        if policy is None:
            if len(self.policies) >= 1000:
                self.policies.clear()
            policy = self.policies[document] = Policy.load(document)
        return policy

    async def user_named(self, tx: Snapshot, tenant: str, username: str) -> User | None:
        """The user with this login name or alias in the tenant of this name, or None."""
        found = await tx.get(Tenant, name_key=name_key(tenant))
        return None if found is None else await self.user_in(tx, found.id, username)

    async def user_in(self, tx: Snapshot, tenant: TenantId, name: str) -> User | None:
        """The user of a tenant with this login name or alias, or None. P11: as many questions whoever is named."""
        named = await tx.get(LoginName, tenant_id=tenant, name_key=name_key(name))
        return await tx.get(User, id=named.user_id if named else "")

    async def user_called(self, tx: Snapshot, tenant: TenantId, who: str) -> User | None:
        """The user of a tenant that an administrator names by id, login name or alias, or None."""
        if is_user_id(who):
            user = await tx.get(User, id=who)
            return user if user is not None and user.tenant_id == tenant else None
        return await self.user_in(tx, tenant, who)

    async def subject_of(self, tx: Snapshot, user: User) -> Subject:
        """A user as policies see them."""
        groups = await tx.find(GroupMember, {"user_id": user.id})
        return Subject(user.id, user.role, user.kind, frozenset(member.group_id for member in groups))

    async def must_stand(self, tx: Snapshot, caller: Caller) -> None:
        """Look again, inside the transaction of the act: the caller's session may have ended since it was admitted.

        Raises `UnauthenticatedError(SESSION_REVOKED)`.
        """
        session = await tx.get(Session, id=caller.session.id)
        if session is None or session.revoked_at:
            raise session_revoked()

    async def audit(
        self,
        tx: Transaction,
        action: str,
        *,
        actor: str,
        tenant_id: TenantId,
        subject: str = "",
        user_id: str = "",
        outcome: str = "ok",
        **details: str,
    ) -> None:
        """Write the audit record of an act into the act's own transaction, as the next of the tenant's chain.

        The newest record is read in that transaction, and transactions that write are serial: so numbers have no gap,
        whatever becomes of the others.
        """
        newest = await tx.find(AuditRecord, {"tenant_id": tenant_id}, order="sequence", descending=True, limit=1)
        record = next_record(
            newest[0] if newest else None,
            at=self.clock.now(),
            tenant_id=tenant_id,
            action=action,
            actor=actor,
            subject=subject,
            user_id=UserId(user_id),
            outcome=outcome,
            details=details_text(details),
        )
        await tx.insert(record)


def sha256(text: str) -> bytes:
    """SHA-256 of a token, the only form in which tokens are stored."""
    return hashlib.sha256(text.encode()).digest()


def precise(failed: Exception) -> dict[str, str]:
    """What the audit log keeps of a refusal beside its reason: which rule was broken, what was found."""
    said = failed.metadata if isinstance(failed, KeyvouchError) else {}
    return {name: said[name] for name in ("detail", "found") if name in said}


def _tell_of(done: asyncio.Task[T], tell: Callable[[T], None]) -> None:
    """No sooner than a caller who had stayed: of acts in one group, the first one's caller is to be there first."""
    if not done.cancelled() and done.exception() is None:
        done.get_loop().call_soon(tell, done.result())


def settled(result: T | KeyvouchError) -> T:
    """Raise what a transaction decided to refuse, after its records of the refusal have become durable."""
    if isinstance(result, KeyvouchError):
        raise result
    return result


def session_revoked() -> UnauthenticatedError:
    """For whoever comes with a session that was ended, or with one of a user who was deleted."""
    return UnauthenticatedError(Reason.SESSION_REVOKED, "The session was ended.", fix="Sign in again.")


def unknown_sign_in() -> UnauthenticatedError:
    """The one answer for a sign-in id or token that does not fit."""
    return UnauthenticatedError(
        Reason.SIGN_IN_UNKNOWN, "There is no such sign-in, or the token is not its token.", fix="Begin again."
    )


def unknown_user() -> NotFoundError:
    """For administrators only; callers without a session are never told."""
    return NotFoundError(
        Reason.USER_UNKNOWN, "There is no such user in this tenant.", fix="Look up the name in the list of users."
    )


def unknown_device() -> NotFoundError:
    """For the owner and for administrators."""
    return NotFoundError(
        Reason.DEVICE_UNKNOWN, "There is no such device here.", fix="Look up the id in the list of devices."
    )


def unknown_registration() -> UnauthenticatedError:
    """The one answer for a registration token or id that does not fit."""
    return UnauthenticatedError(
        Reason.REGISTRATION_UNKNOWN, "There is no such registration.", fix="Begin the registration again."
    )


def registration_consumed() -> ConflictError:
    """For another answer to a ceremony that is complete."""
    return ConflictError(
        Reason.REGISTRATION_CONSUMED,
        "This registration is complete already, with another answer.",
        fix="Begin a new registration.",
    )


def registration_expired() -> RefusedError:
    """For an answer that came too late."""
    return RefusedError(
        Reason.REGISTRATION_EXPIRED,
        "The registration took too long.",
        fix="Begin it again; the access pass or session must still be valid.",
    )


def limit_reached(what: str, limit: int) -> RefusedError:
    """For one more of something of which there may be so many."""
    return RefusedError(
        Reason.LIMIT_REACHED, what, fix="Remove one that is not used any more.", metadata={"limit": str(limit)}
    )
