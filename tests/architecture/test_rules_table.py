"""`tests/RULES.md` tells the truth: every rule has a test, and every test it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from support.repository import ROOT

TESTS = ROOT / "tests"
REQUIRED = (
    *(f"PS{n}" for n in range(1, 22)),
    *(f"T{n}" for n in range(1, 19)),
    *(f"KI{n}" for n in range(1, 14)),
    *(f"H{n}" for n in range(1, 11)),
    *(f"P{n}" for n in range(1, 21)),
    *("G8", "G10", "G11", "G12"),
)
"""Every product rule, and the threats to protocol, passes, sessions, store and audit log."""

_ROW = re.compile(r"^\|\s*(?P<rule>[A-Z]+[0-9]+)\s*\|(?P<text>[^|]*)\|(?P<tests>[^|]*)\|\s*$")
_TEST = re.compile(r"`([^`]+)`")


def rules(page: str) -> dict[str, list[str]]:
    """Rule id to the tests named for it; a rule may stand in one row only."""
    table: dict[str, list[str]] = {}
    for row in filter(None, map(_ROW.match, page.splitlines())):
        assert row["rule"] not in table, f"{row['rule']} has two rows"
        table[row["rule"]] = _TEST.findall(row["tests"])
    return table


@cache
def collected_from(path: Path) -> frozenset[str]:
    """The tests of a file as pytest names them: `test_x`, or `TestClass::test_x`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
            found.update(f"{node.name}::{item.name}" for item in inner)
    return frozenset(name for name in found if name.split("::")[-1].startswith("test_"))


def fault_in(name: str) -> str | None:
    """Why there is no test of this name, or None. Names are `folder/test_file.py::test_name`, below `tests/`."""
    file, _, test = name.partition("::")
    path = TESTS / file
    if not path.is_file():
        return f"{name}: no such file"
    return None if test in collected_from(path) else f"{name}: no such test in that file"


def table() -> dict[str, list[str]]:
    return rules((TESTS / "RULES.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("rule", REQUIRED)
def test_the_rule_has_a_test(rule: str):
    assert table().get(rule)


def rules_in(test: str) -> set[str]:
    """The rules a test's name speaks of: `test_ps4_...`, `test_t12_...`, `..._P9`, `..._KI1_P19`."""
    words = test.rsplit("::", maxsplit=1)[-1].upper().split("_")
    return {word for word in words if word in REQUIRED and not word.startswith(("H", "G"))}


def test_a_test_that_bears_a_rule_stands_in_its_row():
    """Else a rule would look held that is not, or the table would not tell where."""
    named = {name: rule for rule, names in table().items() for name in names}
    missing = []
    for path in sorted(TESTS.rglob("test_*.py")):
        file = path.relative_to(TESTS).as_posix()
        for test in collected_from(path):
            name = f"{file}::{test}"
            rules_said = {rule for rule in rules_in(test) if _is_product_rule(rule, test)}
            missing += [f"{rule}: `{name}`" for rule in rules_said if name not in table().get(rule, [])]
    assert named
    assert missing == []


def _is_product_rule(rule: str, test: str) -> bool:
    """TPM threats are called T1 to T14 too, in tests of their own."""
    return not (rule.startswith("T") and "tpm" in test.lower())


def test_every_named_test_exists():
    assert [fault for names in table().values() for name in names if (fault := fault_in(name))] == []


def test_a_name_that_leads_nowhere_is_found():
    here = Path(__file__).relative_to(TESTS).as_posix()
    assert fault_in(f"{here}::test_a_name_that_leads_nowhere_is_found") is None
    assert fault_in(f"{here}::test_of_nothing")
    assert fault_in("unit/test_of_nothing.py::test_x")
