"""Everything that may be used once, and rounds in which client processes race for it: what each has to come to.

    arena = Arena(stage, field, connection)
    await pass_round(arena, account, 64)        # 64 copies of one request, all at once

With an `Upset` something happens in the middle of each race, and whoever has no answer asks again (`upsets`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import pytest
from google.protobuf.message import Message

from keyvouch.errors import NotFoundError, Reason, UnauthenticatedError
from keyvouch.ids import SignInId
from keyvouch.proofs import sign_proof
from keyvouch.statement import Purpose, redeem_statement
from keyvouch.v1 import administration_pb2, common_pb2, enrolment_pb2, sessions_pb2, sign_in_pb2
from keyvouch_bench.device import enrol_with_pass
from keyvouch_client import Connection, Session, sign_in_with_access_pass
from keyvouch_client.errors import answer
from keyvouch_client.sign_in import Begun
from support.crash_stage import Account, Stage
from support.racers import Finish, Race, Racers
from support.stubborn import Enrolling, StubbornDevice, begin, insist, refresh_request

PASS = "/keyvouch.v1.SignInService/SignInWithAccessPass"
REDEEM = "/keyvouch.v1.SignInService/RedeemSignIn"
COMPLETE = "/keyvouch.v1.EnrolmentService/CompleteRegistration"
REFRESH = "/keyvouch.v1.SessionService/RefreshSession"


FIELD = (2, 8, 64)
"""How many calls race for one thing."""


def sizes(rounds: int) -> list[int]:
    """The races of so many rounds, by the number of calls in each."""
    return [size for size in FIELD for _ in range(rounds)]


class Upset(Protocol):
    """What happens in the middle of a race."""

    async def before(self, method: str, size: int) -> None:
        """`size` calls of `method` are about to start."""

    async def during(self, race: Race) -> list[Finish]:
        """They have started. Returns those that were waited for."""

    async def after(self) -> None:
        """All of them have been answered."""


@dataclass(frozen=True, slots=True)
class Arena:
    """A stage, the client processes, a connection for what goes before and after, and what upsets a race."""

    stage: Stage
    field: Racers
    connection: Connection
    upset: Upset | None = None

    async def race(
        self, method: str, requests: Sequence[Message], metadata: Sequence[tuple[str, str]] = ()
    ) -> list[Finish]:
        """Send them all at once; returns what became of them."""
        if self.upset is None:
            return await asyncio.to_thread(self.field.race, method, requests, metadata)
        await self.upset.before(method, len(requests))
        race = await asyncio.to_thread(partial(self.field.start, method, requests, metadata, insist=True))
        finishes = await self.upset.during(race)
        finishes += await asyncio.to_thread(race.finishes)
        await self.upset.after()
        return finishes

    async def account(self) -> Account:
        """A fresh user with a pass."""
        return await insist(self.connection, lambda: self.stage.new_account(self.connection))

    async def session(self) -> Session:
        """A session of a fresh user."""
        account = await self.account()
        async with online(self, account) as device:
            return await (await approved(self, account, device)).redeem()


def winners(finishes: Sequence[Finish]) -> list[Finish]:
    return [one for one in finishes if one.code == "OK"]


def reasons(finishes: Sequence[Finish]) -> set[str]:
    return {one.reason for one in finishes if one.code != "OK"}


# A one-time pass


async def one_time_pass(arena: Arena, username: str) -> str:
    """A new one-time pass; the one before, used or not, goes."""
    stub, metadata = arena.connection.administration, arena.stage.administrator
    with contextlib.suppress(NotFoundError):
        gone = administration_pb2.DeleteAccessPassRequest(username=username)
        await answer(stub.DeleteAccessPass(gone, metadata=metadata))
    wanted = administration_pb2.CreateAccessPassRequest(username=username, one_time=True)
    return (await answer(stub.CreateAccessPass(wanted, metadata=metadata))).code


def pass_request(stage: Stage, username: str, code: str) -> sign_in_pb2.SignInWithAccessPassRequest:
    return sign_in_pb2.SignInWithAccessPassRequest(tenant=stage.server.tenant, username=username, access_pass=code)


async def pass_round(arena: Arena, account: Account, size: int) -> list[Finish]:
    """One of them gets in. In an upset the winner's reply may be lost: then nobody holds the one session."""
    before = _pass_sessions(arena.stage, account)
    code = await one_time_pass(arena, account.username)
    request = pass_request(arena.stage, account.username, code)
    finishes = await arena.race(PASS, [request] * size)
    won = winners(finishes)
    assert len(won) == 1 or (arena.upset and not won), Counter(one.reason for one in finishes)
    assert reasons(finishes) == {"access_pass_refused"}
    opened = _pass_sessions(arena.stage, account) - before
    assert len(opened) == 1
    assert {sign_in_pb2.SignInWithAccessPassResponse.FromString(w.response).tokens.session_id for w in won} <= opened
    return finishes


