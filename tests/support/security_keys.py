"""Security keys on the bench: our own engine, plugged in and out, touched by a finger, failing on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import Event
from typing import Any

from fido2.ctap import CtapDevice
from fido2.hid import CAPABILITY

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.device import AuthenticatorDevice
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest
from keyvouch_agent.system import SystemEntropy
from keyvouch_client.security_keys.discovery import ConnectedKey, SecurityKeys, Transport
from support.authenticators import BenchClock
from support.memory_vault import MemoryVault

GET_INFO, CLIENT_PIN, MAKE, ASSERT, SELECT = 0x04, 0x06, 0x01, 0x02, 0x0B
VERSIONS, EXTENSIONS, OPTIONS, FORCE_PIN_CHANGE = 0x01, 0x02, 0x04, 0x0C
GET_RETRIES, CHANGE_PIN = 0x01, 0x04

Change = Callable[[dict[int, Any]], None]


class Finger:
    """Touches when told to. `always` touches at once, as somebody who waits for the question."""

    def __init__(self, *, always: bool = True) -> None:
        self.always = always
        self.touches = Event()
        self.asked: list[PresenceRequest] = []
        self.is_asked = Event()

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        self.asked.append(request)
        self.is_asked.set()
        if self.always:
            return Presence.CANCELLED if cancelled() else Presence.GRANTED
        while not self.touches.wait(0.01):
            if cancelled():
                return Presence.CANCELLED
        self.touches.clear()
        return Presence.GRANTED


class KeyOnBench:
    """One security key. `changes` spoil or dress up the answers to a command; `fails` counts calls until it is gone."""

    def __init__(
        self,
        name: str = "Bench Key",
        *,
        finger: Finger | None = None,
        vault: MemoryVault | None = None,
        ctap2: bool = True,
    ) -> None:
        self.name = name
        self.finger = finger or Finger()
        self.vault = vault or MemoryVault(pin_gated=False)
        self.authenticator = Authenticator(self.vault, BenchClock(), SystemEntropy())
        self.changes: dict[int, Change] = {}
        self.statuses: dict[int, int] = {}
        self.subcommands: dict[int, int] = {}
        self.answers: dict[int, dict[int, Any]] = {}
        self.nonsense: dict[int, bytes] = {}
        self.on_make: Callable[[Any], None] = lambda _request: None
        self.retries: dict[int, object] | None = None
        self.wants_new_pin = False
        self.verifies_itself = False
        self.commands: list[int] = []
        self.fails: int | None = None
        self.fails_to_close = False
        self.capabilities = CAPABILITY.CBOR if ctap2 else CAPABILITY(0)
        self.open = 0

    def says(self, key: int, value: object) -> None:
        """Answer getInfo with another value of one member; options are merged."""
        before = self.changes.get(GET_INFO, _unchanged)

        def change(answer: dict[int, Any]) -> None:
            before(answer)
            answer[key] = {**answer[key], **value} if isinstance(value, dict) else value

        self.changes[GET_INFO] = change

    def refuses(self, command: int, status: int) -> None:
        """Answer a command with a status, until told otherwise."""
        self.statuses[command] = status

    def answers_retries(self, left: int, *, cycle: bool = False) -> None:
        """Answer getPINRetries (section 6.5.5.2)."""
        self.retries = {3: left, 4: True} if cycle else {3: left}

    def set_pin(self, pin: str = "123456") -> None:
        self.vault.set_pin(pin.encode())

    def reset(self) -> None:
        self.vault.reset()

    def device(self) -> CtapDevice:
        self.open += 1
        return _Plugged(self)


def _unchanged(_answer: dict[int, Any]) -> None:
    """Say what is so."""


def _subcommand(data: bytes) -> object:
    request: Any = cbor.decode(data[1:])
    return request.get(2)


class _Plugged(CtapDevice):
    def __init__(self, key: KeyOnBench) -> None:
        self._key = key
        self._device = AuthenticatorDevice(key.authenticator, key.finger)

    @property
    def capabilities(self) -> int:
        return self._key.capabilities

    def call(self, cmd: int, data: bytes = b"", event: Event | None = None, on_keepalive: Any = None) -> bytes:
        key = self._key
        if key.fails is not None:
            key.fails -= 1
            if key.fails < 0:
                raise OSError("no such device")
        command = data[0]
        key.commands.append(command)
        if (status := self._refusal(command, data)) is not None:
            return bytes([status])
        if command == CLIENT_PIN and key.retries is not None and _subcommand(data) == GET_RETRIES:
            return b"\0" + cbor.encode(key.retries)
        if command in key.nonsense:
            return key.nonsense[command]
        if command in key.answers:
            return b"\0" + cbor.encode(key.answers[command])
        by_itself = key.verifies_itself and command in (MAKE, ASSERT) and self._verified(data)
        answer = self._device.call(cmd, by_itself or data, event, on_keepalive)
        if answer[0] or len(answer) == 1:
            return answer
        decoded: Any = cbor.decode(answer[1:])
        if by_itself:
            decoded[2] = decoded[2][:32] + bytes([decoded[2][32] | 0x04]) + decoded[2][33:]
        if command == GET_INFO and key.verifies_itself:
            decoded[OPTIONS] = {**decoded[OPTIONS], "uv": True, "pinUvAuthToken": False}
        key.changes.get(command, _unchanged)(decoded)
        if command == GET_INFO and key.wants_new_pin:
            decoded[FORCE_PIN_CHANGE] = True
        return answer[:1] + cbor.encode(decoded)

    def _verified(self, data: bytes) -> bytes | None:
        """The request as our engine takes it, where it asks for built-in user verification. No signature covers it."""
        request: Any = cbor.decode(data[1:])
        at = 7 if data[0] == MAKE else 5
        if not request.get(at, {}).get("uv"):
            return None
        options = {name: value for name, value in request[at].items() if name != "uv"}
        rest = {name: value for name, value in request.items() if name != at}
        return data[:1] + cbor.encode({**rest, at: options} if options else rest)

    def _refusal(self, command: int, data: bytes) -> int | None:
        key = self._key
        request: Any = cbor.decode(data[1:]) if len(data) > 1 else {}
        if command == MAKE:
            key.on_make(request)
        if command == CLIENT_PIN and request.get(2) == CHANGE_PIN:
            key.wants_new_pin = False
        if command == CLIENT_PIN and request.get(2) in key.subcommands:
            return key.subcommands[request[2]]
        return key.statuses.get(command)

    def close(self) -> None:
        self._key.open -= 1
        self._device.close()
        if self._key.fails_to_close:
            self._key.fails_to_close = False
            raise OSError("it is away already")

    @classmethod
    def list_devices(cls) -> Iterator[_Plugged]:
        return iter(())


@dataclass
class Bench:
    """`KeySource`: the ports that keys are put in and taken out of."""

    plugged: dict[KeyOnBench, ConnectedKey] = field(default_factory=dict)
    trouble: list[ConnectedKey] = field(default_factory=list)
    found_problems: list[DeviceError] = field(default_factory=list)
    on_look: Callable[[], None] = lambda: None
    serial: Iterator[int] = field(default_factory=count)

    def put_in(self, *keys: KeyOnBench, transport: Transport = Transport.USB, place: str = "") -> Bench:
        """Plug keys in, or lay them on the reader `place`; each time is another appearance."""
        for key in keys:
            number = next(self.serial)

            def opener(key: KeyOnBench = key, number: int = number) -> CtapDevice:
                if key not in self.plugged or self.plugged[key].appearance != str(number):
                    raise DeviceError(Reason.AUTHENTICATOR_REMOVED, "It was taken out.", fix="Put it in again.")
                return key.device()

            self.plugged[key] = ConnectedKey(key.name, transport, place or f"/dev/hidraw{number}", str(number), opener)
        return self

    def take_out(self, *keys: KeyOnBench) -> None:
        """Pull keys out; a power cycle for them."""
        for key in keys:
            del self.plugged[key]
            key.authenticator.power_cycle()

    def __getitem__(self, key: KeyOnBench) -> ConnectedKey:
        return self.plugged[key]

    def scan(self, found: Sequence[ConnectedKey]) -> Sequence[ConnectedKey]:
        return [*self.plugged.values(), *self.trouble]

    def fingerprint(self) -> object:
        self.on_look()
        return tuple(key.appearance for key in self.scan(()))

    def problems(self) -> Sequence[DeviceError]:
        return self.found_problems

    @property
    def keys(self) -> SecurityKeys:
        """As the agent and the client see it; looks hundred times a second."""
        return SecurityKeys([self], pause=0.01)
