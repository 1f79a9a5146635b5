"""PIN and PUK of the virtual PIV card (SP 800-73-4 part 2, section 3.2)."""

from __future__ import annotations

import pytest

from support.piv_cards import DEFAULT_PIN, DEFAULT_PUK, NEVER_VALID, CardClient, blank, pad, snapshot

WRONG = NEVER_VALID
NEW = "246801"


@pytest.fixture
def client() -> CardClient:
    return blank()


def change(client: CardClient, reference: int, old: str, new: str) -> int:
    return client.send(0x24, 0, reference, pad(old) + pad(new))[0]


def unblock(client: CardClient, puk: str, new: str) -> int:
    return client.send(0x2C, 0, 0x80, pad(puk) + pad(new))[0]


def test_verify_counts_down_tells_and_restores(client: CardClient):
    assert client.tries() == 0x63C3
    assert client.verify(WRONG) == 0x63C2
    assert client.tries() == 0x63C2
    assert client.verify(DEFAULT_PIN) == 0x9000
    assert client.tries() == 0x9000  # no need for it
    client.card.reset()
    assert client.tries() == 0x63C3


def test_a_blocked_pin_takes_not_even_the_right_one(client: CardClient):
    assert [client.verify(WRONG) for _ in range(4)] == [0x63C2, 0x63C1, 0x63C0, 0x6983]
    assert client.verify(DEFAULT_PIN) == 0x6983
    assert client.tries() == 0x6983
    assert change(client, 0x80, DEFAULT_PIN, NEW) == 0x6983


def test_a_wrong_pin_ends_the_login(client: CardClient):
    assert client.verify(DEFAULT_PIN) == 0x9000
    assert client.verify(WRONG) == 0x63C2
    assert client.tries() == 0x63C2


def test_logging_out(client: CardClient):
    client.verify(DEFAULT_PIN)
    assert client.send(0x20, 0xFF, 0x80)[0] == 0x9000
    assert client.tries() == 0x63C3
    assert client.send(0x20, 0xFF, 0x80, pad(DEFAULT_PIN))[0] == 0x6A86


@pytest.mark.parametrize("tries", [1, 5, 15])
def test_as_many_tries_as_were_ordered(tries: int):
    client = blank(pin_tries=tries, puk_tries=tries)
    assert client.tries() == 0x63C0 + tries
    assert [client.verify(WRONG) for _ in range(tries)] == [0x63C0 + left for left in reversed(range(tries))]
    assert client.verify(DEFAULT_PIN) == 0x6983


def test_what_has_no_pin_s_form(client: CardClient):
    """Eight bytes that cannot be a PIN count as a wrong one; another length does not."""
    assert client.send(0x20, 0, 0x80, b"1234567")[0] == 0x6A80
    assert client.send(0x20, 0, 0x80, b"1234567890")[0] == 0x6A80
    assert client.tries() == 0x63C3
    assert client.send(0x20, 0, 0x80, b"letters!")[0] == 0x63C2


@pytest.mark.parametrize("reference", [0x00, 0x04, 0x81, 0x96, 0x98])
def test_verify_knows_no_other_reference(client: CardClient, reference: int):
    assert client.send(0x20, 0, reference, pad(DEFAULT_PIN))[0] == 0x6A88
    assert client.tries() == 0x63C3


def test_changing_the_pin(client: CardClient):
    assert change(client, 0x80, DEFAULT_PIN, NEW) == 0x9000
    client.card.reset()
    assert client.verify(DEFAULT_PIN) == 0x63C2
    assert client.verify(NEW) == 0x9000
    assert client.card.pin == NEW


def test_changing_the_puk(client: CardClient):
    assert change(client, 0x81, DEFAULT_PUK, "87654321") == 0x9000
    assert change(client, 0x81, DEFAULT_PUK, DEFAULT_PUK) == 0x63C2
    assert unblock(client, "87654321", NEW) == 0x9000


@pytest.mark.parametrize("reference", [0x80, 0x81])
def test_a_wrong_old_one_counts_and_changes_nothing(client: CardClient, reference: int):
    before = snapshot(client.card.state)
    assert [change(client, reference, WRONG, NEW) for _ in range(4)] == [0x63C2, 0x63C1, 0x63C0, 0x6983]
    assert snapshot(client.card.state) == before


