"""The audit chain: what ties each record of an audit log to the one before, and what a server signs of it.

The records of a tenant are numbered from 1, and each has the hash of the one before:

    hash = SHA-256("keyvouch/audit/v1" || 0x00 || canonical CBOR of [tenant, number, at, action, actor, subject, user,
                                                                     outcome, details, hash of the record before])

So no record can be changed, taken out, put in or moved without breaking the chain at that place. Whoever can write to
the store could still make the chain anew from some record on, or cut off its end. A checkpoint, which the server signs
and which leaves the machine, shows that: what the chain was at that record, it must still be.

`verify_checkpoint` is about one signature, `verify_chain` about the records of one tenant; both raise with the first
thing that is wrong. Not here: where records come from (a store, an exported file), and who may read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch import cbor
from keyvouch.errors import EvidenceError, Reason, UsageError
from keyvouch.ids import ServerId, TenantId
from keyvouch.proofs import spki_sha256, verify_proof
from keyvouch.statement import Purpose

__all__ = [
    "BEGINNING",
    "ChainFault",
    "ChainRecord",
    "Checkpoint",
    "VerifiedChain",
    "VerifiedCheckpoint",
    "checkpoint_statement",
    "record_hash",
    "verify_chain",
    "verify_checkpoint",
]

_DOMAIN: Final = b"keyvouch/audit/v1\x00"

BEGINNING: Final = b""
"""In the place of the hash of the record before, in the first record."""

_CONTRADICTORY: Final = b"two different hashes were signed"
"""In the place of the hash of a checkpoint, where a server signed two histories. No record has it."""


class ChainFault(StrEnum):
    """What is wrong with a chain."""

    CHANGED = "changed"
    MISSING = "missing"
    INSERTED = "inserted"
    OUT_OF_ORDER = "out_of_order"
    REWRITTEN = "rewritten"
    """The chain holds together, but is not the one of a checkpoint."""
    CUT_OFF = "cut_off"
    """It ends before a checkpoint."""


def record_hash(
    tenant_id: str,
    number: int,
    at: int,
    action: str,
    actor: str,
    subject: str,
    user_id: str,
    outcome: str,
    details: str,
    previous_hash: bytes,
) -> bytes:
    """The hash of a record, 32 bytes."""
    told = [tenant_id, number, at, action, actor, subject, user_id, outcome, details, previous_hash]
    return hashlib.sha256(_DOMAIN + cbor.encode(told)).digest()


@dataclass(frozen=True, slots=True)
class ChainRecord:
    """A record as it was found. `position` is where a store keeps it, which rises with the number; 0 where unknown."""

    tenant_id: str
    number: int
    at: int
    action: str
    actor: str
    subject: str
    user_id: str
    outcome: str
    details: str
    previous_hash: bytes
    hash: bytes
    position: int = 0

    def hash_as(self, number: int) -> bytes:
        """What its hash has to be, if it is record `number`."""
        return record_hash(
            self.tenant_id,
            number,
            self.at,
            self.action,
            self.actor,
            self.subject,
            self.user_id,
            self.outcome,
            self.details,
            self.previous_hash,
        )

    def fits(self, number: int) -> bool:
        """Whether it is whole, as record `number`. What has no encoding, such as a text that is none, never is."""
        try:
            return self.hash_as(number) == self.hash
        except UsageError:
            return False


# Checkpoints


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a server says it signed: that record `number` of the tenant's chain had this hash, at that instant."""

    server_id: ServerId
    tenant_id: TenantId
    number: int
    hash: bytes
    at: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """What a server did sign."""

    tenant_id: str
    number: int
    hash: bytes
    at: int


def checkpoint_statement(server_id: ServerId, tenant_id: str, number: int, digest: bytes, at: int) -> bytes:
    """What the identity key signs (purpose `audit-checkpoint`)."""
    return cbor.encode({1: server_id, 2: tenant_id, 3: number, 4: digest, 5: at})


