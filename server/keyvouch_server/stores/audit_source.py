"""What the audit commands read of a store from outside, whichever database it is in (`sqlite_audit`, `postgres_audit`).

A source is the log as it was at one moment. Rows come one after the other, however many there are, in the order of the
chain; each method may be called while the rows of another are still read. Methods raise `UnavailableError` when the
store fails meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from keyvouch.errors import Reason, UnavailableError
from keyvouch.ids import TenantId
from keyvouch_server.domain.oversight_model import AuditCheckpoint, AuditRecord


class AuditSource(Protocol):
    """The audit log as it was at one moment."""

    @property
    def older_than_chains(self) -> bool:
        """Whether the store may hold records from before there were chains. In any other, each record is in one."""
        ...

    def tenants(self) -> Mapping[TenantId, str]:
        """Every tenant by its id with its name, and whatever else has records or checkpoints, with an empty one."""
        ...

    def username(self, user_id: str) -> str:
        """The login name of a user, empty for one who is gone."""
        ...

    def chained(self, tenant: TenantId, *, first: int = 1) -> Iterator[AuditRecord]:
        """The records of the tenant's chain, from number `first` on."""
        ...

    def unchained(self, tenant: TenantId) -> Iterator[AuditRecord]:
        """Records that are in no chain."""
        ...

    def newest(self, tenant: TenantId) -> AuditRecord | None:
        """The last record of the tenant's chain."""
        ...

    def first_since(self, tenant: TenantId, instant: int) -> int:
        """The number of the first record of the chain that was written at an instant or later; 0 if there is none."""
        ...

    def checkpoints(self, tenant: TenantId) -> Iterator[AuditCheckpoint]:
        """The checkpoints that are kept of the tenant's chain."""
        ...


def other_schema() -> UnavailableError:
    """The error for a store that another version of the server has made, or nobody yet."""
    return UnavailableError(
        Reason.STORE_SCHEMA,
        "The store has another schema version than this program's.",
        fix="Use the program of the server that serves it, or start this one once.",
    )
