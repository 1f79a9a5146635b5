"""What a sign-in asks of the store: as much for a name that nobody has (P12), and not more than it has to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import administration_pb2 as pb
from keyvouch_server.ports import Store
from support.counted_store import CountedStore
from support.live_server import LiveServer, live_server, refused
from support.policy_desk import group_of
from support.strangers import Caller, user_of


@pytest.fixture
async def counted(server_template: Path, tmp_path: Path) -> AsyncIterator[tuple[LiveServer, CountedStore]]:
    """A server whose store writes down what it is asked for."""
    stores: list[CountedStore] = []

    def around(store: Store) -> Store:
        stores.append(CountedStore(store))
        return stores[0]

    async with live_server(server_template, tmp_path, around=around) as live:
        yield live, stores[0]


async def test_a_name_that_nobody_has_costs_the_store_as_much_as_one_without_a_device_P12(
    counted: tuple[LiveServer, CountedStore],
) -> None:
    live, store = counted
    await live.create_user("bob")
    group = await group_of(live, "few", (await user_of(live, "bob")).id)
    asked: dict[str, list[list[tuple[str, str]]]] = {"bob": [], "nobody": []}
    for targets in (pb.Targets(everybody=True), pb.Targets(everybody=True, exclude_groups=[group])):
        await live.change_policy(approval={"targets": targets})
        live.clock.advance(200)
        await live.app.sign_ins.expire()
        for username, statements in asked.items():
            caller = Caller.at(live, f"192.0.2.{len(statements)}{len(username)}")  # nobody has begun from there
            store.statements.clear()
            with suppress(KeyvouchError):
                await caller.begins(username)
            statements.append(list(store.statements))
    assert asked["bob"][0] == asked["nobody"][0]
    assert asked["bob"][1] == asked["nobody"][1]


async def test_what_nobody_approved_costs_the_store_as_much_to_redeem_whoever_is_named_P12(
    counted: tuple[LiveServer, CountedStore],
) -> None:
    live, store = counted
    await live.person("ada")
    asked = []
    for username in ("ada", "nobody"):
        opened = await live.begin(username)
        store.statements.clear()
        with refused(Reason.SIGN_IN_PENDING):
            await opened.redeem()
        asked.append(list(store.statements))
    assert asked[0] == asked[1] == [("get", "SignIn")]


async def test_a_whole_sign_in_takes_few_statements(counted: tuple[LiveServer, CountedStore]) -> None:
    """A bound to notice what makes each sign-in dearer; raise it only for what is worth it."""
    live, store = counted
    ada = await live.person("ada")
    await live.signed_in(ada)
    store.statements.clear()
    await live.signed_in(ada)
    assert len(store.statements) <= 31, store.statements


async def test_what_most_approvals_need_not_look_up_is_looked_up_where_it_is_needed(
    counted: tuple[LiveServer, CountedStore],
) -> None:
    """Who else was asked, and whether wrong numbers are to be forgotten: the row of the sign-in says if to ask."""
    live, store = counted
    ada = await live.person("ada")
    beside = [("find", "Prompt"), ("update", "User")]

    async def approving() -> list[tuple[str, str]]:
        store.statements.clear()
        await live.approved(ada)
        return [one for one in beside if one in store.statements]

    assert await approving() == []
    opened = await live.begin("ada")
    await ada.stream.send(ada.device.approve(await ada.stream.prompt(), opened.wrong_number))
    assert await approving() == [("update", "User")]
    assert (await user_of(live, "ada")).number_misses == 0
    other = await live.connect("ada", await live.enrol("ada", await live.issue_pass_again("ada")))
    assert await approving() == [("find", "Prompt")]
    prompt = await other.stream.prompt()
    assert (await other.stream.withdrawn()).prompt_id == prompt.prompt_id
    assert await approving() == [("find", "Prompt")]
