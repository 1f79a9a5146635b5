"""The acts of the model on a real server: one call each, and the outcome in the model's words."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from keyvouch.errors import KeyvouchError, UnauthenticatedError
from keyvouch.statement import Decision
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2, directory_pb2, policies_pb2, security_info_pb2, sessions_pb2
from keyvouch_bench.device import BenchDevice
from keyvouch_client.errors import answer
from support.live_server import LIMIT, LiveServer, Metadata, OpenSignIn, SignedIn, bearer
from support.model import OK, Settings
from support.stubborn import StubbornDevice

WRONG = "WRONGWRONG"


@dataclass(slots=True)
class Holder:
    """A session in the hands of whoever signed in; `signed_in` of one that can be refreshed."""

    metadata: Metadata
    signed_in: SignedIn | None = None
    tokens: list[str] = field(default_factory=list)
    """Refresh tokens by generation, from 1."""


@asynccontextmanager
async def _on_the_line(device: StubbornDevice) -> AsyncIterator[None]:
    """The device is connected while the block lasts, or until it is removed."""
    with suppress(UnauthenticatedError):
        async with device.online():
            yield


class TenantStage:
    """One fresh tenant of a running server, with its administrator."""

    numbers = itertools.count(1)

    def __init__(self, live: LiveServer) -> None:
        self.live = live
        self.name = f"model{next(self.numbers)}"
        self.calls = 0
        self.codes: dict[str, str] = {}
        self.group = ""
        self.first_version = 0
        self._admin: Any = None
        self._person: Any = None
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        """Make the tenant, its group, and the policy to begin with."""
        self._person, self._admin = await self.live.tenant(self.name)
        made = await self._directory("CreateGroup", directory_pb2.CreateGroupRequest(name="out"))
        self.group = made.group.group_id
        await self.save_policy(Settings())
        told = await self.live.administer("GetPolicy", pb.GetPolicyRequest(), await self._metadata())
        self.first_version = told.policy.version

    async def close(self) -> None:
        """Take the devices off the line."""
        await self._stack.aclose()

    async def _metadata(self) -> Metadata:
        """The administrator's session: refreshed, or signed in anew, as time goes by. No act of the model."""
        now = self.live.clock.now()
        if self._admin.tokens.session_expires_at <= now + 60:
            self._admin = await self.live.signed_in(self._person, app_id="console")
        elif self._admin.tokens.access_expires_at <= now:
            self._admin.tokens = await self._admin.refresh()
        metadata: Metadata = self._admin.metadata
        return metadata

    async def _outcome(self, call: Any) -> str:
        self.calls += 1
        try:
            await call
        except KeyvouchError as error:
            return error.reason.value
        return OK

    async def _administer(self, method: str, request: Any) -> str:
        return await self._outcome(self.live.administer(method, request, await self._metadata()))

    async def _directory(self, method: str, request: Any) -> Any:
        stub = self.live.connection.directory
        return await answer(getattr(stub, method)(request, metadata=await self._metadata(), timeout=LIMIT))

    # -- the directory and policy --------------------------------------------------------------------

    async def create(self, name: str, *, guest: bool) -> str:
        """CreateUser."""
        kind = common_pb2.USER_KIND_GUEST if guest else common_pb2.USER_KIND_MEMBER
        return await self._administer("CreateUser", pb.CreateUserRequest(username=name, kind=kind))

    async def delete(self, name: str) -> str:
        """DeleteUser."""
        return await self._administer("DeleteUser", pb.DeleteUserRequest(username=name))

    async def change_role(self, name: str, role: str) -> str:
        """UpdateUser."""
        request = directory_pb2.UpdateUserRequest(user=name, role=pb.Role.Value(f"ROLE_{role.upper()}"))
        return await self._outcome(self._directory("UpdateUser", request))

    async def put_into_group(self, name: str, *, inside: bool) -> str:
        """AddGroupMember, RemoveGroupMember."""
        if inside:
            request = directory_pb2.AddGroupMemberRequest(group=self.group, user=name)
            return await self._outcome(self._directory("AddGroupMember", request))
        gone = directory_pb2.RemoveGroupMemberRequest(group=self.group, user=name)
        return await self._outcome(self._directory("RemoveGroupMember", gone))

    async def save_policy(self, wanted: Settings) -> str:
        """UpdatePolicy."""
        metadata = await self._metadata()
        policy = (await self.live.administer("GetPolicy", pb.GetPolicyRequest(), metadata)).policy
        targets = pb.Targets(everybody=True, exclude_groups=[self.group] if wanted.excluded else [])
        policy.approval.enabled, policy.access_pass.enabled = wanted.approval, wanted.access_pass
        policy.approval.targets.CopyFrom(targets)
        policy.access_pass.targets.CopyFrom(targets)
        policy.security_key.enabled = False
        policy.access_pass.one_time_required = wanted.one_time
        policy.approval.begins_per_minute, policy.approval.number_misses = wanted.begins, wanted.misses
        policy.registration.devices_per_user = wanted.devices
        return await self._administer("UpdatePolicy", pb.UpdatePolicyRequest(policy=policy, accept_lock_out=True))

    async def roll_back(self, number: int) -> str:
        """RollBackPolicy to the `number`-th policy of the model."""
        metadata = await self._metadata()
        present = (await self.live.administer("GetPolicy", pb.GetPolicyRequest(), metadata)).policy.version
        request = policies_pb2.RollBackPolicyRequest(
            version=self.first_version + number, present_version=present, accept_lock_out=True
        )
        stub = self.live.connection.policies
        return await self._outcome(answer(stub.RollBackPolicy(request, metadata=metadata, timeout=LIMIT)))

    # -- passes and devices --------------------------------------------------------------------------

    async def create_pass(self, name: str, *, one_time: bool) -> str:
        """CreateAccessPass; the code is remembered."""
        return await self._new_pass(name, "CreateAccessPass", pb.CreateAccessPassRequest(one_time=one_time))

    async def replace_pass(self, name: str, *, one_time: bool, keep: bool) -> str:
        """ReplaceAccessPass."""
        sessions = pb.SESSIONS_ON_REPLACE_KEEP if keep else pb.SESSIONS_ON_REPLACE_REVOKE
        return await self._new_pass(
            name, "ReplaceAccessPass", pb.ReplaceAccessPassRequest(one_time=one_time, sessions=sessions)
        )

    async def _new_pass(self, name: str, method: str, request: Any) -> str:
        self.calls += 1
        request.username = name
        try:
            made = await self.live.administer(method, request, await self._metadata())
        except KeyvouchError as error:
            return error.reason.value
        self.codes[name] = made.code
        return OK

    async def delete_pass(self, name: str) -> str:
        """DeleteAccessPass."""
        return await self._administer("DeleteAccessPass", pb.DeleteAccessPassRequest(username=name))

    async def use_pass(self, name: str, *, right: bool) -> tuple[str, Holder | None]:
        """SignInWithAccessPass."""
        self.calls += 1
        code = self.codes.get(name, WRONG) if right else WRONG
        try:
            told = await self.live.access_pass_sign_in(name, code, self.name)
        except KeyvouchError as error:
            return error.reason.value, None
        return OK, Holder(bearer(told.tokens.access_token))

    async def register(self, holder: Holder) -> tuple[str, StubbornDevice | None]:
        """BeginRegistration and CompleteRegistration; the device goes on the line."""
        self.calls += 2
        try:
            enrolled = await BenchDevice.enrol(self.live.connection, metadata=holder.metadata)
        except KeyvouchError as error:
            return error.reason.value, None
        device = StubbornDevice(enrolled)
        await self._stack.enter_async_context(_on_the_line(device))
        await device.connected()
        return OK, device

    async def remove(self, device: StubbornDevice, holder: Holder | None) -> str:
        """RemoveDevice by its owner, or AdminRemoveDevice."""
        device_id = device.device.device_id
        if holder is None:
            return await self._administer("AdminRemoveDevice", pb.AdminRemoveDeviceRequest(device_id=device_id))
        request = security_info_pb2.RemoveDeviceRequest(device_id=device_id)
        call = self.live.connection.security_info.RemoveDevice(request, metadata=holder.metadata, timeout=LIMIT)
        return await self._outcome(answer(call))

    # -- signing in ----------------------------------------------------------------------------------

    async def begin(self, name: str) -> tuple[str, OpenSignIn | None]:
        """BeginSignIn."""
        self.calls += 1
        try:
            return OK, await self.live.begin(name, self.name)
        except KeyvouchError as error:
            return error.reason.value, None

    async def answer(self, opened: OpenSignIn, device: StubbornDevice, decision: str) -> str:
        """A signed answer on the device's stream. Each is another signature, also of the same decision."""
        self.calls += 1
        prompt = await device.prompt_of(opened.begun.sign_in_id)
        before = len(device.outcomes[prompt.prompt_id])
        if decision in ("approve", "wrong"):
            number = opened.number if decision == "approve" else opened.wrong_number
            signed = device.device.approve(prompt, number)
        else:
            signed = device.device.refuse(prompt, Decision.DENY if decision == "deny" else Decision.REPORT)
        await device.send(signed)
        outcome = await device.outcome(prompt.prompt_id, before + 1)
        return OK if outcome.accepted and not outcome.reason else outcome.reason

    async def redeem(self, opened: OpenSignIn) -> tuple[str, Holder | None]:
        """RedeemSignIn."""
        self.calls += 1
        try:
            signed_in = await opened.redeem()
        except KeyvouchError as error:
            return error.reason.value, None
        return OK, Holder(signed_in.metadata, signed_in, [signed_in.tokens.refresh_token])

    async def cancel(self, opened: OpenSignIn) -> str:
        """CancelSignIn."""
        return await self._outcome(opened.cancel())

    # -- sessions ------------------------------------------------------------------------------------

    async def refresh(self, holder: Holder, generation: int) -> str:
        """RefreshSession with the token of a generation."""
        assert holder.signed_in is not None
        self.calls += 1
        try:
            tokens = await holder.signed_in.refresh(holder.tokens[generation - 1])
        except KeyvouchError as error:
            return error.reason.value
        if tokens.refresh_token not in holder.tokens:
            holder.tokens.append(tokens.refresh_token)
        holder.signed_in.tokens = tokens
        holder.metadata = holder.signed_in.metadata
        return OK

    async def look(self, holder: Holder) -> str:
        """IntrospectSession."""
        return await self._outcome(self.live.introspect(holder.metadata))

    async def revoke(self, holder: Holder) -> str:
        """RevokeSession of itself."""
        request = sessions_pb2.RevokeSessionRequest()
        call = self.live.connection.sessions.RevokeSession(request, metadata=holder.metadata, timeout=LIMIT)
        return await self._outcome(answer(call))
