"""The sign-in ceremony of the device: what it refuses before anything is shown or signed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from keyvouch.attestation import CredentialRecord, verify_assertion
from keyvouch.errors import DeviceError, EvidenceError, KeyvouchError, MalformedError, Reason, RefusedError, UsageError
from keyvouch.ids import DeviceId, ServerId, SignInId, TenantId, UserId
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import (
    Decision,
    DecisionStatement,
    Purpose,
    RegistrationStatement,
    SignInOffer,
    challenge,
)
from keyvouch.webauthn import AttestationObject
from keyvouch_agent.agent_ports import Prompt
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.ceremonies.sign_in import SignInCeremony
from keyvouch_agent.channel_keys import SealedChannelKeys
from keyvouch_agent.ports import KeyCreation
from keyvouch_agent.providers.built_in import BuiltInProvider
from keyvouch_agent.system import SystemClock, SystemEntropy
from keyvouch_agent.vaults.software import SoftwareVault
from support.agent_bench import PIN, given_pin
from support.agent_records import sample_enrolment
from support.authenticators import FAST_KDF
from support.fake_devices import ORIGIN, RP_ID
from support.provider_ui import ScriptedInteraction

NOW = 1_800_000_000


class Desk:
    """A ceremony with a real key in a real software vault, at a time the test sets."""

    def __init__(self, path: Path) -> None:
        self.vault = SoftwareVault.open(path / "vault", SystemEntropy(), kdf=FAST_KDF)
        self.provider = BuiltInProvider(Authenticator(self.vault, SystemClock(), SystemEntropy()))
        creation = KeyCreation(os.urandom(32), RP_ID, b"user", "ada", (-7,))
        with self.provider.open(given_pin(), rp_id=RP_ID) as session:
            made = session.create_key(creation)
        attested = AttestationObject(made.attestation_object).attested
        self.record = CredentialRecord(made.credential_id, attested.public_key, 0, b"user", False)
        self.enrolment = sample_enrolment(credential_id=made.credential_id).enrolment
        self.now = float(NOW)
        self.ceremony = SignInCeremony(
            enrolment=self.enrolment,
            provider=lambda: self.provider,
            channel_keys=SealedChannelKeys(),
            server_now=lambda: self.now,
        )

    def offer(self) -> SignInOffer:
        mine = self.enrolment
        return SignInOffer(
            server_id=mine.server_id,
            tenant_id=mine.tenant_id,
            user_id=mine.user_id,
            device_id=mine.device_id,
            credential_id=mine.credential_id,
            sign_in_id=SignInId("sin_x"),
            nonce=os.urandom(32),
            app_id="payroll",
            app_name="Payroll",
            audience="https://api.example.org",
            proof_key=os.urandom(32),
            place="",
            address="",
            binding_message="",
            issued_at=NOW,
            expires_at=NOW + 60,
            policy_version=1,
            required_assurance="any/none/unattested",
        )

    def prompt(self, offer: SignInOffer | None = None) -> Prompt:
        return Prompt("prm_x", (offer or self.offer()).encode(), NOW + 60, 2)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.vault.close()


def test_an_approval_is_an_assertion_over_offer_decision_and_number(desk: Desk) -> None:
    prompt = desk.prompt()
    answer = desk.ceremony.approve(desk.ceremony.review(prompt), "07", given_pin())
    statement = DecisionStatement.parse(answer.statement)
    assert (statement.offer, statement.decision, statement.number) == (prompt.offer, Decision.APPROVE, "07")
    assert answer.assertion is not None
    verify_assertion(
        credential=desk.record,
        credential_id=answer.assertion.credential_id,
        client_data=answer.assertion.client_data,
        authenticator_data=answer.assertion.authenticator_data,
        signature=answer.assertion.signature,
        user_handle=answer.assertion.user_handle,
        challenge=challenge(Purpose.SIGN_IN, answer.statement),
        rp_id=RP_ID,
        origins={ORIGIN},
        require_user_verification=True,
    )


@pytest.mark.parametrize("decision", [Decision.DENY, Decision.REPORT])
def test_a_refusal_is_signed_by_the_channel_key(desk: Desk, decision: Decision) -> None:
    answer = desk.ceremony.refuse(desk.ceremony.review(desk.prompt()), decision)
    assert DecisionStatement.parse(answer.statement).decision is decision
    key = load_proof_key(SealedChannelKeys().load(desk.enrolment.channel_key).spki)
    verify_proof(key, Purpose.SIGN_IN, answer.statement, signature=answer.channel_signature)


def test_the_channel_key_approves_nothing(desk: Desk) -> None:
    with pytest.raises(UsageError):
        desk.ceremony.refuse(desk.ceremony.review(desk.prompt()), Decision.APPROVE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"server_id": ServerId(bytes(32))}, Reason.WRONG_SERVER),
        ({"tenant_id": TenantId("ten_other")}, Reason.WRONG_TENANT),
        ({"user_id": UserId("usr_other")}, Reason.WRONG_USER),
        ({"device_id": DeviceId("dev_other")}, Reason.WRONG_DEVICE),
        ({"credential_id": b"another"}, Reason.CREDENTIAL_ID),
    ],
)
def test_an_offer_for_somebody_else_is_refused(desk: Desk, changes: dict[str, object], reason: Reason) -> None:
    offer = replace(desk.offer(), **changes)  # type: ignore[arg-type]
    with pytest.raises(EvidenceError) as caught:
        desk.ceremony.review(desk.prompt(offer))
    assert caught.value.reason is reason


def test_bytes_of_another_purpose_are_refused(desk: Desk) -> None:
    mine = desk.enrolment
    registration = RegistrationStatement(
        mine.server_id,
        mine.tenant_id,
        mine.user_id,
        mine.device_id,
        "reg_x",
        bytes(32),
        NOW + 60,
        bytes(32),  # type: ignore[arg-type]
    )
    decision = DecisionStatement(desk.prompt().offer, Decision.DENY)
    for encoded in (registration.encode(), decision.encode()):
        with pytest.raises(MalformedError) as caught:
            desk.ceremony.review(replace(desk.prompt(), offer=encoded))
        assert caught.value.reason is Reason.STATEMENT_MALFORMED


def test_every_damaged_byte_of_an_offer_is_refused_or_shown_as_it_is(desk: Desk) -> None:
    """A bit flip anywhere: either refused, or what is reviewed is parsed from exactly these bytes."""
    good = desk.prompt().offer
    refused = 0
    for position in range(len(good)):
        encoded = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        try:
            review = desk.ceremony.review(replace(desk.prompt(), offer=encoded))
        except KeyvouchError:
            refused += 1
        else:
            assert review.offer.encoded == encoded
    assert refused > len(good) / 3
    for encoded in (b"", good[:-1], good + b"\0", b"\xff" * 5000):
        with pytest.raises(MalformedError):
            desk.ceremony.review(replace(desk.prompt(), offer=encoded))


@pytest.mark.parametrize("changes", [{"number_digits": 1}, {"number_digits": 9}, {"prompt_id": ""}])
def test_an_impossible_prompt_is_refused(desk: Desk, changes: dict[str, object]) -> None:
    with pytest.raises(MalformedError) as caught:
        desk.ceremony.review(replace(desk.prompt(), **changes))  # type: ignore[arg-type]
    assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    "choices",
    [
        ("07",),
        ("07", "12"),
        ("07", "12", "12"),
        ("07", "12", "123"),
        ("07", "12", "ab"),
        ("07", "12", "\u0660\u0667"),
        ("07", "12", "33", "44"),
        ("07", "12", ""),
    ],
)
def test_the_legacy_choice_is_of_three_different_numbers(desk: Desk, choices: tuple[str, ...]) -> None:
    with pytest.raises(MalformedError) as caught:
        desk.ceremony.review(replace(desk.prompt(), number_choices=choices))
    assert caught.value.reason is Reason.FIELD_INVALID
    desk.ceremony.review(replace(desk.prompt(), number_choices=("07", "12", "33")))


def test_in_the_legacy_choice_one_of_the_three_is_signed_and_no_other(desk: Desk) -> None:
    review = desk.ceremony.review(replace(desk.prompt(), number_choices=("07", "12", "33")))
    user = ScriptedInteraction(pin=PIN)
    with pytest.raises(MalformedError) as caught:
        desk.ceremony.approve(review, "34", user)
    assert (caught.value.reason, user.asked) == (Reason.FIELD_INVALID, [])
    answer = desk.ceremony.approve(review, "12", given_pin())
    assert DecisionStatement.parse(answer.statement).number == "12"


def test_expiry_is_the_servers_and_is_looked_at_twice(desk: Desk) -> None:
    review = desk.ceremony.review(desk.prompt())
    desk.now = NOW + 60
    for act in (lambda: desk.ceremony.review(desk.prompt()), lambda: desk.ceremony.approve(review, "07", given_pin())):
        with pytest.raises(RefusedError) as caught:
            act()
        assert caught.value.reason is Reason.SIGN_IN_EXPIRED
    desk.now = NOW + 59
    assert desk.ceremony.approve(review, "07", given_pin()).assertion is not None


@pytest.mark.parametrize("number", ["", "7", "007", "-1", "0 7", "\u0660\u0667", "+7"])
def test_a_number_of_another_shape_asks_nobody_for_a_pin(desk: Desk, number: str) -> None:
    user = ScriptedInteraction(pin=PIN)
    with pytest.raises(MalformedError) as caught:
        desk.ceremony.approve(desk.ceremony.review(desk.prompt()), number, user)
    assert (caught.value.reason, user.asked) == (Reason.FIELD_INVALID, [])


def test_a_blocked_pin_is_explained_before_it_is_asked_for_h3(desk: Desk) -> None:
    review = desk.ceremony.review(desk.prompt())
    reasons = set()
    for _ in range(12):
        provider = BuiltInProvider(Authenticator(desk.vault, SystemClock(), SystemEntropy()))  # a new power cycle
        ceremony = SignInCeremony(
            enrolment=desk.enrolment,
            provider=lambda provider=provider: provider,
            channel_keys=SealedChannelKeys(),
            server_now=lambda: NOW,
        )
        with pytest.raises(DeviceError) as caught:
            ceremony.approve(review, "07", given_pin("000000"))
        reasons.add(caught.value.reason)
    assert reasons == {Reason.PIN_WRONG, Reason.PIN_BLOCKED}
    user = ScriptedInteraction(pin=PIN)
    with pytest.raises(DeviceError) as caught:
        desk.ceremony.approve(review, "07", user)
    assert (caught.value.reason, caught.value.retries_left, user.asked) == (Reason.PIN_BLOCKED, 0, [])
    assert "unregister" in caught.value.fix
    assert desk.ceremony.refuse(review, Decision.DENY).channel_signature
