"""`./run mutate [module ...]`: change the verifiers one place at a time, and see whether the tests notice.

A module is named as in `cbor`, `attestation.packed` or `keyvouch.attestation.formats.packed`; a group by `attestation`
(everything in that package) or `core` (the containers and keys beneath it). Without any, both groups are run.
Every mutant runs in a process of its own against the tests that reach it; survivors are written to a folder, and those
that SURVIVORS.md accepts, with the argument why nobody could tell them apart, are counted beside the score.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from children import Verdict
from mutants import Mutant, mutants_of

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "proto"
CORE = ("cbor", "cose", "webauthn", "client_data", "webauthn_json", "roca")
ACCEPTED = Path(__file__).parent / "SURVIVORS.md"
# Tests of other parts, which only reach the core through a server or an agent.
OTHERS = ("agent", "authenticator", "client", "ctap", "security_findings", "server", "software", "sqlite")
_ENTRY = re.compile(r"^\* `(?P<module>[\w.]+)`: (?P<change>`.*?` -> `.*?`):? ", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run mutate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", nargs="*", help="modules or groups")
    parser.add_argument("--jobs", type=int, default=1, help="children at a time (default: 1)")
    parser.add_argument("--output", type=Path, default=ROOT / "build/mutation", help="folder for the survivors")
    parser.add_argument("--tests", action="append", default=[], type=Path, help="only these test files")
    parser.add_argument("--goal", type=float, default=0.0, help="fail if a module's score is below this percentage")
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    mutants = [mutant for path in modules(options.module) for mutant in mutants_of(path, name_of(path))]
    say(f"{len(mutants)} mutants of {len({mutant.module for mutant in mutants})} modules")
    tests = [test.resolve() for test in options.tests] or core_tests()
    verdicts = judge(mutants, tests, jobs=options.jobs, so_far=output / "so-far.txt")
    scores = write(mutants, verdicts, output)
    say(f"survivors, with their diffs: {output}")
    return int(any(score < options.goal for score in scores))


def modules(wanted: list[str]) -> list[Path]:
    """The files of the modules and groups named."""
    attestation = sorted((SOURCE / "keyvouch/attestation").rglob("*.py"))
    core = [SOURCE / f"keyvouch/{name}.py" for name in CORE]
    everything = [path for path in (*attestation, *core) if path.name != "__init__.py"]
    groups = {"attestation": [path for path in attestation if path.name != "__init__.py"], "core": core}
    found: list[Path] = []
    for name in wanted or ["attestation", "core"]:
        matching = groups.get(name) or [path for path in everything if f".{name_of(path)}".endswith(f".{name}")]
        if not matching:
            raise SystemExit(f"mutate: there is no module called {name}.")
        found += matching
    return list(dict.fromkeys(found))


def name_of(path: Path) -> str:
    """The name a module is imported by."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def core_tests() -> list[Path]:
    """The unit tests of the protocol core."""
    found = sorted((ROOT / "tests/unit").glob("test_*.py"))
    return [test for test in found if not test.stem.removeprefix("test_").startswith(OTHERS)]


def judge(mutants: list[Mutant], tests: list[Path], *, jobs: int, so_far: Path) -> dict[str, Verdict]:
    """Each way runs in a process of its own, so that the thorough one starts with nothing imported.

    Survivors are appended to the file `so_far` as they are found.
    """
    verdicts: dict[str, Verdict] = {}
    by_name = {mutant.name: mutant for mutant in mutants}
    so_far.write_text("", encoding="utf-8")

    def keep(line: str) -> None:
        name, _, verdict = line.partition(" ")
        verdicts[name] = Verdict(verdict)
        if verdicts[name] is Verdict.SURVIVED:
            with so_far.open("a", encoding="utf-8") as survivors:
                survivors.write(f"{_described(by_name[name])}\n\n")
        counts = Counter(verdicts.values())
        judged = len(verdicts) - counts[Verdict.ELSEWHERE]
        if judged % 200 == 0 and verdicts[name] is not Verdict.ELSEWHERE:
            say(f"{judged} of {len(mutants)} judged, {counts[Verdict.SURVIVED]} survive so far")

    shown = in_process(lambda send: _warm(mutants, tests, jobs, send), keep)
    rest = [mutant for mutant in mutants if verdicts[mutant.name] is Verdict.ELSEWHERE]
    say(f"{len(rest)} of them change what runs while modules are imported; importing anew for each")
    in_process(lambda send: _cold(rest, shown, jobs, send), keep)
    return verdicts


