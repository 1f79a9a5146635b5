"""Resource servers behind `RequireSession` and its twin: who gets in, in all four kinds of calls."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc import aio

from keyvouch.assurance import AssuranceRequirement, Provenance, RequiredProtection, Verification
from keyvouch.errors import KeyvouchError, Reason, UnavailableError, UsageError
from keyvouch.v1 import sign_in_pb2
from keyvouch_client import (
    AccessRules,
    Connection,
    JwksDocument,
    Requirement,
    RequireSession,
    RequireSessionSync,
    current_session,
    jwks_from_channel,
)
from keyvouch_client.errors import error_from
from support.fake_sign_in_server import FakeServer
from support.fake_world import ISSUER, FakeWorld, Issuer, claims_for

AUDIENCE = "https://orders.test"
SERVICE = "orders.v1.Orders"
HARDWARE = AssuranceRequirement(
    protection=RequiredProtection.HARDWARE,
    verification=Verification.HARDWARE_GATED,
    provenance=Provenance.ATTESTED,
    anchors=frozenset({"fleet-root"}),
)
RULES = AccessRules(
    issuer=ISSUER,
    audience=AUDIENCE,
    methods={
        f"/{SERVICE}/Strong": Requirement(acr=frozenset({"phishing-resistant"})),
        f"/{SERVICE}/Hardware": Requirement(assurance=HARDWARE),
        f"/{SERVICE}/Recent": Requirement(max_age=60),
        f"/{SERVICE}/Register": Requirement(acr=frozenset({"access-pass", "number-matched"})),
    },
    open_methods=frozenset({f"/{SERVICE}/Open"}),
)

Call = Callable[[str, tuple[tuple[str, str], ...]], str]


def who() -> bytes:
    try:
        return current_session().subject.encode()
    except UsageError:
        return b"nobody"


class AsyncOrders(grpc.GenericRpcHandler):
    """Every kind of call answers with the caller's subject."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def one(request: Any, context: Any) -> bytes:
            if hasattr(request, "__aiter__"):
                _ = [part async for part in request]
            await asyncio.sleep(0)
            return who()

        async def many(request: Any, context: Any) -> AsyncIterator[bytes]:
            for _ in range(2):
                await asyncio.sleep(0)
                yield who()

        def blocking(request: Any, context: Any) -> bytes:
            return who()

        return handlers(one, many, blocking).get(
            details.method.rpartition("/")[2], handlers(one, many, blocking)["Get"]
        )


