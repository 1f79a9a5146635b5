"""A virtual PIV card: the application, what it keeps, a journal, and faults.

    card = VirtualPivCard.blank(batch)              # as from the maker; `batch` vouches for its attestation key
    card.personalise(authority)                     # as an organisation issues it
    card.answer(bytes.fromhex("00A4040005A000000308"))    # without any reader
    card.faults.remove_at(2)                        # see `faults`

It protects nothing: its keys lie in memory and, if it has a folder, in a plain file there.
What is *not* here: the reader it is put in (`reader`).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from keyvouch_bench.piv_card import attestation
from keyvouch_bench.piv_card.application import PivApplication
from keyvouch_bench.piv_card.authorities import Authority
from keyvouch_bench.piv_card.faults import CardRemovedError, Faults, Turn
from keyvouch_bench.piv_card.identifiers import CERTIFICATE_OBJECTS, Instruction
from keyvouch_bench.piv_card.issuing import Issue, issue
from keyvouch_bench.piv_card.objects import certificate_in
from keyvouch_bench.piv_card.state import DEFAULT_TRIES, CardState, load, save

__all__ = ["Entry", "VirtualPivCard"]

CARD_FILE: Final = "card.json"
_LARGEST_SERIAL: Final = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One APDU that came: its header, how many bytes came behind header and length, the status word. Never the data."""

    instruction: int
    p1: int
    p2: int
    length: int
    status: int

    @property
    def name(self) -> str:
        """The instruction's name, or its number."""
        known = self.instruction in set(Instruction)
        return Instruction(self.instruction).name if known else f"{self.instruction:02X}"


class VirtualPivCard:
    """A card (`keyvouch_agent.transports.vpcd.Card`)."""

    def __init__(
        self, kept: CardState, *, folder: Path | None = None, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        self.state = kept
        self.folder = folder
        self.faults = Faults()
        self.touch = True
        """Whether it is touched whenever it asks."""
        self.journal: list[Entry] = []
        self._entropy = entropy
        self._lock = threading.Lock()
        self._application = PivApplication(kept, entropy=entropy, touched=lambda: self.touch)
        self._waiting: asyncio.Event | None = None

    @classmethod
    def blank(
        cls,
        batch: Authority,
        *,
        folder: Path | None = None,
        serial: int | None = None,
        pin_tries: int = DEFAULT_TRIES,
        puk_tries: int = DEFAULT_TRIES,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> VirtualPivCard:
        """A new card as its maker leaves it. It is kept in `folder` if there is one."""
        number = int.from_bytes(entropy(4), "big") & _LARGEST_SERIAL or 1 if serial is None else serial
        made = CardState(number)
        made.pin.tries = made.pin.left = pin_tries
        made.puk.tries = made.puk.left = puk_tries
        attestation.provide(made, batch)
        card = cls(made, folder=folder, entropy=entropy)
        card.save()
        return card

    @classmethod
    def kept(cls, folder: Path) -> VirtualPivCard:
        """The card in that folder. Raises `UnavailableError` if there is none."""
        return cls(load(folder / CARD_FILE), folder=folder)

    @property
    def pin(self) -> str:
        """Its PIN."""
        return self.state.pin.value.rstrip(b"\xff").decode()

    @property
    def puk(self) -> str:
        """Its PUK."""
        return self.state.puk.value.rstrip(b"\xff").decode(errors="replace")

    @property
    def count(self) -> Counter[str]:
        """How often each instruction came."""
        return Counter(entry.name for entry in self.journal)

    def certificate(self, slot: int) -> x509.Certificate:
        """The certificate of a slot. Raises `KeyError` if there is none that can be read."""
        found = certificate_in(self.state.objects.get(CERTIFICATE_OBJECTS[slot], b""))
        if found is None:
            raise KeyError(f"no certificate for slot {slot:02x}")
        return found

    def personalise(self, authority: Authority, wanted: Issue | None = None) -> None:
        """Issue it: keys, certificates of `authority`, the objects of the data model, PIN and PUK of its own."""
        with self._lock:
            issue(self.state, authority, wanted or Issue(), entropy=self._entropy)
            self.save()

    def block_pin(self) -> None:
        """As after too many wrong PINs."""
        with self._lock:
            self.state.pin.left = 0
            self.save()

    def block_puk(self) -> None:
        """As after too many wrong PUKs."""
        with self._lock:
            self.state.puk.left = 0
            self.save()

    def reset(self) -> None:
        """Take the power away, and give it back: what was under way and the security status are lost."""
        with self._lock:
            self._application.power_cycle()

    def answer(self, apdu: bytes) -> bytes:
        """Answer a command APDU. No fault is on this way."""
        with self._lock:
            answer = self._application.answer(apdu)
            self._note(apdu, answer)
            self.save()
            return answer

    def save(self) -> None:
        """Write it to its folder, if it has one. It does that itself after each command."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            save(self.state, self.folder / CARD_FILE)

    async def transmit(self, apdu: bytes) -> bytes:
        """Answer a command APDU as the reader has it, with the faults that were ordered."""
        plan = self.faults.next()
        if plan.seconds:
            await self._wait(plan.seconds)
        match plan.turn:
            case Turn.REMOVED:
                raise CardRemovedError
            case Turn.FAILED:
                self._note(apdu, plan.answer)
                return plan.answer
            case _:
                answer = self.answer(apdu)
        if plan.turn is Turn.REMOVED_AFTER:
            raise CardRemovedError
        return plan.answer if plan.turn is Turn.GARBLED else answer

    async def power_cycle(self) -> None:
        """Lose the power, or be reset."""
        self.reset()

    def give_up(self) -> None:
        """The reader is gone: a slow answer need not be waited for."""
        if self._waiting is not None:
            self._waiting.set()

    async def _wait(self, seconds: float) -> None:
        self._waiting = asyncio.Event()
        try:
            await asyncio.wait_for(self._waiting.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self._waiting = None

    def _note(self, apdu: bytes, answer: bytes) -> None:
        instruction, p1, p2 = apdu[1:4].ljust(3, b"\0")
        self.journal.append(Entry(instruction, p1, p2, max(len(apdu) - 5, 0), int.from_bytes(answer[-2:], "big")))
