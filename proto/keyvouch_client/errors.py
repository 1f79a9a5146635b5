"""Errors across the wire: a failed gRPC call becomes the Keyvouch error the server raised, and back.

A server of Keyvouch attaches `google.rpc.ErrorInfo` to every refusal: domain `keyvouch`, the stable reason, and
metadata with `kind` (the class of the error) and `fix` (what to do next). The status message is the sentence.
`google.rpc.RetryInfo` becomes `retry_after`. A status without these details comes from the transport: those that
mean "nobody answered" become `UnavailableError`.

Not here: which reason has which status code on the Keyvouch server; that is the server's one table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from keyvouch.errors import (
    KeyvouchError,
    PermissionDeniedError,
    Reason,
    ThrottledError,
    UnauthenticatedError,
    UnavailableError,
    error_for,
)

__all__ = ["DOMAIN", "answer", "error_from", "status_for"]

DOMAIN = "keyvouch"
"""`google.rpc.ErrorInfo.domain` of every error Keyvouch raises on purpose."""

_DETAILS_KEY = "grpc-status-details-bin"
_NOBODY_ANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED)
_BROKEN_TRANSPORT = ("RST_STREAM", "Stream removed", "GOAWAY", "Socket closed", "Connection reset", "error from Core")
_BAD_CERTIFICATE = ("CERTIFICATE_VERIFY_FAILED", "Ssl handshake failed", "Hostname Verification", "SSL_ERROR")

T = TypeVar("T")


class _FailedCall(Protocol):
    """What both `grpc.Call` (threads) and `grpc.aio.AioRpcError` offer."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


async def answer(call: Awaitable[T]) -> T:
    """Await a gRPC call; raises the `KeyvouchError` that its failure stands for."""
    try:
        return await call
    except grpc.RpcError as error:
        raise error_from(error) from error


def error_from(error: grpc.RpcError) -> KeyvouchError:
    """The `KeyvouchError` a failed call stands for. Works for `grpc` and `grpc.aio`."""
    call: _FailedCall = error  # type: ignore[assignment]  # every RpcError raised by a call is one
    status = _rich_status(call)
    if status is None:
        return _transport_error(call.code(), call.details() or "")
    return _from_status(status) or _transport_error(call.code(), call.details() or "")


def _rich_status(call: _FailedCall) -> status_pb2.Status | None:
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _from_status(status: status_pb2.Status) -> KeyvouchError | None:
    told, retry_after = error_details_pb2.ErrorInfo(), 0.0
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(told)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    if told.domain != DOMAIN:
        return None
    metadata = dict(told.metadata)
    kind, fix = metadata.pop("kind", "KeyvouchError"), metadata.pop("fix", "")
    return error_for(kind, told.reason, status.message, fix=fix, metadata=metadata, retry_after=retry_after)


def _transport_error(code: grpc.StatusCode, details: str) -> KeyvouchError:
    """An error without details: the transport speaks, or a server that is not Keyvouch."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnavailableError(
            Reason.DEADLINE, "The server did not answer in time.", fix="Try again; if it stays slow, tell its operator."
        )
    if any(mark in details for mark in _BAD_CERTIFICATE):
        return UnavailableError(
            Reason.SERVER_UNREACHABLE,
            "The server's certificate is not one this client trusts.",
            fix="Name the server's CA certificate (--ca, KEYVOUCH_CA) and the host name the certificate is for.",
        )
    if code in _NOBODY_ANSWERED or any(mark in details for mark in _BROKEN_TRANSPORT):
        return UnavailableError(
            Reason.SERVER_UNREACHABLE,
            "The server cannot be reached.",
            fix="Check the address, that the server runs, and that TLS is wanted on both sides.",
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ThrottledError(Reason.THROTTLED, "The server refuses more work now.", retry_after=1.0, fix="Try later.")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return KeyvouchError(
            Reason.UNKNOWN_METHOD,
            "The server does not know this call.",
            fix="Check that the address is a Keyvouch public listener and that both sides have the same version.",
        )
    return KeyvouchError(
        Reason.INTERNAL,
        f"The server failed without saying why ({code.name.lower()}).",
        fix="Try again; if it happens again, ask the server's operator for the log of this moment.",
    )


_CODES = (
    (UnauthenticatedError, code_pb2.UNAUTHENTICATED),
    (PermissionDeniedError, code_pb2.PERMISSION_DENIED),
    (UnavailableError, code_pb2.UNAVAILABLE),
)


def status_for(error: KeyvouchError) -> status_pb2.Status:
    """The rich status by which a resource server refuses a call; `error_from` turns it back."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), code_pb2.INTERNAL)
    told = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=error.reason.value, metadata=error.metadata)
    told.metadata["kind"] = type(error).__name__
    told.metadata["fix"] = error.fix
    status = status_pb2.Status(code=code, message=error.message)
    status.details.add().Pack(told)
    return status
