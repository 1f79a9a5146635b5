"""The sealed certificate and the proof of activation, against the definition computed by hand."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyvouch.attestation.activation_certificate import (
    SECRET_SIZE,
    activation_proof,
    open_certificate,
    seal_certificate,
)
from keyvouch.errors import EvidenceError, Reason

SECRET, NAME, CERTIFICATE = bytes(range(SECRET_SIZE)), b"\x00\x0b" + b"\x22" * 32, b"\x30\x03\x02\x01\x01"


def test_the_secret_is_as_long_as_every_endorsement_key_can_carry():
    assert hashlib.sha256().digest_size == SECRET_SIZE


def test_a_seal_is_aes_gcm_under_a_key_of_the_secret():
    key = hmac.new(SECRET, b"keyvouch/attestation-certificate/v1", "sha256").digest()
    sealed = seal_certificate(CERTIFICATE, secret=SECRET, name=NAME)
    assert sealed == AESGCM(key).encrypt(bytes(12), CERTIFICATE, NAME)
    assert open_certificate(sealed, secret=SECRET, name=NAME) == CERTIFICATE


def test_nobody_opens_it_with_another_secret_or_name_or_after_a_change():
    sealed = seal_certificate(CERTIFICATE, secret=SECRET, name=NAME)
    flipped = [sealed[:n] + bytes([sealed[n] ^ 1]) + sealed[n + 1 :] for n in range(len(sealed))]
    attempts = [(sealed, bytes(32), NAME), (sealed, SECRET, NAME[:-1] + b"\0"), *((f, SECRET, NAME) for f in flipped)]
    for data, secret, name in (*attempts, (b"", SECRET, NAME), (sealed[:-1], SECRET, NAME)):
        with pytest.raises(EvidenceError) as refused:
            open_certificate(data, secret=secret, name=name)
        assert refused.value.reason is Reason.TPM_ACTIVATION


def test_a_proof_is_for_one_statement_and_one_secret():
    proof = activation_proof(b"statement", secret=SECRET)
    assert proof == hmac.new(SECRET, b"keyvouch/activation/v1\0statement", hashlib.sha256).digest()
    assert proof not in (activation_proof(b"statement", secret=bytes(32)), activation_proof(b"other", secret=SECRET))
