"""The audit chain as the server writes it: the next record, and records as the chain's verifier wants them.

The bytes and their verification are `keyvouch.audit_chain`. Not here: reading and writing records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from keyvouch.audit_chain import BEGINNING, ChainRecord, VerifiedCheckpoint, record_hash
from keyvouch.ids import TenantId, UserId
from keyvouch_server.domain.oversight_model import AuditCheckpoint, AuditRecord

__all__ = ["chain_record", "checkpoint_due", "details_text", "next_record", "own_checkpoint"]

_write_details = json.JSONEncoder(sort_keys=True).encode  # made once: each act writes some

CHECKPOINT_SECONDS = 60
"""At most so often the server signs a checkpoint of a tenant, of its own accord."""


def details_text(details: Mapping[str, str]) -> str:
    """Details as they are kept, and hashed: JSON with sorted names."""
    return _write_details(details) if details else "{}"


def next_record(
    newest: AuditRecord | None,
    *,
    at: int,
    tenant_id: TenantId,
    action: str,
    actor: str,
    subject: str,
    user_id: UserId,
    outcome: str,
    details: str,
) -> AuditRecord:
    """The record after the tenant's newest one. Records from before there was a chain do not count."""
    number = newest.chain_number + 1 if newest else 1
    previous = newest.hash if newest else BEGINNING
    digest = record_hash(tenant_id, number, at, action, actor, subject, user_id, outcome, details, previous)
    return AuditRecord(0, at, tenant_id, action, actor, subject, user_id, outcome, details, number, previous, digest)


def chain_record(record: AuditRecord) -> ChainRecord:
    """A record as `verify_chain` wants it."""
    return ChainRecord(
        record.tenant_id,
        record.chain_number,
        record.at,
        record.action,
        record.actor,
        record.subject,
        record.user_id,
        record.outcome,
        record.details,
        record.previous_hash,
        record.hash,
        record.sequence,
    )


def checkpoint_due(newest: AuditRecord | None, signed: AuditCheckpoint | None) -> bool:
    """Whether there is a record that no checkpoint covers yet."""
    return newest is not None and newest.chain_number > (signed.chain_number if signed else 0)


def own_checkpoint(checkpoint: AuditCheckpoint) -> VerifiedCheckpoint:
    """A checkpoint that this very program has just signed or verified, as `verify_chain` wants it."""
    return VerifiedCheckpoint(checkpoint.tenant_id, checkpoint.chain_number, checkpoint.hash, checkpoint.at)
