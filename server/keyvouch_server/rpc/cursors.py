"""Pages of lists: where one starts, how long it is, and the token that leads to the next.

A token is opaque to clients: `version (1 byte) || HMAC-SHA-256 (32 bytes) || key of the last row`, in base64url. The
HMAC covers the list, the tenant, the user where the list is of their own things, and every field of the request but the
page itself. So a token leads on in the one list it came from and nowhere else, and one that was made up is refused.
Not here: reading the rows (`use_cases`).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from keyvouch import base64url
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.ports import Keys
from keyvouch_server.use_cases.world import Caller

Row = TypeVar("Row")

DEFAULT_PAGE: Final = 50
LARGEST_PAGE: Final = 200
_VERSION: Final = b"\x01"
_MAC: Final = 32
_LONGEST: Final = 512
"""Characters of a token. Keys of rows are ids and numbers, far shorter."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page that was asked for: at most `size` rows after the one with the key `after`, empty for the first page."""

    after: str
    size: int
    _keys: Keys
    _scope: bytes

    @property
    def number(self) -> int:
        """`after` in a list whose rows are numbered, 0 for the first page."""
        return int(self.after or "0")

    def next_token(self, rows: Sequence[Row], key: Callable[[Row], object]) -> str:
        """The token of the next page, by the key of the last row; empty where this page is not full."""
        return self.token_after(str(key(rows[-1]))) if len(rows) == self.size else ""

    def token_after(self, key: str) -> str:
        """The token of a page that starts after `key`."""
        tail = key.encode()
        return base64url.encode(_VERSION + _mac(self._keys, self._scope, tail) + tail)


class Cursors:
    """Reads pages out of requests, with the server's key."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def page(self, caller: Caller, request: Any, *, own: bool = False) -> Page:
        """The page that a request with a field `page` asks for. `own`: the list is of the caller's own things.

        Raises `MalformedError(FIELD_INVALID)` for a size out of range, and for a token of anything but this list.
        """
        if not 0 <= request.page.size <= LARGEST_PAGE:
            raise invalid_field("page.size", f"0 to {LARGEST_PAGE}")
        scope = _scope(caller, request, own=own)
        after = self._read(request.page.token, scope) if request.page.token else ""
        return Page(after, request.page.size or DEFAULT_PAGE, self._keys, scope)

    def _read(self, token: str, scope: bytes) -> str:
        try:
            data = base64url.decode(token) if len(token) <= _LONGEST else b""
        except ValueError:
            data = b""
        version, mac, tail = data[:1], data[1 : 1 + _MAC], data[1 + _MAC :]
        if version != _VERSION or not hmac.compare_digest(mac, _mac(self._keys, scope, tail)):
            raise invalid_field("page.token", "the next_token of the page before, of the same list")
        return tail.decode()


def _mac(keys: Keys, scope: bytes, tail: bytes) -> bytes:
    return keys.mac("cursor", len(scope).to_bytes(4, "big") + scope + tail)


def _scope(caller: Caller, request: Any, *, own: bool) -> bytes:
    """What a token is good for, byte for byte: ids have no space in them, and the rest is of known meaning."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.ClearField("page")
    who = f"{request.DESCRIPTOR.full_name} {caller.user.tenant_id} {caller.user.id if own else '-'} "
    filters: bytes = asked.SerializeToString(deterministic=True)
    return who.encode() + filters
