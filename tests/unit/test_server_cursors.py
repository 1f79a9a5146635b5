"""Tokens of pages: good for the next page of one list, and for nothing else."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, cast

import pytest

from keyvouch import base64url
from keyvouch.errors import MalformedError, Reason
from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import common_pb2 as pb
from keyvouch.v1 import directory_pb2, oversight_pb2, sessions_pb2
from keyvouch_server.ports import Keys
from keyvouch_server.rpc.cursors import DEFAULT_PAGE, LARGEST_PAGE, Cursors
from keyvouch_server.use_cases.world import Caller
from support.sample_records import SESSION, USER, variant


class Pepper:
    """The one method of `ports.Keys` that cursors need, over a key of the test."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def mac(self, purpose: str, data: bytes) -> bytes:
        """See `ports.Keys`."""
        return hmac.digest(self._key, purpose.encode() + b"/" + data, hashlib.sha256)


CURSORS = Cursors(cast(Keys, Pepper(b"k" * 32)))
CALLER = Caller(SESSION, USER)
OTHER_USER = Caller(SESSION, variant(USER, id="usr_b"))
OTHER_TENANT = Caller(SESSION, variant(USER, tenant_id="ten_b"))


def asked(kind: Any = admin.ListDevicesRequest, token: str = "", size: int = 0, **filters: Any) -> Any:
    return kind(page=pb.PageRequest(size=size, token=token), **filters)


def token_of(*, caller: Caller = CALLER, own: bool = False, key: str = "dev_a", **options: Any) -> str:
    return CURSORS.page(caller, asked(**options), own=own).token_after(key)


def refused(request: Any, *, caller: Caller = CALLER, own: bool = False, cursors: Cursors = CURSORS) -> None:
    with pytest.raises(MalformedError) as caught:
        cursors.page(caller, request, own=own)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.metadata["field"] == "page.token"


def test_the_first_page_and_its_size():
    assert (CURSORS.page(CALLER, asked()).after, CURSORS.page(CALLER, asked()).size) == ("", DEFAULT_PAGE)
    assert CURSORS.page(CALLER, asked(size=LARGEST_PAGE)).size == LARGEST_PAGE
    assert CURSORS.page(CALLER, asked()).number == 0
    for size in (LARGEST_PAGE + 1, -1):
        with pytest.raises(MalformedError) as caught:
            CURSORS.page(CALLER, asked(size=size))
        assert caught.value.metadata["field"] == "page.size"


@pytest.mark.parametrize("key", ["dev_a", "7", "", "\N{SNOWMAN} " * 20])
def test_a_token_leads_on_where_it_was_given(key: str):
    page = CURSORS.page(CALLER, asked(token=token_of(key=key), size=7))
    assert (page.after, page.size) == (key, 7)
    assert CURSORS.page(CALLER, asked(token=token_of(key="12"))).number == 12


def test_only_a_full_page_has_a_next_one():
    page = CURSORS.page(CALLER, asked(size=2))
    assert page.next_token(["a"], str) == ""
    assert page.next_token([], str) == ""
    assert CURSORS.page(CALLER, asked(token=page.next_token(["a", "b"], str))).after == "b"


def test_a_token_is_good_for_its_own_list_alone_G12():
    token = token_of(username="ada")
    assert CURSORS.page(CALLER, asked(token=token, username="ada")).after == "dev_a"
    refused(asked(token=token))
    refused(asked(token=token, username="adam"))
    refused(asked(token=token, username="ada"), caller=OTHER_TENANT)
    refused(asked(admin.ListAccessPassesRequest, token=token, username="ada"))
    refused(asked(admin.ListAuditRecordsRequest, token=token, username="ada"))
    refused(asked(directory_pb2.ListGroupMembersRequest, token=token, group="ada"))
    refused(asked(token=token, username="ada"), cursors=Cursors(cast(Keys, Pepper(b"o" * 32))))
    refused(asked(token=token, username="ada"), own=True)
    risks = token_of(kind=oversight_pb2.ListRiskEventsRequest, open_only=True)
    refused(asked(oversight_pb2.ListRiskEventsRequest, token=risks))


def test_an_administrators_token_is_good_for_the_tenant_and_a_persons_for_that_person():
    assert CURSORS.page(OTHER_USER, asked(token=token_of())).after == "dev_a"
    own = token_of(kind=sessions_pb2.ListSessionsRequest, own=True)
    request = asked(sessions_pb2.ListSessionsRequest, token=own)
    assert CURSORS.page(CALLER, request, own=True).after == "dev_a"
    refused(request, caller=OTHER_USER, own=True)


def test_no_changed_token_is_taken_G12():
    token = token_of()
    data = base64url.decode(token)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            refused(asked(token=base64url.encode(bytes(changed))))
    for end in range(1, len(token)):
        refused(asked(token=token[:end]))
    for text in (
        token + "A",
        token + "=",
        " " + token,
        token * 20,
        "dev_a",
        "12",
        "' OR 1=1 --",
        "\N{SNOWMAN}",
        "x" * 4096,
    ):
        refused(asked(token=text))
    assert CURSORS.page(CALLER, asked(token=token)).after == "dev_a"
