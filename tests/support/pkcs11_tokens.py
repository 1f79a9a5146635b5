"""PKCS#11 for tests: libraries that end with the test, PIN entries with their answers ready, vaults over a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pkcs11 import Attribute, ObjectClass

from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.vault import Credential, KeyRequest, User
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.pkcs11.module_path import known_module, trusted_module

if TYPE_CHECKING:
    from keyvouch_agent.vaults.pkcs11.library import TokenLibrary
    from keyvouch_agent.vaults.pkcs11.uri import TokenUri
    from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault
    from keyvouch_agent.vaults.private_directory import FileSteps
    from keyvouch_bench.piv_card import VirtualPivCard

__all__ = [
    "Typed",
    "card_library",
    "card_vault",
    "enrolled",
    "kept",
    "key_for",
    "module_of",
    "pins_shown",
    "proves_possession",
    "reason_of",
]


class Typed:
    """A `PinEntry` in which somebody types these, one after the other; None is the wish not to."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.shown: list[int | None] = []
        """The tries left that were shown, each time."""
        self.on_pad_shown: list[int | None] = []

    def ask(self, retries_left: int | None) -> str | None:
        """Type the next answer."""
        self.shown.append(retries_left)
        return self.answers.pop(0)

    def on_pad(self, retries_left: int | None) -> None:
        """Somebody else types."""
        self.on_pad_shown.append(retries_left)


def module_of(name: str) -> Path:
    """The real path of a well-known module, which must be installed."""
    path = known_module(name).installed()
    if path is None:
        pytest.fail(f"{name} is not installed: apt-get install {known_module(name).package}", pytrace=False)
    return trusted_module(str(path), environment={})


@contextmanager
def card_library(name: str) -> Iterator[TokenLibrary]:
    """A library, finalised afterwards, so that the next test's sees its own tokens."""
    from keyvouch_agent.vaults.pkcs11.library import TokenLibrary

    library = TokenLibrary(module_of(name))
    try:
        yield library
    finally:
        library.close()


@contextmanager
def card_vault(
    library: TokenLibrary,
    path: Path,
    wanted: TokenUri | None = None,
    *,
    steps: FileSteps | None = None,
    pin_always: bool = False,
) -> Iterator[Pkcs11Vault]:
    """A vault over one token."""
    from keyvouch_agent.vaults.pkcs11.account import CardAccount
    from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault

    vault = Pkcs11Vault(CardAccount.open(path, library, wanted, steps=steps), SystemEntropy(), pin_always=pin_always)
    try:
        yield vault
    finally:
        vault.close()


def key_for(
    rp_id: str = "login.example.org",
    user: bytes = b"user",
    *,
    algorithm: int = -7,
    discoverable: bool = True,
    **more: Any,
) -> KeyRequest:
    """A request for a key."""
    return KeyRequest(rp_id, User(user, "alice", "Alice"), algorithm, discoverable, **more)


def kept(vault: Pkcs11Vault, request: KeyRequest | None = None) -> Credential:
    """Have a key made, and kept."""
    credential = vault.create_key(request or key_for())
    vault.keep(credential.id)
    return credential


def proves_possession(vault: Pkcs11Vault, credential: Credential) -> None:
    """Sign, and verify."""
    signature = vault.sign(credential.id, b"message")
    CoseKey(credential.public_key).verify_signature(signature=signature, message=b"message")


def enrolled(vault: Pkcs11Vault, card: VirtualPivCard) -> Credential:
    """Show the card its PIN, and have a key made."""
    vault.verify_user(Typed(card.pin))
    return kept(vault)


def pins_shown(card: VirtualPivCard) -> int:
    """How often a PIN was shown to the card. VERIFY without one only asks for the tries."""
    return sum(entry.name == "VERIFY" and entry.length > 0 for entry in card.journal)


def reason_of(action: Callable[[], object]) -> Reason:
    """Why it fails."""
    with pytest.raises(DeviceError) as caught:
        action()
    return caught.value.reason


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256."""


def objects(vault: Pkcs11Vault, kind: ObjectClass = ObjectClass.PRIVATE_KEY) -> list[Any]:
    """What is on the token, seen through the vault's own login."""
    return vault._on_token(lambda session: list(session.get_objects({Attribute.CLASS: kind})))
