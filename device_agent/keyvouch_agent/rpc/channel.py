"""Channels to the server: the public listener (TLS) and the device listener (mutual TLS, pinned).

Each channel has its own connection and no back-off of the library's: whoever opens it decides when to try again.
The agent pings an idle stream every 30 seconds and gives a silent server 10 to answer.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import grpc

from keyvouch.errors import KeyvouchError, Reason, UnavailableError
from keyvouch_agent.channel_identity import VerifiedChain, verify_chain
from keyvouch_agent.channel_keys import ChannelKeys, SealedChannelKey
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.rpc.errors import error_of
from keyvouch_agent.rpc.signed_channel import ChannelSigner, signed_credentials

__all__ = ["PING_SECONDS", "EnrolledChannel", "enrolled_channel", "public_channel", "reach"]

PING_SECONDS: Final = 30
_LONGEST_MESSAGE: Final = 256 * 1024
_SETTLING_SECONDS: Final = 0.1
"""What a channel whose key signs in Python is left alone for before it is closed.

gRPC 1.85 destroys a channel while it holds Python's global lock, and waits for its own threads meanwhile; one of those
may be about to drop the signer, for which it needs that lock (grpc/grpc#42247). Without this pause 14 of 632 programs
that made one call hung for good, with half of it none of 500.
"""

_REACH_SECONDS: Final = 5.0
"""How long to wait for a listener to answer at all."""

_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""Where gRPC's own way to a server is found. What a plain connection says is of no use then."""

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", _LONGEST_MESSAGE),
    ("grpc.max_send_message_length", _LONGEST_MESSAGE),
    ("grpc.max_metadata_size", 8192),
    ("grpc.enable_retries", 0),
    # A shared connection would share its back-off too.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


def public_channel(endpoint: str, *, authority_pem: bytes | None) -> grpc.aio.Channel:
    """A TLS channel to the public listener; `authority_pem` of None trusts the library's usual anchors."""
    credentials = grpc.ssl_channel_credentials(root_certificates=authority_pem)
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)


async def reach(endpoint: str) -> None:
    """Connect to a listener and hang up: is the way open? Who answers is for TLS to say, when there is a certificate.

    Raises `UnavailableError(SERVER_UNREACHABLE)`. Where there is a proxy nothing is asked.
    """
    if any(os.environ.get(name) for name in _PROXIES):
        return
    try:
        async with asyncio.timeout(_REACH_SECONDS):
            writer = await _connected(endpoint)
    except (OSError, ValueError, TimeoutError):
        raise UnavailableError(
            Reason.SERVER_UNREACHABLE,
            f"The device listener {endpoint} cannot be reached from here, so no sign-in request could ever come.",
            fix="Open the way from this device to it, or tell your administrator that it is closed. Nobody was asked "
            "for a PIN, and nothing was registered.",
            metadata={"endpoint": endpoint, "prerequisites": f"device_endpoint={Reason.SERVER_UNREACHABLE.value}"},
        ) from None
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _connected(endpoint: str) -> asyncio.StreamWriter:
    """A connection to the first address of an endpoint that takes one. Raises `OSError` of the last."""
    host, _, port = endpoint.rpartition(":")
    # gRPC knows what localhost is (RFC 6761 section 6.3), also on a machine whose resolver does not.
    hosts = ["127.0.0.1", "::1"] if host == "localhost" else [host.strip("[]")]
    refusal: OSError | None = None
    for one in hosts:
        try:
            return (await asyncio.open_connection(one, int(port)))[1]
        except OSError as error:
            refusal = refusal or error
    raise refusal or OSError("no address")


@dataclass(frozen=True, slots=True)
class EnrolledChannel:
    """A mutual TLS channel to a device listener. `signer` is None where the TLS library holds the key itself."""

    channel: grpc.aio.Channel
    endpoint: str
    signer: ChannelSigner | None = None

    def error_of(self, failure: grpc.aio.AioRpcError) -> KeyvouchError:
        """The error a failed call stands for: the key's own, where the channel did not open because of it."""
        error = error_of(failure, endpoint=self.endpoint)
        if isinstance(error, UnavailableError) and self.signer is not None and self.signer.failure is not None:
            return self.signer.failure
        return error

    async def close(self) -> None:
        """End the channel, and forget what went wrong: an error holds its call, and the call would hold the signer."""
        if self.signer is None:
            await self.channel.close()
            return
        await asyncio.sleep(_SETTLING_SECONDS)
        await self.channel.close()
        self.signer.failure = None


def enrolled_channel(enrolment: Enrolment, keys: ChannelKeys) -> EnrolledChannel:
    """A mutual TLS channel to an enrolment's device listener. Its one anchor is the identity key's certificate.

    Raises `EvidenceError` where the record's chain does not end there, and the `DeviceError` of a key that is damaged
    or of a missing kind.
    """
    key = keys.load(enrolment.channel_key)
    chain = verify_chain(enrolment.certificate_chain, server_id=enrolment.server_id, channel_key=key.spki)
    if isinstance(key, SealedChannelKey):
        return _open(enrolment.device_endpoint, _held_credentials(key, chain))
    signer = ChannelSigner(key)
    credentials = signed_credentials(signer, chain_pem=chain.pem, root_pem=chain.authority_pem)
    return _open(enrolment.device_endpoint, credentials, signer)


def _held_credentials(key: SealedChannelKey, chain: VerifiedChain) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=chain.authority_pem, private_key=key.pem, certificate_chain=chain.pem
    )


def _open(endpoint: str, credentials: grpc.ChannelCredentials, signer: ChannelSigner | None = None) -> EnrolledChannel:
    return EnrolledChannel(grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS), endpoint, signer)
