"""Sign-in on the device: from the bytes of an offer to a signed decision.

    1  parse the offer from the bytes received; what is shown comes from these and from nothing else
    2  hold it against the enrolment: server, tenant, user, device, credential
    3  has it expired, by the server's time?
       -- the person is shown the review and decides --
    4  approve: the number has the right shape, and the offer has not expired meanwhile
    5  the PIN can still be given
    6  the provider signs SHA-256("keyvouch/sign-in/v1" 00 {offer, approve, number}) with PIN and presence
    7  deny, report: the channel key signs the same kind of statement; no PIN, so nothing can prevent a denial

The number is never sent to the device: a wrong one makes a signature that does not verify. Where a tenant's policy has
the legacy choice it comes with two others, and the person picks; nobody here knows which is right. What is not here:
showing, asking, sending, keeping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from keyvouch.errors import DeviceError, EvidenceError, MalformedError, Reason, RefusedError, UsageError
from keyvouch.statement import Decision, DecisionStatement, Purpose, SignInOffer, challenge, check_offer
from keyvouch_agent.agent_ports import Answer, Prompt
from keyvouch_agent.channel_keys import ChannelKeys, prove
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.pin_standing import check_pin_usable
from keyvouch_agent.ports import KeyUse, Provider, ProviderInteraction, ProviderSession

__all__ = ["Review", "SignInCeremony"]

MIN_DIGITS, MAX_DIGITS = 2, 8
CHOICES = 3
_LONGEST_PROMPT_ID = 128


@dataclass(frozen=True, slots=True)
class Review:
    """A prompt that may be shown: `offer` was parsed from `prompt.offer` and fits the enrolment."""

    prompt: Prompt
    offer: SignInOffer

    @property
    def expires_at(self) -> int:
        """The signed expiry, or the prompt's where that is earlier; seconds on the server's clock."""
        return min(self.offer.expires_at, self.prompt.expires_at or self.offer.expires_at)


class SignInCeremony:
    """Decisions for one enrolment.

    `provider` gives the holder of its key, `channel_keys` knows the key that signs refusals, `server_now` tells the
    server's time in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        enrolment: Enrolment,
        provider: Callable[[], Provider],
        channel_keys: ChannelKeys,
        server_now: Callable[[], float],
    ) -> None:
        self._enrolment = enrolment
        self._provider = provider
        self._channel_keys = channel_keys
        self._server_now = server_now
        self._under_way: tuple[Review, ProviderSession] | None = None
        self._withdrawn: Review | None = None

    def review(self, prompt: Prompt) -> Review:
        """Steps 1 to 3.

        Raises `MalformedError(STATEMENT_MALFORMED, FIELD_INVALID)`, `EvidenceError` (WRONG_SERVER, WRONG_TENANT,
        WRONG_USER, WRONG_DEVICE, CREDENTIAL_ID), `RefusedError(SIGN_IN_EXPIRED)`.
        """
        offer = SignInOffer.parse(prompt.offer)
        mine = self._enrolment
        check_offer(
            offer,
            server_id=mine.server_id,
            tenant_id=mine.tenant_id,
            user_id=mine.user_id,
            device_id=mine.device_id,
        )
        if offer.credential_id != mine.credential_id:
            raise _refuse_key()
        if not 1 <= len(prompt.prompt_id) <= _LONGEST_PROMPT_ID or not _is_answerable(prompt):
            raise MalformedError(
                Reason.FIELD_INVALID,
                "The prompt has no proper id, or asks for a number that cannot be given.",
                fix="Nothing was signed. Check that the agent and the server run the same version.",
            )
        review = Review(prompt, offer)
        self.check_open(review)
        return review

    def check_open(self, review: Review) -> None:
        """Raise `RefusedError(SIGN_IN_EXPIRED)` once the server would not take an answer any more."""
        if self._server_now() >= review.expires_at:
            raise RefusedError(
                Reason.SIGN_IN_EXPIRED,
                "The sign-in request has expired.",
                fix="Begin the sign-in again in the app, if it was you.",
            )

    def check_number(self, review: Review, number: str) -> None:
        """Raise `MalformedError(FIELD_INVALID)` for anything but the digits asked for, or one of the choices."""
        digits, choices = review.prompt.number_digits, review.prompt.number_choices
        if choices and number not in choices:
            raise MalformedError(
                Reason.FIELD_INVALID,
                f"The number is one of {', '.join(choices)}. Nothing was signed.",
                fix="Choose the one that the app or browser shows. If it shows none of them, deny the request.",
                metadata={"choices": " ".join(choices)},
            )
        if len(number) != digits or not (number.isascii() and number.isdigit()):
            raise MalformedError(
                Reason.FIELD_INVALID,
                f"The number has exactly {digits} digits. Nothing was signed.",
                fix="Type the number that the app or browser shows, with its leading zeros.",
                metadata={"digits": str(digits)},
            )

    def approve(self, review: Review, number: str, interaction: ProviderInteraction) -> Answer:
        """Steps 4 to 6. Blocks; the PIN comes from `interaction`.

        Raises what `check_number` and `check_open` raise, and the provider's `DeviceError`.
        """
        self._withdrawn = None
        self.check_number(review, number)
        self.check_open(review)
        provider = self._provider()
        check_pin_usable(provider.capabilities())
        statement = DecisionStatement(review.prompt.offer, Decision.APPROVE, number).encode()
        use = KeyUse(
            challenge(Purpose.SIGN_IN, statement),
            self._enrolment.rp_id,
            self._enrolment.credential_id,
        )
        with provider.open(interaction, rp_id=self._enrolment.rp_id) as session:
            self._under_way = (review, session)
            if self._is_withdrawn(review):  # while the key was looked for
                session.cancel()
            try:
                assertion = session.sign(use)
            finally:
                self._under_way = None
        if assertion.credential_id != self._enrolment.credential_id:
            raise DeviceError(
                Reason.DEVICE_FAILED,
                "The key provider signed with another key than the enrolled one.",
                fix="Nothing was sent. Try again; if it goes on, enrol this device again.",
            )
        return Answer(review.prompt.prompt_id, statement, assertion=assertion)

    def withdraw(self, review: Review) -> None:
        """From any thread: end an approval that waits for the person; it fails with USER_CANCELLED then."""
        self._withdrawn, under_way = review, self._under_way
        if under_way is not None and under_way[0] is review:
            under_way[1].cancel()

    def _is_withdrawn(self, review: Review) -> bool:
        return self._withdrawn is review

    def refuse(self, review: Review, decision: Decision) -> Answer:
        """Step 7: deny or report. Blocks while the channel key signs.

        Raises `UsageError` for an approval, and the channel key's `DeviceError`.
        """
        if decision is Decision.APPROVE:
            raise UsageError("An approval needs the number and the PIN.", fix="Call approve.")
        statement = DecisionStatement(review.prompt.offer, decision).encode()
        signature = prove(self._channel_keys.load(self._enrolment.channel_key), Purpose.SIGN_IN, statement)
        return Answer(review.prompt.prompt_id, statement, channel_signature=signature)


def _is_answerable(prompt: Prompt) -> bool:
    """Whether a person can give the number that is asked for."""
    digits, choices = prompt.number_digits, prompt.number_choices
    if not MIN_DIGITS <= digits <= MAX_DIGITS:
        return False
    numbers = all(len(one) == digits and one.isascii() and one.isdigit() for one in choices)
    return not choices or (numbers and len(choices) == len(set(choices)) == CHOICES)


def _refuse_key() -> EvidenceError:
    return EvidenceError(
        Reason.CREDENTIAL_ID,
        "The request asks for another key than the one this device is enrolled with.",
        fix="Nothing was signed. Tell your administrator.",
    )
