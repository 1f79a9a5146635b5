"""A scripted device: the device side of the protocol with a key in memory, for benches, load and abuse.

It does what an agent does, over the same RPCs, and what no agent would do when a test asks for it: wrong numbers,
copies, statements of its own making. Its key is a plain P-256 key that says so (`packed` self attestation).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.client_data import CollectedClientData
from keyvouch.cose import CoseKey
from keyvouch.ids import CredentialId
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Decision, DecisionStatement, Purpose, challenge
from keyvouch.v1 import enrolment_pb2 as enrolment
from keyvouch.v1 import enrolment_pb2_grpc as enrolment_rpc
from keyvouch.v1 import prompts_pb2 as prompts
from keyvouch.v1 import prompts_pb2_grpc as prompts_rpc
from keyvouch.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, Flags
from keyvouch_client import Connection
from keyvouch_client.errors import answer

AAGUID: Final = bytes.fromhex("6b657976-6f75-6368-0000-62656e636800".replace("-", ""))
"""Model id of the scripted device: the letters of its name."""

_ES256 = ec.ECDSA(hashes.SHA256())
_UP_UV = Flags.UP | Flags.UV
_LOOPBACK: Final = (("grpc.enable_http_proxy", 0), ("grpc.initial_reconnect_backoff_ms", 100))


@dataclass(slots=True)
class SoftKey:
    """A WebAuthn credential in memory."""

    rp_id: str
    user_handle: bytes
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    credential_id: CredentialId = field(default_factory=lambda: CredentialId(os.urandom(32)))
    sign_count: int = 0

    @property
    def origin(self) -> str:
        """The origin device agents write."""
        return f"keyvouch-agent://{self.rp_id}"

    def register(self, expected: bytes, *, flags: Flags = _UP_UV) -> tuple[bytes, bytes]:
        """Client data and attestation object (`packed`, self) over a challenge."""
        client_data = CollectedClientData.build("webauthn.create", expected, self.origin)
        public = CoseKey.from_public_key(self.key.public_key())
        attested = AttestedCredentialData.build(AAGUID, self.credential_id, public)
        data = AuthenticatorData.build(self._rp_id_hash(), flags, self.sign_count, attested=attested)
        statement = {"alg": -7, "sig": self._sign(data, client_data)}
        return bytes(client_data), bytes(AttestationObject.build("packed", data, statement))

    def assertion(self, expected: bytes, *, flags: Flags = _UP_UV) -> prompts.AssertionEvidence:
        """An assertion over a challenge; the counter rises."""
        self.sign_count += 1
        client_data = CollectedClientData.build("webauthn.get", expected, self.origin)
        data = AuthenticatorData.build(self._rp_id_hash(), flags, self.sign_count)
        return prompts.AssertionEvidence(
            credential_id=self.credential_id,
            client_data_json=bytes(client_data),
            authenticator_data=bytes(data),
            signature=self._sign(data, client_data),
            user_handle=self.user_handle,
        )

    def _rp_id_hash(self) -> bytes:
        return hashlib.sha256(self.rp_id.encode()).digest()

    def _sign(self, data: bytes, client_data: bytes) -> bytes:
        return self.key.sign(data + hashlib.sha256(client_data).digest(), _ES256)


@dataclass(slots=True)
class BenchDevice:
    """An enrolled scripted device."""

    device_id: str
    username: str
    credential: SoftKey
    channel_key: ec.EllipticCurvePrivateKey
    certificate_chain: tuple[bytes, ...]
    endpoint: str

    @classmethod
    async def enrol(
        cls, connection: Connection, *, metadata: tuple[tuple[str, str], ...], name: str = "bench device"
    ) -> Self:
        """Register a new device with a session's `metadata` (`authorization: Bearer ...`)."""
        stub = enrolment_rpc.EnrolmentServiceStub(connection.channel)
        channel_key = ec.generate_private_key(ec.SECP256R1())
        request = enrolment.BeginRegistrationRequest(
            channel_public_key=spki_of(channel_key.public_key()), display_name=name
        )
        begun = await answer(stub.BeginRegistration(request, metadata=metadata, timeout=30))
        credential = SoftKey(begun.rp_id, begun.user_handle)
        complete = completion(begun.statement, credential, channel_key)
        token = (("authorization", f"Registration {begun.registration_token}"),)
        done = await answer(stub.CompleteRegistration(complete, metadata=token, timeout=30))
        return cls(
            done.device.device_id,
            begun.username,
            credential,
            channel_key,
            tuple(done.certificate_chain),
            done.device_endpoint,
        )

    def open_channel(self) -> grpc.aio.Channel:
        """A mutually authenticated channel to the device listener."""
        key = self.channel_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = [
            x509.load_der_x509_certificate(c).public_bytes(serialization.Encoding.PEM) for c in self.certificate_chain
        ]
        credentials = grpc.ssl_channel_credentials(chain[-1], key, b"".join(chain))
        return grpc.aio.secure_channel(self.endpoint, credentials, options=_LOOPBACK)

    def approve(self, prompt: prompts.Prompt, number: str, *, offer: bytes | None = None) -> prompts.Answer:
        """A signed approval with the number typed; `offer` replaces what the server sent."""
        statement = DecisionStatement(offer or prompt.offer, Decision.APPROVE, number).encode()
        return prompts.Answer(
            prompt_id=prompt.prompt_id,
            statement=statement,
            assertion=self.credential.assertion(challenge(Purpose.SIGN_IN, statement)),
        )

    def refuse(self, prompt: prompts.Prompt, decision: Decision) -> prompts.Answer:
        """A signed denial or report."""
        statement = DecisionStatement(prompt.offer, decision).encode()
        signature = sign_proof(self.channel_key, Purpose.SIGN_IN, statement)
        return prompts.Answer(prompt_id=prompt.prompt_id, statement=statement, channel_signature=signature)


