"""What a policy would do, told before it is saved, on a real server (PS12, PS13, KI2, KI8)."""

from __future__ import annotations

import grpc
import pytest

from keyvouch.errors import Reason, RefusedError
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2, policies_pb2
from keyvouch_server.domain.model import User, UserKind
from keyvouch_server.use_cases.policy_effects import MOST_KEYS, MOST_TOLD
from support.live_server import LiveServer, refused
from support.policy_desk import (
    GATED,
    HARDWARE,
    Change,
    approvals_off,
    approvals_on,
    call,
    copies_of,
    group_of,
    in_hardware,
    keys_of,
    longer,
    methods_of,
    more_keys,
    present,
    preview,
    preview_all,
    roll_back,
    save,
)


def many_begins(policy: pb.Policy) -> None:
    policy.approval.begins_per_minute = 6000


async def id_of(live: LiveServer, username: str) -> str:
    users = await live.app.store.read(lambda tx: tx.find(User, {}))
    return next(user.id for user in users if user.username == username)


async def signs_in(live: LiveServer, username: str, **context: str) -> bool:
    """Whether a device of the user is asked, and its approval becomes a session."""
    person = live.people[username]
    try:
        opened = await live.begin(username, **context)
    except RefusedError:
        return False
    if (await live.audit("sign_in.begin"))[-1].outcome != "ok":  # a stranger is not told that somebody is left out
        return False
    prompt = await person.stream.prompt()
    assert (await person.stream.send(person.device.approve(prompt, opened.number))).accepted
    await opened.redeem()
    return True


async def test_ki2_enabling_a_method_names_everybody_whose_dormant_key_would_wake(live: LiveServer):
    await live.person("ada")
    await live.person("gus")
    await live.create_user("keyless")
    gus = await id_of(live, "gus")
    await live.app.store.write(lambda tx: tx.update(User, {"id": gus}, {"kind": UserKind.GUEST}))
    before = await save(live, approvals_off, accept=True)
    told = await preview(live, approvals_on)
    woken = {("admin", "approval", ""), ("ada", "approval", ""), ("gus", "approval", "")}
    assert methods_of(told) == dict.fromkeys(woken, (False, True, "method_disabled"))
    assert keys_of(told) == {name: [(False, True, "method_disabled")] for name in ("admin", "ada", "gus")}
    assert told.examined == 4
    assert [(d.setting, d.before, d.after) for d in told.differences] == [("approval.enabled", "false", "true")]
    assert await present(live) == before  # nothing was saved
    assert len(await live.audit("policy.update")) == 1


async def test_ps13_a_preview_tells_what_then_comes_to_pass(live: LiveServer):
    """The control: whoever is not named fares as before."""
    for name in ("ada", "bob"):
        await live.person(name)
    await save(live, many_begins)
    ada, bob = await id_of(live, "ada"), await id_of(live, "bob")
    lab = await group_of(live, "lab", ada)

    def but_ada(policy: pb.Policy) -> None:
        policy.approval.targets.exclude_users.append(ada)

    def but_the_lab(policy: pb.Policy) -> None:
        policy.approval.targets.exclude_groups.append(lab)

    def the_lab_only(policy: pb.Policy) -> None:
        policy.approval.targets.everybody = False
        policy.approval.targets.include_groups.append(lab)

    def the_lab_but_ada(policy: pb.Policy) -> None:
        the_lab_only(policy)
        policy.approval.targets.include_users.append(bob)
        policy.approval.targets.exclude_users.append(ada)

    start = await present(live)
    cases: list[tuple[Change, dict[str, bool]]] = [
        (longer, {"ada": True, "bob": True}),
        (but_ada, {"ada": False, "bob": True}),
        (but_the_lab, {"ada": False, "bob": True}),
        (the_lab_only, {"ada": True, "bob": False}),
        (the_lab_but_ada, {"ada": False, "bob": True}),
        (in_hardware, {"ada": False, "bob": False}),
        (approvals_off, {"ada": False, "bob": False}),
    ]
    for change, expected in cases:
        told = methods_of(await preview(live, change))
        for name, usable in expected.items():
            assert told.get((name, "approval", ""), (True, True, ""))[:2] == (True, usable), (change, name)
        await save(live, change, accept=True)
        for name, usable in expected.items():
            assert await signs_in(live, name) is usable, (change, name)
        await roll_back(live, start.version)


