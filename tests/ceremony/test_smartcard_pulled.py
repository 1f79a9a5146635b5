"""The card is taken out at each APDU of an enrolment and of an approval: a named error, nothing half done, and then on.

The card is a virtual one behind the real pcscd and OpenSC; agent and server are in this process. At odd APDUs it goes
before the command is carried out, at even ones its answer is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from copy import deepcopy
from pathlib import Path

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch_agent.agent import Agent
from keyvouch_bench.piv_card.reader import PivReader
from keyvouch_server.trust_anchors import read_settings
from support.agent_bench import pending_ids
from support.card_home import CardHome
from support.live_server import LiveServer, live_server

AWAY = frozenset((Reason.AUTHENTICATOR_NOT_CONNECTED, Reason.AUTHENTICATOR_REMOVED))
PARTS = 4
"""Into how many tests the APDUs are dealt, for processes that run beside each other."""
MOST = 160
"""More APDUs than any of the ceremonies takes."""


@pytest.fixture
async def live(server_template: Path, tmp_path: Path, piv_root: Path) -> AsyncIterator[LiveServer]:
    table = {"name": "Bench cards", "file": piv_root.name, "formats": ["piv"]}
    trust = read_settings([table], None, folder=piv_root.parent)
    async with live_server(server_template, tmp_path, trust=trust) as running:
        yield running


def check_told(error: DeviceError, position: int) -> None:
    assert error.reason in AWAY, (position, error.reason, str(error))
    assert error.message
    assert error.fix


async def devices_of(live: LiveServer, username: str) -> int:
    return len((await live.administer("ListDevices", admin_pb.ListDevicesRequest(username=username))).devices)


# Enrolment


async def pulled_enrolment(home: CardHome, username: str, position: int) -> bool:
    """One enrolment, out of which the card is pulled. Whether it went on by itself; else nothing is left of it."""
    card, access_pass = home.piv.card, await home.live.issue_pass_again(username)
    kept = deepcopy((card.state.keys, card.state.objects))
    card.faults.remove_at(position, after=position % 2 == 0)
    try:
        await home.enrol(username, access_pass)
    except DeviceError as error:
        check_told(error, position)
    else:
        return True
    assert (home.ledger.enrolments(), home.ledger.staged(), home.accounts()) == ((), (), [])
    assert await devices_of(home.live, username) == 0
    assert (card.state.keys.keys(), card.state.objects) == (kept[0].keys(), kept[1])
    assert card.state.pin.left == card.state.pin.tries
    await home.put_back()
    await home.enrol(username, access_pass)  # the same command goes on
    return False


@pytest.mark.parametrize("part", range(PARTS))
async def test_pulled_at_each_step_of_an_enrolment_H10(
    part: int, live: LiveServer, issued_piv_card: PivReader, tmp_path: Path
) -> None:
    failed = 0
    for position in range(1 + part, MOST, PARTS):
        home, username = CardHome(live, tmp_path / f"home{position}", issued_piv_card), f"user{position}"
        await live.create_user(username)
        before = len(issued_piv_card.card.journal)
        went_on = await pulled_enrolment(home, username, position)
        assert len(home.ledger.enrolments()) == await devices_of(live, username) == 1
        if went_on and len(issued_piv_card.card.journal) - before < position:
            break  # it was over before
        failed += not went_on
        await home.put_back()
    assert failed > 5  # control: there were steps


# Approval


async def pulled_approval(home: CardHome, agent: Agent, username: str, position: int) -> bool:
    """One approval, out of which the card is pulled. Whether it went through; else the request waits as it did."""
    card = home.piv.card
    prompt_id, number = await home.prompted(agent, username)
    card.faults.remove_at(position, after=position % 2 == 0)
    try:
        return bool(await home.approve(agent, prompt_id, number))
    except DeviceError as error:
        check_told(error, position)
    (device_id,) = (e.device_id for e in home.ledger.enrolments())
    assert (pending_ids(agent), home.ledger.outbox(device_id)) == ([prompt_id], ())
    assert card.state.pin.left == card.state.pin.tries
    await home.put_back()
    assert await home.approve(agent, prompt_id, number)  # the same command goes on
    return False


@pytest.mark.parametrize("part", range(PARTS))
async def test_pulled_at_each_step_of_an_approval_H10(
    part: int, live: LiveServer, issued_piv_card: PivReader, tmp_path: Path
) -> None:
    home = CardHome(live, tmp_path / "home", issued_piv_card)
    await live.admin()
    await live.change_policy(approval={"begins_per_minute": 6000})
    await live.create_user("ada")
    await home.enrol("ada", await live.issue_pass_again("ada"))
    failed = 0
    async with home.running() as agent:
        for position in range(1 + part, MOST, PARTS):
            issued_piv_card.remove()
            await home.put_back()
            before = len(issued_piv_card.card.journal)
            went_on = await pulled_approval(home, agent, "ada", position)
            if went_on and len(issued_piv_card.card.journal) - before < position:
                break  # it was over before
            failed += not went_on
    assert failed > 5  # control: there were steps
