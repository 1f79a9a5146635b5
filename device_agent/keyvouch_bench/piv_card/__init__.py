"""A virtual PIV card for benches, attestation and faults included (NIST SP 800-73-4).

Tests take it from the fixtures `piv_card` and `issued_piv_card` of `keyvouch_bench.card_plugin`; by hand it is used by
`python -m keyvouch_bench.piv_card`.
"""

from __future__ import annotations

from keyvouch_bench.piv_card.authorities import Authority
from keyvouch_bench.piv_card.card import Entry, VirtualPivCard
from keyvouch_bench.piv_card.issuing import Holder, Issue

__all__ = ["Authority", "Entry", "Holder", "Issue", "VirtualPivCard"]
