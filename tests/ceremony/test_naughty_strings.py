"""G12: whatever stands in a text, the server's answer is of one kind: it is never taken for a part of a question.

Every text and every bytes field of every request of the protocol, from the descriptors, with everything that has ever
broken a parser, a database or a screen. The store undoes what the calls do, and tells what it was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from support import postgres_server
from support.every_rpc import METHODS, call, texts_of, with_value
from support.every_rpc import Path as Field
from support.postgres_server import PostgresCluster
from support.tenant_stage import TenantStage, tenant_stage

NAUGHTY = [
    "'",
    '"',
    "' OR '1'='1",
    "'; DROP TABLE user; --",
    "x' UNION SELECT code_hash FROM access_pass --",
    "%",
    "_",
    "*",
    "a\\' OR 1=1 --",
    "ada user\x00",
    "\x00",
    "\r\nauthorization: Bearer x",
    "\x1b[31mred",
    "..\\..\\windows\\system32",
    "../../../../etc/passwd",
    "/dev/null",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "%s%s%n",
    "<script>alert(1)</script>",
    "$(reboot)",
    "`id`",
    '{"$ne": null}',
    "*)(uid=*",
    "null",
    "None",
    "NaN",
    "0",
    "-1",
    "9223372036854775808",
    "1e309",
    "true",
    "\u202euser",
    "a\u200bb",
    "\ufeff",
    "\ufffd",
    "\U0001f469\u200d\U0001f4bb",
    "\u0130\u0131\u017f\u212a",
    "e\u0301" * 30,
    "\ufdfa" * 40,
    "x" * 300,
    "x" * 5000,
    " ",
    "\t\n",
    "usr_aaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ses_aaaaaaaaaaaaaaaaaaaaaaaaaa.AAAA",
    "AAAA",
    "kvr_ses_a_1.AAAA",
]

# What a refused call may leave behind: its trace, and what was counted before anything was compared.
TRACES = {
    ("insert", "AuditRecord"),
    *((act, "Throttle") for act in ("insert", "update", "delete")),
    ("insert", "UsedProof"),
    ("insert", "RiskEvent"),
    ("update", "AccessPass"),  # its tries
}

FIELDS = [(path, field, kind) for path, method in METHODS.items() for field, kind in texts_of(method.input_type)]


@pytest.fixture(params=["memory", "postgres"])
async def stage(
    request: pytest.FixtureRequest, server_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TenantStage]:
    if request.param == "postgres":
        cluster: PostgresCluster = request.getfixturevalue("postgres_cluster")
        cluster.start()
        monkeypatch.setattr(postgres_server, "everywhere", [cluster])
    async with tenant_stage(server_template, tmp_path) as made:
        yield made


def variants(kind: Any) -> list[Any]:
    if kind.type == kind.TYPE_BYTES:
        return [text.encode() for text in NAUGHTY] + [b"\xff" * 32, bytes(32), b"\xa1\x01\x1b" + b"\xff" * 8]
    return NAUGHTY


async def ask(stage: TenantStage, path: str, field: Field, kind: Any) -> list[Any]:
    """What is wrong with the answers to all those texts in one field."""
    way = await stage.way(path, field)
    good = await call(way.channel, path, way.request, way.metadata, first=way.first)
    codes: dict[grpc.StatusCode, Any] = {}
    wrong: list[Any] = []
    for value in variants(kind):
        stage.store.touched.clear()
        told = await call(way.channel, path, with_value(way.request, field, value), way.metadata, first=way.first)
        if told.code is grpc.StatusCode.OK:
            continue
        if told.code is not good.code:  # some good requests are refused too: what they ask for is there already
            codes.setdefault(told.code, value)
        left = set(stage.store.touched) - TRACES
        if left:
            wrong.append((path, ".".join(field), value, told.code.name, sorted(left)))
    broken = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
    if codes.keys() & broken or len(codes) > 1:
        wrong.append((path, ".".join(field), {code.name: value for code, value in codes.items()}))
    return wrong


@pytest.mark.parametrize("service", sorted({path.split("/")[1] for path, _, _ in FIELDS}))
async def test_what_a_text_says_does_not_change_the_kind_of_error_G12(stage: TenantStage, service: str):
    wrong: list[Any] = []
    for path, field, kind in FIELDS:
        if path.split("/")[1] == service:
            wrong += await ask(stage, path, field, kind)
    assert not wrong, "\n".join(map(str, wrong))


async def test_texts_that_are_no_texts_are_refused_as_such(stage: TenantStage):
    """Bytes that are not UTF-8, in the first text of each request that has one at its top."""
    seen = 0
    for path, method in METHODS.items():
        fields = [f for f in method.input_type.fields if f.type == f.TYPE_STRING]
        if not fields or method.client_streaming:
            continue
        way = await stage.way(path, (fields[0].name,))
        raw = bytes([fields[0].number << 3 | 2, 2]) + b"\xff\xfe"
        channel: Any = way.channel
        make = channel.unary_stream if method.server_streaming else channel.unary_unary
        started = make(path)(raw, metadata=way.metadata, timeout=20)
        assert await started.code() is grpc.StatusCode.INVALID_ARGUMENT, path
        seen += 1
    assert seen > 40
