"""`./run exec python tests/bench/access_passes.py guesses | timing`: what strangers get out of access passes.

    guesses   a million guesses in parallel, from thousands of addresses, at three nodes: how many were compared
    timing    20,000 refusals of each kind in random order: does the time they take tell what is wrong?

Both use the ceremony itself over a durable store, without a listener: a network only adds noise to what it shows.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.live_server import make_template
from support.pass_desk import at_once
from support.pass_guessing import NODES, besiege
from support.pass_timing import KINDS, Timings, time_refusals


def main() -> int:
    """Parse, run, print. 1 where a figure is not what it has to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("guesses", "timing"))
    parser.add_argument("--guesses", type=int, default=1_000_000)
    parser.add_argument("--passes", type=int, default=50)
    parser.add_argument("--timings", type=int, default=20_000, help="of each kind")
    parser.add_argument("--lanes", type=int, default=16, help="tries at a time")
    parser.add_argument("--no-pause", action="store_true", help="what the pause before a refusal hides")
    arguments = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="keyvouch-bench-") as folder:
        template = make_template(Path(folder) / "template")
        run = guesses if arguments.what == "guesses" else timing
        return asyncio.run(run(arguments, template, Path(folder)))


def say(text: str) -> None:
    """Progress for people."""
    sys.stderr.write(text + "\n")


async def guesses(arguments: argparse.Namespace, template: Path, folder: Path) -> int:
    """Count comparisons."""
    began = time.perf_counter()
    siege = await besiege(template, folder, guesses=arguments.guesses, passes=arguments.passes, parallel=512, say=say)
    seconds = time.perf_counter() - began
    mean = sum(siege.owner_tries) / max(1, len(siege.owner_tries))
    sys.stdout.write(
        f"{siege.guesses:,} guesses at {NODES} nodes in {seconds:.0f} s: {dict(siege.answers)}\n"
        f"compared: {siege.wrong} in all, at most {siege.most_compared} with one of {siege.passes} passes\n"
        f"risk events: {dict(siege.events)}\n"
        f"the owner of another pass was in {len(siege.owner_tries):,} times, after {mean:.1f} tries, one a second\n"
    )
    return 0 if siege.most_compared <= 5 and not siege.answers["opened"] else 1


async def timing(arguments: argparse.Namespace, template: Path, folder: Path) -> int:
    """Compare kinds of refusals."""
    pause = at_once if arguments.no_pause else asyncio.sleep
    told = await time_refusals(template, folder, timings=arguments.timings, lanes=arguments.lanes, pause=pause)
    sys.stdout.write(table(told))
    return 0 if arguments.no_pause or all(abs(told.welch(kind)) < 4.5 for kind in KINDS) else 1


def table(told: Timings) -> str:
    """One line for each kind, beside `wrong`."""
    lines = ["refused because       timings   mean ms   median apart   Welch t"]
    for kind, seconds in told.seconds.items():
        mean = 1e3 * sum(seconds) / len(seconds)
        lines.append(f"{kind:20} {len(seconds):8} {mean:9.3f} {told.medians(kind):13.2%} {told.welch(kind):9.2f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
