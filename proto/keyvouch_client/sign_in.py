"""One sign-in: ask, show the number, wait, hold a session.

    async with SignIn(connection, tenant="example", username="ada", app_id="shop", app_name="Shop") as sign_in:
        print(sign_in.number)
        session = await sign_in.session()

The proof key is made for this sign-in and stays in this process; the approval is bound to it. Leaving the block
without a result withdraws the prompt from the device. The server may restart meanwhile: watching re-attaches, and
redeeming is repeated until it is answered, which gives the same session.

Programs with many sign-ins at once use `sign_in_stream`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from types import TracebackType
from typing import Self

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import KeyvouchError, Reason, RefusedError, UnavailableError, UsageError
from keyvouch.ids import SignInId
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, redeem_statement
from keyvouch.v1 import common_pb2, sign_in_pb2
from keyvouch_client.backoff import Patience, persist
from keyvouch_client.connection import Connection
from keyvouch_client.errors import answer, error_from
from keyvouch_client.outcomes import REDEEMABLE, error_for_state
from keyvouch_client.session import Session

__all__ = ["Begun", "SignIn", "new_proof_key", "sign_in_with_access_pass"]

_CANCEL_DEADLINE = 3.0
"""Seconds: withdrawing is a courtesy; the sign-in would end by itself."""


def new_proof_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key for one sign-in or one stream; entropy comes from the cryptographic library."""
    return ec.generate_private_key(ec.SECP256R1())


class Begun:
    """A sign-in the server has begun, and the proof key it is bound to: watched, redeemed or cancelled here.

    `metadata` carries the sign-in's token, for calls about it.
    """

    def __init__(
        self, connection: Connection, begun: sign_in_pb2.BeginSignInResponse, proof_key: ec.EllipticCurvePrivateKey
    ) -> None:
        self.begun = begun
        self._connection = connection
        self._proof_key = proof_key
        self.metadata = (("authorization", f"SignIn {begun.sign_in_token}"),)

    async def wait(self) -> None:
        """Wait for the approval. Raises the error of every other end, or `UnavailableError` after the expiry."""
        patience = Patience(self.seconds_left(), self._connection.backoff)
        while True:
            try:
                if await self._watch_once(patience):
                    return
                failure = UnavailableError(Reason.SERVER_UNREACHABLE, "The server hung up.", fix="Sign in again.")
            except UnavailableError as error:
                failure = error
            await patience.wait_or_raise(failure)

    async def _watch_once(self, patience: Patience) -> bool:
        """Follow the sign-in until it is approved (True) or the stream ends before it has ended (False)."""
        request = sign_in_pb2.WatchSignInRequest(sign_in_id=self.begun.sign_in_id)
        call = self._connection.sign_ins.WatchSignIn(request, metadata=self.metadata, timeout=self.seconds_left())
        try:
            async for event in call:
                patience.refresh()
                if event.state in REDEEMABLE:
                    return True
                _raise_if_ended(event.state)
        except grpc.RpcError as error:
            raise error_from(error) from error
        finally:
            call.cancel()
        return False

    async def redeem(self) -> Session:
        """Turn the approval into a session. Safe to repeat with the same object while the sign-in lasts."""
        identity = await persist(
            self._connection.identity, seconds=self.seconds_left(), backoff=self._connection.backoff
        )
        statement = redeem_statement(identity.server_id, SignInId(self.begun.sign_in_id), self.begun.sign_in_token)
        proof = sign_proof(self._proof_key, Purpose.REDEEM, statement)
        request = sign_in_pb2.RedeemSignInRequest(sign_in_id=self.begun.sign_in_id, proof=proof)

        def attempt() -> Awaitable[sign_in_pb2.RedeemSignInResponse]:
            return answer(
                self._connection.sign_ins.RedeemSignIn(
                    request, metadata=self.metadata, timeout=self._connection.deadline
                )
            )

        response = await persist(attempt, seconds=self.seconds_left(), backoff=self._connection.backoff)
        return Session(
            self._connection,
            server_id=identity.server_id,
            tokens=response.tokens,
            details=response.session,
            proof_key=self._proof_key,
            campaigns=response.campaigns,
            open_risk_events=response.open_risk_events,
            known_client=response.known_client,
        )

    async def cancel(self) -> None:
        """Withdraw the sign-in; the prompt disappears from the device. Failing to do so is not an error."""
        request = sign_in_pb2.CancelSignInRequest(sign_in_id=self.begun.sign_in_id)
        call = self._connection.sign_ins.CancelSignIn(request, metadata=self.metadata, timeout=_CANCEL_DEADLINE)
        try:
            await answer(call)
        except KeyvouchError:
            return  # it has ended, or it will by itself

    def seconds_left(self) -> float:
        """How long to go on trying. The server's word ends a sign-in; clocks may differ, so this is generous."""
        return min(max(self.begun.expires_at - time.time(), 30.0), 900.0) + 5.0