def verify_checkpoint(checkpoint: Checkpoint, *, identity_key: ec.EllipticCurvePublicKey) -> VerifiedCheckpoint:
    """Verify that the server of this identity key signed a checkpoint.

    1. the server id is the hash of the key; 2. the signature. Raises `EvidenceError(AUDIT_CHECKPOINT)`.
    """
    number, tenant, server = checkpoint.number, checkpoint.tenant_id, checkpoint.server_id
    place = {"tenant_id": tenant, "number": str(number)}
    if server != spki_sha256(identity_key):
        raise EvidenceError(
            Reason.AUDIT_CHECKPOINT,
            f"The checkpoint at record {number} is another server's.",
            fix="Use the checkpoints of the server whose log this is.",
            metadata=place,
        )
    try:
        statement = checkpoint_statement(server, tenant, number, checkpoint.hash, checkpoint.at)
        verify_proof(identity_key, Purpose.AUDIT_CHECKPOINT, statement, signature=checkpoint.signature)
    except (EvidenceError, UsageError):
        raise EvidenceError(
            Reason.AUDIT_CHECKPOINT,
            f"The server did not sign the checkpoint at record {number}.",
            fix="Somebody made it up or changed it. Use one that came to you another way.",
            metadata=place,
        ) from None
    return VerifiedCheckpoint(tenant, number, checkpoint.hash, checkpoint.at)


# Chains


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """A chain that holds. `first` and `last` are numbers of records, 0 where there are none; `hash` is the last one's.

    `vouched` is the last record that a checkpoint vouches for, 0 without one: all before are as they were then.
    """

    tenant_id: str
    first: int
    last: int
    hash: bytes
    vouched: int


def verify_chain(
    records: Iterable[ChainRecord],
    *,
    tenant_id: str,
    checkpoints: Iterable[VerifiedCheckpoint],
    from_the_start: bool = True,
) -> VerifiedChain:
    """Hold the records of one tenant, in order, against each other and against checkpoints.

    Each record has the number after the one before, its hash, and its own hash over all of it; where a checkpoint was
    made, the hash is the signed one; and no checkpoint is beyond the end. Without `from_the_start` the records may
    begin anywhere in the chain.

    Raises `EvidenceError` for the first record that is not as it was written: AUDIT_CHAIN, or AUDIT_CHECKPOINT where
    only a checkpoint shows it. `metadata` has its `number`, the `kind` of fault and, where it can be any of several,
    `through`, the last of them.
    """
    walk = _Walk(tenant_id, from_the_start)
    for checkpoint in checkpoints:
        if checkpoint.tenant_id == tenant_id:
            known = walk.marks.setdefault(checkpoint.number, checkpoint.hash)
            if known != checkpoint.hash:
                walk.marks[checkpoint.number] = _CONTRADICTORY
    rest = iter(records)
    for record in rest:
        walk.step(record, rest)
    return walk.end()


