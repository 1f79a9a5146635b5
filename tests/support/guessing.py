"""Somebody with a person's device and PIN, or with the person's patience, who guesses numbers (P4).

Every attempt begins a sign-in from a new address with a new key and, where one is begun, types a number that was drawn.
"""

from __future__ import annotations

import random
from collections import Counter

from keyvouch.errors import KeyvouchError, Reason
from support.live_server import LiveServer, Person
from support.strangers import Answerer, Caller


async def guess(live: LiveServer, person: Person, attempts: int, *, seconds: int, seed: int) -> Counter[str]:
    """Attempt so often, `seconds` of the server's clock apart; returns how often what came of it."""
    device, source, outcomes = await Answerer.of(live, person), random.Random(seed), Counter[str]()
    caller = Caller.at(live, "198.51.100.1")
    for _ in range(attempts):
        live.clock.advance(seconds)
        caller.address = f"198.51.{source.randrange(256)}.{source.randrange(256)}"
        try:
            begun = await caller.begins(person.username)
        except KeyvouchError as error:
            outcomes[error.reason.value] += 1
            continue
        number = str(source.randrange(10 ** len(begun.sign_in.number))).zfill(len(begun.sign_in.number))
        refusal = (await device.approves(begun, number)).refusal
        outcomes["accepted" if refusal is None else refusal.reason.value] += 1
        if refusal is not None and refusal.reason is not Reason.NUMBER_MISMATCH:
            raise refusal
    return outcomes
