"""The audit chain: every way of spoiling a log is found, and the first record that is not as it was is named (G10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.audit_chain import (
    BEGINNING,
    ChainFault,
    ChainRecord,
    VerifiedCheckpoint,
    record_hash,
    verify_chain,
    verify_checkpoint,
)
from keyvouch.errors import EvidenceError, Reason
from support.audit_logs import CONTENT, KEY, TENANT_ID, chain, checkpoint, resealed, sealed, unsealed, verified

LENGTH = 1000
CHAIN = chain(LENGTH)
SIGNED = [verified(CHAIN[-1])]
EACH_SIGNED = [VerifiedCheckpoint(TENANT_ID, r.number, r.hash, 0) for r in CHAIN]

Records = list[ChainRecord]


def fault_of(
    records: Sequence[ChainRecord],
    checkpoints: Sequence[VerifiedCheckpoint] = (),
    *,
    from_the_start: bool = True,
    tenant_id: str = TENANT_ID,
) -> tuple[ChainFault, int]:
    """Which fault is found, and the number of the record that is named."""
    with pytest.raises(EvidenceError) as caught:
        verify_chain(records, tenant_id=tenant_id, checkpoints=checkpoints, from_the_start=from_the_start)
    error = caught.value
    kind = ChainFault(error.metadata["kind"])
    by_checkpoint = kind in (ChainFault.REWRITTEN, ChainFault.CUT_OFF)
    assert error.reason is (Reason.AUDIT_CHECKPOINT if by_checkpoint else Reason.AUDIT_CHAIN)
    assert error.metadata["number"] in error.message
    return kind, int(error.metadata["number"])


# Controls


def test_the_hash_is_over_every_field_and_is_what_it_always_was() -> None:
    digest = record_hash("ten_a", 1, 1_800_000_000, "user.create", "server", "usr_a", "usr_a", "ok", "{}", BEGINNING)
    assert digest.hex() == "671ec361417aaad00885bdb539fb62a7684d292398609c56cef946ed18158d21"


@pytest.mark.parametrize("length", [0, 1, 2, 17, LENGTH])
def test_a_sound_chain_holds_with_and_without_checkpoints(length: int) -> None:
    records = CHAIN[:length]
    alone = verify_chain(records, tenant_id=TENANT_ID, checkpoints=[])
    assert (alone.first, alone.last, alone.vouched) == (min(1, length), length, 0)
    assert alone.hash == (records[-1].hash if records else BEGINNING)
    marks = [verified(r) for r in records[::7]]
    assert verify_chain(records, tenant_id=TENANT_ID, checkpoints=marks).vouched == max(
        (m.number for m in marks), default=0
    )


def test_a_part_of_a_chain_holds_where_a_part_was_asked_for() -> None:
    part = verify_chain(CHAIN[500:], tenant_id=TENANT_ID, checkpoints=SIGNED, from_the_start=False)
    assert (part.first, part.last, part.vouched) == (501, LENGTH, LENGTH)
    assert fault_of(CHAIN[500:], SIGNED) == (ChainFault.MISSING, 1)


def test_checkpoints_of_other_tenants_are_passed_over() -> None:
    other = verified(chain(1, "ten_other")[0])
    assert verify_chain(CHAIN[:5], tenant_id=TENANT_ID, checkpoints=[other]).vouched == 0


# G10: each kind of spoiling, at each of a thousand positions.
# Around each position a part of the log is spoiled and verified, and the whole log at some of them: a thousand whole
# logs for each kind would take minutes and say the same.


def around(n: int) -> Records:
    """The part of the log around record `n`."""
    return CHAIN[max(0, n - 20) : n + 20]


def wholes(n: int) -> list[Records]:
    """The logs to spoil at record `n`."""
    return [around(n), CHAIN] if n in WHOLE else [around(n)]


WHOLE = {1, 2, 3, *range(50, LENGTH, 90), LENGTH - 2, LENGTH - 1, LENGTH}


def parts(log: Records, n: int) -> tuple[Records, ChainRecord, Records]:
    """What stands before record `n`, the record, and what follows."""
    index = n - log[0].number
    return log[:index], log[index], log[index + 1 :]


def forgery(log: Records, n: int) -> ChainRecord:
    """A record that never was, sealed to follow the one before `n`."""
    return sealed(unsealed(5000), n, CHAIN[n - 2] if n > 1 else None)


def deleted(log: Records, n: int) -> Records:
    before, _, after = parts(log, n)
    return before + after


def deleted_and_renumbered(log: Records, n: int) -> Records:
    before, _, after = parts(log, n)
    return before + [replace(r, number=r.number - 1) for r in after]


def truncated(log: Records, n: int) -> Records:
    return parts(log, n)[0]


def inserted_line(log: Records, n: int) -> Records:
    before, record, after = parts(log, n)
    return [*before, replace(unsealed(5000), number=n, hash=b"x" * 32, previous_hash=b"y" * 32), record, *after]


def inserted_sealed_line(log: Records, n: int) -> Records:
    before, record, after = parts(log, n)
    return [*before, forgery(log, n), record, *after]


def inserted_and_renumbered(log: Records, n: int) -> Records:
    before, record, after = parts(log, n)
    return [*before, forgery(log, n), *(replace(r, number=r.number + 1) for r in [record, *after])]


def replaced_and_resealed(log: Records, n: int) -> Records:
    before, _, after = parts(log, n)
    return [*before, forgery(log, n), *after]


def swapped_in_the_file(log: Records, n: int) -> Records:
    """Record `n` and the one three further on, or the one before the last."""
    other = n + 3 if n + 3 <= log[-1].number else n - 1
    records, base = list(log), log[0].number
    records[n - base], records[other - base] = records[other - base], records[n - base]
    return records


def swapped_numbers(log: Records, n: int) -> Records:
    return [replace(r, number=number) for number, r in enumerate(swapped_in_the_file(log, n), start=log[0].number)]


def first_swapped(n: int, last: int) -> int:
    return n if n + 3 <= last else n - 1


SPOILED: dict[str, tuple[Callable[[Records, int], Records], set[ChainFault]]] = {
    "delete": (deleted, {ChainFault.MISSING, ChainFault.CUT_OFF}),
    "delete and renumber": (deleted_and_renumbered, {ChainFault.MISSING, ChainFault.CUT_OFF}),
    "truncate": (truncated, {ChainFault.CUT_OFF}),
    "insert": (inserted_line, {ChainFault.INSERTED}),
    "insert sealed": (inserted_sealed_line, {ChainFault.INSERTED}),
    "insert and renumber": (inserted_and_renumbered, {ChainFault.INSERTED}),
    "replace and reseal": (replaced_and_resealed, {ChainFault.REWRITTEN}),
}


@pytest.mark.parametrize("kind", sorted(SPOILED))
def test_g10_at_each_of_a_thousand_positions_the_first_bad_record_is_named(kind: str) -> None:
    spoil, expected = SPOILED[kind]
    for n in range(1, LENGTH + 1):
        for log in wholes(n):
            # What was put in the place of a record shows by the next one, and the last one's by a checkpoint.
            marks = EACH_SIGNED if kind == "replace and reseal" else EACH_SIGNED[log[-1].number - 1 :][:1]
            marks = [m for m in marks if m.number <= log[-1].number]
            fault, number = fault_of(spoil(log, n), marks, from_the_start=log[0].number == 1)
            assert number == n, (kind, n, number, fault)
            assert fault in expected, (kind, n, fault)


@pytest.mark.parametrize("swap", [swapped_in_the_file, swapped_numbers])
def test_g10_two_records_swapped_at_each_of_a_thousand_positions(swap: Callable[[Records, int], Records]) -> None:
    for n in range(1, LENGTH + 1):
        for log in wholes(n):
            fault, number = fault_of(swap(log, n), from_the_start=log[0].number == 1)
            assert number == first_swapped(n, log[-1].number), (n, number)
            assert fault is ChainFault.OUT_OF_ORDER, n


@pytest.mark.parametrize("column", [*CONTENT, "tenant_id", "number", "previous_hash", "hash"])
def test_g10_each_column_edited_at_each_of_a_thousand_positions(column: str) -> None:
    for n in range(1, LENGTH + 1):
        for log in wholes(n) if column == "details" else [around(n)]:
            before, record, after = parts(log, n)
            value = getattr(record, column)
            edited = value + (b"\x00" if isinstance(value, bytes) else 1 if isinstance(value, int) else "x")
            records = [*before, replace(record, **{column: edited}), *after]
            fault, number = fault_of(records, from_the_start=log[0].number == 1)
            assert number == n, (column, n, fault, number)


def test_g10_a_record_repeated_at_each_of_a_thousand_positions() -> None:
    for n in range(1, LENGTH):
        log = around(n)
        before, record, after = parts(log, n)
        copy = log[len(before) // 2]
        fault, number = fault_of([*before, record, copy, *after], from_the_start=log[0].number == 1)
        assert fault in (ChainFault.INSERTED, ChainFault.OUT_OF_ORDER)
        assert number == (n if copy.number == n else n + 1), (n, number, fault)


def test_g10_a_chain_made_anew_is_found_by_the_next_checkpoint() -> None:
    marks = [verified(CHAIN[n - 1]) for n in (300, 600, LENGTH)]
    for n in (1, 299, 300, 301, 600, 601, LENGTH):
        forged = list(CHAIN)
        forged[n - 1] = replace(CHAIN[n - 1], outcome="denied")
        with pytest.raises(EvidenceError) as caught:
            verify_chain(resealed(forged, n), tenant_id=TENANT_ID, checkpoints=marks)
        told = caught.value.metadata
        assert told["kind"] == ChainFault.REWRITTEN
        assert int(told["number"]) <= n <= int(told["through"])
        assert int(told["through"]) - int(told["number"]) < 400


def test_g10_without_a_checkpoint_a_cut_is_not_seen_and_with_one_it_is() -> None:
    assert verify_chain(CHAIN[:400], tenant_id=TENANT_ID, checkpoints=[]).last == 400
    with pytest.raises(EvidenceError) as caught:
        verify_chain(CHAIN[:400], tenant_id=TENANT_ID, checkpoints=SIGNED)
    assert caught.value.metadata == {"kind": "cut_off", "number": "401", "tenant_id": TENANT_ID, "through": "1000"}
    assert fault_of([], SIGNED) == (ChainFault.CUT_OFF, 1)


def test_of_two_records_that_do_not_fit_the_one_that_a_checkpoint_vouches_for_is_right() -> None:
    other = sealed(unsealed(5000), 10, None)
    assert fault_of([*CHAIN[:9], other, *CHAIN[10:]]) == (ChainFault.CHANGED, 9)
    assert fault_of([*CHAIN[:9], other, *CHAIN[10:]], [verified(CHAIN[8])]) == (ChainFault.CHANGED, 10)
    assert fault_of([sealed(unsealed(5000), 1, CHAIN[5]), *CHAIN[1:]]) == (ChainFault.CHANGED, 1)


def test_a_server_that_signed_two_histories_is_found() -> None:
    forged = resealed([*CHAIN[:9], replace(CHAIN[9], outcome="denied")], 10)
    both = [verified(CHAIN[9]), verified(forged[9])]
    assert fault_of(CHAIN[:10], both) == (ChainFault.REWRITTEN, 1)
    assert fault_of(forged, both[::-1]) == (ChainFault.REWRITTEN, 1)


def test_a_record_that_has_no_encoding_is_a_changed_one() -> None:
    """Bytes that are no text, as a store hands them out, and a number that no record can have."""
    records = list(CHAIN[:5])
    for change in ({"actor": "\udcff"}, {"at": 1 << 70}):
        spoilt = [*records[:2], replace(records[2], **change), *records[3:]]  # type: ignore[arg-type]
        assert fault_of(spoilt) == (ChainFault.CHANGED, 3)


def test_records_of_another_tenant_do_not_belong_there() -> None:
    assert fault_of(chain(3, "ten_other")) == (ChainFault.INSERTED, 1)
    assert fault_of([*CHAIN[:3], *chain(4, "ten_other")[3:]]) == (ChainFault.INSERTED, 4)


def test_a_store_that_keeps_records_in_another_order_is_found() -> None:
    records = [*CHAIN[:4], replace(CHAIN[4], position=CHAIN[3].position), *CHAIN[5:]]
    assert fault_of(records) == (ChainFault.OUT_OF_ORDER, 5)
    unplaced = [replace(r, position=0) for r in CHAIN]
    assert verify_chain(unplaced, tenant_id=TENANT_ID, checkpoints=[]).last == LENGTH


def test_a_number_below_one_is_no_number() -> None:
    record = replace(unsealed(1), number=0)
    record = replace(record, hash=record.hash_as(0))
    assert fault_of([record], from_the_start=False)[1] == 0
    assert fault_of([record])[1] == 1


def test_a_rewritten_part_is_named_from_its_first_record() -> None:
    forged = [*CHAIN[:19], sealed(replace(CHAIN[19], outcome="denied"), 20, CHAIN[18])]
    assert fault_of(forged[10:], [verified(CHAIN[19])], from_the_start=False) == (ChainFault.REWRITTEN, 11)
    assert fault_of(forged[19:], [verified(CHAIN[19])], from_the_start=False) == (ChainFault.REWRITTEN, 20)


# Checkpoints


def test_a_checkpoint_is_what_the_server_signed() -> None:
    made = verify_checkpoint(checkpoint(CHAIN[9], at=77), identity_key=KEY.public_key())
    assert made == VerifiedCheckpoint(TENANT_ID, 10, CHAIN[9].hash, 77)


@pytest.mark.parametrize(
    "changed", [{"tenant_id": "ten_x"}, {"number": 11}, {"hash": b"h" * 32}, {"at": 78}, {"signature": b"\x30\x00"}]
)
def test_a_checkpoint_that_was_changed_is_refused(changed: dict[str, object]) -> None:
    forged = replace(checkpoint(CHAIN[9], at=77), **changed)  # type: ignore[arg-type]
    with pytest.raises(EvidenceError) as caught:
        verify_checkpoint(forged, identity_key=KEY.public_key())
    assert caught.value.reason is Reason.AUDIT_CHECKPOINT


def test_a_checkpoint_of_another_server_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(EvidenceError, match="another server") as caught:
        verify_checkpoint(checkpoint(CHAIN[9], key=other), identity_key=KEY.public_key())
    assert caught.value.reason is Reason.AUDIT_CHECKPOINT
