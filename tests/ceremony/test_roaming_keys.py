"""Both ceremonies with security keys: the agent's own code against a real server, keys that come, go and wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from keyvouch.errors import ConflictError, DeviceError, KeyvouchError, Reason, RefusedError
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2
from keyvouch_agent import bootstrap
from keyvouch_agent.agent import Agent
from keyvouch_agent.agent_settings import FILE
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.ports import Pin
from keyvouch_agent.prompts.terminal import TerminalPrompts
from keyvouch_agent.provider_shelf import ProviderKey
from keyvouch_agent.views import key_label
from support.agent_bench import pending_ids, until
from support.live_server import LiveServer
from support.provider_ui import ScriptedInteraction
from support.roaming_desk import PIN, Desk, Terminal
from support.security_keys import MAKE, Finger, KeyOnBench

ATTESTED = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_ANY,
    verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
    provenance=common_pb2.PROVENANCE_ATTESTED,
)


@pytest.fixture
async def desk(live: LiveServer, tmp_path: Path) -> Desk:
    await live.create_user("ada")
    return Desk(live, Home.open(tmp_path / "home"))


@pytest.fixture
def key() -> KeyOnBench:
    return KeyOnBench("Maker Key 5")


async def device_of(desk: Desk) -> common_pb2.Device:
    told = await desk.live.administer("ListDevices", admin_pb.ListDevicesRequest(username="ada"))
    (device,) = told.devices
    return device  # type: ignore[no-any-return]


async def test_registration_and_sign_in_with_a_security_key(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    enrolment = await desk.enrol()
    assert (enrolment.provider, enrolment.key_name) == ("fido2", "Maker Key 5")
    assert enrolment.key_model.replace("-", "") == key.vault.properties.aaguid.hex()
    assert key_label(enrolment) == "security key (Maker Key 5)"
    assert desk.ledger.enrolments() == (enrolment,)
    assert (await device_of(desk)).provider == common_pb2.PROVIDER_KIND_FIDO2
    async with desk.running() as agent:
        begun = await desk.prompted(agent)
        (prompt_id,) = pending_ids(agent)
        pin = (await agent.show(prompt_id))["pin"]
        assert isinstance(pin, Mapping)
        assert (pin["name"], pin["retries_left"], pin["connected"]) == ("Maker Key 5", 8, True)
        with agent.watch() as events:
            outcome = await agent.approve(prompt_id, begun.number, Pin(PIN))
            assert outcome["accepted"], outcome
            seen = [events.get_nowait() for _ in range(events.qsize())]
        assert any(event.get("event") == "key" and "Touch" in str(event["message"]) for event in seen)
        assert (await begun.redeem()).tokens.access_token


async def test_the_key_is_there_before_the_access_pass_is_asked_for(desk: Desk, key: KeyOnBench) -> None:
    def plug(text: str) -> None:
        desk.said.append(text)
        if "Connect" in text:
            desk.ports.put_in(key)

    assert await desk.enrol(interaction=GivenPin(Pin(PIN), may_set=True, tell=plug))
    connect = next(i for i, text in enumerate(desk.said) if "Connect" in text)
    assert connect < desk.said.index("asked for the pass")


async def test_a_key_that_can_verify_nobody_costs_no_access_pass(desk: Desk) -> None:
    desk.ports.put_in(KeyOnBench("U2F", ctap2=False))
    with pytest.raises(DeviceError, match="U2F only") as caught:
        await desk.enrol()
    assert caught.value.reason is Reason.UNSUPPORTED
    assert "asked for the pass" not in desk.said
    assert desk.ledger.enrolments() == ()


async def test_an_interrupted_wait_for_a_key_ends_at_once(desk: Desk) -> None:
    waiting = asyncio.create_task(desk.enrol())
    await until(lambda: any("Connect" in text for text in desk.said))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert desk.ledger.staged() == ()


async def test_an_interrupted_wait_for_a_touch_ends_at_once(desk: Desk, key: KeyOnBench) -> None:
    key.set_pin(PIN)
    key.finger = Finger(always=False)
    desk.ports.put_in(key)
    making = asyncio.create_task(desk.enrol())
    await until(key.finger.is_asked.is_set)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert (key.open, desk.ledger.staged()) == (0, ())


async def test_accounts_on_several_keys_each_find_their_own(desk: Desk, key: KeyOnBench) -> None:
    await desk.live.change_policy(registration={"accounts_per_device": 5})
    other = KeyOnBench("Other Key")
    await desk.live.create_user("bob")
    desk.ports.put_in(key)
    ada = await desk.enrol()
    desk.ports.take_out(key)
    desk.ports.put_in(other)
    bob = await desk.enrol("bob")
    desk.ports.put_in(key)
    assert ada.account != bob.account
    shelf = bootstrap.open_shelf(desk.home, desk.tuning)
    for enrolment, name in ((ada, "Maker Key 5"), (bob, "Other Key")):
        provider = shelf.get(ProviderKey(enrolment.provider, enrolment.account))
        assert provider.capabilities().name == name


async def test_the_terminal_says_what_to_do_with_the_key(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    await desk.enrol()
    desk.ports.take_out(key)
    terminal = Terminal()
    async with desk.running() as agent:
        prompts = asyncio.create_task(TerminalPrompts(agent, terminal.lines).run())
        begun = await desk.prompted(agent)
        await terminal.answer("Your choice", "a")
        await terminal.answer("Number shown", begun.number)
        await terminal.answer("PIN (not connected: connect it before you answer)", PIN)
        await until(lambda: "Connect the security key of ada (Maker Key 5)" in terminal.screen.getvalue())
        desk.ports.put_in(key)
        await until(lambda: "Done: approved." in terminal.screen.getvalue())
        assert "Touch the security key now." in terminal.screen.getvalue()
        prompts.cancel()
        with pytest.raises(asyncio.CancelledError):
            await prompts
    terminal.close()
    assert PIN not in terminal.screen.getvalue()


async def test_nobody_types_into_a_blocked_pin_H3(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    await desk.enrol()
    key.answers_retries(0)
    terminal = Terminal()
    async with desk.running() as agent:
        prompts = asyncio.create_task(TerminalPrompts(agent, terminal.lines).run())
        await desk.prompted(agent)
        await terminal.answer("Your choice", "a")
        await until(lambda: "`keyvouch-agent doctor` says how to get a new key" in terminal.screen.getvalue())
        await until(lambda: terminal.screen.getvalue().count("Your choice") == 2)
        assert "Number shown" not in terminal.screen.getvalue()
        os.write(terminal.keyboard, b"d\n")  # control: it can still be denied
        await until(lambda: "Done: denied." in terminal.screen.getvalue())
        prompts.cancel()
        with pytest.raises(asyncio.CancelledError):
            await prompts
    terminal.close()


async def approve_failing(desk: Desk, agent: Agent, pin: str = PIN) -> DeviceError:
    begun = await desk.prompted(agent)
    (prompt_id,) = pending_ids(agent)
    with pytest.raises(DeviceError) as caught:
        await agent.approve(prompt_id, begun.number, Pin(pin))
    assert pending_ids(agent) == [prompt_id]  # another try is open
    assert caught.value.fix
    return caught.value


async def test_a_wrong_pin_is_counted_by_the_key(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    await desk.enrol()
    async with desk.running() as agent:
        error = await approve_failing(desk, agent, "000000")
        assert (error.reason, error.retries_left) == (Reason.PIN_WRONG, 7)


async def test_a_key_pulled_out_in_the_middle_H10(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    await desk.enrol()
    async with desk.running() as agent:
        key.fails = 9
        error = await approve_failing(desk, agent)
        assert error.reason is Reason.AUTHENTICATOR_REMOVED
        key.fails = None
        (prompt_id,) = pending_ids(agent)
        begun = await desk.live.begin("ada")  # takes the place of the first
        await until(lambda: pending_ids(agent) not in ([prompt_id], []))
        (prompt_id,) = pending_ids(agent)
        assert (await agent.approve(prompt_id, begun.number, Pin(PIN)))["accepted"]


async def test_a_key_that_is_away_is_waited_for(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    await desk.enrol()
    desk.ports.take_out(key)
    async with desk.running() as agent:
        begun = await desk.prompted(agent)
        (prompt_id,) = pending_ids(agent)
        pin = (await agent.show(prompt_id))["pin"]
        assert isinstance(pin, Mapping)
        assert (pin["name"], pin["connected"]) == ("Maker Key 5", False)
        with agent.watch() as events:
            deciding = asyncio.create_task(agent.approve(prompt_id, begun.number, Pin(PIN)))
            told = await events.get()
            while told.get("event") != "key":
                told = await events.get()
            assert "the security key of ada (Maker Key 5)" in str(told["message"])
            desk.ports.put_in(key)
            assert (await deciding)["accepted"]


async def test_a_request_that_is_withdrawn_waits_for_no_key(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    await desk.enrol()
    desk.ports.take_out(key)
    async with desk.running() as agent:
        begun = await desk.prompted(agent)
        (prompt_id,) = pending_ids(agent)
        with agent.watch() as events:
            deciding = asyncio.create_task(agent.approve(prompt_id, begun.number, Pin(PIN)))
            while (await events.get()).get("event") != "key":
                pass
            await begun.cancel()
            with pytest.raises(KeyvouchError) as caught:
                await deciding
            assert caught.value.reason in {Reason.USER_CANCELLED, Reason.SIGN_IN_SUPERSEDED}


async def test_the_agent_ends_while_it_waits_for_a_touch(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    await desk.enrol()
    key.finger = Finger(always=False)
    async with desk.running() as agent:
        begun = await desk.prompted(agent)
        (prompt_id,) = pending_ids(agent)
        deciding = asyncio.create_task(agent.approve(prompt_id, begun.number, Pin(PIN)))
        await until(key.finger.is_asked.is_set)
        deciding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deciding
    await until(lambda: key.open == 0)


async def test_a_key_that_was_reset_is_registered_anew_H10(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    old = await desk.enrol()
    key.reset()
    with pytest.raises(ConflictError):
        await desk.enrol()
    new = await desk.enrol(replace=True)
    assert new.credential_id != old.credential_id
    assert [e.credential_id for e in desk.ledger.enrolments()] == [new.credential_id]
    async with desk.running() as agent:
        begun = await desk.prompted(agent)
        (prompt_id,) = pending_ids(agent)
        assert (await agent.approve(prompt_id, begun.number, Pin(PIN)))["accepted"]


async def test_a_registration_that_is_refused_leaves_a_server_side_credential_at_most(
    desk: Desk, key: KeyOnBench
) -> None:
    await desk.live.change_policy(registration={"required_assurance": ATTESTED})
    desk.ports.put_in(key)
    with pytest.raises(RefusedError) as caught:
        await desk.enrol()
    assert caught.value.reason in {Reason.ATTESTATION_REQUIRED, Reason.ASSURANCE_TOO_LOW}
    assert (desk.ledger.enrolments(), desk.ledger.staged()) == ((), ())
    assert MAKE in key.commands
    assert not any("stays on the security key" in text for text in desk.said)


async def test_a_discoverable_credential_that_came_to_nothing_is_named(desk: Desk, key: KeyOnBench) -> None:
    desk.home.write(FILE, b"[fido2]\nresident = true\n")
    await desk.live.change_policy(registration={"required_assurance": ATTESTED})
    desk.ports.put_in(key)
    with pytest.raises(RefusedError):
        await desk.enrol()
    assert any("stays on the security key" in text for text in desk.said)


@pytest.mark.parametrize("resident", [False, True])
async def test_unregistering_says_what_stays_on_the_key(desk: Desk, key: KeyOnBench, resident: bool) -> None:
    if resident:
        desk.home.write(FILE, b"[fido2]\nresident = true\n")
    desk.ports.put_in(key)
    enrolment = await desk.enrol()
    desk.said.clear()
    await bootstrap.unregister(
        home=desk.home, enrolment=enrolment, progress=desk.said.append, only_here=False, tuning=desk.tuning
    )
    assert desk.ledger.enrolments() == ()
    assert any("stays on the security key" in text for text in desk.said) is resident
    assert not any("tpm forget" in text for text in desk.said)


async def test_a_key_is_not_replaced_behind_its_pin(desk: Desk, key: KeyOnBench) -> None:
    desk.ports.put_in(key)
    enrolment = await desk.enrol()
    with pytest.raises(DeviceError) as caught:
        await bootstrap.rekey(
            home=desk.home,
            enrolment=enrolment,
            interaction=ScriptedInteraction(pin=PIN),
            progress=desk.said.append,
            tuning=desk.tuning,
        )
    assert caught.value.reason is Reason.UNSUPPORTED
    assert "enroll --replace" in caught.value.fix
