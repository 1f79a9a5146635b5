"""`keyvouch admin` against a real server: every command with its words, its JSON and its refusals."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path

import pytest

from keyvouch.statement import Decision
from keyvouch_server.domain.model import Role
from support.command_line import CommandDesk, desk_of
from support.live_server import ADMINISTRATOR, LiveServer


@pytest.fixture
async def desk(live: LiveServer, tmp_path: Path) -> CommandDesk:
    """The first administrator's machine."""
    await live.admin()
    signed_in = await live.signed_in(live.people[ADMINISTRATOR])
    return desk_of(live, ADMINISTRATOR, signed_in, tmp_path / "state")


def first_words(text: str) -> list[str]:
    """The first word of each line of a table, without its titles."""
    return [line.split()[0] for line in text.splitlines()[1:]]


# users and groups


async def test_a_user_is_made_shown_changed_and_removed(desk: CommandDesk) -> None:
    made = await desk.done("admin", "user", "create", "ada", "--display-name", "Ada Lovelace", "--alias", "countess")
    assert "User ada is made. Next: `keyvouch admin pass create ada`" in made.out
    shown = await desk.done("admin", "user", "show", "countess")
    for line in ("user     ada", "name     Ada Lovelace", "also     countess", "role     user", "kind     member"):
        assert line in shown.out
    assert "No device is registered." in shown.out
    told = await desk.told("admin", "user", "update", "ada", "--name", "augusta", "--guest")
    assert (told["user"]["username"], told["user"]["kind"]) == ("augusta", "guest")
    role = await desk.done("admin", "user", "update", "augusta", "--role", "global_reader", "--member")
    assert "Role: global_reader. Sessions ended: 0" in role.out
    named = await desk.done("admin", "user", "alias", "add", "augusta", "ada")
    assert named.out.startswith("augusta signs in as: augusta, ")
    assert (await desk.told("admin", "user", "alias", "remove", "augusta", "countess"))["user"]["aliases"] == ["ada"]
    assert set(first_words((await desk.done("admin", "user", "list")).out)) == {ADMINISTRATOR, "augusta"}
    assert (await desk.told("admin", "user", "delete", "augusta"))["removed_devices"] == 0
    assert (await desk.refused("admin", "user", "show", "augusta"))["reason"] == "user_unknown"


async def test_a_guest_is_made_with_a_word_on_what_guests_cannot_do_T14(desk: CommandDesk) -> None:
    made = await desk.done("admin", "user", "create", "gus", "--guest")
    assert "A guest cannot use an access pass" in made.out
    assert "global_reader, guest" not in (await desk.done("admin", "user", "list")).out
    assert "user, guest" in (await desk.done("admin", "user", "list")).out


async def test_refusals_of_the_directory_say_what_to_do(desk: CommandDesk) -> None:
    await desk.done("admin", "user", "create", "ada")
    assert (await desk.refused("admin", "user", "create", "ADA"))["reason"] == "user_exists"
    assert (await desk.refused("admin", "user", "alias", "remove", "ada", "x"))["reason"] == "alias_unknown"
    assert (await desk.refused("admin", "group", "show", "nobody"))["reason"] == "group_unknown"
    own = await desk.refused("admin", "user", "update", ADMINISTRATOR, "--role", "user")
    assert own["reason"] in ("self_forbidden", "last_administrator")


async def test_a_group_and_its_members(desk: CommandDesk) -> None:
    for name in ("ada", "bob"):
        await desk.done("admin", "user", "create", name)
    made = await desk.done("admin", "group", "create", "engineers", "--description", "who build the engine")
    assert "Next: `keyvouch admin group add engineers USER ...`" in made.out
    added = await desk.done("admin", "group", "add", "engineers", "ada", "bob")
    assert "bob is a member." in added.err
    assert set(first_words((await desk.done("admin", "group", "show", "engineers")).out)) == {"ada", "bob"}
    listed = (await desk.told("admin", "group", "list"))["groups"]
    assert [(item["name"], item["member_count"]) for item in listed] == [("engineers", 2)]
    assert "who build the engine" in (await desk.done("admin", "group", "list")).out
    assert [group["name"] for group in (await desk.told("admin", "user", "show", "ada"))["groups"]] == ["engineers"]
    assert (await desk.refused("admin", "group", "add", "engineers", "nobody"))["reason"] == "user_unknown"
    await desk.done("admin", "group", "remove", "engineers", "ada")
    assert len((await desk.told("admin", "group", "show", "engineers"))["users"]) == 1
    assert (await desk.told("admin", "group", "delete", "engineers"))["deleted"] == "engineers"
    assert (await desk.told("admin", "group", "list"))["groups"] == []


# passes


