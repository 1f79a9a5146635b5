"""Security keys on USB HID, and who may open them.

On Linux the kernel shows each HID device's report descriptor to everybody below /sys/class/hidraw, so a FIDO device
(usage page 0xF1D0, CTAP 2.1 section 11.2.8.1) is found even where its node in /dev cannot be opened; that is told with
the udev rule which is missing. Elsewhere python-fido2 lists the devices.
"""

from __future__ import annotations

import os
import select
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fido2 import hid
from fido2.ctap import CtapDevice, CtapError
from fido2.hid.base import CtapHidConnection, FileCtapHidConnection, HidDescriptor, parse_report_descriptor

from keyvouch.errors import DeviceError, Reason
from keyvouch_client.security_keys.discovery import UNNAMED, ConnectedKey, KeySource, Transport, shown_name
from keyvouch_client.security_keys.links import HidLink, PatientHid

__all__ = ["RULES_FILE", "HidNode", "LinuxHidSource", "OtherHidSource", "hid_source", "udev_rule"]

RULES_FILE: Final = "/etc/udev/rules.d/70-fido-keyvouch.rules"
"""Where the missing rule goes. `uaccess` is given by the rules 73-seat-late, so the number is below that."""

_LONGEST_DESCRIPTOR: Final = 4096
"""HID_MAX_DESCRIPTOR_SIZE of the kernel."""
_LONGEST_UEVENT: Final = 4096
_PACKETS: Final = range(8, 1025)
"""Bytes of a packet, both ways: 64 at full speed, and no more than USB has for interrupts at any."""

Open = Callable[[str], CtapDevice]


@dataclass(frozen=True, slots=True)
class HidNode:
    """A FIDO device as the kernel shows it to everybody."""

    path: str
    """`/dev/hidraw3`."""
    vendor: int
    product: int
    name: str
    instance: str
    """The kernel's name of this connection of the device; never used twice."""
    on_usb: bool = True
    """False for one that a program makes (uhid) or that comes by another bus."""


def hid_source() -> KeySource:
    """The keys on this computer's USB."""
    return LinuxHidSource() if sys.platform == "linux" else OtherHidSource()


def udev_rule(node: HidNode) -> str:
    """The rule that lets whoever sits at the computer use this model."""
    model = f'ATTRS{{idVendor}}=="{node.vendor:04x}", ATTRS{{idProduct}}=="{node.product:04x}"'
    if not node.on_usb:
        model = f'KERNELS=="*:{node.vendor:04X}:{node.product:04X}.*"'
    return f'KERNEL=="hidraw*", SUBSYSTEM=="hidraw", {model}, TAG+="uaccess"'


class LinuxHidSource:
    """`KeySource` over hidraw. `sysfs` and `dev` are the trees to look in, `open_node` opens a node's device."""

    def __init__(
        self, sysfs: Path = Path("/sys/class/hidraw"), dev: Path = Path("/dev"), *, open_node: Open | None = None
    ) -> None:
        self._sysfs = sysfs
        self._dev = dev
        self._open = open_node or _open

    def scan(self, found: Sequence[ConnectedKey]) -> Sequence[ConnectedKey]:  # noqa: ARG002
        """See `KeySource`."""
        return [self._key(node) for node in self.nodes()]

    def nodes(self) -> Sequence[HidNode]:
        """The FIDO devices that the kernel knows, in the order of their nodes."""
        found = (_node(self._sysfs / name, self._dev / name) for name in self._names())
        return [node for node in found if node is not None]

    def fingerprint(self) -> object:
        """See `KeySource`. A device that got its permissions a moment after it came has changed, too."""
        return tuple((name, _instance(self._sysfs / name), _may_open(self._dev / name)) for name in self._names())

    def problems(self) -> Sequence[DeviceError]:
        """None: what is wrong is wrong with single devices."""
        return ()

    def _names(self) -> list[str]:
        try:
            return sorted((entry.name for entry in self._sysfs.iterdir()), key=lambda name: (len(name), name))
        except OSError:  # a kernel without hidraw, or a container without sysfs: no keys
            return []

    def _key(self, node: HidNode) -> ConnectedKey:
        return ConnectedKey(
            name=node.name,
            transport=Transport.USB,
            place=node.path,
            appearance=node.instance,
            opener=lambda: _opened(node, self._open),
            trouble=None if _may_open(Path(node.path)) else permission_error(node),
        )