def _warm(mutants: list[Mutant], tests: list[Path], jobs: int, send: Callable[[str], None]) -> dict[str, object]:
    from warm import run_warm

    start = time.monotonic()
    baseline = run_warm(mutants, tests, jobs=jobs, report=lambda m, verdict: send(f"{m.name} {verdict.value}"))
    say(f"{len(baseline.by_test)} tests; {time.monotonic() - start:.0f} s")
    for name in baseline.broken:
        say(f"left out, for it fails without a mutant: {name}")
    return asdict(baseline)


def _cold(mutants: list[Mutant], shown: dict[str, object], jobs: int, send: Callable[[str], None]) -> None:
    from cold import run_cold
    from warm import Baseline

    run_cold(mutants, Baseline(**shown), jobs=jobs, report=lambda m, verdict: send(f"{m.name} {verdict.value}"))  # type: ignore[arg-type]


def in_process(act: Callable[[Callable[[str], None]], object], keep: Callable[[str], None]) -> dict[str, object]:
    """Run `act` in a forked process; what it sends goes to `keep`, what it returns comes back."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _child(act, reading, writing)
    os.close(writing)
    result: dict[str, object] = {}
    with os.fdopen(reading, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("{"):
                result = json.loads(line)
            else:
                keep(line.rstrip("\n"))
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit("mutate: stopped, see above.")
    return result


def _child(act: Callable[[Callable[[str], None]], object], reading: int, writing: int) -> None:
    os.close(reading)
    os.chdir(ROOT)
    status = 1
    try:
        result = act(lambda line: _write_line(writing, line))
        if result is not None:
            _write_line(writing, json.dumps(result, default=sorted))
        status = 0
    except SystemExit as stopped:
        say(str(stopped))
    except BaseException:  # noqa: BLE001  # a child never returns into its parent's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _write_line(fd: int, line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def accepted() -> set[tuple[str, str]]:
    """The survivors that SURVIVORS.md argues for."""
    text = ACCEPTED.read_text(encoding="utf-8") if ACCEPTED.exists() else ""
    return {(entry["module"], entry["change"]) for entry in _ENTRY.finditer(text)}


def write(mutants: list[Mutant], verdicts: dict[str, Verdict], output: Path) -> list[float]:
    """Write the survivors, show the table, return the scores in percent."""
    known = accepted()
    show("| module | mutants | killed | timed out | survived | of them accepted | score |")
    show("|---|---|---|---|---|---|---|")
    scores, sums = [], [0, 0, 0, 0, 0]
    for module in dict.fromkeys(mutant.module for mutant in mutants):
        own = [mutant for mutant in mutants if mutant.module == module]
        surviving = [mutant for mutant in own if verdicts[mutant.name] is Verdict.SURVIVED]
        rest = [mutant for mutant in surviving if (module, mutant.change()) not in known]
        late = sum(verdicts[mutant.name] is Verdict.TIMEOUT for mutant in own)
        row = [len(own), len(own) - late - len(surviving), late, len(surviving), len(surviving) - len(rest)]
        sums = [total + part for total, part in zip(sums, row, strict=True)]
        scores.append(show_row(module, row))
        text = "\n\n".join(_described(mutant) for mutant in rest)
        (output / f"{module}.txt").write_text(text + "\n", encoding="utf-8")
    show_row("all", sums)
    return scores


def _described(mutant: Mutant) -> str:
    place = mutant.function or "the module"
    return f"{mutant.name} {mutant.operator} in {place}\n* `{mutant.module}`: {mutant.change()}:\n{mutant.diff()}"


def show_row(module: str, row: list[int]) -> float:
    """One line of the table; returns the score in percent. What is accepted counts as survived all the same."""
    score = 100 * (row[0] - row[3]) / row[0] if row[0] else 100.0
    show(f"| `{module}` | {' | '.join(map(str, row))} | {score:.1f} % |")
    return score


def show(text: str) -> None:
    """The result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Progress for people, apart from the result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
