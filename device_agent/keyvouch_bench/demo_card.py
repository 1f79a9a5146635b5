"""The smartcard of the demonstration: a virtual PIV card, issued to Ada, on a virtual reader of a real pcscd.

    with issued_card(folder) as card:
        card.environment       what a program needs to find it
        card.root              who vouches for it: a PEM file for the server

It is no hardware: its keys are in this process. What an agent sees of it comes through OpenSC, as from a real one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyvouch.errors import Reason, UnavailableError
from keyvouch_agent.vaults.pkcs11.failures import require_library
from keyvouch_agent.vaults.pkcs11.module_path import default_module
from keyvouch_bench.demo_people import PIN
from keyvouch_bench.demo_security_key import COMPILED
from keyvouch_bench.pcscd import PACKAGES, PrivatePcscd

__all__ = ["MAKER", "IssuedCard", "issued_card"]

MAKER: Final = "Demonstration cards"
"""What the server of the demonstration calls the maker of the card."""


@dataclass(frozen=True, slots=True)
class IssuedCard:
    """The card in its reader. Programs with `environment` have no other readers."""

    reader: str
    root: Path
    environment: Mapping[str, str]


@contextmanager
def issued_card(folder: Path) -> Iterator[IssuedCard]:
    """Have a card made and issued, and put it in. Raises `UnavailableError` or `DeviceError` where that cannot be."""
    require_library()
    default_module()
    if importlib.util.find_spec("smartcard") is None:
        raise UnavailableError(
            Reason.CONFIGURATION,
            "There is no way to a card reader: pyscard is not installed.",
            fix=f"Run apt-get install {PACKAGES} {COMPILED} and try again.",
        )
    from keyvouch_bench.piv_card import Authority, Holder, Issue, VirtualPivCard  # noqa: PLC0415 - heavy
    from keyvouch_bench.piv_card.attestation import BATCH  # noqa: PLC0415
    from keyvouch_bench.piv_card.reader import PivReader  # noqa: PLC0415 - needs pyscard

    batch, issuer = Authority.root(BATCH), Authority.root("Demonstration organisation")
    root = folder / "card-maker.pem"
    root.write_bytes(batch.pem)
    card = VirtualPivCard.blank(batch)
    card.personalise(issuer, Issue(Holder("Ada Lovelace", "ada"), pin=PIN))
    with PrivatePcscd() as pcscd:
        pcscd.claim()
        with PivReader(card, pcscd) as reader:
            yield IssuedCard(reader.reader, root, pcscd.environment)
