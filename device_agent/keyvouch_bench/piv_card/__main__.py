"""Runs any program with a virtual PIV card in a card reader, through a real pcscd of their own.

    python -m keyvouch_bench.piv_card --folder card --issue "Ada Lovelace" -- pkcs11-tool --module opensc-pkcs11.so -O

The card is kept in the folder, beside the root that vouches for it (`piv-root.pem`) and the authority that issues it
(`issuer-root.pem`); a new one is made if there is none. `{reader}` becomes the name of the reader, `{folder}`
the folder. The program finds the pcscd by PCSCLITE_CSOCK_NAME in its environment, and the reader there as
KEYVOUCH_PIV_READER.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from keyvouch.errors import KeyvouchError
from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.piv_card import Authority, Holder, Issue, VirtualPivCard
from keyvouch_bench.piv_card.attestation import BATCH
from keyvouch_bench.piv_card.card import CARD_FILE
from keyvouch_bench.piv_card.identifiers import (
    AUTHENTICATION,
    CARD_AUTHENTICATION,
    KEY_MANAGEMENT,
    SIGNATURE,
    KeyAlgorithm,
)
from keyvouch_bench.piv_card.reader import PivReader

_ALGORITHMS: Final = {"p256": KeyAlgorithm.P256, "p384": KeyAlgorithm.P384, "rsa2048": KeyAlgorithm.RSA_2048}
_SLOTS: Final = (AUTHENTICATION, SIGNATURE, KEY_MANAGEMENT, CARD_AUTHENTICATION)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of the program."""
    arguments = _parser().parse_args(argv)
    try:
        with ExitStack() as stack:
            folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            card = _card(folder, arguments)
            pcscd = stack.enter_context(PrivatePcscd())
            pcscd.claim()
            piv = stack.enter_context(PivReader(card, pcscd))
            _say(f"A virtual PIV card is in the reader {piv.reader!r}. It protects nothing.")
            _say(f"PIN {card.pin}, PUK {card.puk}; {folder / 'piv-root.pem'} vouches for its attestations.")
            places = {"{reader}": piv.reader, "{folder}": str(folder)}
            environment = {**os.environ, **piv.environment, "KEYVOUCH_PIV_READER": piv.reader}
            words = [places.get(word, word) for word in arguments.command]
            return subprocess.run(words, env=environment, check=False).returncode  # noqa: S603 - the caller's own
    except KeyvouchError as error:
        _say(str(error))
        return 1


def _card(folder: Path, arguments: argparse.Namespace) -> VirtualPivCard:
    folder.mkdir(parents=True, exist_ok=True)
    batch = Authority.kept(folder / "batch.pem", BATCH)
    (folder / "piv-root.pem").write_bytes(batch.pem)
    known = (folder / CARD_FILE).exists()
    card = VirtualPivCard.kept(folder) if known else VirtualPivCard.blank(batch, folder=folder)
    if arguments.issue:
        issuer = Authority.kept(folder / "issuer.pem", "Keyvouch Test Organisation")
        (folder / "issuer-root.pem").write_bytes(issuer.pem)
        algorithm = _ALGORITHMS[arguments.algorithm]
        holder = Holder(arguments.issue, arguments.upn)
        card.personalise(issuer, Issue(holder, dict.fromkeys(_SLOTS, algorithm)))
    return card


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keyvouch_bench.piv_card", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--folder", type=Path, help="keep the card there (else it is gone afterwards)")
    parser.add_argument("--issue", metavar="NAME", help="issue the card to this person, with new keys")
    parser.add_argument("--upn", default=Holder().upn, help="the user principal name in the certificates")
    parser.add_argument(
        "--algorithm", choices=sorted(_ALGORITHMS), default="p256", help="of the keys it is issued with"
    )
    parser.add_argument("command", nargs="+", help="the program and its arguments, after --")
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
