"""`keyvouch admin policy` against a real server: what it shows, what it asks, what it saves (PS12, PS13, KI7, KI8)."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from keyvouch.v1 import common_pb2
from support.command_line import CommandDesk, desk_of
from support.live_server import ADMINISTRATOR, LiveServer
from support.policy_desk import group_of, longer, present, save


@pytest.fixture
async def desk(live: LiveServer, tmp_path: Path) -> CommandDesk:
    """The first administrator's machine."""
    await live.admin()
    signed_in = await live.signed_in(live.people[ADMINISTRATOR])
    return desk_of(live, ADMINISTRATOR, signed_in, tmp_path / "state")


async def policy(desk: CommandDesk, *words: str) -> str:
    """What a command that succeeds says."""
    return (await desk.done("admin", "policy", *words)).out


async def test_ps13_a_change_is_shown_with_whom_it_concerns_before_it_is_saved(desk: CommandDesk) -> None:
    await desk.live.person("ada")
    await desk.live.create_user("keyless")
    wanted = ("approval.required_assurance.provenance=attested", "approval.number_digits=6")
    for words in (("preview", *wanted), ("set", *wanted, "--dry-run")):
        dry = await policy(desk, *words)
        assert "approval.number_digits: 2 -> 6" in dry
        assert "approval.required_assurance.provenance: unattested -> attested" in dry
        rows = [line.split() for line in dry.splitlines() if line.startswith("ada ")]
        assert rows[0] == ["ada", "approval", "usable", "not", "usable", "assurance_too_low"]
        assert rows[1][:3] == ["ada", "key", "of"]
        assert rows[1][-5:] == ["counts", "does", "not", "count", "assurance_too_low"]
        assert "Users affected: 2 of 3." in dry
        assert "You among them: By this policy you could not sign in again" in dry
        assert dry.endswith("Nothing was saved.\n")
    assert (await present(desk.live)).version == 1
    refused = await desk.refused("admin", "policy", "set", *wanted)
    assert refused["reason"] == "policy_locks_out"
    told = await desk.told("admin", "policy", "set", *wanted, "--accept-lock-out")
    assert (told["version"], told["dry_run"], told["examined"]) == (2, False, 3)
    assert told["changes"]["approval.number_digits"] == {"from": "2", "to": "6"}
    assert {user["username"] for user in told["affected"]} == {"admin", "ada"}
    assert told["policy"]["approval"]["number_digits"] == 6
    assert (await present(desk.live)).approval.number_digits == 6


async def test_every_kind_of_setting_is_shown_and_changed_by_name_PS13(desk: CommandDesk) -> None:
    shown = [line.split() for line in (await policy(desk, "show")).splitlines()]
    assert shown[0] == ["version", "1"]
    for name, value in (("health.pcrs", "0,2,4,7"), ("approval.enabled", "true"), ("approval.number_digits", "2")):
        assert [name, value] in shown
    said = await policy(
        desk,
        "set",
        "health.pcrs=0, 4,7",
        "registration.pin_tries=5",
        "sign_in.disclose_methods=on",
        "security_key.required_assurance.verification=HARDWARE_GATED",
        "security_key.required_assurance.anchors=one,two",
    )
    for line in (
        "health.pcrs: 0,2,4,7 -> 0,4,7",
        "registration.pin_tries: 3 -> 5",
        "sign_in.disclose_methods: false -> true",
        "security_key.required_assurance.verification: software_gated -> hardware_gated",
        "security_key.required_assurance.anchors: - -> one,two",
    ):
        assert line in said.splitlines()
    saved = await present(desk.live)
    assert (list(saved.health.pcrs), saved.registration.pin_tries) == ([0, 4, 7], 5)
    assert list(saved.security_key.required_assurance.anchors) == ["one", "two"]
    for mistaken in ("health.pcrs=0,seven", "apps.bank.phishing_resistant=true", "approval.enabled+=true", "nothing=1"):
        assert (await desk.run("admin", "policy", "set", mistaken)).status == 2
    refused = await desk.refused("admin", "policy", "set", "sign_in.profile=nist-800-63b-4")
    assert refused["metadata"]["field"] == "approval.number_digits"
    await policy(desk, "set", "sign_in.profile=nist-800-63b-4", "approval.number_digits=6")


async def test_a_change_that_changes_nothing_saves_nothing(desk: CommandDesk) -> None:
    assert "so nothing was saved" in await policy(desk, "set", "approval.number_digits=2")
    assert (await present(desk.live)).version == 1


