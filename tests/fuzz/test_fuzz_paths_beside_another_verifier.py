"""Random paths, judged by ours and by `cryptography.x509.verification`: what we accept, it accepts too.

The other way round does not hold: it takes surplus certificates, for it looks for a path by itself, and issuers whose
keyUsage does not allow to sign certificates. Left out is what it refuses of real authenticators; see
`keyvouch.attestation.certificates`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvouch.attestation.certificates import validate_path
from keyvouch.attestation.trust import TrustAnchor
from keyvouch.errors import EvidenceError
from support.certificate_forge import CERT_SIGN, DIGITAL_SIGNATURE, INSTANT, Issued, issue, named, new_key

KEYS = [new_key() for _ in range(5)]
STRANGER = Issued(issue("Stranger", None, key=KEYS[4], ca=True).certificate, KEYS[4])
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
PERIODS = [(-30, 300)] * 8 + [(-30, -1), (1, 300), (0, 300), (-30, 0)]
VERDICTS: Counter[tuple[bool, bool]] = Counter()


@dataclass(frozen=True)
class Wanted:
    """One certificate of a path, from the top down."""

    ca: bool | None
    path_length: int | None
    usage: x509.KeyUsage | None
    period: tuple[int, int]
    by_stranger: bool
    under_another_name: bool
    unknown_critical: bool

    def issued(self, name: str, key: Any, issuer: Issued | None) -> Issued:
        signer = Issued(issuer.certificate, STRANGER.key) if issuer and self.by_stranger else issuer
        begin, end = (INSTANT + timedelta(days=days) for days in self.period)
        return issue(
            name,
            signer,
            key=key,
            issuer_name=named("Somebody") if self.under_another_name and issuer else None,
            ca=self.ca,
            path_length=self.path_length if self.ca else None,
            key_usage=self.usage,
            extensions=[(UNKNOWN, True)] if self.unknown_critical else [],
            not_before=begin,
            not_after=end,
        )


def rarely() -> st.SearchStrategy[bool]:
    return st.sampled_from([False] * 15 + [True])


def wanted(ca: st.SearchStrategy[bool | None], usage: x509.KeyUsage) -> st.SearchStrategy[Wanted]:
    return st.builds(
        Wanted,
        ca,
        st.sampled_from([None, None, None, 0, 1, 2]),
        st.sampled_from([usage, usage, usage, None, DIGITAL_SIGNATURE]),
        st.sampled_from(PERIODS),
        rarely(),
        rarely(),
        rarely(),
    )


AUTHORITY = wanted(st.sampled_from([True] * 12 + [False, None]), CERT_SIGN)
END_ENTITY = wanted(st.sampled_from([False, None]), DIGITAL_SIGNATURE)


def ours(path: list[x509.Certificate], root: x509.Certificate) -> bool:
    try:
        validate_path(path, anchors=[TrustAnchor("root", root)], instant=INSTANT)
    except EvidenceError:
        return False
    return True


def theirs(path: list[x509.Certificate], root: x509.Certificate) -> bool:
    everything = ExtensionPolicy.permit_all()
    authorities = everything.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    builder = PolicyBuilder().store(Store([root])).time(INSTANT).max_chain_depth(8)
    verifier = builder.extension_policies(ca_policy=authorities, ee_policy=everything).build_client_verifier()
    try:
        verifier.verify(path[0], path[1:])
    except VerificationError:
        return False
    return True


@settings(max_examples=600, deadline=None)
@given(AUTHORITY, st.lists(AUTHORITY, max_size=2), END_ENTITY)
def test_what_we_accept_another_verifier_accepts(root: Wanted, between: list[Wanted], leaf: Wanted) -> None:
    top = root.issued("Root", KEYS[0], None)
    chain = [top]
    for number, one in enumerate((*between, leaf), start=1):
        chain.append(one.issued(f"Certificate {number}", KEYS[number], chain[-1]))
    path = [issued.certificate for issued in reversed(chain[1:])]
    verdict = ours(path, top.certificate), theirs(path, top.certificate)
    VERDICTS[verdict] += 1
    assert verdict != (True, False)


def test_the_paths_were_good_and_bad() -> None:
    """Were all of them bad, nothing would be compared. Run alone, this test makes its own."""
    if not VERDICTS:
        test_what_we_accept_another_verifier_accepts()
    assert VERDICTS[True, True] > 20
    assert VERDICTS[False, False] > 20
