"""What programs see of a card that goes wrong: the virtual PIV card with faults, through a real pcscd."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from keyvouch.errors import UsageError
from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.piv_card import Authority, VirtualPivCard
from keyvouch_bench.piv_card.reader import PivReader
from support.piv_tools import OpenSc

DIGEST = hashlib.sha256(b"what is signed").digest()


@pytest.fixture
def opensc(issued_piv_card: PivReader, tmp_path: Path) -> OpenSc:
    return OpenSc(issued_piv_card, tmp_path)


def test_a_card_is_taken_out_and_put_in_again(opensc: OpenSc):
    assert "Ada Lovelace" in opensc.token("--list-slots")
    opensc.piv.remove()
    assert not opensc.piv.inserted
    assert "Ada Lovelace" not in opensc.token("--list-slots")
    opensc.piv.remove()  # it is not there
    opensc.piv.insert()
    opensc.piv.insert()  # it is there
    assert "Ada Lovelace" in opensc.token("--list-slots")


def test_a_login_does_not_outlast_the_power(opensc: OpenSc):
    opensc.piv.card.answer(bytes.fromhex("0020008008") + opensc.piv.card.pin.encode().ljust(8, b"\xff"))
    assert opensc.piv.card.answer(bytes.fromhex("00200080")) == b"\x90\x00"
    opensc.piv.remove()
    assert opensc.piv.card.answer(bytes.fromhex("00200080")) == b"\x63\xc3"


@pytest.mark.parametrize("after", [False, True])
def test_taken_out_in_the_middle(opensc: OpenSc, after: bool):
    opensc.token("--list-objects")
    opensc.piv.card.faults.remove_at(5, after=after)
    opensc.token("--list-objects", "--type", "cert", good=False)
    opensc.piv.await_removal()
    assert not opensc.piv.inserted
    opensc.piv.insert()
    assert opensc.sign(0x9A, "ECDSA", DIGEST, pin=opensc.piv.card.pin)


def test_a_command_that_fails_out_of_nowhere(opensc: OpenSc):
    for number in range(1, 60):
        opensc.piv.card.faults.fail(number, 0x6F00)
    assert "Personal Identity Verification Card" not in opensc.card("opensc-tool", "--name", good=None)
    opensc.piv.card.faults.clear()
    assert "Personal Identity Verification Card" in opensc.card("opensc-tool", "--name")


def test_noise(opensc: OpenSc):
    opensc.piv.card.faults.garble(60)
    assert "Personal Identity Verification Card" not in opensc.card("opensc-tool", "--name", good=None)
    opensc.piv.card.faults.clear()
    assert opensc.sign(0x9A, "ECDSA", DIGEST, pin=opensc.piv.card.pin)


def test_a_slow_card_is_still_one(opensc: OpenSc):
    opensc.piv.card.faults.slow(0.05)
    assert opensc.sign(0x9E, "ECDSA", DIGEST, pin=opensc.piv.card.pin)


def test_a_card_with_a_blocked_pin(opensc: OpenSc):
    assert "locked" not in opensc.flags()
    opensc.piv.card.block_pin()
    assert "user PIN locked" in opensc.flags()
    assert "CKR_PIN_LOCKED" in opensc.token("--list-objects", pin=opensc.piv.card.pin, good=False)


def test_two_cards_at_once(opensc: OpenSc, piv_batch: Authority, piv_issuer: Authority, private_pcscd: PrivatePcscd):
    with PivReader(VirtualPivCard.blank(piv_batch), private_pcscd, slot=0) as other:
        other.card.personalise(piv_issuer)
        assert opensc.token("--list-slots").count("Ada Lovelace") == 2
        assert other.reader != opensc.piv.reader
        other.card.block_pin()
        assert "locked" not in opensc.flags()
        assert "user PIN locked" in OpenSc(other, opensc.folder).flags()


def test_a_reader_has_no_more_slots_than_it_has(piv_batch: Authority, private_pcscd: PrivatePcscd):
    reader = PivReader(VirtualPivCard.blank(piv_batch), private_pcscd, slot=7)
    with pytest.raises(UsageError):
        reader.insert()
    assert not reader.inserted