async def test_ps12_users_and_groups_are_named_in_targets(desk: CommandDesk) -> None:
    live = desk.live
    ada, bob = await live.create_user("ada"), await live.create_user("bob")
    lab = await group_of(live, "lab", ada)
    said = await policy(desk, "set", "approval.targets.exclude_groups=lab", "approval.targets.include_users=ada,BOB")
    assert "Saved as version 2. The way back: `keyvouch admin policy rollback 1`." in said
    targets = (await present(live)).approval.targets
    assert (list(targets.exclude_groups), list(targets.include_users)) == ([lab], sorted([ada, bob]))
    await policy(desk, "set", f"approval.targets.include_users-={ada}", "approval.targets.exclude_groups+=LAB")
    targets = (await present(live)).approval.targets
    assert (list(targets.exclude_groups), list(targets.include_users)) == ([lab], [bob])
    await policy(
        desk, "set", "approval.targets.include_users+=ada", "approval.targets.everybody=no", "--accept-lock-out"
    )
    shown = (await policy(desk, "targets")).splitlines()
    row = next(line for line in shown if line.startswith("approval"))
    assert set(row.replace(",", "").split()) == {"approval", "on", "ada", "bob", "lab"}
    whole = await policy(desk, "show")
    assert f"{lab} is the group lab" in whole
    assert f"{bob} is the user bob" in whole
    unknown = await desk.refused("admin", "policy", "set", "approval.targets.exclude_users=nobody")
    assert unknown["reason"] == "user_unknown"
    outcome = await desk.run("admin", "policy", "set", "approval.targets.exclude_groups=nobody", "--json")
    assert (outcome.status, "no group" in outcome.error["message"]) == (2, True)
    made_up = await desk.refused("admin", "policy", "set", "approval.targets.exclude_groups=grp_" + "a" * 26)
    assert made_up["metadata"]["field"] == "approval.targets.exclude_groups"


async def test_ki8_rules_of_apps(desk: CommandDesk) -> None:
    live = desk.live
    assert await policy(desk, "app", "list") == "No app has a rule of its own.\n"
    await policy(desk, "app", "set", "bank", "--assurance", "hardware", "--phishing-resistant")
    await policy(desk, "app", "set", "shop", "--assurance", "any/software_gated/self")
    (bank, shop) = (await present(live)).apps
    assert (bank.app_id, bank.phishing_resistant) == ("bank", True)
    assert bank.required_assurance.protection == common_pb2.REQUIRED_PROTECTION_HARDWARE
    assert (shop.phishing_resistant, shop.required_assurance.provenance) == (False, common_pb2.PROVENANCE_SELF)
    said = await policy(desk, "app", "set", "bank", "--no-phishing-resistant")
    assert "apps.bank.phishing_resistant: true -> false" in said
    await policy(desk, "app", "set", "bank", "--assurance", "hardware/hardware_gated/attested/b,a")
    listed = [line.split() for line in (await policy(desk, "app", "list")).splitlines()]
    assert listed[1] == ["bank", "hardware/hardware_gated/attested/a,b", "no"]
    await policy(desk, "app", "remove", "bank")
    assert [one.app_id for one in (await present(live)).apps] == ["shop"]
    for words in (("remove", "bank"), ("set", "x", "--assurance", "strong"), ("set", "x", "--assurance", "any/x/self")):
        assert (await desk.run("admin", "policy", "app", *words)).status == 2
    ungated = await desk.refused("admin", "policy", "app", "set", "x", "--assurance", "any/none/unattested")
    assert ungated["metadata"]["field"] == "apps[1].required_assurance"


async def test_ki8_campaigns(desk: CommandDesk) -> None:
    live = desk.live
    ada = await live.create_user("ada")
    lab = await group_of(live, "lab", ada)
    assert await policy(desk, "campaign", "list") == "There is no campaign.\n"
    words = ("campaign", "set", "Keys for all", "--by", "2033-03-01", "--group", "lab", "--assurance", "hardware")
    said = await policy(desk, *words)
    assert [line.split() for line in said.splitlines() if line.startswith("ada ")] == [
        ["ada", "campaign", "Keys", "for", "all", "not", "asked", "due", "2033-03-01", "00:00", "method_required"]
    ]
    (campaign,) = (await present(live)).campaigns
    assert (campaign.name, campaign.required_by) == ("Keys for all", 1_993_248_000)
    assert (campaign.targets.everybody, list(campaign.targets.include_groups)) == (False, [lab])
    listed = await policy(desk, "campaign", "list")
    assert "2033-03-01 00:00" in listed
    assert "lab" in listed
    await policy(desk, "campaign", "set", "Keys for all", "--everybody", "--by", "2033-03-02T10:00+01:00")
    (campaign,) = (await present(live)).campaigns
    assert (campaign.targets.everybody, list(campaign.targets.include_groups)) == (True, [])
    assert campaign.required_by == 1_993_248_000 + 86400 + 9 * 3600
    assert campaign.required_assurance.protection == common_pb2.REQUIRED_PROTECTION_HARDWARE
    await policy(desk, "campaign", "remove", "Keys for all")
    assert not (await present(live)).campaigns
    for mistaken in (("remove", "Keys for all"), ("set", "x"), ("set", "x", "--by", "soon")):
        assert (await desk.run("admin", "policy", "campaign", *mistaken)).status == 2