async def test_a_pass_is_replaced_only_with_a_word_on_the_sessions_T12_KI11(
    desk: CommandDesk, live: LiveServer
) -> None:
    ada = await live.person("ada")
    signed_in = await live.signed_in(ada)
    unsaid = await desk.run("admin", "pass", "replace", "ada", "--json")
    assert (unsaid.status, unsaid.error["reason"]) == (2, "usage")
    kept = await desk.done("admin", "pass", "replace", "ada", "--keep-sessions")
    assert "Hand it over in person" in kept.out
    assert not (await signed_in.introspect()).session.revoked
    told = await desk.told("admin", "tap", "replace", "ada", "--revoke-sessions", "--one-time")
    assert told["access_pass"]["one_time"] is True
    assert told["revoked_sessions"] >= 1
    assert told["code"] not in (await desk.done("admin", "pass", "list", "--json")).out
    await desk.done("admin", "user", "create", "bob")
    assert (await desk.refused("admin", "pass", "replace", "bob", "--keep-sessions"))["reason"] == "access_pass_none"


async def test_a_new_pass_says_what_to_type_with_it_or_that_it_opens_nothing(desk: CommandDesk) -> None:
    for words in (("ada",), ("gus", "--guest")):
        await desk.done("admin", "user", "create", *words)
    made = await desk.done("admin", "pass", "create", "ada")
    assert "keyvouch-agent enroll --server " in made.out
    assert made.out.rstrip().endswith(" --tenant example --user ada")
    guest = (await desk.done("admin", "pass", "create", "gus")).out
    assert "it opens nothing" in guest
    assert "keyvouch-agent enroll" not in guest


