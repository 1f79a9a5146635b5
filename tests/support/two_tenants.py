"""Users with everything that can be theirs, put into the store of a live server: for tests that ask about thousands of
targets. Not here: whether what is put there came about as it should (the ceremonies' own tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keyvouch_server.domain.model import Credential, Role, UserKind
from keyvouch_server.ports import Store
from support import sample_records as samples
from support.live_server import LiveServer
from support.sample_records import variant


@dataclass(frozen=True, slots=True)
class Things:
    """The names and ids of a user and of what is theirs."""

    tenant_id: str
    user_id: str
    username: str
    alias: str
    display_name: str
    role: Role
    group_id: str
    group: str
    device_id: str
    session_id: str
    sign_in_id: str
    prompt_id: str
    risk_event_id: str
    access_pass_id: str
    registration_id: str


def id_of(prefix: str, name: str) -> str:
    """An id of the form the server makes, out of a short name of small letters."""
    return f"{prefix}_{name.ljust(26, '2')[:26]}"


def things_of(name: str, tenant_id: str, role: Role) -> Things:
    """What the user of that name will have."""
    return Things(
        tenant_id=tenant_id,
        user_id=id_of("usr", name),
        username=f"{name} user",
        alias=f"{name}@example.org",
        display_name=name,
        role=role,
        group_id=id_of("grp", name),
        group=f"{name} group",
        device_id=id_of("dev", name),
        session_id=id_of("ses", name),
        sign_in_id=id_of("sin", name),
        prompt_id=id_of("prm", name),
        risk_event_id=id_of("rsk", name),
        access_pass_id=id_of("tap", name),
        registration_id=id_of("reg", name),
    )


async def put_user(
    live: LiveServer, name: str, tenant_id: str, role: Role = Role.USER, kind: UserKind = UserKind.MEMBER
) -> Things:
    """Put a user into a tenant, with names, a group, a valid pass, a device, sign-ins, a session, a risk event."""
    things = things_of(name, tenant_id, role)
    now = live.clock.now()

    async def work(tx: Any) -> None:
        (real,) = await tx.find(Credential, {}, limit=1)  # of whoever has enrolled: it holds a key that can be read
        for record in _records(name, things, kind, real, now):
            await tx.insert(record)

    store: Store = live.app.store
    await store.write(work)
    return things


def _records(name: str, it: Things, kind: UserKind, real: Credential, now: int) -> list[Any]:
    whose = {"tenant_id": it.tenant_id, "user_id": it.user_id}
    unique = name.encode()
    of_device = {**whose, "device_id": it.device_id}
    return [
        variant(
            samples.USER,
            id=it.user_id,
            tenant_id=it.tenant_id,
            username=it.username,
            username_key=it.username,
            display_name=it.display_name,
            role=it.role,
            kind=kind,
            user_handle=unique,
        ),
        variant(samples.LOGIN_NAME, **whose, name=it.username, name_key=it.username),
        variant(samples.ALIAS, **whose, name=it.alias, name_key=it.alias),
        variant(samples.GROUP, id=it.group_id, tenant_id=it.tenant_id, name=it.group, name_key=it.group),
        variant(samples.GROUP_MEMBER, **whose, group_id=it.group_id),
        variant(samples.ACCESS_PASS, **whose, id=it.access_pass_id, start_at=now, created_at=now, one_time=False),
        variant(
            samples.REGISTRATION, **of_device, id=it.registration_id, token_hash=unique, channel_key=unique, tpm=b""
        ),
        variant(samples.DEVICE, **whose, id=it.device_id, channel_key=unique),
        variant(real, **of_device, id=unique, user_handle=unique),
        variant(samples.SIGN_IN, **of_device, id=it.sign_in_id, session_id=it.session_id, assurance=""),
        variant(
            samples.SESSION,
            **of_device,
            id=it.session_id,
            sign_in_id=it.sign_in_id,
            assurance="",
            created_at=now,
            expires_at=now + 3600,
        ),
        variant(
            samples.PROMPT, id=it.prompt_id, sign_in_id=it.sign_in_id, device_id=it.device_id, credential_id=unique
        ),
        variant(samples.RISK_EVENT, **whose, id=it.risk_event_id, subject=it.sign_in_id, closed_at=0, closed_by=""),
    ]


def made_up(things: Things) -> Things:
    """Names and ids of the same form and length that lead to nothing."""
    return things_of(things.display_name[:-1] + "q", things.tenant_id, things.role)
