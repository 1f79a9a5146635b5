"""A server for device agents in the test's own process: real gRPC, real TLS, real verification.

It has the two listeners of the product and can be stopped and started again on the same ports with the same rows.
Faults are asked for by counters: `lose_answers` breaks the stream before an answer is looked at, `lose_outcomes`
after it was taken, `lose_completions` after a registration is complete.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID
from grpc import aio

from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError
from keyvouch.v1 import (
    common_pb2,
    enrolment_pb2,
    enrolment_pb2_grpc,
    prompts_pb2,
    prompts_pb2_grpc,
    sign_in_pb2,
    sign_in_pb2_grpc,
)
from support.fake_devices import ACCESS_PASS, RP_ID, TENANT_NAME, USERNAME, FakeDevices, PromptRow
from support.fake_sign_in_server import rich_status

Event = prompts_pb2.StreamPromptsResponse


class FakeDeviceServer:
    """Both listeners over one `FakeDevices`."""

    def __init__(self, rows: FakeDevices) -> None:
        self.rows = rows
        self.public_port = self.device_port = 0
        self.lose_answers = self.lose_outcomes = self.lose_completions = 0
        self.streams: dict[str, list[asyncio.Queue[Event | KeyvouchError | None]]] = {}
        self.hellos: list[str] = []
        self._servers: list[aio.Server] = []

    @property
    def public_endpoint(self) -> str:
        return f"localhost:{self.public_port}"

    @property
    def device_endpoint(self) -> str:
        return f"localhost:{self.device_port}"

    async def start(self) -> None:
        """Listen: on any ports the first time, on the same ones after that."""
        key, chain = self.rows.authority.listener()
        # Without this, a port in use would be shared between two tests' servers.
        options = [("grpc.so_reuseport", 0)]
        public, device = aio.server(options=options), aio.server(options=options)
        sign_in_pb2_grpc.add_SignInServiceServicer_to_server(_SignIn(self), public)  # type: ignore[abstract]
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(_Enrolment(self), public)  # type: ignore[abstract]
        prompts_pb2_grpc.add_PromptServiceServicer_to_server(_Prompts(self), device)  # type: ignore[abstract]
        tls = grpc.ssl_server_credentials([(key, chain)])
        mutual = grpc.ssl_server_credentials([(key, chain)], self.rows.authority.pem, require_client_auth=True)
        self.public_port = public.add_secure_port(f"localhost:{self.public_port}", tls)
        self.device_port = device.add_secure_port(f"localhost:{self.device_port}", mutual)
        self._servers = [public, device]
        for server in self._servers:
            await server.start()

    async def stop(self) -> None:
        """End at once, as a killed server does."""
        for server in self._servers:
            await server.stop(0)
        self._servers = []

    # What a test makes the server say

    def ask(self, row: PromptRow) -> PromptRow:
        """Send a prompt to the device's open streams."""
        self.say(row.device_id, Event(prompt=prompt_message(row)))
        return row

    def withdraw(self, row: PromptRow, state: int) -> None:
        """End a prompt and tell the device."""
        row.state = state
        withdrawn = prompts_pb2.Withdrawn(prompt_id=row.prompt_id, state=state)  # type: ignore[arg-type]
        self.say(row.device_id, Event(withdrawn=withdrawn))

    def remove(self, device_id: str) -> None:
        """Remove a device: its streams end at once, with the reason."""
        self.rows.device(device_id).removed = True
        for queue in self.streams.get(device_id, []):
            queue.put_nowait(
                UnauthenticatedError(Reason.DEVICE_REMOVED, "This device was removed.", fix="Enrol again.")
            )

    def say(self, device_id: str, event: Event) -> None:
        for queue in self.streams.get(device_id, []):
            queue.put_nowait(event)

    def connected(self, device_id: str) -> bool:
        return bool(self.streams.get(device_id))


def prompt_message(row: PromptRow) -> prompts_pb2.Prompt:
    """The message of a prompt."""
    return prompts_pb2.Prompt(
        prompt_id=row.prompt_id,
        offer=row.offer,
        expires_at=row.expires_at,
        number_digits=len(row.number),
        number_choices=row.choices,
    )


async def refuse(context: Any, error: KeyvouchError) -> None:
    """End a call with an error, told as the product's servers tell it."""
    status = rich_status(error)
    await context.abort(status.code, status.details, status.trailing_metadata)


def credential(context: Any, scheme: str) -> str:
    """The token of the authorization header."""
    for key, value in context.invocation_metadata():
        if key == "authorization" and value.startswith(f"{scheme} "):
            return str(value).removeprefix(f"{scheme} ")
    raise UnauthenticatedError(Reason.CREDENTIALS_MISSING, "Who are you?", fix="Say who you are.")


