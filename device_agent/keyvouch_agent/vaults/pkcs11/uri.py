"""PKCS#11 URIs (RFC 7512): which token is meant, and which key in it.

    pkcs11:token=Ada%20Lovelace;serial=9d10dd95ddbc81d1;id=%01

Read strictly: an attribute that is not known here would be one that is not looked at, and another token might be taken.

What is *not* here: PINs. `pin-value` and `pin-source` are refused, for a PIN is asked of a person and kept nowhere; so
are `module-path` and `module-name`, for which modules are loaded is not for a URI to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote_from_bytes, unquote_to_bytes

from keyvouch.errors import MalformedError, Reason

__all__ = ["TokenName", "TokenUri"]

_SCHEME: Final = "pkcs11:"
_TEXTS: Final = {"token": "token", "serial": "serial", "manufacturer": "manufacturer", "model": "model",
                 "object": "object"}  # fmt: skip
_VALUE: Final = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})*")
"""pk11-pchar of section 2.3, without the query's characters."""
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,19}")
_SAFE: Final = ":[]@!$'()*+,=&"
_LONGEST: Final = 1024


@dataclass(frozen=True, slots=True)
class TokenName:
    """What a token says of itself (CK_TOKEN_INFO), without the padding."""

    label: str
    serial: str
    manufacturer: str
    model: str

    def same_token(self, other: TokenName) -> bool:
        """Whether it is the same one. Labels may change: OpenSC makes a PIV card's of the name in its certificate."""
        same = (self.serial, self.manufacturer, self.model) == (other.serial, other.manufacturer, other.model)
        return same and (bool(self.serial.strip("0 ")) or self.label == other.label)

    def __str__(self) -> str:
        return f"{self.label or self.model!r} (serial {self.serial or 'unknown'})"


@dataclass(frozen=True, slots=True)
class TokenUri:
    """The attributes of a URI; None for one that is not there."""

    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot_id: int | None = None
    object: str | None = None
    """Label of the key, or of its certificate."""
    id: bytes | None = None
    """Its CKA_ID."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URI. Raises `MalformedError(CONFIGURATION)`; the message has nothing of a PIN that was in it."""
        if not text.startswith(_SCHEME) or len(text) > _LONGEST:
            raise _bad(f"it is a text of at most {_LONGEST} characters that begins with {_SCHEME!r}")
        path, _, query = text.removeprefix(_SCHEME).partition("?")
        if query:
            _refuse_query(query)
        found: dict[str, str] = {}
        for part in path.split(";") if path else []:
            name, equals, value = part.partition("=")
            if not equals or not _VALUE.fullmatch(value):
                raise _bad("each of its parts is a name, '=', and a value in which odd characters are written as %xx")
            if name in found:
                raise _bad(f"{name!r} is there twice")
            found[name] = value
        if "pin-value" in found or "pin-source" in found:
            raise _pin()
        if unknown := found.keys() - {*_TEXTS, "id", "type", "slot-id"}:
            raise _bad(f"{min(unknown)!r} is not supported")
        if found.get("type", "private") not in ("private", "cert"):
            raise _bad("its type is 'private' or 'cert'")
        return cls(
            **{member: _text(found[name]) for name, member in _TEXTS.items() if name in found},
            id=unquote_to_bytes(found["id"]) if "id" in found else None,
            slot_id=_number(found["slot-id"]) if "slot-id" in found else None,
        )

    @property
    def names_key(self) -> bool:
        """Whether it says which key is meant."""
        return self.id is not None or self.object is not None

    def matches(self, name: TokenName, slot_id: int) -> bool:
        """Whether the token of that name in that slot is meant."""
        asked = (self.token, self.serial, self.manufacturer, self.model)
        there = (name.label, name.serial, name.manufacturer, name.model)
        return self.slot_id in (None, slot_id) and all(a in (None, b) for a, b in zip(asked, there, strict=True))

    def __str__(self) -> str:
        parts = [f"{name}={_quoted(value.encode())}" for name, member in _TEXTS.items()
                 if (value := getattr(self, member)) is not None]  # fmt: skip
        if self.slot_id is not None:
            parts.append(f"slot-id={self.slot_id}")
        if self.id is not None:
            parts.append("id=" + "".join(f"%{byte:02X}" for byte in self.id))
        return _SCHEME + ";".join(parts)


def _refuse_query(query: str) -> None:
    names = {part.partition("=")[0] for part in query.split("&")}
    if names & {"pin-value", "pin-source"}:
        raise _pin()
    if names & {"module-name", "module-path"}:
        raise _bad("which module is loaded is said by [smartcard] module, not by the URI")
    raise _bad("it has no query")


def _text(value: str) -> str:
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise _bad("a value is not UTF-8") from None


def _number(value: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise _bad("slot-id is a decimal number")
    return int(value)


def _quoted(value: bytes) -> str:
    return quote_from_bytes(value, safe=_SAFE)


def _pin() -> MalformedError:
    return MalformedError(
        Reason.CONFIGURATION,
        "The PKCS#11 URI has a PIN in it, or says where one is. The agent takes PINs from people only.",
        fix="Take pin-value and pin-source out of it. If a PIN stood there, change it: others may have read it.",
    )


def _bad(why: str) -> MalformedError:
    return MalformedError(
        Reason.CONFIGURATION,
        f"The PKCS#11 URI cannot be used: {why}.",
        fix="Write it as in RFC 7512, such as pkcs11:serial=1234. `keyvouch-agent doctor` shows the tokens.",
    )
