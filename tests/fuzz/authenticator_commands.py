"""Changed commands for the authenticator, as many as one likes, each judged.

    python tests/fuzz/authenticator_commands.py --runs 1000000 --seed 1

A command starts from a valid one of any kind, under a valid token, or from a published seed; then its values are
replaced, taken away or put elsewhere, or its bytes are scrambled. Half of the changed ones get a pinUvAuthParam over
what was changed, so that they come past that check. Every answer must be a status that the engine has, with canonical
CBOR behind a success and nothing behind an error, and an error must leave the vault as it was.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz.structure import scramble
from keyvouch import cbor
from keyvouch.errors import KeyvouchError
from keyvouch_agent.authenticator.engine import AuthenticatorOptions, Command
from keyvouch_agent.authenticator.ports import Presence
from keyvouch_agent.authenticator.status import NEVER_ANSWERED, Status
from keyvouch_agent.authenticator.u2f import StatusWord
from keyvouch_agent.authenticator.vault import hash_of
from support.authenticators import (
    CLIENT_DATA_HASH,
    ES256,
    PIN,
    RP_ID,
    USER,
    Bench,
    blob_array,
    credential_id,
    descriptor,
    padded,
    pin_hash,
)
from support.memory_vault import MemoryVault
from support.vectors import load

__all__ = ["Findings", "World", "hammer"]

COMMANDS_PER_WORLD = 150
COMMANDS_PER_TOKEN = 4
ALL_PERMISSIONS = 0x37
ANSWERS = (Presence.GRANTED,) * 5 + (Presence.DENIED, Presence.TIMEOUT, Presence.CANCELLED)
ENABLED = {"hmac-secret": True, "credBlob": b"blob", "largeBlobKey": True, "credProtect": 1}
EDDSA, ES384 = {"type": "public-key", "alg": -8}, {"type": "public-key", "alg": -35}
U2F_SHARE = 16
"""One message in so many is of CTAP1/U2F, where that is spoken."""

SEEDS = [bytes.fromhex(seed["hex"]) for seed in load("opensk/ctap2_commands_parameters_corpus.json")]
ANSWERED = frozenset(Status) - NEVER_ANSWERED.keys()

Parameters = dict[Any, Any]
Draft = tuple[int, Parameters]


@dataclass
class Findings:
    """What came out of a run."""

    statuses: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)

    @property
    def runs(self) -> int:
        return sum(self.commands.values())


class World:
    """An authenticator with a PIN, credentials and settings, and everything to make valid commands for it."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        options = AuthenticatorOptions(u2f=True, make_cred_uv_not_required=chance.random() < 0.5, reset_window=None)
        vault = MemoryVault(pin_gated=chance.random() < 0.4, max_keys=24)
        self.bench = Bench(vault, protocol=chance.choice((1, 2)), options=options)
        self.bench.set_pin()
        self.credentials = [
            self.bench.new_credential(rk=True, extensions=ENABLED),
            self.bench.new_credential(rk=True, user={"id": b"user 2", "name": "bob"}),
            self.bench.new_credential(extensions={"hmac-secret": True}),
            self.bench.new_credential(rk=True, rp_id="other.example"),
        ]
        if not vault.properties.pin_gated:
            _, response = self.bench.make(self.bench.token())
            self.credentials.append(credential_id(response))
        self.before = vault.snapshot
        self._token, self._uses = b"", COMMANDS_PER_TOKEN

    @property
    def is_worn_out(self) -> bool:
        """Whether it was reset, or its PIN is blocked or must be changed: nothing more would be reached in it."""
        pin, settings = self.bench.vault.pin_state(), self.bench.vault.settings
        return not pin.is_set or pin.retries_left < 3 or settings.force_pin_change or settings.min_pin_length > len(PIN)

    @property
    def speaks_u2f(self) -> bool:
        """Whether more than a refusal comes back."""
        return not (self.bench.vault.properties.pin_gated or self.bench.vault.settings.always_uv)

    def token(self) -> bytes:
        """A token for everything; one relying party in two."""
        self._uses += 1
        if self._uses > COMMANDS_PER_TOKEN:
            self._uses = 0
            rp_id = RP_ID if self.chance.random() < 0.7 else "other.example"
            status, self._token = self.bench.ask_token(PIN, ALL_PERMISSIONS, rp_id)
            if status is Status.PIN_AUTH_BLOCKED:
                self.bench.authenticator.power_cycle()
                _, self._token = self.bench.ask_token(PIN, ALL_PERMISSIONS, rp_id)
        return self._token or bytes(32)

    def wear_token(self) -> None:
        """The token was spent; the next command gets another."""
        self._uses = COMMANDS_PER_TOKEN

    def management_token(self) -> bytes:
        """A token that is bound to no relying party."""
        self.wear_token()
        status, token = self.bench.ask_token(PIN, 0x34, None)
        return token if status is Status.SUCCESS else bytes(32)


