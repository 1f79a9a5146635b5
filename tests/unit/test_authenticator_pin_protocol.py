"""PIN/UV auth protocols against the vectors of the specification, and against python-fido2's side."""

from __future__ import annotations

import pytest
from fido2.ctap2.pin import PinProtocolV1, PinProtocolV2

from keyvouch_agent.authenticator.pin_protocol import PinProtocolOne, PinProtocolTwo
from keyvouch_agent.authenticator.status import CommandError, Status
from keyvouch_agent.system import SystemEntropy
from support.authenticators import padded, pin_hash
from support.vectors import load

VECTOR = load("python-fido2/ctap2_pin_protocol_v1.json")


def value(name: str) -> bytes:
    return bytes.fromhex(VECTOR[name])


class FixedScalar:
    """Entropy that makes the protocol choose one private key."""

    def __init__(self, scalar: bytes) -> None:
        self._wanted = int.from_bytes(scalar, "big") - 1

    def token(self, length: int) -> bytes:
        return self._wanted.to_bytes(length, "big")


@pytest.fixture
def protocol() -> PinProtocolOne:
    return PinProtocolOne(FixedScalar(value("platform_private_scalar")))


def peer() -> dict[object, object]:
    x, y = value("authenticator_public_x"), value("authenticator_public_y")
    return {1: 2, 3: -25, -1: 1, -2: x, -3: y}


def test_vector_key_agreement(protocol: PinProtocolOne) -> None:
    public = protocol.public_key()
    assert (public[-2], public[-3]) == (value("platform_public_x"), value("platform_public_y"))
    assert protocol.decapsulate(peer()) == value("shared_secret")


def test_vector_token_and_pin_hash_in_both_directions(protocol: PinProtocolOne) -> None:
    secret = value("shared_secret")
    assert protocol.decrypt(secret, value("pin_hash_enc")) == pin_hash(VECTOR["pin"])
    assert protocol.encrypt(secret, pin_hash(VECTOR["pin"])) == value("pin_hash_enc")
    assert protocol.encrypt(secret, value("pin_token")) == value("pin_token_enc")
    assert protocol.decrypt(secret, value("pin_token_enc")) == value("pin_token")


@pytest.mark.parametrize(
    ("case", "new_pin", "with_hash"), [("set_pin_1234", "1234", False), ("change_pin_1234_to_4321", "4321", True)]
)
def test_vector_new_pin_and_its_param(protocol: PinProtocolOne, case: str, new_pin: str, with_hash: bool) -> None:
    secret = value("shared_secret")
    new_pin_enc = bytes.fromhex(VECTOR[case]["new_pin_enc"])
    param = bytes.fromhex(VECTOR[case]["pin_uv_auth_param"])
    message = new_pin_enc + (value("pin_hash_enc") if with_hash else b"")
    assert protocol.decrypt(secret, new_pin_enc) == padded(new_pin)
    assert protocol.encrypt(secret, padded(new_pin)) == new_pin_enc
    protocol.verify(secret, message, param)
    for wrong in (param[:-1], param + b"\0", bytes([param[0] ^ 1]) + param[1:], b""):
        with pytest.raises(CommandError) as caught:
            protocol.verify(secret, message, wrong)
        assert caught.value.status is Status.PIN_AUTH_INVALID


@pytest.mark.parametrize(("ours", "theirs"), [(PinProtocolOne, PinProtocolV1), (PinProtocolTwo, PinProtocolV2)])
def test_agrees_with_python_fido2(ours: type[PinProtocolOne], theirs: type[PinProtocolV1]) -> None:
    authenticator, platform = ours(SystemEntropy()), theirs()
    key, secret = platform.encapsulate(authenticator.public_key())
    assert authenticator.decapsulate(key) == secret
    assert authenticator.decrypt(secret, platform.encrypt(secret, b"x" * 64)) == b"x" * 64
    assert platform.decrypt(secret, authenticator.encrypt(secret, b"y" * 32)) == b"y" * 32
    authenticator.verify(secret, b"message", platform.authenticate(secret, b"message"))
    authenticator.verify(b"t" * 32, b"message", platform.authenticate(b"t" * 32, b"message"))


@pytest.mark.parametrize(
    "change",
    [
        {1: 1},
        {3: -7},
        {-1: 2},
        {-2: b"\1" * 32},
        {-2: b"\1" * 31},
        {-3: "text"},
        {-2: b"\0" * 32, -3: b"\0" * 32},
        {-2: None},
    ],
)
def test_peer_key_that_is_no_p256_point_is_refused(protocol: PinProtocolOne, change: dict[object, object]) -> None:
    with pytest.raises(CommandError) as caught:
        protocol.decapsulate(peer() | change)
    assert caught.value.status is Status.INVALID_PARAMETER
    assert protocol.decapsulate(peer())  # control


@pytest.mark.parametrize("protocol_class", [PinProtocolOne, PinProtocolTwo])
@pytest.mark.parametrize("length", [0, 1, 15, 17, 33])
def test_ciphertext_of_no_whole_blocks_is_refused(protocol_class: type[PinProtocolOne], length: int) -> None:
    secret = bytes(64 if protocol_class is PinProtocolTwo else 32)
    with pytest.raises(CommandError) as caught:
        protocol_class(SystemEntropy()).decrypt(secret, bytes(length))
    assert caught.value.status is Status.PIN_AUTH_INVALID


def test_regenerate_changes_the_key() -> None:
    protocol = PinProtocolTwo(SystemEntropy())
    before = protocol.public_key()
    protocol.regenerate()
    assert protocol.public_key() != before
