"""Keys that nobody has: what stands in an answer to a stranger in the place of those that a user has not got.

They are made of the id that a name stands for and a key of the server, so that they are the same at each request, after
a restart too, and tell nothing (WebAuthn Level 3 section 14.6.2, P12). Their ids are as long as those of the keys that
were registered in the tenant, each length about as often: else the one key among the offers would stand out. So some
decoys change when keys of another length come into use, those of people with keys as well as those of names without.

What is not here: the offers that are made of them (`offering`).
"""

from __future__ import annotations

from typing import Final

from keyvouch.ids import DEVICE, ID_ENTROPY, TENANT, USER, CredentialId, DeviceId, TenantId, UserId, new_id
from keyvouch_server.domain.names import name_key
from keyvouch_server.ports import Keys

_USUAL: Final = ("64:1", "32:1 64:1", "48:1 64:1", "32:1", "32:1 48:1 64:2")
"""Lengths where no key was registered yet, or there is no such tenant: one of these, always the same for one name."""

_MOST_LENGTHS: Final = 16
"""Different lengths that are counted in one tenant, so that whoever brings a key of each makes no row grow."""

_BLOCK: Final = 32


def with_key(lengths: str, size: int) -> str:
    """`Tenant.key_lengths` with one more key whose id has `size` bytes."""
    counts = _counts(lengths)
    if size in counts or len(counts) < _MOST_LENGTHS:
        counts[size] = counts.get(size, 0) + 1
    return " ".join(f"{bytes_}:{many}" for bytes_, many in sorted(counts.items()))


def _counts(lengths: str) -> dict[int, int]:
    pairs = (one.split(":") for one in lengths.split())
    return {int(size): int(many) for size, many in pairs}


def _length(lengths: str, drawn: bytes) -> int:
    """One of the lengths, by eight drawn bytes. The weights grow by doublings, so that decoys seldom change."""
    weights = {size: many.bit_length() for size, many in sorted(_counts(lengths).items())}
    place = int.from_bytes(drawn, "big") * sum(weights.values()) >> 64
    ends = [sum(list(weights.values())[: number + 1]) for number in range(len(weights))]
    return next(size for size, end in zip(weights, ends, strict=True) if place < end)


class Decoys:
    """Devices and credentials that are none, and never the ids of any."""

    def __init__(self, keys: Keys) -> None:
        self._mac = keys.mac

    def key(self, named: UserId, number: int, tenant: str, lengths: str) -> tuple[DeviceId, CredentialId]:
        """The key of that number in the place of one of whoever is `named`, a user by whichever name, or nobody.

        `tenant` is the name that was given, `lengths` what is counted there (`Tenant.key_lengths`).
        """
        name = f"{named}/{number}"
        drawn = self._mac("decoy-credential", name.encode())[:8]
        size = _length(lengths or self._usual(tenant), drawn)
        blocks = range(1, size // _BLOCK + 2)
        stream = b"".join(self._mac("decoy-credential", f"{name}/{block}".encode()) for block in blocks)
        credential = CredentialId(stream[:size])
        return DeviceId(new_id(DEVICE, self._mac("decoy-device", name.encode())[:ID_ENTROPY])), credential

    def _usual(self, tenant: str) -> str:
        return _USUAL[self._mac("decoy-lengths", name_key(tenant).encode())[0] % len(_USUAL)]

    def nobody(self, tenant: str, username: str) -> UserId:
        """A user id that no user has, always the same for one name however it is spelt."""
        named = f"{name_key(tenant)}\n{name_key(username)}".encode()
        return UserId(new_id(USER, self._mac("nobody", named)[:ID_ENTROPY]))

    def tenant(self, name: str) -> TenantId:
        """The tenant of a name that no tenant has."""
        return TenantId(new_id(TENANT, self._mac("decoy-tenant", name_key(name).encode())[:ID_ENTROPY]))
