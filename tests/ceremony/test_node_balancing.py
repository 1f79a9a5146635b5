"""Three server processes behind a balancer that passes TCP on, as server/README.md tells people to set them up: TLS and
the devices' certificates go through it, and nothing has to stick to a node.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from keyvouch_bench.device import enrol_with_pass
from keyvouch_client import Connection
from support.crash_stage import QUICK
from support.node_processes import NODES, NodeStage
from support.once import Arena, approved
from support.proxy import FaultyProxy
from support.racers import Racers
from support.stubborn import StubbornDevice, insist


async def test_behind_a_balancer_sign_in_goes_on_while_any_one_node_is_away(tmp_path: Path, postgres_url: str):
    with NodeStage.open_nodes(tmp_path, postgres_url) as stage:
        async with (
            FaultyProxy(*(node.public_port for node in stage.nodes)) as front,
            FaultyProxy(*(node.device_port for node in stage.nodes)) as channel,
        ):
            await asyncio.to_thread(stage.send_devices_to, channel.port)
            at_front = Connection(f"localhost:{front.port}", ca_file=stage.server.ca, backoff=QUICK)
            async with stage.proving(at_front) as connection:
                await everybody_signs_in(stage, connection, channel)
        stage.check()


async def everybody_signs_in(stage: NodeStage, connection: Connection, channel: FaultyProxy) -> None:
    arena = Arena(stage, Racers([]), connection)
    account = await arena.account()
    device = await enrol_with_pass(connection, stage.server.tenant, account.username, account.access_pass)
    assert device.endpoint == f"localhost:{channel.port}"
    sessions = []
    async with StubbornDevice(device).online() as connected:
        await connected.connected()
        for node in stage.nodes:
            await asyncio.to_thread(node.kill)
            begun = await insist(connection, lambda: approved(arena, account, connected))
            sessions.append(await begun.redeem())
            await asyncio.to_thread(node.start)
        assert channel.connections > 1  # the node that it was connected to was among them
    for session in sessions:
        await session.refresh()
    assert len({session.session_id for session in sessions}) == NODES
