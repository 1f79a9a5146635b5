"""`./run bench verification`: verifying one assertion and one registration of each format, beside what others do.

Microseconds of CPU per call on one core, the median of rounds in which all take turns; and what that is in bare P-256
verifications with the key object kept, measured in the same rounds. With `--peers` python-fido2, py_webauthn and, where
node and npm are there, SimpleWebAuthn are measured too.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import verifiers
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from verifiers import Act, Verifier, document_of

from keyvouch import base64url
from keyvouch.webauthn_json import AuthenticationResponse
from support.samples import Registration, samples

__all__ = ["measure_verification", "table"]

PACKAGE = "@simplewebauthn/server@14"
FLOOR = "P-256 verification"
BATCH_SECONDS = 0.05

Measure = Callable[[int], float]
"""CPU in microseconds per call, for so many calls."""


def measure_verification(*, rounds: int, peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything in turns. Cells without a figure say why."""
    with ExitStack() as stack:
        cells: dict[tuple[str, str], Measure | str] = {("", FLOOR): _of(_floor())}
        for verifier in _verifiers(peers):
            cells |= _cells(verifier)
        if peers and shutil.which("node") and shutil.which("npm"):
            cells |= stack.enter_context(_simplewebauthn(say))
        taken = _in_turns({key: cell for key, cell in cells.items() if not isinstance(cell, str)}, rounds, say)
    floor = taken[("", FLOOR)]
    rows = [
        {"what": what, "verifier": name, "cpu_us": round(us, 1), "floors": round(us / floor, 2)}
        for (name, what), us in taken.items()
        if what != FLOOR
    ]
    refused = [{"what": w, "verifier": n, "why": why} for (n, w), why in cells.items() if why and isinstance(why, str)]
    return {"floor_us": round(floor, 1), "rounds": rounds, "results": rows, "without": refused}


def table(result: dict[str, Any]) -> str:
    """For people: a line for each thing that is verified, a column for each verifier."""
    names = list(dict.fromkeys(row["verifier"] for row in result["results"]))
    cells = {(row["what"], row["verifier"]): row for row in result["results"]}
    lines = [f"{FLOOR}: {result['floor_us']} us", "", f"| CPU per call | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for what in dict.fromkeys(row["what"] for row in result["results"]):
        found = [cells.get((what, name)) for name in names]
        shown = [f"{row['cpu_us']:.0f} us, {row['floors']:.2f}" if row else "-" for row in found]
        lines.append(f"| {what} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _floor() -> Act:
    given = verifiers.assertion()
    response = AuthenticationResponse.from_json(given.document)
    key = verifiers.CoseKey(given.public_key).key_object()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    scheme = ec.ECDSA(hashes.SHA256())
    message = response.authenticator_data + hashlib.sha256(response.client_data).digest()
    return lambda: key.verify(response.signature, message, scheme)


def _verifiers(peers: bool) -> Iterator[Verifier]:
    yield from (verifiers.ours_from_bytes, verifiers.ours_with_stored_key, verifiers.ours)
    if peers:
        yield verifiers.python_fido2()
        yield verifiers.py_webauthn()


def _cells(verifier: Verifier) -> dict[tuple[str, str], Measure | str]:
    acts = {"assertion": lambda: verifier.assertion(verifiers.assertion())}
    for name, sample in samples().items():
        acts[f"registration, {name}"] = lambda sample=sample: verifier.registration(sample)
    return {(verifier.name, what): _checked(make) for what, make in acts.items()}


def _checked(make: Callable[[], Act | None]) -> Measure | str:
    """A verifier has to accept before it is measured; else the reason why not, empty where it has no such thing."""
    act = make()
    if act is None:
        return ""
    try:
        act()
    except Exception as error:  # noqa: BLE001  # whatever it says, it is told
        return f"refuses it: {type(error).__name__}: {error}"
    return _of(act)


def _of(act: Act) -> Measure:
    def measure(times: int) -> float:
        start = time.process_time()
        for _ in range(times):
            act()
        return (time.process_time() - start) / times * 1e6

    return measure


def _in_turns(measures: dict[Any, Measure], rounds: int, say: Callable[[str], None]) -> dict[Any, float]:
    say(f"measuring {len(measures)} things in {rounds} rounds")
    times = {}
    for key, measure in measures.items():
        measure(200)  # caches, branch prediction, and a compiler where there is one
        times[key] = max(10, int(BATCH_SECONDS * 1e6 / measure(50)))
    gc.collect()
    gc.freeze()
    taken: dict[Any, list[float]] = {key: [] for key in measures}
    for _ in range(rounds):
        for key, measure in measures.items():
            taken[key].append(measure(times[key]))
    return {key: statistics.median(values) for key, values in taken.items()}


# SimpleWebAuthn, in a process of its own


@contextmanager
def _simplewebauthn(say: Callable[[str], None]) -> Iterator[dict[tuple[str, str], Measure | str]]:
    with tempfile.TemporaryDirectory(prefix="keyvouch-bench-") as folder:
        say(f"installing {PACKAGE}")
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, PACKAGE]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        script = Path(__file__).parent / "simplewebauthn.mjs"
        with subprocess.Popen(
            ["node", str(script), folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            yield dict(_node_cells(process))
            assert process.stdin
            process.stdin.close()


def _node_cells(process: subprocess.Popen[str]) -> Iterator[tuple[tuple[str, str], Measure | str]]:
    def ask(request: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    def measure(what: str, times: int) -> float:
        return float(ask({"measure": what, "times": times})["cpu_us"])

    for request in (_node_assertion(), *(_node_registration(sample) for sample in samples().values())):
        what, answer = request["prepare"], ask(request)
        yield ("SimpleWebAuthn", what), f"refuses it: {answer['refused']}" if answer else partial(measure, what)


def _node_assertion() -> dict[str, Any]:
    given = verifiers.assertion()
    options = {
        "response": given.document | {"clientExtensionResults": {}},
        "expectedChallenge": base64url.encode(given.challenge),
        "expectedOrigin": given.origin,
        "expectedRPID": given.rp_id,
        "requireUserVerification": True,
        "credential": {
            "id": given.document["id"],
            "publicKey": base64url.encode(given.public_key),
            "counter": given.sign_count,
        },
    }
    kind = {"prepare": "assertion", "kind": "authentication", "now": time.time() * 1e3, "format": "", "roots": []}
    return kind | {"options": options}


def _node_registration(given: Registration) -> dict[str, Any]:
    options = {
        "response": document_of(given),
        "expectedChallenge": base64url.encode(given.challenge),
        "expectedOrigin": given.origin,
        "expectedRPID": given.rp_id,
        "requireUserVerification": False,
    }
    kind = {"prepare": f"registration, {given.name}", "kind": "registration", "now": given.instant.timestamp() * 1e3}
    return kind | {"format": given.name.removesuffix("-self"), "roots": given.roots, "options": options}