class SyncOrders(grpc.GenericRpcHandler):
    """The same with threads."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def one(request: Any, context: Any) -> bytes:
            if not isinstance(request, bytes):
                list(request)
            return who()

        def many(request: Any, context: Any) -> Iterator[bytes]:
            for _ in range(2):
                yield who()

        return handlers(one, many, one).get(details.method.rpartition("/")[2], handlers(one, many, one)["Get"])


def handlers(one: Any, many: Any, blocking: Any) -> dict[str, Any]:
    return {
        "Get": grpc.unary_unary_rpc_method_handler(one),
        "List": grpc.unary_stream_rpc_method_handler(many),
        "Send": grpc.stream_unary_rpc_method_handler(one),
        "Chat": grpc.stream_stream_rpc_method_handler(many),
        "Blocking": grpc.unary_unary_rpc_method_handler(blocking),
    }


def call_over(channel: grpc.Channel) -> Call:
    """Calls a method of the orders service and gives its answer; raises the error it was refused with."""

    def call(method: str, metadata: tuple[tuple[str, str], ...]) -> str:
        name = f"/{SERVICE}/{method}"
        try:
            if method == "List":
                parts = list(channel.unary_stream(name)(b"x", metadata=metadata, timeout=5))
            elif method == "Send":
                parts = [channel.stream_unary(name)(iter([b"x", b"y"]), metadata=metadata, timeout=5)]
            elif method == "Chat":
                parts = list(channel.stream_stream(name)(iter([b"x"]), metadata=metadata, timeout=5))
            else:
                parts = [channel.unary_unary(name)(b"x", metadata=metadata, timeout=5)]
        except grpc.RpcError as error:
            raise error_from(error) from error
        assert len(set(parts)) == 1
        return parts[0].decode()

    return call


@dataclass
class Orders:
    """A resource server under test, with the issuer whose tokens it trusts."""

    issuer: Issuer
    call_method: Call
    world: FakeWorld

    async def call(self, method: str, token: str | None, *, scheme: str = "Bearer") -> str:
        metadata = () if token is None else (("authorization", f"{scheme} {token}"),)
        return await asyncio.to_thread(self.call_method, method, metadata)

    def token(self, *, approved_ago: int | None = None, **changes: object) -> str:
        if approved_ago is not None:
            changes["auth_time"] = int(time.time()) - approved_ago
        return self.issuer.sign(claims_for(**changes))


@pytest.fixture(params=["aio", "threads"])
async def orders(request: pytest.FixtureRequest) -> AsyncIterator[Orders]:
    world = FakeWorld()
    issuer = world.issuer
    document = JwksDocument(ISSUER, issuer.jwks())
    with ThreadPoolExecutor(8) as pool:
        server: Any
        if request.param == "aio":
            server = aio.server(interceptors=[RequireSession(document, RULES)], handlers=[AsyncOrders()])
        else:
            guard = RequireSessionSync(lambda: document, RULES)
            server = grpc.server(pool, interceptors=[guard], handlers=[SyncOrders()])
        port = server.add_insecure_port("127.0.0.1:0")
        started = server.start()
        if started is not None:
            await started
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Orders(issuer, call_over(channel), world)
        stopped = server.stop(0)
        await stopped if request.param == "aio" else await asyncio.to_thread(stopped.wait)


KINDS = ["Get", "List", "Send", "Chat", "Blocking"]


@pytest.mark.parametrize("kind", KINDS)
async def test_control_a_good_token_gets_in_and_the_handler_knows_who(orders: Orders, kind: str) -> None:
    assert await orders.call(kind, orders.token()) == "usr_ada"
    assert await orders.call(kind, orders.token(subject="usr_bob"), scheme="bearer") == "usr_bob"


@pytest.mark.parametrize("kind", KINDS)
async def test_no_kind_of_call_gets_in_without_a_token(orders: Orders, kind: str) -> None:
    with pytest.raises(KeyvouchError) as caught:
        await orders.call(kind, None)
    assert (type(caught.value).__name__, caught.value.reason) == ("UnauthenticatedError", Reason.CREDENTIALS_MISSING)
    assert caught.value.fix


@pytest.mark.parametrize("kind", KINDS)
async def test_no_kind_of_call_gets_in_with_a_bad_token(orders: Orders, kind: str) -> None:
    with pytest.raises(KeyvouchError) as caught:
        await orders.call(kind, orders.token(audience="https://other.test"))
    assert caught.value.reason is Reason.CREDENTIALS_INVALID


async def test_an_open_method_knows_nobody(orders: Orders) -> None:
    assert await orders.call("Get", orders.token()) == "usr_ada"
    assert await orders.call("Open", None) == "nobody"
    assert await orders.call("Open", "rubbish") == "nobody"


def other_header(issuer: Issuer, **changes: object) -> str:
    header = {"alg": "ES256", "typ": "at+jwt", "kid": issuer.key_id, **changes}
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=")
    return issuer.sign(claims_for(), header=encoded)


NOW = int(time.time())
BAD_TOKENS: dict[str, tuple[Callable[[Issuer], str], Reason]] = {
    "wrong audience": (lambda i: i.sign(claims_for(audience="https://other.test")), Reason.CREDENTIALS_INVALID),
    "wrong issuer": (lambda i: i.sign(claims_for(issuer="https://evil.test")), Reason.CREDENTIALS_INVALID),
    "unknown key id": (lambda i: other_header(i, kid="key-9"), Reason.CREDENTIALS_INVALID),
    "alg none": (lambda i: other_header(i, alg="none"), Reason.CREDENTIALS_INVALID),
    "alg HS256": (lambda i: other_header(i, alg="HS256"), Reason.CREDENTIALS_INVALID),
    "typ JWT": (lambda i: other_header(i, typ="JWT"), Reason.CREDENTIALS_INVALID),
    "embedded key": (lambda i: other_header(i, jwk={}), Reason.CREDENTIALS_INVALID),
    "another key with the right id": (lambda i: Issuer(i.key_id).sign(claims_for()), Reason.CREDENTIALS_INVALID),
    "not a token": (lambda _: "rubbish", Reason.CREDENTIALS_INVALID),
    "from the future": (lambda i: i.sign(claims_for(issued_at=NOW + 9000)), Reason.CREDENTIALS_INVALID),
    "expired": (lambda i: i.sign(claims_for(issued_at=NOW - 900, expires_at=NOW - 600)), Reason.TOKEN_EXPIRED),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_bad_tokens_are_refused_and_most_look_alike_P14(orders: Orders, name: str) -> None:
    make, reason = BAD_TOKENS[name]
    assert await orders.call("Get", orders.token()) == "usr_ada"
    with pytest.raises(KeyvouchError) as caught:
        await orders.call("Get", make(orders.issuer))
    assert (type(caught.value).__name__, caught.value.reason) == ("UnauthenticatedError", reason)
    assert caught.value.metadata == {}


async def test_two_credentials_are_none(orders: Orders) -> None:
    metadata = (("authorization", f"Bearer {orders.token()}"),) * 2
    with pytest.raises(KeyvouchError) as caught:
        await asyncio.to_thread(orders.call_method, "Get", metadata)
    assert caught.value.reason is Reason.CREDENTIALS_INVALID


@pytest.mark.parametrize(
    ("method", "good", "weak", "reason"),
    [
        ("Strong", {"acr": "phishing-resistant"}, {"acr": "number-matched"}, Reason.STRENGTH_REQUIRED),
        ("Get", {"acr": "number-matched"}, {"acr": "access-pass"}, Reason.STRENGTH_REQUIRED),
        ("Get", {"acr": "number-matched"}, {"acr": ""}, Reason.STRENGTH_REQUIRED),
        ("Register", {"acr": "access-pass"}, {"acr": "other"}, Reason.STRENGTH_REQUIRED),
        ("Recent", {"approved_ago": 0}, {"approved_ago": 3600}, Reason.STRENGTH_REQUIRED),
        ("Hardware", {}, {"assurance": "software/software_gated/self"}, Reason.ASSURANCE_TOO_LOW),
        ("Hardware", {}, {"assurance": "tpm/software_gated/attested/fleet-root"}, Reason.ASSURANCE_TOO_LOW),
        ("Hardware", {}, {"assurance": "tpm/hardware_gated/attested/other-root"}, Reason.ASSURANCE_TOO_LOW),
        ("Hardware", {}, {"assurance": ""}, Reason.ASSURANCE_TOO_LOW),
    ],
)
async def test_a_weak_session_is_told_what_is_missing_P13(
    orders: Orders, method: str, good: dict[str, object], weak: dict[str, object], reason: Reason
) -> None:
    assert await orders.call(method, orders.token(**good)) == "usr_ada"
    with pytest.raises(KeyvouchError) as caught:
        await orders.call(method, orders.token(**weak))
    assert (type(caught.value).__name__, caught.value.reason) == ("PermissionDeniedError", reason)
    assert caught.value.metadata


async def test_an_assurance_nobody_understands_proves_nothing(orders: Orders) -> None:
    with pytest.raises(KeyvouchError):
        await orders.call("Hardware", orders.token(assurance="tpm/hardware_gated"))


# introspection


@pytest.fixture(params=["aio", "threads"])
async def live_orders(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Orders, FakeServer]]:
    """A resource server that asks a Keyvouch server about every call."""
    world = FakeWorld()
    async with FakeServer(world) as keyvouch:
        with grpc.insecure_channel(keyvouch.address) as to_keyvouch, ThreadPoolExecutor(8) as pool:
            connection = Connection(keyvouch.address, insecure_loopback=True, deadline=2)
            server: Any
            if request.param == "aio":
                guard = RequireSession(connection, RULES, introspect=connection)
                server = aio.server(interceptors=[guard], handlers=[AsyncOrders()])
            else:
                twin = RequireSessionSync(jwks_from_channel(to_keyvouch), RULES, introspect=to_keyvouch, deadline=2)
                server = grpc.server(pool, interceptors=[twin], handlers=[SyncOrders()])
            port = server.add_insecure_port("127.0.0.1:0")
            started = server.start()
            if started is not None:
                await started
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Orders(world.issuer, call_over(channel), world), keyvouch
            stopped = server.stop(0)
            await stopped if request.param == "aio" else await asyncio.to_thread(stopped.wait)
            await connection.close()


def live_token(world: FakeWorld) -> tuple[str, str]:
    """A session of the world, by its access token and its id."""
    context = sign_in_pb2.SignInContext(username="ada", audience=AUDIENCE)
    row = world.new_session(context, acr="number-matched", amr=("pop",), key=None)
    return world.tokens_of(row).access_token, row.session.session_id


async def test_a_revoked_session_is_out_at_once(live_orders: tuple[Orders, FakeServer]) -> None:
    orders, _ = live_orders
    token, session_id = live_token(orders.world)
    assert await orders.call("Get", token) == "usr_ada"
    orders.world.sessions[session_id].session.revoked = True
    with pytest.raises(KeyvouchError) as caught:
        await orders.call("Get", token)
    assert caught.value.reason is Reason.SESSION_REVOKED


async def test_a_session_the_server_does_not_know_is_out(live_orders: tuple[Orders, FakeServer]) -> None:
    orders, _ = live_orders
    with pytest.raises(KeyvouchError) as caught:
        await orders.call("Get", orders.token())
    assert caught.value.reason is Reason.CREDENTIALS_INVALID


async def test_a_server_that_cannot_be_asked_lets_nobody_in(live_orders: tuple[Orders, FakeServer]) -> None:
    orders, keyvouch = live_orders
    token, _ = live_token(orders.world)
    assert await orders.call("Get", token) == "usr_ada"
    await keyvouch.stop()
    with pytest.raises(UnavailableError):
        await orders.call("Get", token)


# rules


@pytest.mark.parametrize(
    "mistake",
    [
        {"issuer": ""},
        {"audience": ""},
        {"methods": {"Orders/Get": Requirement()}},
        {"open_methods": frozenset({"Get"})},
        {"methods": {"/a.B/C": Requirement()}, "open_methods": frozenset({"/a.B/C"})},
    ],
)
def test_rules_that_cannot_be_meant_are_usage_errors(mistake: dict[str, Any]) -> None:
    good: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE}
    assert AccessRules(**good).requirement.acr == {"number-matched", "phishing-resistant"}
    with pytest.raises(UsageError):
        AccessRules(**{**good, **mistake})


def test_a_requirement_that_accepts_nothing_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        Requirement(acr=frozenset())
