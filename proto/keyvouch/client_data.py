"""Client data: the JSON that a WebAuthn client hashes into every signature (WebAuthn Level 3 section 5.8.1).

What is not here: whether its challenge and its origins are the expected ones; `keyvouch.attestation` judges that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Final, Self

from keyvouch import base64url
from keyvouch.errors import MalformedError, Reason

__all__ = ["CollectedClientData"]

MAX_CLIENT_DATA: Final = 64 * 1024
"""Longest client data that is looked at, in bytes."""

MAX_JSON_DEPTH: Final = 8
"""Objects and arrays of client data that may enclose one another, the outermost included."""


class CollectedClientData(bytes):
    """The JSON a client hashes into every signature (WebAuthn section 5.8.1).

    `type`, `challenge`, `origin`, `crossOrigin`, `topOrigin` and `tokenBinding` are checked for type and shape;
    unknown members are allowed. Strict where lenience has been abused: UTF-8 only, no member twice, bounded
    length and depth.
    """

    type: str
    challenge: bytes
    origin: str
    cross_origin: bool
    top_origin: str | None

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`. The reason names the member that is wrong, or is `CLIENT_DATA_JSON`."""
        if isinstance(data, cls):
            return data
        members = _parse_json(data)
        self = super().__new__(cls, data)
        self.type = _text(members, "type", Reason.CLIENT_DATA_TYPE)
        self.challenge = _challenge(members)
        self.origin = _text(members, "origin", Reason.ORIGIN)
        self.cross_origin = _boolean(members, "crossOrigin", Reason.CROSS_ORIGIN)
        self.top_origin = _text(members, "topOrigin", Reason.TOP_ORIGIN) if "topOrigin" in members else None
        if "tokenBinding" in members:
            _check_token_binding(members["tokenBinding"])
        return self

    @classmethod
    def build(
        cls,
        type: str,  # noqa: A002  # the member's name in the specification
        challenge: bytes,
        origin: str,
        *,
        cross_origin: bool = False,
        top_origin: str | None = None,
    ) -> Self:
        """Make client data the way browsers serialize it (WebAuthn section 5.8.1.1)."""
        members: dict[str, object] = {
            "type": type,
            "challenge": base64url.encode(challenge),
            "origin": origin,
            "crossOrigin": cross_origin,
        }
        if top_origin is not None:
            members["topOrigin"] = top_origin
        return cls(json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode())

    def __repr__(self) -> str:
        return f"CollectedClientData({bytes(self)!r})"

    @property
    def sha256(self) -> bytes:
        """The client data hash, 32 bytes."""
        return hashlib.sha256(self).digest()


def _parse_json(data: bytes) -> dict[str, object]:
    """Read a JSON object. A leading byte order mark is dropped, as section 7.1 step 5 wants."""
    if len(data) > MAX_CLIENT_DATA:
        raise _bad_json(f"The client data has more than {MAX_CLIENT_DATA} bytes.")
    if data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH:
        _check_depth(data)
    try:
        members = _JSON.decode(str(data, "utf-8").removeprefix("\ufeff"))
    except ValueError:
        raise _bad_json("The client data is not one JSON value in UTF-8.") from None
    if not isinstance(members, dict):
        raise _bad_json("The client data is not a JSON object.")
    return members


def _check_depth(data: bytes) -> None:
    """Count brackets outside of strings, before a recursive parser meets them."""
    depth = 0
    for token in _JSON_TOKEN.finditer(data):
        first = token[0][:1]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        if depth > MAX_JSON_DEPTH:
            raise _bad_json("The client data is nested too deeply.")


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a dict, unless a name occurs twice: then the first such name gives the reason."""
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    raise _malformed(_REASONS.get(twice, Reason.CLIENT_DATA_JSON), "A member of the client data occurs twice.")


def _no_constant(name: str) -> object:
    raise ValueError(name)


_JSON = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_no_constant)
# A string is skipped as a whole, even one that never ends: no byte is looked at twice.
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_OTHER_BASE64 = re.compile(r"[A-Za-z0-9_-]*[+/=][A-Za-z0-9+/=_-]*")
_REASONS: Mapping[str, Reason] = {
    "type": Reason.CLIENT_DATA_TYPE,
    "challenge": Reason.CHALLENGE,
    "origin": Reason.ORIGIN,
    "crossOrigin": Reason.CROSS_ORIGIN,
    "topOrigin": Reason.TOP_ORIGIN,
    "tokenBinding": Reason.TOKEN_BINDING,
}


def _text(members: Mapping[str, object], name: str, reason: Reason) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise _malformed(reason, f"The client data has no {name} that is a string.")
    return value


def _boolean(members: Mapping[str, object], name: str, reason: Reason) -> bool:
    value = members.get(name, False)
    if not isinstance(value, bool):
        raise _malformed(reason, f"The member {name} of the client data is not true or false.")
    return value


def _challenge(members: Mapping[str, object]) -> bytes:
    """Decode the challenge. Padding and the other base64 alphabet are told apart from what is no base64 at all."""
    text = _text(members, "challenge", Reason.CHALLENGE)
    try:
        return base64url.decode(text)
    except ValueError:
        other = _OTHER_BASE64.fullmatch(text) is not None
    reason = Reason.CHALLENGE_ENCODING if other else Reason.CHALLENGE
    raise _malformed(reason, "The challenge in the client data is not base64url without padding.")


def _check_token_binding(value: object) -> None:
    """Check the shape of a member that Level 3 no longer defines (WebAuthn Level 2 section 5.8.1)."""
    status = value.get("status") if isinstance(value, dict) else None
    if status in ("supported", "not-supported"):
        return
    if status == "present" and isinstance(value, dict) and isinstance(value.get("id"), str):
        return
    raise _malformed(Reason.TOKEN_BINDING, "The token binding in the client data is not well-formed.")


def _bad_json(message: str) -> MalformedError:
    return _malformed(Reason.CLIENT_DATA_JSON, message)


def _malformed(reason: Reason, message: str) -> MalformedError:
    return MalformedError(reason, message, fix="Start the ceremony again with a conforming WebAuthn client.")
