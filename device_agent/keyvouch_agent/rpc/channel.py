"""Channels to the server: the public listener (TLS) and the device listener (mutual TLS, pinned).

Each channel has its own connection and no back-off of the library's: whoever opens it decides when to try again.
The agent pings an idle stream every 30 seconds and gives a silent server 10 to answer.
"""

from __future__ import annotations

from typing import Final

import grpc

from keyvouch_agent.channel_identity import ChannelKey, verify_chain
from keyvouch_agent.ledger import Enrolment

__all__ = ["PING_SECONDS", "enrolled_channel", "public_channel"]

PING_SECONDS: Final = 30
_LONGEST_MESSAGE: Final = 256 * 1024

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


def enrolled_channel(enrolment: Enrolment) -> grpc.aio.Channel:
    """A mutual TLS channel to an enrolment's device listener. Its one anchor is the identity key's certificate.

    Raises `EvidenceError` where the record's chain does not end there, `DeviceError(LEDGER_CORRUPT)` for its key.
    """
    key = ChannelKey(enrolment.channel_key)
    chain = verify_chain(enrolment.certificate_chain, server_id=enrolment.server_id, channel_key=key.spki)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=chain.authority_pem, private_key=key.pem, certificate_chain=chain.pem
    )
    return grpc.aio.secure_channel(enrolment.device_endpoint, credentials, options=_OPTIONS)
