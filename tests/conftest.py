"""What all tests share: options, the Hypothesis profiles, short-lived directories, PostgreSQL, no card readers."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.postgres_server import PostgresCluster, everywhere

# Two slow cores shared by several processes are normal: a slow example is no failure. The everyday profile tries the
# same examples each time, so that a red run is about the change; the thorough one searches anew.
settings.register_profile(
    "ci", deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("ci"), derandomize=False, max_examples=5000)
settings.load_profile("ci")

# A shell has its background jobs ignore interruptions, and so would every program that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--race-rounds", type=int, default=4, metavar="N", help="rounds of each race for what is used once"
    )
    parser.addoption("--model-steps", type=int, default=2000, metavar="N", help="calls of the model-based test")
    parser.addoption(
        "--store",
        choices=("usual", "postgres"),
        default="usual",
        help="what servers of the ceremony tests keep records in",
    )
    parser.addoption("--hardware", action="store_true", help="also run the tests that need a real device")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests away from this computer's card readers: libpcsclite looks where a test may put a pcscd of its own.

    It looks there once in a process. So this is said before the first test, and by every test process for itself.
    """
    if not config.getoption("--fido-device", default=None):
        place = Path(tempfile.mkdtemp(prefix="kv-pcscd-"))
        os.environ["PCSCLITE_CSOCK_NAME"] = str(place / "pcscd.comm")
        config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--hardware"):
        return
    left_out = [item for item in items if item.get_closest_marker("hardware")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def socket_directory() -> Iterator[Path]:
    """A directory with a short path and mode 0700: the path of a UNIX socket has room for 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="kv-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def session_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for what is expensive to make and only read afterwards; one for each test process."""
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[PostgresCluster]:
    """A running PostgreSQL, one for each test process, made when the first test wants it.

    What a test does to it (`crash`, `pause`, `stop`) is mended by `start`, which `postgres_url` calls first.
    """
    with PostgresCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session", autouse=True)
def stores_of_live_servers(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--store postgres`, every server of `support.live_server` has a database in place of a file or of memory."""
    if request.config.getoption("--store") != "postgres":
        yield
        return
    everywhere.append(request.getfixturevalue("postgres_cluster"))
    yield
    everywhere.clear()


@pytest.fixture
def postgres_url(postgres_cluster: PostgresCluster) -> Iterator[str]:
    """The URL of a new, empty database in a PostgreSQL that runs."""
    postgres_cluster.start()
    url = postgres_cluster.database()
    yield url
    postgres_cluster.discard(url)