@dataclass(slots=True)
class _Walk:
    """How far a chain was followed: the last good record, the hash before it, and what checkpoints say."""

    tenant_id: str
    from_the_start: bool
    marks: dict[int, bytes] = field(default_factory=dict)
    first: int = 0
    last: ChainRecord | None = None
    before: bytes = BEGINNING
    vouched: int = 0

    @property
    def expected(self) -> int:
        """The number of the record that has to come now, 0 for any."""
        if self.last is None:
            return 1 if self.from_the_start else 0
        return self.last.number + 1

    def step(self, record: ChainRecord, rest: Iterator[ChainRecord]) -> None:
        """Follow the chain by one record; `rest` is looked at only when there is a fault to be told precisely."""
        expected = self.expected or record.number
        if record.tenant_id != self.tenant_id:
            raise _fault(ChainFault.INSERTED, self.tenant_id, expected)
        if record.number != expected or record.number < 1:
            raise self._misplaced(record, expected, rest)
        linked = self._continues(record)
        if not linked or not record.fits(record.number):
            raise self._broken(record, rest, linked=linked)
        if self.last is not None and record.position <= self.last.position != 0:
            raise _fault(ChainFault.OUT_OF_ORDER, self.tenant_id, record.number)
        if self.marks.get(record.number, record.hash) != record.hash:
            raise self._rewritten(record, rest)
        self.before, self.last = self.last.hash if self.last else BEGINNING, record
        self.first = self.first or record.number
        if record.number in self.marks:
            self.vouched = record.number

    def end(self) -> VerifiedChain:
        """What was found, or that the end is missing."""
        last = self.last.number if self.last else 0
        beyond = [number for number in self.marks if number > last]
        if beyond:
            raise _fault(ChainFault.CUT_OFF, self.tenant_id, last + 1, through=max(beyond))
        return VerifiedChain(self.tenant_id, self.first, last, self.last.hash if self.last else BEGINNING, self.vouched)

    def _continues(self, record: ChainRecord) -> bool:
        if self.last is not None:
            return record.previous_hash == self.last.hash
        return not self.from_the_start or record.previous_hash == BEGINNING

    def _misplaced(self, record: ChainRecord, expected: int, rest: Iterator[ChainRecord]) -> EvidenceError:
        """Another number than the one that has to come."""
        if self.last is not None and record.number == self.last.number:
            return _fault(ChainFault.INSERTED, self.tenant_id, record.number)
        later = self._comes_after(expected, rest)
        if record.number < expected:
            return _fault(ChainFault.INSERTED if later else ChainFault.OUT_OF_ORDER, self.tenant_id, expected)
        return _fault(ChainFault.OUT_OF_ORDER if later else ChainFault.MISSING, self.tenant_id, expected)

    def _broken(self, record: ChainRecord, rest: Iterator[ChainRecord], *, linked: bool) -> EvidenceError:
        """The right number, but not the record that was written under it."""
        last, number = self.last, record.number
        if not linked and record.fits(number):
            # It is whole and was written after another record than the one before it, unless that one is vouched for.
            guilty = number if last is None or self.vouched == last.number else last.number
            return _fault(ChainFault.CHANGED, self.tenant_id, guilty)
        if last is not None and record.previous_hash == self.before and record.fits(last.number):
            return _fault(ChainFault.INSERTED, self.tenant_id, last.number)
        next_one, later = record.fits(number + 1), self._comes_after(number, rest)
        if next_one and not later:
            return _fault(ChainFault.MISSING, self.tenant_id, number)
        kind = ChainFault.INSERTED if later == 1 and not next_one else ChainFault.OUT_OF_ORDER
        return _fault(kind if later else ChainFault.CHANGED, self.tenant_id, number)

    def _rewritten(self, record: ChainRecord, rest: Iterator[ChainRecord]) -> EvidenceError:
        """A record that fits, but is not the signed one: put before that, or in its place."""
        if self._comes_after(record.number, rest):
            return _fault(ChainFault.INSERTED, self.tenant_id, record.number)
        first = max(self.vouched + 1, self.first or record.number)
        return _fault(ChainFault.REWRITTEN, self.tenant_id, first, through=record.number)

    def _comes_after(self, number: int, rest: Iterator[ChainRecord]) -> int:
        """At which place among the rest record `number` is, under its number or another; 0 if it is not there."""
        found = (n for n, r in enumerate(rest, start=1) if self._continues(r) and r.fits(number))
        return next(found, 0)


_SENTENCES: Final = {
    ChainFault.CHANGED: "Record {number} was changed after it was written",
    ChainFault.MISSING: "Record {number} is missing",
    ChainFault.INSERTED: "What stands in the place of record {number} was put in later",
    ChainFault.OUT_OF_ORDER: "Record {number} is not in its place",
    ChainFault.REWRITTEN: "The records {number} to {through} are not those that the server signed",
    ChainFault.CUT_OFF: "The log was cut off: records {number} to {through} are missing",
}
_BY_CHECKPOINT: Final = frozenset({ChainFault.REWRITTEN, ChainFault.CUT_OFF})


def _fault(kind: ChainFault, tenant_id: str, number: int, *, through: int = 0) -> EvidenceError:
    sentence = _SENTENCES[kind].format(number=number, through=through)
    metadata = {"kind": kind.value, "number": str(number), "tenant_id": tenant_id}
    return EvidenceError(
        Reason.AUDIT_CHECKPOINT if kind in _BY_CHECKPOINT else Reason.AUDIT_CHAIN,
        f"{sentence}.",
        fix="Keep the store as it is, and compare it with your backups and with logs that were sent elsewhere.",
        metadata=metadata | ({"through": str(through)} if through else {}),
    )
