"""The `keyvouch` command as people and scripts run it: in a process of its own, against a server that verifies."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from keyvouch.v1 import common_pb2
from support.command_line import Outcome, run_command, start_command
from support.fake_administration import CODE, FakeAdministration
from support.fake_sign_in_server import FakeServer
from support.fake_world import FakeWorld

PASS = "correct-horse-pass"


@dataclass
class Desk:
    """A person's machine: a state directory and a server to talk to."""

    world: FakeWorld
    administration: FakeAdministration
    server: FakeServer
    home: Path

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        return await start_command(*words, home=self.home)

    async def run(self, *words: str, fds: Iterable[int] = ()) -> Outcome:
        return await run_command(*words, home=self.home, fds=fds)

    def where(self, user: str = "ada") -> tuple[str, ...]:
        return ("--server", self.server.address, "--insecure-loopback", "--tenant", "example", "--user", user)

    async def sign_in(self, *more: str, state: int = common_pb2.SIGN_IN_STATE_APPROVED, user: str = "ada") -> Outcome:
        seen = sum(row.context.username == user for row in self.world.sign_ins.values())
        command = asyncio.create_task(self.run("sign-in", *self.where(user), *more))
        row = await self.world.row(user, seen + 1)
        await self.world.decide(row.sign_in_id, state)
        return await command


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    world = FakeWorld()
    administration = FakeAdministration(world)
    async with FakeServer(world, administration=administration) as server:
        yield Desk(world, administration, server, tmp_path / "state")


def secrets_of(world: FakeWorld) -> list[str]:
    tokens = [token for row in world.sessions.values() for token in row.refresh_tokens]
    return [PASS, *tokens, *(row.token for row in world.sign_ins.values()), "eyJ"]


def assert_no_secret(world: FakeWorld, *outcomes: Outcome) -> None:
    for outcome in outcomes:
        for secret in secrets_of(world):
            assert secret not in outcome.out + outcome.err


# signing in


async def test_a_person_signs_in_and_needs_no_flags_afterwards_PS4(desk: Desk) -> None:
    signed_in = await desk.sign_in()
    number = (await desk.world.row()).number
    assert signed_in.status == 0
    assert f"Number: {number}" in signed_in.err
    assert "On your device choose Approve, type this number" in signed_in.err
    assert "--access-pass" in signed_in.err
    assert "\N{FULL BLOCK}" in signed_in.err or "##" in signed_in.err
    assert signed_in.out.startswith("Signed in as ada until ")
    who = await desk.run("whoami")
    assert who.status == 0
    assert "global_administrator" in who.out
    assert "example" in who.out
    again = await desk.run("whoami", "--json")
    assert again.result["session"]["username"] == "ada"
    assert again.result["session"]["acr"] == "number-matched"
    assert_no_secret(desk.world, signed_in, who, again)


async def test_a_program_reads_the_number_while_the_command_waits(desk: Desk) -> None:
    process = await desk.start("sign-in", *desk.where(), "--json", "--app", "Bench", "--audience", "https://a.test")
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    row = await desk.world.row()
    assert (first["event"], first["number"]) == ("number", row.number)
    assert first["methods"] == ["approval", "access_pass"]
    assert (row.context.app_name, row.context.audience) == ("Bench", "https://a.test")
    await desk.world.decide(row.sign_in_id)
    out, err = await process.communicate()
    second = json.loads(out)
    assert (second["event"], second["session"]["app_name"]) == ("session", "Bench")
    assert (process.returncode, err) == (0, b"")
    assert_no_secret(desk.world, Outcome(0, out.decode(), err.decode()))


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (common_pb2.SIGN_IN_STATE_DENIED, "sign_in_denied"),
        (common_pb2.SIGN_IN_STATE_FAILED, "number_mismatch"),
        (common_pb2.SIGN_IN_STATE_EXPIRED, "sign_in_expired"),
        (common_pb2.SIGN_IN_STATE_SUPERSEDED, "sign_in_superseded"),
    ],
)
async def test_every_other_end_says_what_to_do_next(desk: Desk, state: int, reason: str) -> None:
    outcome = await desk.sign_in("--json", state=state)
    assert (outcome.status, outcome.error["reason"], outcome.error["kind"]) == (1, reason, "RefusedError")
    assert outcome.error["message"]
    assert outcome.error["fix"]
    assert not (desk.home / "session.json").exists()
    assert_no_secret(desk.world, outcome)


