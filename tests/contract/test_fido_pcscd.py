"""The private pcscd of the bench: the real daemon and vpcd, out of reach for others, and gone with their owner."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyvouch.errors import Reason, UnavailableError, UsageError
from keyvouch_bench.pcscd import READER, SLOTS, PrivatePcscd

OWNER = """
import os, pathlib, sys
from keyvouch_bench.pcscd import PrivatePcscd
pcscd = PrivatePcscd(pathlib.Path(sys.argv[1]))
pcscd.start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pcscd(socket_directory: Path) -> Iterator[PrivatePcscd]:
    """One beside that of the test process; it is spoken to without pyscard, which knows one only."""
    with PrivatePcscd(socket_directory) as running:
        yield running


def is_up(pcscd: PrivatePcscd) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(pcscd.socket_path)) == 0


def asks_for_its_atr(card: socket.socket) -> bool:
    """What vpcd says first to a card that it has seen."""
    card.settimeout(20)
    said = b""
    while len(said) < 3 and (more := card.recv(3 - len(said))):
        said += more
    return said == b"\x00\x01\x04"


def test_it_answers_and_sees_a_card_in_each_slot(pcscd: PrivatePcscd) -> None:
    assert is_up(pcscd)
    for slot in range(SLOTS):
        with pcscd.connect(slot) as card:
            assert asks_for_its_atr(card)
    with pytest.raises(UsageError, match="no slot 2"):
        pcscd.connect(SLOTS)


def test_two_know_nothing_of_each_other(pcscd: PrivatePcscd, tmp_path: Path) -> None:
    with PrivatePcscd(tmp_path / "b") as other, pcscd.connect() as one, other.connect() as two:
        assert asks_for_its_atr(one)
        assert asks_for_its_atr(two)


def test_nobody_outside_reaches_its_port(pcscd: PrivatePcscd) -> None:
    """vpcd listens on every address it can see; those of this computer are not among them."""
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", 0x8C7B)) != 0
    with pcscd.port() as port, socket.create_connection(("127.0.0.1", port), 20) as control:
        assert asks_for_its_atr(control)


def test_it_starts_again_where_it_was(pcscd: PrivatePcscd) -> None:
    with pcscd.connect() as card:
        assert asks_for_its_atr(card)
        pcscd.restart()
        assert card.recv(1) == b""
    assert is_up(pcscd)
    with pcscd.connect() as card:
        assert asks_for_its_atr(card)


def test_nothing_is_left_behind(pcscd: PrivatePcscd) -> None:
    pcscd.end()
    assert not is_up(pcscd)
    pcscd.end()
    with pytest.raises(UsageError, match="does not run"):
        pcscd.connect()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_it_dies_with_its_owner(socket_directory: Path, how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(socket_directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        seen = PrivatePcscd(socket_directory)  # not started: it only knows where to look
        assert is_up(seen)
        owner.send_signal(how)
        owner.wait(20)
    end = time.monotonic() + 20
    while is_up(seen) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_up(seen)


def test_a_missing_program_is_named_with_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"unshare is missing.*apt-get install pcscd") as caught:
        PrivatePcscd(tmp_path).start()
    assert caught.value.reason is Reason.CONFIGURATION


def test_a_process_has_one_pcscd(pcscd: PrivatePcscd, private_pcscd: PrivatePcscd) -> None:
    import smartcard  # noqa: F401 - settles it

    private_pcscd.claim()
    with pytest.raises(UsageError, match="already uses another"):
        pcscd.claim()
    assert os.environ["PCSCLITE_CSOCK_NAME"] == str(private_pcscd.socket_path)


def test_pyscard_sees_the_reader(private_pcscd: PrivatePcscd) -> None:
    from smartcard.System import readers

    assert [each.name for each in readers()] == [f"{READER} 00 {slot:02X}" for slot in range(SLOTS)]