class OtherHidSource:
    """`KeySource` where there is no hidraw: python-fido2 lists what can be opened."""

    def __init__(self, descriptors: Callable[[], Sequence[HidDescriptor]] = hid.list_descriptors) -> None:
        self._descriptors = descriptors

    def scan(self, found: Sequence[ConnectedKey]) -> Sequence[ConnectedKey]:  # noqa: ARG002
        """See `KeySource`."""
        return [_described(descriptor) for descriptor in self._descriptors()]

    def fingerprint(self) -> object:
        """See `KeySource`."""
        return tuple(str(descriptor.path) for descriptor in self._descriptors())

    def problems(self) -> Sequence[DeviceError]:
        """None is known."""
        return ()


def permission_error(node: HidNode) -> DeviceError:
    """A key that this user may not open, with the rule that changes it."""
    rule = udev_rule(node)
    return DeviceError(
        Reason.AUTHENTICATOR_PERMISSION,
        f"The security key {node.name} is connected, but this user may not open {node.path}.",
        fix=(
            f"As root, put this line into {RULES_FILE}: {rule} Then run `udevadm control --reload` and put the key in "
            'again. For ssh and services, in the place of TAG: GROUP="plugdev", MODE="0660".'
        ),
        metadata={
            "path": node.path,
            "vendor": f"{node.vendor:04x}",
            "product": f"{node.product:04x}",
            "rules_file": RULES_FILE,
            "rule": rule,
        },
    )


def _node(entry: Path, node: Path) -> HidNode | None:
    """What the kernel says of one device; None where it is no FIDO device, or has just gone."""
    device = entry / "device"
    try:
        sizes = parse_report_descriptor(_read(device / "report_descriptor", _LONGEST_DESCRIPTOR))
        if not all(size in _PACKETS for size in sizes):
            return None
        said = dict(
            line.split("=", 1)
            for line in _read(device / "uevent", _LONGEST_UEVENT).decode("utf-8", "replace").splitlines()
            if "=" in line
        )
        _, vendor, product = (int(part, 16) for part in said.get("HID_ID", "0:0:0").split(":"))
    except (OSError, ValueError, IndexError):
        return None
    name = shown_name(said.get("HID_NAME", "")) or f"{UNNAMED} {vendor:04x}:{product:04x}"
    return HidNode(str(node), vendor, product, name, _instance(entry), _is_on_usb(device))


def _is_on_usb(device: Path) -> bool:
    """Whether the device or what it is a part of has a USB device descriptor."""
    return any((part / "idVendor").exists() for part in device.resolve().parents)


def _instance(entry: Path) -> str:
    """Such as `0003:1050:0407.0012`: the number at its end grows with each device that is connected."""
    return (entry / "device").resolve().name


def _read(path: Path, longest: int) -> bytes:
    with path.open("rb") as file:
        return file.read(longest)


def _may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def _open(path: str) -> CtapDevice:
    return _connect(hid.get_descriptor(path))  # type: ignore[no-untyped-call]


def _connect(descriptor: HidDescriptor) -> CtapDevice:
    connection = hid.open_connection(descriptor)  # type: ignore[no-untyped-call]
    try:
        return HidLink(descriptor, _patient(connection))
    except BaseException:
        connection.close()
        raise


def _patient(connection: CtapHidConnection) -> CtapHidConnection:
    """A connection that ends with a key that falls silent, where that can be seen beforehand."""
    if not isinstance(connection, FileCtapHidConnection):
        return connection
    poll = select.poll()
    poll.register(connection.handle, select.POLLIN)
    return PatientHid(connection, lambda seconds: bool(poll.poll(seconds * 1000)))


def _opened(node: HidNode, open_node: Open) -> CtapDevice:
    try:
        return open_node(node.path)
    except PermissionError:
        raise permission_error(node) from None
    except (OSError, ValueError, struct.error, CtapError) as error:
        raise _silent(node.name, error) from error


def _described(descriptor: HidDescriptor) -> ConnectedKey:
    place = str(descriptor.path)
    name = shown_name(descriptor.product_name or "") or f"{UNNAMED} {descriptor.vid:04x}:{descriptor.pid:04x}"
    node = HidNode(place, descriptor.vid, descriptor.pid, name, place)
    return ConnectedKey(name, Transport.USB, place, place, lambda: _opened(node, lambda _path: _connect(descriptor)))


def _silent(name: str, error: Exception) -> DeviceError:
    return DeviceError(
        Reason.AUTHENTICATOR_REMOVED,
        f"The security key {name} was taken out, or does not answer ({type(error).__name__}).",
        fix="Put it in again.",
    )
