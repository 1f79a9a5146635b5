"""The provider over security keys with a scripted person: both ceremonies, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_agent.ports import KeyCreation, KeyUse, Registration
from keyvouch_agent.roaming.provider import EnrolledKey, RoamingProvider
from support.provider_ui import ScriptedInteraction
from support.security_keys import Bench, KeyOnBench

RP_ID = "login.example.org"
CREATION = KeyCreation(bytes(32), RP_ID, b"user", "alice", (-7,))
PIN = "123456"


@dataclass
class Person(ScriptedInteraction):
    """Reads what is told, and acts upon it: `acts` maps a word of a sentence to what she does then."""

    acts: dict[str, Callable[[], object]] = field(default_factory=dict)

    def tell(self, text: str) -> None:
        super().tell(text)
        for word in [word for word in self.acts if word in text]:
            self.acts.pop(word)()

    def touch_needed(self) -> None:
        super().touch_needed()
        if (act := self.acts.pop("touch", None)) is not None:
            act()


def provider_over(bench: Bench, enrolled: EnrolledKey | None = None, **given: Any) -> RoamingProvider:
    return RoamingProvider(bench.keys, enrolled=lambda: enrolled, **{"seconds": 30.0, **given})


def make_key(provider: RoamingProvider, ui: Person, creation: KeyCreation = CREATION) -> Registration:
    with provider.open(ui, rp_id=RP_ID) as session:
        return session.create_key(creation)


def sign(provider: RoamingProvider, ui: Person, credential: CredentialId) -> Any:
    with provider.open(ui, rp_id=RP_ID) as session:
        return session.sign(KeyUse(b"c" * 32, RP_ID, credential))


def enrolled_on(bench: Bench, key: KeyOnBench, ui: Person) -> EnrolledKey:
    """An account whose key is on `key`, made while it was the only one."""
    alone = Bench().put_in(key)
    made = make_key(provider_over(alone), ui)
    ui.asked.clear()
    ui.told.clear()
    key.commands.clear()
    return EnrolledKey(made.credential_id, RP_ID, "alice", key.name)


def failure(action: Callable[[], object]) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        action()
    assert caught.value.message
    assert caught.value.fix
    return caught.value


def outcome(action: Callable[[], object]) -> Reason | str:
    """Why it failed, or that it is done."""
    try:
        action()
    except DeviceError as error:
        return error.reason
    return "done"
