"""`keyvouch security-info`: a person's own devices and ways to sign in, and looking after them.

Devices are named by id, or by the name people gave them where only one has it. Not here: making a key, which the
agent does.
"""

from __future__ import annotations

import os
import shlex
import shutil

from keyvouch.errors import NotFoundError, Reason, UsageError
from keyvouch.v1 import common_pb2, security_info_pb2
from keyvouch_client.commands.asking import confirm
from keyvouch_client.commands.devices import device_table
from keyvouch_client.commands.invocation import Invocation
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.notices import campaign_lines, lost_or_replaced_lines
from keyvouch_client.commands.output import Output, inert, table
from keyvouch_client.commands.receipts import deliver
from keyvouch_client.session import Session

__all__ = ["add", "default", "lost", "receipt", "remove", "rename", "sessions", "show"]

_AGENT = "keyvouch-agent"


async def show(run: Invocation) -> None:
    """Show devices, ways to sign in, and what to look after; with `--remove`, remove a device first."""
    async with run.session() as session:
        if getattr(run.arguments, "remove", None):
            device = _device(await _info(session), run.arguments.remove)
            removed = await _remove(session, device, common_pb2.DEVICE_FATE_UNUSED)
            run.output.note(f"The device is removed; sessions ended: {removed.revoked_sessions}.")
        told = await _info(session)
    lines = [f"{inert(told.username)} in {inert(told.tenant_name)}", ""]
    lines.append(device_table(run.output, told.devices) if told.devices else "You have no device or key here yet.")
    if told.methods:
        lines += ["", _method_table(run.output, told)]
    notes = [f"Note: {warning}" for warning in told.warnings]
    notes += [*campaign_lines(run.output, told.campaigns), *lost_or_replaced_lines(told)]
    lines += ["", *(line for note in notes for line in run.output.folded(note, 0))] if notes else []
    run.output.show(document(told), *lines)


def _method_table(output: Output, told: security_info_pb2.GetSecurityInfoResponse) -> str:
    rows = [
        (
            _words(state.method) + (" (first)" if state.method == told.default_method else ""),
            "yes" if state.usable else "no",
            output.minute(state.last_used_at),
            state.message or state.reason,
        )
        for state in told.methods
    ]
    return table(("way to sign in", "usable", "last used", "why not"), rows, fold=True)


def _words(method: common_pb2.SignInMethod.ValueType) -> str:
    return spoken(common_pb2.SignInMethod.Name(method), "SIGN_IN_METHOD_").replace("_", " ")


async def _info(session: Session) -> security_info_pb2.GetSecurityInfoResponse:
    return await session.call(
        session.connection.security_info.GetSecurityInfo, security_info_pb2.GetSecurityInfoRequest()
    )


def _device(told: security_info_pb2.GetSecurityInfoResponse, named: str) -> common_pb2.Device:
    """The device of that id, or the only one of that name."""
    found = [d for d in told.devices if d.device_id == named] or [d for d in told.devices if d.display_name == named]
    if len(found) > 1:
        ids = ", ".join(inert(device.device_id) for device in found)
        raise UsageError(f"Several of your devices are called {named!r}.", fix=f"Name one of these: {ids}.")
    if not found:
        raise NotFoundError(
            Reason.DEVICE_UNKNOWN, "You have no such device.", fix="`keyvouch security-info` shows your devices."
        )
    return found[0]


async def _remove(
    session: Session, device: common_pb2.Device, fate: common_pb2.DeviceFate.ValueType
) -> security_info_pb2.RemoveDeviceResponse:
    request = security_info_pb2.RemoveDeviceRequest(device_id=device.device_id, fate=fate)
    return await session.call(session.connection.security_info.RemoveDevice, request)


async def remove(run: Invocation) -> None:
    """Remove one of the caller's devices."""
    fate = common_pb2.DEVICE_FATE_UNUSED
    if run.arguments.lost:
        fate = common_pb2.DEVICE_FATE_LOST
    elif run.arguments.replaced:
        fate = common_pb2.DEVICE_FATE_REPLACED
    await _part_with(run, fate)


async def lost(run: Invocation) -> None:
    """Remove a device that nobody knows the whereabouts of."""
    await _part_with(run, common_pb2.DEVICE_FATE_LOST)


