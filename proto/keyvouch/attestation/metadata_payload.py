"""Parsing of the payload of a FIDO metadata BLOB (FIDO Metadata Service 3.0 and 3.1, section 3.1).

The document as a whole has to be right, or it is refused. One bad entry is not the end of it: the entry is listed as
rejected, and so is every other entry of the same model, for nobody knows which of them would have warned. What a
rejected entry warns of is kept. Members that are not known here are for later versions of the specification and are
passed over.

What is not here: the signature. Only `keyvouch.attestation.metadata_blob` calls this, after it has verified it.
"""

from __future__ import annotations

import binascii
import re
from collections import Counter
from collections.abc import Mapping
from datetime import date
from typing import Final

from cryptography import x509

from keyvouch.attestation.certificates import parse_certificate
from keyvouch.attestation.metadata import Metadata, MetadataEntry, MetadataStatement, RejectedEntry, StatusReport
from keyvouch.attestation.strict_json import read_object
from keyvouch.errors import MalformedError, Reason

__all__ = ["certificate_of", "malformed", "parse_payload"]

MAX_ENTRIES: Final = 10_000
"""Most entries in one BLOB."""

MAX_DESCRIPTION: Final = 200
"""Characters of a description (FIDO Metadata Statement section 3)."""

_AAGUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEY_ID = re.compile(r"[0-9a-f]{40}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_NOT_HEX = re.compile(r"[^0-9a-f]")
_KEY_IDS = "attestationCertificateKeyIdentifiers"

_Members = Mapping[str, object]


def parse_payload(payload: bytes) -> Metadata:
    """Parse a payload (section 3.1.6). Raises `MalformedError` with `METADATA_MALFORMED`."""
    try:
        document = read_object(payload)
        number, next_update = _natural(document, "no"), _date(document, "nextUpdate")
        raw = _list(document, "entries")
    except ValueError as error:
        raise malformed(f"Its payload is wrong. {error}") from None
    if len(raw) > MAX_ENTRIES:
        raise malformed(f"It has more than {MAX_ENTRIES} entries.")
    occurrences = Counter(model for item in raw for model in _claimed(item))
    entries: list[MetadataEntry] = []
    rejected: list[RejectedEntry] = []
    ignored = 0
    for position, item in enumerate(raw):
        try:
            entry = _entry(item, occurrences)
        except ValueError as error:
            rejected.append(_rejected(position, item, str(error)))
            continue
        if entry is None:
            ignored += 1
        else:
            entries.append(entry)
    return Metadata(number, next_update, tuple(entries), tuple(rejected), ignored)


# Entries. Every function below raises `ValueError` with a sentence for the list of rejected entries.


def _entry(item: object, occurrences: Mapping[str, int]) -> MetadataEntry | None:
    """Parse one entry (section 3.1.1); None for an authenticator of UAF."""
    entry = _object(item, "The entry")
    if entry.keys() & {"aaid", "aaguid", _KEY_IDS} == {"aaid"}:
        return None
    aaguid, key_ids = _identity(entry)
    if any(occurrences[model] > 1 for model in _claimed(item)):
        raise ValueError("Another entry is about the same model.")
    statement = None
    if "metadataStatement" in entry:
        statement = _statement(_object(entry["metadataStatement"], "The statement"), entry)
    return MetadataEntry(
        aaguid,
        key_ids,
        tuple(_report(_object(report, "A status report")) for report in _list(entry, "statusReports")),
        _date(entry, "timeOfLastStatusChange"),
        statement,
    )


def _identity(entry: _Members) -> tuple[bytes | None, frozenset[bytes]]:
    """The model: exactly one of an AAGUID and a list of key identifiers, in the one spelling of each."""
    if len(entry.keys() & {"aaid", "aaguid", _KEY_IDS}) != 1:
        raise ValueError("It does not name its model in exactly one way.")
    if "aaguid" not in entry:
        return None, _key_ids(_texts(entry, _KEY_IDS))
    text = _text(entry, "aaguid")
    if not _AAGUID.fullmatch(text):
        raise ValueError("Its aaguid is not a UUID in lower case.")
    aaguid = bytes.fromhex(text.replace("-", ""))
    if not any(aaguid):
        raise ValueError("Its aaguid is zero, which is what authenticators without one have.")
    return aaguid, frozenset()


def _key_ids(texts: list[str]) -> frozenset[bytes]:
    if not texts or not all(_KEY_ID.fullmatch(text) for text in texts):
        raise ValueError(f"Its {_KEY_IDS} are not a list of 20 bytes each, hexadecimal in lower case.")
    if len(set(texts)) != len(texts):
        raise ValueError(f"One of its {_KEY_IDS} occurs twice.")
    return frozenset(bytes.fromhex(text) for text in texts)


def _claimed(item: object) -> frozenset[str]:
    """Every model that an entry may be about, in hexadecimal: read generously, to find what contradicts itself."""
    entry = item if isinstance(item, dict) else {}
    statement = entry.get("metadataStatement")
    texts: list[object] = []
    for members in (entry, statement if isinstance(statement, dict) else {}):
        texts += [*_as_list(members.get("aaguid")), *_as_list(members.get(_KEY_IDS))]
    models = {_NOT_HEX.sub("", text.lower()) for text in texts if isinstance(text, str)}
    return frozenset(models - {""})


def _rejected(position: int, item: object, why: str) -> RejectedEntry:
    """Keep of an entry what it may warn of, and of which models. Zero is no model: it is what those without one say."""
    models = (bytes.fromhex(digits) for digits in _claimed(item) if len(digits) in (32, 40))
    reports = _as_list(item.get("statusReports")) if isinstance(item, dict) else []
    words = (report.get("status") for report in reports if isinstance(report, dict))
    return RejectedEntry(
        position,
        _model_as_published(item),
        why,
        frozenset(model for model in models if any(model)),
        frozenset(word for word in words if isinstance(word, str)),
    )


def _as_list(value: object) -> list[object]:
    """What is meant by one value in the place of a list of them."""
    return value if isinstance(value, list) else [value]


def _model_as_published(item: object) -> str:
    entry = item if isinstance(item, dict) else {}
    named = next((entry[name] for name in ("aaguid", _KEY_IDS, "aaid") if name in entry), "")
    return _printable(named if isinstance(named, str) else repr(named))


# Statements and reports


def _statement(statement: _Members, entry: _Members) -> MetadataStatement:
    """Parse a statement (FIDO Metadata Statement section 3), which has to be about the model of its entry."""
    family = _text(statement, "protocolFamily")
    if family != ("fido2" if "aaguid" in entry else "u2f"):
        raise ValueError("Its protocolFamily is not the one whose models are named like this.")
    if any(name in statement and statement[name] != entry.get(name) for name in ("aaid", "aaguid", _KEY_IDS)):
        raise ValueError("Its statement is about another model.")
    return MetadataStatement(
        description=_printable(_text(statement, "description")),
        protocol_family=family,
        authenticator_version=_natural(statement, "authenticatorVersion"),
        attestation_types=frozenset(_texts(statement, "attestationTypes")),
        key_protection=frozenset(_texts(statement, "keyProtection")),
        matcher_protection=frozenset(_texts(statement, "matcherProtection")),
        user_verification=tuple(_methods(item) for item in _list(statement, "userVerificationDetails")),
        attestation_roots=tuple(certificate_of(text) for text in _texts(statement, "attestationRootCertificates")),
    )


def _methods(alternative: object) -> tuple[str, ...]:
    if not isinstance(alternative, list):
        raise ValueError("An alternative of userVerificationDetails is not a list.")
    return tuple(_text(_object(method, "A method"), "userVerificationMethod") for method in alternative)


def _report(report: _Members) -> StatusReport:
    """Parse a status report (section 3.1.3). A null is what some writers put for a member that is not there."""
    present = {name: value for name, value in report.items() if value is not None}
    return StatusReport(
        status=_text(present, "status"),
        effective_date=_date(present, "effectiveDate") if "effectiveDate" in present else None,
        authenticator_version=_natural(present, "authenticatorVersion") if "authenticatorVersion" in present else None,
        certificates=tuple(
            certificate_of(_text(present, name)) for name in ("certificate", "batchCertificate") if name in present
        ),
        sunset_date=_date(present, "sunsetDate") if "sunsetDate" in present else None,
    )


# Values


def certificate_of(text: str) -> x509.Certificate:
    """Read a certificate: base64 of its DER (RFC 4648 section 4). Raises `ValueError`.

    Line breaks and blanks are passed over, since some makers write them.
    """
    digits = "".join(text.split())
    try:
        der = binascii.a2b_base64(digits.encode("ascii"), strict_mode=True)
    except ValueError:
        raise ValueError("A certificate is not base64.") from None
    if binascii.b2a_base64(der, newline=False) != digits.encode("ascii"):
        raise ValueError("A certificate is not canonical base64.")
    try:
        return parse_certificate(der)
    except MalformedError as error:
        raise ValueError(f"A certificate is wrong. {error.message}") from None


def _object(value: object, what: str) -> _Members:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object.")
    return value


def _list(members: _Members, name: str) -> list[object]:
    value = members.get(name)
    if not isinstance(value, list):
        raise ValueError(f"Its {name} is missing or not a list.")
    return value


def _text(members: _Members, name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"Its {name} is missing or not a text.")
    return value


def _texts(members: _Members, name: str) -> list[str]:
    texts = [item for item in _list(members, name) if isinstance(item, str)]
    if len(texts) != len(_list(members, name)):
        raise ValueError(f"Its {name} is not a list of texts.")
    return texts


def _natural(members: _Members, name: str) -> int:
    value = members.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"Its {name} is missing or not a natural number.")
    return value


def _date(members: _Members, name: str) -> date:
    """A day as ISO 8601 writes it with hyphens. Python knows more spellings; the specification does not."""
    text = _text(members, name)
    if not _DATE.fullmatch(text):
        raise ValueError(f"Its {name} is not a date like 2026-01-31.")
    return date.fromisoformat(text)


def _printable(text: str) -> str:
    """Make a text fit for a log and a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:MAX_DESCRIPTION])


def malformed(why: str) -> MalformedError:
    """The BLOB is not of the shape that the specification gives it."""
    return MalformedError(
        Reason.METADATA_MALFORMED,
        f"The metadata BLOB is malformed. {why}",
        fix="Download the BLOB again, and keep the file as it was sent.",
    )
