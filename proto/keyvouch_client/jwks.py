"""Keys of access tokens: parsing a JWK Set (RFC 7517), keeping it, and asking again for a key id it lacks.

A key id nobody knows may be a key that is new, or a forgery; so an unknown id causes at most one question in
`ask_again_after` seconds. A set older than `believe_for` seconds is not believed any more.

Not here: verification of tokens (`keyvouch.tokens`) and rules over their claims (`access`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import base64url
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason, UnavailableError
from keyvouch.v1 import sessions_pb2, sessions_pb2_grpc
from keyvouch_client.errors import error_from

__all__ = [
    "JwksCache",
    "JwksDocument",
    "JwksSource",
    "SyncJwksCache",
    "SyncJwksSource",
    "jwks_from_channel",
    "key_id_of",
]

_LOG = logging.getLogger(__name__)
_KEPT = "No new keys of access tokens; those in hand serve until they are too old."

_FRESH = 600.0
_FIRST_PAUSE = 1.0
"""Seconds: after the first the set is asked for again; while no key is known, questions lie the second apart."""

MAX_KEYS = 64
MAX_DOCUMENT = 64 << 10
"""Longest JWK Set anyone here parses, in characters."""


@dataclass(frozen=True, slots=True)
class JwksDocument:
    """A JWK Set as text, and the issuer whose tokens its keys sign."""

    issuer: str
    text: str

    async def jwks(self) -> JwksDocument:
        """A document is its own source: keys pinned in a file need no server."""
        return self

    def keys(self) -> Mapping[str, ec.EllipticCurvePublicKey]:
        """P-256 keys by key id. Other key types are passed over (RFC 7517 section 5).

        Raises `MalformedError(TOKEN_MALFORMED)` for text that is no JWK Set, a repeated id or a broken key.
        """
        found: dict[str, ec.EllipticCurvePublicKey] = {}
        for jwk in _entries(self.text):
            if jwk.get("kty") != "EC" or jwk.get("crv") != "P-256" or jwk.get("use", "sig") != "sig":
                continue
            kid = jwk.get("kid")
            if not isinstance(kid, str) or not kid or kid in found:
                raise _malformed("a key has no id, or shares it")
            found[kid] = _p256(jwk)
        return found


def _malformed(why: str) -> MalformedError:
    return MalformedError(
        Reason.TOKEN_MALFORMED, f"This is not a JWK Set: {why}.", fix="Fetch the keys again with `keyvouch jwks`."
    )


def _entries(text: str) -> list[dict[str, object]]:
    try:
        document = json.loads(text) if len(text) <= MAX_DOCUMENT else None
    except (ValueError, RecursionError):
        document = None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS or not all(isinstance(e, dict) for e in entries):
        raise _malformed("it is not an object with a list of keys")
    return entries


def _p256(jwk: Mapping[str, object]) -> ec.EllipticCurvePublicKey:
    x, y = _coordinate(jwk.get("x")), _coordinate(jwk.get("y"))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError:
        raise _malformed("a point is not on its curve") from None


def _coordinate(value: object) -> int:
    if not isinstance(value, str) or len(value) != 43:
        raise _malformed("a coordinate does not have 32 bytes")
    try:
        return int.from_bytes(base64url.decode(value), "big")
    except ValueError:
        raise _malformed("a coordinate is not base64url") from None


def key_id_of(token: str) -> str:
    """The key id a token claims, without believing it; empty where there is none to be found."""
    head = token[:1024].partition(".")[0]
    try:
        header = json.loads(base64url.decode(head))
    except (ValueError, RecursionError):
        return ""
    kid = header.get("kid") if isinstance(header, dict) else None
    return kid if isinstance(kid, str) else ""


class JwksSource(Protocol):
    """Where keys come from: a `Connection`, or a `JwksDocument`."""

    async def jwks(self) -> JwksDocument:
        """The document as it is now. Raises `UnavailableError`."""


SyncJwksSource = Callable[[], JwksDocument]
"""The same for servers with threads: any function, for example that of `jwks_from_channel`."""


def jwks_from_channel(channel: grpc.Channel, *, deadline: float = 10.0) -> SyncJwksSource:
    """A source for `RequireSessionSync` that asks a Keyvouch server over `channel`."""
    stub = sessions_pb2_grpc.SessionServiceStub(channel)

    def ask() -> JwksDocument:
        try:
            told = stub.GetJwks(sessions_pb2.GetJwksRequest(), timeout=deadline)
        except grpc.RpcError as error:
            raise error_from(error) from error
        return JwksDocument(issuer=told.issuer, text=told.jwks)

    return ask


class _KeyRing:
    """What both caches know and decide. No I/O, no lock, the instant is an argument (monotonic seconds)."""

    def __init__(self, issuer: str, ask_again_after: float, believe_for: float) -> None:
        self.issuer = issuer
        self._ask_again_after = ask_again_after
        self._believe_for = believe_for
        self._keys: Mapping[str, ec.EllipticCurvePublicKey] = {}
        self._asked_at = self._heard_at = float("-inf")

    def wants_to_ask(self, kid: str, now: float) -> bool:
        stale = kid not in self._keys or now - self._heard_at > _FRESH
        pause = self._ask_again_after if self._keys else min(self._ask_again_after, _FIRST_PAUSE)
        return stale and now - self._asked_at >= pause

    def asking(self, now: float) -> None:
        self._asked_at = now

    def heard(self, document: JwksDocument, now: float) -> None:
        if document.issuer != self.issuer:
            raise EvidenceError(
                Reason.WRONG_SERVER,
                "The keys come from another issuer than the one this service trusts.",
                fix="Compare the configured issuer with the one the Keyvouch server names.",
            )
        self._keys, self._heard_at = document.keys(), now

    def keys(self, now: float) -> Mapping[str, ec.EllipticCurvePublicKey]:
        if now - self._heard_at > self._believe_for:
            raise UnavailableError(
                Reason.SERVER_UNREACHABLE,
                "The keys of access tokens cannot be fetched, so nobody can be let in now.",
                fix="Try again; if it lasts, check the way from this service to the Keyvouch server.",
            )
        return self._keys


class JwksCache:
    """Keys for tokens of one issuer, for `grpc.aio` servers. Questions are never asked twice at the same time."""

    def __init__(
        self, source: JwksSource, *, issuer: str, ask_again_after: float = 30.0, believe_for: float = 86_400.0
    ) -> None:
        self._source = source
        self._ring = _KeyRing(issuer, ask_again_after, believe_for)
        self._asking = asyncio.Lock()

    async def keys_for(self, token: str) -> Mapping[str, ec.EllipticCurvePublicKey]:
        """Keys by id, fresh enough to judge `token`. Raises `UnavailableError` when there are none to be had."""
        kid = key_id_of(token)
        if self._ring.wants_to_ask(kid, time.monotonic()):
            async with self._asking:
                if self._ring.wants_to_ask(kid, time.monotonic()):
                    await self._ask()
        return self._ring.keys(time.monotonic())

    async def _ask(self) -> None:
        self._ring.asking(time.monotonic())
        try:
            self._ring.heard(await self._source.jwks(), time.monotonic())
        except KeyvouchError as error:
            _LOG.warning("%s %s", _KEPT, error)


class SyncJwksCache:
    """The same for servers with threads."""

    def __init__(
        self, source: SyncJwksSource, *, issuer: str, ask_again_after: float = 30.0, believe_for: float = 86_400.0
    ) -> None:
        self._source = source
        self._ring = _KeyRing(issuer, ask_again_after, believe_for)
        self._asking = threading.Lock()

    def keys_for(self, token: str) -> Mapping[str, ec.EllipticCurvePublicKey]:
        """Keys by id, fresh enough to judge `token`. Raises `UnavailableError` when there are none to be had."""
        kid = key_id_of(token)
        if self._ring.wants_to_ask(kid, time.monotonic()):
            with self._asking:
                if self._ring.wants_to_ask(kid, time.monotonic()):
                    self._ask()
        return self._ring.keys(time.monotonic())

    def _ask(self) -> None:
        self._ring.asking(time.monotonic())
        try:
            self._ring.heard(self._source(), time.monotonic())
        except KeyvouchError as error:
            _LOG.warning("%s %s", _KEPT, error)