async def _part_with(run: Invocation, fate: common_pb2.DeviceFate.ValueType) -> None:
    async with run.session() as session:
        told = await _info(session)
        device = _device(told, run.arguments.device)
        alone = " It is your only one: without it you need an access pass to sign in." if len(told.devices) == 1 else ""
        name = inert(device.display_name or device.device_id)
        await confirm(run, f"{name} goes, and the sessions it approved end.{alone}")
        removed = await _remove(session, device, fate)
    lines = [f"{name} is removed; sessions ended: {removed.revoked_sessions}."]
    if fate == common_pb2.DEVICE_FATE_LOST:
        lines.append("It opens nothing any more, and your administrators know that it is lost.")
    if alone:
        lines.append("You have no device left. Register one before this session ends: `keyvouch security-info add`.")
    run.output.show(document(removed) | {"device_id": device.device_id}, *lines)


async def rename(run: Invocation) -> None:
    """Give a device another name."""
    async with run.session() as session:
        device = _device(await _info(session), run.arguments.device)
        request = security_info_pb2.RenameDeviceRequest(device_id=device.device_id, display_name=run.arguments.name)
        told = await session.call(session.connection.security_info.RenameDevice, request)
    run.output.show(document(told), f"It is called {inert(told.device.display_name)} now.")


async def default(run: Invocation) -> None:
    """Choose what is offered first."""
    word = run.arguments.method
    method = (
        common_pb2.SIGN_IN_METHOD_UNSPECIFIED
        if word == "last"
        else common_pb2.SignInMethod.Value(f"SIGN_IN_METHOD_{word.upper()}")
    )
    request = security_info_pb2.SetDefaultMethodRequest(method=method)
    async with run.session() as session:
        await session.call(session.connection.security_info.SetDefaultMethod, request)
    first = "what you used last" if word == "last" else _words(method)
    run.output.show({"default_method": word}, f"You are offered first: {first}.")


async def sessions(run: Invocation) -> None:
    """End every other session of the caller."""
    await confirm(run, "Every session of yours but this one ends.")
    async with run.session() as session:
        request = security_info_pb2.RevokeOtherSessionsRequest()
        told = await session.call(session.connection.security_info.RevokeOtherSessions, request)
    run.output.show(document(told), f"Sessions ended: {told.revoked_sessions}. This one goes on.")


async def receipt(run: Invocation) -> None:
    """Fetch the receipt of one of the caller's sign-ins."""
    async with run.session() as session:
        request = security_info_pb2.GetOwnReceiptRequest(session_id=run.arguments.session)
        told = await session.call(session.connection.security_info.GetOwnReceipt, request)
    deliver(run, told.receipt)


async def add(run: Invocation) -> None:
    """Say how to register another device or key here, or start it."""
    stored = run.file.read()
    async with run.session(stored) as session:
        await _info(session)  # a session that has ended is told of here, not after a PIN was chosen
    program = shutil.which(_AGENT)
    words = _enrolment(run.arguments.provider, run.arguments.name)
    if program is None:
        fix = "Install it with `pip install 'keyvouch[agent]'`, or do this on the computer that has it."
        if run.arguments.start:
            raise UsageError("The device agent is not installed on this computer.", fix=fix)
        fix = f"The device agent is not installed on this computer. {fix}"
    elif run.arguments.start:
        os.execv(program, words)  # noqa: S606 - the agent that this user has, no shell in between
    command = shlex.join(words)
    lines = [
        "A device or key is registered by the agent that will use it. In a terminal of this computer:",
        "",
        f"    {command}",
        "",
        "It uses this session. `--provider` chooses what holds the key: tpm, fido2, smartcard, software.",
        "On another computer it takes a Temporary Access Pass instead: ask an administrator for one.",
    ]
    lines += [fix] if program is None else ["`keyvouch security-info add --start` starts it from here."]
    run.output.show({"command": words, "installed": program is not None}, *lines)


def _enrolment(provider: str | None, name: str | None) -> list[str]:
    words = [_AGENT, "enroll", "--with-session"]
    words += ["--provider", provider] if provider else []
    return [*words, "--name", name] if name else words
