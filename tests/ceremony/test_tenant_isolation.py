"""P17: as tenant B, with names and ids of tenant A, every method answers byte for byte as to something made up.

The cases come out of the descriptors: each field of each request that holds a text is either named here as something
that leads to a record, or as something that does not. A new method or field fails until somebody has said which.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from keyvouch.v1 import prompts_pb2 as prompts
from keyvouch.v1 import sign_in_pb2
from support.every_rpc import METHODS, Told, call, texts_of, with_value
from support.every_rpc import Path as Field
from support.targeted_requests import path_of
from support.tenant_stage import TenantStage, Way, tenant_stage
from support.two_tenants import Things, made_up

# Fields that lead to a record, by their last name, with everything of a user of tenant A that fits into them.
LEADS: dict[str, Callable[[Things], list[str]]] = {
    "user": lambda it: [it.username, it.alias, it.user_id, it.alias.upper()],
    "username": lambda it: [it.username, it.alias, it.user_id],
    "alias": lambda it: [it.alias],
    "group": lambda it: [it.group, it.group_id],
    "device_id": lambda it: [it.device_id],
    "session_id": lambda it: [it.session_id],
    "sign_in_id": lambda it: [it.sign_in_id],
    "prompt_id": lambda it: [it.prompt_id],
    "registration_id": lambda it: [it.registration_id],
    "risk_event_id": lambda it: [it.risk_event_id],
    "include_users": lambda it: [it.user_id],
    "exclude_users": lambda it: [it.user_id],
    "include_groups": lambda it: [it.group_id],
    "exclude_groups": lambda it: [it.group_id],
    "tenant": lambda it: ["example"],
    "credential_id": lambda it: [it.display_name],
    "user_handle": lambda it: [it.display_name],
}

# Fields that are a name in the making: the same name in two tenants is two people, so A's is as good as any other.
NEW_NAMES = {
    ("CreateUser", "username"),
    ("CreateUser", "aliases"),
    ("UpdateUser", "username"),
    ("AddAlias", "alias"),
    ("CreateGroup", "name"),
}

# Fields that lead nowhere: what is shown, settings of policy, secrets (their holder is who they say), evidence and
# signatures (they are verified against what the server knows, see the tests of the ceremonies).
ELSEWHERE = {
    *("name", "administrator", "description", "display_name", "request_id", "token", "aliases"),
    *("app_id", "app_name", "audience", "binding_message", "agent_version", "trouble"),
    *("aaguid", "allowed", "blocked", "anchors", "profile", "endorsement_key_hash"),
    *("access_pass", "known_client", "refresh_token", "sign_in_token"),
    *("activation", "attest", "attestation_key", "attestation_object", "authenticator_data", "certificates"),
    *("channel_key", "channel_proof", "channel_public_key", "channel_signature", "client_data_json"),
    *("endorsement_certificates", "endorsement_key", "event_log", "pin_index", "proof", "proof_public_key"),
    *("session_nonce", "signature", "statement"),
}

# Asked by people without a session, whose answers hold fresh secrets: `test_enumeration` compares them (P12).
BY_STRANGERS = {("BeginSignIn", "context.tenant"), ("BeginSignIn", "context.username")}
BY_STRANGERS |= {("SignInSession", f"begin.{field}") for _, field in BY_STRANGERS}

# Verified with the whole assertion: `test_security_key_answers` and `test_same_device` have credentials of others (W2).
ASSERTIONS = {
    (method, f"{within}assertion.{field}")
    for method, within in (("CompleteSecurityKeySignIn", ""), ("CompleteSignIn", "answer."))
    for field in ("credential_id", "user_handle")
}

FIELDS = [(path, field, kind) for path, method in METHODS.items() for field, kind in texts_of(method.input_type)]
LEADING = [
    (path, field)
    for path, field, _ in FIELDS
    if field[-1] in LEADS and (path.rpartition("/")[2], ".".join(field)) not in NEW_NAMES | BY_STRANGERS | ASSERTIONS
]


@pytest.fixture
async def stage(server_template: Path, tmp_path: Path) -> AsyncIterator[TenantStage]:
    async with tenant_stage(server_template, tmp_path) as made:
        yield made


async def told(way: Way, path: str, field: Field, value: str, *, never: bool = True) -> Told:
    """What the caller is told, with the value that was asked about taken out of it. `never`: it must be refused."""
    ((_, kind),) = [(f, k) for f, k in texts_of(METHODS[path].input_type) if f == field]
    as_bytes = kind.type == kind.TYPE_BYTES
    request = with_value(way.request, field, value.encode() if as_bytes else value)
    answered = await call(way.channel, path, request, way.metadata, first=way.first)
    assert not (never and accepted(path, answered)), (path, field)

    def blank(text: Any) -> Any:
        mark = "\N{REPLACEMENT CHARACTER}"
        return text.replace(value, mark) if isinstance(text, str) else text.replace(value.encode(), mark.encode())

    trailers = tuple((key, blank(text)) for key, text in answered.trailers)
    return Told(answered.code, blank(answered.message), trailers, blank(answered.answer))


def accepted(path: str, answered: Told) -> bool:
    """Whether a call did what was asked. On the stream of prompts refusals are answers."""
    if path.endswith("/StreamPrompts"):
        return prompts.StreamPromptsResponse.FromString(answered.answer).outcome.accepted
    return answered.code is grpc.StatusCode.OK


def test_every_text_of_every_request_is_accounted_for():
    unknown = {".".join(field) for _, field, _ in FIELDS if field[-1] not in LEADS.keys() | ELSEWHERE}
    assert not unknown, "say in LEADS or ELSEWHERE whether these lead to a record"
    named = {(path.rpartition("/")[2], ".".join(field)) for path, field, _ in FIELDS}
    assert named >= NEW_NAMES | BY_STRANGERS | ASSERTIONS
    assert len(LEADING) > 70


async def test_what_belongs_to_another_tenant_is_as_unknown_as_what_was_made_up_P17(stage: TenantStage):
    nothing = made_up(stage.theirs)
    codes: set[grpc.StatusCode] = set()
    for path, field in LEADING:
        way = await stage.way(path, field)
        theirs, invented = LEADS[field[-1]](stage.theirs), LEADS[field[-1]](nothing)
        if field[-1] == "tenant":
            invented = ["exampla"]
        for value, made in zip(theirs, invented, strict=True):
            assert len(value) == len(made)
            assert value != made
            answers = [await told(way, path, field, one) for one in (value, made)]
            assert answers[0] == answers[1], (path, field, value)
            codes.add(answers[0].code)
    s = grpc.StatusCode
    assert codes == {s.NOT_FOUND, s.UNAUTHENTICATED, s.INVALID_ARGUMENT, s.OK}


async def test_with_its_own_names_and_ids_a_tenant_is_served(stage: TenantStage):
    """The control: the very requests above are good until something of another tenant is put into them."""
    refused: dict[str, grpc.StatusCode] = {}
    for path, field in LEADING:
        way = await stage.way(path, field)
        answered = await call(way.channel, path, way.request, way.metadata, first=way.first)
        name = path.rpartition("/")[2]
        if not accepted(path, answered):
            refused[name] = answered.code
    s = grpc.StatusCode
    assert refused == {
        "CreateAccessPass": s.ALREADY_EXISTS,
        "AcceptDeviceHealth": s.FAILED_PRECONDITION,
        "GetReceipt": s.NOT_FOUND,  # this one's sign-in was put there without evidence
        "SignInWithAccessPass": s.UNAUTHENTICATED,  # the pass is ada's
        "RedeemSignIn": s.FAILED_PRECONDITION,  # nobody has approved it
        "CompleteSecurityKeySignIn": s.UNAUTHENTICATED,  # it was not begun with a security key
        "CompleteSignIn": s.FAILED_PRECONDITION,  # its approval was undone before it could be redeemed
        "CompleteKeyReplacement": s.UNAUTHENTICATED,  # no replacement was begun
    }


async def test_names_in_use_in_another_tenant_are_free_in_this_one_P17(stage: TenantStage):
    nothing = made_up(stage.theirs)
    for name, dotted in sorted(NEW_NAMES):
        path, field = path_of(name), tuple(dotted.split("."))
        way = stage.asked_as_administrator(path, field)
        values = {"username": "username", "aliases": "alias", "alias": "alias", "name": "group"}[field[-1]]
        for things in (stage.theirs, nothing):
            answered = await told(way, path, field, getattr(things, values), never=False)
            assert answered.code is grpc.StatusCode.OK, (path, field)
        taken = await told(way, path, field, getattr(stage.own, values), never=False)
        assert taken.code is grpc.StatusCode.ALREADY_EXISTS or name == "UpdateUser", (path, field)


async def test_another_tenants_pass_opens_nothing_under_this_tenants_name(stage: TenantStage):
    """The pass is good, in its own tenant."""
    path = "/keyvouch.v1.SignInService/SignInWithAccessPass"
    request = sign_in_pb2.SignInWithAccessPassRequest(tenant="example", username="ada", access_pass=stage.code)
    assert (await call(stage.live.connection.channel, path, request)).code is grpc.StatusCode.OK
    request.tenant = "other"
    assert (await call(stage.live.connection.channel, path, request)).code is grpc.StatusCode.UNAUTHENTICATED
