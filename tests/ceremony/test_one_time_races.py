"""Everything that may be used once, raced for by client processes against a server process: one winner each (P7, P8).

By default a few rounds each. `--race-rounds 1000` runs as many with 2, 8 and 64 racers; see
tests/README.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from google.protobuf.message import Message

from keyvouch.errors import NotFoundError
from keyvouch.ids import SignInId
from keyvouch.proofs import sign_proof
from keyvouch.statement import Purpose, redeem_statement
from keyvouch.v1 import administration_pb2, enrolment_pb2, sessions_pb2, sign_in_pb2
from keyvouch_bench.device import enrol_with_pass
from keyvouch_client import Connection, Session, sign_in_with_access_pass
from keyvouch_client.errors import answer
from keyvouch_client.sign_in import Begun
from support.crash_stage import Account, Stage
from support.racers import Finish, Racers, racers
from support.stubborn import Enrolling, StubbornDevice, begin, insist, refresh_request

PROCESSES = 3
FIELD = (2, 8, 64)
CRASHES = 6
"""At least so many kills in mid-race, for each kind of item; of many rounds one in ten."""

_PASS = "/keyvouch.v1.SignInService/SignInWithAccessPass"
_REDEEM = "/keyvouch.v1.SignInService/RedeemSignIn"
_COMPLETE = "/keyvouch.v1.EnrolmentService/CompleteRegistration"
_REFRESH = "/keyvouch.v1.SessionService/RefreshSession"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.open(tmp_path_factory.mktemp("once"), registration__devices_per_user=100) as made:
        yield made


@pytest.fixture(scope="module")
def field(stage: Stage) -> Iterator[Racers]:
    with racers(PROCESSES, stage.server.endpoint, stage.server.ca) as running:
        yield running


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How many rounds with each number of racers."""
    return int(request.config.getoption("--race-rounds"))


def sizes(rounds: int) -> list[int]:
    return [size for size in FIELD for _ in range(rounds)]


def winners(finishes: Sequence[Finish]) -> list[Finish]:
    return [one for one in finishes if one.code == "OK"]


def reasons(finishes: Sequence[Finish]) -> set[str]:
    return {one.reason for one in finishes if one.code != "OK"}


# One item each, and what a race for it has to come to


async def one_time_pass(stage: Stage, connection: Connection, username: str) -> str:
    """A new one-time pass; the one before, used or not, goes."""
    stub, metadata = connection.administration, stage.administrator
    with contextlib.suppress(NotFoundError):
        gone = administration_pb2.DeleteAccessPassRequest(username=username)
        await answer(stub.DeleteAccessPass(gone, metadata=metadata))
    wanted = administration_pb2.CreateAccessPassRequest(username=username, one_time=True)
    return (await answer(stub.CreateAccessPass(wanted, metadata=metadata))).code


def pass_request(stage: Stage, username: str, code: str) -> sign_in_pb2.SignInWithAccessPassRequest:
    return sign_in_pb2.SignInWithAccessPassRequest(tenant=stage.server.tenant, username=username, access_pass=code)


@pytest.mark.timeout(3600)
async def test_a_one_time_pass_opens_one_session_P7_P8(stage: Stage, field: Racers, rounds: int) -> None:
    async with stage.connect() as connection:
        account = await stage.new_account(connection)
        for size in sizes(rounds):
            code = await one_time_pass(stage, connection, account.username)
            request = pass_request(stage, account.username, code)
            finishes = await asyncio.to_thread(field.race, _PASS, [request] * size)
            assert len(winners(finishes)) == 1, Counter(one.reason for one in finishes)
            assert reasons(finishes) == {"access_pass_refused"}
    query = """SELECT count(*) FROM session JOIN user ON user.id = user_id
        WHERE username = ? AND session.kind = 'access_pass'"""
    assert stage.rows(query, account.username) == [(rounds * len(FIELD),)]
    stage.check()


