"""What the TPM vault makes of answers that no TPM gives: cut off, or with a bit of them turned over on the way.

The C library notices neither where no session protects the response. Nothing of it may be kept, sent or believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tpm2_pytss import TPM2_CC, TPM2B_SENSITIVE_CREATE

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.vault import PIN_HASH_LENGTH, KeyRequest, User
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.tpm import attestation_key
from keyvouch_agent.vaults.tpm.account import TpmAccount
from keyvouch_agent.vaults.tpm.attestation_key import AttestationKeySeed, LoadedAttestationKey
from keyvouch_agent.vaults.tpm.channel_key import TpmChannelKeys
from keyvouch_agent.vaults.tpm.connection import Tpm, TpmAccess
from keyvouch_agent.vaults.tpm.endorsement import find_endorsement_key
from keyvouch_agent.vaults.tpm.key_file import OWNER, KeyFile
from keyvouch_agent.vaults.tpm.parent import choose_parent
from keyvouch_agent.vaults.tpm.profile import read_profile
from keyvouch_agent.vaults.tpm.templates import channel_key
from keyvouch_agent.vaults.tpm.vault import TpmVault
from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import TpmDevice
from keyvouch_bench.tpm_faults import Action, Fault, FaultingTcti, FaultPlan, truncate
from keyvouch_bench.tpm_tcti import Recording, RecordingTcti, Send, open_tcti
from support.tpm_accounts import access_to, kept

PIN = b"493817"
SENSELESS = {Reason.TPM_FAILED, Reason.TPM_UNAVAILABLE}
"""Ours for what makes no sense, and the one for what the library could not read."""
NONCE = hashlib.sha256(b"nonce").digest()
RESPONSE_PARAMETERS = 14
"""Where the parameters of a response with sessions begin: after header and their size."""


def turn_over(offset: int) -> Action:
    """Turn one bit of the response over."""

    def act(command: bytes, send: Send) -> bytes:
        answer = bytearray(send(command))
        answer[offset] ^= 1
        return bytes(answer)

    return act


def drop_byte(command: bytes, send: Send) -> bytes:
    """Leave out the last byte of a response's only parameter, a TPM2B, with all lengths as they should be then."""
    answer = send(command)
    size = int.from_bytes(answer[10:14], "big")
    data, sessions = answer[16 : 14 + size - 1], answer[14 + size :]
    header = answer[:2] + (len(answer) - 1).to_bytes(4, "big") + answer[6:10]
    return header + (size - 1).to_bytes(4, "big") + len(data).to_bytes(2, "big") + data + sessions


@dataclass
class Bus:
    """The way to the TPM. `plan` is what happens on it from the next connection on."""

    tcti: str
    plan: FaultPlan = field(default_factory=FaultPlan)
    recording: Recording = field(default_factory=Recording)

    def open_tcti(self) -> FaultingTcti:
        return FaultingTcti(RecordingTcti(open_tcti(self.tcti), self.recording), self.plan)

    @property
    def access(self) -> TpmAccess:
        return access_to(self.tcti, self.open_tcti)

    def length_of(self, number: int) -> int:
        """How long the response to the `number`th command was."""
        return len(self.recording.exchanges[number - 1].response)


@pytest.fixture
def bus(tpm: Swtpm | TpmDevice) -> Bus:
    return Bus(tpm.tcti)


def senseless(act: Callable[[], object]) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        act()
    assert caught.value.reason in SENSELESS, repr(caught.value)
    assert caught.value.fix
    return caught.value


# Lists


def read(bus: Bus) -> tuple[Any, Any]:
    """What decides how a registration goes: abilities, and the certificates of the endorsement key."""
    with bus.access.open() as tpm:
        profile = read_profile(tpm)
        key = find_endorsement_key(tpm, has_curves=profile.has_curves)
        return profile, key.certificates


@pytest.mark.parametrize("number", range(3, 12))
def test_a_list_or_certificate_cut_off_anywhere_is_the_same_or_refused(bus: Bus, number: int) -> None:
    """Else a TPM whose list of NV indices was cut off would be registered as one that nobody vouches for."""
    whole = read(bus)
    assert whole[1]
    length = bus.length_of(number)
    refusals = []
    for cut in range(10, length, 1 if length < 100 else 7):
        bus.plan = FaultPlan(Fault(truncate(cut), at=number))
        try:
            assert read(bus) == whole, cut
        except DeviceError as error:
            refusals.append(error)
    assert refusals
    assert {refusal.reason for refusal in refusals} <= SENSELESS
    bus.plan = FaultPlan()
    assert read(bus) == whole


def test_a_part_of_a_certificate_that_is_too_short_is_refused(bus: Bus) -> None:
    bus.plan = FaultPlan(Fault(drop_byte, code=TPM2_CC.NV_Read))
    senseless(lambda: read(bus))


# Keys and what they sign


def key_request() -> KeyRequest:
    return KeyRequest("example", User(b"user"), int(Algorithm.ES256), False)


