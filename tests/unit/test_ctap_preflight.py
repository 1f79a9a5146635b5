"""A silent search for one credential is answered without asking the authenticator; everything else passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event

import pytest
from fido2.ctap import STATUS, CtapDevice
from fido2.ctap2.base import AssertionResponse
from fido2.hid import CAPABILITY, CTAPHID

from keyvouch import cbor
from keyvouch_agent.providers.ctap_preflight import WithoutPreflight

CREDENTIAL = {"id": b"credential", "type": "public-key"}
SEARCH = {1: "login.example.org", 2: bytes(32), 3: [CREDENTIAL], 5: {"up": False}, 6: b"p" * 16, 7: 1}


class Recorder(CtapDevice):
    """Answers everything with one byte, and remembers."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self.closed = 0

    @property
    def capabilities(self) -> CAPABILITY:
        return CAPABILITY.CBOR

    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        self.asked.append((cmd, data))
        return b"\x2e"

    def close(self) -> None:
        self.closed += 1

    @classmethod
    def list_devices(cls) -> Iterator[CtapDevice]:
        return iter(())


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def assertion(**changes: object) -> bytes:
    return b"\x02" + cbor.encode({**SEARCH, **{int(key[1:]): value for key, value in changes.items()}})


def test_search_for_one_credential_is_answered(recorder: Recorder) -> None:
    answer = WithoutPreflight(recorder).call(CTAPHID.CBOR, assertion())
    assert answer[:1] == b"\x00"
    found = AssertionResponse.from_dict(dict(cbor.decode(answer[1:])))  # as the client reads it
    assert found.credential == CREDENTIAL
    assert not recorder.asked


@pytest.mark.parametrize(
    "data",
    [
        assertion(_5={}),
        assertion(_5={"up": True}),
        assertion(_5={"up": False, "uv": True}),
        assertion(_3=[]),
        assertion(_3=[CREDENTIAL, {**CREDENTIAL, "id": b"another"}]),
        assertion(_3=b"no list"),
        b"\x02" + cbor.encode([]),
        b"\x02\xff",
        b"\x02",
        b"\x01" + assertion()[1:],
        b"",
    ],
)
def test_everything_else_passes(recorder: Recorder, data: bytes) -> None:
    assert WithoutPreflight(recorder).call(CTAPHID.CBOR, data) == b"\x2e"
    assert recorder.asked == [(CTAPHID.CBOR, data)]


def test_other_commands_pass_and_the_device_is_closed(recorder: Recorder) -> None:
    device = WithoutPreflight(recorder)
    assert device.call(CTAPHID.MSG, assertion()) == b"\x2e"
    assert device.capabilities == CAPABILITY.CBOR
    device.close()
    assert recorder.closed == 1
    assert list(WithoutPreflight.list_devices()) == []
