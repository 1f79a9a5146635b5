"""Resource servers and tokens that are bound to a certificate: who holds the token needs the certificate too (P15)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError
from keyvouch.proofs import spki_of
from keyvouch.tokens import certificate_thumbprint
from keyvouch_client import AccessRules, JwksDocument, RequireSession, RequireSessionSync, current_session
from keyvouch_client.access import check_certificate
from keyvouch_client.errors import error_from
from support.fake_devices import Authority
from support.fake_world import ISSUER, Issuer, claims_for

AUDIENCE = "https://orders.test"
RULES = AccessRules(issuer=ISSUER, audience=AUDIENCE)
KINDS = ("one", "many", "written", "sent", "chat", "blocking", "blocking_many")


class Client:
    """A key pair with a certificate."""

    def __init__(self, authority: Authority) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.chain = authority.device_chain("dev_x", spki_of(self.key.public_key()), 300.0)
        self.thumbprint = certificate_thumbprint(self.chain[0])

    def credentials(self, authority: Authority) -> grpc.ChannelCredentials:
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        from cryptography import x509

        leaf = x509.load_der_x509_certificate(self.chain[0]).public_bytes(serialization.Encoding.PEM)
        return grpc.ssl_channel_credentials(authority.pem, pem, leaf)


@dataclass
class Orders:
    """A resource server: its port, its authority, the issuer it believes, and a client with a certificate."""

    port: int
    authority: Authority
    issuer: Issuer
    client: Client

    def call(self, kind: str, token: str, credentials: grpc.ChannelCredentials | None) -> bytes:
        """The caller's subject, as the handler of this kind knows it. Raises the error of a refusal."""
        credentials = credentials or grpc.ssl_channel_credentials(self.authority.pem)
        given: dict[str, Any] = {"metadata": (("authorization", f"Bearer {token}"),), "timeout": 5}
        name = f"/orders.v1.Orders/{kind}"
        with grpc.secure_channel(f"localhost:{self.port}", credentials) as channel:
            try:
                if kind in {"many", "written", "blocking_many"}:
                    return b"".join(channel.unary_stream(name)(b"x", **given))
                if kind == "sent":
                    return channel.stream_unary(name)(iter([b"x", b"y"]), **given)
                if kind == "chat":
                    return b"".join(channel.stream_stream(name)(iter([b"x"]), **given))
                return channel.unary_unary(name)(b"x", **given)
            except grpc.RpcError as error:
                raise error_from(error) from error

    def token(self, **changes: object) -> str:
        return self.issuer.sign(claims_for(**changes))


def who() -> bytes:
    return current_session().subject.encode()


async def one(request: bytes, context: Any) -> bytes:
    return who()


