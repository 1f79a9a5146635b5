"""The `keyvouch-server audit` commands: verify, export, checkpoint.

They read the store from outside, as it is at one moment, while a server may be running, and write nothing into it. What
they hold against what is `keyvouch.audit_chain`. Not here: reading the store (`stores.audit_source`), and the commands'
grammar (`__main__`).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from keyvouch.audit_chain import (
    ChainFault,
    ChainRecord,
    Checkpoint,
    VerifiedCheckpoint,
    verify_chain,
    verify_checkpoint,
)
from keyvouch.audit_lines import VERSION, LogHeader, parse_line, write_line
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason
from keyvouch.ids import ServerId, TenantId
from keyvouch.proofs import load_proof_key
from keyvouch_server import __version__
from keyvouch_server.bootstrap import SystemClock
from keyvouch_server.domain.audit import chain_record
from keyvouch_server.domain.names import name_key
from keyvouch_server.domain.ocsf import Naming, ocsf_event
from keyvouch_server.domain.oversight_model import AuditCheckpoint, AuditRecord
from keyvouch_server.key_files import read_keys
from keyvouch_server.ports import Keys
from keyvouch_server.store_access import opened_log
from keyvouch_server.stores.audit_source import AuditSource
from keyvouch_server.use_cases.audit_log import signed_checkpoint

_PROGRESS = 100_000
_LOG_WORD = "checkpoint "
_CHECKPOINT_TYPE = b'"checkpoint"'
"""What a line of JSON has, and no other that is in a log, if it is or was a checkpoint."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A data directory: its audit log, and the identity of its server."""

    reader: AuditSource
    keys: Keys
    server_id: ServerId

    def signed(self, record: AuditRecord) -> Checkpoint:
        """A checkpoint over a record, signed now."""
        return signed_checkpoint(self.keys, self.server_id, record, SystemClock().now())

    def verified(self, checkpoints: Iterable[Checkpoint]) -> Iterator[VerifiedCheckpoint]:
        """Checkpoints of this server. Raises `EvidenceError` at the first that it did not sign."""
        key = load_proof_key(self.keys.identity_key)
        return (verify_checkpoint(one, identity_key=key) for one in checkpoints)

    def kept(self, tenant: TenantId) -> Iterator[VerifiedCheckpoint]:
        """The checkpoints in the store."""
        return self.verified(_signed_row(self.server_id, row) for row in self.reader.checkpoints(tenant))


# verify


def verify(arguments: argparse.Namespace) -> int:
    """Verify the chains of all tenants, or of one; returns 1 where one does not hold."""
    with opened_log(arguments.data) as reader:
        place = _place(arguments.data, reader)
        against = _checkpoints_in(arguments.against, place) if arguments.against else []
        chosen = _chosen(reader, arguments.tenant, against)
        reports = [_verified(place, tenant, name, against) for tenant, name in chosen]
    holds = all(report["ok"] for report in reports)
    lines = [json.dumps({"ok": holds, "tenants": reports})] if arguments.json else map(_told, reports)
    with _output():
        _put(*lines)
    return 0 if holds else 1


def _verified(place: _Place, tenant: TenantId, name: str, against: list[VerifiedCheckpoint]) -> dict[str, object]:
    reader = place.reader
    report: dict[str, object] = {"tenant_id": tenant, "tenant": name, "ok": True}
    try:
        chain = verify_chain(
            _counted(map(chain_record, reader.chained(tenant)), name),
            tenant_id=tenant,
            checkpoints=[*place.kept(tenant), *against],
        )
        unchained = _count_unchained(reader, tenant)
    except EvidenceError as error:
        problem = {"reason": error.reason.value, "message": error.message, "fix": error.fix, **error.metadata}
        return report | {"ok": False, "problem": problem}
    return report | {"records": chain.last, "vouched": chain.vouched, "hash": chain.hash.hex(), "unchained": unchained}


