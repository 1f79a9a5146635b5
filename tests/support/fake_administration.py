"""The administration service of the fake server: lists that have pages, one policy, codes shown once."""

from __future__ import annotations

import time
from typing import Any

from keyvouch.errors import ConflictError, Reason, RefusedError
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import administration_pb2_grpc, common_pb2
from support.fake_sign_in_server import credential
from support.fake_world import FakeWorld

CODE = "canary-code-7Q"


class FakeAdministration(administration_pb2_grpc.AdministrationServiceServicer):
    """Keeps what it is told, for callers with a live session."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world
        self.users: dict[str, pb.User] = {}
        self.passes: dict[str, pb.AccessPass] = {}
        self.policy = pb.Policy(version=3, approval=pb.ApprovalPolicy(enabled=True, number_digits=2))
        self.policy.approval.required_assurance.verification = common_pb2.VERIFICATION_SOFTWARE_GATED
        self.policy.health.pcrs.extend((0, 7))
        self.tpm = common_pb2.TpmDevice(
            manufacturer="Nuvoton",
            model="NPCT75x",
            firmware="7.2.4.1",
            endorsement_anchor="tpm-ek:NTC1",
            pin_limit=3,
            health=common_pb2.HEALTH_STATE_DRIFTED,
            reported_at=1_800_000_000,
            findings=["pcr_changed: PCR 7 \x1b[31mis another one."],
        )

    def _check(self, context: Any) -> None:
        self._world.authenticate(credential(context, "Bearer"))

    async def CreateTenant(self, request: Any, context: Any) -> Any:
        self._check(context)
        return pb.CreateTenantResponse(
            tenant=pb.Tenant(tenant_id="ten_2", name=request.name, created_at=int(time.time())),
            administrator=pb.User(username=request.administrator),
            access_pass=self._new_pass(request.administrator, 60),
            code=CODE,
        )

    async def ListTenants(self, request: Any, context: Any) -> Any:
        self._check(context)
        return pb.ListTenantsResponse(tenants=[pb.Tenant(tenant_id="ten_example", name="example")])

    async def CreateUser(self, request: Any, context: Any) -> Any:
        self._check(context)
        if request.username in self.users:
            raise ConflictError(Reason.USER_EXISTS, "There is such a user.", fix="Choose another name.")
        user = pb.User(username=request.username, display_name=request.display_name, role=request.role)
        self.users[request.username] = user
        return pb.CreateUserResponse(user=user)

    async def ListUsers(self, request: Any, context: Any) -> Any:
        self._check(context)
        names = sorted(self.users)
        start = int(request.page.token or 0)
        token = str(start + 2) if start + 2 < len(names) else ""
        return pb.ListUsersResponse(users=[self.users[n] for n in names[start : start + 2]], next_token=token)

    async def DeleteUser(self, request: Any, context: Any) -> Any:
        self._check(context)
        if self.users.pop(request.username, None) is None:
            raise RefusedError(Reason.USER_UNKNOWN, "There is no such user.", fix="`keyvouch admin user list`.")
        return pb.DeleteUserResponse(removed_devices=1, revoked_sessions=2)

    def _new_pass(self, username: str, minutes: int) -> pb.AccessPass:
        made = pb.AccessPass(
            access_pass_id="tap_1",
            username=username,
            start_at=int(time.time()),
            lifetime_minutes=minutes,
            usable=True,
            usability=pb.ACCESS_PASS_USABILITY_ENABLED_BY_POLICY,
        )
        self.passes[username] = made
        return made

    async def CreateAccessPass(self, request: Any, context: Any) -> Any:
        self._check(context)
        made = self._new_pass(request.username, request.lifetime_minutes or 60)
        made.one_time = request.one_time
        if request.start_at:
            made.start_at = request.start_at
        return pb.CreateAccessPassResponse(access_pass=made, code=CODE)

    async def ListAccessPasses(self, request: Any, context: Any) -> Any:
        self._check(context)
        return pb.ListAccessPassesResponse(access_passes=list(self.passes.values()))

    async def DeleteAccessPass(self, request: Any, context: Any) -> Any:
        self._check(context)
        self.passes.pop(request.username)
        return pb.DeleteAccessPassResponse(revoked_sessions=1)

    async def ListDevices(self, request: Any, context: Any) -> Any:
        self._check(context)
        device = common_pb2.Device(device_id="dev_1", display_name="Laptop", credential_id=b"\x01\x02")
        device.assurance.protection = common_pb2.PROTECTION_TPM
        device.tpm.CopyFrom(self.tpm)
        plain = common_pb2.Device(device_id="dev_2", display_name="Old laptop")
        return pb.ListDevicesResponse(devices=[device, plain])

    async def AcceptDeviceHealth(self, request: Any, context: Any) -> Any:
        self._check(context)
        if request.reported_at != self.tpm.reported_at:
            raise RefusedError(Reason.DEVICE_HEALTH, "It has reported since.", fix="Look again.")
        self.tpm.health = common_pb2.HEALTH_STATE_GOOD
        del self.tpm.findings[:]
        return pb.AcceptDeviceHealthResponse(device=common_pb2.Device(device_id=request.device_id, tpm=self.tpm))

    async def AdminRemoveDevice(self, request: Any, context: Any) -> Any:
        self._check(context)
        return pb.AdminRemoveDeviceResponse(revoked_sessions=1)

    async def GetPolicy(self, request: Any, context: Any) -> Any:
        self._check(context)
        return pb.GetPolicyResponse(policy=self.policy)

    async def UpdatePolicy(self, request: Any, context: Any) -> Any:
        self._check(context)
        if request.policy.version != self.policy.version:
            raise ConflictError(Reason.POLICY_CHANGED, "Somebody else changed it.", fix="Look again.")
        if not request.policy.approval.enabled and not request.accept_lock_out:
            raise RefusedError(Reason.POLICY_LOCKS_OUT, "You could not sign in again.", fix="Say that you know.")
        self.policy = request.policy
        self.policy.version += 1
        return pb.UpdatePolicyResponse(policy=self.policy)

    async def ListAuditRecords(self, request: Any, context: Any) -> Any:
        self._check(context)
        newest = int(request.page.token or 500)
        records = [
            pb.AuditRecord(
                sequence=n, at=int(time.time()), action="sign_in.begin", outcome="ok", details={"app": "shop"}
            )
            for n in range(newest, newest - request.page.size, -1)
        ]
        return pb.ListAuditRecordsResponse(records=records, next_token=str(newest - request.page.size))
