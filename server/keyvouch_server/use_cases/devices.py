"""Devices after their registration: connecting, renewing, listing, and removal from every side (PS18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError
from keyvouch.ids import DeviceId, UserId
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import Credential, Device, DeviceFate, DeviceTpm, SignIn, Tenant, User
from keyvouch_server.domain.names import check_text
from keyvouch_server.domain.oversight_model import RiskKind
from keyvouch_server.ports import Above, Snapshot, Transaction
from keyvouch_server.use_cases.cards import CardView, card_of
from keyvouch_server.use_cases.risks import Risks
from keyvouch_server.use_cases.sessions import Sessions
from keyvouch_server.use_cases.world import Caller, World, settled, unknown_device, unknown_user

DEVICE_REMOVED: Final = "device_removed"
"""Why sessions ended that went with their device."""


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device with its credential as it counts now, its user and its tenant, and what is known of its TPM if any."""

    device: Device
    credential: Credential
    user: User
    tenant: Tenant
    tpm: DeviceTpm | None = None

    @property
    def card(self) -> CardView | None:
        """What is shown of the smartcard that holds the key."""
        return card_of(self.credential)


@dataclass(frozen=True, slots=True)
class RemovedDevice:
    """What went with a device: how many sessions, and its approvals that nobody can redeem any more."""

    device_id: DeviceId
    sessions: int
    sign_ins: tuple[SignIn, ...]


