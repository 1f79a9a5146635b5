"""Access passes at the use cases, over a store of choice: for what a listener, or a sign-in before it, would hide.

    desk = await PassDesk.open(template, store)
    code = await desk.issue("ada")
    await desk.try_pass("ada", code, "192.0.2.1")        a session, or the refusal

The clock stands until a test moves it. `RecordedStore` and `RecordedKeys` write down what is asked of the real ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from keyvouch.errors import KeyvouchError
from keyvouch.ids import GROUP, USER, GroupId, TenantId, UserId, new_id
from keyvouch_server import bootstrap
from keyvouch_server.bootstrap import App
from keyvouch_server.domain.model import (
    AccessPass,
    GroupMember,
    LoginName,
    PolicyVersion,
    Role,
    User,
    UserGroup,
    UserKind,
)
from keyvouch_server.domain.names import name_key
from keyvouch_server.domain.oversight_model import AuditRecord, RiskEvent
from keyvouch_server.ports import Keys, Snapshot, Store, Transaction
from keyvouch_server.use_cases.access_pass_sign_in import AccessPassSignIns, OpenedWithPass
from keyvouch_server.use_cases.access_passes import PassWish
from support.live_server import ADMINISTRATOR, TENANT, Clock, configuration

T = TypeVar("T")


async def at_once(seconds: float) -> None:
    """The pause before a refusal, left out."""


@dataclass(slots=True)
class PassDesk:
    """One tenant, its users and their passes."""

    app: App
    store: Store
    clock: Clock
    tenant_id: TenantId
    sign_ins: AccessPassSignIns

    @classmethod
    async def open(cls, template: Path, store: Store) -> PassDesk:
        """A server with the keys of `template`, without listeners."""
        clock = Clock()
        app = bootstrap.assemble(template, configuration(1), store, clock=clock)
        founded = await app.administration.found(TENANT, ADMINISTRATOR)
        sign_ins = AccessPassSignIns(app.world, app.sessions, pause=at_once)
        return cls(app, store, clock, founded.tenant.id, sign_ins)

    async def add(self, username: str, *, kind: UserKind = UserKind.MEMBER, aliases: tuple[str, ...] = ()) -> User:
        """A user, in one group, with their names."""
        entropy = self.app.world.entropy.token
        user_id, group_id = UserId(new_id(USER, entropy(16))), GroupId(new_id(GROUP, entropy(16)))
        key, now = name_key(username), self.clock.now()
        user = User(user_id, self.tenant_id, username, key, username, Role.USER, entropy(32), now, kind=kind)

        async def work(tx: Transaction) -> None:
            await tx.insert(user)
            for name in (username, *aliases):
                await tx.insert(LoginName(self.tenant_id, name_key(name), name, user.id, alias=name != username))
            await tx.insert(UserGroup(group_id, self.tenant_id, group_id, group_id, "", now))
            await tx.insert(GroupMember(group_id, user.id, self.tenant_id))

        await self.store.write(work)
        return user

    async def user(self, username: str) -> User:
        """A user that was added."""
        found = await self.store.read(lambda tx: self.app.world.user_in(tx, self.tenant_id, username))
        assert found is not None
        return found

    async def issue(self, username: str, wish: PassWish | None = None) -> str:
        """A pass in the place of any other; returns its code."""
        user = await self.user(username)

        async def work(tx: Transaction) -> str:
            policy = await self.app.world.policy_of(tx, self.tenant_id)
            return (await self.app.passes.create_in(tx, user, policy, actor="server", wish=wish)).code

        return await self.store.write(work)

    async def change_policy(self, **access_pass: Any) -> None:
        """Save other settings for passes, unchecked."""

        async def work(tx: Transaction) -> None:
            old = await self.app.world.policy_of(tx, self.tenant_id)
            new = replace(old, version=old.version + 1, access_pass=replace(old.access_pass, **access_pass))
            saved = PolicyVersion(self.tenant_id, new.version, new.document(), self.clock.now(), "server")
            await tx.insert(saved)

        await self.store.write(work)

    async def try_pass(
        self, username: str, code: str, address: str = "127.0.0.1", tenant: str = TENANT
    ) -> OpenedWithPass | KeyvouchError:
        """What a sign-in gives."""
        try:
            return await self.sign_ins.sign_in(tenant, username, code, address=address)
        except KeyvouchError as refusal:
            return refusal

    async def held(self, username: str) -> AccessPass:
        """The user's pass as it is stored."""
        user = await self.user(username)
        found = await self.store.read(lambda tx: tx.get(AccessPass, user_id=user.id))
        assert found is not None
        return found

    async def outcomes(self) -> list[str]:
        """Of all sign-ins with passes, in their order."""
        where = {"action": "access_pass.sign_in"}
        records = await self.store.read(lambda tx: tx.find(AuditRecord, where, order="sequence", limit=100_000))
        return [record.outcome for record in records]

    async def events(self) -> list[RiskEvent]:
        """Risk events, in the order in which they were noted."""
        return await self.store.read(lambda tx: tx.find(RiskEvent, {"tenant_id": self.tenant_id}, order="at"))

    def recorded(self) -> tuple[AccessPassSignIns, list[str]]:
        """The same ceremony over ports that write into the list what is asked of them."""
        said: list[str] = []
        store, keys = RecordedStore(self.store, said), RecordedKeys(self.app.world.keys, said)
        world = replace(self.app.world, store=store, keys=keys)
        return AccessPassSignIns(world, self.app.sessions, pause=at_once), said


@dataclass(slots=True)
class RecordedStore:
    """A store; `said` is every statement of its works, without the values."""

    store: Store
    said: list[str] = field(default_factory=list)

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        return await self.store.read(lambda tx: work(_Recorded(tx, self.said)))

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        return await self.store.write(lambda tx: work(_Recorded(tx, self.said)))

    async def close(self) -> None:
        """See `ports.Store`."""
        await self.store.close()


class _Recorded:
    def __init__(self, tx: Any, said: list[str]) -> None:
        self._tx = tx
        self._said = said

    async def get(self, table: type[Any], **key: object) -> Any:
        self._said.append(f"get {table.__name__} {sorted(key)}")
        return await self._tx.get(table, **key)

    async def find(self, table: type[Any], where: Mapping[str, Any], **how: Any) -> Any:
        self._said.append(f"find {table.__name__} {_shape(where)} {sorted(how.items())}")
        return await self._tx.find(table, where, **how)

    async def count(self, table: type[Any], where: Mapping[str, Any]) -> Any:
        self._said.append(f"count {table.__name__} {_shape(where)}")
        return await self._tx.count(table, where)

    async def insert(self, record: Any) -> None:
        self._said.append(f"insert {type(record).__name__}")
        await self._tx.insert(record)

    async def update(self, table: type[Any], where: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
        self._said.append(f"update {table.__name__} {_shape(where)} {_shape(changes)}")
        return await self._tx.update(table, where, changes)

    async def delete(self, table: type[Any], where: Mapping[str, Any]) -> Any:
        self._said.append(f"delete {table.__name__} {_shape(where)}")
        return await self._tx.delete(table, where)


def _shape(columns: Mapping[str, Any]) -> list[str]:
    return sorted(f"{name}:{type(value).__name__}" for name, value in columns.items())


@dataclass(slots=True)
class RecordedKeys:
    """Keys; every keyed hash is written down with its purpose and the length of what it is over."""

    keys: Keys
    said: list[str]

    def mac(self, purpose: str, data: bytes) -> bytes:
        """See `ports.Keys`."""
        self.said.append(f"mac {purpose} {len(data)}")
        return self.keys.mac(purpose, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.keys, name)
