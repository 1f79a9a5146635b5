"""Accounts on smartcards by the product's own commands: a server process that believes cards, homes, cards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2
from keyvouch_bench.piv_card import Authority
from keyvouch_client import SignIn
from keyvouch_client.errors import answer
from support.agent_process import AgentProcess
from support.crash_stage import Account, Stage
from support.kill_points import wait_until

__all__ = ["BADGES", "CARDS", "Told", "card_stage", "command", "devices_of", "enroll", "require_attested", "signed_in"]

CARDS = "Bench cards"
BADGES = "Bench badges"

Told = dict[str, Any]


@contextmanager
def card_stage(folder: Path, batch: Authority, issuer: Authority) -> Iterator[Stage]:
    """A server that believes the attestations of `batch`, and the certificates of `issuer` by their UPN."""
    folder.mkdir(exist_ok=True)
    (folder / "cards.pem").write_bytes(batch.pem)
    (folder / "badges.pem").write_bytes(issuer.pem)
    configuration = f"""
[[trust_anchors]]
name = "{CARDS}"
file = "{folder / "cards.pem"}"
formats = ["piv"]

[[card_authorities]]
name = "{BADGES}"
file = "{folder / "badges.pem"}"
match = "upn"
"""
    with Stage.open(folder / "server", configuration=configuration) as stage:
        yield stage


async def command(agent: AgentProcess, name: str, *arguments: str, **secrets: str) -> Told:
    """Run a command of the agent: what it told, with its exit status."""
    code, told = await asyncio.to_thread(agent.command, name, *arguments, **secrets)
    return {"code": code, **told}


async def enroll(agent: AgentProcess, account: Account, pin: str, *options: str) -> Told:
    """`keyvouch-agent enroll --provider smartcard`."""
    server = agent.stage.server
    wish = ("--server", server.endpoint, "--ca", str(server.ca), "--tenant", server.tenant, "--user", account.username)
    secrets = {"pin_fd": pin, "access_pass_fd": account.access_pass}
    return await command(agent, "enroll", *wish, "--provider", "smartcard", *options, **secrets)


@dataclass(frozen=True, slots=True)
class Approval:
    """What the command told, and the session that the waiting client got."""

    told: Told
    session: Any


async def signed_in(agent: AgentProcess, account: Account, pin: str) -> Approval:
    """A sign-in by number matching: a client waits, the agent's command approves."""
    stage = agent.stage
    async with (
        stage.connect() as connection,
        SignIn(
            connection, tenant=stage.server.tenant, username=account.username, app_id="shop", app_name="Shop"
        ) as waiting,
    ):
        await asyncio.to_thread(wait_until, lambda: len(agent.pending()) == 1, "the prompt does not arrive")
        told = await command(agent, "approve", "--number", waiting.number, pin_fd=pin)
        assert told["code"] == 0, told
        return Approval(told, await waiting.session())


async def devices_of(stage: Stage, account: Account) -> Sequence[common_pb2.Device]:
    """What the server has registered."""
    async with stage.connect() as connection:
        request = pb.ListDevicesRequest(username=account.username)
        return (await answer(connection.administration.ListDevices(request, metadata=stage.administrator))).devices


async def require_attested(stage: Stage, *, is_required: bool = True) -> None:
    """A policy under which only cards of the bench's maker register, or none of that kind any more."""
    async with stage.connect() as connection:
        stub = connection.administration
        told = await answer(stub.GetPolicy(pb.GetPolicyRequest(), metadata=stage.administrator))
        attested = common_pb2.AssuranceRequirement(
            protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
            verification=common_pb2.VERIFICATION_HARDWARE_GATED,
            provenance=common_pb2.PROVENANCE_ATTESTED,
            anchors=[CARDS],
        )
        anything = common_pb2.AssuranceRequirement(
            protection=common_pb2.REQUIRED_PROTECTION_ANY,
            verification=common_pb2.VERIFICATION_SOFTWARE_GATED,
            provenance=common_pb2.PROVENANCE_UNATTESTED,
        )
        told.policy.registration.required_assurance.CopyFrom(attested if is_required else anything)
        await answer(stub.UpdatePolicy(pb.UpdatePolicyRequest(policy=told.policy), metadata=stage.administrator))
