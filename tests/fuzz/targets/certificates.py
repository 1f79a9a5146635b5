"""DER, certificates, and the extensions that attestation formats read."""

from __future__ import annotations

import contextlib

from keyvouch.attestation.certificates import key_identifier, parse_certificate
from keyvouch.attestation.der import SEQUENCE, DerError, DerReader
from keyvouch.attestation.key_description import KeyDescription

from .target import Shape, Target

__all__ = ["TARGETS"]

DEEPEST = 32
"""Levels that are walked into. Each level is a copy, so without an end the walk itself would be the slow part."""


def _walk(data: bytes) -> None:
    """Go into everything that says that it is made of elements, and read every number and truth value."""
    way = [DerReader(data)]
    while way:
        if not way[-1]:
            way.pop()
            continue
        tag, content = way[-1].any()
        if tag.constructed and len(way) <= DEEPEST:
            way.append(DerReader(content))
    for read in (DerReader.integer, DerReader.boolean, lambda r: r.enter(SEQUENCE).end()):
        with contextlib.suppress(DerError):
            read(DerReader(data))


def _certificate(data: bytes) -> None:
    key_identifier(parse_certificate(data))


TARGETS = (
    Target("der", _walk, Shape.DER, nests=True, refusals=(DerError,)),
    Target("certificate", _certificate, Shape.DER, nests=True),
    Target("key-description", KeyDescription.parse, Shape.DER, nests=True),
)