@pytest.mark.timeout(3600)
async def test_an_approval_becomes_one_session_P7(stage: Stage, field: Racers, rounds: int) -> None:
    async with stage.connect() as connection:
        account = await stage.new_account(connection)
        async with online(stage, connection, account) as device:
            for size in sizes(rounds):
                begun = await approved(stage, connection, account, device)
                request = await redemption(connection, begun)
                finishes = await asyncio.to_thread(field.race, _REDEEM, [request] * size, begun.metadata)
                assert len(winners(finishes)) == size, reasons(finishes)  # each copy gets the same session
                told = [sign_in_pb2.RedeemSignInResponse.FromString(one.response) for one in finishes]
                assert {one.session.session_id for one in told} == {session_of(stage, begun)}
                assert len({one.tokens.refresh_token for one in told}) == 1
    assert_one_redemption_each(stage, account, rounds * len(FIELD))
    stage.check()


def assert_one_redemption_each(stage: Stage, account: Account, count: int) -> None:
    """As many sessions as approvals, and one audit record for each."""
    sessions = (
        "SELECT count(*) FROM session JOIN user ON user.id = user_id WHERE username = ? AND session.kind = 'approval'"
    )
    assert stage.rows(sessions, account.username) == [(count,)]
    query = """SELECT count(*), count(DISTINCT subject) FROM audit_record JOIN user ON user.id = user_id
        WHERE username = ? AND action = 'sign_in.redeem' AND outcome = 'ok'"""
    assert stage.rows(query, account.username) == [(count, count)]


@contextlib.asynccontextmanager
async def online(stage: Stage, connection: Connection, account: Account) -> AsyncIterator[StubbornDevice]:
    """The account's new device, connected."""
    who = (stage.server.tenant, account.username, account.access_pass)
    async with StubbornDevice(await enrol_with_pass(connection, *who)).online() as device:
        await device.connected()
        yield device


async def approved(stage: Stage, connection: Connection, account: Account, device: StubbornDevice) -> Begun:
    begun = await begin(connection, stage.server.tenant, account.username)
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


def session_of(stage: Stage, begun: Begun) -> str:
    ((session_id,),) = stage.rows("SELECT session_id FROM sign_in WHERE id = ?", begun.begun.sign_in_id)
    return str(session_id)


@pytest.mark.timeout(3600)
async def test_a_registration_makes_one_device_P7_P8(stage: Stage, field: Racers, rounds: int) -> None:
    """Each racer answers it with a credential of its own: one is registered, and the others learn that it is done."""
    async with stage.connect() as connection:
        for size in sizes(rounds):
            account = await stage.new_account(connection)
            enrolling = await begun_registration(stage, connection, account)
            requests = []
            for _ in range(size):
                enrolling.remake()
                requests.append(enrolling.request)
            finishes = await asyncio.to_thread(field.race, _COMPLETE, requests, enrolling.metadata)
            assert len(winners(finishes)) == 1, reasons(finishes)
            assert reasons(finishes) == {"registration_consumed"}
            assert_one_device(stage, account, winners(finishes))
    stage.check()


async def begun_registration(stage: Stage, connection: Connection, account: Account) -> Enrolling:
    session = await sign_in_with_access_pass(
        connection, tenant=stage.server.tenant, username=account.username, access_pass=account.access_pass
    )
    enrolling = Enrolling(connection)
    await enrolling.begin(await session.metadata())
    return enrolling


def assert_one_device(stage: Stage, account: Account, told: Sequence[Finish]) -> None:
    ids = {enrolment_pb2.CompleteRegistrationResponse.FromString(one.response).device.device_id for one in told}
    query = """SELECT device.id, count(credential.id) FROM device JOIN user ON user.id = device.user_id
        JOIN credential ON device_id = device.id WHERE username = ? GROUP BY device.id"""
    assert stage.rows(query, account.username) == [(one, 1) for one in ids]
    assert len(ids) == 1


@pytest.mark.timeout(3600)
async def test_a_refresh_token_is_rotated_once_P7(stage: Stage, field: Racers, rounds: int) -> None:
    async with stage.connect() as connection:
        account = await stage.new_account(connection)
        async with online(stage, connection, account) as device:
            session = await (await approved(stage, connection, account, device)).redeem()
        for number, size in enumerate(sizes(rounds)):
            request = refresh_request(session)
            finishes = await asyncio.to_thread(field.race, _REFRESH, [request] * size)
            assert len(winners(finishes)) == size, reasons(finishes)  # each copy gets the same new token
            told = [sessions_pb2.RefreshSessionResponse.FromString(one.response).tokens for one in finishes]
            assert len({one.refresh_token for one in told}) == 1
            assert generation(stage, session) == number + 2
            session.tokens = told[0]
    stage.check()


