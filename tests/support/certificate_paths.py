"""Paths of forged certificates, as tests of path validation ask for them: a good one, and what a bad one breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import pytest

from keyvouch.attestation.certificate_profile import PathRule
from keyvouch.attestation.certificates import CertificationPath, find_path, validate_path
from keyvouch.attestation.trust import TrustAnchor
from keyvouch.errors import EvidenceError, Reason
from support.certificate_forge import INSTANT, Issued, intermediate, leaf, root

TOP = root()
MIDDLE = intermediate(TOP)
LEAF = leaf(MIDDLE)
STRANGER = root("Stranger")
OTHER = intermediate(TOP, "Other")
NAMESAKE = intermediate(TOP)


def validate(
    *path: Issued, anchors: Sequence[Issued | TrustAnchor] = (TOP,), instant: datetime = INSTANT
) -> CertificationPath:
    """Validate `path` under certificates, or anchors, that are trusted."""
    trusted = [anchor.anchor if isinstance(anchor, Issued) else anchor for anchor in anchors]
    return validate_path([issued.certificate for issued in path], anchors=trusted, instant=instant)


def found(end: Issued, *pool: Issued, anchors: Sequence[Issued] = (TOP,)) -> CertificationPath:
    """Find a path for `end` in a pool."""
    return find_path(
        end.certificate,
        [issued.certificate for issued in pool],
        anchors=[anchor.anchor for anchor in anchors],
        instant=INSTANT,
    )


def broken_rule(verify: Callable[..., object], *arguments: object, **named_arguments: object) -> PathRule:
    """Return the rule for which a path is refused."""
    with pytest.raises(EvidenceError) as caught:
        verify(*arguments, **named_arguments)
    assert caught.value.reason is Reason.TRUST_CHAIN
    assert caught.value.message.endswith(".")
    assert caught.value.fix
    return PathRule(caught.value.metadata["detail"])


def a_chain(length: int) -> list[Issued]:
    """Make a good path of `length` certificates under TOP, leaf first."""
    chain = [TOP]
    for number in range(1, length):
        chain.append(intermediate(chain[-1], f"Intermediate {number}"))
    return [leaf(chain[-1]), *reversed(chain[1:])]
