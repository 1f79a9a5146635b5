"""The server that the tests of ceremonies talk to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.live_server import LiveServer, live_server, make_template
from support.nodes import nodes


@pytest.fixture(scope="session")
def server_template(session_directory: Path) -> Path:
    """Keys that all servers of a test process share: making them takes longer than starting a server."""
    return make_template(session_directory / "template")


@pytest.fixture
async def live(server_template: Path, tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A running server with one tenant and its administrator."""
    async with live_server(server_template, tmp_path) as running:
        yield running


@pytest.fixture
async def pair(server_template: Path, tmp_path: Path, postgres_url: str) -> AsyncIterator[tuple[LiveServer, ...]]:
    """Two nodes on a new database."""
    async with nodes(server_template, tmp_path, postgres_url) as started:
        yield started


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How many rounds with each number of racers (`support.once.sizes`)."""
    return int(request.config.getoption("--race-rounds"))
