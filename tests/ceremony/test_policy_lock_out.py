"""A policy under which the administrator who sets it could not sign in again, on a real server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import grpc
import pytest

from keyvouch.errors import Reason, RefusedError
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2
from keyvouch_server.domain.model import Role
from support.key_desk import MODEL_NAME, OTHER_NAME, another_key, begin_with_key
from support.live_server import LiveServer, Metadata, refused

LOCKED, NOT_NOW = Reason.POLICY_LOCKS_OUT, grpc.StatusCode.FAILED_PRECONDITION
Change = Callable[[pb.Policy], None]
CameIn = Callable[[LiveServer], Awaitable[Metadata]]


async def save(live: LiveServer, change: Change, metadata: Metadata, *, accept: bool = False) -> pb.Policy:
    """Change the present policy."""
    policy = (await live.administer("GetPolicy", pb.GetPolicyRequest(), metadata)).policy
    change(policy)
    request = pb.UpdatePolicyRequest(policy=policy, accept_lock_out=accept)
    return (await live.administer("UpdatePolicy", request, metadata)).policy


def no_approvals(policy: pb.Policy) -> None:
    policy.approval.enabled = False


def no_keys(policy: pb.Policy) -> None:
    policy.security_key.enabled = False


def no_keys_but_in_hardware(policy: pb.Policy) -> None:
    policy.security_key.required_assurance.protection = common_pb2.REQUIRED_PROTECTION_HARDWARE


def hardware(policy: pb.Policy) -> None:
    policy.approval.required_assurance.protection = common_pb2.REQUIRED_PROTECTION_HARDWARE


def a_list(policy: pb.Policy) -> None:
    policy.registration.authenticators.allowed.append(MODEL_NAME)


def other_blocked(policy: pb.Policy) -> None:
    policy.registration.authenticators.blocked.append(OTHER_NAME)


def model_blocked(policy: pb.Policy) -> None:
    policy.registration.authenticators.blocked.append(MODEL_NAME)


def longer(policy: pb.Policy) -> None:
    policy.approval.number_digits = 6


def nobody(policy: pb.Policy) -> None:
    policy.approval.targets.everybody = False


def nobody_by_key(policy: pb.Policy) -> None:
    policy.security_key.targets.everybody = False


def command_line_in_hardware(policy: pb.Policy) -> None:
    rule = policy.apps.add(app_id="keyvouch-cli")
    rule.required_assurance.CopyFrom(policy.approval.required_assurance)
    rule.required_assurance.protection = common_pb2.REQUIRED_PROTECTION_HARDWARE


def command_line_unrelayed(policy: pb.Policy) -> None:
    command_line = policy.apps.add(app_id="keyvouch-cli", phishing_resistant=True)
    command_line.required_assurance.CopyFrom(policy.approval.required_assurance)


def another_app_in_hardware(policy: pb.Policy) -> None:
    command_line_in_hardware(policy)
    policy.apps[0].app_id = "shop"


def overdue_campaign(policy: pb.Policy) -> None:
    campaign = policy.campaigns.add(name="Hardware", required_by=1, targets=pb.Targets(everybody=True))
    campaign.required_assurance.CopyFrom(policy.approval.required_assurance)
    campaign.required_assurance.protection = common_pb2.REQUIRED_PROTECTION_HARDWARE


async def by_number(live: LiveServer) -> Metadata:
    return await live.admin()


async def by_key(live: LiveServer) -> Metadata:
    await live.create_user("root", Role.GLOBAL_ADMINISTRATOR)
    key = await another_key(live, "root")
    begun = await begin_with_key(live, "root")
    await begun.complete(begun.approval(key.credential))
    return (await begun.redeem()).metadata


@pytest.mark.parametrize(
    ("came_in", "change", "cause"),
    [
        (by_number, no_approvals, Reason.METHOD_DISABLED),
        (by_number, hardware, Reason.ASSURANCE_TOO_LOW),
        (by_number, a_list, Reason.AUTHENTICATOR_MODEL),
        (by_number, nobody, Reason.METHOD_NOT_TARGETED),
        (by_number, command_line_in_hardware, Reason.ASSURANCE_TOO_LOW),
        (by_number, command_line_unrelayed, Reason.STRENGTH_REQUIRED),
        (by_key, nobody_by_key, Reason.METHOD_NOT_TARGETED),
        (by_key, command_line_in_hardware, Reason.ASSURANCE_TOO_LOW),
        (by_key, no_keys, Reason.METHOD_DISABLED),
        (by_key, no_keys_but_in_hardware, Reason.ASSURANCE_TOO_LOW),
        (by_key, a_list, Reason.AUTHENTICATOR_MODEL),
        (by_key, model_blocked, Reason.AUTHENTICATOR_MODEL),
    ],
)
async def test_a_policy_that_locks_its_own_administrator_out_needs_a_word_more(
    live: LiveServer, came_in: CameIn, change: Change, cause: Reason
):
    metadata = await came_in(live)
    before = (await live.administer("GetPolicy", pb.GetPolicyRequest(), metadata)).policy
    with refused(LOCKED, status=NOT_NOW) as refusal:
        await save(live, change, metadata)
    assert refusal.error.metadata["cause"] == cause.value
    assert "accept_lock_out" in refusal.error.fix
    assert (await live.administer("GetPolicy", pb.GetPolicyRequest(), metadata)).policy == before
    assert (await live.audit("policy.update"))[-1].outcome == LOCKED.value
    assert (await save(live, change, metadata, accept=True)).version == before.version + 1
    assert json.loads((await live.audit("policy.update"))[-1].details) == {"lock_out": "accepted"}


@pytest.mark.parametrize(
    ("came_in", "change"),
    [
        (by_number, longer),
        (by_number, other_blocked),
        (by_number, no_keys),
        (by_number, no_keys_but_in_hardware),
        (by_number, nobody_by_key),
        (by_number, another_app_in_hardware),
        (by_number, overdue_campaign),  # it leaves the way to this server open
        (by_key, nobody),
        (by_key, command_line_unrelayed),
        (by_key, longer),
        (by_key, no_approvals),
        (by_key, hardware),
        (by_key, other_blocked),
    ],
)
async def test_a_policy_that_leaves_the_way_in_open_is_saved(live: LiveServer, came_in: CameIn, change: Change):
    metadata = await came_in(live)
    assert (await save(live, change, metadata)).version
    assert json.loads((await live.audit("policy.update"))[-1].details) == {}


async def test_who_is_locked_out_already_may_change_what_they_like(live: LiveServer):
    metadata = await live.admin()
    await save(live, a_list, metadata, accept=True)
    await save(live, longer, metadata)  # no worse than before
    await save(live, no_approvals, metadata)


# the way back of those who hold the server's files


def no_passes(policy: pb.Policy) -> None:
    policy.access_pass.enabled = False


def no_passes_for_anybody(policy: pb.Policy) -> None:
    policy.access_pass.targets.everybody = False


def nothing_to_register(policy: pb.Policy) -> None:
    policy.approval.enabled = policy.security_key.enabled = False


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (no_passes, Reason.METHOD_DISABLED),
        (no_passes_for_anybody, Reason.METHOD_NOT_TARGETED),
        (nothing_to_register, Reason.METHOD_DISABLED),
    ],
)
async def test_a_policy_that_lets_nobody_in_has_a_way_back_for_whoever_holds_the_servers_files(
    live: LiveServer, change: Change, cause: Reason
):
    """A pass that opens nothing is not made: it would end what there is and help nobody."""
    await live.person("ada")
    await live.issue_pass_again("ada")
    recover = live.app.administration.recover
    saved = await save(live, change, await live.admin(), accept=True)
    with pytest.raises(RefusedError) as refusal:
        await recover("example", "admin")
    assert (refusal.value.reason, refusal.value.metadata["cause"]) == (LOCKED, cause.value)
    assert "--default-policy" in refusal.value.fix
    assert not await live.audit("policy.reset")
    made = await recover("example", "admin", default_policy=True)
    (record,) = await live.audit("policy.reset")
    assert (record.actor, record.subject) == ("server", str(saved.version + 1))
    device = await live.enrol("admin", made.code)
    session = await live.signed_in(await live.connect("admin", device), app_id="console")
    policy = (await live.administer("GetPolicy", pb.GetPolicyRequest(), session.metadata)).policy
    assert (policy.version, policy.approval.enabled, policy.access_pass.enabled) == (saved.version + 1, True, True)


async def test_recovery_leaves_a_policy_alone_that_lets_a_pass_in(live: LiveServer):
    saved = await save(live, hardware, await live.admin(), accept=True)
    made = await live.app.administration.recover("example", "admin")
    await live.access_pass_sign_in("admin", made.code)
    assert not await live.audit("policy.reset")
    assert (await live.administer("GetPolicy", pb.GetPolicyRequest())).policy == saved
