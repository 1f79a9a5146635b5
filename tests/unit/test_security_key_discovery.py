"""Discovery of security keys: hidraw as the kernel shows it, readers, hot-plug, and words for what is in the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest
from fido2.ctap import CtapDevice
from fido2.hid.base import HidDescriptor

from keyvouch.errors import DeviceError, Reason
from keyvouch_client.security_keys.discovery import ConnectedKey, SecurityKeys, Transport, connected_security_keys
from keyvouch_client.security_keys.hid import RULES_FILE, LinuxHidSource, OtherHidSource
from keyvouch_client.security_keys.pcsc import CardSlot, PcscSource
from support.security_keys import Bench, KeyOnBench

FIDO = bytes.fromhex(
    "06d0f10901a1010920150026ff007508954081020921150026ff00750895409102c0"
)  # the report descriptor that CTAP 2.1 section 11.2.8.1 shows
KEYBOARD = bytes.fromhex("05010906a101050719e029e71500250175019508810295017508810195067508150025650507190029658100c0")
NFC_ATR = bytes.fromhex("3b8980014a434f5020323431")
CONTACT_ATR = bytes.fromhex("3bfd1300008131fe158073c021c057597562694b657940")


class Machine:
    """The two trees that the kernel and udev make, in a folder."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.dev = root / "sys/class/hidraw", root / "dev"
        for path in (self.sysfs, self.dev):
            path.mkdir(parents=True)
        self.opened: list[str] = []
        self.source = LinuxHidSource(self.sysfs, self.dev, open_node=self.open)

    def plug(
        self,
        node: str,
        descriptor: bytes,
        *,
        instance: str,
        name: str = "Maker Key",
        mode: int = 0o600,
        usb: bool = True,
    ) -> None:
        parent = self.sysfs.parent.parent / "devices" / ("usb1/1-2" if usb else "virtual/misc/uhid")
        device = parent / instance
        device.mkdir(parents=True)
        if usb:
            (parent / "idVendor").write_text(f"{instance[5:9]}\n")
        (device / "report_descriptor").write_bytes(descriptor)
        _, vendor, rest = instance.split(":")
        uevent = f"DRIVER=hid-generic\nHID_ID=0003:0000{vendor}:0000{rest[:4]}\nHID_NAME={name}\nHID_UNIQ=\n"
        (device / "uevent").write_text(uevent)
        (self.sysfs / node).mkdir()
        (self.sysfs / node / "device").symlink_to(device)
        (self.dev / node).touch()
        (self.dev / node).chmod(mode)

    def unplug(self, node: str) -> None:
        (self.sysfs / node / "device").unlink()
        (self.sysfs / node).rmdir()
        (self.dev / node).unlink()

    def open(self, path: str) -> CtapDevice:
        self.opened.append(path)
        return KeyOnBench().device()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may open everything; the question is what the mode says to others."""
    monkeypatch.setattr(os, "access", lambda path, mode: bool(Path(path).stat().st_mode & 0o600))


def test_keys_are_found_and_opened_only_when_asked(machine: Machine) -> None:
    machine.plug("hidraw10", FIDO, instance="0003:1050:0407.0012", name="Yubico YubiKey")
    machine.plug("hidraw2", FIDO, instance="0003:1209:5070.0002", name="")
    machine.plug("hidraw0", KEYBOARD, instance="0003:046d:c31c.0001")
    second, first = machine.source.scan(())
    assert (first.name, first.transport, first.appearance) == ("Yubico YubiKey", Transport.USB, "0003:1050:0407.0012")
    assert first.place == str(machine.dev / "hidraw10")
    assert second.name == "Security key 1209:5070"
    assert first.trouble is None
    assert not machine.opened
    first.open().close()
    assert machine.opened == [first.place]


@pytest.mark.parametrize("junk", [b"", b"\x06", b"\x06\xd0\xf1", b"\xff" * 5000, FIDO[:-20]])
def test_descriptors_that_are_none(machine: Machine, junk: bytes) -> None:
    machine.plug("hidraw0", junk, instance="0003:1050:0407.0001")
    assert machine.source.scan(()) == []
    machine.plug("hidraw1", FIDO, instance="0003:1050:0407.0002")  # control
    assert len(machine.source.scan(())) == 1


@pytest.mark.usefixtures("no_root")
def test_a_key_that_may_not_be_opened_is_told_with_its_udev_rule(machine: Machine) -> None:
    machine.plug("hidraw3", FIDO, instance="0003:1050:0407.0001", name="Yubico YubiKey", mode=0o000)
    keys = SecurityKeys([machine.source])
    assert keys.connected() == ()
    (error,) = keys.problems()
    assert error.reason is Reason.AUTHENTICATOR_PERMISSION
    assert "Yubico YubiKey" in error.message
    assert "hidraw3" in error.message
    rule = 'KERNEL=="hidraw*", SUBSYSTEM=="hidraw", ATTRS{idVendor}=="1050", ATTRS{idProduct}=="0407", TAG+="uaccess"'
    assert rule in error.fix
    assert RULES_FILE in error.fix
    assert error.metadata["rule"] == rule
    assert len(error.fix) <= 400  # as much as `doctor` shows
    with pytest.raises(DeviceError) as caught:
        machine.source.scan(())[0].open()
    assert caught.value.reason is Reason.AUTHENTICATOR_PERMISSION
    before = keys.fingerprint()
    (machine.dev / "hidraw3").chmod(0o600)  # udev does its work
    assert keys.fingerprint() != before
    assert len(keys.connected()) == 1


@pytest.mark.usefixtures("no_root")
def test_a_key_that_a_program_makes_has_a_rule_of_its_own(machine: Machine) -> None:
    machine.plug("hidraw3", FIDO, instance="0003:1209:beef.0001", mode=0o000, usb=False)
    (error,) = SecurityKeys([machine.source]).problems()
    assert 'KERNELS=="*:1209:BEEF.*"' in error.metadata["rule"]
    assert "idVendor" not in error.metadata["rule"]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (PermissionError("cgroup"), Reason.AUTHENTICATOR_PERMISSION),
        (FileNotFoundError("gone"), Reason.AUTHENTICATOR_REMOVED),
        (OSError("io"), Reason.AUTHENTICATOR_REMOVED),
        (ValueError("no FIDO device"), Reason.AUTHENTICATOR_REMOVED),
    ],
)
def test_opening_fails_with_words(machine: Machine, failure: Exception, reason: Reason) -> None:
    def fail(_path: str) -> CtapDevice:
        raise failure

    machine.plug("hidraw0", FIDO, instance="0003:1050:0407.0001")
    (key,) = LinuxHidSource(machine.sysfs, machine.dev, open_node=fail).scan(())
    with pytest.raises(DeviceError) as caught:
        key.open()
    assert caught.value.reason is reason
    assert caught.value.fix


def test_a_name_that_acts_on_a_terminal_is_made_safe(machine: Machine) -> None:
    machine.plug("hidraw0", FIDO, instance="0003:1050:0407.0001", name="Key\x1b[2J\u202e" + "x" * 200)
    (key,) = machine.source.scan(())
    assert key.name == ("Key?[2J?" + "x" * 200)[:80]


@pytest.mark.parametrize(
    ("count", "size"),
    [("9500", "7508"), ("9505", "7508"), ("97ffffffff", "7508"), ("9540", "77ffffffff"), ("96ffff", "7508")],
)
@pytest.mark.parametrize("way", [0, 1])
def test_packets_of_sizes_that_cannot_be(machine: Machine, count: str, size: str, way: int) -> None:
    """One that is too small would be written to for ever, one that is too large has no room in memory."""
    ways = FIDO.hex().split("75089540")
    assert len(ways) == 3
    sizes = ["75089540", "75089540"]
    sizes[way] = size + count
    machine.plug("hidraw0", FIDO, instance="0003:1050:0407.0001")  # control
    machine.plug("hidraw1", bytes.fromhex(ways[0] + sizes[0] + ways[1] + sizes[1] + ways[2]), instance="0003:1:2.0002")
    assert [node.path for node in machine.source.nodes()] == [str(machine.dev / "hidraw0")]


def test_a_key_put_in_again_at_the_same_node_is_another_appearance(machine: Machine) -> None:
    machine.plug("hidraw0", FIDO, instance="0003:1050:0407.0001")
    (before,) = machine.source.scan(())
    assert machine.source.scan(()) == [before]  # control
    machine.unplug("hidraw0")
    assert machine.source.scan(()) == []
    machine.plug("hidraw0", FIDO, instance="0003:1050:0407.0002")
    (after,) = machine.source.scan(())
    assert after.place == before.place
    assert after != before


def test_a_machine_without_hidraw(tmp_path: Path) -> None:
    source = LinuxHidSource(tmp_path / "none", tmp_path)
    assert (source.scan(()), source.fingerprint(), source.problems()) == ([], (), ())


def test_other_systems_list_through_the_library() -> None:
    listed = [HidDescriptor(b"path-1", 0x1050, 0x0407, 64, 64, "Some Key", None)]
    source = OtherHidSource(lambda: listed)
    (key,) = source.scan(())
    assert (key.name, key.transport) == ("Some Key", Transport.USB)
    before = source.fingerprint()
    listed.clear()
    assert source.fingerprint() != before


def test_this_very_machine_is_looked_at_without_an_error() -> None:
    keys = connected_security_keys()
    assert isinstance(keys.scan(), tuple)
    for problem in keys.problems():
        assert problem.message
        assert problem.fix


# readers


class ReaderRow:
    """`Readers` made up."""

    def __init__(self) -> None:
        self.now: list[CardSlot] = []
        self.applets: dict[str, KeyOnBench | DeviceError] = {}
        self.failure: DeviceError | None = None
        self.connected: list[str] = []
        self.on_connect: Callable[[], None] = lambda: None

    def slots(self) -> Sequence[CardSlot]:
        if self.failure is not None:
            raise self.failure
        return tuple(self.now)

    def connect(self, reader: str) -> CtapDevice | None:
        self.connected.append(reader)
        self.on_connect()
        found = self.applets.get(reader)
        if isinstance(found, DeviceError):
            raise found
        return found.device() if found is not None else None


@pytest.fixture
def row() -> ReaderRow:
    return ReaderRow()


def test_cards_are_asked_once_whether_they_are_keys(row: ReaderRow) -> None:
    row.now = [CardSlot("NFC", 1, NFC_ATR), CardSlot("Slot", 1, CONTACT_ATR), CardSlot("Bank", 1, CONTACT_ATR)]
    row.now.append(CardSlot("Empty", 0, b""))
    row.applets = {"NFC": KeyOnBench(), "Slot": KeyOnBench()}
    source = PcscSource(row)
    nfc, card = source.scan(())
    assert (nfc.transport, nfc.place) == (Transport.NFC, "NFC")
    assert (card.transport, card.place) == (Transport.CARD, "Slot")
    assert source.scan(()) == [nfc, card]
    assert row.connected == ["NFC", "Slot", "Bank"]
    assert all(isinstance(a, KeyOnBench) and a.open == 0 for a in row.applets.values())
    nfc.open().close()


def test_a_card_laid_down_again_is_another_appearance(row: ReaderRow) -> None:
    row.now, row.applets = [CardSlot("NFC", 1, NFC_ATR)], {"NFC": KeyOnBench()}
    source = PcscSource(row)
    (before,) = source.scan(())
    row.now = [CardSlot("NFC", 3, NFC_ATR)]
    (after,) = source.scan(())
    assert after != before
    with pytest.raises(DeviceError) as caught:
        before.open()
    assert caught.value.reason is Reason.AUTHENTICATOR_REMOVED
    after.open().close()  # control


@pytest.mark.parametrize("reason", [Reason.VAULT_BUSY, Reason.AUTHENTICATOR_REMOVED])
def test_a_card_that_does_not_answer_yet_is_asked_again(row: ReaderRow, reason: Reason) -> None:
    row.now = [CardSlot("Slot", 1, CONTACT_ATR)]
    row.applets["Slot"] = DeviceError(reason, "Not now.", fix="Later.")
    source = PcscSource(row)
    keys = SecurityKeys([source], pause=0.001)
    before = source.fingerprint()
    assert keys.connected() == ()
    assert source.fingerprint() != before
    with pytest.raises(DeviceError):
        keys.wait_for(bool, seconds=0.2)
    asked = len(row.connected)
    assert source.fingerprint() == source.fingerprint()
    assert asked <= 22  # and not for ever
    row.applets["Slot"] = KeyOnBench()
    assert len(keys.connected()) == 1


def test_a_card_that_answers_at_last_is_found_while_somebody_waits(row: ReaderRow) -> None:
    row.now = [CardSlot("Slot", 1, CONTACT_ATR)]
    row.applets["Slot"] = DeviceError(Reason.VAULT_BUSY, "Held.", fix="End it.")
    row.on_connect = looks([lambda: None, lambda: None, lambda: row.applets.update(Slot=KeyOnBench())])
    assert len(SecurityKeys([PcscSource(row)], pause=0.001).wait_for(bool, seconds=30)) == 1


def test_the_card_side_of_a_usb_key_is_left_alone(row: ReaderRow) -> None:
    name = "Yubico YubiKey OTP+FIDO+CCID"
    usb = ConnectedKey(name, Transport.USB, "/dev/hidraw0", "1", lambda: KeyOnBench().device())
    row.now = [CardSlot(f"{name} 00 00", 1, CONTACT_ATR), CardSlot("Other reader", 1, CONTACT_ATR)]
    row.applets = {slot.reader: KeyOnBench() for slot in row.now}
    assert [key.place for key in PcscSource(row).scan((usb,))] == ["Other reader"]
    assert row.connected == ["Other reader"]


def test_a_key_with_the_beginning_of_a_name_hides_no_reader(row: ReaderRow) -> None:
    usb = ConnectedKey("A", Transport.USB, "/dev/hidraw0", "1", lambda: KeyOnBench().device())
    row.now, row.applets = [CardSlot("ACS Reader 00 00", 1, CONTACT_ATR)], {"ACS Reader 00 00": KeyOnBench()}
    assert len(PcscSource(row).scan((usb,))) == 1


def test_a_reader_whose_name_acts_on_a_terminal_is_made_safe(row: ReaderRow) -> None:
    name = "Reader\x1b[2J\n00"
    row.now, row.applets = [CardSlot(name, 1, CONTACT_ATR)], {name: KeyOnBench()}
    (key,) = PcscSource(row).scan(())
    assert key.name == "Security key in Reader?[2J?00"
    row.now = []
    with pytest.raises(DeviceError) as caught:
        key.open()
    assert str(caught.value).isprintable()


def test_the_card_side_serves_where_the_usb_side_may_not_be_opened(row: ReaderRow) -> None:
    trouble = DeviceError(Reason.AUTHENTICATOR_PERMISSION, "No.", fix="Rule.")
    usb = ConnectedKey("Maker Key", Transport.USB, "/dev/hidraw0", "1", lambda: KeyOnBench().device(), trouble)
    row.now, row.applets = [CardSlot("Maker Key 00 00", 1, CONTACT_ATR)], {"Maker Key 00 00": KeyOnBench()}
    assert len(PcscSource(row).scan((usb,))) == 1


def test_without_the_service_nothing_is_found_and_it_is_said_so(row: ReaderRow) -> None:
    row.failure = DeviceError(Reason.READER_UNAVAILABLE, "pcscd does not run.", fix="Start it.")
    keys = SecurityKeys([PcscSource(row)])
    assert keys.connected() == ()
    assert keys.problems() == (row.failure,)
    row.failure = None
    assert keys.problems() == ()


# hot-plug


def looks(actions: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """Do one thing at each look, until all are done."""
    left: Iterator[Callable[[], object]] = iter(actions)
    return lambda: next(left, lambda: None)() and None


def test_waiting_for_a_key_that_comes() -> None:
    bench, key = Bench(), KeyOnBench()
    bench.on_look = looks([lambda: None, lambda: None, lambda: bench.put_in(key)])
    changes: list[object] = []
    found = bench.keys.wait_for(bool, seconds=30, on_change=lambda came, gone: changes.append((len(came), len(gone))))
    assert found == (bench[key],)
    assert changes == [(1, 0)]


def test_waiting_for_a_key_to_be_taken_out_and_put_in_again() -> None:
    bench, key = Bench(), KeyOnBench()
    before = bench.put_in(key)[key]
    bench.on_look = looks([lambda: None, lambda: bench.take_out(key), lambda: None, lambda: bench.put_in(key)])
    changes: list[object] = []
    keys = bench.keys
    found = keys.wait_for(
        lambda now: bool(now) and before not in now,
        seconds=30,
        on_change=lambda came, gone: changes.append((len(came), len(gone))),
    )
    assert found == (bench[key],)
    assert changes == [(0, 1), (1, 0)]


def test_waiting_ends() -> None:
    bench = Bench()
    with pytest.raises(DeviceError) as caught:
        bench.keys.wait_for(bool, seconds=0.05)
    assert caught.value.reason is Reason.AUTHENTICATOR_NOT_CONNECTED
    cancelled = Event()
    bench.on_look = looks([lambda: None, cancelled.set])
    with pytest.raises(DeviceError) as caught:
        bench.keys.wait_for(bool, seconds=30, cancelled=cancelled)
    assert caught.value.reason is Reason.USER_CANCELLED


def test_waiting_ends_with_what_keeps_a_key_from_use() -> None:
    trouble = DeviceError(Reason.AUTHENTICATOR_PERMISSION, "No.", fix="Rule.")
    key = ConnectedKey("Key", Transport.USB, "/dev/hidraw0", "1", lambda: KeyOnBench().device(), trouble)
    with pytest.raises(DeviceError) as caught:
        Bench(trouble=[key]).keys.wait_for(bool, seconds=0)
    assert caught.value is trouble


def test_a_key_that_is_there_is_found_at_once() -> None:
    bench, key = Bench(), KeyOnBench()
    assert bench.put_in(key).keys.wait_for(bool, seconds=0) == (bench[key],)
