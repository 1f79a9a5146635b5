"""Device listeners that only tell who came: one over gRPC, one over plain TLS of a chosen version."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from keyvouch_agent.channel_keys import ChannelKey, ChannelKeys
from keyvouch_agent.rpc.channel import EnrolledChannel, enrolled_channel
from support.agent_records import sample_enrolment
from support.fake_devices import Authority

SERVICE, METHOD = "test.Door", "Who"


@dataclass
class Door:
    """A running listener, and the authority whose certificates it accepts."""

    authority: Authority
    port: int

    def channel(self, key: ChannelKey, keys: ChannelKeys) -> EnrolledChannel:
        """A channel of a device that was enrolled with `key`."""
        endpoint = f"localhost:{self.port}"
        sample = sample_enrolment(key=key, device_endpoint=endpoint, authority=self.authority)
        return enrolled_channel(sample.enrolment, keys)


@asynccontextmanager
async def grpc_door() -> AsyncIterator[Door]:
    """A gRPC server that wants a client certificate and answers every call with it, in PEM."""
    authority = Authority()
    key, chain = authority.listener()
    server = grpc.aio.server()
    handlers: dict[str, Any] = {METHOD: grpc.unary_unary_rpc_method_handler(_who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    credentials = grpc.ssl_server_credentials([(key, chain)], root_certificates=authority.pem, require_client_auth=True)
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        yield Door(authority, port)
    finally:
        await server.stop(0)


async def _who(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    (certificate,) = context.auth_context()["x509_pem_cert"]
    return bytes(certificate)


async def who(channel: EnrolledChannel, *, seconds: float = 10.0) -> bytes:
    """The certificate the door saw. Raises as the agent's clients do."""
    call: Callable[..., grpc.aio.UnaryUnaryCall[bytes, bytes]] = channel.channel.unary_unary(f"/{SERVICE}/{METHOD}")
    try:
        return bytes(await call(b"", timeout=seconds))
    except grpc.aio.AioRpcError as failure:
        raise channel.error_of(failure) from failure


@dataclass
class TlsDoor(Door):
    """What a plain TLS server saw: the version and the client's certificate in DER, of each handshake."""

    seen: asyncio.Queue[tuple[str | None, bytes | None]] = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def tls_door(folder: Path, version: ssl.TLSVersion) -> AsyncIterator[TlsDoor]:
    """A TLS server of exactly one version; it hangs up after the handshake."""
    authority = Authority()
    key, chain = authority.listener()
    pair = folder / "door.pem"
    pair.write_bytes(key + chain)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority.pem.decode())
    context.load_cert_chain(pair)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    door = TlsDoor(authority, 0)

    async def meet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        door.seen.put_nowait((connection.version(), connection.getpeercert(binary_form=True)))
        writer.transport.abort()

    server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=context)
    door.port = server.sockets[0].getsockname()[1]
    try:
        yield door
    finally:
        server.close()
        await server.wait_closed()
