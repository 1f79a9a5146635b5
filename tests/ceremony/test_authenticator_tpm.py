"""`authenticator serve --vault tpm` on an emulated TPM: wrong PINs, a reset, and a kill in the middle of each.

Whatever happens, at most one NV index of ours is in the TPM, and after a reset none.
"""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import read_contents
from support.served_authenticator import ServedAuthenticator, run_client, start_client, wait_until_missed

TRY = """
def attempt(text):
    try:
        pin.get_pin_token(text, 1, "example.org")
        return "right"
    except CtapError as error:
        return error.code.name
"""
WITH_PIN = "from fido2.ctap import CtapError\npin = ClientPin(ctap)\n" + TRY
SET = "pin.set_pin('492817')\n"
IS_SET = "print(ctap.get_info().options['clientPin'])\n"
STANDING = IS_SET + "print(pin.get_pin_retries()[0])\n"
KILLS = 4


@pytest.fixture
def pcscd(socket_directory: Path) -> Iterator[PrivatePcscd]:
    with PrivatePcscd(socket_directory) as running:
        yield running


class Stand:
    """One home, one TPM, one reader."""

    def __init__(self, home: Path, tpm: Swtpm, pcscd: PrivatePcscd, port: int) -> None:
        home.mkdir(mode=0o700)
        settings = home / "agent.toml"
        settings.touch(0o600)
        settings.write_text(f'[tpm]\ntcti = "{tpm.tcti}"\n')
        self.home, self.tpm, self.pcscd, self.port = home, tpm, pcscd, port
        self.before = self.indices()

    def indices(self) -> frozenset[int]:
        return frozenset(read_contents(self.tpm.tcti).nv_indices)

    @property
    def left(self) -> int:
        """NV indices that are there beside those of the maker."""
        return len(self.indices() - self.before)

    def serve(self) -> ServedAuthenticator:
        address = f"127.0.0.1:{self.port}"
        arguments = ("--transport", "pcsc", "--vault", "tpm", "--presence", "auto", "--vpcd", address)
        return ServedAuthenticator(self.home, *arguments)

    def client(self, code: str) -> list[str]:
        return run_client(self.pcscd.environment, WITH_PIN + code).split()

    def gone(self) -> None:
        wait_until_missed(self.pcscd.environment)


@pytest.fixture
def stand(tmp_path: Path, tpm: Swtpm, pcscd: PrivatePcscd) -> Iterator[Stand]:
    with pcscd.port() as port:
        yield Stand(tmp_path / "home", tpm, pcscd, port)


def test_wrong_pins_are_counted_over_kills_and_a_reset_leaves_nothing(stand: Stand) -> None:
    with stand.serve() as served:
        assert stand.client(SET + "print(*(attempt('000000') for _ in range(4)))\n" + STANDING) == [
            *["PIN_INVALID"] * 2,
            *["PIN_AUTH_BLOCKED"] * 2,
            "True",
            "5",
        ]
        served.end(signal.SIGKILL)
    assert stand.left == 1
    stand.gone()
    with stand.serve() as served:
        assert stand.client(STANDING + "print(attempt('000000'), attempt('492817'))\n" + STANDING) == [
            *("True", "5", "PIN_INVALID", "right", "True", "8")
        ]
        assert stand.client("ctap.reset()\n" + IS_SET) == ["False"]
        assert stand.left == 0
        assert stand.client(SET + "print(attempt('492817'))") == ["right"]  # control: it goes on
        assert stand.left == 1
        assert served.end() == 0


@pytest.mark.parametrize("act", ["pin.set_pin('492817')", "pin.change_pin('492817', '7777777')", "ctap.reset()"])
def test_a_kill_in_the_middle_leaves_one_account_or_none(stand: Stand, act: str) -> None:
    moments = random.Random(act)
    for _ in range(KILLS):
        with stand.serve() as served:
            if stand.client(IS_SET) == ["False"] and "set_pin" not in act:
                stand.client(SET)
            acting = start_client(stand.pcscd.environment, WITH_PIN + "print('now', flush=True)\n" + act)
            assert acting.stdout is not None
            assert acting.stdout.readline().strip() == "now"
            with suppress(subprocess.TimeoutExpired):
                acting.wait(moments.uniform(0.0, 0.4))
            served.end(signal.SIGKILL)
            acting.kill()
            acting.communicate()
        assert stand.left <= 1
        stand.gone()
    with stand.serve() as served:
        if stand.client(IS_SET) == ["True"]:
            assert "right" in stand.client("print(attempt('492817'), attempt('7777777'))")
        stand.client("ctap.reset()\n")
        assert stand.left == 0
        assert stand.client(SET + "print(attempt('492817'))") == ["right"]
        served.end()
