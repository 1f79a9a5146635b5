"""Sessions on a real server: rotation, lost replies, reuse, revocation, and tokens that are not quite right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from keyvouch.errors import Reason, RefusedError
from keyvouch.proofs import jwk_of
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, sessions_pb2
from keyvouch.v1 import oversight_pb2 as oversight
from keyvouch_client.errors import answer
from keyvouch_client.sign_in import new_proof_key
from keyvouch_server.domain.model import Session
from keyvouch_server.domain.oversight_model import RiskEvent, RiskKind
from keyvouch_server.rpc.held_streams import MOST_STREAMS
from keyvouch_server.stores.sqlite_upkeep import check
from support.live_server import LIMIT, LiveServer, SignedIn, bearer, refused
from support.reflected import REFLECTION


async def row_of(live: LiveServer, signed_in: SignedIn) -> Session:
    row = await live.app.store.read(lambda tx: tx.get(Session, id=signed_in.session.session_id))
    assert row is not None
    return row


async def ada(live: LiveServer) -> SignedIn:
    return await live.signed_in(await live.person("ada"))


async def test_each_refresh_gives_a_new_token_and_the_session_stays(live: LiveServer):
    signed_in = await ada(live)
    seen = {signed_in.tokens.refresh_token}
    for _ in range(5):
        signed_in.tokens = await signed_in.refresh()
        seen.add(signed_in.tokens.refresh_token)
        await signed_in.introspect()
    assert len(seen) == 6
    assert signed_in.tokens.session_id == signed_in.session.session_id
    assert signed_in.tokens.session_expires_at == signed_in.session.expires_at
    written = b"".join(path.read_bytes() for path in live.data.glob("keyvouch.db*"))
    assert not [token for token in seen if token.encode() in written]


async def test_a_lost_reply_is_given_again(live: LiveServer):
    signed_in = await ada(live)
    first = await signed_in.refresh()
    repeated = await asyncio.gather(*(signed_in.refresh() for _ in range(8)))
    assert {t.refresh_token for t in repeated} == {first.refresh_token}
    assert (await row_of(live, signed_in)).generation == 2
    await live.introspect(bearer(repeated[0].access_token))


async def test_two_at_once_with_one_token_get_the_same_new_one(live: LiveServer):
    signed_in = await ada(live)
    tokens = await asyncio.gather(*(signed_in.refresh() for _ in range(8)))
    assert len({t.refresh_token for t in tokens}) == 1
    assert (await row_of(live, signed_in)).generation == 2


async def test_an_older_token_ends_the_session(live: LiveServer):
    signed_in = await ada(live)
    elsewhere = {"address": "192.0.2.7"}  # where the sign-in came from, which is not where the copy is used
    await live.app.store.write(lambda tx: tx.update(Session, {"id": signed_in.session.session_id}, elsewhere))
    first = signed_in.tokens
    second = await signed_in.refresh()
    third = await signed_in.refresh(second.refresh_token)
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await signed_in.refresh(first.refresh_token)
    with refused(Reason.SESSION_REVOKED):
        await signed_in.refresh(third.refresh_token)
    with refused(Reason.SESSION_REVOKED):
        await live.introspect(bearer(third.access_token))
    assert (await row_of(live, signed_in)).revoke_reason == "refresh_token_reused"
    (event,) = await live.app.store.read(lambda tx: tx.find(RiskEvent, {"kind": RiskKind.TOKEN_REUSED}))
    assert (event.subject, event.address) == (signed_in.session.session_id, "127.0.0.1")
    assert [r.actor for r in await live.audit("session.revoke")][-1] == "server"


async def test_tokens_that_are_not_quite_right_are_refused_and_change_nothing_P14(live: LiveServer):
    signed_in = await ada(live)
    token = signed_in.tokens.refresh_token
    before = await row_of(live, signed_in)
    kind, prefix, identifier, secret = token.split("_", 3)
    wrong = {token[:n] for n in range(0, len(token), 5)} | {token[n:] for n in range(1, len(token), 5)}
    wrong |= {f"x{token}", f"{token}=", f"{token}A", f" {token}", f"{token}\n", token.upper(), token.swapcase()}
    wrong |= {f"kvs_{prefix}_{identifier}_{secret}", f"{kind}_{prefix}_{identifier}_{secret[::-1]}", ""}
    for at in range(len(token) - len(secret), len(token), 3):
        wrong.add(token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :])
    for candidate in wrong:
        with refused(Reason.CREDENTIALS_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
            request = sessions_pb2.RefreshSessionRequest(
                refresh_token=candidate, proof=signed_in.refresh_proof(candidate)
            )
            await answer(live.connection.sessions.RefreshSession(request, timeout=LIMIT))
    assert await row_of(live, signed_in) == before
    assert len(wrong) > 40
    await signed_in.refresh()


async def test_another_key_refreshes_nothing_P15(live: LiveServer):
    signed_in = await ada(live)
    token = signed_in.tokens.refresh_token
    before = await row_of(live, signed_in)
    for proof in (signed_in.refresh_proof(token, new_proof_key()), signed_in.refresh_proof(token + "x"), b"", b"0"):
        request = sessions_pb2.RefreshSessionRequest(refresh_token=token, proof=proof)
        with refused(Reason.PROOF_INVALID, status=grpc.StatusCode.UNAUTHENTICATED):
            await answer(live.connection.sessions.RefreshSession(request, timeout=LIMIT))
    assert await row_of(live, signed_in) == before
    traces = [r for r in await live.audit("session.refresh") if r.outcome != "ok"]
    assert [(r.actor, r.subject, r.outcome) for r in traces] == [("anonymous", before.id, "proof_invalid")] * 4
    assert '"address": "127.0.0.1"' in traces[0].details
    made_up = token[:-1] + ("A" if token[-1] != "A" else "E")
    request = sessions_pb2.RefreshSessionRequest(refresh_token=made_up, proof=b"0")
    with refused(Reason.PROOF_INVALID):
        await answer(live.connection.sessions.RefreshSession(request, timeout=LIMIT))
    assert len([r for r in await live.audit("session.refresh") if r.outcome != "ok"]) == 4  # nobody has that token
    await signed_in.refresh()


async def test_a_session_ends_with_its_time(live: LiveServer):
    signed_in = await ada(live)
    live.clock.advance(12 * 3600 - 1)
    tokens = await signed_in.refresh()
    assert tokens.access_expires_at == signed_in.session.expires_at
    live.clock.advance(1)
    with refused(Reason.SESSION_EXPIRED, status=grpc.StatusCode.UNAUTHENTICATED):
        await signed_in.refresh(tokens.refresh_token)


async def test_what_is_ended_while_the_clock_is_ahead_does_not_come_back_with_the_right_time_P20(live: LiveServer):
    signed_in, bob = await ada(live), await live.signed_in(await live.person("bob"))
    live.clock.advance(12 * 3600 - 1800)
    admin = await live.signed_in(live.people["admin"], app_id="console")
    live.clock.advance(3600)
    admin.tokens = await admin.refresh()
    request = oversight.RevokeSessionsRequest(user="ada")
    ended = await answer(live.connection.oversight.RevokeSessions(request, metadata=admin.metadata, timeout=LIMIT))
    assert ended.revoked_sessions == 0  # none of them lived by that clock
    live.clock.advance(-3600)
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await signed_in.refresh()
    await bob.refresh()  # the control


async def test_revocation_is_seen_at_once_where_the_session_is_asked_for(live: LiveServer):
    person = await live.person("ada")
    first, second = await live.signed_in(person), await live.signed_in(person)
    request = sessions_pb2.RevokeSessionRequest(session_id=second.session.session_id)
    for _ in range(2):  # ending an ended session succeeds
        await answer(live.connection.sessions.RevokeSession(request, metadata=first.metadata, timeout=LIMIT))
    with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
        await second.introspect()
    with refused(Reason.SESSION_REVOKED):
        await second.refresh()
    await first.introspect()


async def test_people_see_their_own_sessions_and_no_others(live: LiveServer):
    person = await live.person("ada")
    mine = [await live.signed_in(person) for _ in range(3)]
    other = await live.signed_in(await live.person("bob"))
    collected, token = [], ""
    while True:
        page = sessions_pb2.ListSessionsRequest(page=common_pb2.PageRequest(size=2, token=token))
        told = await answer(live.connection.sessions.ListSessions(page, metadata=mine[0].metadata, timeout=LIMIT))
        collected += [s.session_id for s in told.sessions]
        token = told.next_token
        if not token:
            break
    assert {s.session.session_id for s in mine} < set(collected)
    assert len(collected) == len(set(collected)) == 4  # and that of the pass
    request = sessions_pb2.RevokeSessionRequest(session_id=other.session.session_id)
    with refused(Reason.SESSION_UNKNOWN, status=grpc.StatusCode.NOT_FOUND):
        await answer(live.connection.sessions.RevokeSession(request, metadata=mine[0].metadata, timeout=LIMIT))
    await other.introspect()


async def test_a_token_for_another_service_opens_nothing_here_P14(live: LiveServer):
    person = await live.person("ada")
    foreign = await live.signed_in(person, audience="https://orders.test")
    assert (await foreign.introspect()).session.username == "ada"
    request = sessions_pb2.ListSessionsRequest()
    with refused(Reason.TOKEN_AUDIENCE, status=grpc.StatusCode.UNAUTHENTICATED):
        await answer(live.connection.sessions.ListSessions(request, metadata=foreign.metadata, timeout=LIMIT))
    with refused(Reason.TOKEN_AUDIENCE):
        await live.administer("ListUsers", admin_pb.ListUsersRequest(), foreign.metadata)
    own = await live.signed_in(person)
    await answer(live.connection.sessions.ListSessions(request, metadata=own.metadata, timeout=LIMIT))


async def test_the_published_keys_are_those_of_the_tokens(live: LiveServer):
    told = await answer(live.connection.sessions.GetJwks(sessions_pb2.GetJwksRequest(), timeout=LIMIT))
    keys = json.loads(told.jwks)["keys"]
    ((kid, key),) = live.app.keyring.token_keys.items()
    assert [(k["kid"], k["alg"], k["use"], k["x"]) for k in keys] == [(kid, "ES256", "sig", jwk_of(key)["x"])]
    assert "d" not in keys[0]
    assert told.server_id == live.app.authority.server_id


async def test_what_the_rules_promise_holds_between_the_records_weeks_later(live: LiveServer):
    """`keyvouch-server check` finds nothing after a busy life, the end of retention included."""
    person, bob = await live.person("ada"), await live.person("bob")
    kept = await live.signed_in(person)
    await live.approved(person)
    await live.begin("ada")
    await live.signed_in(bob)
    await live.administer("DeleteUser", admin_pb.DeleteUserRequest(username="bob"))
    assert check(live.data / "keyvouch.db").problems == ()
    live.clock.advance(8 * 86400)
    await live.app.sign_ins.expire()
    assert check(live.data / "keyvouch.db").problems == ()
    assert (await row_of(live, kept)).id == kept.session.session_id


# -- streams that a session holds open --------------------------------------------------------------


def watching(live: LiveServer, signed_in: SignedIn) -> Any:
    """The health of the server, told whenever it changes: it never does."""
    watch = health_pb2_grpc.HealthStub(live.connection.channel).Watch
    return watch(health_pb2.HealthCheckRequest(), metadata=signed_in.metadata, timeout=LIMIT)


async def reflecting(live: LiveServer, signed_in: SignedIn, service: str) -> Any:
    """A stream of questions on what there is to call, which is kept open after the first one."""
    open_stream: Any = live.connection.channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    stream = open_stream(metadata=signed_in.metadata, timeout=LIMIT)
    await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    return stream


async def sign_out(live: LiveServer, signed_in: SignedIn) -> None:
    request = sessions_pb2.RevokeSessionRequest()
    await answer(live.connection.sessions.RevokeSession(request, metadata=signed_in.metadata, timeout=LIMIT))


async def ended_by_an_administrator(live: LiveServer, signed_in: SignedIn) -> None:
    request = oversight.RevokeSessionsRequest(session_id=signed_in.session.session_id)
    await answer(live.connection.oversight.RevokeSessions(request, metadata=await live.admin(), timeout=LIMIT))


async def deleted(live: LiveServer, signed_in: SignedIn) -> None:
    await live.administer("DeleteUser", admin_pb.DeleteUserRequest(username=signed_in.session.username))


async def out_of_time(live: LiveServer, signed_in: SignedIn) -> None:
    live.clock.advance(12 * 3600)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (sign_out, Reason.SESSION_REVOKED),
        (ended_by_an_administrator, Reason.SESSION_REVOKED),
        (deleted, Reason.SESSION_REVOKED),
        (out_of_time, Reason.SESSION_EXPIRED),
    ],
)
async def test_open_streams_end_with_their_session_and_no_others_P14_PS18(
    live: LiveServer, end: Callable[[LiveServer, SignedIn], Awaitable[None]], reason: Reason
):
    signed_in = await ada(live)
    other = await live.signed_in(await live.person("bob"))
    streams = [watching(live, signed_in), *[await reflecting(live, signed_in, name) for name in REFLECTION]]
    kept = watching(live, other)
    for stream in (*streams, kept):
        await answer(stream.read())
    await end(live, signed_in)
    for stream in streams:
        with refused(reason, status=grpc.StatusCode.UNAUTHENTICATED):
            await answer(stream.read())
            await stream
    if end is not out_of_time:
        assert not kept.done()
        kept.cancel()


async def test_a_session_holds_so_many_streams_and_one_more_when_one_has_ended(live: LiveServer):
    signed_in = await ada(live)
    streams = [watching(live, signed_in) for _ in range(MOST_STREAMS)]
    await asyncio.gather(*(answer(stream.read()) for stream in streams))
    with refused(Reason.LIMIT_REACHED, status=grpc.StatusCode.FAILED_PRECONDITION):
        await answer(watching(live, signed_in).read())
    await answer(watching(live, await live.signed_in(await live.person("bob"))).read())
    streams[0].cancel()
    await ended(lambda: watching(live, signed_in))


async def ended(again: Callable[[], Any]) -> None:
    """Until the server has noticed that a client has gone."""
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                await answer(again().read())
            except RefusedError:
                continue
            return


async def test_who_may_not_open_a_stream_leaves_a_trace_P16(live: LiveServer):
    await live.create_user("ada")
    session = await live.pass_session("ada", await live.issue_pass("ada"))
    watch = health_pb2_grpc.HealthStub(live.connection.channel).Watch
    with refused(Reason.SESSION_PURPOSE, status=grpc.StatusCode.PERMISSION_DENIED):
        await answer(watch(health_pb2.HealthCheckRequest(), metadata=session, timeout=LIMIT).read())
    (record,) = await live.audit("call.denied")
    assert (record.subject, record.outcome) == ("/grpc.health.v1.Health/Watch", "session_purpose")
