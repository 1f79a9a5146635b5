"""Security info: what a person has to sign in with, how each of it counts now, and what to look at (PS6, PS19).

A method is judged here by the rules that sign-in asks, on the same records: what is called usable would be let begin
now. Nothing is kept back, for the caller is the person it is about. Not here: removing and renaming devices
(`devices`), ending sessions (`sessions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keyvouch.errors import KeyvouchError, NotFoundError, Reason, RefusedError
from keyvouch_server.domain.access_pass import access_pass_refusal
from keyvouch_server.domain.evaluation import DueCampaign, Subject, decide_method, due_campaigns
from keyvouch_server.domain.model import (
    AccessPass,
    Credential,
    ProviderKind,
    Registration,
    Session,
    SessionKind,
    SignIn,
    SignInMethod,
    SignInWay,
    Tenant,
    User,
)
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.domain.policy import Policy, decide_some_key, required_by
from keyvouch_server.domain.session import way_of
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Snapshot, Transaction
from keyvouch_server.use_cases.budgets import throttled
from keyvouch_server.use_cases.devices import Devices, DeviceView
from keyvouch_server.use_cases.key_standing import in_standing
from keyvouch_server.use_cases.world import Caller, World, session_revoked, settled

RECENT_SESSIONS: Final = 200
"""How many of the newest sessions are looked through for the last use of each method."""

SOON_SECONDS: Final = 3600
"""A session of an access pass that ends within this time is ending soon."""


@dataclass(frozen=True, slots=True)
class MethodState:
    """One way to sign in, as it is now. `refusal` is None where the person could sign in with it."""

    method: SignInMethod
    refusal: KeyvouchError | None
    last_used_at: int


@dataclass(frozen=True, slots=True)
class SecurityInfoView:
    """Everything that is shown to a person of their own sign-in."""

    user: User
    tenant_name: str
    devices: tuple[DeviceView, ...]
    methods: tuple[MethodState, ...]
    warnings: tuple[str, ...]
    ask_lost_or_replaced: bool
    campaigns: tuple[DueCampaign, ...]


@dataclass(frozen=True, slots=True)
class _Own:
    """What is known of the caller, read in one go."""

    user: User
    policy: Policy
    subject: Subject
    devices: tuple[DeviceView, ...]
    credentials: tuple[Credential, ...]
    found_pass: AccessPass | None

    def keys_for(self, method: SignInMethod) -> list[Credential]:
        """Those that can be used with a method: at a client only a security key is."""
        if method is SignInMethod.APPROVAL:
            return list(self.credentials)
        keys = {v.device.id for v in self.devices if v.device.provider is ProviderKind.FIDO2}
        return [c for c in self.credentials if c.device_id in keys]


class SecurityInfo:
    """A person's own methods."""

    def __init__(self, world: World, devices: Devices) -> None:
        self._world = world
        self._devices = devices

    async def view(self, caller: Caller) -> SecurityInfoView:
        """All there is to see."""
        return settled(await self._world.store.read(lambda tx: self._view(tx, caller)))

    async def _view(self, tx: Snapshot, caller: Caller) -> SecurityInfoView | KeyvouchError:
        own = await self._own(tx, caller)
        if own is None:
            return session_revoked()
        now = self._world.clock.now()
        tenant = await tx.get(Tenant, id=own.user.tenant_id)
        used = await self._last_uses(tx, own)
        refusals = {method: await self._refusal(tx, own, method) for method in SignInMethod}
        fit = [v for v in own.devices if await self._stands(tx, own, v)]
        return SecurityInfoView(
            user=own.user,
            tenant_name=tenant.name if tenant else "",
            devices=own.devices,
            methods=tuple(MethodState(m, refusals[m], used[m]) for m in SignInMethod),
            warnings=tuple(_warnings(own, caller.session, fit, now)),
            ask_lost_or_replaced=await self._is_to_be_asked(tx, own, caller.session),
            campaigns=due_campaigns(own.policy, own.subject, [v.credential.assurance for v in fit], now=now),
        )

    async def _own(self, tx: Snapshot, caller: Caller) -> _Own | None:
        user = await tx.get(User, id=caller.user.id)
        if user is None:
            return None
        return _Own(
            user,
            await self._world.policy_of(tx, user.tenant_id),
            await self._world.subject_of(tx, user),
            tuple(await self._devices.of_user_in(tx, user.id)),
            tuple(await tx.find(Credential, {"user_id": user.id})),
            await tx.get(AccessPass, user_id=user.id),
        )

    async def _refusal(self, tx: Snapshot, own: _Own, method: SignInMethod) -> KeyvouchError | None:
        """Why the person could not sign in with it now, or None."""
        try:
            decide_method(own.policy, method, own.subject, Verdicts())
            if method is SignInMethod.ACCESS_PASS:
                return _pass_refusal(own, self._world.clock.now())
            return await self._key_refusal(tx, own, method)
        except KeyvouchError as refusal:
            return refusal

    async def _key_refusal(self, tx: Snapshot, own: _Own, method: SignInMethod) -> KeyvouchError | None:
        keys, now = own.keys_for(method), self._world.clock.now()
        if not keys:
            return no_key(method)
        way = SignInWay.SECURITY_KEY if method is SignInMethod.SECURITY_KEY else SignInWay.PROMPT
        fit = await in_standing(tx, self._world, keys, own.policy)
        decide_some_key((c.assurance for c in fit), required_by(own.policy, way))
        if own.user.locked_until > now and method is SignInMethod.APPROVAL:
            return throttled("too many wrong numbers were typed", own.user.locked_until - now)
        return None

    async def _stands(self, tx: Snapshot, own: _Own, view: DeviceView) -> bool:
        keys = [c for c in own.credentials if c.device_id == view.device.id]
        try:
            return bool(await in_standing(tx, self._world, keys, own.policy))
        except RefusedError:
            return False

    async def _last_uses(self, tx: Snapshot, own: _Own) -> dict[SignInMethod, int]:
        """By the newest sessions; of a pass by the pass itself, as long as there is one."""
        used = dict.fromkeys(SignInMethod, 0)
        where = {"user_id": own.user.id}
        for session in await tx.find(Session, where, order="created_at", descending=True, limit=RECENT_SESSIONS):
            method = _method_of(session)
            used[method] = max(used[method], session.created_at)
        if own.found_pass is not None:
            used[SignInMethod.ACCESS_PASS] = max(used[SignInMethod.ACCESS_PASS], own.found_pass.used_at)
        return used

    async def _is_to_be_asked(self, tx: Snapshot, own: _Own, session: Session) -> bool:
        """PS19, T10: there is a device from before the pass that opened this session."""
        if session.kind is not SessionKind.ACCESS_PASS:
            return False
        for view in own.devices:
            registration = await tx.get(Registration, device_id=view.device.id)
            opened = await tx.get(Session, id=registration.session_id) if registration else None
            if opened is None or opened.access_pass_id != session.access_pass_id:
                return True
        return False

    async def set_default_method(self, caller: Caller, method: SignInMethod | None) -> None:
        """PS6: what is offered first; None for what was used last. Raises NO_METHOD, FIELD_INVALID.

        A pass is no default: one that can be used comes first by itself (T9), and then it is gone.
        """
        if method is SignInMethod.ACCESS_PASS:
            raise invalid_field("method", "approval, security key, or nothing for the one used last")

        async def work(tx: Transaction) -> KeyvouchError | None:
            await self._world.must_stand(tx, caller)
            own = await self._own(tx, caller)
            if own is None:
                return session_revoked()
            if method is not None and not own.keys_for(method):
                return no_key(method)
            await tx.update(User, {"id": own.user.id}, {"default_method": method.value if method else ""})
            await self._world.audit(
                tx,
                "user.set_default_method",
                actor=own.user.id,
                tenant_id=own.user.tenant_id,
                subject=own.user.id,
                user_id=own.user.id,
                method=method.value if method else "last",
            )
            return None

        settled(await self._world.store.write(work))

    async def explain(self, caller: Caller) -> tuple[Verdicts, int]:
        """Which rule decided what in the sign-in that became this session, and by which version of the policy."""
        row = await self._world.store.read(lambda tx: tx.get(SignIn, id=caller.session.sign_in_id))
        if row is None or row.user_id != caller.user.id:
            raise NotFoundError(
                Reason.SESSION_UNKNOWN,
                "Nothing is known of the sign-in that opened this session.",
                fix="Sign in again, and ask again.",
            )
        return Verdicts.load(row.rules), row.policy_version


