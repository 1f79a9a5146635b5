"""What does without python-pkcs11, and what is said where it is missing; what a PIV card may answer."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from keyvouch_agent.vaults.pkcs11 import piv
from keyvouch_bench.piv_card import VirtualPivCard
from keyvouch_bench.piv_card.attestation import BATCH
from keyvouch_bench.piv_card.authorities import Authority

_WITHOUT = """
import sys
sys.modules["pkcs11"] = None
from keyvouch.errors import DeviceError
from keyvouch_agent.vaults.pkcs11 import failures, module_path, uri
try:
    failures.require_library()
except DeviceError as error:
    print(error.reason, error.fix)
"""


def test_without_the_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.split()[0] == "unsupported"
    assert "keyvouch[pkcs11]" in done.stdout


@given(st.binary(max_size=200))
def test_any_answer_is_read_or_is_none(answer: bytes) -> None:
    with pytest.raises(piv._NoAnswerError):
        piv._certificate_in(answer)
    assert not piv.wants_pin_always((answer, answer))


def test_certificate_object_of_a_card_is_read() -> None:
    """The control."""
    card = VirtualPivCard.blank(Authority.root(BATCH))
    assert card.answer(piv._SELECT)[-2:] == b"\x90\x00"
    answer = card.answer(piv._GET_ATTESTER)
    content = b""
    while answer[-2] == 0x61:
        content += answer[:-2]
        answer = card.answer(bytes((0x00, 0xC0, 0x00, 0x00, answer[-1])))
    content += answer[:-2]
    assert x509.load_der_x509_certificate(piv._certificate_in(content))
    assert not piv.wants_pin_always(())


@pytest.mark.parametrize("reader", ["nobody's reader 00 00", ""])
def test_reader_that_is_not_there_gives_no_answer(reader: str) -> None:
    assert piv.count_tries(reader) is None
    piv.forget_pin(reader)
