"""A virtual PIV card in a reader of the real pcscd, for any program that uses PC/SC or PKCS#11.

    with PrivatePcscd() as pcscd, PivReader(card, pcscd) as piv:
        subprocess.run(["pkcs11-tool", "--module", OPENSC_MODULE, "-O"], env={**os.environ, **piv.environment})
        piv.remove()

What is *not* here: pcscd (`keyvouch_bench.pcscd`), and the card (`card`). pyscard is needed to see that pcscd has
noticed: `pip install 'keyvouch[bench,pcsc]'`.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Final, Self

from keyvouch_agent.transports.vpcd import VirtualCard
from keyvouch_bench.fido_reader import wait_for_card
from keyvouch_bench.pcscd import READER, PrivatePcscd
from keyvouch_bench.piv_card.card import VirtualPivCard

__all__ = ["OPENSC_MODULE", "OPENSC_PACKAGES", "PivReader"]

OPENSC_MODULE: Final = "opensc-pkcs11.so"
"""By its bare name the loader finds it in the folder of the machine's architecture."""

OPENSC_PACKAGES: Final = "opensc opensc-pkcs11"
"""The Debian packages with the tools and the module."""

_END_SECONDS: Final = 20.0


class PivReader:
    """A card in one slot of the private reader while inside a `with`."""

    def __init__(self, card: VirtualPivCard, pcscd: PrivatePcscd, *, slot: int = 0) -> None:
        self.card = card
        self._pcscd = pcscd
        self._slot = slot
        self._inside: _Insertion | None = None

    @property
    def reader(self) -> str:
        """The reader's name as pcscd has it."""
        return f"{READER} 00 {self._slot:02X}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to find this reader and no other."""
        return self._pcscd.environment

    @property
    def inserted(self) -> bool:
        """Whether the card is in the reader. A fault may have taken it out."""
        return self._inside is not None and self._inside.lasts

    def insert(self) -> None:
        """Put the card in, and wait until pcscd has seen it. Nothing happens if it is there."""
        if self.inserted:
            return
        self.remove()
        self._inside = _Insertion(self.card, self._pcscd, self._slot)
        wait_for_card(self.reader, present=True)

    def remove(self) -> None:
        """Take the card out, and wait until pcscd has missed it. Nothing happens if it never was there."""
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.end()
            wait_for_card(self.reader, present=False)

    def await_removal(self) -> None:
        """Wait until pcscd has missed a card that a fault took out."""
        wait_for_card(self.reader, present=False)

    def __enter__(self) -> Self:
        self.insert()
        return self

    def __exit__(self, *failure: object) -> None:
        self.remove()


class _Insertion:
    """One stay of the card in the reader, on an event loop and a thread of its own."""

    def __init__(self, card: VirtualPivCard, pcscd: PrivatePcscd, slot: int) -> None:
        link = pcscd.connect(slot)
        self._loop = asyncio.new_event_loop()
        self._serving = self._loop.create_task(VirtualCard(card).serve(link))
        self._thread = threading.Thread(target=self._run, name="virtual PIV card", daemon=True)
        self._thread.start()

    @property
    def lasts(self) -> bool:
        """Whether the card is still there."""
        return self._thread.is_alive()

    def end(self) -> None:
        """Take the card out, whatever it is doing."""
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        self._loop.close()