@pytest.fixture
def vault(bus: Bus, tmp_path: Path) -> Iterator[TpmVault]:
    """A vault with a PIN, unlocked; at the end nothing of it is left in the TPM."""
    made = TpmVault(TpmAccount.open(tmp_path / "account", bus.access), SystemEntropy())
    made.set_pin(PIN)
    unlock(made)
    yield made
    bus.plan = FaultPlan()
    made.reset()
    made.close()


def unlock(vault: TpmVault) -> None:
    vault.verify_pin(hashlib.sha256(PIN).digest()[:PIN_HASH_LENGTH])


def meeting(bus: Bus, vault: TpmVault, fault: Fault) -> None:
    """The vault's next connection, unlocked, meets the fault."""
    vault.lock()
    bus.plan = FaultPlan(fault)
    unlock(vault)


def test_a_key_of_another_policy_than_asked_for_is_not_kept(bus: Bus, vault: TpmVault) -> None:
    kept(vault, key_request())
    public = bus.recording.exchanges[-1].response.index(vault._state.pin.gate.key_policy)  # type: ignore[union-attr]
    for offset in (public, public + 31, public - 3):  # the policy, and the attributes before it
        meeting(bus, vault, Fault(turn_over(offset), code=TPM2_CC.Create))
        senseless(lambda: kept(vault, key_request()))
    assert len(vault._state.keys) == 1
    meeting(bus, vault, Fault(turn_over(10), code=TPM2_CC.Hash))  # a command that does not come
    assert kept(vault, key_request()).public_key


def test_a_signature_of_another_key_does_not_leave_the_vault(bus: Bus, vault: TpmVault, tmp_path: Path) -> None:
    """Two files changed places: each loads, and signs something that no server would take."""
    first, second = kept(vault, key_request()), kept(vault, key_request())
    files = [tmp_path / "account" / f"{key.id.hex()}.pem" for key in (first, second)]
    contents = [file.read_bytes() for file in files]
    files[0].write_bytes(contents[1])
    with pytest.raises(DeviceError) as caught:
        vault.sign(first.id, b"message")
    assert caught.value.reason in {Reason.TPM_FAILED, Reason.VAULT_CORRUPT}
    files[0].write_bytes(contents[0])
    signature = vault.sign(first.id, b"message")
    CoseKey(first.public_key).verify_signature(signature=signature, message=b"message")


@pytest.mark.parametrize("offset", range(RESPONSE_PARAMETERS, RESPONSE_PARAMETERS + 72, 7))
def test_a_signature_of_the_vault_with_a_bit_turned_over_is_refused(bus: Bus, vault: TpmVault, offset: int) -> None:
    key = kept(vault, key_request())
    meeting(bus, vault, Fault(turn_over(offset), code=TPM2_CC.Sign))
    senseless(lambda: vault.sign(key.id, b"message"))
    vault.lock()
    unlock(vault)
    assert vault.sign(key.id, b"message")


def with_secrets(bus: Bus, vault: TpmVault) -> Any:
    key = kept(vault, replace(key_request(), hmac_secret=True, cred_blob=b"blob"))
    assert len(vault.secrets(key.id).with_uv) == 32  # control
    return key


@pytest.mark.parametrize("offset", [*range(RESPONSE_PARAMETERS, RESPONSE_PARAMETERS + 34, 5), -1, -40])
def test_a_seed_with_a_bit_turned_over_gives_no_secrets(bus: Bus, vault: TpmVault, offset: int) -> None:
    key = with_secrets(bus, vault)
    right = vault.secrets(key.id)
    meeting(bus, vault, Fault(turn_over(offset), code=TPM2_CC.Unseal))
    senseless(lambda: vault.secrets(key.id))
    vault.lock()
    unlock(vault)
    assert vault.secrets(key.id) == right


@pytest.mark.parametrize("cut", range(10, 117, 9))
def test_a_seed_that_is_cut_off_gives_no_secrets(bus: Bus, vault: TpmVault, cut: int) -> None:
    key = with_secrets(bus, vault)
    meeting(bus, vault, Fault(truncate(cut), code=TPM2_CC.Unseal))
    senseless(lambda: vault.secrets(key.id))


@pytest.mark.parametrize("offset", [RESPONSE_PARAMETERS, RESPONSE_PARAMETERS + 60, -1, -200])
def test_a_sealed_seed_with_a_bit_turned_over_is_not_kept(bus: Bus, vault: TpmVault, offset: int) -> None:
    """The second TPM2_Create of a key with secrets."""
    request = replace(key_request(), hmac_secret=True)
    with_secrets(bus, vault)
    meeting(bus, vault, Fault(turn_over(offset), code=TPM2_CC.Create, at=2))
    senseless(lambda: vault.create_key(request))
    assert len(vault._state.keys) == 1
    vault.lock()
    unlock(vault)
    assert vault.secrets(kept(vault, request).id).with_uv


@pytest.mark.parametrize("offset", range(RESPONSE_PARAMETERS, RESPONSE_PARAMETERS + 72, 7))
def test_a_signature_of_the_channel_key_with_a_bit_turned_over_is_refused(bus: Bus, offset: int) -> None:
    key = TpmChannelKeys(bus.access).make()
    assert key.sign(b"message")
    bus.plan = FaultPlan(Fault(turn_over(offset), code=TPM2_CC.Sign))
    senseless(lambda: key.sign(b"message"))
    assert key.sign(b"message")


