"""Errors on the wire: every class and every reason has a status, details say what, and the client reads them back."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from keyvouch import errors
from keyvouch.errors import KeyvouchError, Reason, ThrottledError, UsageError
from keyvouch_client.errors import error_from
from keyvouch_server.rpc.status import DOMAIN, STATUS_OF_KIND, STATUS_OF_REASON, details_of, status_of

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, KeyvouchError)]
S = grpc.StatusCode


def make(kind: type[KeyvouchError], reason: Reason, **more: object) -> KeyvouchError:
    if kind is UsageError:
        return UsageError("It went wrong.", fix="Do it right.")
    if kind is ThrottledError:
        return ThrottledError(reason, "Not now.", retry_after=2.5, fix="Wait.", metadata={"a": "b"})
    return kind(reason, "It went wrong.", fix="Do it right.", metadata={"field": "x.y", "a": "b"})


def unpacked(error: KeyvouchError) -> tuple[status_pb2.Status, dict[str, any_pb2.Any]]:
    status = status_pb2.Status.FromString(details_of(error))
    return status, {d.type_url.rpartition(".")[2]: d for d in status.details}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_has_a_status(kind: type[KeyvouchError]):
    assert kind in STATUS_OF_KIND
    assert status_of(make(kind, Reason.STORE_SCHEMA)) is STATUS_OF_KIND[kind]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_in_every_class_has_a_status_and_details(reason: Reason):
    for kind in CLASSES:
        error = make(kind, reason)
        code = status_of(error)
        assert code is not S.OK
        assert code is not S.UNKNOWN
        status, details = unpacked(error)
        assert (status.code, status.message) == (code.value[0], error.message)
        told = error_details_pb2.ErrorInfo()
        assert details["ErrorInfo"].Unpack(told)
        assert (told.domain, told.reason) == (DOMAIN, error.reason.value)
        assert (told.metadata["kind"], told.metadata["fix"]) == (kind.__name__, error.fix)


def test_what_the_protocol_promises_of_single_reasons():
    assert {r.value: s for r, s in STATUS_OF_REASON.items()} == {
        "proof_invalid": S.UNAUTHENTICATED,
        "token_malformed": S.UNAUTHENTICATED,
        "token_invalid": S.UNAUTHENTICATED,
        "token_expired": S.UNAUTHENTICATED,
        "token_audience": S.UNAUTHENTICATED,
        "challenge_consumed": S.FAILED_PRECONDITION,
        "registration_consumed": S.FAILED_PRECONDITION,
        "policy_changed": S.ABORTED,
        "deadline": S.DEADLINE_EXCEEDED,
        "request_completed": S.FAILED_PRECONDITION,
    }


def test_throttling_says_when_and_a_bad_field_says_which():
    _, details = unpacked(make(ThrottledError, Reason.THROTTLED))
    retry = error_details_pb2.RetryInfo()
    assert details["RetryInfo"].Unpack(retry)
    assert retry.retry_delay.seconds >= 2
    assert "BadRequest" not in details
    _, details = unpacked(make(errors.MalformedError, Reason.FIELD_INVALID))
    bad = error_details_pb2.BadRequest()
    assert details["BadRequest"].Unpack(bad)
    assert [v.field for v in bad.field_violations] == ["x.y"]
    assert "RetryInfo" not in details


class FailedCall(grpc.RpcError):
    """A failed call as a client sees it, carrying what the server attached."""

    def __init__(self, error: KeyvouchError) -> None:
        super().__init__()
        self._error = error

    def code(self) -> grpc.StatusCode:
        return status_of(self._error)

    def details(self) -> str:
        return self._error.message

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return (("grpc-status-details-bin", details_of(self._error)),)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_client_gets_the_error_the_server_raised(kind: type[KeyvouchError]):
    error = make(kind, Reason.DEVICE_LIMIT)
    told = error_from(FailedCall(error))
    assert type(told) is kind
    assert (told.reason, told.message, told.fix, told.metadata) == (
        error.reason,
        error.message,
        error.fix,
        error.metadata,
    )


def test_messages_are_whole_sentences_of_any_script():
    error = KeyvouchError(Reason.USER_EXISTS, "There is a user named Zoë 小林 already.", fix="Choose another name.")
    assert error_from(FailedCall(error)).message == error.message
