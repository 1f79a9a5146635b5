"""For each administrative method: requests that name a target, in each way in which it can be named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import directory_pb2 as directory
from keyvouch.v1 import oversight_pb2 as oversight
from keyvouch.v1 import policies_pb2 as policies
from support.every_rpc import METHODS
from support.two_tenants import Things

Request = Callable[[Things, Any], Any]
"""A request about a target, in a tenant with this policy on the wire."""

SERVICES = ("AdministrationService", "DirectoryService", "PolicyService", "OversightService")


def path_of(method: str) -> str:
    """The path of an administrative method on the wire; what follows a blank says which of its requests is meant."""
    name = method.partition(" ")[0]
    (found,) = [p for p in METHODS if p.rpartition("/")[2] == name and p.split(".")[2].split("/")[0] in SERVICES]
    return found


def _role(it: Things) -> Any:
    return admin.Role.Value(f"ROLE_{it.role.name}")


REQUESTS: Mapping[str, Request] = {
    "CreateTenant": lambda it, policy: admin.CreateTenantRequest(name="a new tenant", administrator="first"),
    "ListTenants": lambda it, policy: admin.ListTenantsRequest(),
    "CreateUser": lambda it, policy: admin.CreateUserRequest(username="somebody new", role=_role(it)),
    "ListUsers": lambda it, policy: admin.ListUsersRequest(),
    "DeleteUser": lambda it, policy: admin.DeleteUserRequest(username=it.username),
    "CreateAccessPass": lambda it, policy: admin.CreateAccessPassRequest(username=it.alias),
    "ReplaceAccessPass": lambda it, policy: admin.ReplaceAccessPassRequest(
        username=it.user_id, sessions=admin.SESSIONS_ON_REPLACE_KEEP
    ),
    "ListAccessPasses": lambda it, policy: admin.ListAccessPassesRequest(username=it.username),
    "DeleteAccessPass": lambda it, policy: admin.DeleteAccessPassRequest(username=it.username.upper()),
    "ListDevices": lambda it, policy: admin.ListDevicesRequest(username=it.username),
    "AdminRemoveDevice": lambda it, policy: admin.AdminRemoveDeviceRequest(device_id=it.device_id),
    "AcceptDeviceHealth": lambda it, policy: admin.AcceptDeviceHealthRequest(device_id=it.device_id),
    "GetPolicy": lambda it, policy: admin.GetPolicyRequest(),
    "UpdatePolicy": lambda it, policy: admin.UpdatePolicyRequest(policy=policy, accept_lock_out=True),
    "ListAuditRecords": lambda it, policy: admin.ListAuditRecordsRequest(username=it.user_id),
    "GetUser": lambda it, policy: directory.GetUserRequest(user=it.alias),
    "UpdateUser": lambda it, policy: directory.UpdateUserRequest(user=it.user_id, display_name="Somebody else"),
    "UpdateUser role": lambda it, policy: directory.UpdateUserRequest(
        user=it.username, role=admin.ROLE_GLOBAL_READER if it.role != "global_reader" else admin.ROLE_USER
    ),
    "AddAlias": lambda it, policy: directory.AddAliasRequest(user=it.username, alias="another name"),
    "RemoveAlias": lambda it, policy: directory.RemoveAliasRequest(user=it.username, alias=it.alias),
    "CreateGroup": lambda it, policy: directory.CreateGroupRequest(name="a new group"),
    "ListGroups": lambda it, policy: directory.ListGroupsRequest(),
    "DeleteGroup": lambda it, policy: directory.DeleteGroupRequest(group=it.group),
    "AddGroupMember": lambda it, policy: directory.AddGroupMemberRequest(group=it.group_id, user=it.user_id),
    "RemoveGroupMember": lambda it, policy: directory.RemoveGroupMemberRequest(group=it.group, user=it.alias),
    "ListGroupMembers": lambda it, policy: directory.ListGroupMembersRequest(group=it.group_id),
    "PreviewPolicy": lambda it, policy: policies.PreviewPolicyRequest(policy=policy),
    "ListPolicyVersions": lambda it, policy: policies.ListPolicyVersionsRequest(),
    "GetPolicyVersion": lambda it, policy: policies.GetPolicyVersionRequest(version=1),
    "RollBackPolicy": lambda it, policy: policies.RollBackPolicyRequest(
        version=1, present_version=policy.version, accept_lock_out=True
    ),
    "ListUserSessions": lambda it, policy: oversight.ListUserSessionsRequest(user=it.username),
    "RevokeSessions user": lambda it, policy: oversight.RevokeSessionsRequest(user=it.alias),
    "RevokeSessions device": lambda it, policy: oversight.RevokeSessionsRequest(device_id=it.device_id),
    "RevokeSessions session": lambda it, policy: oversight.RevokeSessionsRequest(session_id=it.session_id),
    "RevokeSessions tenant": lambda it, policy: oversight.RevokeSessionsRequest(whole_tenant=True),
    "ListRiskEvents": lambda it, policy: oversight.ListRiskEventsRequest(user=it.user_id),
    "CloseRiskEvent": lambda it, policy: oversight.CloseRiskEventRequest(risk_event_id=it.risk_event_id),
    "ExplainSignIn": lambda it, policy: oversight.ExplainSignInRequest(sign_in_id=it.sign_in_id),
    "ExplainSignIn question": lambda it, policy: oversight.ExplainSignInRequest(
        question=oversight.SignInQuestion(user=it.username, app_id="shop")
    ),
    "GetReceipt": lambda it, policy: oversight.GetReceiptRequest(sign_in_id=it.sign_in_id),
    "ListAuditCheckpoints": lambda it, policy: oversight.ListAuditCheckpointsRequest(),
}
"""By the method's name, with a word for which of its requests where there are several."""
