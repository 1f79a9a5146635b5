"""The bench's SoftHSM2 tokens, with the real module: OpenSC's pkcs11-tool, and python-pkcs11 where it is installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keyvouch.errors import Reason, UnavailableError
from keyvouch_bench import softhsm as bench
from keyvouch_bench.softhsm import SoftHsm, SoftHsmToken

DIGEST = hashlib.sha256(b"what is signed").digest()


def tool(token: SoftHsmToken, *words: str | Path, pin: str | None = None, good: bool = True) -> str:
    login = ["--login", "--pin", pin] if pin is not None else []
    done = subprocess.run(
        ["pkcs11-tool", "--module", token.module, "--token-label", token.label, *login, *map(str, words)],
        env={**os.environ, **token.environment, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) is good, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_token_makes_a_key_and_signs(softhsm: SoftHsmToken, tmp_path: Path):
    pin = softhsm.user_pin
    tool(softhsm, "--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--label", "one", pin=pin)
    given, signature, key = (tmp_path / name for name in ("given", "signature", "key"))
    given.write_bytes(DIGEST)
    form = ("--signature-format", "openssl")
    tool(softhsm, "--sign", "--id", "01", "-m", "ECDSA", "-i", given, "-o", signature, *form, pin=pin)
    tool(softhsm, "--read-object", "--type", "pubkey", "--id", "01", "-o", key)
    public = load_der_public_key(key.read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature.read_bytes(), DIGEST, ec.ECDSA(Prehashed(hashes.SHA256())))


def test_it_knows_its_pins(softhsm: SoftHsmToken):
    assert "CKR_PIN_INCORRECT" in tool(softhsm, "--list-objects", pin="000000", good=False)
    tool(softhsm, "--list-objects", pin=softhsm.user_pin)
    tool(softhsm, "--init-pin", "--login", "--login-type", "so", "--so-pin", softhsm.so_pin, "--new-pin", "135790")
    tool(softhsm, "--list-objects", pin="135790")


def test_it_says_who_it_is(softhsm: SoftHsmToken):
    said = tool(softhsm, "--list-slots")
    assert softhsm.label in said
    assert softhsm.serial in said
    assert Path(softhsm.module).exists()


def test_several_tokens_know_nothing_of_one_another(softhsm: SoftHsmToken):
    other = softhsm.hsm.make_token("another", user_pin="864209")
    assert other.serial != softhsm.serial
    tool(softhsm, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "mine", pin=softhsm.user_pin)
    assert "mine" in tool(softhsm, "--list-objects", pin=softhsm.user_pin)
    assert "mine" not in tool(other, "--list-objects", pin="864209")
    other.remove()
    assert softhsm.hsm.serials().count(other.serial) == 0
    with pytest.raises(UnavailableError) as caught:
        other.remove()
    assert caught.value.reason is Reason.DEVICE_FAILED


def test_folders_know_nothing_of_one_another(softhsm: SoftHsmToken, tmp_path: Path):
    elsewhere = SoftHsm(tmp_path / "elsewhere").make_token(softhsm.label)
    assert softhsm.serial not in elsewhere.hsm.serials()
    assert elsewhere.environment != softhsm.environment


def test_without_softhsm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(bench, "MODULE_NAME", "libnone.so")
    with pytest.raises(UnavailableError, match=r"libnone\.so") as caught:
        SoftHsm(tmp_path)
    assert bench.PACKAGES in str(caught.value)


CLIENT = """
import sys
import pkcs11
from pkcs11 import KeyType, Mechanism
from pkcs11.util.ec import encode_named_curve_parameters

module, serial, pin = sys.argv[1:]
library = pkcs11.lib(module)
token = next(slot.get_token() for slot in library.get_slots(token_present=True)
             if slot.get_token().serial.decode().strip() == serial)
with token.open(rw=True, user_pin=pin) as session:
    domain = session.create_domain_parameters(
        KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True)
    public, private = domain.generate_keypair(store=True, label="one")
    signature = private.sign(bytes(32), mechanism=Mechanism.ECDSA)
    print(len(signature), public.verify(bytes(32), signature, mechanism=Mechanism.ECDSA))
"""


def test_python_finds_it_by_its_serial_number(softhsm: SoftHsmToken):
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, softhsm.module, softhsm.serial, softhsm.user_pin],
        env={**os.environ, **softhsm.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["64", "True"], done.stderr
