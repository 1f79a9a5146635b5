"""An authenticator over a card on the bench, and somebody who types its PIN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.authenticator.status import Status
from support.authenticators import PIN, USER, Bench, ScriptedEntry, credential_id
from support.memory_vault import MemoryCard


def card_bench(card: MemoryCard | None = None, *, protocol: int = 2) -> Bench:
    bench = Bench(card or MemoryCard(PIN), protocol=protocol)
    bench.entry = ScriptedEntry()
    return bench


def flags_of(response: Mapping[int, Any]) -> Flags:
    return AuthenticatorData(response[2]).flags


def made(bench: Bench, *, rk: bool = False, user: Mapping[str, object] = USER) -> bytes:
    """Make a credential and return its id."""
    status, response = bench.make(bench.uv_token(), k3=user, k7={"rk": rk})
    assert status is Status.SUCCESS, status.name
    return credential_id(response)