async def test_for_people_an_end_is_two_lines(desk: Desk) -> None:
    outcome = await desk.sign_in(state=common_pb2.SIGN_IN_STATE_FAILED)
    assert "keyvouch: The number typed on the device was not the number shown here." in outcome.err
    assert "Sign in again and type the new number" in outcome.err
    assert "Traceback" not in outcome.err


async def test_interrupting_withdraws_the_prompt(desk: Desk) -> None:
    process = await desk.start("sign-in", *desk.where(), "--json")
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(2)
    _, err = await process.communicate()
    row = await desk.world.row()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert row.state == common_pb2.SIGN_IN_STATE_CANCELLED


async def with_pass(desk: Desk, text: str, *more: str) -> Outcome:
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    try:
        return await desk.run(
            "sign-in", *desk.where(), "--access-pass-fd", str(reading), "--json", *more, fds=[reading]
        )
    finally:
        os.close(reading)


async def test_an_access_pass_comes_through_a_descriptor_T8(desk: Desk) -> None:
    outcome = await with_pass(desk, PASS + "\n")
    assert outcome.result["session"]["acr"] == "access-pass"
    assert (await desk.run("security-info", "--json")).status == 0
    assert_no_secret(desk.world, outcome)


async def test_a_wrong_access_pass_is_not_repeated_back_T17(desk: Desk) -> None:
    outcome = await with_pass(desk, "canary-wrong-pass")
    assert (outcome.status, outcome.error["reason"]) == (1, "access_pass_refused")
    assert "canary" not in outcome.out + outcome.err


async def test_without_a_terminal_a_pass_cannot_be_typed(desk: Desk) -> None:
    process = await asyncio.create_subprocess_exec(
        "setsid",
        sys.executable,
        "-m",
        "keyvouch_client",
        "sign-in",
        *desk.where(),
        "--access-pass",
        "--json",
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "KEYVOUCH_HOME": str(desk.home)},
    )
    _, err = await process.communicate()
    assert process.returncode == 2
    assert json.loads(err)["error"]["fix"] == "Use --access-pass-fd and a pipe."


# the stored session


async def test_the_stored_session_is_for_its_owner_alone(desk: Desk) -> None:
    await desk.sign_in()
    assert stat.S_IMODE(desk.home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in desk.home.iterdir()} == {0o600}


async def test_a_stored_session_others_can_read_is_refused(desk: Desk) -> None:
    await desk.sign_in()
    (desk.home / "session.json").chmod(0o640)
    outcome = await desk.run("whoami", "--json")
    assert (outcome.status, outcome.error["reason"]) == (1, "vault_permissions")
    (desk.home / "session.json").chmod(0o600)
    assert (await desk.run("whoami")).status == 0


async def test_the_stored_session_goes_to_no_other_server(desk: Desk) -> None:
    await desk.sign_in()
    outcome = await desk.run("whoami", "--server", "127.0.0.1:1", "--json")
    assert (outcome.status, outcome.error["reason"]) == (2, "usage")
    assert desk.server.address in outcome.error["message"]


async def test_a_broken_file_says_so_and_signing_in_mends_it(desk: Desk) -> None:
    await desk.sign_in()
    (desk.home / "session.json").write_text("{")
    assert (await desk.run("whoami", "--json")).error["reason"] == "ledger_corrupt"
    assert (await desk.sign_in()).status == 0
    assert (await desk.run("whoami")).status == 0


async def test_parallel_commands_share_one_rotation_of_tokens(desk: Desk) -> None:
    desk.world.access_seconds = 30
    await desk.sign_in()
    desk.world.access_seconds = 300
    outcomes = await asyncio.gather(*(desk.run("whoami", "--json") for _ in range(6)))
    assert [outcome.status for outcome in outcomes] == [0] * 6
    assert desk.world.calls.count("RefreshSession") == 1


async def test_tokens_of_a_refresh_are_kept(desk: Desk) -> None:
    desk.world.access_seconds = 30
    await desk.sign_in()
    for _ in range(4):
        assert (await desk.run("whoami")).status == 0
    (row,) = desk.world.sessions.values()
    assert len(row.refresh_tokens) == 5


