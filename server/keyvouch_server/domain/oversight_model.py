"""Records of what is counted, noted and kept: the audit log, budgets and blocks, risk events, requests and proofs.

As in `model`: one frozen dataclass per table, field names are column names, instants are whole seconds. Not here: what
is made of them (`domain.audit`, `use_cases`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from keyvouch.ids import RiskEventId, TenantId, UserId


class RiskKind(StrEnum):
    """What looked like an attack; see oversight.proto."""

    REPORTED = "reported"
    PUSH_BOMBING = "push_bombing"
    NUMBERS_GUESSED = "numbers_guessed"
    PASS_GUESSED = "pass_guessed"
    TOKEN_REUSED = "token_reused"
    DEVICE_LOST = "device_lost"
    NEW_PLACE = "new_place"
    PASS_BUDGET = "pass_budget"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One line of the audit log, written in the transaction of the act. `sequence` is given by the store when 0.
    `details` is JSON text without secrets. `chain_number` counts the tenant's records from 1; `hash` covers this one
    and the hash of the one before it (`domain.audit`). Records from before there was a chain have 0 and nothing.
    """

    sequence: int
    at: int
    tenant_id: TenantId
    action: str
    actor: str
    subject: str
    user_id: UserId
    outcome: str
    details: str
    chain_number: int = 0
    previous_hash: bytes = b""
    hash: bytes = b""


@dataclass(frozen=True, slots=True)
class AuditCheckpoint:
    """The hash of a record of a tenant's chain, signed with the server's identity key."""

    tenant_id: TenantId
    chain_number: int
    hash: bytes
    at: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Throttle:
    """A budget, by the generic cell rate algorithm: `arrival` is the theoretical arrival time in milliseconds since the
    epoch (ITU-T I.371 section 5.4.4). A row whose time has passed says nothing and may go.
    """

    key: str
    tenant_id: TenantId
    arrival: int


@dataclass(frozen=True, slots=True)
class Block:
    """Somebody who may not begin sign-ins for a user until an instant: an address, or a proof key. `key` is a keyed
    hash.
    """

    key: str
    tenant_id: TenantId
    user_id: UserId
    until: int


@dataclass(frozen=True, slots=True)
class RiskEvent:
    """Something that looked like an attack. `closed_by` is the administrator who has looked at it."""

    id: RiskEventId
    tenant_id: TenantId
    user_id: UserId
    kind: RiskKind
    at: int
    address: str
    subject: str
    message: str
    closed_at: int = 0
    closed_by: str = ""


@dataclass(frozen=True, slots=True)
class DoneRequest:
    """A mutation that was done under a `request_id`. `request_hash` is the SHA-256 of method and request; `response`
    its answer in bytes behind the role it was for, empty where the answer held a secret or was never made.
    """

    tenant_id: TenantId
    actor: str
    request_id: str
    request_hash: bytes
    response: bytes
    at: int


@dataclass(frozen=True, slots=True)
class UsedProof:
    """A proof of possession that was used: it is good once. `id` is the SHA-256 of it."""

    id: bytes
    expires_at: int
