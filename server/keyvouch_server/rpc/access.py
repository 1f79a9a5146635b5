"""What each method demands of its caller. A method that is not in the table is refused: deny by default."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Access(Enum):
    """What a caller must show."""

    OPEN = "nothing"
    INTROSPECTION = "an access token of any session, by whoever it was handed to"
    ANY_AUDIENCE = "an access token of any session, whoever it is meant for"
    SESSION = "an access token of any session, meant for this server (audience `keyvouch`)"
    APPROVED_SESSION = "the same, of a session that was approved with a registered device"
    SIGN_IN = "the token of a sign-in"
    REGISTRATION = "the token of a registration"
    DEVICE = "the certificate of a registered device"


def _service(name: str, methods: Mapping[str, Access]) -> dict[str, Access]:
    return {f"/{name}/{method}": access for method, access in methods.items()}


_ADMINISTRATION = (
    "CreateTenant",
    "ListTenants",
    "CreateUser",
    "ListUsers",
    "DeleteUser",
    "CreateAccessPass",
    "ReplaceAccessPass",
    "ListAccessPasses",
    "DeleteAccessPass",
    "ListDevices",
    "AdminRemoveDevice",
    "AcceptDeviceHealth",
    "GetPolicy",
    "UpdatePolicy",
    "ListAuditRecords",
)

_DIRECTORY = (
    "GetUser",
    "UpdateUser",
    "AddAlias",
    "RemoveAlias",
    "CreateGroup",
    "ListGroups",
    "DeleteGroup",
    "AddGroupMember",
    "RemoveGroupMember",
    "ListGroupMembers",
)

_POLICIES = ("PreviewPolicy", "ListPolicyVersions", "GetPolicyVersion", "RollBackPolicy")

_OVERSIGHT = (
    "ListUserSessions",
    "RevokeSessions",
    "ListRiskEvents",
    "CloseRiskEvent",
    "ExplainSignIn",
    "GetReceipt",
    "ListAuditCheckpoints",
)

_HEALTH = {"Check": Access.OPEN, "Watch": Access.APPROVED_SESSION}

ACCESS: Final[Mapping[str, Access]] = {
    **_service(
        "keyvouch.v1.SignInService",
        {
            "BeginSignIn": Access.OPEN,
            "SignInSession": Access.OPEN,
            "SignInWithAccessPass": Access.OPEN,
            "WatchSignIn": Access.SIGN_IN,
            "RedeemSignIn": Access.SIGN_IN,
            "CompleteSecurityKeySignIn": Access.SIGN_IN,
            "CancelSignIn": Access.SIGN_IN,
        },
    ),
    **_service(
        "keyvouch.v1.SessionService",
        {
            "RefreshSession": Access.OPEN,
            "GetJwks": Access.OPEN,
            "IntrospectSession": Access.INTROSPECTION,
            "ListSessions": Access.APPROVED_SESSION,
            "RevokeSession": Access.ANY_AUDIENCE,
        },
    ),
    **_service(
        "keyvouch.v1.EnrolmentService",
        {
            "BeginRegistration": Access.SESSION,
            "PrepareTpm": Access.REGISTRATION,
            "CompleteRegistration": Access.REGISTRATION,
        },
    ),
    **_service(
        "keyvouch.v1.SecurityInfoService",
        {
            **dict.fromkeys(("GetSecurityInfo", "RemoveDevice", "RenameDevice", "SetDefaultMethod"), Access.SESSION),
            **dict.fromkeys(("RevokeOtherSessions", "GetOwnReceipt", "ExplainOwnSignIn"), Access.APPROVED_SESSION),
        },
    ),
    **_service("keyvouch.v1.AdministrationService", dict.fromkeys(_ADMINISTRATION, Access.APPROVED_SESSION)),
    **_service("keyvouch.v1.DirectoryService", dict.fromkeys(_DIRECTORY, Access.APPROVED_SESSION)),
    **_service("keyvouch.v1.PolicyService", dict.fromkeys(_POLICIES, Access.APPROVED_SESSION)),
    **_service("keyvouch.v1.OversightService", dict.fromkeys(_OVERSIGHT, Access.APPROVED_SESSION)),
    **_service(
        "keyvouch.v1.PromptService",
        {
            "StreamPrompts": Access.DEVICE,
            "GetDevice": Access.DEVICE,
            "RenewCertificate": Access.DEVICE,
            "BeginKeyReplacement": Access.DEVICE,
            "CompleteKeyReplacement": Access.DEVICE,
            "Unregister": Access.DEVICE,
        },
    ),
    **_service(
        "keyvouch.v1.SameDeviceService",
        dict.fromkeys(("BeginSignIn", "CompleteSignIn", "RefreshSession"), Access.DEVICE),
    ),
    **_service("grpc.health.v1.Health", _HEALTH),
    **_service("grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": Access.APPROVED_SESSION}),
    **_service("grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": Access.APPROVED_SESSION}),
}
"""Every method this server answers. Six are open."""
