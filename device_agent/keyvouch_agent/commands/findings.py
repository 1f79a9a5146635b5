"""What `doctor` finds: one thing looked at, how it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from keyvouch.errors import KeyvouchError
from keyvouch_agent.prompts.inert import inert

__all__ = ["Finding", "good", "look", "note", "problem", "trouble"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`optional`: where it is not `ok`, an approval does without it."""

    check: str
    ok: bool
    detail: str
    fix: str = ""
    optional: bool = False

    @property
    def document(self) -> Mapping[str, object]:
        """For programs."""
        return {
            "check": self.check,
            "ok": self.ok,
            "optional": self.optional,
            "detail": self.detail,
            "fix": self.fix,
        }

    @property
    def line(self) -> str:
        """For people: a line, and another one with what to do."""
        mark = "ok     " if self.ok else "note   " if self.optional else "PROBLEM"
        text = f"{mark} {inert(self.check, longest=80)}: {inert(self.detail, longest=500)}"
        return f"{text}\n        {inert(self.fix, longest=400)}" if self.fix and not self.ok else text


def good(check: str, detail: str) -> Finding:
    """As it should be."""
    return Finding(check, True, detail)


def note(check: str, detail: str, fix: str = "") -> Finding:
    """Worth knowing, and in nobody's way."""
    return Finding(check, False, detail, fix, optional=True)


def problem(check: str, detail: str, fix: str) -> Finding:
    """In the way of an approval."""
    return Finding(check, False, detail, fix)


def trouble(check: str, error: KeyvouchError, *, optional: bool = False) -> Finding:
    """An error, as a finding."""
    return Finding(check, False, error.message, error.fix, optional=optional)


def look(check: str, examine: Callable[[], str]) -> Finding:
    """What `examine` says, or its error."""
    try:
        return good(check, examine())
    except KeyvouchError as error:
        return trouble(check, error)
