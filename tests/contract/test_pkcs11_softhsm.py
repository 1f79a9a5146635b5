"""Keys that a token makes, and what else is on it: other keys, other programs, and what a crash leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pkcs11 import Attribute, CertificateType, Mechanism, ObjectClass
from pkcs11.util.ec import decode_ec_private_key

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.pkcs11 import keys, signing
from keyvouch_agent.vaults.pkcs11.account import CardAccount
from keyvouch_agent.vaults.pkcs11.keys import LABEL_PREFIX
from keyvouch_agent.vaults.pkcs11.library import TokenLibrary
from keyvouch_agent.vaults.pkcs11.recorded import MAX_KEYS
from keyvouch_agent.vaults.pkcs11.uri import TokenUri
from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault
from keyvouch_bench.piv_card import Authority
from keyvouch_bench.piv_card.authorities import common_name
from keyvouch_bench.softhsm import SoftHsmToken
from support.pkcs11_tokens import (
    Typed,
    card_library,
    card_vault,
    kept,
    key_for,
    module_of,
    objects,
    proves_possession,
    reason_of,
)
from support.software_vaults import InterruptedSteps, Killed


@pytest.fixture
def library(softhsm: SoftHsmToken) -> Iterator[TokenLibrary]:
    with card_library("softhsm2") as opened:
        yield opened


@pytest.fixture
def wanted(softhsm: SoftHsmToken) -> TokenUri:
    return TokenUri(serial=softhsm.serial)


@pytest.fixture
def vault(library: TokenLibrary, wanted: TokenUri, softhsm: SoftHsmToken, tmp_path: Path) -> Iterator[Pkcs11Vault]:
    with card_vault(library, tmp_path / "account", wanted) as opened:
        opened.verify_user(Typed(softhsm.user_pin))
        yield opened


@pytest.mark.parametrize("algorithm", [-7, -35, -257])
@pytest.mark.parametrize("pin_always", [False, True])
def test_each_algorithm(
    library: TokenLibrary, wanted: TokenUri, softhsm: SoftHsmToken, tmp_path: Path, algorithm: int, pin_always: bool
) -> None:
    with card_vault(library, tmp_path / "account", wanted, pin_always=pin_always) as vault:
        assert vault.properties.algorithms == (-7, -35, -257)
        vault.verify_user(Typed(softhsm.user_pin))
        credential = kept(vault, key_for(algorithm=algorithm))
        assert CoseKey(credential.public_key).algorithm == algorithm
        for _ in range(2):
            proves_possession(vault, credential)


def test_token_that_does_not_hash_is_given_the_digest(vault: Pkcs11Vault) -> None:
    credential = kept(vault, key_for(algorithm=Algorithm.RS256))
    (private,) = objects(vault)
    signature = vault._on_token(
        lambda _session: signing.sign(private, Algorithm.RS256, b"message", {Mechanism.RSA_PKCS}, None)
    )
    assert signature == vault.sign(credential.id, b"message")  # PKCS#1 v1.5 signatures have nothing random
    CoseKey(credential.public_key).verify_signature(signature=signature, message=b"message")


def test_token_says_of_the_key_what_we_say(vault: Pkcs11Vault) -> None:
    kept(vault)
    (private,) = objects(vault)
    told = {
        name: private[Attribute[name]]
        for name in ("SENSITIVE", "ALWAYS_SENSITIVE", "EXTRACTABLE", "NEVER_EXTRACTABLE", "LOCAL", "PRIVATE", "TOKEN",
                     "SIGN", "DECRYPT", "UNWRAP", "DERIVE")
    }  # fmt: skip
    never = ("EXTRACTABLE", "DECRYPT", "UNWRAP", "DERIVE")
    assert told == {name: name not in never for name in told}
    assert private[Attribute.LABEL] == "keyvouch:login.example.org:alice"


def test_account_that_is_full(vault: Pkcs11Vault) -> None:
    made = [kept(vault, key_for(user=str(number).encode())) for number in range(MAX_KEYS)]
    assert vault.room() == 0
    assert reason_of(lambda: vault.create_key(key_for(user=b"one more"))) is Reason.KEY_STORE_FULL
    assert len(objects(vault)) == MAX_KEYS
    proves_possession(vault, kept(vault, key_for(user=b"0")))  # in the place of one
    vault.delete(made[1].id)
    proves_possession(vault, kept(vault, key_for(user=b"one more")))


# What is not ours


def foreign_key(vault: Pkcs11Vault, key_id: bytes, label: str) -> None:
    """A key that somebody imported, and so has a copy of."""
    key = ec.generate_private_key(ec.SECP256R1())
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    template = {
        **decode_ec_private_key(der),
        Attribute.TOKEN: True, Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False,
        Attribute.SIGN: True, Attribute.ID: key_id, Attribute.LABEL: label,
    }  # fmt: skip
    vault._on_token(lambda session: session.create_object(template))


def test_reset_and_delete_leave_what_is_not_ours(vault: Pkcs11Vault, softhsm: SoftHsmToken) -> None:
    credential = kept(vault)
    foreign_key(vault, vault._find(credential.id).key_id, "payroll")
    foreign_key(vault, b"other", LABEL_PREFIX + "of another account")
    assert len(objects(vault)) == 3
    assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.DEVICE_KEY_LOST  # which one is meant?
    vault.reset()
    vault.verify_user(Typed(softhsm.user_pin))
    assert {key[Attribute.LABEL] for key in objects(vault)} == {"payroll", LABEL_PREFIX + "of another account"}


def test_key_deleted_by_another_program_is_lost(vault: Pkcs11Vault) -> None:
    credential = kept(vault)
    for key in objects(vault):
        key.destroy()
    assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.DEVICE_KEY_LOST


def test_key_in_the_place_of_ours_is_told(vault: Pkcs11Vault) -> None:
    credential = kept(vault)
    key_id = vault._find(credential.id).key_id
    for key in objects(vault):
        key.destroy()
    foreign_key(vault, key_id, "keyvouch:login.example.org:alice")
    assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.DEVICE_KEY_LOST


# Keys that were there before


def stored(softhsm: SoftHsmToken, *, extractable: bool = False) -> None:
    """A key and a certificate for it that somebody's own tool stored."""
    authority = Authority.root("Organisation")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority.issue(common_name("Ada"), key.public_key(), [])
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    own = {Attribute.TOKEN: True, Attribute.ID: b"\x07", Attribute.LABEL: "badge"}
    private = {
        **decode_ec_private_key(der), **own, Attribute.PRIVATE: True, Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: extractable, Attribute.SIGN: True,
    }  # fmt: skip
    public = {
        **own, Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
        Attribute.VALUE: certificate.public_bytes(Encoding.DER), Attribute.PRIVATE: False,
        Attribute.SUBJECT: certificate.subject.public_bytes(),
    }  # fmt: skip
    token = pkcs11.lib(str(module_of("softhsm2"))).get_token(token_serial=softhsm.serial.encode())
    with token.open(rw=True, user_pin=softhsm.user_pin) as session:
        session.create_object(private)
        session.create_object(public)