def completion(
    statement: bytes, credential: SoftKey, channel_key: ec.EllipticCurvePrivateKey
) -> enrolment.CompleteRegistrationRequest:
    """The answer to a registration statement."""
    client_data, attestation_object = credential.register(challenge(Purpose.REGISTRATION, statement))
    return enrolment.CompleteRegistrationRequest(
        client_data_json=client_data,
        attestation_object=attestation_object,
        channel_proof=sign_proof(channel_key, Purpose.CHANNEL, statement),
    )


class PromptStream:
    """One prompt stream of a scripted device.

    async with PromptStream(device) as stream:
        prompt = await stream.prompt()
        outcome = await stream.send(device.approve(prompt, "12"))
    """

    def __init__(self, device: BenchDevice, channel: grpc.aio.Channel | None = None) -> None:
        self._device = device
        self._own = channel is None
        self._channel = channel or device.open_channel()
        self._call: Any = None
        self.welcome: prompts.Welcome | None = None

    async def __aenter__(self) -> Self:
        stub = prompts_rpc.PromptServiceStub(self._channel)
        self._call = stub.StreamPrompts(wait_for_ready=True)
        try:
            await self._write(prompts.StreamPromptsRequest(hello=prompts.Hello(agent_version="bench")))
            self.welcome = (await self.read()).welcome
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *failure: object) -> None:
        self._call.cancel()
        if self._own:
            await self._channel.close()

    async def read(self) -> prompts.StreamPromptsResponse:
        """The next message of the server. Raises the error tree's errors, `EOFError` at the end of the stream."""
        message = await answer(self._call.read())
        if message is grpc.aio.EOF:
            await answer(self._status())
            raise EOFError("the server ended the stream")
        response: prompts.StreamPromptsResponse = message
        return response

    async def _status(self) -> None:
        """Raise the status of a stream that has ended, unless it is a good one."""
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return
        raise grpc.aio.AioRpcError(
            code, await self._call.initial_metadata(), await self._call.trailing_metadata(), await self._call.details()
        )

    async def messages(self) -> AsyncIterator[prompts.StreamPromptsResponse]:
        """Every further message."""
        while True:
            yield await self.read()

    async def prompt(self, seconds: float = 20.0) -> prompts.Prompt:
        """The next prompt; other messages before it are passed over."""
        return (await self._next("prompt", seconds)).prompt

    async def outcome(self, seconds: float = 20.0) -> prompts.Outcome:
        """The next outcome; other messages before it are passed over."""
        return (await self._next("outcome", seconds)).outcome

    async def health(self, report: prompts.HealthReport, seconds: float = 20.0) -> prompts.HealthVerdict:
        """Report the health of a TPM; returns what the server makes of it."""
        await self._write(prompts.StreamPromptsRequest(health=report))
        return (await self._next("health", seconds)).health

    async def withdrawn(self, seconds: float = 20.0) -> prompts.Withdrawn:
        """The next withdrawal; other messages before it are passed over."""
        return (await self._next("withdrawn", seconds)).withdrawn

    async def _next(self, event: str, seconds: float) -> prompts.StreamPromptsResponse:
        async with asyncio.timeout(seconds):
            while (message := await self.read()).WhichOneof("event") != event:
                pass
        return message

    async def write(self, given: prompts.Answer) -> None:
        """Send an answer without waiting for its outcome."""
        await self._write(prompts.StreamPromptsRequest(answer=given))

    async def _write(self, request: prompts.StreamPromptsRequest) -> None:
        try:
            await answer(self._call.write(request))
        except asyncio.InvalidStateError:  # the stream has ended; its status says why
            await answer(self._status())
            raise EOFError("the server ended the stream") from None

    async def send(self, given: prompts.Answer) -> prompts.Outcome:
        """Send an answer and wait for its outcome."""
        await self.write(given)
        return await self.outcome()


async def open_session(
    connection: Connection, tenant: str, username: str, access_pass: str
) -> tuple[tuple[str, str], ...]:
    """Sign in with a Temporary Access Pass; returns call metadata that carries the session."""
    from keyvouch_client import sign_in_with_access_pass  # noqa: PLC0415 - keeps the import order of the package free

    session = await sign_in_with_access_pass(connection, tenant=tenant, username=username, access_pass=access_pass)
    return await session.metadata()


async def enrol_with_pass(connection: Connection, tenant: str, username: str, access_pass: str) -> BenchDevice:
    """Sign in with a pass and register a scripted device."""
    return await BenchDevice.enrol(connection, metadata=await open_session(connection, tenant, username, access_pass))
