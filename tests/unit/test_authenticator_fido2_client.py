"""The engine driven by python-fido2, unmodified: its client, its PIN code, and its server as the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fido2.client import ClientError, DefaultClientDataCollector, Fido2Client, UserInteraction
from fido2.ctap import STATUS, CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin, PinProtocolV1, PinProtocolV2
from fido2.hid import CTAPHID
from fido2.server import Fido2Server
from fido2.webauthn import AttestedCredentialData, PublicKeyCredentialRpEntity, PublicKeyCredentialUserEntity

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.device import AuthenticatorDevice
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.authenticator.vault import KeyVault
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import SoftwareVault
from support.authenticators import FAST_KDF, BenchClock, ScriptedUser
from support.memory_vault import MemoryVault

ORIGIN, RP_ID, PIN = "https://login.example.org", "login.example.org", "123456"


class Typist(UserInteraction):
    """Types a PIN, and notes when she is needed."""

    def __init__(self, pin: str = PIN) -> None:
        self.pin, self.needed = pin, 0

    def prompt_up(self) -> None:
        self.needed += 1

    def request_pin(self, permissions: ClientPin.PERMISSION, rp_id: str | None) -> str:
        return self.pin


@pytest.fixture(params=["memory", "software"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyVault]:
    if request.param == "memory":
        yield MemoryVault()
        return
    with SoftwareVault.open(tmp_path / "vault", SystemEntropy(), kdf=FAST_KDF) as opened:
        yield opened


@pytest.fixture
def user() -> ScriptedUser:
    return ScriptedUser()


@pytest.fixture
def device(vault: KeyVault, user: ScriptedUser) -> AuthenticatorDevice:
    return AuthenticatorDevice(Authenticator(vault, BenchClock(), SystemEntropy()), user)


@pytest.fixture
def server() -> Fido2Server:
    return Fido2Server(PublicKeyCredentialRpEntity(name="Example", id=RP_ID), attestation="direct")


def client_of(device: AuthenticatorDevice, typist: Typist | None = None) -> Fido2Client:
    return Fido2Client(device, DefaultClientDataCollector(ORIGIN), typist or Typist())


def register(
    client: Fido2Client, server: Fido2Server, known: list[AttestedCredentialData] | None = None, **options: Any
) -> AttestedCredentialData:
    alice = PublicKeyCredentialUserEntity(name="alice", id=b"alice", display_name="Alice")
    options = {"user_verification": "required", **options}
    creation, state = server.register_begin(alice, known or (), **options)
    data = server.register_complete(state, client.make_credential(creation.public_key))
    assert data.credential_data is not None
    return data.credential_data


def authenticate(
    client: Fido2Client, server: Fido2Server, known: list[AttestedCredentialData], allow: bool = True
) -> None:
    request, state = server.authenticate_begin(known if allow else None, user_verification="required")
    selection = client.get_assertion(request.public_key)
    for index in range(len(selection.get_assertions())):
        server.authenticate_complete(state, known, selection.get_response(index))


def test_register_and_authenticate(device: AuthenticatorDevice, server: Fido2Server) -> None:
    ClientPin(Ctap2(device)).set_pin(PIN)
    typist = Typist()
    client = client_of(device, typist)
    credential = register(client, server)
    authenticate(client, server, [credential])
    assert typist.needed == 2
    assert client.info.aaguid == credential.aaguid


def test_discoverable_accounts(device: AuthenticatorDevice, server: Fido2Server) -> None:
    ClientPin(Ctap2(device)).set_pin(PIN)
    client = client_of(device)
    credential = register(client, server, resident_key_requirement="required")
    authenticate(client, server, [credential], allow=False)


def test_exclude_list_and_unknown_credential(device: AuthenticatorDevice, server: Fido2Server) -> None:
    ClientPin(Ctap2(device)).set_pin(PIN)
    client = client_of(device)
    credential = register(client, server)
    with pytest.raises(ClientError) as caught:
        register(client, server, [credential])
    assert caught.value.cause.code is CtapError.ERR.CREDENTIAL_EXCLUDED
    device._authenticator.power_cycle()
    Ctap2(device).reset()
    ClientPin(Ctap2(device)).set_pin(PIN)
    with pytest.raises(ClientError) as caught:
        authenticate(client, server, [credential])
    assert caught.value.cause.code is CtapError.ERR.NO_CREDENTIALS


@pytest.mark.parametrize("protocol", [PinProtocolV1, PinProtocolV2])
def test_pin_commands_with_both_protocols(device: AuthenticatorDevice, protocol: Callable[[], PinProtocolV1]) -> None:
    ctap = Ctap2(device)
    pin = ClientPin(ctap, protocol())
    assert pin.get_pin_retries() == (8, False)
    pin.set_pin(PIN)
    assert len(pin.get_pin_token(PIN)) == 32
    assert len(pin.get_pin_token(PIN, ClientPin.PERMISSION.GET_ASSERTION, RP_ID)) == 32
    pin.change_pin(PIN, "654321")
    with pytest.raises(CtapError) as caught:
        pin.get_pin_token(PIN)
    assert caught.value.code is CtapError.ERR.PIN_INVALID
    assert pin.get_pin_retries() == (7, False)
    with pytest.raises(CtapError) as caught:
        pin.get_pin_token("654321", ClientPin.PERMISSION.CREDENTIAL_MGMT)
    assert caught.value.code is CtapError.ERR.UNAUTHORIZED_PERMISSION


def test_wrong_pin_blocks_until_the_power_cycle(device: AuthenticatorDevice, server: Fido2Server) -> None:
    ClientPin(Ctap2(device)).set_pin(PIN)
    client = client_of(device, Typist("000000"))
    codes = []
    for _ in range(4):
        with pytest.raises(ClientError) as caught:
            register(client, server)
        codes.append(caught.value.cause.code)
    invalid, blocked = CtapError.ERR.PIN_INVALID, CtapError.ERR.PIN_AUTH_BLOCKED
    assert codes == [invalid, invalid, blocked, blocked]


def test_without_pin_no_key_PS8(device: AuthenticatorDevice, server: Fido2Server) -> None:
    for wanted in ("required", "preferred", "discouraged"):
        with pytest.raises(ClientError) as caught:
            register(client_of(device), server, user_verification=wanted)
        assert caught.value.code is ClientError.ERR.CONFIGURATION_UNSUPPORTED


def test_selection(device: AuthenticatorDevice, user: ScriptedUser) -> None:
    client = client_of(device)
    client.selection()
    user.answer = Presence.DENIED
    with pytest.raises(ClientError):
        client.selection()


def test_keepalive_and_cancel(device: AuthenticatorDevice, user: ScriptedUser) -> None:
    told: list[STATUS] = []
    assert device.call(CTAPHID.CBOR, b"\x0b", None, told.append) == b"\x00"
    assert told == [STATUS.UPNEEDED]
    event = Event()
    event.set()
    assert device.call(CTAPHID.CBOR, b"\x0b", event, told.append) == bytes([CtapError.ERR.KEEPALIVE_CANCEL])
    assert len(user.asked) == 1


def test_cancelled_while_the_user_confirms(device: AuthenticatorDevice) -> None:
    event = Event()

    class TooLate(ScriptedUser):
        def confirm(self, request: object, cancelled: Callable[[], bool]) -> Presence:
            event.set()
            return Presence.GRANTED

    late = AuthenticatorDevice(device._authenticator, TooLate())
    assert late.call(CTAPHID.CBOR, b"\x0b", event) == bytes([CtapError.ERR.KEEPALIVE_CANCEL])


def test_only_ctap2_and_nothing_to_discover(device: AuthenticatorDevice) -> None:
    with pytest.raises(CtapError) as caught:
        device.call(CTAPHID.MSG, b"")
    assert caught.value.code is CtapError.ERR.INVALID_COMMAND
    assert list(AuthenticatorDevice.list_devices()) == []


def test_failure_behind_the_status_is_kept(user: ScriptedUser) -> None:
    vault = MemoryVault()
    device = AuthenticatorDevice(Authenticator(vault, BenchClock(), SystemEntropy()), user)
    failure = DeviceError(Reason.VAULT_CORRUPT, "Damaged.")
    vault.fail_next["reset"] = failure
    with pytest.raises(CtapError) as caught:
        Ctap2(device).reset()
    assert caught.value.code is CtapError.ERR.OTHER
    assert device.failure is failure