# Valid commands


def _make(world: World) -> Draft:
    extensions: Parameters = dict(world.chance.sample(sorted(ENABLED.items()), world.chance.randrange(5)))
    if extensions.get("hmac-secret") and world.chance.random() < 0.3:
        extensions["hmac-secret-mc"] = world.bench.hmac_input(bytes(32))[0]
    offer = world.chance.choice(([ES256], [EDDSA], [ES384, ES256]))
    user = {"id": world.chance.randbytes(1), "name": "n"}
    excluded = [descriptor(world.chance.choice((b"unknown", *world.credentials)))]
    given = {1: CLIENT_DATA_HASH, 2: {"id": RP_ID}, 3: user, 4: offer, 6: extensions, 11: ["packed", "none"]}
    if world.chance.random() < 0.3:
        given[5] = excluded
    return Command.MAKE_CREDENTIAL, given | {7: {"rk": world.chance.random() < 0.5}}


def _get(world: World) -> Draft:
    given: Parameters = {1: RP_ID, 2: CLIENT_DATA_HASH, 5: {"up": world.chance.random() < 0.7}}
    if world.chance.random() < 0.5:
        given[3] = [descriptor(credential) for credential in world.credentials]
    extensions: Parameters = {"credBlob": True, "largeBlobKey": True}
    if world.chance.random() < 0.2:
        extensions["hmac-secret"] = world.bench.hmac_input(bytes(32), bytes(32))[0]
    return Command.GET_ASSERTION, given | {4: extensions}


def _manage(world: World) -> Draft:
    known = descriptor(world.chance.choice(world.credentials))
    subcommand, params = world.chance.choice(
        (
            (1, None),
            (2, None),
            (3, None),
            (4, {1: hash_of(RP_ID)}),
            (5, None),
            (6, {2: known}),
            (7, {2: known, 3: USER}),
        )
    )
    given: Parameters = {1: subcommand}
    return world.chance.choice((0x0A, 0x41)), given if params is None else given | {2: params}


def _blobs(world: World) -> Draft:
    array = blob_array(b"\x81\x58\x20" + bytes(32))
    choices: tuple[Parameters, ...] = (
        {1: world.chance.randrange(64), 3: world.chance.randrange(16)},
        {2: array, 3: 0, 4: len(array)},
        {2: array[:20], 3: 0, 4: len(array)},
        {2: array[20:], 3: 20},
    )
    return Command.LARGE_BLOBS, world.chance.choice(choices)


def _configure(world: World) -> Draft:
    params = {1: 6, 2: [RP_ID], 3: world.chance.random() < 0.1}
    return Command.CONFIG, world.chance.choice(({1: 2}, {1: 3, 2: params}, {1: 1}))


def _pin(world: World) -> Draft:
    bench = world.bench
    subcommand = world.chance.choice((1, 2, 3, 4, 5, 6, 7, 9))
    given: Parameters = {1: bench.protocol.VERSION, 2: subcommand}
    if subcommand in (1, 2, 7):
        return Command.CLIENT_PIN, given
    peer, secret = bench.agree()
    new_pin, old_pin = bench.protocol.encrypt(secret, padded(PIN)), bench.protocol.encrypt(secret, pin_hash(PIN))
    parts: Mapping[int, Parameters] = {
        3: {4: bench.protocol.authenticate(secret, new_pin), 5: new_pin},
        4: {4: bench.protocol.authenticate(secret, new_pin + old_pin), 5: new_pin, 6: old_pin},
        5: {6: old_pin},
        6: {9: 0x37, 10: RP_ID},
        9: {6: old_pin, 9: 0x37, 10: RP_ID},
    }
    return Command.CLIENT_PIN, given | {3: peer} | parts[subcommand]


