"""What is in the readers by PC/SC's own word, for when a PKCS#11 module shows no token: is a card there, who holds it?

Needs pyscard; without it nothing is known. What is *not* here: using a card (`library`, `piv`).
"""

from __future__ import annotations

import importlib

__all__ = ["held_by_others", "with_cards"]


def with_cards() -> list[str]:
    """The names of the readers that have a card in them."""
    return [reader for reader, _ in _states()]


def held_by_others() -> list[str]:
    """Those whose card another program keeps to itself, as gpg's scdaemon does."""
    return [reader for reader, exclusive in _states() if exclusive]


def _states() -> list[tuple[str, bool]]:
    """Readers with a card, and whether it is used exclusively."""
    try:
        scard = importlib.import_module("smartcard.scard")
    except ImportError:
        return []
    result, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    if result != scard.SCARD_S_SUCCESS:
        return []
    try:
        result, readers = scard.SCardListReaders(context, [])
        if result != scard.SCARD_S_SUCCESS or not readers:
            return []
        asked = [(reader, scard.SCARD_STATE_UNAWARE) for reader in readers]
        result, states = scard.SCardGetStatusChange(context, 0, asked)
        if result != scard.SCARD_S_SUCCESS:
            return []
        return [
            (str(reader), bool(state & scard.SCARD_STATE_EXCLUSIVE))
            for reader, state, _ in states
            if state & scard.SCARD_STATE_PRESENT
        ]
    finally:
        scard.SCardReleaseContext(context)
