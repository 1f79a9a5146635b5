"""A client with a security key at hand, as one that follows the protocol and as one that does not.

    key = await registered_key(live, "ada")
    begun = await begin_with_key(live, "ada")
    await begun.complete(begun.approval(key))
    session = await begun.redeem()

Keys are `SoftKey`s: scripted, in memory. Keys that go through python-fido2 are in `support.security_keys`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch.client_data import CollectedClientData
from keyvouch.cose import CoseKey
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Decision, DecisionStatement, Purpose, SignInOffer, challenge
from keyvouch.v1 import common_pb2, enrolment_pb2, prompts_pb2, sign_in_pb2
from keyvouch.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, Flags
from keyvouch_bench.device import BenchDevice, SoftKey
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Session
from support.attestation_forge import NOT_CA, Authority, aaguid_extension
from support.live_server import LIMIT, TENANT, LiveServer, Metadata, OpenSignIn

ES256: Final = ec.ECDSA(hashes.SHA256())
UP_UV: Final = Flags.UP | Flags.UV
MODEL: Final = bytes.fromhex("2fc0579f811347eab116bb5a8db9202a")
MODEL_NAME: Final = "2fc0579f-8113-47ea-b116-bb5a8db9202a"
OTHER_MODEL: Final = bytes.fromhex("ee882879721c491397753dfcce97072a")
OTHER_NAME: Final = "ee882879-721c-4913-9775-3dfcce97072a"
SECURITY_KEY: Final = common_pb2.SIGN_IN_METHOD_SECURITY_KEY
_LEAF_KEY = ec.generate_private_key(ec.SECP256R1())


@dataclass(slots=True)
class BegunEnrolment:
    """A registration of a security key between its two calls."""

    live: LiveServer
    begun: enrolment_pb2.BeginRegistrationResponse
    key: SoftKey
    channel_key: ec.EllipticCurvePrivateKey = field(repr=False)

    async def complete(
        self,
        *,
        model: bytes = MODEL,
        authority: Authority | None = None,
        format: str = "packed",  # noqa: A002
        flags: Flags = UP_UV,
    ) -> BenchDevice:
        """Complete it as a key that says it is of `model`: attested under `authority`, `packed` self or `none`."""
        statement = self.begun.statement
        expected = challenge(Purpose.REGISTRATION, statement)
        client_data, attested = self._attested(expected, model, authority, format, flags)
        request = enrolment_pb2.CompleteRegistrationRequest(
            client_data_json=client_data,
            attestation_object=attested,
            channel_proof=sign_proof(self.channel_key, Purpose.CHANNEL, statement),
        )
        token = (("authorization", f"Registration {self.begun.registration_token}"),)
        done = await answer(self.live.enrolment.CompleteRegistration(request, metadata=token, timeout=LIMIT))
        return BenchDevice(
            done.device.device_id, self.begun.username, self.key, self.channel_key,
            tuple(done.certificate_chain), done.device_endpoint,
        )  # fmt: skip

    def _attested(
        self,
        expected: bytes,
        model: bytes,
        authority: Authority | None,
        format: str,  # noqa: A002
        flags: Flags,
    ) -> tuple[bytes, bytes]:
        client_data = CollectedClientData.build("webauthn.create", expected, self.key.origin)
        public = CoseKey.from_public_key(self.key.key.public_key())
        credential = AttestedCredentialData.build(model, self.key.credential_id, public)
        data = AuthenticatorData.build(_rp_id_hash(self.key.rp_id), flags, 0, attested=credential)
        signed = data + hashlib.sha256(client_data).digest()
        statement: dict[str, object] = {}
        if authority is not None and format == "fido-u2f":
            leaf = authority.issue(_LEAF_KEY, [(NOT_CA, True)])
            statement = {"sig": self._u2f_signature(client_data), "x5c": [leaf.public_bytes(Encoding.DER)]}
        elif authority is not None:
            leaf = authority.issue(_LEAF_KEY, [(NOT_CA, True), (aaguid_extension(model), False)])
            statement = {"alg": -7, "sig": _LEAF_KEY.sign(signed, ES256), "x5c": [leaf.public_bytes(Encoding.DER)]}
        elif format == "packed":
            statement = {"alg": -7, "sig": self.key.key.sign(signed, ES256)}
        return bytes(client_data), bytes(AttestationObject.build(format, data, statement))

    def _u2f_signature(self, client_data: bytes) -> bytes:
        """WebAuthn Level 3 section 8.6."""
        point = self.key.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        digest = hashlib.sha256(client_data).digest()
        message = b"\0" + _rp_id_hash(self.key.rp_id) + digest + self.key.credential_id + point
        return _LEAF_KEY.sign(message, ES256)


async def begin_enrolment(live: LiveServer, session: Metadata, *, provider: int = 0) -> BegunEnrolment:
    """BeginRegistration as an agent does for a security key."""
    channel_key = ec.generate_private_key(ec.SECP256R1())
    request = enrolment_pb2.BeginRegistrationRequest(
        channel_public_key=spki_of(channel_key.public_key()),
        display_name="key ring",
        provider=provider or common_pb2.PROVIDER_KIND_FIDO2,  # type: ignore[arg-type]
    )
    begun = await answer(live.enrolment.BeginRegistration(request, metadata=session, timeout=LIMIT))
    return BegunEnrolment(live, begun, SoftKey(begun.rp_id, begun.user_handle), channel_key)


async def enrolment_of(live: LiveServer, username: str, *, provider: int = 0) -> BegunEnrolment:
    """The same for a user of the first tenant, with a pass."""
    session = await live.pass_session(username, await live.issue_pass_again(username))
    return await begin_enrolment(live, session, provider=provider)


async def registered_key(live: LiveServer, username: str = "ada", **how: Any) -> BenchDevice:
    """A new user with a registered security key."""
    await live.create_user(username)
    return await another_key(live, username, **how)


async def another_key(live: LiveServer, username: str, **how: Any) -> BenchDevice:
    """A further security key of a user."""
    return await (await enrolment_of(live, username)).complete(**how)


@dataclass(slots=True)
class OpenWithKey(OpenSignIn):
    """A sign-in with a security key, in the hands of its client."""

    @property
    def offers(self) -> dict[bytes, bytes]:
        """The offers by credential id, as they came."""
        return {offer.credential_id: offer.offer for offer in self.begun.security_key.offers}

    def parsed(self) -> list[SignInOffer]:
        """All offers, parsed."""
        return [SignInOffer.parse(offer) for offer in self.offers.values()]

    @property
    def origin(self) -> str:
        """The origin a client writes."""
        return f"keyvouch-client://{self.begun.security_key.rp_id}"

    def approval(
        self,
        key: SoftKey,
        *,
        offer: bytes = b"",
        number: str = "",
        origin: str = "",
        flags: Flags = UP_UV,
        count: int | None = None,
        decision: Decision = Decision.APPROVE,
        rp_id: str = "",
        kind: str = "webauthn.get",
    ) -> sign_in_pb2.CompleteSecurityKeySignInRequest:
        """The answer of a key, good where nothing is said. The counter rises, or is `count`."""
        key.sign_count = key.sign_count + 1 if count is None else count
        told = offer or self.offers.get(key.credential_id, next(iter(self.offers.values())))
        statement = DecisionStatement(told, decision, number or self.number).encode()
        client_data = CollectedClientData.build(kind, challenge(Purpose.SIGN_IN, statement), origin or self.origin)
        data = AuthenticatorData.build(_rp_id_hash(rp_id or key.rp_id), flags, key.sign_count)
        assertion = prompts_pb2.AssertionEvidence(
            credential_id=key.credential_id,
            client_data_json=bytes(client_data),
            authenticator_data=bytes(data),
            signature=key.key.sign(data + hashlib.sha256(client_data).digest(), ES256),
            user_handle=key.user_handle,
        )
        return sign_in_pb2.CompleteSecurityKeySignInRequest(
            sign_in_id=self.begun.sign_in_id, statement=statement, assertion=assertion
        )

    async def complete(
        self, request: sign_in_pb2.CompleteSecurityKeySignInRequest, metadata: Metadata | None = None
    ) -> int:
        """Send an answer; returns the state it led to."""
        call = self.live.connection.sign_ins.CompleteSecurityKeySignIn(
            request, metadata=metadata or self.metadata, timeout=LIMIT
        )
        return (await answer(call)).state


async def begin_with_key(live: LiveServer, username: str, tenant: str = TENANT, **context: Any) -> OpenWithKey:
    """Begin a sign-in with a security key as a client would."""
    key = ec.generate_private_key(ec.SECP256R1())
    wanted: dict[str, Any] = {"app_id": "shop", "app_name": "Shop", "audience": "keyvouch", **context}
    request = sign_in_pb2.BeginSignInRequest(
        context=sign_in_pb2.SignInContext(tenant=tenant, username=username, **wanted),
        proof_public_key=spki_of(key.public_key()),
        method=SECURITY_KEY,
    )
    return OpenWithKey(live, await answer(live.connection.sign_ins.BeginSignIn(request, timeout=LIMIT)), key)


def _rp_id_hash(rp_id: str) -> bytes:
    return hashlib.sha256(rp_id.encode()).digest()


async def sessions_of(live: LiveServer) -> list[Session]:
    """Every session that is labelled as one that cannot be phished."""
    return await live.app.store.read(lambda tx: tx.find(Session, {"acr": "phishing-resistant"}))


async def last_refusal(live: LiveServer) -> str:
    """What the audit log says of the last answer that was refused."""
    return (await live.audit("sign_in.answer"))[-1].outcome
