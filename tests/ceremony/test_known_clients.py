"""PS6, T9 and P12: which methods a client is told of, and what a client that the user has signed in at has for it."""

from __future__ import annotations

import asyncio

import pytest

from keyvouch import base64url
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.v1 import common_pb2, sign_in_pb2
from keyvouch_client import SignIn, SignInStream
from keyvouch_client.errors import answer
from keyvouch_client.session_file import SessionFile, Target
from keyvouch_server.domain.model import SignInMethod, User
from keyvouch_server.use_cases.known_clients import KNOWN_CLIENT_SECONDS, KnownClients
from support.key_desk import begin_with_key, registered_key
from support.live_server import LIMIT, TENANT, LiveServer, Person, bearer, refused
from support.strangers import Caller, row_of

APPROVAL, SECURITY_KEY, ACCESS_PASS = SignInMethod.APPROVAL, SignInMethod.SECURITY_KEY, SignInMethod.ACCESS_PASS
IN_ORDER = (APPROVAL, SECURITY_KEY, ACCESS_PASS)


async def known_client_of(live: LiveServer, person: Person) -> str:
    """What the user's client holds after a sign-in."""
    opened = await live.approved(person)
    request = sign_in_pb2.RedeemSignInRequest(sign_in_id=opened.begun.sign_in_id, proof=opened.proof())
    done = await answer(live.connection.sign_ins.RedeemSignIn(request, metadata=opened.metadata, timeout=LIMIT))
    return done.known_client


async def offered(live: LiveServer, username: str, known_client: str = "") -> tuple[SignInMethod, ...]:
    """The methods a client is told of."""
    return (await Caller.at(live, "127.0.0.1").begins(username, known_client=known_client)).methods


def let_the_pass_end(live: LiveServer) -> None:
    """The one that a device was enrolled with is good for an hour."""
    live.clock.advance(3601)


async def set_default(live: LiveServer, username: str, method: str) -> None:
    """As the user does in the security info."""
    where = {"username_key": username}
    await live.app.store.write(lambda tx: tx.update(User, where, {"default_method": method}))


async def test_ps6_what_was_used_last_is_offered_first_at_a_known_client(live: LiveServer) -> None:
    ada = await registered_key(live)
    person = await live.connect("ada", ada)
    await live.change_policy(approval={"begins_per_minute": 100})
    let_the_pass_end(live)
    known = await known_client_of(live, person)
    assert await offered(live, "ada", known) == (APPROVAL, SECURITY_KEY, ACCESS_PASS)
    begun = await begin_with_key(live, "ada")
    await begun.complete(begun.approval(ada.credential))
    await begun.redeem()
    assert await offered(live, "ada", known) == (SECURITY_KEY, APPROVAL, ACCESS_PASS)
    await set_default(live, "ada", "approval")
    assert await offered(live, "ada", known) == (APPROVAL, SECURITY_KEY, ACCESS_PASS)
    await set_default(live, "ada", "access_pass")
    assert await offered(live, "ada", known) == (ACCESS_PASS, SECURITY_KEY, APPROVAL)


async def test_ps6_another_method_is_always_offered(live: LiveServer) -> None:
    ada = await live.person("ada")
    known = await known_client_of(live, ada)
    for username, token in (("ada", ""), ("ada", known), ("nobody", "")):
        assert set(await offered(live, username, token)) == set(IN_ORDER)


