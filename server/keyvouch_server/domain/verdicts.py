"""What each rule said about one request, in the order in which they were asked: for explanations.

The rules themselves raise; `check` writes down what they did and lets the refusal pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

from keyvouch.errors import KeyvouchError


class Outcome(StrEnum):
    """What a rule said."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    NOT_CONCERNED = "not_concerned"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule said. `rule` is a stable name, `detail` says what was looked at, `reason` is that of a refusal."""

    rule: str
    outcome: Outcome
    detail: str = ""
    reason: str = ""

    def document(self) -> dict[str, str]:
        """What is not empty, for JSON. Every sign-in writes some of these."""
        said = {"rule": self.rule, "outcome": self.outcome.value, "detail": self.detail, "reason": self.reason}
        return {name: value for name, value in said.items() if value}


class Verdicts:
    """The verdicts on one request."""

    def __init__(self) -> None:
        self._said: list[Verdict] = []

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self._said)

    @property
    def refused(self) -> bool:
        """Whether a rule said no."""
        return any(v.outcome is Outcome.REFUSED for v in self._said)

    def allow(self, rule: str, detail: str = "") -> None:
        """The rule was asked and said yes."""
        self._said.append(Verdict(rule, Outcome.ALLOWED, detail))

    def pass_over(self, rule: str, detail: str = "") -> None:
        """The rule says nothing about this request."""
        self._said.append(Verdict(rule, Outcome.NOT_CONCERNED, detail))

    def refuse(self, rule: str, refusal: KeyvouchError, detail: str = "") -> KeyvouchError:
        """The rule said no. Returns the refusal, to be raised or returned."""
        self._said.append(Verdict(rule, Outcome.REFUSED, detail or refusal.message, refusal.reason.value))
        return refusal

    def check(self, rule: str, detail: str = "") -> _Check:
        """Write down what a block that raises refusals says. The refusal passes."""
        return _Check(self, rule, detail)

    def without(self, rule: str) -> Verdicts:
        """The same but for what one rule said, which is asked again."""
        others = Verdicts()
        others._said = [one for one in self._said if one.rule != rule]
        return others

    def document(self) -> str:
        """JSON text for the store."""
        return json.dumps([one.document() for one in self._said])

    @classmethod
    def load(cls, document: str) -> Verdicts:
        """Read back what `document` wrote; empty text gives none."""
        verdicts = cls()
        for one in json.loads(document or "[]"):
            said = Verdict(one["rule"], Outcome(one["outcome"]), one.get("detail", ""), one.get("reason", ""))
            verdicts._said.append(said)
        return verdicts


class _Check:
    """What `Verdicts.check` gives; a class, since a generator costs each sign-in some ten times as much."""

    __slots__ = ("_detail", "_rule", "_verdicts")

    def __init__(self, verdicts: Verdicts, rule: str, detail: str) -> None:
        self._verdicts, self._rule, self._detail = verdicts, rule, detail

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if raised is None:
            self._verdicts.allow(self._rule, self._detail)
        elif isinstance(raised, KeyvouchError):
            self._verdicts.refuse(self._rule, raised)
