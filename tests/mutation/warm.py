"""The fast way: everything is imported and collected once; a child swaps the code of one function and runs the tests.

Only the tests that run a line of the mutated statement are run, the shortest first, which a traced run of them all has
found out. What is decided while modules are imported (tables, defaults, what tests make at their top) has passed by
then: such mutants are left to `cold`.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from children import Verdict, Work, run_all
from mutants import Mutant

__all__ = ["Baseline", "arguments", "run_warm"]

Lines = dict[str, set[int]]


@dataclass(slots=True)
class Baseline:
    """What a run of all tests without a mutant has shown. Lines by file; a test is named by its node id."""

    at_import: Lines = field(default_factory=dict)
    by_test: dict[str, Lines] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def covering(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutated lines, the shortest first."""
        path, lines = str(mutant.path), set(range(mutant.first_line, mutant.last_line + 1))
        found = [test for test, by_file in self.by_test.items() if not lines.isdisjoint(by_file.get(path, ()))]
        return sorted(found, key=self.seconds.__getitem__)

    def runs_at_import(self, mutant: Mutant) -> bool:
        """Whether the mutated lines run while modules are imported or tests collected."""
        lines = set(range(mutant.first_line, mutant.last_line + 1))
        return not lines.isdisjoint(self.at_import.get(str(mutant.path), ()))

    def touching(self, path: Path) -> list[str]:
        """The tests that run any line of a module, the shortest first."""
        found = [test for test, by_file in self.by_test.items() if by_file.get(str(path))]
        return sorted(found, key=self.seconds.__getitem__)


def arguments(tests: Iterable[Path]) -> list[str]:
    """How pytest is called in both ways."""
    quiet = ("-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:terminal", "-p", "no:faulthandler")
    return [*quiet, "-o", "timeout=0", *(str(test) for test in tests)]


def run_warm(
    mutants: list[Mutant], tests: list[Path], *, jobs: int, report: Callable[[Mutant, Verdict], None]
) -> Baseline:
    """Judge what can be judged in this way. Runs pytest in this very process."""
    plugin = _Plugin(mutants, jobs, report)
    code = pytest.main(arguments(tests), plugins=[plugin])
    if not plugin.finished:
        raise SystemExit(f"mutate: the tests do not run without a mutant (pytest says {code}).")
    return plugin.baseline


class _Plugin:
    def __init__(self, mutants: list[Mutant], jobs: int, report: Callable[[Mutant, Verdict], None]) -> None:
        self.baseline = Baseline()
        self.finished = False
        self._mutants = mutants
        self._jobs = jobs
        self._report = report
        self._paths = {str(mutant.path) for mutant in mutants}
        self._failed = False
        self._items: dict[str, pytest.Item] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        with _Tracing(self._paths, self.baseline.at_import):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            return False
        self._items = {item.nodeid: item for item in session.items}
        self._measure()
        by_name = {mutant.name: mutant for mutant in self._mutants}
        functions = _functions(self._paths)
        gc.collect()
        gc.freeze()
        work = [self._work(mutant, functions) for mutant in self._mutants]
        for name, verdict in run_all(work, jobs=self._jobs):
            self._report(by_name[name], verdict)
        self.finished = True
        return True

    def _measure(self) -> None:
        """Run every test once, traced, and once more for its time."""
        for name, item in self._items.items():
            with _Tracing(self._paths, self.baseline.by_test.setdefault(name, {})):
                passed = self._run([item])
            start = time.perf_counter()
            if not (passed and self._run([item])):
                self.baseline.broken.append(name)
                del self.baseline.by_test[name]
            self.baseline.seconds[name] = time.perf_counter() - start

    def _run(self, items: list[pytest.Item]) -> bool:
        self._failed = False
        for index, item in enumerate(items):
            following = items[index + 1] if index + 1 < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                return False
        return True

    def _work(self, mutant: Mutant, functions: dict[tuple[str, str], list[FunctionType]]) -> Work:
        names = self.baseline.covering(mutant) if mutant.function else []
        seconds = 5.0 + 5 * sum(self.baseline.seconds[name] for name in names)

        def act() -> bool | None:
            if not names or not _swap(mutant, functions):
                return None
            passed = self._run([self._items[name] for name in names])
            return None if passed and self.baseline.runs_at_import(mutant) else passed

        return Work(mutant.name, seconds, act)


class _Tracing:
    """Collects the lines that run in some files."""

    def __init__(self, paths: set[str], lines: Lines) -> None:
        self._paths = paths
        self._lines = lines

    def __enter__(self) -> None:
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        if path not in self._paths:
            return None
        lines = self._lines.setdefault(path, set())
        lines.add(frame.f_lineno)

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            lines.add(frame.f_lineno)
            return local

        return local


# Swapping code


def _functions(paths: set[str]) -> dict[tuple[str, str], list[FunctionType]]:
    """Every function object that lives, by file and qualified name: closures have several."""
    found: dict[tuple[str, str], list[FunctionType]] = {}
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename in paths:
            found.setdefault((thing.__code__.co_filename, thing.__code__.co_qualname), []).append(thing)
    return found


def _swap(mutant: Mutant, functions: dict[tuple[str, str], list[FunctionType]]) -> bool:
    """Give the mutated function and those inside it their new code. False where Python does not allow it."""
    path = str(mutant.path)
    codes = list(_codes(compile(mutant.source(), path, "exec", dont_inherit=True), mutant.function))
    if len({code.co_qualname for code in codes}) != len(codes) or not functions.get((path, mutant.function)):
        return False
    try:
        for code in codes:
            for function in functions.get((path, code.co_qualname), ()):
                function.__code__ = code
    except ValueError:  # another number of closed-over names
        return False
    return True


def _codes(code: CodeType, function: str) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if _is_inside(constant.co_qualname, function):
                yield constant
            yield from _codes(constant, function)


def _is_inside(name: str, function: str) -> bool:
    return (name == function or name.startswith(f"{function}.<locals>.")) and not name.endswith("comp>")
