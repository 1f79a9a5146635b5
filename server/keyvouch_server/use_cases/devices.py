"""Devices after their registration: connecting, renewing, listing, and removal from every side (PS18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError
from keyvouch.ids import DeviceId, UserId
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import Credential, Device, DeviceTpm, SignIn, SignInState, Tenant, User
from keyvouch_server.domain.names import name_key
from keyvouch_server.ports import Above, Snapshot, Transaction
from keyvouch_server.use_cases.cards import CardView, card_of
from keyvouch_server.use_cases.sessions import Sessions
from keyvouch_server.use_cases.world import Caller, World, settled, unknown_device, unknown_user


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

    async def tenant_name(self, caller: Caller) -> str:
        """The name of the caller's tenant."""
        tenant = await self._world.store.read(lambda tx: tx.get(Tenant, id=caller.user.tenant_id))
        return tenant.name if tenant else ""

    async def of_user(self, user: UserId) -> Sequence[DeviceView]:
        """The user's devices in the order of their registration ids."""

        async def work(tx: Snapshot) -> list[DeviceView]:
            devices = await tx.find(Device, {"user_id": user}, order="registered_at")
            return [v for v in [await self._view(tx, d.id) for d in devices] if v is not None]

        return await self._world.store.read(work)

    async def of_tenant(self, caller: Caller, username: str, *, after: str, limit: int) -> Sequence[DeviceView]:
        """A page of the tenant's devices, or of one user's."""
        authorise(caller.user.role, Action.READ_DIRECTORY)

        async def work(tx: Snapshot) -> list[DeviceView]:
            where: dict[str, object] = {"tenant_id": caller.user.tenant_id, "id": Above(after)}
            if username:
                user = await tx.get(User, tenant_id=caller.user.tenant_id, username_key=name_key(username))
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

    async def remove_own(self, caller: Caller, device_id: str) -> int:
        """A person removes a device from the security info."""
        return await self._remove(device_id, actor=caller.user.id, owner=caller.user.id)

    async def remove_as_administrator(self, caller: Caller, device_id: str) -> int:
        """An administrator removes somebody's device."""
        return await self._remove(device_id, actor=caller.user.id, administrator=caller)

    async def _remove(
        self, device_id: str, *, actor: str, owner: UserId | None = None, administrator: Caller | None = None
    ) -> int:
        async def work(tx: Transaction) -> RemovedDevice | KeyvouchError:
            device = await tx.get(Device, id=device_id)
            if administrator is not None:
                refusal = await self._may_remove(tx, administrator, device)
                if refusal is not None:
                    return refusal
            if device is None or (owner is not None and device.user_id != owner):
                return unknown_device()
            return await self.remove_in(tx, device, actor=actor)

        gone = settled(await self._world.store.write(work))
        self.announce(gone)
        return gone.sessions

    def announce(self, gone: RemovedDevice) -> None:
        """Cut the device's streams and tell who waits for its approvals, once the removal is durable."""
        self._world.announcer.device_removed(gone.device_id)
        for sign_in in gone.sign_ins:
            self._world.announcer.sign_in(sign_in, ())

    async def _may_remove(self, tx: Transaction, caller: Caller, device: Device | None) -> KeyvouchError | None:
        await self._world.must_stand(tx, caller)
        inside = device is not None and device.tenant_id == caller.user.tenant_id
        owner = await tx.get(User, id=device.user_id) if device is not None and inside else None
        if owner is None:
            authorise(caller.user.role, Action.REMOVE_DEVICE)
            return unknown_device()
        authorise(caller.user.role, Action.REMOVE_DEVICE, target=owner.role)
        return None

    async def remove_in(self, tx: Transaction, device: Device, *, actor: str) -> RemovedDevice:
        """Device, credential, the sessions it approved and its unused approvals go in one transaction."""
        live = await self._sessions.live_sessions(tx, device_id=device.id)
        ended = await self._sessions.revoke_in(tx, live, reason="device_removed", actor=actor)
        unused = await self._cancel_approvals(tx, device, actor=actor)
        await tx.delete(Device, {"id": device.id})
        await self._world.audit(
            tx,
            "device.remove",
            actor=actor,
            tenant_id=device.tenant_id,
            subject=device.id,
            user_id=device.user_id,
            sessions=str(ended),
        )
        return RemovedDevice(device.id, ended, tuple(unused))

    async def _cancel_approvals(self, tx: Transaction, device: Device, *, actor: str) -> list[SignIn]:
        """PS18: what the device approved and nobody has redeemed yet is worth nothing from now on."""
        where = {"user_id": device.user_id, "device_id": device.id, "state": SignInState.APPROVED}
        cancelled = await tx.update(SignIn, where, {"state": SignInState.CANCELLED})
        for s in cancelled:
            await self._world.audit(
                tx, "sign_in.cancel", actor=actor, tenant_id=s.tenant_id, subject=s.id, user_id=s.user_id
            )
        return cancelled


def removed() -> UnauthenticatedError:
    """For a device that is not, or no longer, registered."""
    return UnauthenticatedError(
        Reason.DEVICE_REMOVED,
        "This device is not registered any more.",
        fix="Enrol it again with an access pass from your administrator.",
    )
