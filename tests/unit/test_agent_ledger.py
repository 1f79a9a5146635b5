"""The ledger: whole files or none, private or refused, damaged or explained."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from keyvouch.errors import ConflictError, DeviceError, MalformedError, NotFoundError, Reason, UnavailableError
from keyvouch.ids import CredentialId
from keyvouch_agent.agent_ports import Answer
from keyvouch_agent.home import DAEMON_LOCK, Home
from keyvouch_agent.ledger import KeptAnswer, Ledger
from keyvouch_agent.ports import Assertion
from support.agent_records import sample_answer, sample_enrolment, sample_staged


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Home.open(tmp_path / "home"))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_every_record_comes_back_as_it_was_written(ledger: Ledger) -> None:
    enrolment, staged = sample_enrolment().enrolment, sample_staged()
    answer = sample_answer(enrolment.device_id)
    ledger.record(enrolment)
    ledger.stage(staged)
    ledger.keep(answer)
    assert ledger.enrolments() == (enrolment,)
    assert ledger.enrolment(enrolment.device_id) == enrolment
    assert ledger.staged() == (staged,)
    assert ledger.outbox(enrolment.device_id) == (answer,)
    assert ledger.outbox("dev_other") == ()


def test_an_answer_comes_back_byte_for_byte(ledger: Ledger) -> None:
    for user_handle in (None, b"user"):
        assertion = Assertion(CredentialId(b"c"), b"client", b"authenticator", b"signature", user_handle)
        answer = Answer("prm_x", b"statement", assertion=assertion)
        ledger.keep(KeptAnswer.of(answer, device_id="dev", expires_at=5))
        assert ledger.outbox("dev")[0].answer == answer
    denial = Answer("prm_x", b"statement", channel_signature=b"signature")
    ledger.keep(KeptAnswer.of(denial, device_id="dev", expires_at=5))
    assert ledger.outbox("dev")[0].answer == denial


def test_removing_an_enrolment_takes_its_answers_along(ledger: Ledger) -> None:
    enrolment = sample_enrolment().enrolment
    other = sample_answer("dev_other")
    ledger.record(enrolment)
    ledger.keep(sample_answer(enrolment.device_id))
    ledger.keep(other)
    ledger.remove(enrolment.device_id)
    assert (ledger.enrolments(), ledger.outbox(enrolment.device_id)) == ((), ())
    assert ledger.outbox("dev_other") == (other,)
    with pytest.raises(NotFoundError) as caught:
        ledger.enrolment(enrolment.device_id)
    assert caught.value.reason is Reason.NOT_ENROLLED


def test_files_and_folders_are_private_whatever_the_umask(ledger: Ledger) -> None:
    before = os.umask(0)
    try:
        ledger.record(sample_enrolment().enrolment)
    finally:
        os.umask(before)
    (path,) = (ledger.home.path / "enrolments").iterdir()
    assert (mode(ledger.home.path), mode(path.parent), mode(path)) == (0o700, 0o700, 0o600)


def test_secrets_are_not_in_the_repr() -> None:
    enrolment, staged = sample_enrolment().enrolment, sample_staged()
    assert repr(enrolment.channel_key) not in repr(enrolment)
    assert staged.registration_token not in repr(staged)


@pytest.mark.parametrize("where", ["home", "folder", "file"])
def test_what_others_may_read_is_refused(ledger: Ledger, where: str) -> None:
    ledger.record(sample_enrolment().enrolment)
    (file,) = (ledger.home.path / "enrolments").iterdir()
    path = {"home": ledger.home.path, "folder": file.parent, "file": file}[where]
    right = mode(path)
    path.chmod(right | 0o040)
    with pytest.raises(DeviceError) as caught:
        Ledger(Home.open(ledger.home.path)).enrolments()
    assert caught.value.reason is Reason.VAULT_PERMISSIONS
    assert str(path) in caught.value.fix
    path.chmod(right)
    assert len(ledger.enrolments()) == 1


def test_links_are_not_followed(ledger: Ledger, tmp_path: Path) -> None:
    ledger.record(sample_enrolment().enrolment)
    (file,) = (ledger.home.path / "enrolments").iterdir()
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(UnavailableError):
        ledger.enrolments()
    (tmp_path / "link").symlink_to(ledger.home.path)
    with pytest.raises(DeviceError) as caught:
        Home.open(tmp_path / "link")
    assert caught.value.reason is Reason.VAULT_PERMISSIONS


def damage(document: dict[str, object], kind: str) -> bytes:
    text = json.dumps(document)
    return {
        "cut": text[: len(text) // 2].encode(),
        "empty": b"",
        "not an object": b"[]",
        "a name twice": (text[:-1] + ', "username": "eve"}').encode(),
        "an unknown field": json.dumps({**document, "extra": 1}).encode(),
        "a missing field": json.dumps({k: v for k, v in document.items() if k != "server_id"}).encode(),
        "a wrong type": json.dumps({**document, "username": 7}).encode(),
        "lax base64": json.dumps({**document, "server_id": "AA=A"}).encode(),
        "another version": json.dumps({**document, "version": 2}).encode(),
        "another format": json.dumps({**document, "format": "keyvouch answer"}).encode(),
        "not UTF-8": text.encode("utf-16"),
        "NaN": (text[:-1] + ', "x": NaN}').encode(),
        "deep": b"[" * 100_000,
        "huge": b" " * 300_000 + text.encode(),
    }[kind]


DAMAGES = [
    "cut", "empty", "not an object", "a name twice", "an unknown field", "a missing field", "a wrong type",
    "lax base64", "another version", "another format", "not UTF-8", "NaN", "deep", "huge",
]  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_named_with_the_way_out(ledger: Ledger, kind: str) -> None:
    ledger.record(sample_enrolment().enrolment)
    (file,) = (ledger.home.path / "enrolments").iterdir()
    file.write_bytes(damage(json.loads(file.read_bytes()), kind))
    with pytest.raises(DeviceError) as caught:
        ledger.enrolments()
    assert caught.value.reason is Reason.LEDGER_CORRUPT
    assert str(file) in caught.value.message
    assert "enrol" in caught.value.fix


def test_rewriting_the_same_document_is_no_damage(ledger: Ledger) -> None:
    enrolment = sample_enrolment().enrolment
    ledger.record(enrolment)
    (file,) = (ledger.home.path / "enrolments").iterdir()
    file.write_bytes(json.dumps(json.loads(file.read_bytes())).encode())
    assert ledger.enrolments() == (enrolment,)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "a" * 100, "x\0y", "."])
def test_an_id_of_the_peer_names_no_path(ledger: Ledger, name: str) -> None:
    with pytest.raises(MalformedError):
        ledger.enrolment(name)


CRASH = """
import os, sys
from dataclasses import replace
from pathlib import Path
from keyvouch_agent.home import Home
home = Home(Path(sys.argv[1]))
moment, seen = int(sys.argv[2]), 0
def hook(event, arguments):
    global seen
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.fsync"):
        seen += 1
        if seen == moment:
            os._exit(9)
