"""Two tenants of a live server whose store undoes what calls do, and the way to call each method of the protocol with
a request that is good: tests put something else into one field of it.

Tenant A, the server's first, has a user who has everything. Tenant B has an administrator with a session, a device and
a prompt stream, and another user to name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.proofs import spki_of
from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import common_pb2 as common
from keyvouch.v1 import enrolment_pb2 as enrolment
from keyvouch.v1 import prompts_pb2 as prompts
from keyvouch.v1 import same_device_pb2 as same_device
from keyvouch.v1 import security_info_pb2 as info
from keyvouch.v1 import sessions_pb2, sign_in_pb2
from keyvouch_bench.device import SoftKey, completion
from keyvouch_client.errors import answer
from support.dry_store import DryStore
from support.every_rpc import Path as Field
from support.every_rpc import call
from support.live_server import LIMIT, LiveServer, Metadata, Person, SignedIn, live_server
from support.targeted_requests import REQUESTS
from support.two_tenants import Things, put_user


@dataclass(frozen=True, slots=True)
class Way:
    """How tenant B calls a method: with a request that is good but for what the test puts into it."""

    request: Any
    channel: grpc.aio.Channel
    metadata: Metadata = ()
    first: tuple[Any, ...] = ()


@dataclass(slots=True)
class TenantStage:
    """Tenant A with a user who has everything, and tenant B with everything it takes to call every method."""

    live: LiveServer
    store: DryStore
    theirs: Things
    own: Things
    me: Person
    session: SignedIn
    policy: Any
    code: str

    def asked_as_administrator(self, path: str, field: Field) -> Way:
        name = path.rpartition("/")[2]
        variants = {"RevokeSessions": "RevokeSessions user"}
        if field[0] == "question":
            name = "ExplainSignIn question"
        request = REQUESTS[variants.get(name, name)](self.own, self.policy)
        return Way(request, self.live.connection.channel, self.session.metadata)

    async def way(self, path: str, field: Field) -> Way:
        """The way to call a method in order to try one of its fields."""
        name = path.rpartition("/")[2]
        mine = self.live.connection.channel, self.session.metadata
        match path.split(".")[2].split("/", maxsplit=1)[0]:
            case "SecurityInfoService":
                return Way(own_request(name, self.session), *mine)
            case "SessionService":
                return await self.session_way(name)
            case "SignInService":
                return await self.sign_in_way(name)
            case "EnrolmentService":
                return await self.registering_way(name)
            case "PromptService":
                return await self.device_way(name)
            case "SameDeviceService":
                return await self.same_device_way(name)
        return self.asked_as_administrator(path, field)

    async def session_way(self, name: str) -> Way:
        channel = self.live.connection.channel
        if name == "RefreshSession":
            token = self.session.tokens.refresh_token
            proof = self.session.refresh_proof(token)
            return Way(sessions_pb2.RefreshSessionRequest(refresh_token=token, proof=proof), channel)
        requests = {
            "ListSessions": sessions_pb2.ListSessionsRequest(),
            "RevokeSession": sessions_pb2.RevokeSessionRequest(),
        }
        return Way(requests[name], channel, self.session.metadata)

    async def sign_in_way(self, name: str) -> Way:
        channel = self.live.connection.channel
        key = spki_of(ec.generate_private_key(ec.SECP256R1()).public_key())
        context = sign_in_pb2.SignInContext(
            tenant="other", username="bob user", app_id="shop", app_name="Shop", audience="shop"
        )
        if name == "BeginSignIn":
            return Way(sign_in_pb2.BeginSignInRequest(context=context, proof_public_key=key), channel)
        if name == "SignInSession":
            opened = sign_in_pb2.SignInSessionRequest(open=sign_in_pb2.SignInSessionOpen(proof_public_key=key))
            return Way(opened, channel)
        if name == "SignInWithAccessPass":
            wanted = {"tenant": "other", "username": "admin", "access_pass": self.code}
            return Way(sign_in_pb2.SignInWithAccessPassRequest(**wanted), channel)
        self.store.dry = False
        begun = await self.live.begin("admin", "other")
        self.store.dry = True
        request = getattr(sign_in_pb2, f"{name}Request")(sign_in_id=begun.begun.sign_in_id)
        if name == "RedeemSignIn":
            request.proof = begun.proof()
        return Way(request, channel, begun.metadata)

    async def registering_way(self, name: str) -> Way:
        """A registration that is complete but for the device that departs."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = enrolment.BeginRegistrationRequest(channel_public_key=spki_of(key.public_key()), display_name="new")
        if name == "BeginRegistration":
            return Way(request, self.live.connection.channel, self.session.metadata)
        self.store.dry = False
        begun = await answer(
            self.live.enrolment.BeginRegistration(request, metadata=self.session.metadata, timeout=LIMIT)
        )
        self.store.dry = True
        complete: Any = completion(begun.statement, SoftKey(begun.rp_id, begun.user_handle), key)
        if name == "PrepareTpm":
            complete = enrolment.PrepareTpmRequest(endorsement_key=b"e", attestation_key=b"a", pin_index=b"p")
        token = (("authorization", f"Registration {begun.registration_token}"),)
        return Way(complete, self.live.connection.channel, token)

    async def device_way(self, name: str) -> Way:
        channel = await self.live.device_channel(self.me.device)
        if name == "CompleteKeyReplacement":
            return Way(
                prompts.CompleteKeyReplacementRequest(client_data_json=b"{}", attestation_object=b"\xa0"), channel
            )
        self.store.dry = False
        begun = await self.live.begin("admin", "other")
        prompt = await self.me.stream.prompt()
        self.store.dry = True
        hello = prompts.StreamPromptsRequest(hello=prompts.Hello(agent_version="test"))
        approval = self.me.device.approve(prompt, begun.number)
        return Way(prompts.StreamPromptsRequest(answer=approval), channel, first=(hello,))

    async def same_device_way(self, name: str) -> Way:
        channel = await self.live.device_channel(self.me.device)
        if name == "RefreshSession":
            token = self.session.tokens.refresh_token
            return Way(same_device.SameDeviceServiceRefreshSessionRequest(refresh_token=token), channel)
        begin = same_device.SameDeviceServiceBeginSignInRequest(app_id="shop", app_name="Shop", audience="shop")
        if name == "BeginSignIn":
            return Way(begin, channel)
        self.store.dry = False
        told = await call(channel, "/keyvouch.v1.SameDeviceService/BeginSignIn", begin)
        self.store.dry = True
        begun = same_device.SameDeviceServiceBeginSignInResponse.FromString(told.answer)
        offered = prompts.Prompt(prompt_id=begun.prompt_id, offer=begun.offer)
        return Way(
            same_device.CompleteSignInRequest(
                sign_in_id=begun.sign_in_id,
                sign_in_token=begun.sign_in_token,
                answer=self.me.device.approve(offered, begun.number),
            ),
            channel,
        )


