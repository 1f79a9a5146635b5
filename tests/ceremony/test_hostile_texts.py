"""Texts that a database may choke on, in every text field of every request: refused or harmless, never an accident."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from support import postgres_server
from support.every_rpc import METHODS, call, texts_of, with_value
from support.postgres_server import PostgresCluster
from support.tenant_stage import TenantStage, tenant_stage

ACCIDENTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
TEXTS = ("\0", "a\0b", "'; DROP TABLE user; --", "\\", "%", "\N{RIGHT-TO-LEFT OVERRIDE}x", "\U0001f511" * 300)


@pytest.fixture(params=["memory", "postgres"])
async def stage(
    request: pytest.FixtureRequest,
    server_template: Path,
    tmp_path: Path,
    postgres_cluster: PostgresCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[TenantStage]:
    if request.param == "postgres":
        postgres_cluster.start()
        monkeypatch.setattr(postgres_server, "everywhere", [postgres_cluster])
    async with tenant_stage(server_template, tmp_path) as made:
        yield made


async def test_no_text_is_an_accident_G10(stage: TenantStage):
    accidents = []
    for path, method in METHODS.items():
        for field, kind in texts_of(method.input_type):
            if kind.type != kind.TYPE_STRING:
                continue
            for text in TEXTS:
                way = await stage.way(path, field)
                told = await call(
                    way.channel, path, with_value(way.request, field, text), way.metadata, first=way.first
                )
                if told.code in ACCIDENTS:
                    accidents.append((path, ".".join(field), text, told.code, told.message))
    assert accidents == []
