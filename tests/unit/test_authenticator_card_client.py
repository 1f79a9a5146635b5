"""The engine over a card driven by python-fido2, unmodified: its client, its token code, its server as the judge."""

from __future__ import annotations

from threading import Event

import pytest
from fido2.client import ClientError, DefaultClientDataCollector, Fido2Client, UserInteraction
from fido2.ctap import STATUS, CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.credman import CredentialManagement
from fido2.ctap2.pin import ClientPin
from fido2.hid import CTAPHID
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestedCredentialData,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
)

from keyvouch.errors import Reason
from keyvouch_agent.authenticator.device import AuthenticatorDevice
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.system import SystemEntropy
from support.authenticators import BenchClock, ScriptedEntry, ScriptedUser
from support.memory_vault import MemoryCard

ORIGIN, RP_ID = "https://login.example.org", "login.example.org"
ALICE = PublicKeyCredentialUserEntity(name="alice", id=b"alice", display_name="Alice")


class Watcher(UserInteraction):
    """Lets the authenticator verify; would note being asked for a PIN, which is none of the client's business."""

    def __init__(self, *, allows: bool = True) -> None:
        self.allows, self.verified, self.pins, self.needed = allows, 0, 0, 0

    def prompt_up(self) -> None:
        self.needed += 1

    def request_uv(self, permissions: ClientPin.PERMISSION, rp_id: str | None) -> bool:
        self.verified += 1
        return self.allows

    def request_pin(self, permissions: ClientPin.PERMISSION, rp_id: str | None) -> None:
        self.pins += 1


@pytest.fixture
def card() -> MemoryCard:
    return MemoryCard()


@pytest.fixture
def entry() -> ScriptedEntry:
    return ScriptedEntry()


@pytest.fixture
def device(card: MemoryCard, entry: ScriptedEntry) -> AuthenticatorDevice:
    return AuthenticatorDevice(Authenticator(card, BenchClock(), SystemEntropy()), ScriptedUser(), entry)


@pytest.fixture
def server() -> Fido2Server:
    return Fido2Server(PublicKeyCredentialRpEntity(name="Example", id=RP_ID), attestation="direct")


def register(client: Fido2Client, server: Fido2Server, rk: str | None = None) -> AttestedCredentialData:
    creation, state = server.register_begin(ALICE, user_verification="required", resident_key_requirement=rk)
    data = server.register_complete(state, client.make_credential(creation.public_key))
    assert data.credential_data is not None
    return data.credential_data


def authenticate(client: Fido2Client, server: Fido2Server, known: list[AttestedCredentialData], allow: bool) -> None:
    request, state = server.authenticate_begin(known if allow else None, user_verification="required")
    answer = client.get_assertion(request.public_key).get_response(0)
    server.authenticate_complete(state, known, answer)


def client_of(device: AuthenticatorDevice, watcher: Watcher | None = None) -> Fido2Client:
    return Fido2Client(device, DefaultClientDataCollector(ORIGIN), watcher or Watcher())


@pytest.mark.parametrize("rk", [None, "required"])
@pytest.mark.parametrize("pin_gated", [True, False])
def test_register_and_authenticate(server: Fido2Server, entry: ScriptedEntry, pin_gated: bool, rk: str | None) -> None:
    card, watcher = MemoryCard(pin_gated=pin_gated), Watcher()
    device = AuthenticatorDevice(Authenticator(card, BenchClock(), SystemEntropy()), ScriptedUser(), entry)
    client = client_of(device, watcher)
    credential = register(client, server, rk)
    authenticate(client, server, [credential], allow=rk is None)
    assert (watcher.verified, watcher.pins, watcher.needed) == (2, 0, 4)  # a PIN and a presence for each
    assert entry.asked == [3, 3]
    assert not card.is_unlocked


def test_keys_behind_the_pin_are_verified_where_the_server_asks_for_less(
    device: AuthenticatorDevice, server: Fido2Server
) -> None:
    creation, state = server.register_begin(ALICE, user_verification="discouraged")
    made = server.register_complete(state, client_of(device).make_credential(creation.public_key))
    assert made.is_user_verified()


def test_info_and_tries_as_a_client_reads_them(device: AuthenticatorDevice, card: MemoryCard) -> None:
    info = Ctap2(device).info
    assert (info.options["uv"], info.preferred_platform_uv_attempts, info.uv_modality) == (True, 1, 4)
    assert not ClientPin.is_supported(info)
    assert ClientPin.is_token_supported(info)
    card.retries = 2
    assert ClientPin(Ctap2(device)).get_uv_retries() == 2