def test_a_channel_key_with_other_attributes_than_asked_for_is_refused(bus: Bus) -> None:
    TpmChannelKeys(bus.access).make()
    (made,) = [one.response for one in bus.recording.exchanges if one.code == TPM2_CC.Create]
    attributes = made.index(bytes.fromhex("0023000b")) + 4  # TPM_ALG_ECC, names by SHA-256
    bus.plan = FaultPlan(Fault(turn_over(attributes + 3), code=TPM2_CC.Create))
    senseless(TpmChannelKeys(bus.access).make)


# What the TPM says of its keys


@pytest.fixture
def attesting(bus: Bus, vault: TpmVault) -> Callable[[str], object]:
    """Has the TPM certify a key, certify the PIN's index, or quote."""

    def key_of(tpm: Tpm) -> LoadedAttestationKey:
        return attestation_key.make(tpm, AttestationKeySeed(Algorithm.ES256, bytes(range(32))))

    def certify(tpm: Tpm) -> object:
        parent = choose_parent(tpm, read_profile(tpm))[0]
        made = tpm.do(tpm.esapi.create, parent, TPM2B_SENSITIVE_CREATE(), channel_key())
        key = KeyFile(made[0], made[1], OWNER)
        loaded = tpm.hold(tpm.do(tpm.esapi.load, parent, key.private, key.public))
        tpm.release(parent)
        return attestation_key.certify(tpm, key_of(tpm), loaded, key.area, NONCE)

    def act(what: str) -> object:
        vault.lock()
        with vault._account.linked() as link:
            if what == "certify":
                return certify(link.tpm)
            if what == "certify_index":
                return attestation_key.certify_index(link.tpm, key_of(link.tpm), link.index, NONCE)
            return attestation_key.quote(link.tpm, key_of(link.tpm), [0, 7], NONCE)

    return act


ATTESTATIONS = {"certify": TPM2_CC.Certify, "certify_index": TPM2_CC.NV_Certify, "quote": TPM2_CC.Quote}


@pytest.mark.parametrize("what", ATTESTATIONS)
def test_what_the_tpm_attests_is_verified_before_it_is_sent(
    bus: Bus, attesting: Callable[[str], object], what: str
) -> None:
    code = ATTESTATIONS[what]
    assert attesting(what)
    (response,) = [one.response for one in bus.recording.exchanges if one.code == code]
    end = RESPONSE_PARAMETERS + int.from_bytes(response[10:14], "big")
    for offset in range(RESPONSE_PARAMETERS, end, 9):
        bus.plan = FaultPlan(Fault(turn_over(offset), code=code))
        senseless(lambda: attesting(what))
    bus.plan = FaultPlan()
    assert attesting(what)


def test_values_of_pcrs_that_are_not_those_quoted_are_not_sent(bus: Bus, attesting: Callable[[str], object]) -> None:
    """Else the server would believe that the device has drifted."""
    bus.plan = FaultPlan(Fault(turn_over(-1), code=TPM2_CC.PCR_Read))
    senseless(lambda: attesting("quote"))


def test_an_attestation_key_that_is_not_of_its_template_is_refused(
    bus: Bus, attesting: Callable[[str], object]
) -> None:
    assert attesting("quote")
    made = next(one.response for one in reversed(bus.recording.exchanges) if one.code == TPM2_CC.CreatePrimary)
    attributes = made.index(bytes.fromhex("0023000b")) + 4
    for offset in (attributes, attributes + 3, attributes + 12):
        bus.plan = FaultPlan(Fault(turn_over(offset), code=TPM2_CC.CreatePrimary, times=None))
        senseless(lambda: attesting("quote"))


# The count of PINs


def count_offsets() -> list[int]:
    start = RESPONSE_PARAMETERS + 2
    return [start, start + 3, start + 4, start + 6]


@pytest.mark.parametrize("offset", count_offsets())
def test_a_count_of_pins_that_cannot_be_is_not_believed(bus: Bus, vault: TpmVault, offset: int) -> None:
    """Else a person would be told that the PIN is blocked. One wrong PIN was entered; one bit of the count is wrong."""
    with pytest.raises(DeviceError):
        vault.verify_pin(hashlib.sha256(b"wrong").digest()[:PIN_HASH_LENGTH])
    meeting_locked(bus, vault, Fault(turn_over(offset), code=TPM2_CC.NV_Read))
    if offset == count_offsets()[1]:
        assert vault.pin_state().retries_left == 8  # 1 has become 0: nothing tells
        return
    senseless(vault.pin_state)
    assert vault.pin_state().retries_left == 7


def test_a_count_of_pins_that_is_too_short_is_not_believed(bus: Bus, vault: TpmVault) -> None:
    meeting_locked(bus, vault, Fault(drop_byte, code=TPM2_CC.NV_Read))
    senseless(vault.pin_state)
    assert vault.pin_state().retries_left == 8


def meeting_locked(bus: Bus, vault: TpmVault, fault: Fault) -> None:
    vault.lock()
    bus.plan = FaultPlan(fault)
