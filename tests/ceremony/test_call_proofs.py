"""A copied access token opens nothing: calls are proved with the session's key, each proof once (P15).

`thief` is a connection that holds no key: what it sends is what somebody has who read the token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from keyvouch.call_proof import METADATA_KEY, NONCE_BYTES, WINDOW_SECONDS, make_call_proof
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.ids import ServerId
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import security_info_pb2, sessions_pb2, sessions_pb2_grpc
from keyvouch_bench.server_process import free_ports
from keyvouch_client import Connection, RequireSession, current_session
from keyvouch_client.access import AccessRules
from keyvouch_client.call_proofs import MOST_KEYS, ProofKey
from keyvouch_client.errors import answer
from keyvouch_client.session import Session
from keyvouch_client.sign_in import new_proof_key
from keyvouch_server import bootstrap
from keyvouch_server.domain.oversight_model import UsedProof
from keyvouch_server.rpc.access import ACCESS, Access
from keyvouch_server.use_cases.call_proofs import KEPT_SECONDS
from support.live_server import LIMIT, LiveServer, SignedIn, bearer, configuration, refused
from support.reflected import REFLECTION, Method, methods_of

LIST = "/keyvouch.v1.SessionService/ListSessions"
REVOKE = "/keyvouch.v1.SessionService/RevokeSession"


@pytest.fixture
async def thief(live: LiveServer) -> AsyncIterator[Connection]:
    """A connection of somebody who has no key."""
    async with Connection(f"127.0.0.1:{live.public_port}", ca_file=live.data / "ca.pem") as connection:
        yield connection


async def require_proofs(live: LiveServer, *, required: bool = True) -> None:
    """Set the tenant's policy."""
    await live.change_policy(session={"proof_required": required})


def proof(live: LiveServer, signed_in: SignedIn, **changes: Any) -> bytes:
    """A proof for `ListSessions` in this session, now, or with changes."""
    wanted: dict[str, Any] = {
        "server_id": live.app.world.facts.server_id,
        "method": LIST,
        "access_token": signed_in.tokens.access_token,
        "now": live.clock.now(),
        "nonce": live.app.world.entropy.token(NONCE_BYTES),
        **changes,
    }
    return make_call_proof(wanted.pop("key", signed_in.proof_key), **wanted)


async def list_sessions(connection: Connection, signed_in: SignedIn, *proofs: bytes, token: str = "") -> Any:
    """Call `ListSessions` with a token and what is to prove it."""
    metadata: Any = (*bearer(token or signed_in.tokens.access_token), *((METADATA_KEY, one) for one in proofs))
    request = sessions_pb2.ListSessionsRequest()
    return await answer(connection.sessions.ListSessions(request, metadata=metadata, timeout=LIMIT))


async def used_proofs(live: LiveServer) -> int:
    return await live.app.store.read(lambda tx: tx.count(UsedProof, {}))


