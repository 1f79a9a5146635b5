"""A failed call becomes the error the server meant, or says that there was no verdict."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from keyvouch.errors import KeyvouchError, Reason, ThrottledError, UnauthenticatedError, UnavailableError
from keyvouch_agent.rpc.errors import error_of
from support.fake_sign_in_server import rich_status


def failure(
    code: grpc.StatusCode, details: str = "", trailing: tuple[tuple[str, bytes], ...] = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=details)


def told(error: KeyvouchError) -> KeyvouchError:
    """The error after its way over the wire."""
    status = rich_status(error)
    return error_of(failure(status.code, status.details, tuple(status.trailing_metadata)), endpoint="server:1")


def test_class_reason_sentence_fix_and_data_survive() -> None:
    sent = UnauthenticatedError(Reason.DEVICE_REMOVED, "Removed.", fix="Enrol again.", metadata={"device": "dev_x"})
    got = told(sent)
    assert type(got) is UnauthenticatedError
    assert (got.reason, got.message, got.fix, got.metadata) == (sent.reason, sent.message, sent.fix, sent.metadata)


def test_the_time_to_wait_survives() -> None:
    got = told(ThrottledError(Reason.THROTTLED, "Slow down.", retry_after=2.5))
    assert isinstance(got, ThrottledError)
    assert got.retry_after == pytest.approx(2.5)


def test_a_reason_of_a_newer_server_is_kept() -> None:
    status = status_pb2.Status(code=3, message="New.")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="keyvouch", reason="from_the_future"))
    trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    got = error_of(failure(grpc.StatusCode.INVALID_ARGUMENT, "New.", trailing), endpoint="server:1")
    assert (got.reason, got.metadata["reason"]) == (Reason.INTERNAL, "from_the_future")


@pytest.mark.parametrize(
    ("code", "details", "trailing", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection refused", (), Reason.SERVER_UNREACHABLE),
        (grpc.StatusCode.UNAVAILABLE, "x CERTIFICATE_VERIFY_FAILED y", (), Reason.SERVER_UNREACHABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", (), Reason.DEADLINE),
        (grpc.StatusCode.UNKNOWN, "", (("grpc-status-details-bin", b"\xff\xff"),), Reason.SERVER_UNREACHABLE),
        (grpc.StatusCode.UNIMPLEMENTED, "no such method", (), Reason.SERVER_UNREACHABLE),
    ],
)
def test_what_failed_on_the_way_is_no_verdict(
    code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, bytes], ...], reason: Reason
) -> None:
    got = error_of(failure(code, details, trailing), endpoint="server:1")
    assert isinstance(got, UnavailableError)
    assert got.reason is reason
    assert "server:1" in got.message
    assert got.fix


def test_details_of_another_domain_are_no_verdict() -> None:
    status = status_pb2.Status(code=16)
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="proxy", reason="device_removed"))
    trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    got = error_of(failure(grpc.StatusCode.UNAUTHENTICATED, "", trailing), endpoint="server:1")
    assert got.reason is Reason.SERVER_UNREACHABLE
