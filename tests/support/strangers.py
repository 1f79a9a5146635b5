"""Sign-ins from anywhere in the world: begun at the use case, with the address a connection would have told.

Connections of tests come from the loopback, which tells nobody apart. All behind this is the real server's; what is
begun goes on over the wire, or with answers made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.proofs import spki_of
from keyvouch.statement import Decision, DecisionStatement, Purpose, challenge
from keyvouch_server.domain.model import Device, SignIn, SignInWay, User
from keyvouch_server.rpc.sign_in_stream import begun_message
from keyvouch_server.use_cases.decisions import Answered
from keyvouch_server.use_cases.judgement import Answer, Assertion
from keyvouch_server.use_cases.known_clients import KnownClients
from keyvouch_server.use_cases.offering import SignInRequest
from keyvouch_server.use_cases.sign_in import BegunSignIn
from support.live_server import TENANT, LiveServer, OpenSignIn, Person

OFFICE, CAFE = "203.0.113.7", "198.51.100.23"
"""Two addresses for documentation (RFC 5737)."""


@dataclass(slots=True)
class Caller:
    """Somebody who begins sign-ins from one address with one proof key."""

    live: LiveServer
    address: str
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def at(cls, live: LiveServer, address: str) -> Caller:
        """Somebody at an address, with a key of their own."""
        return cls(live, address, ec.generate_private_key(ec.SECP256R1()))

    def request(self, username: str, **wanted: Any) -> SignInRequest:
        """What they ask for."""
        asked: dict[str, Any] = {"app_id": "shop", "app_name": "Shop", "audience": "keyvouch", **wanted}
        return SignInRequest(
            tenant=TENANT,
            username=username,
            binding_message="",
            proof_key=spki_of(self.key.public_key()),
            address=self.address,
            place="",
            **asked,
        )

    async def begins(self, username: str, *, way: SignInWay = SignInWay.PROMPT, **wanted: Any) -> BegunSignIn:
        """Begin a sign-in; raises what the server refuses it with."""
        return await self.live.app.sign_ins.begin(self.request(username, **wanted), way=way)

    def opened(self, begun: BegunSignIn) -> OpenSignIn:
        """The same, to go on with over the wire."""
        return OpenSignIn(self.live, begun_message(begun), self.key)


class Answerer:
    """A person's device that answers without a stream, as fast as its key signs."""

    def __init__(self, live: LiveServer, person: Person, device: Device) -> None:
        self._live = live
        self._bench = person.device
        self._device = device

    @classmethod
    async def of(cls, live: LiveServer, person: Person) -> Answerer:
        """The device of a person."""
        device = await live.app.store.read(lambda tx: tx.get(Device, id=person.device.device_id))
        assert device is not None
        return cls(live, person, device)

    def approval(self, begun: BegunSignIn, number: str) -> Answer:
        """An approval of a sign-in with a number that the person typed."""
        prompt = begun.prompts[0]
        statement = DecisionStatement(prompt.offer, Decision.APPROVE, number).encode()
        made = self._bench.credential.assertion(challenge(Purpose.SIGN_IN, statement))
        evidence = Assertion(
            made.credential_id, made.client_data_json, made.authenticator_data, made.signature, made.user_handle
        )
        return Answer(prompt.id, statement, evidence)

    async def approves(self, begun: BegunSignIn, number: str) -> Answered:
        """Give it; returns what became of it."""
        return await self._live.app.decisions.answer(self._device, self.approval(begun, number))


async def user_of(live: LiveServer, username: str) -> User:
    """A user of the first tenant as the store has them."""
    return (await live.app.store.read(lambda tx: tx.find(User, {"username_key": username})))[0]


async def known_client(live: LiveServer, username: str) -> str:
    """What a client holds at which this user has just signed in."""
    user = await user_of(live, username)
    return KnownClients(live.app.world).token(user.tenant_id, user.id)


async def row_of(live: LiveServer, sign_in_id: str) -> SignIn:
    """A sign-in as the store has it."""
    row = await live.app.store.read(lambda tx: tx.get(SignIn, id=sign_in_id))
    assert row is not None
    return row
