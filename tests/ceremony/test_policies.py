"""Policies on a real server: versions, the way back, and who changes them (PS13, KI7, T3, T4)."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from keyvouch.errors import ConflictError, Reason
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import policies_pb2
from keyvouch_server.domain.model import PolicyVersion, Role, User, UserGroup
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.policy_check import MOST_APPS
from keyvouch_server.use_cases.policies import MOST_VERSIONS
from support.live_server import LiveServer, refused
from support.policy_desk import (
    GATED,
    Change,
    approvals_off,
    approvals_on,
    call,
    group_of,
    in_hardware,
    longer,
    nothing_new,
    present,
    preview,
    preview_all,
    roll_back,
    save,
)

ADMINISTRATORS = [role for role in Role if role is not Role.USER]
RULERS = [Role.GLOBAL_ADMINISTRATOR, Role.AUTHENTICATION_POLICY_ADMINISTRATOR]


async def id_of(live: LiveServer, username: str) -> str:
    users = await live.app.store.read(lambda tx: tx.find(User, {}))
    return next(user.id for user in users if user.username == username)


async def test_ki7_every_version_stays_with_what_it_changed(live: LiveServer):
    for change in (longer, in_hardware, approvals_off):
        await save(live, change, accept=True)
    listed = (await call(live, "ListPolicyVersions", policies_pb2.ListPolicyVersionsRequest())).versions
    assert [one.version for one in listed] == [4, 3, 2, 1]
    assert [[d.setting for d in one.differences] for one in listed] == [
        ["approval.enabled"],
        [f"approval.required_assurance.{name}" for name in ("protection", "verification", "provenance")],
        ["approval.number_digits"],
        [],
    ]
    admin = await id_of(live, "admin")
    assert [one.created_by for one in listed] == [admin, admin, admin, "server"]
    assert all(one.created_at for one in listed)
    for one in listed:
        told = await call(live, "GetPolicyVersion", policies_pb2.GetPolicyVersionRequest(version=one.version))
        assert told.saved == one
        assert told.policy.version == one.version
        assert told.policy.approval.number_digits == (2 if one.version == 1 else 3)


async def test_versions_come_in_pages(live: LiveServer):
    for _ in range(MOST_VERSIONS + 2):
        await save(live, nothing_new)
    found: list[int] = []
    request = policies_pb2.ListPolicyVersionsRequest()
    while True:
        page = await call(live, "ListPolicyVersions", request)
        assert len(page.versions) <= MOST_VERSIONS
        found += [one.version for one in page.versions]
        if not page.next_token:
            break
        request.page.token = page.next_token
    assert found == list(range(MOST_VERSIONS + 3, 0, -1))


async def test_versions_that_differ_in_much_come_in_shorter_pages(live: LiveServer):
    """A page fits into what clients take."""
    for n in range(MOST_VERSIONS):

        def other_apps(policy: pb.Policy, n: int = n) -> None:
            del policy.apps[:]
            for app in range(MOST_APPS):
                policy.apps.add(app_id=f"{'ab'[n % 2] * 120}{app}", required_assurance=GATED)

        await save(live, other_apps)
    request, found = policies_pb2.ListPolicyVersionsRequest(), []
    while True:
        page = await call(live, "ListPolicyVersions", request)
        assert 0 < len(page.versions) < MOST_VERSIONS
        found += [one.version for one in page.versions]
        if not page.next_token:
            break
        request.page.token = page.next_token
    assert found == list(range(MOST_VERSIONS + 1, 0, -1))


@pytest.mark.parametrize("version", [0, -1, 2, 2**62])
async def test_a_version_that_never_was_is_unknown(live: LiveServer, version: int):
    unknown, not_found = Reason.POLICY_VERSION_UNKNOWN, grpc.StatusCode.NOT_FOUND
    with refused(unknown, status=not_found):
        await call(live, "GetPolicyVersion", policies_pb2.GetPolicyVersionRequest(version=version))
    with refused(unknown, status=not_found):
        request = policies_pb2.RollBackPolicyRequest(version=version, present_version=1)
        await call(live, "RollBackPolicy", request)
    if version:
        with refused(unknown, status=not_found):
            await call(live, "PreviewPolicy", policies_pb2.PreviewPolicyRequest(roll_back_to=version))


async def test_ps13_a_policy_is_rolled_back_to_a_new_version_with_old_rules(live: LiveServer):
    first = await present(live)
    await save(live, longer)
    second = await save(live, longer)
    told = await preview_all(live, policies_pb2.PreviewPolicyRequest(roll_back_to=1))
    assert [(d.setting, d.before, d.after) for d in told.differences] == [("approval.number_digits", "4", "2")]
    back = await roll_back(live, 1)
    assert back.version == second.version + 1
    assert await present(live) == back
    back.version = first.version
    assert back == first
    record = (await live.audit("policy.roll_back"))[-1]
    assert (record.subject, record.outcome, json.loads(record.details)) == ("4", "ok", {"rules_of": "1"})
    forward = await roll_back(live, 3)
    assert (forward.version, forward.approval.number_digits) == (5, 4)


async def test_ps13_who_rolls_back_has_to_have_seen_the_present_policy(live: LiveServer):
    await save(live, longer)
    for seen in (0, 1, 3):
        with refused(Reason.POLICY_CHANGED, status=grpc.StatusCode.ABORTED) as refusal:
            await call(live, "RollBackPolicy", policies_pb2.RollBackPolicyRequest(version=1, present_version=seen))
        assert refusal.error.metadata["version"] == "2"


async def test_ki7_the_way_back_does_not_lock_out_either(live: LiveServer):
    await save(live, approvals_off, accept=True)
    await save(live, approvals_on, accept=True)
    told = await preview_all(live, policies_pb2.PreviewPolicyRequest(roll_back_to=2))
    assert "switched off" in told.locks_out
    with refused(Reason.POLICY_LOCKS_OUT, status=grpc.StatusCode.FAILED_PRECONDITION):
        await roll_back(live, 2)
    assert (await live.audit("policy.roll_back"))[-1].outcome == Reason.POLICY_LOCKS_OUT.value
    assert (await present(live)).version == 3
    assert not (await roll_back(live, 2, accept=True)).approval.enabled


async def test_ki7_rules_of_an_older_release_come_back_with_the_defaults_of_what_they_did_not_know(live: LiveServer):
    """As releases before this one wrote them: no targets, no apps, and ten sign-ins a minute."""
    await live.admin()
    tenant = (await live.app.store.read(lambda tx: tx.find(User, {})))[0].tenant_id
    old = json.loads(Policy(version=2).document())
    for part in ("sign_in", "apps", "campaigns"):
        del old[part]
    for part in ("approval", "access_pass", "security_key"):
        del old[part]["targets"]
    old["approval"]["begins_per_minute"] = 10
    row = PolicyVersion(tenant, 2, json.dumps(old), 1, "server")
    await live.app.store.write(lambda tx: tx.insert(row))
    assert (await present(live)).approval.begins_per_minute == 10
    await save(live, longer)
    back = await roll_back(live, 2)
    assert (back.version, back.approval.number_digits, back.approval.begins_per_minute) == (4, 2, 10)
    assert back.approval.targets == pb.Targets(everybody=True)
    assert not back.apps


async def test_ki7_rules_that_name_who_is_gone_come_back_without_them(live: LiveServer):
    ada, bob = await live.create_user("ada"), await live.create_user("bob")
    lab = await group_of(live, "lab", ada, bob)

    def some(policy: pb.Policy) -> None:
        policy.approval.targets.exclude_users.extend([ada, bob])
        policy.access_pass.targets.exclude_groups.append(lab)
        targets = pb.Targets(include_users=[ada], include_groups=[lab])
        policy.campaigns.add(name="x", targets=targets, required_assurance=GATED, required_by=1)

    def none(policy: pb.Policy) -> None:
        policy.approval.targets.ClearField("exclude_users")
        policy.access_pass.targets.ClearField("exclude_groups")
        del policy.campaigns[:]

    await save(live, some)
    await save(live, none)
    await live.administer("DeleteUser", pb.DeleteUserRequest(username="ada"))
    await live.app.store.write(lambda tx: tx.delete(UserGroup, {"id": lab}))
    back = await roll_back(live, 2)
    assert list(back.approval.targets.exclude_users) == [bob]
    assert not back.access_pass.targets.exclude_groups
    assert back.campaigns[0].targets == pb.Targets(everybody=False)  # for nobody, not for everybody


# at once, and by whom


async def test_ki7_of_changes_that_were_made_from_one_version_one_is_saved(live: LiveServer):
    metadata, policy, lost = await live.admin(), await present(live), list[Reason]()

    async def change(digits: int) -> bool:
        wanted = pb.Policy()
        wanted.CopyFrom(policy)
        wanted.approval.number_digits = digits
        try:
            await live.administer("UpdatePolicy", pb.UpdatePolicyRequest(policy=wanted), metadata)
        except ConflictError as error:
            lost.append(error.reason)
            return False
        return True

    async def back() -> bool:
        request = policies_pb2.RollBackPolicyRequest(version=1, present_version=policy.version)
        try:
            await call(live, "RollBackPolicy", request, metadata)
        except ConflictError as error:
            lost.append(error.reason)
            return False
        return True

    won = await asyncio.gather(*(change(2 + n % 7) for n in range(14)), *(back() for _ in range(4)))
    assert (sum(won), lost) == (1, [Reason.POLICY_CHANGED] * 17)
    assert (await present(live)).version == policy.version + 1
    rows = await live.app.store.read(lambda tx: tx.count(PolicyVersion, {}))
    records = [r for name in ("policy.update", "policy.roll_back") for r in await live.audit(name)]
    assert (rows, len(records)) == (2, 1)


@pytest.mark.parametrize("role", Role)
async def test_t4_two_roles_change_the_policy_and_every_administrator_reads_it(live: LiveServer, role: Role):
    metadata = (await live.signed_in(await live.person("rita", role))).metadata
    policy = await present(live)
    changed = pb.Policy()
    changed.CopyFrom(policy)
    changed.approval.number_digits = 6
    reads = [
        lambda: present(live, metadata),
        lambda: call(live, "PreviewPolicy", policies_pb2.PreviewPolicyRequest(policy=changed), metadata),
        lambda: call(live, "ListPolicyVersions", policies_pb2.ListPolicyVersionsRequest(), metadata),
        lambda: call(live, "GetPolicyVersion", policies_pb2.GetPolicyVersionRequest(version=1), metadata),
    ]
    for read in reads:
        if role in ADMINISTRATORS:
            assert await read()
        else:
            with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
                await read()
    update = pb.UpdatePolicyRequest(policy=changed)
    rolling = policies_pb2.RollBackPolicyRequest(version=1, present_version=policy.version + 1)
    if role in RULERS:
        assert (await live.administer("UpdatePolicy", update, metadata)).policy.version == 2
        assert (await call(live, "RollBackPolicy", rolling, metadata)).policy.version == 3
        return
    with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
        await live.administer("UpdatePolicy", update, metadata)
    with refused(Reason.ROLE_REQUIRED, status=grpc.StatusCode.PERMISSION_DENIED):
        await call(live, "RollBackPolicy", rolling, metadata)
    assert (await present(live)) == policy


async def test_t3_settings_of_passes_are_kept_and_must_be_consistent(live: LiveServer):
    def passes(**values: object) -> Change:
        def change(policy: pb.Policy) -> None:
            for name, value in values.items():
                setattr(policy.access_pass, name, value)

        return change

    good = {
        "minimum_lifetime_minutes": 10,
        "default_lifetime_minutes": 10,
        "maximum_lifetime_minutes": 43200,
        "one_time_required": True,
        "length": 48,
    }
    saved = await save(live, passes(**good))
    assert {name: getattr(saved.access_pass, name) for name in good} == good
    for name, value in (
        ("minimum_lifetime_minutes", 9),
        ("maximum_lifetime_minutes", 43201),
        ("default_lifetime_minutes", 9),
        ("length", 7),
        ("length", 49),
    ):
        with refused(Reason.POLICY_INVALID) as refusal:
            await save(live, passes(**{name: value}))
        assert refusal.error.metadata["field"] == f"access_pass.{name}"
    with refused(Reason.POLICY_INVALID) as refusal:
        await save(live, passes(minimum_lifetime_minutes=60))
    assert refusal.error.metadata["field"] == "access_pass.default_lifetime_minutes"


async def test_a_policy_is_of_one_tenant(live: LiveServer):
    _, other = await live.tenant("other")
    await save(live, longer)
    await save(live, longer)
    assert (await present(live, other.metadata)).version == 1
    listed = await call(live, "ListPolicyVersions", policies_pb2.ListPolicyVersionsRequest(), other.metadata)
    assert [one.version for one in listed.versions] == [1]
    with refused(Reason.POLICY_VERSION_UNKNOWN):
        await call(live, "GetPolicyVersion", policies_pb2.GetPolicyVersionRequest(version=3), other.metadata)
    assert (await preview(live, approvals_off, other.metadata)).examined == 1
