"""Changed commands for an authenticator over a card: whatever comes, it is locked when nobody was verified."""

from __future__ import annotations

from random import Random

import pytest

from fuzz.authenticator_commands import ALL_PERMISSIONS, COMMANDS_PER_TOKEN, ENABLED, World, hammer
from keyvouch_agent.authenticator.engine import AuthenticatorOptions
from keyvouch_agent.authenticator.status import Status
from support.authenticators import PIN, RP_ID, USER, Bench, ScriptedEntry, credential_id
from support.memory_vault import MemoryCard

TYPED = (PIN,) * 12 + ("000000", None, TimeoutError)
BOB = {"id": b"user 2", "name": "bob"}


class CardWorld(World):
    """A card with credentials, and somebody who does not always type the right PIN."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.card = MemoryCard(PIN, pin_gated=chance.random() < 0.6, on_pad=chance.random() < 0.1)
        options = AuthenticatorOptions(u2f=True, make_cred_uv_not_required=chance.random() < 0.5, reset_window=None)
        self.bench = Bench(self.card, protocol=chance.choice((1, 2)), options=options)
        self.bench.entry = self.entry = ScriptedEntry()
        self.credentials = [
            self._made(RP_ID, USER, rk=True),
            self._made(RP_ID, BOB, rk=True),
            self._made(RP_ID, USER, rk=False),
            self._made("other.example", USER, rk=True),
        ]
        self.before = self.card.snapshot
        self._token, self._uses = b"", COMMANDS_PER_TOKEN

    def _made(self, rp_id: str, user: dict[str, object], *, rk: bool) -> bytes:
        given = {"k2": {"id": rp_id}, "k3": user, "k6": ENABLED if rk else {"hmac-secret": True}, "k7": {"rk": rk}}
        status, response = self.bench.make(self.bench.uv_token(rp_id=rp_id), **given)
        assert status is Status.SUCCESS, status.name
        return credential_id(response)

    @property
    def is_worn_out(self) -> bool:
        """Told before every command: somebody types, and what is open must be so for a reason."""
        tokens, user = self.bench.authenticator._tokens, self.bench.authenticator._user
        assert not self.card.is_unlocked or tokens.opens_keys or user.has_pending_assertions
        self.entry.pin = self.chance.choice(TYPED)
        return self.card.retries < 2 or not self.card.discoverable()  # reset

    def token(self) -> bytes:
        self._uses += 1
        if self._uses > COMMANDS_PER_TOKEN:
            self._uses = 0
            self._token = self._typed_token(ALL_PERMISSIONS, RP_ID if self.chance.random() < 0.7 else "other.example")
        return self._token or bytes(32)

    def management_token(self) -> bytes:
        self.wear_token()
        return self._typed_token(0x34, None) or bytes(32)

    def _typed_token(self, permissions: int, rp_id: str | None) -> bytes:
        self.entry.pin = PIN
        return self.bench.ask_uv_token(permissions, rp_id)[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_changed_commands_for_a_card(seed: int) -> None:
    findings = hammer(2_500, seed, CardWorld)
    assert findings.runs == 2_500
    assert findings.statuses["SUCCESS"] > 200
    assert {"MAKE_CREDENTIAL", "GET_ASSERTION", "CREDENTIAL_MANAGEMENT", "CLIENT_PIN"} <= findings.commands.keys()
    assert findings.statuses["UV_INVALID"] + findings.statuses["OPERATION_DENIED"] > 0
