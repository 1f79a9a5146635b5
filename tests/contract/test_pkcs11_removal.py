"""A PIV card that is taken out, swapped, noisy, or shared with other programs, through OpenSC and a real pcscd."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.pkcs11.library import TokenLibrary
from keyvouch_agent.vaults.pkcs11.uri import TokenUri
from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault
from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.piv_card import Authority, VirtualPivCard
from keyvouch_bench.piv_card.reader import PivReader
from support.pkcs11_tokens import (
    Typed,
    card_library,
    card_vault,
    enrolled,
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


def test_card_is_missing_at_each_step_and_comes_back(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    reader, card = issued_piv_card, issued_piv_card.card
    entry = Typed(card.pin)
    reader.remove()
    assert reason_of(lambda: vault.verify_user(entry)) in AWAY
    assert reason_of(vault.uv_state) in AWAY
    assert entry.shown == []
    reader.insert()
    vault.verify_user(entry)
    reader.remove()

    def make() -> None:
        made = vault.create_key(key_for())  # what it needs OpenSC may still know
        vault.attest(made.id, b"data", b"hash")

    assert reason_of(make) in AWAY
    reader.insert()
    assert reason_of(make) is Reason.PIN_REQUIRED  # never shown behind the user's back
    vault.verify_user(Typed(card.pin))
    made = vault.create_key(key_for())
    reader.remove()
    assert reason_of(lambda: vault.attest(made.id, b"data", b"hash")) in AWAY
    assert reason_of(lambda: vault.keep(made.id)) is Reason.KEY_NOT_FOUND
    assert vault.discoverable() == []
    reader.insert()
    credential = enrolled(vault, card)
    reader.remove()
    assert reason_of(lambda: vault.sign(credential.id, b"m")) in AWAY
    assert vault.discoverable() == [credential]
    vault.lock()
    reader.insert()
    vault.verify_user(Typed(card.pin))
    proves_possession(vault, credential)


def outcome(action: Callable[[], object]) -> Reason | None:
    """Why it failed; None if it did not."""
    try:
        action()
    except DeviceError as error:
        return error.reason
    return None


def _steps(card: VirtualPivCard, ceremony: Callable[[], object]) -> list[int]:
    """The numbers of the APDUs at which to pull the card: the first and the last of each instruction."""
    start = len(card.journal)
    ceremony()
    names = [entry.name for entry in card.journal[start:]]
    return sorted({1 + f(names, name) for name in set(names) for f in (list.index, _last_index)})


def _last_index(names: list[str], name: str) -> int:
    return len(names) - 1 - names[::-1].index(name)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_card_is_pulled_in_the_middle_of_anything(
    issued_piv_card: PivReader, library: TokenLibrary, tmp_path: Path, after: bool
) -> None:
    """Whatever APDU is the last one: an error with a name, and the ceremony goes through when the card is back."""
    reader, card = issued_piv_card, issued_piv_card.card
    slot = TokenUri(id=b"\x02")
    with card_vault(library, tmp_path / "account", slot) as vault:
        numbers = itertools.count()

        def ceremony() -> None:
            vault.verify_user(Typed(card.pin))
            credential = vault.create_key(key_for(user=str(next(numbers)).encode()))
            vault.attest(credential.id, b"data", b"hash")
            vault.keep(credential.id)
            vault.sign(credential.id, b"m")
            vault.delete(credential.id)
            vault.lock()

        ceremony()
        for step in _steps(card, ceremony):
            card.faults.remove_at(step, after=after)
            assert outcome(ceremony) in (None, *AWAY, Reason.PIN_REQUIRED), step
            card.faults.clear()
            for credential in vault.discoverable():
                vault.delete(credential.id)
            reader.remove()  # whatever pcscd has noticed of it
            reader.insert()
            ceremony()
            assert vault.discoverable() == []
        assert card.state.pin.left == 3


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_noise_in_place_of_answers(vault: Pkcs11Vault, issued_piv_card: PivReader, count: int) -> None:
    """No noise is taken for a signature, whether OpenSC minds it or not; and it goes on when it is over."""
    card = issued_piv_card.card
    credential = enrolled(vault, card)
    card.faults.garble(count)
    assert outcome(lambda: proves_possession(vault, credential)) in (None, Reason.DEVICE_FAILED, *AWAY)
    card.faults.clear()
    vault.verify_user(Typed(card.pin))
    proves_possession(vault, credential)


def test_card_that_refuses_to_sign(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    card = issued_piv_card.card
    credential = enrolled(vault, card)
    for number in range(2, 12):  # OpenSC tries again
        card.faults.fail(number, 0x6F00)
    assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.DEVICE_FAILED
    card.faults.clear()
    assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
    vault.verify_user(Typed(card.pin))
    proves_possession(vault, credential)


def test_another_card_is_not_shown_the_pin(
    vault: Pkcs11Vault, issued_piv_card: PivReader, piv_batch: Authority, piv_issuer: Authority,
    private_pcscd: PrivatePcscd,
) -> None:  # fmt: skip
    credential = enrolled(vault, issued_piv_card.card)
    vault.lock()
    other = VirtualPivCard.blank(piv_batch)
    other.personalise(piv_issuer)
    issued_piv_card.remove()
    with PivReader(other, private_pcscd, slot=issued_piv_card._slot):
        entry = Typed(other.pin)
        assert reason_of(lambda: vault.verify_user(entry)) is Reason.AUTHENTICATOR_OTHER
        assert (entry.shown, pins_shown(other)) == ([], 0)
    issued_piv_card.insert()
    vault.verify_user(Typed(issued_piv_card.card.pin))
    proves_possession(vault, credential)


def test_swapped_card_does_not_use_the_login_of_the_first(
    vault: Pkcs11Vault, issued_piv_card: PivReader, piv_batch: Authority, piv_issuer: Authority,
    private_pcscd: PrivatePcscd,
) -> None:  # fmt: skip
    credential = enrolled(vault, issued_piv_card.card)
    other = VirtualPivCard.blank(piv_batch)
    other.personalise(piv_issuer)
    issued_piv_card.remove()
    with PivReader(other, private_pcscd, slot=issued_piv_card._slot):
        with pytest.raises(DeviceError):
            vault.sign(credential.id, b"m")
        assert pins_shown(other) == 0


def test_pcscd_that_was_started_again_is_found(
    vault: Pkcs11Vault, issued_piv_card: PivReader, private_pcscd: PrivatePcscd
) -> None:
    card = issued_piv_card.card
    credential = enrolled(vault, card)
    issued_piv_card.remove()
    private_pcscd.restart()
    issued_piv_card.insert()
    assert reason_of(lambda: vault.sign(credential.id, b"m")) in (*AWAY, Reason.PIN_REQUIRED, Reason.DEVICE_FAILED)
    vault.verify_user(Typed(card.pin))
    proves_possession(vault, credential)


def test_another_program_uses_the_card_meanwhile(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    """It signs with the same key, and ours goes on: its login is its own, and the card is ours between two commands."""
    card = issued_piv_card.card
    credential = enrolled(vault, card)
    sign = ["pkcs11-tool", "--module", "opensc-pkcs11.so", "--sign", "--mechanism", "ECDSA", "--id", "01", "--login",
            "--pin", card.pin]  # fmt: skip
    environment = {**os.environ, **issued_piv_card.environment}
    for _ in range(2):
        done = subprocess.run(sign, input=bytes(32), env=environment, timeout=60, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        proves_possession(vault, credential)


def test_another_program_keeps_the_card_to_itself(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    """It may while the vault is locked; then it is named as what is in the way, and nobody asks for a PIN."""
    from smartcard import scard

    card = issued_piv_card.card
    credential = enrolled(vault, card)
    vault.lock()
    _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    protocols = scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
    result, handle, _ = scard.SCardConnect(context, issued_piv_card.reader, scard.SCARD_SHARE_EXCLUSIVE, protocols)
    assert result == scard.SCARD_S_SUCCESS
    entry = Typed(card.pin)
    with pytest.raises(DeviceError) as caught:
        vault.verify_user(entry)
    assert (caught.value.reason, entry.shown) == (Reason.AUTHENTICATOR_NOT_CONNECTED, [])
    assert "scdaemon" in caught.value.fix
    assert issued_piv_card.reader in caught.value.message
    scard.SCardDisconnect(handle, scard.SCARD_LEAVE_CARD)
    scard.SCardReleaseContext(context)
    vault.verify_user(entry)
    proves_possession(vault, credential)


def test_another_program_resets_the_card(vault: Pkcs11Vault, issued_piv_card: PivReader) -> None:
    """The card has forgotten the PIN; it is not shown again behind the user's back."""
    from smartcard import scard

    card = issued_piv_card.card
    credential = enrolled(vault, card)
    tried = pins_shown(card)
    _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    protocols = scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
    result, handle, _ = scard.SCardConnect(context, issued_piv_card.reader, scard.SCARD_SHARE_SHARED, protocols)
    assert result == scard.SCARD_S_SUCCESS
    scard.SCardDisconnect(handle, scard.SCARD_RESET_CARD)
    scard.SCardReleaseContext(context)
    assert reason_of(lambda: vault.sign(credential.id, b"m")) in (*AWAY, Reason.PIN_REQUIRED)
    assert pins_shown(card) == tried
    vault.verify_user(Typed(card.pin))
    proves_possession(vault, credential)
