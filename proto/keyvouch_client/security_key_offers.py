"""What a client checks before a security key signs: for whom it would sign, and what.

A security key shows nothing and signs what it is given, so the client is what stands between the person and a server
that passes on another server's request. Each check is one such way closed:

    relying party    a name of the server that TLS has verified, or the one the caller names: what is signed for
                     another server is never asked for
    server id        that of the server, as it says it and, where it is known already, as it was
    proof key        our own: what is approved can be redeemed by nobody else
    app, message     what was asked for, byte for byte

What is not here: the wire and the keys (`security_key`, `connected_signer`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from keyvouch.errors import EvidenceError, Reason
from keyvouch.ids import CredentialId, ServerId, SignInId
from keyvouch.statement import SignInOffer
from keyvouch.v1 import sign_in_pb2

_MOST_OFFERS: Final = 64
"""A server makes eight. More would only keep the person's keys busy."""

__all__ = ["Asked", "KeyOffers", "check_relying_party", "check_server", "read_offers"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, and by whom. `proof_key` is the RFC 7638 thumbprint of the client's own key."""

    server_id: ServerId
    proof_key: bytes
    app_id: str
    app_name: str
    audience: str
    binding_message: str


@dataclass(frozen=True, slots=True)
class KeyOffers:
    """Offers that passed every check, by credential; all of one user of one tenant."""

    rp_id: str
    tenant_id: str
    user_id: str
    offers: Mapping[CredentialId, bytes]


def check_relying_party(rp_id: str, *, host: str, named: str = "") -> None:
    """Check that the server may ask security keys for `rp_id` (WebAuthn Level 3 section 5.1.3, step 8; stricter).

    `host` is the name TLS was verified for. It has to be the relying party's, unless the caller has `named` that, or
    both mean this very computer. Raises `EvidenceError(WRONG_SERVER)`.
    """
    if named:
        if rp_id == named:
            return
        fix = f"The server asks for {rp_id or 'nothing'}. Find out whose server this is before you go on."
    elif rp_id and (rp_id == host.lower() or (rp_id == "localhost" and _is_loopback(host))):
        return
    else:
        fix = f"Connect to it as {rp_id or 'the name its keys are for'}, or name that if you know that it is right."
    raise EvidenceError(
        Reason.WRONG_SERVER,
        f"The server at {host} asks for keys of another server, so nothing was signed.",
        fix=fix,
        metadata={"host": host, "rp_id": rp_id},
    )


def check_server(told: ServerId, known: ServerId | None) -> None:
    """Check that the server is the one it was, where that is known. Raises `EvidenceError(WRONG_SERVER)`."""
    if known is not None and told != known:
        raise EvidenceError(
            Reason.WRONG_SERVER,
            "The server at this address has another identity than before, so nothing was signed.",
            fix="Find out who runs the server now before you go on.",
        )


def read_offers(message: sign_in_pb2.BeginSignInResponse, asked: Asked) -> KeyOffers:
    """Parse the offers of a response and hold each against what was asked for.

    Raises `MalformedError(STATEMENT_MALFORMED)`, `EvidenceError` with WRONG_SERVER or STATEMENT_MISMATCH. Every offer
    is looked at, so that one bad one is seen whichever key is used.
    """
    told = message.security_key
    if len(told.offers) > _MOST_OFFERS:
        raise _mismatch("offers more than anybody has keys for")
    offers: dict[CredentialId, bytes] = {}
    people: set[tuple[str, str]] = set()
    for one in told.offers:
        offer = SignInOffer.parse(one.offer)
        _check_offer(offer, asked, SignInId(message.sign_in_id), one.credential_id)
        offers[offer.credential_id] = one.offer
        people.add((offer.tenant_id, offer.user_id))
    if len(people) != 1 or len(offers) != len(told.offers):
        raise _mismatch("does not offer the sign-in of one user")
    ((tenant_id, user_id),) = people
    return KeyOffers(told.rp_id, tenant_id, user_id, offers)


def _check_offer(offer: SignInOffer, asked: Asked, sign_in_id: SignInId, credential: bytes) -> None:
    if offer.server_id != asked.server_id:
        raise EvidenceError(
            Reason.WRONG_SERVER,
            "The server offers to sign in at another server, so nothing was signed.",
            fix="Tell your administrator: somebody may be relaying requests.",
        )
    if offer.proof_key != asked.proof_key:
        raise _mismatch("offers the session to somebody else")
    found = (offer.app_id, offer.app_name, offer.audience, offer.binding_message)
    audience = asked.audience or asked.app_id
    if found != (asked.app_id, asked.app_name or asked.app_id, audience, asked.binding_message):
        raise _mismatch("does not offer what was asked for")
    if offer.sign_in_id != sign_in_id or offer.credential_id != credential:
        raise _mismatch("contradicts itself")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _mismatch(what: str) -> EvidenceError:
    return EvidenceError(
        Reason.STATEMENT_MISMATCH, f"The server {what}.", fix="Nothing was signed. Tell your administrator."
    )
