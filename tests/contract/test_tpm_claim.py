"""A TPM without a resource manager has one connection at a time among the programs of one user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.tpm.claim import TpmClaim, claim_path
from keyvouch_agent.vaults.tpm.connection import TpmAccess, TpmSettings
from keyvouch_bench.swtpm import Swtpm

HOLD = """
import sys, time
from pathlib import Path
from keyvouch_agent.vaults.tpm.claim import TpmClaim
claim = TpmClaim.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_each_tpm_and_user_has_a_file_in_the_runtime_folder() -> None:
    one, other = (claim_path(f"swtpm:port={n}", {"XDG_RUNTIME_DIR": "/run/user/7"}) for n in (1, 2))
    assert one.parent == Path("/run/user/7")
    assert one != other
    assert f"-{os.geteuid()}-" in one.name
    assert claim_path("swtpm:port=1", {"XDG_RUNTIME_DIR": "somewhere"}).is_absolute()  # as its specification asks


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    first, taken = TpmClaim.take(tmp_path / "claim"), threading.Event()

    def wait() -> None:
        TpmClaim.take(tmp_path / "claim").release()
        taken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not taken.wait(0.1)
    first.release()
    first.release()
    assert taken.wait(10)
    thread.join()


def test_who_waited_in_vain_is_told(tmp_path: Path) -> None:
    with_it = TpmClaim.take(tmp_path / "claim")
    with pytest.raises(DeviceError, match="one at a time") as caught:
        TpmClaim.take(tmp_path / "claim", patience=0)
    assert caught.value.reason is Reason.TPM_BUSY
    with_it.release()
    TpmClaim.take(tmp_path / "claim", patience=0).release()


def test_the_claim_of_a_killed_program_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"held\n"
        with pytest.raises(DeviceError):
            TpmClaim.take(path, patience=0)
        program.send_signal(signal.SIGKILL)
        program.wait()
        TpmClaim.take(path).release()


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").touch()
    path.symlink_to(path.parent / "elsewhere")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("plant", [a_link, a_pipe])
def test_a_planted_file_is_refused(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "claim")
    refused(tmp_path / "claim")


def test_another_users_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "claim").touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    refused(tmp_path / "claim")


def refused(path: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        TpmClaim.take(path)
    assert caught.value.reason is Reason.TPM_PERMISSION
    assert caught.value.metadata["path"] == str(path)


def test_connections_take_turns(tpm: Swtpm) -> None:
    access, order = TpmAccess(TpmSettings(tcti=tpm.tcti)), list[str]()
    first = access.open()

    def second() -> None:
        with access.open():
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.2)
    order.append("first ends")
    first.close()
    thread.join(10)
    assert order == ["first ends", "second"]


def test_a_connection_that_cannot_be_made_leaves_no_claim() -> None:
    access = TpmAccess(TpmSettings(tcti="swtpm:host=127.0.0.1,port=1"))
    for _ in range(2):
        with pytest.raises(DeviceError) as caught:
            access.open()
        assert caught.value.reason is Reason.TPM_UNAVAILABLE
    TpmClaim.take(claim_path(access.configuration, os.environ), patience=0).release()
