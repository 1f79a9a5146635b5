"""`doctor` and `tpm` as people use them: real processes, emulated TPMs, a server that knows their maker."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC, TSS2_Exception

from keyvouch_agent.commands.tpm_findings import tpm_findings
from keyvouch_agent.home import Home
from keyvouch_agent.key_holders import KeyHolderSet
from keyvouch_agent.ledger import Ledger
from keyvouch_agent.system import SystemClock
from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import connected, read_contents
from support.kill_points import wait_until
from support.shell_terminal import shell_terminal
from support.tpm_agent import PIN, TpmAgent, tpm_agent
from support.tpm_home import TpmHome

Make = Callable[..., Swtpm]
JOIN = "Run `sudo usermod -aG tss $USER`, then log out and in again."


@pytest.fixture
async def ada(
    server_template: Path, tmp_path: Path, socket_directory: Path, tpm_factory: Make
) -> AsyncIterator[TpmAgent]:
    """Ada's device, enrolled."""
    async with tpm_agent(server_template, tmp_path, socket_directory / "home", tpm_factory()) as made:
        await made.enrol()
        yield made


@pytest.fixture
def stranger(tmp_path: Path) -> TpmAgent:
    """A home on which nobody is enrolled, on a machine without a TPM. It has no server either."""
    home = tmp_path / "home"
    Home.open(home)
    return TpmAgent(live=None, chip=None, home=home)  # type: ignore[arg-type]


def lock_out(chip: Swtpm, password: bytes = b"") -> None:
    """Wrong passwords for an object of the owner's, until the TPM takes no more."""
    with connected(chip.tcti) as esys:
        area = TPM2B_NV_PUBLIC(
            nvPublic=TPMS_NV_PUBLIC(
                nvIndex=0x01500001, nameAlg=TPM2_ALG.SHA256, attributes=TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE, dataSize=8
            )
        )
        index = esys.nv_define_space(b"right", area)
        esys.tr_set_auth(index, b"wrong")
        for _ in range(3):
            with pytest.raises(TSS2_Exception):
                esys.nv_write(index, bytes(8), 0, index)
        if password:
            esys.hierarchy_change_auth(ESYS_TR.LOCKOUT, password)


@contextmanager
def held(chip: Swtpm) -> Iterator[None]:
    """Another program has the TPM to itself: an emulated one serves one connection at a time."""
    with socket.create_connection(("127.0.0.1", chip.port)) as connection:
        connection.sendall(bytes.fromhex("80010000000c0000017b0008"))  # TPM2_GetRandom
        assert connection.recv(100)
        yield


