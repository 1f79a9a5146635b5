"""The product's own commands with a security key on a reader: real processes, a real server, the real pcscd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from keyvouch_bench.fido_reader import ReaderKey
from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.virtual_fido import ON_A_READER, VirtualFido
from support.agent_process import PIN, AgentProcess
from support.crash_stage import Account, Stage
from support.own_sign_in import claims_in


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def card(private_pcscd: PrivatePcscd, tmp_path: Path) -> Iterator[ReaderKey]:
    """On the reader, and left to the agent's processes."""
    with VirtualFido.make(tmp_path / "key", options=ON_A_READER) as key, ReaderKey(key, private_pcscd) as made:
        made.close()
        yield made


@pytest.fixture
async def account(stage: Stage) -> Account:
    async with stage.connect() as connection:
        return await stage.new_account(connection)


@pytest.fixture
async def agent(stage: Stage, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    made = AgentProcess(tmp_path / "home", stage)
    yield made
    assert await asyncio.to_thread(made.stop) == 0


async def enroll(agent: AgentProcess, account: Account) -> tuple[int, dict[str, Any]]:
    server = agent.stage.server
    wish = ("--server", server.endpoint, "--ca", str(server.ca), "--tenant", server.tenant, "--user", account.username)
    return await asyncio.to_thread(
        agent.command, "enroll", *wish, "--provider", "fido2", pin_fd=PIN, access_pass_fd=account.access_pass
    )


async def command(agent: AgentProcess, name: str, *arguments: str, **secrets: str) -> dict[str, Any]:
    code, told = await asyncio.to_thread(agent.command, name, *arguments, **secrets)
    return {"code": code, **told}


async def test_enrolled_and_signed_in_with_the_key_on_a_reader(
    agent: AgentProcess, card: ReaderKey, account: Account
) -> None:
    code, told = await enroll(agent, account)
    assert code == 0, told
    assert told["provider"] == "fido2"
    assert card.reader in told["key"]
    standing = await command(agent, "pin", "--provider", "fido2", "--status")
    assert (standing["pin_is_set"], standing["retries_left"], standing["connected"]) == (True, 8, True)
    (shown,) = (await command(agent, "keys"))["keys"]
    assert card.reader in shown["key"]
    checks = {check["check"]: check for check in (await command(agent, "doctor"))["checks"]}
    assert checks[f"security key of {account.username} of {agent.stage.server.tenant}"]["ok"]

    await asyncio.to_thread(agent.start_product)
    await asyncio.to_thread(agent.connected)
    wrong = await command(agent, "sign-in", "--app", "shop", pin_fd="000000")
    assert (wrong["code"], wrong["error"]["reason"], wrong["error"]["retries_left"]) == (1, "pin_wrong", 7)
    session = await command(agent, "sign-in", "--app", "shop", pin_fd=PIN)
    assert session["code"] == 0, session
    claims = claims_in(session["access_token"])
    assert claims["acr"] == "phishing-resistant"
    assert "pin" in claims["amr"]


async def test_the_pin_is_changed_by_command(agent: AgentProcess, card: ReaderKey, account: Account) -> None:
    first = await command(agent, "pin", "--provider", "fido2", new_pin_fd=PIN)
    assert (first["code"], first["pin_is_set"]) == (0, True)
    wrong = await command(agent, "pin", "--provider", "fido2", pin_fd="999999", new_pin_fd="7654321")
    assert (wrong["code"], wrong["error"]["reason"]) == (1, "pin_wrong")
    changed = await command(agent, "pin", "--provider", "fido2", pin_fd=PIN, new_pin_fd="7654321")
    assert (changed["code"], changed["retries_left"]) == (0, 8)
    code, told = await enroll(agent, account)
    assert (code, told["error"]["reason"]) == (1, "pin_wrong")  # the old PIN
