"""`keyvouch verify`: the verdict on recorded evidence, one JSON object on a line for each vector, receipt or audit log.

Needs no server and no sign-in. Exit status: 0 if every verdict is the expected one, 1 if one is not, 2 if something
could not be used: then it is named on standard error, and everything else has been judged all the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import cast

from keyvouch.attestation import TrustAnchor
from keyvouch.errors import EvidenceError, MalformedError, UsageError
from keyvouch.ids import ServerId
from keyvouch.receipt import MAX_RECEIPT
from keyvouch_client.commands.output import Output, inert, table
from keyvouch_client.evidence.ceremonies import Circumstances, anchors_in, claims_in
from keyvouch_client.evidence.receipts import (
    is_receipt,
    log_facts,
    log_sentence,
    read_log,
    server_id_in,
    server_id_of,
)
from keyvouch_client.evidence.stream import Found, read
from keyvouch_client.evidence.vectors import Expectation, Vector, Verdict, id_of, read_vector, verdict_of

__all__ = ["perform"]

_STDIN = "-"
_FIX = 'What a vector holds is told in proto/README.md, "Evidence files".'
_ANCHOR_SUFFIXES = frozenset({".pem", ".crt", ".cer"})
_MOST_CLASSES = 200
_COLUMNS = ("class", "tried", "accepted", "refused", "disagreed")


def perform(arguments: argparse.Namespace) -> int:
    """Judge everything that was named; returns the exit status."""
    output = Output(as_json="json" in arguments)
    try:
        circumstances = Circumstances(
            anchors=[anchor for path in arguments.anchors for anchor in _anchors(Path(path))],
            now=None if arguments.now is None else _instant(arguments.now),
            present=datetime.now(UTC),
            server_id=_server(arguments),
        )
        status = _judge_logs(arguments, output, circumstances.server_id)
        if arguments.audit and not arguments.files:
            return status
        return max(status, _Run(arguments, output, circumstances).all())
    except UsageError as error:
        output.error(error)
        return 2
    except KeyboardInterrupt:
        output.note("\nInterrupted.")
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer has nowhere to go
        if isinstance(error, BrokenPipeError):
            return 1  # whoever read our output has enough
        output.error(UsageError(f"The results cannot be written: {_why(error)}.", fix="Write them elsewhere."))
        return 2


@dataclass(slots=True)
class _Count:
    """How many vectors there were of a class, and what became of them."""

    tried: int = 0
    accepted: int = 0
    compared: int = 0
    disagreed: int = 0

    def add(self, verdict: Verdict, expected: Expectation) -> None:
        self.tried += 1
        self.accepted += verdict.proof is not None
        self.compared += bool(expected.to_dict())
        self.disagreed += bool(verdict.disagreement(expected))

    def row(self) -> tuple[int, int, int, int]:
        return self.tried, self.accepted, self.tried - self.accepted, self.disagreed

    def sentence(self) -> str:
        text = f"{self.tried} tried: {self.accepted} accepted, {self.tried - self.accepted} refused"
        if self.disagreed:
            return f"{text}, {self.disagreed} not as expected"
        if self.compared:
            return f"{text}, {'all' if self.compared == self.tried else self.compared} as expected"
        return text


@dataclass(slots=True)
class _Run:
    """One run over all files."""

    arguments: argparse.Namespace
    output: Output
    circumstances: Circumstances
    total: _Count = field(default_factory=_Count)
    classes: dict[str, _Count] = field(default_factory=dict)
    unusable: int = 0

    def all(self) -> int:
        for name in self.arguments.files or [_STDIN]:
            for found in _found_in(name, self.output):
                self._one(name, found)
        self._sum_up()
        return 2 if self.unusable else int(self.total.disagreed > 0)

    def _one(self, name: str, found: Found) -> None:
        """Judge one vector. It is shown as a whole or not at all."""
        try:
            if found.fault is not None:
                raise found.fault
            vector = read_vector(found.value, self.circumstances)
            if self.arguments.profile not in (None, vector.profile):
                return
            verdict = verdict_of(vector)
        except UsageError as error:
            self._complain(_placed(error, name, found))
            return
        disagreement = verdict.disagreement(vector.expected)
        for count in (self.total, self._class(vector.label)):
            count.add(verdict, vector.expected)
        self.output.line(self._result(vector, verdict, found) | ({"expected": disagreement} if disagreement else {}))
        if self.arguments.explain and verdict.proof is not None and isinstance(found.value, bytes):
            for sentence in verdict.proof.facts["proves"]:  # type: ignore[attr-defined]  # a list, in a receipt's
                self.output.note(inert(sentence))

    def _result(self, vector: Vector, verdict: Verdict, found: Found) -> dict[str, object]:
        assurance = verdict.proof.assurance if verdict.proof else None
        result: dict[str, object] = {
            "id": vector.id if vector.id is not None else found.place or None,
            "decision": verdict.decision,
            "reason": verdict.reason,
            "assurance": assurance.to_dict() if assurance else None,
        }
        return result | _explained(verdict, found) if self.arguments.explain else result

    def _class(self, label: str) -> _Count:
        """The count of a class. Classes come from the input, so there is an end to their number."""
        known = label in self.classes or len(self.classes) < _MOST_CLASSES
        return self.classes.setdefault(label if known else "(others)", _Count())

    def _complain(self, error: UsageError) -> None:
        self.unusable += 1
        self.output.error(error)

    def _sum_up(self) -> None:
        rows = [(label, *count.row()) for label, count in sorted(self.classes.items())]
        if self.arguments.summary and self.output.as_json:
            classes = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
            counts = dict(zip(_COLUMNS[1:], self.total.row(), strict=True)) | {"unusable": self.unusable}
            self.output.aside({"summary": counts | {"classes": classes}})
        if self.arguments.summary and rows:
            self.output.note(table(_COLUMNS, rows) + "\n")
        if self.arguments.summary or sys.stderr.isatty():
            unusable = f"; {self.unusable} could not be used" if self.unusable else ""
            self.output.note(f"{self.total.sentence()}{unusable}.")


def _judge_logs(arguments: argparse.Namespace, output: Output, server_id: ServerId | None) -> int:
    """Judge exported audit logs, one line for each; returns the exit status."""
    status = 0
    for name in arguments.audit:
        result: dict[str, object] = {"id": name, "decision": "accept", "reason": None}
        try:
            with _opened(name, output) as stream:
                log = read_log(stream, server_id)
        except (MalformedError, EvidenceError) as error:
            status = max(status, 1)
            result |= {"decision": "reject", "reason": error.reason.value, "message": error.message}
            result |= {"fix": error.fix} if arguments.explain else {}
            output.line(result | {"details": error.metadata})
            continue
        except (OSError, ValueError) as error:
            status = 2
            output.error(UsageError(f"{name}: It cannot be read: {_why(error)}.", fix="Name an exported audit log."))
            continue
        output.line(result | log_facts(log))
        if arguments.explain:
            output.note(inert(log_sentence(log)))
    return status


def _explained(verdict: Verdict, found: Found) -> dict[str, object]:
    if verdict.error is None:
        return {"message": None, "fix": None, "facts": verdict.proof.facts if verdict.proof else {}}
    told: dict[str, object] = {"message": verdict.error.message, "fix": verdict.error.fix}
    more = {"details": verdict.error.metadata, "claims": claims_in(found.value)}
    return told | {name: value for name, value in more.items() if value}


def _placed(error: UsageError, name: str, found: Found) -> UsageError:
    """The same error with the place it belongs to."""
    file = "standard input" if name == _STDIN else name
    vector_id = id_of(found.value)
    place = ", ".join(filter(None, (file, found.place, f"id {vector_id}" if vector_id is not None else "")))
    placed = UsageError(f"{place}: {error.message}", fix=error.fix or _FIX)
    placed.metadata.update({"file": file, "place": found.place} | ({} if vector_id is None else {"id": vector_id}))
    return placed


# What was named on the command line


def _found_in(name: str, output: Output) -> Iterator[Found]:
    try:
        with _opened(name, output) as stream:
            if is_receipt(stream.peek(1)):
                yield Found("", stream.read(MAX_RECEIPT + 1))
            else:
                yield from read(stream)
    except (OSError, ValueError) as error:
        fix = "Name files that you may read, or - for standard input."
        yield Found("", fault=UsageError(f"It cannot be read: {_why(error)}.", fix=fix))


@contextmanager
def _opened(name: str, output: Output) -> Iterator[BufferedReader]:
    if name != _STDIN:
        with Path(name).open("rb") as stream:
            yield stream
        return
    if sys.stdin.isatty():
        output.note("Reading evidence from the terminal; Ctrl-D ends it.")
    yield cast(BufferedReader, sys.stdin.buffer)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _server(arguments: argparse.Namespace) -> ServerId | None:
    """Whose receipts and logs are expected."""
    if arguments.server_id is not None:
        return server_id_of(arguments.server_id)
    if arguments.ca is None:
        return None
    try:
        return server_id_in(Path(arguments.ca).read_bytes())
    except OSError as error:
        raise UsageError(f"{arguments.ca} cannot be read: {_why(error)}.", fix="Name the server's ca.pem.") from None


def _anchors(path: Path) -> list[TrustAnchor]:
    """The anchors in a file, or in the files of certificates in a directory."""
    try:
        files = sorted(p for p in path.iterdir() if p.suffix in _ANCHOR_SUFFIXES) if path.is_dir() else [path]
        found = [anchor for file in files for anchor in _anchors_of_file(file)]
    except OSError as error:
        raise UsageError(f"The anchors in {path} cannot be read: {_why(error)}.", fix=_ANCHOR_FIX) from None
    if not found:
        raise UsageError(f"There are no certificates in {path}.", fix=_ANCHOR_FIX)
    return found


def _anchors_of_file(path: Path) -> list[TrustAnchor]:
    try:
        return anchors_in(path.read_bytes())
    except ValueError:
        raise UsageError(f"{path} is not a file of certificates in PEM.", fix=_ANCHOR_FIX) from None


_ANCHOR_FIX = "Name a PEM file, or a directory with .pem, .crt or .cer files in PEM."


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise UsageError(f"{text!r} is no instant with a zone.", fix="Write it like 2026-08-01T00:00:00Z.")
    return instant
