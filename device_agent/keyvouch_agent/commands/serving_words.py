"""What `authenticator serve` says at its start: the truth about the authenticator, before the first client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from keyvouch_agent.served import Served, ServeWish, Transport, VaultKind
from keyvouch_agent.served_card import ServedCard

__all__ = ["GRANTS_EVERYTHING", "what_it_is"]

GRANTS_EVERYTHING: Final = (
    "WARNING: --presence auto. Every request is granted at once, nobody is asked, and any program that reaches this "
    "authenticator can use its keys. This is for test benches only."
)
_PIN_HELD: Final = (
    "WARNING: the card's PIN is kept in this program's memory and shown to the card for whoever asks. A wrong one is "
    "not tried again."
)


def what_it_is(served: Served, wish: ServeWish, *, holds_pin: bool = False) -> Iterator[str]:
    """Sentences."""
    yield from _keys(served, wish)
    yield from _verification(served, wish, holds_pin=holds_pin)
    if wish.transport is Transport.PCSC:
        host, port = wish.reader
        yield f"It goes into the virtual smartcard reader at {host}:{port}. Every user of this machine can reach that."
    else:
        yield f"It is plugged in as a virtual USB key ({wish.uhid}). Every program that may use security keys sees it."


def _keys(served: Served, wish: ServeWish) -> Iterator[str]:
    """What holds them, and how well."""
    if served.card is not None:
        yield from _on_a_card(served.card)
    elif wish.vault is VaultKind.SOFTWARE:
        yield (
            f"An authenticator in software: its keys are in a file of yours in {served.folder}. Whoever can read that "
            f"file can copy {'it and guess the PIN' if wish.always_verify else 'them'}; this is no hardware."
        )
    elif served.is_emulated:
        yield "An authenticator in an emulated TPM: whoever has that program's host has its keys."
    else:
        yield "An authenticator in this computer's TPM: its keys cannot be copied, and the TPM counts wrong PINs."


def _on_a_card(card: ServedCard) -> Iterator[str]:
    which = f"{card.label!r}, serial number {card.serial or 'unknown'}"
    if card.is_emulated:
        yield f"An authenticator on an emulated token ({which}): its keys are in files, and nothing counts wrong PINs."
    else:
        yield f"An authenticator on the card {which}, as it calls itself. How well it keeps keys is for it to prove."
    if card.shared_key:
        yield (
            f"WARNING: --shared-key. All sites get the same public key, that of the card's existing key "
            f"({card.shared_key}): they can tell by it that their users are one person."
        )
    else:
        yield "Each site gets a key pair of its own, which the token makes. It destroys one only behind its PIN."
    yield "It knows neither U2F nor hmac-secret nor large blobs."


def _verification(served: Served, wish: ServeWish, *, holds_pin: bool) -> Iterator[str]:
    if served.card is not None:
        yield "Every use takes the card's own PIN, which is asked for here; no client sees it, and none can change it."
        if holds_pin:
            yield _PIN_HELD
    elif wish.always_verify:
        yield "Every use takes the PIN. A client sets the first one; before that no key can be made."
    else:
        yield "Without a PIN set, anybody at this computer can use the keys. Clients can set one."
