"""`keyvouch security-info`, and what `keyvouch sign-in` tells beside a session, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from keyvouch.statement import Decision
from keyvouch.v1 import administration_pb2, common_pb2
from support.command_line import CommandDesk, desk_of, run_command, start_command, target_of
from support.live_server import ADMINISTRATOR, LiveServer, Person


@pytest.fixture
async def ada(live: LiveServer) -> Person:
    """A user with a device."""
    return await live.person("ada")


@pytest.fixture
async def desk(live: LiveServer, ada: Person, tmp_path: Path) -> CommandDesk:
    """Her machine."""
    return desk_of(live, "ada", await live.signed_in(ada), tmp_path / "state")


def where(live: LiveServer, username: str) -> tuple[str, ...]:
    target = target_of(live, username)
    return ("--server", target.server, "--ca", target.ca_file, "--tenant", target.tenant, "--user", username)


async def sign_in(live: LiveServer, person: Person, home: Path, *more: str) -> tuple[dict[str, Any], str]:
    """Sign in with the command and the person's device; the session it tells of, and what is on standard error."""
    process = await start_command("sign-in", *where(live, person.username), "--json", *more, home=home)
    assert process.stdout is not None
    shown = json.loads(await process.stdout.readline())
    await person.stream.send(person.device.approve(await person.stream.prompt(), shown["number"]))
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err
    return json.loads(out), err.decode()


async def another_device(live: LiveServer, desk: CommandDesk, person: Person) -> str:
    """A second device of the person, whose stream is not open; returns its id."""
    signed_in = await live.signed_in(person)
    device = await type(person.device).enrol(live.connection, metadata=signed_in.metadata)
    return device.device_id


# looking


async def test_the_list_shows_devices_and_ways_to_sign_in(desk: CommandDesk, ada: Person) -> None:
    for words in (("security-info",), ("security-info", "list")):
        shown = await desk.done(*words)
        assert shown.out.startswith("ada in example\n")
        assert ada.device.device_id in shown.out
        assert "WAY TO SIGN IN" in shown.out
        assert "Note: " in shown.out
    told = await desk.told("security-info")
    states = {state["method"]: state for state in told["methods"]}
    assert states["approval"]["usable"] is True
    assert states["security_key"]["reason"]


# changing


async def test_a_device_gets_another_name_and_is_found_by_it(desk: CommandDesk, ada: Person) -> None:
    renamed = await desk.done("security-info", "rename", ada.device.device_id, "Red phone")
    assert renamed.out == "It is called Red phone now.\n"
    assert (await desk.told("security-info", "rename", "Red phone", "Blue phone"))["device"]["display_name"]
    assert (await desk.refused("security-info", "rename", "Red phone", "x"))["reason"] == "device_unknown"


@pytest.mark.parametrize(
    "words", [("remove",), ("remove", "--replaced"), ("remove", "--lost"), ("lost",)], ids=" ".join
)
async def test_a_device_is_removed_in_words_that_say_what_became_of_it_PS19(
    desk: CommandDesk, live: LiveServer, ada: Person, words: tuple[str, ...]
) -> None:
    other = await another_device(live, desk, ada)
    action, *fate = words
    done = await desk.done("security-info", action, other, *fate)
    assert "is removed; sessions ended: 0." in done.out
    assert ("administrators know that it is lost" in done.out) == ("lost" in " ".join(words))
    assert [device["device_id"] for device in (await desk.told("security-info"))["devices"]] == [ada.device.device_id]
    assert (await desk.refused("security-info", action, other, *fate))["reason"] == "device_unknown"


async def test_a_name_that_two_devices_have_removes_neither(desk: CommandDesk, live: LiveServer, ada: Person) -> None:
    for device in (ada.device.device_id, await another_device(live, desk, ada)):
        await desk.done("security-info", "rename", device, "Phone")
    outcome = await desk.run("security-info", "remove", "Phone", "--json")
    assert (outcome.status, outcome.error["reason"]) == (2, "usage")
    assert ada.device.device_id in outcome.error["fix"]
    assert len((await desk.told("security-info"))["devices"]) == 2


async def test_the_old_flag_goes_on_removing(desk: CommandDesk, live: LiveServer, ada: Person) -> None:
    other = await another_device(live, desk, ada)
    shown = await desk.done("security-info", "--remove", other)
    assert "The device is removed; sessions ended: 0." in shown.err
    assert other not in shown.out


