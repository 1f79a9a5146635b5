"""Proofs of possession: each call of a session is proved with the session's key, so that a copied token opens nothing.

A `ProvingChannel` knows the method of each call that goes over it; where the call carries an access token of a session
whose key its `CallProver` holds, the proof goes with it. Nobody has to think of it. Not here: what a proof is
(`keyvouch.call_proof`), and sessions themselves (`session`).
"""

from __future__ import annotations

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from keyvouch import base64url
from keyvouch.call_proof import METADATA_KEY, NONCE_BYTES, make_call_proof
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.ids import ServerId

__all__ = ["CallProver", "ProofKey", "ProvingChannel"]


MOST_KEYS: Final = 1024
"""Sessions whose calls a connection proves by itself. One that is used again after a longer silence is known then."""


@dataclass(frozen=True, slots=True)
class ProofKey:
    """The key of a session."""

    session_id: str
    server_id: ServerId
    key: ec.EllipticCurvePrivateKey


class CallProver:
    """Makes proofs for the sessions of one server: for the `MOST_KEYS` that were held or used last.

    `now` is the clock in seconds since the epoch; where the server's says something else, `learn_time` sets it right.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self._ahead = 0
        self._keys: OrderedDict[str, ProofKey] = OrderedDict()

    def hold(self, key: ProofKey) -> None:
        """Prove the calls of a session from now on."""
        self._keys[key.session_id] = key
        self._keys.move_to_end(key.session_id)
        if len(self._keys) > MOST_KEYS:
            self._keys.popitem(last=False)

    def forget(self, session_id: str) -> None:
        """Let go of the key of a session that has ended."""
        self._keys.pop(session_id, None)

    def learn_time(self, refusal: KeyvouchError) -> bool:
        """Take the server's time from the refusal of a proof; whether there was one to take."""
        told = refusal.metadata.get("server_time", "") if refusal.reason is Reason.PROOF_INVALID else ""
        if not told.isdecimal() or len(told) > 12:
            return False
        self._ahead = int(told) - int(self.now())
        return True

    def proof(self, method: str, access_token: str) -> bytes:
        """The proof for a call of `method` (`/package.Service/Name`); empty for a token of no session that is held."""
        session_id = _session_of(access_token)
        held = self._keys.get(session_id)
        if held is None:
            return b""
        self._keys.move_to_end(session_id)
        return make_call_proof(
            held.key,
            server_id=held.server_id,
            method=method,
            access_token=access_token,
            now=int(self.now()) + self._ahead,
            nonce=secrets.token_bytes(NONCE_BYTES),
        )

    def proved(self, method: str, metadata: Any) -> Any:
        """The metadata of a call with its proof, or as it is where there is nothing to prove or it is proved."""
        pairs: Sequence[tuple[str, str | bytes]] = tuple(metadata or ())
        tokens = [value[7:] for key, value in pairs if key == "authorization" and str(value)[:7] == "Bearer "]
        if len(tokens) != 1 or any(key == METADATA_KEY for key, _ in pairs):
            return metadata
        proof = self.proof(method, str(tokens[0]))
        return (*pairs, (METADATA_KEY, proof)) if proof else metadata


def _session_of(access_token: str) -> str:
    """The session id that stands in an access token, unverified: it only chooses the key. Empty where there is none."""
    try:
        claims = json.loads(base64url.decode(access_token.split(".")[1]))
        session_id = claims["sid"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return session_id if isinstance(session_id, str) else ""


class ProvingChannel(aio.Channel):
    """A channel around another one, whose calls are proved where `prover` can."""

    def __init__(self, channel: aio.Channel, prover: CallProver) -> None:
        self._channel = channel
        self._prover = prover

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._proving(method, self._channel.unary_unary(method, *arguments, **options))

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._proving(method, self._channel.unary_stream(method, *arguments, **options))

    def stream_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._proving(method, self._channel.stream_unary(method, *arguments, **options))

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._proving(method, self._channel.stream_stream(method, *arguments, **options))

    def _proving(self, method: str, begin: Callable[..., Any]) -> Callable[..., Any]:
        prover = self._prover

        def call(*request: Any, metadata: Any = None, **options: Any) -> Any:
            return begin(*request, metadata=prover.proved(method, metadata) if metadata else None, **options)

        return call

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `grpc.aio.Channel`."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.__aexit__(kind, error, trace)
