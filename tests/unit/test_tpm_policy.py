"""Policy digests are those that a TPM arrives at, step by step."""

from __future__ import annotations

import hashlib

from keyvouch.attestation.tpm_policy import (
    EMPTY,
    TpmCommand,
    command_parameters_hash,
    policy_authorize,
    policy_command_code,
    policy_or,
    policy_secret,
    policy_signed,
)

ENDORSEMENT = bytes.fromhex("4000000b")  # the name of a hierarchy is its handle


def test_the_policies_of_the_endorsement_key_profile():
    """PolicyA, and PolicyB, which is fulfilled by PolicyA or PolicyC (annex B.6)."""
    policy_a = policy_secret(EMPTY, ENDORSEMENT)
    assert policy_a.hex() == "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
    policy_c = bytes.fromhex("3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde")
    policy_b = policy_or(policy_a, policy_c)
    assert policy_b.hex() == "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"


def test_each_command_has_its_code_and_its_way():
    name, reference = b"\x00\x0b" + b"\x11" * 32, b"reference"
    for command, made in (
        (0x151, policy_secret(EMPTY, name, reference)),
        (0x160, policy_signed(EMPTY, name, reference)),
        (0x16A, policy_authorize(name, reference)),
    ):
        first = hashlib.sha256(bytes(32) + command.to_bytes(4, "big") + name).digest()
        assert made == hashlib.sha256(first + reference).digest()
    before = policy_secret(EMPTY, name)
    assert policy_signed(before, name) != policy_signed(EMPTY, name)
    for made, spelt_out in (
        (policy_authorize(name), policy_authorize(name, b"")),
        (policy_signed(before, name), policy_signed(before, name, b"")),
        (policy_secret(before, name), policy_secret(before, name, b"")),
    ):
        assert made == spelt_out
    code = (0x16C).to_bytes(4, "big") + (0x13B).to_bytes(4, "big")
    assert policy_command_code(before, TpmCommand.NV_CHANGE_AUTH) == hashlib.sha256(before + code).digest()


def test_a_choice_forgets_what_was_before_and_knows_the_order():
    one, two = policy_secret(EMPTY, b"1"), policy_secret(EMPTY, b"2")
    assert policy_or(one, two) == hashlib.sha256(bytes(32) + (0x171).to_bytes(4, "big") + one + two).digest()
    assert policy_or(two, one) != policy_or(one, two)


def test_the_hash_of_a_command_covers_names_and_parameters():
    made = command_parameters_hash(TpmCommand.NV_WRITE, (b"one", b"two"), b"parameters")
    assert made == hashlib.sha256((0x137).to_bytes(4, "big") + b"onetwoparameters").digest()
