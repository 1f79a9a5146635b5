"""The PKCS#11 vault on a PIV card, through OpenSC and a real pcscd: PIN, slots, attestation, removal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from pkcs11 import Attribute, ObjectClass
from pkcs11.exceptions import PKCS11Error

from keyvouch import cbor
from keyvouch.assurance import Protection, Provenance
from keyvouch.attestation import TrustStore
from keyvouch.attestation.formats import piv as piv_format
from keyvouch.cose import CoseKey
from keyvouch.errors import DeviceError, EvidenceError, Reason
from keyvouch.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, Flags
from keyvouch_agent.ports import Pin
from keyvouch_agent.vaults.pkcs11.library import TokenLibrary
from keyvouch_agent.vaults.pkcs11.pin_control import TokenPin
from keyvouch_agent.vaults.pkcs11.uri import TokenUri
from keyvouch_agent.vaults.pkcs11.vault import SMARTCARD_AAGUID, Pkcs11Vault
from keyvouch_bench.piv_card import Authority
from keyvouch_bench.piv_card.identifiers import AUTHENTICATION, SIGNATURE, KeyAlgorithm, PinPolicy
from keyvouch_bench.piv_card.issuing import Issue
from keyvouch_bench.piv_card.keys import Origin
from keyvouch_bench.piv_card.reader import PivReader
from support.attestation_forge import anchor
from support.pkcs11_tokens import (
    Typed,
    card_library,
    card_vault,
    enrolled,
    kept,
    key_for,
    pins_shown,
    proves_possession,
    reason_of,
)

WRONG = "999999"
AWAY = (Reason.AUTHENTICATOR_REMOVED, Reason.AUTHENTICATOR_NOT_CONNECTED)


@pytest.fixture
def library() -> Iterator[TokenLibrary]:
    with card_library("opensc") as opened:
        yield opened


@pytest.fixture
def vault(issued_piv_card: PivReader, library: TokenLibrary, tmp_path: Path) -> Iterator[Pkcs11Vault]:
    with card_vault(library, tmp_path / "account") as opened:
        yield opened


# The PIN


def test_tries_are_the_card_s_own_number(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    entry = Typed(WRONG, issued_piv_card.card.pin)
    with pytest.raises(DeviceError) as caught:
        vault.verify_user(entry)
    assert (caught.value.reason, caught.value.retries_left) == (Reason.PIN_WRONG, 2)
    assert vault.uv_state().retries_left == 2
    vault.verify_user(entry)
    assert entry.shown == [3, 2]
    vault.lock()
    assert vault.uv_state().retries_left == 3


def test_last_try_is_not_spent_in_passing(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    card = issued_piv_card.card
    for left in (2, 1):
        with pytest.raises(DeviceError) as caught:
            vault.verify_user(Typed(WRONG))
        assert caught.value.retries_left == left
    tried, entry = pins_shown(card), Typed(card.pin)
    assert reason_of(lambda: vault.verify_user(entry)) is Reason.PIN_LAST_TRY
    assert (entry.shown, pins_shown(card), vault.uv_state().retries_left) == ([], tried, 1)
    vault.allow_last_try()
    vault.verify_user(entry)
    assert entry.shown == [1]
    proves_possession(vault, kept(vault))


def test_leave_for_the_last_try_is_for_one(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    vault.allow_last_try()
    assert reason_of(lambda: vault.verify_user(Typed(None))) is Reason.USER_CANCELLED
    for _ in range(2):
        assert reason_of(lambda: vault.verify_user(Typed(WRONG))) is Reason.PIN_WRONG
    assert reason_of(lambda: vault.verify_user(Typed(WRONG))) is Reason.PIN_LAST_TRY


def test_another_program_s_misses_count_while_the_pin_is_typed(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    card = issued_piv_card.card

    class Slow(Typed):
        def ask(self, retries_left: int | None) -> str | None:
            card.state.pin.left = 1
            return super().ask(retries_left)

    tried = pins_shown(card)
    assert reason_of(lambda: vault.verify_user(Slow(WRONG))) is Reason.PIN_LAST_TRY
    assert (pins_shown(card), card.state.pin.left) == (tried, 1)


def test_blocked_pin_names_the_puk_and_is_unblocked(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    card = issued_piv_card.card
    credential = enrolled(vault, card)
    card.block_pin()
    entry = Typed(card.pin)
    with pytest.raises(DeviceError) as caught:
        vault.verify_user(entry)
    assert (caught.value.reason, caught.value.retries_left, entry.shown) == (Reason.PIN_BLOCKED, 0, [])
    assert "PUK" in caught.value.fix
    unblock = ["pkcs15-tool", "--unblock-pin", "--auth-id", "01", "--puk", card.puk, "--new-pin", "135790"]
    done = subprocess.run(unblock, env={**os.environ, **issued_piv_card.environment}, timeout=60, capture_output=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    vault.verify_user(Typed("135790"))
    proves_possession(vault, credential)


def test_lock_is_the_card_s_too(vault: Pkcs11Vault, issued_piv_card: PivReader, library: TokenLibrary) -> None:
    """C_Logout of OpenSC sends a PIV card nothing; after it any program could sign."""
    vault.verify_user(Typed(issued_piv_card.card.pin))
    answer = bytes.fromhex("00200080")
    assert issued_piv_card.card.answer(answer) == bytes.fromhex("9000")
    vault.lock()
    assert issued_piv_card.card.answer(answer) == bytes.fromhex("63C3")
    TokenPin(vault._account, vault).change(Pin(issued_piv_card.card.pin), Pin("13579135"))
    assert issued_piv_card.card.answer(answer) == bytes.fromhex("63C3")


# The slots


def test_slot_9c_wants_the_pin_for_each_signature(
    issued_piv_card: PivReader, library: TokenLibrary, tmp_path: Path
) -> None:
    card = issued_piv_card.card
    with card_vault(library, tmp_path / "account", TokenUri(id=b"\x02")) as vault:
        entry = Typed(card.pin)
        vault.verify_user(entry)
        credential = kept(vault)
        tried = pins_shown(card)
        for _ in range(3):
            proves_possession(vault, credential)
        assert (pins_shown(card) - tried, entry.shown) == (3, [3])
        card.state.pin.replace(b"864209\xff\xff")  # changed by another program: ours is wrong now
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_WRONG
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
        vault.verify_user(Typed("864209"))
        proves_possession(vault, credential)


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.P256, KeyAlgorithm.P384, KeyAlgorithm.RSA_2048])
def test_each_algorithm(
    piv_card: PivReader, piv_issuer: Authority, library: TokenLibrary, tmp_path: Path, algorithm: KeyAlgorithm
) -> None:
    piv_card.card.personalise(piv_issuer, Issue(keys={AUTHENTICATION: algorithm, SIGNATURE: algorithm}))
    expected = {KeyAlgorithm.P256: -7, KeyAlgorithm.P384: -35, KeyAlgorithm.RSA_2048: -257}[algorithm]
    for slot in (b"\x01", b"\x02"):
        with card_vault(library, tmp_path / slot.hex(), TokenUri(id=slot)) as vault:
            assert vault.properties.algorithms == (expected,)
            vault.verify_user(Typed(piv_card.card.pin))
            proves_possession(vault, kept(vault, key_for(algorithm=expected)))


def test_only_signing_slots_are_used(issued_piv_card: PivReader, library: TokenLibrary, tmp_path: Path) -> None:
    """9D decrypts; 9E works without the PIN."""
    for key_id in (b"\x03", b"\x04"):
        uri = TokenUri(id=key_id)
        assert reason_of(lambda uri=uri: card_vault(library, tmp_path / "a", uri).__enter__()) is Reason.UNSUPPORTED  # type: ignore[misc]
    with card_vault(library, tmp_path / "b", TokenUri(object="Certificate for Digital Signature")) as vault:
        assert vault._account.profile.existing is not None
        assert vault._account.profile.existing.slot == SIGNATURE


def test_blank_card_has_nothing_to_use(piv_card: PivReader, library: TokenLibrary, tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as caught, card_vault(library, tmp_path / "account"):
        pass
    assert caught.value.reason is Reason.UNSUPPORTED
    assert "9A" in caught.value.fix


def test_deleting_and_resetting_leave_the_card_alone(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    card = issued_piv_card.card
    before = (dict(card.state.keys), dict(card.state.objects))
    credential = enrolled(vault, card)
    vault.delete(credential.id)
    kept(vault)
    vault.reset()
    assert (dict(card.state.keys), dict(card.state.objects)) == before


def test_values_of_private_keys_are_not_read(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    enrolled(vault, issued_piv_card.card)
    wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    private = vault._on_token(lambda session: next(iter(session.get_objects(wanted))))
    with pytest.raises(PKCS11Error):
        private[Attribute.VALUE]


def test_key_that_was_replaced_on_the_card_is_told(
    vault: Pkcs11Vault, issued_piv_card: PivReader, piv_issuer: Authority
) -> None:
    card = issued_piv_card.card
    credential = enrolled(vault, card)
    vault.lock()
    card.personalise(piv_issuer, Issue(pin=card.pin))
    vault._account.library.close()  # OpenSC reads certificates once
    entry = Typed(card.pin)
    reasons = {Reason.DEVICE_KEY_LOST, Reason.AUTHENTICATOR_OTHER}  # the second where its serial number is new too

    def use() -> None:
        vault.verify_user(entry)
        vault.sign(credential.id, b"m")

    assert reason_of(use) in reasons


# Attestation


def _attested(vault: Pkcs11Vault) -> tuple[AttestationObject, bytes]:
    credential = vault.create_key(key_for(algorithm=vault.properties.algorithms[0]))
    made = AttestedCredentialData.build(SMARTCARD_AAGUID, credential.id, CoseKey(credential.public_key))
    data = AuthenticatorData.build(credential.rp_id_hash, Flags.UP | Flags.UV, 0, attested=made)
    client_data_hash = bytes(range(32))
    attestation = vault.attest(credential.id, data, client_data_hash)
    return AttestationObject(
        cbor.encode({"fmt": attestation.format, "attStmt": dict(attestation.statement), "authData": bytes(data)})
    ), client_data_hash


def _root(authority: Authority) -> TrustStore:
    return TrustStore([anchor(x509.load_pem_x509_certificate(authority.pem))])


@pytest.mark.parametrize("slot", [b"\x01", b"\x02"])
def test_card_attests_its_key(
    issued_piv_card: PivReader, piv_batch: Authority, piv_issuer: Authority, library: TokenLibrary, tmp_path: Path,
    slot: bytes,
) -> None:  # fmt: skip
    with card_vault(library, tmp_path / "account", TokenUri(id=slot)) as vault:
        assert vault.properties.attestation_formats == ("piv",)
        vault.verify_user(Typed(issued_piv_card.card.pin))
        attested, client_data_hash = _attested(vault)
    now = datetime.now(UTC)
    evidence = piv_format.verify(attested, client_data_hash=client_data_hash, anchors=_root(piv_batch), instant=now)
    assert (evidence.provenance, evidence.protection) == (Provenance.ATTESTED, Protection.SMARTCARD)
    with pytest.raises(EvidenceError) as caught:
        piv_format.verify(attested, client_data_hash=client_data_hash, anchors=_root(piv_issuer), instant=now)
    assert caught.value.reason is Reason.TRUST_CHAIN


def test_imported_key_is_not_attested(issued_piv_card: PivReader, library: TokenLibrary, tmp_path: Path) -> None:
    card = issued_piv_card.card
    card.state.keys[AUTHENTICATION] = replace(card.state.keys[AUTHENTICATION], origin=Origin.IMPORTED)
    with card_vault(library, tmp_path / "account") as vault:
        assert vault.properties.attestation_formats == ("packed",)
        vault.verify_user(Typed(card.pin))
        credential = kept(vault)
        attestation = vault.attest(credential.id, b"data", b"hash")
        assert (attestation.format, set(attestation.statement)) == ("packed", {"alg", "sig"})  # by the key itself
        proves_possession(vault, credential)


def test_attestation_of_another_key_is_not_believed(
    issued_piv_card: PivReader, library: TokenLibrary, tmp_path: Path
) -> None:
    """The certificate in slot 9A is of another key than the one in it: what the card attests is not the account's."""
    card = issued_piv_card.card
    card.state.keys[AUTHENTICATION] = replace(card.state.keys[SIGNATURE], pin_policy=PinPolicy.ONCE)
    with card_vault(library, tmp_path / "account") as vault:
        assert vault.properties.attestation_formats == ("packed",)
        vault.verify_user(Typed(card.pin))
        credential = kept(vault)
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.DEVICE_KEY_LOST


