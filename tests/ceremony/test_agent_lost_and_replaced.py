"""The agent asks "lost or replaced?", enrols in a session without a pass, and says what a registration takes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from keyvouch.errors import MalformedError, Reason
from keyvouch.ids import ServerId
from keyvouch.v1 import administration_pb2, security_info_pb2
from keyvouch_agent.agent_ports import Departing, DeviceFate, PresentDevice
from keyvouch_agent.commands.asking import LateTerminal
from keyvouch_agent.commands.departing_question import DepartingQuestion
from keyvouch_agent.commands.output import Output
from keyvouch_agent.commands.prerequisite_words import prerequisite_lines
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Ledger
from keyvouch_agent.rpc.channel import reach
from keyvouch_bench.server_process import free_ports
from keyvouch_client import Session
from keyvouch_client.session_file import SessionFile, Target
from keyvouch_server import bootstrap as bootstrap_server
from keyvouch_server.domain.model import Device
from keyvouch_server.domain.oversight_model import RiskEvent
from keyvouch_server.stores.memory import MemoryStore
from support.enrolling_desk import PIN, Desk, Interrupted
from support.live_server import ADMINISTRATOR, LIMIT, TENANT, LiveServer, SignedIn, configuration, refused
from support.registering import begin, complete
from support.terminal_person import Person as Terminal


@pytest.fixture
def desk(live: LiveServer, tmp_path: Path) -> Desk:
    return Desk(live, tmp_path / "agent")


async def own_devices(live: LiveServer, username: str) -> set[str]:
    user_id = live.people[username].device.device_id
    device = await live.app.store.read(lambda tx: tx.get(Device, id=user_id))
    owner = device.user_id if device else ""
    return {d.id for d in await live.app.store.read(lambda tx: tx.find(Device, {"user_id": owner}))}


# -- lost or replaced? ---------------------------------------------------------------------------------------------


async def test_ps19_the_agent_asks_and_the_lost_device_is_gone_T10_KI12(live: LiveServer, desk: Desk):
    ada = await live.person("ada")
    old = ada.device.device_id
    choose = desk.answering(Departing(old, DeviceFate.LOST))
    new = await desk.enrol("ada", await live.issue_pass_again("ada"), choose=choose)
    assert desk.asked_for == [((old,), 0)]
    assert desk.pins == 1
    assert desk.said[-1] == f"Removed: {old}. Sessions ended with it: 0."
    found = await live.app.store.read(lambda tx: tx.find(Device, {"id": old}))
    assert not found
    assert [e.subject for e in await live.app.store.read(lambda tx: tx.find(RiskEvent, {}))] == [old]
    assert Ledger(desk.home).enrolment(new.device_id) == new


async def test_whoever_has_no_device_is_asked_nothing_and_whoever_keeps_all_loses_none(live: LiveServer, desk: Desk):
    await live.create_user("bob")
    await desk.enrol("bob", await live.issue_pass("bob"), choose=desk.answering())
    assert not desk.asked_for
    await live.person("ada")
    await desk.enrol("ada", await live.issue_pass_again("ada"), choose=desk.answering(), tenant=TENANT.upper())
    assert len(await own_devices(live, "ada")) == 2
    assert not [line for line in desk.said if line.startswith("Removed")]


async def test_a_program_is_asked_nothing_and_told_of_the_other_devices(live: LiveServer, desk: Desk):
    ada = await live.person("ada")
    await desk.enrol("ada", await live.issue_pass_again("ada"))
    assert [line for line in desk.said if ada.device.device_id in line and line.startswith("You also have:")]
    assert len(await own_devices(live, "ada")) == 2


async def test_names_of_devices_act_on_no_terminal_A2(live: LiveServer, desk: Desk):
    """The server refuses such names; an agent does not rely on it."""
    ada = await live.person("ada")
    device_id, name = ada.device.device_id, "Tab\x1b[31mlet\nEnrolled: eve"
    await live.app.store.write(lambda tx: tx.update(Device, {"id": device_id}, {"display_name": name}))
    await desk.enrol("ada", await live.issue_pass_again("ada"))
    (said,) = (line for line in desk.said if device_id in line)
    screen = io.StringIO()
    Output(as_json=False, err=screen).progress(said)
    assert "Tab<U+001B>[31mlet" in screen.getvalue()
    assert screen.getvalue().count("\n") == 1


async def test_devices_named_beforehand_go_and_nobody_is_asked(live: LiveServer, desk: Desk):
    ada = await live.person("ada")
    second = await complete(live, await begin(live, (await live.signed_in(ada)).metadata, name="old tablet"))
    wish = {"lost": (ada.device.device_id,), "replaced": ("old tablet",)}
    await desk.enrol("ada", await live.issue_pass_again("ada"), **wish)
    gone = {r.subject: r.details for r in await live.audit("device.remove")}
    assert '"fate": "lost"' in gone[ada.device.device_id]
    assert '"fate": "replaced"' in gone[second.device.device_id]


async def test_a_name_that_is_no_device_of_theirs_stops_before_the_pin(live: LiveServer, desk: Desk):
    await live.person("ada")
    with refused(Reason.DEVICE_UNKNOWN) as refusal:
        await desk.enrol("ada", await live.issue_pass_again("ada"), lost=("no such phone",))
    assert "no such phone" in refusal.error.message
    assert desk.pins == 0
    assert len(await own_devices(live, "ada")) == 1


async def test_ki5_without_room_the_question_comes_before_the_pin_and_keeping_all_is_refused(
    live: LiveServer, desk: Desk
):
    ada = await live.person("ada")
    await live.change_policy(registration={"devices_per_user": 1})
    code = await live.issue_pass_again("ada")
    with refused(Reason.DEVICE_LIMIT):
        await desk.enrol("ada", code)
    with refused(Reason.DEVICE_LIMIT):
        await desk.enrol("ada", code, choose=desk.answering())
    assert desk.pins == 0
    choose = desk.answering(Departing(ada.device.device_id, DeviceFate.REPLACED))
    new = await desk.enrol("ada", code, choose=choose)
    assert [needed for _, needed in desk.asked_for] == [1, 1]
    devices = await live.app.store.read(lambda tx: tx.find(Device, {"display_name": "new laptop"}))
    assert [d.id for d in devices] == [new.device_id]


async def test_an_enrolment_of_the_same_account_on_this_device_goes_when_it_is_registered_anew(
    live: LiveServer, desk: Desk
):
    await live.create_user("ada")
    first = await desk.enrol("ada", await live.issue_pass("ada"))
    second = await desk.enrol("ada", await live.issue_pass_again("ada"), replace=True)
    assert [e.device_id for e in Ledger(desk.home).enrolments()] == [second.device_id]
    assert [r.subject for r in await live.audit("device.remove")] == [first.device_id]
    assert not [line for line in desk.said if "still registered" in line]


async def test_nothing_is_said_to_be_still_registered_that_was_removed_elsewhere_PS18(live: LiveServer, desk: Desk):
    await live.create_user("ada")
    first = await desk.enrol("ada", await live.issue_pass("ada"))
    await live.administer("AdminRemoveDevice", administration_pb2.AdminRemoveDeviceRequest(device_id=first.device_id))
    second = await desk.enrol("ada", await live.issue_pass_again("ada"), replace=True)
    assert [e.device_id for e in Ledger(desk.home).enrolments()] == [second.device_id]
    assert not [line for line in desk.said if first.device_id in line]


async def test_a_device_that_goes_meanwhile_is_no_obstacle_and_the_new_one_comes(live: LiveServer, desk: Desk):
    ada = await live.person("ada")
    old = ada.device.device_id

    async def choose(devices: Sequence[PresentDevice], needed: int) -> Sequence[Departing]:
        user_id = (await live.app.store.read(lambda tx: tx.get(Device, id=old))).user_id  # type: ignore[union-attr]
        owner = (await live.signed_in(ada)).session
        assert owner.user_id == user_id
        await live.app.devices.unregister(await live.app.devices.connected(old, owner.tenant_id, await _key(live, old)))
        return [Departing(old, DeviceFate.LOST)]

    new = await desk.enrol("ada", await live.issue_pass_again("ada"), choose=choose)
    assert any("gone already" in line for line in desk.said)
    assert {d.id for d in await live.app.store.read(lambda tx: tx.find(Device, {"display_name": "new laptop"}))} == {
        new.device_id
    }
    assert not Ledger(desk.home).staged()


async def _key(live: LiveServer, device_id: str) -> bytes:
    device = await live.app.store.read(lambda tx: tx.get(Device, id=device_id))
    assert device is not None
    return device.channel_key


async def test_ps19_a_registration_that_was_interrupted_takes_the_same_devices_away(live: LiveServer, desk: Desk):
    ada = await live.person("ada")
    choose = desk.answering(Departing(ada.device.device_id, DeviceFate.LOST))
    code = await live.issue_pass_again("ada")
    with pytest.raises(Interrupted):
        await desk.enrol("ada", code, choose=choose, until="to verify the key")
    assert len(Ledger(desk.home).staged()) == 1
    assert len(await own_devices(live, "ada")) == 1
    new = await desk.enrol("ada")
    assert len(desk.asked_for) == 1  # it was answered, and is not asked again
    assert [r.subject for r in await live.audit("device.remove")] == [ada.device.device_id]
    assert [e.device_id for e in Ledger(desk.home).enrolments()] == [new.device_id]


# -- the question on a terminal ------------------------------------------------------------------------------------


PHONE = PresentDevice("dev_phone", "Ada's phone", "tpm", 1_700_000_000)
TABLET = PresentDevice("dev_tablet", "Tab\x1b[31mlet", "software")


@asynccontextmanager
async def asked(needed: int = 0) -> AsyncIterator[tuple[Terminal, asyncio.Task[tuple[Departing, ...]]]]:
    """The question about two devices, put to a person at a terminal."""
    person = Terminal()

    class There(LateTerminal):
        def get(self):  # type: ignore[no-untyped-def]
            return person.lines

    async with AsyncExitStack() as stack:
        task = asyncio.create_task(DepartingQuestion(There(stack)).ask([PHONE, TABLET], needed))
        try:
            yield person, task
        finally:
            task.cancel()
            await asyncio.wait({task})
            person.leave()


async def test_the_question_shows_the_devices_inert_and_takes_enter_for_none():
    async with asked() as (person, task):
        await person.types("", question="Enter for none: ")
        assert await task == ()
        assert "1  Ada's phone (tpm, last used 2023-11-14 22:13 UTC, dev_phone)" in person.look()
        assert "\x1b" not in person.look()


async def test_lost_and_replaced_are_told_apart_and_anything_else_is_asked_again():
    async with asked() as (person, task):
        await person.types("7", question="Enter for none: ")
        await person.types("1", question="Enter for none: ", times=2)
        await person.types("what?", question="[l/r]: ")
        await person.types("l", question="[l/r]: ", times=2)
        await person.types("2", question="Another one? Its number, or Enter for none: ")
        await person.types("replaced", question="[l/r]: ", times=3)
        assert await task == (Departing("dev_phone", DeviceFate.LOST), Departing("dev_tablet", DeviceFate.REPLACED))


async def test_where_one_has_to_go_enter_is_no_answer():
    async with asked(needed=1) as (person, task):
        await person.types("", question="Its number: ")
        await person.types("2", question="Its number: ", times=2)
        await person.types("r", question="[l/r]: ")
        await person.types("", question="Enter for none: ")
        assert await task == (Departing("dev_tablet", DeviceFate.REPLACED),)


async def test_the_end_of_the_input_registers_nothing():
    async with asked() as (person, task):
        await person.sees("Enter for none: ")
        os.write(person.own_end, b"\x04")
        with pytest.raises(MalformedError) as refusal:
            await task
        assert refusal.value.reason is Reason.USER_CANCELLED


# -- in a session --------------------------------------------------------------------------------------------------


def keep(live: LiveServer, signed: SignedIn, folder: Path, **target: object) -> SessionFile:
    """The session as `keyvouch sign-in` leaves it."""
    file = SessionFile(folder)
    stored = Target(f"localhost:{live.public_port}", str(live.data / "ca.pem"), False, TENANT, signed.session.username)
    session = Session(
        live.connection,
        server_id=ServerId(live.app.world.facts.server_id),
        tokens=signed.tokens,
        details=signed.session,
        proof_key=signed.proof_key,
    )
    file.keep(Target(**{**{n: getattr(stored, n) for n in Target.__slots__}, **target}), session)  # type: ignore[arg-type]
    return file


async def agent_command(home: Path, state: Path, *arguments: str, pin: str = PIN) -> tuple[int, str, str]:
    """`keyvouch-agent` in a process of its own, with the PIN from a descriptor."""
    reading, writing = os.pipe()
    os.write(writing, f"{pin}\n".encode())
    os.close(writing)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "keyvouch_agent", "--home", str(home), *arguments, "--pin-fd", str(reading),
        stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, pass_fds=(reading,), start_new_session=True,
        env={**os.environ, "KEYVOUCH_HOME": str(state)},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    os.close(reading)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_ps14_a_device_is_registered_in_a_session_without_a_pass_P15(live: LiveServer, tmp_path: Path):
    ada = await live.person("ada")
    keep(live, await live.signed_in(ada), tmp_path / "client")
    passes = len(await live.audit("access_pass.sign_in"))
    assert passes
    words = ("enroll", "--with-session", "--provider", "software", "--name", "second", "--json")
    code, out, err = await agent_command(tmp_path / "agent", tmp_path / "client", *words)
    assert code == 0, err
    assert json.loads(out)["username"] == "ada"
    assert len(await own_devices(live, "ada")) == 2
    assert ada.device.device_id in err  # told of, not asked
    assert (await live.audit("access_pass.sign_in"))[-1].user_id == (await live.audit("registration.complete"))[
        -1
    ].user_id


async def test_ps14_without_a_session_or_in_somebody_elses_nothing_is_registered(live: LiveServer, tmp_path: Path):
    code, _, err = await agent_command(tmp_path / "agent", tmp_path / "client", "enroll", "--with-session")
    assert (code, "not signed in" in err) == (1, True)
    keep(live, await live.signed_in(await live.person("ada")), tmp_path / "client")
    for option, name in (("--user", "bob"), ("--tenant", "other")):
        words = ("enroll", "--with-session", option, name)
        code, _, err = await agent_command(tmp_path / "agent", tmp_path / "client", *words)
        assert (code, "You are signed in as ada" in err) == (1, True)
    code, _, err = await agent_command(tmp_path / "agent", tmp_path / "client", "enroll", "--server", "localhost:1")
    assert (code, "--with-session" in err) == (2, True)
    assert len(await own_devices(live, "ada")) == 1


async def test_ps14_an_ended_session_registers_nothing_and_says_so(live: LiveServer, tmp_path: Path):
    signed = await live.signed_in(await live.person("ada"))
    keep(live, signed, tmp_path / "client")
    other = await live.signed_in(live.people["ada"])
    call = live.connection.security_info.RevokeOtherSessions(
        security_info_pb2.RevokeOtherSessionsRequest(), metadata=other.metadata, timeout=LIMIT
    )
    assert (await call).revoked_sessions >= 1
    words = ("enroll", "--with-session", "--provider", "software")
    code, _, err = await agent_command(tmp_path / "agent", tmp_path / "client", *words)
    assert (code, "The session was ended." in err, "Sign in again." in err) == (1, True, True)
    assert len(await own_devices(live, "ada")) == 1
    assert not Ledger(Home.open(tmp_path / "agent")).staged()


async def test_ps14_the_tokens_of_a_session_go_to_no_other_server_P15(live: LiveServer, tmp_path: Path):
    keep(live, await live.signed_in(await live.person("ada")), tmp_path / "client")
    came: list[object] = []
    async with await asyncio.start_server(lambda *streams: came.append(streams), "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        for option, value in (("--server", f"127.0.0.1:{port}"), ("--server-id", "00" * 32)):
            words = ("enroll", "--with-session", "--provider", "software", option, value)
            code, _, err = await agent_command(tmp_path / "agent", tmp_path / "client", *words)
            assert (code, "You are signed in at" in err) == (2, True), err
    assert not came
    assert len(await own_devices(live, "ada")) == 1
    own = ("--server", f"localhost:{live.public_port}", "--server-id", live.app.world.facts.server_id.hex())
    words = ("enroll", "--with-session", "--provider", "software", *own)
    code, _, err = await agent_command(tmp_path / "agent", tmp_path / "client", *words)  # control
    assert code == 0, err


async def test_ps14_a_session_over_plaintext_registers_over_tls_only(live: LiveServer, tmp_path: Path):
    ada = await live.person("ada")
    keep(live, await live.signed_in(ada), tmp_path / "client", insecure_loopback=True)
    code, _, err = await agent_command(tmp_path / "agent", tmp_path / "client", "enroll", "--with-session")
    assert (code, "TLS" in err) == (2, True)


# -- what it takes -------------------------------------------------------------------------------------------------


async def test_ps11_a_device_that_cannot_reach_the_device_listener_stops_before_the_pin(
    server_template: Path, live: LiveServer, desk: Desk, tmp_path: Path
):
    await reach(live.app.world.facts.device_endpoint)  # control
    listening, closed = free_ports(2)
    config = replace(configuration(listening), device_endpoint=f"127.0.0.1:{closed}")
    data = Path(shutil.copytree(server_template, tmp_path / "cut-off", ignore=shutil.ignore_patterns("keyvouch.db*")))
    app = bootstrap_server.assemble(data, config, MemoryStore())
    founded = await app.administration.found(TENANT, ADMINISTRATOR)
    async with bootstrap_server.running(app, grace=0) as running:
        with refused(Reason.SERVER_UNREACHABLE) as refusal:
            await desk.enrol(
                ADMINISTRATOR, founded.access_pass.code, public_endpoint=f"localhost:{running.public_port}"
            )
    assert f"127.0.0.1:{closed}" in refusal.error.message
    assert desk.pins == 0
    assert await app.store.read(lambda tx: tx.count(Device, {})) == 0


async def test_ps11_the_agent_prints_what_a_registration_takes_point_by_point(live: LiveServer, tmp_path: Path):
    keep(live, await live.signed_in(await live.person("ada")), tmp_path / "client")
    await live.change_policy(approval={"enabled": False})
    words = ("enroll", "--with-session", "--provider", "software")
    code, _, err = await agent_command(tmp_path / "agent", tmp_path / "client", *words)
    assert code == 1
    assert "no   policy allows approval with a device (method_disabled)" in err
    assert "yes  policy names you for it" in err
    assert "yes  this device reaches the server's device listener" in err
    code, _, err = await agent_command(tmp_path / "agent", tmp_path / "client", *words, "--json")
    assert "device_endpoint=ok" in json.loads(err.splitlines()[-1])["error"]["metadata"]["prerequisites"]


async def test_ps11_policy_that_changes_meanwhile_is_told_point_by_point_too(live: LiveServer, desk: Desk):
    await live.create_user("ada")

    async def meanwhile(devices: Sequence[PresentDevice], needed: int) -> Sequence[Departing]:
        await live.change_policy(approval={"enabled": False})
        return ()

    await desk.enrol("ada", await live.issue_pass("ada"))
    again = Desk(live, desk.home.path.parent / "second")
    with refused(Reason.METHOD_DISABLED) as refusal:
        await again.enrol("ada", await live.issue_pass_again("ada"), choose=meanwhile)
    assert "  yes  this device reaches the server's device listener" in prerequisite_lines(refusal.error)
    assert not Ledger(again.home).staged()
