"""What a session says of its sign-in never changes: more strength, or another role, is another session (P13)."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from keyvouch.assurance import AssuranceRequirement, Provenance, RequiredProtection, Verification
from keyvouch.errors import PermissionDeniedError, Reason, UnauthenticatedError
from keyvouch.tokens import AccessTokenClaims, verify_access_token
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, directory_pb2
from keyvouch_client.access import NUMBER_MATCHED, PHISHING_RESISTANT, Requirement
from keyvouch_client.errors import answer
from keyvouch_server.domain.model import Role, Session
from support.live_server import LIMIT, LiveServer, SignedIn, bearer, refused
from support.registering import begin as begin_registration

FIXED = ("acr", "amr", "assurance", "auth_time", "device_id", "session_id", "subject", "tenant", "confirmation")
"""Claims that a refresh leaves as they are."""

HARDWARE = AssuranceRequirement(
    RequiredProtection.HARDWARE, Verification.HARDWARE_GATED, Provenance.UNATTESTED, frozenset()
)


def claims_of(live: LiveServer, token: str) -> AccessTokenClaims:
    return verify_access_token(
        token,
        keys=live.app.keyring.token_keys,
        issuer=live.app.world.facts.issuer,
        audience=None,
        now=live.clock.now(),
    )


async def row_of(live: LiveServer, signed_in: SignedIn) -> Session:
    row = await live.app.store.read(lambda tx: tx.get(Session, id=signed_in.session.session_id))
    assert row is not None
    return row


async def give_role(live: LiveServer, user: str, role: Role) -> int:
    """Change a role; returns how many sessions ended."""
    request = directory_pb2.UpdateUserRequest(user=user, role=admin_pb.Role.Value(f"ROLE_{role.name}"))
    call = live.connection.directory.UpdateUser(request, metadata=await live.admin(), timeout=LIMIT)
    told: directory_pb2.UpdateUserResponse = await answer(call)
    return told.revoked_sessions


async def test_a_session_never_becomes_stronger_P13(live: LiveServer):
    signed_in = await live.signed_in(await live.person("ada"))
    first = claims_of(live, signed_in.tokens.access_token)
    assert first.acr == "number-matched"
    for _ in range(3):
        live.clock.advance(300)
        signed_in.tokens = await signed_in.refresh()
        now = claims_of(live, signed_in.tokens.access_token)
        assert [getattr(now, name) for name in FIXED] == [getattr(first, name) for name in FIXED]
        assert now.token_id != first.token_id


async def test_a_session_of_a_pass_says_so_and_cannot_be_prolonged_P13_T8(live: LiveServer):
    await live.create_user("bob")
    opened = await live.access_pass_sign_in("bob", await live.issue_pass("bob"))
    claims = claims_of(live, opened.tokens.access_token)
    assert (claims.acr, claims.amr, claims.assurance) == ("access-pass", ("otp",), "")
    assert opened.tokens.refresh_token == ""


async def test_more_strength_is_another_session_with_other_tokens_P13(live: LiveServer):
    ada = await live.person("ada")
    weak = await live.signed_in(ada)
    before = await row_of(live, weak)
    stepped = await live.signed_in(ada, required_assurance=common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_ANY,
        verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
        provenance=common_pb2.PROVENANCE_SELF,
    ))  # fmt: skip
    assert stepped.session.session_id != weak.session.session_id
    assert stepped.tokens.refresh_token != weak.tokens.refresh_token
    assert await row_of(live, weak) == before
    with refused(Reason.STRENGTH_REQUIRED):
        await live.begin("ada", phishing_resistant=True)
    hardware = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_UNATTESTED,
    )
    waiting = await live.begin("ada", required_assurance=hardware)  # a stranger is not told that no key has it
    with refused(Reason.SIGN_IN_PENDING):
        await waiting.redeem()
    assert await row_of(live, weak) == before


async def test_a_weak_token_opens_nothing_that_wants_hardware_or_more_P13(live: LiveServer):
    ada = await live.person("ada")
    by_pass = await live.access_pass_sign_in("ada", await live.issue_pass_again("ada"))
    by_number = await live.signed_in(ada)
    weak = claims_of(live, by_pass.tokens.access_token)
    matched = claims_of(live, by_number.tokens.access_token)
    now = live.clock.now()
    hardware = Requirement(assurance=HARDWARE)
    resistant = Requirement(acr=frozenset({PHISHING_RESISTANT}))
    for claims, requirement, reason in (
        (weak, hardware, Reason.STRENGTH_REQUIRED),
        (weak, Requirement(acr=frozenset({"access-pass"}), assurance=HARDWARE), Reason.ASSURANCE_TOO_LOW),
        (weak, Requirement(), Reason.STRENGTH_REQUIRED),
        (weak, resistant, Reason.STRENGTH_REQUIRED),
        (matched, hardware, Reason.ASSURANCE_TOO_LOW),
        (matched, resistant, Reason.STRENGTH_REQUIRED),
    ):
        with pytest.raises(PermissionDeniedError) as caught:
            requirement.check(claims, now=now)
        assert caught.value.reason is reason
    Requirement(acr=frozenset({NUMBER_MATCHED})).check(matched, now=now)
    with refused(Reason.SESSION_PURPOSE, status=grpc.StatusCode.PERMISSION_DENIED):
        await live.administer("ListUsers", admin_pb.ListUsersRequest(), bearer(by_pass.tokens.access_token))


async def test_another_role_is_another_session_with_other_tokens_P13(live: LiveServer):
    ada = await live.person("ada")
    as_user = await live.signed_in(ada)
    assert await give_role(live, "ada", Role.GLOBAL_READER) == 2  # and that of the pass
    for over in (as_user.introspect(), as_user.refresh()):
        with refused(Reason.SESSION_REVOKED, status=grpc.StatusCode.UNAUTHENTICATED):
            await over
    assert (await row_of(live, as_user)).revoke_reason == "role_changed"
    as_reader = await live.signed_in(ada)
    assert (await as_reader.introspect()).role == "global_reader"
    assert as_reader.session.session_id != as_user.session.session_id
    await live.administer("ListUsers", admin_pb.ListUsersRequest(), as_reader.metadata)
    assert await give_role(live, "ada", Role.USER) == 1
    with refused(Reason.SESSION_REVOKED):
        await live.administer("ListUsers", admin_pb.ListUsersRequest(), as_reader.metadata)


async def test_a_session_of_a_pass_can_do_nothing_but_register_and_review_T8(live: LiveServer):
    await live.person("ada")
    session = await live.pass_session("ada", await live.issue_pass_again("ada"))
    caller = await live.app.authenticate(session[0][1].partition(" ")[2])
    with pytest.raises(PermissionDeniedError) as caught:
        await live.app.sessions.revoke_others(caller)
    assert caught.value.reason is Reason.SESSION_PURPOSE
    await begin_registration(live, session)  # the control: this it may


async def test_all_other_sessions_of_oneself_end_and_the_present_one_stays(live: LiveServer):
    ada, bob = await live.person("ada"), await live.person("bob")
    present, *others = [await live.signed_in(ada) for _ in range(3)]
    foreign = await live.signed_in(bob)
    caller = await live.app.authenticate(present.tokens.access_token)
    assert await live.app.sessions.revoke_others(caller) == 3  # and that of the pass
    for other in others:
        with refused(Reason.SESSION_REVOKED):
            await other.introspect()
        assert (await row_of(live, other)).revoke_reason == "ended_by_owner"
    await present.introspect()
    await foreign.introspect()
    assert await live.app.sessions.revoke_others(caller) == 0
    await live.app.sessions.revoke(caller, "")
    with pytest.raises(UnauthenticatedError) as caught:
        await live.app.sessions.revoke_others(caller)  # it was admitted, and has ended since
    assert caught.value.reason is Reason.SESSION_REVOKED


async def test_ps18_removal_is_everywhere_in_the_turn_in_which_it_is_durable(live: LiveServer):
    """No poll, no timer: whoever runs next after the removal returns finds stream, tokens and approvals gone."""
    ada = await live.person("ada")
    signed_in = await live.signed_in(ada)
    opened = await live.approved(ada)
    caller = await live.app.authenticate((await live.admin())[0][1].partition(" ")[2])
    device_id: Any = ada.device.device_id
    seen: list[str] = []
    live.app.relay.watch(opened.begun.sign_in_id, lambda row: seen.append(row.state.value))  # type: ignore[arg-type]
    turns = 0
    with live.app.relay.device(device_id) as mailbox:
        await live.app.devices.remove_as_administrator(caller, ada.device.device_id)
        event = asyncio.ensure_future(mailbox.take())
        while not event.done():  # it is in the box: one turn for the task to begin is all it takes
            turns += 1
            await asyncio.sleep(0)
        assert type(event.result()).__name__ == "DeviceRemoved"
    assert turns <= 2
    assert seen == ["cancelled"]
    with pytest.raises(UnauthenticatedError) as caught:
        await live.app.authenticate(signed_in.tokens.access_token)
    assert caught.value.reason is Reason.SESSION_REVOKED
    with refused(Reason.DEVICE_REMOVED):
        async with asyncio.timeout(5):
            await ada.stream.read()
    with refused(Reason.SESSION_REVOKED):
        await signed_in.refresh()
