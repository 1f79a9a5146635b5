"""Which models of FIDO2 authenticators a tenant accepts, by AAGUID.

An AAGUID is a claim until a trusted chain proves it, and `packed` is the one format in which it does: an AAGUID of
`none`, of self attestation, of `fido-u2f` (which has none), `android-key` or `apple` is the word of nobody or of the
platform (WebAuthn Level 3 sections 6.5.3 and 8). So the list of allowed models believes proofs alone, and the list
of blocked ones believes every claim: a claim can only hurt whoever makes it.

The rules speak of FIDO2 authenticators. A key that is proved to be in a TPM or on a smartcard (formats `tpm` and
`piv` under a trusted anchor), or that an organisation certified and promises to be on one, has no model of an
authenticator; what it must be is for the required assurance to say.

Not here: metadata about models (`keyvouch.attestation.trust`), and where the rules are kept (`policy`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keyvouch.assurance import Protection, Provenance
from keyvouch.errors import MalformedError, Reason, RefusedError

MOST_MODELS: Final = 256
"""Models in one list."""

_NO_MODEL: Final = bytes(16)
_WITHOUT_MODEL: Final = frozenset({"tpm", "piv"})


@dataclass(frozen=True, slots=True)
class AuthenticatorRules:
    """AAGUIDs as UUIDs in lower case. Where `allowed` is not empty, no other model will do."""

    allowed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    @property
    def say_nothing(self) -> bool:
        """Whether every model is accepted."""
        return not self.allowed and not self.blocked


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of the authenticator that holds a key: the AAGUID it claims (16 bytes), the format of its
    attestation statement, who vouches for it, and where they say that it lives.
    """

    aaguid: bytes
    format: str
    provenance: Provenance
    protection: Protection = Protection.SOFTWARE

    @property
    def name(self) -> str:
        """The AAGUID as policies write it."""
        return str(uuid.UUID(bytes=self.aaguid))

    @property
    def is_proved(self) -> bool:
        """Whether a trusted chain names this model."""
        return self.provenance is Provenance.ATTESTED and self.format == "packed" and self.aaguid != _NO_MODEL

    @property
    def is_no_authenticator(self) -> bool:
        """Whether it is vouched for as a key of a TPM or a smartcard."""
        if self.provenance is Provenance.CERTIFIED:
            return self.protection is Protection.SMARTCARD
        return self.provenance is Provenance.ATTESTED and self.format in _WITHOUT_MODEL


def check_rules(rules: AuthenticatorRules, invalid: Callable[[str, str], MalformedError]) -> None:
    """Raise what `invalid` makes of a field and what it takes, for a list that is not one of models."""
    for name, models in (("allowed", rules.allowed), ("blocked", rules.blocked)):
        if len(models) > MOST_MODELS or len(set(models)) != len(models) or not all(map(_is_model, models)):
            raise invalid(
                f"registration.authenticators.{name}",
                f"up to {MOST_MODELS} AAGUIDs like 2fc0579f-8113-47ea-b116-bb5a8db9202a, each once, none all zero",
            )
    if not set(rules.allowed).isdisjoint(rules.blocked):
        raise invalid("registration.authenticators.blocked", "models that are not in the list of allowed ones too")


def _is_model(text: str) -> bool:
    try:
        model = uuid.UUID(text)
    except ValueError:
        return False
    return str(model) == text and model.bytes != _NO_MODEL


def decide_model(rules: AuthenticatorRules, model: Model) -> None:
    """H6: the model must not be blocked, and be proved to be an allowed one. Raises AUTHENTICATOR_MODEL."""
    if model.is_no_authenticator:
        return
    if model.name in rules.blocked:
        raise _refused(f"Policy does not accept security keys of the model {model.name}.", model)
    if not rules.allowed:
        return
    if not model.is_proved:
        raise _refused("Policy names the models of security keys it accepts, and nothing proves the model here.", model)
    if model.name not in rules.allowed:
        raise _refused(f"The model {model.name} is none of the security keys that policy accepts.", model)


def _refused(why: str, model: Model) -> RefusedError:
    return RefusedError(
        Reason.AUTHENTICATOR_MODEL,
        why,
        fix="Use a security key of an accepted model, or ask an administrator.",
        metadata={"aaguid": model.name, "format": model.format},
    )
