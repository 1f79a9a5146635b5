"""The way to a server: one gRPC channel to its public listener, with TLS.

    async with Connection("keyvouch.example.org:7443", ca_file=Path("ca.pem")) as connection:
        identity = await connection.identity()

TLS is verified against `ca_file` where one is named, else against gRPC's own set of public roots. Plaintext exists for
development alone: on a loopback address, and only when `insecure_loopback=True` asks for it.

Not here: what is said over the channel (`sign_in`, `session`), and how errors are read (`errors`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from keyvouch.errors import EvidenceError, MalformedError, Reason, UsageError
from keyvouch.ids import ServerId
from keyvouch.v1 import (
    administration_pb2_grpc,
    directory_pb2_grpc,
    oversight_pb2_grpc,
    policies_pb2_grpc,
    security_info_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    sign_in_pb2_grpc,
)
from keyvouch_client.backoff import Backoff
from keyvouch_client.call_proofs import CallProver, ProvingChannel
from keyvouch_client.errors import answer
from keyvouch_client.jwks import JwksDocument

__all__ = ["Connection", "ServerIdentity"]

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.max_metadata_size", 16 << 10),
)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Who the server is: `server_id` (32 bytes) stands in every statement, `issuer` in every access token."""

    server_id: ServerId
    issuer: str
    jwks: str
    keys: dict[str, ec.EllipticCurvePublicKey]


class Connection:
    """A channel to the public listener `server` (`host:port`), and the stubs that speak over it.

    `host` is the name or address TLS is verified for, `deadline` the time in seconds a unary call may take. The object
    may be shared by any number of tasks of one event loop. Calls of sessions that were opened over it, or are kept with
    it, are proved with the key of the session (`prover`). Raises `UsageError` for an address that is not `host:port`,
    a CA file that cannot be read, or plaintext to anything but a loopback address.
    """

    def __init__(
        self,
        server: str,
        *,
        ca_file: Path | None = None,
        insecure_loopback: bool = False,
        deadline: float = 15.0,
        backoff: Backoff | None = None,
    ) -> None:
        host = _host_of(server)
        if insecure_loopback and not _is_loopback(host):
            raise UsageError(
                "Plaintext is possible to a loopback address only.", fix="Use TLS, and name the CA with a CA file."
            )
        self.server = server
        self.host = host
        self.ca_file = ca_file
        self.insecure_loopback = insecure_loopback
        self.deadline = deadline
        self.backoff = backoff or Backoff()
        options = [*_OPTIONS, ("grpc.enable_http_proxy", 0 if _is_loopback(host) else 1)]
        self.prover = CallProver()
        channel = (
            aio.insecure_channel(server, options)
            if insecure_loopback
            else aio.secure_channel(server, _tls_credentials(ca_file), options)
        )
        self.channel: aio.Channel = ProvingChannel(channel, self.prover)
        self.sign_ins = sign_in_pb2_grpc.SignInServiceStub(self.channel)
        self.sessions = sessions_pb2_grpc.SessionServiceStub(self.channel)
        self.security_info = security_info_pb2_grpc.SecurityInfoServiceStub(self.channel)
        self.administration = administration_pb2_grpc.AdministrationServiceStub(self.channel)
        self.directory = directory_pb2_grpc.DirectoryServiceStub(self.channel)
        self.policies = policies_pb2_grpc.PolicyServiceStub(self.channel)
        self.oversight = oversight_pb2_grpc.OversightServiceStub(self.channel)
        self._identity: ServerIdentity | None = None
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self.channel.close()

    async def identity(self) -> ServerIdentity:
        """Who the server is, asked once. Raises `UnavailableError`, or `MalformedError` for an answer that is none."""
        async with self._asking:
            if self._identity is None:
                self._identity = await self._ask_identity()
            return self._identity

    async def jwks(self) -> JwksDocument:
        """The keys of access tokens as they are now; makes a connection a source of keys for `RequireSession`."""
        fresh = await self._ask_identity()
        known = self._identity
        if known is not None and known.server_id != fresh.server_id:
            raise EvidenceError(
                Reason.WRONG_SERVER,
                "The server at this address has another identity than before.",
                fix="Find out who runs the server now before you go on; then restart this program.",
            )
        self._identity = fresh
        return JwksDocument(issuer=fresh.issuer, text=fresh.jwks)

    async def _ask_identity(self) -> ServerIdentity:
        told = await answer(self.sessions.GetJwks(sessions_pb2.GetJwksRequest(), timeout=self.deadline))
        document = JwksDocument(issuer=told.issuer, text=told.jwks)
        if len(told.server_id) != 32 or not told.issuer:
            raise MalformedError(
                Reason.MISSING_FIELD, "The server does not say who it is.", fix="Check the server's version."
            )
        return ServerIdentity(ServerId(told.server_id), told.issuer, told.jwks, dict(document.keys()))


def _host_of(server: str) -> str:
    match = _ADDRESS.fullmatch(server)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise UsageError(
            f"{server!r} is not the address of a server.", fix="Write host:port, for example localhost:7443."
        )
    return match["host"].strip("[]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls_credentials(ca_file: Path | None) -> grpc.ChannelCredentials:
    if ca_file is None:
        return grpc.ssl_channel_credentials()
    try:
        pem = ca_file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"The CA file {ca_file} cannot be read: {error.strerror}.", fix="Name the server's CA certificate in PEM."
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in pem:  # gRPC would only fail to connect, later and without saying why
        raise UsageError(
            f"The CA file {ca_file} holds no certificate in PEM.", fix="Name the server's CA certificate in PEM."
        )
    return grpc.ssl_channel_credentials(pem)
