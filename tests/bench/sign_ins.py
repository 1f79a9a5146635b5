"""The flows that are measured: what a client and a device do for one sign-in, as lean as the protocol allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from population import Person, Population

from keyvouch.ids import ServerId, SignInId
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, proof_statement, redeem_statement
from keyvouch.v1 import common_pb2 as common
from keyvouch.v1 import sign_in_pb2 as pb


class Flow(Protocol):
    """A way to sign in."""

    name: str

    async def run(self, clients: int, seconds: float) -> list[float]:
        """Sign in with `clients` people at a time for `seconds`; returns each sign-in's duration in seconds."""
        ...


async def _loop(work: Any, seconds: float) -> list[float]:
    taken, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        await work()
        taken.append(time.perf_counter() - start)
    return taken


async def _together(loops: list[Coroutine[Any, Any, list[float]]]) -> list[float]:
    return [t for taken in await asyncio.gather(*loops) for t in taken]


def _context(tenant: str, person: Person) -> pb.SignInContext:
    return pb.SignInContext(tenant=tenant, username=person.username, app_id="bench", app_name="Bench")


def _expect(response: pb.SignInSessionResponse, event: str) -> pb.SignInSessionResponse:
    if response.WhichOneof("event") != event:
        raise RuntimeError(f"the server answered {response} where {event} was expected")
    return response


class UnaryFlow:
    """Begin, watch, redeem."""

    name = "unary"

    def __init__(self, population: Population) -> None:
        self._population = population
        self._stub = population.connection.sign_ins
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._spki = spki_of(self._key.public_key())
        self._server_id: ServerId | None = None

    async def run(self, clients: int, seconds: float) -> list[float]:
        """See `Flow`."""
        return await _together([_loop(lambda p=p: self._once(p), seconds) for p in self._population.people[:clients]])

    async def _once(self, person: Person) -> None:
        begun = await self.begin(person)
        await self.answered(person, begun)
        await self.redeem(begun)

    async def begin(self, person: Person) -> pb.BeginSignInResponse:
        """The client begins."""
        request = pb.BeginSignInRequest(context=_context(self._population.tenant, person), proof_public_key=self._spki)
        return await self._stub.BeginSignIn(request)

    async def answered(self, person: Person, begun: pb.BeginSignInResponse) -> None:
        """The client watches while the device answers."""
        metadata = (("authorization", f"SignIn {begun.sign_in_token}"),)
        call = self._stub.WatchSignIn(pb.WatchSignInRequest(sign_in_id=begun.sign_in_id), metadata=metadata)
        await person.approve(begun.number)
        async for seen in call:
            if seen.state == common.SIGN_IN_STATE_APPROVED:
                break
        call.cancel()
        await person.outcomes.get()

    async def redeem(self, begun: pb.BeginSignInResponse) -> pb.RedeemSignInResponse:
        """The client proves its key and gets the session."""
        if self._server_id is None:
            self._server_id = (await self._population.connection.identity()).server_id
        statement = redeem_statement(self._server_id, SignInId(begun.sign_in_id), begun.sign_in_token)
        request = pb.RedeemSignInRequest(
            sign_in_id=begun.sign_in_id, proof=sign_proof(self._key, Purpose.REDEEM, statement)
        )
        metadata = (("authorization", f"SignIn {begun.sign_in_token}"),)
        return await self._stub.RedeemSignIn(request, metadata=metadata)


class MultiplexedFlow:
    """Many sign-ins on few SignInSession streams."""

    name = "multiplexed"

    def __init__(self, population: Population, *, streams: int) -> None:
        self._population = population
        self._streams = streams

    async def run(self, clients: int, seconds: float) -> list[float]:
        """See `Flow`."""
        people = self._population.people[:clients]
        streams = [await _Stream.open(self._population) for _ in range(min(self._streams, clients))]
        pairs = [(person, streams[i % len(streams)]) for i, person in enumerate(people)]
        loops = [_loop(lambda p=p, s=s: s.sign_in(p), seconds) for p, s in pairs]
        try:
            return await _together(loops)
        finally:
            for stream in streams:
                await stream.close()


class _Stream:
    """One stream with the sign-ins that wait on it, by tag."""

    def __init__(self, population: Population, call: Any) -> None:
        self._population = population
        self._call = call
        self._waiting: dict[int, asyncio.Future[pb.SignInSessionResponse]] = {}
        self._last = 0
        self._writing = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, population: Population) -> _Stream:
        """Open and prove the key."""
        key = ec.generate_private_key(ec.SECP256R1())
        call = population.connection.sign_ins.SignInSession()
        told = (await call.read()).nonce
        proof = sign_proof(key, Purpose.SIGN_IN_SESSION, proof_statement(ServerId(told.server_id), told.nonce))
        opening = pb.SignInSessionOpen(proof_public_key=spki_of(key.public_key()), proof=proof)
        await call.write(pb.SignInSessionRequest(open=opening))
        return cls(population, call)

    async def _read(self) -> None:
        failure: BaseException = EOFError("the server ended the stream")
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self._waiting[response.tag].set_result(response)
        except grpc.RpcError as error:
            failure = error
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(failure)

    async def sign_in(self, person: Person) -> None:
        """One sign-in."""
        self._last += 1
        tag = self._last
        self._waiting[tag] = asyncio.get_running_loop().create_future()
        begin = pb.SignInSessionBegin(tag=tag, context=_context(self._population.tenant, person))
        async with self._writing:
            await self._call.write(pb.SignInSessionRequest(begin=begin))
        begun = _expect(await self._waiting[tag], "begun").begun
        done = asyncio.get_running_loop().create_future()
        self._waiting[tag] = done
        await person.approve(begun.number)
        _expect(await done, "session")
        del self._waiting[tag]
        await person.outcomes.get()

    async def close(self) -> None:
        """Close the client's side."""
        await self._call.done_writing()
        self._reader.cancel()
        self._call.cancel()
