"""Errors across the wire, as a client reads them."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio

from keyvouch.errors import (
    ConflictError,
    KeyvouchError,
    PermissionDeniedError,
    Reason,
    ThrottledError,
    UnauthenticatedError,
    UnavailableError,
)
from keyvouch_client.backoff import Backoff, persist
from keyvouch_client.errors import error_from, status_for
from keyvouch_client.outcomes import error_for_state


def failed(code: grpc.StatusCode, details: str = "", rich: bytes | None = None) -> aio.AioRpcError:
    trailing = aio.Metadata(*([("grpc-status-details-bin", rich)] if rich is not None else []))
    return aio.AioRpcError(code, aio.Metadata(), trailing, details=details)


def rich(code: int, message: str, *details: object) -> bytes:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    encoded: bytes = status.SerializeToString()
    return encoded


def told(kind: str, reason: str, **more: str) -> object:
    return error_details_pb2.ErrorInfo(domain="keyvouch", reason=reason, metadata={"kind": kind, **more})


def test_the_error_of_the_server_comes_back_whole() -> None:
    data = rich(code_pb2.ALREADY_EXISTS, "Taken.", told("ConflictError", "user_exists", fix="Choose.", user="ada"))
    error = error_from(failed(grpc.StatusCode.ALREADY_EXISTS, "Taken.", data))
    assert type(error) is ConflictError
    assert (error.reason, error.message, error.fix) == (Reason.USER_EXISTS, "Taken.", "Choose.")
    assert error.metadata == {"user": "ada"}


def test_throttling_has_its_delay() -> None:
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromMilliseconds(1500)
    data = rich(code_pb2.RESOURCE_EXHAUSTED, "Slow.", told("ThrottledError", "throttled"), delay)
    error = error_from(failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "Slow.", data))
    assert isinstance(error, ThrottledError)
    assert error.retry_after == 1.5


def test_a_newer_server_has_reasons_this_client_survives() -> None:
    data = rich(code_pb2.ABORTED, "New.", told("FutureError", "future_reason"))
    error = error_from(failed(grpc.StatusCode.ABORTED, "New.", data))
    assert (type(error), error.reason, error.metadata) == (KeyvouchError, Reason.INTERNAL, {"reason": "future_reason"})


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff rubbish",
        rich(code_pb2.UNAVAILABLE, "x"),
        rich(
            code_pb2.UNAVAILABLE,
            "x",
            error_details_pb2.ErrorInfo(domain="other.example", reason="user_exists", metadata={"kind": "UsageError"}),
        ),
    ],
)
def test_details_that_are_not_ours_are_not_believed(data: bytes) -> None:
    error = error_from(failed(grpc.StatusCode.UNAVAILABLE, "x", data))
    assert (type(error), error.reason) == (UnavailableError, Reason.SERVER_UNREACHABLE)


@pytest.mark.parametrize(
    ("code", "details", "kind", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "", UnavailableError, Reason.SERVER_UNREACHABLE),
        (grpc.StatusCode.CANCELLED, "", UnavailableError, Reason.SERVER_UNREACHABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", UnavailableError, Reason.DEADLINE),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM", UnavailableError, Reason.SERVER_UNREACHABLE),
        (grpc.StatusCode.UNKNOWN, "Stream removed", UnavailableError, Reason.SERVER_UNREACHABLE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", ThrottledError, Reason.THROTTLED),
        (grpc.StatusCode.UNIMPLEMENTED, "", KeyvouchError, Reason.UNKNOWN_METHOD),
        (grpc.StatusCode.INTERNAL, "secret detail", KeyvouchError, Reason.INTERNAL),
    ],
)
def test_the_transport_speaks_when_no_server_does(
    code: grpc.StatusCode, details: str, kind: type[KeyvouchError], reason: Reason
) -> None:
    error = error_from(failed(code, details))
    assert (type(error), error.reason) == (kind, reason)
    assert error.fix
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "error",
    [
        UnauthenticatedError(Reason.TOKEN_EXPIRED, "Over.", fix="Refresh."),
        PermissionDeniedError(Reason.STRENGTH_REQUIRED, "Weak.", fix="Again.", metadata={"found": "x"}),
        UnavailableError(Reason.SERVER_UNREACHABLE, "Gone.", fix="Later."),
    ],
)
def test_a_resource_server_refuses_in_a_form_its_clients_read(error: KeyvouchError) -> None:
    status = status_for(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    back = error_from(failed(code, status.message, status.SerializeToString()))
    assert (type(back), back.reason, back.message, back.fix) == (type(error), error.reason, error.message, error.fix)
    assert back.metadata == error.metadata


def test_states_that_go_on_are_no_errors() -> None:
    assert error_for_state(1) is None
    assert error_for_state(2) is None
    assert error_for_state(99) is None


def test_waits_grow_to_their_limit() -> None:
    backoff = Backoff(first=0.1, longest=2.0)
    for attempt, limit in enumerate((0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0)):
        assert limit / 2 <= backoff.delay(attempt) <= limit
    assert backoff.delay(10_000) <= 2.0


async def test_what_is_unavailable_is_tried_until_the_time_is_up() -> None:
    calls = 0

    async def attempt() -> None:
        nonlocal calls
        calls += 1
        raise UnavailableError(Reason.SERVER_UNREACHABLE, "Gone.")

    with pytest.raises(UnavailableError):
        await persist(attempt, seconds=0.2, backoff=Backoff(0.01, 0.05))
    assert calls > 3


async def test_a_refusal_is_not_tried_again() -> None:
    calls = 0

    async def attempt() -> None:
        nonlocal calls
        calls += 1
        raise ConflictError(Reason.USER_EXISTS, "No.")

    with pytest.raises(ConflictError):
        await persist(attempt, seconds=5, backoff=Backoff(0.01, 0.05))
    assert calls == 1
