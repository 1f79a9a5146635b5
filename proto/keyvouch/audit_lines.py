"""An exported audit log: JSON Lines that verify by themselves, long after and far from the server.

    {"type": "log", ...}           once: which server, by its identity key, which tenant, when
    {"type": "checkpoint", ...}    what the server signed; the last one is over the last record
    {"type": "record", ...}        in the order of the chain, each with its hash and that of the one before

Bytes are hexadecimal digits, instants seconds since the epoch, details the very text that was hashed. `verify_log`
takes lines one by one, however many there are. Not here: files, and logs in other forms (OCSF), which prove nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final, TypeAlias

from keyvouch.attestation.strict_json import read_object
from keyvouch.audit_chain import (
    ChainRecord,
    Checkpoint,
    VerifiedChain,
    VerifiedCheckpoint,
    verify_chain,
    verify_checkpoint,
)
from keyvouch.errors import EvidenceError, MalformedError, Reason
from keyvouch.ids import ServerId
from keyvouch.proofs import load_proof_key, spki_sha256

__all__ = ["LogHeader", "LogLine", "VerifiedLog", "parse_line", "verify_log", "write_line"]

VERSION: Final = 1
MAX_LINE: Final = 1024 * 1024
"""Longest line anyone here parses, in bytes."""


@dataclass(frozen=True, slots=True)
class LogHeader:
    """The first line. `identity_key` is DER SubjectPublicKeyInfo, `tenant` the tenant's name.

    The name and the instant are in no record and in no signature: they are what whoever hands over the log says.
    """

    version: int
    server_id: ServerId
    identity_key: bytes
    tenant_id: str
    tenant: str
    exported_at: int


LogLine: TypeAlias = LogHeader | Checkpoint | ChainRecord

_TYPES: Final[dict[str, type[Any]]] = {"log": LogHeader, "checkpoint": Checkpoint, "record": ChainRecord}
_NAMES: Final = {made: name for name, made in _TYPES.items()}
_KINDS: Final[dict[str, type]] = {"int": int, "str": str, "TenantId": str}
"""Field types by their names; every other is bytes."""
_FIELDS: Final = {
    made: tuple((f.name, _KINDS.get(str(f.type), bytes)) for f in fields(made) if f.name != "position")
    for made in _TYPES.values()
}


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """A log that holds. `unchained` records come from before the server kept a chain: nothing vouches for them.

    `pinned`: the server is the expected one; else it is whichever has this key.
    """

    header: LogHeader
    chain: VerifiedChain
    signed_at: int
    unchained: int
    pinned: bool


def write_line(line: LogLine) -> str:
    """One line of JSON, without its end."""
    document: dict[str, object] = {"type": _NAMES[type(line)]}
    for name, kind in _FIELDS[type(line)]:
        value = getattr(line, name)
        document[name] = value.hex() if kind is bytes else value
    return json.dumps(document)


def parse_line(line: bytes) -> LogLine:
    """Parse one line. Raises `MalformedError(AUDIT_CHAIN)`."""
    if len(line) > MAX_LINE:
        raise _malformed(f"it is longer than {MAX_LINE} bytes")
    try:
        document = read_object(line)
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    except ValueError as error:
        raise _malformed(f"it is not JSON: {error}") from None
    made = _TYPES.get(str(document.pop("type", "")))
    if made is None:
        raise _malformed("nothing says what it is")
    if document.keys() != {name for name, _ in _FIELDS[made]}:
        raise _malformed("a member is missing, or one is not known")
    return made(**{name: _value(name, document[name], kind) for name, kind in _FIELDS[made]})  # type: ignore[no-any-return]


def verify_log(lines: Iterable[LogLine], *, server_id: ServerId | None) -> VerifiedLog:
    """Verify an exported log of the server with this id, or, with None, of whichever server it names.

    Checks, in this order:

    1. the header is of a known version, names the expected server, and its key is the one that the id stands for
    2. the server signed each checkpoint, and there is one
    3. the records form one chain that agrees with all checkpoints (`keyvouch.audit_chain.verify_chain`)
    4. the last record is the one of the last checkpoint: nothing at the end is vouched for by nobody

    A log may begin anywhere in the chain. Raises `EvidenceError`: AUDIT_CHAIN or AUDIT_CHECKPOINT.
    """
    source = iter(lines)
    header = next(source, None)
    if not isinstance(header, LogHeader) or header.version != VERSION:
        raise _unproved("it does not begin with the line of a log that this program knows")
    if server_id is not None and header.server_id != server_id:
        raise _unproved("it is another server's")
    key = load_proof_key(header.identity_key, reason=Reason.AUDIT_CHECKPOINT)
    if spki_sha256(key) != header.server_id:
        raise _unproved("its key is not the one that the server's id stands for")
    checkpoints: list[VerifiedCheckpoint] = []
    rest: Iterator[LogLine] = source
    for line in source:
        if not isinstance(line, Checkpoint):
            rest = itertools.chain([line], source)
            break
        checkpoints.append(verify_checkpoint(line, identity_key=key))
    signed = [c for c in checkpoints if c.tenant_id == header.tenant_id]
    if not signed:
        raise _unproved("the server signed nothing in it")
    records = _Records(rest)
    chain = verify_chain(records, tenant_id=header.tenant_id, checkpoints=signed, from_the_start=False)
    if chain.vouched != chain.last:
        raise _unproved(f"the server did not sign what comes after record {chain.vouched}")
    newest = max(signed, key=lambda c: (c.number, c.at))
    return VerifiedLog(header, chain, newest.at, records.unchained, pinned=server_id is not None)


class _Records:
    """The records of a log, counting those that stand before the chain."""

    def __init__(self, lines: Iterable[LogLine]) -> None:
        self._lines = lines
        self.unchained = 0

    def __iter__(self) -> Iterator[ChainRecord]:
        begun = False
        for line in self._lines:
            if not isinstance(line, ChainRecord):
                raise _unproved("a line between its records is none")
            if not begun and line.number == 0:
                self.unchained += 1
                continue
            begun = True
            yield line


def _value(name: str, value: object, kind: type) -> object:
    if kind is bytes:
        try:
            found = bytes.fromhex(value) if isinstance(value, str) else None
        except ValueError:
            found = None
        if found is None or found.hex() != value:
            raise _malformed(f"its {name} is not in hexadecimal digits")
        return found
    if type(value) is not kind:
        raise _malformed(f"its {name} is not {'a whole number' if kind is int else 'text'}")
    return value


def _malformed(why: str) -> MalformedError:
    return MalformedError(
        Reason.AUDIT_CHAIN,
        f"This is no line of an audit log: {why}.",
        fix="Use the output of `keyvouch-server audit export`, whole and unchanged.",
    )


def _unproved(why: str) -> EvidenceError:
    return EvidenceError(
        Reason.AUDIT_CHECKPOINT,
        f"This log proves nothing: {why}.",
        fix="Use the output of `keyvouch-server audit export`, whole and unchanged.",
    )