class Devices:
    """Registered devices."""

    def __init__(self, world: World, sessions: Sessions) -> None:
        self._world = world
        self._sessions = sessions
        self._risks = Risks(world)

    async def connected(self, device_id: str, tenant_id: str, channel_key: bytes) -> Device:
        """The registered device behind a channel key. Raises DEVICE_REMOVED: a certificate outlives its device."""
        device = await self._world.store.read(lambda tx: tx.get(Device, id=device_id))
        if device is None or device.tenant_id != tenant_id or device.channel_key != channel_key:
            raise removed()
        return device

    async def view(self, device_id: DeviceId) -> DeviceView:
        """A device with everything around it."""
        found = await self._world.store.read(lambda tx: self._view(tx, device_id))
        if found is None:
            raise removed()
        return found

    async def _view(self, tx: Snapshot, device_id: str) -> DeviceView | None:
        device = await tx.get(Device, id=device_id)
        if device is None:
            return None
        credentials = await tx.find(Credential, {"device_id": device.id})
        user = await tx.get(User, id=device.user_id)
        tenant = await tx.get(Tenant, id=device.tenant_id)
        tpm = await tx.get(DeviceTpm, device_id=device.id)
        if not credentials or user is None or tenant is None:
            return None
        credential = replace(credentials[0], assurance=self._world.vouched(credentials[0].assurance))
        return DeviceView(device, credential, user, tenant, tpm)

    async def of_user_in(self, tx: Snapshot, user: UserId) -> list[DeviceView]:
        """The user's devices, the oldest first."""
        devices = await tx.find(Device, {"user_id": user}, order="registered_at")
        return [v for v in [await self._view(tx, d.id) for d in devices] if v is not None]

    async def of_tenant(self, caller: Caller, username: str, *, after: str, limit: int) -> Sequence[DeviceView]:
        """A page of the tenant's devices, or of one user's."""
        authorise(caller.user, Action.READ_DIRECTORY)

        async def work(tx: Snapshot) -> list[DeviceView]:
            where: dict[str, object] = {"tenant_id": caller.user.tenant_id, "id": Above(after)}
            if username:
                user = await self._world.user_called(tx, caller.user.tenant_id, username)
                if user is None:
                    raise unknown_user()
                where["user_id"] = user.id
            devices = await tx.find(Device, where, order="id", limit=limit)
            return [v for v in [await self._view(tx, d.id) for d in devices] if v is not None]

        return await self._world.store.read(work)

    async def renew(self, device: Device) -> tuple[bytes, ...]:
        """A new certificate for the channel key. Raises DEVICE_REMOVED."""
        chain = self._world.keys.device_certificate(device.id, device.tenant_id, device.channel_key)

        async def work(tx: Transaction) -> None:
            if not await tx.update(Device, {"id": device.id}, {"certificate": chain[0]}):
                raise removed()
            await self._world.audit(
                tx,
                "device.renew",
                actor=device.id,
                tenant_id=device.tenant_id,
                subject=device.id,
                user_id=device.user_id,
            )

        await self._world.store.write(work)
        return chain

    async def unregister(self, device: Device) -> int:
        """The device takes itself away. Returns how many sessions ended with it."""
        return await self._remove(device.id, actor=device.id)

    async def remove_own(self, caller: Caller, device_id: str, fate: DeviceFate = DeviceFate.UNUSED) -> int:
        """A person removes a device from the security info: the last one too, for it may be lost like any other."""
        return await self._remove(device_id, actor=caller.user.id, owner=caller, fate=fate)

    async def rename_own(self, caller: Caller, device_id: str, display_name: str) -> DeviceView:
        """A person gives a device another name. Raises FIELD_INVALID, DEVICE_UNKNOWN."""
        check_text(display_name, "display_name", longest=64)

        async def work(tx: Transaction) -> DeviceView | KeyvouchError:
            await self._world.must_stand(tx, caller)
            before = await tx.get(Device, id=device_id)
            own = {"id": device_id, "user_id": caller.user.id}
            changed = await tx.update(Device, own, {"display_name": display_name})
            view = await self._view(tx, device_id) if changed else None
            if before is None or view is None:
                return unknown_device()
            await self._world.audit(
                tx,
                "device.rename",
                actor=caller.user.id,
                tenant_id=caller.user.tenant_id,
                subject=device_id,
                user_id=caller.user.id,
                before=before.display_name,
                after=display_name,
            )
            return view

        return settled(await self._world.store.write(work))

    async def remove_as_administrator(self, caller: Caller, device_id: str) -> int:
        """An administrator removes somebody's device."""
        return await self._remove(device_id, actor=caller.user.id, administrator=caller)

    async def _remove(
        self,
        device_id: str,
        *,
        actor: str,
        owner: Caller | None = None,
        administrator: Caller | None = None,
        fate: DeviceFate = DeviceFate.UNUSED,
    ) -> int:
        async def work(tx: Transaction) -> RemovedDevice | KeyvouchError:
            device = await tx.get(Device, id=device_id)
            if administrator is not None:
                await self._may_remove(tx, administrator, device)
            if owner is not None:
                await self._world.must_stand(tx, owner)
            if device is None or (owner is not None and device.user_id != owner.user.id):
                return unknown_device()
            return await self.remove_in(tx, device, actor=actor, fate=fate)

        return settled(await self._world.write_and_tell(work, self.announce)).sessions

    def announce(self, gone: RemovedDevice | KeyvouchError) -> None:
        """Cut the device's streams and tell who waits for its approvals, once the removal is durable."""
        if isinstance(gone, KeyvouchError):
            return
        self._world.announcer.device_removed(gone.device_id)
        for sign_in in gone.sign_ins:
            self._world.announcer.sign_in(sign_in, ())

    async def _may_remove(self, tx: Transaction, caller: Caller, device: Device | None) -> None:
        await self._world.must_stand(tx, caller)
        owner = await tx.get(User, id=device.user_id) if device is not None else None
        authorise(caller.user, Action.REMOVE_DEVICE, owner, unknown=unknown_device())

    async def remove_in(
        self, tx: Transaction, device: Device, *, actor: str, fate: DeviceFate = DeviceFate.UNUSED
    ) -> RemovedDevice:
        """Device, credential, the sessions it approved and its unused approvals go in one transaction.

        PS19: of a lost one the administrators are told; nobody knows in whose hands it is.
        """
        live = await self._sessions.live_sessions(tx, device_id=device.id)
        ended = await self._sessions.revoke_in(tx, live, reason=DEVICE_REMOVED, actor=actor)
        owned = {"user_id": device.user_id, "device_id": device.id}
        unused = await self._sessions.cancel_approvals(tx, actor=actor, **owned)
        await tx.delete(Device, {"id": device.id})
        await self._world.audit(
            tx,
            "device.remove",
            actor=actor,
            tenant_id=device.tenant_id,
            subject=device.id,
            user_id=device.user_id,
            sessions=str(ended),
            fate=fate.value,
            left=str(await tx.count(Device, {"user_id": device.user_id})),
        )
        if fate is DeviceFate.LOST:
            await self._risks.note(
                tx,
                RiskKind.DEVICE_LOST,
                f"{device.display_name} was removed because it is lost. Sessions that ended with it: {ended}.",
                tenant_id=device.tenant_id,
                user_id=device.user_id,
                subject=device.id,
            )
        return RemovedDevice(device.id, ended, tuple(unused))


def removed() -> UnauthenticatedError:
    """For a device that is not, or no longer, registered."""
    return UnauthenticatedError(
        Reason.DEVICE_REMOVED,
        "This device is not registered any more.",
        fix="Enrol it again with an access pass from your administrator.",
    )
