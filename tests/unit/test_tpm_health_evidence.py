"""A report of health: facts under the attestation key's signature, for one connection."""

from __future__ import annotations

from typing import Any

import pytest

from keyvouch.attestation.tpm_health import BANK, VerifiedHealth, verify_health
from keyvouch.attestation.tpm_structures import TpmHash
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.ids import DeviceId, ServerId
from keyvouch.statement import Purpose, challenge, health_statement
from support.event_logs import agile, done, quote_of, secure_boot
from support.tpm_device import FIRMWARE, PCRS, ForgedTpm, Maker
from support.tpm_forge import attestation_key, ec_key
from support.tpm_stage import certification

STATEMENT = health_statement(ServerId(bytes(32)), DeviceId("dev_a"), bytes(range(32)))
NONCE = challenge(Purpose.HEALTH, STATEMENT)


@pytest.fixture
def tpm() -> ForgedTpm:
    return Maker.new().tpm()


def verify(tpm: ForgedTpm, **changes: Any) -> VerifiedHealth:
    given: dict[str, Any] = {
        "attestation_key": tpm.ak_area,
        "quote": certification(tpm.quote(PCRS, NONCE)),
        "pcrs": PCRS,
        "pcr_values": {pcr: tpm.pcrs[pcr] for pcr in PCRS},
        "event_log": b"",
        "statement": STATEMENT,
    }
    return verify_health(**{**given, **changes})


def test_a_true_report_is_clock_firmware_and_registers(tpm: ForgedTpm):
    said = verify(tpm)
    assert (said.firmware_version, said.clock.clock, said.clock.reset_count) == (FIRMWARE, tpm.clock, 5)
    assert dict(said.pcr_values) == {pcr: tpm.pcrs[pcr] for pcr in PCRS}
    assert said.boot is None
    assert BANK is TpmHash.SHA256


def test_with_the_firmware_s_log_it_is_the_facts_of_the_boot_too(tpm: ForgedTpm):
    events = [secure_boot(), *(done(pcr) for pcr in range(8))]
    tpm.pcrs.update(quote_of(events).pcr_values)
    said = verify(tpm, event_log=agile(events))
    assert said.boot is not None
    assert (said.boot.secure_boot, said.boot.debugger, said.boot.platform_errors) == (True, False, frozenset())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"statement": health_statement(ServerId(bytes(32)), DeviceId("dev_b"), bytes(range(32)))}, Reason.TPM_NONCE),
        ({"statement": health_statement(ServerId(bytes(32)), DeviceId("dev_a"), bytes(32))}, Reason.TPM_NONCE),
        ({"attestation_key": attestation_key(ec_key(3))}, Reason.SIGNATURE),
        ({"pcrs": (0, 2, 4)}, Reason.TPM_PCR_SELECTION),
        ({"pcr_values": {}}, Reason.TPM_PCR_DIGEST),
        ({"event_log": b"\xff"}, Reason.TPM_EVENT_LOG),
        ({"event_log": agile([secure_boot(), *(done(pcr) for pcr in range(8))])}, Reason.TPM_EVENT_LOG_REPLAY),
    ],
)
def test_a_report_that_does_not_hold(tpm: ForgedTpm, changes: dict[str, Any], reason: Reason):
    with pytest.raises(KeyvouchError) as refused:
        verify(tpm, **changes)
    assert refused.value.reason is reason


def test_a_key_that_hides_clock_and_firmware(tpm: ForgedTpm):
    tpm.hierarchy = b"\x40\x00\x00\x01"
    with pytest.raises(KeyvouchError) as refused:
        verify(tpm)
    assert refused.value.reason is Reason.TPM_AK_ATTRIBUTES