def _count_unchained(reader: AuditSource, tenant: TenantId) -> int:
    """How many records come from before there was a chain. One from later was put in beside it.

    A store that is older than chains gives positions once, from 1 on and without gaps: so there is none to be had
    before the chain's first record.
    """
    first = next(reader.chained(tenant), None) if reader.older_than_chains else None
    count = 0
    for record in reader.unchained(tenant):
        later = first is not None and record.sequence > first.sequence
        if record.sequence < 1 or later or not reader.older_than_chains:
            raise EvidenceError(
                Reason.AUDIT_CHAIN,
                f"A record stands beside the chain, at position {record.sequence} of the log, and was put in later.",
                fix="Keep the store as it is, and compare it with your backups and with logs that were sent elsewhere.",
                metadata={"kind": ChainFault.INSERTED.value, "number": "0", "position": str(record.sequence)},
            )
        count += 1
    return count


def _counted(records: Iterable[ChainRecord], name: str) -> Iterator[ChainRecord]:
    """The same, telling a person at a terminal how far it is."""
    watched, name = sys.stderr.isatty(), _shown(name)
    for count, record in enumerate(records, start=1):
        if watched and count % _PROGRESS == 0:
            sys.stderr.write(f"\r{name}: {count:,} records")
            sys.stderr.flush()
        yield record
    if watched:
        sys.stderr.write("\r\x1b[K")


def _told(report: Mapping[str, object]) -> str:
    name = _shown(str(report["tenant"] or report["tenant_id"]))
    if not report["ok"]:
        problem = report["problem"]
        assert isinstance(problem, dict)
        return f"{name}: {problem['message']}\n  {problem['fix']}"
    records, vouched, unchained = report["records"], report["vouched"], report["unchained"]
    text = f"{name}: {records} records, nothing changed, missing or put in."
    if records:
        text += f" A checkpoint vouches for 1 to {vouched}." if vouched else " No checkpoint vouches for them yet."
    return text + (f" {unchained} older records are from before there was a chain." if unchained else "")


def _shown(name: str) -> str:
    """A tenant's name, which may be anything where somebody has changed the store."""
    return (name if name.isprintable() else json.dumps(name)) or "(of no tenant)"


def _checkpoints_in(path: Path, place: _Place) -> list[VerifiedCheckpoint]:
    """The checkpoints in a file of them, or in a server's log, where other lines are passed over."""
    try:
        with path.open("rb") as lines:
            found = [line for line in map(_checkpoint_in, lines) if line is not None]
    except OSError as error:
        raise _configuration(f"{path} cannot be read: {error.strerror}.", "Name a file of checkpoints.") from None
    if not found:
        fix = "Name the output of `audit checkpoint`, or a log of the server."
        raise _configuration(f"There is no checkpoint in {path}.", fix)
    return list(place.verified(found))


def _checkpoint_in(line: bytes) -> Checkpoint | None:
    before, brace, after = line.partition(b"{")
    if not brace or (before.strip() and not before.endswith(_LOG_WORD.encode())):
        return None
    try:
        parsed = parse_line(brace + after)
    except MalformedError:
        if before.strip() or _CHECKPOINT_TYPE in after:
            raise
        return None
    return parsed if isinstance(parsed, Checkpoint) else None


# export


def export(arguments: argparse.Namespace) -> int:
    """Write a tenant's log to standard output, a line for each record. A log that does not hold is not exported."""
    with opened_log(arguments.data) as reader:
        place = _place(arguments.data, reader)
        tenant, name = _one(arguments.tenant, reader.tenants())
        since = 0 if arguments.since is None else _instant(arguments.since)
        _export(_Export(place, tenant, name, since), as_ocsf=arguments.format == "ocsf")
    return 0


@dataclass(frozen=True, slots=True)
class _Export:
    """What is exported: of which tenant, from which instant on."""

    place: _Place
    tenant: TenantId
    name: str
    since: int


