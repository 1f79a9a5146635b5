"""`keyvouch admin pass`: Temporary Access Passes. A code is shown by the call that makes it, and never again."""

from __future__ import annotations

from datetime import UTC, datetime

from keyvouch.errors import UsageError
from keyvouch.v1 import administration_pb2, common_pb2
from keyvouch_client.commands.asking import confirm
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import inert, table

__all__ = ["code_lines", "create", "delete", "list_passes", "replace"]

_HASH = 32
_BOUND = {"endorsement_key_hash": "one TPM", "aaguid": "one model"}
_DISABLED = administration_pb2.ACCESS_PASS_USABILITY_DISABLED_BY_POLICY


def code_lines(run: Invocation, made: administration_pb2.AccessPass, code: str, tenant: str = "") -> tuple[str, ...]:
    """What a person is told of a new pass, its code included: this once. `tenant` is the caller's own, if left out."""
    output = run.output
    start, end = output.time(made.start_at), output.time(made.start_at + made.lifetime_minutes * 60)
    times = "once" if made.one_time else "any number of times"
    return (
        "",
        f"    {inert(code)}",
        "",
        f"Temporary Access Pass for {inert(made.username)}, good {times}",
        f"from {start} until {end}.",
        *_binding_lines(made.binding),
        "It is shown this once. Hand it over in person or by a channel you trust.",
        *_following_lines(run, made, tenant),
    )


def _following_lines(run: Invocation, made: administration_pb2.AccessPass, tenant: str) -> tuple[str, ...]:
    """What to do with the pass, or why nobody can do anything with it."""
    if made.usability == _DISABLED:
        return (
            "As things are it opens nothing: access passes are switched off, or not for this user; guests use none.",
            "`keyvouch admin policy targets` shows whom they are for.",
        )
    target = run.target(run.file.read().target)
    trust = " --ca ca.pem" if target.ca_file else " --insecure-loopback" if target.insecure_loopback else ""
    where = f"--server {inert(target.server)}{trust} --tenant {inert(tenant or target.tenant)}"
    return (
        "With it they register a device, on that device:",
        f"    keyvouch-agent enroll {where} --user {inert(made.username)}",
    )


def _binding_lines(binding: administration_pb2.DeviceBinding) -> tuple[str, ...]:
    which = binding.WhichOneof("device")
    if which is None:
        return ()
    only = (
        f"the TPM whose endorsement key is {binding.endorsement_key_hash.hex()}"
        if which == "endorsement_key_hash"
        else f"security keys of the model {inert(binding.aaguid)}"
    )
    return (f"It registers {only}, and nothing else.",)


async def create(run: Invocation) -> None:
    """Make a pass."""
    arguments = run.arguments
    request = administration_pb2.CreateAccessPassRequest(
        username=arguments.user,
        start_at=_instant(arguments.start) if arguments.start else 0,
        lifetime_minutes=arguments.lifetime,
        one_time=arguments.one_time,
        binding=_binding(run),
    )
    async with run.session() as session:
        told = await session.call(session.connection.administration.CreateAccessPass, request)
    run.output.show(document(told), *code_lines(run, told.access_pass, told.code))


async def replace(run: Invocation) -> None:
    """Make a pass in the place of another one; what becomes of the sessions is said."""
    arguments = run.arguments
    keep = arguments.keep_sessions
    request = administration_pb2.ReplaceAccessPassRequest(
        username=arguments.user,
        start_at=_instant(arguments.start) if arguments.start else 0,
        lifetime_minutes=arguments.lifetime,
        one_time=arguments.one_time,
        binding=_binding(run),
        sessions=administration_pb2.SESSIONS_ON_REPLACE_KEEP if keep else administration_pb2.SESSIONS_ON_REPLACE_REVOKE,
    )
    async with run.session() as session:
        told = await session.call(session.connection.administration.ReplaceAccessPass, request)
    ended = f"The old pass is good for nothing any more; sessions ended: {told.revoked_sessions}."
    run.output.show(document(told), *code_lines(run, told.access_pass, told.code), ended)


def _binding(run: Invocation) -> administration_pb2.DeviceBinding | None:
    """The device that the pass is for; none: any."""
    if run.arguments.aaguid:
        return administration_pb2.DeviceBinding(aaguid=run.arguments.aaguid)
    if not run.arguments.ek:
        return None
    try:
        digest = bytes.fromhex(run.arguments.ek)
    except ValueError:
        digest = b""
    if len(digest) != _HASH:
        raise UsageError(
            f"{run.arguments.ek!r} is not the SHA-256 of an endorsement key.",
            fix=f"Write its {_HASH * 2} hexadecimal digits.",
        )
    return administration_pb2.DeviceBinding(endorsement_key_hash=digest)


def _instant(text: str) -> int:
    """Seconds since the epoch; a time without a zone is local time, as it is for people."""
    try:
        if text.isascii() and text.isdigit():
            return int(text)
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a time.", fix="Write it like 2026-03-01T09:00+01:00.") from None


async def list_passes(run: Invocation) -> None:
    """List one user's pass, or everybody's."""
    found: list[administration_pb2.AccessPass] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListAccessPassesResponse:
            request = administration_pb2.ListAccessPassesRequest(username=run.arguments.user, page=page)
            return await session.call(session.connection.administration.ListAccessPasses, request)

        async for page in pages(fetch):
            found += page.access_passes
    rows = [
        (
            item.username,
            run.output.minute(item.start_at),
            item.lifetime_minutes,
            "yes" if item.one_time else "no",
            "yes" if item.usable else "no",
            spoken(administration_pb2.AccessPassUsability.Name(item.usability), "ACCESS_PASS_USABILITY_"),
            _BOUND.get(item.binding.WhichOneof("device") or "", "any"),
        )
        for item in found
    ]
    listing = table(("user", "start", "minutes", "one-time", "usable", "because", "device"), rows)
    run.output.show({"access_passes": [document(item) for item in found]}, listing if found else "There is no pass.")


async def delete(run: Invocation) -> None:
    """Delete a user's pass."""
    name = inert(run.arguments.user)
    await confirm(run, f"The pass of {name} goes; if it is still good, the sessions of {name} end with it.")
    request = administration_pb2.DeleteAccessPassRequest(username=run.arguments.user)
    async with run.session() as session:
        told = await session.call(session.connection.administration.DeleteAccessPass, request)
    run.output.show(document(told), f"The pass is deleted; sessions ended: {told.revoked_sessions}.")