def own_request(name: str, session: SignedIn) -> Any:
    """A request about oneself that is good as it is."""
    device = session.session.device_id
    return {
        "RemoveDevice": info.RemoveDeviceRequest(device_id=device),
        "RenameDevice": info.RenameDeviceRequest(device_id=device, display_name="Renamed"),
        "GetOwnReceipt": info.GetOwnReceiptRequest(session_id=session.session.session_id),
        "SetDefaultMethod": info.SetDefaultMethodRequest(method=common.SIGN_IN_METHOD_APPROVAL),
        "RevokeOtherSessions": info.RevokeOtherSessionsRequest(),
    }[name]


@asynccontextmanager
async def tenant_stage(template: Path, folder: Path) -> AsyncIterator[TenantStage]:
    """Make both tenants; from then on nothing changes any more."""
    stores: list[DryStore] = []

    def dry(store: Any) -> DryStore:
        stores.append(DryStore(store))
        return stores[0]

    async with live_server(template, folder, memory=True, around=dry) as live:
        await live.create_user("ada")
        code = await live.issue_pass("ada")
        home = (await live.introspect(await live.admin())).session.tenant_id
        me, session = await live.tenant("other")
        await live.change_policy(session.metadata, approval={"begins_per_minute": 6000})
        theirs = await put_user(live, "ada", home)
        own = await put_user(live, "bob", session.session.tenant_id)
        policy = (await live.administer("GetPolicy", admin.GetPolicyRequest(), session.metadata)).policy
        stores[0].dry = True
        yield TenantStage(live, stores[0], theirs, own, me, session, policy, code)