@pytest.mark.parametrize("uri", ["id=%07", "object=badge"])
def test_existing_key_is_used_and_stays(library: TokenLibrary, softhsm: SoftHsmToken, tmp_path: Path, uri: str) -> None:
    stored(softhsm)
    wanted = TokenUri.parse(f"pkcs11:serial={softhsm.serial};{uri}")
    with card_vault(library, tmp_path / "account", wanted) as vault:
        assert vault.properties.algorithms == (-7,)
        vault.verify_user(Typed(softhsm.user_pin))
        credential = kept(vault)
        proves_possession(vault, credential)
        signature = vault.attest(credential.id, b"data", b"hash").statement["sig"]
        assert isinstance(signature, bytes)
        CoseKey(credential.public_key).verify_signature(signature=signature, message=b"datahash")
        vault.delete(credential.id)
        kept(vault)
        vault.reset()
        vault.verify_user(Typed(softhsm.user_pin))
        assert [key[Attribute.LABEL] for key in objects(vault)] == ["badge"]


def test_existing_key_that_may_come_out_is_refused(
    library: TokenLibrary, softhsm: SoftHsmToken, tmp_path: Path
) -> None:
    stored(softhsm, extractable=True)
    with card_vault(library, tmp_path / "account", TokenUri(serial=softhsm.serial, id=b"\x07")) as vault:
        vault.verify_user(Typed(softhsm.user_pin))
        with pytest.raises(DeviceError) as caught:
            vault.create_key(key_for())
        assert (caught.value.reason, "EXTRACTABLE" in caught.value.message) == (Reason.UNSUPPORTED, True)
        assert len(objects(vault)) == 1