async def test_what_is_offered_first_is_chosen_PS6(desk: CommandDesk) -> None:
    assert (await desk.done("security-info", "default", "approval")).out == "You are offered first: approval.\n"
    assert "approval (first)" in (await desk.done("security-info")).out
    assert (await desk.refused("security-info", "default", "security_key"))["reason"] == "no_method"
    await desk.done("security-info", "default", "last")
    assert "(first)" not in (await desk.done("security-info")).out


async def test_every_other_session_is_ended(desk: CommandDesk, live: LiveServer, ada: Person) -> None:
    other = await live.signed_in(ada)
    assert "This one goes on." in (await desk.done("security-info", "sessions", "end-others")).out
    assert [item["session_id"] for item in (await desk.told("sessions"))["sessions"]] != [other.session.session_id]
    assert len((await desk.told("sessions"))["sessions"]) == 1


async def test_the_receipt_of_ones_own_sign_in(desk: CommandDesk, tmp_path: Path) -> None:
    file = tmp_path / "mine.cbor"
    told = await desk.told("security-info", "receipt", "--out", str(file))
    assert (told["out"], file.stat().st_size > 100) == (str(file), True)
    assert (await desk.refused("security-info", "receipt", "ses_nothing"))["reason"] == "session_unknown"


async def test_adding_a_device_says_which_command_and_where_it_comes_from_PS14(desk: CommandDesk) -> None:
    told = await desk.told("security-info", "add", "--provider", "tpm", "--name", "Desk computer")
    assert told["command"] == [
        "keyvouch-agent", "enroll", "--with-session", "--provider", "tpm", "--name", "Desk computer",
    ]  # fmt: skip
    shown = await desk.done("security-info", "add")
    assert "    keyvouch-agent enroll --with-session" in shown.out


async def test_adding_without_an_agent_says_how_to_get_one_PS14(desk: CommandDesk, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    environment = {"PATH": str(tmp_path / "empty"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for words, status in ((("add",), 0), (("add", "--start"), 2)):
        process = await start_command("security-info", *words, home=desk.home, environment=environment)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == status
        assert b"pip install 'keyvouch[agent]'" in out + err


async def test_adding_with_start_runs_the_agent_that_is_there_PS14(desk: CommandDesk, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "keyvouch-agent").write_text('#!/bin/sh\necho "agent: $*"\n')
    (folder / "keyvouch-agent").chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    words = ("security-info", "add", "--start", "--provider", "software")
    process = await start_command(*words, home=desk.home, environment=environment)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out) == (0, b"agent: enroll --with-session --provider software\n")


# being asked


def at_the_terminal(desk: CommandDesk, *words: str, answer: str) -> tuple[int, str]:
    """Run a command on a terminal and answer its question; its exit status, and what was shown."""
    own_end, theirs = pty.openpty()
    command = ["setsid", "--ctty", sys.executable, "-m", "keyvouch_client", *words]
    environment = {**os.environ, "KEYVOUCH_HOME": str(desk.home)}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    os.set_blocking(own_end, False)
    screen, asked, end = "", False, time.monotonic() + 60
    try:
        while process.poll() is None:
            assert time.monotonic() < end, screen
            screen += read_from(own_end)
            if not asked and screen.endswith("(y, n): "):
                asked = True
                os.write(own_end, answer.encode())
            time.sleep(0.02)
        return process.returncode, screen + read_from(own_end)
    finally:
        process.kill()
        process.wait(10)
        os.close(own_end)


def read_from(terminal: int) -> str:
    with suppress(BlockingIOError, OSError):
        return os.read(terminal, 65536).decode()
    return ""


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("\n", 1), ("\x04", 1), ("\x03", 130), ("y\n", 0)])
async def test_what_takes_something_away_asks_first_on_a_terminal(
    desk: CommandDesk, live: LiveServer, ada: Person, answer: str, status: int
) -> None:
    other = await another_device(live, desk, ada)
    left, screen = await asyncio.to_thread(at_the_terminal, desk, "security-info", "remove", other, answer=answer)
    assert (left, "goes, and the sessions it approved end." in screen) == (status, True), screen
    assert ("Nothing was changed." in screen) == (status == 1)
    devices = [device["device_id"] for device in (await desk.told("security-info"))["devices"]]
    assert (other in devices) == (status != 0)


async def test_yes_is_not_asked_again_on_a_terminal(desk: CommandDesk, live: LiveServer, ada: Person) -> None:
    other = await another_device(live, desk, ada)
    done, screen = await asyncio.to_thread(at_the_terminal, desk, "security-info", "lost", other, "--yes", answer="n\n")
    assert (done, "Go on?" in screen) == (0, False), screen


