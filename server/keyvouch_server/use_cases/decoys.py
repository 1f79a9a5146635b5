"""Keys that nobody has: what stands in an answer to a stranger in the place of those that a user has not got.

They are made of the name that was given and a key of the server, so that they are the same at each request, after a
restart too, and tell nothing (WebAuthn Level 3 section 14.6.2, P12).

What is not here: the offers that are made of them (`opening`).
"""

from __future__ import annotations

from typing import Final

from keyvouch.ids import DEVICE, ID_ENTROPY, TENANT, CredentialId, DeviceId, TenantId, UserId, new_id
from keyvouch_server.domain.names import name_key
from keyvouch_server.ports import Keys

_LENGTHS: Final = (32, 48, 64, 64)
"""Bytes of the credential ids that are made up: as those of keys are. A key with ids of another length shows that there
is one.
"""


class Decoys:
    """Devices and credentials that are none, and never the ids of any."""

    def __init__(self, keys: Keys) -> None:
        self._mac = keys.mac

    def key(self, named: UserId, number: int) -> tuple[DeviceId, CredentialId]:
        """The key of that number in the place of one of whoever is `named`."""
        name = f"{named}/{number}"
        stream = b"".join(self._mac("decoy-credential", f"{name}/{block}".encode()) for block in range(3))
        credential = CredentialId(stream[32 : 32 + _LENGTHS[stream[0] % len(_LENGTHS)]])
        return DeviceId(new_id(DEVICE, self._mac("decoy-device", name.encode())[:ID_ENTROPY])), credential

    def tenant(self, name: str) -> TenantId:
        """The tenant of a name that no tenant has."""
        return TenantId(new_id(TENANT, self._mac("decoy-tenant", name_key(name).encode())[:ID_ENTROPY]))