async def test_ki7_history_differences_and_the_way_back(desk: CommandDesk) -> None:
    live = desk.live
    await save(live, longer)
    await save(live, longer)
    listed = [line.split() for line in (await policy(desk, "history")).splitlines()]
    assert [row[0] for row in listed] == ["VERSION", "3", "2", "1"]
    assert listed[1][3:] == ["admin", "approval.number_digits:", "3", "->", "4"]
    assert listed[3][3] == "server"
    assert (await desk.told("admin", "policy", "history", "--limit", "1"))["versions"][0]["version"] == 3
    assert await policy(desk, "diff", "2") == "approval.number_digits: 2 -> 3\n"
    assert await policy(desk, "diff", "1", "3") == "approval.number_digits: 2 -> 4\n"
    assert await policy(desk, "diff", "3", "1") == "approval.number_digits: 4 -> 2\n"
    assert "first one" in await policy(desk, "diff", "1")
    assert "the same" in await policy(desk, "diff", "2", "2")
    assert "approval.number_digits " in await policy(desk, "show", "--version", "1")
    assert (await desk.told("admin", "policy", "show", "--version", "2"))["approval"]["number_digits"] == 3
    dry = await policy(desk, "rollback", "1", "--dry-run")
    assert ("approval.number_digits: 4 -> 2" in dry, "Nothing was saved." in dry) == (True, True)
    said = await policy(desk, "rollback", "1")
    assert "Saved as version 4. The way back: `keyvouch admin policy rollback 3`." in said
    assert (await present(live)).approval.number_digits == 2
    for words in (
        ("rollback", "0"),
        ("history", "--limit", "0"),
        ("history", "--limit", "-1"),
        ("show", "--version", "x"),
    ):
        wrong = await desk.run("admin", "policy", *words)
        assert wrong.status == 2
        assert words[-1] in wrong.err
    for words in (("rollback", "9"), ("diff", "9"), ("show", "--version", "9")):
        assert (await desk.refused("admin", "policy", *words))["reason"] == "policy_version_unknown"


async def at_terminal(desk: CommandDesk, reply: bytes, *words: str) -> tuple[int, str]:
    """Run the command on a terminal and answer its question; returns its exit status and the screen."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keyvouch_client", "admin", "policy", *words),
        env=os.environ | {"KEYVOUCH_HOME": str(desk.home), "TZ": "UTC", "COLUMNS": "120"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    screen, asked = b"", False
    async with asyncio.timeout(60):
        while True:
            ended = process.returncode is not None
            with suppress(BlockingIOError, OSError):
                while data := os.read(ours, 65536):
                    screen += data
            if ended:
                break
            if b"Go on?" in screen and not asked:
                asked = os.write(ours, reply) > 0
            await asyncio.sleep(0.05)
    os.close(ours)
    return await process.wait(), screen.decode()


async def test_ps13_on_a_terminal_a_person_sees_the_change_and_is_asked(desk: CommandDesk) -> None:
    """A program is not asked: the other tests here have no terminal."""
    await desk.live.person("ada")
    change = ("set", "approval.targets.exclude_users=ada", "approval.number_digits=4")
    for words, reply, status, version in (
        (change, b"n\n", 1, 1),
        (change, b"\n", 1, 1),
        ((*change, "--yes"), b"", 0, 2),
        (("rollback", "1"), b"y\n", 0, 3),
    ):
        ended, screen = await at_terminal(desk, reply, *words)
        assert ended == status, screen
        assert ("Go on?" in screen) is bool(reply)
        assert screen.index("approval.number_digits:") < screen.index("Users affected: 1 of 2.")
        assert "method_not_targeted" in screen
        assert (await present(desk.live)).version == version
