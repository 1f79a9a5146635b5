"""base64url without padding, in its one canonical spelling (RFC 4648 sections 3.5 and 5).

Not here: any other base64. Whatever has padding, another alphabet, blanks or stray last bits is refused.
"""

from __future__ import annotations

import binascii

__all__ = ["decode", "encode"]

_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/***")
"""What belongs to the other alphabet becomes what belongs to none."""

_PADDING = (b"", b"*", b"==", b"=")
"""What the library wants after so many characters of the last group of four; one alone is never right."""

_LAST = ("", "", "AQgw", "AEIMQUYcgkosw048")
"""The last characters, after so many, whose bits that are not needed are zero. None is needed of a whole group."""


def encode(data: bytes) -> str:
    """Encode `data`; ASCII letters, digits, `-` and `_` only."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """Decode canonical base64url. Raises `ValueError` for every other spelling."""
    rest = len(text) % 4
    try:
        data = binascii.a2b_base64(text.encode("ascii").translate(_FROM_URL) + _PADDING[rest], strict_mode=True)
    except ValueError:  # of either step: the text is not ASCII, or not of this alphabet
        data = None
    if data is None or (rest and text[-1] not in _LAST[rest]):
        raise ValueError("This is not canonical base64url without padding.")
    return data