def _export(wanted: _Export, *, as_ocsf: bool) -> None:
    place, reader = wanted.place, wanted.place.reader
    first = reader.first_since(wanted.tenant, wanted.since) if wanted.since else 1
    newest = reader.newest(wanted.tenant) if first else None
    if newest is None:
        fix = "Name an earlier instant, or none." if wanted.since else "It begins with the first act."
        raise _configuration(f"There are no records of {_shown(wanted.name)} to export.", fix)
    own = place.signed(newest)
    verify_chain(
        _counted(map(chain_record, reader.chained(wanted.tenant, first=first)), wanted.name),
        tenant_id=wanted.tenant,
        checkpoints=[c for c in (*place.kept(wanted.tenant), *place.verified([own])) if c.number >= first],
        from_the_start=first == 1,
    )
    _count_unchained(reader, wanted.tenant)
    records = itertools.chain(
        (record for record in reader.unchained(wanted.tenant) if record.at >= wanted.since),
        reader.chained(wanted.tenant, first=first),
    )
    with _output():
        if as_ocsf:
            names = _Names(reader, wanted.name, place.server_id)
            for record in records:
                _put(names.event(record))
            return
        header = LogHeader(VERSION, place.server_id, place.keys.identity_key, wanted.tenant, wanted.name, own.at)
        _put(write_line(header), write_line(own))
        for record in records:
            _put(write_line(chain_record(record)))


class _Names:
    """Names for events, each looked up once."""

    def __init__(self, reader: AuditSource, tenant: str, server_id: ServerId) -> None:
        self._reader, self._tenant, self._server_id = reader, tenant, server_id
        self._known: dict[str, str] = {}

    def event(self, record: AuditRecord) -> str:
        """The record as one line of OCSF."""
        naming = Naming(
            tenant=self._tenant,
            username=self._name(record.user_id),
            actor=self._name(record.actor),
            server=self._server_id.hex(),
            version=__version__,
        )
        return json.dumps(ocsf_event(record, naming))

    def _name(self, user_id: str) -> str:
        if user_id not in self._known:
            if len(self._known) >= 100_000:
                self._known.clear()
            self._known[user_id] = self._reader.username(user_id) if user_id.startswith("usr_") else ""
        return self._known[user_id]


def _put(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Around what is written. Whoever read it may have enough, and then what is left has nowhere to go."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(1) from None
        raise _configuration(f"The output cannot be written: {error.strerror}.", "Write it elsewhere.") from None


# checkpoint


def checkpoint(arguments: argparse.Namespace) -> int:
    """Print a signed checkpoint of each tenant's chain, or of one, to be kept elsewhere. Nothing is stored."""
    with opened_log(arguments.data) as reader:
        place = _place(arguments.data, reader)
        newest = [reader.newest(tenant) for tenant, _ in _chosen(reader, arguments.tenant)]
    with _output():
        _put(*(write_line(place.signed(record)) for record in newest if record is not None))
    return 0


# What all have in common


def _place(data: Path, reader: AuditSource) -> _Place:
    authority, keyring = read_keys(data, SystemClock())
    return _Place(reader, keyring, authority.server_id)


def _signed_row(server_id: ServerId, row: AuditCheckpoint) -> Checkpoint:
    return Checkpoint(server_id, row.tenant_id, row.chain_number, row.hash, row.at, row.signature)


def _chosen(reader: AuditSource, wanted: str, against: Iterable[VerifiedCheckpoint] = ()) -> list[tuple[TenantId, str]]:
    """The tenant of that name or id; all of them, and what belongs to none, where nobody is named.

    A tenant of which there is nothing but a checkpoint is one, too: its log was taken out as a whole.
    """
    tenants = {TenantId(one.tenant_id): "" for one in against} | dict(reader.tenants())
    return [_one(wanted, tenants)] if wanted else list(tenants.items())


def _one(wanted: str, tenants: Mapping[TenantId, str]) -> tuple[TenantId, str]:
    for tenant, name in tenants.items():
        if tenant == wanted or (name and name_key(name) == name_key(wanted)):
            return tenant, name
    raise _configuration(
        f"There is no tenant {wanted} on this server.", "Look up its name in `keyvouch admin tenant list`."
    )


def _instant(text: str) -> int:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise _configuration(f"{text!r} is no instant.", "Write it like 2026-08-01T00:00:00Z.") from None
    return int((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp())


def _configuration(message: str, fix: str) -> KeyvouchError:
    return KeyvouchError(Reason.CONFIGURATION, message, fix=fix)