async def test_a_full_disk_is_told_without_a_traceback(desk: CommandDesk) -> None:
    process = await asyncio.create_subprocess_shell(
        f"{shlex.quote(sys.executable)} -m keyvouch_client admin user list > /dev/full",
        env={**os.environ, "KEYVOUCH_HOME": str(desk.home)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"No space left on device" in err
    assert b"Traceback" not in err


async def test_a_pass_for_one_device_says_so(desk: CommandDesk) -> None:
    for name in ("ada", "bob"):
        await desk.done("admin", "user", "create", name)
    digest = "5a" * 32
    bound = await desk.done("admin", "pass", "create", "ada", "--ek", digest)
    assert f"It registers the TPM whose endorsement key is {digest}, and nothing else." in bound.out
    model = "2fc0579f-8113-47ea-b116-bb5a8db9202a"
    told = await desk.told("admin", "pass", "create", "bob", "--aaguid", model)
    assert told["access_pass"]["binding"]["aaguid"] == model
    listed = await desk.done("admin", "pass", "list")
    assert {line.split()[-2] for line in listed.out.splitlines()[1:]} == {"one"}
    wrong = await desk.run("admin", "pass", "create", "ada", "--ek", "5a5a", "--json")
    assert (wrong.status, wrong.error["fix"]) == (2, "Write its 64 hexadecimal digits.")


# sessions


async def test_sessions_of_the_tenant_are_listed_and_ended(desk: CommandDesk, live: LiveServer) -> None:
    ada = await live.person("ada")
    first, second = await live.signed_in(ada), await live.signed_in(ada)
    listed = await desk.done("admin", "session", "list", "ada")
    assert listed.out.count("Shop") == 2
    assert first.session.session_id in listed.out
    one = await desk.told("admin", "session", "revoke", "--session", first.session.session_id)
    assert one == {"revoked_sessions": 1}
    left = (await desk.told("admin", "session", "list", "ada"))["sessions"]
    assert [item["session_id"] for item in left if item["acr"] == "number-matched"] == [second.session.session_id]
    everything = (await desk.told("admin", "session", "list", "ada", "--all"))["sessions"]
    assert next(item for item in everything if item["session_id"] == first.session.session_id)["revoke_reason"]
    assert (await desk.told("admin", "session", "revoke", "--device", ada.device.device_id))["revoked_sessions"] == 1
    await live.signed_in(ada)
    assert "Sessions ended: 2." in (await desk.done("admin", "session", "revoke", "--user", "ada")).out


async def test_the_whole_tenant_is_signed_out_only_by_who_says_so_twice(desk: CommandDesk, live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.signed_in(ada)
    unsure = await desk.run("admin", "session", "revoke", "--whole-tenant", "--json")
    assert (unsure.status, unsure.error["fix"]) == (2, "Say that you mean it, with --yes.")
    assert (await desk.told("admin", "session", "revoke", "--whole-tenant", "--yes"))["revoked_sessions"] >= 1
    assert (await desk.told("admin", "session", "list", "ada"))["sessions"] == []
    assert (await desk.done("whoami")).out


# risk events


async def test_a_reported_sign_in_is_an_event_until_somebody_has_looked_PS5(
    desk: CommandDesk, live: LiveServer
) -> None:
    assert "Nobody has to look at anything." in (await desk.done("admin", "risk", "list", "--open")).out
    ada = await live.person("ada")
    await live.begin("ada")
    await ada.stream.send(ada.device.refuse(await ada.stream.prompt(), Decision.REPORT))
    (event,) = (await desk.told("admin", "risk", "list", "--open"))["events"]
    assert (event["kind"], event["username"]) == ("reported", "ada")
    shown = await desk.done("admin", "risk", "list", "ada")
    assert f"open: `keyvouch admin risk close {event['risk_event_id']}`" in shown.out
    assert "! said of a sign-in" in (await desk.done("admin", "user", "list")).out
    assert "They said of a sign-in that it was not them" in (await desk.done("admin", "user", "show", "ada")).out
    closed = await desk.done("admin", "risk", "close", event["risk_event_id"])
    assert closed.out == "Closed. The mark on ada goes with the last open one.\n"
    assert (await desk.told("admin", "risk", "list", "--open"))["events"] == []
    assert "looked at by" in (await desk.done("admin", "risk", "list")).out
    assert "! said" not in (await desk.done("admin", "user", "list")).out
    assert (await desk.refused("admin", "risk", "close", "rsk_nothing"))["reason"] == "risk_event_unknown"


# explanations, receipts, checkpoints


async def test_a_sign_in_is_explained_rule_by_rule(desk: CommandDesk, live: LiveServer) -> None:
    ada = await live.person("ada")
    opened = await live.approved(ada)
    await opened.redeem()
    shown = await desk.done("admin", "explain", opened.begun.sign_in_id)
    assert shown.out.splitlines()[0].split() == ["RULE", "VERDICT", "DETAIL"]
    assert "The sign-in is consumed." in shown.out
    assert not any(line.startswith(">") for line in shown.out.splitlines())
    told = await desk.told("admin", "explain", opened.begun.sign_in_id)
    assert {rule["outcome"] for rule in told["rules"]} <= {"allowed", "not_concerned"}
    assert (await desk.refused("admin", "explain", "sgn_nothing"))["reason"] == "sign_in_unknown"


async def test_what_would_happen_is_explained_and_the_deciding_rule_is_marked(
    desk: CommandDesk, live: LiveServer
) -> None:
    await live.person("ada")
    fine = await desk.done("admin", "explain", "--user", "ada", "--app", "shop")
    assert "It would be allowed." in fine.out
    asked = ("admin", "explain", "--user", "ada", "--app", "shop", "--phishing-resistant")
    refused = await desk.done(*asked)
    marked = [line for line in refused.out.splitlines() if line.startswith(">")]
    assert len(marked) == 1
    rule, verdict = marked[0].split()[1:3]
    assert verdict == "refused"
    assert f"It would be refused. {rule} decided." in refused.out
    told = await desk.told(*asked)
    assert told["allowed"] is False
    assert next(item["rule"] for item in told["rules"] if item["outcome"] == "refused") == rule


async def test_a_question_may_ask_for_a_better_key(desk: CommandDesk, live: LiveServer) -> None:
    await live.person("ada")
    asked = ("admin", "explain", "--user", "ada", "--app", "shop", "--assurance")
    assert (await desk.told(*asked, "any"))["allowed"] is True
    assert (await desk.told(*asked, "hardware"))["allowed"] is False


@pytest.mark.parametrize("words", [(), ("--user", "ada"), ("--app", "shop"), ("sgn_1", "--app", "shop")], ids=" ".join)
async def test_half_a_question_is_no_question(desk: CommandDesk, words: tuple[str, ...]) -> None:
    outcome = await desk.run("admin", "explain", *words, "--json")
    assert (outcome.status, outcome.error["reason"]) == (2, "usage")


async def test_a_receipt_goes_into_a_new_file_or_down_the_pipe(
    desk: CommandDesk, live: LiveServer, tmp_path: Path
) -> None:
    ada = await live.person("ada")
    opened = await live.approved(ada)
    await opened.redeem()
    file = tmp_path / "receipt.cbor"
    written = await desk.done("admin", "receipt", opened.begun.sign_in_id, "--out", str(file))
    assert f"`keyvouch verify {file} --explain`" in written.out
    assert (file.stat().st_mode & 0o777, file.read_bytes()[:1] != b"") == (0o600, True)
    again = await desk.run("admin", "receipt", opened.begun.sign_in_id, "--out", str(file), "--json")
    assert (again.status, again.error["fix"]) == (2, "Name another one.")
    assert (await desk.told("admin", "receipt", opened.begun.sign_in_id))["receipt"]
    pending = await live.begin("ada")
    assert (await desk.refused("admin", "receipt", pending.begun.sign_in_id))["reason"] == "sign_in_unknown"


async def test_checkpoints_of_the_audit_log_are_listed(desk: CommandDesk) -> None:
    told = await desk.told("admin", "audit", "checkpoints")
    assert isinstance(told["checkpoints"], list)
    assert (await desk.done("admin", "audit", "checkpoints")).out
    assert (await desk.told("admin", "audit", "--limit", "3"))["records"]


async def test_who_may_not_is_told_which_role_it_takes(live: LiveServer, tmp_path: Path) -> None:
    ada = await live.person("ada", Role.USER)
    desk = desk_of(live, "ada", await live.signed_in(ada), tmp_path / "state")
    for words in (
        ("user", "show", "ada"), ("group", "list"), ("session", "list"), ("risk", "list"),
        ("session", "revoke", "--user", "ada"), ("explain", "--user", "ada", "--app", "shop"), ("audit", "checkpoints"),
    ):  # fmt: skip
        assert (await desk.refused("admin", *words))["reason"] == "role_required", words