async def test_ps12_targets_name_users_and_groups_and_excludes_win(live: LiveServer):
    await live.person("ada")
    ada = await id_of(live, "ada")
    lab = await group_of(live, "lab", ada)

    def in_and_out(policy: pb.Policy) -> None:
        policy.approval.targets.include_users.append(ada)
        policy.approval.targets.exclude_groups.append(lab)

    told = await preview(live, in_and_out)
    assert methods_of(told) == {("ada", "approval", ""): (True, False, "method_not_targeted")}
    assert keys_of(told) == {"ada": [(True, False, "method_not_targeted")]}
    await save(live, in_and_out)
    opened = await live.begin("ada")  # a stranger's request waits, and comes to nobody
    assert (await live.audit("sign_in.begin"))[-1].outcome == Reason.METHOD_NOT_TARGETED.value
    assert opened.number


async def test_ki8_a_rule_for_one_app_is_told_for_that_app(live: LiveServer):
    await live.person("ada")
    await save(live, many_begins)

    def bank_in_hardware(policy: pb.Policy) -> None:
        policy.apps.add(app_id="bank", required_assurance=HARDWARE)

    def bank_unrelayed(policy: pb.Policy) -> None:
        policy.apps.add(app_id="bank", required_assurance=GATED, phishing_resistant=True)

    for change, reason in ((bank_in_hardware, "assurance_too_low"), (bank_unrelayed, "strength_required")):
        told = await preview(live, change)
        expected = (True, False, reason)
        assert methods_of(told) == {(name, "approval", "bank"): expected for name in ("admin", "ada")}
        assert not keys_of(told)  # the keys go on counting everywhere else
    assert await signs_in(live, "ada", app_id="bank")
    await save(live, bank_in_hardware)
    assert not await signs_in(live, "ada", app_id="bank")
    assert await signs_in(live, "ada", app_id="shop")


async def test_ki8_a_campaign_names_those_who_have_to_register(live: LiveServer):
    await live.person("ada")
    await live.create_user("keyless")
    day = live.clock.now() + 86400

    def any_key(policy: pb.Policy) -> None:
        targets = pb.Targets(everybody=True)
        policy.campaigns.add(name="Keys", targets=targets, required_assurance=GATED, required_by=day)

    told = await preview(live, any_key)
    assert [
        (u.username, [(c.name, c.required_by_before, c.required_by_after) for c in u.campaigns]) for u in told.users
    ] == [("keyless", [("Keys", 0, day)])]
    await save(live, any_key)

    def a_day_later(policy: pb.Policy) -> None:
        policy.campaigns[0].required_by = day + 86400

    (user,) = (await preview(live, a_day_later)).users
    assert (user.username, user.campaigns[0].required_by_before) == ("keyless", day)
    assert user.campaigns[0].required_by_after == day + 86400


async def test_ki2_a_pass_that_would_not_open_a_session_any_more_is_told(live: LiveServer):
    for name in ("ada", "bob", "cy"):
        await live.create_user(name)
    await live.issue_pass("ada")
    await live.issue_pass("bob", start_at=live.clock.now() + 3600)  # for later

    def passes_off(policy: pb.Policy) -> None:
        policy.access_pass.enabled = False

    told = methods_of(await preview(live, passes_off))
    assert {name for name, method, _ in told if method == "access_pass"} >= {"ada", "bob"}
    assert told["ada", "access_pass", ""] == (True, False, "method_disabled")
    assert told["bob", "access_pass", ""] == (True, False, "method_disabled")
    assert not any(name == "cy" for name, _, _ in told)


