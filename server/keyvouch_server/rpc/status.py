"""The one table from errors to gRPC status, and the details every refusal carries.

A status has `google.rpc.ErrorInfo` (domain `keyvouch`, the stable reason, metadata with the error's class as
`kind` and what to do next as `fix`), and `RetryInfo`, `BadRequest` or `PreconditionFailure` where they fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from keyvouch.errors import (
    ConflictError,
    DeviceError,
    EvidenceError,
    KeyvouchError,
    MalformedError,
    NotFoundError,
    PermissionDeniedError,
    Reason,
    RefusedError,
    ThrottledError,
    UnauthenticatedError,
    UnavailableError,
    UsageError,
)

DOMAIN: Final = "keyvouch"

_S = grpc.StatusCode
STATUS_OF_KIND: Final[Mapping[type[KeyvouchError], grpc.StatusCode]] = {
    MalformedError: _S.INVALID_ARGUMENT,
    EvidenceError: _S.INVALID_ARGUMENT,
    UnauthenticatedError: _S.UNAUTHENTICATED,
    PermissionDeniedError: _S.PERMISSION_DENIED,
    NotFoundError: _S.NOT_FOUND,
    ConflictError: _S.ALREADY_EXISTS,
    ThrottledError: _S.RESOURCE_EXHAUSTED,
    RefusedError: _S.FAILED_PRECONDITION,
    DeviceError: _S.FAILED_PRECONDITION,
    UnavailableError: _S.UNAVAILABLE,
    UsageError: _S.INTERNAL,
    KeyvouchError: _S.INTERNAL,
}
"""Each class of the error tree has its status."""

STATUS_OF_REASON: Final[Mapping[Reason, grpc.StatusCode]] = {
    Reason.PROOF_INVALID: _S.UNAUTHENTICATED,
    Reason.TOKEN_MALFORMED: _S.UNAUTHENTICATED,
    Reason.TOKEN_INVALID: _S.UNAUTHENTICATED,
    Reason.TOKEN_EXPIRED: _S.UNAUTHENTICATED,
    Reason.TOKEN_AUDIENCE: _S.UNAUTHENTICATED,
    Reason.CHALLENGE_CONSUMED: _S.FAILED_PRECONDITION,
    Reason.REGISTRATION_CONSUMED: _S.FAILED_PRECONDITION,
    Reason.POLICY_CHANGED: _S.ABORTED,
    Reason.DEADLINE: _S.DEADLINE_EXCEEDED,
    Reason.REQUEST_COMPLETED: _S.FAILED_PRECONDITION,
}
"""Reasons whose status differs from that of their class."""


def status_of(error: KeyvouchError) -> grpc.StatusCode:
    """The status code of an error."""
    return STATUS_OF_REASON.get(error.reason) or STATUS_OF_KIND[type(error)]


def details_of(error: KeyvouchError) -> bytes:
    """The serialised `google.rpc.Status` that travels as `grpc-status-details-bin`."""
    metadata = {**error.metadata, "kind": type(error).__name__}
    if error.fix:
        metadata["fix"] = error.fix
    details = [_packed(error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata))]
    if isinstance(error, ThrottledError):
        delay = duration_pb2.Duration(seconds=math.ceil(error.retry_after))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if "field" in error.metadata:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.metadata["field"], description=str(error))
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    code: int = status_of(error).value[0]
    encoded: bytes = status_pb2.Status(code=code, message=error.message, details=details).SerializeToString()
    return encoded


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo | error_details_pb2.BadRequest,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


async def abort(context: grpc.aio.ServicerContext[object, object], error: KeyvouchError) -> None:
    """End the call with the error's status. Never returns normally."""
    await context.abort(
        status_of(error),
        error.message,
        trailing_metadata=(("grpc-status-details-bin", details_of(error)),),
    )
