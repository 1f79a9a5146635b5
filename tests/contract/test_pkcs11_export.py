"""Every way to get a key out of a token (threat A5): each is refused, and the same key signs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.exceptions import PKCS11Error

from keyvouch.errors import DeviceError
from keyvouch_agent.vaults.pkcs11.library import TokenLibrary
from keyvouch_agent.vaults.pkcs11.uri import TokenUri
from keyvouch_agent.vaults.pkcs11.vault import Pkcs11Vault
from keyvouch_bench.softhsm import SoftHsmToken
from support.pkcs11_tokens import (
    ORDER,
    Typed,
    card_library,
    card_vault,
    kept,
    key_for,
    objects,
    proves_possession,
)


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


# Ways to get a key out (each is refused; the control is that the same key signs)


def test_private_values_are_not_read(vault: Pkcs11Vault) -> None:
    for algorithm, secrets in ((-7, ["VALUE"]), (-257, ["PRIVATE_EXPONENT", "PRIME_1", "PRIME_2", "COEFFICIENT"])):
        credential = kept(vault, key_for(user=str(algorithm).encode(), algorithm=algorithm))
        private = next(key for key in objects(vault) if key[Attribute.ID] == vault._find(credential.id).key_id)
        for name in secrets:
            with pytest.raises(PKCS11Error):
                private[Attribute[name]]
        proves_possession(vault, credential)


@pytest.mark.parametrize("mechanism", [Mechanism.AES_KEY_WRAP, Mechanism.AES_KEY_WRAP_PAD])
def test_key_is_not_wrapped(vault: Pkcs11Vault, mechanism: Mechanism) -> None:
    credential = kept(vault)
    (private,) = objects(vault)

    def wrap(session: pkcs11.Session, wrapped: Any) -> bytes:
        wrapping = session.generate_key(KeyType.AES, 256, capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP)
        return bytes(wrapping.wrap_key(wrapped, mechanism=mechanism))

    def extractable(session: pkcs11.Session) -> Any:
        return session.generate_key(KeyType.AES, 256, template={Attribute.EXTRACTABLE: True})

    assert vault._unlocked is not None
    session = vault._unlocked.session
    assert session.do(lambda opened: wrap(opened, extractable(opened)))  # the control
    with pytest.raises(DeviceError):
        session.do(lambda opened: wrap(opened, private))
    proves_possession(vault, credential)


@pytest.mark.parametrize("change", [{Attribute.EXTRACTABLE: True}, {Attribute.SENSITIVE: False},
                                    {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}])  # fmt: skip
def test_key_is_not_loosened(vault: Pkcs11Vault, change: dict[Attribute, bool]) -> None:
    credential = kept(vault)
    (private,) = objects(vault)
    for attribute, value in change.items():
        with pytest.raises(PKCS11Error):
            private[attribute] = value
    with pytest.raises(PKCS11Error):
        private.copy(change)
    assert [(key[Attribute.SENSITIVE], key[Attribute.EXTRACTABLE]) for key in objects(vault)] == [(True, False)]
    proves_possession(vault, credential)


def test_key_is_not_in_the_token_s_files(vault: Pkcs11Vault, softhsm: SoftHsmToken) -> None:
    """No 32 bytes in them are the private key. The control: a key that is stored as data is found so."""
    kept(vault)
    point = bytes(objects(vault, ObjectClass.PUBLIC_KEY)[0][Attribute.EC_POINT])[-65:]
    files = token_files(softhsm)
    assert any(point in file for file in files)  # they are the right ones
    assert not any(holds_key_of(file, point) for file in files)
    plain = ec.generate_private_key(ec.SECP256R1())
    scalar = plain.private_numbers().private_value.to_bytes(32, "big")
    data = {Attribute.CLASS: ObjectClass.DATA, Attribute.TOKEN: True, Attribute.PRIVATE: False, Attribute.VALUE: scalar}
    vault._on_token(lambda session: session.create_object(data))
    assert any(holds_key_of(file, point_of(plain)) for file in token_files(softhsm))


def token_files(softhsm: SoftHsmToken) -> list[bytes]:
    return [path.read_bytes() for path in (softhsm.hsm.folder / "tokens").rglob("*.object")]


def holds_key_of(file: bytes, point: bytes) -> bool:
    for start in range(len(file) - 31):
        scalar = int.from_bytes(file[start : start + 32], "big")
        if 0 < scalar < ORDER and point_of(ec.derive_private_key(scalar, ec.SECP256R1())) == point:
            return True
    return False


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
