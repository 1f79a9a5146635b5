"""What a token may answer in place of a signature, and a module that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keyvouch.cose import Algorithm
from keyvouch.errors import Reason
from keyvouch_agent.vaults.pkcs11 import signing
from keyvouch_agent.vaults.pkcs11.library import TokenLibrary
from support.forge import Forge
from support.pkcs11_tokens import reason_of

FORGE = Forge()


class Answering:
    """A private key that answers this."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def sign(self, data: bytes, *, mechanism: Any, pin: str | None) -> bytes:
        return self.answer


@pytest.mark.parametrize("answer", [b"", b"\x01", bytes(63)])
def test_answer_that_is_not_two_numbers(answer: bytes) -> None:
    key = Answering(answer)
    assert reason_of(lambda: signing.sign(key, Algorithm.ES256, b"m", set(), None)) is Reason.DEVICE_FAILED


def test_two_numbers_become_der() -> None:
    """The control."""
    raw = (5).to_bytes(32, "big") + (7).to_bytes(32, "big")
    assert decode_dss_signature(signing.sign(Answering(raw), Algorithm.ES256, b"m", set(), None)) == (5, 7)


def test_only_the_registered_key_s_signature_is_given_out() -> None:
    public, other = bytes(FORGE.public_key), Forge()
    good = FORGE.sign(b"message")
    assert signing.checked(good, b"message", public) == good
    for wrong in (other.sign(b"message"), FORGE.sign(b"another"), b"", b"\x30\x00", good + b"\0"):
        assert reason_of(lambda wrong=wrong: signing.checked(wrong, b"message", public)) is Reason.DEVICE_KEY_LOST  # type: ignore[misc]


def test_file_that_is_no_module() -> None:
    library = TokenLibrary(Path("/etc/passwd"))
    assert reason_of(library.tokens) is Reason.MODULE_UNAVAILABLE
    library.release()
    library.close()
