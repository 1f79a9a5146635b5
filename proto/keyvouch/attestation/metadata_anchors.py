"""Trust anchors out of verified metadata: the attestation roots of the models that a policy accepts.

What is not here: the judgement of a model's status (`keyvouch.attestation.metadata_policy`), and anchors that an
administrator pins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from cryptography import x509

from keyvouch.assurance import Protection, Verification
from keyvouch.attestation.metadata import Metadata, MetadataEntry, MetadataStatement, model_name
from keyvouch.attestation.metadata_policy import MetadataPolicy, judge_status
from keyvouch.attestation.subject_key import public_key_bits
from keyvouch.attestation.trust import Distrust, TrustAnchor

__all__ = ["distrust", "trust_anchors"]


def trust_anchors(metadata: Metadata, *, policy: MetadataPolicy, instant: datetime) -> tuple[TrustAnchor, ...]:
    """Return an anchor for every attestation root of every model that is accepted at `instant` (aware).

    Each is limited to one model and to the formats in which its kind attests; its name is `model_name`. Several
    anchors of a model differ in their certificate. Models that only attest themselves get none. If a compromised
    attestation key is one of the roots, that root gets none; if it is another, below them, the model gets none.
    """
    return tuple(anchor for entry in metadata.entries for anchor in _anchors(entry, policy, instant))


def distrust(metadata: Metadata, *, policy: MetadataPolicy, instant: datetime) -> Distrust:
    """Return what is not accepted at `instant` (aware): for every anchor, also those that others pinned.

    The models that a policy refuses, whatever their certificates; those that a rejected entry may be about, if it has
    a word that the policy refuses, from whatever date; and the keys of certificates that a refused report names.
    """
    models: dict[bytes, str] = {}
    keys: set[bytes] = set()
    for entry in metadata.entries:
        verdict = judge_status(entry, policy=policy, instant=instant, certificates=())
        if not verdict.accepted:
            models.update(dict.fromkeys(entry.models, verdict.reason))
        refused = (report for report in verdict.warnings if policy.refuses(report.status))
        keys.update(public_key_bits(certificate) for report in refused for certificate in report.certificates)
    for rejected in metadata.rejected:
        if any(policy.refuses(status) for status in rejected.statuses):
            models.update(dict.fromkeys(rejected.models, "Its metadata entry warns of it and cannot be read."))
    return Distrust(models, frozenset(keys))


def _anchors(entry: MetadataEntry, policy: MetadataPolicy, instant: datetime) -> Iterator[TrustAnchor]:
    statement = entry.statement
    formats = _formats(statement) if statement else frozenset()
    if statement is None or not formats:
        return
    protection, verification = _protection(statement), _verification(statement)
    below = _reported_below(entry, statement)
    for root in dict.fromkeys(statement.attestation_roots):
        if not judge_status(entry, policy=policy, instant=instant, certificates=(root, *below)).accepted:
            continue
        for model in entry.models:
            yield TrustAnchor(
                model_name(model),
                root,
                formats,
                frozenset({model}) if entry.aaguid else frozenset(),
                frozenset() if entry.aaguid else frozenset({model}),
                protection,
                verification,
            )


def _reported_below(entry: MetadataEntry, statement: MetadataStatement) -> list[x509.Certificate]:
    """The certificates that may be in a path to any root: whatever is reported and not of the key of a root."""
    roots = {public_key_bits(root) for root in statement.attestation_roots}
    reported = (certificate for report in entry.status_reports for certificate in report.certificates)
    return [certificate for certificate in reported if public_key_bits(certificate) not in roots]


def _formats(statement: MetadataStatement) -> frozenset[str]:
    """The attestation statement formats in which the certificates of such a model can occur."""
    kinds = _FORMATS.get(statement.protocol_family, {})
    return frozenset(name for kind in statement.attestation_types for name in kinds.get(kind, ()))


def _protection(statement: MetadataStatement) -> Protection:
    """Where keys live (FIDO Registry section 3.2). `remote_handle` says that keys are stored wrapped, not by what."""
    words = statement.key_protection
    if "software" in words or words.isdisjoint({"hardware", "tee", "secure_element"}):
        return Protection.SOFTWARE
    if "tee" in words:
        return Protection.TEE
    return Protection.SECURE_ELEMENT if "secure_element" in words else Protection.HARDWARE


def _verification(statement: MetadataStatement) -> Verification:
    """What a set UV flag is worth (FIDO Registry sections 3.1 and 3.3): that of the weakest matcher that is named."""
    methods = {method for alternative in statement.user_verification for method in alternative}
    if methods.isdisjoint(_VERIFYING):
        return Verification.NONE
    matchers = statement.matcher_protection
    in_hardware = bool(matchers) and matchers <= {"tee", "on_chip"} and _protection(statement).is_hardware
    return Verification.HARDWARE_GATED if in_hardware else Verification.SOFTWARE_GATED


_FORMATS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "fido2": {"basic_full": ("packed", "android-key"), "attca": ("packed", "tpm"), "anonca": ("apple",)},
    "u2f": {"basic_full": ("fido-u2f",), "attca": ("fido-u2f",)},
}
"""By protocol family and attestation type (FIDO Registry section 3.6.3; WebAuthn sections 8.2 to 8.8)."""

_VERIFYING: Final = frozenset(
    {
        "fingerprint_internal",
        "passcode_internal",
        "voiceprint_internal",
        "faceprint_internal",
        "eyeprint_internal",
        "pattern_internal",
        "handprint_internal",
        "passcode_external",
        "pattern_external",
    }
)
"""Methods that tell the user from others; presence and location do not."""
