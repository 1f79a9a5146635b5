"""SignInService: the unary calls and the multiplexed stream, over `use_cases.sign_in`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from keyvouch.errors import Reason, UnauthenticatedError
from keyvouch.ids import SignInId
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import common_pb2 as common
from keyvouch.v1 import sign_in_pb2 as pb
from keyvouch.v1 import sign_in_pb2_grpc as rpc
from keyvouch_server.domain.model import SignIn
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.domain.sign_in import OPEN
from keyvouch_server.relay import Relay
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.interceptors import token_of
from keyvouch_server.rpc.prompts import assertion_of
from keyvouch_server.rpc.sign_in_messages import campaign_message
from keyvouch_server.rpc.sign_in_stream import (
    SignInStream,
    as_it_is,
    begun_message,
    redeemed_message,
    request_of,
    watched_message,
)
from keyvouch_server.use_cases.access_pass_sign_in import AccessPassSignIns
from keyvouch_server.use_cases.redemption import Redemptions
from keyvouch_server.use_cases.security_key import BegunWithKey, SecurityKeySignIns
from keyvouch_server.use_cases.sign_in import SignIns
from keyvouch_server.use_cases.world import World

OPENING_SECONDS: Final = 10
"""How long a client may take to prove its key on a new stream."""
_BY_PROMPT: Final = frozenset({common.SIGN_IN_METHOD_UNSPECIFIED, common.SIGN_IN_METHOD_APPROVAL})


class SignInServicer(rpc.SignInServiceServicer):
    """Serves keyvouch.v1.SignInService."""

    def __init__(
        self,
        world: World,
        sign_ins: SignIns,
        security_keys: SecurityKeySignIns,
        redemptions: Redemptions,
        passes: AccessPassSignIns,
        relay: Relay,
    ) -> None:
        self._world = world
        self._sign_ins = sign_ins
        self._security_keys = security_keys
        self._redemptions = redemptions
        self._passes = passes
        self._relay = relay

    async def BeginSignIn(self, request: pb.BeginSignInRequest, context: Any) -> pb.BeginSignInResponse:
        """See sign_in.proto."""
        wanted = request_of(
            request.context, request.proof_public_key, context.peer(), known_client=request.known_client
        )
        if request.method == common.SIGN_IN_METHOD_SECURITY_KEY:
            return self._offers_message(await self._security_keys.begin(wanted))
        if request.method not in _BY_PROMPT:
            raise invalid_field("method", "approval or security key; an access pass has a call of its own")
        return begun_message(await self._sign_ins.begin(wanted))

    def _offers_message(self, begun: BegunWithKey) -> pb.BeginSignInResponse:
        message = begun_message(begun.begun)
        message.security_key.rp_id = self._world.facts.rp_id
        for credential, offer in begun.offers:
            message.security_key.offers.add(credential_id=credential, offer=offer)
        return message

    async def CompleteSecurityKeySignIn(
        self, request: pb.CompleteSecurityKeySignInRequest, context: Any
    ) -> pb.CompleteSecurityKeySignInResponse:
        """See sign_in.proto."""
        state = await self._security_keys.complete(
            request.sign_in_id, token_of(), request.statement, assertion_of(request.assertion)
        )
        return pb.CompleteSecurityKeySignInResponse(state=convert.state(state))

    async def WatchSignIn(self, request: pb.WatchSignInRequest, context: Any) -> AsyncIterator[pb.WatchSignInResponse]:
        """See sign_in.proto."""
        token = token_of()
        changes: asyncio.Queue[SignIn | None] = asyncio.Queue()
        sign_in_id = SignInId(request.sign_in_id)
        self._relay.watch(sign_in_id, changes.put_nowait)
        try:
            row = await self._sign_ins.follow(sign_in_id, token)
            yield watched_message(row)
            while row.state in OPEN:
                before, row = row, as_it_is(await changes.get(), row)
                if row.state is not before.state:
                    yield watched_message(row)
        finally:
            self._relay.unwatch(sign_in_id, changes.put_nowait)

    async def RedeemSignIn(self, request: pb.RedeemSignInRequest, context: Any) -> pb.RedeemSignInResponse:
        """See sign_in.proto."""
        return redeemed_message(await self._redemptions.redeem(request.sign_in_id, token_of(), request.proof))

    async def CancelSignIn(self, request: pb.CancelSignInRequest, context: Any) -> pb.CancelSignInResponse:
        """See sign_in.proto."""
        state = await self._sign_ins.cancel(request.sign_in_id, token_of())
        return pb.CancelSignInResponse(state=convert.state(state))

    async def SignInWithAccessPass(
        self, request: pb.SignInWithAccessPassRequest, context: Any
    ) -> pb.SignInWithAccessPassResponse:
        """See sign_in.proto."""
        address, _ = convert.address_of(context.peer())
        opened = await self._passes.sign_in(request.tenant, request.username, request.access_pass, address=address)
        return pb.SignInWithAccessPassResponse(
            tokens=convert.tokens(opened.issued),
            session=convert.session(opened.issued.session, opened.issued.user),
            campaigns=[campaign_message(due) for due in opened.due],
        )

    async def SignInSession(
        self, request_iterator: AsyncIterator[pb.SignInSessionRequest], context: Any
    ) -> AsyncIterator[pb.SignInSessionResponse]:
        """See sign_in.proto."""
        nonce = self._world.entropy.token(32)
        server_id = self._world.facts.server_id
        yield pb.SignInSessionResponse(nonce=pb.SignInSessionNonce(nonce=nonce, server_id=server_id))
        opening = await _opening(request_iterator)
        key = load_proof_key(opening.proof_public_key)
        verify_proof(key, Purpose.SIGN_IN_SESSION, proof_statement(server_id, nonce), signature=opening.proof)
        stream = SignInStream(self._sign_ins, self._redemptions, self._relay, opening.proof_public_key, context.peer())
        reader = asyncio.create_task(stream.read(request_iterator))
        try:
            while (answer := await stream.next()) is not None:
                yield answer
            await reader
        finally:
            reader.cancel()
            stream.close()


async def _opening(requests: AsyncIterator[pb.SignInSessionRequest]) -> pb.SignInSessionOpen:
    try:
        async with asyncio.timeout(OPENING_SECONDS):
            first = await anext(requests)
    except (TimeoutError, StopAsyncIteration):
        first = pb.SignInSessionRequest()
    if first.WhichOneof("event") != "open":
        raise UnauthenticatedError(
            Reason.PROOF_INVALID,
            "The stream did not begin with a proof of the client's key.",
            fix="Answer the nonce with the proof key and a signature over it.",
        )
    return first.open