@pytest.mark.parametrize("new", ["12345", "1234567a", "", "abcdef", "12 456"])
def test_a_new_pin_without_the_form_of_one(client: CardClient, new: str):
    client.verify(WRONG)
    assert change(client, 0x80, DEFAULT_PIN, new) == 0x6A80
    assert unblock(client, DEFAULT_PUK, new) == 0x6A80
    assert client.tries() == 0x63C2
    assert client.verify(DEFAULT_PIN) == 0x9000


@pytest.mark.parametrize("pin", ["123456", "1234567", "87654321"])
def test_pins_of_six_to_eight_digits(client: CardClient, pin: str):
    assert change(client, 0x80, DEFAULT_PIN, pin) == 0x9000
    assert client.verify(pin) == 0x9000


def test_the_puk_unblocks(client: CardClient):
    client.card.block_pin()
    assert unblock(client, "00000000", NEW) == 0x63C2
    assert unblock(client, DEFAULT_PUK, NEW) == 0x9000
    assert client.tries() == 0x63C3
    assert client.verify(NEW) == 0x9000


def test_a_new_pin_by_the_puk_leaves_the_login_as_it_is_and_a_wrong_puk_ends_it(client: CardClient):
    assert unblock(client, DEFAULT_PUK, NEW) == 0x9000
    assert client.tries() == 0x63C3
    client.verify(NEW)
    assert unblock(client, DEFAULT_PUK, NEW) == 0x9000
    assert client.tries() == 0x9000
    assert unblock(client, DEFAULT_PUK, "short") == 0x6A80
    assert client.tries() == 0x9000
    assert unblock(client, "00000000", NEW) == 0x63C2
    assert client.tries() == 0x63C3


def test_a_blocked_puk_does_not(client: CardClient):
    client.card.block_pin()
    assert [unblock(client, "00000000", NEW) for _ in range(4)] == [0x63C2, 0x63C1, 0x63C0, 0x6983]
    assert unblock(client, DEFAULT_PUK, NEW) == 0x6983
    assert client.verify(DEFAULT_PIN) == 0x6983


@pytest.mark.parametrize("length", [0, 8, 15, 17, 255])
def test_two_secrets_are_sixteen_bytes(client: CardClient, length: int):
    commands = [(0x24, 0, 0x80, bytes(length)), (0x24, 0, 0x81, bytes(length)), (0x2C, 0, 0x80, bytes(length))]
    assert client.each(commands) == [0x6A80] * 3


def test_parameters_of_the_commands_about_secrets(client: CardClient):
    both = pad(DEFAULT_PIN) * 2
    commands = [
        (0x20, 1, 0x80, b""),
        (0x24, 1, 0x80, both),
        (0x24, 0, 0, both),
        (0x2C, 1, 0x80, both),
        (0x2C, 0, 0, both),
    ]
    assert client.each(commands) == [0x6A86, 0x6A86, 0x6A88, 0x6A86, 0x6A88]


def test_setting_the_tries_wants_both_management_key_and_pin(client: CardClient):
    assert client.send(0xFA, 5, 6)[0] == 0x6982
    client.become_administrator()
    assert client.send(0xFA, 5, 6)[0] == 0x6982
    client.verify(DEFAULT_PIN)
    assert client.send(0xFA, 0, 6)[0] == 0x6A86
    assert client.send(0xFA, 5, 16)[0] == 0x6A86
    assert client.send(0xFA, 5, 6)[0] == 0x9000
    assert client.tries() == 0x63C5
    assert change(client, 0x81, WRONG, WRONG) == 0x63C5


def test_only_a_card_that_is_blocked_throughout_is_reset(client: CardClient):
    client.become_administrator()
    client.generate(0x9A, 0x11)
    client.write(0x5FC102, b"anything")
    assert client.send(0xFB)[0] == 0x6985
    client.card.block_pin()
    assert client.send(0xFB)[0] == 0x6985
    client.card.block_puk()
    assert client.send(0xFB, 0, 0, b"x")[0] == 0x6700
    assert client.send(0xFB)[0] == 0x9000
    assert set(client.card.state.keys) == {0xF9}
    assert client.read(0x5FC102)[0] == 0x6A82
    assert client.verify(DEFAULT_PIN) == 0x9000
    assert client.write(0x5FC102, b"anything") == 0x6982
