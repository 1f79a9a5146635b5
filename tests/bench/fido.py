"""`./run bench fido`: our authenticator, in this process and on a virtual card reader through the real pcscd.

    getInfo            what the way there costs, with nothing done at the end
    makeCredential     a server-side credential, without a PIN
    getAssertion       with that credential, without a PIN
    ... with PIN       the same with all that the PIN needs: key agreement, token (Argon2id at its real cost), command

The same key is asked both ways, in turns, so that a busy machine troubles both alike; medians count. Nobody has to
touch it. Beside it stands the bare P-256 signature by a key object that is kept.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.ctap import CtapDevice
from fido2.ctap2.base import AttestationResponse, Ctap2
from fido2.ctap2.pin import ClientPin

from keyvouch_agent.vaults.software import KdfParameters
from keyvouch_bench.fido_reader import ReaderKey
from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.virtual_fido import ON_A_READER, PIN, VirtualFido

RP_ID = "login.example.org"
USER = {"id": b"ada", "name": "ada"}
ES256 = [{"type": "public-key", "alg": -7}]

BARE = "bare signature"
WAYS = ("in process", "pcscd")


class Client:
    """What a platform asks of the key, over one way to it."""

    def __init__(self, device: CtapDevice) -> None:
        self._ctap = Ctap2(device)

    def get_info(self) -> None:
        self._ctap.get_info()

    def make(self, digest: bytes = b"", **auth: Any) -> AttestationResponse:
        rp = {"id": RP_ID, "name": RP_ID}
        return self._ctap.make_credential(digest or os.urandom(32), rp, USER, ES256, **auth)

    def get(self, credential: bytes, digest: bytes = b"", **auth: Any) -> None:
        allowed = [{"type": "public-key", "id": credential}]
        self._ctap.get_assertion(RP_ID, digest or os.urandom(32), allowed, **auth)

    def make_with_pin(self) -> None:
        digest = os.urandom(32)
        self.make(digest, **self._verified(digest, ClientPin.PERMISSION.MAKE_CREDENTIAL))

    def get_with_pin(self, credential: bytes) -> None:
        digest = os.urandom(32)
        self.get(credential, digest, **self._verified(digest, ClientPin.PERMISSION.GET_ASSERTION))

    def _verified(self, digest: bytes, permission: ClientPin.PERMISSION) -> dict[str, Any]:
        pin = ClientPin(self._ctap)
        token = pin.get_pin_token(PIN, permission, RP_ID)
        return {"pin_uv_param": pin.protocol.authenticate(token, digest), "pin_uv_protocol": pin.protocol.VERSION}


def measure_fido(*, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; returns medians in milliseconds for JSON."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyvouch-bench-")))
        pcscd = stack.enter_context(PrivatePcscd())
        pcscd.claim()
        made = VirtualFido.make(folder / "vault", kdf=KdfParameters(), options=ON_A_READER)
        fido = stack.enter_context(ReaderKey(stack.enter_context(made), pcscd))
        clients = dict(zip(WAYS, (Client(fido.key.device), Client(fido.device)), strict=True))
        samples: dict[str, dict[str, list[float]]] = {}
        say(f"{rounds} rounds without a PIN")
        _take_turns(samples, rounds, {way: _without_pin(client) for way, client in clients.items()})
        say(f"{rounds} rounds with a PIN")
        fido.pin()
        _take_turns(samples, rounds, {way: _with_pin(client) for way, client in clients.items()})
    return {"rounds": rounds, "medians_ms": {act: _medians(ways) for act, ways in samples.items()}}


Acts = Mapping[str, Callable[[], object]]


def _without_pin(client: Client) -> Acts:
    credential = _id_of(client.make())
    key, digest = ec.generate_private_key(ec.SECP256R1()), os.urandom(32)
    return {
        BARE: lambda: key.sign(digest, ec.ECDSA(hashes.SHA256())),
        "getInfo": client.get_info,
        "makeCredential": client.make,
        "getAssertion": lambda: client.get(credential),
    }


def _with_pin(client: Client) -> Acts:
    credential = _id_of(client.make())
    return {
        "makeCredential with PIN": client.make_with_pin,
        "getAssertion with PIN": lambda: client.get_with_pin(credential),
    }


def _id_of(made: AttestationResponse) -> bytes:
    data = made.auth_data.credential_data
    if data is None:
        raise RuntimeError("the key made no credential")
    return bytes(data.credential_id)


def _take_turns(samples: dict[str, dict[str, list[float]]], rounds: int, ways: Mapping[str, Acts]) -> None:
    """Every act over every way in every round; the first round warms up."""
    for number in range(rounds + 1):
        for way, acts in ways.items():
            for act, do in acts.items():
                start = time.perf_counter()
                do()
                if number:
                    taken = time.perf_counter() - start
                    samples.setdefault(act, {}).setdefault(way, []).append(taken * 1e3)


def _medians(ways: Mapping[str, list[float]]) -> dict[str, float]:
    return {way: round(statistics.median(taken), 3) for way, taken in ways.items()}


def table(result: dict[str, Any]) -> str:
    """For people."""
    medians = result["medians_ms"]
    bare = medians[BARE][WAYS[0]]
    lines = [f"{'medians, ms':<26}" + "".join(f"{name:>14}" for name in (*WAYS, "ratio", "added", "signatures"))]
    for act, ways in medians.items():
        here, there = (ways[way] for way in WAYS)
        cells: tuple[str, ...] = (f"{here:.3f}", "-", "-", "-", "1")
        if act != BARE:
            cells = (f"{here:.2f}", f"{there:.2f}", f"{there / here:.2f}", f"{there - here:.2f}", f"{here / bare:.0f}")
        lines.append(f"{act:<26}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)
