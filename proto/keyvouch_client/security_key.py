"""One sign-in with a security key that is connected to this computer: no device agent, no number.

    from keyvouch_client.connected_signer import ConnectedSigner

    who = {"tenant": "example", "username": "ada", "app_id": "shop", "app_name": "Shop"}
    async with SecurityKeySignIn(connection, **who) as sign_in:
        session = await sign_in.session(ConnectedSigner(person))

What signs is a port, `SecurityKeySigner`: it is asked for one assertion, by whichever of the credentials it holds. The
session is bound to a proof key made for this sign-in, as with `sign_in.SignIn`.

Not here: the checks of what may be signed (`security_key_offers`), and the keys (`connected_signer`, which needs the
extra `security-key`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import Protocol, Self

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.client_data import CollectedClientData
from keyvouch.errors import ConflictError, EvidenceError, Reason, RefusedError, UsageError
from keyvouch.ids import CredentialId, ServerId
from keyvouch.proofs import spki_of, thumbprint
from keyvouch.statement import Decision, DecisionStatement, Purpose, challenge
from keyvouch.v1 import common_pb2, prompts_pb2, sign_in_pb2
from keyvouch_client.backoff import persist
from keyvouch_client.connection import Connection
from keyvouch_client.errors import answer
from keyvouch_client.security_key_offers import Asked, KeyOffers, check_relying_party, check_server, read_offers
from keyvouch_client.session import Session
from keyvouch_client.sign_in import Begun, new_proof_key

__all__ = ["KeyAssertion", "KeyRequest", "SecurityKeySignIn", "SecurityKeySigner", "client_origin"]

_MORE_TRIES = frozenset({Reason.SECURITY_KEY_REFUSED, Reason.SIGN_IN_PENDING})
"""After these the sign-in is still open, and another key may be tried."""
_STOPS_WITHIN = 5.0
"""Seconds a key that is not wanted any more has to stop blinking."""


def client_origin(rp_id: str) -> str:
    """The origin a client writes into client data. That of a device agent is another one."""
    return f"keyvouch-client://{rp_id}"


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What is asked of a security key: by the credential it holds, an assertion over the client data of that one."""

    rp_id: str
    client_data: Mapping[CredentialId, bytes]


@dataclass(frozen=True, slots=True)
class KeyAssertion:
    """What a security key answers. `user_handle` is empty where it gives none."""

    credential_id: CredentialId
    authenticator_data: bytes
    signature: bytes
    user_handle: bytes = b""


class SecurityKeySigner(Protocol):
    """Something that signs with a security key."""

    def sign(self, request: KeyRequest, cancelled: Event) -> KeyAssertion:
        """Make one assertion with user verification, of one key; called on a thread of its own.

        Returns soon after `cancelled` is set. Raises `DeviceError`.
        """


