"""The virtual PIV card takes any bytes; faults; what it keeps and what it notes."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from keyvouch.errors import Reason, UnavailableError
from keyvouch_bench.piv_card import Authority, Entry, VirtualPivCard
from keyvouch_bench.piv_card.faults import CardRemovedError
from keyvouch_bench.piv_card.identifiers import Instruction, KeyAlgorithm, RefusedError
from keyvouch_bench.piv_card.tlv import build, parse, single
from support.piv_cards import BATCH, DEFAULT_PIN, DEFAULT_PUK, ISSUER, CardClient, blank, pad, snapshot

APDUS = 6000
PARAMETERS = (
    0x00,
    0x01,
    0x03,
    0x04,
    0x07,
    0x11,
    0x14,
    0x3F,
    0x80,
    0x81,
    0x9A,
    0x9B,
    0x9C,
    0x9D,
    0x9E,
    0x82,
    0xF9,
    0xFF,
)
TAGS = (0x5C, 0x53, 0x7C, 0x80, 0x81, 0x82, 0x85, 0xAC, 0xAA, 0xAB, 0x01, 0x06, 0x7E)
VALUES = (b"", b"\x11", b"\x7e", bytes.fromhex("5FC102"), bytes(8), bytes(16), bytes(32), pad(DEFAULT_PIN) * 2)
WORDS = {0x9000, 0x6700, 0x6982, 0x6983, 0x6985, 0x6A80, 0x6A82, 0x6A84, 0x6A86, 0x6A88, 0x6D00, 0x6E00}
CHANGING = {
    Instruction.CHANGE_REFERENCE_DATA,
    Instruction.RESET_RETRY_COUNTER,
    Instruction.GENERATE_ASYMMETRIC_KEY_PAIR,
    Instruction.PUT_DATA,
    Instruction.SET_RETRIES,
    Instruction.RESET,
    Instruction.IMPORT_KEY,
    Instruction.SET_MANAGEMENT_KEY,
}


def random_data(chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.2:
        return chance.randbytes(chance.choice((0, 1, 2, 8, 16, 24, 200)))
    data = b"".join(build(chance.choice(TAGS), chance.choice(VALUES)) for _ in range(chance.randrange(3)))
    if kind < 0.6:
        data = build(chance.choice(TAGS), data)
    return data


def command(instruction: int, p1: int, p2: int, data: bytes = b"") -> bytes:
    return bytes([0, instruction, p1, p2]) + (bytes([len(data)]) + data if data else b"") + b"\0"


GOOD = (
    command(0xA4, 4, 0, bytes.fromhex("A000000308")),
    command(0x20, 0, 0x80, pad(DEFAULT_PIN)),
    command(0x24, 0, 0x80, pad(DEFAULT_PIN) * 2),
    command(0x2C, 0, 0x80, pad(DEFAULT_PUK) + pad(DEFAULT_PIN)),
    command(0x47, 0, 0x9A, build(0xAC, build(0x80, b"\x11"))),
    command(0x47, 0, 0x9C, build(0xAC, build(0x80, b"\x14") + build(0xAA, b"\1") + build(0xAB, b"\1"))),
    command(0x87, 0x11, 0x9A, build(0x7C, build(0x82) + build(0x81, bytes(32)))),
    command(0x87, 0x14, 0x9C, build(0x7C, build(0x82) + build(0x81, bytes(48)))),
    command(0x87, 0x03, 0x9B, build(0x7C, build(0x80))),
    command(0xCB, 0x3F, 0xFF, build(0x5C, bytes.fromhex("5FFF01"))),
    command(0xDB, 0x3F, 0xFF, build(0x5C, bytes.fromhex("5FC102")) + build(0x53, b"value")),
    command(0xF7, 0, 0x9A),
    command(0xF9, 0x9A, 0),
    command(0xFA, 15, 15),
    command(0xFE, 0x11, 0x9E, build(6, b"\1" * 32)),
    command(0xFF, 0xFF, 0xFF, b"\x03\x9b\x18" + bytes.fromhex("0102030405060708" * 3)),
)
"""Commands that succeed for somebody who has shown PIN and management key."""


def random_apdu(chance: random.Random) -> bytes:
    """Anything, or something that is nearly right."""
    kind = chance.random()
    if kind < 0.1:
        return chance.randbytes(chance.choice((0, 1, 3, 4, 5, 6, 7, 9, 40, 300)))
    if kind < 0.6:
        whole = bytearray(chance.choice(GOOD))
    else:
        data = random_data(chance)[:255]
        header = [chance.choice((0, 0, 0, 0, 0x10, 0x80)), chance.choice(list(Instruction))]
        header += chance.choices(PARAMETERS, k=2)
        body = (bytes([len(data)]) + data if data else b"") + chance.choice((b"", b"\0"))
        whole = bytearray(bytes(header) + body)
    if chance.random() < 0.4:
        whole[chance.randrange(len(whole))] = chance.randrange(256)
    if chance.random() < 0.05:
        del whole[chance.randrange(len(whole)) :]
    return bytes(whole)


def known(word: int) -> bool:
    return word in WORDS or word >> 8 == 0x61 or 0x63C0 <= word <= 0x63CF


@pytest.mark.parametrize("seed", range(4))
def test_any_apdu_gets_a_status_word_and_an_error_changes_nothing(seed: int):
    chance = random.Random(seed)
    client = blank(pin_tries=15, puk_tries=15, entropy=chance.randbytes)
    client.become_administrator()
    client.generate(0x9A, KeyAlgorithm.P256)
    before, succeeded = snapshot(client.card.state), set()
    for number in range(APDUS):
        if number % 25 == 0:
            client.card.state.pin.left = client.card.state.puk.left = 15
            client.card.reset()
            if number % 50 == 0:
                client.become_administrator(client.card.state.management_key, client.card.state.management_algorithm)
        apdu = random_apdu(chance)
        word = int.from_bytes(client.card.answer(apdu)[-2:], "big")
        assert known(word), (apdu.hex(), f"{word:04X}")
        if (word == 0x9000 or word >> 8 == 0x61) and not apdu[0]:
            succeeded.add(apdu[1])
            if apdu[1] in CHANGING:
                before = snapshot(client.card.state)
        assert snapshot(client.card.state) == before, apdu.hex()
    assert succeeded >= {good[1] for good in GOOD}
    client.card.reset()
    assert client.read(0x7E)[0] == 0x9000


@pytest.mark.parametrize("instruction", [code for code in range(256) if code not in {*Instruction}])
def test_instructions_it_does_not_know(instruction: int):
    assert CardClient(CARD).send(instruction)[0] == 0x6D00


CARD = VirtualPivCard.blank(BATCH)


def test_a_chain_may_be_given_up():
    client = blank()
    assert client.card.answer(bytes.fromhex("10DB3FFF02" + "5C03")) == b"\x90\0"
    assert client.read(0x7E)[0] == 0x9000
    assert client.card.answer(bytes.fromhex("00C00000")) == b"\x69\x85"


# TLV


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 3000])
@pytest.mark.parametrize("tag", [0x53, 0x7F49, 0x5FC105])
def test_an_element_goes_there_and_back(tag: int, size: int):
    assert single(build(tag, bytes(size)), tag) == bytes(size)


@pytest.mark.parametrize(
    "data",
    [
        "53",
        "5301",
        "5381",
        "538101",
        "5382",
        "538200",
        "53800000",
        "5383000000",
        "7F",
        "7FFF",
        "7FFFFFFF00",
        "53005300",
    ],
)
def test_elements_that_are_none(data: str):
    assert parse(bytes.fromhex("53005400")) == {0x53: b"", 0x54: b""}
    with pytest.raises(RefusedError):
        parse(bytes.fromhex(data))


# Faults


def word(answer: bytes) -> int:
    return int.from_bytes(answer[-2:], "big")


SELECT = bytes.fromhex("00A4040005A000000308")
TELL = bytes.fromhex("00200080")
WRONG = bytes.fromhex("0020008008") + pad("999999")


async def test_without_faults_the_reader_gets_what_the_card_answers():
    card = VirtualPivCard.blank(BATCH)
    assert await card.transmit(SELECT) == card.answer(SELECT)


async def test_taken_out_before_or_after_a_command():
    card = VirtualPivCard.blank(BATCH)
    card.faults.remove_at(2)
    card.faults.remove_at(4, after=True)
    assert word(await card.transmit(WRONG)) == 0x63C2
    with pytest.raises(CardRemovedError):
        await card.transmit(WRONG)
    assert word(await card.transmit(WRONG)) == 0x63C1
    with pytest.raises(CardRemovedError):
        await card.transmit(WRONG)
    assert word(await card.transmit(TELL)) == 0x6983


async def test_a_status_word_out_of_nowhere():
    card = VirtualPivCard.blank(BATCH)
    card.faults.fail(1, 0x6F00)
    assert await card.transmit(WRONG) == b"\x6f\0"
    assert word(await card.transmit(TELL)) == 0x63C3


async def test_noise_in_the_place_of_answers():
    card = VirtualPivCard.blank(BATCH)
    card.faults.garble(20)
    noise = [await card.transmit(SELECT) for _ in range(20)]
    assert len(set(noise)) == 20
    assert await card.transmit(SELECT) == card.answer(SELECT)


async def test_a_slow_answer_is_not_waited_for_when_the_reader_is_gone():
    card = VirtualPivCard.blank(BATCH)
    card.faults.slow(3600)
    slow = asyncio.ensure_future(card.transmit(SELECT))
    await asyncio.sleep(0)
    card.give_up()
    assert word(await slow) == 0x9000
    card.faults.clear()
    assert word(await card.transmit(SELECT)) == 0x9000
    card.give_up()  # nothing runs


# What it keeps


def test_a_card_is_kept_in_its_folder(tmp_path: Path):
    client = CardClient(VirtualPivCard.blank(BATCH, folder=tmp_path / "card", pin_tries=5))
    client.card.personalise(ISSUER)
    client.become_administrator()
    client.generate(0x9D, KeyAlgorithm.RSA_2048)
    client.verify("999999")
    again = VirtualPivCard.kept(tmp_path / "card")
    assert again.pin == client.card.pin
    assert again.state.pin.left == 4
    assert again.state.objects == client.card.state.objects
    for slot, key in client.card.state.keys.items():
        assert again.state.keys[slot].private.private_numbers() == key.private.private_numbers()
        assert again.state.keys[slot].pin_policy is key.pin_policy
    assert CardClient(again).verify(again.pin) == 0x9000
    assert (tmp_path / "card" / "card.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"format": 2}', '{"format": 1, "management": [3, "zz"]}'])
def test_folders_without_a_card(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "card.json").write_text(content)
    with pytest.raises(UnavailableError) as caught:
        VirtualPivCard.kept(tmp_path)
    assert caught.value.reason is Reason.CONFIGURATION


def test_an_authority_is_kept_in_its_file(tmp_path: Path):
    made = Authority.kept(tmp_path / "batch.pem", "kept")
    again = Authority.kept(tmp_path / "batch.pem", "kept")
    assert again.certificate == made.certificate
    assert (tmp_path / "batch.pem").stat().st_mode & 0o777 == 0o600
    (tmp_path / "batch.pem").write_text("nothing")
    with pytest.raises(UnavailableError):
        Authority.kept(tmp_path / "batch.pem", "kept")


def test_the_journal_has_instructions_and_no_secret():
    client = blank()
    client.verify("271828")
    client.verify(DEFAULT_PIN)
    client.tries()
    assert client.card.journal[:2] == [Entry(0x20, 0, 0x80, 9, 0x63C2), Entry(0x20, 0, 0x80, 9, 0x9000)]
    assert client.card.count == {"VERIFY": 3}
    assert not any(secret in repr(client.card.journal) for secret in ("271828", DEFAULT_PIN, pad("271828").hex()))
    client.send(0x99)
    assert client.card.count["99"] == 1


def test_random_numbers_come_from_where_they_are_ordered():
    first, second = (blank(entropy=random.Random(7).randbytes) for _ in range(2))
    assert first.challenge() == second.challenge()
    assert first.challenge() == second.challenge()
    assert first.challenge() != first.challenge()
