"""The thorough way: a child imports everything anew, with the mutant in the place of its module, and runs the tests.

For tables, defaults, class bodies, and whatever runs while modules are imported. The parent has imported pytest and
the libraries, and nothing of Keyvouch.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import CodeType, ModuleType

import pytest
from children import Verdict, Work, run_all
from mutants import Mutant
from warm import Baseline, arguments

__all__ = ["run_cold"]

_LIBRARIES = (
    "_pytest.assertion.rewrite",
    "asyncio",
    "cryptography.hazmat.primitives.asymmetric.rsa",
    "cryptography.hazmat.primitives.asymmetric.ed448",
    "cryptography.hazmat.primitives.serialization.pkcs7",
    "cryptography.x509",
    "hypothesis.strategies",
    "pytest_asyncio.plugin",
)


def run_cold(
    mutants: list[Mutant], baseline: Baseline, *, jobs: int, report: Callable[[Mutant, Verdict], None]
) -> None:
    """Judge mutants in new interpreters' stead: the parent must not have imported Keyvouch."""
    assert not any(name.split(".")[0] == "keyvouch" for name in sys.modules)
    for library in _LIBRARIES:
        __import__(library)
    sound = _sound_modules(mutants, baseline)
    by_name = {mutant.name: mutant for mutant in mutants}
    for mutant in mutants:
        if mutant.module not in sound:
            report(mutant, Verdict.SURVIVED)
    work = [_work(mutant, baseline) for mutant in mutants if mutant.module in sound]
    for name, verdict in run_all(work, jobs=jobs):
        report(by_name[name], verdict)


def _sound_modules(mutants: list[Mutant], baseline: Baseline) -> set[str]:
    """The control: modules whose tests pass in this way with nothing changed. Elsewhere nothing counts as killed."""
    modules = {mutant.module: replace(mutant, start=0, end=0, text="") for mutant in mutants}
    names = {mutant.name: module for module, mutant in modules.items()}
    sound = set()
    for name, verdict in run_all([_work(mutant, baseline) for mutant in modules.values()], jobs=1):
        if verdict is Verdict.SURVIVED:
            sound.add(names[name])
        else:
            sys.stderr.write(f"the tests of {names[name]} fail when imported anew; its tables are not judged\n")
    return sound


def _work(mutant: Mutant, baseline: Baseline) -> Work:
    files = _telling(mutant, baseline.touching(mutant.path), baseline)
    # All their tests: one may assert what was made while its file was imported, and run no line of the module itself.
    names = sorted((n for n in baseline.by_test if _file(n) in files), key=baseline.seconds.__getitem__)
    seconds = 30.0 + 5 * sum(baseline.seconds[name] for name in names)

    def act() -> bool:
        sys.meta_path.insert(0, _Finder(mutant))
        wanted = {name: index for index, name in enumerate(names)}
        return all(_passes([file], wanted) for file in files)

    return Work(mutant.name, seconds, act)


def _file(name: str) -> Path:
    return Path(name.partition("::")[0])


def _telling(mutant: Mutant, names: Iterable[str], baseline: Baseline) -> list[Path]:
    """The test files of the module and of those it is named after, then others until every line is run that any test
    runs, then the weightier rest.

    A file that runs less than a quarter of these lines, and none that others do not run, is left out: importing it for
    every mutant costs more than it tells. So a mutant may be counted as a survivor that a test elsewhere would kill,
    never the other way round.
    """
    lines: dict[Path, set[int]] = {}
    for name in names:
        lines.setdefault(_file(name), set()).update(baseline.by_test[name][str(mutant.path)])
    family = mutant.module.rpartition(".")[2].partition("_")[0]
    chosen = [file for file in lines if family in file.stem]
    every = set().union(*lines.values())
    missing = every.difference(*(lines[file] for file in chosen))
    while missing:
        chosen.append(max(lines, key=lambda file: len(lines[file] & missing)))
        missing -= lines[chosen[-1]]
    return chosen + [file for file in lines if file not in chosen and 4 * len(lines[file]) >= len(every)]


def _passes(files: Sequence[Path], wanted: dict[str, int]) -> bool:
    # What the parent imported for all children was not rewritten by pytest, and need not be.
    quiet = ("-x", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    return pytest.main([*arguments(files), *quiet], plugins=[_Selection(wanted)]) in (0, 5)


class _Selection:
    """Runs the tests that count, the shortest first."""

    def __init__(self, wanted: dict[str, int]) -> None:
        self._wanted = wanted

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._wanted]
        items.sort(key=lambda item: self._wanted[item.nodeid])


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the mutated module before the file system does."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert found is not None
        found.loader = _Loader(fullname, str(self._mutant.path), self._mutant.source())
        return found


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, source: str) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)