def test_key_that_is_not_as_it_must_be_is_destroyed(vault: Pkcs11Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """SoftHSM2 makes keys as it is asked to. So more is asked of them here than any key has."""
    monkeypatch.setitem(keys._MUST, Attribute.SIGN, False)
    assert reason_of(lambda: vault.create_key(key_for())) is Reason.UNSUPPORTED
    assert objects(vault) == []
    assert objects(vault, ObjectClass.PUBLIC_KEY) == []
    monkeypatch.undo()
    kept(vault)


def test_pkcs11_tool_says_the_same(vault: Pkcs11Vault, softhsm: SoftHsmToken) -> None:
    kept(vault)
    command = ["pkcs11-tool", "--module", softhsm.module, "--token-label", softhsm.label, "--login", "--pin",
               softhsm.user_pin, "--list-objects", "--type", "privkey"]  # fmt: skip
    environment = {**os.environ, **softhsm.environment}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "keyvouch:login.example.org:alice" in told
    assert "sensitive, always sensitive, never extractable, local" in told
    assert [line.split() for line in told.splitlines() if "Usage" in line] == [["Usage:", "sign"]]


# Which token


def test_token_is_chosen_by_label_or_serial(library: TokenLibrary, softhsm: SoftHsmToken, tmp_path: Path) -> None:
    other = softhsm.hsm.make_token(softhsm.label + "-other")
    library.close()  # as another process would: SoftHSM2 looks for tokens when it is initialised
    try:
        for number, uri in enumerate([TokenUri(token=other.label), TokenUri(serial=other.serial)]):
            with card_vault(library, tmp_path / str(number), uri) as vault:
                assert vault._account.profile.name.serial == other.serial
        with pytest.raises(DeviceError) as caught, card_vault(library, tmp_path / "any"):
            pass
        assert caught.value.reason is Reason.AUTHENTICATOR_NOT_CONNECTED
        assert other.label in str(caught.value)
        absent = TokenUri(token="nobody's")
        assert reason_of(lambda: card_vault(library, tmp_path / "no", absent).__enter__()) is (
            Reason.AUTHENTICATOR_NOT_CONNECTED
        )
    finally:
        other.remove()


def test_account_stays_on_its_token(library: TokenLibrary, softhsm: SoftHsmToken, tmp_path: Path) -> None:
    other = softhsm.hsm.make_token(softhsm.label + "-lost")
    library.close()
    with card_vault(library, tmp_path / "account", TokenUri(serial=other.serial)) as vault:
        vault.verify_user(Typed(other.user_pin))
        credential = kept(vault)
    library.close()
    other.remove()
    with card_vault(library, tmp_path / "account", TokenUri(serial=softhsm.serial)) as vault:
        entry = Typed(softhsm.user_pin)
        assert reason_of(lambda: vault.verify_user(entry)) is Reason.AUTHENTICATOR_NOT_CONNECTED
        assert entry.shown == []
        assert vault.discoverable() == [credential]


def test_existing_key_without_certificate_is_not_taken(
    library: TokenLibrary, softhsm: SoftHsmToken, tmp_path: Path
) -> None:
    uri = TokenUri(serial=softhsm.serial, id=b"\x07")
    assert reason_of(lambda: card_vault(library, tmp_path / "account", uri).__enter__()) is Reason.UNSUPPORTED


# Others use it too


def test_second_account_of_this_process_shows_its_pin_to_the_token(
    vault: Pkcs11Vault, library: TokenLibrary, wanted: TokenUri, softhsm: SoftHsmToken, tmp_path: Path
) -> None:
    credential = kept(vault)
    with card_vault(library, tmp_path / "second", wanted) as second:
        assert reason_of(lambda: second.verify_user(Typed("000000"))) is Reason.PIN_WRONG
        second.verify_user(Typed(softhsm.user_pin))
        proves_possession(second, kept(second))
        assert reason_of(lambda: vault.sign(credential.id, b"m")) is Reason.PIN_REQUIRED
        vault.verify_user(Typed(softhsm.user_pin))
        proves_possession(vault, credential)


_OTHER_PROCESS = """
import sys
import pkcs11
from pkcs11 import Attribute, CertificateType, KeyType, Mechanism, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters
module, serial, pin = sys.argv[1:]
token = pkcs11.lib(module).get_token(token_serial=serial.encode())
curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
with token.open(rw=True, user_pin=pin) as session:
    for number in range(20):
        pair = session.create_domain_parameters(KeyType.EC, curve, local=True)
        public, private = pair.generate_keypair(label="theirs", store=True)
        assert len(private.sign(bytes(32), mechanism=Mechanism.ECDSA)) == 64
        public.destroy(), private.destroy()
        print(number, flush=True)
"""


def test_another_process_uses_the_token_at_the_same_time(vault: Pkcs11Vault, softhsm: SoftHsmToken) -> None:
    arguments = [softhsm.module, softhsm.serial, softhsm.user_pin]
    with subprocess.Popen([sys.executable, "-c", _OTHER_PROCESS, *arguments], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for number in range(5):
            proves_possession(vault, kept(vault, key_for(user=str(number).encode())))
        other.stdout.read()
        assert other.wait(60) == 0
    assert len(objects(vault)) == 5


def test_login_that_failed_leaves_no_session_behind(vault: Pkcs11Vault, softhsm: SoftHsmToken) -> None:
    """SoftHSM2 never blocks. Each wrong PIN would leave a session open, and tokens have room for few."""
    for _ in range(30):
        assert reason_of(lambda: vault.verify_user(Typed("000000"))) is Reason.PIN_WRONG
        assert vault._account.library._leaked < 10
    vault.verify_user(Typed(softhsm.user_pin))
    proves_possession(vault, kept(vault))


def test_two_accounts_in_two_threads(library: TokenLibrary, softhsm: SoftHsmToken, tmp_path: Path) -> None:
    other = softhsm.hsm.make_token(softhsm.label + "-thread")
    library.close()

    def use(token: SoftHsmToken) -> None:
        with card_vault(library, tmp_path / token.label, TokenUri(serial=token.serial)) as vault:
            vault.verify_user(Typed(token.user_pin))
            credential = kept(vault)
            for _ in range(10):
                proves_possession(vault, credential)

    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(use, [softhsm, other]))
    finally:
        library.close()
        other.remove()


def test_pin_is_nowhere(vault: Pkcs11Vault, softhsm: SoftHsmToken, tmp_path: Path) -> None:
    kept(vault)
    assert softhsm.user_pin not in repr(vault._unlocked)
    assert vault._unlocked is not None
    assert vault._unlocked.pin is None  # no key of this account wants it again
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or softhsm.user_pin.encode() not in path.read_bytes()
    with pytest.raises(DeviceError) as caught:
        vault.verify_user(Typed("0031415"))
    assert "0031415" not in repr(caught.value) + str(caught.value.__cause__)


# Crashes: whatever step of a ceremony is the last one, the token is clean after the next one


def _ceremony(vault: Pkcs11Vault, pin: str) -> None:
    vault.verify_user(Typed(pin))
    kept(vault)
    vault.advance_sign_count(vault.discoverable()[0].id)
    kept(vault)
    vault.delete(vault.discoverable()[0].id)


def _killed_at(step: int, library: TokenLibrary, wanted: TokenUri, path: Path, pin: str) -> bool:
    """Go through a ceremony in a process that ends at that step; whether it came to that. Nothing is tidied up."""
    steps = InterruptedSteps(step, Killed())
    vault = Pkcs11Vault(CardAccount.open(path, library, wanted, steps=steps), SystemEntropy())
    try:
        _ceremony(vault, pin)
        return False
    except Killed:
        return True
    finally:
        vault._account.close()  # the lock on the folder goes with a process
        library.close()


def test_crash_at_any_step_leaves_nothing_behind(
    library: TokenLibrary, wanted: TokenUri, softhsm: SoftHsmToken, tmp_path: Path
) -> None:
    step = 1
    while _killed_at(step, library, wanted, tmp_path / str(step), softhsm.user_pin):
        with card_vault(library, tmp_path / str(step), wanted) as vault:
            vault.verify_user(Typed(softhsm.user_pin))
            known = {vault._find(credential.id).key_id for credential in vault.discoverable()}
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
                assert {key[Attribute.ID] for key in objects(vault, kind)} == known
            assert vault._state.strays == ()
            for credential in vault.discoverable():
                proves_possession(vault, credential)
                vault.delete(credential.id)
            assert objects(vault) == []
        step += 1
    assert step > 30