async def test_a_preview_comes_in_pages_and_looks_at_no_more_than_was_asked(live: LiveServer):
    await live.person("ada")
    names = await copies_of(live, "ada", 7)
    policy = await present(live)
    in_hardware(policy)
    request = policies_pb2.PreviewPolicyRequest(policy=policy, page=common_pb2.PageRequest(size=2))
    first: policies_pb2.PreviewPolicyResponse = await call(live, "PreviewPolicy", request)
    assert first.examined == 2
    assert first.next_token
    whole = await preview_all(live, request)
    assert whole.examined == 9
    assert sorted(user.username for user in whole.users) == sorted([*names, "ada", "admin"])
    assert whole.users == (await preview(live, in_hardware, size=200)).users
    approvals_off(request.policy)  # a token of another question leads nowhere
    request.page.token = first.next_token
    with refused(Reason.FIELD_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await call(live, "PreviewPolicy", request)
    assert refusal.error.metadata["field"] == "page.token"


async def test_a_page_of_a_preview_that_has_much_to_tell_is_shorter(live: LiveServer):
    await live.person("ada")
    await copies_of(live, "ada", 20)

    def many_apps(policy: pb.Policy) -> None:
        for n in range(64):
            policy.apps.add(app_id=f"app{n}", required_assurance=HARDWARE)

    policy = await present(live)
    many_apps(policy)
    request = policies_pb2.PreviewPolicyRequest(policy=policy)
    page: policies_pb2.PreviewPolicyResponse = await call(live, "PreviewPolicy", request)
    assert page.examined == -(-MOST_TOLD // 64)
    whole = await preview_all(live, request)
    assert whole.examined == 22
    assert len(methods_of(whole)) == 22 * 64


async def test_a_preview_says_why_its_author_could_not_sign_in_again(live: LiveServer):
    assert "switched off" in (await preview(live, approvals_off)).locks_out
    assert "hardware" in (await preview(live, in_hardware)).locks_out
    assert (await preview(live, longer)).locks_out == ""


async def test_a_preview_is_of_the_present_policy_or_of_none(live: LiveServer):
    policy = await present(live)
    await save(live, longer)
    with refused(Reason.POLICY_CHANGED, status=grpc.StatusCode.ABORTED):
        await call(live, "PreviewPolicy", policies_pb2.PreviewPolicyRequest(policy=policy))

    def zero(policy: pb.Policy) -> None:
        policy.approval.number_digits = 0

    with refused(Reason.POLICY_INVALID) as refusal:
        await preview(live, zero)
    assert refusal.error.metadata["field"] == "approval.number_digits"


async def test_a_page_ends_where_those_on_it_have_many_keys(live: LiveServer):
    """Nobody else is served while a page is made."""
    for name in ("ada", "bob", "cyd"):
        await live.person(name)
        await more_keys(live, name, MOST_KEYS // 2)
    policy = await present(live)
    in_hardware(policy)
    request = policies_pb2.PreviewPolicyRequest(policy=policy, page=common_pb2.PageRequest(size=200))
    page = await call(live, "PreviewPolicy", request)
    assert 2 <= page.examined < 4
    assert page.next_token
    told = await preview_all(live, request)
    assert told.examined == 4
    assert sum(len(keys) for keys in keys_of(told).values()) == 3 * (MOST_KEYS // 2 + 1) + 1


# who is named


@pytest.mark.parametrize("part", ["approval", "access_pass", "security_key", "campaigns"])
async def test_ps12_ids_that_nobody_has_are_refused_by_field(live: LiveServer, part: str):
    ada = await live.create_user("ada")
    group = await group_of(live, "lab", ada)
    _, other = await live.tenant("other")
    abroad = (await live.administer("ListUsers", pb.ListUsersRequest(), other.metadata)).users[0].user_id

    def naming(name: str, one: str) -> Change:
        def change(policy: pb.Policy) -> None:
            if part == "campaigns":
                policy.campaigns.add(name="x", targets=pb.Targets(), required_assurance=GATED, required_by=1)
            targets = policy.campaigns[0].targets if part == "campaigns" else getattr(policy, part).targets
            getattr(targets, name).append(one)

        return change

    where = "campaigns[0].targets" if part == "campaigns" else f"{part}.targets"
    for name, one in (
        ("include_users", "usr_" + "a" * 26),
        ("exclude_users", "ada"),
        ("include_users", abroad),
        ("exclude_users", group),
        ("include_groups", ada),
        ("exclude_groups", "grp_" + "a" * 26),
        ("exclude_groups", ""),
    ):
        for act in (save, preview):
            with refused(Reason.POLICY_INVALID, status=grpc.StatusCode.INVALID_ARGUMENT) as refusal:
                await act(live, naming(name, one))
            assert refusal.error.metadata["field"] == f"{where}.{name}"
    for name, one in (("exclude_users", ada), ("exclude_groups", group)):
        await preview(live, naming(name, one))
    await save(live, naming("exclude_users", ada), accept=True)


async def test_a_policy_may_go_on_naming_who_was_deleted_since(live: LiveServer):
    ada = await live.create_user("ada")

    def but_ada(policy: pb.Policy) -> None:
        policy.approval.targets.exclude_users.append(ada)

    await save(live, but_ada)
    await live.administer("DeleteUser", pb.DeleteUserRequest(username="ada"))
    await save(live, longer)

    def in_passes_too(policy: pb.Policy) -> None:
        policy.security_key.targets.exclude_users.append(ada)

    await save(live, in_passes_too)  # known once, and harmless: ids are never used again