# what a sign-in tells


async def test_a_sign_in_is_explained_when_it_is_asked(live: LiveServer, ada: Person, tmp_path: Path) -> None:
    session, _ = await sign_in(live, ada, tmp_path / "state", "--explain")
    rules = session["explanation"]["rules"]
    assert rules
    assert {rule["outcome"] for rule in rules} <= {"allowed", "not_concerned"}
    elsewhere = await run_command(
        "sign-in", *where(live, "ada"), "--explain", "--audience", "shop", "--json", home=tmp_path / "other"
    )
    assert (elsewhere.status, elsewhere.error["reason"]) == (2, "usage")


async def test_more_can_be_asked_for_this_time(live: LiveServer, ada: Person, tmp_path: Path) -> None:
    """At a client that the user has signed in at before; a stranger's waits, and is told nothing (P12)."""
    home = tmp_path / "state"
    await sign_in(live, ada, home)
    asked = ("sign-in", *where(live, "ada"), "--json")
    for more in (("--phishing-resistant",), ("--assurance", "hardware")):
        refused = await run_command(*asked, *more, home=home)
        assert (refused.status, refused.error["kind"]) == (1, "RefusedError"), more
    for wrong in (("--assurance", "gold"), ("--assurance", "any", "--access-pass")):
        mistake = await run_command(*asked, *wrong, home=home)
        assert (mistake.status, mistake.error["reason"]) == (2, "usage"), wrong
    session, _ = await sign_in(live, ada, home, "--assurance", "any")
    assert session["session"]["username"] == "ada"


async def test_administrators_are_told_of_events_nobody_has_looked_at(
    live: LiveServer, ada: Person, tmp_path: Path
) -> None:
    await live.admin()
    quiet, _ = await sign_in(live, live.people[ADMINISTRATOR], tmp_path / "state")
    assert quiet["open_risk_events"] == 0
    await live.begin("ada")
    await ada.stream.send(ada.device.refuse(await ada.stream.prompt(), Decision.REPORT))
    told, _ = await sign_in(live, live.people[ADMINISTRATOR], tmp_path / "state")
    assert told["open_risk_events"] == 1


async def test_a_campaign_is_announced_at_each_sign_in_KI8(live: LiveServer, ada: Person, tmp_path: Path) -> None:
    policy = (await live.administer("GetPolicy", administration_pb2.GetPolicyRequest())).policy
    campaign = policy.campaigns.add(name="Hardware keys", required_by=live.clock.now() + 86_400)
    campaign.targets.everybody = True
    campaign.required_assurance.protection = common_pb2.REQUIRED_PROTECTION_HARDWARE
    campaign.required_assurance.verification = common_pb2.VERIFICATION_HARDWARE_GATED
    campaign.required_assurance.provenance = common_pb2.PROVENANCE_UNATTESTED
    request = administration_pb2.UpdatePolicyRequest(policy=policy, accept_lock_out=True)
    await live.administer("UpdatePolicy", request)
    told, _ = await sign_in(live, ada, tmp_path / "state")
    assert [notice["name"] for notice in told["campaigns"]] == ["Hardware keys"]
    shown = await run_command("security-info", home=tmp_path / "state")
    assert "Hardware keys: register a key in hardware whose PIN the hardware checks" in shown.out.replace("\n", " ")


async def test_whoever_comes_with_a_pass_is_asked_lost_or_replaced_PS19_T10(
    live: LiveServer, ada: Person, tmp_path: Path
) -> None:
    code = await live.issue_pass_again("ada")
    for words in ((), ("--json",)):
        reading, writing = os.pipe()
        os.write(writing, code.encode())
        os.close(writing)
        command = ("sign-in", *where(live, "ada"), "--access-pass-fd", str(reading), *words)
        outcome = await run_command(*command, home=tmp_path / "state", fds=[reading])
        os.close(reading)
        assert outcome.status == 0, outcome
        if words:
            assert outcome.result["ask_lost_or_replaced"] is True
        else:
            assert "Is one of them lost or replaced?" in outcome.err.replace("\n", " ")
    desk = CommandDesk(live, tmp_path / "state")
    assert "Is one of them lost or replaced?" in (await desk.done("security-info")).out.replace("\n", " ")
    assert "is removed" in (await desk.done("security-info", "lost", ada.device.device_id)).out
    left = await desk.done("security-info")
    assert "You have no device or key here yet." in left.out
