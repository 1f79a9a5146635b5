"""A PKCS#11 module that does not start, does not return or is pulled from under us; threads, and many uses of it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.pkcs11 import library as library_module
from keyvouch_agent.vaults.pkcs11.library import TokenLibrary
from keyvouch_agent.vaults.pkcs11.uri import TokenUri
from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault
from keyvouch_bench.piv_card.reader import PivReader
from keyvouch_bench.softhsm import SoftHsmToken
from support.pkcs11_tokens import Typed, card_library, card_vault, kept, key_for, proves_possession, reason_of


@pytest.fixture
def vault(softhsm: SoftHsmToken, tmp_path: Path) -> Iterator[Pkcs11Vault]:
    wanted = TokenUri(serial=softhsm.serial)
    with card_library("softhsm2") as library, card_vault(library, tmp_path / "account", wanted) as opened:
        yield opened


@pytest.fixture
def opensc() -> Iterator[TokenLibrary]:
    with card_library("opensc") as opened:
        yield opened


def test_module_that_did_not_start_is_started_later(
    vault: Pkcs11Vault, softhsm: SoftHsmToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", "/nonexistent/softhsm2.conf")
    vault._account.library.renew()
    assert reason_of(vault.uv_state) is Reason.MODULE_UNAVAILABLE
    monkeypatch.undo()
    assert vault.uv_state().is_configured
    vault.verify_user(Typed(softhsm.user_pin))
    proves_possession(vault, kept(vault))


def test_module_that_never_returns_is_told(
    vault: Pkcs11Vault, softhsm: SoftHsmToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing ends a call into it. So others do not wait for ever, and locking does not fail."""
    library = vault._account.library
    vault.verify_user(Typed(softhsm.user_pin))
    credential = kept(vault)
    monkeypatch.setattr(library_module, "PATIENCE", 0.05)
    inside, over = threading.Event(), threading.Event()

    def hang() -> None:
        with library.exclusively():
            inside.set()
            over.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        assert inside.wait(60)
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.MODULE_UNAVAILABLE
        vault.lock()
        assert reason_of(vault.uv_state) is Reason.MODULE_UNAVAILABLE
        assert reason_of(lambda: vault.verify_user(Typed(softhsm.user_pin))) is Reason.MODULE_UNAVAILABLE
        library.release()
        library.close()
    finally:
        over.set()
        thread.join(60)
    vault.verify_user(Typed(softhsm.user_pin))
    proves_possession(vault, credential)


def test_failure_after_the_login_leaves_it_locked(
    vault: Pkcs11Vault, softhsm: SoftHsmToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong then, Ctrl-C too."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vault, "_on_unlocked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vault.verify_user(Typed(softhsm.user_pin))
    assert reason_of(lambda: vault.create_key(key_for())) is Reason.PIN_REQUIRED
    monkeypatch.undo()
    vault.verify_user(Typed(softhsm.user_pin))
    proves_possession(vault, kept(vault))


def test_state_is_asked_for_by_other_threads_meanwhile(vault: Pkcs11Vault, softhsm: SoftHsmToken) -> None:
    """Neither module nor python-pkcs11 is for two threads at once."""
    ended, failures = threading.Event(), list[BaseException]()

    def ask() -> None:
        while not ended.is_set():
            try:
                vault.uv_state()
            except BaseException as error:  # noqa: BLE001 - whatever it is
                failures.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            vault.verify_user(Typed(softhsm.user_pin))
            proves_possession(vault, kept(vault, key_for(user=bytes((number,)))))
            vault.lock()
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
    assert failures == []


def test_many_logins_and_signatures_leave_nothing_open(vault: Pkcs11Vault, softhsm: SoftHsmToken) -> None:
    def descriptors() -> int:
        gc.collect()  # what earlier tests have let go of is no leak of this one, and closes when it likes
        return len(list(Path("/proc/self/fd").iterdir()))

    vault.verify_user(Typed(softhsm.user_pin))
    credential = kept(vault)
    before = descriptors()
    for _ in range(1000):
        vault.sign(credential.id, b"m")
    for _ in range(200):
        vault.verify_user(Typed(softhsm.user_pin))
        vault.lock()
    library = vault._account.library
    left_open = max(0, descriptors() - before)  # fewer, where something of an earlier test has closed meanwhile
    assert (left_open, library._leaked, library._in_use) == (0, 0, 0)


def test_broken_off_look_at_a_new_card_has_a_name(
    issued_piv_card: PivReader, opensc: TokenLibrary, tmp_path: Path
) -> None:
    """Pulled at any APDU while a new account is opened: told as such, or opened."""
    card = issued_piv_card.card
    start = len(card.journal)
    with card_vault(opensc, tmp_path / "control"):
        steps = len(card.journal) - start
    reasons = set[Reason]()
    for step in range(1, steps, 5):
        card.faults.remove_at(step)
        try:
            card_vault(opensc, tmp_path / "account").__enter__().close()
        except DeviceError as error:
            reasons.add(error.reason)
        card.faults.clear()
        issued_piv_card.remove()
        issued_piv_card.insert()
    assert reasons == {Reason.AUTHENTICATOR_NOT_CONNECTED}
