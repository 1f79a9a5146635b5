"""What the owner of a TPM can try who has the account's files and all traffic, but not the PIN: none of it signs.

Response codes are those of the reference implementation, with the handle, parameter or session they are about.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tpm2_pytss.constants import ESYS_TR, TPM2_CC
from tpm2_pytss.types import (
    TPM2B_DIGEST,
    TPM2B_NONCE,
    TPMT_SIGNATURE,
)

from keyvouch.attestation.pin_gate import PinCounter, first_write_message
from keyvouch.attestation.tpm_marshal import sign
from keyvouch_agent.vaults.tpm.pin_index import auth_value
from support.tpm_attacker import PIN, Attacker, Victim, own_key, pin_hash, victim_in

HASH: Final = pin_hash(PIN)
MINE: Final = b"the thief's own value"
"""What the thief defines an index with."""

POLICY_FAIL: Final = 0x99D
NO_AUTHORIZATION: Final = 0x12F
NOT_THE_OWNERS: Final = 0x149
BAD_SIGNATURE: Final = 0x5DB


@pytest.fixture
def victim(tpm: Any, tmp_path: Path) -> Iterator[Victim]:
    with victim_in(tpm, tmp_path / "account") as made:
        yield made


# The index, removed and defined again


def test_an_index_that_was_defined_again_opens_nothing_without_the_first_write_H3(victim: Victim):
    with victim.attacked() as thief:
        thief.undefine()
        index, key, session = thief.define(MINE), thief.load_key(), thief.policy()
        assert bytes(thief.esys.tr_get_name(index)) == thief.gate.unwritten.name
        thief.refused(NO_AUTHORIZATION, lambda: thief.esys.policy_secret(index, session, expiration=0))
        thief.refused(POLICY_FAIL, lambda: thief.sign(key, session))
    assert victim.is_lost()


def test_the_captured_first_write_is_good_for_no_other_session_H3(victim: Victim):
    nonce, signature = victim.captured_write()
    with victim.attacked() as thief:
        thief.undefine()
        index, session, ceremony_key = thief.define(MINE), thief.policy(), thief.ceremony_key()
        own = bytes(thief.esys.trsess_get_nonce_tpm(session))
        for claimed, code in ((own, BAD_SIGNATURE), (b"", BAD_SIGNATURE), (nonce, 0x1CF)):
            thief.refused(code, lambda claimed=claimed: allow(thief, ceremony_key, session, claimed, signature))
        thief.refused(POLICY_FAIL, lambda: thief.esys.nv_write(index, PinCounter(0, 3).encode(), 0, index, session))
        assert unwritten(thief)
    assert victim.is_lost()


def test_a_first_write_signed_by_another_key_is_another_policy_H3(victim: Victim):
    own, area = own_key()
    with victim.attacked() as thief:
        thief.undefine()
        index, session = thief.define(MINE), thief.policy()
        nonce = bytes(thief.esys.trsess_get_nonce_tpm(session))
        forged = bytes(sign(own, first_write_message(thief.gate, nonce=nonce, counter=PinCounter(0, 3))))
        with_ceremony_key = thief.ceremony_key()
        thief.refused(BAD_SIGNATURE, lambda: allow(thief, with_ceremony_key, session, nonce, forged))
        allow(thief, thief.ceremony_key(area), session, nonce, forged)
        branches = [TPM2B_DIGEST(branch) for branch in thief.gate.branches]
        thief.refused(0x1C4, lambda: thief.esys.policy_or(session, branches))
        thief.refused(POLICY_FAIL, lambda: thief.esys.nv_write(index, PinCounter(0, 3).encode(), 0, index, session))
        assert unwritten(thief)


def test_an_index_of_other_attributes_in_its_place_opens_nothing_H3(victim: Victim):
    with victim.attacked() as thief:
        thief.undefine()
        area = bytes(thief.gate.unwritten)
        attributes = struct.pack(">I", int.from_bytes(area[6:10], "big") | 0x2)  # TPMA_NV_OWNERWRITE
        index = thief.define(MINE, area[:6] + attributes + area[10:])
        thief.esys.nv_write(index, PinCounter(0, 3).encode(), 0, ESYS_TR.OWNER)
        key, session = thief.load_key(), thief.policy()
        thief.esys.policy_secret(index, session, expiration=0)
        thief.refused(POLICY_FAIL, lambda: thief.sign(key, session))
    assert victim.is_lost()
    with victim.attacked() as thief:
        thief.undefine()


def allow(thief: Attacker, key: Any, session: Any, nonce: bytes, signature: bytes) -> None:
    """TPM2_PolicySigned for the first write."""
    write, reference = thief.gate.write_hash(PinCounter(0, 3)), thief.gate.first_write
    proof = TPMT_SIGNATURE.unmarshal(signature)[0]
    thief.esys.policy_signed(
        key, session, proof, TPM2B_NONCE(nonce), TPM2B_DIGEST(write), TPM2B_NONCE(reference), expiration=0
    )


def unwritten(thief: Attacker) -> bool:
    return bytes(thief.esys.tr_get_name(thief.index())) == thief.gate.unwritten.name


# The index as it is

ON_THE_INDEX: Final[dict[str, tuple[int, Callable[[Any, Any], object]]]] = {
    "owner writes": (NOT_THE_OWNERS, lambda esys, index: esys.nv_write(index, bytes(8), 0, ESYS_TR.OWNER)),
    "written by its value": (NO_AUTHORIZATION, lambda esys, index: esys.nv_write(index, bytes(8), 0)),
    "owner increments": (NOT_THE_OWNERS, lambda esys, index: esys.nv_increment(index, ESYS_TR.OWNER)),
    "owner extends": (NOT_THE_OWNERS, lambda esys, index: esys.nv_extend(index, b"x", ESYS_TR.OWNER)),
    "owner sets bits": (NOT_THE_OWNERS, lambda esys, index: esys.nv_set_bits(index, 1, ESYS_TR.OWNER)),
    "owner locks writing": (NOT_THE_OWNERS, lambda esys, index: esys.nv_write_lock(index, ESYS_TR.OWNER)),
    "owner locks reading": (0x282, lambda esys, index: esys.nv_read_lock(index, ESYS_TR.OWNER)),
    "read without the PIN": (0x9A2, lambda esys, index: esys.nv_read(index, 8, 0)),
    "value changed by password": (0x124, lambda esys, index: esys.nv_change_auth(index, MINE, ESYS_TR.PASSWORD)),
}


@pytest.mark.parametrize("attempt", ON_THE_INDEX)
def test_neither_owner_nor_anybody_without_the_pin_changes_the_counter_H3(victim: Victim, attempt: str):
    code, act = ON_THE_INDEX[attempt]
    with victim.attacked() as thief:
        thief.refused(code, lambda: act(thief.esys, thief.index()))
        assert thief.count() == (code == 0x9A2)  # that one was a guess
    assert victim.signs()


@pytest.mark.parametrize("way", ["policy_auth_value", "policy_password"])
def test_no_policy_session_can_try_pins_uncounted_H3(victim: Victim, way: str):
    right = auth_value(HASH)
    with victim.attacked() as thief:
        index = thief.index()
        for guess in (b"wrong", right):
            shown, session = thief.policy(), thief.policy()
            getattr(thief.esys, way)(shown)
            thief.esys.tr_set_auth(index, guess)
            thief.refused(
                POLICY_FAIL,
                lambda s=session, by=shown: thief.esys.policy_secret(index, s, expiration=0, session1=by),
            )
            thief.flush(shown)
            thief.flush(session)
        assert thief.count() == 0
        session = thief.policy()  # control: the same value in a session that counts
        thief.esys.policy_secret(index, session, expiration=0)
        assert thief.sign(thief.load_key(), session)
    assert victim.signs()


def test_the_approval_of_pin_changes_is_worth_nothing_without_the_old_pin_H3(victim: Victim):
    with victim.attacked() as thief:
        esys, gate, key = thief.esys, thief.gate, thief.ceremony_key()
        name, ticket = esys.tr_get_name(key), thief.ticket(key, gate.change_message, thief.approval)
        approved, reference = TPM2B_DIGEST(gate.change_policy), TPM2B_NONCE(gate.change)
        session = thief.policy()
        esys.policy_command_code(session, TPM2_CC.NV_ChangeAuth)
        reached = esys.policy_get_digest(session)
        # The approved policy is not where the session stands; where it stands is not what was approved.
        thief.refused(0x1C4, lambda: esys.policy_authorize(session, approved, name, ticket, reference))
        thief.refused(0x4C4, lambda: esys.policy_authorize(session, reached, name, ticket, reference))
        thief.refused(POLICY_FAIL, lambda: esys.nv_change_auth(thief.index(), MINE, session))
        wrong = thief.policy()
        thief.refused(0x9A2, lambda: esys.policy_secret(thief.index(), wrong, expiration=0))
        assert thief.count() == 1
    assert victim.signs()


def test_an_approval_by_another_key_is_no_approval_H3(victim: Victim):
    own, area = own_key()
    with victim.attacked() as thief:
        esys, gate, session = thief.esys, thief.gate, thief.policy()
        esys.policy_command_code(session, TPM2_CC.NV_ChangeAuth)
        reached = esys.policy_get_digest(session)
        message, reference = bytes(reached) + gate.change, TPM2B_NONCE(gate.change)
        key = thief.ceremony_key(area)
        ticket = thief.ticket(key, message, bytes(sign(own, message)))
        theirs, mine = gate.ceremony_key.name, esys.tr_get_name(key)
        claimed = type(mine)(theirs)
        thief.refused(0x4C4, lambda: esys.policy_authorize(session, reached, claimed, ticket, reference))
        esys.policy_authorize(session, reached, mine, ticket, reference)
        branches = [TPM2B_DIGEST(branch) for branch in gate.branches]
        thief.refused(0x1C4, lambda: esys.policy_or(session, branches))
        thief.refused(POLICY_FAIL, lambda: esys.nv_change_auth(thief.index(), MINE, session))
    assert victim.signs()
