"""PolicyService: previews, versions and the way back, over `use_cases.policies`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from keyvouch.v1 import common_pb2
from keyvouch.v1 import policies_pb2 as pb
from keyvouch.v1 import policies_pb2_grpc as rpc
from keyvouch_server.domain.model import SignInMethod
from keyvouch_server.domain.policy_differences import Difference
from keyvouch_server.rpc.cursors import Cursors
from keyvouch_server.rpc.interceptors import caller_of
from keyvouch_server.rpc.policy_messages import policy_from, policy_message
from keyvouch_server.use_cases.policies import Policies, SavedPolicy
from keyvouch_server.use_cases.policy_effects import AffectedUser

_METHOD: Final = {m: common_pb2.SignInMethod.Value(f"SIGN_IN_METHOD_{m.name}") for m in SignInMethod}


class PolicyServicer(rpc.PolicyServiceServicer):
    """Serves keyvouch.v1.PolicyService."""

    def __init__(self, policies: Policies, cursors: Cursors) -> None:
        self._policies = policies
        self._cursors = cursors

    async def PreviewPolicy(self, request: pb.PreviewPolicyRequest, context: Any) -> pb.PreviewPolicyResponse:
        """See policies.proto."""
        page = self._cursors.page(caller_of(), request)
        wanted = request.roll_back_to or policy_from(request.policy)
        found = await self._policies.preview(caller_of(), wanted, last=page.after, limit=page.size)
        effects = found.effects
        return pb.PreviewPolicyResponse(
            differences=_differences(found.differences),
            users=[_user(one) for one in effects.users],
            examined=effects.examined,
            next_token=page.token_after(effects.last) if effects.last else "",
            locks_out=found.locks_out,
        )

    async def ListPolicyVersions(
        self, request: pb.ListPolicyVersionsRequest, context: Any
    ) -> pb.ListPolicyVersionsResponse:
        """See policies.proto."""
        page = self._cursors.page(caller_of(), request)
        rows, is_last = await self._policies.versions(caller_of(), before=page.number, limit=page.size)
        return pb.ListPolicyVersionsResponse(
            versions=[_saved(one) for one in rows],
            next_token="" if is_last else page.token_after(str(rows[-1].version.version)),
        )

    async def GetPolicyVersion(self, request: pb.GetPolicyVersionRequest, context: Any) -> pb.GetPolicyVersionResponse:
        """See policies.proto."""
        saved, policy = await self._policies.version(caller_of(), request.version)
        return pb.GetPolicyVersionResponse(saved=_saved(saved), policy=policy_message(policy))

    async def RollBackPolicy(self, request: pb.RollBackPolicyRequest, context: Any) -> pb.RollBackPolicyResponse:
        """See policies.proto."""
        saved = await self._policies.roll_back(
            caller_of(), request.version, request.present_version, accept_lock_out=request.accept_lock_out
        )
        return pb.RollBackPolicyResponse(policy=policy_message(saved))


def _differences(found: Iterable[Difference]) -> list[pb.PolicyDifference]:
    return [pb.PolicyDifference(setting=one.setting, before=one.before, after=one.after) for one in found]


def _saved(one: SavedPolicy) -> pb.PolicyVersion:
    return pb.PolicyVersion(
        version=one.version.version,
        created_at=one.version.created_at,
        created_by=one.version.created_by,
        differences=_differences(one.differences),
    )


def _user(one: AffectedUser) -> pb.AffectedUser:
    return pb.AffectedUser(
        user_id=one.user.id,
        username=one.user.username,
        methods=[
            pb.AffectedMethod(
                method=_METHOD[method.method],
                usable_before=method.usable_before,
                usable_after=method.usable_after,
                reason=method.reason,
                app_id=method.app_id,
            )
            for method in one.methods
        ],
        credentials=[
            pb.AffectedCredential(
                device_id=key.device.id,
                display_name=key.device.display_name,
                credential_id=key.credential_id,
                accepted_before=key.accepted_before,
                accepted_after=key.accepted_after,
                reason=key.reason,
            )
            for key in one.credentials
        ],
        campaigns=[
            pb.AffectedCampaign(
                name=campaign.name,
                required_by_before=campaign.required_by_before,
                required_by_after=campaign.required_by_after,
            )
            for campaign in one.campaigns
        ],
    )
