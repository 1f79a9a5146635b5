"""Smartcards end to end: a real server, the product's commands, SoftHSM2, a virtual PIV card behind OpenSC, pcscd."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from keyvouch.v1 import common_pb2
from keyvouch_bench.piv_card import Authority, Holder, Issue
from keyvouch_bench.piv_card.identifiers import Origin
from keyvouch_bench.piv_card.reader import PivReader
from keyvouch_bench.softhsm import SoftHsmToken
from support.agent_process import AgentProcess
from support.card_desk import BADGES, CARDS, card_stage, command, devices_of, enroll, require_attested, signed_in
from support.crash_stage import Account, Stage
from support.own_sign_in import claims_in
from support.piv_tools import OpenSc

KINDS = ("softhsm", "piv-9a", "piv-9c")


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


@dataclass(frozen=True)
class Token:
    """What an enrolment is made on, and how."""

    pin: str
    options: tuple[str, ...]
    label: str
    attested: bool


def softhsm_token(token: SoftHsmToken) -> Token:
    options = ("--module", token.module, "--token", f"pkcs11:serial={token.serial}")
    return Token(token.user_pin, options, token.label, attested=False)


@pytest.fixture(params=KINDS)
def token(request: pytest.FixtureRequest) -> Token:
    if request.param == "softhsm":
        return softhsm_token(request.getfixturevalue("softhsm"))
    card = request.getfixturevalue("issued_piv_card").card
    return Token(card.pin, ("--key", request.param[-2:]), "Ada Lovelace", attested=True)


async def test_enrolled_and_signed_in(agent: AgentProcess, account: Account, token: Token) -> None:
    told = await enroll(agent, account, token.pin, *token.options)
    assert told["code"] == 0, told
    assert told["provider"] == "smartcard"
    assert token.label in told["key"]
    assert ("a token in software" in told["key"]) is not token.attested
    (shown,) = (await command(agent, "keys"))["keys"]
    assert shown["key"] == told["key"]
    (device,) = await devices_of(agent.stage, account)
    if token.attested:
        expected = (common_pb2.PROTECTION_SMARTCARD, common_pb2.PROVENANCE_ATTESTED, CARDS)
        assert device.card.slot == token.options[1]
    else:
        expected = (common_pb2.PROTECTION_SOFTWARE, common_pb2.PROVENANCE_UNATTESTED, "")
    assert (device.assurance.protection, device.assurance.provenance, device.assurance.anchor) == expected

    await asyncio.to_thread(agent.start_product)
    await asyncio.to_thread(agent.connected)
    for _ in range(2):
        approval = await signed_in(agent, account, token.pin)
        assert approval.told["accepted"] is True
    session = await command(agent, "sign-in", "--app", "shop", pin_fd=token.pin)
    assert session["code"] == 0, session
    assert "pin" in claims_in(session["access_token"])["amr"]
    gone = await command(agent, "unregister", "--yes")
    assert gone["code"] == 0, gone
    assert await devices_of(agent.stage, account) == []


async def test_policy_for_attested_cards_refuses_a_token_in_software(
    tmp_path: Path, piv_batch: Authority, piv_issuer: Authority, softhsm: SoftHsmToken, issued_piv_card: PivReader
) -> None:
    with card_stage(tmp_path / "strict", piv_batch, piv_issuer) as stage:
        await require_attested(stage)
        async with stage.connect() as connection:
            accounts = [await stage.new_account(connection) for _ in range(2)]
        home, token = AgentProcess(tmp_path / "home", stage), softhsm_token(softhsm)
        refused = await enroll(home, accounts[0], token.pin, *token.options)
        assert (refused["code"], refused["error"]["reason"]) == (1, "assurance_too_low"), refused
        assert await devices_of(stage, accounts[0]) == []
        accepted = await enroll(home, accounts[1], issued_piv_card.card.pin)  # control
        assert accepted["code"] == 0, accepted
        (device,) = await devices_of(stage, accounts[1])
        assert (device.assurance.provenance, device.assurance.anchor) == (common_pb2.PROVENANCE_ATTESTED, CARDS)


async def test_key_of_a_refused_enrolment_is_destroyed_with_the_next_pin(
    tmp_path: Path, piv_batch: Authority, piv_issuer: Authority, softhsm: SoftHsmToken
) -> None:
    with card_stage(tmp_path / "strict", piv_batch, piv_issuer) as stage:
        await require_attested(stage)
        async with stage.connect() as connection:
            account = await stage.new_account(connection)
        home, token = AgentProcess(tmp_path / "home", stage), softhsm_token(softhsm)
        for _ in range(2):
            assert (await enroll(home, account, token.pin, *token.options))["error"]["reason"] == "assurance_too_low"
            assert objects_on(softhsm).count("Private Key Object") == 1  # a token destroys keys behind its PIN only
            assert len(list((home.home / "vault-card").iterdir())) == 1
        await require_attested(stage, is_required=False)
        accepted = await enroll(home, account, token.pin, *token.options)
        assert accepted["code"] == 0, accepted
        assert objects_on(softhsm).count("Private Key Object") == 1
        assert len(list((home.home / "vault-card").iterdir())) == 1
        await asyncio.to_thread(home.start_product)
        await asyncio.to_thread(home.connected)
        assert (await signed_in(home, account, token.pin)).session
        assert await asyncio.to_thread(home.stop) == 0


async def test_existing_key_with_the_organisations_certificate(
    agent: AgentProcess, account: Account, piv_card: PivReader, piv_issuer: Authority
) -> None:
    card = piv_card.card
    card.personalise(piv_issuer, Issue(Holder("Ada Lovelace", account.username)))
    imported = {slot: dataclasses.replace(key, origin=Origin.IMPORTED) for slot, key in card.state.keys.items()}
    card.state.keys.update(imported)  # so that the card attests none of them
    told = await enroll(agent, account, card.pin, "--certificate")
    assert told["code"] == 0, told
    (device,) = await devices_of(agent.stage, account)
    assert (device.assurance.provenance, device.assurance.anchor) == (common_pb2.PROVENANCE_CERTIFIED, BADGES)
    assert device.assurance.protection == common_pb2.PROTECTION_SOFTWARE  # nothing is promised of the card
    await asyncio.to_thread(agent.start_product)
    await asyncio.to_thread(agent.connected)
    assert (await signed_in(agent, account, card.pin)).session


async def test_certificate_of_somebody_else_is_refused(
    agent: AgentProcess, account: Account, issued_piv_card: PivReader
) -> None:
    told = await enroll(agent, account, issued_piv_card.card.pin, "--certificate")
    assert (told["code"], told["error"]["reason"]) == (1, "card_user"), told
    again = await enroll(agent, account, issued_piv_card.card.pin)  # control: the attested key alone
    assert again["code"] == 0, again


async def test_pkcs11_tool_agrees_about_a_key_that_was_made_here(
    agent: AgentProcess, account: Account, softhsm: SoftHsmToken
) -> None:
    token = softhsm_token(softhsm)
    told = await enroll(agent, account, token.pin, *token.options)
    assert told["code"] == 0, told
    said = await asyncio.to_thread(objects_on, softhsm)
    private = next(part for part in said.split("Private Key Object")[1:])
    assert f"keyvouch:{told['rp_id']}:{account.username}\n" in private
    access = next(line for line in private.splitlines() if "Access:" in line)
    assert "sensitive, always sensitive, never extractable, local" in access
    usage = next(line for line in private.splitlines() if "Usage:" in line)
    assert usage.split(":")[1].strip() == "sign"


def objects_on(token: SoftHsmToken) -> str:
    done = subprocess.run(
        [
            "pkcs11-tool",
            "--module",
            token.module,
            "--token-label",
            token.label,
            "--login",
            "--pin",
            token.user_pin,
            "-O",
        ],
        env={**os.environ, **token.environment, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


async def test_opensc_s_tools_agree_about_the_card(
    agent: AgentProcess, account: Account, issued_piv_card: PivReader, tmp_path: Path
) -> None:
    tools = OpenSc(issued_piv_card, tmp_path)
    before = await asyncio.to_thread(tools.token, "--list-objects", pin=issued_piv_card.card.pin)
    told = await enroll(agent, account, issued_piv_card.card.pin)
    assert told["code"] == 0, told
    for program in ("opensc-tool", "piv-tool"):
        assert "Personal Identity Verification Card" in await asyncio.to_thread(tools.card, program, "--name")
    slots = await asyncio.to_thread(tools.token, "--list-slots")
    serial = told["key"].partition("serial ")[2].rstrip(")")
    assert serial
    assert serial in slots
    after = await asyncio.to_thread(tools.token, "--list-objects", pin=issued_piv_card.card.pin)
    handles = re.compile(r"object [0-9]+")
    assert handles.sub("", after) == handles.sub("", before)  # nothing was put on the card