def _bare(world: World) -> Draft:
    common = (Command.GET_INFO, Command.GET_NEXT_ASSERTION, Command.SELECTION) * 20
    return world.chance.choice((*common, Command.RESET, 0x00, 0x09, 0x40, 0xFF)), {}


TEMPLATES: tuple[Callable[[World], Draft], ...] = (_make, _get, _get, _manage, _manage, _blobs, _configure, _pin, _bare)


def _authorize(world: World, command: int, given: Parameters) -> Parameters:
    """Put the pinUvAuthParam over what is there, if it can be made."""
    bench = world.bench
    try:
        if command in (Command.MAKE_CREDENTIAL, Command.GET_ASSERTION):
            keys = (8, 9) if command == Command.MAKE_CREDENTIAL else (6, 7)
            message = given[1] if command == Command.MAKE_CREDENTIAL else given[2]
            param, version = bench.auth(world.token(), message)
            return given | {keys[0]: param, keys[1]: version}
        if command in (0x0A, 0x41, Command.CONFIG):
            message = bytes([given[1]]) + (cbor.encode(given[2]) if 2 in given else b"")
            if command == Command.CONFIG:
                message = b"\xff" * 32 + b"\x0d" + message
            token = world.token() if world.chance.random() < 0.5 else world.management_token()
            param, version = bench.auth(token, message)
            return given | {3: version, 4: param}
        if command == Command.LARGE_BLOBS and 2 in given:
            return given | _blob_authorization(world, given)
    except (KeyvouchError, AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return given
    return given


def _blob_authorization(world: World, given: Parameters) -> Parameters:
    offset = given[3].to_bytes(4, "little")
    param, version = world.bench.auth(
        world.token(), b"\xff" * 32 + b"\x0c\0" + offset + hashlib.sha256(given[2]).digest()
    )
    return {5: param, 6: version}


# Changes


_VALUES: tuple[object, ...] = (
    *(None, True, False, 0, 1, 2, 3, 4, 8, 17, -1, -7, -8, 255, 256, 7545, 2**32, 2**63, 2**64 - 1, -(2**64)),
    *("", RP_ID, "public-key", "id", "n" * 70, b"", b"x", bytes(16), bytes(32), bytes(33), bytes(65), [], {}),
    *(ES256, [ES256], USER, {"id": RP_ID}, {"rk": True}, {"up": False}, {"uv": True}, {1: 2, 3: -25, -1: 1}),
    *([descriptor(b"x")], [descriptor(b"x")] * 17, ENABLED, {"hmac-secret": {}}, {1: {2: {3: {4: {}}}}}),
    *({"largeBlobKey": True}, {"largeBlobKey": False}, {"credProtect": 3}, {"credBlob": bytes(33)}, [{"alg": -257}]),
)
"""Values that mean something in some command."""
_VALUES_OF = {kind: [value for value in _VALUES if type(value) is kind] for kind in (bool, int, str, bytes, list, dict)}


def _value(chance: Random, like: object) -> object:
    """Another value, more often of the same type, which is looked at more closely."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(80))
    return chance.choice(_VALUES_OF[type(like)] if type(like) in _VALUES_OF and chance.random() < 0.7 else _VALUES)


def _changed(world: World, value: object) -> object:
    """Change a value in one place: at the top, or further inside."""
    chance = world.chance
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        match chance.randrange(6):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return value | {chance.choice((0, 1, 2, 3, 5, 7, 10, 12, -1, "id", "type", "up", b"k")): value[key]}
            case 2:
                return value | {chance.randrange(1, 13): _value(chance, None)}
        return value | {key: _changed(world, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return [*value[:at], _changed(world, value[at]), *value[at + 1 :]]
    if isinstance(value, bytes) and chance.random() < 0.5:
        return scramble(value, chance)
    return _value(chance, value)


def _request(world: World) -> bytes:
    """One request: valid, changed inside, changed as bytes, from a seed, or nothing that was ever a command."""
    chance = world.chance
    kind = chance.random()
    if kind < 0.05:
        return chance.randbytes(chance.randrange(100))
    if kind < 0.15:
        seed = bytes([chance.choice((1, 2, 6, 0x0A, 0x0C, 0x0D))]) + chance.choice(SEEDS)
        return scramble(seed, chance) if chance.random() < 0.7 else seed
    command, given = chance.choice(TEMPLATES)(world)
    if not given:
        return bytes([command]) + (chance.randbytes(1) if chance.random() < 0.1 else b"")
    if chance.random() < 0.5:
        given = _authorize(world, command, given)
    for _ in range(chance.choice((0, 0, 1, 1, 1, 2, 3))):
        changed = _changed(world, given)
        given = changed if isinstance(changed, dict) else given
    if chance.random() < 0.6:
        given = _authorize(world, command, given)
    encoded = bytes([command]) + _encoded(given)
    return scramble(encoded, chance) if chance.random() < 0.15 else encoded


def _encoded(given: Parameters) -> bytes:
    try:
        return cbor.encode(given)
    except KeyvouchError:
        return b"\xa0"


# The run


def hammer(runs: int, seed: int, make_world: Callable[[Random], World] = World) -> Findings:
    """Send so many commands and judge every answer. What is wrong raises, with the request in the message."""
    chance, findings = Random(seed), Findings()
    world = make_world(chance)
    for number in range(runs):
        if number % COMMANDS_PER_WORLD == 0 or world.is_worn_out:
            world = make_world(chance)
        world.bench.user.answer = chance.choice(ANSWERS)
        world.bench.user.asked.clear()
        if chance.random() < 0.02:
            world.bench.clock.now += chance.choice((1, 11, 31, 601))
        if chance.randrange(U2F_SHARE if world.speaks_u2f else 10 * U2F_SHARE) == 0:
            _judge_u2f(world, findings)
        else:
            request = _request(world)
            world.before = world.bench.vault.snapshot
            _judge(world, request, findings)
    return findings


def _judge(world: World, request: bytes, findings: Findings) -> None:
    try:
        answer = world.bench.authenticator.handle(request, world.bench.user, entry=world.bench.entry)
    except Exception as error:
        raise AssertionError(f"{request.hex()} made the engine raise {error!r}") from error
    status = Status(answer[0])
    if status is Status.SUCCESS and request[:1] in (b"\x01", b"\x02"):
        world.wear_token()
    assert status in ANSWERED, f"{status.name} for {request.hex()}"
    findings.statuses[status.name] += 1
    findings.commands[Command(request[0]).name if request[:1] and request[0] in list(Command) else "OTHER"] += 1
    if status is not Status.SUCCESS:
        assert len(answer) == 1, f"{status.name} with a response for {request.hex()}"
        assert world.bench.vault.snapshot == world.before, f"{status.name} changed something: {request.hex()}"
    elif len(answer) > 1:
        assert isinstance(cbor.decode(answer[1:], max_depth=8), dict)


def _judge_u2f(world: World, findings: Findings) -> None:
    chance = world.chance
    handle = chance.choice((b"unknown", *world.credentials))
    data = chance.choice((b"", bytes(32) + hash_of(RP_ID), bytes(32) + hash_of(RP_ID) + bytes([len(handle)]) + handle))
    if chance.random() < 0.3:
        data = scramble(data, chance)
    message = (chance.choice((1, 2, 2, 3, 0, 0x40)), chance.choice((3, 7, 8, 0)), 0, data)
    world.before = world.bench.vault.snapshot
    try:
        answer, word = world.bench.authenticator.handle_u2f(*message, world.bench.user)
    except Exception as error:
        raise AssertionError(f"{message} made the engine raise {error!r}") from error
    findings.words[StatusWord(word).name] += 1
    findings.commands["U2F"] += 1
    if word != StatusWord.NO_ERROR:
        assert not answer
        assert world.bench.vault.snapshot == world.before, f"{word:04x} changed something: {message}"


def main() -> int:
    """Run, and print what was answered how often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000, help="commands to send (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all choices (default: 1)")
    options = parser.parse_args()
    start = time.monotonic()
    findings = hammer(options.runs, options.seed)
    seconds = time.monotonic() - start
    for title, counts in (("commands", findings.commands), ("statuses", findings.statuses), ("words", findings.words)):
        sys.stdout.write(f"{title}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()) + "\n")
    sys.stdout.write(f"{findings.runs} commands, no finding, {seconds:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
