"""Sign-ins of a scripted device for itself: `SameDeviceService` as an agent uses it.

desk = DeviceDesk.open(ada.device, live.stack)
signed_in = await (await desk.begin()).complete()
"""

from __future__ import annotations

import base64
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from keyvouch.statement import Decision, SignInOffer
from keyvouch.tokens import certificate_thumbprint
from keyvouch.v1 import common_pb2, prompts_pb2, same_device_pb2, same_device_pb2_grpc
from keyvouch_bench.device import BenchDevice
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Session
from support.live_server import LIMIT, LiveServer


@dataclass(slots=True)
class DeviceDesk:
    """A device with a channel of its own to its listener, open until `stack` ends."""

    device: BenchDevice
    stub: Any

    @classmethod
    def open(cls, device: BenchDevice, stack: AsyncExitStack) -> DeviceDesk:
        """Connect, with the certificate that the device has now."""
        channel = device.open_channel()
        stack.push_async_callback(channel.close)
        return cls(device, same_device_pb2_grpc.SameDeviceServiceStub(channel))

    @property
    def thumbprint(self) -> str:
        """`x5t#S256` of the device's certificate."""
        return certificate_thumbprint(self.device.certificate_chain[0])

    async def begin(self, **app: str) -> OwnSignIn:
        """Begin a sign-in."""
        wanted = {"app_id": "shop", "app_name": "Shop", "audience": "https://orders.test", **app}
        request = same_device_pb2.SameDeviceServiceBeginSignInRequest(**wanted)
        return OwnSignIn(self, await answer(self.stub.BeginSignIn(request, timeout=LIMIT)))

    async def signed_in(self, **app: str) -> same_device_pb2.CompleteSignInResponse:
        """The whole ceremony."""
        return await (await self.begin(**app)).complete()

    async def refresh(self, token: str) -> common_pb2.SessionTokens:
        """New tokens for old."""
        request = same_device_pb2.SameDeviceServiceRefreshSessionRequest(refresh_token=token)
        done: same_device_pb2.SameDeviceServiceRefreshSessionResponse = await answer(
            self.stub.RefreshSession(request, timeout=LIMIT)
        )
        return done.tokens


@dataclass(slots=True)
class OwnSignIn:
    """A sign-in that was begun."""

    desk: DeviceDesk
    begun: same_device_pb2.SameDeviceServiceBeginSignInResponse

    @property
    def offer(self) -> SignInOffer:
        """What is to be signed."""
        return SignInOffer.parse(self.begun.offer)

    @property
    def prompt(self) -> prompts_pb2.Prompt:
        """The same as a prompt, for the scripted device."""
        return prompts_pb2.Prompt(prompt_id=self.begun.prompt_id, offer=self.begun.offer)

    def approval(self, number: str = "") -> prompts_pb2.Answer:
        """A signed approval."""
        return self.desk.device.approve(self.prompt, number or self.begun.number)

    def refusal(self, decision: Decision) -> prompts_pb2.Answer:
        """A signed denial or report."""
        return self.desk.device.refuse(self.prompt, decision)

    async def complete(
        self, given: prompts_pb2.Answer | None = None, *, desk: DeviceDesk | None = None, token: str = ""
    ) -> same_device_pb2.CompleteSignInResponse:
        """Answer it, over its own channel or another device's."""
        request = same_device_pb2.CompleteSignInRequest(
            sign_in_id=self.begun.sign_in_id,
            sign_in_token=token or self.begun.sign_in_token,
            answer=given or self.approval(),
        )
        done: same_device_pb2.CompleteSignInResponse = await answer(
            (desk or self.desk).stub.CompleteSignIn(request, timeout=LIMIT)
        )
        return done


def claims_in(token: str) -> dict[str, Any]:
    """The payload of an access token, unverified."""
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


async def desk_of(live: LiveServer, username: str = "ada") -> DeviceDesk:
    """A new user's device. Nothing listens to its prompts."""
    await live.create_user(username)
    return await another_desk_of(live, username)


async def another_desk_of(live: LiveServer, username: str = "ada") -> DeviceDesk:
    """A further device of a user."""
    return DeviceDesk.open(await live.enrol(username, await live.issue_pass_again(username)), live.stack)


async def renewed(live: LiveServer, desk: DeviceDesk) -> DeviceDesk:
    """The device after a minute, with its next certificate, on a new channel; the old channel stays open."""
    live.clock.advance(60)
    stub = await live.device_stub(desk.device)
    answered = await answer(stub.RenewCertificate(prompts_pb2.RenewCertificateRequest(), timeout=LIMIT))
    device = replace(desk.device, certificate_chain=tuple(answered.certificate_chain))
    return DeviceDesk.open(device, live.stack)


async def sessions_of(live: LiveServer, desk: DeviceDesk) -> list[Session]:
    """Sessions that the device has opened."""
    return await live.app.store.read(lambda tx: tx.find(Session, {"device_id": desk.device.device_id}))