def _pass_sessions(stage: Stage, account: Account) -> set[str]:
    query = """SELECT session.id FROM session JOIN "user" ON "user".id = user_id
        WHERE username = ? AND session.kind = 'access_pass'"""
    return {row[0] for row in stage.rows(query, account.username)}


# An approval


@contextlib.asynccontextmanager
async def online(arena: Arena, account: Account) -> AsyncIterator[StubbornDevice]:
    """The account's new device, connected."""
    who = (arena.stage.server.tenant, account.username, account.access_pass)
    device = await enrol_with_pass(arena.connection, *who)
    async with StubbornDevice(device, open_channel=lambda: arena.stage.channel_of(device)).online() as connected:
        await connected.connected()
        yield connected


async def approved(arena: Arena, account: Account, device: StubbornDevice) -> Begun:
    begun = await begin(arena.connection, arena.stage.server.tenant, account.username)
    prompt = await device.prompt_of(begun.begun.sign_in_id)
    await device.send(device.device.approve(prompt, begun.begun.number))
    assert (await device.outcome(prompt.prompt_id)).accepted
    return begun


async def redemption(connection: Connection, begun: Begun) -> sign_in_pb2.RedeemSignInRequest:
    told = begun.begun
    server_id = (await connection.identity()).server_id
    statement = redeem_statement(server_id, SignInId(told.sign_in_id), told.sign_in_token)
    proof = sign_proof(begun._proof_key, Purpose.REDEEM, statement)
    return sign_in_pb2.RedeemSignInRequest(sign_in_id=told.sign_in_id, proof=proof)


async def approval_round(arena: Arena, account: Account, device: StubbornDevice, size: int) -> list[Finish]:
    """Each copy gets the same session; one redemption is in the audit log."""
    begun = await insist(arena.connection, lambda: approved(arena, account, device))
    request = await redemption(arena.connection, begun)
    finishes = await arena.race(REDEEM, [request] * size, begun.metadata)
    assert len(winners(finishes)) == size, reasons(finishes)
    told = [sign_in_pb2.RedeemSignInResponse.FromString(one.response) for one in finishes]
    ((session_id,),) = arena.stage.rows("SELECT session_id FROM sign_in WHERE id = ?", begun.begun.sign_in_id)
    assert {one.session.session_id for one in told} == {session_id}
    assert len({one.tokens.refresh_token for one in told}) == 1
    query = "SELECT count(*) FROM audit_record WHERE subject = ? AND action = 'sign_in.redeem' AND outcome = 'ok'"
    assert arena.stage.rows(query, begun.begun.sign_in_id) == [(1,)]
    return finishes


def assert_one_redemption_each(stage: Stage, account: Account, count: int) -> None:
    """As many sessions as approvals, and one audit record for each."""
    sessions = """SELECT count(*) FROM session JOIN "user" ON "user".id = user_id
        WHERE username = ? AND session.kind = 'approval'"""
    assert stage.rows(sessions, account.username) == [(count,)]
    query = """SELECT count(*), count(DISTINCT subject) FROM audit_record JOIN "user" ON "user".id = user_id
        WHERE username = ? AND action = 'sign_in.redeem' AND outcome = 'ok'"""
    assert stage.rows(query, account.username) == [(count, count)]