sys.addaudithook(hook)
home.write("enrolments/one.json", b"new" * 100000)
os._exit(0)
"""


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """The process dies at its first, second, ... step on the file system, until one run survives."""
    home = Home.open(tmp_path / "home")
    outcomes = []
    for moment in range(1, 20):
        home.write("enrolments/one.json", b"old")
        ended = subprocess.run([sys.executable, "-c", CRASH, str(home.path), str(moment)], check=False)
        outcomes.append(home.read("enrolments/one.json", longest=1 << 20))
        assert home.names("enrolments", ".json") == ["enrolments/one.json"]
        if ended.returncode == 0:
            break
        assert ended.returncode == 9
    assert outcomes[0] == b"old"
    assert outcomes[-1] == b"new" * 100000
    assert set(outcomes) == {b"old", b"new" * 100000}
    assert len(outcomes) >= 4


def test_no_room_changes_nothing_and_says_so(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    home.write("enrolments/one.json", b"old")
    program = (
        "import resource, signal, sys; from pathlib import Path; from keyvouch_agent.home import Home\n"
        "from keyvouch.errors import UnavailableError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try: Home(Path(sys.argv[1])).write('enrolments/one.json', b'n' * 100)\n"
        "except UnavailableError as error: sys.exit(7 if error.reason == 'store_unavailable' else 1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(home.path)], check=False)
    assert ended.returncode == 7
    assert home.read("enrolments/one.json", longest=10) == b"old"
    assert [p.name for p in (home.path / "enrolments").iterdir()] == ["one.json"]


def test_leftovers_of_a_crash_are_swept_once_they_are_old(ledger: Ledger) -> None:
    folder = ledger.home.folder("outbox")
    old, young = folder / ".writing-old", folder / ".writing-young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    ledger.sweep()
    assert (old.exists(), young.exists()) == (False, True)
    assert ledger.outbox("dev") == ()


def test_one_holder_per_lock(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    with home.lock(DAEMON_LOCK):
        with pytest.raises(ConflictError) as caught, home.lock(DAEMON_LOCK):
            pass
        assert caught.value.reason is Reason.AGENT_RUNNING
        assert caught.value.metadata == {"process": str(os.getpid())}
    with home.lock(DAEMON_LOCK):
        pass


@pytest.mark.parametrize("departing", [b"", b"stolen dev_a", b"lost", b"lost ../dev_a", b"lost dev_a\n", b"\xff dev_a"])
def test_a_staged_registration_with_a_departing_device_that_cannot_be_one_is_refused_H10(
    ledger: Ledger, departing: bytes
) -> None:
    staged = replace(sample_staged(), departing=(b"lost dev_a", b"replaced dev_b", b"unused dev_c"))
    ledger.stage(staged)
    assert ledger.staged() == (staged,)  # control
    with pytest.raises(MalformedError):
        replace(staged, departing=(departing,))
    (file,) = (ledger.home.path / "staged").iterdir()
    document = json.loads(file.read_bytes())
    document["departing"] = [base64.urlsafe_b64encode(departing).decode().rstrip("=")]
    file.write_bytes(json.dumps(document).encode())
    with pytest.raises(DeviceError) as caught:
        ledger.staged()
    assert caught.value.reason is Reason.LEDGER_CORRUPT
    assert "enroll" in caught.value.fix
