"""Event logs of real machines, and the PCR values that others publish for them."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from keyvouch.attestation.event_log import EventLog
from keyvouch.attestation.event_log_replay import VerifiedEventLog, replay, verify_event_log
from keyvouch.attestation.tpm_structures import TpmAttest, TpmHash, TpmPublic, TpmQuoted, TpmSignature
from keyvouch.errors import EvidenceError, MalformedError
from support.event_log_vectors import (
    BY_FILE,
    FRAGMENTS,
    IMA_PCR,
    LINUX_TPM12,
    LOGS,
    SOUND,
    SWEPT,
    WINDOWS,
    accountable,
    known_values,
    published_values,
    raw,
    sweep,
)
from support.event_logs import quote_with
from support.vectors import ROOT, load

PUBLISHED = [(vector["file"], bank) for vector in LOGS for bank in vector.get("pcrs_published", {})]
COMPUTED = [(vector["file"], bank) for vector in LOGS for bank in vector.get("pcrs_computed", {})]
QUOTED = [(vector["file"], bank) for vector in SOUND for bank in vector["quote_of"]]
DECODED = [vector["file"] for vector in LOGS if "decoded" in vector]


def verified(file: str, bank: str) -> VerifiedEventLog:
    return verify_event_log(EventLog(raw(file)), quote=quote_with(known_values(file, bank), TpmHash[bank]))


def test_every_file_has_an_expectation() -> None:
    folder = ROOT / "event-logs"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files - {"expected.json"} == BY_FILE.keys()
    assert (len(LOGS), len(SOUND), len(SWEPT)) == (26, 21, 18)
    assert (len(PUBLISHED), len(COMPUTED), len(DECODED)) == (14, 27, 6)


@pytest.mark.parametrize("vector", [vector for vector in LOGS if "malformed" in vector], ids=lambda v: str(v["file"]))
def test_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(MalformedError) as refused:
        EventLog(raw(vector["file"]))
    assert refused.value.metadata["check"] == vector["malformed"]


@pytest.mark.parametrize("vector", SOUND, ids=lambda v: str(v["file"]))
def test_parsed(vector: dict[str, Any]) -> None:
    log = EventLog(raw(vector["file"]))
    assert len(log.events) == vector["events"]
    assert log.startup_locality == vector.get("startup_locality", 0)
    assert {bank.name for bank in log.banks} == vector["quote_of"].keys()


@pytest.mark.parametrize("file", DECODED)
def test_decoded_as_published(file: str) -> None:
    log = EventLog(raw(file))
    assert [
        [event.register, event.type, len(event.data), {bank.name: d.hex()[:8] for bank, d in event.digests.items()}]
        for event in log.events
    ] == BY_FILE[file]["decoded"]


@pytest.mark.parametrize(("file", "bank"), PUBLISHED + COMPUTED)
def test_replay_leads_to_the_known_values(file: str, bank: str) -> None:
    found = replay(EventLog(raw(file)), TpmHash[bank])
    known = published_values(file, bank)
    assert found.keys() & known.keys()
    for pcr, value in known.items():
        if pcr in found:
            assert found[pcr] == value
        elif pcr != IMA_PCR:
            assert set(value) in ({0}, {0xFF})


@pytest.mark.parametrize(("file", "bank"), QUOTED)
def test_quote_of_these_values(file: str, bank: str) -> None:
    expected = BY_FILE[file]["quote_of"][bank]
    if expected == "verified":
        facts = verified(file, bank).facts
        assert {"secure_boot": facts.secure_boot, "exit_boot_services": facts.exit_boot_services} == BY_FILE[file][
            "facts"
        ]
        assert facts.debugger is False
        assert facts.platform_errors == frozenset()
        return
    with pytest.raises(EvidenceError) as refused:
        verified(file, bank)
    check, _, pcr = expected.partition(" of PCR ")
    assert refused.value.metadata == (
        {"check": check, "pcr": pcr} if pcr else refused.value.metadata | {"check": check}
    )


def test_tpm_1_2_measures_variables_differently() -> None:
    """Its firmware hashed a variable's data without its name, so nothing is known of Secure Boot."""
    facts = verify_event_log(EventLog(raw(LINUX_TPM12)), quote=accountable(LINUX_TPM12, "SHA1")).facts
    assert facts.secure_boot is None
    assert facts.exit_boot_services is True


def test_real_quote_of_windows() -> None:
    """The dump holds a quote with SHA-1, as new ones must not be, over the values that its log leads to."""
    dump = load(f"event-logs/{WINDOWS}")
    attest = TpmAttest(base64.b64decode(dump["Quote"]["Quote"]))
    signature = TpmSignature(base64.b64decode(dump["Quote"]["Signature"]))
    key = TpmPublic(base64.b64decode(dump["AK"]["Public"])).key
    assert isinstance(key, rsa.RSAPublicKey)
    key.verify(signature.value, attest, padding.PKCS1v15(), hashes.SHA1())
    assert isinstance(attest.attested, TpmQuoted)
    values = known_values(WINDOWS, "SHA1")
    assert attest.attested.selections[0].pcrs == values.keys()
    assert attest.attested.digest == TpmHash.SHA1.digest(b"".join(values[pcr] for pcr in sorted(values)))
    facts = verify_event_log(EventLog(raw(WINDOWS)), quote=accountable(WINDOWS, "SHA1")).facts
    assert facts.secure_boot is True


@pytest.mark.parametrize("file", SWEPT)
def test_a_flipped_bit_is_refused_or_means_nothing(file: str) -> None:
    """Some 100 bits of each log. The test of the same name in `fuzz` flips more of them."""
    refused, same = sweep(file, 100)
    assert refused
    assert same


@pytest.mark.parametrize("file", FRAGMENTS)
def test_a_flipped_bit_mends_nothing(file: str) -> None:
    """Parts of logs without a separator, and a log without events: refused, and with any bit flipped."""
    data = bytearray(raw(file))
    values = known_values(file, "SHA1")
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises((MalformedError, EvidenceError)):
            verify_event_log(EventLog(bytes(data)), quote=quote_with(values, TpmHash.SHA1))
        data[bit >> 3] ^= 1 << (bit & 7)
