"""Audit logs of a made-up server: chains of records, checkpoints over them, exported lines, and their spoiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.audit_chain import (
    BEGINNING,
    ChainRecord,
    Checkpoint,
    VerifiedCheckpoint,
    checkpoint_statement,
    verify_checkpoint,
)
from keyvouch.audit_lines import LogHeader, LogLine
from keyvouch.ids import ServerId, TenantId
from keyvouch.proofs import sign_proof, spki_of, spki_sha256
from keyvouch.statement import Purpose

TENANT_ID = TenantId("ten_example")
KEY = ec.generate_private_key(ec.SECP256R1())
SERVER_ID = ServerId(spki_sha256(KEY.public_key()))

CONTENT = ("at", "action", "actor", "subject", "user_id", "outcome", "details")
"""What a record says, by its columns."""


def sealed(record: ChainRecord, number: int, previous: ChainRecord | None) -> ChainRecord:
    """The record as it would have been written as this one of the chain."""
    before = previous.hash if previous else BEGINNING
    placed = replace(record, number=number, previous_hash=before, position=2 * number)
    return replace(placed, hash=placed.hash_as(number))


def unsealed(n: int, tenant_id: str = TENANT_ID) -> ChainRecord:
    """A record without a place, different for each `n`."""
    return ChainRecord(
        tenant_id, 0, 1_800_000_000 + n, f"act.{n}", f"usr_{n}", f"sin_{n}", f"usr_{n}", "ok", "{}", b"", b""
    )


def chain(length: int, tenant_id: str = TENANT_ID) -> list[ChainRecord]:
    """A sound chain."""
    records: list[ChainRecord] = []
    for number in range(1, length + 1):
        records.append(sealed(unsealed(number, tenant_id), number, records[-1] if records else None))
    return records


def resealed(records: Sequence[ChainRecord], since: int) -> list[ChainRecord]:
    """The chain made anew from record `since` on, as somebody could who writes to the store."""
    made = list(records[: since - 1])
    for record in records[since - 1 :]:
        made.append(sealed(record, len(made) + 1, made[-1] if made else None))
    return made


def checkpoint(record: ChainRecord, at: int = 1_800_100_000, key: ec.EllipticCurvePrivateKey = KEY) -> Checkpoint:
    """A checkpoint over a record, signed."""
    server_id = ServerId(spki_sha256(key.public_key()))
    statement = checkpoint_statement(server_id, record.tenant_id, record.number, record.hash, at)
    signature = sign_proof(key, Purpose.AUDIT_CHECKPOINT, statement)
    return Checkpoint(server_id, TenantId(record.tenant_id), record.number, record.hash, at, signature)


def verified(record: ChainRecord) -> VerifiedCheckpoint:
    """A checkpoint over a record, verified."""
    return verify_checkpoint(checkpoint(record), identity_key=KEY.public_key())


def header(key: ec.EllipticCurvePrivateKey = KEY) -> LogHeader:
    """The first line of an exported log."""
    public = key.public_key()
    return LogHeader(1, ServerId(spki_sha256(public)), spki_of(public), TENANT_ID, "example", 1_800_100_000)


def exported(records: Sequence[ChainRecord]) -> list[LogLine]:
    """A log as it is exported."""
    return [header(), checkpoint(records[-1]), *records]


_FIRST_TENANT = "tenant_id = (SELECT id FROM tenant)"
_COPY = (
    "INSERT INTO audit_record SELECT (SELECT max(sequence) + 1 FROM audit_record), at, tenant_id, action, actor,"
    " subject, user_id, {} FROM audit_record WHERE chain_number = 12"
)
_EDITS = {
    "at": "at + 1",
    "action": "'user.delete'",
    "actor": "'server'",
    "subject": "'usr_y'",
    "user_id": "'usr_y'",
    "outcome": "'denied'",
    "details": "'{}'",
    "previous_hash": "x'00'",
    "hash": "x'00'",
    "tenant_id": "'ten_other'",
    "chain_number": "-1",
}
SPOILINGS: dict[str, tuple[tuple[str, ...], set[str], int]] = {
    **{
        f"edit {column}": ((f"UPDATE audit_record SET {column} = {value} WHERE chain_number = 12",), set(), 12)
        for column, value in _EDITS.items()
    },
    "delete": (("DELETE FROM audit_record WHERE chain_number = 12",), {"missing"}, 12),
    "delete the first": ((f"DELETE FROM audit_record WHERE chain_number = 1 AND {_FIRST_TENANT}",), {"missing"}, 1),
    "cut": (("DELETE FROM audit_record WHERE chain_number >= 12",), {"cut_off"}, 12),
    "cut all": ((f"DELETE FROM audit_record WHERE {_FIRST_TENANT}",), {"cut_off"}, 1),
    "swap": (
        (
            "UPDATE audit_record SET chain_number = -12 WHERE chain_number = 12",
            "UPDATE audit_record SET chain_number = 12 WHERE chain_number = 15",
            "UPDATE audit_record SET chain_number = 15 WHERE chain_number = -12",
        ),
        {"out_of_order"},
        12,
    ),
    "swap positions": (
        ("UPDATE audit_record SET sequence = 100000 WHERE chain_number = 12",),
        {"out_of_order"},
        13,
    ),
    "insert": ((_COPY.format("'denied', details, chain_number, previous_hash, hash"),), {"inserted", "changed"}, 12),
    "insert beside the chain": ((_COPY.format("outcome, details, 0, x'', x''"),), {"inserted"}, 0),
}
"""By their names: the statements that spoil the log of a store's first tenant, in SQL that SQLite takes, the kinds of
fault of which one has to be named, any if there are none, and the number of the first bad record.
"""
