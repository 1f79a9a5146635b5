"""A failed call becomes an error of `keyvouch.errors`.

The server puts `google.rpc.ErrorInfo` (domain `keyvouch`) and, where it fits, `RetryInfo` into the status details
(AIP-193). Everything without them failed on the way and is an `UnavailableError`: nothing is known to have changed.
"""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from keyvouch.errors import KeyvouchError, Reason, UnavailableError, error_for

__all__ = ["DOMAIN", "error_of"]

DOMAIN: Final = "keyvouch"

_DETAILS_KEY: Final = "grpc-status-details-bin"
_LONGEST: Final = 2000


def error_of(failure: grpc.aio.AioRpcError, *, endpoint: str) -> KeyvouchError:
    """The error a failed call stands for. `endpoint` is named where the server could not be reached."""
    status = _status(failure)
    if status is None:
        return _without_verdict(failure, endpoint)
    found, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(found)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
    if found.domain != DOMAIN:
        return _without_verdict(failure, endpoint)
    metadata = dict(found.metadata)
    return error_for(
        metadata.pop("kind", ""),
        found.reason,
        (failure.details() or "The server refused the request.")[:_LONGEST],
        fix=metadata.pop("fix", ""),
        metadata=metadata,
        retry_after=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9,
    )


def _status(failure: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in failure.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _without_verdict(failure: grpc.aio.AioRpcError, endpoint: str) -> KeyvouchError:
    code, detail = failure.code(), (failure.details() or "no further detail")[:_LONGEST]
    metadata = {"endpoint": endpoint, "status": code.name, "detail": detail}
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnavailableError(
            Reason.DEADLINE,
            f"The server {endpoint} did not answer in time.",
            fix="Try again. If it goes on, check the network and the server.",
            metadata=metadata,
        )
    if "CERTIFICATE_VERIFY_FAILED" in detail:
        return UnavailableError(
            Reason.SERVER_UNREACHABLE,
            f"What answers at {endpoint} has no certificate this device trusts.",
            fix="Check the address and the file given with --ca. If they are right, stop and tell your administrator.",
            metadata=metadata,
        )
    return UnavailableError(
        Reason.SERVER_UNREACHABLE,
        f"The server {endpoint} cannot be reached ({code.name.lower().replace('_', ' ')}).",
        fix="Check that it runs, the address, and the network. Nothing was changed.",
        metadata=metadata,
    )
