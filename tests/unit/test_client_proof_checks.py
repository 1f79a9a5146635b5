"""Resource servers that ask for proofs: a copied token opens nothing there either (P15)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from keyvouch import base64url
from keyvouch.call_proof import METADATA_KEY, NONCE_BYTES, WINDOW_SECONDS, make_call_proof
from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError, UsageError
from keyvouch.ids import ServerId
from keyvouch.proofs import thumbprint
from keyvouch_client import RequireSession, RequireSessionSync
from keyvouch_client.access import AccessRules
from keyvouch_client.errors import error_from
from keyvouch_client.jwks import JwksDocument
from keyvouch_client.proof_checks import ProofChecks
from support.fake_world import ISSUER, Issuer, claims_for

KEY, SERVER = ec.generate_private_key(ec.SECP256R1()), ServerId(bytes(range(32)))
HOLDER = base64url.encode(thumbprint(KEY.public_key()))
GET, OTHER = "/orders.v1.Orders/Get", "/orders.v1.Orders/Delete"
RULES = AccessRules(ISSUER, "https://orders.test", server_id=SERVER)
ISSUED_BY = Issuer()
Call = Callable[..., Any]


class Handlers(grpc.GenericRpcHandler):
    """Answers every call."""

    def __init__(self, behaviour: Any) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(behaviour)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._handler


async def answered(_request: Any, _context: Any) -> bytes:
    return b"done"


@pytest.fixture(params=["aio", "threads"])
async def call(request: pytest.FixtureRequest) -> AsyncIterator[Call]:
    """Calls a method of a resource server with a token and proofs; raises what it was refused with."""
    document = JwksDocument(ISSUER, ISSUED_BY.jwks())
    with ThreadPoolExecutor(4) as pool:
        server: Any
        if request.param == "aio":
            server = aio.server(interceptors=[RequireSession(document, RULES)], handlers=[Handlers(answered)])
        else:
            guard = RequireSessionSync(lambda: document, RULES)
            server = grpc.server(pool, interceptors=[guard], handlers=[Handlers(lambda _request, _context: b"done")])
        port = server.add_insecure_port("127.0.0.1:0")
        started = server.start()
        if started is not None:
            await started
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

            def make(method: str, token: str, *proofs: bytes) -> bytes:
                pairs: Any = (("authorization", f"Bearer {token}"), *((METADATA_KEY, one) for one in proofs))
                try:
                    result: bytes = channel.unary_unary(method)(b"x", metadata=pairs, timeout=5)
                except grpc.RpcError as error:
                    raise error_from(error) from error
                return result

            yield lambda *arguments: asyncio.to_thread(make, *arguments)
        stopped = server.stop(0)
        await stopped if request.param == "aio" else await asyncio.to_thread(stopped.wait)


def bound_token(**changes: object) -> str:
    """A token that names the key."""
    return ISSUED_BY.sign(claims_for(**{"confirmation": HOLDER, **changes}))


def proof(token: str, **changes: Any) -> bytes:
    wanted: dict[str, Any] = {"server_id": SERVER, "method": GET, "access_token": token, "now": int(time.time())}
    key = changes.pop("key", KEY)
    nonce = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32, "big")[:NONCE_BYTES]
    return make_call_proof(key, nonce=nonce, **{**wanted, **changes})


async def refusal_of(call: Call, *arguments: Any) -> KeyvouchError:
    with pytest.raises(UnauthenticatedError) as caught:
        await call(*arguments)
    return caught.value


async def test_a_copied_token_opens_nothing_at_a_resource_server_P15(call: Call):
    token, other = bound_token(), bound_token()
    assert (await refusal_of(call, GET, token)).reason is Reason.PROOF_REQUIRED
    for wrong in (
        proof(token, key=ec.generate_private_key(ec.SECP256R1())),
        proof(token, method=OTHER),
        proof(other),
        proof(token, server_id=ServerId(bytes(32))),
        proof(token)[:-1],
        b"",
    ):
        assert (await refusal_of(call, GET, token, wrong)).reason is Reason.PROOF_INVALID
    assert (await refusal_of(call, GET, token, proof(token), proof(token))).reason is Reason.PROOF_INVALID
    assert await call(GET, token, proof(token)) == b"done"


async def test_a_proof_is_good_once_at_a_resource_server_P15(call: Call):
    token = bound_token()
    once = proof(token)
    assert await call(GET, token, once) == b"done"
    for _ in range(2):
        assert (await refusal_of(call, GET, token, once)).reason is Reason.PROOF_REPLAYED
    assert await call(GET, token, proof(token)) == b"done"


async def test_a_proof_of_another_time_is_told_the_time(call: Call):
    token, now = bound_token(), int(time.time())
    for apart in (-WINDOW_SECONDS - 30, WINDOW_SECONDS + 30):
        refusal = await refusal_of(call, GET, token, proof(token, now=now + apart))
        assert refusal.reason is Reason.PROOF_INVALID
        assert abs(int(refusal.metadata["server_time"]) - now) < 30


async def test_a_token_that_names_no_key_needs_no_proof(call: Call):
    assert await call(GET, bound_token(confirmation="")) == b"done"


def test_without_a_server_id_nothing_is_asked():
    claims = claims_for(confirmation=HOLDER)
    ProofChecks(None).check(claims, "token", method=GET, metadata=(), now=0)
    with pytest.raises(UnauthenticatedError):
        ProofChecks(SERVER).check(claims, "token", method=GET, metadata=None, now=0)


def test_a_confirmation_that_is_no_thumbprint_is_nobodys():
    token = "token"
    with pytest.raises(UnauthenticatedError) as caught:
        ProofChecks(SERVER).check(
            claims_for(confirmation="%"), token, method=GET, metadata=((METADATA_KEY, proof(token, now=9)),), now=9
        )
    assert caught.value.reason is Reason.PROOF_INVALID


def test_used_proofs_are_forgotten_when_they_would_not_count_any_more():
    checks, claims = ProofChecks(SERVER), claims_for(confirmation=HOLDER)

    def use(now: int) -> bytes:
        made = proof("token", now=now)
        checks.check(claims, "token", method=GET, metadata=((METADATA_KEY, made),), now=now)
        return made

    first = [use(1000) for _ in range(50)]
    with pytest.raises(UnauthenticatedError):  # to the last second in which it counts
        checks.check(claims, "token", method=GET, metadata=((METADATA_KEY, first[0]),), now=1000 + WINDOW_SECONDS)
    assert len(checks._used) == 50  # nobody outside sees what is remembered
    for _ in range(20):
        use(2000)
    assert len(checks._used) == 20


def test_the_id_of_a_server_has_32_bytes():
    with pytest.raises(UsageError):
        replace(RULES, server_id=ServerId(b"short"))
