"""`--help` and `--version`-like questions load nothing heavy: the commands understand their arguments first."""

import pytest

from support.programs import programs, run_python

HEAVY = ("grpc", "google.protobuf", "cryptography", "fido2", "sqlite3", "asyncio", "tpm2_pytss")

PROBE = """
import sys
module, function, *sys.argv[1:] = sys.argv[1:]
try:
    getattr(__import__(module, fromlist=[function]), function)()
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *sorted(sys.modules))
"""


def modules_after(program: str, *arguments: str) -> set[str]:
    module, function = programs()[program].split(":")
    done = run_python(PROBE, module, function, *arguments)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


@pytest.mark.parametrize("program", sorted(programs()))
def test_help_imports_nothing_heavy(program: str):
    assert modules_after(program, "--help").isdisjoint(HEAVY)


def test_the_probe_would_see_a_heavy_import():
    done = run_python("import sys, grpc; print('LOADED', *sys.modules)")
    assert "grpc" in done.stdout.split()
