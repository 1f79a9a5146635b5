"""APDUs as ISO/IEC 7816-4 frames them: every case of a command, chains, and responses in pieces."""

import pytest

from keyvouch_agent.transports.iso7816 import LONGEST_CHAIN, ApduError, CommandApdu, Pieces, StatusWord, parse

HEADER = b"\x80\x10\x00\x00"
DATA = bytes(range(1, 6))

CASES = {
    "1: nothing": (b"", b"", 256, False),
    "2 short": (b"\x20", b"", 32, False),
    "2 short, all there is": (b"\x00", b"", 256, False),
    "3 short": (b"\x05" + DATA, DATA, 256, False),
    "4 short": (b"\x05" + DATA + b"\x07", DATA, 7, False),
    "4 short, all there is": (b"\x05" + DATA + b"\x00", DATA, 256, False),
    "2 extended": (b"\x00\x01\x02", b"", 258, True),
    "2 extended, all there is": (b"\x00\x00\x00", b"", 65536, True),
    "3 extended": (b"\x00\x00\x05" + DATA, DATA, 65536, True),
    "4 extended": (b"\x00\x00\x05" + DATA + b"\x01\x00", DATA, 256, True),
    "4 extended, all there is": (b"\x00\x00\x05" + DATA + b"\x00\x00", DATA, 65536, True),
    "3 short, the longest": (b"\xff" + bytes(255), bytes(255), 256, False),
    "3 extended, longer than short": (b"\x00\x01\x00" + bytes(256), bytes(256), 65536, True),
}


@pytest.mark.parametrize("case", CASES)
def test_every_case_of_a_command_is_understood(case: str):
    body, data, expected, extended = CASES[case]
    assert parse(HEADER + body) == CommandApdu(0x80, 0x10, 0, 0, data, expected, extended)


WRONG = {
    "empty": b"",
    "half a header": b"\x80\x10\x00",
    "less data than it says": HEADER + b"\x05" + DATA[:4],
    "more data than it says": HEADER + b"\x05" + DATA + b"\x00\x00",
    "short, no data in front of the answer's length": HEADER + b"\x00\x00",
    "extended, no data in front of the answer's length": HEADER + b"\x00\x00\x00\x01\x00",
    "extended, less data than it says": HEADER + b"\x00\x00\x05" + DATA[:4],
    "extended, half an answer's length": HEADER + b"\x00\x00\x05" + DATA + b"\x00",
    "extended, too much of it": HEADER + b"\x00\x00\x05" + DATA + b"\x00\x00\x00",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_command_of_the_wrong_length_is_refused(case: str):
    with pytest.raises(ApduError) as refusal:
        parse(WRONG[case])
    assert refusal.value.status is StatusWord.WRONG_LENGTH


def command(data: bytes, *, chained: bool = False, ins: int = 0x10, expected: int = 256) -> CommandApdu:
    return CommandApdu(0x90 if chained else 0x80, ins, 0, 0, data, expected, extended=False)


def test_a_chain_is_joined_and_has_the_last_commands_form():
    pieces = Pieces()
    assert pieces.join(command(b"one", chained=True)) is None
    assert pieces.join(command(b"two", chained=True)) is None
    assert pieces.join(command(b"three", expected=7)) == command(b"onetwothree", expected=7)


def test_a_finished_chain_leaves_nothing_for_the_next_command():
    pieces = Pieces()
    pieces.join(command(b"one", chained=True))
    pieces.join(command(b"two"))
    assert pieces.join(command(b"three")) == command(b"three")


@pytest.mark.parametrize("interruption", [command(b"x", ins=0x11), command(b"x", ins=0x11, chained=True)])
def test_another_command_ends_a_chain(interruption: CommandApdu):
    pieces = Pieces()
    pieces.join(command(b"one", chained=True))
    pieces.join(interruption)
    assert pieces.join(command(b"two")) == command(b"two")


def test_a_chain_is_bounded_and_can_be_begun_again_after():
    pieces = Pieces()
    whole = bytes(LONGEST_CHAIN)
    assert pieces.join(command(whole[:-1], chained=True)) is None
    assert pieces.join(command(whole[-1:])) == command(whole)
    pieces.join(command(whole, chained=True))
    with pytest.raises(ApduError) as refusal:
        pieces.join(command(b"x"))
    assert refusal.value.status is StatusWord.WRONG_LENGTH
    assert pieces.join(command(b"new")) == command(b"new")


def collect(pieces: Pieces, first: bytes, expected: int) -> tuple[bytes, list[str], bytes]:
    data, words, last = first[:-2], [], first[-2:]
    while last[0] == 0x61:
        words.append(last.hex())
        answer = pieces.go_on(CommandApdu(0, 0xC0, 0, 0, b"", expected, extended=False))
        data, last = data + answer[:-2], answer[-2:]
    return data, words, last


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (0, []),
        (256, []),
        (257, ["6101"]),
        (511, ["61ff"]),
        (512, ["6100"]),
        (600, ["6100", "6158"]),
    ],
)
def test_a_long_response_comes_in_pieces(length: int, words: list[str]):
    pieces, response = Pieces(), bytes(i % 251 for i in range(length))
    first = pieces.answer(command(b""), response, StatusWord.SUCCESS)
    assert collect(pieces, first, 256) == (response, words, b"\x90\x00")


def test_an_extended_command_gets_it_in_one_piece():
    pieces, response = Pieces(), bytes(5000)
    extended = CommandApdu(0x80, 0x10, 0, 0, b"", 65536, extended=True)
    assert pieces.answer(extended, response, StatusWord.SUCCESS) == response + b"\x90\x00"


def test_a_piece_is_never_longer_than_was_asked_for():
    pieces = Pieces()
    first = pieces.answer(command(b"", expected=3), b"12345678", StatusWord.SUCCESS)
    assert first == b"123" + b"\x61\x05"
    assert collect(pieces, first, 2) == (b"12345678", ["6105", "6103", "6101"], b"\x90\x00")


def test_the_status_of_the_response_comes_last():
    pieces = Pieces()
    first = pieces.answer(command(b"", expected=1), b"12", StatusWord.UPDATE)
    assert collect(pieces, first, 1) == (b"12", ["6101"], b"\x91\x00")


def test_nothing_is_left_to_get_at_first_and_after_the_last_piece_and_after_another_command():
    pieces = Pieces()
    get = CommandApdu(0, 0xC0, 0, 0, b"", 256, extended=False)
    for prepare in (
        lambda: None,
        lambda: pieces.answer(command(b""), b"short", StatusWord.SUCCESS),
        lambda: (pieces.answer(command(b""), bytes(300), StatusWord.SUCCESS), pieces.join(command(b"next"))),
        lambda: (pieces.answer(command(b""), bytes(300), StatusWord.SUCCESS), pieces.clear()),
    ):
        prepare()
        with pytest.raises(ApduError) as refusal:
            pieces.go_on(get)
        assert refusal.value.status is StatusWord.CONDITIONS_NOT_SATISFIED


def test_get_response_takes_no_parameters():
    pieces = Pieces()
    pieces.answer(command(b""), bytes(300), StatusWord.SUCCESS)
    with pytest.raises(ApduError) as refusal:
        pieces.go_on(CommandApdu(0, 0xC0, 1, 0, b"", 256, extended=False))
    assert refusal.value.status is StatusWord.INCORRECT_PARAMETERS
    assert pieces.go_on(CommandApdu(0, 0xC0, 0, 0, b"", 256, extended=False)) == bytes(44) + b"\x90\x00"
