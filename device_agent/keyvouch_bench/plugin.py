"""The pytest plugin `keyvouch`: fresh emulated TPMs for tests, or a real one with `--tpm-device`.

What it has for security keys and for servers is in `keyvouch_bench.fido_plugin`.

    def test_it(tpm):                        # a TPM of its own, running; `tpm.tcti` says how to reach it
    @pytest.mark.tpm_profile("with-srk")     # one that its maker left in another state: `Profile` has them all
    def test_two(tpm_factory):               # as many as the test needs: tpm_factory(chip=0), tpm_factory(chip=1)
    def test_faults(tpm_with_faults):        # tpm_with_faults.connections(plan) opens connections that go wrong

With `--tpm-device /dev/tpmrm0` (or any TCTI string) the same tests use the real chip. Then a test that leaves anything
in it fails, and tests that want a certain profile are left out. Tests that stop the TPM, cut its power or exchange its
memory take theirs from `tpm_factory`, which is always emulated.

pytest loads this module wherever the wheel is installed. So it imports nothing of substance but in fixtures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from keyvouch_bench.swtpm import Swtpm, SwtpmFactory
    from keyvouch_bench.tpm_contents import TpmDevice
    from keyvouch_bench.tpm_faults import FaultyTpm

pytest_plugins = ["keyvouch_bench.card_plugin", "keyvouch_bench.fido_plugin"]

PROFILE_MARKER: Final = "tpm_profile"

LIBRARY_PACKAGES: Final = "libtss2-dev libtss2-tcti-swtpm0 libtss2-tcti-device0 pkg-config gcc libc6-dev"
"""The Debian packages that `pip install 'keyvouch[tpm]'` and then a TPM need."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--tpm-device`."""
    parser.getgroup("keyvouch").addoption(
        "--tpm-device",
        metavar="PATH_OR_TCTI",
        help="run the tests that use the fixture tpm on this TPM, for example /dev/tpmrm0, not on emulated ones",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and quieten libtss2, which reports every refusal of a TPM on standard error."""
    config.addinivalue_line("markers", f"{PROFILE_MARKER}(name, chip=0): the emulated TPM that the fixture tpm is")
    os.environ.setdefault("TSS2_LOG", "all+NONE")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a real TPM, leave out the tests that want one of a certain make."""
    if not config.getoption("--tpm-device"):
        return
    left_out = [item for item in items if item.get_closest_marker(PROFILE_MARKER)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def swtpm_maker(tmp_path_factory: pytest.TempPathFactory) -> SwtpmFactory:
    """The maker of this test process: chips are made once, on first use."""
    _require_library()
    from keyvouch_bench.swtpm import SwtpmFactory  # heavy

    return SwtpmFactory(tmp_path_factory.mktemp("swtpm"))


@pytest.fixture
def tpm_factory(swtpm_maker: SwtpmFactory, tmp_path: Path) -> Iterator[Callable[..., Swtpm]]:
    """Makes running emulated TPMs: `tpm_factory(profile="standard", *, chip=0)`. All end with the test."""
    from keyvouch.errors import UnavailableError  # heavy
    from keyvouch_bench.swtpm import Profile

    with ExitStack() as running:
        count = 0

        def make(profile: str | Profile = Profile.STANDARD, *, chip: int = 0) -> Swtpm:
            nonlocal count
            count += 1
            try:
                return running.enter_context(swtpm_maker.make(tmp_path / f"tpm-{count}", Profile(profile), chip=chip))
            except UnavailableError as error:
                pytest.fail(str(error), pytrace=False)

        yield make


@pytest.fixture
def tpm(request: pytest.FixtureRequest) -> Iterator[Swtpm | TpmDevice]:
    """A fresh running TPM of the profile the marker names, or the one of `--tpm-device`, which stays as it was."""
    place = request.config.getoption("--tpm-device")
    if not place:
        marker = request.node.get_closest_marker(PROFILE_MARKER)
        make = request.getfixturevalue("tpm_factory")
        yield make(*marker.args, **marker.kwargs) if marker else make()
        return
    _require_library()
    from keyvouch_bench.tpm_contents import TpmDevice  # heavy

    device = TpmDevice.at(place)
    before = device.contents()
    yield device
    if changes := before.difference(device.contents()):
        pytest.fail(f"The test did not leave the TPM as it was: {'; '.join(changes)}.", pytrace=False)


@pytest.fixture
def tpm_with_faults(tpm: Swtpm | TpmDevice) -> FaultyTpm:
    """The TPM of the fixture `tpm`, and connections to it on which things go wrong."""
    from keyvouch_bench.tpm_faults import FaultyTpm  # heavy

    return FaultyTpm(tpm.tcti)


def _require_library() -> None:
    try:
        import tpm2_pytss  # noqa: F401
    except ImportError as error:
        pytest.fail(
            f"A test of TPMs cannot run: {error}. Install what it needs: apt-get install {LIBRARY_PACKAGES} "
            "swtpm swtpm-tools, then pip install 'keyvouch[tpm]'",
            pytrace=False,
        )
