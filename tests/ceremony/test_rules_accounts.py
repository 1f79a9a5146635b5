"""Accounts on a device, and what there is not: passwords, and a way into the computer itself (PS9, PS20, KI6, KI13)."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import keyvouch.v1
from keyvouch.errors import Reason
from keyvouch_agent import bootstrap
from keyvouch_agent.__main__ import _COMMANDS
from keyvouch_agent.agent import Agent
from keyvouch_agent.ports import Pin
from keyvouch_server.domain.model import Credential, Device
from keyvouch_server.rpc.access import ACCESS
from support.agent_bench import pending_ids, until
from support.enrolling_desk import PIN, Desk
from support.live_server import LiveServer, SignedIn, refused
from support.repository import ROOT


async def sign_in(live: LiveServer, agent: Agent, username: str) -> SignedIn:
    """One sign-in, approved through the running agent."""
    opened = await live.begin(username)
    await until(lambda: len(pending_ids(agent)) == 1)
    outcome = await agent.approve(pending_ids(agent)[0], opened.number, Pin(PIN))
    assert outcome["accepted"], outcome
    return await opened.redeem()


def accounts(agent: Agent) -> dict[str, str]:
    """User name to state, of every account on the device."""
    enrolments = agent.status()["enrolments"]
    assert isinstance(enrolments, list)
    return {str(e["username"]): str(e["state"]) for e in enrolments}


async def test_ps9_ki6_each_account_is_enabled_and_disabled_on_the_device_by_itself(live: LiveServer, tmp_path: Path):
    desk = Desk(live, tmp_path / "agent")
    for name in ("ada", "bob"):
        await live.create_user(name)
    async with desk.running() as agent:
        assert not accounts(agent)  # an agent that runs enables nothing
    ada = await desk.enrol("ada", await live.issue_pass("ada"))
    bob = await desk.enrol("bob", await live.issue_pass("bob"))
    own = {ada.device_id, bob.device_id}
    keys = [k for k in await live.app.store.read(lambda tx: tx.find(Credential, {})) if k.device_id in own]
    assert len({key.public_key for key in keys}) == len(keys) == 2
    assert ada.channel_key != bob.channel_key
    async with desk.running() as agent:
        await until(lambda: set(accounts(agent).values()) == {"connected"})
        for name in ("ada", "bob"):
            assert (await sign_in(live, agent, name)).session.username == name
        session = await sign_in(live, agent, "bob")
        await bootstrap.unregister(home=desk.home, enrolment=bob, progress=desk.said.append, only_here=False)
        await agent.reload()
        assert list(accounts(agent)) == ["ada"]
        with refused(Reason.SESSION_REVOKED):
            await session.introspect()
        assert (await sign_in(live, agent, "ada")).session.username == "ada"
    assert {d.id for d in await live.app.store.read(lambda tx: tx.find(Device, {}))} & own == {ada.device_id}


# -- what there is not ---------------------------------------------------------------------------------------------


def words_of_the_protocol() -> set[str]:
    """Every word in a name of a message, a field or a method."""
    words: set[str] = set()
    for module in iter_modules(keyvouch.v1.__path__):
        if not module.name.endswith("_pb2"):
            continue
        file = import_module(f"keyvouch.v1.{module.name}").DESCRIPTOR
        for message in file.message_types_by_name.values():
            words.update(word for field in message.fields for word in field.name.split("_"))
        words.update(method.name for service in file.services_by_name.values() for method in service.methods)
    return words


def test_ki13_there_is_no_password_that_a_lost_phone_could_fall_back_to():
    words = words_of_the_protocol()
    assert {"device", "pass"} <= words  # control
    assert not {word for word in words if "password" in word.lower() or word.lower() in {"sms", "email"}}
    assert not any("password" in method.lower() for method in ACCESS)


def test_ps20_nothing_offers_to_sign_in_to_the_computer_itself():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(project["scripts"]) == {"keyvouch", "keyvouch-server", "keyvouch-agent"}
    assert not {command for command in _COMMANDS if {"login", "logon", "pam", "unlock-session"} & set(command.split())}
    libraries = [*project["dependencies"], *(one for more in project["optional-dependencies"].values() for one in more)]
    assert not [library for library in libraries if "pam" in library.lower() or "sss" in library.lower()]
    assert "computer" not in words_of_the_protocol()
