"""CBOR as others write it: indefinite lengths, unsorted keys, long heads. For re-encoding recorded test data only."""

from __future__ import annotations

from typing import Any

_BREAK = object()


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """Decode the item at `at`, of the types that attestation objects hold; return it and the offset after it."""
    kind, short = data[at] >> 5, data[at] & 0x1F
    at += 1
    size = 1 << short - 24 if 24 <= short < 28 else 0
    argument, at = int.from_bytes(data[at : at + size], "big") if size else short, at + size
    if kind == 7:
        return {20: False, 21: True, 22: None, 31: _BREAK}[argument], at
    if kind < 2:
        return (argument if kind == 0 else -1 - argument), at
    if kind < 4 and short < 28:
        content = data[at : at + argument]
        return (content if kind == 2 else content.decode()), at + argument
    items, at = _items(data, at, None if short == 31 else argument * (2 if kind == 5 else 1))
    if kind < 4:
        return (b"" if kind == 2 else "").join(items), at
    return (items if kind == 4 else dict(zip(items[::2], items[1::2], strict=True))), at


def _items(data: bytes, at: int, count: int | None) -> tuple[list[Any], int]:
    items: list[Any] = []
    while count is None or len(items) < count:
        item, at = decode(data, at)
        if item is _BREAK:
            break
        items.append(item)
    return items, at
