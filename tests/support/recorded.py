"""Recorded vectors for `keyvouch verify`, and the command run over them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from keyvouch import base64url
from keyvouch_client.__main__ import main
from support.forge import CHALLENGE, ORIGIN, RP_ID, Forge
from support.vectors import load

WEBAUTHN = "generated-webauthn/webauthn_mutations.json"
TPM = "generated-tpm/tpm_evidence.json"
SWTPM = "swtpm/real_evidence.json"
Vector = dict[str, Any]


@cache
def vectors_of(file: str) -> list[Vector]:
    """The vectors of a file, which nobody changes."""
    return list(load(file)["vectors"])


def first(file: str, **members: str | None) -> Vector:
    """The first vector of a file with these members, for a test to bend."""
    found = next(v for v in vectors_of(file) if all(v.get(name) == value for name, value in members.items()))
    return copy.deepcopy(found)


def registered() -> Vector:
    """A good registration without attestation."""
    return first(WEBAUTHN, base="reg-none-ES256", expect="accept")


def authenticated() -> Vector:
    """A good assertion."""
    return first(WEBAUTHN, ceremony="authentication", expect="accept")


def certified() -> Vector:
    """A good TPM2_Certify."""
    return first(TPM, kind="certify", expect="accept")


def quoted() -> Vector:
    """A good TPM2_Quote of a real software TPM."""
    return first(SWTPM, kind="quote", expect="accept")


KINDS = {"registration": registered, "authentication": authenticated, "certify": certified, "quote": quoted}


@dataclass
class Outcome:
    """How a run of the command ended."""

    status: int
    out: str
    err: str

    @property
    def results(self) -> list[dict[str, Any]]:
        """The lines it printed."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def only(self) -> dict[str, Any]:
        """The one line it printed."""
        (result,) = self.results
        return dict(result)


Run = Callable[..., Outcome]


def judge(capsys: pytest.CaptureFixture[str], folder: Path, *values: object, options: Sequence[str] = ()) -> Outcome:
    """Run the command over values, each a file of its own, in this process."""
    paths = []
    for number, value in enumerate(values):
        paths.append(folder / f"{number}.json")
        paths[-1].write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    status = main(["verify", *map(str, paths), *options])
    captured = capsys.readouterr()
    return Outcome(status, captured.out, captured.err)


def bench_vector() -> Vector:
    """What somebody records on a bench: the least that has to be there, and no verdict."""
    made = Forge().registration()
    return {
        "policy": {
            "rpId": RP_ID,
            "origins": [ORIGIN],
            "requireUserVerification": True,
            "allowedAlgs": [-7, -65535],
            "attestation": "verify",
        },
        "expectedChallenge": base64url.encode(CHALLENGE),
        "response": {
            "id": "AAAA",
            "rawId": "AAAA",
            "type": "public-key",
            "response": {
                "clientDataJSON": base64url.encode(made["client_data"]),
                "attestationObject": base64url.encode(made["attestation_object"]),
            },
        },
    }
