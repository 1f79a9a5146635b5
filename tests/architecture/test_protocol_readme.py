"""proto/README.md tells the whole protocol: every reason, every service, every purpose of a signature."""

from __future__ import annotations

import re

import pytest

from keyvouch.errors import Reason
from keyvouch.statement import Purpose
from support.repository import ROOT

PAGE = (ROOT / "proto" / "README.md").read_text("utf-8")


def _refusals() -> list[str]:
    table = PAGE.partition("## Refusals")[2].partition("## Glossary")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)]


def test_every_reason_is_explained_once():
    assert sorted(_refusals()) == sorted(r.value for r in Reason)


def test_every_reason_is_given_by_some_code():
    folders = ("proto", "server", "device_agent")
    errors = ROOT / "proto" / "keyvouch" / "errors.py"
    code = [f.read_text("utf-8") for d in folders for f in (ROOT / d).rglob("*.py") if f != errors]
    given = {name for text in [*code, errors.read_text("utf-8").partition("class KeyvouchError")[2]]
             for name in re.findall(r"Reason\.([A-Z_]+)", text)}  # fmt: skip
    assert sorted(r.name for r in Reason if r.name not in given) == []


@pytest.mark.parametrize("purpose", Purpose)
def test_every_purpose_of_a_signature_is_listed(purpose: Purpose):
    assert f"| `{purpose.value}` |" in PAGE


def test_every_service_is_listed():
    files = (ROOT / "proto" / "keyvouch" / "v1").glob("*.proto")
    services = {name for f in files for name in re.findall(r"^service (\w+)", f.read_text("utf-8"), re.MULTILINE)}
    assert services == set(re.findall(r"^\| `(\w+Service)` \|", PAGE, re.MULTILINE))
