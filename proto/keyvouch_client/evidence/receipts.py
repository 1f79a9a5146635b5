"""Receipts and exported audit logs as evidence: the verdict of the core on them, and in plain words what they prove.

Not here: the command line (`keyvouch_client.commands.verify`), and fetching either from a server.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.assurance import Assurance
from keyvouch.audit_lines import MAX_LINE, LogLine, VerifiedLog, parse_line, verify_log
from keyvouch.errors import MalformedError, UsageError
from keyvouch.ids import ServerId
from keyvouch.proofs import spki_sha256
from keyvouch.receipt import VerifiedReceipt, verify_receipt
from keyvouch_client.evidence.ceremonies import Check, Proof
from keyvouch_client.evidence.stream import BYTE_ORDER_MARK

__all__ = ["is_receipt", "log_facts", "log_sentence", "read_log", "read_receipt", "server_id_in", "server_id_of"]

_RECEIPT_HEAD = b"\xa2"
"""The head of a CBOR map of two. JSON in UTF-8 never begins so."""
_WAYS = {
    "number-matched": "typed the number that the client showed, on the device, and approved there",
    "number-chosen": "chose the number that the client showed out of three, on the device, and approved there",
    "phishing-resistant": "approved at the very device or client that signed in, which knew the server by its name",
}


def is_receipt(head: bytes) -> bool:
    """Whether what begins so can be a receipt."""
    return head[:1] == _RECEIPT_HEAD


def read_receipt(data: bytes, server_id: ServerId | None) -> Check:
    """A receipt as a check that can be made."""

    def check() -> Proof:
        verified = verify_receipt(data, server_id=server_id)
        return Proof(_facts(verified), _assurance(verified.receipt.assurance))

    return check


def read_log(stream: BinaryIO, server_id: ServerId | None) -> VerifiedLog:
    """Verify an exported log. Raises `MalformedError` or `EvidenceError`."""
    return verify_log(_lines(stream), server_id=server_id)


def log_facts(log: VerifiedLog) -> dict[str, object]:
    """What an exported log proves, fit for JSON."""
    return {
        "server_id": log.header.server_id.hex(),
        "server_expected": log.pinned,
        "tenant_id": log.header.tenant_id,
        "tenant": log.header.tenant,
        "first": log.chain.first,
        "last": log.chain.last,
        "hash": log.chain.hash.hex(),
        "signed_at": log.signed_at,
        "unchained": log.unchained,
    }


def log_sentence(log: VerifiedLog) -> str:
    """The same for people."""
    chain, header = log.chain, log.header
    whose = f"tenant {header.tenant_id}" if header.tenant_id else "what belongs to no tenant"
    text = (
        f"Records {chain.first} to {chain.last} of {whose} are all there, unchanged and in order, as the "
        f"server {header.server_id.hex()[:16]}… signed them at {_instant(log.signed_at)}."
    )
    if header.tenant:
        text += f" The log calls the tenant {header.tenant}, which nobody signed."
    if log.unchained:
        text += f" {log.unchained} older records are from before there was a chain: nobody vouches for them."
    return text if log.pinned else f"{text} Whether that is your server is not proved: give --server-id or --ca."


def _lines(stream: BinaryIO) -> Iterator[LogLine]:
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line.strip():
            continue
        try:
            parsed = parse_line(line)
        except MalformedError as error:
            error.metadata["line"] = str(number)
            raise
        yield parsed


def server_id_of(text: str) -> ServerId:
    """A server's id from hexadecimal digits. Raises `UsageError`."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != 32:
        fix = "It has 64 hexadecimal digits; `keyvouch-server serve` shows it."
        raise UsageError(f"{text!r} is no server id.", fix=fix)
    return ServerId(found)


def server_id_in(pem: bytes) -> ServerId:
    """The id of the server whose CA certificate this is. Raises `UsageError`."""
    try:
        key = x509.load_pem_x509_certificate(pem).public_key()
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError("This is no certificate of a server's identity key.", fix="Name the server's ca.pem.")
    return ServerId(spki_sha256(key))


def _facts(verified: VerifiedReceipt) -> dict[str, object]:
    receipt, offer = verified.receipt, verified.offer
    return {
        "server_id": receipt.server_id.hex(),
        "server_expected": verified.pinned,
        "tenant_id": receipt.tenant_id,
        "user_id": receipt.user_id,
        "username": receipt.username,
        "device_id": receipt.device_id,
        "credential_id": receipt.credential_id.hex(),
        "sign_in_id": receipt.sign_in_id,
        "session_id": receipt.session_id,
        "app_id": offer.app_id,
        "audience": offer.audience,
        "address": offer.address,
        "decided_at": receipt.decided_at,
        "consumed_at": receipt.consumed_at,
        "acr": receipt.acr,
        "amr": receipt.amr,
        "policy_version": receipt.policy_version,
        "audit_number": receipt.audit_number,
        "audit_hash": receipt.audit_hash.hex(),
        "proves": _sentences(verified),
    }


def _sentences(verified: VerifiedReceipt) -> list[str]:
    """What a receipt proves, for people: first what the key signed, then what only the server says."""
    receipt, offer = verified.receipt, verified.offer
    short = receipt.server_id.hex()[:16]
    server = f"the server {short}… that you named" if verified.pinned else f"a server with the id {short}…"
    way = _WAYS.get(receipt.acr, "approved")
    where = f" from {offer.address}" if offer.address else ""
    whose, when = f"{receipt.username} ({receipt.user_id})", _instant(receipt.consumed_at)
    decided = _instant(receipt.decided_at)
    signed = (
        f"A key that {server} knows as one of {whose} signed this very approval, on device {receipt.device_id}: "
        f"to sign in to {offer.app_name} ({offer.app_id}){where}."
    )
    said = (
        f"The server says that the person {way}; that it was decided at {decided} and used at {when}, for session "
        f"{receipt.session_id}; and that the key counts as {receipt.assurance}."
    )
    sentences = [
        signed,
        "The key asked for their presence and their PIN or biometric before it signed.",
        said,
        f"It is record {receipt.audit_number} of the tenant's audit log, with the hash {receipt.audit_hash.hex()}.",
    ]
    if not verified.pinned:
        sentences.append("Whether that is your server is not proved: compare its id, or give --server-id or --ca.")
    return sentences


def _assurance(text: str) -> Assurance | None:
    try:
        return Assurance.parse(text)
    except MalformedError:
        return None


def _instant(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return str(seconds)