def generation(stage: Stage, session: Session) -> int:
    ((found,),) = stage.rows("SELECT generation FROM session WHERE id = ?", session.session_id)
    return int(found)


# The same, and the server is killed while they race


async def race_over_a_crash(
    stage: Stage,
    field: Racers,
    method: str,
    requests: Sequence[Message],
    metadata: Sequence[tuple[str, str]],
    draw: random.Random,
) -> list[Finish]:
    """All at once; the server dies in the middle and comes back; whoever had no answer asks again."""
    race = asyncio.create_task(asyncio.to_thread(field.race, method, requests, metadata, insist=True))
    await asyncio.sleep(draw.uniform(0, 0.06))
    await stage.crash()
    return await race


@pytest.mark.timeout(3600)
async def test_a_crash_gives_no_second_winner_P6_P7(stage: Stage, field: Racers, rounds: int) -> None:
    crashes = max(CRASHES, rounds // 10)
    draw, seen = random.Random(20261128), Counter[str]()
    async with stage.connect() as connection:
        account = await stage.new_account(connection)
        async with online(stage, connection, account) as device:
            for _ in range(crashes):
                seen += await crash_of_a_pass(stage, field, connection, draw)
                seen += await crash_of_an_approval(stage, field, connection, account, device, draw)
                seen += await crash_of_a_registration(stage, field, connection, draw)
    stage.check()
    assert seen["pass"] <= crashes
    assert seen["approval"] == seen["registration"] == crashes


async def crash_of_a_pass(stage: Stage, field: Racers, connection: Connection, draw: random.Random) -> Counter[str]:
    """The winner's reply may be lost with the server: then nobody holds the one session, and nobody gets another."""
    account = await insist(connection, lambda: stage.new_account(connection))
    code = await one_time_pass(stage, connection, account.username)
    request = pass_request(stage, account.username, code)
    finishes = await race_over_a_crash(stage, field, _PASS, [request] * 64, (), draw)
    query = "SELECT count(*) FROM session JOIN user ON user.id = user_id WHERE username = ?"
    assert stage.rows(query, account.username) == [(1,)]
    assert len(winners(finishes)) <= 1
    return Counter({"pass": len(winners(finishes))})


async def crash_of_an_approval(
    stage: Stage,
    field: Racers,
    connection: Connection,
    account: Account,
    device: StubbornDevice,
    draw: random.Random,
) -> Counter[str]:
    begun = await insist(connection, lambda: approved(stage, connection, account, device))
    request = await redemption(connection, begun)
    finishes = await race_over_a_crash(stage, field, _REDEEM, [request] * 64, begun.metadata, draw)
    told = [sign_in_pb2.RedeemSignInResponse.FromString(one.response) for one in winners(finishes)]
    assert {one.session.session_id for one in told} == {session_of(stage, begun)}
    assert len(told) == len(finishes), reasons(finishes)
    query = "SELECT count(*) FROM audit_record WHERE subject = ? AND action = 'sign_in.redeem' AND outcome = 'ok'"
    assert stage.rows(query, begun.begun.sign_in_id) == [(1,)]
    return Counter({"approval": 1})


async def crash_of_a_registration(
    stage: Stage, field: Racers, connection: Connection, draw: random.Random
) -> Counter[str]:
    account = await insist(connection, lambda: stage.new_account(connection))
    enrolling = await begun_registration(stage, connection, account)
    requests = []
    for _ in range(16):
        enrolling.remake()
        requests.append(enrolling.request)
    finishes = await race_over_a_crash(stage, field, _COMPLETE, requests, enrolling.metadata, draw)
    told = winners(finishes)
    assert len(told) == 1  # the same bytes again get the same reply, so the winner learns that it has won
    assert reasons(finishes) == {"registration_consumed"}
    assert_one_device(stage, account, told)
    return Counter({"registration": 1})


def test_a_refusal_is_told_from_a_win(stage: Stage, field: Racers) -> None:
    """The control: racers that cannot win say so, each of them."""
    request = sign_in_pb2.SignInWithAccessPassRequest(tenant=stage.server.tenant, username="nobody", access_pass="x")
    finishes = field.race(_PASS, [request] * 8)
    assert [one.code for one in finishes] == ["UNAUTHENTICATED"] * 8
    assert reasons(finishes) == {"access_pass_refused"}