async def test_signing_out_ends_the_session_and_remembers_where(desk: Desk) -> None:
    await desk.sign_in()
    out = await desk.run("sign-out", "--json")
    (row,) = desk.world.sessions.values()
    assert out.result == {"signed_out": True, "session_id": row.session.session_id}
    assert row.session.revoked
    missing = await desk.run("whoami", "--json")
    assert (missing.status, missing.error["reason"]) == (1, "credentials_missing")
    assert row.refresh_tokens[-1] not in (desk.home / "session.json").read_text()
    command = asyncio.create_task(desk.run("sign-in"))
    await desk.world.decide((await desk.world.row(count=2)).sign_in_id)
    assert (await command).status == 0


async def test_signing_out_of_an_ended_session_succeeds(desk: Desk) -> None:
    await desk.sign_in()
    (row,) = desk.world.sessions.values()
    row.session.revoked = True
    assert (await desk.run("whoami", "--json")).error["reason"] == "session_revoked"
    assert (await desk.run("sign-out")).out == "Signed out.\n"


async def test_signing_out_without_a_server_needs_forget(desk: Desk) -> None:
    await desk.sign_in()
    await desk.server.stop()
    refused = await desk.run("sign-out", "--json")
    assert (refused.status, refused.error["reason"]) == (1, "server_unreachable")
    assert (await desk.run("sign-out", "--forget")).status == 0
    await desk.server.start()
    assert (await desk.run("whoami", "--json")).error["reason"] == "credentials_missing"


async def test_sessions_are_listed_and_another_one_can_be_ended(desk: Desk) -> None:
    for _ in range(3):
        await desk.sign_in()
    listing = (await desk.run("sessions", "--json")).result
    assert len(listing["sessions"]) == 3
    other = next(s["session_id"] for s in listing["sessions"] if s["session_id"] != listing["current"])
    ended = await desk.run("sign-out", other, "--json")
    assert ended.result == {"signed_out": False, "session_id": other}
    assert len((await desk.run("sessions", "--json")).result["sessions"]) == 2
    assert len((await desk.run("sessions", "--all", "--json")).result["sessions"]) == 3
    assert (await desk.run("whoami")).status == 0


# the rest


async def test_security_info_makes_names_inert(desk: Desk) -> None:
    await desk.sign_in()
    shown = await desk.run("security-info")
    assert "\x1b" not in shown.out
    assert "Note: One device alone" in shown.out
    removed = await desk.run("security-info", "--remove", "dev_1")
    assert "removed" in removed.err


async def test_the_public_keys_need_no_session(desk: Desk) -> None:
    where = ("--server", desk.server.address, "--insecure-loopback")
    shown = await desk.run("jwks", *where)
    assert json.loads(shown.out)["keys"][0]["kid"] == "key-1"
    result = (await desk.run("jwks", *where, "--json")).result
    assert result["server_id"] == desk.world.server_id.hex()


async def test_administration_of_users_and_passes_T6(desk: Desk) -> None:
    await desk.sign_in()
    for name in ("bob", "cy", "dan"):
        made = await desk.run("admin", "user", "create", name, "--role", "global_reader", "--json")
        assert made.result["user"]["role"] == "global_reader"
    twice = await desk.run("admin", "user", "create", "bob", "--json")
    assert (twice.status, twice.error["kind"], twice.error["reason"]) == (1, "ConflictError", "user_exists")
    listing = await desk.run("admin", "user", "list")
    assert [line.split()[0] for line in listing.out.splitlines()] == ["USER", "bob", "cy", "dan"]
    deleted = await desk.run("admin", "user", "delete", "dan", "--json")
    assert deleted.result == {"removed_devices": 1, "revoked_sessions": 2}
    made = await desk.run("admin", "tap", "create", "bob", "--lifetime", "90", "--start", "2027-01-01T00:00Z")
    assert CODE in made.out
    assert "shown this once" in made.out
    assert "from 2027-01-01 00:00:00+00:00 until 2027-01-01 01:30:00+00:00" in made.out
    listed = await desk.run("admin", "pass", "list", "--json")
    assert listed.result["access_passes"][0]["usability"] == "enabled_by_policy"
    assert CODE not in listed.out
    assert (await desk.run("admin", "pass", "delete", "bob")).status == 0
    once = await desk.run("admin", "pass", "create", "cy", "--one-time", "--json")
    assert (once.result["code"], once.result["access_pass"]["one_time"]) == (CODE, True)