# A registration


async def registration_round(arena: Arena, size: int) -> list[Finish]:
    """Each racer answers it with a credential of its own: one is registered, and the others learn that it is done.

    The same bytes again get the same reply, so that the winner learns that it has won whatever happens.
    """
    account = await arena.account()
    enrolling = await begun_registration(arena, account)
    requests = []
    for _ in range(size):
        enrolling.remake()
        requests.append(enrolling.request)
    finishes = await arena.race(COMPLETE, requests, enrolling.metadata)
    won = winners(finishes)
    assert len(won) == 1, reasons(finishes)
    assert reasons(finishes) == {"registration_consumed"}
    ids = {enrolment_pb2.CompleteRegistrationResponse.FromString(one.response).device.device_id for one in won}
    query = """SELECT device.id, count(credential.id) FROM device JOIN "user" ON "user".id = device.user_id
        JOIN credential ON device_id = device.id WHERE username = ? GROUP BY device.id"""
    assert arena.stage.rows(query, account.username) == [(one, 1) for one in ids]
    return finishes


async def begun_registration(arena: Arena, account: Account) -> Enrolling:
    session = await sign_in_with_access_pass(
        arena.connection,
        tenant=arena.stage.server.tenant,
        username=account.username,
        access_pass=account.access_pass,
    )
    enrolling = Enrolling(arena.connection)
    await enrolling.begin(await session.metadata())
    return enrolling


# A refresh token


async def refresh_round(arena: Arena, session: Session, size: int) -> list[Finish]:
    """Copies of one exchange: one step, each copy gets the same new token, and the session goes on with that one."""
    before = generation(arena.stage, session)
    finishes = await arena.race(REFRESH, [refresh_request(session)] * size)
    assert len(winners(finishes)) == size, reasons(finishes)
    told = _tokens(finishes)
    assert len({one.refresh_token for one in told}) == 1
    assert generation(arena.stage, session) == before + 1
    session.tokens = told[0]
    return finishes


async def two_holders_round(arena: Arena, session: Session, size: int) -> bool:
    """Half of the racers come with the present token, half with the one before it, as somebody does who has a copy.

    At most one successor is given out. Either the session goes on with it, and with it alone, or the copy was found
    out: then the session has ended once, for everybody. Returns whether it goes on.
    """
    older = refresh_request(session)
    await session.refresh()
    present, newer = session.tokens.refresh_token, refresh_request(session)
    before = generation(arena.stage, session)
    finishes = await arena.race(REFRESH, [(older, newer)[n % 2] for n in range(size)])
    assert reasons(finishes) <= {"session_revoked"}
    successors = {one.refresh_token for one in _tokens(winners(finishes))} - {present}
    step = generation(arena.stage, session) - before
    assert len(successors) <= step <= 1
    events = "SELECT count(*) FROM risk_event WHERE subject = ? AND kind = 'token_reused'"
    ((found_out,),) = arena.stage.rows(events, session.session_id)
    assert found_out <= 1
    assert bool(reasons(finishes)) <= bool(found_out)
    for token in successors or {present}:
        session.tokens.refresh_token = token
        if found_out:
            with pytest.raises(UnauthenticatedError) as ended:
                await session.refresh()
            assert ended.value.reason is Reason.SESSION_REVOKED
        else:
            await session.refresh()
            assert generation(arena.stage, session) == before + step + 1
    return not found_out


def _tokens(finishes: Sequence[Finish]) -> list[common_pb2.SessionTokens]:
    return [sessions_pb2.RefreshSessionResponse.FromString(one.response).tokens for one in finishes]


def generation(stage: Stage, session: Session) -> int:
    ((found,),) = stage.rows("SELECT generation FROM session WHERE id = ?", session.session_id)
    return int(found)