def test_pin_policy_of_the_key_is_heeded_in_any_slot(
    piv_card: PivReader, piv_issuer: Authority, library: TokenLibrary, tmp_path: Path
) -> None:
    """Slot 9A with the PIN before each signature: OpenSC knows that of 9C only."""
    issue = Issue(keys={AUTHENTICATION: KeyAlgorithm.P256}, pin_policies={AUTHENTICATION: PinPolicy.ALWAYS})
    piv_card.card.personalise(piv_issuer, issue)
    with card_vault(library, tmp_path / "account") as vault:
        credential = enrolled(vault, piv_card.card)
        for _ in range(2):
            proves_possession(vault, credential)


def test_key_without_pin_policy_still_wants_our_login(
    piv_card: PivReader, piv_issuer: Authority, library: TokenLibrary, tmp_path: Path
) -> None:
    """The card would sign without the PIN (policy never); its attestation says so, and the agent asks anyway."""
    issue = Issue(keys={AUTHENTICATION: KeyAlgorithm.P256}, pin_policies={AUTHENTICATION: PinPolicy.NEVER})
    piv_card.card.personalise(piv_issuer, issue)
    with card_vault(library, tmp_path / "account") as vault:
        assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_REQUIRED
        proves_possession(vault, enrolled(vault, piv_card.card))
