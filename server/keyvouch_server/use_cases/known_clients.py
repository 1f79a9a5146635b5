"""Known clients: what a client shows to be told apart from strangers, where the user it names has signed in before.

It holds a token that the server made when it gave the client a session: an expiry, random bytes and a MAC over these,
tenant and user. Nothing is stored of it. With one, a client is told which methods the user prefers (PS6), and has a
budget that strangers cannot use up (P18). For anybody else, and for any other call, it is worth nothing.

Not here: what is made of it (`initiators`, `method_offers`).
"""

from __future__ import annotations

import hmac
from typing import Final

from keyvouch import base64url
from keyvouch.ids import TenantId, UserId
from keyvouch_server.use_cases.world import World

KNOWN_CLIENT_SECONDS: Final = 90 * 86400
"""How long a client is known after its last sign-in."""

_PREFIX: Final = "kvc_"
_INSTANT, _RANDOM, _MAC = 8, 16, 32
_NO_TOKEN: Final = bytes(_INSTANT + _RANDOM + _MAC)
"""Expired long ago: it is judged like any other, so that all answers take the same work."""


class KnownClients:
    """Makes and judges the tokens of known clients."""

    def __init__(self, world: World) -> None:
        self._world = world

    def token(self, tenant: TenantId, user: UserId) -> str:
        """A token for a client at which this user has just signed in."""
        expiry = self._world.clock.now() + KNOWN_CLIENT_SECONDS
        said = expiry.to_bytes(_INSTANT, "big") + self._world.entropy.token(_RANDOM)
        return _PREFIX + base64url.encode(said + self._mac(tenant, user, said))

    def knows(self, token: str, tenant: TenantId, user: UserId) -> bool:
        """Whether it is one for this user, and still good. Whatever else it is, is as good as none."""
        data = _bytes_of(token)
        said, mac = data[:-_MAC], data[-_MAC:]
        genuine = hmac.compare_digest(mac, self._mac(tenant, user, said))
        left = int.from_bytes(said[:_INSTANT], "big") - self._world.clock.now()
        return genuine and 0 < left <= KNOWN_CLIENT_SECONDS

    def _mac(self, tenant: TenantId, user: UserId, said: bytes) -> bytes:
        return self._world.keys.mac("known-client", f"{tenant}/{user}/".encode() + said)


def _bytes_of(token: str) -> bytes:
    """The bytes of a token in its one spelling; those of no token for anything else."""
    if not token.startswith(_PREFIX) or len(token) > 100:
        return _NO_TOKEN
    try:
        data = base64url.decode(token.removeprefix(_PREFIX))
    except ValueError:
        return _NO_TOKEN
    return data if len(data) == len(_NO_TOKEN) else _NO_TOKEN
