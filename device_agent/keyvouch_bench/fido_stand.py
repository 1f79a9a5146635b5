"""Runs any program against an emulated security key on a card reader, through a real pcscd of their own.

    python -m keyvouch_bench.fido_stand -- pytest tests/device --reader {reader} --controller {control} --pico-port 1

`{reader}` becomes the reader's name, `{control}` the address at which the key's power and touch are switched
(`keyvouch_bench.bench_control`). The program finds the pcscd by PCSCLITE_CSOCK_NAME in its environment; the reader and
the address are there too, as KEYVOUCH_FIDO_READER and KEYVOUCH_FIDO_CONTROL. Nothing of it is left afterwards, but for
the key itself if `--key` says where it is to be kept.
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

from keyvouch.errors import KeyvouchError
from keyvouch_bench.bench_control import BenchControl
from keyvouch_bench.fido_reader import ReaderKey
from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.virtual_fido import ON_A_READER, VirtualFido


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of the program."""
    arguments = _parser().parse_args(argv)
    command: list[str] = arguments.command
    try:
        with ExitStack() as stack:
            folder = arguments.key or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            pcscd = stack.enter_context(PrivatePcscd())
            pcscd.claim()
            key = stack.enter_context(VirtualFido.make(folder / "vault", options=ON_A_READER))
            fido = stack.enter_context(ReaderKey(key, pcscd))
            control = stack.enter_context(BenchControl(fido))
            _say(f"An emulated security key is on the reader {fido.reader!r}. It protects nothing.")
            _say(f"Power and touch: {control.url}/usb1. pcscd: {pcscd.socket_path}")
            places = {"{reader}": fido.reader, "{control}": control.url}
            environment = {**os.environ, **pcscd.environment, "KEYVOUCH_FIDO_READER": fido.reader}
            environment["KEYVOUCH_FIDO_CONTROL"] = control.url
            words = [places.get(word, word) for word in command]
            return subprocess.run(words, env=environment, check=False).returncode  # noqa: S603 - the caller's own
    except KeyvouchError as error:
        _say(str(error))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keyvouch_bench.fido_stand", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--key", type=Path, metavar="FOLDER", help="keep the key there (else it is gone afterwards)")
    parser.add_argument("command", nargs="+", help="the program and its arguments, after --")
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
