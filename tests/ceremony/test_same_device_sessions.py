"""Sessions that a device opened for itself, on a real server: what they are worth, to whom, and for how long."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from keyvouch.errors import Reason
from keyvouch.proofs import sign_proof
from keyvouch.statement import Purpose, proof_statement, redeem_statement
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import sessions_pb2, sign_in_pb2
from keyvouch_bench.device import BenchDevice, enrol_with_pass
from keyvouch_client import AccessRules, RequireSession, current_session
from keyvouch_client.errors import answer
from support.crash_stage import Stage
from support.live_server import LIMIT, LiveServer, bearer, refused
from support.own_sign_in import DeviceDesk, another_desk_of, claims_in, desk_of, renewed

AUDIENCE = "https://orders.test"


async def test_its_tokens_open_nothing_here_but_introspection_P14(live: LiveServer):
    desk = await desk_of(live)
    done = await desk.signed_in(audience="keyvouch")
    metadata = bearer(done.tokens.access_token)
    assert (await live.introspect(metadata)).session.session_id == done.session.session_id
    sessions = live.connection.sessions
    for call in (
        sessions.ListSessions(sessions_pb2.ListSessionsRequest(), metadata=metadata, timeout=LIMIT),
        sessions.RevokeSession(sessions_pb2.RevokeSessionRequest(), metadata=metadata, timeout=LIMIT),
        live.connection.administration.GetPolicy(admin_pb.GetPolicyRequest(), metadata=metadata, timeout=LIMIT),
    ):
        with refused(Reason.CERTIFICATE_REQUIRED, status=grpc.StatusCode.UNAUTHENTICATED):
            await answer(call)


async def test_it_is_refreshed_over_the_devices_channel_only_P15(live: LiveServer):
    desk, other, second = await desk_of(live), await desk_of(live, "eve"), await another_desk_of(live)
    done = await desk.signed_in()
    token = done.tokens.refresh_token
    statement = proof_statement(live.app.world.facts.server_id, hashlib.sha256(token.encode()).digest())
    for proof in (b"", sign_proof(desk.device.channel_key, Purpose.REFRESH, statement)):
        request = sessions_pb2.RefreshSessionRequest(refresh_token=token, proof=proof)
        with refused(Reason.CERTIFICATE_REQUIRED, status=grpc.StatusCode.UNAUTHENTICATED):
            await answer(live.connection.sessions.RefreshSession(request, timeout=LIMIT))
    for stranger in (other, second):
        with refused(Reason.CREDENTIALS_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
            await stranger.refresh(token)
    fresh = await desk.refresh(token)
    assert fresh.session_id == done.session.session_id
    assert fresh.refresh_token != token


async def test_a_number_matched_session_is_not_refreshed_over_the_channel(live: LiveServer):
    ada = await live.person("ada")
    public, desk = await live.signed_in(ada), DeviceDesk.open(ada.device, live.stack)
    with refused(Reason.CREDENTIALS_INVALID):
        await desk.refresh(public.tokens.refresh_token)
    for made_up in ("", "kvr_x", "kvr_ses_x_1.y", public.tokens.access_token):
        with refused(Reason.CREDENTIALS_INVALID):
            await desk.refresh(made_up)
    await public.refresh()


async def test_an_approval_is_not_redeemed_by_the_public_call(live: LiveServer):
    """Not even by the channel key: the label would be that of another ceremony."""
    desk = await desk_of(live)
    begun = await desk.begin()
    await live.admin()
    await live.change_policy(approval={"enabled": False})
    with refused(Reason.METHOD_DISABLED):
        await begun.complete()  # approved, and not consumed
    await live.change_policy(approval={"enabled": True})
    facts, token = live.app.world.facts, begun.begun.sign_in_token
    proof = sign_proof(
        desk.device.channel_key, Purpose.REDEEM, redeem_statement(facts.server_id, begun.offer.sign_in_id, token)
    )
    request = sign_in_pb2.RedeemSignInRequest(sign_in_id=begun.begun.sign_in_id, proof=proof)
    metadata = (("authorization", f"SignIn {token}"),)
    with refused(Reason.SIGN_IN_UNKNOWN, status=grpc.StatusCode.UNAUTHENTICATED):
        await answer(live.connection.sign_ins.RedeemSignIn(request, metadata=metadata, timeout=LIMIT))
    with refused(Reason.POLICY_CHANGED):  # its own call knows it, and what held meanwhile (P19)
        await begun.complete()
    assert (await desk.signed_in()).session.acr == "phishing-resistant"


async def test_a_refresh_binds_the_token_to_the_certificate_of_now(live: LiveServer):
    desk = await desk_of(live)
    done = await desk.signed_in()
    newer = await renewed(live, desk)
    fresh = await newer.refresh(done.tokens.refresh_token)
    assert newer.thumbprint != desk.thumbprint
    assert claims_in(fresh.access_token)["cnf"] == {"x5t#S256": newer.thumbprint}
    again = await desk.refresh(done.tokens.refresh_token)  # a lost reply, asked for again on the old connection
    assert again.refresh_token == fresh.refresh_token
    assert claims_in(again.access_token)["cnf"] == {"x5t#S256": desk.thumbprint}


async def test_an_older_refresh_token_ends_the_session(live: LiveServer):
    desk = await desk_of(live)
    first = (await desk.signed_in()).tokens.refresh_token
    second = (await desk.refresh(first)).refresh_token
    third = (await desk.refresh(second)).refresh_token
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await desk.refresh(first)
    with refused(Reason.SESSION_REVOKED):
        await desk.refresh(third)


async def test_a_session_ends_with_its_time(live: LiveServer):
    desk = await desk_of(live)
    done = await desk.signed_in()
    live.clock.advance(12 * 3600)
    with refused(Reason.SESSION_EXPIRED, status=grpc.StatusCode.UNAUTHENTICATED):
        await desk.refresh(done.tokens.refresh_token)


async def test_a_certificate_renewed_between_begin_and_complete_is_the_one_of_the_token(live: LiveServer):
    begun = await (await desk_of(live)).begin()
    newer = await renewed(live, begun.desk)
    done = await begun.complete(desk=newer)
    assert claims_in(done.tokens.access_token)["cnf"] == {"x5t#S256": newer.thumbprint}


# at a resource server, and across restarts


async def subject(_request: bytes, _context: Any) -> bytes:
    return current_session().subject.encode()


@asynccontextmanager
async def resource_server(live: LiveServer, *, asks: bool, introspects: bool) -> AsyncIterator[str]:
    """Somebody else's service; gives its address. `asks`: for client certificates under the server's authority."""
    rules = AccessRules(issuer="https://localhost", audience=AUDIENCE, leeway=3600)
    guard = RequireSession(live.connection, rules, introspect=live.connection if introspects else None)
    handlers: dict[str, Any] = {"Who": grpc.unary_unary_rpc_method_handler(subject)}
    server = grpc.aio.server(interceptors=[guard])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("orders.v1.Orders", handlers),))
    authority = live.app.authority
    pair = authority.listener_certificate(["localhost"])
    credentials = grpc.ssl_server_credentials([pair], authority.root_pem if asks else None, require_client_auth=asks)
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(0)


async def who(address: str, device: BenchDevice, token: str) -> str:
    """Call over a connection of the device."""
    async with replace(device, endpoint=address).open_channel() as channel:
        call = channel.unary_unary("/orders.v1.Orders/Who")
        return (await answer(call(b"", metadata=bearer(token), timeout=LIMIT))).decode()


@pytest.mark.parametrize("introspects", [False, True])
async def test_a_token_is_worth_something_over_its_certificate_only_P15(live: LiveServer, introspects: bool):
    desk, other = await desk_of(live), await desk_of(live, "eve")
    done = await desk.signed_in()
    token, user = done.tokens.access_token, done.session.user_id
    async with resource_server(live, asks=True, introspects=introspects) as address:
        assert await who(address, desk.device, token) == user
        with refused(Reason.CERTIFICATE_REQUIRED, status=grpc.StatusCode.UNAUTHENTICATED):
            await who(address, other.device, token)
        newer = await renewed(live, desk)
        with refused(Reason.CERTIFICATE_REQUIRED):  # the token names the older certificate
            await who(address, newer.device, token)
        fresh = await newer.refresh(done.tokens.refresh_token)
        assert await who(address, newer.device, fresh.access_token) == user
    async with resource_server(live, asks=False, introspects=introspects) as address:
        with refused(Reason.CERTIFICATE_REQUIRED, status=grpc.StatusCode.UNAUTHENTICATED):
            await who(address, desk.device, token)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("same-device")) as made:
        yield made


async def test_a_copy_after_a_restart_gives_the_same_session_P6(stage: Stage):
    async with stage.connect() as connection, AsyncExitStack() as stack:
        account = await stage.new_account(connection)
        device = await enrol_with_pass(connection, stage.server.tenant, account.username, account.access_pass)
        begun = await DeviceDesk.open(device, stack).begin()
        approval = begun.approval()
        await stage.crash()
        first = await begun.complete(approval, desk=DeviceDesk.open(device, stack))
        await stage.crash()
        desk = DeviceDesk.open(device, stack)
        again = await begun.complete(approval, desk=desk)
        assert (again.session.session_id, again.tokens.refresh_token) == (
            first.session.session_id,
            first.tokens.refresh_token,
        )
        fresh = await desk.refresh(first.tokens.refresh_token)
        await stage.crash()
        with refused(Reason.CHALLENGE_CONSUMED):
            await begun.complete(approval, desk=DeviceDesk.open(device, stack))
        assert (await DeviceDesk.open(device, stack).refresh(fresh.refresh_token)).session_id == fresh.session_id
        joined = "session JOIN user ON user.id = user_id"
        count = f"SELECT count(*) FROM {joined} WHERE username = ? AND session.kind = 'approval'"
        assert stage.rows(count, account.username) == [(1,)]
        stage.check()
