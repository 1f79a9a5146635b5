"""The part of the pytest plugin `keyvouch` that is about smartcards and PKCS#11 tokens, all without hardware.

    def test_one(piv_card):                  # a blank PIV card in a reader of the real pcscd (`PivReader`)
        piv_card.card.answer(...); piv_card.card.faults.remove_at(2); piv_card.remove(); piv_card.insert()
    def test_two(issued_piv_card):           # one that an organisation has issued: issued_piv_card.card.pin
    def test_three(piv_root):                # the root that vouches for these cards, a PEM file for a server
    def test_four(softhsm):                  # a SoftHSM2 token of its own; softhsm.hsm.make_token("another") for more

Programs find the card with `piv_card.environment`, and the tokens with `softhsm.environment`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from keyvouch_bench.pcscd import PrivatePcscd
    from keyvouch_bench.piv_card import Authority
    from keyvouch_bench.piv_card.reader import PivReader
    from keyvouch_bench.softhsm import SoftHsm, SoftHsmToken

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def piv_batch() -> Authority:
    """The maker of this test process: what vouches for the attestation keys of its cards."""
    from keyvouch_bench.piv_card import Authority  # heavy
    from keyvouch_bench.piv_card.attestation import BATCH

    return Authority.root(BATCH)


@pytest.fixture(scope="session")
def piv_issuer() -> Authority:
    """The organisation that issues the cards of `issued_piv_card`."""
    from keyvouch_bench.piv_card import Authority  # heavy

    return Authority.root("Keyvouch Test Organisation")


@pytest.fixture
def piv_root(piv_batch: Authority, tmp_path: Path) -> Path:
    """The root of the attestations of these cards, as a PEM file."""
    path = tmp_path / "piv-root.pem"
    path.write_bytes(piv_batch.pem)
    return path


@pytest.fixture
def piv_card(piv_batch: Authority, private_pcscd: PrivatePcscd) -> Iterator[PivReader]:
    """A fresh blank card, in the reader: not in the slot of `fido_reader`, so a test can have both."""
    from keyvouch_bench.piv_card import VirtualPivCard  # heavy
    from keyvouch_bench.piv_card.reader import PivReader

    with PivReader(VirtualPivCard.blank(piv_batch), private_pcscd, slot=1) as reader:
        yield reader


@pytest.fixture
def issued_piv_card(piv_card: PivReader, piv_issuer: Authority) -> PivReader:
    """A fresh card that `piv_issuer` has issued, in the reader: four P-256 keys with certificates."""
    piv_card.card.personalise(piv_issuer)
    return piv_card


@pytest.fixture(scope="session")
def softhsm_folder(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    """The tokens of this test process, which knows no others."""
    from keyvouch.errors import UnavailableError  # heavy
    from keyvouch_bench.softhsm import SoftHsm

    try:
        hsm = SoftHsm(tmp_path_factory.mktemp("softhsm"))
    except UnavailableError as error:
        pytest.fail(str(error), pytrace=False)
    hsm.claim()
    return hsm


@pytest.fixture
def softhsm(softhsm_folder: SoftHsm) -> Iterator[SoftHsmToken]:
    """A fresh token, gone after the test."""
    from keyvouch.errors import UnavailableError  # heavy

    token = softhsm_folder.make_token(f"keyvouch-{next(_NUMBERS)}")
    yield token
    with suppress(UnavailableError):  # the test has removed it itself
        token.remove()
