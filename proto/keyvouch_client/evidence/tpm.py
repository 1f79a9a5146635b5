"""A recorded TPM2_Certify or TPM2_Quote as a call of `keyvouch.attestation.tpm`.

Bytes are hexadecimal, structures as TPM 2.0 Library Part 2 marshals them and without the length of a TPM2B. Reading a
vector raises `UsageError` for what its writer left out or wrote wrongly. What the bytes hold is judged by the verifier
alone. Not here: vectors of WebAuthn ceremonies.

A certified key is as good as the attestation key, and who trusts that is not in such a vector: so none of them
proves an assurance by itself.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import asdict

from keyvouch.attestation.tpm import CertifiedKey, VerifiedQuote, verify_certify, verify_quote
from keyvouch.attestation.tpm_structures import TpmHash, TpmPublic
from keyvouch.errors import UsageError
from keyvouch_client.evidence.ceremonies import Check, Proof
from keyvouch_client.evidence.members import Members

__all__ = ["read_certify", "read_quote"]

_BANKS = {bank.hash_name: bank for bank in TpmHash}
_LONGEST_LITERAL = 64 * 1024
"""Longest text in place of an object, in characters. All PCRs of all banks are a third of that."""


def read_certify(vector: Members) -> Check:
    """Read a vector of the kind `certify`."""
    key, subject = vector.hex("akPublic"), vector.hex("subjectPublic")
    attest, signature, nonce = vector.hex("attest"), vector.hex("signature"), vector.hex("nonce")

    def check() -> Proof:
        attestation_key = TpmPublic(key)
        verified = verify_certify(
            attestation_key=attestation_key,
            attest=attest,
            signature=signature,
            subject=TpmPublic(subject),
            qualifying_data=nonce,
        )
        certified = {
            "keyName": verified.key.name.hex(),
            "keyAlgorithm": verified.key.type.name,
            "qualifiedName": verified.qualified_name.hex(),
        }
        return Proof(certified | _told(attestation_key, verified))

    return check


def read_quote(vector: Members) -> Check:
    """Read a vector of the kind `quote`."""
    key, attest = vector.hex("akPublic"), vector.hex("attest")
    signature, nonce = vector.hex("signature"), vector.hex("nonce")
    selection, values = _selection(vector), _values(vector)

    def check() -> Proof:
        attestation_key = TpmPublic(key)
        verified = verify_quote(
            attestation_key=attestation_key,
            attest=attest,
            signature=signature,
            qualifying_data=nonce,
            selection=selection,
            pcr_values=values,
        )
        pcrs = {str(pcr): digest.hex() for pcr, digest in sorted(verified.pcr_values.items())}
        return Proof({"pcrs": {verified.bank.hash_name: pcrs}} | _told(attestation_key, verified))

    return check


def _told(attestation_key: TpmPublic, verified: CertifiedKey | VerifiedQuote) -> dict[str, object]:
    """What every attestation tells of the TPM."""
    return {
        "akName": attestation_key.name.hex(),
        "akAlgorithm": attestation_key.type.name,
        "firmwareVersion": f"{verified.firmware_version:016x}",
        "clock": asdict(verified.clock),
    }


# Banks of PCRs


def _selection(vector: Members) -> dict[TpmHash, frozenset[int]]:
    """Read `{"sha256": [0, 1, ...]}`."""
    shape = "an object with a list of different PCRs for each bank"
    selection: dict[TpmHash, frozenset[int]] = {}
    for bank, pcrs in _banks(vector, "requiredSelection").items():
        numbers = [_pcr(vector, "requiredSelection", pcr) for pcr in pcrs] if isinstance(pcrs, list) else []
        if not numbers or len(set(numbers)) != len(numbers):
            raise vector.wrong("requiredSelection", shape)
        selection[bank] = frozenset(numbers)
    return selection


def _values(vector: Members) -> dict[TpmHash, dict[int, bytes]]:
    """Read `{"sha256": {"0": "hex", ...}}`."""
    values: dict[TpmHash, dict[int, bytes]] = {}
    for bank, pcrs in _banks(vector, "pcrValues").items():
        if not isinstance(pcrs, Mapping):
            raise vector.wrong("pcrValues", "an object with an object of PCRs for each bank")
        values[bank] = {_pcr(vector, "pcrValues", pcr): _digest(vector, value) for pcr, value in pcrs.items()}
        if len(values[bank]) != len(pcrs):
            raise vector.wrong("pcrValues", "an object with one value for each PCR")
    return values


def _banks(vector: Members, name: str) -> dict[TpmHash, object]:
    """The banks by their names; the whole may be text that Python shows for a dictionary, as some benches write it."""
    value = vector.anything(name)
    if isinstance(value, str):
        value = _literal(vector, name, value)
    if not isinstance(value, Mapping) or not set(value) <= set(_BANKS):
        raise vector.wrong(name, f"an object with members of {', '.join(_BANKS)}")
    return {_BANKS[bank]: pcrs for bank, pcrs in value.items()}


def _literal(vector: Members, name: str, text: str) -> object:
    """Read the text of a dictionary. It runs nothing."""
    if len(text) > _LONGEST_LITERAL:
        raise vector.wrong(name, f"shorter than {_LONGEST_LITERAL} characters")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise vector.wrong(name, "an object, nor the text of one") from None


def _pcr(vector: Members, name: str, pcr: object) -> int:
    """Read the number of a PCR, which is text where it is the name of a member."""
    if isinstance(pcr, str) and pcr.isascii() and pcr.isdigit() and len(pcr) <= 2:
        pcr = int(pcr)
    if not isinstance(pcr, int) or isinstance(pcr, bool) or pcr < 0:
        raise vector.wrong(name, "about PCRs by their numbers")
    return pcr


def _digest(vector: Members, value: object) -> bytes:
    try:
        return Members({"pcrValues": value}).hex("pcrValues")
    except UsageError:
        raise vector.wrong("pcrValues", "made of values in hexadecimal, two digits a byte") from None