class _SignIn(sign_in_pb2_grpc.SignInServiceServicer):
    def __init__(self, server: FakeDeviceServer) -> None:
        self._server = server

    async def SignInWithAccessPass(self, request: Any, context: Any) -> Any:
        if (request.tenant, request.username, request.access_pass) != (TENANT_NAME, USERNAME, ACCESS_PASS):
            error = UnauthenticatedError(Reason.ACCESS_PASS_REFUSED, "The access pass was refused.", fix="Ask for one.")
            await refuse(context, error)
        return sign_in_pb2.SignInWithAccessPassResponse(tokens=common_pb2.SessionTokens(access_token="session-of-ada"))


class _Enrolment(enrolment_pb2_grpc.EnrolmentServiceServicer):
    def __init__(self, server: FakeDeviceServer) -> None:
        self._server = server

    async def BeginRegistration(self, request: Any, context: Any) -> Any:
        rows = self._server.rows
        if credential(context, "Bearer") != "session-of-ada":
            await refuse(context, UnauthenticatedError(Reason.CREDENTIALS_INVALID, "No such session.", fix="Sign in."))
        row = rows.begin(request.channel_public_key, request.display_name, request.provider)
        return enrolment_pb2.BeginRegistrationResponse(
            registration_id=row.statement.registration_id,
            registration_token=row.token,
            statement=row.statement.encoded,
            rp_id=RP_ID,
            user_handle=rows.user_id.encode(),
            username=USERNAME,
            algorithms=[-7],
            expires_at=row.statement.expires_at,
            required_assurance=rows.required,
        )

    async def CompleteRegistration(self, request: Any, context: Any) -> Any:
        rows = self._server.rows
        evidence = (request.client_data_json, request.attestation_object, request.channel_proof)
        try:
            row = rows.complete(credential(context, "Registration"), evidence)
        except KeyvouchError as error:
            await refuse(context, error)
            raise
        if self._server.lose_completions:
            self._server.lose_completions -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        assert row.record is not None
        device = common_pb2.Device(
            device_id=row.statement.device_id,
            tenant_id=rows.tenant_id,
            user_id=rows.user_id,
            display_name=row.display_name,
            provider=row.provider,  # type: ignore[arg-type]
            credential_id=row.record.credential_id,
        )
        return enrolment_pb2.CompleteRegistrationResponse(
            device=device,
            certificate_chain=rows.chain(row),
            device_endpoint=self._server.device_endpoint,
            tenant_name=TENANT_NAME,
        )


class _Prompts(prompts_pb2_grpc.PromptServiceServicer):
    def __init__(self, server: FakeDeviceServer) -> None:
        self._server = server

    async def StreamPrompts(self, requests: Any, context: Any) -> AsyncIterator[Event]:
        device_id = await self._device_id(context)
        hello = await anext(requests)
        self._server.hellos.append(hello.hello.agent_version)
        outgoing: asyncio.Queue[Event | KeyvouchError | None] = asyncio.Queue()
        self._server.streams.setdefault(device_id, []).append(outgoing)
        listening = asyncio.create_task(self._listen(requests, device_id, outgoing))
        try:
            yield Event(welcome=prompts_pb2.Welcome(server_version="fake", server_time=int(time.time())))
            for row in self._server.rows.open_prompts(device_id):
                yield Event(prompt=prompt_message(row))
            while (event := await outgoing.get()) is not None:
                if isinstance(event, KeyvouchError):
                    await refuse(context, event)
                else:
                    yield event
        finally:
            listening.cancel()
            self._server.streams[device_id].remove(outgoing)

    async def _listen(self, requests: Any, device_id: str, outgoing: asyncio.Queue[Any]) -> None:
        async for request in requests:
            if self._server.lose_answers:
                self._server.lose_answers -= 1
                outgoing.put_nowait(None)
                return
            outcome = self._server.rows.answer(device_id, request.answer)
            if self._server.lose_outcomes:
                self._server.lose_outcomes -= 1
                outgoing.put_nowait(None)
                return
            outgoing.put_nowait(Event(outcome=outcome))

    async def GetDevice(self, request: Any, context: Any) -> Any:
        row = self._server.rows.device(await self._device_id(context))
        return prompts_pb2.GetDeviceResponse(device=common_pb2.Device(display_name=row.display_name), username=USERNAME)

    async def RenewCertificate(self, request: Any, context: Any) -> Any:
        row = self._server.rows.device(await self._device_id(context))
        self._server.rows.renewed += 1
        return prompts_pb2.RenewCertificateResponse(certificate_chain=self._server.rows.chain(row))

    async def Unregister(self, request: Any, context: Any) -> Any:
        device_id = await self._device_id(context)
        self._server.remove(device_id)
        return prompts_pb2.UnregisterResponse(revoked_sessions=2)

    async def _device_id(self, context: Any) -> str:
        pem = context.auth_context()["x509_pem_cert"][0]
        subject = x509.load_pem_x509_certificate(pem).subject
        device_id = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        try:
            self._server.rows.device(device_id)
        except KeyvouchError as error:
            await refuse(context, error)
        return device_id
