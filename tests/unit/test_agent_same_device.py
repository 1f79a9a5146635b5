"""Sign-in for an app on this device: what the agent refuses to show, and what it sends again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyvouch.errors import ConflictError, DeviceError, KeyvouchError, NotFoundError, Reason, UnavailableError
from keyvouch.ids import CredentialId, DeviceId, ServerId, SignInId, TenantId, UserId
from keyvouch.statement import Decision, DecisionStatement, SignInOffer
from keyvouch_agent.agent_ports import Answer, Secret
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.ceremonies.same_device import PAUSES, SameDeviceCeremony
from keyvouch_agent.ceremonies.sign_in import SignInCeremony
from keyvouch_agent.channel_keys import SealedChannelKeys
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.own_sign_ins import MAX_OPEN, OwnSignIns
from keyvouch_agent.ports import KeyCreation, Provider
from keyvouch_agent.providers.built_in import BuiltInProvider
from keyvouch_agent.session_ports import AppRequest, BegunSignIn, OpenedSession
from keyvouch_agent.system import SystemClock, SystemEntropy
from keyvouch_agent.vaults.software import SoftwareVault
from support.agent_bench import PIN, given_pin
from support.agent_records import sample_enrolment
from support.authenticators import FAST_KDF
from support.fake_devices import RP_ID, fresh
from support.roaming import provider_over
from support.security_keys import GET_INFO, Bench, Finger, KeyOnBench

NOW = 1_800_000_000
WANTED = AppRequest("shop", "Shop", "https://orders.test", "Week 47")


class Server:
    """`SessionServer` in memory: offers what it was asked for, with changes, and answers as often as it is up."""

    def __init__(self, enrolment: Enrolment) -> None:
        self.enrolment = enrolment
        self.changes: dict[str, object] = {}
        self.reply: dict[str, object] = {}
        self.away = 0
        self.answers: list[Answer] = []
        self.open = 0

    async def begin_sign_in(self, wanted: AppRequest) -> BegunSignIn:
        mine = self.enrolment
        offer = SignInOffer(
            server_id=mine.server_id,
            tenant_id=mine.tenant_id,
            user_id=mine.user_id,
            device_id=mine.device_id,
            credential_id=mine.credential_id,
            sign_in_id=SignInId("sin_x"),
            nonce=os.urandom(32),
            app_id=wanted.app_id,
            app_name=wanted.app_name,
            audience=wanted.audience or wanted.app_id,
            proof_key=hashlib.sha256(mine.certificate_chain[0]).digest(),
            place="this computer",
            address="127.0.0.1",
            binding_message=wanted.binding_message,
            issued_at=NOW,
            expires_at=NOW + 120,
            policy_version=1,
            required_assurance="any/none/unattested",
        )
        changed: Any = replace(offer, **self.changes)  # type: ignore[arg-type]
        begun = BegunSignIn("sin_x", Secret("kvs_x"), fresh("prm"), changed.encode(), NOW + 120, "07")
        return replace(begun, **self.reply)  # type: ignore[arg-type]

    async def complete_sign_in(self, begun: BegunSignIn, answer: Answer) -> OpenedSession:
        self.answers.append(answer)
        if self.away >= len(self.answers):
            raise UnavailableError(Reason.SERVER_UNREACHABLE, "It is away.")
        return OpenedSession("ses_x", Secret("at"), NOW + 600, Secret("rt"), NOW + 9000, "phishing-resistant")

    async def close(self) -> None:
        self.open -= 1


class Desk:
    """An enrolment with a real key in a real vault, and its sign-ins."""

    def __init__(self, path: Path) -> None:
        self.vault = SoftwareVault.open(path / "vault", SystemEntropy(), kdf=FAST_KDF)
        provider = BuiltInProvider(Authenticator(self.vault, SystemClock(), SystemEntropy()))
        with provider.open(given_pin(), rp_id=RP_ID) as session:
            made = session.create_key(KeyCreation(os.urandom(32), RP_ID, b"user", "ada", (-7,)))
        self.now, self.naps = float(NOW), list[float]()
        self.enrol(provider, made.credential_id)

    def enrol(self, provider: Provider, credential_id: CredentialId) -> None:
        """Be enrolled with this key."""
        self.enrolment = sample_enrolment(credential_id=credential_id).enrolment
        self.server = Server(self.enrolment)
        self.signing = SignInCeremony(
            enrolment=self.enrolment,
            provider=lambda: provider,
            channel_keys=SealedChannelKeys(),
            server_now=lambda: self.now,
        )
        self.ceremony = SameDeviceCeremony(
            current=lambda: self.enrolment,
            server=self.connect,
            signing=self.signing,
            turn=asyncio.Lock(),
            sleep=self.nap,
        )
        self.own = OwnSignIns(self.ceremony, current=lambda: self.enrolment, server_now=lambda: self.now)

    def connect(self, _enrolment: Enrolment) -> Server:
        self.server.open += 1
        return self.server

    async def nap(self, seconds: float) -> None:
        self.naps.append(seconds)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    assert made.server.open == 0
    made.vault.close()


async def refused(reason: Reason, act: Callable[[], Any]) -> None:
    with pytest.raises(KeyvouchError) as caught:
        await act()
    assert caught.value.reason is reason


async def test_the_answer_is_an_approval_of_the_offer_with_the_number_of_the_reply(desk: Desk) -> None:
    shown = await desk.own.begin(WANTED)
    assert (shown["app_name"], shown["audience"], shown["binding_message"]) == ("Shop", WANTED.audience, "Week 47")
    session = await desk.own.complete(str(shown["prompt_id"]), given_pin())
    assert (session["access_token"], session["refresh_token"], session["acr"]) == ("at", "rt", "phishing-resistant")
    (answer,) = desk.server.answers
    statement = DecisionStatement.parse(answer.statement)
    assert (statement.decision, statement.number) == (Decision.APPROVE, "07")
    assert answer.assertion is not None
    assert answer.assertion.credential_id == desk.enrolment.credential_id


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"server_id": ServerId(bytes(32))}, Reason.WRONG_SERVER),
        ({"tenant_id": TenantId("ten_other")}, Reason.WRONG_TENANT),
        ({"user_id": UserId("usr_other")}, Reason.WRONG_USER),
        ({"device_id": DeviceId("dev_other")}, Reason.WRONG_DEVICE),
        ({"credential_id": b"another"}, Reason.CREDENTIAL_ID),
        ({"expires_at": NOW}, Reason.SIGN_IN_EXPIRED),
        ({"app_id": "bank"}, Reason.STATEMENT_MISMATCH),
        ({"app_name": "Bank"}, Reason.STATEMENT_MISMATCH),
        ({"audience": "https://bank.test"}, Reason.STATEMENT_MISMATCH),
        ({"binding_message": "Pay"}, Reason.STATEMENT_MISMATCH),
        ({"sign_in_id": SignInId("sin_y")}, Reason.STATEMENT_MISMATCH),
        ({"proof_key": bytes(32)}, Reason.STATEMENT_MISMATCH),
    ],
)
async def test_an_offer_of_anything_else_is_never_shown(desk: Desk, changes: dict[str, object], reason: Reason) -> None:
    desk.server.changes = changes
    await refused(reason, lambda: desk.own.begin(WANTED))
    desk.server.changes = {}
    assert await desk.own.begin(WANTED)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"offer": b"rubbish"}, Reason.STATEMENT_MALFORMED),
        ({"prompt_id": ""}, Reason.FIELD_INVALID),
        ({"number": "7"}, Reason.FIELD_INVALID),
        ({"number": ""}, Reason.FIELD_INVALID),
    ],
)
async def test_an_odd_reply_is_never_shown(desk: Desk, reply: dict[str, object], reason: Reason) -> None:
    desk.server.reply = reply
    await refused(reason, lambda: desk.own.begin(WANTED))


async def test_a_number_that_is_none_is_never_signed(desk: Desk) -> None:
    desk.server.reply = {"number": "x7"}
    shown = await desk.own.begin(WANTED)
    await refused(Reason.FIELD_INVALID, lambda: desk.own.complete(str(shown["prompt_id"]), given_pin()))
    assert desk.server.answers == []


async def test_an_audience_that_is_not_named_is_the_app(desk: Desk) -> None:
    assert (await desk.own.begin(AppRequest("shop", "Shop")))["audience"] == "shop"


@pytest.mark.parametrize("away", [1, len(PAUSES)])
async def test_the_same_answer_is_sent_again_while_the_server_is_away_p6(desk: Desk, away: int) -> None:
    desk.server.away = away
    shown = await desk.own.begin(WANTED)
    await desk.own.complete(str(shown["prompt_id"]), given_pin())
    assert len(desk.server.answers) == away + 1
    assert len({answer.statement for answer in desk.server.answers}) == 1
    assert len({answer.assertion for answer in desk.server.answers}) == 1
    assert desk.naps == list(PAUSES[:away])


async def test_a_server_that_stays_away_is_told(desk: Desk) -> None:
    desk.server.away = 100
    shown = await desk.own.begin(WANTED)
    await refused(Reason.SERVER_UNREACHABLE, lambda: desk.own.complete(str(shown["prompt_id"]), given_pin()))
    assert len(desk.server.answers) == len(PAUSES) + 1


async def test_after_a_wrong_pin_another_try_is_open_and_after_the_right_one_none(desk: Desk) -> None:
    name = str((await desk.own.begin(WANTED))["prompt_id"])
    with pytest.raises(DeviceError) as caught:
        await desk.own.complete(name, given_pin("000000"))
    assert (caught.value.reason, desk.server.answers) == (Reason.PIN_WRONG, [])
    assert desk.own.holds(name)
    await desk.own.complete(name, given_pin())
    assert not desk.own.holds(name)
    with pytest.raises(NotFoundError):
        await desk.own.complete(name, given_pin())
    assert len(desk.server.answers) == 1


async def test_two_completions_at_once_sign_once(desk: Desk) -> None:
    name = str((await desk.own.begin(WANTED))["prompt_id"])
    done = await asyncio.gather(*(desk.own.complete(name, given_pin()) for _ in range(2)), return_exceptions=True)
    assert [isinstance(one, NotFoundError) for one in done] == [False, True]
    assert len(desk.server.answers) == 1


async def test_what_has_expired_is_not_signed_and_is_forgotten(desk: Desk) -> None:
    names = [str((await desk.own.begin(WANTED))["prompt_id"]) for _ in range(MAX_OPEN)]
    with pytest.raises(ConflictError):
        await desk.own.begin(WANTED)
    desk.now += 120
    await refused(Reason.SIGN_IN_EXPIRED, lambda: desk.own.complete(names[0], given_pin()))
    desk.server.changes, desk.server.reply = {"expires_at": NOW + 240}, {"expires_at": NOW + 240}
    await desk.own.begin(WANTED)
    assert not any(desk.own.holds(name) for name in names)


@pytest.fixture
def idle_key(desk: Desk) -> KeyOnBench:
    """The account's key is a security key, and nobody touches it."""
    key = KeyOnBench(finger=Finger())
    key.set_pin(PIN)
    provider = provider_over(Bench().put_in(key))
    with provider.open(given_pin(), rp_id=RP_ID) as session:
        made = session.create_key(KeyCreation(os.urandom(32), RP_ID, b"user", "ada", (-7,)))
    key.finger.always = False
    key.finger.is_asked.clear()
    desk.enrol(provider, made.credential_id)
    return key


