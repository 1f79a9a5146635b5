"""The Temporary Access Pass: its code as people type it, why a pass cannot be used, and the one device it may be for.

Not here: how passes are made (`use_cases.access_passes`) and spent (`use_cases.access_pass_sign_in`), and the settings
of a tenant (`domain.policy_parts`).
"""

from __future__ import annotations

import unicodedata
import uuid
from collections.abc import Callable
from typing import Final

from keyvouch.errors import Reason, RefusedError
from keyvouch_server.domain.authenticators import Model
from keyvouch_server.domain.evaluation import Subject, decide_method
from keyvouch_server.domain.model import AccessPass, SignInMethod
from keyvouch_server.domain.names import MAX_TYPED, invalid_field
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.verdicts import Verdicts

ALPHABET: Final = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
"""31 characters nobody mistakes for another; eight of them are 39.6 bits, spent at most five times."""

ATTEMPTS: Final = 5
"""Codes that are compared with one pass and are wrong, in all its life. Then it is dead (P9)."""

ONE_TIME_SECONDS: Final = 600
"""T13: with a one-time pass, registration must finish within ten minutes of the sign-in."""

_AHEAD_SECONDS: Final = 366 * 86400
_LATE_SECONDS: Final = 60
"""How far ahead a pass may start, and how late a request for one that starts now may come."""

_EK: Final = "ek:"
_AAGUID: Final = "aaguid:"


def draw_code(length: int, token: Callable[[int], bytes]) -> str:
    """A code of uniform characters out of random bytes: those that would favour some are thrown away."""
    limit = 256 - 256 % len(ALPHABET)
    code = ""
    while len(code) < length:
        code += "".join(ALPHABET[b % len(ALPHABET)] for b in token(64) if b < limit)
    return code[:length]


def as_typed(code: str) -> str:
    """A code as it is compared: case, spaces and hyphens do not matter, nor do the forms of one character."""
    code = code if len(code) <= MAX_TYPED else ""  # no code is as long, and folding it would take long
    return unicodedata.normalize("NFKC", code).upper().replace(" ", "").replace("-", "")


def lifetime_of(policy: Policy, asked_minutes: int) -> int:
    """T3: the lifetime of a new pass in minutes, the policy's default for 0. Raises FIELD_INVALID."""
    rules = policy.access_pass
    lifetime = asked_minutes or rules.default_lifetime_minutes
    if not rules.minimum_lifetime_minutes <= lifetime <= rules.maximum_lifetime_minutes:
        expected = f"{rules.minimum_lifetime_minutes} to {rules.maximum_lifetime_minutes} minutes by policy"
        raise invalid_field("lifetime_minutes", expected)
    return lifetime


def start_of(asked: int, *, now: int) -> int:
    """T6: when a new pass starts, now for 0. Raises FIELD_INVALID."""
    if asked and not now - _LATE_SECONDS <= asked <= now + _AHEAD_SECONDS:
        raise invalid_field("start_at", "an instant from now to a year ahead, or nothing for now")
    return asked or now


def access_pass_end(found: AccessPass) -> int:
    """The instant a pass ends."""
    return found.start_at + 60 * found.lifetime_minutes


def access_pass_refusal(policy: Policy, found: AccessPass, subject: Subject, *, now: int) -> Reason | None:
    """T2, T7, T11, T14, T17: why a user cannot sign in with a pass of theirs now, or None.

    A pass that starts when it is made is valid since it exists (T18), also on a node whose clock is a little behind.
    """
    try:
        decide_method(policy, SignInMethod.ACCESS_PASS, subject, Verdicts())
    except RefusedError as refusal:
        guest = refusal.reason is Reason.ACCESS_PASS_GUEST
        return refusal.reason if guest else Reason.ACCESS_PASS_NOT_IN_POLICY
    if found.attempts >= ATTEMPTS:
        return Reason.ACCESS_PASS_ATTEMPTS
    if found.one_time and found.used_at:
        return Reason.ACCESS_PASS_USED
    if now < found.start_at and found.start_at > found.created_at:
        return Reason.ACCESS_PASS_NOT_YET_VALID
    if now >= access_pass_end(found):
        return Reason.ACCESS_PASS_EXPIRED
    if policy.access_pass.one_time_required and not found.one_time:
        return Reason.ACCESS_PASS_ONE_TIME_REQUIRED
    return None


def decide_pass_policy(policy: Policy, found: AccessPass, subject: Subject) -> None:
    """T2, T14, KI1: what a pass has opened goes on for as long as policy lets its user sign in with such a pass.

    Raises METHOD_DISABLED, METHOD_NOT_TARGETED, ACCESS_PASS_GUEST or ACCESS_PASS_ONE_TIME_REQUIRED.
    """
    decide_method(policy, SignInMethod.ACCESS_PASS, subject, Verdicts())
    if policy.access_pass.one_time_required and not found.one_time:
        raise RefusedError(
            Reason.ACCESS_PASS_ONE_TIME_REQUIRED,
            "Policy asks for one-time access passes by now, and the one that opened this session is for many uses.",
            fix="Ask an administrator for a new access pass.",
        )


def endorsement_key_binding(key_hash: bytes) -> str:
    """The binding to one TPM. Raises FIELD_INVALID unless it is the 32 bytes of a SHA-256."""
    if len(key_hash) != 32:
        raise invalid_field("binding.endorsement_key_hash", "a SHA-256, 32 bytes")
    return _EK + key_hash.hex()


def aaguid_binding(text: str) -> str:
    """The binding to one model of authenticators. Raises FIELD_INVALID unless it is a UUID that is not all zero."""
    try:
        model = uuid.UUID(text)
    except ValueError:
        model = uuid.UUID(int=0)
    if str(model) != text.lower() or not model.int:
        raise invalid_field("binding.aaguid", "an AAGUID like 2fc0579f-8113-47ea-b116-bb5a8db9202a, not all zero")
    return f"{_AAGUID}{model}"


def bound_key_hash(binding: str) -> bytes:
    """The endorsement key hash that a binding names, empty where it names none."""
    return bytes.fromhex(binding.removeprefix(_EK)) if binding.startswith(_EK) else b""


def bound_aaguid(binding: str) -> str:
    """The AAGUID that a binding names, empty where it names none."""
    return binding.removeprefix(_AAGUID) if binding.startswith(_AAGUID) else ""


def decide_binding(binding: str, *, endorsement_key_hash: bytes, model: Model) -> None:
    """P8: with a bound pass only its device is registered. Raises ACCESS_PASS_DEVICE.

    `endorsement_key_hash` is that of the TPM that was proved to hold the new key, empty where none was; a model counts
    where a trusted chain names it, and what merely claims to be it is another device.
    """
    wanted = bound_key_hash(binding)
    if not binding or (wanted and wanted == endorsement_key_hash):
        return
    proved = model.name if model.is_proved else ""
    if bound_aaguid(binding) and bound_aaguid(binding) == proved:
        return
    found = _EK + endorsement_key_hash.hex() if endorsement_key_hash else f"{_AAGUID}{proved}" if proved else "nothing"
    raise RefusedError(
        Reason.ACCESS_PASS_DEVICE,
        "The access pass that opened this session is for one device, and nothing proves that this is the one.",
        fix="Register the device that the pass was made for, or ask an administrator for a pass for this one.",
        metadata={"detail": binding, "found": found},
    )
