"""OversightService: other people's sessions, risk events, explanations, receipts, checkpoints."""

from __future__ import annotations

from typing import Any, Final

from keyvouch.v1 import common_pb2 as common
from keyvouch.v1 import oversight_pb2 as pb
from keyvouch_server.domain.evaluation import Wanted
from keyvouch_server.domain.model import SignInMethod
from keyvouch_server.domain.names import check_text, invalid_field
from keyvouch_server.domain.oversight_model import RiskKind
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.audit_evidence import AuditEvidenceServicer
from keyvouch_server.rpc.cursors import Cursors
from keyvouch_server.rpc.interceptors import caller_of
from keyvouch_server.rpc.sign_in_messages import method_from, rule_message
from keyvouch_server.use_cases.audit_log import AuditLog
from keyvouch_server.use_cases.explanations import Explanation, Explanations
from keyvouch_server.use_cases.oversight import Oversight, RiskView, SessionsOf
from keyvouch_server.use_cases.receipts import Receipts

_RISK: Final = {kind: pb.RiskKind.Value(f"RISK_KIND_{kind.name}") for kind in RiskKind}


class OversightServicer(AuditEvidenceServicer):
    """Serves keyvouch.v1.OversightService; receipts and checkpoints as `AuditEvidenceServicer` does."""

    def __init__(
        self,
        oversight: Oversight,
        explanations: Explanations,
        receipts: Receipts,
        audit_log: AuditLog,
        cursors: Cursors,
    ) -> None:
        super().__init__(receipts, audit_log, cursors)
        self._oversight = oversight
        self._explanations = explanations

    async def ListUserSessions(self, request: pb.ListUserSessionsRequest, context: Any) -> pb.ListUserSessionsResponse:
        """See oversight.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._oversight.sessions(caller_of(), request.user, after=page.after, limit=page.size)
        return pb.ListUserSessionsResponse(
            sessions=[convert.session(v.session, v.user) for v in rows],
            next_token=page.next_token(rows, lambda v: v.session.id),
        )

    async def RevokeSessions(self, request: pb.RevokeSessionsRequest, context: Any) -> pb.RevokeSessionsResponse:
        """See oversight.proto."""
        named = request.WhichOneof("of")
        if named is None or not getattr(request, named):
            raise invalid_field("of", "a user, a device, a session, or the whole tenant")
        ended = await self._oversight.revoke(caller_of(), SessionsOf(**{named: getattr(request, named)}))
        return pb.RevokeSessionsResponse(revoked_sessions=ended)

    async def ListRiskEvents(self, request: pb.ListRiskEventsRequest, context: Any) -> pb.ListRiskEventsResponse:
        """See oversight.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._oversight.risk_events(
            caller_of(), request.user, open_only=request.open_only, after=page.after, limit=page.size
        )
        return pb.ListRiskEventsResponse(
            events=[_risk_event(v) for v in rows], next_token=page.next_token(rows, lambda v: v.key)
        )

    async def CloseRiskEvent(self, request: pb.CloseRiskEventRequest, context: Any) -> pb.CloseRiskEventResponse:
        """See oversight.proto."""
        closed = await self._oversight.close_risk_event(caller_of(), request.risk_event_id)
        return pb.CloseRiskEventResponse(event=_risk_event(closed))

    async def ExplainSignIn(self, request: pb.ExplainSignInRequest, context: Any) -> pb.ExplainSignInResponse:
        """See oversight.proto."""
        if request.HasField("question"):
            return _explained(await self._answer(request.question))
        return _explained(await self._explanations.of_sign_in(caller_of(), request.sign_in_id))

    async def _answer(self, question: pb.SignInQuestion) -> Explanation:
        check_text(question.app_id, "question.app_id", longest=128)
        check_text(question.audience, "question.audience", longest=256, required=False)
        method = method_from(question.method) or SignInMethod.APPROVAL
        required = ""
        if question.HasField("required_assurance"):
            required = convert.requirement_from(question.required_assurance, "question.required_assurance")
        wanted = Wanted(
            question.app_id,
            question.audience or question.app_id,
            required_assurance=required,
            phishing_resistant=question.phishing_resistant,
        )
        return await self._explanations.of_question(caller_of(), question.user, method, wanted)


def _risk_event(view: RiskView) -> pb.RiskEvent:
    event = view.event
    return pb.RiskEvent(
        risk_event_id=event.id,
        kind=_RISK[event.kind],
        user_id=event.user_id if view.user else "",
        username=view.user.username if view.user else "",
        at=event.at,
        address=event.address,
        subject=event.subject,
        message=event.message,
        closed_at=event.closed_at,
        closed_by=event.closed_by,
    )


def _explained(told: Explanation) -> pb.ExplainSignInResponse:
    return pb.ExplainSignInResponse(
        rules=[rule_message(one) for one in told.verdicts],
        allowed=told.allowed,
        policy_version=told.policy_version,
        state=convert.state(told.state) if told.state else common.SIGN_IN_STATE_UNSPECIFIED,
        user_id=told.user_id,
    )
