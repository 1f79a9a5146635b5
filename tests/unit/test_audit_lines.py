"""Exported audit logs: what they prove by themselves, and that no byte of them can be changed (G10)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.audit_chain import ChainRecord, Checkpoint
from keyvouch.audit_lines import MAX_LINE, LogHeader, LogLine, parse_line, verify_log, write_line
from keyvouch.errors import KeyvouchError, MalformedError, Reason
from keyvouch.ids import ServerId
from keyvouch.proofs import spki_of, spki_sha256
from support.audit_logs import KEY, SERVER_ID, chain, checkpoint, exported, header, unsealed

CHAIN = chain(30)


def text_of(lines: Sequence[LogLine]) -> bytes:
    return b"".join(write_line(line).encode() + b"\n" for line in lines)


def lines_of(text: bytes) -> list[LogLine]:
    return [parse_line(line) for line in text.splitlines()]


def refusal_of(lines: Sequence[LogLine], server_id: ServerId | None = SERVER_ID) -> KeyvouchError:
    with pytest.raises(KeyvouchError) as caught:
        verify_log(lines, server_id=server_id)
    assert caught.value.reason in (Reason.AUDIT_CHAIN, Reason.AUDIT_CHECKPOINT)
    return caught.value


# Controls


def test_an_exported_log_verifies_and_says_of_what_and_when() -> None:
    log = verify_log(lines_of(text_of(exported(CHAIN))), server_id=SERVER_ID)
    assert (log.header.tenant, log.chain.first, log.chain.last, log.chain.vouched) == ("example", 1, 30, 30)
    assert (log.signed_at, log.unchained, log.pinned) == (1_800_100_000, 0, True)


def test_without_a_server_to_expect_it_is_a_log_of_whichever_has_the_key() -> None:
    assert not verify_log(exported(CHAIN), server_id=None).pinned


def test_a_part_of_a_log_verifies_too() -> None:
    assert verify_log(exported(CHAIN[10:]), server_id=SERVER_ID).chain.first == 11


def test_records_from_before_the_chain_are_counted_and_vouched_for_by_nobody() -> None:
    old = [replace(unsealed(n), number=0) for n in (1, 2)]
    lines = [*exported(CHAIN)[:2], *old, *CHAIN]
    assert verify_log(lines, server_id=SERVER_ID).unchained == 2
    assert refusal_of([*exported(CHAIN), *old]).metadata["number"] == "31"


def test_several_checkpoints_stand_before_the_records() -> None:
    lines = [header(), checkpoint(CHAIN[9], at=1), checkpoint(CHAIN[29], at=5), checkpoint(CHAIN[29], at=3), *CHAIN]
    assert verify_log(lines, server_id=SERVER_ID).signed_at == 5


def test_every_line_comes_back_equal_but_for_its_position() -> None:
    lines = exported(CHAIN)
    plain = [replace(line, position=0) if isinstance(line, ChainRecord) else line for line in lines]
    assert lines_of(text_of(lines)) == plain


# Logs that prove nothing


OTHER = ec.generate_private_key(ec.SECP256R1())


def test_of_another_server() -> None:
    other = [header(OTHER), checkpoint(CHAIN[-1], key=OTHER), *CHAIN]
    assert verify_log(other, server_id=None)
    assert "another server" in str(refusal_of(other))


def test_with_a_key_that_is_not_the_servers() -> None:
    assert "key" in str(refusal_of([replace(header(), identity_key=spki_of(OTHER.public_key())), *exported(CHAIN)[1:]]))
    assert refusal_of([replace(header(), identity_key=b"\x30\x00")]).reason is Reason.AUDIT_CHECKPOINT


def test_with_a_checkpoint_of_another_server() -> None:
    assert refusal_of([header(), checkpoint(CHAIN[-1], key=OTHER), *CHAIN]).reason is Reason.AUDIT_CHECKPOINT


def test_without_a_checkpoint_of_its_tenant() -> None:
    for lines in ([header()], [header(), *CHAIN], [header(), checkpoint(chain(1, "ten_other")[0]), *CHAIN]):
        assert "signed nothing" in str(refusal_of(lines))


def test_with_records_after_the_last_checkpoint() -> None:
    assert "after record 20" in str(refusal_of([header(), checkpoint(CHAIN[19]), *CHAIN]))


def test_cut_off_at_its_end() -> None:
    assert refusal_of(exported(CHAIN)[:-3]).metadata["number"] == "28"
    assert refusal_of(exported(CHAIN)[:2]).metadata["kind"] == "cut_off"


def test_without_its_first_line_or_of_an_unknown_version() -> None:
    for lines in ([], exported(CHAIN)[1:], [replace(header(), version=2), *exported(CHAIN)[1:]]):
        assert "begin" in str(refusal_of(lines))


def test_with_something_else_between_its_records() -> None:
    lines = exported(CHAIN)
    assert "none" in str(refusal_of([*lines[:5], checkpoint(CHAIN[3]), *lines[5:]]))
    assert "none" in str(refusal_of([*lines[:5], header(), *lines[5:]]))


def test_no_record_of_it_can_be_changed_left_out_or_moved() -> None:
    lines = exported(CHAIN)
    for n in range(1, len(lines)):
        line, without = lines[n], [*lines[:n], *lines[n + 1 :]]
        if n == 2:
            assert verify_log(without, server_id=SERVER_ID).chain.first == 2
        else:
            refusal_of(without)
        changed = replace(line, at=line.at + 1) if isinstance(line, ChainRecord | Checkpoint) else line
        refusal_of([*lines[:n], changed, *lines[n + 1 :]])
        if n > 1:
            refusal_of([*lines[: n - 1], line, lines[n - 1], *lines[n + 1 :]])


# Lines that are none


LINE = json.loads(write_line(CHAIN[4]))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"type": "log", "type": "log"}',
        b" " * (MAX_LINE + 1),
        json.dumps({**LINE, "type": "note"}).encode(),
        json.dumps({**LINE, "type": 5}).encode(),
        json.dumps({k: v for k, v in LINE.items() if k != "type"}).encode(),
        json.dumps({k: v for k, v in LINE.items() if k != "at"}).encode(),
        json.dumps({**LINE, "position": 1}).encode(),
        json.dumps({**LINE, "number": True}).encode(),
        json.dumps({**LINE, "number": "5"}).encode(),
        json.dumps({**LINE, "number": 5.0}).encode(),
        json.dumps({**LINE, "at": 10**18}).encode(),
        json.dumps({**LINE, "action": None}).encode(),
        json.dumps({**LINE, "hash": LINE["hash"].upper()}).encode(),
        json.dumps({**LINE, "hash": LINE["hash"] + " "}).encode(),
        json.dumps({**LINE, "hash": "xy"}).encode(),
        json.dumps({**LINE, "hash": 5}).encode(),
        json.dumps({**LINE, "action": "\ud800"}).encode(),
    ],
)
def test_what_is_no_line_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_line(line)
    assert caught.value.reason is Reason.AUDIT_CHAIN
    assert caught.value.fix


def test_a_line_that_is_too_long_is_told_to_be() -> None:
    with pytest.raises(MalformedError, match="longer than"):
        parse_line(b" " * (MAX_LINE + 1))


def test_a_line_as_it_was_written_is_one() -> None:
    assert isinstance(parse_line(json.dumps(LINE).encode()), ChainRecord)
    assert isinstance(parse_line(write_line(header()).encode()), LogHeader)
    assert spki_sha256(KEY.public_key()) == header().server_id
