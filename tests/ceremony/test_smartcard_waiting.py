"""Enrolments that wait for a card, are given up, or find what a killed one has left."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch_bench.piv_card.reader import PivReader
from support.agent_bench import until
from support.card_home import CardHome
from support.live_server import LiveServer

TO_THE_CARD = "Put your card into the reader"


@pytest.fixture
async def home(live: LiveServer, issued_piv_card: PivReader, tmp_path: Path) -> CardHome:
    await live.create_user("ada")
    made = CardHome(live, tmp_path / "home", issued_piv_card)
    made.path.mkdir(mode=0o700)
    (made.path / "agent.toml").write_text("[smartcard]\nattestation = false\n")  # this server knows no maker of cards
    (made.path / "agent.toml").chmod(0o600)
    return made


async def test_the_card_is_waited_for_and_named_before_anything_is_asked(home: CardHome) -> None:
    home.piv.remove()
    enrolment = await home.enrol("ada", await home.live.issue_pass_again("ada"))
    first, second, third = home.said[:3]
    assert TO_THE_CARD in first
    assert second == f"The card is {enrolment.key_name}, slot 9A."
    assert "Waiting for the server" in third
    assert home.accounts() == [enrolment.account]


async def test_an_enrolment_is_given_up_while_it_waits(home: CardHome) -> None:
    home.piv.remove()
    home.tell = home.said.append  # type: ignore[method-assign]
    enrolling = asyncio.create_task(home.enrol("ada", await home.live.issue_pass_again("ada")))
    await until(lambda: any(TO_THE_CARD in said for said in home.said))
    enrolling.cancel()
    with suppress(asyncio.CancelledError):
        await enrolling
    assert (home.accounts(), home.ledger.staged()) == ([], ())


async def test_an_attestation_of_an_unknown_maker_is_refused_and_can_be_withheld(home: CardHome) -> None:
    access_pass = await home.live.issue_pass_again("ada")
    settings = home.path / "agent.toml"
    withheld = settings.read_text()
    settings.write_text("")
    with pytest.raises(Exception, match="no anchor") as caught:
        await home.enrol("ada", access_pass)
    assert not isinstance(caught.value, DeviceError)
    assert home.accounts() == []
    settings.write_text(withheld)
    assert (await home.enrol("ada", access_pass)).provider == "smartcard"


async def test_what_killed_enrolments_have_left_is_swept_H10(home: CardHome) -> None:
    await home.live.create_user("eve")
    ada = await home.enrol("ada", await home.live.issue_pass_again("ada"))
    folder = home.path / "vault-card"
    shutil.copytree(folder / ada.account, folder / "killed-later")
    (folder / "killed-early").mkdir(mode=0o700)
    (folder / "killed-early" / "lock").touch(mode=0o600)
    eve = await home.enrol("eve", await home.live.issue_pass_again("eve"))
    assert home.accounts() == sorted([ada.account, eve.account])


async def test_a_card_without_a_key_is_refused_with_the_way_to_one(home: CardHome) -> None:
    home.piv.card.state.objects.clear()
    home.piv.remove()
    home.piv.insert()
    with pytest.raises(DeviceError) as caught:
        await home.enrol("ada", await home.live.issue_pass_again("ada"))
    assert caught.value.reason is Reason.UNSUPPORTED
    assert "ykman piv" in caught.value.fix
    assert home.accounts() == []