async def test_administration_of_tenants_devices_and_audit(desk: Desk) -> None:
    await desk.sign_in()
    made = await desk.run("admin", "tenant", "create", "second", "--administrator", "root")
    assert CODE in made.out
    assert "ten_example" in (await desk.run("admin", "tenant", "list")).out
    devices = (await desk.run("admin", "device", "list", "--json")).result["devices"]
    assert (devices[0]["assurance"]["protection"], devices[0]["credential_id"]) == ("tpm", "AQI")
    assert (devices[0]["tpm"]["health"], devices[0]["tpm"]["pin_limit"], devices[1]["tpm"]) == ("drifted", 3, None)
    assert (await desk.run("admin", "device", "remove", "dev_1")).status == 0
    records = (await desk.run("admin", "audit", "--limit", "250", "--json")).result["records"]
    assert [record["sequence"] for record in records] == list(range(500, 250, -1))
    assert "app=shop" in (await desk.run("admin", "audit", "--limit", "3")).out


async def test_what_a_tpm_drifted_to_is_shown_and_accepted(desk: Desk) -> None:
    await desk.sign_in()
    listed = (await desk.run("admin", "device", "list", "--utc")).out.splitlines()
    tpm = next(line for line in listed if "NPCT75x" in line)
    assert tpm.split() == [
        "dev_1", "Nuvoton", "NPCT75x", "7.2.4.1", "tpm-ek:NTC1", "3", "drifted", "2027-01-15", "08:00:00", "UTC",
    ]  # fmt: skip
    assert listed[-1] == "dev_1  pcr_changed: PCR 7 \N{REPLACEMENT CHARACTER}[31mis another one."
    accepted = await desk.run("admin", "device", "accept-health", "dev_1")
    assert "pcr_changed" in accepted.out
    assert desk.administration.tpm.health == common_pb2.HEALTH_STATE_GOOD
    again = await desk.run("admin", "device", "accept-health", "dev_1", "--json")
    assert again.result["device"]["tpm"]["findings"] == []
    missing = await desk.run("admin", "device", "accept-health", "dev_9", "--json")
    assert (missing.status, missing.error["reason"]) == (1, "device_unknown")


async def test_settings_that_do_not_exist_are_usage_errors(desk: Desk) -> None:
    await desk.sign_in()
    for setting in ("x", "=1", "nothing=1", "approval=1", "version=9", "approval.number_digits=six"):
        outcome = await desk.run("admin", "policy", "set", setting, "--json")
        assert (outcome.status, outcome.error["reason"]) == (2, "usage")
    assert desk.administration.policy.version == 3


MISTAKES: dict[tuple[str, ...], int] = {
    (): 2,
    ("nothing",): 2,
    ("admin",): 2,
    ("whoami",): 1,
    ("sign-in", "--server", "nowhere"): 2,
    ("sign-in", "--server", "localhost:1", "--tenant", "t"): 2,
    ("sign-in", "--access-pass", "secret"): 2,
    ("jwks",): 2,
    ("jwks", "--server", "example.org:443", "--insecure-loopback"): 2,
    ("jwks", "--server", "localhost:1", "--ca", "/nonexistent"): 2,
    ("jwks", "--server", "127.0.0.1:1", "--insecure-loopback"): 1,
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
async def test_mistakes_are_told_as_json_too(desk: Desk, words: tuple[str, ...]) -> None:
    outcome = await desk.run(*words, "--json")
    assert outcome.status == MISTAKES[words]
    assert outcome.out == ""
    assert {"kind", "reason", "message", "fix"} <= outcome.error.keys()


async def test_help_names_every_command(desk: Desk) -> None:
    shown = await desk.run("--help")
    assert shown.status == 0
    for command in ("sign-in", "whoami", "sessions", "sign-out", "security-info", "jwks", "admin", "completion"):
        assert command in shown.out
