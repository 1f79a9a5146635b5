"""The contract of the `Store` port: one body, run against every implementation."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyvouch.errors import UnavailableError, UsageError
from keyvouch_server.domain import model, oversight_model
from keyvouch_server.domain.model import Credential, Device, SignIn, SignInState, Tenant, User
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.ports import Above, AtMost, Duplicate, OneOf, Plus, Store
from keyvouch_server.stores.memory import MemoryStore
from keyvouch_server.stores.postgres import PostgresStore
from keyvouch_server.stores.sqlite import SqliteStore
from support.sample_records import (
    ALIAS,
    BLOCK,
    CHECKPOINT,
    CREDENTIAL,
    DEVICE,
    DEVICE_TPM,
    DONE_REQUEST,
    EVERY_RECORD,
    GROUP,
    GROUP_MEMBER,
    KEY_REPLACEMENT,
    LOGIN_NAME,
    PROMPT,
    RISK_EVENT,
    SIGN_IN,
    TENANT,
    THROTTLE,
    USED_PROOF,
    USER,
    audit,
    open_sign_in,
    variant,
)

SERVER_ID = "ab" * 32
PENDING, APPROVED, DENIED = SignInState.PENDING, SignInState.APPROVED, SignInState.DENIED


KINDS = ["memory", "sqlite", "postgres"]


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store
    if request.param == "postgres":
        opened = await PostgresStore.open(request.getfixturevalue("postgres_url"), SERVER_ID)
    else:
        opened = MemoryStore() if request.param == "memory" else SqliteStore.open(tmp_path / "keyvouch.db")
    yield opened
    await opened.close()


async def add(store: Store, *records: object) -> None:
    async def work(tx: Any) -> None:
        for record in records:
            await tx.insert(record)

    await store.write(work)


async def get(store: Store, table: Any, **key: object) -> Any:
    return await store.read(lambda snapshot: snapshot.get(table, **key))


async def find(store: Store, table: Any, where: Any, **options: Any) -> Any:
    return await store.read(lambda snapshot: snapshot.find(table, where, **options))


async def count(store: Store, table: Any, where: Any) -> int:
    return await store.read(lambda snapshot: snapshot.count(table, where))


async def update(store: Store, table: Any, where: Any, changes: Any) -> Any:
    return await store.write(lambda tx: tx.update(table, where, changes))


async def delete(store: Store, table: Any, where: Any) -> Any:
    return await store.write(lambda tx: tx.delete(table, where))


def key_of(record: Any) -> dict[str, Any]:
    names = {
        "PolicyVersion": ("tenant_id", "version"),
        "AuditRecord": ("sequence",),
        "DeviceTpm": ("device_id",),
        "LoginName": ("tenant_id", "name_key"),
        "GroupMember": ("group_id", "user_id"),
        "AuditCheckpoint": ("tenant_id", "chain_number"),
        "Throttle": ("key",),
        "Block": ("key",),
        "DoneRequest": ("tenant_id", "actor", "request_id"),
    }
    return {name: getattr(record, name) for name in names.get(type(record).__name__, ("id",))}


# Records


async def test_every_record_comes_back_equal_and_of_the_same_types(store: Store) -> None:
    await add(store, *EVERY_RECORD)
    assert {type(record) for record in EVERY_RECORD} == {
        value for part in (model, oversight_model) for value in vars(part).values() if dataclasses.is_dataclass(value)
    }
    for record in EVERY_RECORD:
        found = await get(store, type(record), **key_of(record))
        assert found == record
        for field in dataclasses.fields(record):
            assert type(getattr(found, field.name)) is type(getattr(record, field.name)), field.name


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_values_come_back_equal(store: Store, data: st.DataObject) -> None:
    """In a work that is undone, so that the next example finds the store empty again."""
    records = [data.draw(any_values(record)) for record in EVERY_RECORD]

    class SeenError(Exception):
        pass

    async def work(tx: Any) -> None:
        for record in records:
            await tx.insert(record)
        for record in records:
            assert await tx.get(type(record), **key_of(record)) == record
        raise SeenError

    with pytest.raises(SeenError):
        await store.write(work)


def any_values(record: Any) -> st.SearchStrategy[Any]:
    """The record with its free fields drawn anew: what is neither key, reference nor in a unique column."""
    free: dict[str, st.SearchStrategy[Any]] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name.endswith(("id", "_key")) or field.name in {
            "sequence",
            "chain_number",
            "version",
            "token_hash",
        }:
            continue
        if isinstance(value, bool):
            free[field.name] = st.booleans()
        elif isinstance(value, int):
            free[field.name] = st.integers(-(2**63), 2**63 - 1)
        elif isinstance(value, bytes):
            free[field.name] = st.binary(max_size=80)
        elif type(value) is str:
            free[field.name] = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)
        else:
            free[field.name] = st.sampled_from(type(value))
    return st.builds(lambda **drawn: variant(record, **drawn), **free)


async def test_get_needs_all_columns_of_the_key_to_match(store: Store) -> None:
    await add(store, TENANT, USER)
    assert await get(store, User, tenant_id=TENANT.id, username_key="alex") == USER
    assert await get(store, User, tenant_id="ten_b", username_key="alex") is None


# Conditions, order, limit, count


async def test_conditions_select_exactly_what_they_say(store: Store) -> None:
    records = [open_sign_in(str(n), expires_at=n, state=state) for n, state in enumerate((PENDING, APPROVED, DENIED))]
    await add(store, *records)
    cases: list[tuple[dict[str, Any], set[int]]] = [
        ({}, {0, 1, 2}),
        ({"state": PENDING}, {0}),
        ({"state": "pending"}, {0}),
        ({"state": OneOf((PENDING, DENIED))}, {0, 2}),
        ({"state": OneOf((DENIED, DENIED))}, {2}),
        ({"state": OneOf(("pending", "approved"))}, {0, 1}),
        ({"id": OneOf(("sin_0", "sin_1", "sin_9"))}, {0, 1}),
        ({"expires_at": Above(0)}, {1, 2}),
        ({"expires_at": AtMost(1)}, {0, 1}),
        ({"state": OneOf((PENDING, APPROVED)), "expires_at": Above(0), "user_id": USER.id}, {1}),
        ({"state": PENDING, "expires_at": Above(0)}, set()),
        ({"id": "' OR 1=1 --"}, set()),
    ]
    for where, wanted in cases:
        assert {record.expires_at for record in await find(store, SignIn, where)} == wanted, where
        assert await count(store, SignIn, where) == len(wanted), where


async def test_order_and_limit(store: Store) -> None:
    await add(store, *(open_sign_in(str(n), expires_at=n * 7 % 10) for n in range(10)))

    async def instants(**options: Any) -> list[int]:
        return [record.expires_at for record in await find(store, SignIn, {}, **options)]

    assert await instants(order="expires_at") == list(range(10))
    assert await instants(order="expires_at", descending=True, limit=3) == [9, 8, 7]
    assert await instants(limit=0) == []
    assert len(await instants(limit=4)) == 4


# Changes


async def test_update_changes_returns_and_adds(store: Store) -> None:
    await add(store, TENANT, USER)
    after = await update(store, User, {"id": USER.id}, {"number_misses": Plus(2), "role": model.Role.USER})
    assert after == [variant(USER, number_misses=USER.number_misses + 2, role=model.Role.USER)]
    assert await get(store, User, id=USER.id) == after[0]
    assert await update(store, User, {"id": "usr_none"}, {"number_misses": 5}) == []


async def test_delete_returns_what_was_there_once(store: Store) -> None:
    await add(store, TENANT, USER)
    assert await delete(store, User, {"id": USER.id}) == [USER]
    assert await delete(store, User, {"id": USER.id}) == []
    assert await get(store, User, id=USER.id) is None


async def test_deleting_a_device_takes_its_credentials_and_a_sign_in_its_prompts(store: Store) -> None:
    await add(store, TENANT, USER, DEVICE, CREDENTIAL, SIGN_IN, PROMPT)
    await delete(store, Device, {"id": DEVICE.id})
    await delete(store, SignIn, {"id": SIGN_IN.id})
    assert await count(store, Credential, {}) == 0
    assert await count(store, model.Prompt, {}) == 0
    assert await count(store, User, {}) == 1


async def test_a_user_goes_with_names_and_memberships_and_a_group_with_its_members(store: Store) -> None:
    other = variant(USER, id="usr_b", username_key="b", user_handle=b"b")
    other_name = variant(LOGIN_NAME, name_key="b", user_id=other.id)
    second = variant(GROUP, id="grp_b", name_key="b")
    memberships = [variant(GROUP_MEMBER, group_id=g.id, user_id=u.id) for g in (GROUP, second) for u in (USER, other)]
    await add(store, TENANT, USER, other, LOGIN_NAME, ALIAS, other_name, GROUP, second, *memberships)
    await delete(store, User, {"id": USER.id})
    assert await find(store, model.LoginName, {}) == [other_name]
    assert await find(store, model.GroupMember, {}, order="group_id") == [memberships[1], memberships[3]]
    await delete(store, model.UserGroup, {"id": GROUP.id})
    assert await find(store, model.GroupMember, {}) == [memberships[3]]
    assert await count(store, User, {}) == 1


async def test_a_name_changes_its_key_but_not_into_one_that_is_taken(store: Store) -> None:
    await add(store, TENANT, USER, LOGIN_NAME, ALIAS)

    async def work(tx: Any) -> None:
        with pytest.raises(Duplicate):
            await tx.update(model.LoginName, {"alias": False}, {"name_key": ALIAS.name_key})
        await tx.update(model.LoginName, {"alias": False}, {"name_key": "new"})

    await store.write(work)
    assert await get(store, model.LoginName, tenant_id=TENANT.id, name_key="new") == variant(LOGIN_NAME, name_key="new")
    assert await count(store, model.LoginName, {}) == 2


async def test_a_record_that_refers_to_nothing_is_a_mistake_of_the_program(store: Store) -> None:
    with pytest.raises(UsageError):
        await add(store, USER)
    await add(store, TENANT, USER)
    with pytest.raises(UsageError):
        await delete(store, Tenant, {"id": TENANT.id})
    assert await count(store, User, {}) == 1


@pytest.mark.parametrize(
    ("record", "changes"),
    [
        (TENANT, {"id": "ten_b"}),
        (TENANT, {"name_key": "b"}),
        (USER, {"id": "usr_b", "user_handle": b"b"}),
        (USER, {"id": "usr_b", "username_key": "b"}),
        (DEVICE, {"id": "dev_b"}),
        (DEVICE, {"channel_key": b"b"}),
        (CREDENTIAL, {"device_id": DEVICE.id}),
        (DEVICE_TPM, {"model": "b"}),
        (KEY_REPLACEMENT, {"certificate": b"b"}),
        (next(r for r in EVERY_RECORD if type(r) is model.AccessPass), {"id": "tap_b"}),
        (next(r for r in EVERY_RECORD if type(r) is model.Registration), {"id": "reg_b", "device_id": "dev_b"}),
        (next(r for r in EVERY_RECORD if type(r) is model.Registration), {"id": "reg_b", "token_hash": b"b"}),
        (next(r for r in EVERY_RECORD if type(r) is model.PolicyVersion), {"document": "{}"}),
        (SIGN_IN, {"number": "43"}),
        (PROMPT, {"offer": b""}),
        (next(r for r in EVERY_RECORD if type(r) is model.Session), {"app_id": "b"}),
        (EVERY_RECORD[-1], {"action": "b"}),
        (LOGIN_NAME, {"alias": True}),
        (GROUP, {"id": "grp_b"}),
        (GROUP, {"name_key": "b"}),
        (GROUP_MEMBER, {}),
        (RISK_EVENT, {"message": "b"}),
        (CHECKPOINT, {"hash": b"b"}),
        (THROTTLE, {"arrival": 0}),
        (BLOCK, {"until": 0}),
        (DONE_REQUEST, {"response": b""}),
        (USED_PROOF, {"expires_at": 0}),
    ],
)
async def test_duplicates_are_told_and_leave_the_transaction_usable(store: Store, record: Any, changes: Any) -> None:
    await add(store, *EVERY_RECORD)

    async def work(tx: Any) -> None:
        with pytest.raises(Duplicate):
            await tx.insert(variant(record, **changes))
        await tx.insert(open_sign_in("after"))

    await store.write(work)
    assert await get(store, type(record), **key_of(record)) == record
    assert await count(store, SignIn, {"id": "sin_after"}) == 1


async def test_an_update_into_a_duplicate_changes_no_row(store: Store) -> None:
    await add(store, TENANT, variant(TENANT, id="ten_b", name_key="b"))
    with pytest.raises(Duplicate):
        await update(store, Tenant, {"created_at": TENANT.created_at}, {"name_key": "c"})
    assert {tenant.name_key for tenant in await find(store, Tenant, {})} == {"contoso", "b"}


# Transactions


async def test_an_exception_undoes_the_whole_work_and_is_passed_on(store: Store) -> None:
    await add(store, TENANT, USER)

    class StopHereError(Exception):
        pass

    async def work(tx: Any) -> None:
        await tx.insert(open_sign_in("a"))
        await tx.update(User, {"id": USER.id}, {"number_misses": Plus(1)})
        await tx.delete(User, {"id": USER.id})
        await tx.insert(audit("undone"))
        raise StopHereError

    with pytest.raises(StopHereError):
        await store.write(work)
    assert await get(store, User, id=USER.id) == USER
    assert await count(store, SignIn, {}) == await count(store, AuditRecord, {}) == 0


async def test_a_work_sees_its_own_changes(store: Store) -> None:
    async def work(tx: Any) -> int:
        await tx.insert(TENANT)
        assert await tx.get(Tenant, id=TENANT.id) == TENANT
        await tx.update(Tenant, {"id": TENANT.id}, {"created_at": Plus(5)})
        return (await tx.find(Tenant, {}))[0].created_at

    assert await store.write(work) == TENANT.created_at + 5


async def test_of_works_side_by_side_each_stands_or_falls_alone(store: Store) -> None:
    async def work(tx: Any, number: int) -> int:
        before = await tx.count(SignIn, {})
        await tx.insert(open_sign_in(str(number)))
        if number % 3 == 0:
            raise LookupError(number)
        return before

    results = await asyncio.gather(
        *(store.write(lambda tx, n=n: work(tx, n)) for n in range(30)), return_exceptions=True
    )
    assert [type(result) is LookupError for result in results] == [n % 3 == 0 for n in range(30)]
    assert sorted(result for result in results if type(result) is int) == list(range(20))
    assert {record.id for record in await find(store, SignIn, {})} == {f"sin_{n}" for n in range(30) if n % 3}


@pytest.mark.parametrize("racers", [2, 8, 64])
async def test_of_many_racers_for_one_state_exactly_one_wins_P7(store: Store, racers: int) -> None:
    for round_ in range(5):
        await add(store, open_sign_in(f"{round_}", state=APPROVED))

        async def consume(tx: Any, racer: int, round_: int = round_) -> bool:
            moved = await tx.update(
                SignIn,
                {"id": f"sin_{round_}", "state": APPROVED, "expires_at": Above(0)},
                {"state": SignInState.CONSUMED, "session_id": f"ses_{racer}"},
            )
            if moved:
                await tx.insert(audit("consume", subject=f"{racer}", details=f"{round_}"))
            return bool(moved)

        won = await asyncio.gather(*(store.write(lambda tx, n=n: consume(tx, n)) for n in range(racers)))
        assert won.count(True) == 1
        records = await find(store, AuditRecord, {"details": f"{round_}"})
        assert [record.subject for record in records] == [f"{won.index(True)}"]


async def test_a_read_sees_nothing_of_a_work_that_is_not_acknowledged(store: Store) -> None:
    acknowledged: set[str] = set()
    begun: set[str] = set()

    async def write(name: str) -> None:
        begun.add(f"sin_{name}")
        await add(store, open_sign_in(name))
        acknowledged.add(f"sin_{name}")

    writers = [asyncio.create_task(write(str(n))) for n in range(200)]
    while not all(writer.done() for writer in writers):
        durable = set(acknowledged)
        seen = {record.id for record in await find(store, SignIn, {})}
        assert durable <= seen <= begun
        await asyncio.sleep(0)
    await asyncio.gather(*writers)
    assert await count(store, SignIn, {}) == 200


async def test_a_read_is_one_consistent_snapshot(store: Store) -> None:
    await add(store, open_sign_in("a"), open_sign_in("b"))

    async def move(tx: Any) -> None:
        for name in ("sin_a", "sin_b"):
            await tx.update(SignIn, {"id": name}, {"decided_at": Plus(1)})

    async def look(snapshot: Any) -> None:
        first = await snapshot.get(SignIn, id="sin_a")
        second = await snapshot.get(SignIn, id="sin_b")
        assert first.decided_at == second.decided_at

    moves = [asyncio.create_task(store.write(move)) for _ in range(100)]
    while not all(task.done() for task in moves):
        await store.read(look)
        await asyncio.sleep(0)
    await asyncio.gather(*moves)
    assert (await get(store, SignIn, id="sin_a")).decided_at == 100


async def test_sequences_rise_and_are_never_used_again(store: Store) -> None:
    await add(store, audit("a"), audit("b"))
    first = [record.sequence for record in await find(store, AuditRecord, {}, order="sequence")]
    assert first == sorted(set(first))
    await delete(store, AuditRecord, {"sequence": Above(0)})
    await add(store, audit("c"))
    (record,) = await find(store, AuditRecord, {"sequence": Above(first[-1])})
    assert record.action == "c"


# Mistakes of the program


async def test_unknown_columns_are_mistakes_and_known_ones_pass(store: Store) -> None:
    await add(store, TENANT)
    wrong = [
        lambda tx: tx.get(Tenant, nope=1),
        lambda tx: tx.find(Tenant, {"nope": 1}),
        lambda tx: tx.find(Tenant, {"id": 1}, order="id; DROP TABLE tenant"),
        lambda tx: tx.find(Tenant, {"id": TENANT.id}, limit=-1),
        lambda tx: tx.find(Tenant, {"id": OneOf(())}),
        lambda tx: tx.count(Tenant, {"name_key = name_key OR id": 1}),
        lambda tx: tx.update(Tenant, {"id": 1}, {"nope": 1}),
        lambda tx: tx.update(Tenant, {"nope": 1}, {"name": "x"}),
        lambda tx: tx.update(Tenant, {}, {"name": "x"}),
        lambda tx: tx.update(Tenant, {"id": 1}, {}),
        lambda tx: tx.delete(Tenant, {}),
        lambda tx: tx.delete(Tenant, {"nope": 1}),
        lambda tx: tx.find(int, {}),
        lambda tx: tx.insert("a record"),
        lambda tx: tx.insert(variant(TENANT, id="ten_b", name_key="b", created_at="yesterday")),
    ]
    for call in wrong:
        with pytest.raises(UsageError):
            await store.write(call)
    assert await store.write(lambda tx: tx.find(Tenant, {"id": TENANT.id}, order="id", limit=1)) == [TENANT]


async def test_a_work_that_waits_for_something_else_is_a_mistake_and_undone(store: Store) -> None:
    async def work(tx: Any) -> None:
        await tx.insert(TENANT)
        await asyncio.sleep(0.01)

    with pytest.raises(UsageError):
        await store.write(work)
    with pytest.raises(UsageError):
        await store.read(lambda snapshot: asyncio.sleep(0.01))
    assert await count(store, Tenant, {}) == 0


async def test_a_transaction_is_of_no_use_after_its_work(store: Store) -> None:
    kept: list[Any] = []

    async def work(tx: Any) -> None:
        kept.append(tx)

    await store.write(work)
    await store.read(work)
    for view in kept:
        with pytest.raises(UsageError):
            await view.count(Tenant, {})
    with pytest.raises(UsageError):
        await kept[0].insert(TENANT)


async def test_after_close_nothing_is_taken_and_close_may_come_twice(store: Store) -> None:
    pending = [asyncio.create_task(add(store, open_sign_in(str(n)))) for n in range(10)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*pending)
    with pytest.raises(UnavailableError):
        await add(store, TENANT)
    with pytest.raises(UnavailableError):
        await count(store, Tenant, {})
    await store.close()