async def test_a_copied_token_is_worth_nothing_without_the_key_P15(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    await require_proofs(live)
    with refused(Reason.PROOF_REQUIRED, status=grpc.StatusCode.UNAUTHENTICATED):
        await list_sessions(thief, signed_in)
    with refused(Reason.PROOF_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
        await list_sessions(thief, signed_in, proof(live, signed_in, key=new_proof_key()))
    assert (await list_sessions(thief, signed_in, proof(live, signed_in))).sessions
    assert (await list_sessions(live.connection, signed_in)).sessions  # the control: the SDK proves its calls


async def test_every_method_of_a_session_asks_for_the_proof_P15(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    public = await methods_of(live.connection.channel, REFLECTION[0], await live.admin())
    await require_proofs(live)
    bound = {path for path in public if ACCESS[path] in (Access.SESSION, Access.APPROVED_SESSION)}
    assert len(bound) > 40
    for path in sorted(bound):
        with refused(Reason.PROOF_REQUIRED, status=grpc.StatusCode.UNAUTHENTICATED):
            await public[path].call(thief.channel, signed_in.metadata)
    assert await used_proofs(live) > 0  # those of the administrator


async def test_a_proof_is_good_once_P15(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    for required in (True, False):
        await require_proofs(live, required=required)
        once = proof(live, signed_in)
        await list_sessions(thief, signed_in, once)
        for _ in range(3):
            with refused(Reason.PROOF_REPLAYED, status=grpc.StatusCode.UNAUTHENTICATED):
                await list_sessions(thief, signed_in, once)
        await list_sessions(thief, signed_in, proof(live, signed_in))


async def test_copies_of_one_proof_raced_one_of_them_counts_P15(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    for _ in range(5):
        once = proof(live, signed_in)
        calls = (list_sessions(thief, signed_in, once) for _ in range(32))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [o for o in outcomes if isinstance(o, KeyvouchError)]
        assert len(refusals) == 31
        assert {r.reason for r in refusals} == {Reason.PROOF_REPLAYED}


async def test_a_proof_for_something_else_is_refused_P15(live: LiveServer, thief: Connection):
    person = await live.person("ada")
    signed_in, other = await live.signed_in(person), await live.signed_in(person)
    elsewhere = ServerId(bytes(32))
    for wrong in (
        proof(live, signed_in, method=REVOKE),
        proof(live, signed_in, method=LIST[1:]),
        proof(live, signed_in, access_token=other.tokens.access_token),
        proof(live, signed_in, server_id=elsewhere),
        proof(live, other),
        proof(live, signed_in, key=other.proof_key),
        proof(live, signed_in)[:-1],
        proof(live, signed_in) + b"\x00",
        b"",
        b"proof",
    ):
        with refused(Reason.PROOF_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
            await list_sessions(thief, signed_in, wrong)
    with refused(Reason.PROOF_INVALID):
        await list_sessions(thief, signed_in, proof(live, signed_in), proof(live, signed_in))
    assert (await list_sessions(thief, signed_in, proof(live, signed_in))).sessions


async def test_a_proof_of_the_token_before_does_not_prove_the_new_one_P15(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    old = proof(live, signed_in)
    signed_in.tokens = await signed_in.refresh()
    with refused(Reason.PROOF_INVALID):
        await list_sessions(thief, signed_in, old)
    await list_sessions(thief, signed_in, proof(live, signed_in))


async def test_a_proof_lasts_a_minute_by_the_servers_clock_P15_P20(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    now = live.clock.now()
    for apart in (-WINDOW_SECONDS, WINDOW_SECONDS):
        await list_sessions(thief, signed_in, proof(live, signed_in, now=now + apart))
    for apart in (-WINDOW_SECONDS - 1, WINDOW_SECONDS + 1, -3600, 3600):
        with refused(Reason.PROOF_INVALID) as refusal:
            await list_sessions(thief, signed_in, proof(live, signed_in, now=now + apart))
        assert refusal.error.metadata["server_time"] == str(now)
    held_back = proof(live, signed_in)
    live.clock.advance(WINDOW_SECONDS + 1)
    with refused(Reason.PROOF_INVALID):
        await list_sessions(thief, signed_in, held_back)


async def test_a_clock_that_is_set_back_revives_no_proof_P20(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    once = proof(live, signed_in)
    early = proof(live, signed_in, now=live.clock.now() - WINDOW_SECONDS)
    for one in (once, early):
        await list_sessions(thief, signed_in, one)
    live.clock.advance(3600)
    await live.app.call_proofs.forget_passed()
    live.clock.advance(-3600)
    with refused(Reason.PROOF_REPLAYED):
        await list_sessions(thief, signed_in, early)
    with refused(Reason.PROOF_REPLAYED):
        await list_sessions(thief, signed_in, once)
    live.clock.advance(KEPT_SECONDS)
    await live.app.call_proofs.forget_passed()
    assert await used_proofs(live) == 0


async def test_another_node_takes_no_proof_twice_P15(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    config = replace(configuration(free_ports(1)[0]), device_endpoint="127.0.0.1:1")
    app = bootstrap.assemble(live.data, config, live.app.store, clock=live.clock)
    async with (
        bootstrap.running(app, grace=0) as second,
        Connection(f"127.0.0.1:{second.public_port}", ca_file=live.data / "ca.pem") as there,
    ):
        once = proof(live, signed_in)
        await list_sessions(thief, signed_in, once)
        with refused(Reason.PROOF_REPLAYED):
            await list_sessions(there, signed_in, once)
        await list_sessions(there, signed_in, proof(live, signed_in))


async def test_whoever_has_the_token_and_not_the_key_leaves_a_trace_P15(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    await require_proofs(live)
    once = proof(live, signed_in)
    await list_sessions(thief, signed_in, once)
    before = len(await live.audit("call.denied"))
    for wrong in ((), (proof(live, signed_in, key=new_proof_key()),), (once,)):
        with refused(Reason.PROOF_REQUIRED, Reason.PROOF_INVALID, Reason.PROOF_REPLAYED):
            await list_sessions(thief, signed_in, *wrong)
    records = (await live.audit("call.denied"))[before:]
    assert [r.outcome for r in records] == ["proof_required", "proof_invalid", "proof_replayed"]
    assert {(r.actor, r.subject, r.user_id) for r in records} == {("anonymous", LIST, signed_in.session.user_id)}
    assert all(signed_in.session.session_id in r.details for r in records)


async def test_where_policy_asks_for_none_a_wrong_proof_is_still_refused(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    await require_proofs(live, required=False)
    await list_sessions(thief, signed_in)
    with refused(Reason.PROOF_INVALID):
        await list_sessions(thief, signed_in, b"proof")


async def test_a_session_of_a_pass_has_no_key_to_prove_with(live: LiveServer, thief: Connection):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    await require_proofs(live)
    request = security_info_pb2.GetSecurityInfoRequest()
    await answer(thief.security_info.GetSecurityInfo(request, metadata=session, timeout=LIMIT))
    path = "/keyvouch.v1.SecurityInfoService/GetSecurityInfo"
    made = make_call_proof(
        new_proof_key(),
        server_id=live.app.world.facts.server_id,
        method=path,
        access_token=session[0][1].partition(" ")[2],
        now=live.clock.now(),
        nonce=bytes(NONCE_BYTES),
    )
    with refused(Reason.PROOF_INVALID):
        metadata: Any = (*session, (METADATA_KEY, made))
        await answer(thief.security_info.GetSecurityInfo(request, metadata=metadata, timeout=LIMIT))


async def test_a_resource_server_introspects_and_an_app_signs_out_without_the_key(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"), audience="https://orders.test")
    await require_proofs(live)
    introspect = thief.sessions.IntrospectSession
    request = sessions_pb2.IntrospectSessionRequest()
    told = await answer(introspect(request, metadata=signed_in.metadata, timeout=LIMIT))
    assert told.session.username == "ada"
    metadata: Any = (*signed_in.metadata, (METADATA_KEY, proof(live, signed_in, method=REVOKE, key=new_proof_key())))
    revoke = sessions_pb2.RevokeSessionRequest()
    with refused(Reason.PROOF_INVALID):  # one that is sent is looked at
        await answer(thief.sessions.RevokeSession(revoke, metadata=metadata, timeout=LIMIT))
    await answer(thief.sessions.RevokeSession(revoke, metadata=signed_in.metadata, timeout=LIMIT))
    with refused(Reason.SESSION_REVOKED):
        await answer(introspect(request, metadata=signed_in.metadata, timeout=LIMIT))


async def test_a_copied_token_ends_no_other_session_P15(live: LiveServer, thief: Connection):
    person = await live.person("ada")
    signed_in, other = await live.signed_in(person), await live.signed_in(person)
    request_id = "one-request-of-ada"
    request = sessions_pb2.RevokeSessionRequest(session_id=other.session.session_id, request_id=request_id)
    with refused(Reason.PROOF_REQUIRED, status=grpc.StatusCode.UNAUTHENTICATED):
        await answer(thief.sessions.RevokeSession(request, metadata=signed_in.metadata, timeout=LIMIT))
    await other.introspect()
    (record,) = await live.audit("call.denied")
    assert (record.subject, record.outcome) == (REVOKE, "proof_required")
    await answer(live.connection.sessions.RevokeSession(request, metadata=signed_in.metadata, timeout=LIMIT))
    with refused(Reason.SESSION_REVOKED):  # what was refused did not take the id
        await other.introspect()


async def test_streams_are_proved_too_P15(live: LiveServer, thief: Connection):
    session = await live.admin()
    await require_proofs(live)
    watch = Method("/grpc.health.v1.Health/Watch", client_streams=False, server_streams=True)
    with refused(Reason.PROOF_REQUIRED):
        await watch.call(thief.channel, session)
    assert await watch.call(live.connection.channel, session)


# -- the SDK ----------------------------------------------------------------------------------------


def sdk_session(connection: Connection, live: LiveServer, signed_in: SignedIn) -> Session:
    """The session as the SDK holds it."""
    return Session(
        connection,
        server_id=live.app.world.facts.server_id,
        tokens=signed_in.tokens,
        details=signed_in.session,
        proof_key=signed_in.proof_key,
    )


@pytest.mark.parametrize("wrong", [-86400, -3600, 0, 3600])
async def test_a_client_whose_clock_is_wrong_takes_the_servers_time(live: LiveServer, thief: Connection, wrong: int):
    signed_in = await live.signed_in(await live.person("ada"))
    await require_proofs(live)
    session = sdk_session(thief, live, signed_in)
    thief.prover.now = lambda: live.clock.now() + wrong
    for _ in range(2):
        assert (await session.call(thief.sessions.ListSessions, sessions_pb2.ListSessionsRequest())).sessions
    refusals = [r for r in await live.audit("call.denied") if r.outcome == "proof_invalid"]
    assert len(refusals) == (1 if wrong else 0)  # it has learned


async def test_credentials_of_a_channel_prove_each_call(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    await require_proofs(live)
    thief.prover.now = live.clock.now
    session = sdk_session(thief, live, signed_in)
    tls = grpc.ssl_channel_credentials((live.data / "ca.pem").read_bytes())
    credentials = grpc.composite_channel_credentials(tls, session.call_credentials())
    async with grpc.aio.secure_channel(f"localhost:{live.public_port}", credentials) as channel:
        stub: Any = sessions_pb2_grpc.SessionServiceStub(channel)
        for _ in range(2):
            assert (await answer(stub.ListSessions(sessions_pb2.ListSessionsRequest(), timeout=LIMIT))).sessions


async def test_a_proof_for_another_channel_is_made_on_request(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"))
    await require_proofs(live)
    thief.prover.now = live.clock.now
    session = sdk_session(thief, live, signed_in)
    metadata: Any = await session.proved_metadata(LIST)
    async with Connection(f"127.0.0.1:{live.public_port}", ca_file=live.data / "ca.pem") as other:
        request = sessions_pb2.ListSessionsRequest()
        assert (await answer(other.sessions.ListSessions(request, metadata=metadata, timeout=LIMIT))).sessions
        with refused(Reason.PROOF_REPLAYED):
            await answer(other.sessions.ListSessions(request, metadata=metadata, timeout=LIMIT))


async def test_administration_is_proved_by_whoever_holds_the_key(live: LiveServer, thief: Connection):
    session = await live.admin()
    await require_proofs(live)
    await live.administer("ListUsers", admin_pb.ListUsersRequest())
    with refused(Reason.PROOF_REQUIRED):
        await answer(thief.administration.ListUsers(admin_pb.ListUsersRequest(), metadata=session, timeout=LIMIT))


async def test_a_connection_proves_for_the_sessions_used_last_and_a_session_makes_itself_known_again(
    live: LiveServer, thief: Connection
):
    signed_in = await live.signed_in(await live.person("ada"))
    await require_proofs(live)
    thief.prover.now = live.clock.now
    session = sdk_session(thief, live, signed_in)
    token = signed_in.tokens.access_token
    assert thief.prover.proof(LIST, token)
    for number in range(MOST_KEYS):
        thief.prover.hold(ProofKey(f"ses_{number}", session.server_id, signed_in.proof_key))
    assert thief.prover.proof(LIST, token) == b""
    assert (await session.call(thief.sessions.ListSessions, sessions_pb2.ListSessionsRequest())).sessions
    await session.revoke()
    assert thief.prover.proof(LIST, token) == b""  # it has ended


# -- resource servers -------------------------------------------------------------------------------


class Orders(grpc.GenericRpcHandler):
    """A resource server whose every method answers with the caller's name."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def who(_request: bytes, _context: Any) -> bytes:
            return current_session().username.encode()

        return grpc.unary_unary_rpc_method_handler(who)


async def test_a_resource_server_that_asks_for_proofs_is_no_use_to_a_thief_P15(live: LiveServer, thief: Connection):
    signed_in = await live.signed_in(await live.person("ada"), audience="https://orders.test")
    server_id = live.app.world.facts.server_id
    rules = AccessRules(live.app.world.facts.issuer, "https://orders.test", server_id=server_id)
    server = grpc.aio.server(interceptors=[RequireSession(thief, rules, introspect=thief)], handlers=[Orders()])
    key, chain = live.app.authority.listener_certificate(("localhost",))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    tls = grpc.ssl_channel_credentials((live.data / "ca.pem").read_bytes())
    session = sdk_session(live.connection, live, signed_in)
    proving = grpc.composite_channel_credentials(tls, session.call_credentials())
    try:
        async with grpc.aio.secure_channel(f"localhost:{port}", proving) as channel:
            for method in ("/orders.v1.Orders/List", "/orders.v1.Orders/Get"):
                assert await answer(channel.unary_unary(method)(b"", timeout=LIMIT)) == b"ada"
        async with grpc.aio.secure_channel(f"localhost:{port}", tls) as channel:
            get = channel.unary_unary("/orders.v1.Orders/Get")
            with refused(Reason.PROOF_REQUIRED, status=grpc.StatusCode.UNAUTHENTICATED):
                await answer(get(b"", metadata=signed_in.metadata, timeout=LIMIT))
            metadata: Any = await session.proved_metadata("/orders.v1.Orders/Get")
            assert await answer(get(b"", metadata=metadata, timeout=LIMIT)) == b"ada"
            with refused(Reason.PROOF_REPLAYED):
                await answer(get(b"", metadata=metadata, timeout=LIMIT))
    finally:
        await server.stop(0)
