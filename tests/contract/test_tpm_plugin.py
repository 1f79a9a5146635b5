"""The pytest plugin that ships with the wheel: its fixtures, a TPM handed in, and what it says if something lacks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from keyvouch_bench.swtpm import Swtpm
from keyvouch_bench.tpm_contents import TpmContents, TpmDevice, connected, read_contents
from keyvouch_bench.tpm_faults import FaultPlan, FaultyTpm
from support.programs import run_python

HEAVY = ("tpm2_pytss", "grpc", "cryptography", "google.protobuf", "keyvouch", "keyvouch_bench.swtpm")
LEAVES_A_KEY = """
from tpm2_pytss import ESAPI, TCTILdr
def test_it(tpm):
    with TCTILdr.parse(tpm.tcti) as tcti, ESAPI(tcti) as esys:
        handle, *_ = esys.create_primary(None, "ecc256")
        if {clean}:
            esys.flush_context(handle)
"""

Make = Callable[..., Swtpm]


def run_pytest(folder: Path, *arguments: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """pytest on a folder of its own in a fresh interpreter, after the statements `first`."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider --strict-markers\n")
    code = f"import sys\n{first}\nimport pytest\nstatus = pytest.main(sys.argv[1:])\nprint('LOADED', *sys.modules)\n"
    return run_python(f"{code}\nsys.exit(status)", str(folder), *arguments)


def write_test(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "test_written.py").write_text(text)
    return folder


# The fixtures


def test_each_test_gets_a_running_tpm(tpm: Swtpm | TpmDevice):
    assert read_contents(tpm.tcti).loaded == tpm.loaded_handles() == frozenset()
    assert tpm.lockout_counter() >= 0


@pytest.mark.tpm_profile("no-ek-certificate")
def test_the_marker_names_the_profile(tpm: Swtpm):
    assert read_contents(tpm.tcti).nv_indices == frozenset()


@pytest.mark.tpm_profile("with-srk", chip=1)
def test_the_marker_may_name_the_chip_too(tpm: Swtpm, tpm_factory: Make):
    assert 0x81000001 in read_contents(tpm.tcti).persistent
    assert names_of(tpm) == names_of(tpm_factory(chip=1)) != names_of(tpm_factory())


def names_of(tpm: Swtpm) -> bytes:
    with connected(tpm.tcti) as esys:
        _, name, _ = esys.read_public(esys.tr_from_tpmpublic(0x81010001))
        return bytes(name)


def test_several_tpms_run_side_by_side(tpm: Swtpm | TpmDevice, tpm_factory: Make):
    others = [tpm_factory(), tpm_factory("rsa-ek")]
    assert len({tpm.tcti, *(other.tcti for other in others)}) == 3
    assert all(other.running for other in others)


def test_the_faulty_tpm_is_the_tpm_of_the_test(tpm: Swtpm | TpmDevice, tpm_with_faults: FaultyTpm):
    assert tpm_with_faults.tcti == tpm.tcti
    with tpm_with_faults.connections(FaultPlan())() as tcti:
        tcti.transmit(bytes.fromhex("80010000000c0000017b0001"))
        assert len(tcti.receive()) == 13


def test_an_unknown_profile_is_an_error(tmp_path: Path):
    text = "import pytest\n@pytest.mark.tpm_profile('made of wood')\ndef test_it(tpm): pass\n"
    done = run_pytest(write_test(tmp_path / "t", text))
    assert done.returncode == 1
    assert "'made of wood' is not a valid Profile" in done.stdout


# A TPM handed in


@pytest.mark.parametrize(
    ("place", "tcti"),
    [("/dev/tpmrm0", "device:/dev/tpmrm0"), ("swtpm:host=::1,port=1", "swtpm:host=::1,port=1"), ("tabrmd", "tabrmd")],
)
def test_a_device_file_or_a_tcti_names_the_tpm(place: str, tcti: str):
    assert TpmDevice.at(place).tcti == tcti


def test_the_same_body_runs_on_a_tpm_that_is_handed_in(tpm_factory: Make, tmp_path: Path):
    given = tpm_factory()
    done = run_pytest(write_test(tmp_path / "t", LEAVES_A_KEY.format(clean=True)), "--tpm-device", given.tcti)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_test_that_leaves_something_in_it_fails(tpm_factory: Make, tmp_path: Path):
    given = tpm_factory()
    done = run_pytest(write_test(tmp_path / "t", LEAVES_A_KEY.format(clean=False)), "--tpm-device", given.tcti)
    assert done.returncode == 1
    assert "did not leave the TPM as it was: loaded object or session 0x80000000 was left" in done.stdout


def test_tests_for_a_certain_make_are_left_out_then(tpm_factory: Make, tmp_path: Path):
    marked = "import pytest\n@pytest.mark.tpm_profile('rsa-ek')\ndef test_it(tpm): raise AssertionError\n"
    folder = write_test(tmp_path / "t", f"{marked}def test_other(): pass\n")
    done = run_pytest(folder, "--tpm-device", tpm_factory().tcti)
    assert "1 passed, 1 deselected" in done.stdout


def test_everything_that_changed_is_named():
    before = TpmContents(frozenset({0x81000001}), frozenset({0x01C00002}), frozenset())
    after = TpmContents(frozenset({0x81000001, 0x81000002}), frozenset(), frozenset({0x02000000}))
    assert before.difference(before) == ()
    assert before.difference(after) == (
        "persistent object 0x81000002 was left",
        "loaded object or session 0x02000000 was left",
        "NV index 0x01C00002 is gone",
    )


# What lacks


def test_without_the_programs_a_test_fails_and_names_the_packages(tmp_path: Path):
    folder = write_test(tmp_path / "t", "def test_it(tpm): pass\n")
    done = run_pytest(folder, first="import os; os.environ['PATH'] = '/nowhere'")
    assert done.returncode == 1
    assert "apt-get install swtpm swtpm-tools" in done.stdout
    assert "1 error" in done.stdout


def test_without_the_library_a_test_fails_and_names_the_packages(tmp_path: Path):
    folder = write_test(tmp_path / "t", "def test_it(tpm): pass\ndef test_other(): pass\n")
    done = run_pytest(folder, first="sys.modules['tpm2_pytss'] = None")
    assert done.returncode == 1
    assert "apt-get install libtss2-dev" in done.stdout
    assert "pip install 'keyvouch[tpm]'" in done.stdout
    assert "1 passed, 1 error" in done.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("--fixtures",), ("--collect-only",)])
def test_the_plugin_loads_nothing_heavy_before_a_test_wants_it(tmp_path: Path, arguments: tuple[str, ...]):
    folder = write_test(tmp_path / "t", "def test_it(tpm): pass\n")
    done = run_pytest(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.rsplit("LOADED", 1)[1].split()).isdisjoint(HEAVY)
    assert "--tpm-device" in done.stdout or arguments != ("--help",)


def test_the_plugin_is_there_once(pytestconfig: pytest.Config):
    named = {name for name, _ in pytestconfig.pluginmanager.list_name_plugin() if "keyvouch" in name}
    assert named == {"keyvouch", "keyvouch_bench.card_plugin", "keyvouch_bench.fido_plugin"}
