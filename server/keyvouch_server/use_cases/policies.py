"""The policy of a tenant: read, previewed, saved, rolled back. Each save is a version, and versions stay (KI7).

A change says from which version it was made, and that is compared in the transaction of the save, so that nobody
overwrites what they have not seen. What a change does to people is `policy_effects`; what it does to the administrator
who makes it is `lock_out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from keyvouch.errors import ConflictError, KeyvouchError, NotFoundError, Reason
from keyvouch.ids import TenantId
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import PolicyVersion
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.policy_check import check_policy
from keyvouch_server.domain.policy_differences import Difference, differences
from keyvouch_server.ports import Below, Snapshot, Transaction
from keyvouch_server.use_cases.lock_out import lock_out
from keyvouch_server.use_cases.policy_effects import Effects, effects_of
from keyvouch_server.use_cases.policy_targets import unknown_target, without_strangers
from keyvouch_server.use_cases.world import Caller, World, settled

MOST_VERSIONS: Final = 20
"""Versions in a page: each tells its differences, and a policy can be long."""

MOST_BYTES: Final = 256 * 1024
"""Bytes of differences in a page, or one version more: clients take messages of 1 MiB."""


@dataclass(frozen=True, slots=True)
class SavedPolicy:
    """A version, and in what it differs from the one before it."""

    version: PolicyVersion
    differences: tuple[Difference, ...]

    @property
    def size(self) -> int:
        """About how many bytes its differences take."""
        return sum(len(f"{one.setting}{one.before}{one.after}".encode()) + 16 for one in self.differences)


@dataclass(frozen=True, slots=True)
class Preview:
    """What saving a policy would change. `locks_out` says why the caller could not sign in again, or nothing."""

    differences: tuple[Difference, ...]
    effects: Effects
    locks_out: str


class Policies:
    """The rules of tenants."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def present(self, caller: Caller) -> Policy:
        """The present policy."""
        authorise(caller.user, Action.READ_POLICY)
        return await self._world.store.read(lambda tx: self._world.policy_of(tx, caller.user.tenant_id))

    async def preview(self, caller: Caller, wanted: Policy | int, *, last: str, limit: int) -> Preview:
        """PS13, KI2: what saving `wanted`, or rolling back to that version, would change, and for whom; `limit` users
        are looked at, after the user `last`.
        """
        authorise(caller.user, Action.PREVIEW_POLICY)
        if isinstance(wanted, Policy):
            check_policy(wanted)

        async def work(tx: Snapshot) -> Preview:
            tenant = caller.user.tenant_id
            present = await self._world.policy_of(tx, tenant)
            if isinstance(wanted, Policy):
                rules = await _saveable(tx, tenant, present, wanted)
            else:
                rules = await _rules_of(tx, tenant, present, wanted)
            if isinstance(rules, KeyvouchError):
                raise rules
            new = replace(rules, version=present.version + 1)
            locked = await lock_out(tx, self._world, caller, present=present, wanted=new)
            effects = await effects_of(tx, self._world, tenant, present, new, last=last, limit=limit)
            return Preview(differences(present, new), effects, locked.message if locked else "")

        return await self._world.store.read(work)

    async def update(self, caller: Caller, wanted: Policy, *, accept_lock_out: bool = False) -> Policy:
        """T3, T4: save a new version over the one the caller has seen.

        Raises `RefusedError(POLICY_LOCKS_OUT)` where the caller could not sign in again, unless that is accepted.
        """
        authorise(caller.user, Action.CHANGE_POLICY)
        check_policy(wanted)

        async def work(tx: Transaction) -> Policy | KeyvouchError:
            await self._world.must_stand(tx, caller)
            present = await self._world.policy_of(tx, caller.user.tenant_id)
            rules = await _saveable(tx, caller.user.tenant_id, present, wanted)
            if isinstance(rules, KeyvouchError):
                return rules
            return await self._save(tx, caller, "policy.update", present, rules, accept_lock_out=accept_lock_out)

        return settled(await self._world.store.write(work))

    async def roll_back(
        self, caller: Caller, version: int, present_version: int, *, accept_lock_out: bool = False
    ) -> Policy:
        """KI7: save the rules of an old version as a new one. What it did not know yet has its default."""
        authorise(caller.user, Action.ROLL_BACK_POLICY)

        async def work(tx: Transaction) -> Policy | KeyvouchError:
            await self._world.must_stand(tx, caller)
            present = await self._world.policy_of(tx, caller.user.tenant_id)
            if present.version != present_version:
                return _superseded(present, present_version)
            rules = await _rules_of(tx, caller.user.tenant_id, present, version)
            if isinstance(rules, KeyvouchError):
                return rules
            return await self._save(
                tx,
                caller,
                "policy.roll_back",
                present,
                rules,
                accept_lock_out=accept_lock_out,
                rules_of=str(version),
            )

        return settled(await self._world.store.write(work))

    async def _save(
        self,
        tx: Transaction,
        caller: Caller,
        action: str,
        present: Policy,
        wanted: Policy,
        *,
        accept_lock_out: bool,
        **details: str,
    ) -> Policy | KeyvouchError:
        """The new version with its audit record; or the record of why there is none."""
        saved = replace(wanted, version=present.version + 1)
        refusal = await lock_out(tx, self._world, caller, present=present, wanted=saved)
        told = {**details, "lock_out": "accepted"} if refusal and accept_lock_out else details
        refused = None if accept_lock_out else refusal
        await self._world.audit(
            tx,
            action,
            actor=caller.user.id,
            tenant_id=caller.user.tenant_id,
            subject=str(saved.version),
            outcome=refused.reason.value if refused else "ok",
            **told,
        )
        if refused is not None:
            return refused
        now = self._world.clock.now()
        await tx.insert(PolicyVersion(caller.user.tenant_id, saved.version, saved.document(), now, caller.user.id))
        return saved

    async def versions(self, caller: Caller, *, before: int, limit: int) -> tuple[Sequence[SavedPolicy], bool]:
        """A page of the versions, the newest first, and whether it is the last page. `before` is the version that the
        page before ended with, or 0. It is shorter where they differ in much.
        """
        authorise(caller.user, Action.READ_POLICY)
        limit = min(limit, MOST_VERSIONS)

        async def work(tx: Snapshot) -> tuple[list[SavedPolicy], bool]:
            where: dict[str, object] = {"tenant_id": caller.user.tenant_id}
            if before:
                where["version"] = Below(before)
            rows = await tx.find(PolicyVersion, where, order="version", descending=True, limit=limit + 1)
            told: list[SavedPolicy] = []
            size = 0
            for row, older in zip(rows[:limit], [*rows[1:], None], strict=False):
                told.append(_saved(row, older))
                size += told[-1].size
                if size >= MOST_BYTES:
                    break
            return told, len(told) == len(rows)

        return await self._world.store.read(work)

    async def version(self, caller: Caller, version: int) -> tuple[SavedPolicy, Policy]:
        """One version. Raises `NotFoundError(POLICY_VERSION_UNKNOWN)`."""
        authorise(caller.user, Action.READ_POLICY)

        async def work(tx: Snapshot) -> SavedPolicy:
            row = await _version(tx, caller.user.tenant_id, version)
            if row is None:
                raise _unknown_version(version)
            return _saved(row, await _version(tx, caller.user.tenant_id, version - 1))

        saved = await self._world.store.read(work)
        return saved, replace(Policy.load(saved.version.document), version=version)


