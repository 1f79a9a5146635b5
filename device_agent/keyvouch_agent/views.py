"""What the agent tells its user interfaces: plain documents, the same on the socket, in `--json` and in the terminal.

Texts of the peer are passed on as they are; whoever prints them makes them inert first (`prompts.inert`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from keyvouch.errors import DeviceError, KeyvouchError
from keyvouch_agent.agent_ports import HealthVerdict, Outcome
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.ports import ProviderCapabilities
from keyvouch_agent.session_ports import OpenedSession

if TYPE_CHECKING:  # it brings the cryptographic library along, which most commands do without
    from keyvouch_agent.ceremonies.sign_in import Review

__all__ = [
    "Document",
    "enrolment_document",
    "error_document",
    "health_document",
    "key_label",
    "outcome_document",
    "pin_document",
    "prompt_document",
    "session_document",
]

Document: TypeAlias = Mapping[str, object]

KEY_LABELS: Mapping[str, str] = {
    "software": "software, protected by your PIN only",
    "tpm": "this computer's TPM",
    "fido2": "security key",
    "smartcard": "smartcard",
}


def key_label(enrolment: Enrolment) -> str:
    """What holds the key, honestly."""
    label = KEY_LABELS.get(enrolment.provider, enrolment.provider)
    if enrolment.emulated:
        label = "a token in software" if enrolment.provider == "smartcard" else "an emulated TPM, which is software"
    return f"{label} ({enrolment.key_name})" if enrolment.key_name else label


def prompt_document(review: Review, enrolment: Enrolment, *, server_now: float) -> Document:
    """A waiting prompt: who, for what, from where, when, with which key."""
    offer = review.offer
    return {
        "prompt_id": review.prompt.prompt_id,
        "tenant": enrolment.tenant_name,
        "username": enrolment.username,
        "server": enrolment.public_endpoint,
        "app_id": offer.app_id,
        "app_name": offer.app_name,
        "audience": offer.audience,
        "place": offer.place,
        "address": offer.address,
        "binding_message": offer.binding_message,
        "issued_at": offer.issued_at,
        "expires_at": review.expires_at,
        "seconds_left": max(0, int(review.expires_at - server_now)),
        "number_digits": review.prompt.number_digits,
        "number_choices": list(review.prompt.number_choices),
        "provider": enrolment.provider,
        "key": key_label(enrolment),
        "device_id": enrolment.device_id,
    }


def health_document(verdict: HealthVerdict | None) -> Document:
    """What the server makes of the key's holder; nothing where it does not ask."""
    if verdict is None:
        return {}
    return {"health": verdict.state, "findings": list(verdict.findings), "assurance": verdict.assurance}


def session_document(session: OpenedSession) -> Document:
    """A session with its tokens, for the app that asked: whoever is given this holds the session."""
    return {
        "session_id": session.session_id,
        "token_type": "Bearer",
        "access_token": session.access_token.reveal(),
        "access_expires_at": session.access_expires_at,
        "refresh_token": session.refresh_token.reveal(),
        "session_expires_at": session.session_expires_at,
        "acr": session.acr,
    }


def outcome_document(outcome: Outcome) -> Document:
    """What became of an answer."""
    return {
        "prompt_id": outcome.prompt_id,
        "accepted": outcome.accepted,
        "state": outcome.state.value,
        "reason": outcome.reason,
        "message": outcome.message,
    }


def enrolment_document(enrolment: Enrolment, *, channel_key: str) -> Document:
    """An enrolment without its secrets. `channel_key` is that key's `protection`."""
    return {
        "device_id": enrolment.device_id,
        "display_name": enrolment.display_name,
        "tenant": enrolment.tenant_name,
        "tenant_id": enrolment.tenant_id,
        "username": enrolment.username,
        "user_id": enrolment.user_id,
        "server": enrolment.public_endpoint,
        "device_endpoint": enrolment.device_endpoint,
        "server_id": enrolment.server_id.hex(),
        "credential_id": enrolment.credential_id.hex(),
        "rp_id": enrolment.rp_id,
        "provider": enrolment.provider,
        "key": key_label(enrolment),
        "key_model": enrolment.key_model,
        "channel_key": channel_key,
    }


def pin_document(capabilities: ProviderCapabilities) -> Document:
    """Where the PIN of a provider stands. `retries_left` is null where it cannot be told."""
    return {
        "provider": capabilities.kind.value,
        "name": capabilities.name,
        "protection": capabilities.key_protection.value,
        "pin_is_set": capabilities.pin_is_set,
        "retries_left": capabilities.pin_retries_left,
        "min_pin_length": capabilities.min_pin_length,
        "connected": capabilities.connected,
        "asks_pin": capabilities.asks_pin,
    }


def error_document(error: KeyvouchError) -> Document:
    """An error for programs and for people; `retries_left` only where the provider told it."""
    document: dict[str, object] = {
        "kind": type(error).__name__,
        "reason": error.reason.value,
        "message": error.message,
        "fix": error.fix,
    }
    if error.metadata:
        document["metadata"] = error.metadata
    if isinstance(error, DeviceError) and error.retries_left is not None:
        document["retries_left"] = error.retries_left
    return document
