"""Fuzzing of TPM evidence: whatever is changed in a good piece is refused, and refused inside the error tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvouch.attestation.tpm import verify_certify, verify_quote
from keyvouch.attestation.tpm_structures import (
    TpmAttest,
    TpmCreationData,
    TpmHash,
    TpmNvPublic,
    TpmPublic,
    TpmSignature,
    attest_type,
    check_framing,
    unwrap_tpm2b,
)
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError
from support.tpm_forge import CERTIFY, CREATION, NV, QUOTE, attest, certify_info, creation_data, nv_public
from support.vectors import load

GOOD = [
    vector
    for name in ("generated-tpm/tpm_evidence.json", "swtpm/real_evidence.json")
    for vector in load(name)["vectors"]
    if vector["expect"] == "accept"
]
PARSERS: list[Callable[[bytes], object]] = [
    TpmPublic,
    TpmAttest,
    TpmSignature,
    TpmNvPublic,
    TpmCreationData,
    attest_type,
    check_framing,
    unwrap_tpm2b,
]
SEEDS = [
    *(bytes.fromhex(vector[name]) for vector in GOOD for name in ("akPublic", "attest", "signature")),
    attest(NV, b""),
    attest(CREATION, certify_info(b"name")),
    attest(QUOTE, bytes.fromhex("00000001000b030100000000")),
    attest(CERTIFY, certify_info(b"name")),
    creation_data(),
    nv_public(),
]


def parts(vector: dict[str, Any]) -> dict[str, bytes]:
    names = [name for name in ("akPublic", "attest", "signature", "subjectPublic", "nonce") if name in vector]
    return {name: bytes.fromhex(vector[name]) for name in names}


def verify(vector: dict[str, Any], given_parts: dict[str, bytes]) -> object:
    arguments: dict[str, Any] = {
        "attestation_key": TpmPublic(given_parts["akPublic"]),
        "attest": given_parts["attest"],
        "signature": given_parts["signature"],
        "qualifying_data": given_parts["nonce"],
    }
    if vector["kind"] == "certify":
        return verify_certify(subject=TpmPublic(given_parts["subjectPublic"]), **arguments)
    ((bank, values),) = vector["pcrValues"].items()
    return verify_quote(
        selection={TpmHash[bank.upper()]: vector["requiredSelection"][bank]},
        pcr_values={TpmHash[bank.upper()]: {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}},
        **arguments,
    )


def is_refused(vector: dict[str, Any], name: str, value: bytes) -> bool:
    try:
        verify(vector, parts(vector) | {name: value})
    except (MalformedError, EvidenceError):
        return True
    return False


def is_neutral(vector: dict[str, Any], name: str, value: bytes) -> bool:
    """Attributes of the attestation key that say nothing about what it signs; its name is not in these vectors."""
    if name != "akPublic":
        return False
    good, bad = TpmPublic(parts(vector)[name]), TpmPublic(value)
    return (bad.key, bad.scheme, bad.auth_policy) == (good.key, good.scheme, good.auth_policy)


@pytest.mark.parametrize("vector", GOOD, ids=lambda vector: vector["id"])
def test_every_bit_counts(vector: dict[str, Any]) -> None:
    assert verify(vector, parts(vector))
    for name, value in parts(vector).items():
        if name == "nonce":
            continue
        for bit in range(8 * len(value)):
            flipped = bytearray(value)
            flipped[bit // 8] ^= 1 << bit % 8
            assert is_refused(vector, name, bytes(flipped)) or is_neutral(vector, name, bytes(flipped)), (name, bit)


@pytest.mark.parametrize("vector", GOOD, ids=lambda vector: vector["id"])
def test_every_truncation_is_refused(vector: dict[str, Any]) -> None:
    for name, value in parts(vector).items():
        if name == "nonce":
            continue
        assert all(is_refused(vector, name, value[:end]) for end in range(len(value)))
        assert is_refused(vector, name, value + b"\0")


def parse(parser: Callable[[bytes], object], data: bytes) -> None:
    try:
        result = parser(data)
    except KeyvouchError:
        return
    if isinstance(result, bytes) and parser is not unwrap_tpm2b:
        assert result == data


@given(st.sampled_from(PARSERS), st.binary(max_size=200))
def test_nothing_escapes_from_any_bytes(parser: Callable[[bytes], object], data: bytes) -> None:
    parse(parser, data)


@given(st.sampled_from(PARSERS), st.sampled_from(SEEDS), st.data())
def test_nothing_escapes_from_changed_bytes(
    parser: Callable[[bytes], object], seed: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(seed)))
    cut = data.draw(st.integers(0, 8))
    parse(parser, seed[:at] + data.draw(st.binary(max_size=8)) + seed[at + cut :])


@given(st.sampled_from(GOOD), st.sampled_from(["attest", "signature", "subjectPublic"]), st.data())
def test_changed_evidence_is_refused(vector: dict[str, Any], name: str, data: st.DataObject) -> None:
    good = parts(vector)
    if name not in good:
        return
    at = data.draw(st.integers(0, len(good[name])))
    bad = good[name][:at] + data.draw(st.binary(max_size=8)) + good[name][at + data.draw(st.integers(0, 8)) :]
    assert bad == good[name] or is_refused(vector, name, bad)