async def _version(tx: Snapshot, tenant: TenantId, version: int) -> PolicyVersion | None:
    return await tx.get(PolicyVersion, tenant_id=tenant, version=version)


def _saved(row: PolicyVersion, older: PolicyVersion | None) -> SavedPolicy:
    changes = differences(Policy.load(older.document), Policy.load(row.document)) if older else ()
    return SavedPolicy(row, changes)


async def _saveable(tx: Snapshot, tenant: TenantId, present: Policy, wanted: Policy) -> Policy | KeyvouchError:
    """A policy that was made from the present one, or why it cannot be saved over it."""
    if present.version != wanted.version:
        return _superseded(present, wanted.version)
    return await unknown_target(tx, tenant, present, wanted) or wanted


async def _rules_of(tx: Snapshot, tenant: TenantId, present: Policy, version: int) -> Policy | KeyvouchError:
    """The rules of an old version as they would be saved now."""
    old = await _version(tx, tenant, version)
    if old is None:
        return _unknown_version(version)
    rules = await without_strangers(tx, tenant, Policy.load(old.document))
    return check_policy(replace(rules, version=present.version))


def _superseded(present: Policy, seen: int) -> KeyvouchError:
    return ConflictError(
        Reason.POLICY_CHANGED,
        f"The policy is at version {present.version} now, not {seen}.",
        fix="Look at the present policy and make the change again.",
        metadata={"version": str(present.version)},
    )


def _unknown_version(version: int) -> NotFoundError:
    return NotFoundError(
        Reason.POLICY_VERSION_UNKNOWN,
        f"The policy has no version {version}.",
        fix="Look up its versions: `keyvouch admin policy history`.",
    )
