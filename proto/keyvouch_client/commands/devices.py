"""`keyvouch admin device`: list and remove devices, accept their health; and the table of devices for others too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from keyvouch.errors import NotFoundError, Reason
from keyvouch.v1 import administration_pb2, common_pb2
from keyvouch_client.commands.asking import confirm
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import Output, inert, table
from keyvouch_client.session import Session

__all__ = ["accept_health", "device_table", "list_devices", "remove"]


def device_table(output: Output, devices: Iterable[common_pb2.Device], owners: Mapping[str, str] | None = None) -> str:
    """Devices for people: what holds the key, who proves it, when it was last used; their TPMs and smartcards.

    With `owners`, login names by user id, it says whose they are.
    """
    devices = list(devices)
    rows = [
        (
            device.display_name,
            spoken(common_pb2.Protection.Name(device.assurance.protection), "PROTECTION_"),
            spoken(common_pb2.Verification.Name(device.assurance.verification), "VERIFICATION_").removesuffix("_gated"),
            spoken(common_pb2.Provenance.Name(device.assurance.provenance), "PROVENANCE_"),
            output.minute(device.last_used_at),
            "yes" if device.connected else "no",
            device.device_id,
        )
        for device in devices
    ]
    titles = ("name", "key in", "PIN by", "proved by", "last used", "online", "device")
    shown = [table(titles, rows)]
    if owners is not None:
        owned = [(owners.get(device.user_id, "-"), *row) for device, row in zip(devices, rows, strict=True)]
        shown = [table(("user", *titles), owned)]
    with_tpm = [device for device in devices if device.HasField("tpm")]
    if with_tpm:
        shown += ["", _tpm_table(output, with_tpm), *_findings(with_tpm)]
    with_card = [device for device in devices if device.HasField("card")]
    if with_card:
        shown += ["", _card_table(output, with_card)]
    return "\n".join(shown)


def _tpm_table(output: Output, devices: Iterable[common_pb2.Device]) -> str:
    rows = [
        (
            device.device_id,
            device.tpm.manufacturer,
            device.tpm.model,
            device.tpm.firmware,
            device.tpm.endorsement_anchor,
            str(device.tpm.pin_limit),
            spoken(common_pb2.HealthState.Name(device.tpm.health), "HEALTH_STATE_") or "not told",
            output.time(device.tpm.reported_at),
        )
        for device in devices
    ]
    titles = ("device", "TPM by", "model", "firmware", "vouched for by", "PIN tries", "health", "reported")
    return table(titles, rows)


def _card_table(output: Output, devices: Iterable[common_pb2.Device]) -> str:
    rows = [
        (
            device.device_id,
            device.card.serial,
            device.card.slot,
            device.card.firmware,
            device.card.pin_policy,
            device.card.touch_policy,
            device.card.authority,
            output.time(device.card.certificate_expires_at),
        )
        for device in devices
    ]
    titles = ("device", "card", "slot", "firmware", "asks for PIN", "for touch", "certified by", "until")
    return table(titles, rows)


def _findings(devices: Iterable[common_pb2.Device]) -> list[str]:
    return [f"{inert(device.device_id)}  {inert(finding)}" for device in devices for finding in device.tpm.findings]


async def list_devices(run: Invocation) -> None:
    """List one user's devices, or everybody's."""
    async with run.session() as session:
        found = await _devices(session, run.arguments.user)
        owners = None if run.arguments.user or run.output.as_json else await _owners(session)
    listing = device_table(run.output, found, owners) if found else "No device is registered."
    run.output.show({"devices": [document(item) for item in found]}, listing)


async def remove(run: Invocation) -> None:
    """Remove a device and end what it approved."""
    await confirm(run, f"The device {inert(run.arguments.device)} goes, and what it approved ends.")
    request = administration_pb2.AdminRemoveDeviceRequest(device_id=run.arguments.device)
    async with run.session() as session:
        told = await session.call(session.connection.administration.AdminRemoveDevice, request)
    run.output.show(document(told), f"The device is removed; sessions ended: {told.revoked_sessions}.")


async def accept_health(run: Invocation) -> None:
    """Accept what a device's TPM drifted to, as it is shown: what it reported since is not accepted."""
    wanted = run.arguments.device
    async with run.session() as session:
        found = next((d for d in await _devices(session, "") if d.device_id == wanted), None)
        if found is None:
            raise NotFoundError(
                Reason.DEVICE_UNKNOWN,
                "There is no such device in your tenant.",
                fix="`keyvouch admin device list` shows them.",
            )
        request = administration_pb2.AcceptDeviceHealthRequest(device_id=wanted, reported_at=found.tpm.reported_at)
        told = await session.call(session.connection.administration.AcceptDeviceHealth, request)
    run.output.show(document(told), *_findings([found]), "Accepted: later reports are compared with this one.")


async def _owners(session: Session) -> dict[str, str]:
    """Login names by user id."""

    async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListUsersResponse:
        request = administration_pb2.ListUsersRequest(page=page)
        return await session.call(session.connection.administration.ListUsers, request)

    return {user.user_id: user.username async for page in pages(fetch) for user in page.users}


async def _devices(session: Session, username: str) -> list[common_pb2.Device]:
    async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListDevicesResponse:
        request = administration_pb2.ListDevicesRequest(username=username, page=page)
        return await session.call(session.connection.administration.ListDevices, request)

    return [device async for page in pages(fetch) for device in page.devices]