async def checks(agent: TpmAgent, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code of `doctor`, and its checks by name; of several with a name, the first that is not ok."""
    code, out, err = await agent.command("doctor", "--json", **environment)
    found: dict[str, dict[str, Any]] = {}
    for check in json.loads(out)["checks"]:
        if found.get(check["check"], {"ok": True})["ok"]:
            found[check["check"]] = check
    assert err.count("\n") == 1, err
    return code, found


# doctor


async def test_doctor_of_a_machine_without_a_tpm_finds_nothing_wrong(stranger: TpmAgent) -> None:
    code, found = await checks(stranger, TSS2_TCTI="device:/dev/tpmrm-none")
    device = found["tpm device"]
    assert (code, device["ok"], device["optional"]) == (0, False, True)
    assert "firmware settings" in device["fix"]
    assert "tpm" not in found
    assert not (stranger.home / "vault-tpm").exists()


async def test_doctor_without_the_library_says_what_to_install(stranger: TpmAgent, tmp_path: Path) -> None:
    package = tmp_path / "path" / "tpm2_pytss"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libtss2-esys.so.0: cannot open shared object file')\n")
    path = os.pathsep.join((str(package.parent), os.environ.get("PYTHONPATH", "")))
    code, found = await checks(stranger, PYTHONPATH=path)
    assert (code, found["tpm library"]["ok"], found["tpm library"]["optional"]) == (0, False, True)
    assert "libtss2-dev" in found["tpm library"]["fix"]


async def test_doctor_of_an_enrolled_device_without_the_library_has_a_problem(ada: TpmAgent, tmp_path: Path) -> None:
    package = tmp_path / "path" / "tpm2_pytss"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError\n")
    code, found = await checks(ada, PYTHONPATH=str(package.parent))
    assert (code, found["tpm library"]["optional"]) == (1, False)
    assert "libtss2-dev" in found["key of ada of example"]["fix"]


def test_doctor_of_a_user_outside_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tpmrm0").touch()
    home = TpmHome.at(tmp_path / "home", f"device:{tmp_path / 'tpmrm0'}").home
    monkeypatch.setattr("os.access", lambda *_: False)  # root may do everything
    found = {f.check: f for f in tpm_findings(KeyHolderSet(home, SystemClock()), home)}
    assert (found["tpm device"].fix, found["tpm device"].optional) == (JOIN, True)
    assert "tpm" not in found


async def test_doctor_tells_a_tpm_from_its_library_to_each_key(ada: TpmAgent) -> None:
    code, out, err = await ada.command("doctor")
    assert code == 0, out + err
    for words in (
        f"ok      tpm device: {ada.chip.tcti} (from agent.toml), without a resource manager",
        "ok      tpm: IBM, SW TPM, firmware 8217.",
        "note    tpm: this TPM is an emulated one: its keys are in software",
        "ok      tpm keys: it makes ES256, ES384, RS256",
        "ok      tpm maker's certificate: 0x01C00016: P-384, by unregistered maker id:00001014, model swtpm",
        "ok      tpm maker's certificate: 0x01C00002: RSA-2048",
        "ok      tpm lockout: no lockout (0 of 3 wrong passwords counted)",
        "ok      key of ada of example: usable, 3 of 3 PIN tries left",
    ):
        assert words in out
    assert "leftovers" not in out
    async with ada.running():
        code, told = await checks(ada)
        assert (code, told["agent"]["ok"], told["key of ada of example"]["ok"]) == (0, True, True)


async def test_doctor_tells_what_is_in_the_way(ada: TpmAgent) -> None:
    with connected(ada.chip.tcti) as esys:
        esys.hierarchy_change_auth(ESYS_TR.ENDORSEMENT, b"secret")
        esys.hierarchy_change_auth(ESYS_TR.OWNER, b"secret")
    (ada.home / "vault-tpm" / "0123456789abcdef").mkdir(mode=0o700)
    ada.settings(endorsement_certificate=str(ada.home / "none.pem"))
    code, found = await checks(ada)
    assert code == 1
    assert "owner_auth_file" in found["tpm owner password"]["fix"]
    assert "endorsement_auth_file" in found["tpm endorsement password"]["fix"]
    assert "cannot be read" in found["tpm maker's certificate"]["detail"]
    assert "0123456789abcdef" in found["tpm leftovers"]["detail"]
    assert found["key of ada of example"]["detail"].startswith("The TPM's owner has set a password")


@pytest.mark.parametrize(
    ("profile", "ok", "words"),
    [("no-ek-certificate", False, "where policy wants attested keys"), ("non-der-certificate", True, "not quite DER")],
)
async def test_doctor_and_the_makers_certificate(
    stranger: TpmAgent, tpm_factory: Make, profile: str, ok: bool, words: str
) -> None:
    code, found = await checks(stranger, TSS2_TCTI=tpm_factory(profile).tcti)
    certificate = found["tpm maker's certificate"]
    assert (code, certificate["ok"], words in certificate["detail"]) == (0, ok, True)
    assert "from $TSS2_TCTI" in found["tpm device"]["detail"]


async def test_doctor_and_a_tpm_that_does_not_answer(ada: TpmAgent) -> None:
    ada.chip.power_cut()
    code, found = await checks(ada)
    assert (code, found["tpm"]["ok"], found["tpm"]["optional"]) == (1, False, False)
    assert "[tpm] tcti" in found["tpm"]["fix"]
    assert "doctor" not in found["key of ada of example"]["fix"]


async def test_a_tpm_that_another_program_has_is_not_waited_for_for_ever(ada: TpmAgent) -> None:
    began = time.monotonic()
    with held(ada.chip):
        code, told = await ada.asked("tpm", "status")
        assert time.monotonic() - began < 30
        assert (code, told["error"]["reason"], told["tpm"]) == (1, "tpm_busy", None)
        assert told["accounts"][0]["error"]["reason"] == "tpm_busy"
    assert (await ada.asked("tpm", "status"))[0] == 0


# tpm status


async def test_status_for_people_and_for_programs(ada: TpmAgent) -> None:
    code, out, _ = await ada.command("tpm", "status")
    lines = out.splitlines()
    assert (code, lines[0][:19]) == (0, "TPM       IBM, SW T")
    head = next(i for i, line in enumerate(lines) if line.startswith("user "))
    assert lines[head].split("  ")[0] == "user"
    row = lines[head + 1]
    assert row.startswith(f"ada of example  {ada.enrolment.device_id}  usable  3 of 3     0x0180")
    assert row.endswith("in the TPM")
    code, told = await ada.asked("tpm", "status")
    (account,) = told["accounts"]
    assert (account["usable"], account["error"], account["pin_tries_left"], account["pin_limit"]) == (True, None, 3, 3)
    assert account["attestation_certificate_until"].startswith("20")
    assert (account["channel_key_in_tpm"], told["tpm"]["emulated"], told["origin"]) == (True, True, "agent.toml")
    assert await ada.command("status") != await ada.command("tpm", "status")


@pytest.mark.parametrize(
    ("state", "reason"),
    [("cleared", "tpm_cleared"), ("undefined", "device_key_lost"), ("no file", "device_key_lost")],
)
async def test_h10_status_names_what_became_of_a_key(ada: TpmAgent, state: str, reason: str) -> None:
    _, told = await ada.asked("tpm", "status")
    handle = int(told["accounts"][0]["nv_index"], 16)
    if state == "no file":
        (key_file,) = (ada.home / "vault-tpm" / ada.enrolment.account).glob("*.pem")
        key_file.unlink()
    else:
        with connected(ada.chip.tcti) as esys:
            if state == "cleared":
                esys.clear(ESYS_TR.LOCKOUT)
            else:
                esys.nv_undefine_space(esys.tr_from_tpmpublic(handle))
    code, told = await ada.asked("tpm", "status")
    (account,) = told["accounts"]
    assert (code, account["usable"], account["error"]["reason"]) == (1, False, reason)
    _, out, _ = await ada.command("tpm", "status")
    assert f"  {reason}  " in out
    assert account["error"]["fix"] in out


async def test_h10_a_cleared_tpm_and_the_way_back(ada: TpmAgent) -> None:
    old = ada.enrolment.device_id
    with connected(ada.chip.tcti) as esys:
        esys.clear(ESYS_TR.LOCKOUT)
    code, told = await ada.asked("rekey", "--pin-fd", "@", secrets=(PIN,))
    assert (code, told["error"]["reason"]) == (1, "tpm_cleared")
    await ada.enrol("ada", "--replace")
    assert ada.enrolment.device_id != old
    async with ada.running():
        await ada.signs_in()
    code, told = await ada.asked("tpm", "status")
    assert (code, len(told["accounts"]), told["abandoned"]) == (0, 1, [])


# tpm unlock


async def test_unlock_ends_a_lockout_and_nothing_else(ada: TpmAgent) -> None:
    code, out, _ = await ada.command("tpm", "unlock")
    assert (code, out.splitlines()[0]) == (0, "There is nothing to reset: no lockout (0 of 3 wrong passwords counted).")
    lock_out(ada.chip)
    _, found = await checks(ada)
    assert "tpm unlock" in found["tpm lockout"]["fix"]
    assert found["key of ada of example"]["ok"]
    code, told = await ada.asked("tpm", "unlock")
    assert (code, told) == (0, {"reset": True})
    assert ada.chip.lockout_counter() == 0
    _, out, _ = await ada.command("tpm", "unlock")
    assert "access pass" in out.splitlines()[1]


async def test_unlock_with_a_password(ada: TpmAgent) -> None:
    lock_out(ada.chip, b"the owner's")
    code, told = await ada.asked("tpm", "unlock")
    assert (code, told["error"]["reason"]) == (2, "usage")  # there is no terminal to ask on
    code, told = await ada.asked("tpm", "unlock", "--lockout-auth-fd", "@", secrets=("the owner's",))
    assert (code, told) == (0, {"reset": True})


async def test_unlock_with_a_wrong_password(ada: TpmAgent) -> None:
    lock_out(ada.chip, b"the owner's")
    code, told = await ada.asked("tpm", "unlock", "--lockout-auth-fd", "@", secrets=("a guess",))
    assert (code, told["error"]["reason"]) == (1, "tpm_owner_auth")
    assert "1000 seconds" in told["error"]["fix"]
    code, told = await ada.asked("tpm", "unlock", "--lockout-auth-fd", "@", secrets=("the owner's",))
    assert (code, told["error"]["reason"]) == (1, "tpm_lockout")
    assert not ada.chip.loaded_handles()


def test_unlock_asks_unseen(tpm_factory: Make, tmp_path: Path) -> None:
    chip = tpm_factory()
    lock_out(chip, b"hush")
    TpmHome.at(tmp_path / "home", chip.tcti)
    with shell_terminal(tmp_path, {**os.environ}) as terminal:
        terminal.type(f"{sys.executable} -m keyvouch_agent --home {tmp_path / 'home'} tpm unlock")
        answers = {"Password of the TPM's lockout: ": lambda: "hush"}
        wait_until(lambda: terminal.answer(answers) or terminal.status() is not None, terminal.screen)
        shown = terminal.screen
        assert terminal.status() == 0, shown
    assert "The TPM's lockout is reset" in shown
    assert "hush" not in shown


# tpm forget


async def test_forget_wants_to_know_which(ada: TpmAgent) -> None:
    for arguments in ((), ("ada", "--abandoned")):
        assert (await ada.asked("tpm", "forget", *arguments))[0] == 2
    code, told = await ada.asked("tpm", "forget", "eve")
    assert (code, told["error"]["reason"]) == (1, "not_enrolled")


async def test_forget_an_enrolled_account_only_when_it_is_meant(ada: TpmAgent) -> None:
    before, device_id = read_contents(ada.chip.tcti), ada.enrolment.device_id
    code, told = await ada.asked("tpm", "forget", "ada")
    assert (code, told["error"]["reason"]) == (1, "already_enrolled")
    assert "unregister" in told["error"]["fix"]
    async with ada.running():
        code, out, _ = await ada.command("tpm", "forget", device_id, "--yes")
        assert (code, "The server still lists this device" in out, "not in the TPM any more" in out) == (0, True, True)
        assert (await ada.asked("status"))[1]["enrolments"] == []
    after = read_contents(ada.chip.tcti)
    assert len(before.nv_indices - after.nv_indices) == 1
    assert (after.persistent, after.loaded) == (before.persistent, frozenset())
    assert not list((ada.home / "vault-tpm").iterdir())
    assert Ledger(Home.open(ada.home)).enrolments() == ()


async def test_forget_what_interrupted_enrolments_left_behind(ada: TpmAgent, tmp_path: Path) -> None:
    left = TpmHome.at(tmp_path / "left", ada.chip.tcti).enrol()
    left.folder.rename(ada.home / "vault-tpm" / "0123456789abcdef")
    assert (await ada.asked("tpm", "status"))[1]["abandoned"] == ["0123456789abcdef"]
    with_it = read_contents(ada.chip.tcti).nv_indices
    code, told = await ada.asked("tpm", "forget", "--abandoned")
    assert (code, [f["account"] for f in told["forgotten"]], told["left"]) == (0, ["0123456789abcdef"], [])
    assert len(with_it - read_contents(ada.chip.tcti).nv_indices) == 1
    _, out, _ = await ada.command("tpm", "forget", "--abandoned")
    assert out == "Nothing was left behind in the TPM.\n"
    async with ada.running():
        await ada.signs_in()


async def test_forget_an_account_whose_record_is_damaged(ada: TpmAgent, tmp_path: Path) -> None:
    left = TpmHome.at(tmp_path / "left", ada.chip.tcti).enrol()
    left.record.write_bytes(b"damaged")
    left.folder.rename(ada.home / "vault-tpm" / "0123456789abcdef")
    code, told = await ada.asked("tpm", "forget", "--abandoned")
    assert (code, told["left"][0]["error"]["reason"]) == (1, "vault_corrupt")
    _, out, _ = await ada.command("tpm", "forget", "--abandoned")
    assert "`keyvouch-agent tpm forget 0123456789abcdef --yes` erases its files." in out
    code, out, _ = await ada.command("tpm", "forget", "0123456789abcdef", "--yes")
    assert (code, "tpm2_getcap handles-nv-index" in out) == (0, True)
    assert not (ada.home / "vault-tpm" / "0123456789abcdef").exists()


async def test_forget_while_the_tpm_is_away_forgets_nothing(ada: TpmAgent) -> None:
    ada.chip.power_cut()
    code, told = await ada.asked("tpm", "forget", "ada", "--yes")
    assert (code, told["error"]["reason"]) == (1, "tpm_unavailable")
    ada.chip.start()
    async with ada.running():
        await ada.signs_in()


# The other commands


async def test_the_pin_of_an_account_in_the_tpm(ada: TpmAgent) -> None:
    code, told = await ada.asked("pin", "--status")
    assert (code, told["retries_left"], told["protection"]) == (0, 3, "emulated-hardware")
    code, told = await ada.asked("pin", "--pin-fd", "@", "--new-pin-fd", "@", secrets=(PIN, "918273"))
    assert code == 0, told
    opened = None
    async with ada.running():
        opened = await ada.live.begin("ada")
        code, told = await ada.approve(opened)
        assert (code, told["error"]["reason"], told["error"]["retries_left"]) == (1, "pin_wrong", 2)
        code, told = await ada.approve(opened, "918273")
        assert code == 0, told


async def test_a_home_without_an_account_in_the_tpm_has_no_pin_there(stranger: TpmAgent) -> None:
    code, told = await stranger.asked("pin", "--provider", "tpm", "--new-pin-fd", "@", secrets=(PIN,))
    assert (code, told["error"]["reason"]) == (1, "key_not_found")
    assert "enroll --provider tpm" in told["error"]["fix"]


async def test_no_new_pin_for_an_account_whose_record_is_gone(ada: TpmAgent) -> None:
    (ada.home / "vault-tpm" / ada.enrolment.account / "account.cbor").unlink()
    code, told = await ada.asked("pin", "--new-pin-fd", "@", secrets=(PIN,))
    assert (code, told["error"]["reason"]) == (1, "device_key_lost")
