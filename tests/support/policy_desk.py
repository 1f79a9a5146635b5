"""What tests of policies do: change, preview, save and roll back on a live server; groups, and copies of users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from keyvouch.ids import DEVICE, GROUP, USER, CredentialId, DeviceId, GroupId, UserId
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2, policies_pb2
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Credential, Device, GroupMember, LoginName, User, UserGroup
from keyvouch_server.ports import Transaction
from support.live_server import LIMIT, LiveServer, Metadata

Change = Callable[[pb.Policy], None]

HARDWARE = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
    verification=common_pb2.VERIFICATION_HARDWARE_GATED,
    provenance=common_pb2.PROVENANCE_ATTESTED,
)
GATED = common_pb2.AssuranceRequirement(
    protection=common_pb2.REQUIRED_PROTECTION_ANY,
    verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
    provenance=common_pb2.PROVENANCE_UNATTESTED,
)


def approvals_off(policy: pb.Policy) -> None:
    """Nobody approves with a device."""
    policy.approval.enabled = False


def approvals_on(policy: pb.Policy) -> None:
    """Everybody may."""
    policy.approval.enabled = True


def in_hardware(policy: pb.Policy) -> None:
    """Approvals with keys in hardware only."""
    policy.approval.required_assurance.CopyFrom(HARDWARE)


def longer(policy: pb.Policy) -> None:
    """A digit more."""
    policy.approval.number_digits += 1


def nothing_new(policy: pb.Policy) -> None:
    """The same rules again."""


async def call(live: LiveServer, method: str, request: Any, metadata: Metadata | None = None) -> Any:
    """Call a method of PolicyService, as the first administrator where nobody else is named."""
    metadata = metadata or await live.admin()
    return await answer(getattr(live.connection.policies, method)(request, metadata=metadata, timeout=LIMIT))


async def present(live: LiveServer, metadata: Metadata | None = None) -> pb.Policy:
    """The policy as it is."""
    policy: pb.Policy = (await live.administer("GetPolicy", pb.GetPolicyRequest(), metadata)).policy
    return policy


async def save(
    live: LiveServer, change: Change, metadata: Metadata | None = None, *, accept: bool = False
) -> pb.Policy:
    """Change the present policy."""
    policy = await present(live, metadata)
    change(policy)
    request = pb.UpdatePolicyRequest(policy=policy, accept_lock_out=accept)
    saved: pb.Policy = (await live.administer("UpdatePolicy", request, metadata)).policy
    return saved


async def roll_back(live: LiveServer, version: int, *, accept: bool = False) -> pb.Policy:
    """Save the rules of an old version over the present one."""
    seen = (await present(live)).version
    request = policies_pb2.RollBackPolicyRequest(version=version, present_version=seen, accept_lock_out=accept)
    policy: pb.Policy = (await call(live, "RollBackPolicy", request)).policy
    return policy


async def preview(
    live: LiveServer, change: Change, metadata: Metadata | None = None, *, size: int = 0
) -> policies_pb2.PreviewPolicyResponse:
    """What a change would do: all pages as one."""
    policy = await present(live, metadata)
    change(policy)
    request = policies_pb2.PreviewPolicyRequest(policy=policy, page=common_pb2.PageRequest(size=size))
    return await preview_all(live, request, metadata)


async def preview_all(
    live: LiveServer, request: policies_pb2.PreviewPolicyRequest, metadata: Metadata | None = None
) -> policies_pb2.PreviewPolicyResponse:
    """All pages of a preview as one."""
    whole = policies_pb2.PreviewPolicyResponse()
    while True:
        page: policies_pb2.PreviewPolicyResponse = await call(live, "PreviewPolicy", request, metadata)
        del whole.differences[:]  # every page has them
        examined = whole.examined + page.examined
        whole.MergeFrom(page)
        whole.examined = examined
        if not page.next_token:
            whole.next_token = ""
            return whole
        request.page.token = page.next_token


def methods_of(preview: policies_pb2.PreviewPolicyResponse) -> dict[tuple[str, str, str], tuple[bool, bool, str]]:
    """Affected methods by user, method and app: before, after, why."""
    return {
        (user.username, common_pb2.SignInMethod.Name(m.method).removeprefix("SIGN_IN_METHOD_").lower(), m.app_id): (
            m.usable_before,
            m.usable_after,
            m.reason,
        )
        for user in preview.users
        for m in user.methods
    }


def keys_of(preview: policies_pb2.PreviewPolicyResponse) -> dict[str, list[tuple[bool, bool, str]]]:
    """Affected keys by user: before, after, why."""
    return {
        user.username: [(k.accepted_before, k.accepted_after, k.reason) for k in user.credentials]
        for user in preview.users
        if user.credentials
    }


async def group_of(live: LiveServer, name: str, *user_ids: str) -> str:
    """A group of the first tenant with members; returns its id."""

    async def work(tx: Transaction) -> str:
        first = await tx.get(User, id=user_ids[0])
        assert first is not None
        group = GroupId(live.app.world.new_id(GROUP))
        await tx.insert(UserGroup(group, first.tenant_id, name, name, "", 1))
        for user in user_ids:
            await tx.insert(GroupMember(group, UserId(user), first.tenant_id))
        return group

    return await live.app.store.write(work)


async def more_keys(live: LiveServer, username: str, count: int) -> None:
    """Copies of a user's device and key, for the same user."""
    world = live.app.world

    async def work(tx: Transaction) -> None:
        user = next(one for one in await tx.find(User, {}) if one.username == username)
        device = (await tx.find(Device, {"user_id": user.id}))[0]
        credential = (await tx.find(Credential, {"device_id": device.id}))[0]
        for _ in range(count):
            its, key = DeviceId(world.new_id(DEVICE)), CredentialId(world.entropy.token(32))
            await tx.insert(replace(device, id=its, channel_key=world.entropy.token(91)))
            await tx.insert(replace(credential, id=key, device_id=its))

    await live.app.store.write(work)


async def copies_of(live: LiveServer, username: str, count: int) -> list[str]:
    """Users with the keys of another one, as far as a store can tell; returns their names."""
    world = live.app.world

    async def work(tx: Transaction) -> list[str]:
        user = next(one for one in await tx.find(User, {}) if one.username == username)
        device = (await tx.find(Device, {"user_id": user.id}))[0]
        credential = (await tx.find(Credential, {"device_id": device.id}))[0]
        names = [f"{username}{n:03}" for n in range(count)]
        for name in names:
            one, its = UserId(world.new_id(USER)), DeviceId(world.new_id(DEVICE))
            handle, key = world.entropy.token(32), CredentialId(world.entropy.token(32))
            await tx.insert(replace(user, id=one, username=name, username_key=name, user_handle=handle))
            await tx.insert(LoginName(user.tenant_id, name, name, one, alias=False))
            await tx.insert(replace(device, id=its, user_id=one, channel_key=world.entropy.token(91)))
            copied = replace(credential, id=key, user_id=one, device_id=its, user_handle=handle)
            await tx.insert(copied)
        return names

    return await live.app.store.write(work)
