"""`./run fuzz`: coverage-guided fuzzing of every parser with atheris, from the seeds in tests/fuzz/corpus.

An answer is acceptance or one of Keyvouch's own errors, within 100 ms. Anything else is a finding: its input is
written to `build/fuzz/<target>/findings`, and the run goes on; what lies there from earlier runs counts until it is
removed. Inputs that reach new paths are kept in `build/fuzz/<target>/corpus` and taken up by the next run.

    ./run fuzz                                   every target, 10,000 inputs each
    ./run fuzz --target cbor --runs 1000000      one target
    ./run fuzz --seconds 60                      every target, so long each
    ./run fuzz --target cbor --replay FILE       show what one input does
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(__file__).parent / "corpus"
sys.path.insert(0, str(ROOT / "tests"))

BLIND_SHARE = 3
"""One change in so many is libFuzzer's own, on bytes as they are."""


@dataclass(slots=True)
class Watch:
    """What one process has seen of its target."""

    inputs: int = 0
    slowest_ms: float = 0.0
    seen: set[str] = field(default_factory=set)


def main() -> int:
    """Fuzz, or replay."""
    parser = argparse.ArgumentParser(
        prog="./run fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", default=[], help="only this one; may be given again")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs for each target (default: 10000)")
    parser.add_argument("--seconds", type=int, default=0, help="end each target after so long (default: no limit)")
    parser.add_argument("--seed", type=int, default=1, help="seed of libFuzzer (default: 1)")
    parser.add_argument("--output", type=Path, default=ROOT / "build/fuzz", help="where corpora and findings go")
    parser.add_argument("--replay", type=Path, help="try this one input, and show what comes out")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return inside(options)
    from fuzz.targets import TARGETS

    unknown = set(options.target) - set(TARGETS)
    if options.list or unknown:
        sys.stdout.write("\n".join(TARGETS) + "\n")
        return int(bool(unknown))
    names = options.target or list(TARGETS)
    if options.replay:
        return replay(names, options.replay.read_bytes())
    show("| target | inputs | new paths | slowest input, ms | findings |\n|---|---|---|---|---|")
    return int(sum(fuzz(name, options) for name in names) > 0)


def replay(names: list[str], data: bytes) -> int:
    """Let targets judge one input. An exception goes up, with its traceback."""
    from fuzz.targets import TARGETS

    for name in names:
        start = time.perf_counter()
        TARGETS[name].try_on(data)
        show(f"{name}: answered in {(time.perf_counter() - start) * 1e3:.1f} ms")
    return 0


def fuzz(name: str, options: argparse.Namespace) -> bool:
    """Run one target in a process of its own; print its line. True if there is a finding."""
    output = options.output.resolve() / name
    for folder in ("corpus", "findings"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    (output / "result.json").unlink(missing_ok=True)
    command = [sys.executable, __file__, "--inside", "--target", name, "--runs", str(options.runs)]
    command += ["--seconds", str(options.seconds), "--seed", str(options.seed), "--output", str(options.output)]
    with (output / "log.txt").open("wb") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    log_text = (output / "log.txt").read_text(errors="replace")
    return report(name, output, log_text, code)


def report(name: str, output: Path, log: str, code: int) -> bool:
    """Print the line of a target, and the way to each finding."""
    try:
        result = json.loads((output / "result.json").read_text())
    except FileNotFoundError:
        result = {"inputs": 0, "slowest_ms": 0.0}
    findings = sorted(str(path) for path in (output / "findings").iterdir())
    done = re.search(r"^Done (\d+) runs", log, re.MULTILINE)
    inputs = int(done[1]) if done else result["inputs"]
    new = re.findall(r"^#\d+\s+NEW", log, re.MULTILINE)
    show(f"| {name} | {inputs} | {len(new)} | {result['slowest_ms']:.1f} | {len(findings)} |")
    for finding in findings:
        say(f"{name}: ./run fuzz --target {name} --replay {finding}")
    if code and not findings:
        say(f"{name}: the fuzzer itself failed; see {output / 'log.txt'}")
    return bool(code or findings)


# Inside the process of one target


def inside(options: argparse.Namespace) -> int:
    """Hand the target to libFuzzer. It ends the process by itself."""
    import atheris

    with atheris.instrument_imports(include=["keyvouch"], enable_loader_override=False):
        from fuzz.targets import TARGETS
    from fuzz.structure import changed

    (name,) = options.target
    target, output, watch = TARGETS[name], options.output / name, Watch()

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        chance = Random(seed)
        if target.shape.value == "bytes" or seed % BLIND_SHARE == 0:
            return atheris.Mutate(data, longest)
        for _ in range(chance.randrange(1, 4)):
            data = changed(data, target.shape, chance, lambda part: atheris.Mutate(part, len(part) + 64))
        return data[:longest]

    def one(data: bytes) -> None:
        try_and_watch(target.try_on, data, watch, output / "findings")
        if watch.inputs % 1000 == 0 or watch.inputs == options.runs:  # libFuzzer ends the process without a word
            (output / "result.json").write_text(_result(watch))

    arguments = [
        sys.argv[0],
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        f"-max_len={target.max_length}",
        f"-artifact_prefix={output / 'findings'}/libfuzzer-",
        "-timeout=10",
        "-rss_limit_mb=2048",
        str(output / "corpus"),
        str(CORPUS / name),
    ]
    if options.seconds:
        arguments.insert(1, f"-max_total_time={options.seconds}")
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def _result(watch: Watch) -> str:
    return json.dumps({"inputs": watch.inputs, "slowest_ms": watch.slowest_ms})


def try_and_watch(act: Callable[[bytes], None], data: bytes, watch: Watch, folder: Path) -> None:
    """Try one input; note its time, and keep it if it is a finding of a new kind."""
    watch.inputs += 1
    start = time.thread_time()
    try:
        act(data)
    except Exception as error:  # noqa: BLE001  # all that may come out is judged
        where = traceback.extract_tb(error.__traceback__)[-1]
        keep(data, f"{type(error).__name__}:{where.filename}:{where.lineno}", watch, folder)
        return
    taken = time.thread_time() - start
    from fuzz.targets import SECONDS_PER_INPUT

    if taken * 1e3 <= watch.slowest_ms:
        return
    for _ in range(2):  # the collector's turn, or another process's, is no fault of the input
        start = time.thread_time()
        act(data)
        taken = min(taken, time.thread_time() - start)
    watch.slowest_ms = max(watch.slowest_ms, taken * 1e3)
    if taken > SECONDS_PER_INPUT:
        keep(data, "slow", watch, folder)


def keep(data: bytes, kind: str, watch: Watch, folder: Path) -> None:
    """Write a finding, one of each kind."""
    if kind in watch.seen:
        return
    watch.seen.add(kind)
    path = folder / f"{kind.partition(':')[0].lower()}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)


def show(text: str) -> None:
    """The result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """For people, apart from the table."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
