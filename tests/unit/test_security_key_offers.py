"""What a client checks before a security key signs, and what it refuses to have signed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason
from keyvouch.ids import CredentialId, DeviceId, ServerId, SignInId, TenantId, UserId
from keyvouch.statement import SignInOffer
from keyvouch.v1 import sign_in_pb2
from keyvouch_client.security_key_offers import Asked, check_relying_party, check_server, read_offers

SERVER, OTHER = ServerId(bytes(32)), ServerId(b"\1" * 32)
OWN, EVES = b"\2" * 32, b"\3" * 32
ASKED = Asked(SERVER, OWN, "shop", "Shop", "", "Week 47")
OFFER = SignInOffer(
    server_id=SERVER,
    tenant_id=TenantId("ten_a"),
    user_id=UserId("usr_a"),
    device_id=DeviceId("dev_a"),
    credential_id=CredentialId(b"key 0"),
    sign_in_id=SignInId("sin_a"),
    nonce=bytes(32),
    app_id="shop",
    app_name="Shop",
    audience="shop",
    proof_key=OWN,
    place="",
    address="",
    binding_message="Week 47",
    issued_at=1,
    expires_at=2,
    policy_version=1,
    required_assurance="any/software_gated/unattested",
)


def response(*offers: SignInOffer, sign_in_id: str = "sin_a", claimed: bytes = b"") -> sign_in_pb2.BeginSignInResponse:
    """What a server might answer."""
    message = sign_in_pb2.BeginSignInResponse(sign_in_id=sign_in_id)
    message.security_key.rp_id = "keys.example.org"
    for offer in offers:
        message.security_key.offers.add(credential_id=claimed or offer.credential_id, offer=offer.encode())
    return message


def test_offers_that_are_as_asked_for() -> None:
    second = replace(OFFER, credential_id=CredentialId(b"key 1"), device_id=DeviceId("dev_b"), nonce=b"\1" * 32)
    found = read_offers(response(OFFER, second), ASKED)
    assert (found.rp_id, found.tenant_id, found.user_id) == ("keys.example.org", "ten_a", "usr_a")
    assert found.offers == {OFFER.credential_id: OFFER.encode(), second.credential_id: second.encode()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"server_id": OTHER}, Reason.WRONG_SERVER),
        ({"proof_key": EVES}, Reason.STATEMENT_MISMATCH),
        ({"app_id": "bank"}, Reason.STATEMENT_MISMATCH),
        ({"app_name": "Bank"}, Reason.STATEMENT_MISMATCH),
        ({"audience": "bank"}, Reason.STATEMENT_MISMATCH),
        ({"binding_message": "Pay 100"}, Reason.STATEMENT_MISMATCH),
        ({"sign_in_id": SignInId("sin_b")}, Reason.STATEMENT_MISMATCH),
        ({"user_id": UserId("usr_b")}, Reason.STATEMENT_MISMATCH),
        ({"tenant_id": TenantId("ten_b")}, Reason.STATEMENT_MISMATCH),
    ],
)
def test_an_offer_for_somebody_or_something_else_signs_nothing_P3(change: dict[str, str], reason: Reason) -> None:
    second = replace(OFFER, credential_id=CredentialId(b"key 1"))
    bad = replace(second, **change)
    for offers in ((OFFER, bad), (bad, OFFER)):
        with pytest.raises(EvidenceError) as refusal:
            read_offers(response(*offers), ASKED)
        assert refusal.value.reason is reason
        assert "signed" in str(refusal.value)
    read_offers(response(OFFER, second), ASKED)


def test_what_contradicts_itself_is_refused() -> None:
    for message in (
        response(),
        response(OFFER, OFFER),
        response(OFFER, claimed=b"key 2"),
        response(OFFER, sign_in_id="sin_b"),
        response(*(replace(OFFER, credential_id=CredentialId(b"key %d" % n)) for n in range(65))),
    ):
        with pytest.raises(EvidenceError) as refusal:
            read_offers(message, ASKED)
        assert refusal.value.reason is Reason.STATEMENT_MISMATCH
    cut = response(OFFER)
    cut.security_key.offers[0].offer = OFFER.encode()[:-1]
    with pytest.raises(MalformedError) as malformed:
        read_offers(cut, ASKED)
    assert malformed.value.reason is Reason.STATEMENT_MALFORMED


@pytest.mark.parametrize(
    ("rp_id", "host", "named", "good"),
    [
        ("keys.example.org", "keys.example.org", "", True),
        ("keys.example.org", "KEYS.example.org", "", True),
        ("localhost", "localhost", "", True),
        ("localhost", "127.0.0.1", "", True),
        ("localhost", "::1", "", True),
        ("10.0.0.7", "10.0.0.7", "", True),
        ("keys.example.org", "10.0.0.7", "keys.example.org", True),
        ("keys.example.org", "10.0.0.7", "", False),
        ("example.org", "keys.example.org", "", False),
        ("org", "keys.example.org", "", False),
        ("keys.example.org", "evil.example.org", "", False),
        ("keys.example.org", "keys.example.org.evil", "", False),
        ("keys.example.org", "localhost", "", False),
        ("localhost", "keys.example.org", "", False),
        ("localhost", "10.0.0.7", "", False),
        ("", "keys.example.org", "", False),
        ("", "", "", False),
        ("keys.example.org", "keys.example.org", "other.example.org", False),
    ],
)
def test_a_server_asks_for_its_own_keys_only_W6(rp_id: str, host: str, named: str, good: bool) -> None:
    if good:
        check_relying_party(rp_id, host=host, named=named)
        return
    with pytest.raises(EvidenceError) as refusal:
        check_relying_party(rp_id, host=host, named=named)
    assert refusal.value.reason is Reason.WRONG_SERVER
    assert refusal.value.fix


def test_a_server_that_was_another_one_before() -> None:
    check_server(SERVER, None)
    check_server(SERVER, SERVER)
    with pytest.raises(KeyvouchError) as refusal:
        check_server(OTHER, SERVER)
    assert refusal.value.reason is Reason.WRONG_SERVER