async def many(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield who()


async def written(request: bytes, context: Any) -> None:
    await context.write(who())


async def sent(requests: AsyncIterator[bytes], context: Any) -> bytes:
    _ = [part async for part in requests]
    return who()


async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield who()


def blocking(request: bytes, context: Any) -> bytes:
    return who()


def blocking_many(request: bytes, context: Any) -> Iterator[bytes]:
    yield who()


def blocking_sent(requests: Iterator[bytes], context: Any) -> bytes:
    list(requests)
    return who()


def handlers(*, threads: bool) -> grpc.GenericRpcHandler:
    unary, stream = (blocking, blocking_many) if threads else (one, many)
    found: dict[str, Any] = {
        "one": grpc.unary_unary_rpc_method_handler(unary),
        "many": grpc.unary_stream_rpc_method_handler(stream),
        "written": grpc.unary_stream_rpc_method_handler(blocking_many if threads else written),
        "sent": grpc.stream_unary_rpc_method_handler(blocking_sent if threads else sent),
        "chat": grpc.stream_stream_rpc_method_handler(blocking_many if threads else chat),
        "blocking": grpc.unary_unary_rpc_method_handler(blocking),
        "blocking_many": grpc.unary_stream_rpc_method_handler(blocking_many),
    }
    return grpc.method_handlers_generic_handler("orders.v1.Orders", found)


@pytest.fixture(params=["aio", "threads"])
async def orders(request: pytest.FixtureRequest) -> AsyncIterator[Orders]:
    """A server that wants client certificates."""
    async with serving(threads=request.param == "threads", client_certificates=True) as made:
        yield made


@pytest.fixture(params=["aio", "threads"])
async def open_orders(request: pytest.FixtureRequest) -> AsyncIterator[Orders]:
    """A server that wants none."""
    async with serving(threads=request.param == "threads", client_certificates=False) as made:
        yield made


class serving:  # noqa: N801 - reads as the function it stands for
    """A running resource server."""

    def __init__(self, *, threads: bool, client_certificates: bool) -> None:
        self.authority, self.issuer = Authority(), Issuer()
        self.pool = ThreadPoolExecutor(8)
        document = JwksDocument(ISSUER, self.issuer.jwks())
        if threads:
            twin = RequireSessionSync(lambda: document, RULES)
            self.server: Any = grpc.server(self.pool, interceptors=[twin], handlers=[handlers(threads=True)])
        else:
            self.server = aio.server(interceptors=[RequireSession(document, RULES)], handlers=[handlers(threads=False)])
        root = self.authority.pem if client_certificates else None
        self.port = self.server.add_secure_port(
            "localhost:0",
            grpc.ssl_server_credentials([self.authority.listener()], root, require_client_auth=client_certificates),
        )

    async def __aenter__(self) -> Orders:
        started = self.server.start()
        if started is not None:
            await started
        return Orders(self.port, self.authority, self.issuer, Client(self.authority))

    async def __aexit__(self, *_: object) -> None:
        stopped = self.server.stop(0)
        await stopped if hasattr(stopped, "__await__") else await asyncio.to_thread(stopped.wait)
        self.pool.shutdown()


async def call(orders: Orders, kind: str, token: str, credentials: grpc.ChannelCredentials | None = None) -> bytes:
    return await asyncio.to_thread(orders.call, kind, token, credentials)


async def refused(orders: Orders, kind: str, token: str, credentials: grpc.ChannelCredentials | None = None) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        await call(orders, kind, token, credentials)
    assert caught.value.reason is Reason.CERTIFICATE_REQUIRED


@pytest.mark.parametrize("kind", KINDS)
async def test_only_the_certificate_of_the_token_opens_a_call_P15(orders: Orders, kind: str) -> None:
    own, other = orders.client.credentials(orders.authority), Client(orders.authority).credentials(orders.authority)
    bound = orders.token(certificate_thumbprint=orders.client.thumbprint)
    assert await call(orders, kind, bound, own) == b"usr_ada"
    await refused(orders, kind, bound, other)
    for token in (orders.token(confirmation="thumb"), orders.token()):
        assert await call(orders, kind, token, other) == b"usr_ada"


@pytest.mark.parametrize("kind", KINDS)
async def test_without_a_certificate_a_bound_token_is_worth_nothing_P15(open_orders: Orders, kind: str) -> None:
    bound = open_orders.token(certificate_thumbprint=open_orders.client.thumbprint)
    await refused(open_orders, kind, bound)
    await refused(open_orders, kind, bound, open_orders.client.credentials(open_orders.authority))  # nobody asks for it
    assert await call(open_orders, kind, open_orders.token()) == b"usr_ada"


async def test_a_new_certificate_of_the_same_key_is_another_one(orders: Orders) -> None:
    bound = orders.token(certificate_thumbprint=orders.client.thumbprint)
    orders.client.chain = orders.authority.device_chain("dev_x", spki_of(orders.client.key.public_key()), 300.0)
    await refused(orders, "one", bound, orders.client.credentials(orders.authority))


def test_what_is_no_one_certificate_holds_nothing() -> None:
    authority = Authority()
    claims = claims_for(certificate_thumbprint=certificate_thumbprint(authority.der))
    check_certificate(claims, {"x509_pem_cert": [authority.pem]})
    for shown in ([], [b""], [b"rubbish"], [b"\xff"], [authority.pem, authority.pem]):
        with pytest.raises(KeyvouchError) as caught:
            check_certificate(claims, {"x509_pem_cert": shown})
        assert caught.value.reason is Reason.CERTIFICATE_REQUIRED
    check_certificate(claims_for(confirmation="thumb"), {})
