"""The certificate chain a server answers with: verified, or refused with the reason of the first check that fails."""

from __future__ import annotations

import pytest

from keyvouch.errors import EvidenceError, Reason
from keyvouch.ids import ServerId
from keyvouch_agent.channel_identity import verify_chain
from keyvouch_agent.channel_keys import SealedChannelKeys
from support.fake_devices import Authority

KEY = SealedChannelKeys().make()
AUTHORITY, OTHER = Authority(), Authority()
GOOD = AUTHORITY.device_chain("dev_x", KEY.spki, 300.0)


def test_a_good_chain_tells_when_to_renew() -> None:
    chain = verify_chain(GOOD, server_id=AUTHORITY.server_id, channel_key=KEY.spki)
    assert chain.certificates == GOOD
    assert chain.renew_at - chain.not_before == pytest.approx((chain.not_after - chain.not_before) * 2 / 3)
    assert chain.pem.count(b"BEGIN CERTIFICATE") == 2
    assert chain.authority_pem == AUTHORITY.pem


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        ((), Reason.TRUST_CHAIN),
        (GOOD[:1], Reason.TRUST_CHAIN),
        ((*GOOD, *GOOD, GOOD[1]), Reason.TRUST_CHAIN),
        ((b"rubbish", GOOD[1]), Reason.TRUST_CHAIN),
        ((GOOD[0], GOOD[1] + b"\0"), Reason.TRUST_CHAIN),
        ((GOOD[1], GOOD[0]), Reason.CHANNEL_KEY),
        (AUTHORITY.device_chain("dev_x", SealedChannelKeys().make().spki, 300.0), Reason.CHANNEL_KEY),
        (OTHER.device_chain("dev_x", KEY.spki, 300.0), Reason.WRONG_SERVER),
        ((OTHER.device_chain("dev_x", KEY.spki, 300.0)[0], GOOD[1]), Reason.TRUST_CHAIN),
        ((GOOD[0], OTHER.der, GOOD[1]), Reason.TRUST_CHAIN),
    ],
)
def test_bad_chains_are_refused(chain: tuple[bytes, ...], reason: Reason) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify_chain(chain, server_id=AUTHORITY.server_id, channel_key=KEY.spki)
    assert caught.value.reason is reason


def test_the_server_id_is_the_last_certificates_key() -> None:
    with pytest.raises(EvidenceError) as caught:
        verify_chain(GOOD, server_id=ServerId(bytes(32)), channel_key=KEY.spki)
    assert caught.value.reason is Reason.WRONG_SERVER
