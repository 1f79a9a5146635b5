"""The engine driven by python-fido2, unmodified: its client, its PIN code, and its server as the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fido2 import cbor
from fido2.client import ClientError, DefaultClientDataCollector, Fido2Client, UserInteraction
from fido2.ctap import STATUS, CtapError
from fido2.ctap1 import APDU, ApduError, Ctap1
from fido2.ctap2.base import Ctap2
from fido2.ctap2.blob import LargeBlobs
from fido2.ctap2.config import Config
from fido2.ctap2.credman import CredentialManagement
from fido2.ctap2.pin import ClientPin, PinProtocolV1, PinProtocolV2
from fido2.hid import CTAPHID
from fido2.server import Fido2Server
from fido2.utils import sha256, websafe_decode, websafe_encode
from fido2.webauthn import (
    AttestedCredentialData,
    PublicKeyCredentialParameters,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialType,
    PublicKeyCredentialUserEntity,
)

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.device import AuthenticatorDevice
from keyvouch_agent.authenticator.engine import Authenticator, AuthenticatorOptions
from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.authenticator.vault import KeyVault
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import SoftwareVault
from support.authenticators import FAST_KDF, BenchClock, ScriptedUser
from support.memory_vault import MemoryVault

ORIGIN, RP_ID, PIN = "https://login.example.org", "login.example.org", "123456"
ALICE = PublicKeyCredentialUserEntity(name="alice", id=b"alice", display_name="Alice")


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
def open_device(user: ScriptedUser) -> AuthenticatorDevice:
    """Keys that work without the PIN, as in most security keys, and CTAP1/U2F beside CTAP2."""
    options = AuthenticatorOptions(make_cred_uv_not_required=True, u2f=True)
    engine = Authenticator(MemoryVault(pin_gated=False), BenchClock(), SystemEntropy(), options)
    return AuthenticatorDevice(engine, user)


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
    options = {"user_verification": "required", **options}
    creation, state = server.register_begin(ALICE, known or (), **options)
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
    with pytest.raises(CtapError) as caught:
        pin.get_pin_retries()
    assert caught.value.code is CtapError.ERR.PIN_NOT_SET
    pin.set_pin(PIN)
    assert pin.get_pin_retries() == (8, False)
    assert len(pin.get_pin_token(PIN)) == 32
    assert len(pin.get_pin_token(PIN, ClientPin.PERMISSION.GET_ASSERTION, RP_ID)) == 32
    pin.change_pin(PIN, "654321")
    with pytest.raises(CtapError) as caught:
        pin.get_pin_token(PIN)
    assert caught.value.code is CtapError.ERR.PIN_INVALID
    assert pin.get_pin_retries() == (7, False)
    with pytest.raises(CtapError) as caught:
        pin.get_pin_token("654321", ClientPin.PERMISSION.BIO_ENROLL)
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


# What the extensions and the management commands are to python-fido2


def test_prf_at_registration_and_afterwards(device: AuthenticatorDevice, server: Fido2Server) -> None:
    ClientPin(Ctap2(device)).set_pin(PIN)
    client = client_of(device)
    prf = {"prf": {"eval": {"first": websafe_encode(b"first"), "second": websafe_encode(b"second")}}}
    creation, state = server.register_begin(ALICE, user_verification="required")
    made = client.make_credential({**creation["publicKey"], "extensions": prf})
    credential = server.register_complete(state, made).credential_data
    assert credential is not None
    results = made.client_extension_results["prf"]
    assert results["enabled"] is True
    request, state = server.authenticate_begin([credential], user_verification="required")
    answer = client.get_assertion({**request["publicKey"], "extensions": prf}).get_response(0)
    server.authenticate_complete(state, [credential], answer)
    assert answer.client_extension_results["prf"]["results"] == results["results"]
    assert len(websafe_decode(results["results"]["first"])) == 32


def test_large_blob_of_a_credential(device: AuthenticatorDevice, server: Fido2Server) -> None:
    ClientPin(Ctap2(device)).set_pin(PIN)
    client = client_of(device)
    creation, state = server.register_begin(ALICE, resident_key_requirement="required", user_verification="required")
    wanted = {"largeBlob": {"support": "required"}}
    made = client.make_credential({**creation["publicKey"], "extensions": wanted})
    credential = server.register_complete(state, made).credential_data
    assert credential is not None
    assert made.client_extension_results["largeBlob"]["supported"] is True
    blob = bytes(range(200))
    for extension, expected in (({"write": websafe_encode(blob)}, "written"), ({"read": True}, "blob")):
        request, state = server.authenticate_begin([credential], user_verification="required")
        options = {**request["publicKey"], "extensions": {"largeBlob": extension}}
        answer = client.get_assertion(options).get_response(0)
        server.authenticate_complete(state, [credential], answer)
        assert answer.client_extension_results["largeBlob"][expected] in (True, websafe_encode(blob))
    assert len(LargeBlobs(Ctap2(device)).read_blob_array()) == 1


def test_cred_blob_and_protection(open_device: AuthenticatorDevice, server: Fido2Server) -> None:
    ClientPin(Ctap2(open_device)).set_pin(PIN)
    client = client_of(open_device)
    creation, state = server.register_begin(ALICE, resident_key_requirement="required", user_verification="required")
    asked = {
        "credBlob": b"a blob",
        "credentialProtectionPolicy": "userVerificationRequired",
        "enforceCredentialProtectionPolicy": True,
    }
    made = server.register_complete(state, client.make_credential({**creation["publicKey"], "extensions": asked}))
    assert made.extensions == {"credBlob": True, "credProtect": 3}
    request, state = server.authenticate_begin(user_verification="required")
    options = {**request["publicKey"], "extensions": {"getCredBlob": True}}
    answer = client.get_assertion(options).get_response(0)
    assert answer.response.authenticator_data.extensions == {"credBlob": b"a blob"}
    with pytest.raises(CtapError) as caught:
        Ctap2(open_device).get_assertion(RP_ID, bytes(32))
    assert caught.value.code is CtapError.ERR.NO_CREDENTIALS


@pytest.mark.parametrize("protocol", [PinProtocolV1, PinProtocolV2])
def test_credential_management(
    device: AuthenticatorDevice, server: Fido2Server, protocol: Callable[[], PinProtocolV1]
) -> None:
    ctap = Ctap2(device)
    pin = ClientPin(ctap, protocol())
    pin.set_pin(PIN)
    credential = register(client_of(device), server, resident_key_requirement="required")
    management = CredentialManagement(ctap, pin.protocol, pin.get_pin_token(PIN, ClientPin.PERMISSION.CREDENTIAL_MGMT))
    result = CredentialManagement.RESULT
    before = management.get_metadata()
    assert before[result.EXISTING_CRED_COUNT] == 1
    (party,) = management.enumerate_rps()
    assert party[result.RP] == {"id": RP_ID}
    (entry,) = management.enumerate_creds(party[result.RP_ID_HASH])
    assert entry[result.USER] == {"id": b"alice", "name": "alice", "displayName": "Alice"}
    assert entry[result.PUBLIC_KEY] == credential.public_key
    management.update_user_info(entry[result.CREDENTIAL_ID], {"id": b"alice", "name": "al"})
    (entry,) = management.enumerate_creds(party[result.RP_ID_HASH])
    assert entry[result.USER] == {"id": b"alice", "name": "al"}
    management.delete_cred(entry[result.CREDENTIAL_ID])
    assert management.enumerate_rps() == []
    assert management.get_metadata()[result.MAX_REMAINING_COUNT] == before[result.MAX_REMAINING_COUNT] + 1


@pytest.mark.parametrize("protocol", [PinProtocolV1, PinProtocolV2])
def test_large_blob_array(device: AuthenticatorDevice, protocol: Callable[[], PinProtocolV1]) -> None:
    ctap = Ctap2(device)
    pin = ClientPin(ctap, protocol())
    pin.set_pin(PIN)
    blobs = LargeBlobs(ctap, pin.protocol, pin.get_pin_token(PIN, ClientPin.PERMISSION.LARGE_BLOB_WRITE))
    assert list(blobs.read_blob_array()) == []
    key, other = bytes(32), bytes(range(32))
    blobs.put_blob(key, b"one" * 100)
    blobs.put_blob(other, b"two")
    assert (blobs.get_blob(key), blobs.get_blob(other)) == (b"one" * 100, b"two")
    blobs.delete_blob(key)
    assert (blobs.get_blob(key), blobs.get_blob(other)) == (None, b"two")
    with pytest.raises(CtapError) as caught:
        blobs.write_blob_array([{1: bytes(ctap.info.max_large_blob)}])
    assert caught.value.code is CtapError.ERR.LARGE_BLOB_STORAGE_FULL
    with pytest.raises(CtapError) as caught:
        LargeBlobs(ctap).write_blob_array([])
    assert caught.value.code is CtapError.ERR.PUAT_REQUIRED


def test_array_that_just_fits(device: AuthenticatorDevice) -> None:
    ctap = Ctap2(device)
    pin = ClientPin(ctap)
    pin.set_pin(PIN)
    blobs = LargeBlobs(ctap, pin.protocol, pin.get_pin_token(PIN, ClientPin.PERMISSION.LARGE_BLOB_WRITE))
    room = ctap.info.max_large_blob - 16
    array: list[Any] = [{1: bytes(room - 8)}]
    array.extend([0] * (room - len(cbor.encode(array))))
    blobs.write_blob_array(array)
    assert blobs.read_blob_array() == array


@pytest.mark.parametrize("protocol", [PinProtocolV1, PinProtocolV2])
def test_configuration(open_device: AuthenticatorDevice, protocol: Callable[[], PinProtocolV1]) -> None:
    ctap = Ctap2(open_device)
    pin = ClientPin(ctap, protocol())
    pin.set_pin(PIN)
    config = Config(ctap, pin.protocol, pin.get_pin_token(PIN, ClientPin.PERMISSION.AUTHENTICATOR_CFG))
    config.toggle_always_uv()
    assert ctap.get_info().options["alwaysUv"] is True
    config.toggle_always_uv()
    assert ctap.get_info().options["alwaysUv"] is False
    config.set_min_pin_length(min_pin_length=6, rp_ids=[RP_ID])
    assert ctap.get_info().min_pin_length == 6
    with pytest.raises(CtapError) as caught:
        config.enable_enterprise_attestation()
    assert caught.value.code is CtapError.ERR.INVALID_PARAMETER
    config.set_min_pin_length(force_change_pin=True)
    assert ctap.get_info().force_pin_change is True
    with pytest.raises(CtapError) as caught:
        pin.get_pin_token(PIN)
    assert caught.value.code is CtapError.ERR.PIN_INVALID
    pin.change_pin(PIN, PIN[::-1])
    assert ctap.get_info().force_pin_change is False
    assert pin.get_pin_token(PIN[::-1])


def test_min_pin_length_extension(open_device: AuthenticatorDevice, server: Fido2Server) -> None:
    Config(Ctap2(open_device)).set_min_pin_length(min_pin_length=8, rp_ids=[RP_ID])
    creation, state = server.register_begin(ALICE, user_verification="discouraged")
    client = client_of(open_device)
    options = {**creation["publicKey"], "extensions": {"minPinLength": True}}
    made = server.register_complete(state, client.make_credential(options))
    assert made.extensions == {"minPinLength": 8}


@pytest.mark.parametrize("algorithm", [-7, -8, -35])
def test_every_algorithm(device: AuthenticatorDevice, server: Fido2Server, algorithm: int) -> None:
    ClientPin(Ctap2(device)).set_pin(PIN)
    server.allowed_algorithms = [PublicKeyCredentialParameters(type=PublicKeyCredentialType.PUBLIC_KEY, alg=algorithm)]
    client = client_of(device)
    credential = register(client, server)
    assert credential.public_key[3] == algorithm
    authenticate(client, server, [credential])


class U2fDevice(AuthenticatorDevice):
    """Speaks U2F messages too, as a transport does that takes their APDUs apart."""

    def call(self, cmd: int, data: bytes = b"", *args: Any, **kwargs: Any) -> bytes:
        if cmd != CTAPHID.MSG:
            return super().call(cmd, data, *args, **kwargs)
        length = int.from_bytes(data[5:7], "big")
        answer, word = self._authenticator.handle_u2f(*data[1:4], data[7 : 7 + length], self._presence)
        return answer + word.to_bytes(2, "big")


def test_u2f_and_back(open_device: AuthenticatorDevice, user: ScriptedUser, server: Fido2Server) -> None:
    device = U2fDevice(open_device._authenticator, user)
    ctap1 = Ctap1(device)
    assert ctap1.get_version() == "U2F_V2"
    application, challenge = sha256(RP_ID.encode()), bytes(range(32))
    made = ctap1.register(challenge, application)
    made.verify(application, challenge)
    ctap1.authenticate(challenge, application, made.key_handle).verify(application, challenge, made.public_key)
    with pytest.raises(ApduError) as caught:
        ctap1.authenticate(challenge, application, b"unknown", check_only=True)
    assert caught.value.code == APDU.WRONG_DATA
    credential = AttestedCredentialData.from_ctap1(made.key_handle, made.public_key)
    request, state = server.authenticate_begin([credential], user_verification="discouraged")
    answer = client_of(device).get_assertion(request.public_key).get_response(0)
    server.authenticate_complete(state, [credential], answer)


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
