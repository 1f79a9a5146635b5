"""The part of the pytest plugin `keyvouch` that is about security keys and the server they are registered at.

    def test_one(virtual_fido):              # a key in this process: Ctap2(virtual_fido.device)
    def test_two(fido_reader):               # the same on a card reader, through a pcscd of its own
        fido_reader.remove(); fido_reader.insert(); fido_reader.power_cycle(); fido_reader.touch = False
    def test_three(keyvouch_server):         # a running server: keyvouch_server.access_pass("ada")
    def test_four(keyvouch_server, enrolled_device):     # and a scripted device of a user

With `--fido-device /dev/hidraw3` (or the whole name of a reader) both key fixtures give that real key. Then tests
marked `fido_emulated`, which look into the emulated one, are left out, and so are those marked `fido_destructive`,
which set a PIN, block or reset the key, unless `--allow-reset` names exactly that key: by its place or serial number.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from keyvouch_bench.bench_server import BenchServer
    from keyvouch_bench.device import BenchDevice
    from keyvouch_bench.pcscd import PrivatePcscd
    from keyvouch_bench.real_fido import RealFido
    from keyvouch_bench.virtual_fido import SecurityKey

DESTRUCTIVE: Final = "fido_destructive"
EMULATED: Final = "fido_emulated"

_PCSCD_VARIABLE: Final = "PCSCLITE_CSOCK_NAME"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options about real keys."""
    group = parser.getgroup("keyvouch")
    group.addoption(
        "--fido-device",
        metavar="PATH_OR_READER",
        help="run the tests of security keys on this one: /dev/hidraw3, or the whole name of a reader",
    )
    group.addoption(
        "--fido-pin-fd", metavar="FD", type=int, help="read the PIN of that key from this descriptor, one line"
    )
    group.addoption(
        "--fido-rig",
        metavar="URL",
        help="the switched port that key is in, for example http://rig:8080/usb3; without one, a person is asked",
    )
    group.addoption(
        "--allow-reset",
        metavar="SERIAL_OR_PATH",
        help="also run the tests that set a PIN, block or RESET the key, if this names the key of --fido-device",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    config.addinivalue_line("markers", f"{DESTRUCTIVE}: sets a PIN, blocks or resets the key")
    config.addinivalue_line("markers", f"{EMULATED}: looks into the emulated key, or is about it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a real key, leave out what is not for it."""
    if not config.getoption("--fido-device"):
        return
    unwanted = {EMULATED} if _may_change(config) else {EMULATED, DESTRUCTIVE}
    left_out = [item for item in items if any(map(item.get_closest_marker, unwanted))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def private_pcscd() -> Iterator[PrivatePcscd]:
    """The pcscd of this test process, which is started on first use. pyscard knows it, and no other."""
    from keyvouch.errors import KeyvouchError  # heavy
    from keyvouch_bench.pcscd import PrivatePcscd

    named = os.environ.get(_PCSCD_VARIABLE)
    pcscd = PrivatePcscd(Path(named).parent if named else None)
    try:
        _require_pyscard()
        pcscd.start()
        pcscd.claim()
    except KeyvouchError as error:
        pytest.fail(str(error), pytrace=False)
    yield pcscd
    gc.collect()  # connections that nobody holds any more say good-bye while there is somebody to say it to
    pcscd.end()


@pytest.fixture
def virtual_fido(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SecurityKey]:
    """A fresh `VirtualFido` in this process, or the key of `--fido-device`."""
    if request.config.getoption("--fido-device"):
        yield request.getfixturevalue("real_fido")
        return
    from keyvouch_bench.virtual_fido import VirtualFido  # heavy

    with VirtualFido.make(tmp_path / "virtual-fido") as key:
        yield key


@pytest.fixture
def fido_reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SecurityKey]:
    """A fresh virtual key on a reader of the real pcscd (`ReaderKey`), or the key of `--fido-device`."""
    if request.config.getoption("--fido-device"):
        yield request.getfixturevalue("real_fido")
        return
    pcscd: PrivatePcscd = request.getfixturevalue("private_pcscd")
    from keyvouch_bench.fido_reader import ReaderKey  # heavy
    from keyvouch_bench.virtual_fido import ON_A_READER, VirtualFido

    with (
        VirtualFido.make(tmp_path / "fido-reader", options=ON_A_READER) as key,
        ReaderKey(key, pcscd) as reader,
    ):
        yield reader


@pytest.fixture(scope="session")
def real_fido(request: pytest.FixtureRequest) -> Iterator[RealFido]:
    """The key of `--fido-device`."""
    from keyvouch_bench.real_fido import Person, RealFido, SwitchedPort, is_hid  # heavy

    place, url = request.config.getoption("--fido-device"), request.config.getoption("--fido-rig")
    if not place:
        pytest.fail("This test wants a real security key: name one with --fido-device.", pytrace=False)
    if not is_hid(place):
        _require_pyscard()
    rig = SwitchedPort(url) if url else Person(_teller(request.config))
    key = RealFido(place, rig, pin=_given_pin(request.config), may_change=_may_change(request.config))
    yield key
    key.close()


@pytest.fixture
def keyvouch_server(tmp_path: Path) -> Iterator[BenchServer]:
    """A fresh running server with the tenant `example` and its administrator, in a process of its own."""
    from keyvouch_bench.bench_server import BenchServer  # heavy

    with BenchServer.make(tmp_path / "keyvouch-server") as server:
        yield server


@pytest.fixture
def enrolled_device(keyvouch_server: BenchServer) -> BenchDevice:
    """A scripted device, registered at `keyvouch_server` for the user `ada`."""
    return keyvouch_server.enrol("ada")


def _may_change(config: pytest.Config) -> bool:
    """Whether `--allow-reset` names the key of `--fido-device`, and nothing like it."""
    place, allowed = config.getoption("--fido-device"), config.getoption("--allow-reset")
    if not place or not allowed:
        return False
    from keyvouch_bench.real_fido import serial_number  # heavy

    return allowed in {place, serial_number(place)}


def _given_pin(config: pytest.Config) -> str | None:
    descriptor = config.getoption("--fido-pin-fd")
    if descriptor is None:
        return None
    with os.fdopen(descriptor, encoding="utf-8", closefd=False) as stream:
        return stream.readline().rstrip("\n")


def _teller(config: pytest.Config) -> Callable[[str], None]:
    """Prints to the terminal in the middle of a test, whatever pytest does with output."""
    capture = config.pluginmanager.getplugin("capturemanager")
    terminal = config.pluginmanager.getplugin("terminalreporter")

    def tell(text: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f"\n>>> {text}")

    return tell


def _require_pyscard() -> None:
    if importlib.util.find_spec("smartcard") is None:  # importing it would settle which pcscd it asks
        pytest.fail(
            "A test of keys on readers cannot run: pyscard is not installed. Install it: "
            "apt-get install libpcsclite-dev swig gcc libc6-dev, then pip install 'keyvouch[pcsc]'",
            pytrace=False,
        )