def no_key(method: SignInMethod) -> RefusedError:
    """For somebody who has nothing to use a method with."""
    what = "a device" if method is SignInMethod.APPROVAL else "a security key"
    return RefusedError(
        Reason.NO_METHOD,
        f"You have not registered {what} yet.",
        fix="Register one with `keyvouch-agent enroll`.",
        metadata={"method": method.value},
    )


def _pass_refusal(own: _Own, now: int) -> KeyvouchError | None:
    if own.found_pass is None:
        return RefusedError(
            Reason.ACCESS_PASS_NONE, "You have no access pass.", fix="Ask an administrator when you need one."
        )
    reason = access_pass_refusal(own.policy, own.found_pass, own.subject, now=now)
    if reason is None:
        return None
    return RefusedError(
        reason, "Your access pass cannot be used now.", fix="Ask an administrator for another one when you need it."
    )


def _method_of(session: Session) -> SignInMethod:
    if session.kind is SessionKind.ACCESS_PASS:
        return SignInMethod.ACCESS_PASS
    is_key = way_of(session) is SignInWay.SECURITY_KEY
    return SignInMethod.SECURITY_KEY if is_key else SignInMethod.APPROVAL


def _warnings(own: _Own, session: Session, fit: list[DeviceView], now: int) -> list[str]:
    """Sentences for the person: what is one step away from being locked out, and what an attack looks like."""
    said: list[str] = []
    if not own.devices:
        said.append("No device can approve your sign-ins yet. Enrol one before your access pass ends.")
    elif not fit:
        said.append("None of your devices counts any more under the present policy: enrol another one.")
    elif len(own.devices) == 1:
        said.append("You have one device. If it is lost, only an administrator can help you: enrol a second one.")
    elif len(fit) == 1:
        name = fit[0].device.display_name
        said.append(f"Of your {len(own.devices)} devices only {name} counts now: enrol another one.")
    if session.kind is SessionKind.ACCESS_PASS and session.expires_at - now <= SOON_SECONDS:
        minutes = max(1, (session.expires_at - now) // 60)
        said.append(f"This session ends with your access pass in {minutes} min: register before that.")
    if own.user.flagged_at:
        said.append("You reported a sign-in that was not you, and no administrator has closed that report yet.")
    return said