def _raise_if_ended(state: int) -> None:
    error = error_for_state(state)
    if error is not None:
        raise error


class SignIn:
    """A sign-in with a registered device, as an asynchronous context manager.

    Entering begins it: `number` (digits, leading zeros kept) is then to be shown to the person, `expires_at` is in
    seconds since the epoch, `methods` lists what is open to the user, the preferred one first. `audience` is whom the
    access token will be for; empty means the app id. `known_client` is that of the last session of this user here.
    `required_assurance` and `phishing_resistant` ask for more than policy does, this time (step-up). Entering raises
    `RefusedError`, `ThrottledError` or `UnavailableError`.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        tenant: str,
        username: str,
        app_id: str,
        app_name: str,
        audience: str = "",
        binding_message: str = "",
        known_client: str = "",
        required_assurance: common_pb2.AssuranceRequirement | None = None,
        phishing_resistant: bool = False,
    ) -> None:
        self._connection = connection
        self._known_client = known_client
        self._context = sign_in_pb2.SignInContext(
            tenant=tenant,
            username=username,
            app_id=app_id,
            app_name=app_name,
            audience=audience,
            binding_message=binding_message,
            required_assurance=required_assurance,
            phishing_resistant=phishing_resistant,
        )
        self._begun: Begun | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        proof_key = new_proof_key()
        request = sign_in_pb2.BeginSignInRequest(
            context=self._context,
            proof_public_key=spki_of(proof_key.public_key()),
            known_client=self._known_client,
        )
        begun = await answer(self._connection.sign_ins.BeginSignIn(request, timeout=self._connection.deadline))
        self._begun = Begun(self._connection, begun, proof_key)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begun is not None and not self._ended:
            await self._begun.cancel()

    @property
    def number(self) -> str:
        """Show exactly this to the person, who types it on the device."""
        return self._live().begun.number

    @property
    def expires_at(self) -> int:
        """When the sign-in ends by itself, in seconds since the epoch on the server's clock."""
        return self._live().begun.expires_at

    @property
    def methods(self) -> tuple[common_pb2.SignInMethod.ValueType, ...]:
        """Ways to sign in that are open to the user, the preferred one first."""
        return tuple(self._live().begun.methods)

    async def session(self) -> Session:
        """Wait for the approval and redeem it.

        Raises `RefusedError` with SIGN_IN_DENIED, SIGN_IN_REPORTED, NUMBER_MISMATCH, SIGN_IN_EXPIRED,
        SIGN_IN_SUPERSEDED, SIGN_IN_CANCELLED, CHALLENGE_CONSUMED or POLICY_CHANGED, or `UnavailableError`; after that
        one the call may be repeated.
        """
        live = self._live()
        try:
            await live.wait()
            session = await live.redeem()
        except RefusedError:
            self._ended = True
            raise
        self._ended = True
        return session

    async def cancel(self) -> None:
        """Withdraw the sign-in now."""
        await self._live().cancel()
        self._ended = True

    def _live(self) -> Begun:
        if self._begun is None:
            raise UsageError("The sign-in has not begun.", fix="Enter it with `async with` first.")
        return self._begun


async def sign_in_with_access_pass(connection: Connection, *, tenant: str, username: str, access_pass: str) -> Session:
    """Open a session with a Temporary Access Pass: good for registering methods and reviewing security info.

    Raises `UnauthenticatedError(ACCESS_PASS_REFUSED)` whatever the cause, `ThrottledError` or `UnavailableError`.
    Never repeated by itself: a one-time pass may have been used by the call whose reply was lost.
    """
    identity = await connection.identity()
    request = sign_in_pb2.SignInWithAccessPassRequest(tenant=tenant, username=username, access_pass=access_pass)
    response = await answer(connection.sign_ins.SignInWithAccessPass(request, timeout=connection.deadline))
    return Session(
        connection,
        server_id=identity.server_id,
        tokens=response.tokens,
        details=response.session,
        proof_key=None,
        campaigns=response.campaigns,
    )
