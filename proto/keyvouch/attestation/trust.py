"""Trust anchors: the certificates that are trusted to vouch for authenticators, and what each may vouch for.

An anchor is pinned by an administrator or comes out of verified metadata (`keyvouch.attestation.metadata`); both
are one type, so there is one way to look them up. An anchor says what the hardware behind it is worth; a model
that nobody said anything about is worth what software is.

What is not here: path validation (`keyvouch.attestation.certificates`), and where anchors are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cryptography import x509

from keyvouch.assurance import Protection, Verification
from keyvouch.attestation.subject_key import public_key_bits
from keyvouch.errors import EvidenceError, Reason, UsageError

__all__ = ["Distrust", "TrustAnchor", "TrustStore"]

_AAGUID = 16
"""Bytes of an AAGUID."""


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """A certificate that is trusted to vouch for authenticators. `name` is what policy and assurance call it.

    `formats` are the attestation statement formats it may vouch in, None for every one. `aaguids` (16 bytes each)
    and `key_ids` (20 bytes: SHA-1 of the subject public key of an attestation certificate, RFC 5280 section
    4.2.1.2 method 1) are the only models it vouches for; with neither it vouches for all of its maker's.

    `protection` is where a key lives, `verification` what a set UV flag is worth, for authenticators under this
    anchor. A format that proves either by itself does not ask the anchor. `manufacturers` are makers of TPMs,
    `id:XXXXXXXX`, that nobody registered and that it may vouch for all the same: emulators on a bench.
    """

    name: str
    certificate: x509.Certificate
    formats: frozenset[str] | None = None
    aaguids: frozenset[bytes] = frozenset()
    key_ids: frozenset[bytes] = frozenset()
    protection: Protection = Protection.SOFTWARE
    verification: Verification = Verification.SOFTWARE_GATED
    manufacturers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("A trust anchor needs a name.", fix="Name it as policies shall call it.")
        if any(len(aaguid) != _AAGUID for aaguid in self.aaguids) or any(len(key_id) != 20 for key_id in self.key_ids):
            raise UsageError("An AAGUID has 16 bytes, a certificate key identifier 20.")

    def covers(self, format: str, *, aaguid: bytes, key_ids: Collection[bytes]) -> bool:  # noqa: A002
        """Whether this anchor may vouch for an authenticator of this kind. A lookup, not a verification."""
        if self.formats is not None and format not in self.formats:
            return False
        if not self.aaguids and not self.key_ids:
            return True
        return aaguid in self.aaguids or not self.key_ids.isdisjoint(key_ids)


@dataclass(frozen=True, slots=True)
class Distrust:
    """What no anchor may vouch for, whoever pinned it.

    `models` are AAGUIDs and key identifiers, with a sentence each that says why; `keys` are those that are known to be
    compromised, as `public_key_bits` returns them, wherever they stand in a path and in whatever certificate.
    """

    models: Mapping[bytes, str] = field(default_factory=dict)
    keys: frozenset[bytes] = frozenset()


class TrustStore:
    """An immutable collection of trust anchors, found by what they may vouch for, and of what none may vouch for."""

    def __init__(self, anchors: Iterable[TrustAnchor] = (), distrust: Distrust | None = None) -> None:
        self._anchors = tuple(anchors)
        self._names = frozenset(anchor.name for anchor in self._anchors)
        self._distrust = distrust or Distrust()
        self._general = [anchor for anchor in self._anchors if not anchor.aaguids and not anchor.key_ids]
        self._by_model: dict[bytes, list[TrustAnchor]] = {}
        self._knows_keys = any(len(model) != _AAGUID for model in self._distrust.models)
        for anchor in self._anchors:
            self._knows_keys |= bool(anchor.key_ids)
            for model in (*anchor.aaguids, *anchor.key_ids):
                self._by_model.setdefault(model, []).append(anchor)

    @property
    def names(self) -> frozenset[str]:
        """What its anchors are called."""
        return self._names

    @property
    def knows_keys(self) -> bool:
        """Whether key identifiers make any difference to what is found or refused."""
        return self._knows_keys

    @property
    def distrusts_models(self) -> bool:
        """Whether `check_model` could refuse any."""
        return bool(self._distrust.models)

    def __iter__(self) -> Iterator[TrustAnchor]:
        return iter(self._anchors)

    def __len__(self) -> int:
        return len(self._anchors)

    def __repr__(self) -> str:
        return f"TrustStore({', '.join(sorted(self._names))})"

    def including(self, anchor: TrustAnchor) -> TrustStore:
        """Return a store that trusts one anchor more, and distrusts the same."""
        return TrustStore((*self._anchors, anchor), self._distrust)

    def check_model(self, *, aaguid: bytes, key_ids: Collection[bytes] = ()) -> None:
        """Check that an authenticator does not claim to be of a distrusted model, by either of its names.

        Raises `EvidenceError` with `AUTHENTICATOR_STATUS`. A refusal needs no proof of the claim.
        """
        for model in (aaguid, *key_ids):
            if model in self._distrust.models:
                raise _distrusted(f"{self._distrust.models[model]}", {"model": model.hex()})

    def check_certificates(self, certificates: Iterable[x509.Certificate]) -> None:
        """Check that none is of a distrusted key. Raises `EvidenceError` with `AUTHENTICATOR_STATUS`."""
        keys = self._distrust.keys  # most often there are none, and then no certificate is read
        if keys and not keys.isdisjoint(map(public_key_bits, certificates)):
            raise _distrusted("The key of one of its certificates is known to others.", {})

    def anchors_for(
        self,
        format: str,  # noqa: A002
        *,
        aaguid: bytes,
        key_ids: Collection[bytes] = (),
    ) -> tuple[TrustAnchor, ...]:
        """Return the anchors that may vouch for such an authenticator, those made for its model first.

        `aaguid` is 16 bytes as claimed, `key_ids` are the key identifiers of the certificates it presents. Both are
        claims until a path to one of these anchors is valid.
        """
        models = [anchor for model in (aaguid, *key_ids) for anchor in self._by_model.get(model, ())]
        return tuple(
            anchor for anchor in (*models, *self._general) if anchor.covers(format, aaguid=aaguid, key_ids=key_ids)
        )


def _distrusted(why: str, metadata: Mapping[str, str]) -> EvidenceError:
    return EvidenceError(
        Reason.AUTHENTICATOR_STATUS,
        f"This authenticator is not accepted any more. {why}",
        fix="Use an authenticator of another model.",
        metadata=metadata,
    )