def test_credential_management(device: AuthenticatorDevice, server: Fido2Server) -> None:
    register(client_of(device), server, "required")
    client_pin = ClientPin(Ctap2(device))
    token = client_pin.get_uv_token(ClientPin.PERMISSION.CREDENTIAL_MGMT)
    managed = CredentialManagement(Ctap2(device), client_pin.protocol, token)
    assert [rp[CredentialManagement.RESULT.RP]["id"] for rp in managed.enumerate_rps()] == [RP_ID]


@pytest.mark.parametrize(
    ("typed", "retries", "status", "reason"),
    [
        ("000000", 3, CtapError.ERR.UV_INVALID, Reason.PIN_WRONG),
        (None, 3, CtapError.ERR.OPERATION_DENIED, Reason.USER_CANCELLED),
        (TimeoutError, 3, CtapError.ERR.USER_ACTION_TIMEOUT, None),
    ],
)
def test_refusals(
    device: AuthenticatorDevice,
    server: Fido2Server,
    entry: ScriptedEntry,
    typed: str | type[Exception] | None,
    retries: int,
    status: CtapError.ERR,
    reason: Reason | None,
) -> None:
    entry.pin = typed
    with pytest.raises(ClientError) as caught:
        register(client_of(device), server)
    assert caught.value.cause.code is status
    assert (device.failure.reason if device.failure else None) is reason
    entry.pin = "123456"
    assert register(client_of(device), server)  # control


@pytest.mark.parametrize("typed", ["000000", "123456"], ids=["blocked by this try", "blocked before"])
def test_blocked_card_leaves_the_client_nothing_else(
    device: AuthenticatorDevice, server: Fido2Server, card: MemoryCard, entry: ScriptedEntry, typed: str
) -> None:
    """The client would go on with clientPin, which is not there. What the vault said outlasts its questions."""
    entry.pin, card.retries = typed, 1 if typed == "000000" else 0
    watcher = Watcher()
    with pytest.raises(ClientError) as caught:
        register(client_of(device, watcher), server)
    assert caught.value.code is ClientError.ERR.CONFIGURATION_UNSUPPORTED
    assert (watcher.verified, watcher.pins) == (1, 0)
    assert device.failure is not None
    assert device.failure.reason is Reason.PIN_BLOCKED


def test_keepalive_while_the_pin_is_typed(device: AuthenticatorDevice) -> None:
    told: list[int] = []
    ClientPin(Ctap2(device)).get_uv_token(ClientPin.PERMISSION.CREDENTIAL_MGMT, on_keepalive=told.append)
    assert told == [STATUS.UPNEEDED]


def test_keepalive_while_the_pin_is_typed_on_the_pad(entry: ScriptedEntry) -> None:
    card, told = MemoryCard(on_pad=True), list[int]()
    device = AuthenticatorDevice(Authenticator(card, BenchClock(), SystemEntropy()), ScriptedUser(), entry)
    ClientPin(Ctap2(device)).get_uv_token(ClientPin.PERMISSION.CREDENTIAL_MGMT, on_keepalive=told.append)
    assert (told, entry.asked, entry.on_pad_told) == ([STATUS.UPNEEDED], [], [3])


def test_cancelled_while_the_pin_is_typed(device: AuthenticatorDevice, card: MemoryCard, server: Fido2Server) -> None:
    event = Event()
    card.while_typing = event.set
    creation, _ = server.register_begin(ALICE, user_verification="required")
    with pytest.raises(ClientError) as caught:
        client_of(device).make_credential(creation.public_key, event)
    assert caught.value.cause.code is CtapError.ERR.KEEPALIVE_CANCEL
    assert not card.is_unlocked
    assert card.room() == 16


def test_success_does_not_take_a_failure_back(device: AuthenticatorDevice, entry: ScriptedEntry) -> None:
    assert device.failure is None
    entry.pin = "000000"
    with pytest.raises(CtapError):
        ClientPin(Ctap2(device)).get_uv_token(ClientPin.PERMISSION.CREDENTIAL_MGMT)
    assert device.call(CTAPHID.CBOR, b"\x04")[0] == 0
    assert device.failure is not None
    assert device.call(CTAPHID.CBOR, b"\x08")[0] == CtapError.ERR.NOT_ALLOWED  # another failure does
    assert device.failure is None
