"""The extensions of section 12 that the authenticator knows: what is asked of them, and what they answer.

credProtect (12.1), credBlob (12.2), largeBlobKey (12.3), minPinLength (12.4) and hmac-secret (12.5), and from CTAP 2.2
section 12.8 hmac-secret-mc. An extension that is not known is ignored. What is *not* here: what credProtect does to
finding credentials (`making`, `asserting`), and the large blobs themselves (`large_blobs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from keyvouch.webauthn import Flags
from keyvouch_agent.authenticator.fields import Fields, optional
from keyvouch_agent.authenticator.hmac_secret import HmacSecretInput, Salts, parse_hmac_secret
from keyvouch_agent.authenticator.standing import Standing
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.authenticator.vault import MAX_CRED_BLOB, Credential, CredentialSecrets, CredProtect

__all__ = [
    "AssertionInputs",
    "RegistrationInputs",
    "assertion_outputs",
    "extension_names",
    "known_to_assert",
    "known_to_register",
    "parse_assertion_inputs",
    "parse_registration_inputs",
    "registration_outputs",
]


@dataclass(frozen=True, slots=True)
class RegistrationInputs:
    """Extension inputs of authenticatorMakeCredential. Where there is none: None, or False if it means the same."""

    protect: CredProtect | None = None
    cred_blob: bytes | None = field(default=None, repr=False)
    large_blob_key: bool | None = None
    min_pin_length: bool = False
    hmac_secret: bool = False
    hmac_secret_mc: HmacSecretInput | None = None

    @property
    def stored_cred_blob(self) -> bytes | None:
        """The credBlob if it is not too long to keep."""
        fits = self.cred_blob is not None and len(self.cred_blob) <= MAX_CRED_BLOB
        return self.cred_blob if fits else None


@dataclass(frozen=True, slots=True)
class AssertionInputs:
    """Extension inputs of authenticatorGetAssertion. Where there is none: None, or False if it means the same."""

    cred_blob: bool = False
    large_blob_key: bool | None = None
    hmac_secret: HmacSecretInput | None = None


def extension_names(standing: Standing) -> list[str]:
    """What getInfo lists (section 6.4)."""
    known = {
        "credBlob": standing.keeps_secrets,
        "credProtect": True,
        "hmac-secret": standing.keeps_secrets,
        "hmac-secret-mc": standing.keeps_secrets,
        "largeBlobKey": standing.keeps_large_blobs,
        "minPinLength": standing.takes_pin,
    }
    return [name for name, is_known in known.items() if is_known]


def known_to_register(inputs: RegistrationInputs, standing: Standing) -> RegistrationInputs:
    """Leave the extensions out that getInfo does not list."""
    if not standing.keeps_secrets:
        inputs = replace(inputs, cred_blob=None, hmac_secret=False, hmac_secret_mc=None)
    return replace(
        inputs,
        large_blob_key=inputs.large_blob_key if standing.keeps_large_blobs else None,
        min_pin_length=inputs.min_pin_length and standing.takes_pin,
    )


def known_to_assert(inputs: AssertionInputs, standing: Standing) -> AssertionInputs:
    """Leave the extensions out that getInfo does not list."""
    if not standing.keeps_secrets:
        inputs = replace(inputs, cred_blob=False, hmac_secret=None)
    return replace(inputs, large_blob_key=inputs.large_blob_key if standing.keeps_large_blobs else None)


def parse_registration_inputs(given: Fields) -> RegistrationInputs:
    """Read the extensions parameter of authenticatorMakeCredential."""
    secret_mc = optional(given, "hmac-secret-mc", dict)
    inputs = RegistrationInputs(
        protect=_protection(optional(given, "credProtect", int)),
        cred_blob=optional(given, "credBlob", bytes),
        large_blob_key=optional(given, "largeBlobKey", bool),
        min_pin_length=bool(optional(given, "minPinLength", bool)),
        hmac_secret=bool(optional(given, "hmac-secret", bool)),
        hmac_secret_mc=None if secret_mc is None else parse_hmac_secret(secret_mc),
    )
    if inputs.hmac_secret_mc and not inputs.hmac_secret:
        raise CommandError(Status.MISSING_PARAMETER)
    return inputs


def parse_assertion_inputs(given: Fields) -> AssertionInputs:
    """Read the extensions parameter of authenticatorGetAssertion."""
    secret = optional(given, "hmac-secret", dict)
    return AssertionInputs(
        cred_blob=bool(optional(given, "credBlob", bool)),
        large_blob_key=optional(given, "largeBlobKey", bool),
        hmac_secret=None if secret is None else parse_hmac_secret(secret),
    )


def registration_outputs(
    inputs: RegistrationInputs,
    standing: Standing,
    credential: Credential,
    secrets: CredentialSecrets,
    salts: Salts | None,
    flags: Flags,
) -> Mapping[str, object]:
    """What goes into the authenticator data of a new credential."""
    outputs: dict[str, object] = {}
    if inputs.protect is not None:
        outputs["credProtect"] = int(credential.protect)
    if inputs.cred_blob is not None:
        outputs["credBlob"] = credential.has_cred_blob
    if inputs.min_pin_length and standing.tells_min_pin_length_to(credential.rp_id):
        outputs["minPinLength"] = standing.min_pin_length
    if inputs.hmac_secret:
        outputs["hmac-secret"] = credential.has_hmac_secret
    if salts is not None and credential.has_hmac_secret:
        outputs["hmac-secret-mc"] = salts.seal(_cred_random(secrets, flags))
    return outputs


def assertion_outputs(
    inputs: AssertionInputs, credential: Credential, secrets: CredentialSecrets, salts: Salts | None, flags: Flags
) -> Mapping[str, object]:
    """What goes into the authenticator data of an assertion.

    A credential that was made without hmac-secret has no CredRandom, and then there is no output of it.
    """
    outputs: dict[str, object] = {}
    if inputs.cred_blob:
        outputs["credBlob"] = secrets.cred_blob
    if salts is not None and credential.has_hmac_secret:
        outputs["hmac-secret"] = salts.seal(_cred_random(secrets, flags))
    return outputs


def _cred_random(secrets: CredentialSecrets, flags: Flags) -> bytes:
    return secrets.with_uv if flags & Flags.UV else secrets.without_uv


def _protection(level: int | None) -> CredProtect | None:
    if level is None:
        return None
    if level not in frozenset(CredProtect):
        raise CommandError(Status.INVALID_OPTION)
    return CredProtect(level)
