"""One recorded vector: what it is, what was expected of it, and the verdict.

The verdict is that of `keyvouch.attestation`, by its reason; what a vector says of itself (`class`, `mutation`,
`profile`) changes nothing in it. Not here: how each kind is read, and how a verdict is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from keyvouch.errors import EvidenceError, MalformedError, UsageError
from keyvouch_client.evidence import tpm
from keyvouch_client.evidence.ceremonies import (
    Check,
    Circumstances,
    Proof,
    read_authentication,
    read_registration,
)
from keyvouch_client.evidence.members import Members
from keyvouch_client.evidence.receipts import read_receipt

__all__ = ["Expectation", "Vector", "Verdict", "id_of", "read_vector", "verdict_of"]

ACCEPT, REJECT = "accept", "reject"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the writer of a vector says its verdict has to be; None where nothing is said."""

    decision: str | None
    reason: str | None

    def to_dict(self) -> dict[str, str]:
        """What is said, fit for JSON."""
        return {n: v for n, v in (("decision", self.decision), ("reason", self.reason)) if v is not None}


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector that can be judged. `label` is its class for counting; `reason_prefix` is not part of its reasons."""

    id: str | None
    label: str
    profile: str
    expected: Expectation
    check: Check
    reason_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on a vector: `proof` if it is accepted, `error` and its `reason` if not."""

    proof: Proof | None = None
    error: MalformedError | EvidenceError | None = None
    reason: str | None = None

    @property
    def decision(self) -> str:
        """`accept` or `reject`."""
        return REJECT if self.proof is None else ACCEPT

    def disagreement(self, expected: Expectation) -> dict[str, str]:
        """What was expected, if it is something else; empty if nothing else was."""
        agrees = expected.decision in (None, self.decision) and expected.reason in (None, self.reason)
        return {} if agrees else expected.to_dict()


def id_of(value: object) -> str | None:
    """The id of a vector, whatever else is wrong with it."""
    found = value.get("id") if isinstance(value, Mapping) else None
    return str(found) if isinstance(found, str | int) else None


def read_vector(value: object, circumstances: Circumstances) -> Vector:
    """Read one JSON object, or the bytes of a receipt, as a vector.

    Raises `UsageError` for what its writer left out or wrote wrongly.
    """
    if isinstance(value, bytes):
        check = read_receipt(value, circumstances.server_id)
        return Vector(None, "receipt", "core", Expectation(ACCEPT, None), check)
    vector = Members(value)
    kind = _kind(vector)
    profile = _optional(vector, "profile") or "core"
    expected = Expectation(_optional(vector, "expect"), _optional(vector, "reason"))
    if expected.decision not in (None, ACCEPT, REJECT):
        raise vector.wrong("expect", f"{ACCEPT} or {REJECT}")
    name, label = id_of(value), _optional(vector, "class") or kind
    if kind == "registration":
        return Vector(name, label, profile, expected, read_registration(vector, circumstances))
    if kind == "authentication":
        return Vector(name, label, profile, expected, read_authentication(vector, circumstances))
    check = tpm.read_certify(vector) if kind == "certify" else tpm.read_quote(vector)
    return Vector(name, label, profile, expected, check, "tpm_")


def verdict_of(vector: Vector) -> Verdict:
    """Give the verdict on a vector. Raises `UsageError` for expectations that make no sense, such as no origin."""
    try:
        return Verdict(proof=vector.check())
    except (MalformedError, EvidenceError) as error:
        return Verdict(error=error, reason=error.reason.value.removeprefix(vector.reason_prefix))


_LOG_LINES = ("log", "checkpoint", "record")
_KINDS = {"ceremony": ("registration", "authentication"), "kind": ("certify", "quote")}


def _kind(vector: Members) -> str:
    """What the vector says it is; else what it can only be by the members it has."""
    for name, kinds in _KINDS.items():
        if name in vector:
            kind = vector.text(name)
            if kind not in kinds:
                raise vector.wrong(name, " or ".join(kinds))
            return kind
    if "response" in vector:
        return "authentication" if "stored" in vector else "registration"
    if "attest" in vector:
        return "certify" if "subjectPublic" in vector else "quote"
    if "type" in vector and vector.anything("type") in _LOG_LINES:
        raise UsageError("This is a line of an audit log.", fix="Name the log with --audit.")
    raise UsageError(
        "Nothing says what this is: it has no ceremony and no kind, no response and no attest.",
        fix=f"Write a ceremony ({' or '.join(_KINDS['ceremony'])}) or a kind ({' or '.join(_KINDS['kind'])}).",
    )


def _optional(vector: Members, name: str) -> str | None:
    return None if name not in vector or vector.anything(name) is None else vector.text(name)
