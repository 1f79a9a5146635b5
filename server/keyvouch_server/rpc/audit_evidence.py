"""The half of OversightService that gives out what can be verified elsewhere: receipts and audit checkpoints."""

from __future__ import annotations

from typing import Any

from keyvouch.v1 import oversight_pb2 as pb
from keyvouch.v1 import oversight_pb2_grpc as rpc
from keyvouch_server.rpc.cursors import Cursors
from keyvouch_server.rpc.interceptors import caller_of
from keyvouch_server.use_cases.audit_log import AuditLog
from keyvouch_server.use_cases.receipts import Receipts


class AuditEvidenceServicer(rpc.OversightServiceServicer):
    """Serves two calls of keyvouch.v1.OversightService; `rpc.oversight` has the others."""

    def __init__(self, receipts: Receipts, audit_log: AuditLog, cursors: Cursors) -> None:
        self._receipts = receipts
        self._audit_log = audit_log
        self._cursors = cursors

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.GetReceiptResponse:
        """See oversight.proto."""
        receipt = await self._receipts.receipt_of_sign_in(caller_of(), request.sign_in_id)
        return pb.GetReceiptResponse(receipt=receipt)

    async def ListAuditCheckpoints(
        self, request: pb.ListAuditCheckpointsRequest, context: Any
    ) -> pb.ListAuditCheckpointsResponse:
        """See oversight.proto."""
        page = self._cursors.page(caller_of(), request)
        rows = await self._audit_log.checkpoints(caller_of(), before=page.number, limit=page.size)
        return pb.ListAuditCheckpointsResponse(
            checkpoints=[
                pb.AuditCheckpoint(chain_number=r.chain_number, hash=r.hash, at=r.at, signature=r.signature)
                for r in rows
            ],
            next_token=page.next_token(rows, lambda r: r.chain_number),
        )
