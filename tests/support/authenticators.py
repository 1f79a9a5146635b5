"""An authenticator on the bench: hand-set clock, scripted user, raw commands, both PIN protocols."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fido2.ctap2.pin import PinProtocolV1, PinProtocolV2

from keyvouch import cbor
from keyvouch_agent.authenticator.engine import Authenticator, AuthenticatorOptions, Command
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.vault import Credential, KeyVault, hash_of
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import KdfParameters

FAST_KDF = KdfParameters(memory_kib=8, iterations=1, lanes=1)
"""Argon2id at its cheapest, for tests only."""

RP_ID = "login.example.org"
USER = {"id": b"user 1", "name": "alice", "displayName": "Alice A."}
CLIENT_DATA_HASH = bytes(range(32))
ES256 = {"type": "public-key", "alg": -7}
PIN = "123456"
MC, GA, CM, BE, LBW, ACFG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


class BenchClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class ScriptedUser:
    """Answers every question for presence with `answer`, and remembers the questions."""

    answer: Presence = Presence.GRANTED
    asked: list[PresenceRequest] = field(default_factory=list)

    def confirm(self, request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        self.asked.append(request)
        return Presence.CANCELLED if cancelled() else self.answer


@dataclass
class ScriptedEntry:
    """Types `pin` whenever it is asked for; None declines, and an exception type is raised. Notes what it is told."""

    pin: str | type[Exception] | None = PIN
    asked: list[int | None] = field(default_factory=list)
    on_pad_told: list[int | None] = field(default_factory=list)

    def ask(self, retries_left: int | None) -> str | None:
        self.asked.append(retries_left)
        if isinstance(self.pin, type):
            raise self.pin
        return self.pin

    def on_pad(self, retries_left: int | None) -> None:
        self.on_pad_told.append(retries_left)


class Bench:
    """An authenticator with everything around it in reach, and commands as a platform sends them."""

    def __init__(self, vault: KeyVault, *, protocol: int = 2, options: AuthenticatorOptions | None = None) -> None:
        self.vault = vault
        self.clock = BenchClock()
        self.user = ScriptedUser()
        self.entry: ScriptedEntry | None = None
        self.authenticator = Authenticator(vault, self.clock, SystemEntropy(), options or AuthenticatorOptions())
        self.protocol: Any = PinProtocolV2() if protocol == 2 else PinProtocolV1()

    def send(self, request: bytes, cancelled: Callable[[], bool] = lambda: False) -> tuple[Status, Any]:
        """Send raw bytes; return the status and the decoded response, None where there is none."""
        answer = self.authenticator.handle(request, self.user, cancelled, self.entry)
        return Status(answer[0]), cbor.decode(answer[1:]) if len(answer) > 1 else None

    def command(self, command: Command, parameters: Mapping[int, object] | None = None) -> tuple[Status, Any]:
        encoded = b"" if parameters is None else cbor.encode(parameters)
        return self.send(bytes([command]) + encoded)

    def expect(self, command: Command, parameters: Mapping[int, object] | None = None) -> Any:
        """Send a command that must succeed."""
        status, response = self.command(command, parameters)
        assert status is Status.SUCCESS, status.name
        return response

    # the PIN

    def pin(self, subcommand: int, parameters: Mapping[int, object] | None = None) -> tuple[Status, Any]:
        given = {1: self.protocol.VERSION, 2: subcommand, **(parameters or {})}
        return self.command(Command.CLIENT_PIN, {key: value for key, value in given.items() if value is not None})

    def agree(self) -> tuple[Mapping[int, Any], bytes]:
        """Key agreement: the platform's public key and the shared secret."""
        status, response = self.pin(0x02)
        assert status is Status.SUCCESS
        key, secret = self.protocol.encapsulate(response[1])
        return key, secret

    def set_pin(self, pin: str | bytes = PIN, **changed: object) -> Status:
        peer, secret = self.agree()
        new_pin_enc = self.protocol.encrypt(secret, padded(pin))
        given = {3: peer, 4: self.protocol.authenticate(secret, new_pin_enc), 5: new_pin_enc}
        return self.pin(0x03, given | _numbered(changed))[0]

    def change_pin(self, old: str, new: str | bytes, **changed: object) -> Status:
        peer, secret = self.agree()
        new_pin_enc = self.protocol.encrypt(secret, padded(new))
        pin_hash_enc = self.protocol.encrypt(secret, pin_hash(old))
        param = self.protocol.authenticate(secret, new_pin_enc + pin_hash_enc)
        given = {3: peer, 4: param, 5: new_pin_enc, 6: pin_hash_enc}
        return self.pin(0x04, given | _numbered(changed))[0]

    def ask_token(
        self, pin: str = PIN, permissions: int | None = MC | GA, rp_id: str | None = RP_ID, **changed: object
    ) -> tuple[Status, bytes]:
        """Ask for a token, with permissions or, for None, the old way; return the status and the token."""
        peer, secret = self.agree()
        given: dict[int, object] = {3: peer, 6: self.protocol.encrypt(secret, pin_hash(pin))}
        subcommand = 0x05
        if permissions is not None:
            subcommand = 0x09
            given |= {9: permissions, 10: rp_id}
        status, response = self.pin(subcommand, given | _numbered(changed))
        return status, self.protocol.decrypt(secret, response[2]) if response else b""

    def ask_uv_token(
        self, permissions: int = MC | GA, rp_id: str | None = RP_ID, **changed: object
    ) -> tuple[Status, bytes]:
        """Ask for a token by built-in user verification; return the status and the token."""
        peer, secret = self.agree()
        given: dict[int, object] = {3: peer, 9: permissions, 10: rp_id}
        status, response = self.pin(0x06, given | _numbered(changed))
        return status, self.protocol.decrypt(secret, response[2]) if response else b""

    def uv_token(self, permissions: int = MC | GA, rp_id: str | None = RP_ID) -> bytes:
        status, token = self.ask_uv_token(permissions, rp_id)
        assert status is Status.SUCCESS, status.name
        return token

    def token(self, pin: str = PIN, permissions: int | None = MC | GA, rp_id: str | None = RP_ID) -> bytes:
        status, token = self.ask_token(pin, permissions, rp_id)
        assert status is Status.SUCCESS, status.name
        return token

    def auth(self, token: bytes, client_data_hash: bytes = CLIENT_DATA_HASH) -> tuple[bytes, int]:
        """The pinUvAuthParam and protocol for one command."""
        return self.protocol.authenticate(token, client_data_hash), self.protocol.VERSION

    # credentials

    def make(self, token: bytes | None = None, **changed: object) -> tuple[Status, Any]:
        """MakeCredential; `k5=...` sets parameter 5, `k5=None` leaves it out."""
        return self.command(Command.MAKE_CREDENTIAL, self.make_parameters(token, **changed))

    def make_parameters(self, token: bytes | None = None, **changed: object) -> dict[int, object]:
        given: dict[int, object] = {1: CLIENT_DATA_HASH, 2: {"id": RP_ID}, 3: USER, 4: [ES256]}
        if token is not None:
            given[8], given[9] = self.auth(token)
        return _without_none(given | _numbered(changed))

    def get(self, token: bytes | None = None, **changed: object) -> tuple[Status, Any]:
        """GetAssertion, as `make`."""
        return self.command(Command.GET_ASSERTION, self.get_parameters(token, **changed))

    def get_parameters(self, token: bytes | None = None, **changed: object) -> dict[int, object]:
        given: dict[int, object] = {1: RP_ID, 2: CLIENT_DATA_HASH}
        if token is not None:
            given[6], given[7] = self.auth(token)
        return _without_none(given | _numbered(changed))

    def new_credential(
        self,
        *,
        rk: bool = False,
        user: Mapping[str, object] = USER,
        rp_id: str = RP_ID,
        extensions: Mapping[str, object] | None = None,
    ) -> bytes:
        """Make a credential with a PIN that is set already; return its id."""
        token = self.token(rp_id=rp_id)
        status, response = self.make(token, k2={"id": rp_id}, k3=user, k6=extensions, k7={"rk": rk})
        assert status is Status.SUCCESS, status.name
        return credential_id(response)

    def stored(self, credential: bytes, rp_id: str = RP_ID) -> Credential:
        """What the vault has of a credential, which must be there."""
        found = self.vault.find(hash_of(rp_id), credential)
        assert found is not None
        return found

    def hmac_input(self, *salts: bytes, **changed: object) -> tuple[dict[int, object], bytes]:
        """The input of hmac-secret and hmac-secret-mc, and the shared secret that opens the output."""
        peer, secret = self.agree()
        salt_enc = self.protocol.encrypt(secret, b"".join(salts))
        given: dict[int, object] = {1: peer, 2: salt_enc, 3: self.protocol.authenticate(secret, salt_enc)}
        return _without_none(given | {4: self.protocol.VERSION} | _numbered(changed)), secret

    # management

    def manage(
        self, subcommand: int, params: Mapping[int, object] | None = None, token: bytes | None = None, **changed: object
    ) -> tuple[Status, Any]:
        """CredentialManagement; with a token, under its pinUvAuthParam."""
        message = bytes([subcommand]) + (b"" if params is None else cbor.encode(params))
        return self.command(
            Command.CREDENTIAL_MANAGEMENT, self._authorized(subcommand, params, message, token, changed)
        )

    def configure(
        self, subcommand: int, params: Mapping[int, object] | None = None, token: bytes | None = None, **changed: object
    ) -> tuple[Status, Any]:
        """Config; with a token, under its pinUvAuthParam."""
        message = b"\xff" * 32 + bytes([Command.CONFIG, subcommand]) + (b"" if params is None else cbor.encode(params))
        return self.command(Command.CONFIG, self._authorized(subcommand, params, message, token, changed))

    def write_blobs(
        self, fragment: bytes, offset: int = 0, length: int | None = None, token: bytes | None = None, **changed: object
    ) -> tuple[Status, Any]:
        """LargeBlobs with a fragment to set; with a token, under its pinUvAuthParam."""
        given: dict[int, object] = {2: fragment, 3: offset, 4: length}
        if token is not None:
            message = b"\xff" * 32 + b"\x0c\0" + struct.pack("<I", offset) + hashlib.sha256(fragment).digest()
            given[5], given[6] = self.auth(token, message)
        return self.command(Command.LARGE_BLOBS, _without_none(given | _numbered(changed)))

    def _authorized(
        self,
        subcommand: int,
        params: Mapping[int, object] | None,
        message: bytes,
        token: bytes | None,
        changed: Mapping[str, object],
    ) -> dict[int, object]:
        given: dict[int, object] = {1: subcommand, 2: params}
        if token is not None:
            given[4], given[3] = self.auth(token, message)
        return _without_none(given | _numbered(changed))


def blob_array(content: bytes = b"\x80") -> bytes:
    """A serialized large-blob array: CBOR, then the left 16 bytes of its SHA-256."""
    return content + hashlib.sha256(content).digest()[:16]


def credential_id(response: Mapping[int, Any]) -> bytes:
    data = response[2]
    length = int.from_bytes(data[53:55], "big")
    return bytes(data[55 : 55 + length])


def descriptor(credential: bytes) -> dict[str, object]:
    return {"id": credential, "type": "public-key"}


def padded(pin: str | bytes) -> bytes:
    return (pin.encode() if isinstance(pin, str) else pin).ljust(64, b"\0")


def pin_hash(pin: str) -> bytes:
    return hashlib.sha256(pin.encode()).digest()[:16]


def _numbered(changed: Mapping[str, object]) -> dict[int, object]:
    return {int(name.removeprefix("k")): value for name, value in changed.items()}


def _without_none(given: Mapping[int, object]) -> dict[int, object]:
    return {key: value for key, value in given.items() if value is not None}
