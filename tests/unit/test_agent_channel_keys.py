"""Channel keys of every kind behind one port: which one is made, how a stored one is known again, what damage says."""

from __future__ import annotations

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Purpose
from keyvouch_agent.channel_keys import (
    ChannelKey,
    FirstThatWorks,
    SealedChannelKey,
    SealedChannelKeys,
    is_tpm_key,
    prove,
)

SEALED = SealedChannelKeys()
TPM_FORMS = [
    b"\x30" + length + bytes.fromhex("06066781050a0103") + b"rest" for length in (b"\x0c", b"\x81\xf0", b"\x82\x01\x30")
]


class BrokenKind:
    """A holder that can make nothing."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason

    def make(self) -> ChannelKey:
        raise DeviceError(self.reason, "It does not work.", fix="Nothing.")

    def knows(self, stored: bytes) -> bool:
        return is_tpm_key(stored)

    def load(self, stored: bytes) -> ChannelKey:
        return SealedChannelKey(stored)


def test_a_sealed_key_signs_and_shows_nothing_h2() -> None:
    key = SEALED.make()
    signature = prove(key, Purpose.CHANNEL, b"statement")
    verify_proof(load_proof_key(key.spki), Purpose.CHANNEL, b"statement", signature=signature)
    assert repr(key) == "SealedChannelKey()"
    assert "software" in key.protection
    assert SEALED.load(key.stored) == key
    assert SEALED.make().spki != key.spki


@pytest.mark.parametrize("damage", [b"", b"rubbish"])
def test_a_damaged_key_is_named(damage: bytes) -> None:
    for keys in (SEALED, FirstThatWorks([SEALED])):
        with pytest.raises(DeviceError) as caught:
            _ = keys.load(damage).spki
        assert caught.value.reason is Reason.LEDGER_CORRUPT


@pytest.mark.parametrize("stored", TPM_FORMS)
def test_the_stored_form_of_a_tpm_key_is_told_apart(stored: bytes) -> None:
    assert is_tpm_key(stored)
    assert not SEALED.knows(stored)
    assert not is_tpm_key(SEALED.make().stored)
    assert not is_tpm_key(b"\x31" + stored[1:])
    assert not is_tpm_key(b"\0" + stored)
    assert not is_tpm_key(stored[:-4].replace(b"\x01\x03", b"\x01\x04"))


def test_a_key_of_a_missing_kind_says_so_when_it_is_used() -> None:
    key = FirstThatWorks([SEALED]).load(TPM_FORMS[0])
    assert key.stored == TPM_FORMS[0]
    assert "cannot use" in key.protection
    for use in (lambda: key.spki, lambda: key.sign(b"message")):
        with pytest.raises(DeviceError) as caught:
            use()
        assert caught.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("reason", [Reason.UNSUPPORTED, Reason.DEVICE_FAILED, Reason.VAULT_PERMISSIONS])
def test_the_next_kind_is_used_where_a_better_one_cannot_make_a_key(reason: Reason) -> None:
    key = FirstThatWorks([BrokenKind(reason), SEALED]).make()
    assert isinstance(key, SealedChannelKey)


@pytest.mark.parametrize(
    "reason", [Reason.VAULT_BUSY, Reason.TPM_BUSY, Reason.TPM_MEMORY, Reason.TPM_LOCKOUT, Reason.TPM_UNAVAILABLE]
)
def test_a_holder_whose_trouble_passes_is_not_passed_over_for_a_weaker_one(reason: Reason) -> None:
    with pytest.raises(DeviceError) as caught:
        FirstThatWorks([BrokenKind(reason), SEALED]).make()
    assert caught.value.reason is reason


def test_the_last_kind_has_the_last_word() -> None:
    with pytest.raises(DeviceError) as caught:
        FirstThatWorks([BrokenKind(Reason.UNSUPPORTED), BrokenKind(Reason.DEVICE_FAILED)]).make()
    assert caught.value.reason is Reason.DEVICE_FAILED


def test_each_stored_key_goes_to_its_own_kind() -> None:
    keys = FirstThatWorks([BrokenKind(Reason.UNSUPPORTED), SEALED])
    assert keys.knows(TPM_FORMS[0])
    assert keys.load(TPM_FORMS[0]) == SealedChannelKey(TPM_FORMS[0])  # what `BrokenKind` answers
    made = SEALED.make()
    assert keys.load(made.stored).spki == made.spki
