"""`keyvouch admin device`: list and remove devices; and the table of devices that others show too."""

from __future__ import annotations

from collections.abc import Iterable

from keyvouch.v1 import administration_pb2, common_pb2
from keyvouch_client.commands.invocation import Invocation, pages
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import Output, table

__all__ = ["device_table", "list_devices", "remove"]


def device_table(output: Output, devices: Iterable[common_pb2.Device]) -> str:
    """Devices for people: what holds the key, who proves it, when it was last used."""
    rows = [
        (
            device.device_id,
            device.display_name,
            spoken(common_pb2.Protection.Name(device.assurance.protection), "PROTECTION_"),
            spoken(common_pb2.Verification.Name(device.assurance.verification), "VERIFICATION_"),
            spoken(common_pb2.Provenance.Name(device.assurance.provenance), "PROVENANCE_"),
            output.time(device.registered_at),
            output.time(device.last_used_at),
            "yes" if device.connected else "no",
        )
        for device in devices
    ]
    titles = ("device", "name", "key in", "PIN checked by", "proved by", "registered", "last used", "online")
    return table(titles, rows)


async def list_devices(run: Invocation) -> None:
    """List one user's devices, or everybody's."""
    found: list[common_pb2.Device] = []
    async with run.session() as session:

        async def fetch(page: common_pb2.PageRequest) -> administration_pb2.ListDevicesResponse:
            request = administration_pb2.ListDevicesRequest(username=run.arguments.user, page=page)
            return await session.call(session.connection.administration.ListDevices, request)

        async for page in pages(fetch):
            found += page.devices
    run.output.show({"devices": [document(item) for item in found]}, device_table(run.output, found))


async def remove(run: Invocation) -> None:
    """Remove a device and end what it approved."""
    request = administration_pb2.AdminRemoveDeviceRequest(device_id=run.arguments.device)
    async with run.session() as session:
        told = await session.call(session.connection.administration.AdminRemoveDevice, request)
    run.output.show(document(told), f"The device is removed; sessions ended: {told.revoked_sessions}.")
