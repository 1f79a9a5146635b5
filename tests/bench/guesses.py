"""P4, the long way: so many guesses of numbers at a real server in this process, and what came of them.

    python tests/bench/guesses.py --attempts 100000

Every attempt is two seconds of the server's clock after the one before. Not here: a check in passing; the test of the
same name tries a twentieth of it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.guessing import guess
from support.live_server import live_server, make_template


async def run(attempts: int, digits: int, template: Path, folder: Path) -> str:
    """Guess, and say what came of it."""
    async with live_server(template, folder) as live:
        ada = await live.person("ada")
        await live.change_policy(approval={"number_digits": digits})
        begun = time.perf_counter()
        outcomes = await guess(live, ada, attempts, seconds=2, seed=4)
        return f"{attempts} attempts at {digits} digits in {time.perf_counter() - begun:.0f} s: {dict(outcomes)}"


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=100_000)
    parser.add_argument("--digits", type=int, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        template = make_template(Path(folder) / "template")
        said = asyncio.run(run(arguments.attempts, arguments.digits, template, Path(folder)))
    sys.stdout.write(f"{said}\n")


if __name__ == "__main__":
    main()