async def test_a_completion_that_is_given_up_takes_its_touch_back(desk: Desk, idle_key: KeyOnBench) -> None:
    opened = await desk.ceremony.begin(WANTED)
    completing = asyncio.create_task(desk.ceremony.complete(opened, given_pin()))
    await asyncio.to_thread(idle_key.finger.is_asked.wait, 30)
    completing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await completing
    await asyncio.to_thread(_until_closed, idle_key)
    assert desk.server.answers == []


async def test_a_withdrawal_before_the_key_is_asked_counts_as_well(desk: Desk, idle_key: KeyOnBench) -> None:
    opened = await desk.ceremony.begin(WANTED)

    def withdraw_once(_answer: object) -> None:
        del idle_key.changes[GET_INFO]
        desk.signing.withdraw(opened.review)

    idle_key.changes[GET_INFO] = withdraw_once
    with pytest.raises(DeviceError) as caught:
        await asyncio.wait_for(desk.ceremony.complete(opened, given_pin()), 30)
    assert caught.value.reason is Reason.USER_CANCELLED
    idle_key.finger.always = True
    await desk.ceremony.complete(opened, given_pin())  # control: another try is open


def _until_closed(key: KeyOnBench) -> None:
    """The key is let go. A test that waits here for ever ends at the limit of all tests."""
    end = time.monotonic() + 30
    while key.open and time.monotonic() < end:
        time.sleep(0.01)
    assert key.open == 0
