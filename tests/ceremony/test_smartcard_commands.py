"""The agent's commands about smartcards: PINs and their tries, the doctor, modules, another card."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.piv_card import Authority, VirtualPivCard
from keyvouch_bench.piv_card.reader import PivReader
from keyvouch_bench.softhsm import SoftHsmToken
from support.agent_process import AgentProcess
from support.card_desk import Told, card_stage, command, enroll
from support.crash_stage import Account, Stage
from support.piv_tools import OpenSc

WRONG = "999999"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, piv_batch: Authority, piv_issuer: Authority) -> Iterator[Stage]:
    with card_stage(tmp_path_factory.mktemp("cards"), piv_batch, piv_issuer) as made:
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


@pytest.fixture
async def running(agent: AgentProcess, account: Account, issued_piv_card: PivReader) -> AgentProcess:
    """An account on the card, and its agent at work."""
    told = await enroll(agent, account, issued_piv_card.card.pin)
    assert told["code"] == 0, told
    await asyncio.to_thread(agent.start_product)
    await asyncio.to_thread(agent.connected)
    return agent


async def sign_in(agent: AgentProcess, pin: str, *options: str) -> Told:
    return await command(agent, "sign-in", "--app", "shop", *options, pin_fd=pin)


def reason(told: Told) -> str:
    assert told["code"] == 1, told
    assert told["error"]["fix"]
    return str(told["error"]["reason"])


async def test_two_wrong_pins_and_no_third_A7(running: AgentProcess, issued_piv_card: PivReader) -> None:
    card = issued_piv_card.card
    for left in (2, 1):
        told = await sign_in(running, WRONG)
        assert (reason(told), told["error"]["retries_left"]) == ("pin_wrong", left)
    for pin in (WRONG, card.pin):
        told = await sign_in(running, pin)
        assert (reason(told), told["error"]["retries_left"]) == ("pin_last_try", 1)
        assert "--last-try" in told["error"]["fix"]
    assert card.state.pin.left == 1
    shown = await command(running, "pin", "--status")
    assert (shown["retries_left"], shown["pin_is_set"]) == (1, True)
    again = await sign_in(running, card.pin, "--last-try")
    assert again["code"] == 0, again
    assert card.state.pin.left == card.state.pin.tries


async def test_blocked_pin_is_explained_and_the_puk_is_the_way_out(
    running: AgentProcess, issued_piv_card: PivReader, tmp_path: Path
) -> None:
    card = issued_piv_card.card
    for _ in range(2):
        await sign_in(running, WRONG)
    told = await sign_in(running, WRONG, "--last-try")
    assert (reason(told), told["error"]["retries_left"]) == ("pin_blocked", 0)
    told = await sign_in(running, card.pin, "--last-try")
    assert reason(told) == "pin_blocked"
    assert "PUK" in told["error"]["fix"]
    checks = {check["check"]: check for check in (await command(running, "doctor"))["checks"]}
    (blocked,) = [check for name, check in checks.items() if name.startswith("smartcard 'Ada")]
    assert "PIN blocked" in blocked["detail"]
    assert "PUK" in blocked["fix"]
    unblock = ("--unblock-pin", "--auth-id", "01", "--puk", card.puk, "--new-pin", "135791")
    await asyncio.to_thread(OpenSc(issued_piv_card, tmp_path).card, "pkcs15-tool", *unblock)
    assert (await sign_in(running, "135791"))["code"] == 0


async def test_pin_is_changed_by_the_old_one(agent: AgentProcess, issued_piv_card: PivReader) -> None:
    card = issued_piv_card.card
    shown = await command(agent, "pin", "--provider", "smartcard", "--status")
    assert (shown["code"], shown["retries_left"], shown["provider"]) == (0, 3, "smartcard"), shown
    assert "Ada Lovelace" in shown["name"]
    wrong = await command(agent, "pin", "--provider", "smartcard", pin_fd=WRONG, new_pin_fd="246813")
    assert (reason(wrong), wrong["error"]["retries_left"]) == ("pin_wrong", 2)
    short = await command(agent, "pin", "--provider", "smartcard", pin_fd=card.pin, new_pin_fd="24")
    assert reason(short) == "pin_policy"
    changed = await command(agent, "pin", "--provider", "smartcard", pin_fd=card.pin, new_pin_fd="246813")
    assert (changed["code"], changed["retries_left"]) == (0, 3), changed
    assert card.pin == "246813"
    assert list((agent.home / "vault-card").iterdir()) == []


async def test_pin_of_an_enrolled_card_with_the_last_try(running: AgentProcess, issued_piv_card: PivReader) -> None:
    card = issued_piv_card.card
    card.state.pin.left = 1
    told = await command(running, "pin", pin_fd=card.pin, new_pin_fd="246813")
    assert reason(told) == "pin_last_try"
    changed = await command(running, "pin", "--last-try", pin_fd=card.pin, new_pin_fd="246813")
    assert changed["code"] == 0, changed
    assert (await sign_in(running, "246813"))["code"] == 0


async def test_another_card_and_no_card_are_said(
    running: AgentProcess,
    issued_piv_card: PivReader,
    piv_batch: Authority,
    piv_issuer: Authority,
    private_pcscd: PrivatePcscd,
) -> None:
    issued_piv_card.remove()
    told = await sign_in(running, issued_piv_card.card.pin)
    assert reason(told) == "authenticator_not_connected"
    other = VirtualPivCard.blank(piv_batch)
    other.personalise(piv_issuer)
    with PivReader(other, private_pcscd, slot=1):
        told = await sign_in(running, other.pin)
        assert reason(told) == "authenticator_other"
        assert other.state.pin.left == other.state.pin.tries
    issued_piv_card.insert()
    assert (await sign_in(running, issued_piv_card.card.pin))["code"] == 0


async def test_doctor_names_module_card_and_account(running: AgentProcess, account: Account) -> None:
    told = await command(running, "doctor")
    checks = {check["check"]: check for check in told["checks"]}
    assert checks["PKCS#11 module opensc"]["ok"]
    (card,) = [check for name, check in checks.items() if name.startswith("smartcard 'Ada Lovelace'")]
    assert card["ok"]
    assert "3 PIN tries left" in card["detail"]
    mine = checks[f"smartcard of {account.username} of {running.stage.server.tenant}"]
    assert mine["ok"], mine
    assert all(check["fix"] for check in checks.values() if not check["ok"] and "module" in check["check"].lower())


async def test_module_that_others_can_change_is_not_loaded_A6(
    agent: AgentProcess, account: Account, softhsm: SoftHsmToken, tmp_path: Path
) -> None:
    copied = tmp_path / "module.so"
    shutil.copy(softhsm.module, copied)
    told = await enroll(agent, account, softhsm.user_pin, "--module", str(copied))
    assert reason(told) == "module_refused"
    settings = f'[smartcard]\nmodule = "{copied}"\nmodules = ["{copied}"]\ntoken = "pkcs11:serial={softhsm.serial}"\n'
    (agent.home / "agent.toml").write_text(settings)
    (agent.home / "agent.toml").chmod(0o600)
    assert reason(await enroll(agent, account, softhsm.user_pin)) == "module_refused"  # being named is not enough
    (checked,) = [c for c in (await command(agent, "doctor"))["checks"] if c["check"] == "PKCS#11 module module.so"]
    assert not checked["ok"]
    told = await enroll(agent, account, softhsm.user_pin, "--module", softhsm.module)  # control
    assert told["code"] == 0, told