async def test_t9_a_usable_pass_is_offered_first_and_no_other_one(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.change_policy(approval={"begins_per_minute": 100})
    let_the_pass_end(live)
    known = await known_client_of(live, ada)
    assert (await offered(live, "ada", known))[0] is APPROVAL
    await live.issue_pass_again("ada")
    assert (await offered(live, "ada", known))[0] is ACCESS_PASS
    let_the_pass_end(live)
    assert (await offered(live, "ada", known))[0] is APPROVAL


async def test_ps6_a_stranger_learns_nothing_of_what_a_user_prefers_P12(live: LiveServer) -> None:
    ada = await live.person("ada")
    await live.issue_pass_again("ada")
    await set_default(live, "ada", "security_key")
    for stranger in ("", "kvc_", "kvc_AAAA", "x" * 100_000):
        assert await offered(live, "ada", stranger) == await offered(live, "nobody", stranger) == IN_ORDER
        live.clock.advance(60)
    bob = await known_client_of(live, await live.person("bob"))
    assert await offered(live, "ada", bob) == IN_ORDER
    assert ada.username == "ada"


async def test_ps6_a_tenant_may_disclose_preferences_to_everybody(live: LiveServer) -> None:
    await live.person("ada")
    await set_default(live, "ada", "security_key")
    let_the_pass_end(live)
    assert (await offered(live, "ada"))[0] is APPROVAL
    await live.change_policy(sign_in={"disclose_methods": True})
    assert (await offered(live, "ada"))[0] is SECURITY_KEY
    assert await offered(live, "nobody") == IN_ORDER


# the token


async def test_every_other_spelling_of_a_token_makes_a_stranger_P14(live: LiveServer) -> None:
    ada = await live.person("ada")
    token = await known_client_of(live, ada)
    row = (await live.app.store.read(lambda tx: tx.find(User, {"username_key": "ada"})))[0]
    known = KnownClients(live.app.world)
    assert known.knows(token, row.tenant_id, row.id)
    data = base64url.decode(token.removeprefix("kvc_"))
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytes([*data[:place], data[place] ^ 1 << bit, *data[place + 1 :]])
            assert not known.knows(f"kvc_{base64url.encode(flipped)}", row.tenant_id, row.id)
    for end in range(len(token)):
        assert not known.knows(token[:end], row.tenant_id, row.id)
        assert not known.knows(token[end + 1 :], row.tenant_id, row.id)
    for other in (token + "A", token.upper(), f" {token}", token + "=", "kvc_\u00e4" + token[5:]):
        assert not known.knows(other, row.tenant_id, row.id)


async def test_a_client_is_known_for_ninety_days_by_the_servers_clock_P20(live: LiveServer) -> None:
    ada = await live.person("ada")
    row = (await live.app.store.read(lambda tx: tx.find(User, {"username_key": "ada"})))[0]
    known, token = KnownClients(live.app.world), await known_client_of(live, ada)
    live.clock.advance(KNOWN_CLIENT_SECONDS - 1)
    assert known.knows(token, row.tenant_id, row.id)
    live.clock.advance(1)
    assert not known.knows(token, row.tenant_id, row.id)
    live.clock.advance(-2 * KNOWN_CLIENT_SECONDS)
    assert not known.knows(token, row.tenant_id, row.id)  # it would be good for longer than any is made


async def test_the_token_opens_nothing_P14(live: LiveServer) -> None:
    ada = await live.person("ada")
    token = await known_client_of(live, ada)
    opened = await live.begin("ada")
    opened.begun.sign_in_token = token
    with refused(Reason.SIGN_IN_UNKNOWN):
        await opened.state()
    with pytest.raises(KeyvouchError) as refusal:
        await live.introspect(bearer(token))
    assert refusal.value.reason in {Reason.TOKEN_MALFORMED, Reason.TOKEN_INVALID}
    request = sign_in_pb2.SignInWithAccessPassRequest(tenant=TENANT, username="ada", access_pass=token)
    with refused(Reason.ACCESS_PASS_REFUSED):
        await answer(live.connection.sign_ins.SignInWithAccessPass(request, timeout=LIMIT))


async def test_each_way_of_redeeming_gives_one_and_the_row_says_that_it_was_shown_PS6(live: LiveServer) -> None:
    ada = await live.person("ada")
    who = {"tenant": TENANT, "username": "ada", "app_id": "shop", "app_name": "Shop"}
    async with SignIn(live.connection, **who) as first:
        await ada.stream.send(ada.device.approve(await ada.stream.prompt(), first.number))
        session = await first.session()
    assert session.known_client.startswith("kvc_")
    async with SignIn(live.connection, **who, known_client=session.known_client) as second:
        await ada.stream.send(ada.device.approve(await ada.stream.prompt(), second.number))
        again = await second.session()
    assert again.known_client.startswith("kvc_")
    async with SignInStream(live.connection, app_id="shop", app_name="Shop") as stream:
        pending = await stream.begin(tenant=TENANT, username="ada", known_client=again.known_client)
        assert (await row_of(live, pending.sign_in_id)).known_client
        await ada.stream.send(ada.device.approve(await ada.stream.prompt(), pending.number))
        assert (await pending.session()).known_client.startswith("kvc_")
        stranger = await stream.begin(tenant=TENANT, username="ada")
        assert not (await row_of(live, stranger.sign_in_id)).known_client
        await stranger.cancel()
    assert common_pb2.SIGN_IN_METHOD_APPROVAL in second.methods


async def test_the_command_line_keeps_it_by_server_tenant_and_user_PS6(live: LiveServer, tmp_path) -> None:
    ada = await live.person("ada")
    async with SignIn(live.connection, tenant=TENANT, username="ada", app_id="shop", app_name="Shop") as sign_in:
        await ada.stream.send(ada.device.approve(await ada.stream.prompt(), sign_in.number))
        session = await sign_in.session()
    file, target = SessionFile(tmp_path / "state"), Target("here:1", "", tenant=TENANT, username="ada")
    await asyncio.to_thread(file.keep, target, session)
    file.forget_session()
    state = file.read()
    assert state.session is None
    assert state.known_client(target) == session.known_client
    for other in (Target("there:1", "", False, TENANT, "ada"), Target("here:1", "", False, TENANT, "bob"), Target()):
        assert state.known_client(other) == ""
    for number in range(60):
        file.keep(Target("here:1", "", tenant=TENANT, username=f"user{number}"), session)
    assert len(file.read().known_clients) == 50