class SecurityKeySignIn:
    """A sign-in with a security key, as an asynchronous context manager.

    Entering begins it and checks what the server would have signed; leaving without a session withdraws it. `rp_id` is
    the relying party of the server, needed where it is not the host name of the connection; `server_id` who the server
    is, where that is known from before; `known_client` and `required_assurance` are as with `SignIn`. Entering raises
    `EvidenceError` with WRONG_SERVER or STATEMENT_MISMATCH, `RefusedError` with METHOD_DISABLED or NO_METHOD,
    `ThrottledError` or `UnavailableError`. Nothing tells whether there is such a user.
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
        rp_id: str = "",
        server_id: ServerId | None = None,
    ) -> None:
        self._connection = connection
        self._known_client = known_client
        self._rp_id = rp_id
        self._server_id = server_id
        self._context = sign_in_pb2.SignInContext(
            tenant=tenant,
            username=username,
            app_id=app_id,
            app_name=app_name,
            audience=audience,
            binding_message=binding_message,
            required_assurance=required_assurance,
        )
        self._begun: Begun | None = None
        self._offers: KeyOffers | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        proof_key = new_proof_key()
        identity = await self._connection.identity()
        check_server(identity.server_id, self._server_id)
        request = sign_in_pb2.BeginSignInRequest(
            context=self._context,
            proof_public_key=spki_of(proof_key.public_key()),
            method=common_pb2.SIGN_IN_METHOD_SECURITY_KEY,
            known_client=self._known_client,
        )
        begun = await answer(self._connection.sign_ins.BeginSignIn(request, timeout=self._connection.deadline))
        self._begun = Begun(self._connection, begun, proof_key)
        try:
            self._offers = self._checked(begun, identity.server_id, proof_key)
        except BaseException:
            await self._begun.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begun is not None and not self._ended:
            await self._begun.cancel()

    @property
    def expires_at(self) -> int:
        """When the sign-in ends by itself, in seconds since the epoch on the server's clock."""
        return self._live()[0].begun.expires_at

    async def session(self, signer: SecurityKeySigner) -> Session:
        """Have a security key sign, and turn that into a session.

        Raises `DeviceError` for what the key could not do and `UnauthenticatedError(SECURITY_KEY_REFUSED)`, after both
        of which it may be called again; `RefusedError` for a sign-in that has ended or that policy does not allow;
        `UnavailableError`.
        """
        begun, offers = self._live()
        request, statements = self._request(begun, offers)
        assertion = await _signed(signer, request)
        try:
            await self._complete(begun, statements[assertion.credential_id], request, assertion)
            session = await begun.redeem()
        except RefusedError as refusal:
            self._ended = refusal.reason not in _MORE_TRIES
            raise
        self._ended = True
        _check_session(session, offers)
        return session

    def _checked(
        self,
        begun: sign_in_pb2.BeginSignInResponse,
        server_id: ServerId,
        proof_key: ec.EllipticCurvePrivateKey,
    ) -> KeyOffers:
        context, own = self._context, thumbprint(proof_key.public_key())
        asked = Asked(server_id, own, context.app_id, context.app_name, context.audience, context.binding_message)
        if not begun.HasField("security_key"):
            raise RefusedError(
                Reason.NO_METHOD,
                "The server does not know sign-in with a security key.",
                fix="Sign in with a registered device, or ask the server's operator for a newer release.",
            )
        check_relying_party(begun.security_key.rp_id, host=self._connection.host, named=self._rp_id)
        return read_offers(begun, asked)

    def _request(self, begun: Begun, offers: KeyOffers) -> tuple[KeyRequest, dict[CredentialId, bytes]]:
        statements = {
            credential: DecisionStatement(offer, Decision.APPROVE, begun.begun.number).encode()
            for credential, offer in offers.offers.items()
        }
        origin = client_origin(offers.rp_id)
        client_data = {
            credential: bytes(CollectedClientData.build("webauthn.get", challenge(Purpose.SIGN_IN, statement), origin))
            for credential, statement in statements.items()
        }
        return KeyRequest(offers.rp_id, client_data), statements

    async def _complete(self, begun: Begun, statement: bytes, asked: KeyRequest, made: KeyAssertion) -> None:
        """Send the answer until somebody replies. That it was used already is no loss: redeeming tells by whom."""
        request = sign_in_pb2.CompleteSecurityKeySignInRequest(
            sign_in_id=begun.begun.sign_in_id,
            statement=statement,
            assertion=prompts_pb2.AssertionEvidence(
                credential_id=made.credential_id,
                client_data_json=asked.client_data[made.credential_id],
                authenticator_data=made.authenticator_data,
                signature=made.signature,
                user_handle=made.user_handle,
            ),
        )
        connection = self._connection

        def attempt() -> Awaitable[sign_in_pb2.CompleteSecurityKeySignInResponse]:
            return answer(
                connection.sign_ins.CompleteSecurityKeySignIn(
                    request, metadata=begun.metadata, timeout=connection.deadline
                )
            )

        try:
            await persist(attempt, seconds=begun.seconds_left(), backoff=connection.backoff)
        except ConflictError as error:
            if error.reason is not Reason.CHALLENGE_CONSUMED:
                raise

    def _live(self) -> tuple[Begun, KeyOffers]:
        if self._begun is None or self._offers is None:
            raise UsageError("The sign-in has not begun.", fix="Enter it with `async with` first.")
        return self._begun, self._offers


async def _signed(signer: SecurityKeySigner, request: KeyRequest) -> KeyAssertion:
    """Sign on a thread. Whoever does not wait any more makes the key stop blinking."""
    cancelled = Event()
    signing = asyncio.create_task(asyncio.to_thread(signer.sign, request, cancelled))
    signing.add_done_callback(_heard)
    try:
        made = await asyncio.shield(signing)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait({signing}, timeout=_STOPS_WITHIN)
        raise
    if made.credential_id not in request.client_data:
        raise UsageError("The signer answered with a credential that it was not asked for.")
    return made


def _heard(signing: asyncio.Task[KeyAssertion]) -> None:
    """What a key fails with once nobody waits for it is no news, and asyncio need not tell of it."""
    if not signing.cancelled():
        signing.exception()


def _check_session(session: Session, offers: KeyOffers) -> None:
    """What was signed is who we are now. Raises `EvidenceError(WRONG_USER)`."""
    if (session.details.tenant_id, session.details.user_id) != (offers.tenant_id, offers.user_id):
        raise EvidenceError(
            Reason.WRONG_USER,
            "The server opened the session of somebody else than it had offered.",
            fix="Do not use it. Tell your administrator.",
        )
