"""The PIN gate, against what a real TPM computed: names, policies, and a first write that it let pass.

The constants were recorded with swtpm 0.7.1: the index was defined, written with a signature over `first_write_message`
of a P-256 ceremony key (the private key 12345), and its PIN changed under the approved policy.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.attestation.pin_gate import HANDLES, INDEX_SIZE, PinCounter, PinGate, first_write_message
from keyvouch.attestation.tpm_marshal import external_key
from keyvouch.attestation.tpm_public import TpmNvAttributes, TpmNvType
from keyvouch.ids import DeviceId

KEY = external_key(ec.derive_private_key(12345, ec.SECP256R1()).public_key())
GATE = PinGate(KEY, DeviceId("dev_fixed"), 0x01800ABC)
UNWRITTEN = "01800abc000b020e008800209c31f6c9f625aecd0ba1a1b1a1846403f4c222bfdd172a5bb03bf3ea25c69cb10008"


def test_the_policies_are_those_of_the_tpms_own_sessions():
    assert [branch.hex() for branch in GATE.branches] == [
        "2972f2ea8530e466954468254c49a25ff96e82dc6eee6c253922a5d675c24354",
        "104b63985a42a9750451aebf8d264102da4cb0ee69e52e7e7195b93eac61231a",
    ]
    assert GATE.key_policy.hex() == "c91d3ae93c2c36cdaff2e7d119fbfc14183accf07c409267c8bec7b5dfbf9999"
    assert GATE.change_policy.hex() == "0576d9851592e6360f27b24bc5e45d25dd8cf608bf21e5da2a746c2ead944a8a"


def test_the_names_are_those_that_the_tpm_gave_to_the_index():
    assert GATE.unwritten.hex() == UNWRITTEN
    assert GATE.unwritten.name.hex() == "000b89b8d18b3ee9b479576b5fbf9911f7cc22b2ffeba7ec21483a9956ae78cf3c82"
    assert GATE.written.name.hex() == "000badd0b202b15a00234f5d0f7a1d846a5d9a787d9717217c7ec07958c6e92d75fb"
    assert GATE.unwritten.auth_policy == GATE.written.auth_policy
    assert (GATE.unwritten.type, GATE.unwritten.data_size) == (TpmNvType.PIN_FAIL, INDEX_SIZE)
    assert GATE.written.attributes ^ GATE.unwritten.attributes == TpmNvAttributes.WRITTEN


def test_nobody_but_the_policy_writes_the_index_and_it_locks_nothing_else():
    a = TpmNvAttributes
    forbidden = a.OWNER_WRITE | a.AUTH_WRITE | a.PP_WRITE | a.POLICY_DELETE | a.ORDERLY | a.PLATFORM_CREATE
    assert not GATE.unwritten.attributes & forbidden
    assert GATE.unwritten.attributes & a.NO_DA


def test_the_first_write_is_the_very_command_in_the_very_session():
    counter = PinCounter(0, 3)
    assert GATE.write_hash(counter).hex() == "431d6a857d2b40dd42560e3a14d5cd248edbdc8210dcfdaead4d713a75e0ce1f"
    nonce = bytes(range(32))
    message = first_write_message(GATE, nonce=nonce, counter=counter)
    reference = hashlib.sha256(b"keyvouch/tpm-pin/first-write/v1\0dev_fixed").digest()
    assert message == nonce + bytes(4) + GATE.write_hash(counter) + reference
    assert GATE.first_write == reference
    assert GATE.change == hashlib.sha256(b"keyvouch/tpm-pin/change/v1\0dev_fixed").digest()
    assert GATE.change_message == GATE.change_policy + GATE.change


@pytest.mark.parametrize(
    "other",
    [
        replace(GATE, device_id=DeviceId("dev_other")),
        replace(GATE, handle=0x01800ABD),
        replace(GATE, ceremony_key=external_key(ec.derive_private_key(54321, ec.SECP256R1()).public_key())),
    ],
    ids=["device", "handle", "ceremony key"],
)
def test_another_gate_shares_nothing_that_counts(other: PinGate):
    assert other.unwritten.name != GATE.unwritten.name
    assert other.written.name != GATE.written.name
    assert other.key_policy != GATE.key_policy
    assert other.change_policy != GATE.change_policy
    assert other.write_hash(PinCounter(0, 3)) != GATE.write_hash(PinCounter(0, 3))


def test_a_counter_is_read_to_its_last_bit():
    for counter in (PinCounter(0, 3), PinCounter(3, 1 << 24 | 3), PinCounter(1 << 24, 3), PinCounter(0, 2**32 - 1)):
        assert PinCounter.decode(counter.encode()) == counter


def test_a_counter():
    assert PinCounter(1, 3).encode() == bytes.fromhex("0000000100000003")
    assert PinCounter.decode(bytes.fromhex("0000000200000005")) == PinCounter(2, 5)
    assert [PinCounter(count, 3).tries_left for count in range(5)] == [3, 2, 1, 0, 0]
    assert GATE.write_hash(PinCounter(0, 4)) != GATE.write_hash(PinCounter(0, 3))


def test_handles_are_those_an_owner_may_define():
    assert (HANDLES.start, HANDLES.stop) == (0x01800000, 0x01C00000)
